"""The C core and the Python reference are one display, and nothing on the wire becomes a number that was not sent."""

from __future__ import annotations

import ctypes
import json
import random
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from firmware_bridge import core
from firmware_bridge.core import CHooks, CNumeral, CoreDisplay, CoreError, CView, DecodersDisagree
from firmware_bridge.frame import Decoder, Sender, Verdict, encode
from firmware_bridge.messages import Hello, Vitals
from firmware_bridge.rules import DisplayRules, Screen
from firmware_bridge.schema import NO_RATE, TEST_MS, VERDICTS, MessageType, ScreenMode, VitalState
from tests.fuzz.scenario import VITALS, Scene, frame

FUZZ = Path(__file__).parent / "fuzz"
VECTORS = json.loads((Path(__file__).parent / "vectors" / "frames.json").read_text(encoding="utf-8"))
NAMES = [vector["name"] for vector in VECTORS]
SHOWN = Vitals(1432, 418, VitalState.VALID, VitalState.VALID, 88, 75, 3, 5, 8, 16)


class Sent(ctypes.Structure):
    _fields_ = [("wire", ctypes.c_uint8 * 160), ("n", ctypes.c_size_t), ("x10", ctypes.c_uint16 * 2)]


class Result(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_uint64) for name in
                  ("tried", "ok", "bad", "wrong_frames", "wrong_numbers", "after_lost", "shown")),
                ("example", ctypes.c_uint8 * 2048), ("example_n", ctypes.c_size_t)]


class StreamResult(ctypes.Structure):
    _fields_ = [("verdicts", ctypes.c_uint32), ("verdict", ctypes.c_uint8 * 512), ("view", CView),
                ("status", ctypes.c_uint8 * 64), ("status_n", ctypes.c_size_t)]


@pytest.fixture(scope="module")
def c_compiler() -> None:
    """The C code is built here; without a compiler there is nothing to compare."""
    try:
        core.compiler()
    except CoreError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def batch(c_compiler):
    """The C core behind loops in C, see fuzz/batch.c."""
    sources = [FUZZ / "batch.c", *(core.SOURCES / f"pvl_{part}.c" for part in ("core", "view", "status", "traces"))]
    library = ctypes.CDLL(str(core.build(sources, "test-batch")))
    library.batch_layout.restype = ctypes.c_size_t
    library.batch_flips.argtypes = library.batch_edits.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(Result)]
    library.batch_random.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.POINTER(Result)]
    library.batch_stream.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32,
                                     ctypes.POINTER(StreamResult)]
    return library


def test_python_lays_out_the_records_as_the_compiler_does(batch):
    def offset(record, name):
        return getattr(record, name).offset

    state, traces = batch.batch_layout(0), batch.batch_layout(4)
    assert state <= core._DISPLAY_BYTES and traces <= core._TRACES_BYTES
    views = ("pr", "rr", "message", "banners", "testing", "alive", "host_t_ms", "has_host_t", "ok", "late")
    numerals = ("x10", "questionable", "bars", "averaging_s", "reason")
    expected = [state, ctypes.sizeof(CView), ctypes.sizeof(CNumeral), ctypes.sizeof(CHooks), traces,
                *(offset(CView, name) for name in views), *(offset(CNumeral, name) for name in numerals),
                CHooks.verdict.offset]
    assert [batch.batch_layout(i) for i in range(len(expected))] == expected
    assert [batch.batch_layout(i) for i in range(22, 25)] == [ctypes.sizeof(r) for r in (Result, Sent, StreamResult)]


# --- the vectors ----------------------------------------------------------------------------------------------------

