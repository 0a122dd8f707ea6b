"""What a run keeps: readable, true to what was sent, bounded, whole after a crash, and never in the way of monitoring."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge import recorder as module
from edge import recorder_store as store
from edge.__main__ import main
from edge.config import CameraConfig, Config, SerialConfig
from edge.recorded import (
    BLOCK_BYTES,
    RecordedWire,
    csv_row,
    is_whole,
    mend,
    read_rows,
    read_stream,
    segments,
    sessions,
    wire_files,
    wire_steps,
)
from edge.recorder import Recorder
from edge.recorder_store import COLUMNS
from edge.records import Frame, Reading, Reason, State, VitalReading
from edge.runtime import Live, Tap
from firmware_bridge.frame import Decoder, Verdict
from firmware_bridge.messages import Bye, Vitals
from firmware_bridge.recording import HEAD, Recording, RecordingError
from firmware_bridge.schema import NO_RATE
from firmware_bridge.simulator import PythonDisplay, Simulator
from tests.fake_engine import FakeEngine
from tests.test_runtime import World
from tests.videos import grey_steps, write_video

ROOT = Path(__file__).resolve().parents[1]
MB = 1 << 20


def recorder(folder, max_bytes=100 * MB, pictures=False, clock_ns=time.monotonic_ns):
    return Recorder(folder, max_bytes, pictures, {"product": "test"}, clock_ns)


def vital(value=150.0, state=State.VALID, reason=Reason.NONE):
    return VitalReading(value if state.shows_number else None, state, 0.9, 0.1, 8.0, reason)


def reading(value=150.0, state=State.VALID, reason=Reason.NONE):
    return Reading(vital(value, state, reason), vital(45.0), 0)


def drive(tmp_path, monkeypatch, seconds=20.0, recorder_folder=None, alive=((0, 100),), pictures=False,
          taps=lambda world: ()):
    """A live run in a time of its own, recorded: (session folder, bytes of the wire file)."""
    world = World(monkeypatch, list(alive), stop_s=seconds)
    config = Config(camera=CameraConfig(roi="full"), serial=SerialConfig(wire_file=str(tmp_path / "wire")))
    folder = recorder_folder or tmp_path / "kept"
    with recorder(folder, pictures=pictures, clock_ns=lambda: world.now_ns) as kept:
        Live(config, FakeEngine(), "fake", lambda: world.now_ns, lambda: world.t_s >= world.stop_s, world.open,
             taps=[kept, *taps(world)]).run()
    return folder, (tmp_path / "wire").read_bytes(), kept


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """To be looked at only."""
    with pytest.MonkeyPatch.context() as patch:
        folder, wire, _ = drive(tmp_path_factory.mktemp("run"), patch)
    return sessions(folder)[-1], wire


# --- what is kept


def test_pandas_reads_every_stream_under_the_names_of_the_schema(run):
    pandas = pytest.importorskip("pandas", reason="the recordings are meant for it; pip install pandas")
    session, _ = run
    schema = json.loads((session.parent / "schema.json").read_text())["streams"]
    assert set(schema) == {"readings", "estimates", "waveforms", "states"}
    for stream, columns in schema.items():
        table = pandas.read_csv(session / f"{stream}-0000.csv")
        assert list(table.columns) == list(columns) and len(table) > 2
        assert table.t_s.dtype == float and table.t_s.is_monotonic_increasing
    readings = pandas.read_csv(session / "readings-0000.csv")
    for name in ("hr", "rr"):
        shows = readings[f"{name}_state"].isin(["VALID", "QUESTIONABLE"])
        assert (readings[name].notna() == shows).all() and shows.any() and not shows.all()
    assert readings.hr.iloc[-1] == pytest.approx(150, abs=1) and readings.rr.iloc[-1] == pytest.approx(45, abs=1)


def test_the_readings_are_those_that_were_sent(run):
    session, wire = run
    rows, torn = read_stream(session, "readings")
    vitals = [f.message for f in Decoder().feed(wire) if isinstance(f.message, Vitals)]
    assert torn == 0 and len(rows) == len(vitals) > 38
    for row, sent in zip(rows, vitals, strict=True):
        assert row["hr"] == "" if sent.pr_x10 == NO_RATE else float(row["hr"]) == pytest.approx(sent.pr_x10 / 10, abs=0.06)
        assert row["hr_state"] == sent.pr_state.name


def test_a_value_is_empty_exactly_where_its_state_may_show_no_number_and_no_other_cell_is(tmp_path, monkeypatch):
    folder, _, _ = drive(tmp_path, monkeypatch, 30.0, alive=((0, 20), (23, 100)))
    session = sessions(folder)[-1]
    for stream, columns in COLUMNS.items():
        rows, _ = read_stream(session, stream)
        assert rows and all(list(row) == list(columns) for row in rows)
        may_be_empty = {"readings": {"hr", "rr"}, "estimates": {"hr", "rr", "conditions"}, "states": {"detail"}}
        filled = set(columns) - may_be_empty.get(stream, set())
        assert not [(stream, name) for row in rows for name in filled if not row[name]]
        numbers = set(columns) - {"source", "state", "detail", "conditions"}
        numbers -= {name for name in columns if name.endswith(("_state", "_reason"))}
        assert all(np.isfinite(float(row[name])) for row in rows for name in numbers if row[name])
    rows, _ = read_stream(session, "readings")
    for name in ("hr", "rr"):
        states = {row[f"{name}_state"] for row in rows}
        assert {"SEARCHING", "FAULT"} <= states and any(State[state].shows_number for state in states)
        assert {row[f"{name}_reason"] for row in rows} <= {reason.name for reason in Reason}
        for row in rows:
            assert bool(row[name]) is State[row[f"{name}_state"]].shows_number


def test_the_waveforms_go_on_in_time_after_a_camera_came_back(tmp_path, monkeypatch):
    folder, _, _ = drive(tmp_path, monkeypatch, 26.0, alive=((0, 12), (12.4, 18), (21, 100)))
    rows, _ = read_stream(sessions(folder)[-1], "waveforms")
    t_s = [float(row["t_s"]) for row in rows]
    assert len(t_s) > 500 and all(a < b for a, b in zip(t_s, t_s[1:], strict=False))


def test_every_unit_is_one_of_ucum_and_every_column_says_what_it_is():
    ucum = {"/min", "s", "1", "{pixel}"}
    for columns in COLUMNS.values():
        for name, about in columns.items():
            assert about.get("meaning") or about.get("unit"), name
            assert about.get("unit", "1") in ucum, name


def test_the_schema_names_the_quantities_as_ieee_11073_and_ucum_do(run):
    schema = json.loads((run[0].parent / "schema.json").read_text())
    hr, rr = (schema["streams"]["readings"][name] for name in ("hr", "rr"))
    assert (hr["mdc_code"], hr["mdc_unit_code"], hr["unit"]) == (149546, 264864, "/min")
    assert (rr["mdc_code"], rr["mdc_unit_code"], rr["unit"]) == (151562, 264928, "/min")
    assert "147842" not in json.dumps(schema)  # the heart rate of an ECG is another quantity


def test_the_waveforms_are_one_even_series_and_hold_the_rhythm(run):
    rows, _ = read_stream(run[0], "waveforms")
    t_s = np.array([float(row["t_s"]) for row in rows])
    np.testing.assert_allclose(np.diff(t_s), 1 / 30, atol=2e-3)
    pulse = np.array([float(row["pulse"]) for row in rows])[-300:]
    peak = np.abs(np.fft.rfft(pulse - pulse.mean())).argmax()
    assert peak * 30 / 300 * 60 == pytest.approx(150, abs=6)


def test_a_state_is_kept_when_it_changes_and_trouble_with_its_words(tmp_path, monkeypatch):
    folder, _, _ = drive(tmp_path, monkeypatch, 22.0, alive=((0, 12), (15, 100)))
    rows, _ = read_stream(sessions(folder)[-1], "states")
    said = [(row["source"], row["state"], row["detail"]) for row in rows]
    assert said[0] == ("camera", "OPEN", "fake 64x48")
    assert ("camera", "LOST", "unplugged") in said and ("PR", "FAULT", "NO_CAMERA") in said
    pr = [entry for entry in said if entry[0] == "PR"]
    assert all(a != b for a, b in zip(pr, pr[1:], strict=False)) and ("PR", "VALID", "NONE") in pr


def test_the_command_keeps_a_run_and_the_configuration_may_ask_for_it(tmp_path, monkeypatch):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    clip = write_video(tmp_path / "c.avi", grey_steps(45))
    (tmp_path / "c.toml").write_text(f'[record]\nfolder = "{tmp_path / "kept"}"\nmax_mb = 16\n')
    assert main(["run", "--config", str(tmp_path / "c.toml"), "--source", str(clip)]) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    session = sessions(tmp_path / "kept")[-1]
    facts = json.loads((session / "session.json").read_text())
    assert facts["source"] == str(clip) and facts["began_monotonic_ns"] > 0 and facts["pictures"] is False
    readings, _ = read_stream(session, "readings")
    assert len(readings) >= 3 and len(list(wire_steps(session))) >= 4
    assert main(["run", "--record", str(tmp_path / "kept"), "--record-max-mb", "1", "--source", str(clip)]) == 2


def test_what_was_withheld_from_the_display_is_no_reading(tmp_path):
    kept = recorder(tmp_path)
    kept.said(reading(), True, time.monotonic_ns())
    kept._drain()
    (row,), _ = read_stream(sessions(tmp_path)[-1], "readings")
    assert row["hr"] == row["rr"] == "" and row["hr_state"] == row["rr_state"] == "FAULT"
    assert row["hr_reason"] == "DISPLAY"  # neither the camera's fault nor the model's
    states, _ = read_stream(sessions(tmp_path)[-1], "states")
    assert [(each["source"], each["state"], each["detail"]) for each in states] == [
        ("PR", "FAULT", "DISPLAY"), ("RR", "FAULT", "DISPLAY")]


def test_pictures_that_the_camera_s_numbers_leave_out_are_counted(tmp_path):
    kept = recorder(tmp_path)
    bgr, now_ns = np.zeros((4, 4, 3), np.uint8), kept._began_ns

    def frames(numbers):
        nonlocal now_ns
        for seq in numbers:
            now_ns += 33_000_000
            kept.frame(Frame(seq, now_ns, bgr), now_ns, 0)

    frames([7, *range(8, 400), *range(402, 410), 410, 410, 5])  # 2 missed, one repeated, numbers that go back
    kept.event("camera", "OPEN", "again", now_ns)
    frames(range(100_000, 100_300))  # another camera counts from anywhere
    frames(range(100_309, 100_700))
    kept._drain()
    states, _ = read_stream(sessions(tmp_path)[-1], "states")
    assert [row["detail"] for row in states if row["state"] == "DROPPED"] == ["2 pictures so far", "11 pictures so far"]


def test_text_that_is_no_text_is_kept_as_far_as_it_can_be(tmp_path):
    kept = recorder(tmp_path)
    kept.event("camera", "LOST", "/dev/v\udcff\udcfe, \"quoted\"\r\nand\x00more", time.monotonic_ns())
    kept.said(reading(), False, time.monotonic_ns())
    kept._drain()
    states, torn = read_stream(sessions(tmp_path)[-1], "states")
    assert states[0]["detail"] == "/dev/v??   quoted   and more" and torn == 0
    assert len(read_stream(sessions(tmp_path)[-1], "readings")[0]) == 1


@pytest.mark.parametrize(("asked", "expected"), [(False, 0), (True, 4)])
def test_pictures_are_kept_only_when_asked_for_one_a_second(tmp_path, asked, expected):
    kept = recorder(tmp_path, pictures=asked)
    kept.said(reading(), False, time.monotonic_ns())
    bgr = np.full((48, 64, 3), 90, np.uint8)
    for i in range(100):
        t_ns = kept._began_ns + i * 33_333_333
        kept.frame(Frame(i, t_ns, bgr), t_ns, 0)
    kept._drain()
    pictures = sorted(tmp_path.rglob("*.jpg"))
    assert len(pictures) == expected
    assert all(cv2.imread(str(path)).shape == bgr.shape for path in pictures)


# --- the wire, played again


def test_the_recorded_wire_is_what_went_to_the_display(run):
    session, wire = run
    assert b"".join(data for _, data in wire_steps(session)) == wire
    assert Recording.read(session / "wire-0000.pvl").complete


def test_replay_of_a_recording_reproduces_the_display(tmp_path, monkeypatch, capsys):
    folder, wire, _ = drive(tmp_path, monkeypatch, 22.0, alive=((0, 16), (20, 100)))
    assert main(["replay", str(folder), "--json", str(tmp_path / "out.json")]) == 0
    shown = json.loads((tmp_path / "out.json").read_text())
    sent = [f.message.pr_x10 for f in Decoder().feed(wire) if isinstance(f.message, Vitals)]
    numbers = {change["pr"].rstrip("?") for change in shown["changes"]} - {"---"}
    assert numbers and numbers <= {str((x10 + 5) // 10) for x10 in sent if x10 != NO_RATE}
    assert any(change["message"] == "NO CAMERA" and change["pr"] == "---" for change in shown["changes"])
    assert shown["last"]["mode"] == "STOPPED" and shown["duration_s"] == pytest.approx(22, abs=1)
    assert "PR" in capsys.readouterr().out


class Bedside(Tap):
    """A display at the other end of a sound wire, in the world's time: what it showed, and when."""

    def __init__(self, world):
        self.world, self.display, self.seen, self._last_ms = world, PythonDisplay(0), [], 0
        self.connected = True

    def now_ms(self):
        return (self.world.now_ns - self.world.zero_ns) // 1_000_000

    def outlets(self):
        from edge.recorder import _Wire

        return [_Wire(self.take)]

    def take(self, frame):
        now_ms = self.now_ms()
        for tick_ms in range(self._last_ms + 50, now_ms, 50):
            self.look(tick_ms, b"")
        self.look(now_ms, frame)

    def look(self, t_ms, data):
        self.display.receive(data, t_ms)
        self._last_ms = t_ms
        self.seen.append((t_ms, glass(self.display.screen(t_ms))))


