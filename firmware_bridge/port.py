"""Opening a terminal device, and reading and writing it without ever waiting longer than asked."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import struct
import termios
import time
import tty
from collections.abc import Callable
from pathlib import Path

import serial

BAUDS = (9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600)
HOLDER_SEARCH_S = 0.05  # a port that is tried again every second is not to cost the caller more
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)


class LinkError(Exception):
    """The port cannot be used. The message says what happened, what was expected, and what to do."""


class PortMissing(LinkError):
    """There is no such port, or its device is gone."""


class PortTaken(LinkError):
    """Another process has the port."""


class Port:
    """An open terminal device. Waits only where a timeout is given; raises OSError when the device is gone."""

    def __init__(self, fd: int, close: Callable[[], None]) -> None:
        self._fd = fd
        self._close = close

    def write(self, data: bytes) -> int:
        """How many bytes were taken; 0 where there is no room. (pyserial's own write spins or raises here.)"""
        try:
            return os.write(self._fd, data)
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return 0
            raise

    def wait_writable(self, timeout_s: float) -> None:
        select.select([], [self._fd], [], max(0.0, timeout_s))

    def read(self, timeout_s: float) -> bytes:
        if not select.select([self._fd], [], [], max(0.0, timeout_s))[0]:
            return b""
        try:
            data = os.read(self._fd, 65536)
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return b""
            raise
        if not data:
            raise OSError(errno.EIO, "the device hung up")
        return data

    def queued(self) -> int:
        """Bytes that the driver has not sent yet; 0 where it does not tell (a pty never does)."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._fd, termios.TIOCOUTQ, bytes(4)))[0])
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL):
                return 0
            raise

    def discard_output(self) -> None:
        termios.tcflush(self._fd, termios.TCOFLUSH)

    def close(self) -> None:
        """Never waits for bytes to drain: the kernel would, for up to 30 s."""
        with contextlib.suppress(OSError, termios.error):
            if self.queued():
                self.discard_output()
        self._close()


def open_serial(path: str, baud: int, stop_bits: int) -> Port:
    """Opens a serial port for this process alone (flock for those who ask, TIOCEXCL for those who do not)."""
    if baud not in BAUDS:
        raise LinkError(f"baud rate {baud}: expected one of {', '.join(map(str, BAUDS))}.")
    if stop_bits not in (1, 2):
        raise LinkError(f"stop bits {stop_bits}: expected 1 or 2.")
    port = serial.Serial(baudrate=baud, stopbits=stop_bits, timeout=0, write_timeout=0, exclusive=True)
    port.dtr = False  # many boards reset when DTR rises on open
    port.rts = False
    port.port = path
    try:
        port.open()
    except (serial.SerialException, termios.error, ValueError) as error:
        raise _explain(path, error) from error
    fd = port.fileno()

    def close() -> None:
        # Others may hold a pty open and would keep the exclusive mark alive after us.
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, termios.TIOCNXCL)
        port.close()

    try:
        fcntl.ioctl(fd, termios.TIOCEXCL)
    except OSError as error:
        close()
        raise _explain(path, error) from error
    return Port(fd, close)


def _explain(path: str, error: Exception) -> LinkError:
    code = getattr(error, "errno", None)
    if code in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY):
        return PortTaken(f"serial port {path} is taken by {_holder(path)}; expected to be its only user. "
                         "Stop the other process, or choose another port.")
    if code in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO):
        return PortMissing(f"serial port {path} is not there ({os.strerror(code)}); expected the display's port. "
                           "Check cable, power and the port's name.")
    if code == errno.EACCES:
        return LinkError(f"serial port {path} may not be opened by this user. Add the user to the group that owns it "
                         "(often dialout), or run as the service user.")
    return LinkError(f"{path} cannot be used as a serial port ({error}). Check that it is a terminal device.")


def _holder(path: str) -> str:
    """Which process has the device open, as far as /proc lets this user see, and quickly."""
    deadline_s = time.monotonic() + HOLDER_SEARCH_S
    try:
        device = os.stat(path).st_rdev
    except OSError:
        return "another process"
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        if time.monotonic() > deadline_s:
            return "another process (see fuser or lsof)"
        try:
            found = os.stat(fd)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == device:
                pid = fd.parts[2]
                return f"process {pid} ({Path('/proc', pid, 'comm').read_text().strip()})"
        except OSError:  # gone meanwhile, or not ours to see
            continue
    return "another process that this user may not see"


def open_pty(link: str) -> Port:
    """A new pty whose other end appears as the symlink `link`: what a display without hardware listens on."""
    if os.path.lexists(link) and not os.path.islink(link):
        raise LinkError(f"{link} exists and is no symbolic link; expected a free name for the pty. Choose another one.")
    master, slave = os.openpty()  # the slave stays open here, so that the other side may come and go
    tty.setraw(slave)
    os.set_blocking(master, False)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)
        os.symlink(os.ttyname(slave), link)
    except OSError as error:
        os.close(master)
        os.close(slave)
        raise LinkError(f"cannot create {link} ({error.strerror}); choose a name in a writable folder.") from error

    def close() -> None:
        os.close(master)
        os.close(slave)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link)

    return Port(master, close)
