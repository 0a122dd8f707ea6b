"""`physvlm display`: the bedside display behind a port, a pty or a recording; in this terminal, as a page, as a picture."""

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

from firmware_bridge.faults import FaultError, Faults
from firmware_bridge.link import Link
from firmware_bridge.painter import MIN_SIZE, changed, closing_line, paint, plain_line
from firmware_bridge.port import BAUDS, LinkError, open_pty
from firmware_bridge.recording import Recording, is_recording
from firmware_bridge.rules import Screen
from firmware_bridge.schema import NO_RATE
from firmware_bridge.simulator import HEIGHT_PX, WIDTH_PX, DisplayDevice, Look, PythonDisplay, Simulator


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


class Glass:
    """Where screens are drawn: a terminal's alternate page, or plain lines on change."""

    def __init__(self, out: TextIO, source: str, plain: bool) -> None:
        size = shutil.get_terminal_size()
        small = size.columns < MIN_SIZE[0] or size.lines < MIN_SIZE[1]
        utf8 = (getattr(out, "encoding", "") or "").lower().startswith("utf")
        self.plain = plain or not out.isatty() or small or not utf8
        self._out, self._source = out, source
        self._size: tuple[int, int] = (0, 0)

    def __enter__(self) -> Glass:
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


class Watch:
    """What is done at every look: the account kept, the glass drawn, others told."""

    def __init__(self, glass: Glass | None, summary: Summary, *others: Callable[[Look], None]) -> None:
        self.summary = summary
        self.last: Look | None = None
        self._glass, self._others = glass, others

    def __call__(self, look: Look) -> None:
        self.last = look
        is_new = self.summary.see(look.screen, look.t_s)
        self.summary.frames = look.counters
        if self._glass is not None:
            self._glass.draw(look.screen, look.t_s, is_new)
        for other in self._others:
            other(look)


def run_port(link: Link, glass: Glass | None, seconds: float | None = None, until_bye: bool = False,
             send_status: bool = True, clock: Callable[[], int] = time.monotonic_ns,
             summary: Summary | None = None) -> Summary:
    """Displays what an open link delivers until BYE or the time is up. Survives hang-ups; reports 1 Hz STATUS.

    summary: the account to fill, for a caller that wants it whatever ends the loop.
    """
    watch = Watch(glass, summary if summary is not None else Summary())
    simulator = Simulator(link, display_maker(needs_pixels=False), send_status=send_status, clock=clock)
    simulator.run(watch, seconds, until_bye)
    return watch.summary


