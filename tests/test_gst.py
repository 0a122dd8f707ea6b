"""`csi:` and `gst:` cameras: rules over a scripted pipeline; the Jetson's own pipeline over stand-in elements, where GStreamer
is installed."""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge import gst, gst_library, gst_pipeline
from edge.camera import CameraError, CameraLost, CaptureThread, open_camera
from edge.gst import GstCamera
from edge.gst_library import PipelineError
from edge.gst_pipeline import Mark, Marks, Pipeline, Sample
from edge.records import Frame
from tests.supervised import until

HERE = Path(__file__).resolve().parent
NOW_NS = 10**14
"""By the clock of scripted cameras."""

# ---- marks


def test_marks_are_found_by_their_time_and_those_of_dropped_pictures_forgotten():
    marks = Marks()
    for i in range(6):
        marks.put(Mark(100 * i, i, None))
    assert marks.take(100).number == 1  # 0 was dropped on the way
    assert marks.take(150) is None  # the source never had it
    assert marks.take(200).number == 2 and marks.take(500).number == 5 and marks.take(500) is None


def test_marks_do_not_pile_up_while_nobody_reads():
    marks = Marks()
    for i in range(10_000):
        marks.put(Mark(i, i, None))
    assert marks.take(0) is None and marks.take(9_999).number == 9_999


# ---- the camera over a scripted pipeline


class ScriptedPipeline:
    """Plays samples; an exception among them is raised, None is a slice without a picture. Ends with `ended`."""

    cam: int | None = 1
    live = True
    switches: dict[str, bool | None]

    def __init__(self, description: str) -> None:
        self.script: Iterator[Sample | PipelineError | None] = iter(())
        self.ended = False
        self.closed = 0
        self.switches = {"aelock": True, "awblock": True}
        self.sets: list[tuple[str, str]] = []

    def start(self) -> None: ...

    def pull(self, timeout_s: float) -> Sample | None:
        step = next(self.script, None)
        if isinstance(step, PipelineError):
            raise step
        return step

    def set(self, element: int | None, key: str, value: str) -> bool | None:
        self.sets.append((key, value))
        answer = self.switches[key]
        return None if answer is None else answer and value == "true"

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def scripted(monkeypatch):
    """Makes a csi: camera that plays a list; its slices of waiting take no time, and its clock stands at NOW_NS."""
    monkeypatch.setattr(gst, "Pipeline", ScriptedPipeline)
    monkeypatch.setattr(gst, "time", SimpleNamespace(monotonic=time.monotonic, monotonic_ns=lambda: NOW_NS))
    monkeypatch.setattr(gst, "_SLICE_S", 0.001)
    monkeypatch.setattr(gst, "STALL_S", 0.2)
    monkeypatch.setattr(gst, "FIRST_FRAME_S", 0.1)

    def make(script, argus: tuple[int, int] | None = (6, 4)) -> GstCamera:
        camera = GstCamera("csi:0", "-", argus)
        camera._pipeline.script = iter(script)
        return camera

    return make


def sample(number: int | None, sensor_ns: int | None, arrived_ns: int | None = None, size=(6, 4)) -> Sample:
    mark = None if number is None else Mark(0, number, sensor_ns)
    return Sample(np.zeros((size[1], size[0], 3), np.uint8), arrived_ns, mark, 30.0)


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.seq for frame in frames]


def take(camera: GstCamera, count: int) -> list[Frame]:
    return list(itertools.islice(camera, count))


def test_a_frame_has_the_sensors_time_and_not_that_of_its_arrival(scripted):
    now = NOW_NS
    camera = scripted([sample(7, now - 60_000_000, now), sample(8, now - 26_000_000, now + 40_000_000)])
    assert [frame.t_ns for frame in take(camera, 2)] == [now - 60_000_000, now - 26_000_000]
    assert camera.sensor_clock and camera.notes() == ("times: the sensor's",)


