"""Where frames come from: a video file, a folder of pictures, or an array in a MATLAB file. One frame in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.datasets import matfile
from calibration.datasets.record import COUNT_TOLERANCE_S, DatasetError, rising
from edge.camera import CameraError, open_camera
from edge.records import Frame

_LOST_SHARE, _LOST_S = 0.02, 0.5  # of the length that a container claims: a few last frames are often lost


@dataclass(frozen=True, eq=False)
class VideoFile:
    """A video at its container's times, at a rate that overrides them, or at the times of a list that came with it.

    claimed_s: the container's length. times_s: s from the first frame.
    """

    path: Path
    width: int
    height: int
    fps: float | None
    count: int | None
    claimed_s: float | None
    override_fps: float | None = None
    times_s: NDArray[np.float64] | None = field(default=None, repr=False)

    def frames(self) -> Iterator[Frame]:
        last_ns = container_ns = -1
        try:
            with open_camera(f"file:{self.path}") as camera:
                for frame in camera:
                    container_ns = frame.t_ns
                    timed = self._timed(frame)
                    if timed.t_ns == last_ns and self.times_s is not None:
                        continue  # a repeat in the list, which `open_video` has found to be rare
                    last_ns = timed.t_ns
                    yield timed
        except CameraError as error:
            raise _video_error(self.path, error) from error
        if self.claimed_s is not None and container_ns / 1e9 < (1 - _LOST_SHARE) * self.claimed_s - _LOST_S:
            raise DatasetError(self.path, "video", f"ends early: {container_ns / 1e9:.1f} s could be decoded, the container "
                               f"claims {self.claimed_s:.1f} s; fetch the file again")

    def _timed(self, frame: Frame) -> Frame:
        if self.override_fps is not None:
            return Frame(frame.seq, round(frame.seq * 1e9 / self.override_fps), frame.bgr)
        if self.times_s is None:
            return frame
        if frame.seq >= self.times_s.size:
            raise DatasetError(self.path, "times", f"expected a time for each frame, got {self.times_s.size} and a frame more")
        return Frame(frame.seq, round(self.times_s[frame.seq] * 1e9), frame.bgr)


def open_video(path: Path, override_fps: float | None = None,
               times: tuple[Path, NDArray[np.float64]] | None = None) -> VideoFile:
    """Probe a video: it must open and give a picture. times: the file they are from, and s for every frame."""
    if not path.is_file():
        raise DatasetError(path, "video", "no such file; fetch this recording again")
    try:
        with open_camera(f"file:{path}") as camera:
            width, height, claimed_fps = camera.width, camera.height, camera.fps_nominal
    except CameraError as error:
        raise _video_error(path, error) from error
    probe = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = int(probe.get(cv2.CAP_PROP_FRAME_COUNT))
    probe.release()
    count = frames if frames > 0 and claimed_fps is not None else None  # negative where the container gives no length
    claimed_s = None if count is None or claimed_fps is None else count / claimed_fps
    if times is None:
        return VideoFile(path, width, height, override_fps or claimed_fps, count, claimed_s, override_fps)
    where, times_s = times
    rising(where, "frame times", times_s, times_s)
    if times_s.size < 2:
        raise DatasetError(where, "frame times", f"expected one for each frame, got {times_s.size}")
    fps = (times_s.size - 1) / (times_s[-1] - times_s[0])
    if count is not None and abs(times_s.size - count) > COUNT_TOLERANCE_S * fps:
        raise DatasetError(where, "frame times", f"expected one for each of {count} frames of {path.name}, got {times_s.size}; "
                           "one of the two was cut: fetch both again")
    return VideoFile(path, width, height, float(fps), count, claimed_s, None, times_s - times_s[0])


def _video_error(path: Path, error: CameraError) -> DatasetError:
    problem = str(error).removeprefix(f"{path}: ")
    return DatasetError(path, "video", problem if ";" in problem else f"{problem}; fetch the file again")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """A folder of pictures with one time for each (ns, any zero)."""

    path: Path
    width: int
    height: int
    fps: float
    count: int
    files: tuple[str, ...] = field(repr=False)
    times_ns: NDArray[np.int64] = field(repr=False)

    def frames(self) -> Iterator[Frame]:
        for i, name in enumerate(self.files):
            yield Frame(i, int(self.times_ns[i] - self.times_ns[0]), _read_picture(f"{self.path}/{name}"))


def open_images(folder: Path, files: list[Path], times_ns: NDArray[np.int64]) -> ImageFiles:
    """files: in the order of their times, which must rise."""
    if len(files) < 2 or len(files) != times_ns.size:
        raise DatasetError(folder, "pictures", f"expected 2 or more and a time for each, got {len(files)} pictures and "
                           f"{times_ns.size} times; fetch this recording again")
    falls = np.flatnonzero(np.diff(times_ns) <= 0)
    if falls.size:
        raise DatasetError(folder, f"time of {files[falls[0] + 1].name}", "does not rise above that of "
                           f"{files[falls[0]].name}; remove the copy, or fetch this recording again")
    height, width = _read_picture(str(files[0])).shape[:2]
    fps = (times_ns.size - 1) / ((times_ns[-1] - times_ns[0]) / 1e9)
    return ImageFiles(folder, width, height, float(fps), len(files), tuple(file.name for file in files), times_ns)


def _read_picture(path: str) -> NDArray[np.uint8]:
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise DatasetError(Path(path), "picture", "empty, or cannot be decoded; fetch it again")
    return np.asarray(picture, np.uint8)


@dataclass(frozen=True, eq=False)
class MatVideo:
    """An RGB array in a MATLAB file, uint8 or 0-1, at the data set's own even rate. axes: see `matfile.pictures`."""

    path: Path
    width: int
    height: int
    fps: float
    count: int
    key: str
    axes: tuple[int, int, int, int]

    def frames(self) -> Iterator[Frame]:
        for i, picture in enumerate(matfile.pictures(self.path, self.key, self.axes)):
            yield Frame(i, round(i * 1e9 / self.fps), self._bgr(picture, i))

    def _bgr(self, picture: NDArray[np.generic], index: int) -> NDArray[np.uint8]:
        if picture.dtype == np.uint8:
            return np.ascontiguousarray(picture[..., ::-1])
        low, high = float(picture.min()), float(picture.max())
        if not (low > -1e-3 and high < 1 + 1e-3):  # written so that NaN fails too
            raise DatasetError(self.path, f"{self.key}, frame {index}", f"expected light from 0 to 1, got {low:.3g} to "
                               f"{high:.3g}; fetch the file again")
        return np.rint(np.clip(picture[..., ::-1], 0.0, 1.0) * 255.0).astype(np.uint8)


def open_mat_video(path: Path, key: str, fps: float) -> MatVideo:
    """Axes are told by where the 3 colours stand: (T, H, W, 3), or MATLAB's habit (H, W, 3, T); else DatasetError."""
    shape = matfile.shape(path, key)
    if len(shape) == 4 and shape[3] == 3:
        axes = (0, 1, 2, 3)
    elif len(shape) == 4 and shape[2] == 3:
        axes = (3, 0, 1, 2)
    else:
        raise DatasetError(path, key, f"expected the axes (frames, rows, columns, 3), got {shape}")
    count, height, width = (shape[axis] for axis in axes[:3])
    if min(count, height, width) < 2:
        raise DatasetError(path, key, f"expected at least 2 frames of 2x2, got {count} of {width}x{height}")
    return MatVideo(path, width, height, fps, count, key, axes)
