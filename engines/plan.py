"""The plan file: what TensorRT built on this device, wrapped so that no other, broken or foreign plan is ever run.

    magic 16 bytes | format u32 | metadata length u32 | plan length u64 | SHA-256 of all the rest 32 bytes | metadata | plan

Little endian; the metadata is JSON. A plan is code: whoever may write the file decides what the device computes. The hash
finds damage, not malice (anybody can make a new one), so folder and file must belong to us or root and be writable by
nobody else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import files
from engines.errors import EngineError

FORMAT = 1

MAGIC = b"PhysVLM plan\r\n\x1a\n"
"""The line ends show a copy that was made as text."""

_HEAD = struct.Struct("<16sIIQ")
_DIGEST_BYTES = 32
_METADATA_MOST, _FILE_MOST = 1 << 20, 1 << 30
"""The student's plan has a few megabytes; what claims more than this is not ours and is not read into memory."""

Components = Mapping[str, Any]
"""What a plan depends on, by name: weights, versions, device, builder's options. JSON values."""

_LABELS = {"tensorrt": "TensorRT", "driver": "CUDA driver", "l4t": "L4T", "onnx": "weights with SHA-256", "sm_count":
           "multiprocessors", "memory_bytes": "bytes of memory", "device": "the device", "format": "plan format",
           "compute_capability": "compute capability", "via": "builder", "typing": "typing mode", "workspace_mb":
           "a workspace of MB", "flags": "builder flags", "profile": "input shapes", "opt_level": "optimisation level",
           "tf32": "TF32", "dla": "DLA", "part": "part", "precision": "precision"}


class PlanError(EngineError):
    """The file or its folder cannot be trusted or used; the message says which and what to do."""


class PlanMissing(PlanError):
    """There is no such file."""


class PlanMismatch(PlanError):
    """A whole plan of ours, but built for something else; the message names what changed."""


@dataclass(frozen=True)
class Plan:
    """One part of the student, built. components: see `Components`; notes: what is good to know but no part of the key."""

    part: str
    precision: str
    components: Components
    data: bytes
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return key_of(self.components)


def key_of(components: Components) -> str:
    """The cache key: SHA-256 over every component."""
    return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()


def differences(built: Components, wanted: Components) -> str:
    """What a plan was built for against what is wanted now, in words; empty where nothing differs."""
    said = []
    for name in sorted(built.keys() | wanted.keys()):
        if built.get(name) != wanted.get(name):
            old, new = (str(c.get(name, "unknown"))[:40] or "none" for c in (built, wanted))
            said.append(f"built for {_LABELS.get(name, name)} {old}, this is {new}")
    return "; ".join(said)


def check(plan: Plan, wanted: Components) -> None:
    """Raise PlanMismatch unless the plan was built from and for exactly this."""
    if why := differences(plan.components, wanted):
        raise PlanMismatch(why)


# --- bytes


def seal(plan: Plan) -> bytes:
    metadata = json.dumps({"part": plan.part, "precision": plan.precision, "key": plan.key,
                           "components": dict(plan.components), "notes": dict(plan.notes)}, sort_keys=True).encode()
    head = _HEAD.pack(MAGIC, FORMAT, len(metadata), len(plan.data))
    return head + hashlib.sha256(head + metadata + plan.data).digest() + metadata + plan.data


def unseal(data: bytes, part: str, precision: str) -> Plan:
    """The plan of this part and precision. Raises PlanError, with the reason, for whatever else the bytes may be."""
    body = _HEAD.size + _DIGEST_BYTES
    if len(data) < body:
        raise PlanError(f"{len(data)} bytes are too short for a plan file")
    magic, version, metadata_bytes, plan_bytes = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise PlanError("no plan file of this program: it begins otherwise")
    if version != FORMAT:
        raise PlanError(f"plan format {version}, expected {FORMAT}")
    if metadata_bytes > _METADATA_MOST or body + metadata_bytes + plan_bytes != len(data):
        raise PlanError(f"expected {body + metadata_bytes + plan_bytes} bytes, got {len(data)}")
    metadata, content = data[body:body + metadata_bytes], data[body + metadata_bytes:]
    if hashlib.sha256(data[:_HEAD.size] + metadata + content).digest() != data[_HEAD.size:body]:
        raise PlanError("its SHA-256 does not match: it was altered or damaged")
    plan, key = _from_metadata(metadata, content)
    if plan.key != key:
        raise PlanError(f"its key {key[:12]} is not that of what it was built for, {plan.key[:12]}")
    if (plan.part, plan.precision) != (part, precision):
        raise PlanError(f"it holds the {plan.part} in {plan.precision}, expected the {part} in {precision}")
    return plan