def lead_in(vector, rate_x10=(1111, 333)) -> tuple[list[tuple[int, bytes]], int]:
    """Frames that settle the vector's session, so that a number may stand on the glass when it comes; the time it is due."""
    header = vector.get("header") or {"session": 0xBEEF, "seq": 7, "t_ms": 123456}
    payload = VITALS.pack(*rate_x10, 2, 2, 50, 50, 0, 0, 8, 15, 0, 0xFFFF)
    return [(1000 + 500 * k, frame(MessageType.VITALS, payload, session=header["session"], seq=header["seq"] - 6 + k,
                                   t_ms=header["t_ms"] - 500 * (6 - k))) for k in range(6)], 4000


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_both_decoders_and_both_displays_read_every_vector_alike(c_compiler, vector):
    wire = bytes.fromhex(vector["wire"])
    c_display, reference = CoreDisplay(1000), DisplayRules(1000)
    frames, due_ms = lead_in(vector)
    for now_ms, data in [*frames, (due_ms, wire)]:
        assert c_display.receive(data, now_ms) == reference.receive(data, now_ms)
        assert same(c_display.screen(now_ms)) == same(reference.screen(now_ms))
    assert [verdict.value for verdict, _ in c_display.verdicts] == [vector["verdict"]]
    assert c_display.status(due_ms) == reference.status(due_ms)
    if vector["verdict"] == "ok" and vector["message"] == "VITALS":
        view, fields = c_display.screen(due_ms), vector["fields"]
        for numeral, name in ((view.pr, "pr"), (view.rr, "rr")):
            assert numeral.x10 in (NO_RATE, fields[f"{name}_x10"]) and numeral.averaging_s == fields[f"{name}_avg_s"]
    elif vector["verdict"] == "bad_cobs":
        assert str(c_display.screen(due_ms).pr) == "111"


def test_v1_stands_on_the_glass_of_the_c_core_as_sent(c_compiler):
    vector = VECTORS[0]
    display = CoreDisplay(1000)
    for now_ms, data in lead_in(vector)[0]:
        display.receive(data, now_ms)
    display.receive(bytes.fromhex(vector["wire"]), 4000)
    screen = display.screen(4000)
    assert (str(screen.pr), str(screen.rr), screen.pr.bars, screen.rr.bars) == ("143", "42", 5, 4)
    assert (display.status(4000).shown_pr_x10, display.status(4000).shown_rr_x10) == (1432, 418)


def same(screen: Screen) -> Screen:
    """The core's counters are 16 bits wide."""
    words = screen.link.split()
    link = " ".join(str(int(word) & 0xFFFF) if word.isdigit() else word for word in words)
    return replace(screen, alive=screen.alive & 0xFFFF, link=link)


# --- nothing becomes a wrong number ---------------------------------------------------------------------------------

