"""docs/operators.md: every case exported, and by which backends. `python -m tests.export.operators_page` writes it."""

import tempfile
from pathlib import Path

import torch

import tests.export.quick  # noqa: F401
from export import ort_artifacts
from export.files import ARTIFACTS
from export.graphs import capture
from protocol.errors import BundleError
from tests.export.operator_table import CASES
from tests.export.operators import EXAMPLES, Case

DOCUMENT = Path(__file__).parents[2] / "docs" / "operators.md"


def outcome(case: Case) -> str:
    """The cells of both backends: yes, or why not.

    What the graphs compute is the tests' matter: here it is whether they can be made.
    """
    torch.manual_seed(0)
    try:
        graphs = capture(case.make(), lambda stage: None, artifacts=True)
    except BundleError as error:
        # Its training graph can be written, as the tests show, and its evaluation graph cannot.
        return f"{_told(str(error))} | no"
    if isinstance(graphs.artifacts, str):
        return f"yes | {_told(graphs.artifacts)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            ort_artifacts.generate(graphs.artifacts, graphs.tensors, Path(folder))
            paths = (Path(folder) / Path(ARTIFACTS[role]).name for role in ("train", "optimizer", "checkpoint"))
            ort_artifacts.check(graphs.artifacts, *paths)
        except BundleError as error:
            return f"yes | {_told(str(error))}"
    return "yes | yes"


def _told(reason: str) -> str:
    """In one cell, without the layer, which is the case's own, and without what the runtime says of its sources."""
    return "no: " + " ".join(reason.split(": ", 1)[-1].split("; simplify the model")[0].replace("|", "/").split())


def rows(text: str) -> list[list[str]]:
    """The cells of the table in the document."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def head(portable: int, training: int) -> str:
    return f"""# What a training graph covers

Every operator below is exported in a small model of its own, and its loss, every gradient and every running statistic
are held against torch's: over {EXAMPLES} examples, over fewer, and over one where torch itself can train on one.
`portable` is the graph of standard ONNX operators, which any stock onnxruntime from 1.17 on runs; `ort-training` are
the artifacts of onnxruntime-training: here whether they can be made, and an export leaves them out, saying why, where
they cannot or do not agree with torch. Of {len(CASES)} forms portable covers {portable}, ort-training {training}.

Recurrent layers are written out step by step, over as many steps as the examples have: the graph grows with the length,
and sequences of another length need another bundle. What needs no earlier step, the inputs' share of the gates and the
gradients of the weights, is one product over all steps. A CTC loss is written out the same way.

What no backend covers is refused at export, by the layer's name: numbers drawn in forward other than by dropout, shapes
or branches that depend on values, convolutions of three axes, packed sequences, and buffers that training writes other
than running statistics. `tests/export/operators.py`, `operator_sequences.py` and `operator_losses.py` have every case's
code. Written by `python -m tests.export.operators_page` with torch {torch.__version__.split("+")[0]}.

| Group | Operator | portable | ort-training |
|---|---|---|---|
"""


def main() -> None:
    lines = []
    for case in CASES:
        lines.append(f"| {case.group} | {case.name} | {outcome(case)} |")
        print(lines[-1], flush=True)
    covered = [sum(line.split(" | ")[place].startswith("yes") for line in lines) for place in (2, 3)]
    DOCUMENT.write_text(head(*covered) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
