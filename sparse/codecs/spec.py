"""The name of a codec: selection/values or selection/values/indices, for example topk:0.01/ternary/rice.

selection   all | mask | topk:FRACTION | topk:FRACTION@tensor | randk:FRACTION | powersgd:RANK
values      float32 | float16 | bfloat16 | int8 | int4 | qsgd:LEVELS | ternary | sign | drive
            int8 and int4 with -stochastic; all but the floats with @whole, @tensor or @BLOCK, what shares a scale
indices     of topk: auto | bitmap | rice | rice@tensor | rans | rans@tensor
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar, get_args

from sparse.codecs.drive import DEFAULT_BLOCK, MAX_BLOCK
from sparse.codecs.floats import SIZES
from sparse.codecs.levels import MAX_LEVELS
from sparse.codecs.powersgd import MAX_RANK, factor_count
from sparse.codecs.tensors import TENSOR, WHOLE, Shapes, offsets_of

Selection = Literal["all", "topk", "mask", "randk", "powersgd"]
Values = Literal["float32", "float16", "bfloat16", "int8", "int4", "qsgd", "ternary", "sign", "drive"]
Indices = Literal["none", "rice", "bitmap", "auto", "rice@tensor", "rans", "rans@tensor"]

KNOWN = (
    "all/float32, mask/float16, topk:0.01/ternary, topk:0.01@tensor/float16/rice, randk:0.1/int8, powersgd:2/float16, "
    "all/drive and their like: selections all, mask, topk:FRACTION, randk:FRACTION, powersgd:RANK; values float32, "
    "float16, bfloat16, int8, int4, qsgd:LEVELS, ternary, sign, drive; after topk indices auto, rice, rans or bitmap"
)

# What shares a scale where nothing else is said; floats have none.
_SCOPES = {"int8": TENSOR, "int4": TENSOR, "qsgd": TENSOR, "sign": TENSOR, "ternary": WHOLE, "drive": DEFAULT_BLOCK}
_LEVELS = {"int8": 127, "int4": 7}
_LEAST_BLOCK = 8
_SPARSE = ("topk", "randk")

N = TypeVar("N", int, float)

_NAME = re.compile(
    r"(?P<selection>all|mask|(?:topk|randk|powersgd):(?P<number>[0-9.]+(?:e-?[0-9]+)?)(?P<each>@tensor)?)"
    r"/(?P<values>[a-z0-9]+)(?::(?P<levels>[0-9]+))?(?P<stochastic>-stochastic)?(?:@(?P<scope>[a-z0-9]+))?"
    r"(?:/(?P<indices>[a-z]+(?:@tensor)?))?"
)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which values of a vector are sent, in what format, and how their places are coded.

    fraction: how many of the values `topk` and `randk` keep, above 0 and at most 1; 1 for the others. indices: `auto`
    is the shortest for the vector at hand; all but `topk` need none. per_tensor: `topk` keeps the fraction of each
    tensor. rank: of `powersgd`. levels: of `qsgd`. stochastic: rounded at random instead of to the nearest. scope: of a
    scale, 0 the whole vector, 1 a tensor, else a block of so many values; 0 for floats.
    """

    selection: Selection = "all"
    fraction: float = 1.0
    values: Values = "float32"
    indices: Indices = "none"
    per_tensor: bool = False
    rank: int = 0
    levels: int = 0
    stochastic: bool = False
    scope: int = 0

    def __post_init__(self) -> None:
        if self.selection not in get_args(Selection):
            raise ValueError(f"codec: selection {self.selection!r} is not known; known codecs are {KNOWN}")
        if self.values not in get_args(Values):
            raise ValueError(f"codec: value format {self.values!r} is not known; known codecs are {KNOWN}")
        self._check_selection()
        self._check_values()

    def __str__(self) -> str:
        values = f"qsgd:{self.levels}" if self.values == "qsgd" else self.values
        if self.stochastic:
            values += "-stochastic"
        if self.scope != _SCOPES.get(self.values, 0):
            values += "@" + {WHOLE: "whole", TENSOR: "tensor"}.get(self.scope, str(self.scope))
        if self.selection == "powersgd":
            return f"powersgd:{self.rank}/{values}"
        if self.selection not in _SPARSE:
            return f"{self.selection}/{values}"
        each = "@tensor" if self.per_tensor else ""
        selection = f"{self.selection}:{repr(float(self.fraction)).removesuffix('.0')}{each}"
        return f"{selection}/{values}" + (f"/{self.indices}" if self.selection == "topk" else "")

    def kept(self, d: int, shapes: Shapes | None = None) -> int:
        """How many of d values are sent, of `mask` at most: at least one of any, so that even a tiny vector moves.

        shapes: of the tensors; of `topk` for each tensor, at least one of each that is not empty.
        """
        if self.selection == "powersgd":
            return factor_count(shapes or [(d,)], self.rank)
        if self.selection not in _SPARSE or d == 0:
            return d
        if self.per_tensor:
            offsets = offsets_of(shapes, d).tolist()
            return sum(self.of(b - a) for a, b in pairwise(offsets))
        return self.of(d)

    def of(self, n: int) -> int:
        """The fraction of n values, at least one of any."""
        return min(n, max(1, round(self.fraction * n)))

    @property
    def unbiased(self) -> bool:
        """Whether the mean of what arrives, over seeds, is what was sent, of the values that were selected."""
        return self.stochastic or self.values in ("qsgd", "drive")

    @property
    def unit_levels(self) -> int:
        """Levels on either side of 0, of formats that have them."""
        return _LEVELS.get(self.values, self.levels)

    def _check_selection(self) -> None:
        if self.selection != "topk" and (self.indices, self.per_tensor) != ("none", False):
            raise ValueError(
                f"codec: {self.indices!r} has no place after {self.selection!r}, which sends no indices; leave it out"
            )
        if self.selection in _SPARSE and not 0.0 < self.fraction <= 1.0:
            raise ValueError(
                f"codec: {self.selection} fraction {self.fraction} must be above 0 and at most 1, for example 0.01"
            )
        if self.selection not in _SPARSE and self.fraction != 1.0:
            raise ValueError(f"codec: a fraction has no place after {self.selection!r}; use topk:{self.fraction}")
        if self.selection == "topk" and self.indices not in get_args(Indices)[1:]:
            raise ValueError(f"codec: index coding {self.indices!r} must be auto, rice, rans or bitmap")
        if self.selection == "powersgd" and self.values not in SIZES:
            raise ValueError(f"codec: factors are sent as float32, float16 or bfloat16, not as {self.values}")
        least, most = (1, MAX_RANK) if self.selection == "powersgd" else (0, 0)
        if not least <= self.rank <= most:
            raise ValueError(f"codec: rank {self.rank} of {self.selection} must be from {least} to {most}")

    def _check_values(self) -> None:
        if self.values == "ternary" and self.selection != "topk":
            raise ValueError(f"codec: ternary is what topk leaves; after {self.selection!r} use sign@whole")
        least, most = (1, MAX_LEVELS) if self.values == "qsgd" else (0, 0)
        if not least <= self.levels <= most:
            raise ValueError(f"codec: {self.levels} levels of {self.values} must be from {least} to {most}")
        if self.stochastic and self.values not in _LEVELS:
            raise ValueError(f"codec: -stochastic has no place after {self.values}; int8 and int4 can be rounded so")
        if self.values in SIZES and self.scope:
            raise ValueError(f"codec: {self.values} has no scale, so @ has no place after it")
        if self.values == "drive" and (self.scope & (self.scope - 1) or not _LEAST_BLOCK <= self.scope <= MAX_BLOCK):
            raise ValueError(f"codec: drive@{self.scope} must be a power of two from {_LEAST_BLOCK} to {MAX_BLOCK}")
        if self.scope not in (WHOLE, TENSOR) and not _LEAST_BLOCK <= self.scope < 1 << 31:
            raise ValueError(f"codec: a block of {self.scope} must have at least {_LEAST_BLOCK} values")


