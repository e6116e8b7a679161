"""Who talks to whom in a fleet without a hub: connected undirected graphs, by formula, by chance or from a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# Of a random graph, before it is said that its probability is too low for it to be connected.
MAX_DRAWS = 200
DEFAULT_PROBABILITY = 0.3

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Graph:
    """neighbours[i]: of device i, ascending, without itself. Undirected and connected, else ValueError."""

    neighbours: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.neighbours:
            raise ValueError("topology: no devices; there must be at least one")
        for i, near in enumerate(self.neighbours):
            if list(near) != sorted(set(near)) or i in near or any(not 0 <= j < len(self) for j in near):
                raise ValueError(f"topology: neighbours {near} of {i} must ascend and be others of {len(self)} devices")
            if any(i not in self.neighbours[j] for j in near):
                raise ValueError(f"topology: a link of device {i} goes one way only; links go both ways")
        if apart := unreached(self.neighbours):
            raise ValueError(
                f"topology: no path leads from device 0 to {len(apart)} others, first {apart[0]}; add links to them"
            )

    def __len__(self) -> int:
        return len(self.neighbours)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Each link once, the smaller end first, ascending."""
        return tuple((i, j) for i, near in enumerate(self.neighbours) for j in near if i < j)

    @property
    def is_tree(self) -> bool:
        return len(self.edges) == len(self) - 1


def graph_of(n: int, edges: Iterable[Edge]) -> Graph:
    """The graph of n devices with these links; a link to itself or said twice counts for nothing, or once."""
    near: list[set[int]] = [set() for _ in range(n)]
    for i, j in edges:
        if i != j:
            near[i].add(j)
            near[j].add(i)
    return Graph(tuple(tuple(sorted(each)) for each in near))


def ring(n: int) -> Graph:
    return graph_of(n, ((i, (i + 1) % n) for i in range(n)))


def chain(n: int) -> Graph:
    return graph_of(n, ((i, i + 1) for i in range(n - 1)))


def star(n: int) -> Graph:
    """All by way of device 0."""
    return graph_of(n, ((0, i) for i in range(1, n)))


def fully_connected(n: int) -> Graph:
    return graph_of(n, ((i, j) for i in range(n) for j in range(i)))


