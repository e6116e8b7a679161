"""Stands in for exporter, coordinator and agents, as processes: `python -m tests.devices.fake_parts PART ...`.

The environment says what goes wrong: FAKE_TROUBLE, one of the words below; FAKE_PIDS, a folder where every process
leaves its id as a file name, so that a test can see it go.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from devices.demo import Parts
from tests.tiny import write_bundle

_ME = (sys.executable, "-m", "tests.devices.fake_parts")
FAKE = Parts(export=(*_ME, "export"), coordinator=(*_ME, "coordinator"), agent=(*_ME, "agent"))
ROUNDS = 3


def main() -> int:
    part, arguments, trouble = sys.argv[1], sys.argv[2:], os.environ.get("FAKE_TROUBLE", "")
    if part == "export":
        print("exporting", flush=True)
        if trouble == "export-fails":
            print("fleet-export: layer stem: HardSwish cannot be trained; use ReLU", file=sys.stderr)
            return 3
        write_bundle(Path(arguments[arguments.index("--out") + 1]))
        return 0
    if part == "agent":
        return _agent(trouble, arguments)
    if arguments[0] == "run":
        return _coordinate(trouble)
    return _answer(trouble, arguments)


def _agent(trouble: str, arguments: list[str]) -> int:
    if trouble == "agent-dies" and "device-02" in arguments[-1]:
        print("device-02: the disk is on fire", file=sys.stderr)
        return 1
    if trouble == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _register("agent")
    return _forever()


def _coordinate(trouble: str) -> int:
    # Like a private broker: a child of a child, that must go too.
    broker = subprocess.Popen(["sleep", "1000"])
    _register("broker", broker.pid)
    _register("coordinator")
    _tell(event="listening", broker="fake 1.0 (private)", url="mqtt://127.0.0.1:1", run="r1")
    if trouble == "agent-dies":
        _forever()
    while len(list(_pids().glob("agent-*"))) < 5:
        time.sleep(0.01)
    _tell(event="device", device="device-01", examples=200, backend="numpy")
    _tell(event="news-from-the-future", value=1)
    for number in range(1, ROUNDS + 1):
        _tell(event="round-opened", round=number, devices=5)
        if trouble == "coordinator-dies" and number == 2:
            print("fleet-coordinator: the store is gone", file=sys.stderr)
            os._exit(1)
        if trouble in ("endless", "deaf") and number == 2:
            _forever()
        facts = {"accuracy": 0.8 + number / 20, "loss": 0.5, "seconds": 0.01, "overhead_s": 0.001}
        _tell(event="round-committed", round=number, version=number, devices=5, bytes_up=100, bytes_down=200, **facts)
    _tell(event="finished", reason="target-accuracy", version=ROUNDS)
    broker.terminate()
    broker.wait()
    return 0


def _answer(trouble: str, arguments: list[str]) -> int:
    if arguments[0] == "devices":
        print(json.dumps({"devices": [{"device": f"device-{i:02d}", "accepted": ROUNDS} for i in range(1, 6)]}))
    elif arguments[0] == "export-model":
        Path(arguments[arguments.index("--out") + 1]).write_bytes(b"model")
    elif arguments[0] == "evaluate-model":
        print(json.dumps({"examples": 359, "metrics": {"accuracy": 0.5 if trouble == "poor" else 0.971}}))
    return 0


def _tell(**event: object) -> None:
    print(json.dumps(event), flush=True)


def _register(name: str, pid: int | None = None) -> None:
    (_pids() / f"{name}-{pid or os.getpid()}").touch()


def _pids() -> Path:
    return Path(os.environ["FAKE_PIDS"])


def _forever() -> int:
    while True:
        time.sleep(60)


if __name__ == "__main__":
    sys.exit(main())
