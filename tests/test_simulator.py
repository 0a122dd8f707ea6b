"""The simulator: faults lead to dashes in time, recordings replay to the same pixels, and nobody is kept waiting."""

from __future__ import annotations

import argparse
import random
import signal
import struct
import subprocess
import sys
import time
import zlib

import pytest

from firmware_bridge import recording as recordings
from firmware_bridge import terminal
from firmware_bridge.faults import Faults
from firmware_bridge.frame import Decoder, Sender
from firmware_bridge.link import Link
from firmware_bridge.painter import spoken
from firmware_bridge.port import LinkError
from firmware_bridge.recording import Recorder, Recording, RecordingError
from firmware_bridge.schema import NO_RATE, MessageType, ScreenMode
from firmware_bridge.simulator import FRAMES_KEPT, HEIGHT_PX, WIDTH_PX, Look, Simulator
from tests.supervised import until
from tests.wire_bench import SHOWN, Bench, FlatDisplay, unit


class Looks(list):
    """Every look, in order."""

    def at(self, t_s: float) -> Look:
        return [look for look in self if look.t_s <= t_s + 1e-9][-1]

    def shown(self, since_s: float = 0.0) -> list[float]:
        return [look.t_s for look in self if look.t_s >= since_s and look.screen.pr.x10 != NO_RATE]


def run(bench: Bench, seconds: float, **options) -> tuple[Simulator, Looks]:
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep, with_pixels=True, **options)
    looks = Looks()
    simulator.run(looks.append, seconds)
    return simulator, looks


# --- faults -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("faults", [Faults(drop=1.0), Faults(unplugged=True), Faults(delay_ms=60_000), Faults(bit_errors=0.5)])
def test_numbers_become_dashes_within_3_s_of_any_total_fault_and_come_back_after_repair(faults):
    bench = Bench(unit(30))
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep)
    bench.at = {5000: lambda: simulator.set_faults(faults), 12_000: lambda: simulator.set_faults(Faults())}
    looks = Looks()
    simulator.run(looks.append, 25)
    shown = looks.shown()
    assert shown and not [t for t in shown if 8.0 <= t < 12.0], "a number outlived 3.0 s without a good frame"
    assert [t for t in shown if 4.5 <= t < 5.0] and [t for t in shown if t > 20], "or nothing was shown at all"


def test_a_backlog_let_loose_by_a_shorter_delay_shows_nothing_that_is_old():
    bench = Bench(unit(40))
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep)
    bench.at = {5000: lambda: simulator.set_faults(Faults(delay_ms=15_000)), 20_000: lambda: simulator.set_faults(Faults())}
    looks = Looks()
    simulator.run(looks.append, 30)
    for look in looks:
        if look.screen.host_t_ms is not None and look.screen.pr.x10 != NO_RATE:
            assert 1000 * look.t_s + 70_000 - look.screen.host_t_ms <= 5000
    assert looks.shown(since_s=25)


def test_the_counters_tell_what_was_done_to_the_wire_and_what_the_display_made_of_it():
    bench = Bench(unit(20))
    _, looks = run(bench, 20, faults=Faults(drop=0.3, bit_errors=0.001), seed=3)
    last = looks[-1]
    assert last.damage["frames_dropped"] > 30 and last.damage["bits_flipped"] > 5
    assert last.counters["lost"] > 20 and last.counters["bad_crc"] + last.counters["bad_cobs"] > 2
    assert len(last.frames) == FRAMES_KEPT and any("VITALS" in frame.text for frame in last.frames)
    assert any(not frame.good for look in looks for frame in look.frames)


def test_status_goes_back_once_a_second_but_not_through_a_cable_that_is_out():
    bench = Bench(unit(10))
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep)
    bench.at = {5000: lambda: simulator.set_faults(Faults(unplugged=True))}
    simulator.run(lambda look: None, 10)
    statuses = [frame.message for frame in Decoder().feed(b"".join(bench.written))]
    assert 4 <= len(statuses) <= 5 and statuses[-1].shown_pr_x10 == 1432


