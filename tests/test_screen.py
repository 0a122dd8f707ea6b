"""The painted screen: about thirty states as golden pictures, and what holds in every state.

`python tests/test_screen.py` paints the goldens anew; look at each one before it is committed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import random
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # when it runs as a program

from firmware_bridge import core  # noqa: E402
from firmware_bridge.messages import Wave  # noqa: E402
from firmware_bridge.png import encode_png  # noqa: E402
from firmware_bridge.rules import PULSE_TRACE_S, RESP_TRACE_S, _Trace  # noqa: E402
from firmware_bridge.schema import BANNER_TEXT, MODE_TEXT, NO_SAMPLE, TECH_TEXT, Channel, Flags, ScreenMode  # noqa: E402

PARTS = ("pvl_canvas", "pvl_traces", "pvl_draw")
GOLDEN = Path(__file__).with_name("golden") / "screen"
WIDTH, HEIGHT = 800, 480
PITCH_MM = 0.1926  # of the 7-inch panel
BLACK, GREEN, YELLOW, CYAN = 0x0000, 0x378C, 0xFF40, 0x071F

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two outside
BOXES: tuple[Box, Box] = ((450, 56, 800, 224), (450, 252, 800, 420))  # PR and RR: digits, "?", or dashes and why
DASHES: tuple[Box, Box] = ((450, 56, 800, 146), (450, 252, 800, 342))
PULSE: Box = (0, 56, 394, 218)
RESP: Box = (0, 252, 394, 414)


class CWave(ctypes.Structure):
    _fields_ = [("first_index", ctypes.c_uint32), ("now_ms", ctypes.c_uint32), ("samples", ctypes.POINTER(ctypes.c_int8)),
                ("n", ctypes.c_uint8), ("channel", ctypes.c_uint8), ("rate_hz", ctypes.c_uint8)]


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        core.compiler()
    except core.CoreError as error:
        pytest.skip(str(error))


class Traces:
    """The C trace memory, fed as the core feeds it."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(4096)
        core.library().pvl_traces_erase(self.memory)

    def wave(self, channel: int, first_index: int, rate_hz: int, samples: list[int], now_ms: int) -> None:
        data = (ctypes.c_int8 * max(1, len(samples)))(*samples)
        wave = CWave(first_index & 0xFFFFFFFF, now_ms & 0xFFFFFFFF, data, len(samples), channel, rate_hz)
        core.library().pvl_traces_wave(self.memory, ctypes.byref(wave))

    def look(self, now_ms: int, mode: int = 0) -> None:
        core.library().pvl_traces_look(self.memory, core.CView(mode=mode), now_ms & 0xFFFFFFFF)

    def kept(self, channel: int) -> tuple[int | None, ...]:
        out = (ctypes.c_int8 * 2000)()
        count = core.library().pvl_traces_list(self.memory, channel, out)
        return tuple(None if sample == NO_SAMPLE else sample for sample in out[:count])


@dataclass(frozen=True)
class Number:
    text: str = "---"
    questionable: bool = False
    bars: int = 0
    averaging_s: int = 0
    reason: str = ""

    def as_c(self) -> core.CNumeral:
        x10 = 10 * int(self.text) if self.text.isdigit() else 0xFFFF
        return core.CNumeral(self.text.encode(), x10, self.questionable, self.bars, self.averaging_s, self.reason.encode())


PR, RR = Number("143", bars=5, averaging_s=8), Number("42", bars=4, averaging_s=15)


