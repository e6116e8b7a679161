"""Local data is read from files and functions, cast as the bundle says, or refused with its place and a remedy."""

import dataclasses
import itertools
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data import Dataset, DataSettings, batches, load
from protocol.errors import DataError
from protocol.manifest import FORMAT, Inference, Manifest, Port, Tensor, Variant
from protocol.records import RecordError, read_record

X = np.arange(24, dtype=np.float32).reshape(6, 2, 2)
Y = np.array([0, 1, 2, 0, 1, 2])

MANIFEST = Manifest(
    format=FORMAT,
    line="m",
    version=1,
    tensors=(Tensor("w", (2,), 0, "parameter"),),
    inputs=(Port("image", (2, 2), "float32"),),
    targets=(Port("label", (), "int64", classes=3),),
    outputs=(),
    loss="cross_entropy",
    metrics=(),
    files=(),
    variants=(Variant("full", {}),),
    inference=Inference("inference.onnx", {}),
    parity={},
)


def load_path(path: object) -> Dataset:
    return load(DataSettings(path=str(path)), MANIFEST)


def refused(path: object, settings: DataSettings | None = None, manifest: Manifest = MANIFEST) -> str:
    with pytest.raises(DataError) as error:
        load(settings or DataSettings(path=str(path)), manifest)
    return str(error.value)


def same(dataset: Dataset, x: Any = X, y: Any = Y) -> None:
    assert [a.dtype.name for a in dataset.inputs + dataset.targets] == ["float32", "int64"]
    np.testing.assert_array_equal(dataset.inputs[0], x)
    np.testing.assert_array_equal(dataset.targets[0], y)
    assert len(dataset) == len(x)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], DataSettings]:
    def install(result: Any) -> DataSettings:
        made = types.ModuleType("some_data")
        made.load = lambda: result  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "some_data", made)
        return DataSettings(source="some_data:load")

    return install


def test_one_archive_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y, more=np.zeros(1))
    same(load_path(tmp_path / "a.npz"))


def test_shards_in_a_folder_are_joined_in_the_order_of_their_names(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "b.npz", x=X[1:4], y=Y[1:4])
    np.savez(tmp_path / "a.npz", x=X[:1], y=Y[:1].astype(np.uint8))
    np.savez(tmp_path / "c.npz", x=X[4:].astype(np.float64), y=Y[4:].astype(np.int16))
    (tmp_path / "README").write_text("not data")
    same(load_path(tmp_path))
    same(load_path(tmp_path / "[ac].npz"), X[[0, 4, 5]], Y[[0, 4, 5]])
    same(load_path(tmp_path.parent / "**" / "b.npz"), X[1:4], Y[1:4])


def test_a_relative_glob_is_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    monkeypatch.chdir(tmp_path)
    same(load_path("*.npz"))


