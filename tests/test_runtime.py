"""The loops: a replay's record and bytes, and the appliance's behaviour when camera or engine fail, in its own time."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edge import runtime
from edge.camera import Camera, CameraError, CameraLost, CaptureThread
from edge.config import CameraConfig, Config, SerialConfig
from edge.records import Frame, Reason, State, VitalReading, Waveform
from edge.runtime import Live, RuntimeFault, Tap, make_pipeline, replay, report, write_json
from edge.wire import vitals_message, wave_messages
from firmware_bridge.frame import Decoder, Verdict
from firmware_bridge.messages import Bye, Hello, Vitals, Wave
from firmware_bridge.schema import NO_RATE, NO_SAMPLE, Channel, Flags, Tech, VitalState
from tests.fake_engine import FakeEngine, at_fps, frames, picture, textured


class FakeCamera(Camera):
    """Plays frames; ends with them, or with `error`."""

    def __init__(self, source, size=(64, 48), error=None, recorded=False):
        self.name, (self.width, self.height) = "fake", size
        self.fps_nominal, self.live, self.recorded = None, not recorded, recorded
        self._source, self._error, self.closed = iter(source), error, False

    def __next__(self):
        frame = next(self._source, None)
        if frame is not None:
            return frame
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self):
        self.closed = True


def wire_config(tmp_path, **camera):
    return Config(camera=CameraConfig(roi="full", **camera), serial=SerialConfig(wire_file=str(tmp_path / "wire")))


def sent(tmp_path, kind=None):
    """[(t_s, message, flags)] of what lies in the wire file; every byte of it must decode."""
    decoded = Decoder().feed((tmp_path / "wire").read_bytes())
    assert all(frame.verdict is Verdict.OK for frame in decoded)
    return [(f.header.t_ms / 1e3, f.message, f.header.flags) for f in decoded if kind is None or isinstance(f.message, kind)]


# --- replay


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    """A replay of 24 s of a readable rhythm: (its record, its report, the folder of its wire file)."""
    folder = tmp_path_factory.mktemp("replay")
    config = wire_config(folder)
    camera = FakeCamera(frames(at_fps(30, 24), hr=150, rr=45), recorded=True)
    pipeline = make_pipeline(FakeEngine(), camera, config)
    record = replay(camera, pipeline, config, "fake", keep_hops=True)
    return record, report(record, camera, pipeline), folder


def test_the_json_has_exactly_the_keys_and_types_of_the_contract(replayed, tmp_path):
    record, result, _ = replayed
    write_json(tmp_path / "out.json", result)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read == result and [p.name for p in tmp_path.iterdir()] == ["out.json"]
    kinds = {"video": str, "fps": float, "frames": int, "duration_s": float, "readings": list, "summary": dict,
             "timing": dict, "peak_rss_mb": float}
    assert {k: type(v) for k, v in read.items()} == kinds
    number_or_null = (float, type(None))
    for row in read["readings"]:
        assert list(row) == ["t_s", "hr", "hr_state", "hr_quality", "rr", "rr_state", "rr_quality"]
        for name in ("hr", "rr"):
            assert isinstance(row[name], number_or_null) and 0 <= row[f"{name}_quality"] <= 1
            assert (row[name] is not None) == State[row[f"{name}_state"]].shows_number
    assert list(read["summary"]) == ["hr_median", "hr_shown_fraction", "rr_median", "rr_shown_fraction"]
    assert set(read["timing"]) == {"ms_per_frame", "stages"}
    assert set(read["timing"]["stages"]) == {"decode", "preprocess", "stem", "head", "vitals", "gate"}


def test_the_figures_are_those_of_the_clip(replayed):
    record, result, _ = replayed
    assert result["frames"] == 720 and result["fps"] == pytest.approx(30)
    assert result["duration_s"] == pytest.approx(24, abs=0.05)
    assert [round(row["t_s"]) for row in result["readings"]] == list(range(1, 25))
    shown = [row["hr"] for row in result["readings"] if row["hr"] is not None]
    assert result["summary"]["hr_median"] == pytest.approx(150, abs=1) == pytest.approx(np.median(shown), abs=1)
    assert result["summary"]["hr_shown_fraction"] == pytest.approx(len(shown) / 24, abs=1e-4)
    stages = result["timing"]["stages"]
    assert result["timing"]["ms_per_frame"] == pytest.approx(sum(v for k, v in stages.items() if k != "decode"), abs=1e-3)


def test_the_wire_holds_the_same_numbers_twice_a_second(replayed):
    record, _, folder = replayed
    vitals = sent(folder, Vitals)
    np.testing.assert_allclose([t for t, _, _ in vitals], np.arange(len(vitals)) * 0.5, atol=0.036)
    assert len(vitals) == 48
    for t_s, message, _ in vitals:
        row = next((r for r in reversed(record.readings) if r["t_s"] <= t_s), None)
        for name, rate, state in (("hr", message.pr_x10, message.pr_state), ("rr", message.rr_x10, message.rr_state)):
            value = row[name] if row else None
            assert (rate == NO_RATE) == (value is None) == (not state.shows_number)
            assert value is None or rate / 10 == pytest.approx(value, abs=0.051)
    assert vitals[-1][1].pr_state == VitalState.VALID and vitals[-1][1].pr_avg_s == 8


def test_a_replay_is_marked_as_a_demonstration_and_ends_with_bye(replayed):
    everything = sent(replayed[2])
    assert all(flags & Flags.DEMO and flags & Flags.INVESTIGATIONAL for _, _, flags in everything)
    assert isinstance(everything[0][1], Hello) and everything[0][1].product == "fake"
    assert isinstance(everything[-1][1], Bye)


def test_the_traces_join_without_a_hole_or_an_overlap(replayed):
    for channel in (Channel.PULSE, Channel.RESP):
        waves = [m for _, m, _ in sent(replayed[2], Wave) if m.channel == channel]
        assert len(waves) == 23 * 5 + 1  # five pieces a hop; the last hop's are still on their way when the video ends
        assert all(b.first_index == a.first_index + len(a.samples) for a, b in zip(waves, waves[1:], strict=False))
        trace = np.array([s for wave in waves[70:] for s in wave.samples], float)
        spectrum = np.abs(np.fft.rfft(trace - trace.mean()))
        expected = 150 if channel == Channel.PULSE else 45
        assert spectrum.argmax() * 25 / trace.size * 60 == pytest.approx(expected, abs=6)


def test_what_the_student_does_not_believe_is_a_gap_in_the_trace():
    wave = np.sin(np.arange(90)).astype(np.float32)
    valid = np.ones(90, bool)
    valid[:50] = False
    made = Waveform(wave, wave, valid, 0.9, 0.2, np.zeros((2, 1, 1), np.float32), 30.0, 10**10)
    pieces = list(wave_messages(made))
    pulse, resp = ([s for m in pieces if m.channel == c for s in m.samples] for c in (Channel.PULSE, Channel.RESP))
    assert set(resp) == {NO_SAMPLE}
    assert pulse[0] == NO_SAMPLE and pulse[-1] != NO_SAMPLE


def test_a_replay_of_nothing_is_an_honest_nothing(tmp_path):
    camera = FakeCamera([Frame(0, 0, np.zeros((48, 64, 3), np.uint8))])
    config = wire_config(tmp_path)
    pipeline = make_pipeline(FakeEngine(), camera, config)
    result = report(replay(camera, pipeline, config, "fake"), camera, pipeline)
    assert result["readings"] == [] and result["fps"] is None and result["frames"] == 1
    assert result["summary"] == {"hr_median": None, "hr_shown_fraction": 0.0, "rr_median": None, "rr_shown_fraction": 0.0}


@pytest.mark.parametrize("reason", [r for r in Reason if r not in (Reason.NONE, Reason.STARTING, Reason.OUT_OF_BAND)])
def test_every_trouble_has_a_word_on_the_wire(reason):
    vital = VitalReading(None, State.INVALID, 0.0, 0.0, 8.0, reason)
    assert vitals_message(SimpleNamespace(hr=vital, rr=vital)).tech != 0


# --- the appliance, in a time of its own


class World:
    """A clock that only moves when somebody waits, and a camera that is there at some times."""

    def __init__(self, monkeypatch, alive, silent=False, stop_s=40.0, hr=150.0, rr=45.0, sizes=None):
        self.now_ns = 5_000_000_000
        self.zero_ns = self.now_ns
        self.alive, self.silent, self.stop_s, self.rates = alive, silent, stop_s, (hr, rr)
        self.sizes = sizes or [(64, 48)]
        self.opened = 0
        monkeypatch.setattr(runtime, "CaptureThread", lambda camera: Capture(self, camera))
        monkeypatch.setattr(runtime, "time", SimpleNamespace(sleep=self.sleep))

    @property
    def t_s(self):
        return (self.now_ns - self.zero_ns) / 1e9

    def sleep(self, seconds):
        self.now_ns += max(1_000_000, round(seconds * 1e9))

    def there(self):
        return any(a <= self.t_s < b for a, b in self.alive)

    def open(self, spec, realtime):
        if not self.there():
            raise CameraError(f"{spec}: no camera")
        size = self.sizes[min(self.opened, len(self.sizes) - 1)]
        self.opened += 1
        return FakeCamera([], size)

    def live(self, config, engine):
        self.hops = []
        return Live(config, engine, "fake", lambda: self.now_ns, lambda: self.t_s >= self.stop_s, self.open, self.hops.append)


class Capture:
    """CaptureThread's face over a World."""

    dropped = 0

    def __init__(self, world, camera):
        self.world, self.ended = world, False
        self._still = textured(camera.height, camera.width)
        self._seq = round(world.t_s * 30)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def get(self, timeout_s):
        world = self.world
        self._seq = max(self._seq + 1, math.ceil(world.t_s * 30 - 1e-6))
        due_s = self._seq / 30
        if not world.silent and not world.there():
            raise CameraLost("unplugged")
        if due_s > world.t_s + timeout_s or not any(a <= due_s < b for a, b in world.alive):
            world.sleep(timeout_s)
            self._seq -= 1
            return None
        world.now_ns = max(world.now_ns, world.zero_ns + round(due_s * 1e9))
        return Frame(self._seq, world.zero_ns + round(due_s * 1e9), picture(self._still, due_s, *world.rates))


