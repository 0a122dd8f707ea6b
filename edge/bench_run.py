"""One live run under the benchmark: the appliance in its process, the display on a pty, faults on schedule.

The conductor plays the supervisor, too: what dies is started again a second later, as systemd would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from edge.bench_glass import Glass, Sent, Shown, decode_vitals, first_with
from edge.bench_machine import Board, BoardWatch, Load, load_of
from firmware_bridge.core import build

RESTART_S = 1.0
SETTLED_S = 2.0
"""Both numbers must have stood so long before the next fault."""

RIGHT_LIMIT_S, RECOVERY_LIMIT_S = 10.0, 90.0
"""Later than this a fault counts as not seen, as not recovered from."""

FAULTS: dict[str, float] = {"camera_unplug": 4.0, "camera_stall": 4.0, "display_unplug": 4.0, "engine_error": 0.0,
                            "disk_full": 5.0, "disk_read_only": 5.0, "clock_step": 8.0, "process_stop": 8.0,
                            "memory_full": 5.0, "engine_memory": 0.0, "process_kill": 0.0}
"""Fault -> seconds that it is held, unless a plan says otherwise."""

ENDS_PROCESS = ("process_stop", "memory_full", "engine_memory", "process_kill")
"""Last in a run: memory can only be judged over one process."""

CAMERA_FAULTS = ("camera_unplug", "camera_stall")
KEEPS_NUMBERS = ("disk_full", "disk_read_only", "clock_step")
"""Nothing may happen on the glass; the recorder has to come back."""

CLOCK_STEP_S = 3600


class RunError(RuntimeError):
    """The appliance did not start or did not come to a number: nothing can be measured."""


@dataclass(frozen=True)
class Fault:
    """One fault as it went. Times in ms, monotonic. right_ms: until the glass held what it should; pr_back_ms and back_ms:
    from its end until PR, then both numbers stood there again. None: never, within RECOVERY_LIMIT_S.
    """

    name: str
    begin_ms: int
    end_ms: int
    right_ms: int | None
    pr_back_ms: int | None
    back_ms: int | None
    messages: tuple[str, ...]

    @property
    def over_ms(self) -> int:
        return self.end_ms + (self.back_ms if self.back_ms is not None else round(1000 * RECOVERY_LIMIT_S))


@dataclass
class Log:
    """Everything that a run gave. Times of the appliance's own lines in ns, of the glass in ms: one monotonic clock.

    lost, bad: frames of the wire until quiet_end_ns.
    """

    spawned_ns: list[int] = field(default_factory=list)
    first_ns: dict[int, int] = field(default_factory=dict)  # process number -> its first frame
    hops: list[dict[str, Any]] = field(default_factory=list)
    seconds: list[dict[str, Any]] = field(default_factory=list)
    said: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    loads: list[tuple[int, int, Load]] = field(default_factory=list)  # (ns, process number, load)
    board: list[Board] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    exits: list[tuple[int, int]] = field(default_factory=list)  # (process number, code)
    lost: int = 0
    bad: int = 0
    quiet_end_ns: int = 0
    end_ns: int = 0
    stderr: str = ""


class WallClock:
    """The wall clock as the appliance sees it; every other clock stays the machine's. Raises CoreError without a compiler."""

    def __init__(self, folder: Path) -> None:
        self._library = build([Path(__file__).with_name("wall_clock.c")], "wall_clock")
        self._file = folder / "wall-clock"
        self._file.write_bytes(bytes(8))

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(self._library), "PHYSVLM_WALL_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        with self._file.open("r+b") as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


