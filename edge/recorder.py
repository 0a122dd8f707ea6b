"""What `physvlm run --record DIR` keeps: readings, estimates, waveforms, states and wire bytes; pictures only when asked for.

    DIR/schema.json                       every column: unit (UCUM), IEEE 11073 code, meaning
    DIR/0007-20261124T193158Z/            one run; the number orders them, since a device's wall clock may be wrong
        session.json                      what ran, and the moment that t_s counts from
        readings-0000.csv ...             segments; edge/recorded.py, or pandas.read_csv, reads them
        wire-0000.pvl                     firmware_bridge/recording.py's format: arrival times and bytes
        pictures-0000/000012345.jpg       milliseconds since the run began

Every CSV row ends with the CRC-32 of what stands before it: power lost within a write leaves a row that can be told from
a true one. The loop hands over references and never waits; a thread formats, appends, and syncs every SYNC_S. Where the disk
is full, read-only or gone, rows are counted as lost and monitoring goes on. One process keeps a folder at a time: it mends,
counts and removes what is there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pipeline import HOP_S, Hop
from edge.recorded import csv_row
from edge.recorder_store import FORMAT, Record, Store
from edge.records import Frame, Reading, VitalReading
from edge.runtime import Tap
from edge.wire import WAVE_DELAY_SAMPLES
from firmware_bridge.frame import DecodedFrame
from firmware_bridge.link import Health, LinkState
from firmware_bridge.schema import MessageType
from firmware_bridge.transmitter import Outlet

WRITE_S = 1.0
"""What a SIGKILL may cost."""

QUEUE, PICTURE_QUEUE = 20_000, 4
"""Records that may wait for a disk that hangs: a quarter of an hour of them, but seconds of pictures, which are large."""

PICTURE_S, PICTURE_QUALITY = 1.0, 90

DROPS_S = 10.0
"""How often at most it is told that the camera's numbers leave some out."""


class Recorder(Tap):
    """Keeps a run. Never raises for the disk's sake; `lost` counts the rows that could not be kept.

    max_bytes: of all runs together; the oldest segments go first. facts: JSON-able, for session.json.
    """

    def __init__(self, folder: Path, max_bytes: int, pictures: bool, facts: Mapping[str, object],
                 clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.folder = folder
        self.kept = self._refused = self._unwritten = self._told_lost = 0
        self._pictures, self._facts, self._clock_ns = pictures, dict(facts), clock_ns
        self._began_ns = clock_ns()
        self._began = datetime.now(timezone.utc)
        self._said: dict[str, tuple[str, str]] = {}
        self._picture_ns = -1
        self._picture_room = threading.Semaphore(PICTURE_QUEUE)
        self._seq: int | None = None
        self._missed = self._told_missed = 0
        self._told_missed_ns = self._began_ns
        self._queue: deque[Record] = deque()
        self._stop = threading.Event()
        self._store = Store(folder, max_bytes, self._session_facts)
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    @property
    def lost(self) -> int:
        """Rows and pictures that could not be kept: refused while the disk hung, or not written."""
        return self._refused + self._unwritten  # one is counted by the loop's thread, the other by the writer's

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10.0)  # a disk that hangs must not keep the process from ending

    # --- from the loop's thread: hand over and return

    def outlets(self) -> Sequence[Outlet]:
        return [_Wire(self._wire)]

    def frame(self, frame: Frame, now_ns: int, dropped: int) -> None:
        self._count(frame.seq, now_ns)
        if not self._pictures or now_ns - self._picture_ns < PICTURE_S * 1e9:
            return
        self._picture_ns = now_ns
        if not self._picture_room.acquire(blocking=False):
            self._refused += 1
            return
        picture = frame.bgr.copy()  # a driver may use its buffer again
        self._put(Record("pictures", lambda: _jpeg(picture), name=f"{round(self._t_s(frame.t_ns) * 1e3):09d}.jpg"))

    def hop(self, hop: Hop, now_ns: int) -> None:
        self._put(Record("estimates", lambda: _estimate_row(self._t_s(now_ns), hop)))
        self._put(Record("waveforms", lambda: _wave_rows(hop, self._t_s), rows=round(HOP_S * hop.waveform.fs_hz)))

    def said(self, reading: Reading, withheld: bool, now_ns: int) -> None:
        t_s = self._t_s(now_ns)
        hr, rr = (_vital_cells(vital, withheld) for vital in (reading.hr, reading.rr))
        self._put(Record("readings", partial(csv_row, t_s, *hr, *rr)))
        for name, (_, state, reason, *_) in (("PR", hr), ("RR", rr)):
            if self._said.get(name) != (state, reason):
                self._said[name] = (state, reason)
                self._put(Record("states", partial(csv_row, t_s, name, state, reason)))

    def event(self, source: str, state: str, detail: str, now_ns: int) -> None:
        if source == "camera":
            self._seq = None  # opened again, it counts from anywhere
        self._put(Record("states", partial(csv_row, self._t_s(now_ns), source, state, detail)))

    def _count(self, seq: int, now_ns: int) -> None:
        """Frames that the numbers leave out, whoever lost them."""
        self._missed += 0 if self._seq is None else max(0, seq - self._seq - 1)
        self._seq = seq
        if self._missed > self._told_missed and now_ns - self._told_missed_ns >= DROPS_S * 1e9:
            self._told_missed, self._told_missed_ns = self._missed, now_ns
            self._put(Record("states", partial(csv_row, self._t_s(now_ns), "camera", "DROPPED",
                                               f"{self._missed} pictures so far")))

    def _wire(self, frame: bytes) -> None:
        t_ms = max(0, self._clock_ns() - self._began_ns) // 1_000_000
        self._put(Record("wire", lambda: b"%d %s\n" % (t_ms, frame.hex().encode())))

    def _t_s(self, t_ns: int) -> float:
        return (t_ns - self._began_ns) / 1e9

    def _put(self, record: Record) -> None:
        if len(self._queue) >= QUEUE:
            self._refused += record.rows
            return
        self._queue.append(record)

    # --- the writer's thread

    def _work(self) -> None:
        while not self._stop.is_set():
            self._stop.wait(WRITE_S)
            self._drain()
        self._drain()
        self._store.close()

    def _drain(self) -> None:
        waiting = [self._queue.popleft() for _ in range(len(self._queue))]
        now_ns = self._clock_ns()
        kept = self._store.write(waiting, self._t_s(now_ns))
        for record in waiting:
            if record.name:
                self._picture_room.release()
        self.kept += kept
        self._unwritten += sum(record.rows for record in waiting) - kept
        if kept and self.lost > self._told_lost:
            self._told_lost = self.lost
            self._queue.append(Record("states", partial(csv_row, self._t_s(now_ns), "recorder", "LOST",
                                                        f"{self._told_lost} rows so far")))

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


def _vital_cells(vital: VitalReading, withheld: bool) -> tuple[float | None, str, str, float, float, float]:
    """withheld: FAULT went out in its place, for the display's sake."""
    value, state, reason = vital.value_per_min, vital.state.name, vital.reason.name
    if withheld:
        value, state, reason = None, "FAULT", "DISPLAY"
    return (value, state, reason, vital.quality, vital.age_s, vital.averaging_s)


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