def test_the_display_is_stepped_and_looked_at_while_nothing_comes():
    _, looks = run(Bench([]), 10)
    assert len(looks) > 80 and max(b.t_s - a.t_s for a, b in zip(looks, looks[1:], strict=False)) <= 0.15
    assert {look.screen.mode for look in looks} == {ScreenMode.WAITING}


# --- recordings -------------------------------------------------------------------------------------------------------

def test_a_recording_replays_to_the_same_pixels_at_the_same_times(tmp_path):
    file = tmp_path / "wire.pvlrec"
    bench = Bench(unit(8.3))
    _, looks = run(bench, 8, record=file, faults=Faults(drop=0.1, bit_errors=1e-4))
    recording = Recording.read(file)
    assert recording.complete and recording.screen == looks[-1].glass
    again = Looks()
    Simulator(recording, FlatDisplay, paced=False, with_pixels=True).run(again.append)
    assert again[-1].replay.same is True
    assert [(look.t_s, look.glass) for look in again][:len(looks) - 1] == [(look.t_s, look.glass) for look in looks][:-1]
    assert again.shown() == looks.shown() and again.shown()


def test_a_replay_takes_its_own_time():
    recorder = Recorder()
    for t_ms in (0, 30, 700):
        recorder.step(t_ms, b"x")
    bench = Bench([])
    looks = Looks()
    Simulator(recorder.finish(""), FlatDisplay, clock=bench.clock, sleep=bench.sleep).run(looks.append)
    assert bench.now_ms == pytest.approx(700) and looks[-1].t_s == 0.7 and looks[-1].replay.same is None


def test_a_replay_with_faults_is_not_compared_and_one_with_other_pixels_is_said_to_differ(tmp_path):
    file = tmp_path / "wire.pvlrec"
    run(Bench(unit(5)), 4, record=file)
    for faults, expected in ((Faults(drop=0.5), None), (Faults(), False)):
        recording = Recording.read(file)
        if expected is False:
            recorder = Recorder()
            for t_ms, data in recording:
                recorder.step(t_ms, data.replace(b"bench", b"bunch"))  # one frame less is good
            recording = recorder.finish(recording.screen)
        looks = Looks()
        Simulator(recording, FlatDisplay, paced=False, faults=faults).run(looks.append)
        assert looks[-1].replay.same is expected


def test_record_replay_and_back_to_live_from_another_thread_s_point_of_view():
    bench = Bench(unit(60))
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep, with_pixels=True)
    kept = {}
    bench.at = {
        4000: simulator.start_recording,
        4500: lambda: pytest.raises(RecordingError, simulator.replay),
        9000: lambda: kept.update(recording=simulator.stop_recording()),
        10_000: lambda: (simulator.set_faults(Faults(drop=1.0)), simulator.replay()),
        12_000: lambda: pytest.raises(RecordingError, simulator.start_recording),
        20_000: simulator.go_live,
    }
    looks = Looks()
    simulator._stays = True
    simulator.run(looks.append, 30)
    assert looks.at(4.2).screen.pr.x10 == NO_RATE, "recording switches the display off and on"
    assert looks.at(8.9).screen.pr.x10 == 1432 and looks.at(8.9).recorder.bytes > 1000
    replay = looks.at(16.5)
    assert replay.mode == "silent" and replay.replay.same is True and replay.replay.screen == kept["recording"].screen
    assert not [t for t in looks.shown(18.1) if t < 21], "after the replay the wire is silent, so dashes"
    assert looks[-1].mode == "live" and looks[-1].screen.pr.x10 == 1432 and looks[-1].replay is None


def test_what_came_in_at_the_port_during_a_replay_is_not_shown_afterwards():
    bench = Bench(unit(30))
    simulator = Simulator(bench.link, FlatDisplay, clock=bench.clock, sleep=bench.sleep, stays=True)
    bench.at = {3000: simulator.start_recording, 4000: simulator.stop_recording, 4100: simulator.replay,
                15_000: simulator.go_live}
    looks = Looks()
    simulator.run(looks.append, 20)
    assert looks[-1].counters["ok"] < 12 * 5.5, "five seconds of frames, no backlog"


