"""Update codecs: bits an index and a parameter, error, and speed, on vectors like those that devices send.

Index codings are measured alone, on random sets; codecs whole, payload to payload, on Gaussian and Laplace vectors (the
heavier tail is the likelier one of real updates), as matrices of 1,000 columns and a bias, so that what is done for
each tensor is done. Times are of one thread, the median over repetitions, in processor time, which other work on the
machine lengthens less than the wall clock's; speeds are of the dense float32 vector, 4 bytes a value.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from math import lgamma, log
from typing import Any, TypeVar

import numpy as np

from benchmarks.harness import ONE_THREAD, options, progress_console, publish
from sparse.codecs import decode, encode, parse_codec
from sparse.codecs.bitmap import decode_bitmap, encode_bitmap
from sparse.codecs.entropy_indices import decode_entropy, encode_entropy
from sparse.codecs.rice import decode_rice, encode_rice
from sparse.codecs.selection import Indices, Vector
from sparse.codecs.tensors import Shapes

LAYOUT = bytes(8)
SIZES = (100_000, 1_000_000)
FRACTIONS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5)
CODECS = (
    "all/float32",
    "all/float16",
    "all/bfloat16",
    "all/int8",
    "all/int8-stochastic",
    "all/int4",
    "all/int4@64",
    "all/int4-stochastic@64",
    "all/qsgd:16",
    "all/qsgd:16@512",
    "all/qsgd:4@64",
    "all/sign",
    "all/drive",
    "topk:0.01/ternary/rice",
    "topk:0.001/ternary",
    "topk:0.0025/ternary",
    "topk:0.01/ternary",
    "topk:0.01@tensor/ternary",
    "topk:0.05/ternary",
    "topk:0.1/ternary",
    "topk:0.25/ternary",
    "topk:0.5/ternary",
    "topk:0.01/float16/rice",
    "topk:0.01/int8",
    "topk:0.1/int4",
    "randk:0.1/float16",
    "randk:0.1/sign",
    "mask/float16",
    "mask/int4",
    "mask/sign",
    "powersgd:1/float16",
    "powersgd:4/float16",
)
_MASKED = 0.1

T = TypeVar("T")
IndexCoding = tuple[Callable[[Indices], bytes], Callable[[bytes, int], Indices]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a row for each index coding, size and density, and for each codec, size and distribution."""
    parser = options(str(__doc__).partition("\n")[0])
    parser.add_argument("--codecs", nargs="*", default=list(CODECS), metavar="CODEC", help="default: one of every kind")
    parser.add_argument("--repetitions", type=int, default=9)
    chosen = parser.parse_args(arguments)
    sizes = (20_000,) if chosen.quick else SIZES
    repetitions = 1 if chosen.quick else chosen.repetitions
    console, rng = progress_console(), np.random.default_rng(chosen.seed)
    rows: list[dict[str, Any]] = []
    for d in sizes:
        for fraction in FRACTIONS:
            indices = np.sort(rng.choice(d, round(fraction * d), replace=False))
            for name, coding in index_codings(d).items():
                rows.append(measure_indices(name, coding, indices, d, repetitions))
        for name, vector in vectors(d, rng).items():
            for codec in chosen.codecs:
                console.print(f"{codec}, {d:,} values, {name}")
                rows.append(measure_codec(codec, vector, name, chosen.seed, repetitions))
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Update codecs")
    return 0


def index_codings(d: int) -> dict[str, IndexCoding]:
    """How sets of indices below d are coded, as functions of the indices, and of the bytes and their number."""
    whole = np.array([0, d])
    return {
        "indices/bitmap": (lambda i: encode_bitmap(i, d), lambda b, k: decode_bitmap(np.frombuffer(b, np.uint8), k, d)),
        "indices/rice": (encode_rice, lambda b, k: decode_rice(np.frombuffer(b, np.uint8), k, d)),
        "indices/rans": (
            lambda i: encode_entropy(i, whole),
            lambda b, k: decode_entropy(np.frombuffer(b, np.uint8), k, whole),
        ),
    }


