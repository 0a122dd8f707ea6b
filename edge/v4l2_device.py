"""Video4Linux's calls as Python methods: one open capture device, its formats, buffers and controls. No policy here.

Structures as on 64-bit Linux (LP64: x86-64 and aarch64 agree); sizes and numbers are those of linux/videodev2.h. What the
kernel refuses comes out as OSError with its errno: v4l2.py says what it means.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import select
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path

CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
_MMAP = 1  # V4L2_MEMORY_MMAP
_CAP_CAPTURE, _CAP_STREAMING, _CAP_DEVICE_CAPS = 0x1, 0x04000000, 0x80000000

_BUFFER = struct.Struct("=IIIII4xqq16sII8sIIi4x")  # index, type, bytesused, flags, field, seconds, us, -, sequence, memory
_CONTROL = struct.Struct("=Ii")
_QUERY_CONTROL = struct.Struct("=II32siiiiI8x")
_REQUEST = struct.Struct("=III8x")

FLAG_ERROR = 0x40
_CLOCK_MASK, _CLOCK_MONOTONIC = 0xE000, 0x2000
_CONTROL_DISABLED, _CONTROL_READ_ONLY = 0x1, 0x4


def _code(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("V") << 8 | number


_READ, _WRITE, _BOTH = 2, 1, 3
QUERYCAP, ENUM_FMT = _code(_READ, 0, 104), _code(_BOTH, 2, 64)
S_FMT, TRY_FMT = _code(_BOTH, 5, 208), _code(_BOTH, 64, 208)
REQBUFS, QUERYBUF = _code(_BOTH, 8, _REQUEST.size), _code(_BOTH, 9, _BUFFER.size)
QBUF, DQBUF = _code(_BOTH, 15, _BUFFER.size), _code(_BOTH, 17, _BUFFER.size)
STREAMON, STREAMOFF, S_PARM = _code(_WRITE, 18, 4), _code(_WRITE, 19, 4), _code(_BOTH, 22, 204)
G_CTRL, S_CTRL = _code(_BOTH, 27, _CONTROL.size), _code(_BOTH, 28, _CONTROL.size)
QUERYCTRL = _code(_BOTH, 36, _QUERY_CONTROL.size)
ENUM_FRAMESIZES, ENUM_FRAMEINTERVALS = _code(_BOTH, 74, 44), _code(_BOTH, 75, 52)

_DISCRETE = 1  # of the three kinds in which sizes and intervals are listed: one by one, or as a range
_LIST_LIMIT = 256  # entries asked for at most: a driver whose list has no end must not hang us


class Kernel:
    """The system calls that a device needs; tests put a machine of their own here. root: where /dev stands."""

    root = Path("/")

    def is_device(self, path: Path) -> bool:
        """Raises OSError where there is nothing."""
        return stat.S_ISCHR(path.stat().st_mode)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, buffer: bytearray) -> None:
        while True:
            try:
                fcntl.ioctl(fd, request, buffer, True)
                return
            except InterruptedError:  # a signal during a USB transfer; Python does not repeat this call by itself
                continue

    def wait(self, fd: int, wake_fd: int, timeout_s: float) -> tuple[int, bool]:
        """Poll events of fd (0: none in time), and whether wake_fd was written to."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(wake_fd, select.POLLIN)
        events = dict(poll.poll(max(0.0, timeout_s) * 1e3))
        return events.get(fd, 0), wake_fd in events

    def now_ns(self) -> int:
        return time.monotonic_ns()


@dataclass(frozen=True)
class Format:
    """What the driver has agreed to. pixels: the fourcc; stride_bytes: one row, padding included; size_bytes: a picture."""

    pixels: str
    width: int
    height: int
    stride_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class Control:
    """One control's range, as the driver declares it."""

    minimum: int
    maximum: int
    step: int
    read_only: bool


@dataclass(frozen=True)
class Buffer:
    """One filled buffer, ours until `Device.give_back`. t_ns: the driver's; monotonic: whether that is CLOCK_MONOTONIC."""

    index: int
    used_bytes: int
    damaged: bool
    monotonic: bool
    t_ns: int
    sequence: int