def test_a_cut_off_recording_replays_what_is_whole(tmp_path):
    file = tmp_path / "wire.pvlrec"
    recorder = Recorder(file)
    for n in range(100):
        recorder.step(50 * n, bytes([n]) * 3)
    recorder._file.flush()
    partial = tmp_path / "wire.pvlrec.partial"
    assert not file.exists(), "it has no name before it is whole"
    partial.write_bytes(partial.read_bytes()[:-3])
    cut = Recording.read(partial)
    assert not cut.complete and cut.steps == 99 and list(cut)[-1] == (50 * 98, b"bbb")
    with pytest.raises(RecordingError, match="cut off"):
        Recorder(file)


@pytest.mark.parametrize("old, new, match", [
    (b"PVL-RECORDING 1", b"PVL-RECORDING 2", "no recording"), (b"\n50 ", b"\n51 ", "hash"), (b"01", b"0x", "step"),
    (b"\n100 ", b"\n10 ", "back in time"), (b"\nend 3", b"\nend 4", "hash"), (b"\n0 ", b"\n-0 ", "step"),
    (b"\n0 ", b"\n99999999999999999999 ", "step"),
])
def test_a_damaged_recording_is_refused(old, new, match):
    recorder = Recorder()
    for t_ms in (0, 50, 100):
        recorder.step(t_ms, b"\x01\x02")
    data = recorder.finish("").as_bytes()
    assert Recording.read(data).steps == 3 and data.replace(old, new, 1) != data
    with pytest.raises(RecordingError, match=match):
        Recording.read(data.replace(old, new, 1))


def test_any_bytes_at_all_are_a_recording_or_an_error():
    recorder = Recorder()
    for n in range(20):
        recorder.step(50 * n, bytes([n]))
    data = recorder.finish("").as_bytes()
    rng = random.Random(5)
    refused = 0
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            assert len(list(Recording.read(bytes(broken)))) <= 20
        except RecordingError:
            refused += 1
    assert refused > 1900


def test_a_full_recording_ends_by_itself_and_the_display_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(recordings, "MAX_FILE_BYTES", 4000)
    file = tmp_path / "wire.pvlrec"
    _, looks = run(Bench(unit(10)), 10, record=file)
    assert looks[-1].screen.pr.x10 == 1432 and "full" in looks[-1].problem
    assert Recording.read(file).complete and file.stat().st_size < 4300


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.fixture
def wire_file(tmp_path):
    file = tmp_path / "wire.bin"
    file.write_bytes(b"".join(data for _, data in unit(6)))
    return file


@pytest.fixture
def flat(monkeypatch):
    monkeypatch.setattr(terminal, "display_maker", lambda needs_pixels: FlatDisplay)


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    terminal.add_arguments(parser)
    return terminal.main(parser.parse_args(list(map(str, argv))))


def test_record_then_replay_by_command(wire_file, tmp_path, capsys, flat):
    kept = tmp_path / "kept.pvlrec"
    assert command(wire_file, "--fast", "--record", kept) == 0
    assert command(kept, "--fast") == 0
    assert "the last screen is the recorded one" in capsys.readouterr().out
    assert command(kept, "--fast", "--drop", "50") == 0
    out = capsys.readouterr().out
    assert "recorded one" not in out
    recording = Recording.read(kept)
    recorder = Recorder()
    for step in recording:
        recorder.step(*step)
    kept.write_bytes(recorder.finish("0" * 64).as_bytes())
    assert command(kept, "--fast") == 1
    assert "NOT the recorded one" in capsys.readouterr().out
    assert command(kept, "--fast", "--record", kept) == 1, "a recording may be replaced by its own replay"


