"""docs/models.md: every model exported and trained, or refused. `python -m tests.export.models_page` writes it anew."""

import tempfile
from pathlib import Path

import torch

from edge_agent.runtimes import optimizers
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.parameters import initial_model
from edge_agent.runtimes.portable import PortableEngine
from export.bundle import write_bundle
from export.parity import batch_of
from protocol.bundle import open_bundle
from protocol.errors import BundleError
from tests.export.models import MODELS, Model
from tests.export.nets import N

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
STEPS = 20


def outcome(model: Model) -> str:
    """What fleet-export says: parity and the loss over some steps, or the refusal. Raises if it is not as told."""
    torch.manual_seed(0)
    spec = model.make()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "b"
        try:
            manifest = write_bundle(spec, root, line="model")
        except BundleError as error:
            if model.instead is None:
                raise
            return f"refused | none | {error}. Then: {model.instead}"
        assert model.instead is None, f"{model.name} is not refused"
        bundle = open_bundle(root)
        engine, flat_model, batch = PortableEngine(bundle), initial_model(bundle), batch_of(spec)
        settings = optimizers.OptimizerSettings(name="adamw")
        n, m = manifest.parameters, manifest.buffers
        state = optimizers.init(settings, n)
        before = engine.evaluate(flat_model, batch).loss
        for seed in range(STEPS):
            result = engine.step(flat_model, batch, seed)
            state, flat_model[:n] = optimizers.step(settings, state, flat_model[:n], result.gradient, 0.01)
            flat_model[n : n + m] = result.buffers
        assert result.loss < before, f"{model.name} does not learn: {before} to {result.loss}"
    parity = manifest.parity[engine.name]
    details = f"gradient within {parity.gradient:.0e}; loss {before:.2f} to {result.loss:.2f}"
    if ORT_TRAINING in manifest.left_out:
        details += f"; without {ORT_TRAINING}: " + manifest.left_out[ORT_TRAINING].replace("|", "/")
    return f"trains | {', '.join(manifest.variants[0].backends)} | {details}"


def rows(text: str) -> list[list[str]]:
    """The cells of the table in the document."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


HEAD = f"""# What trains, and what does not

Small models of the kinds that people try first, each exported with parity against torch and trained for {STEPS} steps
of AdamW on {N} random examples by the portable backend, or refused with what fleet-export says. By the remedy given, a
refused one becomes the model named after "Then". Backends are those that the bundle has; of a model that
onnxruntime-training cannot train, the details tell why it has the portable one alone. `tests/export/models.py` and
`nets.py` have every model's code. Written by `python -m tests.export.models_page` with torch
{torch.__version__.split("+")[0]}.

| Model | Outcome | Backends | Details |
|---|---|---|---|
"""


def main() -> None:
    lines = []
    for model in MODELS:
        lines.append(f"| {model.name} | {outcome(model)} |")
        print(lines[-1], flush=True)
    DOCUMENT.write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
