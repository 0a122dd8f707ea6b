"""What a run says: every message numbered, stamped and offered once to each outlet, and the file that keeps the bytes."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol

from firmware_bridge.frame import DecodedFrame, Sender
from firmware_bridge.link import Health, LinkState
from firmware_bridge.messages import Bye, Hello, Message
from firmware_bridge.port import LinkError
from firmware_bridge.schema import MessageType

log = logging.getLogger(__name__)

HELLO_INTERVAL_S = 5.0


class Outlet(Protocol):
    """Where frames go: a Link, a FileLink."""

    def open(self) -> None: ...
    def offer(self, frame: bytes, kind: MessageType) -> bool: ...
    def poll(self) -> list[DecodedFrame]: ...
    def health(self) -> Health: ...
    def close(self, farewell: bytes | None = None) -> None: ...


class FileLink:
    """Keeps the wire's bytes in a file for `dump` and `display`. A full disk ends the recording, not the monitoring."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: int | None = None
        self._health = Health(LinkState.CLOSED)

    def open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise LinkError(f"wire file {self.path} cannot be written ({error.strerror}); choose another.") from error
        self._health = replace(self._health, state=LinkState.UP)

    def offer(self, frame: bytes, kind: MessageType) -> bool:
        if self._file is None:
            self._health = replace(self._health, drops=self._health.drops + 1)
            return False
        try:
            written = os.write(self._file, frame)
        except OSError as error:
            log.error("wire file %s: %s; the recording ends here", self.path, error.strerror)
            self.close()
            return False
        self._health = replace(self._health, frames=self._health.frames + 1, bytes=self._health.bytes + written)
        return True

    def poll(self) -> list[DecodedFrame]:
        return []

    def health(self) -> Health:
        return self._health

    def close(self, farewell: bytes | None = None) -> None:
        if self._file is not None and farewell is not None:
            self.offer(farewell, MessageType.BYE)
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._health = replace(self._health, state=LinkState.CLOSED)


class Transmitter:
    """A run's voice: numbers and stamps each message once and offers the same bytes to every outlet.

    Says HELLO on open, after a reopening and every 5 s by itself, and BYE when the context ends without an Exception: a
    crash shall read CAMERA LINK LOST.
    """

    def __init__(self, sender: Sender, outlets: Sequence[Outlet], hello: Hello,
                 clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.sender = sender
        self.outlets = tuple(outlets)
        self._hello = hello
        self._clock = clock
        self._hello_ns: int | None = None
        self._reopens = 0

    def __enter__(self) -> Transmitter:
        with contextlib.ExitStack() as undo:
            for outlet in self.outlets:
                outlet.open()
                undo.callback(outlet.close)
            undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close(orderly=not isinstance(error, Exception))

    def send(self, message: Message) -> None:
        now_ns = self._clock()
        reopens = sum(outlet.health().reopens for outlet in self.outlets)
        if self._hello_ns is None or now_ns - self._hello_ns >= HELLO_INTERVAL_S * 1e9 or reopens != self._reopens:
            self._hello_ns, self._reopens = now_ns, reopens
            self._offer(self._hello)
        self._offer(message)

    def poll(self) -> list[DecodedFrame]:
        """Call it a few times a second: drains what waits, returns what the display sent (STATUS)."""
        return [frame for outlet in self.outlets for frame in outlet.poll()]

    @property
    def distrusted(self) -> bool:
        """Whether a display showed something else than what it was sent: no number should be sent now."""
        return any(outlet.health().distrusted for outlet in self.outlets)

    def close(self, orderly: bool = True) -> None:
        farewell = self.sender.encode(Bye()) if orderly else None
        for outlet in self.outlets:
            outlet.close(farewell)

    def _offer(self, message: Message) -> None:
        frame = self.sender.encode(message)
        for outlet in self.outlets:
            outlet.offer(frame, message.TYPE)