def prepared(batch, vectors) -> ctypes.Array:
    """A batch_scene: numbers on the glass, the vectors' frames as sent, and the one that follows."""
    first = vectors[0]
    frames, due_ms = lead_in(first)
    header = first.get("header") or {"session": 0xBEEF, "seq": 7, "t_ms": 123456}
    state = (ctypes.c_uint64 * (batch.batch_layout(0) // 8 + 1))()
    batch.pvl_init(state, 1000)
    for now_ms, data in frames:
        batch.pvl_receive(state, data, len(data), now_ms, None)
    after = frame(MessageType.VITALS, VITALS.pack(2222, 444, 2, 2, 50, 50, 0, 0, 8, 15, 0, 0xFFFF),
                  session=header["session"], seq=header["seq"] + 1, t_ms=header["t_ms"])
    sent = [(data, (1111, 333)) for _, data in frames]
    for vector in vectors:
        if vector["verdict"] == "ok":
            fields = vector["fields"]
            x10 = [fields.get(f"{name}_x10", NO_RATE) for name in ("pr", "rr")]
            sent.append((bytes.fromhex(vector["wire"]), tuple(x10)))
    sent.append((after, (2222, 444)))
    packed = b"".join(bytes(Sent((ctypes.c_uint8 * 160)(*wire), len(wire), (ctypes.c_uint16 * 2)(*x10))) for wire, x10 in sent)
    size = batch.batch_layout(0)
    head = bytes(state)[:size] + struct.pack("<II", due_ms, len(sent))
    head += bytes(-len(head) % 8)
    return ctypes.create_string_buffer(head + packed + bytes(64 * ctypes.sizeof(Sent) - len(packed)))


def assert_nothing_wrong(result: Result, shown_at_least: float = 0.0) -> None:
    example = bytes(result.example[:result.example_n]).hex()
    wrong = (result.wrong_frames, result.wrong_numbers, result.after_lost)
    assert wrong == (0, 0, 0), f"{wrong} wrong frames, wrong numbers, good frames lost after; first: {example}"
    assert result.shown > shown_at_least * result.tried


@pytest.mark.parametrize("vector", VECTORS, ids=NAMES)
def test_no_damage_to_a_vector_shows_a_wrong_number(batch, vector):
    """All 1- and 2-bit flips, deletions, doublings, truncations, other bytes and splits, on a glass that shows numbers."""
    damaged = [VECTORS[0]] if vector["name"].startswith("V5") else []  # V5 is V1 with one bit turned; turned back, it is V1
    wire, scene = bytes.fromhex(vector["wire"]), prepared(batch, [vector, *damaged])
    flips, edits = Result(), Result()
    if len(wire) <= 60:
        batch.batch_flips(scene, wire, len(wire), flips)
        bits = 8 * len(wire)
        assert flips.tried == bits + bits * (bits - 1) // 2
        assert_nothing_wrong(flips, 0.5)
        # The frame that follows is taken every time, and what was flipped inside hardly ever is.
        assert flips.tried <= flips.ok < 1.02 * flips.tried or vector["verdict"] == "ok"
    batch.batch_edits(scene, wire, len(wire), edits)
    assert_nothing_wrong(edits, 0.5)


def corruptions(batch, seed: int, count: int) -> Result:
    result = Result()
    scene = prepared(batch, [v for v in VECTORS if len(v["wire"]) <= 120])
    batch.batch_random(scene, seed, count, result)
    assert result.tried == count
    return result


def test_100_000_random_corruptions_show_no_wrong_number_in_c(batch):
    result = corruptions(batch, 1, 100_000)
    assert_nothing_wrong(result)
    assert result.bad > 0.5 * result.tried and result.shown > result.tried


@pytest.mark.soak
def test_2_000_000_random_corruptions_show_no_wrong_number_in_c(batch):
    result = corruptions(batch, 2, 2_000_000)
    assert_nothing_wrong(result)
    assert result.bad > 0.5 * result.tried and result.shown > result.tried


# --- Python and C, the same on anything -----------------------------------------------------------------------------

def random_stream(rng: random.Random) -> bytes:
    """Some good frames, some damaged ones, some noise."""
    parts = []
    for _ in range(rng.randint(1, 6)):
        wire = bytearray.fromhex(VECTORS[rng.randrange(len(VECTORS))]["wire"])
        kind = rng.randrange(6)
        if kind == 0:
            wire = bytearray(rng.choice((0, 1, 2, 3, 5, 17, rng.randrange(256))) for _ in range(rng.randrange(150)))
        elif kind < 4:
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(wire))
                wire[at:at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
                if not wire:
                    break
        parts.append(bytes(wire))
    return b"".join(parts)


def compare_streams(batch, count: int, seed: int) -> Counter[Verdict]:
    rng = random.Random(seed)
    result = StreamResult()
    seen: Counter[Verdict] = Counter()
    names = [Verdict[name] for name in VERDICTS]
    for _ in range(count):
        # byte by byte seldom: it takes ten times as long as in larger portions
        portion = rng.choices((1, 7, 64, 1000), (1, 3, 3, 3))[0]
        stream, step_ms = random_stream(rng), rng.choice((0, 1, 500))
        now_ms = rng.choice((0, 2**32 - 500, 77_000))
        batch.batch_stream(stream, len(stream), portion, now_ms & 0xFFFFFFFF, step_ms, result)
        reference, verdicts = DisplayRules(now_ms), []
        for at in range(0, len(stream), portion):
            verdicts += [f.verdict for f in reference.receive(stream[at:at + portion], now_ms)]
            now_ms += step_ms
        assert [names[code] for code in result.verdict[:result.verdicts]] == verdicts, stream.hex()
        screen, view = reference.screen(now_ms), result.view
        assert (view.pr.numeral(), view.rr.numeral()) == (screen.pr, screen.rr), stream.hex()
        assert (view.mode, view.message.decode(), view.alive) == (screen.mode, screen.message, screen.alive), stream.hex()
        assert f"ok {view.ok} bad {view.bad} lost {view.lost} late {view.late}" == same(screen).link, stream.hex()
        status, = Decoder().feed(bytes(result.status[:result.status_n]))
        assert status.message == reference.status(now_ms), stream.hex()
        seen.update(verdicts)
    return seen


def test_10_000_random_streams_read_the_same_in_python_and_c(batch):
    assert set(compare_streams(batch, 10_000, 3)) == set(Verdict)


@pytest.mark.soak
def test_100_000_random_streams_read_the_same_in_python_and_c(batch):
    assert set(compare_streams(batch, 100_000, 4)) == set(Verdict)


def play(seed: int, acts: int) -> Counter[ScreenMode]:
    """One scene through both displays, compared at every look: the whole Screen, and STATUS."""
    scene = Scene(seed)
    c_display, reference = CoreDisplay(scene.start_ms), DisplayRules(scene.start_ms)
    seen: Counter[ScreenMode] = Counter()
    for step in scene.steps(acts):
        now_ms = step.now_ms
        if step.data is not None:
            assert c_display.receive(step.data, now_ms) == reference.receive(step.data, now_ms)
            continue
        expected = reference.screen(now_ms)
        assert same(c_display.screen(now_ms)) == same(expected), f"scene {seed} at {now_ms}"
        assert c_display.status(now_ms) == reference.status(now_ms), f"scene {seed} at {now_ms}"
        assert c_display.testing == (now_ms - scene.start_ms < TEST_MS)
        seen[expected.mode] += 1
        if expected.pr.x10 != NO_RATE:
            assert not c_display.testing
    return seen


def test_the_c_core_and_the_rules_show_the_same_in_250_random_scenes(c_compiler):
    seen = sum((play(seed, 30) for seed in range(250)), Counter())
    # Every mode was there often, so that agreeing means something.
    assert set(seen) == set(ScreenMode) and min(seen.values()) > 25, seen


@pytest.mark.soak
def test_the_c_core_and_the_rules_show_the_same_in_20_000_random_scenes(c_compiler):
    seen = sum((play(seed, 40) for seed in range(1_000_000, 1_020_000)), Counter())
    assert set(seen) == set(ScreenMode) and min(seen.values()) > 2000, seen


def both_after(gap_ms: int, *, settled: bool = True, **last: int) -> Screen:
    """A frame every 500 ms in 2.5 s, then a pause and one VITALS more; both displays, which must agree. Looks 0 ms later."""
    displays = CoreDisplay(0), DisplayRules(0)
    header = {"session": 9, "seq": 100, "t_ms": 50_000}
    number = VITALS.pack(1432, 418, 2, 2, 80, 80, last.pop("age_ds", 0), 0, 8, 15, 0, 0xFFFF)
    frames = [(500 * k, frame(MessageType.VITALS, number, **{**header, "seq": 95 + k, "t_ms": 47_500 + 500 * k}))
              for k in range(6 if settled else 1)]
    at_ms = frames[-1][0] + gap_ms
    header |= {"seq": 101, "t_ms": 47_500 + at_ms} | last
    late_look_ms = header.pop("look_ms", 0)
    frames.append((at_ms, frame(MessageType.VITALS, number, **header)))
    for display in displays:
        for now_ms, data in frames:
            display.receive(data, now_ms)
    at_ms += late_look_ms
    screens = [same(display.screen(at_ms)) for display in displays]
    assert screens[0] == screens[1] and displays[0].status(at_ms) == displays[1].status(at_ms)
    return screens[0]


@pytest.mark.parametrize("at_limit, beyond", [
    ({"gap_ms": 500, "look_ms": 2_999}, {"gap_ms": 500, "look_ms": 3_000}),  # blanking
    ({"gap_ms": 500, "age_ds": 49, "look_ms": 100}, {"gap_ms": 500, "age_ds": 49, "look_ms": 101}),  # age
    ({"gap_ms": 1_400, "t_ms": 50_400}, {"gap_ms": 1_400, "t_ms": 50_399}),  # lag
    ({"gap_ms": 500, "t_ms": 50_750}, {"gap_ms": 500, "t_ms": 50_751}),  # ahead of zero lag by 250 ms
    # A silence that forgets the session. Zero lag has leaked 1800 ms meanwhile; the unit's clock ran slow by 1700.
    ({"gap_ms": 7_200_000, "t_ms": 7_248_300}, {"gap_ms": 7_200_001, "t_ms": 7_248_301}),
    ({"gap_ms": 500, "seq": 100 + 0x7FFF}, {"gap_ms": 500, "seq": 100 + 0x8000}),  # half of seq's circle
])
def test_limits_hold_to_the_millisecond_in_both(c_compiler, at_limit, beyond):
    def looks_good(screen: Screen) -> tuple:
        return screen.pr.text, screen.mode, screen.link.split()[-1]

    assert looks_good(both_after(**at_limit)) == ("143", ScreenMode.LIVE, "0")
    assert looks_good(both_after(**beyond)) != ("143", ScreenMode.LIVE, "0")


def test_seq_counts_no_more_after_30_s_and_an_equal_one_loses_nothing(c_compiler):
    for gap_ms in (29_999, 30_000):
        for seq in (100, 50, 99, 101, 102, 100 + 0x8000):
            link = both_after(gap_ms, seq=seq).link.split()
            assert (link[-1] == "0") == (gap_ms == 30_000 or seq > 100 and seq < 200)
    assert both_after(30_000, seq=100).link.split()[-3:-1] == ["0", "late"]


def test_settling_takes_two_seconds_without_a_pause_of_more_than_one(c_compiler):
    def settled_after(*gaps_ms: int) -> bool:
        displays, now_ms = (CoreDisplay(0), DisplayRules(0)), 0
        for k, gap_ms in enumerate((0, *gaps_ms)):
            now_ms += gap_ms
            wire = encode(SHOWN, session=1, seq=k, t_ms=now_ms + 5)
            screens = [(display.receive(wire, now_ms), display.screen(now_ms))[1] for display in displays]
            assert screens[0] == screens[1]
        return screens[0].mode is ScreenMode.LIVE

    assert settled_after(1000, 1000) and settled_after(500, 500, 1000) and settled_after(*[100] * 20)
    assert not settled_after(1000, 999) and not settled_after(1001, 999) and not settled_after(1001, 1000)


def test_the_wave_hook_gets_the_samples_of_known_channels_and_none_of_an_impossible_rate(c_compiler):
    class Wave(ctypes.Structure):
        _fields_ = [("first_index", ctypes.c_uint32), ("now_ms", ctypes.c_uint32), ("samples", ctypes.POINTER(ctypes.c_int8)),
                    ("n", ctypes.c_uint8), ("channel", ctypes.c_uint8), ("rate_hz", ctypes.c_uint8)]

    seen = []
    on_wave = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.POINTER(Wave))(lambda _, w: seen.append(
        (w[0].first_index, w[0].now_ms, w[0].samples[:w[0].n], w[0].channel, w[0].rate_hz)))
    hooks = CHooks(None, ctypes.cast(on_wave, ctypes.c_void_p))
    library, state = core.library(), (ctypes.c_uint64 * 32)()
    library.pvl_init(state, 0)
    for seq, (channel, rate_hz) in enumerate([(1, 25), (0, 25), (3, 25), (2, 100), (2, 101), (1, 0)]):
        payload = struct.pack("<IBB3b", 2**32 - 1, channel, rate_hz, -128, -127, 127)
        data = frame(MessageType.WAVE, payload, session=1, seq=seq, t_ms=seq)
        library.pvl_receive(state, data, len(data), 7, hooks)
    samples = [-128, -127, 127]
    assert seen == [(2**32 - 1, 7, samples, 1, 25), (2**32 - 1, 7, samples, 2, 100), (2**32 - 1, 7, [], 2, 1),
                    (2**32 - 1, 7, [], 1, 1)]


# --- the core's own ------------------------------------------------------------------------------------------------

def test_the_clock_of_the_display_may_wrap_while_numbers_stand_on_the_glass(c_compiler):
    start_ms = 2**32 - 6_000
    display, reference = CoreDisplay(start_ms), DisplayRules(start_ms)
    now_ms = start_ms
    sender = Sender(lambda: (now_ms + 12_345) * 1_000_000)
    shown = 0
    for _ in range(24):
        wire = sender.encode(SHOWN)
        display.receive(wire, now_ms)
        reference.receive(wire, now_ms)
        screen = display.screen(now_ms)
        assert screen == reference.screen(now_ms)
        shown += str(screen.pr) == "143"
        now_ms += 500
    assert shown >= 19  # all but the settling time
    now_ms += 2_500
    assert display.screen(now_ms).mode is ScreenMode.LINK_LOST


def test_what_was_long_ago_stays_long_ago_after_49_days_and_more(c_compiler):
    """Unsigned differences would make a bad frame, a VITALS and a refusal of 49.7 days ago young again."""
    display = CoreDisplay(0)
    display.receive(b"\0\x05bad\0" * 2, 0)
    display.receive(frame(MessageType.VITALS, bytes(20), session=1, seq=1, t_ms=0, ver=2), 0)
    for day in range(1, 50):
        assert display.screen(day * 86_400_000).mode is ScreenMode.LINK_LOST
    now_ms = 2**32 + 100  # the clock shows 100 again
    assert display.screen(now_ms).mode is ScreenMode.LINK_LOST
    display.receive(b"\0\x05bad\0", now_ms)
    display.receive(encode(SHOWN, session=7, seq=1, t_ms=0), now_ms)
    assert display.screen(now_ms).mode is ScreenMode.SYNCHRONISING  # three bad frames, but not within 10 s
    assert not display.testing and display.status(now_ms).uptime_s == now_ms // 1000 & 0xFFFF


def test_a_display_clock_that_steps_back_shows_dashes(c_compiler):
    display = CoreDisplay(10_000)
    for now_ms, data in lead_in(VECTORS[0])[0]:
        display.receive(data, now_ms + 10_000)
    assert str(display.screen(13_600).pr) == "111"
    assert str(display.screen(13_599).pr) == "---"


def test_the_segment_test_lasts_two_seconds_and_no_number_comes_meanwhile(c_compiler):
    display = CoreDisplay(0)
    sender = Sender(lambda: now_ms * 1_000_000)
    for now_ms in range(0, 3_000, 50):
        display.receive(sender.encode(SHOWN), now_ms)
        screen = display.screen(now_ms)
        assert display.testing == (now_ms < 2_000)
        assert not (display.testing and screen.pr.x10 != NO_RATE)
    assert str(screen.pr) == "143"


def test_status_has_a_session_a_number_and_a_clock_of_its_own(c_compiler):
    display = CoreDisplay(0x12345678)
    frames = [Decoder().feed(display.status_frame(0x12345678 + k * 1000))[0].header for k in range(3)]
    assert [(h.seq, h.t_ms - 0x12345678) for h in frames] == [(0, 0), (1, 1000), (2, 2000)]
    assert {h.session for h in frames} == {(0x1234 ^ 0x5678) | 1} and {h.flags for h in frames} == {0}


def test_a_new_session_has_no_name_until_it_says_one(c_compiler):
    display = CoreDisplay(0)
    display.receive(encode(Hello(product="PhysVLM Edge"), session=1, seq=1, t_ms=0), 0)
    assert display.screen(0).product == "PhysVLM Edge"
    display.receive(encode(SHOWN, session=2, seq=1, t_ms=0), 1)
    assert display.screen(1).product == ""


def test_the_alive_mark_stands_still_when_nobody_looked_at_the_wire(c_compiler):
    display = CoreDisplay(0)
    marks = []
    for looked in (True, False, False, True, True):
        if looked:
            display.receive(b"", 0)
        marks.append(display.screen(0).alive)
    assert marks == [1, 1, 1, 2, 3]


# --- building it ----------------------------------------------------------------------------------------------------

def test_a_missing_compiler_is_named_with_the_package_to_install(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CoreError, match="no-such-compiler is not there.*apt-get install gcc.*CC"):
        core.compiler()


def test_a_cache_that_others_may_write_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = core.cache_folder()
    assert folder == tmp_path / "physvlm" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(CoreError, match="may be written by others"):
        core.cache_folder()


def test_code_that_does_not_compile_leaves_nothing_in_the_cache(monkeypatch, tmp_path, c_compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "broken.c"
    source.write_text("int f(void) { return }\n")
    with pytest.raises(CoreError, match="does not compile"):
        core.build([source], "broken")
    assert list((tmp_path / "physvlm").iterdir()) == []


def test_a_library_is_built_once_and_again_when_a_source_changes(monkeypatch, tmp_path, c_compiler):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "one.c"
    source.write_text("int one(void);\nint one(void) { return 1; }\n")
    first = core.build([source], "one")
    built_ns = first.stat().st_mtime_ns
    assert core.build([source], "one") == first and first.stat().st_mtime_ns == built_ns
    source.write_text("int one(void);\nint one(void) { return 2; }\n")
    assert core.build([source], "one") != first


def test_two_decoders_that_disagree_are_a_crash_and_no_screen(c_compiler, monkeypatch):
    display = CoreDisplay(0)
    monkeypatch.setattr(display.decoder, "feed", lambda data: [])
    with pytest.raises(DecodersDisagree):
        display.receive(encode(SHOWN, session=1, seq=1, t_ms=0), 0)