DENSE = CodecSpec()


def parse_codec(text: str) -> CodecSpec:
    """The codec of a name. Raises ValueError that says what is known and which ranges hold."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"codec: {text!r} is not a codec; known are {KNOWN}")
    selection, _, _ = match["selection"].partition(":")
    rank = _number(int, "powersgd rank", match["number"], "powersgd:2/float16") if selection == "powersgd" else 0
    fraction = (
        _number(float, f"{selection} fraction", match["number"], "topk:0.01/float16") if selection in _SPARSE else 1
    )
    if match["each"] and selection != "topk":
        raise ValueError(f"codec: @tensor has no place after {selection}; it says of which part topk takes a fraction")
    scope = {"whole": WHOLE, "tensor": TENSOR}.get(match["scope"] or "")
    if scope is None:
        default = _SCOPES.get(match["values"], 0)
        scope = _number(int, "block", match["scope"], "int8@256") if match["scope"] else default
        if scope in (WHOLE, TENSOR) and match["scope"]:
            raise ValueError(f"codec: a block of {scope} must have at least {_LEAST_BLOCK} values; or @whole, @tensor")
    return CodecSpec(
        selection,  # type: ignore[arg-type]
        float(fraction),
        match["values"],  # type: ignore[arg-type]
        match["indices"] or ("auto" if selection == "topk" else "none"),  # type: ignore[arg-type]
        per_tensor=match["each"] is not None,
        rank=rank,
        levels=int(match["levels"] or 0),
        stochastic=match["stochastic"] is not None,
        scope=scope,
    )


def _number(kind: Callable[[str], N], what: str, text: str, example: str) -> N:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"codec: {what} {text!r} is not a number; for example {example}") from None
