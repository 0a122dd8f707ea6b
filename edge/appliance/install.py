"""`physvlm install`: what the appliance needs in the system, as files. Prints them; writes them with --apply.

Nothing is started and no command is run: what is left to do is printed. Every file is written whole or not at all, what it
replaces is kept beside it, and a configuration that is there already stays as it is.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path

from edge.config import default_toml, read_toml
from engines.files import write_whole

UNIT = "/etc/systemd/system/physvlm.service"
RULES = "/etc/udev/rules.d/70-physvlm.rules"
CONFIG = "/etc/physvlm/physvlm.toml"
JOURNAL = "/etc/systemd/journald.conf.d/physvlm.conf"
STATE = "/var/lib/physvlm/installed.json"
CACHE = "/var/cache/physvlm"
BUNDLES = "/var/lib/physvlm/bundles"
CAMERA, DISPLAY = "/dev/physvlm-camera", "/dev/physvlm-display"
BACKUP = ".physvlm-backup"
"""No suffix that systemd, udev or journald read: a backup beside a file is inert."""


class InstallError(ValueError):
    """It cannot be installed like this; the message says what to change."""


@dataclass(frozen=True)
class DeviceId:
    """How udev knows a device: by USB ids (and serial number), by the USB port it is plugged into, or as an own UART."""

    vendor: str = ""
    product: str = ""
    serial: str = ""
    usb_port: str = ""
    uart: str = ""

    def parent(self) -> str:
        """udev's match on the USB device above a camera or a serial port."""
        if self.usb_port:
            return f'SUBSYSTEMS=="usb", KERNELS=="{self.usb_port}"'
        found = f'SUBSYSTEMS=="usb", ATTRS{{idVendor}}=="{self.vendor}", ATTRS{{idProduct}}=="{self.product}"'
        return found + (f', ATTRS{{serial}}=="{self.serial}"' if self.serial else "")

    def itself(self) -> str:
        """udev's match on the USB device."""
        match = self.parent().replace("SUBSYSTEMS", "SUBSYSTEM").replace("ATTRS", "ATTR").replace("KERNELS", "KERNEL")
        return match + ', ENV{DEVTYPE}=="usb_device"'


def device_id(text: str) -> DeviceId:
    """VENDOR:PRODUCT[:SERIAL] in hexadecimal as lsusb prints it, a USB port such as 1-2.3, or a UART such as ttyTHS1."""
    if found := re.fullmatch(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::([\w.-]{1,126}))?", text):
        return DeviceId(found[1].lower(), found[2].lower(), found[3] or "")
    if re.fullmatch(r"\d+-\d+(\.\d+)*", text):
        return DeviceId(usb_port=text)
    if re.fullmatch(r"tty(THS|S|AMA|TCU)\d+", text):
        return DeviceId(uart=text)
    raise InstallError(f"{text!r}: expected VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL as lsusb prints them (0403:6001), a USB "
                       "port (1-2.3; udevadm info names it), or for a display a UART (ttyTHS1)")


@dataclass(frozen=True)
class Settings:
    """What the command line says. config: keys for the TOML file, as section.key. data: a folder that the service may write
    beside its own. bundle: run the signed bundle's weights and settings instead of the shipped ones."""

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


def _filled(name: str, settings: Settings) -> str:
    configs = [f"{BUNDLES}/current/physvlm.toml"] * settings.bundle + [CONFIG]
    values = {"PROGRAM": settings.program, "USER": settings.user, "CONFIGS": " ".join(f"--config {c}" for c in configs),
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
                      f'ACTION=="add", {device.itself()}, TEST=="power/control", ATTR{{power/control}}="on"']
    return "\n".join(lines) + "\n"


def notes(settings: Settings) -> list[str]:
    """What is left to a person, in order; lines that start with # explain."""
    program = shlex.quote(settings.program)
    lines = ["sudo systemd-sysusers", "sudo systemctl restart systemd-journald",
             "sudo udevadm control --reload && sudo udevadm trigger", "sudo systemctl daemon-reload"]
    if settings.display is None or settings.display.uart:
        lines += ["# on a Jetson's own UART a login prompt may sit; also take console=tty... of it out of the boot arguments:",
                  "sudo systemctl disable --now nvgetty serial-getty@ttyTHS1"]
    if settings.bundle:
        lines += [f"sudo {program} bundle install FILE"]
    if settings.config.get("model.backend") == "tensorrt":
        lines += [f"sudo install -d -o {settings.user} -g {settings.user} -m 750 {CACHE}",
                  f"sudo -u {settings.user} {program} prepare --config {CONFIG}"]
    lines += ["sudo systemctl enable --now physvlm", f"sudo {program} doctor"]
    if not (settings.root / settings.program.lstrip("/")).exists():
        lines.insert(0, f"# {settings.program} is not there yet: install it, or name another with --program")
    if settings.program.startswith(("/home/", "/root/")):
        lines.insert(0, f"# {settings.program} is in a home folder, which the user {settings.user} may not enter: better /opt")
    there = settings.root / CONFIG.lstrip("/")
    if there.exists():
        lacking = {name: value for name, value in settings.keys().items() if read_toml(there).get(name) != value}
        lines[:0] = [f"# {CONFIG} is yours and stays; set there: {name} = {value!r}" for name, value in lacking.items()]
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


def _written(root: Path) -> dict[str, dict[str, str]]:
    """By path: the hash of what was written, and the name of the backup of what lay there before, if any."""
    text = _read(_at(root, STATE))
    try:
        return {} if text is None else dict(json.loads(text)["files"])
    except (ValueError, KeyError, TypeError) as e:
        raise InstallError(f"{_at(root, STATE)} is damaged ({e}); delete it: backups then stay where they are") from e


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
    written = _written(root)
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
                _keep(root, written)
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


def _keep(root: Path, written: Mapping[str, Mapping[str, str]]) -> None:
    state = _at(root, STATE)
    open_folder(state.parent)
    content = json.dumps({"files": written}, indent=1).encode() + b"\n"
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
    written = _written(root)
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
