"""The display's end of the wire, for the benchmark: a pty, the display's own rules, and what was wrong on its glass.

`Glass` looks; `wrong_shown` judges afterwards, against the VITALS that were really sent. Pure but for `Glass`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from firmware_bridge.frame import Decoder, Sender
from firmware_bridge.messages import Vitals
from firmware_bridge.port import Port, open_pty
from firmware_bridge.rules import DisplayRules
from firmware_bridge.schema import MAX_AGE_MS, NO_RATE

PAINT_S = 0.1
STATUS_S = 1.0

AGE_SLACK_MS = 250
"""Beyond the display's limit: its clock and the paint's own period."""

CAMERA_GONE_MS = 3000
"""Within this a camera that is away must be seen (README: NO CAMERA within 3 s), so nothing may be read from it."""


@dataclass(frozen=True)
class Shown:
    """What stood on the glass from t_ms (monotonic) until the next Shown. Rates in 0.1 /min, None where there was none."""

    t_ms: int
    pr_x10: int | None
    rr_x10: int | None
    mode: str
    message: str
    host_t_ms: int | None

    @property
    def has_number(self) -> bool:
        return self.pr_x10 is not None or self.rr_x10 is not None

    @property
    def has_both(self) -> bool:
        return self.pr_x10 is not None and self.rr_x10 is not None


@dataclass(frozen=True)
class Sent:
    """One VITALS as its sender made it. newest_ms: when the newest picture behind it was taken (monotonic)."""

    session: int
    t_ms: int
    pr_x10: int | None
    rr_x10: int | None
    newest_ms: int


@dataclass(frozen=True)
class Wrong:
    t_ms: int
    what: str


@dataclass
class Glass:
    """A display on a pty, in a thread. unplug() pulls the cable for so long; the display stays on."""

    link: Path
    shown: list[Shown] = field(default_factory=list)
    lost: int = 0
    bad: int = 0

    def __enter__(self) -> Glass:
        self._stop = False
        self._unplugged_until_ms = 0
        self._port: Port | None = open_pty(str(self.link))
        self._rules = DisplayRules(_now_ms())
        self._sender = Sender(time.monotonic_ns)
        self._thread = threading.Thread(target=self._look, name="glass", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join(5.0)
        if self._port is not None:
            self._port.close()

    def unplug(self, seconds: float) -> None:
        self._unplugged_until_ms = _now_ms() + round(1000 * seconds)

    def now(self) -> Shown:
        return self.shown[-1] if self.shown else Shown(_now_ms(), None, None, "WAITING", "", None)

    def _look(self) -> None:
        paint_ms = status_ms = 0
        while not self._stop:
            now_ms = _now_ms()
            self._rules.receive(self._read(now_ms), now_ms)
            if now_ms >= paint_ms:
                paint_ms = now_ms + round(1000 * PAINT_S)
                self._paint(now_ms)
            if now_ms >= status_ms and self._port is not None:
                status_ms = now_ms + round(1000 * STATUS_S)
                with contextlib.suppress(OSError):
                    self._port.write(self._sender.encode(self._rules.status(now_ms)))

    def _read(self, now_ms: int) -> bytes:
        if now_ms < self._unplugged_until_ms:
            if self._port is not None:
                self._port.close()
                self._port = None
            time.sleep(0.02)
            return b""
        if self._port is None:
            self._port = open_pty(str(self.link))
        try:
            return self._port.read(0.02)
        except OSError:  # nobody has the other end open just now
            time.sleep(0.02)
            return b""

    def _paint(self, now_ms: int) -> None:
        screen = self._rules.screen(now_ms)
        self.lost, self.bad = self._rules.lost, self._rules.decoder.counters.bad
        shown = Shown(now_ms, _rate(screen.pr.x10), _rate(screen.rr.x10), screen.mode.name, screen.message, screen.host_t_ms)
        last = self.shown[-1] if self.shown else None
        if last is None or (last.pr_x10, last.rr_x10, last.mode, last.message, last.host_t_ms) != (
                shown.pr_x10, shown.rr_x10, shown.mode, shown.message, shown.host_t_ms):
            self.shown.append(shown)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _rate(x10: int) -> int | None:
    return None if x10 == NO_RATE else x10


def decode_vitals(frame: bytes, newest_ms: int) -> Sent | None:
    """A VITALS frame as its sender reported it; None for other bytes."""
    for decoded in Decoder().feed(frame):
        if decoded.header is not None and isinstance(decoded.message, Vitals):
            message, header = decoded.message, decoded.header
            return Sent(header.session, header.t_ms, _rate(message.pr_x10), _rate(message.rr_x10), newest_ms)
    return None


def wrong_shown(shown: Sequence[Shown], sent: Sequence[Sent], away: Sequence[tuple[int, int]], end_ms: int) -> list[Wrong]:
    """Everything on the glass that should not have been there.

    away: [(from, to)] in ms while no picture could come. A number is wrong when no such VITALS was sent, when the picture
    behind it is older than the display's rules allow, or when it stood CAMERA_GONE_MS after the pictures had stopped.
    """
    by_time: dict[int, list[Sent]] = {}
    for each in sent:
        by_time.setdefault(each.t_ms, []).append(each)
    found = []
    for i, now in enumerate(shown):
        if not now.has_number:
            continue
        until_ms = shown[i + 1].t_ms if i + 1 < len(shown) else end_ms
        sources = [s for s in by_time.get(now.host_t_ms if now.host_t_ms is not None else -1, ())
                   if now.pr_x10 in (None, s.pr_x10) and now.rr_x10 in (None, s.rr_x10)]
        if not sources:
            found.append(Wrong(now.t_ms, f"PR {_text(now.pr_x10)} RR {_text(now.rr_x10)} was never sent"))
            continue
        age_ms = until_ms - max(s.newest_ms for s in sources)
        if age_ms > MAX_AGE_MS + AGE_SLACK_MS:
            found.append(Wrong(now.t_ms, f"a number {age_ms / 1000:.1f} s after its newest picture"))
        if any(start + CAMERA_GONE_MS + AGE_SLACK_MS < until_ms and now.t_ms < stop for start, stop in away):
            found.append(Wrong(now.t_ms, "a number while the camera was away"))
    return found


def off_truth(shown: Sequence[Shown], hr: float | None, rr: float | None, tolerance: float, end_ms: int) -> float | None:
    """Share of the time with a number in which one was further from the truth than the tolerance. None: no truth, no number."""
    right_ms = wrong_ms = 0
    for i, now in enumerate(shown):
        until_ms = shown[i + 1].t_ms if i + 1 < len(shown) else end_ms
        pairs = [(value / 10, truth) for value, truth in ((now.pr_x10, hr), (now.rr_x10, rr))
                 if value is not None and truth is not None]
        if pairs:
            if any(abs(value - truth) > tolerance for value, truth in pairs):
                wrong_ms += until_ms - now.t_ms
            else:
                right_ms += until_ms - now.t_ms
    return wrong_ms / (wrong_ms + right_ms) if wrong_ms + right_ms else None


def first_with(shown: Sequence[Shown], what: str, from_ms: int) -> int | None:
    """When the glass first held "number", "both" or "none" at or after from_ms, in ms after it; None where it never did."""
    def fits(each: Shown) -> bool:
        return {"number": each.has_number, "both": each.has_both, "none": not each.has_number}[what]

    after = bisect_right(shown, from_ms, key=lambda each: each.t_ms)
    if after and fits(shown[after - 1]):
        return 0
    return next((each.t_ms - from_ms for each in islice(shown, after, None) if fits(each)), None)


def _text(x10: int | None) -> str:
    return "---" if x10 is None else f"{x10 / 10:.1f}"
