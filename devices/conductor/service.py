"""What becomes of an agent that has ended, as its service on a board would have it: a table without clock or process.

The figures are those of packaging/edge-agent/edge-agent.service.
"""

# RestartSec.
RESTART_S = 10.0
# TimeoutStopSec.
STOP_S = 60.0
# RestartPreventExitStatus: configuration, and not enrolled.
_FINAL = (3, 5)
_SIGNALS = 128


def starts_again(exit_code: int | None) -> bool:
    """Restart=always, but for what another start would only say again."""
    return exit_code not in _FINAL


def in_words(exit_code: int | None) -> str:
    """How it ended; a code above 128 is a signal's, as a shell says it."""
    if exit_code is None:
        return "ended, nobody saw how"
    return f"killed by signal {exit_code - _SIGNALS}" if exit_code > _SIGNALS else f"exit code {exit_code}"
