"""Pictures in folders, decoded by Pillow, brought to the model's size and kept as bytes until a batch needs them."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_agent.datasets.examples import Scaling
from edge_agent.datasets.labels import labels_of
from edge_agent.datasets.listing import PICTURES, Listing
from edge_agent.datasets.settings import DataSettings, ImageSettings
from edge_agent.datasets.shards import BadFile, Ports, Shard, check_room, only
from edge_agent.runtimes.engine import Array
from protocol.errors import DataError
from protocol.manifest import Port

# Of a whole picture: three bytes each while it is decoded. A small file may unpack to gigabytes.
MAX_PIXELS = 25_000_000
# Decoders for what cameras and tools write; the less code a strange file reaches, the better.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")


def read(settings: DataSettings, ports: Ports, listing: Listing) -> Iterator[Shard | BadFile]:
    """Reader of pictures, grey or RGB as the model takes them."""
    name, target = only(settings, ports, "images")
    channels, height, width = _wanted(ports[name])
    scaling = _scaling(settings.images, channels)
    labels = labels_of(settings, listing)
    paths = [path for path in listing.paths if path.suffix.lower() in PICTURES]
    check_room(settings, listing.where, len(paths) * channels * height * width)
    pixels, numbers = np.empty((len(paths), channels, height, width), np.uint8), np.empty(len(paths), np.int64)
    filled = 0
    for path in paths:
        try:
            label = labels.of(path)
            if label is None:
                raise DataError(f"{path}: has no label; add it to the table of labels")
            pixels[filled] = _picture(path, channels, (width, height), settings.images)
        except DataError as error:
            yield BadFile(str(error))
            continue
        numbers[filled] = label
        filled += 1
    if filled:
        arrays = {name: pixels[:filled].reshape(filled, *ports[name].shape), target: numbers[:filled]}
        yield Shard(listing.where, arrays, {name: scaling})


def _wanted(port: Port) -> tuple[int, int, int]:
    shape = port.shape if len(port.shape) == 3 else (1, *port.shape)
    if port.dtype != "float32" or len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(
            f"data.kind: images gives float32 (1 or 3, height, width), and {port.name} takes {port.dtype}{port.shape}; "
            "make the examples in a function, and name that in data.source"
        )
    return shape


def _scaling(settings: ImageSettings, channels: int) -> Scaling:
    for key, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) not in (1, channels):
            raise DataError(f"data.images.{key}: {len(values)} numbers for {channels} channels; give 1 or {channels}")
    mean, std = (np.array(values, np.float64).reshape(-1, 1, 1) for values in (settings.mean, settings.std))
    return Scaling((settings.scale / std).astype(np.float32), (-mean / std).astype(np.float32))


def _picture(path: Path, channels: int, size: tuple[int, int], settings: ImageSettings) -> Array:
    """uint8[channels, height, width]."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DataError(
            f"{path}: pictures need Pillow; install it: pip install 'sparsefleet[images]' (the Debian package has it "
            "not), or save arrays as .npz"
        ) from None
    try:
        with warnings.catch_warnings():
            # Said below, at a lower limit.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=_FORMATS)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: has {image.width} x {image.height} pixels, over {MAX_PIXELS:,}; make it smaller"
                )
            mode = "L" if channels == 1 else "RGB"
            # A JPEG is decoded at half, a quarter or an eighth of its size where that is enough.
            image.draft(mode, size)
            drawn = image.convert(mode)
            if settings.fit == "crop":
                drawn = ImageOps.fit(drawn, size, Image.Resampling.BILINEAR)
            else:
                drawn = drawn.resize(size, Image.Resampling.BILINEAR)
            return np.asarray(drawn, np.uint8).reshape(size[1], size[0], channels).transpose(2, 0, 1)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read: {error}; save it anew as PNG or JPEG") from None
