"""What both sides draw from a seed: the bits of a generator, never its distributions, which NumPy may change.

`PCG64.random_raw` and the way a seed becomes its state are fixed by NumPy's compatibility policy (NEP 19).
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.selection import Indices, top_k

MAX_SEED = (1 << 32) - 1


_COINS, _INDICES, _ROUNDING, _START = range(4)


def random_bits(seed: int, n: int) -> npt.NDArray[np.uint8]:
    """n fair coins: uint8[n] of 0 and 1."""
    return np.unpackbits(_raw(seed, _COINS, -(-n // 64)).view(np.uint8), count=n, bitorder="little")


def random_indices(seed: int, k: int, d: int) -> Indices:
    """k different indices below d, ascending, all sets alike: int64[k].

    Every index draws 31 bits and the k largest win, equal ones by index, which is too rare to matter; so it is a search
    for the top k among magnitudes that are drawn.
    """
    return top_k(_raw(seed, _INDICES, -(-d // 2)).view("<u4")[:d].view("<f4"), k)


def uniform(seed: int, n: int) -> npt.NDArray[np.float32]:
    """n multiples of 2**-24 from 0 on, below 1: float32[n]."""
    raw = _raw(seed, _ROUNDING, -(-n // 2)).view("<u4")[:n]
    return (raw >> np.uint32(8)) * np.float32(2.0**-24)


def start_matrix(seed: int, rows: int, columns: int) -> npt.NDArray[np.float32]:
    """Random signs, as matrices to begin an iteration with: float32[rows, columns]."""
    raw = _raw(seed, _START, -(-rows * columns // 64)).view(np.uint8)
    bits = np.unpackbits(raw, count=rows * columns, bitorder="little")
    return (1.0 - 2.0 * bits.reshape(rows, columns)).astype(np.float32)


def _raw(seed: int, purpose: int, n: int) -> npt.NDArray[np.uint64]:
    """A stream of its own for each purpose, so that what is rounded up has nothing to do with what was chosen."""
    return np.asarray(np.random.PCG64([seed, purpose]).random_raw(n), dtype="<u8")
