"""The safetensors reader takes what the safetensors library writes, and nothing that lies."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from edge_agent.runtimes.parameters import initial_model, parse_parameters
from protocol.errors import BundleError
from tests.tiny import write_bundle

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([7, 8], dtype=np.float32)


def file_of(header: object, body: bytes = bytes(32)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read_in_manifest_order(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path).manifest
    model = parse_parameters(manifest, save({"bias": BIAS, "weight": WEIGHT, "other": BIAS}))
    np.testing.assert_array_equal(model, [0, 1, 2, 3, 4, 5, 7, 8])
    assert model.dtype == np.float32


GOOD = {"weight": entry([2, 3], 0, 24), "bias": entry([2], 24, 32)}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "short": (b"\x01\x02", "truncated"),
    "header beyond the file": ((1 << 20).to_bytes(8, "little") + b"{}", "truncated"),
    "header beyond all bounds": (b"\xff" * 8 + b"{}", "truncated"),
    "no json": (file_of(b"{nonsense"), "not JSON"),
    "deep json": (file_of(b"[" * 200_000), "not JSON"),
    "a list": (file_of([1]), "not a table"),
    "missing": (file_of({"weight": GOOD["weight"]}), "does not hold bias"),
    "entry of another kind": (file_of({**GOOD, "bias": 3}), "does not hold bias"),
    "type": (file_of({**GOOD, "bias": entry([2], 24, 32, "F64")}), "bias is F64"),
    "shape": (file_of({**GOOD, "weight": entry([3, 2], 0, 24)}), "weight is F32"),
    "offsets outside": (file_of({**GOOD, "bias": entry([2], 28, 36)}), "bias lies at 28..36"),
    "negative offsets": (file_of({**GOOD, "bias": entry([2], -8, 0)}), "bias lies at -8..0"),
    "reversed offsets": (file_of({**GOOD, "bias": entry([2], 32, 24)}), "bias lies at"),
    "wrong size": (file_of({**GOOD, "bias": entry([2], 24, 28)}), "bias lies at"),
    "offsets of another kind": (
        file_of({**GOOD, "bias": {**GOOD["bias"], "data_offsets": [0.5, True]}}),
        "no data_off",
    ),
    "body cut": (file_of(GOOD, bytes(31)), "bias lies at"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_lies_is_refused_by_tensor(tmp_path: Path, case: str) -> None:
    data, words = HOSTILE[case]
    with pytest.raises(BundleError, match=words):
        parse_parameters(write_bundle(tmp_path).manifest, data)


def test_a_missing_file_is_a_bundle_error(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    bundle.path("parameters.safetensors").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        initial_model(bundle)