def glass(screen):
    return (str(screen.pr), str(screen.rr), screen.pr.reason, screen.rr.reason, screen.mode.name, screen.message,
            tuple(screen.banners))


@pytest.mark.parametrize(("seconds", "alive"), [
    (20, ((0, 100),)), (36, ((0, 10), (14, 24), (24.5, 100))), (38, ((0, 9), (25, 26), (28, 100)))])
def test_the_replay_shows_what_the_bedside_display_showed_all_the_time(tmp_path, monkeypatch, seconds, alive):
    bedside = []

    def taps(world):
        bedside.append(Bedside(world))
        return bedside

    folder, _, _ = drive(tmp_path, monkeypatch, seconds, alive=alive, taps=taps)
    shown, again = dict(bedside[0].seen), []
    display = PythonDisplay(0)
    for t_ms, data in RecordedWire.of(folder):
        display.receive(data, t_ms)
        again.append((t_ms, glass(display.screen(t_ms))))
    assert again == bedside[0].seen and len(shown) > 20 * seconds
    numbers = {screen[0] for screen in shown.values()}
    assert len(numbers) > 1 and ("---" in numbers) and again[-1][1][4] == "STOPPED"
    looks = []
    Simulator(RecordedWire.of(folder), PythonDisplay, paced=False, send_status=False).run(looks.append)
    for look in looks:  # the simulator that `physvlm replay` uses looks less often, and sees the same
        assert glass(look.screen) in {screen for t_ms, screen in bedside[0].seen if abs(t_ms / 1000 - look.t_s) < 0.051}


