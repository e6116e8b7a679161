"""Limits of agent.toml as limits of a systemd unit: a drop-in that the package's generator writes.

Run by systemd at boot and at every daemon-reload, on the smallest of boards too: it reads TOML and imports nothing
large. What is wrong in the file the agent itself says, when it starts.
"""

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UNIT = "edge-agent.service"
# What the agent takes besides training: at rest under 60 MiB, and for a moment as much again where it renews its
# certificate in a process of its own.
BESIDES_TRAINING_MIB = 128
# A line of /etc/default/edge-agent, as systemd takes it; what is no whole number the agent itself refuses.
_VARIABLE = re.compile(r"""(?m)^[ \t]*EDGE_AGENT_LIMITS_(MEMORY_MIB|CPU_PERCENT)=["']?([0-9]{1,9})["']?[ \t]*$""")


def drop_in(limits: Mapping[str, Any]) -> str | None:
    """The text of a drop-in for the table [limits], or None where it limits nothing.

    memory_mib: for training; the unit may take so much and what the agent needs besides. cpu_percent: of one core.
    """
    lines = []
    memory_mib, cpu_percent = limits.get("memory_mib"), limits.get("cpu_percent")
    if isinstance(memory_mib, int) and memory_mib > 0:
        lines.append(f"MemoryMax={memory_mib + BESIDES_TRAINING_MIB}M")
    if isinstance(cpu_percent, int) and cpu_percent > 0:
        lines.append(f"CPUQuota={cpu_percent}%")
    if not lines:
        return None
    return "\n".join(["# Of agent.toml's [limits]; systemctl daemon-reload writes it anew.", "[Service]", *lines, ""])


def read_limits(config: Path, variables: Path | None = None) -> Mapping[str, Any]:
    """The table [limits] of agent.toml, over it those of agent.d/*.toml in order of their names, and over them the
    file of variables that the unit reads. Each may be absent."""
    limits: dict[str, Any] = {}
    main_file = [config] if config.exists() else []
    for path in (*main_file, *sorted(config.with_name("agent.d").glob("*.toml"))):
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("limits", {})
        limits.update(table if isinstance(table, dict) else {})
    if variables is not None and variables.exists():
        for name, value in _VARIABLE.findall(variables.read_text(encoding="utf-8")):
            limits[name.lower()] = int(value)
    return limits


def main(arguments: list[str]) -> int:
    """Writes the drop-in of the configuration arguments[0], and of variables in the file arguments[2], into the folder
    of units arguments[1]."""
    config, units, *variables = map(Path, arguments)
    try:
        text = drop_in(read_limits(config, *variables))
        if text is not None:
            folder = units / f"{UNIT}.d"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "50-limits.conf").write_text(text)
    except (OSError, ValueError) as error:
        print(f"edge-agent: no limits are set, for {config} cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
