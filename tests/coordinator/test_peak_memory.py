"""What a fold takes of memory: one payload at a time, however many devices there are."""

import gc
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.folding import Caution
from coordinator.planner import make_task
from coordinator.rows import AcceptedUpdate
from coordinator.server_step import initial_state
from coordinator.settings import ServerSettings
from coordinator.structure import Structure
from coordinator.trust_settings import FoldSettings
from coordinator.version_step import version_step
from coordinator.views import Views
from protocol.layout import layout_of
from protocol.messages import BlobRef
from sparse.codecs import encode_update, parse_codec
from tests.coordinator.simulation import make_settings, write_bundle

PARAMETERS = 300_000


def peak_bytes(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_fold_of_many_devices_takes_no_more_memory_than_one_of_few(tmp_path: Path) -> None:
    bundle, settings = write_bundle(tmp_path / "bundle", PARAMETERS), make_settings(tmp_path)
    manifest, layout = bundle.manifest, layout_of(bundle.manifest, "full")
    dense = np.ones(manifest.total, np.float32)
    views = Views(manifest, dense, BlobRef(bytes(32), dense.nbytes), Structure(), lambda data: BlobRef(bytes(32), 0))
    noise = np.random.default_rng(0).normal(size=layout.n_parameters).astype(np.float32)
    nothing, buffers = np.zeros_like(noise), np.zeros(layout.n_buffers, np.float32)
    payload = encode_update(noise, buffers, nothing, parse_codec("all/float32"), layout.digest)[0]
    (tmp_path / "payload").write_bytes(payload)
    task = make_task(settings, "run", 1, "dev", BlobRef(bytes(32), 1), 0, views.of("full"), None, "all/float32")

    def fold_of(devices: int) -> None:
        updates = [
            AcceptedUpdate(1, f"dev-{i:03}", hashlib.sha256(payload).digest(), 10, 1.0, task.codec, "full", task)
            for i in range(devices)
        ]
        version_step(
            manifest,
            ServerSettings(),
            0,
            dense,
            Structure(),
            initial_state(),
            updates,
            lambda _: (tmp_path / "payload").read_bytes(),
            lambda _, variant: views.of(variant),
            lambda _: 1.0,
            Caution(FoldSettings()),
        )

    few, many = peak_bytes(lambda: fold_of(2)), peak_bytes(lambda: fold_of(24))
    assert many < few + dense.nbytes / 4
