"""Draws the display's own fonts into pvl_font.h: `python firmware_bridge/display/make_font.py` (standard library only).

Every glyph is a set of pen strokes of even width with round ends, as in technical lettering. All shapes are this project's
own and no existing font was traced, so the bitmaps stand under the project's licence. 1 has a foot and l a tail, 6 and 9
have straight necks: 1/7/I/l and 0/6/8/9 stay apart when they are small or out of focus.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

CAP, DESCENT = 14.0, 4.0  # grid units: the tops of capitals are at y = 0, the baseline at 14, tails end at 18
_KAPPA = 0.5523  # control points of a cubic this far along make it a circle's quarter

# Strokes are points "x,y" on the grid, "x,y~r" rounded with radius r; "o" closes a stroke; one point is a dot. First the width.
_BOWL, _RING = "0,4~3.5 7,4~3.5 7,14~3.5 0,14~3.5 o", "0,0~4.5 9,0~4.5 9,14~4.5 0,14~4.5 o"
GLYPHS = {
    " ": "2",
    "!": "1|0.5,0 0.5,9|0.5,14",
    '"': "4|0.5,0 0.5,4|3.5,0 3.5,4",
    "#": "8|3,1 1.4,13|6.6,1 5,13|0.4,4.8 8,4.8|0,9.4 7.6,9.4",
    "$": "8|8,4.2 8,2~3 0,2~3 0,7~3 8,7~3 8,12~3 0,12~3 0,9.8|4,0 4,14",
    "%": "10|9,0 1,14|0,0.2~1.7 3.4,0.2~1.7 3.4,4.6~1.7 0,4.6~1.7 o|6.6,9.4~1.7 10,9.4~1.7 10,13.8~1.7 6.6,13.8~1.7 o",
    "&": "8.6|8.6,14 1.2,4.6~2 1.2,0~2.4 6,0~2.4 6,4.4~2 0,7.4~3 0,14~3.4 6.4,14~3.4 8.4,8.4",
    "'": "1|0.5,0 0.5,4",
    "(": "3|3,-0.6 0,4~3 0,11~3 3,15.6",
    ")": "3|0,-0.6 3,4~3 3,11~3 0,15.6",
    "*": "6|3,0 3,7|0,1.6 6,5.4|6,1.6 0,5.4",
    "+": "8|4,4 4,12|0,8 8,8",
    ",": "1.6|1,13.6 0.2,16.6",
    "-": "6|0.4,8 5.6,8",
    ".": "1|0.5,14",
    "/": "6|6,-0.4 0,15",
    "0": "8|0,0~4 8,0~4 8,14~4 0,14~4 o",
    "1": "8|1.5,3 4.7,0 4.7,14|1.4,14 8,14",
    "2": "8|0,3.8 0,0~4 8,0~4 8,6~3 0,14 8,14",
    "3": "8|0.2,2.8 0.2,0~3.2 7.6,0~3.4 7.6,6.7~3.2 3,6.7|3,6.7 8,6.7~3.6 8,14~3.6 0,14~3.4 0,11",
    "4": "8|6,14 6,0 0,10 8,10",
    "5": "8|7.4,0 0.8,0 0.4,6 8,6~4 8,14~4 0,14~3.4 0,11.4",
    "6": "8|5.8,0 0.71,7.57|0,5.8~4 8,5.8~4 8,14~4 0,14~4 o",
    "7": "8|0,0 8,0 8,1 3,14",
    "8": "8|0.5,0~3.3 7.5,0~3.3 7.5,6.5~3.2 0.5,6.5~3.2 o|0,6.5~3.6 8,6.5~3.6 8,14~3.7 0,14~3.7 o",
    "9": "8|2.2,14 7.29,6.43|0,0~4 8,0~4 8,8.2~4 0,8.2~4 o",
    ":": "1|0.5,5.4|0.5,13.2",
    ";": "1.6|1,5.4|1,13.4 0.2,16.6",
    "<": "7|7,3.4 0,8 7,12.6",
    "=": "8|0,5.8 8,5.8|0,10.4 8,10.4",
    ">": "7|0,3.4 7,8 0,12.6",
    "?": "7.4|0,3.6 0,0~3.7 7.4,0~3.7 7.4,5.6~2.6 3.7,7~2 3.7,9.6|3.7,13.7",
    "@": "11|8,9.6 8,4.4~2.4 3.4,4.4~2.3 3.4,10~2.3 8,10~2 8,9.4|8,8 8,10.4~1.6 11,10.4~1.6 11,0~5 0,0~5 0,14~5 9,14",
    "A": "9|0,14 4.5,0 9,14|1.5,9.8 7.5,9.8",
    "B": "8|0,0 7.4,0~3.3 7.4,6.7~3.3 0,6.7|0,6.7 8,6.7~3.6 8,14~3.6 0,14 0,0",
    "C": "8.6|8.6,3.8 8.6,0~4.3 0,0~4.3 0,14~4.3 8.6,14~4.3 8.6,10.2",
    "D": "8|0,0 8,0~4.4 8,14~4.4 0,14 o",
    "E": "7|7,0 0,0 0,14 7,14|0,6.8 6,6.8",
    "F": "7|7,0 0,0 0,14|0,6.8 6,6.8",
    "G": "8.6|8.6,3.8 8.6,0~4.3 0,0~4.3 0,14~4.3 8.6,14~4.3 8.6,7.6 5,7.6",
    "H": "8|0,0 0,14|8,0 8,14|0,6.8 8,6.8",
    "I": "1|0.5,0 0.5,14",
    "J": "6|6,0 6,14~3.4 0,14~3.4 0,11",
    "K": "8|0,0 0,14|7.6,0 0,8.6|2.8,5.6 8,14",
    "L": "7|0,0 0,14 7,14",
    "M": "10|0,14 0,0 5,8.6 10,0 10,14",
    "N": "8|0,14 0,0 8,14 8,0",
    "O": f"9|{_RING}",
    "P": "8|0,14 0,0 8,0~3.8 8,7.6~3.8 0,7.6",
    "Q": f"9|{_RING}|5.4,10.4 9.2,15.4",
    "R": "8|0,14 0,0 8,0~3.7 8,7.4~3.7 0,7.4|4.2,7.4 8.2,14",
    "S": "8|8,3.4 8,0~3.6 0,0~3.6 0,6.8~3.5 8,6.8~3.5 8,14~3.7 0,14~3.7 0,10.6",
    "T": "8|0,0 8,0|4,0 4,14",
    "U": "8|0,0 0,14~4 8,14~4 8,0",
    "V": "9|0,0 4.5,14 9,0",
    "W": "12|0,0 3,14 6,2 9,14 12,0",
    "X": "8.4|0,0 8.4,14|8.4,0 0,14",
    "Y": "8.4|0,0 4.2,7 8.4,0|4.2,7 4.2,14",
    "Z": "8|0,0 8,0 0,14 8,14",
    "[": "3|3,-0.6 0,-0.6 0,15.6 3,15.6",
    "\\": "6|0,-0.4 6,15",
    "]": "3|0,-0.6 3,-0.6 3,15.6 0,15.6",
    "^": "7|0,5 3.5,0 7,5",
    "_": "8|0,16 8,16",
    "`": "3|0.4,0 2.4,2.4",
    "a": "7|0.6,5.4 0.6,4~1.4 7,4~3.2 7,14|7,8.6 0,8.6~2.7 0,14~2.7 4.6,14 7,11.4",
    "b": f"7|0,0 0,14|{_BOWL}",
    "c": "7|7,7 7,4~3.5 0,4~3.5 0,14~3.5 7,14~3.5 7,11",
    "d": f"7|7,0 7,14|{_BOWL}",
    "e": "7|0,9 7,9 7,4~3.5 0,4~3.5 0,14~3.5 6.6,14~2.4 6.6,12.6",
    "f": "5|5.4,0 2,0~2.4 2,14|0,4.4 5,4.4",
    "g": f"7|{_BOWL}|7,4 7,18~3.2 0.6,18~1.6 0.6,17",
    "h": "7|0,0 0,14|0,9 0,4~3.5 7,4~3.5 7,14",
    "i": "1|0.5,4 0.5,14|0.5,0.2",
    "j": "3|2.6,4 2.6,18~2.6 0,18|2.6,0.2",
    "k": "7|0,0 0,14|6.4,4 0,10|2.4,7.9 7,14",
    "l": "2.6|0.2,0 0.2,14~2.4 2.8,14",
    "m": "11|0,4 0,14|0,8 0,4~2.8 5.5,4~2.8 5.5,14|5.5,8 5.5,4~2.8 11,4~2.8 11,14",
    "n": "7|0,4 0,14|0,9 0,4~3.5 7,4~3.5 7,14",
    "o": f"7|{_BOWL}",
    "p": f"7|0,4 0,18|{_BOWL}",
    "q": f"7|7,4 7,18|{_BOWL}",
    "r": "4.6|0,4 0,14|0,9 0,4~3.5 4.8,4",
    "s": "6.6|6.4,5.8 6.4,4~1.8 0,4~2.4 0,8.9~2.4 6.6,8.9~2.5 6.6,14~2.5 0,14~1.8 0,12.2",
    "t": "5|2,0.8 2,14~2.4 5.2,14|0,4.4 5,4.4",
    "u": "7|0,4 0,14~3.5 7,14~3.5 7,9|7,4 7,14",
    "v": "7|0,4 3.5,14 7,4",
    "w": "10|0,4 2.5,14 5,5 7.5,14 10,4",
    "x": "7|0,4 7,14|7,4 0,14",
    "y": "7|0,4 3.6,13.4|7,4 2.6,18 0.6,18",
    "z": "6.6|0,4 6.6,4 0,14 6.6,14",
    "{": "4|4,-0.6 1.6,-0.6~1.6 1.6,7.4~1.4 0,7.4|0,7.6 1.6,7.6~1.4 1.6,15.6~1.6 4,15.6",
    "|": "1|0.5,-0.6 0.5,15.6",
    "}": "4|0,-0.6 2.4,-0.6~1.6 2.4,7.4~1.4 4,7.4|4,7.6 2.4,7.6~1.4 2.4,15.6~1.6 0,15.6",
    "~": "8|0,9.4 2.4,6.4~2 5.6,9.6~2 8,6.6",
}


@dataclass(frozen=True)
class Face:
    """One font: cap height and pen in pixels, pixels per grid unit along x, gap between glyphs, and which glyphs it has."""

    name: str
    cap_px: float
    pen_px: float
    x_px: float
    gap_px: int
    glyphs: str
    descends: bool = True


_ASCII = "".join(map(chr, range(32, 127)))
# On the 7-inch panel 28 px are 5.4 mm, for words that are read from a distance, and 160 px 30.8 mm: a third of its height.
FACES = (
    Face("small", 12, 1.5, 0.75, 2, _ASCII),
    Face("medium", 16, 2.0, 1.0, 2, _ASCII),
    Face("large", 28, 4.0, 1.5, 3, _ASCII),
    Face("digits", 160, 20.0, 8.0, 10, "0123456789-", descends=False),
    Face("mark", 118, 18.0, 5.0, 0, "?", descends=False),
)

Point = tuple[float, float]


def strokes(spec: str) -> list[list[Point]]:
    """The glyph's strokes as chains of points on the grid, corners rounded."""
    chains = []
    for part in spec.split("|")[1:]:
        words = part.split()
        closed = words[-1] == "o"
        found = [re.fullmatch(r"([-\d.]+),([-\d.]+)(?:~([\d.]+))?", word) for word in (words[:-1] if closed else words)]
        points = [(float(m[1]), float(m[2]), float(m[3] or 0)) for m in found if m]
        chain: list[Point] = []
        for i, (x, y, radius) in enumerate(points):
            inner = closed or 0 < i < len(points) - 1
            before, after = points[i - 1], points[(i + 1) % len(points)]
            chain += _corner((x, y), before[:2], after[:2], radius) if radius and inner else [(x, y)]
        chains.append(chain + chain[:1] if closed else chain)
    return chains