class Device:
    """An open device node. Raises OSError when it cannot be opened, or does not speak Video4Linux (ENOTTY)."""

    def __init__(self, path: Path, kernel: Kernel) -> None:
        self.path = path
        self._kernel = kernel
        self.maps: list[mmap.mmap] = []
        self._fd = kernel.open(path)
        try:
            caps = self._call(QUERYCAP, bytearray(104))
        except OSError:
            os.close(self._fd)
            raise
        self.card, self.bus = _string(caps, 16, 48), _string(caps, 48, 80)
        whole, own = struct.unpack_from("=II", caps, 84)
        self._caps = own if whole & _CAP_DEVICE_CAPS else whole

    @property
    def captures(self) -> bool:
        """Gives pictures: a camera's second node often gives only metadata."""
        return bool(self._caps & _CAP_CAPTURE and self._caps & _CAP_STREAMING)

    def _call(self, request: int, buffer: bytearray) -> bytearray:
        self._kernel.ioctl(self._fd, request, buffer)
        return buffer

    # ---- formats

    def pixel_formats(self) -> list[str]:
        return [bytes(entry[44:48]).decode("latin-1") for entry in self._listed(ENUM_FMT, struct.pack("=I", CAPTURE), 64)]

    def sizes(self, pixels: str) -> list[tuple[int, int]]:
        """Width and height of every size; the largest alone where the driver names a range; none where it does not tell."""
        found = []
        for entry in self._listed(ENUM_FRAMESIZES, pixels.encode("latin-1"), 44):
            kind, width, height_or_widest = struct.unpack_from("=III", entry, 8)
            if kind != _DISCRETE:
                found.append((height_or_widest, struct.unpack_from("=I", entry, 28)[0]))
                break
            found.append((width, height_or_widest))
        return found

    def highest_fps(self, pixels: str, width: int, height: int) -> float | None:
        """None where the driver does not tell."""
        best = 0.0
        asked = struct.pack("=4sII", pixels.encode("latin-1"), width, height)
        for entry in self._listed(ENUM_FRAMEINTERVALS, asked, 52):
            kind, numerator, denominator = struct.unpack_from("=III", entry, 16)  # a range begins with the shortest
            best = max(best, denominator / numerator if numerator else 0.0)
            if kind != _DISCRETE:
                break
        return best or None

    def _listed(self, request: int, key: bytes, size: int) -> list[bytearray]:
        """Entries 0, 1, 2 ... of one of the lists, to its end (EINVAL) or nothing where the driver has none (ENOTTY)."""
        entries = []
        for index in range(_LIST_LIMIT):
            buffer = bytearray(struct.pack("=I", index) + key).ljust(size, b"\0")
            try:
                entries.append(self._call(request, buffer))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):
                    break
                raise
        return entries

    def format(self, pixels: str, width: int, height: int, keep: bool) -> Format:
        """The format nearest to the one asked for; `keep` sets it, otherwise the driver only says what it would do."""
        buffer = bytearray(208)
        struct.pack_into("=I4xII4sI", buffer, 0, CAPTURE, width, height, pixels.encode("latin-1"), 1)
        self._call(S_FMT if keep else TRY_FMT, buffer)
        width, height, code, _, stride, size = struct.unpack_from("=II4sIII", buffer, 8)
        return Format(code.decode("latin-1"), width, height, stride, size)

    def set_fps(self, fps: float) -> float | None:
        """Ask for a rate; the one granted, None where the driver does not tell."""
        buffer = bytearray(204)
        struct.pack_into("=IIIII", buffer, 0, CAPTURE, 0, 0, 1000, round(fps * 1000))
        try:
            self._call(S_PARM, buffer)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return None
            raise
        numerator, denominator = struct.unpack_from("=II", buffer, 12)
        return denominator / numerator if numerator and denominator else None

    # ---- pictures

    def start(self, buffers: int) -> None:
        """Map so many buffers (the driver may give another number), queue them all and stream."""
        request = self._call(REQBUFS, bytearray(_REQUEST.pack(buffers, CAPTURE, _MMAP)))
        for index in range(struct.unpack_from("=I", request)[0]):
            described = self._call(QUERYBUF, self._buffer(index))
            offset, length = struct.unpack_from("=I4xI", described, 64)
            self.maps.append(mmap.mmap(self._fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset))
            self.give_back(index)
        self._call(STREAMON, bytearray(struct.pack("=i", CAPTURE)))

    def wait(self, wake_fd: int, timeout_s: float) -> tuple[int, bool]:
        return self._kernel.wait(self._fd, wake_fd, timeout_s)

    def take(self) -> Buffer:
        """The oldest filled buffer; BlockingIOError where there is none after all."""
        taken = self._call(DQBUF, self._buffer(0))
        index, _, used, flags, _, seconds, micros, _, sequence, *_ = _BUFFER.unpack(taken)
        return Buffer(index, used, bool(flags & FLAG_ERROR), flags & _CLOCK_MASK == _CLOCK_MONOTONIC,
                      seconds * 10**9 + micros * 1000, sequence)

    def give_back(self, index: int) -> None:
        self._call(QBUF, self._buffer(index))

    @staticmethod
    def _buffer(index: int) -> bytearray:
        return bytearray(_BUFFER.pack(index, CAPTURE, 0, 0, 0, 0, 0, b"", 0, _MMAP, b"", 0, 0, 0))

    # ---- controls

    def control(self, number: int) -> Control | None:
        """None where the camera has no such control."""
        buffer = bytearray(_QUERY_CONTROL.size)
        struct.pack_into("=I", buffer, 0, number)
        try:
            self._call(QUERYCTRL, buffer)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY):
                return None
            raise
        _, _, _, minimum, maximum, step, _, flags = _QUERY_CONTROL.unpack(buffer)
        return None if flags & _CONTROL_DISABLED else Control(minimum, maximum, max(step, 1), bool(flags & _CONTROL_READ_ONLY))

    def get(self, number: int) -> int:
        return int(_CONTROL.unpack(self._call(G_CTRL, bytearray(_CONTROL.pack(number, 0))))[1])

    def set(self, number: int, value: int) -> None:
        self._call(S_CTRL, bytearray(_CONTROL.pack(number, value)))

    def close(self) -> None:
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):  # a device that is gone can no longer be stopped
            self._call(STREAMOFF, bytearray(struct.pack("=i", CAPTURE)))
        while self.maps:
            self.maps.pop().close()
        os.close(self._fd)
        self._fd = -1


def _string(buffer: bytearray, start: int, stop: int) -> str:
    return bytes(buffer[start:stop]).split(b"\0")[0].decode("utf-8", "replace")
