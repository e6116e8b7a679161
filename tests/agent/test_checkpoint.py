"""Checkpoints: a run goes on bit for bit after any step, and what is altered or of another run is refused by name."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import checkpoint
from edge_agent.checkpoint import CheckpointError, Run, run_of
from edge_agent.cli import main
from edge_agent.data import Dataset
from edge_agent.runtimes import safetensors
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import Recipe, TrainingState
from sparse.dynamic import Method
from tests.agent.sparse_runs import ADAMW, METHODS, SGD, STEPS, Bench, assert_same, bench, finished, recipe_of
from tests.bundles import Zoo, zoo
from tests.runtimes.engines import open_engine
from tests.tiny import write_bundle, write_shard
from tests.waiting import until

__all__ = ["bench", "zoo"]


def identity(bench: Bench, recipe: Recipe) -> Run:
    return run_of(bench.bundle, "full", bench.engine.name, bench.dataset, recipe)


def read(path: Path, bench: Bench, recipe: Recipe) -> TrainingState:
    manifest = bench.bundle.manifest
    return checkpoint.load(path, identity(bench, recipe), manifest.total, manifest.parameters)


def save(path: Path, bench: Bench, recipe: Recipe, steps: int) -> TrainingState:
    training = bench.train(recipe)
    for _ in range(steps):
        training.step()
    checkpoint.save(path, identity(bench, recipe), training.state())
    return training.state()


@pytest.mark.parametrize("method", [*METHODS, None])
def test_a_run_that_was_killed_after_any_step_ends_in_the_same_bits(
    bench: Bench, tmp_path: Path, method: Method | None
) -> None:
    recipe = recipe_of(method)
    whole = finished(bench.train(recipe))
    for steps in range(STEPS):
        save(tmp_path / "c", bench, recipe, steps)
        assert_same(finished(bench.train(recipe, read(tmp_path / "c", bench, recipe))), whole)


@pytest.mark.parametrize("optimizer", [ADAMW, OptimizerSettings(), OptimizerSettings(momentum=0.9, proximal=0.1)])
def test_every_optimisers_memory_is_kept(bench: Bench, tmp_path: Path, optimizer: OptimizerSettings) -> None:
    recipe = recipe_of("rigl", optimizer=optimizer)
    save(tmp_path / "c", bench, recipe, 7)
    resumed = read(tmp_path / "c", bench, recipe)
    assert_same(finished(bench.train(recipe, resumed)), finished(bench.train(recipe)))


@pytest.mark.parametrize("optimizer", [SGD, ADAMW])
def test_dropped_units_are_those_of_a_run_that_was_not_killed(
    zoo: Zoo, tmp_path: Path, optimizer: OptimizerSettings
) -> None:
    bundle = zoo("cnn_with_dropout")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22, *bundle.manifest.inputs[0].shape)).astype(np.float32)
    y = rng.integers(0, bundle.manifest.targets[0].classes or 3, 22)
    bench = Bench(bundle, open_engine("portable", bundle), Dataset((x,), (y,)), initial_model(bundle))
    recipe = recipe_of("rigl", optimizer=optimizer)
    whole = finished(bench.train(recipe))
    other_seed = finished(bench.train(replace(recipe, seed=recipe.seed + 1)))
    assert whole.model.tobytes() != other_seed.model.tobytes()
    for steps in (1, 5, 11):
        save(tmp_path / "c", bench, recipe, steps)
        assert_same(finished(bench.train(recipe, read(tmp_path / "c", bench, recipe))), whole)


def test_the_mean_of_all_gradients_goes_on_too(bench: Bench, tmp_path: Path) -> None:
    recipe = replace(recipe_of("static"), mean_gradient=True)
    save(tmp_path / "c", bench, recipe, 7)
    whole, resumed = bench.train(recipe), bench.train(recipe, read(tmp_path / "c", bench, recipe))
    for training in (whole, resumed):
        training.advance(1e9)
    one, other = whole.result().gradient, resumed.result().gradient
    assert one is not None
    assert other is not None
    assert one.tobytes() == other.tobytes()
    assert one.any()


def test_a_state_is_read_as_it_was_written_and_writes_the_same_bytes_again(bench: Bench, tmp_path: Path) -> None:
    recipe = recipe_of("dpf", optimizer=ADAMW)
    state = save(tmp_path / "c", bench, recipe, 5)
    again = read(tmp_path / "c", bench, recipe)
    assert_same(again, state)
    assert again.seconds == state.seconds
    checkpoint.save(tmp_path / "d", identity(bench, recipe), again)
    assert (tmp_path / "d").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_run_may_be_asked_for_more_steps(bench: Bench, tmp_path: Path) -> None:
    recipe = recipe_of("dpf", steps=6)
    save(tmp_path / "c", bench, recipe, 6)
    longer = recipe_of("dpf")
    assert_same(finished(bench.train(longer, read(tmp_path / "c", bench, longer))), finished(bench.train(longer)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"learning_rate": 0.1}, "recipe.learning_rate is 0.05 there and 0.1 here"),
        ({"seed": 3}, "recipe.seed is 1 there and 3 here"),
        ({"decay_at": (6,)}, r"recipe.decay_at is \[6, 9\] there and \[6\] here"),
        ({"optimizer": replace(SGD, momentum=0.5)}, "recipe.optimizer.momentum is 0.9 there and 0.5 here"),
        ({"sparse": None}, "recipe.sparse.begin is 0 there and null here"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_by_what_differs(
    bench: Bench, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    recipe = recipe_of("dpf")
    save(tmp_path / "c", bench, recipe, 3)
    with pytest.raises(CheckpointError, match=said):
        read(tmp_path / "c", bench, replace(recipe, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["bundle", "variant", "backend", "data", "numpy"])
def test_a_checkpoint_of_another_bundle_or_machine_is_refused_by_what_differs(
    bench: Bench, tmp_path: Path, key: str
) -> None:
    recipe, manifest = recipe_of("dpf"), bench.bundle.manifest
    save(tmp_path / "c", bench, recipe, 3)
    other = Run({**identity(bench, recipe).facts, key: "another"})
    with pytest.raises(CheckpointError, match=f"is of another run: {key} is .* there and another here"):
        checkpoint.load(tmp_path / "c", other, manifest.total, manifest.parameters)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_a_checkpoint_with_any_byte_altered_or_cut_off_is_refused(
    bench: Bench, tmp_path: Path, data: st.DataObject
) -> None:
    path, recipe = tmp_path / "c", recipe_of("dpf")
    if not path.exists():
        save(path, bench, recipe, 3)
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    hurt = good[:at] if data.draw(st.booleans()) else good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :]
    (tmp_path / "hurt").write_bytes(hurt)
    with pytest.raises(CheckpointError, match=r"hurt: is no whole checkpoint .* remove it to begin anew"):
        read(tmp_path / "hurt", bench, recipe)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip", b"\x80\x04\x95 a pickle" * 9, b"\x02" + bytes(7) + b"{}"]
)
def test_a_file_that_is_no_checkpoint_is_refused(bench: Bench, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(CheckpointError, match="is no whole checkpoint"):
        read(tmp_path / "c", bench, recipe_of("dpf"))


def test_a_checkpoint_of_a_later_format_is_refused_by_it(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(safetensors.format_tensors({}, {"format": "2"}))
    with pytest.raises(CheckpointError, match="its format is '2', this version reads '1'"):
        read(tmp_path / "c", bench, recipe_of("dpf"))


def test_a_checkpoint_of_other_sizes_is_refused_even_where_its_checksum_holds(bench: Bench, tmp_path: Path) -> None:
    recipe, manifest = recipe_of("dpf"), bench.bundle.manifest
    state = save(tmp_path / "c", bench, recipe, 3)
    assert state.sparse is not None
    for wrong in (
        replace(state, model=state.model[1:]),
        replace(state, optimizer=replace(state.optimizer, first_moment=state.optimizer.first_moment[1:])),
        replace(state, sparse=replace(state.sparse, mask=state.sparse.mask[:-8])),
    ):
        checkpoint.save(tmp_path / "c", identity(bench, recipe), wrong)
        with pytest.raises(CheckpointError, match="is no whole checkpoint"):
            checkpoint.load(tmp_path / "c", identity(bench, recipe), manifest.total, manifest.parameters)


def test_a_write_that_was_cut_off_leaves_the_last_checkpoint(bench: Bench, tmp_path: Path) -> None:
    recipe = recipe_of("dpf")
    state = save(tmp_path / "c", bench, recipe, 3)
    # What a killed process leaves of the next one.
    (tmp_path / "c.tmp").write_bytes((tmp_path / "c").read_bytes()[:100])
    assert_same(read(tmp_path / "c", bench, recipe), state)
    save(tmp_path / "c", bench, recipe, 4)
    assert read(tmp_path / "c", bench, recipe).done == 4


# The command


def command(tmp_path: Path, *more: str) -> list[str]:
    if not (tmp_path / "bundle").exists():
        write_bundle(tmp_path / "bundle")
        write_shard(tmp_path / "shard.npz")
    data = ["--bundle", str(tmp_path / "bundle"), "--data", str(tmp_path / "shard.npz")]
    return ["train", *data, "--batch-size", "8", "--sparsity", "0.5", "--sparsity-until", "6", "--json", *more]


def arrays(path: Path) -> dict[str, bytes]:
    """The tensors in a checkpoint, without the texts, which say how long it took."""
    file = safetensors.parse(path.name, path.read_bytes())
    return {name: file.array(name, ("F32", "I64", "U8")).tobytes() for name in file.header if name != "__metadata__"}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "static"])
def test_the_command_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    run = ("--method", method, "--refresh-every", "2")
    assert main(command(tmp_path, *run, "--steps", "9", "--checkpoint", str(tmp_path / "whole"))) == 0
    whole = json.loads(capsys.readouterr().out)
    for steps in ("6", "9"):
        capsys.readouterr()
        assert main(command(tmp_path, *run, "--steps", steps, "--checkpoint", str(tmp_path / "parts"))) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["loss"] == whole["loss"][6:]
    assert arrays(tmp_path / "parts") == arrays(tmp_path / "whole")
    assert (facts["kept"], facts["prunable"], facts["sparsity"]) == (3, 6, 0.5)
    assert facts["sparsity_of_all"] == pytest.approx(3 / 8)


@pytest.mark.real
def test_a_process_killed_in_the_middle_of_its_steps_loses_only_time(tmp_path: Path) -> None:
    run = ("--steps", "400", "--checkpoint-every", "20", "--checkpoint")
    arguments = command(tmp_path, *run, str(tmp_path / "parts"))
    process = subprocess.Popen([sys.executable, "-m", "edge_agent", *arguments], stdout=subprocess.DEVNULL)
    try:
        until((tmp_path / "parts").exists, "a first checkpoint was written")
    finally:
        process.kill()
        process.wait()
    assert main(arguments) == 0
    assert main(command(tmp_path, *run, str(tmp_path / "whole"))) == 0
    assert arrays(tmp_path / "parts") == arrays(tmp_path / "whole")


def test_a_run_that_is_done_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command(tmp_path, "--steps", "8", "--checkpoint", str(tmp_path / "c"))
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "is after step 8; ask for more --steps than 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--sparsity", "1"), "--sparsity: 1.0 must be at least 0 and below 1"),
        (("--sparsity", "0.95"), "the nearest that works is 0.8333"),
        (("--method", "lottery"), "--method: 'lottery' is unknown; use static, one-shot, gradual, dpf"),
        (("--method", "set", "--distribution", "global"), "--distribution: set fixes what each tensor keeps"),
        (("--distribution", "even"), "distribution: 'even' is unknown; use global, uniform, erk"),
        (("--refresh-every", "0"), "--refresh-every: 0 must be at least 1"),
        (("--sparsity-until", "9"), "--sparsity-until: 9 is after the last of 8 steps; 8 at most"),
        (("--sparsity-until", "-1"), "--sparsity-until: step -1"),
        (("--checkpoint-every", "0"), "--checkpoint-every: 0"),
        (("--decay-at", "ten"), "--decay-at: 'ten' must be steps, as in 1000,1500"),
        (("--variant", "bias"), "sparsity: no tensor is prunable"),
    ],
)
def test_mistakes_are_named_by_their_option_and_exit_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    assert main(command(tmp_path, "--steps", "8", *more)) == 3
    assert said in capsys.readouterr().err


def test_options_of_masks_without_a_sparsity_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [a for a in command(tmp_path, "--steps", "8") if a not in ("--sparsity", "0.5")]
    assert main(arguments) == 3
    assert "--sparsity-until: says nothing without --sparsity" in capsys.readouterr().err