def _corner(at: Point, before: Point, after: Point, radius: float) -> list[Point]:
    """A rounded corner: at most half of either side is given up for it."""
    sides = [math.dist(at, before), math.dist(at, after)]
    cut = [min(radius, side / 2) for side in sides]
    start, end = (tuple(a + (b - a) * c / s for a, b in zip(at, to, strict=True))
                  for to, c, s in zip((before, after), cut, sides, strict=True))
    first, second = (tuple(p + (a - p) * _KAPPA for p, a in zip(point, at, strict=True)) for point in (start, end))
    curve = []
    for step in range(13):
        t = step / 12
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3)
        x, y = (sum(w * p[axis] for w, p in zip(weights, (start, first, second, end), strict=True)) for axis in (0, 1))
        curve.append((x, y))
    return curve


def coverage(face: Face, character: str) -> tuple[int, list[int]]:
    """Width in pixels and the rows' coverage 0-15, one after the other; the pen's edge is one pixel soft."""
    pen = face.pen_px
    y_px = (face.cap_px - pen) / CAP
    drawn = float(GLYPHS[character].split("|")[0]) * face.x_px + pen
    width = math.ceil(drawn - 1e-9)
    shift = pen / 2 + (width - drawn) / 2
    height = face_height(face)
    lines: list[tuple[float, float, float, float, float]] = []
    for chain in strokes(GLYPHS[character]):
        pixels = [(x * face.x_px + shift, y * y_px + pen / 2) for x, y in chain]
        dot = 0.12 * pen if len(pixels) == 1 else 0.0  # a dot as thick as the pen looks too thin
        lines += [(*a, *b, dot) for a, b in zip(pixels, pixels[1:] or pixels, strict=False)]
    out = []
    for row in range(height):
        near = [line for line in lines if min(line[1], line[3]) - pen < row + 0.5 < max(line[1], line[3]) + pen]
        for column in range(width):
            ink = max((pen / 2 + dot - _distance(column + 0.5, row + 0.5, *line) for *line, dot in near), default=-1.0)
            out.append(round(15 * min(1.0, max(0.0, ink + 0.5))))
    return width, out