def run(world, tmp_path, engine=None, **serial):
    config = wire_config(tmp_path)
    config = replace(config, serial=replace(config.serial, **serial))
    world.live(config, engine or FakeEngine()).run()
    return [(t - world.zero_ns / 1e9, m, flags) for t, m, flags in sent(tmp_path)]


def vitals_of(messages, from_s=0.0, to_s=1e9):
    return [m for t, m, _ in messages if isinstance(m, Vitals) and from_s <= t <= to_s]


def shows(message):
    return message.pr_x10 != NO_RATE or message.rr_x10 != NO_RATE


def test_the_appliance_reads_and_says_bye(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 100)], stop_s=22.0)
    messages = run(world, tmp_path)
    assert vitals_of(messages)[-1].pr_x10 == pytest.approx(1500, abs=10)
    assert vitals_of(messages)[-1].rr_x10 == pytest.approx(450, abs=10)
    assert isinstance(messages[-1][1], Bye)
    assert not any(flags & Flags.DEMO for _, _, flags in messages)
    np.testing.assert_allclose(np.diff([t for t, m, _ in messages if isinstance(m, Vitals)]), 0.5, atol=0.04)
    assert len(world.hops) in (21, 22)


def test_a_new_reading_leaves_at_once_and_the_pace_stays_two_a_second(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0.3, 100)], silent=True, stop_s=20.0)  # hops fall between the half seconds
    world.there = lambda: True  # it opens before it gives pictures
    messages = run(world, tmp_path)
    said_s = np.array([t for t, m, _ in messages if isinstance(m, Vitals)])
    for hop in world.hops[2:-1]:
        wait_s = said_s - (hop.reading.t_ns - world.zero_ns) / 1e9
        assert wait_s[wait_s > -0.002].min() < 0.08  # two frames: the one that completes the grid, and the loop's turn
    steps = np.diff(said_s[6:])
    assert steps.max() < 0.56 and 38 <= said_s.size <= 44


