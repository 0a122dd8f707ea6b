"""What `physvlm run --record DIR` keeps: readings, estimates, waveforms, states and wire bytes; pictures only when asked for.

    DIR/schema.json                       every column: unit (UCUM), IEEE 11073 code, meaning
    DIR/0007-20261124T193158Z/            one run; the number orders them, since a device's wall clock may be wrong
        session.json                      what ran, and the moment that t_s counts from
        readings-0000.csv ...             segments; edge/recorded.py, or pandas.read_csv, reads them
        wire-0000.pvl                     firmware_bridge/recording.py's format: arrival times and bytes
        pictures-0000/000012345.jpg       milliseconds since the run began

Every CSV row ends with the CRC-32 of what stands before it: power lost within a write leaves a row that can be told from
a true one. The loop hands over references and never waits; a thread formats, appends, and syncs every SYNC_S. Where the disk
is full, read-only or gone, rows are counted as lost and monitoring goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pipeline import HOP_S, Hop
from edge.recorded import csv_row, mend, remove_segment, segments, sessions
from edge.records import Frame, Reading, Reason, State, VitalReading
from edge.runtime import WAVE_DELAY_SAMPLES, Tap
from engines.files import write_whole
from firmware_bridge.frame import DecodedFrame
from firmware_bridge.link import Health, LinkState
from firmware_bridge.recording import HEAD
from firmware_bridge.schema import MessageType
from firmware_bridge.transmitter import Outlet

log = logging.getLogger("physvlm")

FORMAT = 1
WRITE_S, SYNC_S = 1.0, 5.0
"""What a SIGKILL, and what a loss of power may cost."""

RETRY_S = 30.0
"""How often a disk that took nothing is tried again."""

SEGMENT_BYTES, SEGMENT_S = 8 << 20, 3600.0
"""What is removed at once when the room is used up, at most."""

KEEP_FREE_BYTES = 64 << 20
"""Left to the rest of the system: a disk with less than this counts as full."""

QUEUE = 20_000
"""Records that may wait for a disk that hangs: some minutes of them."""

PICTURE_S, PICTURE_QUALITY = 1.0, 90

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
            f"{name}_reason": {"meaning": "why there is none, or why it is questionable"},
            f"{name}_quality": {"unit": "1", "meaning": "0 to 1"},
            f"{name}_age_s": {"unit": "s", "meaning": "since the newest picture behind it"},
            f"{name}_averaging_s": {"unit": "s"}}


COLUMNS: dict[str, dict[str, dict[str, object]]] = {
    "readings": {**_T, **_vital_columns("hr", PULSE_RATE, "pulse rate, optical"),
                 **_vital_columns("rr", BREATH_RATE, "breathing rate"), **_CRC},
    "estimates": {**_T, "hr": {**PULSE_RATE, "meaning": "read from the wave, before the gate: never shown as it is"},
                  "hr_quality": {"unit": "1"}, "rr": {**BREATH_RATE, "meaning": "as hr"}, "rr_quality": {"unit": "1"},
                  "pulse_presence": {"unit": "1", "meaning": "the network's belief that a pulse is in the picture"},
                  "resp_presence": {"unit": "1"}, "x": {"unit": "px", "meaning": "the region, as are y, w and h"},
                  "y": {"unit": "px"}, "w": {"unit": "px"}, "h": {"unit": "px"},
                  "conditions": {"meaning": "what was wrong with the picture, joined by +"}, **_CRC},
    "waveforms": {**_T, "pulse": {"unit": "1", "meaning": "unit variance; rising = more blood"},
                  "resp": {"unit": "1", "meaning": "unit variance; which way is in is not known"},
                  "valid": {"meaning": "1, or 0 where no picture was near enough"}, **_CRC},
    "states": {**_T, "source": {"meaning": "PR, RR, camera, engine or recorder"}, "state": {}, "detail": {}, **_CRC},
}
"""Stream -> column -> what it means. A column may be added in a new FORMAT, never change its meaning."""


@dataclass(frozen=True)
class Record:
    """One thing to keep: text or bytes, made by the writer's thread."""

    stream: str
    make: Callable[[], bytes]
    rows: int = 1
    name: str = ""  # of a picture


