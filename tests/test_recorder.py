"""What a run keeps: readable, true to what was sent, bounded, whole after a crash, and never in the way of monitoring."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge import recorder as module
from edge.__main__ import main
from edge.config import CameraConfig, Config, SerialConfig
from edge.recorded import csv_row, is_whole, join_wire, mend, read_rows, read_stream, segments, sessions, wire_steps
from edge.recorder import COLUMNS, Recorder
from edge.records import Frame, Reading, Reason, State, VitalReading
from edge.runtime import Live
from firmware_bridge.frame import Decoder, Verdict
from firmware_bridge.messages import Bye, Vitals
from firmware_bridge.recording import Recording
from firmware_bridge.schema import NO_RATE
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


def drive(tmp_path, monkeypatch, seconds=20.0, recorder_folder=None, alive=((0, 100),), pictures=False):
    """A live run in a time of its own, recorded: (session folder, bytes of the wire file)."""
    world = World(monkeypatch, list(alive), stop_s=seconds)
    config = Config(camera=CameraConfig(roi="full"), serial=SerialConfig(wire_file=str(tmp_path / "wire")))
    folder = recorder_folder or tmp_path / "kept"
    with recorder(folder, pictures=pictures, clock_ns=lambda: world.now_ns) as kept:
        Live(config, FakeEngine(), "fake", lambda: world.now_ns, lambda: world.t_s >= world.stop_s, world.open,
             taps=[kept]).run()
    return folder, (tmp_path / "wire").read_bytes(), kept


@pytest.fixture
def run(tmp_path, monkeypatch):
    folder, wire, _ = drive(tmp_path, monkeypatch)
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
    assert row["hr"] == "" and row["hr_state"] == "FAULT"


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


def test_a_silence_in_the_recording_blanks_the_display_as_it_did(tmp_path):
    kept = recorder(tmp_path / "kept")
    kept._wire(b"\x01\x02\x00")
    kept._began_ns -= 20_000_000_000  # twenty seconds pass
    kept._wire(b"\x03\x04\x00")
    kept._drain()
    steps = list(Recording.read(join_wire(tmp_path / "kept", tmp_path / "joined")))
    assert len(steps) > 380 and max(b[0] - a[0] for a, b in zip(steps, steps[1:], strict=False)) <= 50
    assert [data for _, data in steps if data] == [b"\x01\x02\x00", b"\x03\x04\x00"]


def test_a_folder_without_a_recording_is_refused_in_words(tmp_path, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


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
    second = recorder(tmp_path)
    second.said(reading(), False, time.monotonic_ns())
    second._drain()
    assert len(sessions(tmp_path)) == 2
    assert path.read_bytes().endswith(b"\n") and len(read_rows(path)[0]) == 3 and read_rows(path)[1] == 0
    assert mend(sessions(tmp_path)[0]) == 0


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
    limit = 200_000
    for session in range(3):
        kept = recorder(tmp_path, limit)
        for i in range(60):
            for _ in range(20):
                kept.said(reading(100.0 + session), False, time.monotonic_ns())
                kept._wire(bytes(30))
            kept._drain()
            assert room_used(tmp_path) <= limit + 2000, (session, i)  # the heads of its files
        kept._store.close()
    assert room_used(tmp_path) > limit / 2
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
    assert [path.name[:9] for path in sessions(tmp_path)] == ["0000-2026", "0001-1970"]


# --- a disk that fails


class Disk:
    """os.write with so much room."""

    def __init__(self, monkeypatch, room):
        self.room, self._write = room, os.write
        monkeypatch.setattr(module.os, "write", self.write)

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
    monkeypatch.setattr(module.os, "write", lambda fd, data: release.wait(20) and 0 or len(data))
    with recorder(tmp_path) as kept:
        kept.said(reading(), False, time.monotonic_ns())
        time.sleep(0.1)
        start = time.monotonic()
        for _ in range(2000):
            kept.said(reading(), False, time.monotonic_ns())
        assert time.monotonic() - start < 0.5
        assert len(kept._queue) <= 500 and kept.lost >= 1400
        release.set()


def test_every_column_is_explained_or_named_by_itself():
    assert all(list(columns)[0] == "t_s" and list(columns)[-1] == "crc" for columns in COLUMNS.values())
