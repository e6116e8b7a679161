"""Central differential privacy at the level of devices: clip every update, add Gaussian noise to their sum.

McMahan et al. 2018 (DP-FedAvg), algorithm 1, on sums with a fixed clipping norm and every device counting once. Two
fleets are neighbours if they differ in that one device's updates are all zero. Devices are asked in turn, not by
independent lots (planner.py), so that no amplification by sampling is claimed: what a device gave away is the
composition of the folds that took its updates, at their full price.

Noise comes from SHAKE-256 under a key that only this store has, so that nobody can work it out from the public seed,
and to fold the same set again gives the same bits; another set gets other noise. Four normal variates make one, which
hides the gaps of floating point (Holohan and Braghin 2021, section 5), as Opacus does in its secure mode.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.fold import Decoded, Delta, Folded, Weighted, fold
from coordinator.norms import length
from coordinator.trust_settings import PrivacySettings
from protocol.errors import ConfigurationError
from protocol.manifest import Manifest

KEY_FILE = "privacy.key"
_KEY_BYTES = 32
# float32 rounding must not bring a clipped update back over its norm.
_MARGIN = 1.0 - 1e-6
# So many coordinates' noise at a time.
_BLOCK = 1 << 15
_LANES = 4


def check_privacy(settings: PrivacySettings, manifest: Manifest) -> None:
    """Raises ConfigurationError where a bundle cannot be trained with noise."""
    if settings.on and manifest.buffers:
        raise ConfigurationError(
            f"privacy.noise_multiplier: this bundle has {manifest.buffers} running statistics, which reach the model "
            "without noise; export a model with GroupNorm or LayerNorm in place of BatchNorm, or set it to 0"
        )


def load_key(state: Path, *, make: bool = True) -> bytes:
    """The secret of this store's noise, made at first use and readable by its owner alone. Raises ConfigurationError
    where it is not whole, or not there and not to be made."""
    path = state / KEY_FILE
    if not path.exists():
        if not make:
            raise ConfigurationError(f"{path}: is gone, without which no noise can be made again; restore a backup")
        _make_key(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(f"{path}: {len(key)} bytes where a key has {_KEY_BYTES}; restore it from a backup")
    return key


def private_fold(
    settings: PrivacySettings,
    updates: Iterable[Weighted],
    decode: Callable[[Weighted], Decoded],
    n_parameters: int,
    key: bytes,
    label: bytes,
) -> Folded:
    """The noisy mean of clipped updates. label: names this fold and its set; no two that differ may share one.

    At a coordinate that c updates trained, the noise has a standard deviation of noise_multiplier x clip / c.
    Weighted's own weight and clip are not looked at.
    """
    alike = [replace(update, weight=1, clip=1.0, clip_buffers=1.0) for update in updates]

    def clipped(update: Weighted) -> Decoded:
        parameters, buffers = decode(update)
        norm = length(parameters)
        if norm > settings.clip:
            parameters = parameters * np.float32(settings.clip / norm * _MARGIN)
        return parameters, buffers

    folded = fold(alike, clipped, n_parameters, 0)
    counts = _counts(alike, n_parameters)
    noise = gaussian(key, label, n_parameters)
    noise *= settings.noise_multiplier * settings.clip / np.maximum(counts, 1)
    noise[counts == 0] = 0.0
    return Folded(folded.parameters + noise, folded.buffers, folded.trained)


def gaussian(key: bytes, label: bytes, n: int) -> Delta:
    """float64[n] of unit variance, the same for the same key and label."""
    secret = hmac.digest(key, label, "sha256")
    values = np.empty(n)
    for number, at in enumerate(range(0, n, _BLOCK)):
        size = min(_BLOCK, n - at)
        drawn = hashlib.shake_256(secret + number.to_bytes(8, "little")).digest(8 * _LANES * size)
        values[at : at + size] = _normal(np.frombuffer(drawn, "<u8").reshape(_LANES, size))
    return values


def fold_label(run: str, version: int, updates: Iterable[tuple[int, str, bytes]]) -> bytes:
    """Names a fold and its set: of each update the round, the device and the payload's digest, in any order."""
    said = hashlib.sha256()
    for number, device, digest in sorted(updates):
        said.update(f"{number}:{len(device)}:{device}:{digest.hex()};".encode())
    return f"{run}/{version}/".encode() + said.digest()


def _normal(bits: npt.NDArray[np.uint64]) -> Delta:
    """One variate a column, out of four by Box and Muller (1958)."""
    uniform = ((bits >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:2])), 2.0 * np.pi * uniform[2:]
    summed: Delta = (radius * (np.cos(angle) + np.sin(angle))).sum(axis=0)
    return summed / 2.0


def _counts(updates: Iterable[Weighted], n_parameters: int) -> npt.NDArray[np.int64]:
    """How many updates trained each parameter."""
    counts = np.zeros(n_parameters, np.int64)
    for update in updates:
        at = 0
        for part in update.layout.parameters:
            end = at + part.stop - part.start
            trained = 1 if update.mask is None else update.mask[at:end].astype(np.int64)
            counts[part if update.places is None else update.places[part]] += trained
            at = end
    return counts


def _make_key(path: Path) -> None:
    """Durable before it is used: noise under a lost key could not be made again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secrets.token_bytes(_KEY_BYTES))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
