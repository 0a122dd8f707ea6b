"""What the doctor may look at of a machine: files below a root, commands, devices, a clock. Tests hand it another one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_S = 5.0
"""A command that takes longer hangs, as systemctl does on a machine without systemd."""


@dataclass(frozen=True)
class Ran:
    """What a command said."""

    code: int
    text: str


def run_command(words: Sequence[str]) -> Ran | None:
    """None where there is no such command, or it hangs."""
    try:
        done = subprocess.run(list(words), capture_output=True, text=True, timeout=COMMAND_S, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Ran(done.returncode, (done.stdout + done.stderr).strip())


def installed_version(package: str) -> str | None:
    """What pip or apt's Python packages say; None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def open_camera(source: str) -> Any:
    """One picture's worth of the configured camera; raises CameraError."""
    from edge.camera import open_camera as opened

    return opened(source, False)


def open_port(path: str, baud: int, stop_bits: int) -> Any:
    """The display's port; raises LinkError."""
    from firmware_bridge.port import open_serial

    return open_serial(path, baud, stop_bits)


@dataclass(frozen=True)
class Disk:
    free_bytes: int
    read_only: bool


def disk_of(path: Path) -> Disk:
    """Of the nearest folder that exists. Raises OSError."""
    while not path.exists():
        path = path.parent
    found = os.statvfs(path)
    return Disk(found.f_bavail * found.f_frsize, bool(found.f_flag & os.ST_RDONLY))


@dataclass(frozen=True)
class System:
    """root: of the files; on another than / (an image, mounted) no command is run and no device opened."""

    root: Path = Path("/")
    run: Callable[[Sequence[str]], Ran | None] = run_command
    version: Callable[[str], str | None] = installed_version
    camera: Callable[[str], Any] = open_camera
    port: Callable[[str, int, int], Any] = open_port
    disk: Callable[[Path], Disk] = disk_of
    clock_ns: Callable[[], int] = time.monotonic_ns
    python: tuple[int, int] = sys.version_info[:2]

    @property
    def live(self) -> bool:
        """Whether it is the machine that we run on."""
        return self.root == Path("/")

    def at(self, path: str | Path) -> Path:
        return self.root / str(path).lstrip("/")

    def text(self, path: str | Path) -> str | None:
        """A file's content; None where it cannot be read."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def apt_version(self, package: str) -> str | None:
        """What dpkg says of an installed package, without Debian's own additions; None where it is not there."""
        for paragraph in (self.text("/var/lib/dpkg/status") or "").split("\n\n"):
            fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if re.match(r"[A-Z][\w-]*: ", line))
            if fields.get("Package") == package and fields.get("Status", "").endswith(" installed"):
                return fields.get("Version", "").partition(":")[2].partition("-")[0] or fields["Version"].partition("-")[0]
        return None

    def command(self, *words: str) -> Ran | None:
        return self.run(words) if self.live else None

    def holders(self, path: str) -> list[tuple[int, str]]:
        """(pid, name) of other processes that have this device open, as far as this user may see."""
        found = []
        try:
            device = os.path.realpath(self.at(path))
            entries = sorted(self.at("/proc").glob("[0-9]*/fd/*"))
        except OSError:
            return []
        for entry in entries:
            try:
                target = os.readlink(entry)
            except OSError:  # gone meanwhile, or not ours to see
                continue
            pid = int(entry.parent.parent.name)
            if target in (device, path) and pid != os.getpid():
                found.append((pid, (self.text(f"/proc/{pid}/comm") or "?").strip()))
        return sorted(set(found))

    def groups_of(self, user: str) -> tuple[int, set[int]] | None:
        """(uid, gids) by /etc/passwd and /etc/group; None where there is no such user."""
        for line in (self.text("/etc/passwd") or "").splitlines():
            name, *rest = line.split(":")
            if name == user and len(rest) >= 3:
                gids = {int(rest[2])}
                for group in (self.text("/etc/group") or "").splitlines():
                    parts = group.split(":")
                    if len(parts) == 4 and user in parts[3].split(","):
                        gids.add(int(parts[2]))
                return int(rest[1]), gids
        return None
