"""Examples from sounds and pictures: windows, depths, labels by folder or table; what cannot be used is left out."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.datasets import image_files
from edge_agent.datasets.settings import ImageSettings, WavSettings
from tests.agent.datasets_at_hand import inputs, read, refusal, targets, write_wav

WAV = WavSettings(rate_hz=8000)


def test_clips_are_cut_or_followed_by_silence_and_labelled_by_their_folder(tmp_path: Path) -> None:
    write_wav(tmp_path / "1" / "b.wav", [16384, -32768, 8192])
    write_wav(tmp_path / "0" / "a.wav", [1, 2, 3, 4, 5, 6])
    dataset = read(tmp_path, (1, 4), wav=WAV)
    np.testing.assert_allclose(inputs(dataset)[:, 0] * 32768, [[1, 2, 3, 4], [16384, -32768, 8192, 0]])
    assert targets(dataset) == [0, 1]


def test_windows_go_on_by_the_hop_and_all_have_the_clips_label(tmp_path: Path) -> None:
    write_wav(tmp_path / "2" / "a.wav", range(11))
    dataset = read(tmp_path, (4,), wav=WavSettings(rate_hz=8000, hop=3))
    assert (inputs(dataset) * 32768).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert targets(dataset) == [2, 2, 2]


@pytest.mark.parametrize(
    ("width", "samples"),
    [
        (1, [128, 192, 0]),
        (2, [0, 1 << 14, -(1 << 15)]),
        (3, [0, 1 << 22, -(1 << 23)]),
        (4, [0, 1 << 30, -(1 << 31)]),
    ],
)
def test_samples_of_every_depth_lie_between_minus_one_and_one(tmp_path: Path, width: int, samples: Any) -> None:
    write_wav(tmp_path / "0" / "a.wav", samples, width=width)
    assert inputs(read(tmp_path, (3,), wav=WAV)).tolist() == [[0, 0.5, -1]]
    write_wav(tmp_path / "1" / "b.wav", [0, 1 << 14, -(1 << 15)])
    assert inputs(read(tmp_path, (3,), wav=WAV)).tolist() == [[0, 0.5, -1]] * 2


def test_channels_come_apart_and_samples_are_normalised(tmp_path: Path) -> None:
    write_wav(tmp_path / "0" / "a.wav", [[0, 16384], [0, -16384]], channels=2)
    dataset = read(tmp_path, (2, 2), wav=WavSettings(rate_hz=8000, mean=0.25, std=0.5))
    assert inputs(dataset).tolist() == [[[-0.5, -0.5], [0.5, -1.5]]]


def test_a_table_beside_the_clips_has_their_labels(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_wav(tmp_path / f"{name}.wav", [1, 2])
    (tmp_path / "labels.csv").write_text("file,label\nb.wav,dog\na.wav,cat\nnever.wav,dog\n")
    dataset = read(tmp_path, (2,), wav=WAV, classes=("cat", "dog"), most_left_out=0.3)
    assert targets(dataset) == [0, 1]
    assert (dataset.left_out.files, "c.wav: has no label" in str(dataset.left_out)) == (1, True)
    message = refusal(tmp_path, (2,), wav=WAV, classes=("cat", "dog"), labels="other.csv")
    assert "no other.csv there; write it, with columns file,label" in message
    assert "its label is" in refusal(tmp_path, (2,), wav=WAV)
    (tmp_path / "labels.csv").write_text("a.wav\n")
    assert "labels.csv: 'a.wav' has no label" in refusal(tmp_path, (2,), wav=WAV)


def cut(path: Path) -> None:
    write_wav(path, range(400))
    os.truncate(path, 500)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: write_wav(p, [1, 2], rate_hz=16000), "has 16000 Hz where data.wav.rate_hz is 8000; convert it"),
        (lambda p: write_wav(p, [1, 2, 3, 4], channels=2), "has 2 channels where the model takes 1"),
        (lambda p: write_wav(p, []), "has 0 samples"),
        (lambda p: p.write_bytes(b"RIFF"), "cannot be read: it is cut short"),
        (cut, "bytes of sound where its header says more"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named_and_left_out_among_many(tmp_path: Path, make: Any, says: str) -> None:
    for i in range(12):
        write_wav(tmp_path / "1" / f"{i:02}.wav", [i, i])
    make(tmp_path / "1" / "05.wav")
    dataset = read(tmp_path, (2,), wav=WAV)
    assert (inputs(dataset)[:, 0] * 32768).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert dataset.left_out.files == 1
    assert says in str(dataset.left_out)
    assert says in refusal(tmp_path / "1" / "05.wav", (2,), wav=WAV)


def test_the_rate_must_be_said_and_the_model_must_take_samples(tmp_path: Path) -> None:
    write_wav(tmp_path / "0" / "a.wav", [1, 2])
    assert "has 8000 Hz; say in data.wav.rate_hz at which rate" in refusal(tmp_path, (2,))
    assert "wav gives float32 (samples,) or (channels, samples)" in refusal(tmp_path, (1, 2, 2), wav=WAV)
    assert "over data.memory_mib = 1" in refusal(tmp_path, (1, 1 << 20), wav=WAV, memory_mib=1)


def picture(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def test_pictures_are_scaled_normalised_and_labelled_by_their_folder(tmp_path: Path) -> None:
    picture(tmp_path / "1" / "b.png", [[0, 255], [51, 102]])
    picture(tmp_path / "0" / "a.bmp", [[255, 255], [255, 255]])
    dataset = read(tmp_path, (1, 2, 2))
    expected: list[Any] = [[[1, 1], [1, 1]], [[0, 1], [0.2, 0.4]]]
    np.testing.assert_allclose(inputs(dataset)[:, 0], expected, atol=1e-6)
    assert targets(dataset) == [0, 1]
    normalised = read(tmp_path, (2, 2), images=ImageSettings(mean=(0.5,), std=(0.25,)))
    np.testing.assert_allclose(inputs(normalised)[1], [[-2.0, 2.0], [-1.2, -0.4]], atol=1e-5)


def test_colours_become_channels_each_with_its_own_mean(tmp_path: Path) -> None:
    picture(tmp_path / "0" / "a.png", [[[255, 0, 51]]])
    dataset = read(tmp_path, (3, 1, 1), images=ImageSettings(mean=(0.0, 0.5, 0.2), std=(1.0, 0.5, 1.0)))
    np.testing.assert_allclose(inputs(dataset)[0].ravel(), [1, -1, 0], atol=1e-6)
    assert "data.images.mean: 2 numbers for 3 channels" in refusal(
        tmp_path, (3, 1, 1), images=ImageSettings(mean=(0.0, 0.0))
    )


def test_another_shape_is_cropped_or_stretched_to_the_models(tmp_path: Path) -> None:
    wide = np.zeros((4, 8), np.uint8)
    wide[:, :2] = wide[:, 6:] = 255
    picture(tmp_path / "0" / "a.png", wide)
    assert inputs(read(tmp_path, (4, 4))).max() == 0
    assert inputs(read(tmp_path, (4, 4), images=ImageSettings(fit="stretch"))).max() > 0.8


def png_header(width: int, height: int) -> bytes:
    """A PNG that unpacks to as many pixels as it says, of next to no bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (png_header(5001, 5000), "has 5001 x 5000 pixels, over 25,000,000"),
        (png_header(10_000, 10_000), "has 10000 x 10000 pixels"),
        (png_header(60_000, 60_000), "cannot be read"),
        (png_header(8, 800), "cannot be read"),
        (b"", "cannot be read"),
        (b"GIF89a" + bytes(100), "cannot be read"),
    ],
)
def test_a_picture_that_is_damaged_or_a_bomb_is_named_and_left_out(tmp_path: Path, data: bytes, says: str) -> None:
    for i in range(12):
        picture(tmp_path / "2" / f"{i:02}.png", np.full((2, 2), i))
    (tmp_path / "2" / "05.png").write_bytes(data)
    dataset = read(tmp_path, (2, 2))
    assert (len(dataset), dataset.left_out.files) == (11, 1)
    assert says in str(dataset.left_out)


def test_without_pillow_pictures_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "0" / "a.png", np.zeros((2, 2)))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    assert "pip install 'sparsefleet[images]'" in refusal(tmp_path, (2, 2))


def test_models_of_other_shapes_are_pointed_to_a_function(tmp_path: Path) -> None:
    picture(tmp_path / "0" / "a.png", np.zeros((2, 2)))
    assert "name that in data.source" in refusal(tmp_path, (2, 2, 2))
    assert image_files.MAX_PIXELS < 89_478_485, "Pillow warns from there on"


def test_several_kinds_in_one_folder_are_refused_until_one_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "0" / "a.png", np.zeros((2, 2)))
    write_wav(tmp_path / "1" / "a.wav", [1, 2])
    assert "files of several kinds (wav, images); name one in data.kind" in refusal(tmp_path, (2, 2))
    assert targets(read(tmp_path, (2, 2), kind="images")) == [0]
    assert targets(read(tmp_path, (2,), kind="wav", wav=WAV)) == [1]