def test_a_lost_camera_is_said_within_three_seconds_and_taken_up_again(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 14), (21, 100)], stop_s=40.0)
    messages = run(world, tmp_path)
    assert any(map(shows, vitals_of(messages, 10, 14)))
    away = vitals_of(messages, 14.6, 21)
    assert len(away) >= 12 and not any(map(shows, away))
    assert {m.pr_state for m in vitals_of(messages, 17, 21)} == {VitalState.FAULT}
    assert all(m.tech & Tech.NO_CAMERA for m in vitals_of(messages, 17, 21))
    assert world.opened == 2
    assert not any(map(shows, vitals_of(messages, 21, 26)))
    assert vitals_of(messages)[-1].pr_x10 == pytest.approx(1500, abs=10)
    told = [state for state, _ in itertools.groupby(m.pr_state for m in vitals_of(messages, 17))]
    assert told == [VitalState.FAULT, VitalState.SEARCHING, VitalState.VALID]


def test_a_camera_that_opens_again_and_gives_no_picture_stays_no_camera(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 14), (30, 100)], stop_s=45.0)
    monkeypatch.setattr(world, "open", lambda spec, realtime: FakeCamera([]))

    class Mute(Capture):
        """Lost two seconds after it was opened without a picture, as usb: does it."""

        def __init__(self, world, camera):
            super().__init__(world, camera)
            self._lost_s = world.t_s + 2.0

        def get(self, timeout_s):
            if not self.world.there() and self.world.t_s < self._lost_s:
                self.world.sleep(timeout_s)
                return None
            return super().get(timeout_s)

    monkeypatch.setattr(runtime, "CaptureThread", lambda camera: Mute(world, camera))
    messages = run(world, tmp_path)
    assert {m.pr_state for m in vitals_of(messages, 17, 30)} == {VitalState.FAULT}
    told = [state for state, _ in itertools.groupby(m.pr_state for m in vitals_of(messages, 17))]
    assert told == [VitalState.FAULT, VitalState.SEARCHING, VitalState.VALID]


