"""Happenings as marks of a lane: which word is which kind, what lasts until when, what is drawn as one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from devices.fleet.record import Happening
from devices.text import duration_text

Style = Literal["bad", "second", "good", "quiet"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind is marked, worst first in `KINDS`."""

    letter: str
    title: str
    style: Style


KINDS: Mapping[str, Kind] = {
    "out-of-memory": Kind("M", "killed for memory", "bad"),
    "power-cut": Kind("P", "power cut", "bad"),
    "kill": Kind("K", "agent killed", "bad"),
    "exit": Kind("E", "agent ended", "bad"),
    "refusal": Kind("R", "refused", "second"),
    "cut": Kind("C", "link cut", "second"),
    "throttle": Kind("T", "throttled", "second"),
    "disk-full": Kind("D", "disk full", "second"),
    "clock-jump": Kind("J", "clock jumped", "second"),
    "start": Kind("S", "agent started", "good"),
    "enrolled": Kind("N", "enrolled", "good"),
    "on": Kind("+", "there again", "good"),
    "off": Kind("-", "away", "quiet"),
}
# What the bars of presence show as it is.
UNMARKED = frozenset({"enrolled", "on", "off"})
_OTHER = Kind("?", "other", "quiet")
# Whoever ends a cut by hand says restore.
_SAME = {"restore": ("cut", True), "oom": ("out-of-memory", False), "restart": ("start", False)}
_ENDINGS = ("-ends", "-end", "-ended")


@dataclass(frozen=True, slots=True)
class Mark:
    """One sign at a time: of one happening, or of several that would lie on each other."""

    at_s: float
    happenings: tuple[Happening, ...]

    @property
    def kind(self) -> Kind:
        """Of the worst in it."""
        return min((kind_of(h) for h in self.happenings), key=_rank)

    @property
    def sign(self) -> str:
        return self.kind.letter if len(self.happenings) == 1 else str(len(self.happenings))

    @property
    def text(self) -> str:
        return "; ".join(happening_text(h) for h in self.happenings)


@dataclass(frozen=True, slots=True)
class Lasting:
    """A fault from its begin to its end, or to the end of the run."""

    begin_s: float
    end_s: float
    kind: Kind


def word(happening: Happening) -> tuple[str, bool]:
    """The kind's word, and whether this is its end."""
    said = "-".join(happening.what.lower().replace("_", " ").replace("-", " ").split())
    if said in _SAME:
        return _SAME[said]
    for ending in _ENDINGS:
        if said.endswith(ending):
            return said.removesuffix(ending), True
    return said, False


def kind_of(happening: Happening) -> Kind:
    """Its kind; words that nobody here knows are a kind of their own."""
    return KINDS.get(word(happening)[0], _OTHER)


def happening_text(happening: Happening) -> str:
    """When and what, in one line."""
    detail = f" ({happening.detail})" if happening.detail else ""
    return f"{duration_text(happening.at_s)}: {happening.what}{detail}"


def marks(happenings: Iterable[Happening], apart_s: float) -> list[Mark]:
    """In the order of time, without ends and what bars show; closer than `apart_s` to the mark before goes into it."""
    result: list[Mark] = []
    told = [h for h in happenings if math.isfinite(h.at_s) and not word(h)[1] and word(h)[0] not in UNMARKED]
    for happening in sorted(told, key=lambda h: h.at_s):
        if result and happening.at_s - result[-1].at_s < apart_s:
            result[-1] = Mark(result[-1].at_s, (*result[-1].happenings, happening))
        else:
            result.append(Mark(happening.at_s, (happening,)))
    return result


def lasting(happenings: Sequence[Happening], end_s: float) -> list[Lasting]:
    """The faults of one device that have an end, or whose kind has: from each begin to its end."""
    result: list[Lasting] = []
    open_since: dict[str, float] = {}
    for happening in sorted((h for h in happenings if math.isfinite(h.at_s)), key=lambda h: h.at_s):
        said, ends = word(happening)
        if ends and said in open_since:
            result.append(Lasting(open_since.pop(said), happening.at_s, kind_of(happening)))
        elif not ends and said in ("cut", "throttle", "disk-full", "power-cut"):
            open_since.setdefault(said, happening.at_s)
    return result + [Lasting(begin, end_s, KINDS[said]) for said, begin in open_since.items()]


def _rank(kind: Kind) -> int:
    known = list(KINDS.values())
    return known.index(kind) if kind in known else len(known)