@pytest.mark.parametrize("offset_s", [-3600.0, -6.0, 0.2, 3600.0, None])
def test_a_sensor_on_another_clock_is_not_believed_and_that_is_said_once(scripted, caplog, offset_s):
    now = NOW_NS
    other = None if offset_s is None else now + round(offset_s * 1e9)
    camera = scripted([sample(i, None if other is None else other + i, now + i) for i in range(3)])
    assert [frame.t_ns for frame in take(camera, 3)] == [now, now + 1, now + 2]
    assert not camera.sensor_clock and caplog.text.count("times: of arrival") == 1


def test_one_frame_without_the_sensors_time_is_left_out_and_not_timed_by_another_clock(scripted):
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now, 1), sample(1, None, now + 1), sample(2, now + 2, 1)])
    assert numbers(take(camera, 2)) == [0, 2] and camera.bad_stamps == 1 and camera.lost == 0


def test_a_time_that_repeats_or_lies_ahead_of_now_is_left_out(scripted):
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now), sample(1, now), sample(2, now + 10**10), sample(3, now + 3)])
    assert numbers(take(camera, 2)) == [0, 3] and camera.bad_stamps == 2


def test_a_clock_that_has_stopped_is_a_lost_camera(scripted):
    now = NOW_NS
    camera = scripted([sample(i, now) for i in range(40)])
    next(camera)
    with pytest.raises(CameraLost, match="30 pictures in a row without a time that rises"):
        next(camera)


def test_pictures_without_any_time_are_refused(scripted):
    camera = scripted([sample(0, None, None)])
    with pytest.raises(CameraLost, match="without times; add do-timestamp=true"):
        next(camera)


def test_missing_numbers_are_lost_frames_and_steps_in_seq(scripted):
    now = NOW_NS - 10**9
    camera = scripted([sample(number, now + i) for i, number in enumerate([100, 101, 104, 105, 110])])
    assert numbers(take(camera, 5)) == [0, 1, 4, 5, 10] and camera.lost == 6


@pytest.mark.parametrize("restart", [3, 10**9])
def test_a_source_that_counts_anew_loses_nothing(scripted, restart):
    now = NOW_NS - 10**9
    camera = scripted([sample(number, now + i) for i, number in enumerate([100, 101, restart, restart + 2])])
    assert numbers(take(camera, 4)) == [0, 1, 2, 4] and camera.lost == 1


def test_a_picture_of_another_size_is_a_lost_camera(scripted):
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now), sample(1, now + 1, size=(8, 4))])
    next(camera)
    with pytest.raises(CameraLost, match="changes from 6x4 to 8x4"):
        next(camera)


def test_a_silent_source_is_told_and_then_lost(scripted, caplog, monkeypatch):
    monkeypatch.setattr(gst, "_STILL_S", 0.01)
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now), *[None] * 1000])
    assert numbers(take(camera, 1)) == [0] and caplog.text == ""
    with pytest.raises(CameraLost, match="no picture for 0.2 s; sudo systemctl restart nvargus-daemon"):
        next(camera)
    assert caplog.text.count("no picture for 0.1 s") == 1  # two intervals of 30 per second


def test_a_short_silence_is_no_loss(scripted, caplog, monkeypatch):
    monkeypatch.setattr(gst, "_STILL_S", 0.01)
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now), *[None] * 100, sample(1, now + 1)])
    assert numbers(take(camera, 2)) == [0, 1]
    assert "pictures come again after" in caplog.text


def test_a_process_that_stood_still_does_not_blame_the_camera(scripted, monkeypatch):
    now = NOW_NS - 10**9
    camera = scripted([sample(0, now), None, None, sample(1, now + 1)])
    next(camera)
    leaps = itertools.count(1000.0, 30.0)  # each look at the clock is half a minute later
    monkeypatch.setattr(gst, "time", SimpleNamespace(monotonic=lambda: next(leaps), monotonic_ns=lambda: NOW_NS))
    assert next(camera).seq == 1


