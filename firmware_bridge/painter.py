"""A Screen as text: for a terminal (colour, large numerals, traces) or as one plain line. Decides nothing."""

from __future__ import annotations

from firmware_bridge.rules import Numeral, Screen
from firmware_bridge.schema import BANNER_TEXT, NO_RATE, Flags, ScreenMode

PR_LABEL, PR_UNIT = "PR camera", "bpm"  # optical: never labelled HR, which means ECG
RR_LABEL, RR_UNIT = "RR camera", "/min"
MIN_SIZE = (64, 20)  # below this the terminal gets plain lines

_PR_COLOUR, _RR_COLOUR, _TECHNICAL, _PLAIN = "1;32", "1;33", "1;36", "2"  # red and flashing are kept for alarms
_ALIVE = "◐◓◑◒"
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# Segments a-g clockwise from the top, g in the middle.
_SEGMENTS = {"0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc", "5": "afgcd", "6": "afgedc", "7": "abc",
             "8": "abcdefg", "9": "abcdfg", "-": "g"}
_QUESTION = ("01110", "11011", "00011", "00110", "01100", "01100", "00000", "01100", "01100")


def plain_line(screen: Screen, t_s: float) -> str:
    """The screen in one line, for logs and pipes."""
    parts = [f"{t_s:8.1f} s", _plain_numeral("PR", screen.pr, PR_UNIT), _plain_numeral("RR", screen.rr, RR_UNIT)]
    parts += [text for text in (screen.message, *screen.banners) if text]
    return "  ".join(parts)


def _plain_numeral(label: str, numeral: Numeral, unit: str) -> str:
    text = f"{label} {numeral!s:>4} {unit}"
    if numeral.bars:
        text += f" q{numeral.bars}/5"
    if numeral.averaging_s:
        text += f" avg {numeral.averaging_s} s"
    return f"{text:<27}" + (f"({numeral.reason})" if numeral.reason else "")


def spoken(screen: Screen) -> str:
    """The screen as a sentence, for who cannot see it."""
    parts = [f"{label} {numeral if numeral.x10 != NO_RATE else 'no number'} {unit}"
             + (f", {numeral.reason.lower()}" if numeral.reason else "")
             for label, unit, numeral in ((PR_LABEL, PR_UNIT, screen.pr), (RR_LABEL, RR_UNIT, screen.rr))]
    return ". ".join(part for part in (*parts, screen.message.lower(), *(text.lower() for text in screen.banners)) if part)