def test_a_relative_path_starts_at_the_base_and_an_absolute_one_stays(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    np.savez(tmp_path / "shards" / "a.npz", x=X, y=Y)
    for path in ("shards", "shards/a.npz", "*/a.npz", str(tmp_path / "shards")):
        same(load(DataSettings(path=path), MANIFEST, tmp_path))


def test_a_module_beside_the_settings_is_found_and_shadows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_settings.py").write_text("import fractions\ndef load():\n    return fractions.rows\n")
    (tmp_path / "fractions.py").write_text("rows = 'shadowed'\n")
    settings = DataSettings(source="beside_settings:load")
    with pytest.raises(
        DataError, match=r"raised AttributeError: module .fractions. has no attribute .rows. at .*beside_settings\.py:3"
    ):
        load(settings, MANIFEST, tmp_path)
    assert "put it in" in refused(None, DataSettings(source="not_beside:load"))


def test_npy_files_are_paired_by_the_name_of_their_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    np.save(tmp_path / "unrelated.npy", Y)
    same(load_path(tmp_path))


def test_npy_shards_are_paired_by_their_suffix(tmp_path: Path) -> None:
    for i, rows in enumerate((slice(0, 4), slice(4, 6))):
        np.save(tmp_path / f"x-{i}.npy", X[rows])
        np.save(tmp_path / f"y-{i}.npy", Y[rows])
    same(load_path(tmp_path / "*.npy"))


def test_the_longest_array_name_claims_a_file(tmp_path: Path) -> None:
    for name, array in (("x", X), ("x-aux", X + 1), ("y", Y)):
        np.save(tmp_path / f"{name}.npy", array)
    manifest = dataclasses.replace(MANIFEST, inputs=(*MANIFEST.inputs, Port("aux", (2, 2), "float32")))
    dataset = load(DataSettings(path=str(tmp_path), inputs=("x", "x-aux")), manifest)
    np.testing.assert_array_equal(dataset.inputs[1], X + 1)


def test_a_function_may_return_names_or_a_pair(module: Callable[[Any], DataSettings]) -> None:
    same(load(module({"y": Y, "x": X}), MANIFEST))
    same(load(module((X, Y)), MANIFEST))
    same(load(module(((X.tolist(),), (Y,))), MANIFEST))
    same(load(module((np.asfortranarray(X.astype(">f8")), Y.astype(">u2"))), MANIFEST))


def test_a_float32_array_is_not_copied(module: Callable[[Any], DataSettings]) -> None:
    assert load(module((X, Y)), MANIFEST).inputs[0] is X


def test_arrays_are_told_apart_by_the_names_in_the_settings(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=X, labels=Y)
    same(load(DataSettings(path=str(tmp_path), inputs=("images",), target=("labels",)), MANIFEST))
    assert "no array 'x' (found: none)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (None, Y, "no array 'x' (found: y); save it, or set data.inputs"),
        (X, None, "no array 'y' (found: x); save it"),
        (X, Y[:5], "different lengths, x has 6, y has 5"),
        (X[:0], Y[:0], "x is empty"),
        (X[0, 0, 0], Y, "x has shape () where image takes (n, 2, 2)"),
        (X.reshape(6, 4), Y, "x has shape (6, 4) where image takes (n, 2, 2); x.reshape(-1, 2, 2)"),
        (X[:, :1], Y, "is the bundle meant for this data?"),
        (X, Y[:, None], "y has shape (6, 1) where label takes (n,); y.reshape(-1)"),
        (X.astype(np.uint8), Y, "x is uint8 where the bundle takes float32; scale it, e.g. x.astype('float32') / 255"),
        (X.astype(np.int64), Y, "x is int64 where the bundle takes float32; scale it, e.g. x.astype('float32')"),
        (X.astype(np.complex64), Y, "x is complex64"),
        (X.astype(str), Y, "x is <U32"),
        (X, Y.astype(float), "y is float64 where integers are due; convert it, y.astype('int64')"),
        (X, Y > 0, "y is bool where integers are due"),
        (X, Y + 1, "y[2] is 3, out of 0 to 2; number the labels from 0"),
        (X, Y - 1, "y[0] is -1, out of 0 to 2"),
        (X, (Y - 1).astype(np.uint64), "y[0] is 18446744073709551615, out of 0 to 2"),
        (np.where(X == 7, np.nan, X), Y, "x[1, 1, 1] is nan, not a finite float32; remove such examples"),
        (np.where(X == 9, -np.inf, X), Y, "x[2, 0, 1] is -inf"),
        (np.where(X == 0, 1e300, X.astype(np.float64)), Y, "x[0, 0, 0] is 1e+300"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_with_file_array_value_and_remedy(
    tmp_path: Path, x: Any, y: Any, says: str
) -> None:
    file = tmp_path / "shard.npz"
    np.savez(file, **{name: array for name, array in (("x", x), ("y", y)) if array is not None})
    message = refused(file)
    assert message.startswith(f"{file}: ")
    assert says in message


def test_the_shard_at_fault_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    np.savez(tmp_path / "b.npz", x=X, y=Y + 9)
    assert refused(tmp_path).startswith(f"{tmp_path / 'b.npz'}: y[0] is 9")


def test_integers_without_classes_need_only_fit(module: Callable[[Any], DataSettings]) -> None:
    manifest = dataclasses.replace(MANIFEST, targets=(Port("count", (), "int64"),))
    same(load(module((X, Y - 100)), manifest), X, Y - 100)
    assert "y[0] is 18446744073709551516" in refused(None, module((X, (Y - 100).astype(np.uint64))), manifest)


def test_a_regression_target_is_cast_to_float32(module: Callable[[Any], DataSettings]) -> None:
    manifest = dataclasses.replace(MANIFEST, targets=(Port("value", (1,), "float32"),))
    assert load(module((X, Y[:, None] / 2)), manifest).targets[0].dtype == np.float32
    assert "y is int64 where the bundle takes float32" in refused(None, module((X, Y[:, None])), manifest)


def test_the_number_of_names_must_be_the_number_of_inputs_and_targets(tmp_path: Path) -> None:
    assert "data.inputs: 2 names ('a', 'b') for 1 in the bundle (image float32(2, 2))" in refused(
        None, DataSettings(path="d", inputs=("a", "b"))
    )
    manifest = dataclasses.replace(MANIFEST, targets=())
    assert "data.target: 1 names ('y',) for 0 in the bundle (none)" in refused(tmp_path, manifest=manifest)


def test_paths_without_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("1,2")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "absent.npz", tmp_path / "*.npz"):
        assert refused(path).startswith(f"{path}: no .npz or .npy files there; check data.path")
    assert "cannot be listed" in refused(tmp_path / "**x")
    np.save(tmp_path / "other.npy", X)
    assert "name them x.npy and y.npy" in refused(tmp_path)
    np.save(tmp_path / "x.npy", X)
    assert "x.npy: no array 'y' (found: x)" in refused(tmp_path)
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    assert "both .npz and .npy files" in refused(tmp_path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()]), y=Y)
    assert "never unpickled" in refused(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "a.zip")
    np.save(tmp_path / "x.npy", np.array([Trap()]), allow_pickle=True)
    np.save(tmp_path / "y.npy", Y)
    assert "x.npy: cannot be read: it is no NumPy file, or holds Python objects" in refused(tmp_path)