def test_a_camera_that_falls_silent_shows_no_old_number(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 14), (24, 100)], silent=True, stop_s=38.0)
    messages = run(world, tmp_path)
    assert any(map(shows, vitals_of(messages, 10, 14)))
    silence = vitals_of(messages, 16, 24)
    assert len(silence) >= 15 and not any(map(shows, silence))
    assert all(m.tech & Tech.NO_CAMERA for m in vitals_of(messages, 17, 24))
    assert world.opened == 1
    assert any(map(shows, vitals_of(messages, 32)))


def test_a_camera_that_comes_back_with_another_picture_size_is_read(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 3), (5, 100)], stop_s=20.0, sizes=[(64, 48), (40, 32)])
    assert vitals_of(run(world, tmp_path))[-1].pr_x10 == pytest.approx(1500, abs=10)
    assert world.opened == 2


def test_one_failed_inference_is_a_fault_until_the_next_hop(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 100)], stop_s=30.0)
    messages = run(world, tmp_path, FakeEngine(fail_at=[14]))
    failed_s = 14.0
    assert any(map(shows, vitals_of(messages, 10, failed_s - 0.1)))
    after = vitals_of(messages, failed_s, failed_s + 0.9)
    assert len(after) >= 2 and {m.pr_state for m in after} == {VitalState.FAULT}
    assert all(m.tech & Tech.MODEL_FAULT for m in after)
    assert not any(map(shows, vitals_of(messages, failed_s, failed_s + 4)))
    assert vitals_of(messages)[-1].pr_x10 == pytest.approx(1500, abs=10)


def test_repeated_failures_end_the_run_without_bye(monkeypatch, tmp_path):
    world = World(monkeypatch, [(0, 100)], stop_s=60.0)
    engine = FakeEngine(fail_at=range(14, 100))
    with pytest.raises(RuntimeFault, match="6 times within a minute"):
        run(world, tmp_path, engine)
    messages = [(t - world.zero_ns / 1e9, m, f) for t, m, f in sent(tmp_path)]
    assert not any(isinstance(m, Bye) for _, m, _ in messages)
    assert not any(map(shows, vitals_of(messages, 14)))
    assert world.t_s < 21


def test_failures_far_apart_are_survived(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "ENGINE_FAULT_WINDOW_NS", 6_000_000_000)
    world = World(monkeypatch, [(0, 100)], stop_s=36.0, hr=None, rr=None)
    assert isinstance(run(world, tmp_path, FakeEngine(fail_at=range(2, 34, 3)))[-1][1], Bye)


@pytest.mark.parametrize(("recorded", "demo", "marked"), [(True, False, True), (False, False, False), (False, True, True)])
def test_what_is_not_happening_now_is_marked(tmp_path, recorded, demo, marked):
    """With the real CaptureThread: a file played in real time is a demonstration whatever the configuration says."""
    camera = FakeCamera(frames(at_fps(30, 0.3)), recorded=recorded)
    camera.live = True
    config = wire_config(tmp_path)
    config = replace(config, serial=replace(config.serial, demo=demo))
    assert Live(config, FakeEngine(), "fake", opener=lambda *_: camera).run() > 0
    assert all(bool(flags & Flags.DEMO) == marked for _, _, flags in sent(tmp_path))


def test_a_camera_lost_while_the_loop_was_busy_is_opened_again(tmp_path, monkeypatch):
    class Settled(CaptureThread):
        """Has come to its end before anybody asks."""

        def __init__(self, camera):
            super().__init__(camera)
            self._thread.join()

    monkeypatch.setattr(runtime, "CaptureThread", Settled)
    monkeypatch.setattr(runtime, "REOPEN_S", (0.01,))
    lost = FakeCamera(frames(at_fps(30, 0.1)), error=CameraLost("unplugged"))
    cameras = [lost, FakeCamera(frames(at_fps(30, 0.1, start_s=1.0)))]
    opened = []

    def opener(*_):
        opened.append(cameras[len(opened)])
        return opened[-1]

    assert Live(wire_config(tmp_path), FakeEngine(), "fake", opener=opener).run() == 6
    assert opened == cameras and lost.closed
    assert any(m.tech & Tech.NO_CAMERA for _, m, _ in sent(tmp_path, Vitals))