def _from_metadata(metadata: bytes, content: bytes) -> tuple[Plan, str]:
    try:
        record = json.loads(metadata)
        plan = Plan(record["part"], record["precision"], record["components"], content, record["notes"])
        kinds = {"part": str, "precision": str, "key": str, "components": dict, "notes": dict}
        wrong = [name for name, kind in kinds.items() if not isinstance(record[name], kind)]
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise PlanError(f"its metadata cannot be read: {type(e).__name__} {e}") from e
    if wrong:
        raise PlanError(f"its metadata is not what a plan has: {', '.join(wrong)}")
    return plan, record["key"]


# --- files


def write(path: Path, plan: Plan) -> None:
    """Whole or not at all; raises PlanError."""
    write_whole(path, seal(plan))


def read(path: Path, part: str, precision: str) -> Plan:
    """Raises PlanMissing where there is no file, PlanError for every other one that is not this plan, whole."""
    data = read_trusted(path)
    try:
        return unseal(data, part, precision)
    except PlanError as e:
        raise PlanError(f"{path} is refused: {e}; delete it, or build anew with physvlm prepare --rebuild") from e


def trusted_folder(path: Path, make: bool = False) -> Path:
    """The cache folder, checked. make: it may be created. Raises PlanMissing and PlanError."""
    try:
        if make:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = path.stat()
    except FileNotFoundError as e:
        raise PlanMissing(f"no folder of engines at {path}") from e
    except OSError as e:
        raise PlanError(f"{path} cannot be the folder of engines: {e.strerror}; name another with --cache") from e
    if not stat.S_ISDIR(found.st_mode):
        raise PlanError(f"{path} is not a folder; name another with --cache")
    _check_owner(path, found)
    return path


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise PlanError(f"{path} belongs to user {found.st_uid}, who could change what this device computes; expected user "
                        f"{os.geteuid()} or root: delete it, or name another --cache")
    if found.st_mode & 0o022:
        raise PlanError(f"{path} may be written by others (mode {stat.S_IMODE(found.st_mode):03o}), who could change what "
                        f"this device computes: chmod go-w {path}")


def read_trusted(path: Path) -> bytes:
    """A regular file that nobody else can write. Raises PlanMissing and PlanError."""
    try:
        # O_NONBLOCK: opening a pipe that was put here must not hang
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise PlanError(f"{path} is not a file; delete it")
            _check_owner(path, found)
            if found.st_size > _FILE_MOST:
                raise PlanError(f"{path} has {found.st_size} bytes, which no plan of the student has; delete it")
            return file.read()
    except FileNotFoundError as e:
        raise PlanMissing(f"{path} is not there") from e
    except OSError as e:
        raise PlanError(f"{path} cannot be read: {e.strerror}") from e


def write_whole(path: Path, data: bytes) -> None:
    """As engines.files has it. Raises PlanError."""
    try:
        files.write_whole(path, data)
    except OSError as e:
        raise PlanError(f"{path} cannot be written: {e.strerror}; name another folder with --cache, or run as its owner") from e


@contextmanager
def locked(folder: Path, say: Callable[[str], None], wait_s: float = 3600.0, every_s: float = 0.2) -> Iterator[None]:
    """One builder at a time in this folder. Says who is waited for; raises PlanError after wait_s.

    The kernel frees the lock of a process that died, however it died; so the file itself stays, and means nothing.
    """
    path = folder / "build.lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise PlanError(f"{path} cannot be written: {e.strerror}; name another folder with --cache, or run as its owner") from e
    try:
        until_s, said = time.monotonic() + wait_s, False
        while not _try_lock(handle):
            holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip() or "unknown"
            if time.monotonic() >= until_s:
                raise PlanError(f"process {holder} holds {path}, after {wait_s:.0f} s still: it is building; wait or end it")
            if not said:
                say(f"process {holder} is building in {folder}; waiting for it")
                said = True
            time.sleep(every_s)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)  # frees the lock


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
