"""Models and small real files for the tests of data adapters."""

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.data import Dataset, DataSettings, load
from protocol.errors import DataError
from protocol.manifest import FORMAT, Inference, Manifest, Port, Tensor, Variant


def manifest(shape: tuple[int, ...], classes: int = 3) -> Manifest:
    """Of a model that takes floats of one shape, and labels."""
    return Manifest(
        format=FORMAT,
        line="m",
        version=1,
        tensors=(Tensor("w", (2,), 0, "parameter"),),
        inputs=(Port("values", shape, "float32"),),
        targets=(Port("label", (), "int64", classes=classes),),
        outputs=(),
        loss="cross_entropy",
        metrics=(),
        files=(),
        variants=(Variant("full", {}),),
        inference=Inference("inference.onnx", {}),
        parity={},
    )


def read(path: Path, shape: tuple[int, ...], **settings: Any) -> Dataset:
    return load(DataSettings(path=str(path), **settings), manifest(shape))


def refusal(path: Path, shape: tuple[int, ...], **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, shape, **settings)
    return str(error.value)


def inputs(dataset: Dataset) -> Any:
    return dataset.inputs[0][np.arange(len(dataset))]


def targets(dataset: Dataset) -> list[int]:
    return [int(label) for label in dataset.targets[0][np.arange(len(dataset))]]


def write_wav(path: Path, samples: Any, *, rate_hz: int = 8000, width: int = 2, channels: int = 1) -> None:
    """samples: integers of `width` bytes, unsigned where that is one; those of channels beside each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.asarray(samples).ravel()
    if width == 3:
        data = flat.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        data = flat.astype({1: "u1", 2: "<i2", 4: "<i4"}[width]).tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(data)
