"""WAV files of uncompressed sound, cut into windows of as many samples as the model takes."""

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.datasets.examples import Scaling
from edge_agent.datasets.labels import Labels, labels_of
from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings, WavSettings
from edge_agent.datasets.shards import BadFile, Ports, Shard, check_room, only
from edge_agent.runtimes.engine import Array
from protocol.errors import DataError
from protocol.manifest import Port


@dataclass(frozen=True, slots=True)
class _Clip:
    """A sound file whose header is in order: samples of each channel, bytes of a sample, windows, class."""

    path: Path
    frames: int
    width: int
    windows: int
    label: int


def read(settings: DataSettings, ports: Ports, listing: Listing) -> Iterator[Shard | BadFile]:
    """Reader of .wav files. Clips of up to 16 bits stay so in memory; what is shorter than a window is followed by
    silence."""
    name, target = only(settings, ports, "wav")
    channels, samples = _wanted(ports[name])
    labels = labels_of(settings, listing)
    clips: list[_Clip] = []
    for path in listing.paths:
        if path.suffix.lower() == ".wav":
            try:
                clips.append(_header(path, settings.wav, channels, samples, labels))
            except DataError as error:
                yield BadFile(str(error))
    windows = sum(clip.windows for clip in clips)
    kind = np.dtype(np.int16 if all(clip.width <= 2 for clip in clips) else np.float32)
    check_room(settings, listing.where, windows * channels * samples * kind.itemsize)
    sound, numbers = np.zeros((windows, channels, samples), kind), np.empty(windows, np.int64)
    filled = 0
    for clip in clips:
        try:
            values = _samples(clip, channels)
        except DataError as error:
            yield BadFile(str(error))
            continue
        for window in range(clip.windows):
            part = values[:, window * settings.wav.hop : window * settings.wav.hop + samples]
            sound[filled, :, : part.shape[1]] = part if kind == np.int16 else _floats(part)
            numbers[filled] = clip.label
            filled += 1
    if filled:
        arrays = {name: sound[:filled].reshape(filled, *ports[name].shape), target: numbers[:filled]}
        yield Shard(listing.where, arrays, {name: _scaling(settings.wav, kind)})


def _wanted(port: Port) -> tuple[int, int]:
    """Channels and samples of one example."""
    if port.dtype != "float32" or len(port.shape) not in (1, 2):
        raise DataError(
            f"data.kind: wav gives float32 (samples,) or (channels, samples), and {port.name} takes {port.dtype}"
            f"{port.shape}; make its features in a function, and name that in data.source"
        )
    return (1, port.shape[0]) if len(port.shape) == 1 else (port.shape[0], port.shape[1])


def _header(path: Path, settings: WavSettings, channels: int, samples: int, labels: Labels) -> _Clip:
    label = labels.of(path)
    if label is None:
        raise DataError(f"{path}: has no label; add it to the table of labels")
    try:
        with wave.open(str(path), "rb") as file:
            frames, rate_hz, found = file.getnframes(), file.getframerate(), file.getnchannels()
            width = file.getsampwidth()
    except (OSError, wave.Error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{path}: cannot be read: {str(error) or 'it is cut short'}; save it as uncompressed PCM"
        ) from None
    if not settings.rate_hz:
        raise DataError(f"{path}: has {rate_hz} Hz; say in data.wav.rate_hz at which rate the model was trained")
    if rate_hz != settings.rate_hz:
        raise DataError(
            f"{path}: has {rate_hz} Hz where data.wav.rate_hz is {settings.rate_hz}; convert it, for example with "
            f"sox IN.wav -r {settings.rate_hz} OUT.wav"
        )
    if found != channels:
        raise DataError(f"{path}: has {found} channels where the model takes {channels}; mix it down or record anew")
    if frames == 0 or width not in (1, 2, 3, 4):
        raise DataError(f"{path}: has {frames} samples of {width} bytes; it needs some, of 1 to 4 bytes")
    more = (frames - samples) // settings.hop if settings.hop and frames > samples else 0
    return _Clip(path, frames, width, 1 + more, label)


def _samples(clip: _Clip, channels: int) -> Array:
    """int[channels, frames], of a scale at which int16 is left as it is."""
    try:
        with wave.open(str(clip.path), "rb") as file:
            data = file.readframes(clip.frames)
    except (OSError, wave.Error, EOFError, RuntimeError) as error:
        raise DataError(
            f"{clip.path}: cannot be read: {str(error) or 'it is cut short'}; save it as uncompressed PCM"
        ) from None
    if len(data) != clip.frames * clip.width * channels:
        raise DataError(f"{clip.path}: ends after {len(data)} bytes of sound where its header says more; save it again")
    values: Array
    if clip.width == 1:
        values = (np.frombuffer(data, np.uint8).astype(np.int16) - 128) << 8
    elif clip.width == 2:
        values = np.frombuffer(data, "<i2")
    elif clip.width == 3:
        bytes_of = np.zeros((len(data) // 3, 4), np.uint8)
        bytes_of[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        values = bytes_of.view("<i4").ravel()
    else:
        values = np.frombuffer(data, "<i4")
    return values.reshape(-1, channels).T


def _floats(values: Array) -> Array:
    """float32 between -1 and 1."""
    return values.astype(np.float32) / np.float32(1 << (8 * values.dtype.itemsize - 1))


def _scaling(settings: WavSettings, kind: np.dtype[np.generic]) -> Scaling:
    unit = 1 << 15 if kind == np.int16 else 1
    factor = np.float32(1 / (unit * settings.std))
    return Scaling(np.asarray(factor), np.asarray(np.float32(-settings.mean / settings.std)))