def test_exposure_and_white_balance_are_locked_after_settling(scripted):
    first = NOW_NS - 4_900_000_000
    camera = scripted([sample(i, first + i * 100_000_000) for i in range(40)])
    assert camera._pipeline.sets == [("aelock", "false"), ("awblock", "false")]
    camera._pipeline.sets.clear()
    take(camera, 25)  # the last at 2.4 s
    assert camera.settling and camera._pipeline.sets == []
    next(camera)
    assert camera.settling and camera._pipeline.sets == [("aelock", "true"), ("awblock", "true")]
    take(camera, 2)
    assert camera.settling  # what was under way was still taken before the lock
    take(camera, 10)
    assert not camera.settling and len(camera._pipeline.sets) == 2
    assert camera.notes()[1:] == ("locked: auto exposure", "locked: white balance")


def test_a_lock_that_is_lacking_or_refused_is_told(scripted, caplog):
    first = NOW_NS - 4_900_000_000
    camera = scripted([sample(i, first + i * 900_000_000) for i in range(5)])
    camera._pipeline.switches.update(aelock=None, awblock=False)
    take(camera, 5)
    assert camera.notes()[1].startswith("lacking: the camera has no lock for auto exposure")
    assert camera.notes()[2].startswith("refused: white balance: awblock was set and reads back as not set")
    assert not camera.settling


def test_a_pipeline_without_automatisms_is_settled_at_once(scripted, monkeypatch):
    monkeypatch.setattr(ScriptedPipeline, "set", lambda self, element, key, value: None)
    monkeypatch.setattr(ScriptedPipeline, "pull", lambda self, timeout_s: sample(0, None, NOW_NS))
    camera = scripted([], argus=None)
    assert not camera.settling and (camera.width, camera.height) == (6, 4) and camera.notes() == ()


def test_a_driver_that_does_not_stop_is_logged_and_the_process_gets_on(scripted, monkeypatch, caplog):
    def hang(self) -> None:
        raise PipelineError("the driver has hung for 3 s")

    camera = scripted([])
    monkeypatch.setattr(ScriptedPipeline, "close", hang)
    camera.close()
    assert "does not close: the driver has hung for 3 s; sudo systemctl restart nvargus-daemon" in caplog.text


def test_without_gstreamer_the_error_names_the_packages(monkeypatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(gst_pipeline, "library", gst_library.Gst)
    monkeypatch.setattr(gst_library.c, "CDLL", missing)
    for spec in ("csi:0", "gst:videotestsrc"):
        with pytest.raises(CameraError, match="apt-get install libgstreamer1.0-0 libgstreamer-plugins-base1.0-0"):
            open_camera(spec)


# ---- GStreamer itself


@pytest.fixture(scope="module")
def gstreamer() -> None:
    try:
        gst_library.library()
    except PipelineError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def test_source(gstreamer) -> None:
    try:
        Pipeline("videotestsrc ! videoconvert ! appsink name=sink").close()
    except PipelineError as error:
        pytest.skip(f"no videotestsrc here: {error}; sudo apt-get install gstreamer1.0-plugins-base")


def headers() -> list[str]:
    """Flags for the compiler; skips where GStreamer cannot be compiled against."""
    for tool in ("gcc", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here to build the stand-in elements")
    asked = subprocess.run(["pkg-config", "--cflags", "--libs", "gstreamer-video-1.0"], capture_output=True, text=True)
    if asked.returncode:
        pytest.skip("no headers of GStreamer here; sudo apt-get install libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev")
    return asked.stdout.split()


@pytest.fixture(scope="module")
def plugin(gstreamer, tmp_path_factory) -> Path:
    """The folder of the stand-in elements, which this process's GStreamer knows from here on."""
    try:
        Pipeline("nvarguscamerasrc ! appsink name=sink").close()
        pytest.skip("this is a Jetson with elements of its own")
    except PipelineError:
        pass
    folder = tmp_path_factory.mktemp("fakeargus")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", str(HERE / "fakeargus/fakeargus.c"), "-o",
                    str(folder / "libgstfakeargus.so"), *headers()], check=True, timeout=300)
    library = ctypes.CDLL("libgstreamer-1.0.so.0")
    library.gst_registry_get.restype = ctypes.c_void_p
    library.gst_registry_scan_path.argtypes = ctypes.c_void_p, ctypes.c_char_p
    library.gst_registry_scan_path(library.gst_registry_get(), str(folder).encode())
    return folder


