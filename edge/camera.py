"""Camera sources: each an iterator of Frame, behind one function, `open_camera`.

Every frame carries the time it was taken: the container's for a file, the driver's for a live camera. No rate is ever
assumed, so a file that cannot say when its pictures were taken is refused.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.records import Frame

_log = logging.getLogger(__name__)

# FFmpeg's own lines stay off stderr (AV_LOG_QUIET): what matters in them is in our errors. Set here, because OpenCV
# looks once only, when FFmpeg is first used.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

# Frames in a row whose time does not rise, after which a source's clock counts as broken. A second of video: files with
# B frames in AVI lose two or three at the end, and nothing sound loses thirty.
_STUCK_CLOCK_FRAMES = 30
# Streams without a container. FFmpeg plays them at a rate it makes up, such as 25 Hz for Motion JPEG.
_BARE_STREAM_STARTS = (b"\xff\xd8", b"\x00\x00\x01", b"\x00\x00\x00\x01", b"--")
_PROGRAM_STREAM_START = b"\x00\x00\x01\xba"  # MPEG program stream: starts like a bare one, and has a clock


class CameraError(RuntimeError):
    """The source cannot be opened or used; the message says what to do."""


class CameraLost(CameraError):
    """A live source that was delivering has stopped for good: close it and open it again."""


class Camera(ABC):
    """A source of frames. Iterate it; it ends (StopIteration) only when a file does.

    name: for logs and reports.
    width, height: of the pictures, px.
    fps_nominal: what the source claims, for reports only; None where it claims nothing.
    live: frames come at their own pace and are lost when not fetched: read it through a CaptureThread.
    recorded: what it shows is not happening now (a file, also one played in real time).
    bad_stamps: frames dropped so far because their time did not rise.
    lost: frames that the source took and that never came, by its own count.
    settling: exposure and white balance still move by themselves; what is seen meanwhile does not count.
    """

    name: str
    width: int
    height: int
    fps_nominal: float | None
    live: bool
    recorded: bool = False
    bad_stamps: int = 0
    lost: int = 0
    settling: bool = False

    @abstractmethod
    def __next__(self) -> Frame:
        """The next frame. Raises StopIteration at a file's end, CameraLost or CameraError when there will be none."""

    @abstractmethod
    def close(self) -> None:
        """Give the source back; harmless when repeated. Only from the thread that reads it."""

    def notes(self) -> tuple[str, ...]:
        """What was locked, moved, lacking or refused, for logs and the doctor; a line that begins with "refused" is a fault."""
        return ()

    def cancel(self) -> None:  # noqa: B027  a source that never waits long has nothing to do here
        """Cut short the wait for the next frame, where the source can. From any thread."""

    def __iter__(self) -> Camera:
        return self

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def open_camera(spec: str, realtime: bool = False, mains_hz: int = 50) -> Camera:
    """Open `csi:N`, `usb:N`, `usb:/dev/...`, `gst:PIPELINE`, `file:PATH` or a bare path.

    realtime: play a file at its own pace on the monotonic clock; otherwise as fast as it is read, from time 0.
    mains_hz: 50 or 60, at which a live camera's exposure must not beat.
    Raises CameraError when there is nothing to open, or nothing in it.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # what it warns of is in our errors
    scheme, colon, rest = spec.partition(":")
    if colon and scheme == "usb":
        from edge.v4l2 import open_usb

        return open_usb(rest, mains_hz)
    if colon and scheme == "csi":
        from edge.gst import open_csi

        return open_csi(rest, mains_hz)
    if colon and scheme == "gst":
        from edge.gst import open_gst

        return open_gst(rest)
    return _open_file(Path(rest if colon and scheme == "file" else spec), realtime)


def _open_file(path: Path, realtime: bool) -> FileCamera:
    if not path.exists():
        raise CameraError(f"{path}: no such file; a source is PATH, file:PATH, usb:N or usb:/dev/videoN")
    if not path.is_file():
        raise CameraError(f"{path}: expected a video file, got a {'folder' if path.is_dir() else 'special file'}")
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError as error:
        raise CameraError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise CameraError(f"{path}: is empty")
    if start.startswith(_BARE_STREAM_STARTS) and start != _PROGRAM_STREAM_START:
        raise CameraError(f"{path}: pictures without a container, so without times (and no rate is made up for them); "
                          "put them into Matroska at the rate they were taken: ffmpeg -r RATE -i FILE -c copy OUT.mkv")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise CameraError(f"{path}: not a video that can be decoded, or one cut off before its index was written; "
                          "try another player, or record it again")
    return FileCamera(capture, str(path), realtime)


class FileCamera(Camera):
    """A video file. Times are the container's, from 0 at its first frame.

    frames_read: pictures decoded so far, those dropped for their times included.
    """

    recorded = True

    def __init__(self, capture: cv2.VideoCapture, name: str, realtime: bool) -> None:
        self.name = name
        self.live = realtime
        self.frames_read = 0
        self._capture = capture
        self._over = threading.Event()  # no frame is left, or none is wanted
        self._first_ns = -1  # of the container's clock, at the first frame handed out
        self._last_ns = -1
        self._start_ns = 0  # of our clock, at the first frame handed out
        claimed_fps, claimed_frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps_nominal = claimed_fps if 0 < claimed_fps < 1000 else None  # MPEG-TS claims its clock's 90000
        # OpenCV derives the count from the duration, and makes it negative where the container gives none
        self._claimed_s = claimed_frames / claimed_fps if claimed_frames > 0 and claimed_fps > 0 else None
        self._ahead = self._read()
        if self._ahead is None:
            capture.release()
            raise CameraError(f"{name}: the container opens but holds no picture that can be decoded")
        self.height, self.width = self._ahead[2].shape[:2]

    def _read(self) -> tuple[int, int, NDArray[np.uint8]] | None:
        """The next (seq, container time in ns, picture) whose time rises; None at the end."""
        for _ in range(_STUCK_CLOCK_FRAMES):
            ok, picture = self._capture.read()
            if not ok:
                return None
            seq = self.frames_read
            self.frames_read += 1
            stamp_ns = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) * 1e6)
            if stamp_ns > self._last_ns:
                self._last_ns = stamp_ns
                return seq, stamp_ns, picture.astype(np.uint8, copy=False)
            self.bad_stamps += 1
        raise CameraError(f"{self.name}: no usable times: after frame {self.frames_read - _STUCK_CLOCK_FRAMES} at "
                          f"{max(self._last_ns, 0) / 1e9:.3f} s, {_STUCK_CLOCK_FRAMES} frames in a row do not rise; "
                          "record into a container with timestamps, such as Matroska or MP4")

    def __next__(self) -> Frame:
        current, self._ahead = self._ahead, None
        if current is None:
            current = None if self._over.is_set() else self._read()
        if current is None:
            self._report_end()
            raise StopIteration
        seq, stamp_ns, picture = current
        if picture.shape[:2] != (self.height, self.width):
            raise CameraError(f"{self.name}: the picture changes from {self.width}x{self.height} to "
                              f"{picture.shape[1]}x{picture.shape[0]} at frame {seq}; expected one size throughout")
        return Frame(seq, self._on_our_clock(stamp_ns), picture)

    def _on_our_clock(self, stamp_ns: int) -> int:
        """The frame's t_ns; in real time, only once it is due."""
        if self._first_ns < 0:
            self._first_ns = stamp_ns
            self._start_ns = time.monotonic_ns() if self.live else 0
        t_ns = self._start_ns + stamp_ns - self._first_ns
        if self.live:
            self._over.wait(max(0.0, (t_ns - time.monotonic_ns()) / 1e9))
        return t_ns

    def _report_end(self) -> None:
        if self._over.is_set():
            return
        played_s = self._last_ns / 1e9
        if self.bad_stamps:
            _log.warning("%s: %d of %d frames dropped, their times do not rise",
                         self.name, self.bad_stamps, self.frames_read)
        # half a second and two per cent: a late first frame or a last frame's length is no damage
        if self._claimed_s is not None and played_s < 0.98 * self._claimed_s - 0.5:
            _log.warning("%s: truncated or damaged: %d frames and %.1f s could be played, the container claims %.1f s",
                         self.name, self.frames_read, played_s, self._claimed_s)
        self._over.set()

    def cancel(self) -> None:
        self._over.set()

    def close(self) -> None:
        self._over.set()
        self._capture.release()