def display_maker(needs_pixels: bool) -> Callable[[int], DisplayDevice]:
    """The firmware's display; the Python rules where it cannot be built, which is said, and only where no pixels are asked
    for."""
    from firmware_bridge.core import CoreDisplay, CoreError

    try:
        CoreDisplay(0)
    except CoreError as error:
        if needs_pixels:
            raise
        print(f"physvlm display: {error} Showing the Python rules instead, which are not what the bedside runs.",
              file=sys.stderr)
        return PythonDisplay
    return CoreDisplay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `physvlm display`."""
    parser.add_argument("source", nargs="?", help="serial port, a recording, or a file of plain wire bytes")
    parser.add_argument("--pty", metavar="LINK", help="make a pty instead, and put its name under the symlink LINK")
    parser.add_argument("--baud", type=int, default=115200, choices=BAUDS, help="default 115200")
    parser.add_argument("--stop-bits", type=int, default=1, choices=(1, 2), help="default 1")
    parser.add_argument("--wait", action="store_true", help="wait for a port that is not there yet")
    parser.add_argument("--fast", action="store_true", help="replay a file as fast as it goes")
    parser.add_argument("--plain", action="store_true", help="one line per change instead of a drawn screen")
    parser.add_argument("--web", nargs="?", type=_tcp_port, const=0, metavar="PORT",
                        help="a page for a browser on this computer, with the exact pixels (default: a free port)")
    parser.add_argument("--png", type=Path, metavar="OUT", help="write the last screen as a picture")
    parser.add_argument("--png-at", type=float, metavar="SECONDS", help="the screen of this moment instead of the last")
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep what arrives and when, to be replayed exactly")
    parser.add_argument("--drop", type=float, default=0.0, metavar="PERCENT", help="simulate: so many frames vanish")
    parser.add_argument("--bit-errors", type=float, default=0.0, metavar="RATE", help="simulate: chance that a bit flips")
    parser.add_argument("--delay", type=int, default=0, metavar="MS", help="simulate: everything arrives so late")
    parser.add_argument("--unplug", action="store_true", help="simulate: start with the cable out")
    parser.add_argument("--seed", type=int, default=1, help="which frames and bits the simulated faults hit (default 1)")
    parser.add_argument("--no-status", action="store_true", help="one-way: do not send STATUS back")
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--until-bye", action="store_true", help="stop when the camera unit says BYE")
    parser.add_argument("--summary-json", metavar="FILE", help="write what was received and shown, as JSON")


def _tcp_port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a TCP port, got {text!r}; name the source before --web")
    return int(text)


def main(args: argparse.Namespace) -> int:
    """Runs the display; 0 when it ended as asked (Ctrl-C too), 1 when a replay showed other pixels than were recorded, 2 when
    it cannot start."""
    try:
        _check(args)
        watch = _run(args)
        _report(watch.summary, args.summary_json)
    except (LinkError, FaultError) as error:
        print(f"physvlm display: {error}", file=sys.stderr)
        return 2
    replay = watch.last.replay if watch.last is not None else None
    if replay is None or replay.same is None:
        return 0
    print(f"replay of {replay.name}: the last screen is "
          + ("the recorded one" if replay.same else f"NOT the recorded one ({replay.screen[:16]})"))
    return 0 if replay.same else 1


def _check(args: argparse.Namespace) -> None:
    if (args.source is None) == (args.pty is None):
        raise LinkError("give a port or a file, or --pty LINK, and not both")
    if args.png_at is not None and args.png is None:
        raise LinkError("--png-at says when; --png OUT says where to")
    if args.fast and args.web is not None:
        raise LinkError("--fast is too fast to be looked at with --web; leave one out")


def _run(args: argparse.Namespace) -> Watch:
    faults = Faults(args.drop / 100, args.bit_errors, args.delay, args.unplug)
    make_display = display_maker(needs_pixels=args.web is not None or args.png is not None)
    with contextlib.ExitStack() as stack:
        simulator = Simulator(_source(args, stack), make_display, faults=faults, seed=args.seed, record=args.record,
                              send_status=not args.no_status, paced=not args.fast, stays=args.web is not None,
                              with_pixels=args.web is not None)
        camera = _Camera(simulator, args.png, args.png_at)
        others: list[Callable[[Look], None]] = [camera]
        if args.web is not None:
            from firmware_bridge.web import WebPage

            page = WebPage(simulator, args.web)
            stack.callback(page.close)
            others.append(page.show)
            print(f"simulator: {page.url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
        glass = stack.enter_context(Glass(sys.stdout, args.pty or args.source,
                                          args.plain or args.fast or args.web is not None))
        watch = Watch(glass, Summary(), *others)
        with _signals_to(simulator.stop):
            simulator.run(watch, args.seconds, args.until_bye)
        camera.finish()
    return watch


def _source(args: argparse.Namespace, stack: contextlib.ExitStack) -> Link | Recording | Path:
    if args.source is not None and os.path.isfile(args.source):
        if not is_recording(args.source):
            return Path(args.source)
        recording = Recording.read(Path(args.source))
        if not recording.complete:
            print(f"physvlm display: {args.source} was cut off; {recording.steps} steps "
                  f"({recording.duration_ms / 1000:.1f} s) are whole and will be replayed.", file=sys.stderr)
        return recording
    link = Link(args.pty or args.source, args.baud, args.stop_bits,
                opener=(lambda: open_pty(args.pty)) if args.pty else None)
    link.open(wait=args.wait)
    stack.callback(link.close)
    return link


class _Camera:
    """Takes one picture of the glass: at a moment, or at the end."""

    def __init__(self, simulator: Simulator, path: Path | None, at_s: float | None) -> None:
        self._simulator, self._path, self._at_s = simulator, path, at_s
        self._seen_s = 0.0

    def __call__(self, look: Look) -> None:
        self._seen_s = look.t_s
        if self._path is not None and self._at_s is not None and look.t_s >= self._at_s:
            self._take(self._path)

    def finish(self) -> None:
        if self._path is None:
            return
        if self._at_s is not None:
            raise LinkError(f"no picture was taken at {self._at_s:g} s: the display ended after {self._seen_s:.1f} s. "
                            "Choose an earlier moment.")
        self._take(self._path)

    def _take(self, path: Path) -> None:
        from firmware_bridge.png import encode_png

        write_whole(path, encode_png(self._simulator.pixels(), WIDTH_PX, HEIGHT_PX))
        self._path = None


@contextlib.contextmanager
def _signals_to(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM end the display in good order; the second one ends it at once."""
    def handle(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.default_int_handler)
        stop()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise LinkError(f"{path} cannot be written ({error.strerror}); choose another path.") from error


def _report(summary: Summary, path: str | None) -> None:
    if summary.last is not None:
        result = summary.as_dict()
        print(f"{summary.duration_s:.1f} s: PR shown {100 * result['pr_shown_fraction']:.0f} %, "
              f"RR shown {100 * result['rr_shown_fraction']:.0f} % of the time; "
              f"{closing_line(summary.last.mode, summary.last.pr, summary.last.rr)}")
    if path is not None:
        write_whole(Path(path), json.dumps(summary.as_dict(), indent=1).encode() + b"\n")
