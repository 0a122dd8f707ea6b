"""Where a recording goes: schema, sessions, segments and their room on a disk that may fill up, fail or go away.

edge/recorder.py says what is kept, and how the folder looks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.recorded import BLOCK_BYTES, SUFFIXES, blocks, mend, remove_segment, segments, session_number, sessions
from engines.files import sync_folder, write_whole
from firmware_bridge.recording import HEAD

log = logging.getLogger("physvlm")

FORMAT = 1
SYNC_S = 5.0
"""What a loss of power may cost."""

RETRY_S = 30.0
"""How often a disk that took nothing is tried again."""

SEGMENT_BYTES, SEGMENT_S = 8 << 20, 3600.0
"""What is removed at once when the room is used up, at most."""

KEEP_FREE_BYTES = 64 << 20
"""Left to the rest of the system: a disk with less than this counts as full."""

MOST_SEGMENTS = 20_000
"""Of all runs together: a program that is started over and over leaves many and small ones."""

PULSE_RATE: dict[str, object] = {"unit": "/min", "mdc": "MDC_PULS_RATE_NON_INV", "mdc_code": 149546,
                                 "mdc_unit": "MDC_DIM_BEAT_PER_MIN", "mdc_unit_code": 264864}
BREATH_RATE: dict[str, object] = {"unit": "/min", "mdc": "MDC_RESP_RATE", "mdc_code": 151562,
                                  "mdc_unit": "MDC_DIM_RESP_PER_MIN", "mdc_unit_code": 264928}
"""IEEE 11073-10101 with UCUM. Never 147842, the heart rate of an ECG: this one is optical."""

_T: dict[str, dict[str, object]] = {"t_s": {"unit": "s", "meaning": "since the session began, on the monotonic clock"}}
_CRC: dict[str, dict[str, object]] = {
    "crc": {"meaning": "CRC-32 (zlib) of the row before its last comma; another value: the row is torn, skip it"}}


def _vital_columns(name: str, rate: dict[str, object], what: str) -> dict[str, dict[str, object]]:
    return {name: {**rate, "meaning": f"{what} as sent to the display; empty where no number may be shown"},
            f"{name}_state": {"meaning": "VALID and QUESTIONABLE show a number, no other state does"},
            f"{name}_reason": {"meaning": "why there is none, or why it is questionable; DISPLAY: the number was withheld from "
                                          "a display that had shown something else than what it was sent"},
            f"{name}_quality": {"unit": "1", "meaning": "0 to 1"},
            f"{name}_age_s": {"unit": "s", "meaning": "since the newest picture behind it"},
            f"{name}_averaging_s": {"unit": "s", "meaning": "the time that a value is read from"}}


COLUMNS: dict[str, dict[str, dict[str, object]]] = {
    "readings": {**_T, **_vital_columns("hr", PULSE_RATE, "pulse rate, optical"),
                 **_vital_columns("rr", BREATH_RATE, "breathing rate"), **_CRC},
    "estimates": {**_T, "hr": {**PULSE_RATE, "meaning": "read from the wave, before the gate: never shown as it is"},
                  "hr_quality": {"unit": "1"}, "rr": {**BREATH_RATE, "meaning": "as hr"}, "rr_quality": {"unit": "1"},
                  "pulse_presence": {"unit": "1", "meaning": "the network's belief that a pulse is in the picture"},
                  "resp_presence": {"unit": "1"}, "x": {"unit": "{pixel}", "meaning": "the region, as are y, w and h"},
                  "y": {"unit": "{pixel}"}, "w": {"unit": "{pixel}"}, "h": {"unit": "{pixel}"},
                  "conditions": {"meaning": "what was wrong with the picture, joined by +"}, **_CRC},
    "waveforms": {**_T, "pulse": {"unit": "1", "meaning": "unit variance; rising = more blood"},
                  "resp": {"unit": "1", "meaning": "unit variance; which way is in is not known"},
                  "valid": {"meaning": "1, or 0 where no picture was near enough"}, **_CRC},
    "states": {**_T, "source": {"meaning": "PR, RR, camera, engine or recorder"},
               "state": {"meaning": "of PR and RR as in readings, when it changes; else what happened"},
               "detail": {"meaning": "of PR and RR the reason; else in words"}, **_CRC},
}
"""Stream -> column -> what it means. A column may be added in a new FORMAT, never change its meaning."""


@dataclass(frozen=True)
class Record:
    """One thing to keep: text or bytes, made by the writer's thread."""

    stream: str
    make: Callable[[], bytes]
    rows: int = 1
    name: str = ""  # of a picture