class Recorder(Tap):
    """Keeps a run. Never raises for the disk's sake; `lost` counts the rows that could not be kept.

    max_bytes: of all runs together; the oldest segments go first. facts: JSON-able, for session.json.
    """

    def __init__(self, folder: Path, max_bytes: int, pictures: bool, facts: Mapping[str, object],
                 clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.folder = folder
        self.kept = self.lost = self._told_lost = 0
        self._pictures, self._facts, self._clock_ns = pictures, dict(facts), clock_ns
        self._began_ns = clock_ns()
        self._began = datetime.now(timezone.utc)
        self._said: dict[str, tuple[str, str]] = {}
        self._picture_ns = -1
        self._queue: deque[Record] = deque()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._store = _Store(folder, max_bytes, self._session_facts)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._wake.set()
        self._thread.join(10.0)  # a disk that hangs must not keep the process from ending

    # --- from the loop's thread: hand over and return

    def outlets(self) -> Sequence[Outlet]:
        return [_Wire(self._wire)]

    def frame(self, frame: Frame, now_ns: int, dropped: int) -> None:
        if not self._pictures or now_ns - self._picture_ns < PICTURE_S * 1e9:
            return
        self._picture_ns = now_ns
        picture = frame.bgr.copy()  # a driver may use its buffer again
        self._put(Record("pictures", lambda: _jpeg(picture), name=f"{round(self._t_s(frame.t_ns) * 1e3):09d}.jpg"))

    def hop(self, hop: Hop, now_ns: int) -> None:
        self._put(Record("estimates", lambda: _estimate_row(self._t_s(now_ns), hop)))
        self._put(Record("waveforms", lambda: _wave_rows(hop, self._t_s), rows=round(HOP_S * hop.waveform.fs_hz)))

    def said(self, reading: Reading, withheld: bool, now_ns: int) -> None:
        t_s = self._t_s(now_ns)
        hr, rr = (_withheld(vital) if withheld else vital for vital in (reading.hr, reading.rr))
        self._put(Record("readings", lambda: csv_row(t_s, *_vital_cells(hr), *_vital_cells(rr))))
        for name, vital in (("PR", hr), ("RR", rr)):
            now = vital.state.name, "DISPLAY" if withheld else vital.reason.name
            if self._said.get(name) != now:
                self._said[name] = now
                self._put(Record("states", partial(csv_row, t_s, name, *now)))

    def event(self, source: str, state: str, detail: str, now_ns: int) -> None:
        t_s = self._t_s(now_ns)
        self._put(Record("states", lambda: csv_row(t_s, source, state, detail)))

    def _wire(self, frame: bytes) -> None:
        t_ms = max(0, self._clock_ns() - self._began_ns) // 1_000_000
        self._put(Record("wire", lambda: b"%d %s\n" % (t_ms, frame.hex().encode())))

    def _t_s(self, t_ns: int) -> float:
        return (t_ns - self._began_ns) / 1e9

    def _put(self, record: Record) -> None:
        if len(self._queue) >= QUEUE:
            self.lost += record.rows
            return
        self._queue.append(record)

    # --- the writer's thread

    def _work(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(WRITE_S)
            self._drain()
        self._drain()
        self._store.close()

    def _drain(self) -> None:
        waiting = [self._queue.popleft() for _ in range(len(self._queue))]
        now_ns = self._clock_ns()
        kept = self._store.write(waiting, self._t_s(now_ns))
        self.kept += kept
        self.lost += sum(record.rows for record in waiting) - kept
        if kept and self.lost > self._told_lost:
            self._told_lost = self.lost
            self.event("recorder", "LOST", f"{self.lost} rows so far", now_ns)

    def _session_facts(self) -> dict[str, object]:
        return {"format": FORMAT, **self._facts, "began_utc": self._began.isoformat(timespec="seconds"),
                "began_monotonic_ns": self._began_ns, "pictures": self._pictures}


class _Wire:
    """An outlet that keeps what is offered to the others."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self._health = Health(LinkState.UP)

    def open(self) -> None: ...

    def offer(self, frame: bytes, kind: MessageType) -> bool:
        self._keep(frame)
        return True

    def poll(self) -> list[DecodedFrame]:
        return []

    def health(self) -> Health:
        return self._health

    def close(self, farewell: bytes | None = None) -> None:
        if farewell is not None:
            self._keep(farewell)


class _Store:
    """The folder: sessions, segments, room. One thread. Nothing of it raises OSError."""

    def __init__(self, folder: Path, max_bytes: int, facts: Callable[[], dict[str, object]]) -> None:
        self._folder, self._max_bytes, self._facts = folder, max_bytes, facts
        self._segment_bytes = min(SEGMENT_BYTES, max_bytes // 8)
        self._session: Path | None = None
        self._number = -1
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._wire_steps = 0
        self._wire_hash = hashlib.sha256()
        self._began_s = self._synced_s = 0.0
        self._retry_s = -1.0
        self._failed = False
        self._old: list[tuple[Path, str, int]] = []  # (session, segment number, bytes), oldest first

    def write(self, records: Sequence[Record], now_s: float) -> int:
        """How many rows were kept."""
        if now_s < self._retry_s or not (records or self._files):
            return 0
        try:
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
        with contextlib.suppress(OSError):
            self._end_segment()

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
        if self._number < 0 or segment + incoming > self._segment_bytes or now_s - self._began_s > SEGMENT_S:
            self._new_segment(now_s)
            segment = 0
        while self._old and sum(size for _, _, size in self._old) + segment + incoming > self._max_bytes:
            remove_segment(*self._old.pop(0)[:2])
        if shutil.disk_usage(self._folder).free < KEEP_FREE_BYTES:
            raise OSError(28, f"less than {KEEP_FREE_BYTES >> 20} MB left on the disk")

    def _new_segment(self, now_s: float) -> None:
        self._end_segment()
        if self._session is None:
            self._session = self._new_session()
        self._number += 1
        self._began_s = now_s

    def _new_session(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / "schema.json", (json.dumps(
            {"format": FORMAT, "investigational": True, "source": "optical", "streams": COLUMNS}, indent=1) + "\n").encode())
        before = sessions(self._folder)
        if before:
            mend(before[-1])
        self._old = [(session, number, size) for session in before for number, size in segments(session)]
        number = int(before[-1].name[:4]) + 1 if before else 0
        facts = self._facts()
        began = str(facts["began_utc"]).partition("+")[0].replace("-", "").replace(":", "")
        session = self._folder / f"{number:04d}-{began}Z"
        session.mkdir()
        try:
            write_whole(session / "session.json", (json.dumps(facts, indent=1) + "\n").encode())
        except OSError:
            session.rmdir()  # or each new try on a full disk would leave one
            raise
        return session

    def _end_segment(self) -> None:
        """Closes the files of the segment; a wire gets its last line."""
        if "wire" in self._files:
            end = f"end {self._wire_steps} - {self._wire_hash.hexdigest()}\n".encode()
            with contextlib.suppress(OSError):  # without it the file counts as cut off, and can still be replayed
                _write_all(self._files["wire"], end)
                self._sizes["wire"] += len(end)
        for fd in self._files.values():
            with contextlib.suppress(OSError):
                os.fsync(fd)
            os.close(fd)
        if self._session is not None and self._sizes:
            self._old.append((self._session, f"{self._number:04d}", sum(self._sizes.values())))
        self._files, self._sizes = {}, {}

    def _write_batch(self, stream: str, data: bytes) -> None:
        if stream not in self._files:
            head = HEAD if stream == "wire" else (",".join(COLUMNS[stream]) + "\n").encode()
            path = self._segment_path(stream, ".pvl" if stream == "wire" else ".csv")
            self._files[stream] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._sizes[stream] = 0
            if stream == "wire":
                self._wire_steps, self._wire_hash = 0, hashlib.sha256()
            data = head + data
        try:
            _write_all(self._files[stream], data)
        except OSError:
            with contextlib.suppress(OSError):  # a part of it may stand there: take it back
                os.ftruncate(self._files[stream], self._sizes[stream])
            raise
        self._sizes[stream] += len(data)
        if stream == "wire":
            self._wire_hash.update(data)

    def _write_picture(self, name: str, data: bytes) -> None:
        folder = self._segment_path("pictures", "")
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        self._sizes["pictures"] = self._sizes.get("pictures", 0) + len(data)

    def _segment_path(self, stream: str, suffix: str) -> Path:
        if self._session is None:
            raise RuntimeError("no session was begun")
        return self._session / f"{stream}-{self._number:04d}{suffix}"

    def _fail(self, error: OSError, now_s: float) -> None:
        """Log once, try again later: in files of their own, whatever became of these."""
        if not self._failed:
            log.error("recording in %s: %s; monitoring goes on without, tried again every %.0f s",
                      self._folder, error.strerror or error, RETRY_S)
        self._failed, self._retry_s = True, now_s + RETRY_S
        with contextlib.suppress(OSError):
            self._end_segment()
        self._files, self._sizes = {}, {}
        if self._session is not None:
            self._number += 1
            self._began_s = -2 * SEGMENT_S  # the next write begins a segment


def _withheld(vital: VitalReading) -> VitalReading:
    """What went to a display that shows something else than what it was sent."""
    reason = Reason.MODEL_FAULT if vital.reason == Reason.NONE else vital.reason
    return replace(vital, value_per_min=None, state=State.FAULT, reason=reason)


def _vital_cells(vital: VitalReading) -> tuple[object, ...]:
    return (vital.value_per_min, vital.state.name, vital.reason.name, vital.quality, vital.age_s, vital.averaging_s)


def _estimate_row(t_s: float, hop: Hop) -> bytes:
    found, wave, region = hop.estimate, hop.waveform, hop.region
    return csv_row(t_s, found.hr_per_min, found.hr_quality, found.rr_per_min, found.rr_quality, wave.pulse_presence,
                   wave.resp_presence, region.x_px, region.y_px, region.w_px, region.h_px,
                   "+".join(sorted(reason.name for reason in hop.conditions)))


def _wave_rows(hop: Hop, t_s: Callable[[int], float]) -> bytes:
    """The hop's own samples, as far behind the newest as the display's trace, whose right-hand context they have."""
    wave = hop.waveform
    stop = wave.pulse.size - WAVE_DELAY_SAMPLES
    first = stop - round(HOP_S * wave.fs_hz)
    end_s = t_s(wave.t_end_ns)
    return b"".join(csv_row(end_s - (wave.pulse.size - 1 - i) / wave.fs_hz, float(wave.pulse[i]), float(wave.resp[i]),
                            int(wave.valid[i])) for i in range(max(0, first), stop))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])[1].tobytes()


def _write_all(fd: int, data: bytes) -> None:
    """os.write may take a part only, and then says why at the next call."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
