"""The convolutional networks of the benchmarks' zoo come in width tiers that compute what torch computes."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import ZOO, spec_of
from edge_agent.runtimes import reference
from edge_agent.runtimes.parameters import seen_by
from edge_agent.runtimes.portable import PortableEngine
from export import TrainingSpec
from export.bundle import write_bundle
from export.layout import flat_model
from export.parity import DRAWS, beside, check, whole_record
from protocol.bundle import open_bundle
from protocol.errors import BundleError
from protocol.width import places
from sparse.channels import channel_structure, cut
from tests.export.test_tiers import any_channels

EXAMPLES = 4
# The ResNet-20s are the ResNet-8s with more of the same blocks, and take minutes to trace three times.
NAMES = [name for name, model in ZOO.items() if model.cnn and not name.startswith("resnet20")]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_its_tiers_take_torchs_step_on_any_choice_of_channels(name: str, tmp_path: Path) -> None:
    spec = spec_of(name, EXAMPLES)
    write_bundle(spec, tmp_path / name, line="nets", backends=("portable",), tiers=(1.0, 0.5, 0.25))
    bundle = open_bundle(tmp_path / name)
    structure = channel_structure(spec.module, spec.input_tensors)[1]
    loads = [v.load.multiply_adds for v in bundle.manifest.variants if v.load is not None]
    assert len(loads) == 3
    assert loads == sorted(loads, reverse=True)
    for variant in ("tier-050", "tier-025"):
        channels = any_channels(bundle, variant, seed=1)
        narrow = TrainingSpec(cut(spec.module, structure, channels), spec.inputs, spec.targets, spec.loss, spec.metrics)
        seen = seen_by(bundle, variant)
        model = flat_model(spec.module, bundle.manifest.tensors)[places(bundle.manifest, channels)]
        np.testing.assert_array_equal(model, flat_model(narrow.module, seen.manifest.tensors))
        engine = PortableEngine(seen, variant)
        # As in parity: on the first draw of noise whose kinks rounding does not cross.
        for draw in range(DRAWS):
            record = whole_record(beside(narrow, draw), seen.manifest)
            try:
                check(reference.one_step(engine, seen.manifest, model, record, variant))
            except BundleError:
                continue
            break
        else:
            pytest.fail(f"{name}, {variant}: differs from torch on every draw")