@pytest.fixture
def argus(plugin, monkeypatch, tmp_path):
    """Opens a csi: camera over the stand-in that behaves as asked; closes it at the end."""
    monkeypatch.setenv("FAKEARGUS_LOG", str(tmp_path / "log"))
    opened: list[GstCamera] = []

    def make(behaviour: str = "", spec: str = "0,160x120@60") -> GstCamera:
        # between cameras only: GStreamer's threads read the environment
        monkeypatch.setenv("FAKEARGUS", behaviour)
        opened.append(open_camera(f"csi:{spec}"))
        return opened[-1]

    yield make
    for camera in opened:
        camera.close()


def passed(camera: GstCamera, count: int) -> bool:
    """Waits until the source has given so many pictures in all, whoever took them."""
    return until(lambda: camera._pipeline._arrived >= count, 30.0, pause_s=0.01)


def steps_ns(frames: list[Frame]) -> np.ndarray:
    return np.diff([frame.t_ns for frame in frames])


def pictured(frame: Frame) -> int:
    """The frame number (modulo 50) that the stand-in painted; two counts are the converter's own."""
    return round((float(frame.bgr[0, 0, 0]) * 219 / 255 + 16 - 30 + 1) / 4)


def same_pictures(frames: list[Frame]) -> bool:
    """Whether the numbers in the pictures step as the frames' own do: each time belongs to its picture."""
    return all((pictured(b) - pictured(a)) % 50 == (b.seq - a.seq) % 50 for a, b in itertools.pairwise(frames))


def set_in(log: Path, name: str) -> list[tuple[str, int]]:
    """[(value, frames delivered before)] of one property."""
    rows = [line.split() for line in log.read_text().splitlines()]
    return [(row[2].strip('"'), int(row[-1])) for row in rows if row[1] == name]


def test_the_structures_are_those_of_the_headers(gstreamer, tmp_path):
    names = {"MiniObject": "GstMiniObject", "Buffer": "GstBuffer", "MapInfo": "GstMapInfo", "Error": "GError"}
    kinds = {f"sizeof({names[kind.__name__]})": size for kind, size in gst_library.SIZES.items() if kind.__name__ in names}
    read = {gst_library.Buffer: ("GstBuffer", "pts offset offset_end"), gst_library.MapInfo: ("GstMapInfo", "data size"),
            gst_library.VideoMeta: ("GstVideoMeta", "offset stride"), gst_library.Error: ("GError", "message")}
    kinds |= {f"offsetof({name}, {field})": getattr(kind, field).offset
              for kind, (name, fields) in read.items() for field in fields.split()}
    source = tmp_path / "sizes.c"
    source.write_text("#include <gst/video/video.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n"
                      + "".join(f'  printf("%zu\\n", (size_t){kind});\n' for kind in kinds) + "}\n")
    subprocess.run(["gcc", str(source), "-o", str(tmp_path / "sizes"), *headers()], check=True, timeout=300)
    told = subprocess.run([str(tmp_path / "sizes")], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(kinds, map(int, told), strict=True)) == kinds


def test_the_jetsons_pipeline_gives_exact_times_out_of_jittered_arrivals(argus):
    before_ns = time.monotonic_ns()
    camera = argus("latency_ms=20,jitter_ms=12", "0,1280x720@60")
    assert (camera.width, camera.height, camera.live, camera.recorded) == (640, 360, True, False)
    frames, arrivals = [], []

    def jittered() -> bool:
        """Of thirty more; not so while the stand-in makes up for a stall of this machine."""
        for frame in itertools.islice(camera, 30):
            frames.append(frame)
            arrivals.append(time.monotonic_ns())
        return np.diff(arrivals[-30:]).std() > 2e6

    assert any(jittered() for _ in range(10))
    steps = np.diff(numbers(frames))
    assert np.abs(steps_ns(frames) - steps * 1e9 / 60).max() < 1000
    lateness = np.array(arrivals) - [frame.t_ns for frame in frames]
    assert lateness.min() > 19e6 and frames[0].t_ns > before_ns
    assert same_pictures(frames)
    assert camera.fps_nominal == 60 and "times: the sensor's" in camera.notes()


