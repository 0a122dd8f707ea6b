"""A machine with V4L2 cameras, in memory: a memfd is the device (so mmap and poll are real), a function is the ioctl.

Time is the machine's own and moves only while somebody waits, so a test of minutes takes milliseconds; `real_time` ties it
to the real clock instead. What the kernel writes here is packed by this file's own offsets, from linux/videodev2.h.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from edge import v4l2_device as v
from edge.v4l2_device import Kernel

PAGE = 4096
MONOTONIC, START_OF_EXPOSURE, ERROR = 0x2000, 0x10000, 0x40
AE, EXPOSURE, PRIORITY, AWB, WB, GAIN, MAINS, FOCUS_AUTO = (
    0x9A0901, 0x9A0902, 0x9A0903, 0x98090C, 0x98091A, 0x980913, 0x980918, 0x9A090C)


@dataclass
class FakeControl:
    """held_by: (control, value): EACCES unless that control has this value, as uvcvideo answers."""

    value: int
    minimum: int = 0
    maximum: int = 10_000
    step: int = 1
    held_by: tuple[int, int] | None = None
    refuses: int = 0  # errno of every write
    sticks: bool = False  # takes a write and keeps its own value
    flags: int = 0


def uvc_controls() -> dict[int, FakeControl]:
    """What an ordinary webcam has: aperture priority, settled at 15.7 ms, gain 12, 4230 K."""
    return {AE: FakeControl(3, 0, 3), EXPOSURE: FakeControl(157, 1, 5000, held_by=(AE, 1)), PRIORITY: FakeControl(1, 0, 1),
            AWB: FakeControl(1, 0, 1), WB: FakeControl(4230, 2800, 6500, 10, held_by=(AWB, 0)), GAIN: FakeControl(12, 0, 100),
            MAINS: FakeControl(2, 0, 2), FOCUS_AUTO: FakeControl(1, 0, 1)}


@dataclass
class FakeCamera:
    """One camera. formats: fourcc -> {(width, height): fps}. The fault fields hold picture numbers."""

    formats: dict[str, dict[tuple[int, int], float]] = field(
        default_factory=lambda: {"YUYV": {(640, 480): 30.0, (320, 240): 30.0}, "MJPG": {(1280, 720): 30.0, (640, 480): 30.0}})
    controls: dict[int, FakeControl] = field(default_factory=uvc_controls)
    card: str = "Fake UVC"
    bus: str = "usb-0000:00:14.0-3"
    captures: bool = True
    bgr: Callable[[int], np.ndarray] = lambda seq: np.full((480, 640, 3), 60 + seq % 100, np.uint8)
    padding: int = 0  # bytes behind each row
    fps: float = 30.0
    drop: set[int] = field(default_factory=set)
    error: set[int] = field(default_factory=set)
    short: set[int] = field(default_factory=set)
    repeat_stamp: set[int] = field(default_factory=set)
    shift_stamp_s: Callable[[int], float] = lambda seq: 0.0
    number: Callable[[int], int] = lambda seq: seq  # what the driver says that it is
    stall_at: int | None = None
    unplug_at: int | None = None
    stamps: str = "monotonic"  # or "none", "unflagged", "hours_ahead"
    settle_until: float = 0.0  # s for which the automatic exposure moves on
    busy: int = 0  # errno of REQBUFS
    gone: bool = False
    writes: list[tuple[int, int]] = field(default_factory=list)


class _Open:
    """What one file descriptor knows."""

    def __init__(self, camera: FakeCamera, fd: int) -> None:
        self.camera, self.fd = camera, fd
        self.ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.pixels, self.width, self.height = "YUYV", 640, 480
        self.empty: list[int] = []
        self.full: list[tuple[int, int, int, int, int]] = []  # index, bytes, flags, t_ns, sequence
        self.slot = 0
        self.next = 0
        self.began_ns = 0
        self.streaming = False

    @property
    def stride(self) -> int:
        return self.width * {"YUYV": 2, "UYVY": 2, "NV12": 1, "BGR3": 3, "RGB3": 3, "MJPG": 0}[self.pixels] + (
            self.camera.padding if self.pixels != "MJPG" else 0)

    @property
    def size(self) -> int:
        rows = self.height * 3 // 2 if self.pixels == "NV12" else self.height
        return self.width * self.height * 2 if self.pixels == "MJPG" else rows * self.stride


class FakeKernel(Kernel):
    """Cameras by node; plug() and unplug() as a hand would."""

    def __init__(self, root: Path, real_time: bool = False) -> None:
        self.root = root
        self.real_time = real_time
        self.clock_ns = 1_000_000_000_000
        self.cameras: dict[Path, FakeCamera] = {}
        self.opened: dict[int, _Open] = {}
        self.opens = 0
        self.started: FakeCamera | None = None  # the one that was told to stream last
        (root / "dev/v4l/by-id").mkdir(parents=True)

    def plug(self, camera: FakeCamera, number: int, by_id: str = "") -> FakeCamera:
        node = self.root / f"dev/video{number}"
        node.touch()
        camera.gone = False
        self.cameras[node] = camera
        if by_id:
            (self.root / "dev/v4l/by-id" / by_id).symlink_to(f"../../video{number}")
        return camera

    def unplug(self, camera: FakeCamera) -> None:
        camera.gone = True
        for node in [node for node, each in self.cameras.items() if each is camera]:
            del self.cameras[node]
            for link in (self.root / "dev/v4l/by-id").iterdir():
                if link.resolve() == node:
                    link.unlink()
            node.unlink()

    # ---- what the program calls

    def is_device(self, path: Path) -> bool:
        path.stat()
        return path.resolve() in self.cameras

    def open(self, path: Path) -> int:
        node = path.resolve()
        if node not in self.cameras:
            raise OSError(errno.ENODEV, "No such device")
        self.opens += 1
        fd = os.memfd_create(node.name)
        self.opened[fd] = _Open(self.cameras[node], fd)
        return fd

    def now_ns(self) -> int:
        return time.monotonic_ns() if self.real_time else self.clock_ns

    def wait(self, fd: int, wake_fd: int, timeout_s: float) -> tuple[int, bool]:
        """Real poll, on a descriptor that is readable exactly while a buffer is full or the camera is gone."""
        state = self.opened[fd]
        until_ns = self.now_ns() + round(timeout_s * 1e9)
        while True:
            self._produce(state)
            due_ns = min(self._due_ns(state), until_ns)
            pause_s = max(0, due_ns - self.now_ns()) / 1e9 if self.real_time and not state.full else 0.0
            events, woken = super().wait(state.ready, wake_fd, pause_s)
            if events or woken or self.now_ns() >= until_ns:
                return events, woken
            if not self.real_time:
                self.clock_ns = max(self.clock_ns, due_ns)

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> None:
        state = self.opened[fd]
        if state.camera.gone:
            raise OSError(errno.ENODEV, "No such device")
        self._answers[request](self, state, buffer)

    # ---- pictures

    def _due_ns(self, state: _Open) -> int:
        camera = state.camera
        if not state.streaming or (camera.stall_at is not None and state.next >= camera.stall_at):
            return 2**62
        return state.began_ns + round((state.next + 1) / camera.fps * 1e9)

    def _produce(self, state: _Open) -> None:
        """All pictures due by now: into an empty buffer, or lost for want of one."""
        camera = state.camera
        while self._due_ns(state) <= self.now_ns():
            seq, at_ns = state.next, self._due_ns(state)
            if camera.unplug_at is not None and seq >= camera.unplug_at:
                self.unplug(camera)
                os.eventfd_write(state.ready, 1)
                return
            state.next += 1
            if seq in camera.drop or not state.empty:
                continue
            state.full.append(self._filled(state, seq, at_ns))
            os.eventfd_write(state.ready, 1)

    def _filled(self, state: _Open, seq: int, at_ns: int) -> tuple[int, int, int, int, int]:
        camera, index = state.camera, state.empty.pop(0)
        hunting = (at_ns - state.began_ns) / 1e9 < camera.settle_until
        if hunting and EXPOSURE in camera.controls and camera.controls[AE].value == 3:
            camera.controls[EXPOSURE].value += 1
        data = encode(camera.bgr(seq)[:state.height, :state.width], state.pixels, camera.padding)
        if seq in camera.short:
            data = data[:len(data) // 2]
        os.pwrite(state.fd, data, index * state.slot)
        flags = START_OF_EXPOSURE | (ERROR if seq in camera.error else 0) | (MONOTONIC if camera.stamps != "unflagged" else 0)
        stamp_ns = {"none": 0, "hours_ahead": at_ns + 3_600_000_000_000}.get(camera.stamps, at_ns - 3_000_000)
        if seq in camera.repeat_stamp:
            stamp_ns -= round(1e9 / camera.fps)
        return index, len(data), flags, stamp_ns + round(camera.shift_stamp_s(seq) * 1e9), camera.number(seq) % 2**32

    # ---- the calls, by number

    def _querycap(self, state: _Open, b: bytearray) -> None:
        b[0:16] = b"fake".ljust(16, b"\0")
        b[16:48] = state.camera.card.encode().ljust(32, b"\0")
        b[48:80] = state.camera.bus.encode().ljust(32, b"\0")
        struct.pack_into("=II", b, 84, 0x85200001, 0x04200001 if state.camera.captures else 0x04A00000)

    def _enum_fmt(self, state: _Open, b: bytearray) -> None:
        names = list(state.camera.formats)
        index, kind = struct.unpack_from("=II", b, 0)
        if kind != 1 or index >= len(names):
            raise OSError(errno.EINVAL, "Invalid argument")
        b[44:48] = names[index].encode()

    def _enum_sizes(self, state: _Open, b: bytearray) -> None:
        index, pixels = struct.unpack_from("=I4s", b, 0)
        sizes = list(state.camera.formats[pixels.decode()])
        if index >= len(sizes):
            raise OSError(errno.EINVAL, "Invalid argument")
        struct.pack_into("=III", b, 8, 1, *sizes[index])

    def _enum_intervals(self, state: _Open, b: bytearray) -> None:
        index, pixels, width, height = struct.unpack_from("=I4sII", b, 0)
        fps = state.camera.formats[pixels.decode()].get((width, height))
        if index or not fps:
            raise OSError(errno.EINVAL, "Invalid argument")
        struct.pack_into("=III", b, 16, 1, 1000, round(fps * 1000))

    def _fmt(self, state: _Open, b: bytearray, keep: bool) -> None:
        width, height, pixels = struct.unpack_from("=II4s", b, 8)
        name = pixels.decode()
        if name not in state.camera.formats:
            name = next(iter(state.camera.formats))
        near = min(state.camera.formats[name], key=lambda size: abs(size[0] - width) + abs(size[1] - height))
        trial = state if keep else _Open(state.camera, state.fd)
        trial.pixels, (trial.width, trial.height) = name, near
        struct.pack_into("=II4sIII", b, 8, *near, name.encode(), 1, trial.stride, trial.size)
        if not keep:
            os.close(trial.ready)

    def _parm(self, state: _Open, b: bytearray) -> None:
        numerator, denominator = struct.unpack_from("=II", b, 12)
        best = state.camera.formats[state.pixels][(state.width, state.height)]
        state.camera.fps = min(best, denominator / numerator)
        struct.pack_into("=II", b, 12, 1000, round(state.camera.fps * 1000))

    def _reqbufs(self, state: _Open, b: bytearray) -> None:
        if state.camera.busy:
            raise OSError(state.camera.busy, os.strerror(state.camera.busy))
        state.slot = (state.size + PAGE - 1) // PAGE * PAGE
        os.ftruncate(state.fd, struct.unpack_from("=I", b)[0] * state.slot)

    def _querybuf(self, state: _Open, b: bytearray) -> None:
        struct.pack_into("=I4xI", b, 64, struct.unpack_from("=I", b)[0] * state.slot, state.size)

    def _qbuf(self, state: _Open, b: bytearray) -> None:
        state.empty.append(struct.unpack_from("=I", b)[0])

    def _dqbuf(self, state: _Open, b: bytearray) -> None:
        self._produce(state)
        if state.camera.gone:
            raise OSError(errno.ENODEV, "No such device")
        if not state.full:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        index, used, flags, t_ns, seq = state.full.pop(0)
        if not state.full:
            os.eventfd_read(state.ready)
        struct.pack_into("=IIIII4xqq", b, 0, index, 1, used, flags, 1, t_ns // 10**9, t_ns % 10**9 // 1000)
        struct.pack_into("=I", b, 56, seq)

    def _stream(self, state: _Open, b: bytearray, on: bool) -> None:
        state.streaming, state.began_ns = on, self.now_ns()
        self.started = state.camera if on else self.started

    def _queryctrl(self, state: _Open, b: bytearray) -> None:
        control = self._control(state, b)
        struct.pack_into("=iiiiI", b, 40, control.minimum, control.maximum, control.step, 0, control.flags)

    def _g_ctrl(self, state: _Open, b: bytearray) -> None:
        struct.pack_into("=i", b, 4, self._control(state, b).value)

    def _s_ctrl(self, state: _Open, b: bytearray) -> None:
        control, controls = self._control(state, b), state.camera.controls
        number, value = struct.unpack("=Ii", b)
        if control.held_by is not None and controls[control.held_by[0]].value != control.held_by[1]:
            raise OSError(errno.EACCES, "Permission denied")
        if control.refuses:
            raise OSError(control.refuses, os.strerror(control.refuses))
        state.camera.writes.append((number, value))
        if not control.sticks:
            control.value = min(max(value, control.minimum), control.maximum) // control.step * control.step

    @staticmethod
    def _control(state: _Open, b: bytearray) -> FakeControl:
        number = struct.unpack_from("=I", b)[0]
        if number not in state.camera.controls:
            raise OSError(errno.EINVAL, "Invalid argument")
        return state.camera.controls[number]

    _answers = {v.QUERYCAP: _querycap, v.ENUM_FMT: _enum_fmt, v.ENUM_FRAMESIZES: _enum_sizes,
                v.ENUM_FRAMEINTERVALS: _enum_intervals, v.S_FMT: lambda k, s, b: k._fmt(s, b, True),
                v.TRY_FMT: lambda k, s, b: k._fmt(s, b, False), v.S_PARM: _parm, v.REQBUFS: _reqbufs, v.QUERYBUF: _querybuf,
                v.QBUF: _qbuf, v.DQBUF: _dqbuf, v.STREAMON: lambda k, s, b: k._stream(s, b, True),
                v.STREAMOFF: lambda k, s, b: k._stream(s, b, False), v.QUERYCTRL: _queryctrl, v.G_CTRL: _g_ctrl,
                v.S_CTRL: _s_ctrl}


def encode(bgr: np.ndarray, pixels: str, padding: int = 0) -> bytes:
    """A picture as the camera would send it, rows padded with 0xEE."""
    height, width = bgr.shape[:2]
    if pixels == "MJPG":
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    if pixels in ("BGR3", "RGB3"):
        rows = (bgr if pixels == "BGR3" else bgr[..., ::-1]).reshape(height, width * 3)
    else:
        yuv = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
        y = yuv[:height]
        u = yuv[height:height * 5 // 4].reshape(height // 2, width // 2)
        w = yuv[height * 5 // 4:].reshape(height // 2, width // 2)
        if pixels == "NV12":
            rows = np.vstack([y, np.stack([u, w], axis=-1).reshape(height // 2, width)])
        else:
            chroma = np.repeat(np.stack([u, w], axis=-1).reshape(height // 2, width), 2, axis=0)
            pairs = (y, chroma) if pixels == "YUYV" else (chroma, y)
            rows = np.stack(pairs, axis=-1).reshape(height, width * 2)
    return np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE).tobytes()
