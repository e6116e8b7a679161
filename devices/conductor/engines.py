"""Which engine a fleet gets: the one that was named, or the first of those here that can hold a board's limits."""

from devices.engines.engine import Engine, Finding
from devices.engines.known import ENGINES, HOLD_LIMITS
from devices.fleet.plan import EngineName
from protocol.errors import ConfigurationError


def named_engine(name: EngineName) -> Engine:
    """Raises ConfigurationError for one that there is not."""
    if name not in ENGINES:
        raise ConfigurationError(f"engine: {name!r} is unknown; use {', '.join(ENGINES)}")
    return ENGINES[name]()


def known_engines() -> tuple[Engine, ...]:
    return tuple(make() for make in ENGINES.values())


def chosen_engine(name: EngineName | None) -> Engine:
    """The named one, checked; without a name the first that passes. Raises ConfigurationError with what to install."""
    if name is not None:
        engine = named_engine(name)
        check(engine.check(), name)
        return engine
    refused: list[str] = []
    for each in HOLD_LIMITS:
        engine = named_engine(each)
        wrong = errors(engine.check())
        if not wrong:
            return engine
        refused += wrong
    raise ConfigurationError(
        f"engine: none here can hold limits ({'; '.join(refused)}); --engine processes runs devices without them"
    )


def check(findings: tuple[Finding, ...], engine: str) -> None:
    wrong = errors(findings)
    if wrong:
        raise ConfigurationError(f"engine {engine}: {'; '.join(wrong)}")


def errors(findings: tuple[Finding, ...]) -> list[str]:
    return [
        f"{found.name}: {found.detail}" + (f"; {found.remedy}" if found.remedy else "")
        for found in findings
        if found.state == "error"
    ]
