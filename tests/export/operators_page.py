"""docs/operators.md: every case exported, and by which backends. `python -m tests.export.operators_page` writes it."""

import tempfile
from pathlib import Path

import torch

import tests.export.quick  # noqa: F401
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.portable import NAME as PORTABLE
from export.bundle import write_bundle
from protocol.errors import BundleError
from tests.export.operator_table import CASES
from tests.export.operators import EXAMPLES, Case

DOCUMENT = Path(__file__).parents[2] / "docs" / "operators.md"


def outcome(case: Case) -> str:
    """The cells of both backends: yes, or why not. Raises BundleError where the portable one cannot."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_bundle(case.make(), Path(folder) / "b", line="case")
    assert PORTABLE in manifest.variants[0].backends
    reason = manifest.left_out.get(ORT_TRAINING)
    return f"yes | {'yes' if reason is None else 'no: ' + reason.replace('|', '/').replace(chr(10), ' ')}"


def rows(text: str) -> list[list[str]]:
    """The cells of the table in the document."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def head(portable: int, training: int) -> str:
    return f"""# What a training graph covers

Every operator below is exported in a small model of its own, and its loss, every gradient and every running statistic
are held against torch's: over {EXAMPLES} examples, over fewer, and over one where torch itself can train on one.
`portable` is the graph of standard ONNX operators, which any stock onnxruntime from 1.17 on runs; `ort-training` are
the artifacts of onnxruntime-training, which an export adds to the bundle where that runtime can do the same, and
otherwise leaves out, saying why. Of {len(CASES)} forms the portable backend covers {portable}, the other {training}.

Recurrent layers are written out step by step, over as many steps as the examples have: the graph grows with the length,
and batches of another length need another bundle. What needs no earlier step, the inputs' share of the gates and the
gradients of the weights, is one product over all steps.

What no backend covers is refused at export, by the layer's name: numbers drawn in forward other than by dropout, shapes
or branches that depend on values, three-dimensional convolutions, packed sequences, buffers that training writes other
than running statistics. Written by `python -m tests.export.operators_page` with torch {torch.__version__.split("+")[0]};
`tests/export/operators.py`, `operator_sequences.py` and `operator_losses.py` have every case's code.

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
