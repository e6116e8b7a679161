"""rANS: symbols at nearly their entropy, in lanes that NumPy codes side by side.

Duda 2013, Asymmetric numeral systems, section 3; renormalised by 16-bit words as in Giesen 2014, Interleaved Entropy
Coders. Symbol i belongs to lane i mod lanes. All lanes write to one stream of words; the encoder goes from the last
symbol to the first, so that the decoder reads forwards.

    offset     bytes  what (integers little-endian)
    0          4 * m  states of the m lanes, each from 2**16 to 2**32 - 1
    4 * m      2 * w  words, in the order in which the decoder takes them

We depart from the papers in one thing: a lane does not start from 2**16, which would waste 16 bits, but from 2**16 plus
16 bits of something else that has to be sent anyway (`spare`), which the decoder finds in the lane at the end.

Frequencies have 14 bits. Whoever calls must give both sides the same ones, so they are made of integers, or of single
IEEE operations, never of sums or functions whose last bit depends on the machine.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError

Symbols = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]

BITS = 14
TOTAL = 1 << BITS
_LOW = 1 << 16
_SLOT, _BITS, _WORD, _ONE = np.uint32(TOTAL - 1), np.uint32(BITS), np.uint32(16), np.uint32(1)


@dataclass(frozen=True, slots=True)
class Model:
    """frequencies: int64[contexts, symbols], every row sums to 2**14; a symbol with 0 cannot be coded there."""

    frequencies: Integers

    def __post_init__(self) -> None:
        assert self.frequencies.min() >= 0, "no frequency is negative"
        assert (self.frequencies.sum(axis=1) == TOTAL).all(), "frequencies sum to 2**14"


def encode_symbols(symbols: Symbols, model: Model, spare: Words, contexts: Integers | None = None) -> bytes:
    """symbols: uint8[n]; spare: uint16[lanes]; contexts: int64[n], the row of the model for each, or None for row 0."""
    n, lanes = len(symbols), len(spare)
    # In float64 all of it is exact: a state is below 2**32 and a frequency below 2**15, so that no rounded quotient
    # reaches the next whole number; and floats divide many times faster than integers.
    state = spare + float(_LOW)
    offsets = np.cumsum(model.frequencies, axis=1) - model.frequencies
    frequency_of, offset_of = model.frequencies.ravel().astype(np.float64), offsets.ravel().astype(np.float64)
    limit_of, factor_of = frequency_of * (1 << (32 - BITS)), TOTAL - frequency_of
    width = model.frequencies.shape[1]
    words: list[Words] = []
    for start in range((n - 1) // lanes * lanes, -1, -lanes) if n else ():
        step = slice(start, min(start + lanes, n))
        at = symbols[step].astype(np.intp)
        if contexts is not None:
            at += contexts[step] * width
        x = state[: step.stop - start]
        full = np.flatnonzero(x >= limit_of.take(at))
        high = np.floor(x[full] * 2.0**-16)
        words.append((x[full] - high * 65536.0).astype(np.uint16))
        x[full] = high
        quotient = np.floor(x / frequency_of.take(at))
        quotient *= factor_of.take(at)
        quotient += offset_of.take(at)
        x += quotient
    words.reverse()
    stream = np.concatenate(words).astype("<u2").tobytes() if words else b""
    return state.astype("<u4").tobytes() + stream


def decode_symbols(
    data: npt.NDArray[np.uint8], n: int, model: Model, lanes: int, contexts: Integers | None = None
) -> tuple[Symbols, Words, int]:
    """The n symbols, the spare words, and how many bytes of `data` they took. Raises PayloadError.

    Takes n / lanes steps: who calls bounds them by the number of lanes that it allows.
    """
    if len(data) < 4 * lanes:
        raise PayloadError("length", f"{len(data)} bytes cannot hold the states of {lanes} lanes")
    state = data[: 4 * lanes].view("<u4").astype(np.uint32)
    words = data[4 * lanes : 4 * lanes + (len(data) - 4 * lanes) // 2 * 2].view("<u2").astype(np.uint32)
    symbol_of, place_of = _slots(model)
    symbols, taken = np.empty(n, dtype=np.uint8), 0
    for start in range(0, n, lanes) if lanes else ():
        step = slice(start, min(start + lanes, n))
        x = state[: step.stop - start]
        slot = x & _SLOT
        if contexts is not None:
            slot += (contexts[step] << BITS).astype(np.uint32)
        symbols[step] = symbol_of.take(slot)
        place = place_of.take(slot)
        x >>= _BITS
        x *= (place >> _BITS) + _ONE
        x += place & _SLOT
        low = np.flatnonzero(x < _LOW)
        if len(low):
            fresh = words[taken : taken + len(low)]
            if len(fresh) != len(low):
                raise PayloadError("values", "the words of an entropy code end early")
            x[low] = (x[low] << _WORD) | fresh
            taken += len(low)
    if ((state < _LOW) | (state >= 2 * _LOW)).any():
        raise PayloadError("values", "the lanes of an entropy code do not end where they began")
    return symbols, (state - np.uint32(_LOW)).astype(np.uint16), 4 * lanes + 2 * taken


def _slots(model: Model) -> tuple[Symbols, npt.NDArray[np.uint32]]:
    """For each of the 2**14 slots of each context: its symbol; and the symbol's frequency less 1, above the 14 bits of
    the slot's place within it."""
    contexts, count = model.frequencies.shape
    symbols = np.empty(contexts << BITS, dtype=np.uint8)
    places = np.empty(contexts << BITS, dtype=np.uint32)
    within = np.arange(TOTAL, dtype=np.uint32)
    for context, row in enumerate(model.frequencies):
        slots = slice(context << BITS, (context + 1) << BITS)
        symbols[slots] = np.repeat(np.arange(count, dtype=np.uint8), row)
        starts = np.cumsum(row) - row
        # Of a symbol that cannot be coded there is nothing to repeat, whatever wraps around here.
        places[slots] = within
        places[slots] += np.repeat((((row - 1) << BITS) - starts).astype(np.uint32), row)
    return symbols, places
