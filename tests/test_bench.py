"""The benchmark measures what it says, finds what is wrong on a glass, and fails when a limit is broken."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from edge import bench, bench_figures
from edge.__main__ import main
from edge.bench_child import LATE_NS, FailingEngine, Faults, LoopedClip, TimedStages
from edge.bench_clips import ClipError, Truth, as_mjpeg, compare, score, truth_of
from edge.bench_figures import (
    FIGURES,
    LimitError,
    changes,
    fault_figures,
    fault_table,
    live_figures,
    percentiles,
    read_limits,
    reference_figures,
    verdicts,
)
from edge.bench_glass import Glass, Sent, Shown, first_with, off_truth, wrong_shown
from edge.bench_machine import differences, facts, load_of, parse_tegrastats, read_board, slope_per_h
from edge.bench_report import html, junit
from edge.bench_run import FAULTS, Fault, Log, RunError, WallClock, _step, _until, conduct
from edge.camera import CameraLost, open_camera
from engines.errors import EngineError
from firmware_bridge.frame import Sender
from firmware_bridge.link import Link
from firmware_bridge.messages import Vitals
from firmware_bridge.schema import MessageType, VitalState
from tests.fake_engine import FakeEngine, picture, textured
from tests.relay import Clock
from tests.supervised import OwnTime, until
from tests.videos import grey_steps, write_video

pytestmark = pytest.mark.alone  # waits and timeouts in real time

ROOT = Path(__file__).resolve().parents[1]

# --- the machine

ORIN_NANO = ("04-27-2026 14:59:41 RAM 775/7620MB (lfb 3x4MB) SWAP 0/3810MB (cached 0MB) CPU [1%@729,0%@729,0%@729] "
             "GR3D_FREQ 7% cpu@48.468C soc2@47.531C soc0@48.062C gpu@48.562C tj@49.156C soc1@49.156C "
             "VDD_IN 4761mW/4778mW VDD_CPU_GPU_CV 515mW/501mW VDD_SOC 1428mW/1428mW")
AGX_ORIN = ("RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 14%@[407,407] VIC_FREQ 115 "
            "APE 174 CV0@73.625C CPU@77.281C Tboard@62C CV1@-256C tj@77.281C VDD_GPU_SOC 3150mW/2971mW "
            "VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW")
THOR = ("05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,0%@972] EMC_FREQ 0%@665 "
        "GR3D_FREQ @[0,0,0] NVENC0_FREQ @0 VIC off OFA_FREQ @0 APE 300 cpu@34.468C tj@34.5C soc012@33.781C "
        "VDD_GPU -392mW/0mW VDD_CPU_SOC_MSS 4165mW/4165mW VIN_SYS_5V0 4126mW/4126mW VIN 22960mW/22000mW")


@pytest.mark.parametrize(("line", "power_w", "gpu_percent", "temp_c"), [
    (ORIN_NANO, 4.761, 7, 49.156), (AGX_ORIN, 22.43, 14, 77.281), (THOR, 22.96, None, 34.5),
    ("GR3D_FREQ 5%@1300 CV1@-256C", None, 5, None), ("", None, None, None)])
def test_tegrastats_is_read_on_every_board(line, power_w, gpu_percent, temp_c):
    board = parse_tegrastats(line)
    assert board.power_w == (None if power_w is None else pytest.approx(power_w))
    assert (board.gpu_percent, board.temp_c) == (gpu_percent, temp_c)


def lay(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_tegrastats_sysfs_tells_the_same(tmp_path):
    lay(tmp_path, {"sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n", "sys/class/hwmon/hwmon1/in1_input": "4968\n",
                   "sys/class/hwmon/hwmon1/curr1_input": "1000\n", "sys/class/hwmon/hwmon1/in2_label": "VDD_SOC\n",
                   "sys/class/hwmon/hwmon1/in2_input": "1000\n", "sys/class/hwmon/hwmon1/curr2_input": "1000\n",
                   "sys/devices/platform/gpu.0/load": "123\n", "sys/class/thermal/thermal_zone0/temp": "48500\n",
                   "sys/class/thermal/thermal_zone1/temp": "-256000\n"})
    board = read_board(tmp_path)
    assert board.power_w == pytest.approx(4.968) and board.gpu_percent == 12.3 and board.temp_c == 48.5
    assert read_board(tmp_path / "elsewhere").power_w is None


def test_the_facts_of_a_board_are_found_and_two_boards_differ(tmp_path):
    lay(tmp_path, {"proc/device-tree/model": "NVIDIA Jetson Orin Nano\x00", "proc/meminfo": "MemTotal:  7802880 kB\n",
                   "proc/cpuinfo": "processor : 0\nmodel name\t: ARMv8 Processor rev 1\n",
                   "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n"})
    said = {"nvpmodel": "NV Power Mode: 15W\n0\n", "dpkg": "Package: nvidia-jetpack\nVersion: 6.2+b77\n"}
    board = facts(tmp_path, lambda command: said.get(command[0], ""))
    assert (board["board"], board["l4t"], board["jetpack"]) == ("NVIDIA Jetson Orin Nano", "R36.4.3", "6.2+b77")
    assert board["power_mode"] == "15W" and board["memory_gb"] == 7.4 and board["cpu"] == "ARMv8 Processor rev 1"
    assert differences(board, board) == []
    assert differences(board, board | {"power_mode": "MAXN", "kernel": "other"}) == ["power_mode: MAXN then, 15W now"]


def test_a_process_is_weighed_and_one_that_is_gone_is_not():
    load = load_of(os.getpid())
    assert 20 < load.rss_mb < 2000 and load.cpu_s > 0.1 and load.busy_s > load.cpu_s
    assert load_of(2**22 + 1) is None


def test_the_slope_is_found_through_noise_and_a_step():
    rng = np.random.default_rng(3)
    t_s = np.arange(1200.0)
    grown = 100 + 7.2 * t_s / 3600 + rng.normal(0, 0.05, t_s.size)
    slope, low, high = slope_per_h(t_s, grown)
    assert low <= slope <= high and slope == pytest.approx(7.2, abs=0.5)
    spiked = 100 + rng.normal(0, 0.01, t_s.size) + 40.0 * (np.abs(t_s - 700) < 60)
    assert abs(slope_per_h(t_s, spiked)[0]) < 0.3
    assert slope_per_h(t_s[:200], grown[:200]) is None


# --- the glass


def shown(t_ms, pr, rr=None, host=1, mode="LIVE", message=""):
    return Shown(t_ms, pr, rr, mode, message, host)


SENT = [Sent(1, 1, 1500, 450, 9_900), Sent(1, 2, 1510, 450, 10_900)]


@pytest.mark.parametrize(("glass", "away", "wrong"), [
    ([shown(10_000, 1500, 450), shown(11_000, 1510, 450, host=2), shown(12_000, None)], [], ()),
    ([shown(10_000, 1500), shown(12_000, None)], [], ()),  # one of two, the other dashes
    ([shown(10_000, 1501), shown(12_000, None)], [], ("PR 150.1 RR --- was never sent",)),
    ([shown(10_000, 1500, host=7), shown(12_000, None)], [], ("PR 150.0 RR --- was never sent",)),
    ([shown(10_000, 1500), shown(16_000, None)], [], ("a number 6.1 s after its newest picture",)),
    ([shown(10_000, 1500), shown(14_000, None)], [(10_500, 20_000)], ("a number while the camera was away",)),
    ([shown(10_000, 1500), shown(13_000, None)], [(10_500, 20_000)], ()),  # gone in time
    ([shown(10_000, None, mode="LINK_LOST", host=None)], [(0, 99_000)], ()),
])
def test_what_may_not_stand_on_the_glass_is_found(glass, away, wrong):
    found = wrong_shown(glass, SENT, away, 20_000)
    assert [each.what for each in found] == list(wrong)


def test_time_off_the_truth_is_a_share_of_the_time_with_numbers():
    glass = [shown(0, 1500), shown(9_000, 1600), shown(10_000, None)]
    assert off_truth(glass, 150.0, None, 5.0, 60_000) == pytest.approx(0.1)
    assert off_truth(glass, None, None, 5.0, 60_000) is None


def test_the_first_moment_of_a_state_is_counted_from_when_it_was_asked():
    glass = [shown(0, 1500, 450), shown(5_000, None), shown(9_000, 1500), shown(11_000, 1500, 450)]
    assert first_with(glass, "both", 1_000) == 0
    assert first_with(glass, "none", 1_000) == 4_000
    assert first_with(glass, "number", 5_000) == 4_000 and first_with(glass, "both", 5_000) == 6_000
    assert first_with(glass, "none", 12_000) is None


def vitals(pr=1500, rr=450):
    return Vitals(pr, rr, VitalState.VALID, VitalState.VALID, 90, 90, 2, 2, 8, 16)


def test_a_display_on_a_pty_shows_what_is_sent_and_blanks_when_the_cable_is_out(tmp_path, monkeypatch):
    clock = OwnTime()
    monkeypatch.setattr("edge.bench_glass.time", SimpleNamespace(monotonic_ns=clock, sleep=time.sleep))
    sender = Sender(clock)
    with Glass(tmp_path / "display") as glass, Link(str(tmp_path / "display"), clock=clock) as link:
        def send():
            link.offer(sender.encode(vitals()), MessageType.VITALS)
            link.poll()

        assert until(lambda: glass.now().has_both, 60.0, send, pause_s=0.2)
        assert glass.now().pr_x10 == 1500 and glass.now().rr_x10 == 450
        pulled_ms = clock() // 1_000_000
        glass.unplug(60.0)
        assert until(lambda: not glass.now().has_number, 30.0, send, pause_s=0.2)
        assert glass.now().mode == "LINK_LOST"
        assert 2_500 < first_with(glass.shown, "none", pulled_ms) < 3_300
        assert link.health().received > 0  # the display reports, too


# --- the appliance's own process


@pytest.fixture
def clock(monkeypatch):
    """The appliance's, which waiting alone moves."""
    clock = Clock()
    monkeypatch.setattr("edge.bench_child.time", SimpleNamespace(monotonic_ns=clock, sleep=clock.advance))
    return clock


