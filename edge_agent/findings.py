"""What a check finds, how it is printed, and which exit code follows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in words; what to do about it unless all is well; more lines, and facts for --json.

    exit_code: of the command, where this is its first error.
    """

    status: Status
    said: str
    remedy: str = ""
    details: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 1


def exit_code(found: Mapping[str, Finding]) -> int:
    """The first error's: checks come in such an order that later errors often follow from earlier ones."""
    return next((finding.exit_code for finding in found.values() if finding.status == "error"), 0)


def lines(found: Mapping[str, Finding]) -> list[str]:
    """A table for people."""
    result, width = [], 2 + max(map(len, found), default=0)
    for name, finding in found.items():
        result.append(f"{finding.status:9}{name:{width}}{finding.said}")
        result += [f"{'':{9 + width}}{line}" for line in finding.details]
        if finding.remedy:
            result.append(f"{'':{9 + width}}remedy: {finding.remedy}")
    return result


def as_json(found: Mapping[str, Finding]) -> dict[str, Any]:
    """The same for programs."""
    checks = {
        name: {"status": one.status, "said": one.said, "remedy": one.remedy, **one.facts} for name, one in found.items()
    }
    return {"ok": exit_code(found) == 0, "checks": checks}
