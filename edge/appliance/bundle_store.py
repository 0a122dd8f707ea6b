"""The bundles of a device: BUNDLES/<id>/ side by side, and `current`, a symbolic link that is switched in one step.

    verify -> unpack beside, to the disk -> prove: sidecar, parity, self-test clip -> rename to its id -> switch `current`

Nothing that is current is ever written to, and a bundle that does not prove itself never becomes current: the old one goes
on. Power lost anywhere leaves the old one or the new one, whole. Each folder remembers in `came_after` what was current
before it: that is where `rollback` goes back to. `highest` keeps the highest serial number that was ever current here: an
older bundle, whose faults may have been mended since, is refused unless a person insists.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge.appliance.bundle import Bundle, BundleError, Manifest, SelfTest, read_manifest
from edge.appliance.bundle_proof import proven
from edge.appliance.install import open_folder
from engines.files import sync_folder, write_whole

CURRENT, CAME_AFTER, HIGHEST, PARTIAL = "current", "came_after", "highest", ".partial"


def current(store: Path) -> str | None:
    """The id of the bundle that runs; None where there is none."""
    try:
        return os.readlink(store / CURRENT)
    except OSError:
        return None


def highest(store: Path) -> int:
    """The highest serial number that was ever current in this store; 0 in a new one. Raises BundleError, OSError.

    The bundles that lie there count too: an earlier release of this program kept no such file.
    """
    try:
        text = (store / HIGHEST).read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        text = "0"
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise BundleError(f"{store / HIGHEST} is damaged: expected the highest serial number that was installed here, got "
                          f"{text[:20]!r}; install with --allow-older, which writes it anew")
    lie_there = [read_manifest(path.read_bytes()).serial for path in store.glob("[!.]*/manifest.json")]
    return max([int(text), *lie_there])


def install(bundle: Bundle, store: Path, prove: Callable[[Path, SelfTest], str] | None = None,
            allow_older: bool = False) -> str:
    """Unpacks, proves and switches; says what the proof found. Raises BundleError, and then what ran before still does.

    prove: given the unpacked folder; raises BundleError. None: `proven`. allow_older: take one with a lower serial number than
    one that was installed here before.
    """
    name = bundle.manifest.id
    try:
        open_folder(store)
        with _locked(store):
            before = current(store)
            if before == name:
                raise BundleError(f"{name} is current already")
            most = _not_older(bundle.manifest, store, allow_older)
            _clear(store)
            partial = store / f"{PARTIAL}.{name}"
            unpack(bundle, partial, before or "")
            try:
                said = (prove or proven)(partial, bundle.manifest.self_test)
            except BundleError as e:
                shutil.rmtree(partial, ignore_errors=True)
                stays = f"{before} stays" if before else "the shipped weights stay"
                raise BundleError(f"{name} is not used, {stays}: {e}") from e
            if (store / name).exists():  # installed once, and left since: nobody reads it
                (store / name).rename(store / f"{PARTIAL}.{name}.old")
            partial.rename(store / name)
            sync_folder(store)
            write_whole(store / HIGHEST, f"{most}\n".encode())  # before the switch: what was ever current is never forgotten
            _switch(store, name)
            _clear(store, keep={name, before or name})
    except OSError as e:
        raise BundleError(f"{store} cannot be written: {e.strerror or e}; check the disk, run it with sudo") from e
    return said


def _not_older(manifest: Manifest, store: Path, allow_older: bool) -> int:
    """The highest serial number once this bundle is current. Raises BundleError."""
    try:
        most = highest(store)
    except BundleError:
        if not allow_older:
            raise
        most = 0
    if manifest.serial < most and not allow_older:
        raise BundleError(f"{manifest.id} is older (serial number {manifest.serial}) than one that was installed here "
                          f"({most}): faults that were mended since may come back; get a newer one, or insist with "
                          "--allow-older")
    return max(most, manifest.serial)


def rollback(store: Path) -> tuple[str, str]:
    """(what was current, what is now). Raises BundleError."""
    try:
        with _locked(store):
            now = current(store)
            if now is None:
                raise BundleError(f"no bundle is current in {store}; the shipped weights run")
            before = (store / now / CAME_AFTER).read_text(encoding="ascii").strip()
            if not before or not (store / before / "manifest.json").is_file():
                raise BundleError(f"nothing to go back to: {now} came after {before or 'no other'}; install another bundle")
            _switch(store, before)
    except FileNotFoundError as e:
        raise BundleError(f"no bundle is current in {store} ({e.filename}); the shipped weights run") from e
    except OSError as e:
        raise BundleError(f"{store} cannot be written: {e.strerror or e}; check the disk, run it with sudo") from e
    return now, before


def manifest_of(store: Path, name: str) -> Manifest:
    try:
        return read_manifest((store / name / "manifest.json").read_bytes())
    except OSError as e:
        raise BundleError(f"{store / name} holds no bundle: {e.strerror}") from e


def unpack(bundle: Bundle, folder: Path, before: str) -> None:
    """Every file and folder on the disk before this returns. The folder is a new one of ours, so no link can be in it."""
    files = dict(bundle.files) | {"manifest.json": bundle.manifest.as_bytes(), CAME_AFTER: before.encode("ascii") + b"\n"}
    folders = {folder, *((folder / path).parent for path in files)}
    for each in sorted(folders):
        open_folder(each)
    for path, content in files.items():
        with os.fdopen(os.open(folder / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
    for each in sorted(folders, reverse=True):
        sync_folder(each)


def _switch(store: Path, name: str) -> None:
    """`current` points to `name` from one moment to the next."""
    new = store / f"{PARTIAL}.{CURRENT}"
    with suppress(FileNotFoundError):
        new.unlink()
    os.symlink(name, new)
    new.replace(store / CURRENT)
    sync_folder(store)


def _clear(store: Path, keep: set[str] | None = None) -> None:
    """What an interrupted installation left; and with `keep`, every bundle but these."""
    for entry in store.iterdir():
        left_over = entry.name.startswith(PARTIAL)
        spare = keep is not None and entry.is_dir() and not entry.is_symlink() and entry.name not in keep
        if entry.is_symlink() or entry.is_file():
            if left_over:
                entry.unlink()
        elif left_over or spare:
            shutil.rmtree(entry)


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    handle = os.open(store / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as e:
        raise BundleError(f"another process is changing {store}; wait for it") from e
    finally:
        os.close(handle)
