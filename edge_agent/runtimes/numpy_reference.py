"""An exact tiny engine in NumPy, for tests: softmax regression, or one hidden ReLU layer, with cross-entropy.

The manifest's tensors say which: weight and bias of one linear layer, or of two, each weight [out, in] as in torch.
"""

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes.engine import Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.metrics import measure
from protocol.bundle import Bundle
from protocol.errors import BundleError
from protocol.layout import layout_of
from protocol.manifest import FULL, Manifest

NAME = "numpy"

Matrix = npt.NDArray[np.float64]


class NumpyEngine:
    """Runs a bundle whose tensors are one or two linear layers. Computes in float64, what a variant freezes too."""

    def __init__(self, bundle: Bundle, variant: str = FULL) -> None:
        self._manifest = _checked(bundle.manifest)
        self._trained = np.zeros(self._manifest.parameters, dtype=np.float32)
        for part in layout_of(self._manifest, variant).parameters:
            self._trained[part] = 1.0

    @property
    def name(self) -> str:
        return NAME

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """One training-mode pass. model: float32[total], not changed. Nothing is drawn: the seed does not matter."""
        x, y = _flat(batch.inputs[0]), batch.targets[0]
        layers = _layers(self._manifest, model)
        scores, hidden = _forward(layers, x)
        loss, delta = _cross_entropy(scores, y)
        gradients = [delta.T @ hidden, delta.sum(axis=0)]
        if len(layers) == 2:
            delta = (delta @ layers[1][0]) * (hidden > 0)
            gradients = [delta.T @ x, delta.sum(axis=0), *gradients]
        gradient = np.concatenate([g.ravel() for g in gradients]).astype(np.float32) * self._trained
        return StepResult(loss, gradient, np.empty(0, dtype=np.float32))

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """One evaluation-mode pass. model: float32[total], not changed."""
        scores, _ = _forward(_layers(self._manifest, model), _flat(batch.inputs[0]))
        loss, _ = _cross_entropy(scores, batch.targets[0])
        return Evaluation(loss, measure(self._manifest.metrics, scores, batch.targets[0]), len(batch))


def forward(manifest: Manifest, model: Vector, inputs: npt.NDArray[np.generic]) -> tuple[Matrix, Matrix]:
    """The scores of such a model, and what goes into its last layer."""
    return _forward(_layers(_checked(manifest), model), _flat(inputs))


def why_not() -> str | None:
    """This backend runs everywhere."""
    return None


def _checked(manifest: Manifest) -> Manifest:
    shapes = [t.shape for t in manifest.tensors]
    linear = len(shapes) in (2, 4) and all(
        len(w) == 2 and b == w[:1] for w, b in zip(shapes[::2], shapes[1::2], strict=True)
    )
    if not linear or manifest.parameters != manifest.total:
        raise BundleError("numpy: runs one or two linear layers (weight, bias) only; use another backend")
    return manifest


def _layers(manifest: Manifest, model: Vector) -> list[tuple[Matrix, Matrix]]:
    assert model.shape == (manifest.total,), f"{model.shape} is no model of this bundle"
    parts = [model[t.offset : t.offset + t.size].reshape(t.shape).astype(np.float64) for t in manifest.tensors]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _flat(inputs: npt.NDArray[np.generic]) -> Matrix:
    return inputs.reshape(len(inputs), -1).astype(np.float64)


def _forward(layers: list[tuple[Matrix, Matrix]], x: Matrix) -> tuple[Matrix, Matrix]:
    """The scores and what went into the last layer."""
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight.T + bias, 0.0)
    weight, bias = layers[-1]
    return x @ weight.T + bias, x


def _cross_entropy(scores: Matrix, targets: npt.NDArray[np.int64]) -> tuple[float, Matrix]:
    """The mean loss and its derivative by the scores."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(targets))
    delta = np.exp(log_p)
    delta[rows, targets] -= 1.0
    return float(-log_p[rows, targets].mean()), delta / len(targets)