def test_what_argus_is_told(argus, tmp_path):
    take(argus("", "3,160x120@60,mode=2,exposure=10,gain=2:4"), 1)
    log = tmp_path / "log"
    for name, value in (("sensor-id", "3"), ("sensor-mode", "2"), ("tnr-mode", "0"), ("ee-mode", "0"), ("aeantibanding", "0"),
                        ("wbmode", "1"), ("aelock", "FALSE"), ("awblock", "FALSE")):
        assert {told for told, _ in set_in(log, name)} == {value}, name
    assert '"10000000 10000000"' in log.read_text() and '"2 4"' in log.read_text()


def test_the_sensor_settles_and_is_then_locked_while_it_runs(argus, tmp_path, monkeypatch):
    monkeypatch.setattr(gst, "SETTLE_S", 0.5)
    camera = argus("")
    seen = []  # frames until it has settled, and whether it was locked by then
    while camera.settling and len(seen) < 300:
        seen.append((next(camera), len(camera.notes()) > 1))
    age_s = [(frame.t_ns - seen[0][0].t_ns) / 1e9 for frame, _ in seen]
    first_locked = [locked for _, locked in seen].index(True)
    assert age_s[first_locked - 1] < 0.5 <= age_s[first_locked]
    assert age_s[-2] < age_s[first_locked] + 0.3 <= age_s[-1] and not camera.settling
    for name in ("aelock", "awblock"):
        told = set_in(tmp_path / "log", name)
        assert told[-1][0] == "TRUE" and [value for value, _ in told[:-1]] == ["FALSE"] * (len(told) - 1)
        assert told[-1][1] > seen[first_locked][0].seq >= 25  # half a second of frames had been delivered, and they go on:
    assert len(take(camera, 10)) == 10
    assert camera.notes()[-2:] == ("locked: auto exposure", "locked: white balance")


def test_frames_that_the_sensor_drops_are_counted(argus):
    camera = argus("drop_every=5")
    frames = take(camera, 40)
    assert camera.lost >= 8 and camera.lost == frames[-1].seq - frames[0].seq + 1 - 40
    assert all(pictured(frame) % 5 for frame in frames)
    assert np.abs(steps_ns(frames) - np.diff(numbers(frames)) * 1e9 / 60).max() < 1000


def test_frames_that_a_late_reader_loses_are_counted(argus):
    camera = argus("", "0,160x120@120")
    first = next(camera)
    assert passed(camera, 40)  # of which the sink keeps 4
    frames = take(camera, 10)
    assert camera.lost >= 20
    assert same_pictures([first, *frames])


def test_the_threads_drops_and_the_cameras_add_up(argus):
    with CaptureThread(argus("drop_every=7", "0,160x120@120"), depth=4) as capture:
        first = capture.get(20.0)
        assert until(lambda: capture.dropped > 10, 30.0)
        frames = [capture.get(20.0) for _ in range(30)]
        assert capture.dropped > 10
        assert capture.missed == frames[-1].seq - first.seq - 30
        # the ring may have dropped more since, never fewer
        assert capture.missed <= capture.dropped + capture.camera.lost + capture.camera.bad_stamps


@pytest.mark.parametrize(("behaviour", "why"), [("clock_s=100", "its clock is not the monotonic one"),
                                                ("no_meta=1", "it gives none of its own")])
def test_without_the_sensors_clock_the_arrival_is_taken(argus, behaviour, why):
    camera = argus(behaviour)
    before = time.monotonic_ns()
    frames = take(camera, 10)
    assert not camera.sensor_clock and why in camera.notes()[0]
    assert before - 0.5e9 < frames[0].t_ns < frames[-1].t_ns < time.monotonic_ns()
    # a busy machine makes arrivals uneven, but not all the time
    assert any(np.median(steps_ns(take(camera, 10))) == pytest.approx(1e9 / 60, rel=0.3) for _ in range(30))