def binary_tree(n: int) -> Graph:
    """Device i hangs at (i - 1) // 2: a diameter of about 2 log2(n)."""
    return graph_of(n, ((i, (i - 1) // 2) for i in range(1, n)))


def torus(n: int) -> Graph:
    """A grid as square as n allows, whose ends meet. Raises ValueError for a prime n, which is no grid."""
    rows = max(r for r in range(1, int(n**0.5) + 1) if n % r == 0)
    if rows == 1 and n > 3:
        raise ValueError(f"topology: {n} devices make no torus, for {n} is prime; use ring, or another number")
    columns = n // rows
    right = ((r * columns + c, r * columns + (c + 1) % columns) for r in range(rows) for c in range(columns))
    down = ((r * columns + c, (r + 1) % rows * columns + c) for r in range(rows) for c in range(columns))
    return graph_of(n, (*right, *down))


def exponential(n: int) -> Graph:
    """Links to those 1, 2, 4, ... places on (Assran et al. 2019, section 3), both ways here, for weights are
    symmetric."""
    return graph_of(n, ((i, (i + (1 << k)) % n) for i in range(n) for k in range((n - 1).bit_length())))


def erdos_renyi(n: int, probability: float, rng: np.random.Generator) -> Graph:
    """Each link with this probability, drawn again until the graph is connected. Raises ValueError where none is."""
    if not 0.0 < probability <= 1.0:
        raise ValueError(f"topology: a probability of {probability} must be above 0 and at most 1, for example 0.3")
    for _ in range(MAX_DRAWS):
        drawn = np.argwhere(np.triu(rng.random((n, n)) < probability, 1))
        near: list[list[int]] = [[] for _ in range(n)]
        for i, j in drawn.tolist():
            near[i].append(j)
            near[j].append(i)
        if not unreached(near):
            return Graph(tuple(tuple(sorted(each)) for each in near))
    raise ValueError(
        f"topology: none of {MAX_DRAWS} graphs of {n} devices with links of probability {probability} was connected; "
        f"use at least {np.log(max(n, 2)) / n:.2f}"
    )


BY_FORMULA: Mapping[str, Callable[[int], Graph]] = {
    "ring": ring,
    "chain": chain,
    "torus": torus,
    "star": star,
    "full": fully_connected,
    "exponential": exponential,
    "binary-tree": binary_tree,
}
KNOWN = f"{', '.join(BY_FORMULA)}, erdos-renyi:PROBABILITY"


def parse_topology(text: str, n: int, rng: np.random.Generator) -> Graph:
    """The graph of a name: one of `KNOWN`. Raises ValueError that says what is known."""
    name, _, argument = text.partition(":")
    if name == "erdos-renyi":
        try:
            probability = float(argument) if argument else DEFAULT_PROBABILITY
        except ValueError:
            raise ValueError(f"topology: {argument!r} is no probability; for example erdos-renyi:0.3") from None
        return erdos_renyi(n, probability, rng)
    if name not in BY_FORMULA or argument:
        raise ValueError(f"topology: {text!r} is not known; known are {KNOWN}")
    return BY_FORMULA[name](n)


def parse_edges(text: str, names: Sequence[str]) -> Graph:
    """The graph of a file: a link a line, as the names of two devices; # begins a comment. Links of devices that are
    not among `names` count for nothing, for a fleet's file outlives its members. Raises ValueError by line."""
    return graph_of(len(names), _edges_among(text, names))


def reachable(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """The largest part of `names` that the links of a file hold together, of two as large the one named first."""
    left, best = list(names), list[str]()
    while left:
        near: list[list[int]] = [[] for _ in left]
        for i, j in _edges_among(text, left):
            near[i].append(j)
            near[j].append(i)
        apart = set(unreached(near))
        part = [name for i, name in enumerate(left) if i not in apart]
        best = part if len(part) > len(best) else best
        left = [name for i, name in enumerate(left) if i in apart]
    return tuple(best)


def spanning_tree(graph: Graph, root: int = 0) -> Graph:
    """What a search in breadth from `root` finds: of all trees from there one with the shortest paths."""
    seen, edges, turn = {root}, [], [root]
    for i in turn:
        for j in graph.neighbours[i]:
            if j not in seen:
                seen.add(j)
                edges.append((i, j))
                turn.append(j)
    return graph_of(len(graph), edges)


def subtrees(tree: Graph) -> dict[Edge, int]:
    """By link, told from its first end: how many devices lie that way, the second end included."""
    order, parent = [0], {0: 0}
    for i in order:
        for j in tree.neighbours[i]:
            if j not in parent:
                parent[j] = i
                order.append(j)
    found: dict[Edge, int] = {}
    for j in reversed(order[1:]):
        i = parent[j]
        found[i, j] = 1 + sum(found[j, k] for k in tree.neighbours[j] if k != i)
        found[j, i] = len(tree) - found[i, j]
    return found


def distances(graph: Graph, start: int) -> list[int]:
    """How many links lead from `start` to each device."""
    found = [-1] * len(graph)
    found[start], turn = 0, [start]
    for i in turn:
        for j in graph.neighbours[i]:
            if found[j] < 0:
                found[j] = found[i] + 1
                turn.append(j)
    return found


def _edges_among(text: str, names: Sequence[str]) -> list[Edge]:
    place = {name: i for i, name in enumerate(names)}
    edges = []
    for number, line in enumerate(text.splitlines(), 1):
        said = line.partition("#")[0].split()
        if said and len(said) != 2:
            raise ValueError(f"topology: line {number} has {len(said)} words where a link is the names of two devices")
        if said and said[0] in place and said[1] in place:
            edges.append((place[said[0]], place[said[1]]))
    return edges


def unreached(neighbours: Sequence[Sequence[int]]) -> list[int]:
    """The devices that no path leads to from device 0."""
    seen, turn = {0}, [0]
    for i in turn:
        fresh = [j for j in neighbours[i] if j not in seen]
        seen.update(fresh)
        turn.extend(fresh)
    return [i for i in range(len(neighbours)) if i not in seen]
