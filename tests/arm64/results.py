"""What a test run elsewhere came to, from its JUnit file: counts, and what was skipped for which reason."""

import ast
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# What cannot exist on an arm64 board, by the beginning of the reason.
ALLOWED_SKIPS = (
    "could not import 'torch'",
    "ort-training: ",
    "data not at hand: ",
    # Other releases are compared on the host: see tests/runtimes/matrix.py.
    "no environment with onnxruntime ",
)


@dataclass(frozen=True, slots=True)
class Results:
    """`failed` counts errors too. `skipped`: reason -> tests, a skipped file counting as one."""

    passed: int
    failed: int
    seconds: float
    skipped: Mapping[str, int]

    def complaints(self) -> tuple[str, ...]:
        """Why this run does not count as good, in words; nothing if it does."""
        complaints = [f"{self.failed} tests failed"] if self.failed else []
        complaints += [] if self.passed else ["no test passed"]
        complaints += [f"skipped: {reason}" for reason in self.skipped if not reason.startswith(ALLOWED_SKIPS)]
        return tuple(complaints)


def read(path: Path) -> Results:
    """The results in a JUnit file that pytest wrote."""
    # Written by our own pytest a moment ago.
    suite = ET.parse(path).getroot()
    passed = failed = 0
    skipped: Counter[str] = Counter()
    for case in suite.iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            skipped[_reason(skip)] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        else:
            passed += 1
    seconds = sum(float(part.get("time", "0")) for part in suite.iter("testsuite"))
    return Results(passed, failed, seconds, dict(skipped))


def _reason(skip: ET.Element) -> str:
    """The reason; of a file skipped while it was collected, pytest gives the place and the reason as a tuple's text."""
    said = skip.get("message", "")
    if said == "collection skipped":
        _, _, said = ast.literal_eval(skip.text or "")
    return str(said).removeprefix("Skipped: ")