def test_single_frames_without_metadata_are_left_out(argus):
    for _ in range(5):
        camera = argus("no_meta=5")
        frames = [next(camera)]
        if camera.sensor_clock:  # a reader that is late meets one without metadata first
            break
    while camera.bad_stamps < 3 and len(frames) < 300:
        frames.append(next(camera))
    assert camera.bad_stamps >= 3 and camera.sensor_clock and all(pictured(frame) % 5 for frame in frames)
    assert len(frames) + camera.bad_stamps + camera.lost == frames[-1].seq + 1


def test_rows_longer_than_the_picture_are_not_taken_for_pixels(argus):
    frame = take(argus("pad=64"), 1)[0]
    assert np.ptp(frame.bgr[:100].astype(int), axis=(0, 1)).max() == 0  # grey all over, but the last rows are red
    assert frame.bgr[-1, :, 2].min() > frame.bgr[0, 0, 2] + 50


def test_an_error_comes_after_the_frames_before_it_in_gstreamers_words(argus):
    def all_frames_before_it() -> bool:
        """Not so where this machine stalls and the sink drops some."""
        frames = []
        with pytest.raises(CameraLost, match="csi:0,160x120@60: Failed to create CaptureSession; sudo systemctl restart nvar"):
            for frame in argus("fail_after=10"):
                frames.append(frame)
        assert pictured(frames[-1]) == 10
        return len(frames) == 10

    assert any(all_frames_before_it() for _ in range(5))


def test_frames_that_wait_when_the_error_comes_are_still_handed_over(argus):
    camera = argus("fail_after=10")
    frames = [next(camera)]
    assert passed(camera, 10)
    time.sleep(0.1)  # and the error comes
    with pytest.raises(CameraLost, match="Failed to create CaptureSession"):
        frames.extend(camera)
    assert len(frames) >= 4 and pictured(frames[-1]) == 10


def test_the_end_of_a_live_stream_is_a_lost_camera(argus):
    camera = argus("eos_after=3")
    with pytest.raises(CameraLost, match="the stream has ended"):
        list(camera)


def test_no_camera_as_an_error(argus):
    with pytest.raises(CameraError, match="No cameras available; check the ribbon cable"):
        argus("nocam=1")


def test_no_camera_as_an_empty_stream(argus):
    with pytest.raises(CameraError, match="no cameras available.*check the ribbon cable"):
        next(argus("nocam=2"))


def test_a_stall_is_no_frame_then_a_lost_camera_and_a_new_opening_recovers(argus, monkeypatch, caplog):
    monkeypatch.setattr(gst, "STALL_S", 1.6)
    with CaptureThread(argus("stall_after=5")) as capture:
        for _ in range(5):
            if pictured(capture.get(30.0)) == 5:  # the first may be dropped where this machine stalls
                break
        assert capture.get(0.5) is None and not capture.ended and caplog.text == ""
        assert until(lambda: "no picture for 1.1 s" in caplog.text, 30.0)
        with pytest.raises(CameraLost, match="no picture for 1.6 s; sudo systemctl restart nvargus-daemon"):
            capture.get(30.0)
    again = argus("")
    assert len(take(again, 5)) == 5


def test_a_stall_that_ends_loses_nothing_but_its_frames(argus):
    def only_its_frames() -> bool:
        """Not so where this machine stalls too."""
        camera = argus("stall_after=5,stall_s=0.5")
        frames = take(camera, 10)
        assert max(np.diff(numbers(frames))) > 25 and len(frames) + camera.lost == frames[-1].seq + 1
        assert np.abs(steps_ns(frames) - np.diff(numbers(frames)) * 1e9 / 60).max() < 1000 and same_pictures(frames)
        return numbers(frames[:5]) == [0, 1, 2, 3, 4] and camera.lost <= 45

    assert any(only_its_frames() for _ in range(5))


