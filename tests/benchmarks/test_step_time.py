"""The step-time benchmark: real processes for each backend, the documented rows, and what goes wrong by name."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bundles
from benchmarks.step_time import Measured, Plan, Worker, _steps, main
from benchmarks.zoo import ZOO
from protocol.errors import ConfigurationError, SparsefleetError

KEYS = ["model", "batch", "backend", "ms", "spread", "ratio_to_torch", "peak_mib", "nodes"]


def plan(python: str = sys.executable) -> Plan:
    return Plan(("cnn_1d",), (1,), ("ort-training",), {"ort-training": python}, rounds=1, seed=1)


def test_a_quick_run_gives_the_documented_rows_for_torch_and_for_a_backend(capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--models", "cnn_1d", "--batches", "1", "--backends", "torch", "ort-training", "--rounds", "2"]
    assert main([*chosen, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    torch, ours = said["rows"]
    assert list(torch) == list(ours) == KEYS
    assert (torch["backend"], torch["ratio_to_torch"], torch["nodes"]) == ("torch", 1.0, None)
    assert (ours["backend"], ours["model"], ours["batch"]) == ("ort-training", "cnn_1d", 1)
    assert ours["nodes"] > 10
    assert ours["ratio_to_torch"] == pytest.approx(ours["ms"] / torch["ms"], abs=2e-2)
    # Each process has its own peak: the one that imports torch holds far more.
    assert 20 < ours["peak_mib"] < torch["peak_mib"] / 2
    assert {"torch: torch", "ort-training: onnxruntime"} <= set(said["versions"])


def test_the_spread_is_the_interquartile_range_of_the_median() -> None:
    assert Measured(ns=[1_000_000] * 9).spread == 0
    measured = Measured(ns=[8, 9, 10, 11, 12])
    assert measured.ms == pytest.approx(10e-6)
    assert measured.spread == pytest.approx(0.3)


def test_a_block_has_many_quick_steps_and_few_slow_ones() -> None:
    class Steady(Worker):
        def __init__(self, ms: float) -> None:
            self.ms_each = ms

        def take(self, steps: int, into: Measured) -> None:
            into.ns += [int(self.ms_each * 1e6)] * steps

    assert [_steps(Steady(ms)) for ms in (0.01, 10.0, 500.0)] == [100, 10, 2]


def test_a_worker_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    message = r"(?s)ort-training, cnn_1d, batch 1: ended early.*nothing\.npz"
    started = Worker(plan(), "ort-training", "cnn_1d", 1, tmp_path / "nothing", 0)
    with pytest.raises(SparsefleetError, match=message), started as worker:
        worker.hello()


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no-python: cannot be started"):
        Worker(plan("/no-python"), "ort-training", "cnn_1d", 1, tmp_path / "b", 0)


@pytest.mark.parametrize("wrong", [["--models", "no-such"], ["--backends", "tpu"], ["--batches", "0"]])
def test_what_is_unknown_or_out_of_range_is_refused_before_anything_is_exported(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(wrong)
    assert wrong[1] in capsys.readouterr().err


def test_the_zoo_holds_every_network_that_is_promised() -> None:
    promised = {"cnn_1d", "cnn_2conv", "ds_cnn", "lstm", "mobilenet_v2", "mobilenet_v3", "transformer"}
    assert set(ZOO) == promised | {f"resnet{n}_{norm}" for n in (8, 20) for norm in ("bn", "gn")}
    assert {name for name, model in ZOO.items() if not model.cnn} == {"lstm", "transformer"}


def test_a_graph_that_is_not_held_has_no_nodes(tmp_path: Path) -> None:
    bundle = bundles.write("cnn_1d", tmp_path / "b", 2, 1)
    assert bundles.nodes(bundle, "no-such") is None
    assert (bundles.nodes(bundle, "ort-training") or 0) > 10
    assert bundles.data_beside(bundle.root).is_file()
