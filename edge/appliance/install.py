"""`physvlm install`: what the appliance needs in the system, as files. Prints them; writes them with --apply.

Nothing is started and no command is run: what is left to do is printed. Every file is written whole or not at all, what it
replaces is kept beside it, and a configuration that is there already stays as it is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path

from edge.appliance.devices import DeviceId, InstallError, plugged_in
from edge.config import default_toml, read_toml
from engines.files import write_whole

UNIT = "/etc/systemd/system/physvlm.service"
RULES = "/etc/udev/rules.d/70-physvlm.rules"
CONFIG = "/etc/physvlm/physvlm.toml"
JOURNAL = "/etc/systemd/journald.conf.d/physvlm.conf"
STATE = "/var/lib/physvlm/installed.json"
WANTED = "/etc/systemd/system/multi-user.target.wants/physvlm.service"
CACHE = "/var/cache/physvlm"
RECORDS = "/var/lib/physvlm/records"
BUNDLES = "/var/lib/physvlm/bundles"
CAMERA, DISPLAY = "/dev/physvlm-camera", "/dev/physvlm-display"
BACKUP = ".physvlm-backup"
"""No suffix that systemd, udev or journald read: a backup beside a file is inert."""

LEFT = ("sudo systemctl stop physvlm-recover physvlm", "sudo systemctl daemon-reload", "sudo udevadm control --reload",
        "sudo systemctl restart systemd-journald",
        "# left where they are: the user physvlm, /var/cache/physvlm, /var/lib/physvlm (records, bundles), /etc/physvlm/keys")
"""What is left to do once everything was taken away."""


@dataclass(frozen=True)
class Settings:
    """What the command line says, and where it is silent what it said last time (`remembered`). config: keys for the TOML file,
    as section.key. data: a folder that the service may write beside its own. bundle: run the signed bundle's weights and
    settings instead of the shipped ones."""

    program: str
    user: str = "physvlm"
    root: Path = Path("/")
    camera: DeviceId | None = None
    display: DeviceId | None = None
    bundle: bool = False
    data: str = ""
    config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", self.user) or self.user == "root":
            raise InstallError(f"--user {self.user}: expected a name in small letters, not root: it needs no rights")
        for flag, path in (("--program", self.program), ("--data", self.data)):
            if path and not re.fullmatch(r"/[\w./+-]+", path):
                raise InstallError(f"{flag} {path}: expected an absolute path without spaces or special characters")
        if not self.root.is_dir():
            raise InstallError(f"--root {self.root}: no such folder")
        if self.camera is not None and self.camera.uart:
            raise InstallError(f"--camera {self.camera.uart}: is a serial port; expected the ids or the USB port of a camera")
        if self.bundle and self.config.get("model.weights"):
            raise InstallError("--bundle and --weights: the bundle brings its weights; leave one of them out")
        for flag, device, other, key, name in (("--camera", self.camera, "--source", "camera.source", f"usb:{CAMERA}"),
                                               ("--display", self.display, "--port", "serial.port", DISPLAY)):
            given = str(self.config.get(key) or "")
            if device is not None and given and given.partition(",")[0] != name:
                raise InstallError(f"{flag} {device} becomes {name}, and {other} {given} is another; leave one of them out")
        self._check_writable()

    def _check_writable(self) -> None:
        """What the service is told to write lies where its unit lets it."""
        places = [CACHE, RECORDS] + [self.data] * bool(self.data)
        for key, flag in (("record.folder", "--record"), ("serial.wire_file", "--wire"), ("model.engine_cache", "--cache")):
            path = str(self.config.get(key) or "")
            if path and not any(Path(os.path.normpath(path)).is_relative_to(place) for place in places):
                raise InstallError(f"{flag} {path}: the service may write only below {', '.join(places)}; choose a place "
                                   "there, or give the folder to --data too")

    def keys(self) -> dict[str, object]:
        """What stands in the TOML file; all else stays commented out there."""
        keys: dict[str, object] = {"model.engine_cache": CACHE}
        if self.camera is not None:
            keys["camera.source"] = f"usb:{CAMERA}"
        if self.display is not None:
            keys["serial.port"] = DISPLAY
        if self.bundle:
            keys["model.weights"] = f"{BUNDLES}/current/weights"
        return keys | {name: value for name, value in self.config.items() if value is not None}


@dataclass(frozen=True)
class File:
    """One file of the system. keep: what is there already belongs to a person and stays."""

    path: str
    text: str
    keep: bool = False


def planned(settings: Settings) -> list[File]:
    """Every file, in the order in which they are written; the unit, which needs the others, last."""
    return [
        File("/etc/sysusers.d/physvlm.conf", _filled("sysusers.conf", settings)),
        File(JOURNAL, _filled("journald.conf", settings)),
        File(RULES, udev_rules(settings)),
        File(CONFIG, default_toml(settings.keys()), keep=True),
        File("/etc/systemd/system/physvlm-recover.service", _filled("physvlm-recover.service", settings)),
        File(UNIT, _filled("physvlm.service", settings)),
    ]


def configs(settings: Settings) -> list[str]:
    """The service's configuration files; a later one wins over an earlier one."""
    return [f"{BUNDLES}/current/physvlm.toml"] * settings.bundle + [CONFIG]