def test_a_clip_is_played_on_as_a_camera_and_its_seam_is_even(tmp_path, clock):
    clip = write_video(tmp_path / "c.avi", grey_steps(6), fps=50)
    camera = LoopedClip(str(clip), Faults())
    frames = [next(camera) for _ in range(15)]
    camera.close()
    assert [f.seq for f in frames] == list(range(15))
    np.testing.assert_allclose(np.diff([f.t_ns for f in frames]) / 1e6, 20, atol=0.01)
    assert [int(f.bgr[0, 0, 0]) for f in frames] == [2 * (i % 6) for i in range(15)]
    assert frames[-1].t_ns <= clock()


def test_pictures_that_nobody_fetched_are_lost_and_counted_in_seq(tmp_path, clock):
    camera = LoopedClip(str(write_video(tmp_path / "c.avi", grey_steps(40), fps=50)), Faults())
    first = next(camera)
    clock.advance(LATE_NS / 1e9 + 0.2)
    second = next(camera)
    camera.close()
    assert second.seq - first.seq >= 20 and clock() - second.t_ns < LATE_NS
    assert (second.t_ns - first.t_ns) / 1e6 == pytest.approx(20 * (second.seq - first.seq), abs=0.1)


def test_faults_come_on_command_and_go(tmp_path, clock):
    faults = Faults()
    camera = LoopedClip(str(write_video(tmp_path / "c.avi", grey_steps(6))), faults)
    faults.obey("unplug 0.1")
    with pytest.raises(CameraLost):
        next(camera)
    clock.advance(0.11)
    faults.obey("stall 0.2")
    start_ns = clock()
    next(camera)
    assert 0.2 <= (clock() - start_ns) / 1e9 < 0.3
    camera.close()
    engine = FailingEngine(FakeEngine(), faults)
    faults.obey("engine 1 out of memory")
    with pytest.raises(EngineError, match="out of memory"):
        engine.stem(np.zeros((1, 5, 16, 16), np.float32))
    assert engine.stem(np.zeros((1, 5, 16, 16), np.float32)).shape == (1, 16, 5)


