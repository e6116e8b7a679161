"""PowerSGD: each matrix as the product of two thin ones, float factors in place of its values.

Vogels et al. 2019, PowerSGD, algorithm 1. A tensor of more dimensions is a matrix of its first by all the others; one
of a single dimension, or for which factors would be no fewer than values, is sent as it is (the paper sends these
dense too). We depart in one thing: the paper starts from the last step's Q, which both sides would have to keep. We
keep nothing: the start is drawn from the task's seed, and one more power iteration makes up for it.

The factors of all tensors follow each other as floats: P by rows (rows x r), then Q by rows (columns x r), with
r = min(rank, rows, columns). A value is the sum over r of P[i, r] * Q[j, r], one product and one sum of float32 after
the other, in this order, which gives the same bits on every machine.
"""

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from sparse.codecs.drawing import start_matrix
from sparse.codecs.errors import PayloadError
from sparse.codecs.floats import encode_floats
from sparse.codecs.selection import Vector
from sparse.codecs.tensors import Shapes

MAX_RANK = 64
_LARGEST = float(np.finfo(np.float32).max)
# A column whose remainder is this small next to it lies in the span of those before: what is left is rounding.
_DEPENDENT = 1e-10

Matrix = npt.NDArray[np.float64]


def factor_count(shapes: Shapes, rank: int) -> int:
    """How many floats stand for these tensors."""
    return sum(r * (rows + columns) if r else rows * columns for rows, columns, r in _matrices(shapes, rank))


def encode_powersgd(vector: Vector, shapes: Shapes, rank: int, values: str, seed: int) -> bytes:
    """vector: float32[d] of these shapes, finite; values: the format of the factors."""
    parts: list[Vector] = []
    at = 0
    for number, (rows, columns, r) in enumerate(_matrices(shapes, rank)):
        part = vector[at : at + rows * columns]
        at += rows * columns
        if r == 0:
            parts.append(part)
            continue
        start = start_matrix(seed + number, columns, r)
        for factor in _factors(part.reshape(rows, columns).astype(np.float64), start.astype(np.float64)):
            parts.append(factor.astype(np.float32).ravel())
    return encode_floats(np.concatenate(parts) if parts else vector[:0], values)


def decode_powersgd(factors: Vector, shapes: Shapes, rank: int) -> Vector:
    """float32[d] of the factors of all tensors. Raises PayloadError where a product is beyond float32."""
    parts: list[Vector] = []
    at = 0
    for rows, columns, r in _matrices(shapes, rank):
        if r == 0:
            parts.append(factors[at : at + rows * columns])
            at += rows * columns
            continue
        p = factors[at : at + rows * r].reshape(rows, r)
        q = factors[at + rows * r : at + (rows + columns) * r].reshape(columns, r)
        at += (rows + columns) * r
        with np.errstate(over="ignore", invalid="ignore"):
            product = p[:, :1] * q[:, 0]
            for i in range(1, r):
                product += p[:, i : i + 1] * q[:, i]
        parts.append(product.ravel())
    vector = np.concatenate(parts) if parts else factors[:0].copy()
    if not np.isfinite(vector).all():
        raise PayloadError("nonfinite", "factors whose product is beyond float32")
    return vector


def _matrices(shapes: Shapes, rank: int) -> Iterator[tuple[int, int, int]]:
    """Of each tensor rows, columns, and the rank of its factors, 0 where it is sent as it is."""
    for shape in shapes:
        rows, columns = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
        r = min(rank, rows, columns)
        yield rows, columns, r if r * (rows + columns) < rows * columns else 0


def _factors(matrix: Matrix, start: Matrix) -> tuple[Matrix, Matrix]:
    """P with orthonormal columns, and Q = M^T P. Float64: squares of any float32 are in its range."""
    q = matrix.T @ _orthonormal(matrix @ start)
    p = _orthonormal(matrix @ q)
    # So that no sum of products overflows.
    most = _LARGEST / (2 * p.shape[1])
    return p, np.clip(matrix.T @ p, -most, most)


def _orthonormal(columns: Matrix) -> Matrix:
    """Modified Gram-Schmidt, in order; a column that depends on those before becomes zeros."""
    # Only directions count, and this way no product of three matrices leaves float64's range.
    largest = np.abs(columns).max(initial=0.0)
    columns = columns / largest if largest > 0 else columns
    for i in range(columns.shape[1]):
        column = columns[:, i]
        before = float(np.sqrt(column @ column))
        for j in range(i):
            column -= (columns[:, j] @ column) * columns[:, j]
        size = float(np.sqrt(column @ column))
        if size <= _DEPENDENT * before:
            column[:] = 0.0
        else:
            column /= size
    return columns