def test_closing_does_not_wait_for_a_camera_that_is_silent(argus, monkeypatch):
    monkeypatch.setattr(gst, "STALL_S", 60.0)
    capture = CaptureThread(argus("stall_after=2"))
    assert [capture.get(20.0).seq, capture.get(20.0).seq] == [0, 1]
    start = time.monotonic()
    capture.close(30.0)
    assert time.monotonic() - start < 10.0 and capture.ended


def all_stopped(log: Path) -> bool:
    """Waits until the stand-in has been stopped as often as it was started."""
    return until(lambda: log.read_text().count("camera stop") == log.read_text().count("camera start"), 20.0)


def test_a_driver_that_hangs_when_started_is_refused_in_time_and_cleaned_up_later(argus, monkeypatch, tmp_path):
    monkeypatch.setattr(gst_pipeline, "START_S", 0.2)

    def refused_in_time() -> bool:
        start = time.monotonic()
        try:
            argus("hang_start_s=0.6").close()
        except CameraError as error:
            said = "the driver has hung for 0.2 s; sudo systemctl restart nvargus-daemon" in str(error)
            return said and time.monotonic() - start < 0.5
        return False  # as where this machine stalls until the driver hangs no more

    assert any(refused_in_time() for _ in range(5))
    assert "camera start" in (tmp_path / "log").read_text() and all_stopped(tmp_path / "log")


