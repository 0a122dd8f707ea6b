"""Frames of the display as PNG files, with the standard library only."""

from __future__ import annotations

import struct
import zlib


def encode_png(frame: bytes, width_px: int, height_px: int) -> bytes:
    """A PNG of an RGB565 frame: two bytes a pixel, little-endian, row after row from the top left.

    No filter and one fixed compression, so one frame gives one file. ValueError when the frame's length does not fit.
    """
    if len(frame) != 2 * width_px * height_px:
        raise ValueError(f"RGB565 frame of {width_px} x {height_px}: expected {2 * width_px * height_px} bytes, "
                         f"got {len(frame)}")
    pixels = struct.unpack(f"<{width_px * height_px}H", frame)
    rgb = {pixel: bytes(((pixel >> 11) * 255 // 31, (pixel >> 5 & 63) * 255 // 63, (pixel & 31) * 255 // 31))
           for pixel in set(pixels)}
    rows = b"".join(b"\0" + b"".join([rgb[pixel] for pixel in pixels[start:start + width_px]])
                    for start in range(0, len(pixels), width_px))
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)  # 8 bits a channel, true colour
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
