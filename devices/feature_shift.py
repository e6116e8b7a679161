"""Feature shift: what each device's own sensor does to the same world, as a gain and a way of being mounted."""

import numpy as np

from devices.datasets import Floats
from protocol.errors import ConfigurationError


def shifted(x: Floats, gain: float, degrees: float, rng: np.random.Generator) -> Floats:
    """The examples as one device sees them: float32 of the same shape.

    gain: its sensor's is drawn between 1 / gain and gain, evenly in the logarithm; 1 is for none. degrees: how far it
    is turned at the most, 0 for not at all. Signals, [n, 3 k, length], are turned as triples of axes about one axis in
    space; pictures, [n, channels, height, width], in their plane, with what comes in from outside as 0.
    """
    if not 1.0 <= gain <= 100.0:
        raise ConfigurationError(f"gain: {gain} must be from 1 to 100; 1 is for none, 2 for half to twice")
    if not 0.0 <= degrees <= 180.0:
        raise ConfigurationError(f"rotation: {degrees} degrees must be from 0 to 180; 0 is for none")
    scaled = x * np.float32(np.exp(rng.uniform(-1.0, 1.0) * np.log(gain)))
    angle, axis = np.radians(rng.uniform(-degrees, degrees)), rng.standard_normal(3)
    if degrees == 0.0:
        return scaled.astype(np.float32)
    if x.ndim == 3 and x.shape[1] % 3 == 0:
        return _turned_in_space(scaled, angle, axis / np.linalg.norm(axis))
    if x.ndim == 4:
        return _turned_in_plane(scaled, angle)
    raise ConfigurationError(
        f"rotation: examples of shape {x.shape[1:]} are neither triples of axes nor pictures; leave it out"
    )


def _turned_in_space(x: Floats, angle: float, axis: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Floats:
    """Rodrigues' rotation of every triple of channels."""
    a, b, c = axis
    cross = np.array([[0.0, -c, b], [c, 0.0, -a], [-b, a, 0.0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    triples = x.reshape(len(x), -1, 3, x.shape[2])
    turned: Floats = np.einsum("ij,nkjt->nkit", turn.astype(np.float32), triples).reshape(x.shape).astype(np.float32)
    return turned


def _turned_in_plane(x: Floats, angle: float) -> Floats:
    """The nearest pixel of where each one comes from."""
    height, width = x.shape[2:]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    rows -= (height - 1) / 2
    columns -= (width - 1) / 2
    from_rows = np.rint(np.cos(angle) * rows - np.sin(angle) * columns + (height - 1) / 2).astype(np.int64)
    from_columns = np.rint(np.sin(angle) * rows + np.cos(angle) * columns + (width - 1) / 2).astype(np.int64)
    inside = (from_rows >= 0) & (from_rows < height) & (from_columns >= 0) & (from_columns < width)
    taken = x[:, :, np.clip(from_rows, 0, height - 1), np.clip(from_columns, 0, width - 1)]
    return np.where(inside, taken, np.float32(0.0)).astype(np.float32)
