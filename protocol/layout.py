"""What an update of a variant is made of: which parts of the flat vector move, and the digest both sides share."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from protocol.manifest import FULL, Kind, Manifest, Tensor

Vector = npt.NDArray[np.float32]
Flat = TypeVar("Flat", bound=npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of float32[total] that a variant trains (`parameters`) and moves (`buffers`), each in manifest order.

    shapes: of the trained tensors, in that order, whose boundaries some codecs need.
    digest: eight bytes that two sides share exactly when they mean the same tensors at the same places. A tensor that
    the variant leaves alone counts as frozen, so that updates of different variants are never taken for each other.
    """

    parameters: tuple[slice, ...]
    buffers: tuple[slice, ...]
    digest: bytes
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def n_parameters(self) -> int:
        return _length(self.parameters)

    @property
    def n_buffers(self) -> int:
        return _length(self.buffers)


def layout_of(manifest: Manifest, variant: str) -> Layout:
    """The layout of a variant's updates. Raises ConfigurationError naming the variants there are."""
    chosen = manifest.variant(variant)
    still = {*chosen.frozen, *chosen.frozen_buffers}
    kinds: list[tuple[Tensor, Kind]] = [(t, "frozen" if t.name in still else t.kind) for t in manifest.tensors]
    said = json.dumps([[t.name, list(t.shape), kind] for t, kind in kinds], separators=(",", ":"))
    return Layout(
        parameters=_parts(t for t, kind in kinds if kind == "parameter"),
        buffers=_parts(t for t, kind in kinds if kind == "buffer"),
        digest=hashlib.sha256(said.encode()).digest()[:8],
        shapes=tuple(tuple(t.shape) for t, kind in kinds if kind == "parameter"),
    )


def maskable_layout(manifest: Manifest) -> Layout:
    """The weights that may be masked where masks are learnt: those of the prunable tensors, which are neither biases
    nor norms. No buffers move. Its digest is no variant's."""
    maskable = [t for t in manifest.tensors if t.kind == "parameter" and t.prunable]
    said = json.dumps(["masks", layout_of(manifest, FULL).digest.hex(), [t.name for t in maskable]])
    return Layout(
        parameters=_parts(maskable),
        buffers=(),
        digest=hashlib.sha256(said.encode()).digest()[:8],
        shapes=tuple(tuple(t.shape) for t in maskable),
    )


def take(vector: Flat, parts: Sequence[slice]) -> Flat:
    """The parts one after the other, of values or a mask: a view of `vector` where they are one, otherwise a copy."""
    if len(parts) == 1:
        return vector[parts[0]]  # type: ignore[return-value]
    return np.concatenate([vector[part] for part in parts]) if parts else vector[:0]  # type: ignore[return-value]


def put(vector: Vector, parts: Sequence[slice], values: Vector) -> None:
    """Writes what `take` would give, back into `vector`."""
    at = 0
    for part in parts:
        vector[part] = values[at : at + part.stop - part.start]
        at += part.stop - part.start
    assert at == len(values), f"{len(values)} values for parts of {at}"


def _length(parts: Sequence[slice]) -> int:
    return sum(part.stop - part.start for part in parts)


def _parts(tensors: Iterable[Tensor]) -> tuple[slice, ...]:
    """Their places, neighbours joined: all the tensors of a kind are one part."""
    parts: list[slice] = []
    for tensor in tensors:
        start = tensor.offset
        if parts and parts[-1].stop == start:
            start = parts.pop().start
        parts.append(slice(start, tensor.offset + tensor.size))
    return tuple(part for part in parts if part.stop > part.start)
