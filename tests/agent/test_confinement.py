"""What ends a training process by the kernel's hand, and what the agent makes of it."""

import signal
import subprocess
import sys

import pytest

from edge_agent.child_process import PASSED_ON, ended, environment


def test_a_process_that_uses_more_processor_time_than_it_was_given_is_ended_by_the_kernel() -> None:
    code = "from edge_agent.confinement import allow_cpu\nallow_cpu(0.1)\nwhile True: pass"
    environment_of_child = environment({"PATH": "/usr/bin"})
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment_of_child, timeout=60)
    assert done.returncode == -signal.SIGXCPU
    assert ended(done.returncode).reason == "cpu"


def test_a_process_given_more_time_again_and_again_goes_on() -> None:
    code = (
        "import time; from edge_agent.confinement import allow_cpu\n"
        "for _ in range(8):\n"
        "    allow_cpu(1.0)\n"
        "    until = time.process_time() + 0.25\n"
        "    while time.process_time() < until: pass\n"
        "print('through')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment({}), timeout=60, capture_output=True, text=True
    )
    assert done.stdout.strip() == "through", done.stderr


@pytest.mark.parametrize(
    ("code", "killed", "reason", "says"),
    [
        (-9, "", "killed", "signal 9 (SIGKILL), as the kernel does where memory is short"),
        (-9, "it hung", "hung", "it hung"),
        (-8, "", "crashed", "signal 8 (SIGFPE)"),
        (-25, "", "crashed", "signal 25 (SIGXFSZ)"),
        (1, "", "crashed", "it ended with code 1; its log says why"),
        (0, "", "crashed", "it ended with code 0"),
    ],
)
def test_an_end_is_told_by_a_word_and_a_sentence(code: int, killed: str, reason: str, says: str) -> None:
    end = ended(code, killed)
    assert end.reason == reason
    assert says in end.cause


def test_of_the_environment_only_paths_and_the_locale_are_passed_on() -> None:
    given = {"PATH": "/bin", "PYTHONPATH": "/mine", "NOTIFY_SOCKET": "/run/systemd/notify", "AWS_SECRET": "x"}
    seen = environment(given)
    assert (seen["PATH"], "AWS_SECRET" in seen, "NOTIFY_SOCKET" in seen) == ("/bin", False, False)
    assert seen["PYTHONPATH"].endswith(":/mine")
    assert seen["ORT_DISABLE_TELEMETRY"] == "1"
    assert not any("TOKEN" in name or "PASSWORD" in name for name in PASSED_ON)