class CaptureThread:
    """Reads a live camera from a thread of its own into a bounded ring: a slow step costs frames, and makes none old.

    When the ring is full the oldest frame goes, and `dropped` counts it. `missed` counts, by their numbers, all frames that
    are not among those handed over: lost by the camera, without a usable time, or dropped here. The thread owns the camera
    from here on and closes it when it ends.
    """

    def __init__(self, camera: Camera, depth: int = 8) -> None:
        self.camera = camera
        self.dropped = self.missed = 0
        self._handed_seq: int | None = None
        self._ring: deque[Frame] = deque(maxlen=depth)
        self._changed = threading.Condition()
        self._stop = False
        self._running = True
        self._finished = False  # the camera came to its own end, or failed with a CameraError
        self._error: CameraError | None = None
        # a driver that never returns must not keep the process from ending
        self._thread = threading.Thread(target=self._pump, name="capture", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """No frame will come any more, and all that came have been fetched, as has the error that get() has to raise."""
        with self._changed:
            return not self._running and not self._ring and not self._must_raise

    def get(self, timeout_s: float) -> Frame | None:
        """The oldest frame waiting; None when none came in time, or at the end (see `ended`).

        Raises the camera's CameraError, once, after the frames taken before it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ring or not self._running, timeout_s)
            if self._ring:
                frame = self._ring.popleft()
                self.missed += 0 if self._handed_seq is None else frame.seq - self._handed_seq - 1
                self._handed_seq = frame.seq
                return frame
            if self._running:
                return None
            error, self._error = self._error, None
            if error is not None:
                raise error
            if self._must_raise:
                raise RuntimeError(f"{self.camera.name}: the capture thread crashed; its traceback is on stderr")
            return None

    @property
    def _must_raise(self) -> bool:
        return self._error is not None or not (self._finished or self._stop)

    def close(self, timeout_s: float = 1.0) -> None:
        """Stop reading; waits this long at most for a driver that hangs, which is then left to end by itself."""
        self._stop = True
        self.camera.cancel()
        self._thread.join(timeout_s)

    def __enter__(self) -> CaptureThread:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _pump(self) -> None:
        try:
            for frame in self.camera:
                if self._stop:
                    break
                with self._changed:
                    if self._handed_seq is None:
                        self._handed_seq = frame.seq - 1
                    self.dropped += len(self._ring) == self._ring.maxlen
                    self._ring.append(frame)
                    self._changed.notify_all()
            self._finished = True
        except CameraError as error:
            self._error = error
            self._finished = True
        finally:
            self.camera.close()
            with self._changed:
                self._running = False
                self._changed.notify_all()
