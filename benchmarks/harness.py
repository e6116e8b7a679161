"""What every benchmark shares: its options, where and with what it ran, and rows as JSON or as a table."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

PACKAGES = ("sparsefleet", "numpy", "onnxruntime-training-cpu", "onnxruntime", "torch", "onnx", "paho-mqtt", "cbor2")

# For child processes that are compared: no library may use a second core.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Row = Mapping[str, Any]


def options(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="a small version of it, to see that it runs")
    parser.add_argument("--seed", type=int, default=1)
    return parser


def progress_console() -> Console:
    """Progress goes to stderr, so that stdout holds the result alone."""
    return Console(stderr=True)


def publish(
    rows: Sequence[Row],
    *,
    seed: int,
    as_json: bool,
    title: str,
    notes: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> None:
    """Prints the rows with machine, versions and date. `versions`: of what ran in other environments than this one."""
    facts: dict[str, Any] = {
        "machine": _machine(),
        "versions": {**_versions(), **(versions or {})},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seed": seed,
        "notes": list(notes),
        "rows": [dict(row) for row in rows],
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    for note in notes:
        console.print(note)
    if versions:
        console.print(", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    console.print(f"{facts['machine']['cpu']}, {facts['machine']['cores']} cores, {facts['date']}, seed {seed}")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _machine() -> dict[str, Any]:
    processor = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in processor if line.startswith("model name")]
    cpu = models[0] if models else platform.machine()
    memory_mib = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_mib": memory_mib, "system": platform.platform()}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
