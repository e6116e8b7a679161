"""How much memory the tensors of a graph need at once, when each is let go after its last reader."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from edge_agent.runtimes.work import FREE
from export.plan.arena import Arena

# Whose result may take the place of an operand of the same size that nothing reads any more.
_IN_PLACE = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Relu", "Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid", "Tanh"),
        *("Clip", "HardSigmoid", "LeakyRelu", "Floor", "Ceil", "Not", "And", "Or", "Erf", "Softplus", "Pow"),
    }
)

# No tensor is named so.
_SCRATCH = ""


@dataclass(frozen=True, slots=True)
class Use:
    """One operator: its kind, what it reads and writes by name, and the bytes that it needs while it runs."""

    kind: str
    reads: Sequence[str]
    writes: Sequence[str]
    scratch: int = 0


@dataclass(frozen=True, slots=True)
class Peak:
    """size: the most bytes that are alive at once; at: the number of the operator during which that is so. resident:
    what the runtime's arena takes for it, which cannot fill every gap."""

    size: int
    at: int
    resident: int


def peak(uses: Sequence[Use], sizes: Mapping[str, int], held: Set[str]) -> Peak:
    """The peak over the uses in their order. held: names whose memory is not the runtime's to give and take.

    Views share memory with what they show, and some results take the place of an operand. A name without a size counts
    as nothing.
    """
    last = {name: i for i, use in enumerate(uses) for name in (*use.reads, *use.writes)}
    # Each tensor lies in a block, which is named after its first tensor and ends with the last reader of any.
    block: dict[str, str] = {}
    ends: dict[str, int] = {}
    alive: dict[str, int] = {}
    size, at, arena = 0, 0, Arena()
    for i, use in enumerate(uses):
        for name in use.writes:
            shown = use.kind in FREE and bool(use.reads)
            if name in held or (shown and use.reads[0] not in block):
                continue
            block[name] = block[use.reads[0]] if shown else _taken_over(use, i, name, sizes, block, ends) or name
            ends[block[name]] = max(ends.get(block[name], 0), last[name])
            if block[name] not in alive:
                alive[block[name]] = sizes.get(name, 0)
                arena.take(block[name], sizes.get(name, 0))
        arena.take(_SCRATCH, use.scratch)
        now = sum(alive.values()) + use.scratch
        size, at = (now, i) if now > size else (size, at)
        arena.free(_SCRATCH)
        for name in [name for name in alive if ends[name] <= i]:
            del alive[name]
            arena.free(name)
    return Peak(size, at, arena.resident)


def _taken_over(
    use: Use, i: int, name: str, sizes: Mapping[str, int], block: Mapping[str, str], ends: Mapping[str, int]
) -> str | None:
    """The block of an operand that ends here and has the size of the result."""
    if use.kind not in _IN_PLACE:
        return None
    for read in use.reads:
        if read in block and ends[block[read]] <= i and sizes.get(read) == sizes.get(name):
            return block[read]
    return None
