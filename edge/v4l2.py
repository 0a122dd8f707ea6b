"""`usb:` cameras: frames with the driver's own times, numbers and damage flags, and with the automatisms locked.

The spec is `usb:N`, `usb:/dev/videoN` or `usb:/dev/v4l/by-id/...`, with `,WxH`, `,WxH@FPS` or `,@FPS` behind it where
640x480 at 30 is not what is wanted.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from edge.camera import Camera, CameraError, CameraLost
from edge.records import Frame
from edge.v4l2_device import Buffer, Device, Kernel
from edge.v4l2_find import Identity, again, identity, named, parse, why
from edge.v4l2_format import Picture, Wish, choose, to_bgr
from edge.v4l2_lock import Locked, lock, prepare, settled_values

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_BUFFERS = 4  # 133 ms at 30 Hz: enough for a reader that is late once, too little to grow old in

FIRST_FRAME_S = 5.0
STALL_S = 2.0
"""Without a picture this long the camera hangs: it is closed and opened again. The first may take longer, a webcam wakes
up slowly. Meanwhile the loop tells the display by itself."""

SETTLE_S, SETTLE_MOST_S = 2.0, 3.0
"""The automatisms run at least and at most so long before they are locked; in between, until they stand still."""

_EFFECT_S = 0.3  # a locked value shows in the pictures after those that were already under way: the queue, and some more

# Frames in a row whose time does not rise, after which the driver's clock counts as broken: a second.
_STUCK_CLOCK_FRAMES = 30
_STEP_MOST = 10_000  # a number that leaps further was not counted on: the driver has begun to count anew
# How far a stamp may lie from now and still be on our clock: behind by a full queue, ahead by a driver that stamps the
# frame's end early.
_STAMP_BEHIND_NS, _STAMP_AHEAD_NS = 5_000_000_000, 100_000_000

# The camera that each spec has meant since this program started: a number alone may later be another camera, at another bed.
_known: dict[str, Identity] = {}


def forget_cameras() -> None:
    """Take the specs at their word again."""
    _known.clear()


def open_usb(rest: str, mains_hz: int = 50, kernel: Kernel | None = None) -> UsbCamera:
    """Open what stands behind `usb:`. Streams already; the first frame is waited for by the reader.

    Once a spec has been opened it goes on meaning that camera: by its name under /dev/v4l/by-id, else by its port.
    Raises CameraError.
    """
    kernel = kernel or Kernel()
    device_name, wish = parse(rest)
    known = _known.get(rest)
    device = named(rest, device_name, kernel) if known is None else again(rest, known, kernel)
    try:
        camera = UsbCamera(device, f"usb:{rest}", wish, mains_hz, kernel)
    except OSError as error:
        device.close()
        raise CameraError(f"usb:{rest}: {device.path} {why(error)}") from error
    except CameraError:
        device.close()
        raise
    if known is None:
        _known[rest] = identity(device, kernel.root)
    return camera


class UsbCamera(Camera):
    """A V4L2 camera. Times are the driver's (CLOCK_MONOTONIC), or the moment of the grab where it gives none.

    lost: pictures that the driver numbered and we never got. damaged: pictures that came broken and were dropped.
    """

    live = True

    def __init__(self, device: Device, name: str, wish: Wish, mains_hz: int, kernel: Kernel) -> None:
        self.name = name
        self.lost = self.damaged = self.bad_stamps = 0
        self.settling = True
        self.driver_clock: bool | None = None
        self._device = device
        self._mains_hz = mains_hz
        self._now_ns = kernel.now_ns
        self._format, self.fps_nominal, self._notes = choose(device, wish)
        self.width, self.height = self._format.width, self._format.height
        self._seq = -1
        self._sequence: int | None = None
        self._last_ns = -1
        self._first_ns: int | None = None
        self._settled: dict[int, int] = {}
        self._settle_check_ns = 0
        self._locked_ns: int | None = None
        self._whole_ns = self._now_ns()
        self._waking = threading.Lock()
        self._cancelled = False
        self._wake_fd: int | None = None
        prepare(device, mains_hz)
        device.start(_BUFFERS)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for note in self._notes:
            _log.log(logging.INFO if note.startswith("format") else logging.WARNING, "%s: %s", name, note)

    def notes(self) -> tuple[str, ...]:
        return self._notes

    def __next__(self) -> Frame:
        for _ in range(_STUCK_CLOCK_FRAMES):
            frame = self._next_whole()
            if frame is not None:
                self._settle(frame.t_ns)
                return frame
        raise CameraLost(f"{self.name}: the driver's times have stopped rising for {_STUCK_CLOCK_FRAMES} frames")

    def _next_whole(self) -> Frame | None:
        """The next undamaged frame; None where its time does not rise."""
        while True:
            taken = self._take()
            try:
                # 1 at least, also where a driver does not count or begins anew
                step = 1 if self._sequence is None else (taken.sequence - self._sequence) % 2**32
                step = step if 0 < step <= _STEP_MOST else 1
                self.lost += step - 1
                self._seq += step
                self._sequence = taken.sequence
                bgr = None if taken.damaged else self._converted(taken)
            finally:
                self._guarded(partial(self._device.give_back, taken.index))
            if bgr is None:
                self.damaged += 1
                if self._now_ns() - self._whole_ns > FIRST_FRAME_S * 1e9:
                    raise CameraLost(f"{self.name}: nothing but damaged pictures for {FIRST_FRAME_S:g} s; use a shorter "
                                     "cable or another port")
                continue
            self._whole_ns = self._now_ns()
            t_ns = self._time(taken)
            if t_ns is None or t_ns <= self._last_ns:
                self.bad_stamps += 1
                return None
            self._last_ns = t_ns
            return Frame(self._seq, t_ns, bgr)

    def _take(self) -> Buffer:
        """Wait for a buffer. Raises StopIteration when cancelled, CameraLost when the camera is gone or hangs."""
        patience_s = FIRST_FRAME_S if self._sequence is None else STALL_S
        until_ns = self._now_ns() + round(patience_s * 1e9)
        while not self._cancelled and self._wake_fd is not None:
            # asked once more after the last moment: this process may have stood still, not the camera
            late = self._now_ns() >= until_ns
            events, woken = self._device.wait(self._wake_fd, 0.0 if late else (until_ns - self._now_ns()) / 1e9)
            taken = self._guarded(self._device.take) if events and not woken else None
            if taken is not None:
                return taken
            if late and not woken:
                raise CameraLost(f"{self.name}: no picture for {patience_s:g} s, the camera hangs; if this goes on, plug it in "
                                 "again, or use another port")
        raise StopIteration

    def _guarded(self, call: Callable[[], _T]) -> _T | None:
        """The call's result; None where nothing is ready after all. Raises CameraLost for any other refusal."""
        try:
            return call()
        except BlockingIOError:
            return None
        except OSError as error:
            what = "unplugged" if error.errno == errno.ENODEV else f"the driver has stopped: {error.strerror}"
            raise CameraLost(f"{self.name}: {what}") from error

    def _converted(self, taken: Buffer) -> Picture | None:
        return to_bgr(np.frombuffer(self._device.maps[taken.index], np.uint8), taken.used_bytes, self._format)

    def _time(self, taken: Buffer) -> int | None:
        """The frame's time; None where the driver's clock, once believed, says something absurd."""
        now_ns = self._now_ns()
        ours = taken.monotonic and now_ns - _STAMP_BEHIND_NS < taken.t_ns < now_ns + _STAMP_AHEAD_NS
        if self.driver_clock is None:
            # settled once: two clocks in one stream would put their difference into the signal
            self.driver_clock = ours
            self._note("times: the driver's" if ours else "times: of the grab, the driver has no monotonic clock; a reader "
                       "that is late shows as jitter", logging.INFO if ours else logging.WARNING)
        return now_ns if not self.driver_clock else taken.t_ns if ours else None

    def _settle(self, t_ns: int) -> None:
        """Lock the automatisms once they stand still, and end settling once that shows."""
        if not self.settling:
            return
        if self._first_ns is None:
            self._first_ns = self._settle_check_ns = t_ns
        if self._locked_ns is not None:
            self.settling = t_ns - self._locked_ns < _EFFECT_S * 1e9
            return
        settling_s = (t_ns - self._first_ns) / 1e9
        if settling_s < SETTLE_S - 0.5 or t_ns - self._settle_check_ns < 0.25e9:
            return
        self._settle_check_ns = t_ns
        try:
            before, self._settled = self._settled, settled_values(self._device)
            if settling_s < SETTLE_S or (self._settled != before and settling_s < SETTLE_MOST_S):
                return
            locked = lock(self._device, self._mains_hz, self.fps_nominal)
        except OSError as error:
            raise CameraLost(f"{self.name}: unplugged while it was being set up") from error
        self._locked_ns = t_ns
        self._say(locked)

    def _say(self, locked: Locked) -> None:
        for note in locked.notes():
            self._note(note, logging.WARNING if note.startswith(("refused", "lacking")) else logging.INFO)

    def _note(self, note: str, level: int) -> None:
        self._notes = (*self._notes, note)
        _log.log(level, "%s: %s", self.name, note)

    def cancel(self) -> None:
        with self._waking:
            self._cancelled = True
            if self._wake_fd is not None:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        with self._waking:
            if self._wake_fd is not None:
                os.close(self._wake_fd)
                self._wake_fd = None
        self._device.close()
