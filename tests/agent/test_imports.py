"""What an agent has in memory, where torch and onnx are installed: neither of them, ever; a runtime only at work."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import write_bundle, write_shard

ROOT = Path(__file__).parents[2]

# A third party that any of these stands for would cost an idle device megabytes, or seconds at its start.
NEVER = (
    "torch",
    "onnx",
    "onnxscript",
    "safetensors",
    "rich",
    "PIL",
    "amqtt",
    "cryptography",
    "coordinator",
    "export",
    "devices",
)


def modules_after(code: str, folder: Path) -> set[str]:
    report = "import sys, json; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_idle_daemon_has_no_runtime_and_nothing_of_the_server_in_memory(tmp_path: Path) -> None:
    loaded = modules_after("import edge_agent.daemon", tmp_path)
    assert not loaded & {*NEVER, "onnxruntime"}
    assert {"edge_agent", "protocol", "sparse", "paho", "cbor2", "numpy"} <= loaded


def test_training_offline_loads_neither_torch_nor_onnx(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    loaded = modules_after(
        "from edge_agent.cli import main\n"
        "assert main('train --bundle bundle --data shard.npz --steps 3 --json'.split()) == 0",
        tmp_path,
    )
    assert not loaded & set(NEVER)