def test_a_driver_that_hangs_when_stopped_does_not_hold_up_the_process(argus, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(gst_pipeline, "STOP_S", 0.2)

    def closed_in_time() -> bool:
        caplog.clear()
        camera = argus("hang_stop_s=0.6")
        next(camera)
        start = time.monotonic()
        camera.close()
        passed_s = time.monotonic() - start
        camera.close()  # harmless
        return passed_s < 0.5 and "does not close: the driver has hung for 0.2 s" in caplog.text

    assert any(closed_in_time() for _ in range(5))
    assert all_stopped(tmp_path / "log")


CYCLES = """
import gc, itertools, sys
from ctypes import CDLL
from edge.camera import CameraError, open_camera

def kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

for i in range(int(sys.argv[1])):
    with open_camera("csi:0,160x120@240") as camera:
        assert len(list(itertools.islice(camera, 2))) == 2
    for wrong in ("nosuch ! appsink name=sink", "fakesrc ! identity name=sink"):
        try:
            open_camera("gst:" + wrong)
        except CameraError:
            pass
    if i == 20:
        before = kib()
print(kib() - before if int(sys.argv[1]) > 20 else 0)
CDLL("libgstreamer-1.0.so.0").gst_deinit()
"""


def cycles(plugin: Path, count: int, tracer: str = "") -> tuple[int, str]:
    """(growth of the resident memory since the 20th cycle in KiB, GStreamer's own account of what is alive at the end)."""
    environment = os.environ | {"GST_PLUGIN_PATH": str(plugin), "FAKEARGUS": "latency_ms=0", "PYTHONPATH": str(HERE.parent)}
    if tracer:
        environment |= {"GST_TRACERS": tracer, "GST_DEBUG": "GST_TRACER:7", "GST_DEBUG_NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", CYCLES, str(count)], env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


def test_a_hundred_openings_leave_no_memory_behind(plugin):
    grown_kib, _ = cycles(plugin, 100)
    assert grown_kib < 1024


def test_gstreamer_itself_finds_nothing_alive_after_closing(plugin):
    _, told = cycles(plugin, 5, tracer="leaks")
    assert re.findall(r"object-alive, type-name=\(string\)(\w+)", told) == []


# ---- any pipeline


def test_a_live_test_source_has_times_on_the_monotonic_clock_and_numbers(test_source):
    before = time.monotonic_ns()
    with open_camera("gst:videotestsrc is-live=true ! video/x-raw,format=NV12,width=64,height=48,framerate=60/1") as camera:
        assert (camera.width, camera.height, camera.live, camera.recorded, camera.settling) == (64, 48, True, False, False)
        first = next(camera)
        assert passed(camera, 20)
        frames = [first, *take(camera, 10)]
    assert before < frames[0].t_ns and frames[-1].t_ns < time.monotonic_ns() + 1e8
    assert camera.lost >= 8
    assert np.abs(steps_ns(frames) - np.diff(numbers(frames)) * 1e9 / 60).max() < 1000
    assert camera.fps_nominal == 60


def test_drops_show_also_where_buffers_carry_no_numbers(test_source):
    # an encoder and a decoder lose the numbers of the source
    with open_camera("gst:videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=60/1 ! jpegenc ! jpegdec"
                     ) as camera:
        first = next(camera)
        assert passed(camera, 20)
        frames = [first, *take(camera, 5)]
    assert camera.lost >= 8
    assert np.abs(steps_ns(frames) - np.diff(numbers(frames)) * 1e9 / 60).max() < 1e6


def test_a_source_that_is_not_live_is_a_recording_at_its_own_pace_that_ends(test_source):
    start = time.monotonic()
    with open_camera("gst:videotestsrc num-buffers=21 ! video/x-raw,width=64,height=48,framerate=40/1") as camera:
        assert camera.recorded and camera.live
        frames = list(camera)
        assert 0.45 < time.monotonic() - start < 10.0
    assert len(frames) == 20 and camera.lost == 0 and np.allclose(steps_ns(frames), 25e6, atol=1000)


@pytest.mark.parametrize("pixels", ["BGRx", "BGRA", "BGR", "RGBx", "RGBA", "RGB"])
def test_colours_arrive_as_bgr_whatever_the_format(test_source, pixels):
    # 30 px across: rows of three bytes a pixel are filled up to a multiple of four
    with open_camera(f"gst:videotestsrc is-live=true pattern=red ! video/x-raw,format={pixels},width=30,height=20,"
                     "framerate=60/1 ! appsink name=sink") as camera:
        frame = next(camera)
    assert frame.bgr.shape == (20, 30, 3) and frame.bgr.flags.c_contiguous
    assert np.all(frame.bgr == [0, 0, 255])


def test_grey_becomes_three_equal_channels(test_source):
    with open_camera("gst:videotestsrc is-live=true pattern=white ! video/x-raw,format=GRAY8,width=30,height=20 ! "
                     "appsink name=sink") as camera:
        assert np.all(next(camera).bgr == 235)  # of grey, GStreamer has the television's range alone


@pytest.mark.parametrize(("pipeline", "message"), [
    ("nosuch ! appsink name=sink", 'no element "nosuch"; check its name with gst-inspect-1.0'),
    ("bin.( videotestsrc ! appsink name=sink )", "expected elements joined by !"),
    ("videotestsrc nosuch=1", 'no property "nosuch"'),
    ("videotestsrc ! identity name=sink ! appsink name=other name=sink", "no appsink named sink|expected"),
    ("videotestsrc ! video/x-raw,format=I420 ! appsink name=sink", "pictures arrive as I420, expected one of BGRx"),
    ("filesrc location=/nonexistent ! decodebin", "Could not open file|Resource not found"),
    ("videotestsrc num-buffers=0", "the stream ends before its first picture"),
    ("v4l2src device=/dev/video97", "Cannot identify device|no element"),
])
def test_a_pipeline_that_cannot_be_played_is_refused(test_source, pipeline, message):
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(f"gst:{pipeline}")
    assert str(caught.value).startswith(f"gst:{pipeline}: ")


def test_what_has_no_format_is_refused_without_a_word_of_gstreamers_own(test_source, capfd):
    with pytest.raises(CameraError, match="pictures arrive without a format; put videoconvert"):
        open_camera("gst:fakesrc ! appsink name=sink")
    assert capfd.readouterr().err == ""


def test_an_error_on_the_way_is_a_lost_camera(test_source):
    with open_camera("gst:videotestsrc is-live=true ! video/x-raw,framerate=60/1 ! identity error-after=8 ! videoconvert"
                     ) as camera, pytest.raises(CameraLost, match="gst-launch-1.0"):
        list(camera)


def test_logs_of_a_sound_run_are_free_of_warnings(argus, caplog):
    with caplog.at_level(logging.WARNING):
        take(argus(""), 20)
    assert caplog.text == ""
