"""`physvlm doctor`: one line a check: what is well, what is not, what was expected, and the command that mends it."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
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
    """What every check is given. config_error: why the configuration cannot be used; `config` then holds the defaults.
    config_files: as the machine itself names them, in the order in which they are read."""

    system: System
    config: Config
    config_file: str
    config_error: str = ""
    config_files: tuple[str, ...] = ()

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
    """files: configuration files as given; None takes those that the service runs with, else the appliance's own where it is
    there."""
    names = tuple(files or ())
    if not names:
        names = tuple(re.findall(r" --config (\S+)", Case(system, Config(), "").unit_setting("ExecStart")))
        if not names and os.path.exists(system.at(CONFIG)):
            names = (CONFIG,)
        files = [str(system.at(name)) for name in names]
    said = " and ".join(files or ()) or "no file, all at its default"
    try:
        return Case(system, load_config(list(files or ())), said, config_files=names)
    except ConfigError as e:
        return Case(system, Config(), said, str(e), names)


def examine(case: Case) -> list[Finding]:
    """Every check in turn. One that needs the configuration is not made where that cannot be used, and one that breaks is a
    fault and spares the others."""
    from edge.appliance import check_machine, check_parts

    found = []
    for name, check, needs_config in (*check_machine.CHECKS, *check_parts.CHECKS):
        if needs_config and case.config_error:
            found.append(Finding(Level.NONE, name, "not looked at: the configuration cannot be used"))
            continue
        try:
            level, text, mend = check(case)
        except PermissionError as e:
            level, text, mend = fault(f"{e.filename} may not be read by this user", "sudo physvlm doctor")
        except Exception as e:
            level, text, mend = fault(f"this check broke: {type(e).__name__}: {e}", "send this line to the program's makers")
        found.append(Finding(level, name, text.replace("\n", " "), mend))
    program = case.unit_setting("ExecStart").partition(" ")[0]
    if not os.path.isfile(case.system.at(program)):
        program = ""
    return [replace(f, mend=runnable(f.mend, program)) for f in found]


def runnable(mend: str, program: str = "") -> str:
    """The command as it runs from any shell: sudo's path leads to no environment's `physvlm`, and `pip` is many.

    program: what the service starts, if one is installed; else this one."""
    here = Path(sys.executable)
    root_s = os.stat(sys.prefix).st_uid == 0 and os.geteuid() != 0
    names = {"physvlm": shlex.quote(program or str(here.with_name("physvlm"))),
             "pip": "sudo " * root_s + f"{shlex.quote(str(here))} -m pip"}
    return re.sub(r"(?<![\w/.-])(physvlm|pip)(?= (install|uninstall|doctor|bundle|prepare|dump)\b)",
                  lambda found: names[found[1]], mend)


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
