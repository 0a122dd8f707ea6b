"""`physvlm display`: the display's rules behind a serial port, a pty or a recorded wire file, drawn in a terminal."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from firmware_bridge.frame import Decoder, Sender, Verdict
from firmware_bridge.link import Link
from firmware_bridge.painter import MIN_SIZE, changed, closing_line, paint, plain_line
from firmware_bridge.port import BAUDS, LinkError, open_pty
from firmware_bridge.rules import DisplayRules, Screen
from firmware_bridge.schema import NO_RATE, MessageType, ScreenMode

PAINT_INTERVAL_MS = 100
STATUS_INTERVAL_MS = 1_000
SESSION_PAUSE_MS = 500  # put between the sessions of a recording, whose clocks have nothing in common
MAX_SILENCE_MS = 10_000  # a longer silence in a recording is cut to this; the screen has long been blank


@dataclass
class Summary:
    """What the display received and showed. Times are seconds since the display started.

    changes: one entry whenever something on the glass changed; host_t_ms is the sender's clock behind the numbers.
    """

    duration_s: float = 0.0
    pr_shown_s: float = 0.0
    rr_shown_s: float = 0.0
    first_pr_s: float | None = None
    first_rr_s: float | None = None
    mode_s: dict[str, float] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    frames: dict[str, int] = field(default_factory=dict)
    last: Screen | None = None

    def see(self, screen: Screen, t_s: float) -> bool:
        """Accounts for the time since the last screen; True when this one differs from it."""
        last, passed_s = self.last, t_s - self.duration_s
        if last is not None:
            self.pr_shown_s += passed_s * (last.pr.x10 != NO_RATE)
            self.rr_shown_s += passed_s * (last.rr.x10 != NO_RATE)
            self.mode_s[last.mode.name] = self.mode_s.get(last.mode.name, 0.0) + passed_s
        self.duration_s, self.last = t_s, screen
        if self.first_pr_s is None and screen.pr.x10 != NO_RATE:
            self.first_pr_s = t_s
        if self.first_rr_s is None and screen.rr.x10 != NO_RATE:
            self.first_rr_s = t_s
        if not changed(last, screen):
            return False
        self.changes.append({"t_s": round(t_s, 3), "host_t_ms": screen.host_t_ms, "pr": str(screen.pr),
                             "rr": str(screen.rr), "pr_reason": screen.pr.reason, "rr_reason": screen.rr.reason,
                             "mode": screen.mode.name, "message": screen.message})
        return True

    def as_dict(self) -> dict[str, Any]:
        span = self.duration_s or 1.0
        return {
            "duration_s": round(self.duration_s, 3),
            "pr_shown_fraction": round(self.pr_shown_s / span, 4),
            "rr_shown_fraction": round(self.rr_shown_s / span, 4),
            "first_pr_s": self.first_pr_s, "first_rr_s": self.first_rr_s,
            "mode_s": {mode: round(s, 3) for mode, s in self.mode_s.items()},
            "frames": self.frames,
            "last": {"pr": str(self.last.pr), "rr": str(self.last.rr), "mode": self.last.mode.name,
                     "banners": list(self.last.banners)} if self.last else None,
            "changes": self.changes,
        }


class _Glass:
    """Where screens are drawn: a terminal's alternate page, or plain lines on change."""

    def __init__(self, out: TextIO, source: str, plain: bool) -> None:
        size = shutil.get_terminal_size()
        small = size.columns < MIN_SIZE[0] or size.lines < MIN_SIZE[1]
        utf8 = (getattr(out, "encoding", "") or "").lower().startswith("utf")
        self.plain = plain or not out.isatty() or small or not utf8
        self._out, self._source = out, source
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> _Glass:
        if not self.plain:
            self._out.write("\x1b[?1049h\x1b[?25l")
        return self

    def __exit__(self, *_: object) -> None:
        if not self.plain:
            self._out.write("\x1b[?25h\x1b[?1049l")
        self._out.flush()

    def draw(self, screen: Screen, t_s: float, is_new: bool) -> None:
        if self.plain:
            if is_new:
                print(plain_line(screen, t_s), file=self._out, flush=True)
            return
        size = shutil.get_terminal_size()
        width, height = max(size.columns, MIN_SIZE[0]), max(size.lines, MIN_SIZE[1])
        erase = "\x1b[2J" if (width, height) != self._size else ""
        self._size = (width, height)
        lines = paint(screen, width, height, self._source)
        self._out.write(erase + "\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")
        self._out.flush()