def test_a_damaged_header_of_a_numpy_file_is_a_refusal(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.zeros(4, np.int64))
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    # The bracket before the shape: NumPy then looks for its end among Python's words.
    damaged = (tmp_path / "x.npy").read_bytes().replace(b"(4, 3)", b"(4, 3 ")
    (tmp_path / "x.npy").write_bytes(damaged)
    assert "x.npy: cannot be read: " in refused(tmp_path)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(whole, x=X, y=Y)
    else:
        np.save(whole, X)
        np.save(tmp_path / "y.npy", Y)
    data = whole.read_bytes()
    for end in range(0, len(data), 7):
        whole.write_bytes(data[:end])
        assert refused(tmp_path).startswith(str(whole))


def test_an_altered_archive_is_refused_or_read_as_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, x=X, y=Y)
    data = file.read_bytes()
    refusals = 0
    for at in range(len(data)):
        file.write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
        try:
            same(load_path(file))
        except DataError:
            refusals += 1
    assert refusals > len(data) / 2


@pytest.mark.parametrize("fault", [FileNotFoundError, ValueError, NameError, TypeError, KeyError, ZeroDivisionError])
def test_a_function_that_fails_is_named_with_its_line(tmp_path: Path, fault: type[Exception]) -> None:
    name = f"fails_with_{fault.__name__.lower()}"
    (tmp_path / f"{name}.py").write_text(f"def f():\n    raise {fault.__name__}('the disk is not here yet')\n")
    with pytest.raises(DataError, match=rf"raised {fault.__name__}: .*not here yet.* at .*{name}\.py:2"):
        load(DataSettings(source=f"{name}:f"), MANIFEST, tmp_path)


def test_a_source_that_gives_no_data_is_refused(module: Callable[[Any], DataSettings]) -> None:
    assert "No module named 'no_such_module'" in refused(None, DataSettings(source="no_such_module:load"))
    assert "has no function 'absent'; check data.source" in refused(None, DataSettings(source="math:absent"))
    assert "has no function 'pi'" in refused(None, DataSettings(source="math:pi"))
    assert "returned list; return a dict of arrays or (inputs, targets)" in refused(None, module([X, Y]))
    assert "returned tuple; return" in refused(None, module((X, X, Y)))
    assert "returned 2 inputs where data.inputs names 1" in refused(None, module(((X, X), Y)))
    assert "x is not an array" in refused(None, module(([[1.0], [1.0, 2.0]], Y)))
    assert "x is object" in refused(None, module((X.astype(object), Y)))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "^data.path: give either path"),
        ({"path": "a", "source": "b:c"}, "^data.path: give either path"),
        ({"source": "module"}, "^data.source: 'module' must be module:function"),
        ({"path": "a", "inputs": ["x", "x"]}, "^data.inputs: the names"),
        ({"path": "a", "target": "x"}, "^data.inputs: the names"),
        ({"path": "a", "targets": "y"}, "^data.targets: unknown key"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(table: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError, match=says):
        read_record(DataSettings, table, where="data")


def test_settings_are_read_from_a_table() -> None:
    settings = read_record(DataSettings, {"path": "d", "inputs": ["a", "b"], "target": "t"})
    assert settings == DataSettings("d", None, ("a", "b"), "t")
    assert settings.targets == ("t",)
    assert read_record(DataSettings, {"path": "d", "target": ["t", "u"]}).targets == ("t", "u")


def test_an_epoch_deals_every_example_once_and_the_next_one_in_another_order() -> None:
    dataset = Dataset((X,), (Y,))
    dealt = list(itertools.islice(batches(dataset, 2, np.random.default_rng(1)), 6))
    assert all(len(b) == 2 for b in dealt)
    first, second = (np.concatenate([b.inputs[0] for b in epoch])[:, 0, 0].tolist() for epoch in (dealt[:3], dealt[3:]))
    assert sorted(first) == sorted(second) == X[:, 0, 0].tolist()
    assert first != second
    for batch in dealt:
        np.testing.assert_array_equal(batch.targets[0], Y[(batch.inputs[0][:, 0, 0] / 4).astype(int)])


def test_the_order_is_a_function_of_the_generator() -> None:
    def order(seed: int) -> list[int]:
        dealt = itertools.islice(batches(Dataset((X,), (Y,)), 4, np.random.default_rng(seed)), 5)
        return [int(v) for b in dealt for v in b.inputs[0][:, 0, 0]]

    assert order(1) == order(1)
    assert order(1) != order(2)


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 4]), (5, [5, 5, 5]), (6, [6, 6, 6]), (100, [6, 6, 6])])
def test_a_short_last_batch_is_dropped_unless_it_is_the_only_one(batch_size: int, sizes: list[int]) -> None:
    dealt = itertools.islice(batches(Dataset((X,), (Y,)), batch_size, np.random.default_rng(0)), 3)
    assert [len(b) for b in dealt] == sizes
