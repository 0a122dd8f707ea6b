"""Which of a V4L2 camera's picture formats is taken, and how its buffers become BGR pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.camera import CameraError
from edge.v4l2_device import Device, Format

Picture = NDArray[np.uint8]

WIDTH, HEIGHT, FPS = 640, 480, 30.0
"""What is asked for where the spec does not say: the most that a USB 2 camera sends uncompressed at 30 a second."""

_RATE_MET = 0.95  # of the rate asked for: cameras say 29.97 or 28.6 and mean 30


@dataclass(frozen=True)
class Wish:
    """The picture asked for. explicit: the size was named, and another one will not do."""

    width: int = WIDTH
    height: int = HEIGHT
    fps: float = FPS
    explicit: bool = False


def _rows(raw: Picture, picture: Format, height: int, width_bytes: int) -> Picture:
    """The buffer as rows without their padding: a view."""
    return np.ndarray((height, width_bytes), np.uint8, raw, 0, (picture.stride_bytes, 1))


def _packed_422(code: int) -> Callable[[Picture, Format], Picture]:
    def convert(raw: Picture, picture: Format) -> Picture:
        pairs = np.ndarray((picture.height, picture.width, 2), np.uint8, raw, 0, (picture.stride_bytes, 2, 1))
        return np.asarray(cv2.cvtColor(pairs, code), np.uint8)
    return convert


def _nv12(raw: Picture, picture: Format) -> Picture:
    planes = _rows(raw, picture, picture.height * 3 // 2, picture.width)
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12), np.uint8)


def _bgr(raw: Picture, picture: Format) -> Picture:
    return _rows(raw, picture, picture.height, picture.width * 3).reshape(picture.height, picture.width, 3).copy()


def _rgb(raw: Picture, picture: Format) -> Picture:
    return np.asarray(cv2.cvtColor(_bgr(raw, picture), cv2.COLOR_RGB2BGR), np.uint8)


# In the order in which they are liked. Bytes of a row for each pixel, then how to convert.
_UNCOMPRESSED: dict[str, tuple[int, Callable[[Picture, Format], Picture]]] = {
    "YUYV": (2, _packed_422(cv2.COLOR_YUV2BGR_YUYV)), "UYVY": (2, _packed_422(cv2.COLOR_YUV2BGR_UYVY)),
    "NV12": (1, _nv12), "BGR3": (3, _bgr), "RGB3": (3, _rgb)}
_MJPEG = "MJPG"
_JPEG_END, _JPEG_PADDING = b"\xff\xd9", 4096


def to_bgr(raw: Picture, used_bytes: int, format_: Format) -> Picture | None:
    """The picture in a buffer, as an array of its own; None when it is not whole."""
    if format_.pixels == _MJPEG:
        # OpenCV fills up what a cut-off picture lacks with grey; cameras may pad behind the end mark
        if _JPEG_END not in raw[max(0, used_bytes - _JPEG_PADDING):used_bytes].tobytes():
            return None
        decoded = cv2.imdecode(raw[:used_bytes], cv2.IMREAD_COLOR)
        whole = decoded is not None and decoded.shape[:2] == (format_.height, format_.width)
        return np.asarray(decoded, np.uint8) if whole else None
    planar = format_.pixels == "NV12"
    rows = format_.height * 3 // 2 if planar else format_.height
    bytes_a_pixel, convert = _UNCOMPRESSED[format_.pixels]
    # the last row may come without its padding
    whole_bytes = (rows - 1) * format_.stride_bytes + format_.width * bytes_a_pixel
    return convert(raw, format_) if used_bytes >= whole_bytes else None


def choose(device: Device, wish: Wish) -> tuple[Format, float | None, tuple[str, ...]]:
    """(format as set, rate granted, notes). Uncompressed wherever it does the size and the rate, compressed only else."""
    offered = device.pixel_formats()
    usable = [pixels for pixels in (*_UNCOMPRESSED, _MJPEG) if pixels in offered]
    if not usable:
        raise CameraError(f"{device.path}: no picture format that can be read: expected one of "
                          f"{', '.join((*_UNCOMPRESSED, _MJPEG))}, got {', '.join(offered) or 'none'}")
    ranked = []
    for i, pixels in enumerate(usable):
        tried = device.format(pixels, wish.width, wish.height, keep=False)
        fps = device.highest_fps(pixels, tried.width, tried.height)
        fits = (tried.width, tried.height) == (wish.width, wish.height)
        fast = min(fps or wish.fps, wish.fps)
        met = fast >= _RATE_MET * wish.fps
        ranked.append(((fits, met, pixels != _MJPEG, fast, -i), tried))
    (fits, *_), best = max(ranked, key=lambda each: each[0])
    if wish.explicit and not fits:
        sizes = sorted({size for pixels in usable for size in device.sizes(pixels)})
        raise CameraError(f"{device.path}: no picture of {wish.width}x{wish.height}; it has "
                          + (", ".join(f"{w}x{h}" for w, h in sizes) or f"{best.width}x{best.height}"))
    chosen = device.format(best.pixels, best.width, best.height, keep=True)
    if chosen.pixels not in usable:
        raise CameraError(f"{device.path}: asked for {best.pixels}, the driver sets {chosen.pixels}; try another size")
    fps = device.set_fps(wish.fps)
    return chosen, fps, _format_notes(chosen, fps, wish)


def _format_notes(chosen: Format, fps: float | None, wish: Wish) -> tuple[str, ...]:
    rate = "a rate it does not tell" if fps is None else f"{fps:g} a second"
    notes = [f"format: {chosen.width}x{chosen.height} {chosen.pixels} at {rate}"]
    if chosen.pixels == _MJPEG:
        notes.append("compressed: MJPEG, the camera does this size and rate in no other way; it costs the pulse about 5 dB, "
                     "a smaller picture may do without")
    if (chosen.width, chosen.height) != (wish.width, wish.height):
        notes.append(f"size: asked for {wish.width}x{wish.height}")
    if fps is not None and fps < _RATE_MET * wish.fps:
        notes.append(f"rate: asked for {wish.fps:g} a second")
    return tuple(notes)
