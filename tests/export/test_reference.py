"""The record in a bundle: the batch that torch was given is the batch that is stored, small whatever the model, and
`fleet-export verify` finds a wrong runtime by it without torch."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

from edge_agent.runtimes.certificate import certify
from edge_agent.runtimes.comparison import Difference
from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.reference import load_record, parse_record
from edge_agent.runtimes.safetensors import format_tensors
from export import TrainingSpec, reference
from export.cli import main
from export.layout import ports_of, tensors_of
from export.parity import batch_of, beside, whole_record
from protocol.bundle import REFERENCE_FILE, Bundle, open_bundle
from protocol.manifest import FORMAT, MANIFEST_FILE, FileEntry, Inference, Manifest, Reference, Variant, format_manifest
from tests.bundles import Zoo
from tests.export.zoo import spec_of

ROOT = Path(__file__).parents[2]


def digits(inputs: Tensor, targets: Tensor | None = None) -> TrainingSpec:
    module = nn.Sequential(nn.Flatten(), nn.Linear(inputs[0].numel(), 2))
    given = torch.randint(0, 2, (len(inputs),)) if targets is None else targets
    return TrainingSpec(module, inputs, given, "cross_entropy")


def stored_bytes(few: reference.Small) -> int:
    return sum(port.values.nbytes for port in few.ports)


def test_a_small_batch_is_stored_as_it_is() -> None:
    near = beside(digits(torch.randn(20, 3, 8)))
    few = reference.small(near, near)
    assert torch.equal(few.spec.input_tensors[0], near.input_tensors[0][:8])
    assert torch.equal(few.spec.target_tensors[0], near.target_tensors[0][:8])
    assert few.ports[1].values.dtype == np.uint8
    assert not reference.same_examples(near, few.spec)


def test_the_same_examples_are_known_as_such() -> None:
    near = beside(digits(torch.randn(6, 3)))
    assert reference.same_examples(reference.small(near, near).spec, near)


@pytest.mark.parametrize(("pixels", "examples"), [(128, 6), (224, 2), (400, 2)])
def test_large_inputs_are_stored_in_bytes_within_the_budget_and_torch_sees_the_stored_values(
    pixels: int, examples: int
) -> None:
    spec = digits(torch.randn(8, 3, pixels, pixels))
    few = reference.small(spec, spec)
    given = few.spec.input_tensors[0]
    assert given.shape == (examples, 3, pixels, pixels)
    assert stored_bytes(few) <= reference.PACKED_BYTES
    scale = few.ports[0].scale
    assert scale is not None
    assert not torch.equal(given[0], given[1])
    if pixels < 400:
        assert (given - spec.input_tensors[0][:examples]).abs().max() <= 0.51 * scale[1]


@pytest.mark.parametrize("largest", [255, 1])
def test_whole_numbers_stay_exact_in_bytes(largest: int) -> None:
    spec = digits(torch.randint(0, largest + 1, (8, 3, 64, 64)).float())
    few = reference.small(spec, spec)
    assert torch.equal(few.spec.input_tensors[0], spec.input_tensors[0][: len(few.spec.input_tensors[0])])


def test_what_cannot_be_rounded_to_bytes_is_repeated_as_it_is() -> None:
    """An index in a float, of more than 256 values: what lies between does not exist."""

    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            assert (x == x.round()).all()
            return self.linear(x.mean(dim=(1, 2, 3))[:, None] / 1000)  # type: ignore[no-any-return]

    inputs = torch.randint(0, 1000, (8, 3, 300, 300)).float()
    spec = TrainingSpec(Lookup(), inputs, torch.randint(0, 2, (8,)), "cross_entropy")
    few = reference.small(spec, beside(spec))
    assert few.ports[0].scale is None
    assert stored_bytes(few) <= reference.PACKED_BYTES
    assert few.spec.input_tensors[0].shape == (2, 3, 300, 300)


@pytest.mark.parametrize(
    ("highest", "dtype"), [(255, np.uint8), (256, np.int16), (40_000, np.int32), (1 << 40, np.int64)]
)
def test_whole_numbers_take_the_smallest_type(highest: int, dtype: type) -> None:
    targets = torch.tensor([0, highest, 1, 0])
    spec = TrainingSpec(nn.Linear(2, 2), torch.randn(4, 2), targets, lambda o, t: o.sum() + t.sum())
    port = reference.small(spec, spec).ports[1]
    assert port.values.dtype == dtype
    assert torch.equal(port.tensor(), targets)


def manifest_of(spec: TrainingSpec) -> Manifest:
    """As the exporter makes it, without any graphs."""
    spec.module.train()
    ports = ports_of(spec, (spec.module(*spec.input_tensors),), {}, set())
    return Manifest(
        FORMAT, "large", 1, tensors_of(spec), ports.inputs, ports.targets, ports.outputs, "loss", (), (),
        (Variant("full", {}),), Inference("", {}), {}, Reference(REFERENCE_FILE, ""),
    )  # fmt: skip


def test_the_record_of_a_large_model_is_small_and_read_as_torch_found_it() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 7, stride=8), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 28 * 28, 400),
        nn.ReLU(), nn.Linear(400, 100),
    )  # fmt: skip
    spec = TrainingSpec(module, torch.rand(4, 3, 224, 224), torch.randint(0, 100, (4,)), "cross_entropy")
    manifest = manifest_of(spec)
    assert manifest.parameters > 5_000_000
    few, found = reference.recorded(spec, beside(spec), manifest)
    data = reference.format_record(found, few, manifest)
    assert len(data) < 400_000
    record = parse_record(manifest, REFERENCE_FILE, data)
    np.testing.assert_array_equal(record.batch.inputs[0], batch_of(few.spec).inputs[0])
    for kind, steps in record.steps["full"].items():
        wholes = found.steps["full"][kind]
        assert [(e.tensor, e.size, e.magnitude) for e in steps] == [(e.tensor, e.size, e.magnitude) for e in wholes]
        assert all(np.isin(e.values, w.values).all() and e.values.size for e, w in zip(steps, wholes, strict=True))
    assert data == reference.format_record(found, few, manifest)


# In a bundle.


def test_every_bundle_has_a_record_that_the_safetensors_library_reads_too(zoo: Zoo) -> None:
    bundle = zoo("cnn_with_batch_norm")
    read = load_file(bundle.root / REFERENCE_FILE)
    assert read["batch/input"].size == load_record(bundle).batch.inputs[0].size
    assert bundle.manifest.file(REFERENCE_FILE).size < 10_000


@pytest.mark.parametrize("name", ["cnn_with_dropout", "two_inputs_two_outputs", "frozen_first_layer"])
def test_a_bundle_agrees_with_its_own_record(zoo: Zoo, name: str) -> None:
    replayed = certify(zoo(name))
    assert {r.backend for r in replayed if r.ok} == {"portable", "ort-training"}


@pytest.fixture
def copied(zoo: Zoo, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo("cnn_with_batch_norm").root, tmp_path / "b"))


def rewrite(root: Path, change: dict[str, Array]) -> None:
    """Another record in place of the bundle's, with the right digest."""
    path = root / REFERENCE_FILE
    data = format_tensors({**load_file(path), **change}, {"format": "1", "examples": "6", "torch": "2"})
    path.write_bytes(data)
    manifest = open_bundle(root, only=frozenset()).manifest
    entry = FileEntry(REFERENCE_FILE, len(data), hashlib.sha256(data).hexdigest())
    files = tuple(entry if f.path == REFERENCE_FILE else f for f in manifest.files)
    (root / MANIFEST_FILE).write_bytes(format_manifest(replace(manifest, files=files)))