def face_height(face: Face) -> int:
    y_px = (face.cap_px - face.pen_px) / CAP
    return math.ceil(face.cap_px + (DESCENT * y_px if face.descends else 0) - 1e-9)


def _distance(x: float, y: float, ax: float, ay: float, bx: float, by: float) -> float:
    dx, dy = bx - ax, by - ay
    length2 = dx * dx + dy * dy
    t = 0.0 if length2 == 0 else min(1.0, max(0.0, ((x - ax) * dx + (y - ay) * dy) / length2))
    return math.hypot(x - ax - t * dx, y - ay - t * dy)


def runs(values: list[int]) -> list[int]:
    """Run lengths: coverage in the upper four bits, length - 1 in the lower."""
    packed: list[int] = []
    for value in values:
        if packed and packed[-1] >> 4 == value and packed[-1] & 15 < 15:
            packed[-1] += 1
        else:
            packed.append(value << 4)
    return packed


def header() -> str:
    """The whole of pvl_font.h."""
    parts = ["/* Made by make_font.py; do not edit. Own glyphs, under the licence of the project. */",
             "#ifndef PVL_FONT_H", "#define PVL_FONT_H", "", '#include "pvl_canvas.h"', ""]
    for face in FACES:
        packed: list[int] = []
        starts, widths = [0], []
        for character in face.glyphs:
            width, values = coverage(face, character)
            packed += runs(values)
            starts.append(len(packed))
            widths.append(width)
        name = f"pvl_font_{face.name}"
        glyphs = face.glyphs.replace("\\", "\\\\").replace('"', '\\"').replace("?", "\\?")
        parts += [_array(f"static const uint8_t {name}_runs", packed), _array(f"static const uint16_t {name}_start", starts),
                  _array(f"static const uint8_t {name}_width", widths),
                  f"const pvl_font {name} = {{", f"    {name}_runs, {name}_start, {name}_width,",
                  f'    "{glyphs}",', f"    {face_height(face)}, {round(face.cap_px)}, {face.gap_px},", "};", ""]
    return "\n".join([*parts, "#endif", ""])


def _array(head: str, values: list[int]) -> str:
    rows = [", ".join(map(str, values[i:i + 30])) for i in range(0, len(values), 30)]
    return f"{head}[{len(values)}] = {{\n    " + ",\n    ".join(rows) + ",\n};"


if __name__ == "__main__":
    Path(__file__).with_name("pvl_font.h").write_text(header(), encoding="ascii")