FELT = """
import sys, time
from edge.bench_child import Faults

def grow():
    return open(sys.argv[1], "wb", 0).write(b"x")

def take():
    return len(bytearray(200 << 20)) >> 20

def tried():
    try:
        return {"disk": grow, "memory": take}[sys.argv[2]]()
    except OSError as e:
        return e.errno
    except MemoryError:
        return "none"

faults, good = Faults(), tried()
for _ in range(20):
    begun_s = time.monotonic()
    faults.obey(sys.argv[2] + " 0.2")
    felt = tried()
    if felt != good or time.monotonic() - begun_s < 0.2:
        break
    time.sleep(0.3)  # the machine stalled until it was over
end_s = time.monotonic() + 20
while (after := tried()) != good and time.monotonic() < end_s:
    time.sleep(0.05)
print(felt, after)
"""


def test_a_full_disk_is_felt_by_files_and_passes(tmp_path):
    done = subprocess.run([sys.executable, "-c", FELT, str(tmp_path / "f"), "disk"], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.stdout.split() == [str(errno.EFBIG), "1"], done.stderr


def test_a_read_only_disk_is_read_and_nothing_else(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("here")
    code = """
import os, sys
from pathlib import Path
from edge.bench_child import Faults
kept = Path(sys.argv[1])
new, file = kept.with_name("new"), kept.open("ab", 0)
Faults().obey("readonly 60")
print(kept.read_text(), os.open("/dev/null", os.O_WRONLY) > 0)
for change in (lambda: kept.open("w"), lambda: new.open("w"), new.mkdir, kept.unlink, lambda: kept.rename(new),
               lambda: file.write(b"x")):
    try:
        change()
    except OSError as e:
        print(e.errno)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-uc", code, str(kept)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["here", "True", *[str(errno.EROFS)] * 5, str(errno.EFBIG)], done.stderr
    assert kept.read_text() == "here" and list(tmp_path.iterdir()) == [kept]


def test_memory_that_is_not_to_be_had_is_felt_and_passes():
    done = subprocess.run([sys.executable, "-c", FELT, "", "memory"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["none", "200"], done.stderr


def test_the_wall_clock_is_stepped_for_the_appliance_alone(tmp_path):
    clock = WallClock(tmp_path)
    code = ("import datetime, sys, time\nsys.stdin.readline()\nfor now in (time.time(), datetime.datetime.now().timestamp(),\n"
            "            time.mktime(time.localtime())):\n    print(now)\nprint(time.monotonic())\n")
    with subprocess.Popen([sys.executable, "-c", code], env=clock.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as child:
        clock.step(-3600)
        *walls, monotonic = map(float, child.communicate("go\n", 120)[0].split())
    assert [wall - time.time() for wall in walls] == pytest.approx([-3600] * 3, abs=10)
    assert monotonic == pytest.approx(time.monotonic(), abs=10)


def test_a_wall_clock_that_nobody_saw_step_is_no_result(tmp_path):
    log = Log(seconds=[{"wall": time.time()}])
    with pytest.raises(RunError, match=r"should be \+3600 s off and is [+-]\d"):
        _step(WallClock(tmp_path), 0.0, log)


def test_stages_are_timed_by_the_wall_and_handed_over_once():
    stages, start_s = TimedStages(), time.perf_counter()
    with stages.timed("wire"):
        time.sleep(0.02)
    passed_ms = 1e3 * (time.perf_counter() - start_s)
    taken = stages.take()
    assert 15 < taken["wire"][0] < passed_ms + 0.001 and stages.seconds["wire"] < 0.015 and stages.take() == {}


def test_the_loop_runs_in_its_process_and_a_killed_one_is_started_again(tmp_path):
    """The real student and Live on a small clip, for a few seconds; what went over the pty is what was told."""
    still = textured()
    clip = write_video(tmp_path / "c.avi", [picture(still, i / 30, 150.0, 45.0) for i in range(60)])
    killed = []

    def tell(text):
        if "first frame" in text:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            child = next(int(pid) for pid in children if b"bench_child" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(child, signal.SIGKILL)
            killed.append(child)

    for seconds in (6.0, 30.0):  # a busy machine takes longer
        folder = tmp_path / f"{seconds:.0f}"
        folder.mkdir()
        log = conduct(clip, {"camera.roi": "full"}, folder, seconds, [], seconds, tell)
        if len(log.first_ns) == 2 and log.seconds[-1]["frames"] > 20:
            break
    assert killed and log.exits[0] == (0, -signal.SIGKILL) and set(log.first_ns) == {0, 1}
    assert log.first_ns[1] - log.first_ns[0] < (seconds - 1) * 1e9
    assert len(log.sent) > 4 and log.seconds[-1]["frames"] > 20 and log.loads[-1][2].rss_mb > 50
    assert wrong_shown(log.shown, log.sent, [], log.end_ns // 1_000_000) == []
    assert {"preprocess", "wire"} <= set().union(*(line["stages"] for line in log.seconds))


# --- figures


def log_of(seconds=60, fault=None):
    """A run as a healthy appliance would report it: a frame each 1/30 s, a hop a second that leaves after 10 ms."""
    log = Log(spawned_ns=[0], first_ns={0: 400_000_000}, quiet_end_ns=seconds * 10**9, end_ns=seconds * 10**9)
    for s in range(1, seconds):
        t = s * 10**9
        log.seconds.append({"process": 0, "t": t, "frames": 30 * s, "missed": 0, "loop_cpu_s": 0.03 * s, "cpu_s": 0.2 * s,
                            "wait_ms": [0.5] * 30, "stages": {"stem": [3.0]}, "kept": 1, "lost": 0})
        log.said.append({"process": 0, "t": t + 10_000_000, "newest": t, "frame": t})
        log.said.append({"process": 0, "t": t + 510_000_000, "newest": t, "frame": None})
        log.hops.append({"process": 0, "t": t + 400_000_000, "hr": 150.0 if s >= 6 else None, "rr": 45.0 if s >= 11 else None})
    log.shown = [Shown(0, None, None, "WAITING", "", None), Shown(8_400, 1500, 450, "LIVE", "", 1)]
    log.faults = [fault] if fault else []
    return log


def test_figures_are_those_of_the_run():
    truth = Truth(np.array([150.0]), np.array([45.0]))
    found = live_figures(log_of(), truth, [])
    expected = {"launch_s": 0.4, "fps": 30, "dropped_frames": 0, "live_cpu_percent": 3, "live_cpu_decoding_percent": 20,
                "chain_ms_per_frame": 1, "first_hr_s": 6, "first_rr_s": 11, "first_hr_glass_s": 8.4, "wrong_shown": 0,
                "camera_to_wire_p99_ms": 10, "off_truth_percent": 0, "wire_lost": 0}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert live_figures(log_of(), Truth(np.array([100.0]), None), [])["off_truth_percent"] == pytest.approx(100)
    assert found["rss_peak_mb"] is None and found["fault_right_max_s"] is None


def test_latency_counts_only_what_left_while_nothing_was_wrong():
    fault = Fault("camera_stall", 30_000, 34_000, 1_500, 3_000, 6_000, ())
    log = log_of(fault=fault)
    for line in log.said:
        if 30e9 < line["t"] < 34e9 and line["frame"] is not None:
            line["t"] += 5_000_000_000
    assert live_figures(log, Truth(None, None), [])["camera_to_wire_p99_ms"] == pytest.approx(10)
    assert fault.over_ms == 40_000


def test_faults_are_summed_up_by_kind_and_one_never_recovered_counts():
    faults = [Fault("camera_unplug", 0, 4_000, 100, 9_000, 14_000, ("NO CAMERA",)),
              Fault("camera_unplug", 50_000, 54_000, 300, 8_000, 12_000, ("NO CAMERA", "LOW SIGNAL")),
              Fault("engine_error", 100_000, 100_000, None, None, None, ())]
    log = replace(log_of(), faults=faults)
    rows = fault_table(log, [])
    assert [(row["fault"], row["times"], row["not_recovered"]) for row in rows] == [
        ("camera_unplug", 2, 0), ("engine_error", 1, 1)]
    assert rows[0]["right_s"] == [0.2, 0.3] and rows[0]["back_s"] == [13.0, 14.0] and rows[1]["back_s"] is None
    assert rows[0]["said"] == ["NO CAMERA", "LOW SIGNAL"]
    found = fault_figures(log)
    assert found["faults_not_recovered"] == 1 and found["fault_right_max_s"] == 10 and found["fault_recovery_max_s"] == 14


def test_a_soak_ends_with_the_faults_that_end_the_process():
    plan = _until(time.monotonic() + 600)
    names = [name for name, _ in plan]
    assert names[-4:] == ["process_stop", "memory_full", "engine_memory", "process_kill"]
    assert set(FAULTS) - set(names) == {"clock_step"} and all(hold_s == FAULTS[name] for name, hold_s in plan)
    assert _until(time.monotonic() + 10) == []


def replayed(values, start=1):
    return {"timing": {"ms_per_frame": 0.6}, "readings": [
        {"t_s": float(start + i), "hr": hr, "rr": rr} for i, (hr, rr) in enumerate(values)]}


def test_a_clip_is_scored_against_the_truth_of_each_readings_own_window():
    rising = Truth(np.linspace(100, 160, 61), np.full(61, 40.0))  # one value a second
    result = replayed([(None, None)] * 19 + [(116.0, 40.0), (117.0, None), (140.0, 40.0)])
    row = score("c", rising, result)
    assert row["hr_error"] == pytest.approx((0.5 + 0.5 + 22.5) / 3, abs=0.05) and row["hr_wrong"] == 1
    assert row["rr_error"] == 0 and (row["hr_shown"], row["rr_shown"], row["hr_due"]) == (3, 2, 17)
    doll = score("doll", Truth(None, None), result)
    assert doll["hr_wrong"] == 3 and doll["hr_error"] is None
    figures = reference_figures([row, doll])
    assert figures["reference_coverage_percent"] == pytest.approx(100 * 5 / 28)
    assert figures["shown_without_body_percent"] == pytest.approx(100 * 5 / 28)


@pytest.mark.parametrize(("text", "known", "hr"), [
    ('{"hr_per_min": 150, "rr_per_min": null}', True, 150.0),
    ('{"hr_per_min": [149, 151, 150], "rr_per_min": 40}', True, 150.0),
    ('{"hr_per_min": [90, 200], "rr_per_min": 40, "fs_hz": 0.1}', True, None), ('{"rate": 1}', False, None)])
def test_the_truth_of_a_clip_is_read(tmp_path, text, known, hr):
    (tmp_path / "c.json").write_text(text)
    truth = truth_of(tmp_path / "c.avi")
    assert truth.known == known and truth.steady("hr") == hr


def test_a_clip_becomes_what_a_web_camera_gives_with_its_truth(tmp_path):
    still = textured()
    pictures = [picture(still, i / 30, 150.0, 45.0) for i in range(12)]
    clip = write_video(tmp_path / "c.avi", pictures)
    clip.with_suffix(".json").write_text('{"hr_per_min": 150, "rr_per_min": 45}')
    made = as_mjpeg(clip, lambda text: None)
    with open_camera(str(made)) as camera:
        frames = list(camera)
    assert [round(f.t_ns / 1e6) for f in frames] == [round(1000 * i / 30) for i in range(12)]
    assert np.abs(frames[7].bgr.mean(axis=(0, 1)) - pictures[7].mean(axis=(0, 1))).max() < 1.0
    assert truth_of(made).steady("hr") == 150.0


def test_a_truth_that_is_none_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"hr_per_min": "fast", "rr_per_min": 1}')
    with pytest.raises(ClipError, match=r"c\.json: expected hr_per_min"):
        truth_of(tmp_path / "c.avi")


def test_two_precisions_are_compared_reading_by_reading():
    found = compare(replayed([(150.0, 40.0), (150.0, None)]), replayed([(150.5, 40.0), (None, None)]))
    assert found == {"hr": [0.5], "rr": [0.0], "same": [True, True, False, True]}


# --- limits


def test_the_shipped_limits_hold_what_was_asked_for():
    limits = read_limits(bench.DEFAULT_LIMITS)
    asked = {"live_cpu_percent": 6, "file_cpu_ms_per_frame": 2.5, "rss_peak_mb": 150, "rss_slope_mb_per_h": 1, "launch_s": 1,
             "camera_to_wire_p99_ms": 100, "first_hr_s": 6, "first_rr_s": 12, "wrong_shown": 0}
    assert {name: limits[name].max for name in asked} == asked
    assert all(limits[name].required for name in ("wrong_shown", "rss_peak_mb", "first_hr_s"))


@pytest.mark.parametrize(("text", "message"), [
    ("[fsp]\nmin = 1", r"\[fsp\] is no figure; figures are fps"), ("[fps]\nmin = 1\nmax = 2", "either max or min"),
    ("[fps]\nrequired = true", "either max or min"), ("[fps]\nmin = 'x'", "min = 'x'"), ("[fps]\nmin = true", "min = True"),
    ("[fps]\nminimum = 3", "minimum = 3"), ("[fps", "cannot be read as TOML")])
def test_a_limits_file_that_limits_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(LimitError, match=message):
        read_limits(tmp_path / "l.toml")


@pytest.mark.parametrize(("value", "ok"), [(29.0, True), (28.9, False), (None, False), (math.nan, False)])
def test_a_required_figure_that_is_missing_breaks_its_limit(tmp_path, value, ok):
    (tmp_path / "l.toml").write_text("[fps]\nmin = 29\nrequired = true\n[gpu_percent]\nmax = 50")
    fps, gpu = verdicts(read_limits(tmp_path / "l.toml"), {"fps": value}, {"gpu_percent": "the board does not say"})
    assert fps.ok is ok and gpu.ok is None and gpu.reason == "the board does not say"


def test_a_run_is_worse_only_beyond_what_such_figures_vary_by():
    then = {"launch_s": 0.4, "fps": 30.0, "rss_peak_mb": 120.0, "wrong_shown": 0.0, "power_w": None}
    now = {"launch_s": 0.45, "fps": 28.0, "rss_peak_mb": 100.0, "wrong_shown": 1.0, "power_w": 5.0}
    by_name = {c.figure: c for c in changes(now, then, {})}
    assert [(n, c.worse, c.better) for n, c in by_name.items()] == [
        ("fps", True, False), ("rss_peak_mb", False, True), ("launch_s", False, False), ("wrong_shown", True, False)]
    assert by_name["fps"].ratio == pytest.approx(28 / 30) and by_name["wrong_shown"].ratio is None


# --- the command and its papers


@pytest.fixture
def result(monkeypatch):
    """A measured result without measuring: what `measure` returns."""
    log = log_of(fault=Fault("camera_unplug", 40_000, 44_000, 100, 9_000, 14_000, ("NO CAMERA",)))
    truth = Truth(np.array([150.0]), np.array([45.0]))
    found = live_figures(log, truth, []) | {"rss_peak_mb": 120.0}
    made = {"format": 1, "kind": bench.KIND, "machine": facts(), "why": {}, "slope_range": [None, None], "exits": [],
            "run": {"began_utc": "2026-01-01T00:00:00+00:00", "seconds": 60.0, "clip": "<b>.avi", "weights": "w",
                    "backend": "onnxruntime", "precision": "auto", "roi": "auto", "profile": "neonate"},
            "figures": {name: found.get(name) for name in FIGURES}, "stages": bench_figures.stage_table(log),
            "faults": fault_table(log, []), "wrong": [], "series": bench._series(log, truth), "precisions": [],
            "reference": [score("newborn", truth, replayed([(150.0, 45.0)] * 20))]}
    monkeypatch.setattr(bench, "measure", lambda *_: json.loads(json.dumps(made)))
    return made


def papers(tmp_path):
    out = {kind: tmp_path / f"out.{kind}" for kind in ("json", "junit", "html")}
    return out, [word for kind, path in out.items() for word in (f"--{kind}", str(path))]


def test_a_run_within_the_limits_passes_and_leaves_its_papers(result, tmp_path, capsys):
    out, words = papers(tmp_path)
    assert main(["bench", *words]) == 0
    read = json.loads(out["json"].read_text())
    assert read["verdict"] == "pass" and read["figures"]["fps"] == pytest.approx(30)
    assert "BROKEN" not in capsys.readouterr().out


def test_a_broken_limit_fails_the_run_the_case_and_the_page(result, tmp_path, capsys):
    result["figures"]["launch_s"] = 3.0
    out, words = papers(tmp_path)
    assert main(["bench", *words]) == 1
    assert "launch_s" in capsys.readouterr().out.partition("BROKEN")[0].splitlines()[-1]
    suite = ElementTree.parse(out["junit"]).getroot().find("testsuite")
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    assert failed == ["launch_s"] and suite.get("failures") == "1"
    assert int(suite.get("tests")) == len(list(suite.iter("testcase"))) == len(read_limits(bench.DEFAULT_LIMITS))
    assert "FAIL" in out["html"].read_text()


def test_an_earlier_run_is_compared_and_a_regression_fails(result, tmp_path, capsys):
    out, words = papers(tmp_path)
    main(["bench", *words])
    result["figures"]["live_cpu_percent"] = 5.5  # within the limit, but nearly twice of before
    assert main(["bench", "--against", str(out["json"])]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "WORSE" in line]
    assert len(lines) == 1 and lines[0].startswith("live_cpu_percent") and "x1.83" in lines[0]


def test_another_machine_is_not_compared_unless_told(result, tmp_path, capsys):
    out, words = papers(tmp_path)
    main(["bench", *words])
    old = json.loads(out["json"].read_text())
    old["machine"]["board"] = "NVIDIA Jetson AGX Thor"
    out["json"].write_text(json.dumps(old))
    assert main(["bench", "--against", str(out["json"])]) == 2
    assert "another machine (board: NVIDIA Jetson AGX Thor then" in capsys.readouterr().err
    assert main(["bench", "--against", str(out["json"]), "--other-machine"]) == 0


@pytest.mark.parametrize(("words", "message"), [
    (["--against", "nothing.json"], "nothing.json: cannot be read"), (["--limits", "nothing.toml"], "nothing.toml"),
    (["--minutes", "0"], "--minutes 0: expected 0.5"), (["--json", "no/folder.json"], "a folder that exists"),
    (["--faults", "earthquake:3"], "KIND one of camera_unplug")])
def test_what_cannot_be_done_is_refused_before_anything_is_measured(words, message, capsys):
    try:
        code = main(["bench", *words])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and message in err and "Traceback" not in err


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_says_everything(result, tmp_path):
    out, words = papers(tmp_path)
    main(["bench", *words])
    source = out["html"].read_text()
    page = _Page()
    page.feed(source)
    text = " ".join(page.text)
    assert not page.links and "script" not in page.tags and "http" not in source and "nan" not in source.lower()
    assert page.tags.count("svg") >= 6 and "b" not in page.tags  # the clip's name is text, not markup
    for word in ("PASS", "camera_to_wire_p99_ms", "camera_unplug", "newborn", "Signature", "NO CAMERA", "capture wait"):
        assert word in text


def test_a_busy_machine_is_said_on_the_page(result, tmp_path):
    result["figures"]["load_of_others_percent"] = 150.0
    out, words = papers(tmp_path)
    main(["bench", *words])
    assert "Measure again on an idle machine" in out["html"].read_text()


def test_the_plan_of_faults_is_read():
    assert bench._plan("camera_unplug:2,process_kill, process_stop:1@30,disk_full@5.5") == [
        ("camera_unplug", 4.0), ("camera_unplug", 4.0), ("process_kill", 0.0), ("process_stop", 30.0), ("disk_full", 5.5)]
    for text in ("camera_unplug:x", "camera:1", "camera_unplug@", "camera_unplug@-4", "camera_unplug@3", "disk_full@1e9", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected"):
            bench._plan(text)


def test_percentiles_of_nothing_are_nothing():
    assert percentiles([]) is None and percentiles([1.0, 2.0, 3.0])["p50"] == 2.0


def test_junit_escapes_what_xml_may_not_hold(result):
    made = result | {"limits": [{"figure": "fps", "limit": "≥ 29", "value": 1.0, "ok": False, "reason": 'a "<&>'}],
                     "changes": [{"figure": "fps", "then": 30.0, "now": 1.0, "ratio": 0.03, "worse": True, "better": False}],
                     "verdict": "fail"}
    suite = ElementTree.fromstring(junit(made)).find("testsuite")
    assert [case.find("failure").get("message") for case in suite.iter("testcase")] == [
        'fps 1 /s, limit ≥ 29 (a "<&>)', "fps 1 /s, was 30"]
    assert "ratio" in html(made)


@pytest.mark.soak
def test_every_fault_leaves_the_glass_right_and_is_recovered_from(tmp_path):
    """The whole command on a rendered newborn: each kind of fault twice, about eight minutes."""
    plan = ",".join(f"{name}:2" for name in FAULTS)
    code = main(["bench", "--live-only", "--faults", plan, "--json", str(tmp_path / "out.json")])
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["figures"]["wrong_shown"] == 0 and read["figures"]["faults_not_recovered"] == 0, read["faults"]
    assert code in (0, 1)  # figures of time are this machine's affair