def wrong(bundle: Bundle) -> Iterator[Difference]:
    return (row for replayed in certify(bundle) for row in replayed.rows if not row.ok)


@pytest.mark.parametrize("kind", ["gradient", "statistics", "three steps", "evaluation"])
def test_any_tensor_that_is_off_is_named(copied: Path, kind: str) -> None:
    values = load_file(copied / REFERENCE_FILE)[f"values/full/{kind}"]
    bundle = open_bundle(copied)
    place = 0
    for want in load_record(bundle).steps["full"][kind]:  # type: ignore[index]
        off = values.copy()
        off[place] += 0.01 * max(1.0, want.magnitude)
        rewrite(copied, {f"values/full/{kind}": off})
        assert {(row.tensor, row.kind) for row in wrong(open_bundle(copied))} == {(want.tensor, kind)}
        place += want.values.size


WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None
from export.__main__ import main
sys.argv = ["fleet-export", *sys.argv[1:]]
sys.exit(main())
"""


def verify(*words: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT_TORCH.replace("from export.__main__", "from export.watch")
    return subprocess.run(
        [sys.executable, "-c", code, "verify", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_verify_runs_where_torch_cannot_be_imported(copied: Path) -> None:
    done = verify(str(copied), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said["ok"]
    tensors = {row["tensor"] for row in said["backends"][0]["rows"]}
    assert tensors == {"loss", "output", *(t.name for t in open_bundle(copied).manifest.tensors)}
    gradient = load_file(copied / REFERENCE_FILE)["values/full/gradient"]
    gradient[0] *= 2
    rewrite(copied, {"values/full/gradient": gradient})
    done = verify(str(copied))
    assert done.returncode == 1
    assert any("0.weight" in line and "FAIL" in line for line in done.stdout.splitlines())
    assert any("5.weight" in line and "pass" in line for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "numpy"], "none of its backends runs here. numpy: the bundle holds no graphs"),
        (["--backend", "tpu"], "'tpu' is unknown; use 'all' or one of"),
        (["--variant", "half"], "'half' is not in this bundle"),
    ],
)
def test_what_cannot_be_replayed_is_exit_code_three(
    zoo: Zoo, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(zoo("cnn_with_batch_norm").root), *words]) == 3
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_frozen_parameter_stays_and_has_no_gradient_in_torchs_steps() -> None:
    spec = spec_of("mlp_regression")
    manifest = manifest_of(spec)
    manifest = replace(manifest, variants=(Variant("full", {}), Variant("last", {}, frozen=("0.weight", "0.bias"))))
    steps = whole_record(spec, manifest).steps
    for whole, last in zip(steps["full"]["gradient"], steps["last"]["gradient"], strict=True):
        if last.tensor.startswith("0."):
            assert (last.magnitude, whole.magnitude > 0) == (0, True)
        else:
            np.testing.assert_array_equal(last.values, whole.values)
    still = steps["last"]["three steps"][0]
    np.testing.assert_array_equal(still.values, spec.module.get_parameter("0.weight").detach().numpy().ravel())


class Kink(nn.Module):
    """Its slope is one or nothing, as its weight times the input is above one or not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.weight - 1)


def test_the_record_is_of_examples_where_rounding_does_not_decide_the_gradient() -> None:
    spec = TrainingSpec(Kink(), torch.tensor([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]), torch.zeros(2, 3), "mse")
    manifest = manifest_of(spec)
    on_the_kink = whole_record(spec, manifest)
    assert reference.sensitivity(spec, manifest, on_the_kink) < reference.STEADY, "its slope is as small as its value"
    steep = replace(spec, loss=lambda output, target: (10 * output - target).sum())
    assert reference.sensitivity(steep, manifest, whole_record(steep, manifest)) > 0.01
    near = replace(steep, inputs=steep.input_tensors[0] * 1)
    few, record = reference.recorded(steep, near, manifest)
    assert not reference.same_examples(few.spec, near)
    assert reference.sensitivity(few.spec, manifest, record) < reference.STEADY