@dataclass(frozen=True)
class State:
    """One screen: what the view model says, and the traces and the name beside it."""

    pr: Number = PR
    rr: Number = RR
    mode: ScreenMode = ScreenMode.LIVE
    message: str = ""
    banners: int = int(Flags.INVESTIGATIONAL)
    testing: bool = False
    alive: int = 1
    counters: tuple[int, int, int, int] = (1432, 0, 2, 1)
    product: str | None = "PhysVLM Edge"
    traces: Callable[[], Traces | None] = field(default=lambda: running())

    def paint(self, before: int = 0, look: bool = True) -> bytes:
        """RGB565; `before` is what fills the memory beforehand. Guard words behind and before it must survive."""
        guard = 4096
        words = struct.pack("<H", before) * (WIDTH * HEIGHT + 2 * guard)
        frame = (ctypes.c_uint16 * (WIDTH * HEIGHT + 2 * guard)).from_buffer_copy(words)
        view = core.CView(self.mode, self.pr.as_c(), self.rr.as_c(), self.message.encode(), self.banners, self.testing,
                     self.alive, 0, 0, *self.counters)
        traces = self.traces()
        if traces is not None and look:
            core.library().pvl_traces_look(traces.memory, view, 20_000)
        core.library().pvl_draw(ctypes.byref(frame, 2 * guard), view, traces and traces.memory,
                           None if self.product is None else self.product.encode())
        words = bytes(frame)
        edge = struct.pack("<H", before) * guard
        assert words[:2 * guard] == edge and words[-2 * guard:] == edge, "painted outside the framebuffer"
        return words[2 * guard:-2 * guard]


def pulse(t_s: float) -> int:
    """A pulse with its dicrotic notch at 143 /min."""
    phase = t_s * 143 / 60 % 1
    return round(110 * math.exp(-((phase - 0.22) / 0.11) ** 2) + 45 * math.exp(-((phase - 0.55) / 0.13) ** 2) - 60)


def breath(t_s: float) -> int:
    return round(80 * math.sin(2 * math.pi * t_s * 42 / 60) + 14 * math.sin(2 * math.pi * t_s * 0.11))


def running(seconds: float = 20.0, gaps: tuple[tuple[float, float], ...] = (), end_s: float = 20.0,
            scale: float = 1.0) -> Traces:
    """Both waves for `seconds` until end_s, at 25 Hz in WAVEs of 5 samples, without what lies in the gaps (from, to in s)."""
    traces = Traces()
    for first in range(round((end_s - seconds) * 25), round(end_s * 25), 5):
        if any(start <= first / 25 < end for start, end in gaps):
            continue
        for channel, wave in ((Channel.PULSE, pulse), (Channel.RESP, breath)):
            samples = [max(-127, min(127, round(scale * wave(index / 25)))) for index in range(first, first + 5)]
            traces.wave(channel, first, 25, samples, first * 40 + 200)
    return traces


def no_number(reason: str, **rest: object) -> State:
    return State(Number(reason=reason, averaging_s=8), Number(reason=reason, averaging_s=15), **rest)  # type: ignore[arg-type]


def not_live(mode: ScreenMode, **rest: object) -> State:
    return State(Number(), Number(), mode, MODE_TEXT[mode], **rest)  # type: ignore[arg-type]


QUESTIONABLE_PR = replace(PR, text="156", questionable=True, bars=2, reason="MOTION")
QUESTIONABLE_RR = replace(RR, text="61", questionable=True, bars=1, reason="UNCERTAIN SIGNAL")
LONGEST = max(TECH_TEXT.values(), key=len)

