"""The arena out of which onnxruntime serves a session's tensors, as far as its size goes.

After onnxruntime/core/framework/bfc_arena.cc with its default settings on a CPU: blocks of multiples of 256 bytes, best
fit first, out of regions that double in size; a free block is divided only where it is at least twice what is asked.
"""

from dataclasses import dataclass

_ALIGNMENT = 256
_FIRST_REGION = 1 << 20


@dataclass(slots=True)
class _Block:
    """A part of a region. user: what it was taken for, None when free."""

    region: int
    start: int
    size: int
    user: str | None = None


class Arena:
    """Takes and frees named blocks; `resident` is how much of its memory was ever touched."""

    def __init__(self) -> None:
        # In order of region and start, so that neighbours are next to each other.
        self._blocks: list[_Block] = []
        self._next_region = _FIRST_REGION
        self._touched: list[int] = []

    @property
    def resident(self) -> int:
        return sum(self._touched)

    def take(self, user: str, size: int) -> None:
        """Nothing is taken for a size of 0."""
        if size <= 0:
            return
        needed = -(-size // _ALIGNMENT) * _ALIGNMENT
        fitting = [b for b in self._blocks if b.user is None and b.size >= needed]
        block = min(fitting, key=lambda b: (b.size, b.region, b.start)) if fitting else self._extended(needed)
        if block.size >= 2 * needed:
            rest = _Block(block.region, block.start + needed, block.size - needed)
            self._blocks.insert(self._blocks.index(block) + 1, rest)
            block.size = needed
        block.user = user
        self._touched[block.region] = max(self._touched[block.region], block.start + size)

    def free(self, user: str) -> None:
        """Nothing happens to a user without a block."""
        found = next((i for i, b in enumerate(self._blocks) if b.user == user), None)
        if found is None:
            return
        self._blocks[found].user = None
        for i in (found + 1, found):
            if 0 < i < len(self._blocks):
                left, right = self._blocks[i - 1], self._blocks[i]
                if left.user is None and right.user is None and left.region == right.region:
                    left.size += right.size
                    del self._blocks[i]

    def _extended(self, needed: int) -> _Block:
        while self._next_region < needed:
            self._next_region *= 2
        block = _Block(len(self._touched), 0, self._next_region)
        self._blocks.append(block)
        self._touched.append(0)
        self._next_region *= 2
        return block
