"""The personal head on the disk: read as it was written, or not at all."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_agent.personal.head import Head
from edge_agent.personal.mixture import Means
from edge_agent.personal.shelf import FILE, FOLDER, Figures, Origin, Personal, keep, kept, pack, unpack

ORIGIN = Origin("run", 3, 2, "ab" * 32, "full", 40, 200, Figures(10, 0.5, 0.75, 0.625, 0.5))


def personal(value: float, model: str | None = None) -> Personal:
    def vector(*shape: int) -> np.ndarray:
        return np.full(shape, value, np.float32)

    heads = Head(vector(3, 4), vector(3)), Head(-vector(3, 4), -vector(3))
    return Personal(replace(ORIGIN, model=model), *heads, Means(vector(4), -vector(4)))


def same(one: Personal | None, other: Personal) -> bool:
    return one is not None and pack(one) == pack(other)


def test_a_head_is_read_as_it_was_written_and_an_altered_one_is_none(tmp_path: Path) -> None:
    assert kept(tmp_path) is None
    keep(tmp_path, personal(1.5))
    found = kept(tmp_path)
    assert found is not None
    assert found.origin == ORIGIN
    assert same(found, personal(1.5))
    data = bytearray((tmp_path / FOLDER / FILE).read_bytes())
    for at in range(0, len(data), 7):
        data[at] ^= 1
        assert unpack(bytes(data)) is None
        data[at] ^= 1
    for end in range(0, len(data), 11):
        assert unpack(bytes(data[:end])) is None


def test_a_head_whose_shapes_do_not_fit_is_none() -> None:
    odd = personal(1.0)
    assert unpack(pack(replace(odd, fleet=Head(odd.fleet.weight[:, :2], odd.fleet.bias)))) is None
    assert unpack(pack(replace(odd, means=Means(odd.means.own, odd.means.fleet[:2])))) is None


def test_the_model_beside_it_is_the_one_that_it_names_and_the_one_before_is_gone(tmp_path: Path) -> None:
    keep(tmp_path, personal(1.0, "model-1.onnx"), b"one")
    keep(tmp_path, personal(2.0, "model-2.onnx"), b"two")
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {FILE, "model-2.onnx"}
    keep(tmp_path, personal(3.0))
    assert {path.name for path in (tmp_path / FOLDER).iterdir()} == {FILE}