STATES = {
    "both_valid": State(),
    "pr_questionable": State(pr=QUESTIONABLE_PR, message="MOTION"),
    "rr_questionable": State(rr=QUESTIONABLE_RR, message="UNCERTAIN SIGNAL"),
    "both_questionable": State(replace(QUESTIONABLE_PR, reason="UNCERTAIN"), replace(QUESTIONABLE_RR, reason="UNCERTAIN")),
    "pr_dashes_low_signal": State(pr=Number(reason="LOW SIGNAL", averaging_s=8), message="LOW SIGNAL"),
    "rr_dashes_motion": State(rr=Number(reason="MOTION", averaging_s=15), message="MOTION"),
    "dashes_not_in_view": no_number("BABY NOT IN VIEW", message="BABY NOT IN VIEW"),
    "dashes_no_camera": no_number("NO CAMERA", message="NO CAMERA", traces=lambda: None),
    "dashes_no_reliable_signal": no_number("NO RELIABLE SIGNAL"),
    "dashes_searching": no_number("SEARCHING", traces=lambda: running(1.2)),
    "dashes_longest_reason": no_number(LONGEST, message=LONGEST),
    "questionable_longest_reason": State(replace(QUESTIONABLE_PR, reason=LONGEST), replace(QUESTIONABLE_RR, reason=LONGEST),
                                         message=LONGEST),
    "numbers_three_digits": State(replace(PR, text="208"), replace(RR, text="119")),
    "numbers_two_digits": State(replace(PR, text="67"), replace(RR, text="35")),
    "numbers_one_digit": State(replace(PR, text="90"), replace(RR, text="4")),
    **{f"mode_{mode.name.lower()}": not_live(mode) for mode in ScreenMode if mode is not ScreenMode.LIVE},
    "demo": State(banners=int(Flags.DEMO)),
    "demo_investigational": State(banners=int(Flags.DEMO | Flags.INVESTIGATIONAL)),
    "no_banner": State(banners=0),
    "demo_link_lost": not_live(ScreenMode.LINK_LOST, banners=int(Flags.DEMO | Flags.INVESTIGATIONAL)),
    "traces_gaps": State(traces=lambda: running(gaps=((11.0, 13.0), (18.4, 19.0)))),
    "traces_just_begun": State(traces=lambda: running(0.6)),
    "traces_empty": State(traces=Traces),
    "traces_overdue": State(traces=lambda: running(18.0, end_s=18.4)),
    "traces_full_scale": State(traces=lambda: running(scale=1.5)),
    "quality_0_1": State(replace(PR, bars=0, averaging_s=0), replace(RR, bars=1)),
    "quality_2_3": State(replace(PR, bars=2), replace(RR, bars=3)),
    "alive_5": State(alive=5),
    "segment_test": State(Number(), Number(), ScreenMode.WAITING, MODE_TEXT[ScreenMode.WAITING], testing=True),
    "longest_of_all": State(replace(QUESTIONABLE_PR, averaging_s=255, reason=LONGEST), Number(reason=LONGEST, averaging_s=255),
                            message="WWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWWW", product="WWWWWWWWWWWWWWWW",
                            counters=(65535, 65535, 65535, 65535), banners=int(Flags.DEMO | Flags.INVESTIGATIONAL)),
    "product_unknown": State(product=""),
}