def test_the_picture_of_the_last_screen_or_of_a_moment(wire_file, tmp_path, capsys, flat):
    last, moment = tmp_path / "last.png", tmp_path / "moment.png"
    assert command(wire_file, "--fast", "--png", last) == 0
    assert command(wire_file, "--fast", "--png", moment, "--png-at", 1) == 0
    for file in (last, moment):
        data = file.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (WIDTH_PX, HEIGHT_PX)
        assert zlib.crc32(data[12:29]) == struct.unpack(">I", data[29:33])[0]
    assert last.read_bytes() != moment.read_bytes()
    assert command(wire_file, "--fast", "--png", tmp_path / "x.png", "--png-at", 60) == 2
    assert "the display ended after" in capsys.readouterr().err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("argv, words", [
    (("--drop", "101"), "drop"), (("--bit-errors", "0.7"), "bit_errors"), (("--delay", "-1"), "delay_ms"),
    (("--png-at", "3"), "--png OUT"), (("--fast", "--web"), "--fast"), (("--png", "/nowhere/x.png", "--fast"), "x.png"),
    (("--record", "/nowhere/x.pvlrec"), "x.pvlrec"),
])
def test_bad_usage_is_said_in_one_line(wire_file, capsys, flat, argv, words):
    assert command(wire_file, *argv) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1


def test_a_source_after_web_is_explained(capsys):
    with pytest.raises(SystemExit):
        command("--web", "/dev/ttyUSB0")
    assert "name the source before --web" in capsys.readouterr().err


def test_without_a_compiler_the_terminal_falls_back_on_the_python_rules_and_says_so(monkeypatch, wire_file, tmp_path, capsys):
    core = pytest.importorskip("firmware_bridge.core")

    def missing(now_ms):
        raise core.CoreError("no C compiler: cc is not there. Install gcc.")

    monkeypatch.setattr(core, "CoreDisplay", missing)
    assert command(wire_file, "--fast") == 0
    assert "Install gcc. Showing the Python rules instead" in capsys.readouterr().err
    assert command(wire_file, "--fast", "--png", tmp_path / "x.png") == 2, "pixels come from the core alone"
    assert not (tmp_path / "x.png").exists()


def test_a_recording_is_finished_when_the_display_is_stopped(tmp_path):
    file, name = tmp_path / "kept.pvlrec", tmp_path / "display"
    sender = Sender(time.monotonic_ns)
    sent = [sender.encode(SHOWN) for _ in range(4)]
    code = ("import argparse, sys\nfrom firmware_bridge import terminal\nparser = argparse.ArgumentParser()\n"
            "terminal.add_arguments(parser)\nsys.exit(terminal.main(parser.parse_args()))")
    with subprocess.Popen([sys.executable, "-c", code, "--pty", str(name), "--record", str(file)],
                          stdout=subprocess.PIPE, text=True) as display:
        display.stdout.readline()
        with Link(str(name)) as unit:
            for frame in sent:
                unit.offer(frame, MessageType.VITALS)
            told = lambda: unit.health().last_status  # noqa: E731
            assert until(lambda: told() is not None and told().frames_ok == 4, 30.0, unit.poll)
        display.send_signal(signal.SIGTERM)
        display.stdout.read()
    assert display.returncode == 0 and not name.is_symlink()
    recording = Recording.read(file)
    assert recording.complete and b"".join(data for _, data in recording) == b"".join(sent)
    assert recording.duration_ms >= 1000  # when STATUS came


def test_a_wire_file_that_is_away_is_an_error(tmp_path):
    with pytest.raises(LinkError, match="cannot be read"):
        Simulator(tmp_path / "none", FlatDisplay, paced=False).run(lambda look: None)


def test_who_cannot_see_the_glass_hears_the_same():
    _, looks = run(Bench(unit(5)), 12)
    assert "PR camera 143 bpm. RR camera 42 /min. investigational" in spoken(looks.at(4).screen)
    last = spoken(looks[-1].screen)
    assert "PR camera no number bpm" in last and "camera link lost" in last and not set(last) & set("0123456789")