class Display:
    """The rules, the glass and the account, driven by whoever owns the bytes and the clock (milliseconds)."""

    def __init__(self, glass: _Glass | None, now_ms: int, summary: Summary | None = None) -> None:
        self.rules = DisplayRules(now_ms)
        self.summary = summary if summary is not None else Summary()
        self._glass = glass
        self._start_ms = now_ms
        self._paint_ms = now_ms

    def step(self, data: bytes, now_ms: int) -> bool:
        """Takes bytes, repaints when it is time. True while monitoring goes on, False once it was stopped by BYE."""
        self.rules.receive(data, now_ms)
        if now_ms >= self._paint_ms:
            self._paint_ms = now_ms + PAINT_INTERVAL_MS
            self.paint(now_ms)
        return self.summary.last is None or self.summary.last.mode is not ScreenMode.STOPPED

    def paint(self, now_ms: int) -> None:
        screen = self.rules.screen(now_ms)
        t_s = (now_ms - self._start_ms) / 1000
        is_new = self.summary.see(screen, t_s)
        if self._glass is not None:
            self._glass.draw(screen, t_s, is_new)
        counters = self.rules.decoder.counters
        self.summary.frames = {**counters.as_dict(), "lost": self.rules.lost, "late": self.rules.late}


def run_port(link: Link, glass: _Glass | None, seconds: float | None = None, until_bye: bool = False,
             send_status: bool = True, clock: Callable[[], int] = time.monotonic_ns,
             summary: Summary | None = None) -> Summary:
    """Displays what an open link delivers until Ctrl-C, BYE or the time is up. Survives hang-ups; reports 1 Hz STATUS.

    summary: the account to fill, for a caller that wants it whatever ends the loop.
    """
    start_ms = clock() // 1_000_000
    display = Display(glass, start_ms, summary)
    sender = Sender(clock)
    status_ms = start_ms + STATUS_INTERVAL_MS
    goes_on = True
    while goes_on or not until_bye:
        data = link.read(timeout_s=PAINT_INTERVAL_MS / 2000)
        now_ms = clock() // 1_000_000
        goes_on = display.step(data, now_ms)
        if send_status and now_ms >= status_ms:
            status_ms = now_ms + STATUS_INTERVAL_MS
            link.offer(sender.encode(display.rules.status(now_ms)), MessageType.STATUS)
        if seconds is not None and now_ms - start_ms >= 1000 * seconds:
            break
    return display.summary


