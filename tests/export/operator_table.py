"""All cases of docs/operators.md in their order."""

from tests.export.operator_losses import LOSSES
from tests.export.operator_sequences import SEQUENCES
from tests.export.operators import LAYERS

CASES = (*LAYERS, *SEQUENCES, *LOSSES)
