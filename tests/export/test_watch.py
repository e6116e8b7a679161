"""fleet-export leaves nothing behind and says a sentence, however it is ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import Zoo
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SOURCE = """
import os, signal, sys
from pathlib import Path
import torch
from torch import nn
from export import TrainingSpec

class Ended(nn.Linear):
    def forward(self, x):
        {what}
        return super().forward(x)

def model():
    return TrainingSpec(Ended(3, 2), torch.randn(4, 3), torch.randn(4, 2), "mse")
"""


def begin(folder: Path, what: str) -> subprocess.Popen[str]:
    (folder / "model.py").write_text(SOURCE.format(what=what))
    command = [sys.executable, "-m", "export", "model.py:model", "--out", "bundles/b", "--json"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """Whoever is started in the background, as these tests may be, ignores interrupts, and so do all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_crash_in_native_code_ends_in_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    out, said = begin(tmp_path, "os.kill(os.getpid(), signal.SIGFPE)").communicate(timeout=60)
    assert out == ""
    assert "ended by SIGFPE" in said
    assert "nothing was written" in said
    assert "Traceback" not in said
    assert list((tmp_path / "bundles").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_a_sentence_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = begin(tmp_path, 'Path("here").touch(); signal.pause()')
    until(lambda: (tmp_path / "here").exists() or process.poll() is not None)
    assert len(list((tmp_path / "bundles").iterdir())) == 1
    if number == signal.SIGINT:
        # As a terminal does: to all of its processes.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted, nothing was written" in said
    assert "Traceback" not in said
    assert list((tmp_path / "bundles").iterdir()) == []


def test_otherwise_the_output_and_the_exit_code_are_the_commands_own(zoo: Zoo) -> None:
    for bundle, code in ((zoo("mlp_regression").root, 0), (ROOT, 3)):
        done = subprocess.run(
            [sys.executable, "-m", "export", "show", str(bundle), "--json"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0)
        if done.stdout:
            assert json.loads(done.stdout)["line"] == "mlp-regression"