class Appliance:
    """The process under test, started again when it dies."""

    def __init__(self, spec: Mapping[str, Any], log: Log, stderr: Path, environment: Mapping[str, str] | None = None) -> None:
        self._command = [sys.executable, "-m", "edge.bench_child", json.dumps(spec)]
        self._log, self._stderr, self._environment = log, stderr, environment
        self._stopping = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Appliance:
        self._start()
        self._keeper = threading.Thread(target=self._keep, name="supervisor", daemon=True)
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._keeper.join(RESTART_S + 5)
        process = self._process
        if process is not None:
            self.tell("stop")
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tell(self, command: str) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):  # dead just now: there is nobody to be told
                process.stdin.write(command + "\n")
                process.stdin.flush()

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _start(self) -> None:
        number = len(self._log.spawned_ns)
        self._log.spawned_ns.append(time.monotonic_ns())
        with self._stderr.open("a") as sink:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink,
                                             text=True, env=self._environment)
        threading.Thread(target=self._listen, args=(self._process.stdout, number), name="ear", daemon=True).start()

    def _keep(self) -> None:
        """Watches memory and CPU once a second, and starts anew what has ended."""
        while not self._stopping.wait(1.0):
            process, number = self._process, len(self._log.spawned_ns) - 1
            if process is None:
                continue
            if process.poll() is not None:
                self._log.exits.append((number, process.returncode))
                if not self._stopping.wait(RESTART_S):
                    self._start()
                continue
            load = load_of(process.pid)
            if load is not None:
                self._log.loads.append((time.monotonic_ns(), number, load))

    def _listen(self, lines: IO[str], number: int) -> None:
        """Takes the appliance's lines apart; `vitals` comes before the port has the bytes, `said` after."""
        log, waiting = self._log, None
        for text in lines:
            if not text.endswith("\n"):
                break  # killed
            line = json.loads(text)
            kind = line.pop("k")
            line["process"] = number
            if kind == "vitals":
                waiting = decode_vitals(bytes.fromhex(line["hex"]), time.monotonic_ns() // 1_000_000)
                if waiting is not None:
                    log.sent.append(waiting)
            elif kind == "said":
                if waiting is not None:
                    log.sent[-1] = replace(waiting, newest_ms=line["newest"] // 1_000_000)
                    waiting = None
                log.said.append(line)
            elif kind == "first":
                log.first_ns[number] = line["t"]
            else:
                {"hop": log.hops, "second": log.seconds, "event": log.events}[kind].append(line)


def conduct(clip: Path, config: Mapping[str, Any], folder: Path, quiet_s: float, plan: Sequence[tuple[str, float]] | None,
            total_s: float, tell: Callable[[str], None]) -> Log:
    """quiet_s without a fault, then faults: those planned, or as many as fit until total_s. Raises RunError.

    plan: names with the seconds that each is held. folder: for the pty's name, the appliance's stderr and its recording.
    tell: progress, a line at a time.
    """
    log, link, stderr = Log(), folder / "display", folder / "stderr.log"
    spec = {"config": {**config, "camera.source": str(clip), "serial.port": str(link), "serial.demo": True},
            "record": str(folder / "recording")}
    clock = WallClock(folder) if plan is not None and any(name == "clock_step" for name, _ in plan) else None
    with Glass(link) as glass, BoardWatch() as board, Appliance(
            spec, log, stderr, clock.environment() if clock else None) as appliance:
        log.shown, log.board = glass.shown, board.samples
        start_s = time.monotonic()
        try:
            _await(lambda: 0 in log.first_ns, 30.0, "the appliance took no frame within 30 s")
            tell(f"first frame after {(log.first_ns[0] - log.spawned_ns[0]) / 1e9:.2f} s; {quiet_s:.0f} s without faults")
            time.sleep(max(0.0, quiet_s - (time.monotonic() - start_s)))
            log.quiet_end_ns, log.lost, log.bad = time.monotonic_ns(), glass.lost, glass.bad
            for name, hold_s in plan if plan is not None else _until(start_s + total_s):
                log.faults.append(_inject(name, hold_s, appliance, glass, log, clock))
                tell(_in_words(len(log.faults), log.faults[-1]))
            time.sleep(max(0.0, total_s - (time.monotonic() - start_s)))
        except RunError as e:
            raise RunError(f"{e}; it said:\n{_tail(stderr)}") from e
        log.end_ns = time.monotonic_ns()
    log.stderr = _tail(stderr)
    return log


def _until(end_s: float) -> list[tuple[str, float]]:
    """Faults for the time that is left: the gentle ones in turn, at last each of those that end the process.

    Not the clock's steps: what makes them costs time at every look at a clock.
    """
    left_s = end_s - time.monotonic()
    cost_s = {name: hold_s + 22.0 for name, hold_s in FAULTS.items() if name != "clock_step"}
    last = [name for name in ENDS_PROCESS if left_s > 60] if left_s > 150 else []
    left_s -= sum(cost_s[name] for name in last)
    gentle = [name for name in cost_s if name not in ENDS_PROCESS]
    plan: list[str] = []
    while left_s > cost_s[gentle[len(plan) % len(gentle)]]:
        plan.append(gentle[len(plan) % len(gentle)])
        left_s -= cost_s[plan[-1]]
    return [(name, FAULTS[name]) for name in (*plan, *last)]


def _inject(name: str, hold_s: float, appliance: Appliance, glass: Glass, log: Log, clock: WallClock | None) -> Fault:
    """Waits for a glass with both numbers, does it, waits for both again."""
    _await(lambda: _settled(glass), RECOVERY_LIMIT_S, f"no two numbers on the glass before {name}")
    begin_ms = _now_ms()
    if name == "display_unplug":
        glass.unplug(hold_s)
    elif name in ("process_stop", "process_kill"):
        appliance.signal(signal.SIGSTOP if name == "process_stop" else signal.SIGKILL)
    elif name != "clock_step":
        appliance.tell({"camera_unplug": f"unplug {hold_s}", "camera_stall": f"stall {hold_s}", "disk_full": f"disk {hold_s}",
                        "disk_read_only": f"readonly {hold_s}", "memory_full": f"memory {hold_s}",
                        "engine_error": "engine 1 told to fail", "engine_memory": "engine 20 out of memory"}[name])
    if clock is not None and name == "clock_step":
        _step(clock, hold_s, log)
    else:
        time.sleep(hold_s)
    end_ms = _now_ms()
    if name == "process_stop":
        appliance.signal(signal.SIGCONT)
    if name in KEEPS_NUMBERS:
        _await_softly(lambda: _records_again(log, end_ms), 60.0)
        back_ms = _now_ms() - end_ms if _records_again(log, end_ms) else None
        blank = first_with(glass.shown, "none", begin_ms)
        right = 0 if blank is None or begin_ms + blank > end_ms + 2000 else None
        return Fault(name, begin_ms, end_ms, right, 0 if right == 0 else None, back_ms, _messages(glass.shown, begin_ms))
    _await_softly(lambda: first_with(glass.shown, "none", begin_ms) is not None, RIGHT_LIMIT_S)
    right_ms = first_with(glass.shown, "none", begin_ms)
    if name == "memory_full" and right_ms is None:  # the process had all that it needs
        return Fault(name, begin_ms, end_ms, 0, 0, 0, ())
    blank_ms = max(end_ms, begin_ms + (right_ms or 0))
    _await_softly(lambda: first_with(glass.shown, "both", blank_ms) is not None, RECOVERY_LIMIT_S)
    pr_ms, both_ms = (None if ms is None else ms + blank_ms - end_ms
                      for ms in (first_with(glass.shown, what, blank_ms) for what in ("number", "both")))
    return Fault(name, begin_ms, end_ms, right_ms, pr_ms, both_ms, _messages(glass.shown, begin_ms))


def _step(clock: WallClock, hold_s: float, log: Log) -> None:
    """An hour forth, an hour back, right again. Raises RunError where the appliance never saw it."""
    for seconds in (CLOCK_STEP_S, -CLOCK_STEP_S, 0):
        clock.step(seconds)
        time.sleep(hold_s / 2 if seconds else 2.0)
        ahead_s = log.seconds[-1]["wall"] - time.time()
        if abs(ahead_s - seconds) > 60:
            raise RunError(f"the wall clock should be {seconds:+d} s off and is {ahead_s:+.0f}: it cannot be stepped here")


def _settled(glass: Glass) -> bool:
    """Both numbers stand, and have for SETTLED_S."""
    since_ms = _now_ms() - round(1000 * SETTLED_S)
    return first_with(glass.shown, "both", since_ms) == 0 and all(
        each.has_both for each in glass.shown[-8:] if each.t_ms >= since_ms)


def _records_again(log: Log, end_ms: int) -> bool:
    """Whether the appliance's recorder has kept more since the fault's end than at it."""
    after = [line for line in log.seconds[-120:] if line["t"] // 1_000_000 >= end_ms]
    return len(after) > 1 and after[-1]["kept"] > after[0]["kept"]


def _messages(shown: Sequence[Shown], from_ms: int) -> tuple[str, ...]:
    """What the display said in words since then, each once, in order."""
    words = [each.message or each.mode for each in shown if each.t_ms >= from_ms and (each.message or each.mode != "LIVE")]
    return tuple(dict.fromkeys(words))


def _await(condition: Callable[[], bool], limit_s: float, otherwise: str) -> None:
    if not _await_softly(condition, limit_s):
        raise RunError(otherwise)


def _await_softly(condition: Callable[[], bool], limit_s: float) -> bool:
    end_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.05)
    return True


def _in_words(number: int, fault: Fault) -> str:
    def text(ms: int | None) -> str:
        return "never" if ms is None else f"{ms / 1000:.1f} s"

    return f"fault {number}: {fault.name}: right after {text(fault.right_ms)}, back after {text(fault.back_ms)}"


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(path.read_text(errors="replace").splitlines()[-12:])
    return ""