def test_a_run_of_a_month_is_replayed_from_any_of_its_segments(tmp_path):
    kept = recorder(tmp_path / "kept")
    kept._began_ns -= 30 * 24 * 3600 * 1_000_000_000
    for _ in range(3):
        kept._wire(b"\x01\x02\x00")
    kept._drain()
    wire = RecordedWire.of(tmp_path / "kept")
    steps = list(wire)
    assert wire.steps == 3 and wire.origin_ms == pytest.approx(30 * 24 * 3.6e6 - 10_000, abs=1000)
    assert steps[0] == (50, b"") and 9_000 < steps[-1][0] <= 10_100 and len(steps) < 300
    assert [data for _, data in steps if data] == [b"\x01\x02\x00"] * 3


def test_a_long_run_is_replayed_to_its_end(tmp_path):
    kept = recorder(tmp_path / "kept")
    for _ in range(40):
        kept._wire(bytes([7]) * 60 + b"\x00")
        kept._began_ns -= 3_600_000_000_000
    kept._drain()
    steps, (t_ms, data) = deque(enumerate(RecordedWire.of(tmp_path / "kept"), 1), maxlen=1)[0]
    assert data and t_ms == pytest.approx(39 * 3.6e6, abs=1000) and steps > 39 * 72_000


def test_a_silence_in_the_recording_blanks_the_display_as_it_did(tmp_path):
    kept = recorder(tmp_path / "kept")
    kept._wire(b"\x01\x02\x00")
    kept._began_ns -= 20_000_000_000  # twenty seconds pass
    kept._wire(b"\x03\x04\x00")
    kept._drain()
    steps = list(RecordedWire.of(tmp_path / "kept"))
    assert len(steps) > 380 and max(b[0] - a[0] for a, b in zip(steps, steps[1:], strict=False)) <= 50
    assert [data for _, data in steps if data] == [b"\x01\x02\x00", b"\x03\x04\x00"]