def _filled(name: str, settings: Settings) -> str:
    values = {"PROGRAM": settings.program, "USER": settings.user,
              "CONFIGS": " ".join(f"--config {c}" for c in configs(settings)),
              "WRITABLE": f"ReadWritePaths=-{settings.data}" if settings.data else "# No further ReadWritePaths: --data DIR"}
    text = (package_files("edge.appliance") / "files" / name).read_text(encoding="utf-8")
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)


def udev_rules(settings: Settings) -> str:
    """Stable names, no autosuspend (it corrupts serial bytes and drops frames), and ModemManager, which would send AT
    commands to the display, kept away."""
    lines = ["# Written by physvlm install."]
    for device, name, node, extra in (
            (settings.camera, CAMERA, 'SUBSYSTEM=="video4linux", ATTR{index}=="0"', 'GROUP="video", MODE="0660"'),
            (settings.display, DISPLAY, 'SUBSYSTEM=="tty"', 'GROUP="dialout", MODE="0660", ENV{ID_MM_PORT_IGNORE}="1"')):
        link = f'SYMLINK+="{Path(name).name}", {extra}'
        if device is None:
            what = "camera" if name == CAMERA else "display"
            lines += ["", f"# No {what} was named: give --{what} VENDOR:PRODUCT to get {name}."]
        elif device.uart:
            lines += ["", f'SUBSYSTEM=="tty", KERNEL=="{device.uart}", {link}']
        else:
            lines += ["", f"{node}, {device.parent()}, {link}",
                      f'ACTION=="add|bind|change", {device.itself()}, ENV{{ID_MM_DEVICE_IGNORE}}="1"',
                      f'ACTION=="add|change", {device.itself()}, TEST=="power/control", ATTR{{power/control}}="on"']
    return "\n".join(lines) + "\n"


def notes(settings: Settings) -> list[str]:
    """What is left to a person, in order; lines that start with # explain."""
    program = shlex.quote(settings.program)
    lines = ["sudo systemd-sysusers", "sudo systemctl restart systemd-journald",
             "sudo udevadm control --reload && sudo udevadm trigger", "sudo systemctl daemon-reload"]
    if settings.display is not None and settings.display.uart:
        uart = settings.display.uart
        lines += [f"# a login prompt may sit on {uart}; also take console={uart} out of the boot arguments, if it is there:",
                  *["sudo systemctl disable --now nvgetty"] * uart.startswith("ttyTHS"),
                  f"sudo systemctl mask --now serial-getty@{uart}"]
    if settings.bundle:
        lines += [f"sudo {program} bundle install FILE"]
    if settings.config.get("model.backend") == "tensorrt":
        lines += [f"sudo install -d -o {settings.user} -g {settings.user} -m 750 {CACHE}",
                  f"sudo -u {settings.user} {program} prepare {' '.join(f'--config {c}' for c in configs(settings))}"]
    lines += ["sudo systemctl enable physvlm && sudo systemctl restart physvlm", f"sudo {program} doctor"]
    if not os.path.exists(settings.root / settings.program.lstrip("/")):
        lines.insert(0, f"# {settings.program} is not there yet: install it, or name another with --program")
    lines[:0] = _fitting(settings)
    if settings.program.startswith(("/home/", "/root/")):
        lines.insert(0, f"# {settings.program} is in a home folder, which the user {settings.user} may not enter: better /opt")
    there = settings.root / CONFIG.lstrip("/")
    if os.path.exists(there):
        lacking = {name: value for name, value in settings.keys().items() if read_toml(there).get(name) != value}
        lines[:0] = [f"# {CONFIG} is yours and stays; set there: {name} = {value!r}" for name, value in lacking.items()]
    return lines


def _fitting(settings: Settings) -> list[str]:
    """What of the named devices is plugged in, where that is not exactly one."""
    lines = []
    for flag, device, subsystem in (("--camera", settings.camera, "video4linux"), ("--display", settings.display, "tty")):
        if device is None or not (settings.root / "sys/class").is_dir():
            continue
        found = plugged_in(settings.root, subsystem, device)
        if not found:
            lines.append(f"# {flag} {device}: nothing like it is plugged in now (lsusb lists what is)")
        elif len(found) > 1:
            lines.append(f"# {flag} {device} fits {len(found)} devices, and the name may lead to any of them: "
                         + "; ".join(f"{name} ({where})" for name, where in found.items())
                         + f"; name one by its serial number or USB port, such as {flag} 1-2.3")
    return lines


# --- what is there, and what becomes of it


def _at(root: Path, path: str) -> Path:
    found = root / path.lstrip("/")
    if found.is_symlink():
        raise InstallError(f"{found} is a symbolic link to {found.readlink()} (a masked unit?); remove it first")
    return found


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return None
    except OSError as e:
        raise InstallError(f"{path} cannot be read: {e.strerror}; run it with sudo") from e


