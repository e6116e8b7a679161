"""What the parts of an emulated fleet are configured with: the coordinator's settings, and each device's agent.toml.

Times in FLEET.toml are of the emulated clock; those written here are the parts' own, which run on this machine's.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from devices.engines.engine import Inside
from devices.fleet.clock import Clock
from devices.fleet.plan import Device, FleetPlan
from devices.presets import CODEC, PRESETS, WHOLE
from devices.toml_text import toml_text
from devices.workspace import BUNDLE, training_tables

SHARD = "shard.npz"
# A round waits so long for the slowest; what comes later is folded into a later one.
_DEADLINE_S = 120.0
_RETRY_S = 30.0
_KEEPALIVE_S = 30.0

Tables = dict[str, dict[str, object]]


def coordinator_toml(plan: FleetPlan, clock: Clock, broker_port: int) -> str:
    """The settings of the fleet's own coordinator: the data set's preset, and the plan's tables over it.

    A round is content with half of its devices at its deadline: the others are off, cut or slow, and late ones count.
    """
    n = len(plan.devices)
    tables: Tables = {
        "": {"fleet": plan.name, "state": "coordinator", "bundle": BUNDLE, "seed": plan.seed},
        "broker": {"url": "auto", "port": broker_port},
        "trust": {"folder": "trust", "port": 0},
        "rounds": {"devices": n, "over_select": 1.0, "minimum": max(1, n // 2), "deadline_s": _DEADLINE_S},
        **training_tables(PRESETS[plan.data], CODEC),
        "downlink": {"codec": WHOLE},
        "evaluation": {"data": "test.npz"},
    }
    for name, table in plan.settings.items():
        _lay_over(tables, name, table)
    devices = tables["rounds"]["devices"]
    if isinstance(devices, int):
        # Fewer devices a round than there are, and so many are never there.
        asked = plan.settings.get("rounds", {})
        tables["rounds"]["minimum"] = asked.get("minimum", max(1, devices // 2))
    tables["rounds"]["count"] = plan.rounds
    return toml_text(f"the coordinator of fleet {plan.name}", clock.settings(tables))


def agent_toml(plan: FleetPlan, device: Device, inside: Inside, url: str, clock: Clock) -> str:
    """A device's configuration, with its folders where the device finds them."""
    tables: Mapping[str, Mapping[str, object]] = {
        "": {"device": device.name, "fleet": plan.name, "state": str(inside.state)},
        "broker": {
            "url": url,
            "longest_retry_s": max(1.0, clock.real(_RETRY_S)),
            "keepalive_s": min(65_535, max(5, math.ceil(clock.real(_KEEPALIVE_S)))),
        },
        "data": {"path": str(Path(inside.data) / SHARD)},
        "training": {"backend": "auto", "threads": 1},
        "limits": {"disk_mib": max(16, min(512, device.board.disk_mib * 3 // 4))},
    }
    return toml_text(f"{device.name}, {device.board.title}", tables)


def _lay_over(tables: Tables, name: str, table: Mapping[str, object]) -> None:
    """[coordinator.training.optimizer] of the plan is [training.optimizer] here; more specific lengths win."""
    held = tables.setdefault(name, {})
    lengths = {"local_steps", "local_epochs"}
    if name == "training" and lengths & table.keys():
        for key in lengths:
            held.pop(key, None)
    for key, value in table.items():
        if isinstance(value, Mapping) and f"{name}.{key}" in tables:
            _lay_over(tables, f"{name}.{key}", value)
        else:
            held[key] = value
