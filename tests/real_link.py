"""A bad link as a process of its own, for tests: `fleet-emulate proxy`, told what to do by its standard input."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.real_fleet import ROOT
from tests.waiting import until


@dataclass
class RealLink:
    """Stands before a port of this machine. What it says is in the file `log`."""

    process: "subprocess.Popen[str]"
    log: Path
    port: int

    @classmethod
    def start(cls, to: int, log: Path, *flags: str) -> "RealLink":
        command = (sys.executable, "-m", "devices", "proxy", "--to", f"127.0.0.1:{to}", "--json", "--every-s", "0.02")
        with log.open("w") as sink:
            process = subprocess.Popen(
                (*command, *flags), stdin=subprocess.PIPE, stdout=sink, stderr=sink, text=True, cwd=ROOT
            )
        until(lambda: "listening" in log.read_text(), f"the proxy listens: {log}")
        return cls(process, log, json.loads(log.read_text().splitlines()[0])["port"])

    def say(self, words: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def counts(self) -> dict[str, Any]:
        """The newest numbers."""
        lines = [line for line in self.log.read_text().split("\n")[:-1] if '"counts"' in line]
        found: dict[str, Any] = (
            json.loads(lines[-1]) if lines else {"bytes_up": 0, "bytes_down": 0, "cut": 0, "reset": 0}
        )
        return found

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0