def paint(screen: Screen, width: int, height: int, source: str, colour: bool = True) -> list[str]:
    """At most `height` lines of `width` columns. Needs at least MIN_SIZE."""
    demo = BANNER_TEXT[Flags.DEMO] in screen.banners
    lines = [_title(screen, width, colour)]
    if demo:  # more than a tenth of the glass
        banner = [""] * (height // 10 + 1)
        banner[len(banner) // 2] = BANNER_TEXT[Flags.DEMO]
        lines += [_ink(text.center(width), _TECHNICAL + ";7", colour) for text in banner]
    box_height = (height - len(lines) - 2) // 2
    box_width = min(44, max(34, width * 2 // 5))
    trace_width = width - box_width - 1
    for label, unit, numeral, trace, name, ink in (
        (PR_LABEL, PR_UNIT, screen.pr, screen.pulse, "pulse, relative", _PR_COLOUR),
        (RR_LABEL, RR_UNIT, screen.rr, screen.resp, "breathing, relative", _RR_COLOUR),
    ):
        left = _trace_panel(trace, name, trace_width, box_height, ink, colour)
        right = _number_box(label, unit, numeral, box_width, box_height, ink, colour)
        lines += [f"{a} {b}" for a, b in zip(left, right, strict=True)]
    lines.append(_ink(screen.message.center(width), _TECHNICAL, colour))
    lines.append(_ink(f" {source}   frames {screen.link}"[:width].ljust(width), _PLAIN, colour))
    return lines


def _title(screen: Screen, width: int, colour: bool) -> str:
    right = " " + _ALIVE[screen.alive % len(_ALIVE)] + " "
    banner = next((text for text in screen.banners if text != BANNER_TEXT[Flags.DEMO]), "")
    left = f" {screen.product or 'camera unit'}"[:max(0, width - len(banner) - 6)]
    middle = banner.rjust(width - len(left) - len(right))
    return _ink(left, "1", colour) + _ink(middle, _TECHNICAL, colour) + _ink(right, "1", colour)


def _number_box(label: str, unit: str, numeral: Numeral, width: int, height: int, ink: str, colour: bool) -> list[str]:
    inner = width - 2
    head = f"─ {label} " + "─" * (inner - len(label) - len(unit) - 6) + f" {unit} ─"
    rows = height - 4
    digits = _big(str(numeral), min(rows, 8))
    above = (rows - len(digits)) // 2
    digits = [""] * above + digits + [""] * (rows - len(digits) - above)
    digits = [row.rjust(inner - 2).ljust(inner) for row in digits]
    bars = "▮" * numeral.bars + "▯" * (5 - numeral.bars)
    averaging = f"avg {numeral.averaging_s} s" if numeral.averaging_s else ""
    quality = f"  quality {bars}" + averaging.rjust(inner - 17)
    reason = numeral.reason[:inner - 4].rjust(inner - 2)
    body = [_ink(row, ink, colour) for row in digits]
    body += [_ink(quality.ljust(inner), ink, colour), _ink(reason.ljust(inner), _TECHNICAL, colour)]
    frame = [f"╭{head}╮", *(f"│{row}│" for row in body), f"╰{'─' * inner}╯"]
    return frame


def _big(text: str, rows: int) -> list[str]:
    """Seven-segment digits of `rows` text rows, two square pixels to a character cell."""
    tall = 2 * rows
    wide = max(5, round(0.6 * tall))
    thick = 1 if tall < 10 else 2 if tall < 15 else 3  # thicker, small digits would fill up and read as each other
    glyphs = [_question(tall) if c == "?" else _segments(c, wide, tall, thick) for c in text]
    lines = []
    for row in range(rows):
        cells = []
        for glyph in glyphs:
            upper, lower = glyph[2 * row], glyph[2 * row + 1]
            cells.append("".join(" ▀▄█"[u + 2 * v] for u, v in zip(upper, lower, strict=True)))
        lines.append("  ".join(cells))
    return lines


def _segments(character: str, wide: int, tall: int, thick: int) -> list[list[bool]]:
    grid = [[False] * wide for _ in range(tall)]
    middle = (tall - thick) // 2
    boxes = {
        "a": (0, thick, 0, wide), "g": (middle, middle + thick, 0, wide), "d": (tall - thick, tall, 0, wide),
        "f": (0, middle + thick, 0, thick), "b": (0, middle + thick, wide - thick, wide),
        "e": (middle, tall, 0, thick), "c": (middle, tall, wide - thick, wide),
    }
    for segment in _SEGMENTS.get(character, ""):
        top, bottom, left, right = boxes[segment]
        for y in range(top, bottom):
            grid[y][left:right] = [True] * (right - left)
    return grid


def _question(tall: int) -> list[list[bool]]:
    return [[cell == "1" for cell in _QUESTION[y * len(_QUESTION) // tall]] for y in range(tall)]


def _trace_panel(trace: tuple[int | None, ...], name: str, width: int, height: int, ink: str,
                 colour: bool) -> list[str]:
    inner = width - 2
    head = f"─ {name} " + "─" * (inner - len(name) - 3)
    rows = _braille(trace, inner, height - 2) if trace else [" " * inner] * (height - 2)
    return [f"╭{head}╮", *(f"│{_ink(row, ink, colour)}│" for row in rows), f"╰{'─' * inner}╯"]


def _braille(trace: tuple[int | None, ...], columns: int, rows: int) -> list[str]:
    """The trace as dots, 2 x 4 to a cell. A column without samples stays empty and breaks the line."""
    cells = [[0] * columns for _ in range(rows)]
    dots_x, dots_y = 2 * columns, 4 * rows
    last: int | None = None
    for x in range(dots_x):
        start = x * len(trace) // dots_x
        part = trace[start:max(start + 1, (x + 1) * len(trace) // dots_x)]
        levels = [round((127 - value) / 254 * (dots_y - 1)) for value in part if value is not None]
        if not levels or None in part:
            last = None
            continue
        span = levels if last is None else [*levels, last]
        last = levels[-1]
        for y in range(min(span), max(span) + 1):
            cells[y // 4][x // 2] |= _BRAILLE[y % 4][x % 2]
    return ["".join(chr(0x2800 + cell) if cell else " " for cell in row) for row in cells]


def _ink(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and text else text


def changed(old: Screen | None, new: Screen) -> bool:
    """Whether a plain line would read differently, quality aside."""
    def key(s: Screen) -> tuple[object, ...]:
        return s.mode, str(s.pr), str(s.rr), s.pr.reason, s.rr.reason, s.message, s.banners

    return old is None or key(old) != key(new)


def closing_line(mode: ScreenMode, pr: Numeral, rr: Numeral) -> str:
    """What stood on the glass last."""
    return f"last on the glass: PR {pr} {PR_UNIT}, RR {rr} {RR_UNIT}, {mode.name.lower().replace('_', ' ')}"