class Store:
    """The folder: sessions, segments, room. One thread. `write` and `close` raise no OSError."""

    def __init__(self, folder: Path, max_bytes: int, facts: Callable[[], dict[str, object]]) -> None:
        self._folder, self._max_bytes, self._facts = folder, max_bytes, facts
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 8)
        self._session: Path | None = None
        self._lock: int | None = None
        self._number = -1
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._wire_steps = 0
        self._wire_hash = hashlib.sha256()
        self._began_s = self._synced_s = 0.0
        self._retry_s = -1.0
        self._failed = False
        self._old: deque[tuple[Path, str, int]] = deque()  # (session, segment number, bytes), oldest first
        self._old_bytes = 0

    def write(self, records: Sequence[Record], now_s: float) -> int:
        """How many rows were kept."""
        if now_s < self._retry_s or not (records or self._files):
            return 0
        try:
            self._look_after()
            kept = self._append(records, now_s)
            if now_s - self._synced_s >= SYNC_S:
                self._synced_s = now_s
                for fd in self._files.values():
                    os.fsync(fd)
        except OSError as error:
            self._fail(error, now_s)
            return 0
        if self._failed:
            self._failed = False
            log.warning("recording in %s goes on", self._folder)
        return kept

    def close(self) -> None:
        self._end_segment()
        self._leave()

    def _look_after(self) -> None:
        """Raises OSError where the files were deleted under us: what is written into them is nowhere."""
        if any(os.fstat(fd).st_nlink == 0 for fd in self._files.values()):
            raise FileNotFoundError(errno.ENOENT, "its files were deleted")

    def _append(self, records: Sequence[Record], now_s: float) -> int:
        batches: dict[str, list[bytes]] = {}
        kept = 0
        for record in records:
            data = record.make()
            if record.stream == "pictures":
                self._make_room(len(data), now_s)
                self._write_picture(record.name, data)
            else:
                batches.setdefault(record.stream, []).append(data)
            kept += record.rows
        total = sum(len(data) for batch in batches.values() for data in batch)
        self._make_room(total, now_s)
        for stream, batch in batches.items():
            self._write_batch(stream, b"".join(batch))
            if stream == "wire":
                self._wire_steps += len(batch)
        return kept

    def _make_room(self, incoming: int, now_s: float) -> None:
        """Starts a segment where one is due, and removes the oldest until there is room. Raises OSError (disk full)."""
        segment = sum(self._sizes.values())
        if self._session is None or segment + incoming > self._segment_bytes or now_s - self._began_s > SEGMENT_S:
            self._new_segment(now_s)
            segment = 0
        room = self._max_bytes - blocks(segment + incoming) - len(SUFFIXES) * BLOCK_BYTES
        while self._old and (self._old_bytes > room or len(self._old) >= MOST_SEGMENTS):
            self._remove_oldest()
        if shutil.disk_usage(self._folder).free < KEEP_FREE_BYTES:
            raise OSError(errno.ENOSPC, f"less than {KEEP_FREE_BYTES >> 20} MB left on the disk")

    def _remove_oldest(self) -> None:
        """A segment, and its session once it was the last of an earlier run's."""
        session, number, size = self._old[0]
        remove_segment(session, number)
        self._old.popleft()
        self._old_bytes -= size
        if session != self._session and (not self._old or self._old[0][0] != session):
            shutil.rmtree(session)

    def _new_segment(self, now_s: float) -> None:
        self._end_segment()
        if self._session is None:
            self._session = self._new_session()
            self._number = -1
        self._number += 1
        self._began_s = now_s

    def _new_session(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._take()
        for left in self._folder.glob(".*.partial"):  # of a process that was killed within a write
            left.unlink()
        schema = (json.dumps({"format": FORMAT, "investigational": True, "source": "optical", "streams": COLUMNS},
                             indent=1) + "\n").encode()
        if not _holds(self._folder / "schema.json", schema):
            write_whole(self._folder / "schema.json", schema)
        before = sessions(self._folder)
        number = session_number(before[-1]) + 1 if before else 0
        self._find_old(before)
        facts = self._facts()
        began = str(facts["began_utc"]).partition("+")[0].replace("-", "").replace(":", "")
        session = self._folder / f"{number:04d}-{began}Z"
        session.mkdir()
        try:
            write_whole(session / "session.json", (json.dumps(facts, indent=1) + "\n").encode())
        except OSError:
            shutil.rmtree(session, ignore_errors=True)  # or each new try on a full disk would leave one
            raise
        sync_folder(self._folder)
        return session

    def _take(self) -> None:
        """The folder is ours as long as we live. Raises OSError where another process has it."""
        if self._lock is None:
            self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._leave()
            raise OSError(error.errno, "another process records there; give each a folder of its own") from error

    def _leave(self) -> None:
        """Gives the folder back. The next write takes it, or what then has its name, and begins a session."""
        self._session = None
        if self._lock is not None:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None

    def _find_old(self, before: Sequence[Path]) -> None:
        """What earlier runs left: mended, counted, and gone where it holds nothing."""
        if before:
            try:
                mend(before[-1])
            except OSError as error:
                log.warning("recording in %s: the last run's torn ends stay: %s", self._folder, _words(error))
        self._old.clear()
        for session in before:
            found = segments(session)
            self._old.extend((session, number, size) for number, size in found)
            if not found:
                shutil.rmtree(session, ignore_errors=True)
        self._old_bytes = sum(size for _, _, size in self._old)

    def _end_segment(self) -> None:
        """Closes the files of the segment; a wire gets its last line. Raises no OSError."""
        if "wire" in self._files:
            end = f"end {self._wire_steps} - {self._wire_hash.hexdigest()}\n".encode()
            with contextlib.suppress(OSError):  # without it the file counts as cut off, and can still be replayed
                _write_all(self._files["wire"], end)
                self._sizes["wire"] += len(end)
        for fd in self._files.values():
            with contextlib.suppress(OSError):
                os.fsync(fd)
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._session is not None and self._sizes:
            size = sum(blocks(size) for size in self._sizes.values())
            self._old.append((self._session, f"{self._number:04d}", size))
            self._old_bytes += size
        self._files, self._sizes = {}, {}

    def _write_batch(self, stream: str, data: bytes) -> None:
        if stream not in self._files:
            head = HEAD if stream == "wire" else (",".join(COLUMNS[stream]) + "\n").encode()
            self._files[stream] = os.open(self._segment_path(stream), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                                          | os.O_CLOEXEC, 0o644)
            self._sizes[stream] = 0
            if stream == "wire":
                self._wire_steps, self._wire_hash = 0, hashlib.sha256()
            data = head + data
        try:
            _write_all(self._files[stream], data)
        except OSError:
            with contextlib.suppress(OSError):  # a part of it may stand there: take it back
                os.ftruncate(self._files[stream], self._sizes[stream])
                if self._sizes[stream] == 0:  # not even its head: no reader takes it
                    self._segment_path(stream).unlink()
            raise
        self._sizes[stream] += len(data)
        if stream == "wire":
            self._wire_hash.update(data)

    def _write_picture(self, name: str, data: bytes) -> None:
        folder = self._segment_path("pictures")
        folder.mkdir(exist_ok=True)
        write_whole(folder / name, data)
        self._sizes["pictures"] = self._sizes.get("pictures", 0) + blocks(len(data))

    def _segment_path(self, stream: str) -> Path:
        if self._session is None:
            raise RuntimeError("no session was begun")
        return self._session / f"{stream}-{self._number:04d}{SUFFIXES[stream]}"

    def _fail(self, error: OSError, now_s: float) -> None:
        """Log once, try again later: in files of their own, whatever became of these."""
        if not self._failed:
            log.error("recording in %s: %s; monitoring goes on without, tried again every %.0f s",
                      self._folder, _words(error), RETRY_S)
        self._failed, self._retry_s = True, now_s + RETRY_S
        self._end_segment()
        self._began_s = -2 * SEGMENT_S  # the next write begins a segment
        if self._session is not None and not os.path.isdir(self._session):
            self._leave()


def _words(error: OSError) -> str:
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


def _holds(path: Path, data: bytes) -> bool:
    with contextlib.suppress(OSError):
        return path.read_bytes() == data
    return False


def _write_all(fd: int, data: bytes) -> None:
    """os.write may take a part only, and then says why at the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