def png_pixels(data: bytes) -> bytes:
    """RGB of a PNG that encode_png wrote: no filter, whatever zlib compressed it."""
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        packed += data[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    rows, stride = zlib.decompress(packed), 1 + 3 * WIDTH
    return b"".join(rows[y * stride + 1:(y + 1) * stride] for y in range(HEIGHT))


def crop(frame: bytes, box: Box) -> tuple[int, ...]:
    left, top, right, bottom = box
    rows = (frame[2 * (y * WIDTH + left):2 * (y * WIDTH + right)] for y in range(top, bottom))
    return struct.unpack(f"<{(right - left) * (bottom - top)}H", b"".join(rows))


def lit_columns(frame: bytes, box: Box) -> set[int]:
    width = box[2] - box[0]
    return {box[0] + i % width for i, pixel in enumerate(crop(frame, box)) if pixel != BLACK}


def random_state(draw: random.Random) -> State:
    """Any view, also those that the core would never make."""
    texts = ["", "UNCERTAIN", LONGEST, "W" * 60, "1", "888 " * 9]

    def number() -> Number:
        text = draw.choice(["---", str(draw.randint(1, 300))])
        return Number(text, draw.random() < 0.5, draw.randint(0, 9), draw.choice([0, 8, 255]), draw.choice(texts))

    return State(number(), number(), draw.choice(list(ScreenMode)), draw.choice(texts), draw.randint(0, 3), draw.random() < 0.1,
                 draw.randint(0, 65535), (draw.randint(0, 65535),) * 4, draw.choice([None, "", "1", "W" * 40]),
                 draw.choice([lambda: None, Traces, running, lambda: running(scale=9.0)]))


@pytest.mark.parametrize("name", STATES)
def test_every_state_looks_as_it_was_looked_at(name: str, tmp_path: Path) -> None:
    painted = encode_png(STATES[name].paint(), WIDTH, HEIGHT)
    golden = GOLDEN / f"{name}.png"
    if png_pixels(painted) != png_pixels(golden.read_bytes()):
        (tmp_path / golden.name).write_bytes(painted)
        pytest.fail(f"differs from {golden}: look at {tmp_path / golden.name}, and if it is meant: python {__file__}")


def test_no_golden_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.png")} == set(STATES)


def test_what_was_in_the_memory_before_never_shines_through_and_nothing_beside_it_is_touched() -> None:
    draw = random.Random(1)
    for state in [*STATES.values(), *(random_state(draw) for _ in range(40))]:
        assert state.paint(0xF81F) == state.paint(0x0000) == state.paint(0x0000)


def test_no_state_has_a_red_pixel() -> None:
    draw = random.Random(2)
    for state in [*STATES.values(), *(random_state(draw) for _ in range(20))]:
        for pixel in set(struct.unpack(f"<{WIDTH * HEIGHT}H", state.paint())):
            red, green = (pixel >> 11) * 255 // 31, (pixel >> 5 & 63) * 255 // 63
            assert red <= green + 24, f"pixel {pixel:04x} in {state}"


def test_a_number_looks_the_same_whatever_else_is_on_the_glass() -> None:
    draw = random.Random(3)
    for _ in range(60):
        state = replace(random_state(draw), testing=False)
        alone = State(Number(state.pr.text, state.pr.questionable), Number(state.rr.text, state.rr.questionable), banners=0,
                      counters=(0, 0, 0, 0), product=None, traces=lambda: None)
        frame, expected = state.paint(), alone.paint()
        for number, box, dashes in zip((state.pr, state.rr), BOXES, DASHES, strict=True):
            where = box if number.text.isdigit() else dashes  # below dashes stands why
            assert crop(frame, where) == crop(expected, where)


def test_a_box_with_dashes_holds_three_dashes_and_words_and_nothing_in_the_colour_of_a_number() -> None:
    draw = random.Random(4)
    for state in [*STATES.values(), *(random_state(draw) for _ in range(40))]:
        if state.testing:
            continue
        frame = state.paint()
        for number, box, dashes, ink in zip((state.pr, state.rr), BOXES, DASHES, (GREEN, YELLOW), strict=True):
            if number.text.isdigit():
                continue
            rows = {i // 350 for i, pixel in enumerate(crop(frame, dashes)) if pixel != BLACK}
            assert rows == set(range(42, 62))  # 20 pixels high: a pen's width
            below = (box[0], dashes[3], box[2], box[3])
            assert ink not in crop(frame, below)


@pytest.mark.parametrize("text", ["", "0", "042", "1 2", "abc", "-1", "+++"])
def test_what_is_no_number_is_painted_as_dashes(text: str) -> None:
    assert State(replace(PR, text=text)).paint() == State(replace(PR, text="---")).paint()


def test_numbers_are_at_least_a_third_of_the_panel_high() -> None:
    for digit in "123456789":
        frame = State(Number(digit), Number(digit)).paint()
        for box in BOXES:
            rows = {i // 350 for i, pixel in enumerate(crop(frame, box)) if pixel != BLACK}
            assert max(rows) - min(rows) + 1 >= HEIGHT / 3


def test_digits_stay_apart_when_they_are_six_times_smaller() -> None:
    def small(digit: str) -> list[float]:
        pixels = crop(State(Number("1" + digit)).paint(), (644, 58, 728, 218))
        shades = [pixel >> 5 & 63 for pixel in pixels]
        return [sum(shades[(6 * row + y) * 84 + 6 * column + x] for y in range(6) for x in range(6)) / 36 / 63
                for row in range(26) for column in range(14)]

    shapes = {digit: small(digit) for digit in "0123456789"}
    for a, first in shapes.items():
        for b, second in shapes.items():
            if a < b:
                apart = sum(abs(p - q) for p, q in zip(first, second, strict=True)) / (sum(first) + sum(second))
                assert apart > 0.12, f"{a} and {b} differ by {apart:.0%} of their ink only"


def test_each_quality_and_each_question_mark_is_a_different_picture() -> None:
    pictures = {State(replace(PR, bars=bars, questionable=mark)).paint() for bars in range(6) for mark in (False, True)}
    assert len(pictures) == 12
    assert State(replace(PR, bars=200)).paint() == State(replace(PR, bars=5)).paint()


def test_the_alive_mark_moves_with_alive_and_with_nothing_else() -> None:
    frames = [State(alive=alive).paint() for alive in range(8)]
    assert len(set(frames)) == 8 and State(alive=8).paint() == frames[0]
    mark = (768, 0, 800, 28)
    for frame in frames[1:]:
        assert frame[2 * WIDTH * 28:] == frames[0][2 * WIDTH * 28:]
        assert crop(frame, (0, 0, 768, 28)) == crop(frames[0], (0, 0, 768, 28))
    assert {crop(state.paint(), mark) for state in STATES.values() if state.alive == 1 and not state.testing} == {
        crop(frames[1], mark)}


def test_the_demo_banner_covers_a_tenth_of_the_glass_whatever_the_link_does() -> None:
    for mode in ScreenMode:
        frame = State(mode=mode, banners=int(Flags.DEMO)).paint()
        box = (0, 176, 394, 274)
        assert (box[2] - box[0]) * (box[3] - box[1]) >= WIDTH * HEIGHT / 10
        pixels = crop(frame, box)
        assert pixels.count(CYAN) > 0.8 * len(pixels)
        edge = crop(frame, (0, 176, 394, 180)) + crop(frame, (0, 270, 394, 274))
        assert set(edge) == {CYAN}


@pytest.mark.parametrize(("box", "channel", "mm_per_s"), [(PULSE, Channel.PULSE, 25.0), (RESP, Channel.RESP, 6.25)])
def test_traces_run_at_their_speed_across_the_glass(box: Box, channel: int, mm_per_s: float) -> None:
    traces = Traces()
    for first in range(0, 20 * 50, 50):
        traces.wave(channel, first, 50, [-20] * 25 + [127] + [-20] * 24, 1_000 + first * 20)
    frame = State(traces=lambda: traces).paint()
    peaks = sorted(lit_columns(frame, (box[0], box[1], box[2], box[1] + 12)))
    starts = [x for x in peaks if x - 1 not in peaks]
    steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    px_per_s = mm_per_s / PITCH_MM
    assert min(steps) == pytest.approx(px_per_s, abs=1.01)
    # Whole seconds apart: the erase bar may hide one.
    assert all(step % px_per_s < 1.5 or px_per_s - step % px_per_s < 1.5 for step in steps)


def test_a_gap_in_a_trace_stays_dark() -> None:
    whole = lit_columns(State().paint(), RESP)
    broken = lit_columns(State(traces=lambda: running(gaps=((14.0, 16.0),))).paint(), RESP)
    missing = sorted(whole - broken)
    assert broken < whole
    assert missing == list(range(missing[0], missing[-1] + 1)) and len(missing) == pytest.approx(2 * 6.25 / PITCH_MM, abs=4)


def test_what_comes_after_a_gap_is_not_joined_to_what_was_before() -> None:
    traces = Traces()
    for first in range(0, 500, 5):
        sample = NO_SAMPLE if first % 50 < 25 else 40
        for channel in (Channel.PULSE, Channel.RESP):
            traces.wave(channel, first, 25, [sample] * 5, first * 40 + 200)
    frame = State(traces=lambda: traces).paint()
    for box in (PULSE, RESP):
        rows = {i // 394 for i, pixel in enumerate(crop(frame, box)) if pixel != BLACK}
        assert max(rows) - min(rows) <= 3  # a level line, nothing up or down


def test_text_that_is_too_long_is_cut_off_at_its_own_box() -> None:
    long = "W" * 300
    frame = State(replace(PR, reason=long), Number(reason=long), message=long, product=long).paint()
    assert set(crop(frame, (0, 422, 8, 462))) == {BLACK}  # the glass ends at the right, and the next row begins here
    assert set(crop(frame, (797, 30, 800, 420))) <= {BLACK, crop(frame, (797, 224, 798, 225))[0]}
    assert crop(frame, (276, 0, 800, 28)) == crop(State().paint(), (276, 0, 800, 28))
    assert crop(frame, (0, 56, 450, 420)) == crop(State(rr=Number()).paint(), (0, 56, 450, 420))


@pytest.mark.parametrize("mode", [mode for mode in ScreenMode if mode is not ScreenMode.LIVE])
def test_traces_leave_the_glass_and_the_memory_when_the_screen_is_not_live(mode: ScreenMode) -> None:
    traces = running()
    frame = State(mode=mode, traces=lambda: traces).paint()
    assert not lit_columns(frame, PULSE) and not lit_columns(frame, RESP)
    assert traces.kept(Channel.PULSE) == traces.kept(Channel.RESP) == ()
    frame = State(mode=mode, traces=running).paint(look=False)  # who forgets to erase them shows none either
    assert not lit_columns(frame, PULSE) and not lit_columns(frame, RESP)


@pytest.mark.parametrize("seed", range(12))
def test_the_trace_memory_holds_what_the_rules_hold(seed: int) -> None:
    """Against rules.py's own trace: jumps, overlaps, other rates, wraps of the sample number and of the clock, silence."""
    draw = random.Random(seed)
    traces, rate_hz = Traces(), draw.choice([1, 25, 30, 100])
    rules = {Channel.PULSE: _Trace(PULSE_TRACE_S), Channel.RESP: _Trace(RESP_TRACE_S)}
    index, now_ms = 2**32 - draw.randint(0, 400), 2**32 - draw.randint(0, 20_000)
    for _ in range(150):
        channel = draw.choice([Channel.PULSE, Channel.RESP])
        if draw.random() < 0.04:
            rate_hz = draw.randint(1, 100)
        samples = tuple(draw.choice([NO_SAMPLE, *range(-127, 128)]) for _ in range(draw.randint(1, 90)))
        wave = Wave(index & 0xFFFFFFFF, channel, rate_hz, samples)
        rules[channel].add(wave, now_ms)
        traces.wave(channel, index, rate_hz, list(samples), now_ms)
        index += len(samples) + draw.choice([0, 0, 0, 1, 7, 300, 5000, 2**30, -3, -90, -4000])
        now_ms += draw.choice([0, 40, 200, 900, 5_000])
        traces.look(now_ms)
        for each, reference in rules.items():
            assert traces.kept(each) == reference.view(now_ms)


def test_an_impossible_wave_is_left_alone() -> None:
    traces = running()
    before = traces.kept(Channel.PULSE)
    traces.wave(Channel.PULSE, 0, 0, [1], 0)
    traces.wave(Channel.PULSE, 0, 101, [1], 0)
    traces.wave(3, 0, 25, [1], 0)
    assert traces.kept(Channel.PULSE) == before


@pytest.fixture(scope="module")
def make_font() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_font", core.SOURCES / "make_font.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_font"] = module
    spec.loader.exec_module(module)
    return module


def test_the_fonts_are_what_their_generator_draws(make_font: ModuleType) -> None:
    """Every glyph in the smallest face, one in eight in the larger ones, which take seconds to draw."""
    header = (core.SOURCES / "pvl_font.h").read_text(encoding="ascii")

    def kept(face: str, what: str) -> list[int]:
        found = re.search(rf"pvl_font_{face}_{what}\[\d+\] = {{(.*?)}};", header, re.DOTALL)
        assert found is not None
        return list(map(int, found[1].strip(" \n,").split(",")))

    for face in make_font.FACES:
        runs, start, widths = (kept(face.name, what) for what in ("runs", "start", "width"))
        assert len(widths) == len(face.glyphs) and start[-1] == len(runs)
        for i in range(0, len(face.glyphs), 1 if face.name == "small" else 8):
            width, covered = make_font.coverage(face, face.glyphs[i])
            assert (widths[i], runs[start[i]:start[i + 1]]) == (width, make_font.runs(covered)), (face.name, face.glyphs[i])


@pytest.mark.soak
def test_every_glyph_of_every_face_is_what_the_generator_draws(make_font: ModuleType) -> None:
    assert (core.SOURCES / "pvl_font.h").read_text(encoding="ascii") == make_font.header()


def test_every_word_of_the_protocol_has_its_glyphs_and_fits() -> None:
    for text in [*MODE_TEXT.values(), *TECH_TEXT.values(), *BANNER_TEXT.values()]:
        assert all(" " <= character <= "~" for character in text)
    wide = State(message=LONGEST).paint()
    assert set(crop(wide, (780, 422, 800, 462))) == {BLACK}  # room left on the message line


def test_a_png_says_what_is_wrong_with_its_frame() -> None:
    with pytest.raises(ValueError, match="expected 16 bytes, got 15"):
        encode_png(b"\0" * 15, 4, 2)
    assert encode_png(b"\x00\xf8\xe0\x07", 2, 1) == encode_png(b"\x00\xf8\xe0\x07", 2, 1)


@pytest.mark.parametrize("name", [name for name in ("gcc", "clang", "arm-none-eabi-gcc") if shutil.which(name)])
def test_the_renderer_compiles_without_a_warning_a_float_or_a_library(name: str, tmp_path: Path) -> None:
    extra = ["-mcpu=cortex-m3", "-mthumb"] if name.startswith("arm") else []
    defined, wanted = set(), set()
    for source in PARTS:
        target = tmp_path / f"{source}.o"
        command = [name, *core.FLAGS, *extra, "-Os", "-c", str(core.SOURCES / f"{source}.c"), "-o", str(target)]
        subprocess.run(command, check=True)
        for line in subprocess.run(["nm", str(target)], capture_output=True, text=True, check=True).stdout.splitlines():
            kind, symbol = line.split()[-2:]
            (wanted if kind == "U" else defined).add(symbol)
    assert wanted - defined <= {"memset", "memcpy", "_GLOBAL_OFFSET_TABLE_"}  # what any compiler may ask for


@pytest.mark.soak
def test_no_view_and_no_wave_makes_the_renderer_leave_its_memory(tmp_path: Path) -> None:
    sources = [Path(__file__).with_name("screen_driver.c"), *(core.SOURCES / f"{name}.c" for name in PARTS)]
    program = tmp_path / "driver"
    subprocess.run([*core.compiler(), "-std=c99", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
                    f"-I{core.SOURCES}", "-o", str(program), *map(str, sources)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name, state in STATES.items():
        (GOLDEN / f"{name}.png").write_bytes(encode_png(state.paint(), WIDTH, HEIGHT))
    for stray in sorted(set(GOLDEN.glob("*.png")) - {GOLDEN / f"{name}.png" for name in STATES}):
        print(f"no state of this name: {stray}")
