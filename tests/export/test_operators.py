"""Every operator of docs/operators.md trains as torch trains it, by standard operators alone, at any batch size."""

import onnx
import pytest
import torch

from tests.export.operator_table import CASES
from tests.export.operators import EXAMPLES, Case
from tests.export.operators_page import DOCUMENT, rows
from tests.export.stepping import by_graph, by_torch, difference, written

# Torch warns of its own ways (kernels that it lacks, masks that it deprecates) in a few of the cases.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# Against the largest value of a gradient, in float32.
TOLERANCE = 1e-5


@pytest.mark.parametrize("case", CASES, ids=[f"{c.group}: {c.name}" for c in CASES])
def test_loss_gradients_and_buffers_are_torchs_at_every_batch_size(case: Case) -> None:
    torch.manual_seed(0)
    graph = written(case.make())
    onnx.checker.check_model(graph.model, full_check=True)
    assert {node.domain for node in graph.model.graph.node} == {""}
    for count in (EXAMPLES, EXAMPLES - 1, 1):
        wanted = by_torch(graph, count)
        if wanted is None and count == 1:
            continue
        assert wanted is not None
        found = by_graph(graph, count)
        assert found.keys() == wanted.keys()
        far = {name: off for name, value in wanted.items() if (off := difference(found[name], value)) > TOLERANCE}
        assert not far, f"over {count} examples"


def test_the_document_tells_of_every_case_in_the_tables_order() -> None:
    assert [(group, name) for group, name, *_ in rows(DOCUMENT.read_text())] == [(c.group, c.name) for c in CASES]


def test_no_case_is_there_twice() -> None:
    names = [(c.group, c.name) for c in CASES]
    assert len(names) == len(set(names))
