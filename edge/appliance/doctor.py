"""`physvlm doctor`: one line a check: what is well, what is not, what was expected, and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from edge.appliance.install import CONFIG, UNIT
from edge.appliance.system import System
from edge.config import Config, ConfigError, load_config


class Level(Enum):
    OK = "OK"
    NONE = "-"
    WARN = "WARN"
    FAULT = "FAULT"


@dataclass(frozen=True)
class Finding:
    """text: what was found, and where that is not well, what was expected. mend: a command, or what to do."""

    level: Level
    check: str
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Case:
    """What every check is given. config_error: why the configuration cannot be used; `config` then holds the defaults."""

    system: System
    config: Config
    config_file: str
    config_error: str = ""

    @property
    def user(self) -> str:
        """The service's, by its unit; empty where none is installed."""
        return self.unit_setting("User")

    def unit_setting(self, name: str) -> str:
        """The last value of a setting of the installed unit, empty where there is none."""
        lines = (self.system.text(UNIT) or "").splitlines()
        return next((line.partition("=")[2] for line in reversed(lines) if line.startswith(f"{name}=")), "")

    def service_runs(self) -> bool:
        found = self.system.command("systemctl", "is-active", "physvlm")
        return found is not None and found.text == "active"


Check = Callable[[Case], tuple[Level, str, str]]


def case_of(system: System, files: Sequence[str] | None) -> Case:
    """files: configuration files as given; None takes the appliance's own where it is there."""
    if not files:
        files = [str(system.at(CONFIG))] if system.at(CONFIG).exists() else []
    name = files[-1] if files else "no file, all at its default"
    try:
        return Case(system, load_config(list(files)), name)
    except ConfigError as e:
        return Case(system, Config(), name, str(e))


def examine(case: Case) -> list[Finding]:
    """Every check in turn. One that needs the configuration is not made where that cannot be used."""
    from edge.appliance import check_machine, check_parts

    found = []
    for name, check, needs_config in (*check_machine.CHECKS, *check_parts.CHECKS):
        if needs_config and case.config_error:
            found.append(Finding(Level.NONE, name, "not looked at: the configuration cannot be used"))
            continue
        level, text, mend = check(case)
        found.append(Finding(level, name, text, mend))
    return found


def table(findings: Sequence[Finding]) -> str:
    lines = [f"{f.level.value:<5} {f.check:<12} {f.text}" + (f" -> {f.mend}" if f.mend else "") for f in findings]
    counts = {level: sum(f.level is level for f in findings) for level in (Level.FAULT, Level.WARN)}
    return "\n".join([*lines, f"{counts[Level.FAULT]} faults, {counts[Level.WARN]} warnings"])


def as_json(case: Case, findings: Sequence[Finding]) -> dict[str, Any]:
    return {"config": case.config_file, "faults": sum(f.level is Level.FAULT for f in findings),
            "checks": [asdict(f) | {"level": f.level.name} for f in findings]}


def ok(text: str) -> tuple[Level, str, str]:
    return Level.OK, text, ""


def none(text: str) -> tuple[Level, str, str]:
    """Not applicable here, or not to be seen."""
    return Level.NONE, text, ""


def warn(text: str, mend: str) -> tuple[Level, str, str]:
    return Level.WARN, text, mend


def fault(text: str, mend: str) -> tuple[Level, str, str]:
    return Level.FAULT, text, mend


def system_at(root: str) -> System:
    """The machine itself, or what lies below another root. Raises ConfigError."""
    if not Path(root).is_dir():
        raise ConfigError(f"--root {root}: no such folder")
    return System(Path(root))
