"""The name of a codec: selection/values or selection/values/indices, for example topk:0.01/float16/rice."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Selection = Literal["all", "topk", "mask"]
Values = Literal["float32", "float16"]
Indices = Literal["none", "rice", "bitmap", "auto"]

KNOWN = (
    "all/float32, all/float16, mask/float32, mask/float16, topk:FRACTION/float32 and topk:FRACTION/float16, topk with "
    "/auto, /rice or /bitmap"
)

_NAME = re.compile(
    r"(?P<selection>all|mask|topk:(?P<fraction>[0-9.]+(?:e-?[0-9]+)?))/(?P<values>[a-z0-9]+)(?:/(?P<indices>[a-z]+))?"
)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """Which values of a vector are sent, in what format, and how their places are coded.

    fraction: how many of the values `topk` keeps, above 0 and at most 1; 1 for the others. indices: `auto` is the
    smaller of Rice and bitmap for the vector at hand; `all` needs none, and `mask` shares them beforehand.
    """

    selection: Selection = "all"
    fraction: float = 1.0
    values: Values = "float32"
    indices: Indices = "none"

    def __post_init__(self) -> None:
        if self.selection not in get_args(Selection):
            raise ValueError(f"codec: selection {self.selection!r} is not known; known codecs are {KNOWN}")
        if self.values not in get_args(Values):
            raise ValueError(f"codec: value format {self.values!r} is not known; known codecs are {KNOWN}")
        if self.selection != "topk" and (self.fraction, self.indices) != (1.0, "none"):
            raise ValueError(
                f"codec: {self.indices!r} has no place after {self.selection!r}, which sends no indices; leave it out"
            )
        if self.selection == "topk" and not 0.0 < self.fraction <= 1.0:
            raise ValueError(f"codec: topk fraction {self.fraction} must be above 0 and at most 1, for example 0.01")
        if self.selection == "topk" and self.indices not in ("auto", "rice", "bitmap"):
            raise ValueError(f"codec: index coding {self.indices!r} must be auto, rice or bitmap")

    def __str__(self) -> str:
        if self.selection != "topk":
            return f"{self.selection}/{self.values}"
        return f"topk:{repr(float(self.fraction)).removesuffix('.0')}/{self.values}/{self.indices}"

    def kept(self, d: int) -> int:
        """How many of d values are sent, of `mask` at most: at least one of any, so that even a tiny vector moves."""
        if self.selection != "topk" or d == 0:
            return d
        return max(1, round(self.fraction * d))


DENSE = CodecSpec()


def parse_codec(text: str) -> CodecSpec:
    """The codec of a name. Raises ValueError that says what is known and which ranges hold."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"codec: {text!r} is not a codec; known are {KNOWN}")
    fraction, indices = match["fraction"], match["indices"]
    if fraction is None:
        return CodecSpec(match["selection"], 1.0, match["values"], indices or "none")  # type: ignore[arg-type]
    try:
        number = float(fraction)
    except ValueError:
        raise ValueError(f"codec: topk fraction {fraction!r} is not a number; for example topk:0.01/float16") from None
    return CodecSpec("topk", number, match["values"], indices or "auto")  # type: ignore[arg-type]