def run_file(path: str | Path, glass: _Glass | None, paced: bool = True, seconds: float | None = None,
             until_bye: bool = False, summary: Summary | None = None) -> Summary:
    """Replays a recorded wire on the sender's clock, at its pace or as fast as it goes."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise LinkError(f"wire file {path} cannot be read ({error.strerror}). Check the path.") from error
    display = Display(glass, 0, summary)
    start_s = time.monotonic()
    tick_ms = 0
    for arrival_ms, chunk in _timeline(data):
        while tick_ms < arrival_ms:
            tick_ms = min(arrival_ms, tick_ms + PAINT_INTERVAL_MS // 2)
            if paced:
                time.sleep(max(0.0, start_s + tick_ms / 1000 - time.monotonic()))
            goes_on = display.step(b"", tick_ms)
            if (until_bye and not goes_on) or (seconds is not None and tick_ms >= 1000 * seconds):
                return display.summary
        display.step(chunk, arrival_ms)
    display.paint(tick_ms)
    return display.summary


def _timeline(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cuts a recording at its delimiters; every piece comes with the time of its frame, a bad one with that before."""
    decoder = Decoder()
    now_ms, session, last_t_ms, start = 0, None, 0, 0
    while start < len(data):
        end = data.find(b"\x00", start)
        end = len(data) if end < 0 else end + 1
        for frame in decoder.feed(data[start:end]):
            header = frame.header
            if frame.verdict is not Verdict.OK or header is None or header.type & 0x80:
                continue
            step_ms = (header.t_ms - last_t_ms) & 0xFFFFFFFF
            if session == header.session:
                if step_ms >= 0x80000000:  # older: it came late
                    continue
                now_ms += min(step_ms, MAX_SILENCE_MS)
            elif session is not None:
                now_ms += SESSION_PAUSE_MS
            session, last_t_ms = header.session, header.t_ms
        yield now_ms, data[start:end]
        start = end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `physvlm display`."""
    parser.add_argument("source", nargs="?", help="serial port, or a file of recorded wire bytes")
    parser.add_argument("--pty", metavar="LINK", help="make a pty instead, and put its name under the symlink LINK")
    parser.add_argument("--baud", type=int, default=115200, choices=BAUDS, help="default 115200")
    parser.add_argument("--stop-bits", type=int, default=1, choices=(1, 2), help="default 1")
    parser.add_argument("--wait", action="store_true", help="wait for a port that is not there yet")
    parser.add_argument("--fast", action="store_true", help="replay a file as fast as it goes")
    parser.add_argument("--plain", action="store_true", help="one line per change instead of a drawn screen")
    parser.add_argument("--no-status", action="store_true", help="one-way: do not send STATUS back")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--until-bye", action="store_true", help="stop when the camera unit says BYE")
    parser.add_argument("--summary-json", metavar="FILE", help="write what was received and shown, as JSON")


def main(args: argparse.Namespace) -> int:
    """Runs the display; 0 when it ended as asked (Ctrl-C too), 2 when it cannot start."""
    if (args.source is None) == (args.pty is None):
        print("physvlm display: give a port or a file, or --pty LINK, and not both", file=sys.stderr)
        return 2
    summary = Summary()
    try:
        with contextlib.suppress(KeyboardInterrupt), _sigterm_as_ctrl_c():
            _run(args, summary)
        _report(summary, args.summary_json)
    except LinkError as error:
        print(f"physvlm display: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """So that a stopped display, too, gives the terminal back and reports."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(args: argparse.Namespace, summary: Summary) -> None:
    name = args.pty or args.source
    if args.source is not None and os.path.isfile(args.source):
        with _Glass(sys.stdout, name, args.plain or args.fast) as glass:
            run_file(args.source, glass, not args.fast, args.seconds, args.until_bye, summary)
        return
    link = Link(name, args.baud, args.stop_bits, opener=(lambda: open_pty(args.pty)) if args.pty else None)
    link.open(wait=args.wait)
    try:
        with _Glass(sys.stdout, name, args.plain) as glass:
            run_port(link, glass, args.seconds, args.until_bye, not args.no_status, summary=summary)
    finally:
        link.close()


def _report(summary: Summary, path: str | None) -> None:
    if summary.last is not None:
        result = summary.as_dict()
        print(f"{summary.duration_s:.1f} s: PR shown {100 * result['pr_shown_fraction']:.0f} %, "
              f"RR shown {100 * result['rr_shown_fraction']:.0f} % of the time; "
              f"{closing_line(summary.last.mode, summary.last.pr, summary.last.rr)}")
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(summary.as_dict(), indent=1) + "\n")
    except OSError as error:
        raise LinkError(f"summary {path} cannot be written ({error.strerror}); choose another path.") from error