def test_the_display_hears_no_camera_while_a_driver_takes_its_time_to_open_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "REOPEN_S", (0.01,))
    cameras = [FakeCamera(frames(at_fps(30, 0.1)), error=CameraLost("unplugged")),
               FakeCamera(frames(at_fps(30, 0.1, start_s=1.0)))]
    opened, opening, heard = [], threading.Event(), threading.Event()

    class Listener(Tap):
        """A driver takes as long as the display needs to hear five messages."""

        times = 0

        def said(self, reading, withheld, now_ns):
            self.times += opening.is_set()
            if self.times == 5:
                heard.set()

    def opener(*_):
        if opened:
            opening.set()
            assert heard.wait(30.0)
        opened.append(cameras[len(opened)])
        return opened[-1]

    clock_ns = itertools.count(5_000_000_000, 50_000_000)  # each look at it is 50 ms later
    assert Live(wire_config(tmp_path), FakeEngine(), "fake", lambda: next(clock_ns), opener=opener,
                taps=[Listener()]).run() == 6
    said = [t for t, m, _ in sent(tmp_path, Vitals) if m.tech & Tech.NO_CAMERA]
    assert len(said) >= 5 and max(np.diff(said)) < 1.0


def test_a_stop_does_not_wait_for_a_driver_that_never_lets_go(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "REOPEN_S", (0.01,))
    held, opened, begun_s = threading.Event(), [], time.monotonic()

    def opener(*_):
        if opened:
            held.wait(30)
        opened.append(FakeCamera(frames(at_fps(30, 0.1)), error=CameraLost("unplugged")))
        return opened[-1]

    live = Live(wire_config(tmp_path), FakeEngine(), "fake", opener=opener, stop=lambda: time.monotonic() - begun_s > 1.0)
    live.run()
    held.set()
    assert time.monotonic() - begun_s < 15


def test_a_stop_waits_a_little_for_a_camera_that_is_being_opened_and_closes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "REOPEN_S", (0.01,))
    monkeypatch.setattr(runtime, "OPEN_STOP_S", 20.0)
    cameras = [FakeCamera(frames(at_fps(30, 0.1)), error=CameraLost("unplugged")), FakeCamera([])]
    opened, opening = [], threading.Event()

    def opener(*_):
        if opened:
            opening.set()
            time.sleep(0.4)
        opened.append(cameras[len(opened)])
        return opened[-1]

    Live(wire_config(tmp_path), FakeEngine(), "fake", opener=opener, stop=opening.is_set).run()
    assert opened == cameras and cameras[1].closed


def test_a_crashed_capture_thread_is_a_crash_and_not_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    camera = FakeCamera([], error=ZeroDivisionError("a bug"))
    with pytest.raises(RuntimeError, match="capture thread crashed"):
        Live(wire_config(tmp_path), FakeEngine(), "fake", opener=lambda *_: camera).run()


def test_frames_while_the_camera_settles_are_no_samples(tmp_path, monkeypatch):
    class Settling(FakeCamera):
        """Exposure and white balance are locked after the first second."""

        settling = True
        ended = False
        dropped = 0

        def get(self, timeout_s):
            frame = next(self, None)
            self.ended = frame is None
            self.settling = frame is not None and frame.t_ns < 10**9
            return frame

        def close(self):
            pass

    monkeypatch.setattr(runtime, "CaptureThread", lambda camera: camera)
    engine = FakeEngine()
    assert Live(wire_config(tmp_path), engine, "fake", opener=lambda *_: Settling(frames(at_fps(30, 3.2)))).run() == 96
    assert len(engine.seen) == 60  # two hops of the 2.2 s behind it


def test_the_mains_frequency_reaches_the_camera(tmp_path, monkeypatch):
    asked = []

    def opener(source, realtime, mains_hz):
        asked.append((source, mains_hz))
        return FakeCamera(frames(at_fps(30, 0.1)))

    monkeypatch.setattr(runtime, "open_camera", opener)
    config = wire_config(tmp_path)
    Live(replace(config, camera=replace(config.camera, mains_hz=60)), FakeEngine(), "fake").run()
    assert asked == [(config.camera.source, 60)]
