"""Small videos, written on the spot, whose pictures tell their own number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray


def grey_steps(count: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """Picture i is a uniform 2 * i (mod 256). size: width, height."""
    return [np.full((size[1], size[0], 3), 2 * i % 256, np.uint8) for i in range(count)]


def write_video(path: Path, pictures: Sequence[NDArray[np.uint8]], fps: float = 30.0, fourcc: str = "FFV1") -> Path:
    """At a constant rate, by OpenCV: FFV1 and MJPG in .avi or .mkv, mp4v in .mp4."""
    height, width = pictures[0].shape[:2]
    # an explicit backend: left to choose, OpenCV writes MJPG by itself, into AVI alone
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*fourcc), fps, (width, height))
    if not writer.isOpened():
        raise OSError(f"cannot write {fourcc} to {path}")
    for picture in pictures:
        writer.write(picture)
    writer.release()
    return path


def write_timed_video(path: Path, pictures: Sequence[NDArray[np.uint8]], times_s: Sequence[float],
                      codec: str = "ffv1", pixels: str = "bgr0", time_base: int = 1000, b_frames: int = 0) -> Path:
    """Picture i at times_s[i], by PyAV; the container is the file's suffix. time_base: ticks a second of the stream."""
    av = pytest.importorskip("av", reason="PyAV writes the variable-rate clips; it is in the extra `test`")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.pix_fmt = pixels
        stream.height, stream.width = pictures[0].shape[:2]
        stream.time_base = stream.codec_context.time_base = Fraction(1, time_base)
        stream.codec_context.max_b_frames = b_frames
        for picture, time_s in zip(pictures, times_s, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format=pixels)
            frame.pts, frame.time_base = round(time_s * time_base), stream.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def container_times_s(path: Path) -> list[float]:
    """Presentation time of every frame by PyAV, in display order: the second opinion on what OpenCV reports."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        return sorted(float(frame.pts * frame.time_base) for frame in container.decode(video=0))
