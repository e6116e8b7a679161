"""EF-sign over devices of very different scales: what the fold takes and memories hold add up to what was learnt."""

import numpy as np
import numpy.typing as npt

from coordinator.fold import Decoded, Weighted, fold
from coordinator.intake import decode_payload
from protocol.layout import Layout
from sparse.codecs import encode_update, parse_codec

N, DEVICES, ROUNDS, CODEC = 64, 5, 40, "all/sign"
LAYOUT = Layout((slice(0, N),), (slice(N, N),), bytes(8), ((N,),))
Vector = npt.NDArray[np.float64]


def learnt() -> npt.NDArray[np.float32]:
    """float32[rounds, devices, n]: device k's deltas are ten times those of device k - 1."""
    scales = 10.0 ** np.arange(-2, DEVICES - 2)
    drawn = np.random.default_rng(1).standard_normal((ROUNDS, DEVICES, N)) * scales[None, :, None]
    return drawn.astype(np.float32)


def drift(*, products: bool) -> float:
    """How far the folded sum plus the memories are from all that was learnt, in parts of it."""
    deltas, spec = learnt(), parse_codec(CODEC)
    residuals = {f"d{k}": np.zeros(N, np.float32) for k in range(DEVICES)}
    taken = np.zeros(N)
    for round_ in deltas:
        payloads = {}
        for (name, residual), delta in zip(residuals.items(), round_, strict=True):
            payloads[name], residuals[name] = encode_update(
                delta, np.zeros(0, np.float32), residual, spec, LAYOUT.digest, shapes=LAYOUT.shapes
            )
        decoded = {name: decode_payload(payload, CODEC, LAYOUT) for name, payload in payloads.items()}
        taken += DEVICES * (_folded(decoded) if products else _apart(decoded))
    everything = deltas.astype(np.float64).sum(axis=(0, 1))
    left = np.sum([r.astype(np.float64) for r in residuals.values()], axis=0)
    return float(np.abs(taken + left - everything).max() / np.abs(everything).max())


def _folded(decoded: dict[str, Decoded]) -> Vector:
    updates = [Weighted(name, 10, LAYOUT) for name in decoded]
    return fold(updates, lambda update: decoded[update.device], N, 0).parameters


def _apart(decoded: dict[str, Decoded]) -> Vector:
    """As the authors' code does: the mean scale times the mean sign."""
    values = np.stack([parameters.astype(np.float64) for parameters, _ in decoded.values()])
    return np.asarray(np.abs(values).max(axis=1).mean() * np.sign(values).mean(axis=0))


def test_the_fold_of_ef_sign_averages_products_of_scale_and_sign_and_loses_nothing() -> None:
    assert drift(products=True) < 1e-4


def test_scales_and_signs_averaged_apart_would_not_add_up() -> None:
    assert drift(products=False) > 0.1
