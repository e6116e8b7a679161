"""Spoken digits of the Free Spoken Digit Dataset as WAV files in a folder for each digit, read as an agent does."""

from pathlib import Path

import numpy as np
import pytest

from devices.datasets import data_folder
from edge_agent.datasets.settings import WavSettings
from tests.agent.datasets_at_hand import inputs, read, targets, write_wav

FILE = "fsdd.npz"
RATE_HZ, SAMPLES, CLIPS = 8000, 4000, 120


def test_spoken_digits_are_read_from_wav_files_as_they_were_recorded(tmp_path: Path) -> None:
    path = data_folder() / FILE
    if not path.exists():
        pytest.skip(f"data not at hand: {FILE} is not in {data_folder()}")
    with np.load(path) as held:
        audio, offsets, digits = held["audio"], held["offsets"], held["digit"]
    chosen = np.linspace(0, len(digits) - 1, CLIPS).astype(int)
    expected = []
    for number in chosen:
        clip = audio[offsets[number] : offsets[number + 1]]
        write_wav(tmp_path / str(digits[number]) / f"{number:04}.wav", clip, rate_hz=RATE_HZ)
        window = np.zeros(SAMPLES, np.float32)
        window[: min(SAMPLES, len(clip))] = clip[:SAMPLES] / 32768
        expected.append((int(digits[number]), number, window))
    expected.sort(key=lambda row: row[:2])
    dataset = read(
        tmp_path, (1, SAMPLES), wav=WavSettings(rate_hz=RATE_HZ), classes=tuple("0123456789"), most_left_out=0.9
    )
    # This model has three classes: the other digits are out of range, and counted.
    kept = [row for row in expected if row[0] < 3]
    assert dataset.left_out.labels == CLIPS - len(kept) > 0
    assert targets(dataset) == [row[0] for row in kept]
    np.testing.assert_array_equal(inputs(dataset)[:, 0], np.array([row[2] for row in kept]))
