"""The data sets: their shapes, what is held out, and what an operator is told when one is not at hand."""

from pathlib import Path

import numpy as np
import pytest

from devices.datasets import DATA_VARIABLE, DATASETS, Dataset, data_folder, load_dataset
from devices.speech import BANDS, FRAMES, log_mel
from protocol.errors import ConfigurationError

FILES = {"hapt": "hapt_windows.npz", "fashion": "fashion_mnist.npz", "fsdd": "fsdd.npz"}


def _at_hand(name: str) -> Dataset:
    if name in FILES and not (data_folder() / FILES[name]).is_file():
        pytest.skip(f"data not at hand: {FILES[name]} is not in {data_folder()}")
    return load_dataset(name)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "held_out"),
    [
        ("digits", (1, 8, 8), 10, 359),
        ("hapt", (6, 128), 6, 2996),
        ("fashion", (1, 28, 28), 10, 10_000),
        ("fsdd", (1, 32, 32), 10, 300),
    ],
)
def test_every_data_set_has_finite_float32_examples_and_all_labels_on_both_sides(
    name: str, shape: tuple[int, ...], classes: int, held_out: int
) -> None:
    data = _at_hand(name)
    assert data.shape == shape
    assert data.classes == classes
    assert data.x.dtype == np.float32
    assert data.y.dtype == np.int64
    assert np.isfinite(data.x).all()
    assert len(data.test_indices) == held_out
    for side in (data.train_indices, data.test_indices):
        assert set(data.y[side]) == set(range(classes))


def test_the_held_out_digits_are_stratified_and_the_same_every_time() -> None:
    first, second = load_dataset("digits"), load_dataset("digits")
    np.testing.assert_array_equal(first.test, second.test)
    counts = np.bincount(first.y)
    np.testing.assert_allclose(np.bincount(first.y[first.test]) / counts, 0.2, atol=0.01)


def test_no_person_of_hapt_is_on_both_sides_and_the_training_people_are_standardised() -> None:
    data = _at_hand("hapt")
    assert data.group is not None
    tested = set(data.group[data.test])
    assert tested == {2, 4, 9, 10, 12, 13, 18, 20, 24}
    assert not tested & set(data.group[~data.test])
    train = data.x[~data.test].astype(np.float64)
    np.testing.assert_allclose(train.mean(axis=(0, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(train.std(axis=(0, 2)), 1, atol=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_a_data_set_that_is_not_at_hand_names_the_file_and_the_variable(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigurationError, match=rf"{FILES[name]}: not found; set {DATA_VARIABLE}"):
        load_dataset(name)


def test_a_damaged_data_file_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    (tmp_path / FILES["hapt"]).write_bytes(b"not an archive")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_dataset("hapt")
    np.savez(tmp_path / FILES["hapt"], x=np.zeros(3))
    with pytest.raises(ConfigurationError, match="has no array 'y'"):
        load_dataset("hapt")


def test_an_unknown_data_set_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=", ".join(DATASETS)):
        load_dataset("cifar")


@pytest.mark.parametrize("length", [0, 1, 255, 256, 4_000, 20_000])
def test_speech_of_any_length_gives_a_picture_of_one_size(length: int) -> None:
    samples = np.random.default_rng(1).integers(-3000, 3000, length).astype(np.int16)
    picture = log_mel(samples)
    assert picture.shape == (BANDS, FRAMES)
    assert picture.dtype == np.float32
    assert np.isfinite(picture).all()


def test_a_tone_lights_the_band_of_its_pitch() -> None:
    time = np.arange(4_000) / 8_000
    low, high = (log_mel((9_000 * np.sin(2 * np.pi * f * time)).astype(np.int16)) for f in (300, 2_000))
    assert low.mean(axis=1).argmax() < high.mean(axis=1).argmax()