def test_a_folder_without_a_recording_is_refused_in_words(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_newest_run_without_a_wire_hides_no_older_one(tmp_path):
    kept = recorder(tmp_path)
    kept._wire(b"\x01\x00")
    kept._drain()
    (tmp_path / "0001-20260101T000000Z").mkdir()
    assert [data for _, data in wire_steps(tmp_path)] == [b"\x01\x00"]


# --- torn ends


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_row_torn_anywhere_is_left_out_and_the_others_stay(tmp_path, cut):
    path = tmp_path / "readings-0000.csv"
    rows = [csv_row(i, 150.0 + i, "VALID") for i in range(3)]
    whole = b"t_s,hr,hr_state,crc\n" + b"".join(rows)
    if cut >= len(rows[-1]):
        pytest.skip("shorter than that")
    path.write_bytes(whole[:-cut])
    found, torn = read_rows(path)
    assert [row["hr"] for row in found] == ["150.00", "151.00"] and torn == 1


def test_zeros_from_a_lost_power_are_no_rows(tmp_path):
    path = tmp_path / "readings-0000.csv"
    path.write_bytes(b"t_s,hr,crc\n" + csv_row(0.5, 150.0) + bytes(4096))
    assert read_rows(path) == ([{"t_s": "0.500", "hr": "150.00", "crc": read_rows(path)[0][0]["crc"]}], 1)


def test_a_changed_digit_is_found():
    assert is_whole(csv_row(1.0, 148.2, "VALID"))
    assert not is_whole(csv_row(1.0, 148.2, "VALID").replace(b"148", b"143"))


def test_the_next_run_mends_the_torn_end_of_the_last(tmp_path):
    first = recorder(tmp_path)
    for _ in range(4):
        first.said(reading(), False, time.monotonic_ns())
    first._drain()
    path = sessions(tmp_path)[0] / "readings-0000.csv"
    path.write_bytes(path.read_bytes()[:-7] + bytes(100))
    first._store._leave()
    second = recorder(tmp_path)
    second.said(reading(), False, time.monotonic_ns())
    second._drain()
    assert len(sessions(tmp_path)) == 2
    assert path.read_bytes().endswith(b"\n") and len(read_rows(path)[0]) == 3 and read_rows(path)[1] == 0
    assert mend(sessions(tmp_path)[0]) == 0


@pytest.mark.parametrize("head", [b"", bytes(4096), b"t_s,hr_st", b"\xff\xfe\n" + csv_row(0.5, 1.0)])
def test_a_file_without_a_whole_head_holds_nothing_and_goes(tmp_path, head):
    first = recorder(tmp_path)
    first.said(reading(), False, time.monotonic_ns())
    first._drain()
    first._store.close()
    session = sessions(tmp_path)[0]
    (session / "readings-0000.csv").write_bytes(head)
    assert read_rows(session / "readings-0000.csv")[0] == []
    assert mend(session) == len(head)
    assert not (session / "readings-0000.csv").exists() and (session / "states-0000.csv").exists()


@pytest.mark.parametrize("tail", [bytes(500), b"12 0a", b"12 0a" + bytes(20) + b"77\n13 0b\n", b"1 00\n", b"end 2 - abc"])
def test_a_wire_torn_by_lost_power_is_replayed_as_far_as_it_is_whole(tmp_path, tail):
    kept = recorder(tmp_path)
    kept._began_ns -= 5_000_000_000
    kept._wire(b"\x01\x00")
    kept._wire(b"\x02\x00")
    kept._drain()
    path = sessions(tmp_path)[0] / "wire-0000.pvl"
    with path.open("ab") as file:
        file.write(tail)
    (path.with_name("wire-0001.pvl")).write_bytes(bytes(4096))  # of a segment just begun
    (path.with_name("wire-0002.pvl")).write_bytes(HEAD[:5])
    (path.with_name("wire-0003.pvl")).write_bytes(b"")
    assert wire_files(tmp_path) == [path]
    assert [data for _, data in wire_steps(tmp_path)] == [b"\x01\x00", b"\x02\x00"]
    assert not RecordedWire.of(tmp_path).complete


def test_a_finished_wire_that_was_changed_is_refused(tmp_path):
    kept = recorder(tmp_path)
    kept._wire(b"\x01\x00")
    kept._drain()
    kept._store.close()
    path = sessions(tmp_path)[0] / "wire-0000.pvl"
    for old, new in ((b"0100", b"0200"), (b"0100", b"0x00"), (b"end 1", b"end 2")):
        whole = path.read_bytes()
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(RecordingError, match="wire-0000"):
            list(wire_steps(tmp_path))
        path.write_bytes(whole)


def killed_runs(folder, times, seed=1):
    """Recorders in processes of their own, each killed at a moment of its own; the folder is looked at after each."""
    rng = random.Random(seed)
    for n in range(times):
        child = os.fork()
        if child == 0:  # pragma: no cover - ends by a signal
            module.WRITE_S, store.SYNC_S, module.PICTURE_S = 0.002, 0.01, 0.02
            with recorder(folder, 1_500_000, pictures=True) as kept:
                for i in range(10**9):
                    now_ns = time.monotonic_ns()
                    kept.said(reading(100 + i % 100), False, now_ns)
                    kept._wire(b"frame %d" % i)
                    kept.frame(Frame(i, now_ns, np.zeros((24, 32, 3), np.uint8)), now_ns, 0)
                    time.sleep(0.0002)
        time.sleep(rng.choice([rng.uniform(0, 0.02), rng.uniform(0.02, 0.1), rng.uniform(0.1, 0.3)]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        yield n


def after_a_kill(folder):
    for session in sessions(folder)[-1:]:
        rows, torn = read_stream(session, "readings")
        first = round(float(rows[0]["hr"])) - 100 if rows else 0  # earlier segments may have gone for room
        assert torn <= 1
        assert [float(row["hr"]) for row in rows] == [100 + (first + i) % 100 for i in range(len(rows))]
        if wire_files(session):
            said = [int(data.split()[1]) for _, data in wire_steps(session)]
            assert said == list(range(said[0], said[0] + len(said))) if said else True
        for picture in session.glob("pictures-*/0*.jpg"):
            assert picture.read_bytes().endswith(b"\xff\xd9")
    assert room_used(folder) <= 1_500_000 + 10 * BLOCK_BYTES
    for session in sessions(folder)[:-1]:
        for path in session.glob("*.csv"):
            assert read_rows(path)[1] == 0, path  # the next run cut it off
    numbers = [path.name[:4] for path in sessions(folder)]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("times", [8, pytest.param(200, marks=pytest.mark.soak)])
def test_a_run_killed_at_any_moment_leaves_whole_rows_and_the_next_goes_on(tmp_path, times):
    for _ in killed_runs(tmp_path, times):
        after_a_kill(tmp_path)
    last = recorder(tmp_path, 1_500_000)
    last.said(reading(), False, time.monotonic_ns())
    last._drain()
    assert last.kept > 0 and last.lost == 0
    assert not list(tmp_path.glob(".*")) and all((path / "session.json").exists() for path in sessions(tmp_path))


WRITER = """
import sys, time
from pathlib import Path
from edge import recorder as module
from tests.test_recorder import reading, recorder
module.WRITE_S = 0.02
with recorder(Path(sys.argv[1])) as kept:
    for i in range(10**9):
        kept.said(reading(100 + i % 100), False, time.monotonic_ns())
        kept._wire(b"frame %d" % i)
        if kept.kept > 100:
            print(kept.kept, flush=True)
        time.sleep(0.0005)
"""


def test_a_kill_leaves_every_row_that_was_written_whole(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    said = [child.stdout.readline() for _ in range(200)][-1]
    child.send_signal(signal.SIGKILL)
    child.wait()
    session = sessions(tmp_path)[-1]
    rows, torn = read_stream(session, "readings")
    states, _ = read_stream(session, "states")
    wire = list(wire_steps(session))
    assert torn <= 1 and len(rows) + len(states) + len(wire) >= int(said)
    assert [data for _, data in wire] == [b"frame %d" % i for i in range(len(wire))]
    assert [float(row["hr"]) for row in rows] == [100 + i % 100 for i in range(len(rows))]


# --- room


def room_used(folder):
    return sum(size for session in sessions(folder) for _, size in segments(session))


def test_the_room_is_never_exceeded_and_the_oldest_goes_first(tmp_path):
    limit = 400_000
    for session in range(3):
        kept = recorder(tmp_path, limit)
        for i in range(60):
            for _ in range(20):
                kept.said(reading(100.0 + session), False, time.monotonic_ns())
                kept._wire(bytes(30))
            kept._drain()
            assert room_used(tmp_path) <= limit, (session, i)
        kept._store.close()
    assert room_used(tmp_path) > limit / 3
    assert sessions(tmp_path)[-1].name.startswith("0002")
    rows, torn = read_stream(sessions(tmp_path)[-1], "readings")
    assert torn == 0 and {row["hr"] for row in rows} == {"102.00"} and len(rows) > 300
    assert kept.lost == 0


def test_the_order_of_runs_does_not_hang_on_the_wall_clock(tmp_path):
    for year in (2026, 1970):  # a device without a battery wakes up in 1970
        kept = recorder(tmp_path)
        kept._began = kept._began.replace(year=year)
        kept.said(reading(), False, time.monotonic_ns())
        kept._drain()
        kept._store.close()
    assert [path.name[:9] for path in sessions(tmp_path)] == ["0000-2026", "0001-1970"]


def test_the_number_of_runs_may_have_more_than_four_digits(tmp_path):
    for number in ("9999", "10000", "10007"):
        session = tmp_path / f"{number}-20260101T000000Z"
        session.mkdir()
        (session / "wire-0000.pvl").write_bytes(HEAD)
    kept = recorder(tmp_path)
    kept.said(reading(), False, time.monotonic_ns())
    kept._drain()
    assert [path.name.partition("-")[0] for path in sessions(tmp_path)] == ["9999", "10000", "10007", "10008"]


def disk_blocks(folder):
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file() and path.name != "session.json")


def test_many_short_runs_stay_within_the_room_too_and_leave_no_empty_folders(tmp_path, monkeypatch):
    limit = 500_000
    for _ in range(60):
        kept = recorder(tmp_path, limit)
        kept.said(reading(), False, time.monotonic_ns())
        kept._wire(b"x")
        kept._drain()
        kept._store.close()
        (tmp_path / "0000-20260101T000000Z").mkdir(exist_ok=True)  # of a run killed before its first row
        (tmp_path / ".schema.json.77.partial").touch()  # of one killed within a write
    assert disk_blocks(tmp_path) <= limit
    assert 20 < len(sessions(tmp_path)) < 60 and all(list(path.glob("*.csv")) for path in sessions(tmp_path)[1:])
    monkeypatch.setattr(store, "MOST_SEGMENTS", 10)
    kept = recorder(tmp_path, limit)
    kept.said(reading(), False, time.monotonic_ns())
    kept._drain()
    assert len(sessions(tmp_path)) == 10 and not list(tmp_path.glob(".*"))


def test_more_at_once_than_there_is_room_for_does_not_cost_the_run_its_folder(tmp_path):
    kept = recorder(tmp_path, 200_000)
    for size in (20, 3000, 20, 3000, 20):
        for _ in range(size):
            kept.said(reading(), False, time.monotonic_ns())
        kept._drain()
    assert kept.lost == 0 and len(sessions(tmp_path)) == 1 and (sessions(tmp_path)[0] / "session.json").exists()
    assert len(read_stream(sessions(tmp_path)[0], "readings")[0]) >= 20


def test_two_processes_do_not_share_a_folder(tmp_path, monkeypatch, caplog):
    first, now_ns = recorder(tmp_path), [0]
    second = recorder(tmp_path, clock_ns=lambda: now_ns[0])
    for kept in (first, second):
        for _ in range(3):
            kept.said(reading(), False, time.monotonic_ns())
        kept._drain()
    assert (first.kept > 0, second.kept) == (True, 0) and second.lost > 0 and len(sessions(tmp_path)) == 1
    assert caplog.text.count("another process records there") == 1
    first._store.close()
    now_ns[0] = 31_000_000_000
    second.said(reading(), False, now_ns[0])
    second._drain()
    assert second.kept > 0 and len(sessions(tmp_path)) == 2
    assert all(read_stream(path, "readings")[1] == 0 for path in sessions(tmp_path))


@pytest.mark.parametrize("what", ["folder", "session", "file", "folder moved"])
def test_what_is_deleted_under_it_is_noticed_and_begun_anew(tmp_path, what, caplog):
    now_ns, folder = [0], tmp_path / "kept"
    kept = recorder(folder, clock_ns=lambda: now_ns[0])

    def seconds(begin, end):
        for i in range(begin, end):
            now_ns[0] = i * 1_000_000_000
            kept.said(reading(), False, now_ns[0])
            kept._drain()

    seconds(0, 10)
    if what == "folder":
        shutil.rmtree(folder)
    elif what == "session":
        shutil.rmtree(sessions(folder)[0])
    elif what == "file":
        (sessions(folder)[0] / "readings-0000.csv").unlink()
    else:
        folder.rename(tmp_path / "elsewhere")
    seconds(10, 60)
    rows = [row for session in sessions(folder) for row in read_stream(session, "readings")[0]]
    assert max(float(row["t_s"]) for row in rows) == 59 and len(rows) >= 15
    assert kept.lost > 0 and sum("monitoring goes on" in r.message for r in caplog.records) == 1
    kept._store.close()


# --- a disk that fails


class Disk:
    """os.write with so much room."""

    def __init__(self, monkeypatch, room):
        self.room, self._write = room, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, fd, data):
        if os.fstat(fd).st_mode & 0o170000 != 0o100000:
            return self._write(fd, data)
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(fd, bytes(data)[:self.room])
        self.room -= taken
        return taken


def test_a_full_disk_is_said_once_counted_and_leaves_no_torn_row(tmp_path, monkeypatch, caplog):
    now_ns = [0]
    kept = recorder(tmp_path, clock_ns=lambda: now_ns[0])
    disk = Disk(monkeypatch, 3000)

    def second(i):
        now_ns[0] = i * 1_000_000_000
        for _ in range(2):
            kept.said(reading(), False, now_ns[0])
        kept._drain()

    with caplog.at_level(logging.INFO, "physvlm"):
        for i in range(1, 65):
            second(i)
        before = kept.kept
        assert kept.lost > 0 and [r.levelname for r in caplog.records] == ["ERROR"]
        assert "No space left" in caplog.text and str(tmp_path) in caplog.text
        disk.room = 10**9
        for i in range(65, 130):
            second(i)
    assert kept.kept > before and "goes on" in caplog.records[-1].message
    total = 0
    for session in sessions(tmp_path):
        rows, torn = read_stream(session, "readings")
        assert torn == 0
        total += len(rows)
    states, _ = read_stream(sessions(tmp_path)[-1], "states")
    assert ("recorder", "LOST") in {(row["source"], row["state"]) for row in states}
    assert total + kept.lost >= 258 and total <= kept.kept


def test_monitoring_does_not_notice_a_disk_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    folder, wire, kept = drive(tmp_path, monkeypatch, recorder_folder=tmp_path / "file" / "kept")
    frames = Decoder().feed(wire)
    assert all(frame.verdict is Verdict.OK for frame in frames) and isinstance(frames[-1].message, Bye)
    assert [f.message for f in frames if isinstance(f.message, Vitals)][-1].pr_x10 == pytest.approx(1500, abs=10)
    assert kept.kept == 0 and kept.lost > 100
    assert sum("monitoring goes on" in r.message for r in caplog.records) == 1


def test_a_disk_that_hangs_holds_nobody_up_and_fills_no_memory(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(module, "QUEUE", 500)
    monkeypatch.setattr(module, "WRITE_S", 0.01)
    monkeypatch.setattr(os, "write", lambda fd, data: release.wait(20) and 0 or len(data))
    with recorder(tmp_path) as kept:
        kept.said(reading(), False, time.monotonic_ns())
        time.sleep(0.1)
        start = time.monotonic()
        for _ in range(2000):
            kept.said(reading(), False, time.monotonic_ns())
        assert time.monotonic() - start < 0.5
        assert len(kept._queue) <= 500 and kept.lost >= 1400
        release.set()


def test_pictures_that_wait_for_a_disk_that_hangs_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PICTURE_S", 0.0)
    kept = recorder(tmp_path, pictures=True)  # nobody writes
    kept.said(reading(), False, time.monotonic_ns())
    alive = []
    for i in range(50):
        picture = np.zeros((480, 640, 3), np.uint8)
        kept.frame(Frame(i, time.monotonic_ns() + i * 10**9, picture), time.monotonic_ns(), 0)  # files are named by the ms
        alive.append(weakref.ref(picture))
    del picture
    assert sum(record.stream == "pictures" for record in kept._queue) == module.PICTURE_QUEUE and kept.lost == 46
    kept._drain()
    kept.frame(Frame(99, time.monotonic_ns() + 99 * 10**9, np.zeros((4, 4, 3), np.uint8)), time.monotonic_ns(), 0)
    kept._drain()
    assert len(list(tmp_path.rglob("*.jpg"))) == module.PICTURE_QUEUE + 1
    gc.collect()
    assert not any(each() is not None for each in alive)


GROWING = ("open", "write", "fsync", "mkdir", "replace")
CALLS = {errno.ENOSPC: GROWING, errno.EROFS: (*GROWING, "unlink", "ftruncate"),
         errno.EIO: (*GROWING, "unlink", "ftruncate", "close", "statvfs", "fstat")}


@pytest.mark.parametrize("code", CALLS, ids=errno.errorcode.get)
def test_a_disk_that_fails_at_any_call_costs_rows_and_nothing_else(tmp_path, monkeypatch, code, caplog):
    """The call and those of the next half minute fail; then the disk is well again."""
    real = {name: getattr(os, name) for name in CALLS[code]}
    state = {"count": 0, "from": 10**9}

    def failing(name):
        def call(*args, **kwargs):
            state["count"] += 1
            if name == "close":  # as Linux does: the descriptor is gone all the same
                real[name](*args, **kwargs)
            if state["from"] <= state["count"]:
                raise OSError(code, os.strerror(code))
            return None if name in ("close", "fsync") else real[name](*args, **kwargs)
        return call

    def life(folder, fail_from, seconds):
        now_ns = [0]
        kept = recorder(folder, 300_000, pictures=True, clock_ns=lambda: now_ns[0])
        state.update({"count": 0, "from": fail_from})
        failed_at = None
        with monkeypatch.context() as broken:
            for name in CALLS[code]:
                broken.setattr(os, name, failing(name))
            for i in range(seconds):
                now_ns[0] = i * 1_000_000_000
                kept.said(reading(), False, now_ns[0])
                kept._wire(b"frame %d" % i)
                if i % 10 == 0:
                    kept.frame(Frame(i, now_ns[0], np.zeros((8, 8, 3), np.uint8)), now_ns[0], 0)
                kept._drain()
                if failed_at is None and state["count"] >= fail_from:
                    failed_at = i
                if failed_at is not None and i > failed_at + 20:
                    state["from"] = 10**9
        kept._store.close()
        return kept, state["count"]

    _, calls = life(tmp_path / "well", 10**9, 130)
    open_before = len(os.listdir("/proc/self/fd"))
    for at, seconds in [*((at, 70) for at in range(1, 50)), *((at, 130) for at in range(50, calls // 2, calls // 20))]:
        folder = tmp_path / f"at{at}"
        kept, _ = life(folder, at, seconds)
        found = [read_stream(session, "readings") for session in sessions(folder)]
        rows = [float(row["t_s"]) for good, _ in found for row in good]
        assert all(torn == 0 for _, torn in found), at
        assert rows == sorted(rows) and rows[-1] == seconds - 1, (at, rows[-3:])
        for session in sessions(folder):
            said = [int(data.split()[1]) for _, data in wire_steps(session)] if wire_files(session) else []
            assert said == sorted(said)
            assert code != errno.ENOSPC or all(path.stat().st_size for path in session.glob("*.*")), (at, "an empty file")
        assert len(os.listdir("/proc/self/fd")) == open_before, at
        shutil.rmtree(folder)


def test_every_column_is_explained_or_named_by_itself():
    assert all(list(columns)[0] == "t_s" and list(columns)[-1] == "crc" for columns in COLUMNS.values())