def _state(root: Path) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """(by path: the hash of what was written, and the name of the backup of what lay there before, if any; what the command
    line said)."""
    text = _read(_at(root, STATE))
    try:
        record = {"files": {}} if text is None else json.loads(text)
        files, said = dict(record["files"]), dict(record.get("said", {}))
        if not all(isinstance(value, str) for value in (*said, *said.values())):
            raise TypeError("what was said is no text")
        return files, said
    except (ValueError, KeyError, TypeError) as e:
        raise InstallError(f"{_at(root, STATE)} is damaged ({e}); delete it: backups then stay where they are") from e


def remembered(root: Path) -> dict[str, str]:
    """What the command line of the last `apply` said: flag -> value. So a later one with one flag leaves the rest alone."""
    return _state(root)[1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _action(file: File, there: str | None) -> str:
    if there is None:
        return "new"
    if there == file.text:
        return "same"
    return "kept" if file.keep else "changed"


def preview(settings: Settings) -> str:
    """Every file as it would be: whole where it is new, as a difference where it changes."""
    out = []
    for file in planned(settings):
        there = _read(_at(settings.root, file.path))
        action = _action(file, there)
        out.append(f"=== {action}: {file.path}")
        if action == "new":
            out.append(file.text.rstrip("\n"))
        elif action == "changed" and there is not None:
            out += difflib.unified_diff(there.splitlines(), file.text.splitlines(), "there", "new", lineterm="")
        out.append("")
    return "\n".join(out)


def apply(settings: Settings) -> list[str]:
    """Writes what is new or changed; one line a file. Raises InstallError."""
    root, done = settings.root, []
    written, _ = _state(root)
    said = {"program": settings.program, "user": settings.user, "data": settings.data, "camera": str(settings.camera or ""),
            "display": str(settings.display or ""), "bundle": "yes" if settings.bundle else ""}
    for file in planned(settings):
        path = _at(root, file.path)
        there = _read(path)
        action = _action(file, there)
        record = {"sha256": _hash(file.text)} | {k: v for k, v in written.get(file.path, {}).items() if k == "backup"}
        try:
            if action == "changed" and there is not None:
                backup = _backup(path)
                write_whole(backup, there.encode("utf-8", "surrogateescape"))
                if _hash(there) != written.get(file.path, {}).get("sha256"):
                    record.setdefault("backup", backup.name)
            if action in ("new", "changed"):
                open_folder(path.parent)
                write_whole(path, file.text.encode())
            if action != "kept":
                written[file.path] = record
            _keep(root, written, said)
        except OSError as e:
            raise InstallError(f"{path} cannot be written: {e.strerror}; run it with sudo, or check the disk") from e
        done.append(f"{action:<8} {file.path}" + (f" (was: {record['backup']})" if "backup" in record else ""))
    return done


def open_folder(path: Path) -> None:
    """Made where it is not there, parents too; whatever the umask, the service's user may read it. Raises OSError."""
    if path.is_dir():
        return
    open_folder(path.parent)
    path.mkdir()
    path.chmod(0o755)


def _keep(root: Path, written: Mapping[str, Mapping[str, str]], said: Mapping[str, str]) -> None:
    state = _at(root, STATE)
    open_folder(state.parent)
    content = json.dumps({"files": written, "said": said}, indent=1).encode() + b"\n"
    if not state.exists() or state.read_bytes() != content:
        write_whole(state, content)


def _backup(path: Path) -> Path:
    for n in range(1000):
        found = path.with_name(f"{path.name}{BACKUP}{f'.{n}' if n else ''}")
        if not found.exists():
            return found
    raise InstallError(f"{path}: has a thousand backups beside it; clear them away")


def uninstall(root: Path, really: bool) -> list[str]:
    """Takes away what `apply` wrote and puts back what lay there before; what was edited since is kept as a backup."""
    done = []
    written, _ = _state(root)
    wanted = root / WANTED.lstrip("/")
    if UNIT in written and "backup" not in written[UNIT] and wanted.is_symlink():
        done.append(f"removed: {WANTED}")  # what `systemctl enable` made; it cannot be disabled once its unit is gone
        if really:
            wanted.unlink()
    for name, record in reversed(list(written.items())):
        path = _at(root, name)
        there = _read(path)
        before = path.with_name(record["backup"]) if "backup" in record else None
        edited = there is not None and _hash(there) != record["sha256"]
        aside = _backup(path) if edited else None
        line = f"{'gone already' if there is None else f'edited, kept as {aside.name}' if aside else 'removed'}: {name}"
        done.append(line + (f", {before.name} put back" if before is not None and before.exists() else ""))
        if not really:
            continue
        try:
            if aside is not None:
                path.rename(aside)
            else:
                path.unlink(missing_ok=True)
            if before is not None and before.exists():
                before.rename(path)
        except OSError as e:
            raise InstallError(f"{path} cannot be removed: {e.strerror}; run it with sudo") from e
    if really:
        _at(root, STATE).unlink(missing_ok=True)
    return done