def vectors(d: int, rng: np.random.Generator) -> dict[str, Vector]:
    """One of each distribution: float32[d]."""
    return {
        "gaussian": rng.standard_normal(d).astype(np.float32),
        "laplace": rng.laplace(size=d).astype(np.float32),
    }


def shapes_of(d: int) -> Shapes:
    """A bias of 1,000, and four matrices of 1,000 columns that share the rest."""
    rows = (d - 1000) // 1000
    return ((rows // 4, 1000), (rows // 4, 1000), (rows // 4, 1000), (rows - 3 * (rows // 4), 1000), (d - 1000 * rows,))


def measure_indices(name: str, coding: IndexCoding, indices: Indices, d: int, repetitions: int) -> dict[str, Any]:
    """A row: bits and speed of a set of indices alone."""
    k = len(indices)
    data, encode_mb_s = timed(lambda: coding[0](indices), d, repetitions)
    arrived, decode_mb_s = timed(lambda: coding[1](data, k), d, repetitions)
    assert np.array_equal(arrived, indices)
    bits = 8.0 * len(data)
    return row(name, d, k, "uniform", bits / k, bound(d, k), bits / d, None, encode_mb_s, decode_mb_s)


def measure_codec(codec: str, vector: Vector, distribution: str, seed: int, repetitions: int) -> dict[str, Any]:
    """A row: the whole payload, header included, of one vector under one codec."""
    spec, d, shapes = parse_codec(codec), len(vector), shapes_of(len(vector))
    mask = np.random.default_rng(seed).random(d) < _MASKED if spec.selection == "mask" else None
    meant = vector if mask is None else np.where(mask, vector, np.float32(0))
    payload, encode_mb_s = timed(lambda: encode(meant, spec, LAYOUT, mask, shapes, seed), d, repetitions)
    arrived, decode_mb_s = timed(lambda: decode(payload, d, LAYOUT, spec, mask, shapes), d, repetitions)
    error = np.square(arrived - meant, dtype=np.float64).sum() / np.square(meant, dtype=np.float64).sum()
    k = int.from_bytes(payload[12:16], "little")
    has_indices = spec.selection == "topk" and k < d
    code = index_bytes(payload) if has_indices else 0
    return row(
        codec,
        d,
        k,
        distribution,
        8 * code / k if has_indices else None,
        bound(d, k) if has_indices else None,
        8 * len(payload) / d,
        float(error),
        encode_mb_s,
        decode_mb_s,
    )


def index_bytes(payload: bytes) -> int:
    """Of a payload of top-k: what stands before the values."""
    if payload[4] > 1:
        return int.from_bytes(payload[36:40], "little")
    return len(payload) - 36 - int.from_bytes(payload[12:16], "little") * (4 >> payload[6])


def row(
    codec: str,
    d: int,
    k: int,
    distribution: str,
    bits: float | None,
    least: float | None,
    bits_per_parameter: float,
    nmse: float | None,
    encode_mb_s: float,
    decode_mb_s: float,
) -> dict[str, Any]:
    """With the keys that readers of the JSON know; None where a codec has no such thing."""
    return {
        "codec": codec,
        "d": d,
        "p": k / d,
        "vector": distribution,
        "bits_per_index": bits,
        "bound_bits_per_index": least,
        "bits_per_parameter": bits_per_parameter,
        "nmse": nmse,
        "encode_mb_s": encode_mb_s,
        "decode_mb_s": decode_mb_s,
    }


def bound(d: int, k: int) -> float:
    """log2 C(d, k) / k: no coding of all sets alike takes fewer bits an index."""
    return (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2) / k


def timed(work: Callable[[], T], d: int, repetitions: int) -> tuple[T, float]:
    """Its result, and MB of dense float32 a second at the median time, after one run to warm up."""
    result, times = work(), []
    for _ in range(repetitions):
        begin = time.thread_time()
        result = work()
        times.append(time.thread_time() - begin)
    return result, 4e-6 * d / statistics.median(times)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # BLAS reads them once, when NumPy is loaded.
        os.execve(
            sys.executable, [sys.executable, "-m", "benchmarks.codecs", *sys.argv[1:]], {**os.environ, **ONE_THREAD}
        )
    sys.exit(main())
