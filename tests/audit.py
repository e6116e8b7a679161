"""An auditor of a finished fleet that shares no code with the fold: what was accepted, refolded, is the model."""

import sqlite3
from pathlib import Path

import numpy as np

from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import open_bundle
from protocol.layout import layout_of
from sparse.codecs import decode_update, parse_codec


def settled_updates(device: Path) -> int:
    """How many receipts of acceptance a device's store counts; its outbox must be empty."""
    store = sqlite3.connect(device / "state" / "agent.sqlite")
    try:
        assert store.execute("SELECT count(*) FROM outbox").fetchone()[0] == 0
        found = store.execute("SELECT coalesce(sum(count), 0) FROM settled WHERE verdict = 'accepted'").fetchone()
        return int(found[0])
    finally:
        store.close()


def audit(folder: Path) -> int:
    """Refolds every round from the stored payloads and compares the models bit for bit; returns how many rounds.

    Every update must be in exactly one fold, and nothing may lie about that no row names.
    """
    coordinator = folder / "coordinator"
    store = sqlite3.connect(coordinator / "coordinator.sqlite")
    try:
        bundle = open_bundle(folder / "bundle")
        manifest, model = bundle.manifest, initial_model(bundle)
        layout = layout_of(manifest, "full").digest
        rounds = [row[0] for row in store.execute("SELECT round FROM rounds WHERE state = 'committed' ORDER BY round")]
        for number in rounds:
            total, weights = np.zeros(manifest.parameters), 0
            rows = store.execute(
                "SELECT digest, weight, codec FROM updates WHERE round = ? ORDER BY device", (number,)
            ).fetchall()
            for digest, weight, codec in rows:
                payload = (coordinator / "updates" / digest.hex()).read_bytes()
                delta, _ = decode_update(payload, manifest.parameters, 0, layout, parse_codec(codec))
                total += weight * delta.astype(np.float64)
                weights += weight
            model = (model.astype(np.float64) + total / weights).astype(np.float32)
            kept = store.execute("SELECT digest FROM models WHERE version = ?", (number,)).fetchone()[0]
            assert (coordinator / "models" / kept.hex()).read_bytes() == model.tobytes(), f"round {number}"
        named = {row[0].hex() for row in store.execute("SELECT digest FROM updates")}
        assert {path.name for path in (coordinator / "updates").iterdir()} == named
        for device in folder.glob("device-*"):
            accepted = store.execute("SELECT count(*) FROM updates WHERE device = ?", (device.name,)).fetchone()[0]
            assert settled_updates(device) == accepted
            assert not [p for p in (device / "state").rglob("*") if p.suffix in (".part", ".have", ".tmp")]
        return len(rounds)
    finally:
        store.close()
