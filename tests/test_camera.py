from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge.camera import Camera, CameraError, CameraLost, CaptureThread, open_camera
from edge.records import Frame
from tests.videos import container_times_s, grey_steps, write_timed_video, write_video

# 10 to 100 ms between frames, a hole of 400 ms included; whole milliseconds, which Matroska holds exactly
UNEVEN_S = [0.0, *np.cumsum(np.random.default_rng(1).choice([10, 20, 33, 34, 50, 100, 400], 39)) / 1000.0]


def even_s(count: int) -> list[float]:
    return [i / 30 for i in range(count)]


def read_all(path: Path | str, **options: bool) -> list[Frame]:
    with open_camera(str(path), **options) as camera:
        return list(camera)


def times_s(frames: list[Frame]) -> list[float]:
    return [frame.t_ns / 1e9 for frame in frames]


# ---- times


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "time_base", "b_frames"),
    [
        ("ffv1.mkv", "ffv1", "bgr0", 1000, 0),
        ("mjpeg.mkv", "mjpeg", "yuvj420p", 1000, 0),
        ("mjpeg.mov", "mjpeg", "yuvj420p", 90000, 0),
        ("h264.mp4", "libx264", "yuv420p", 90000, 0),
        ("h264_b_frames.mp4", "libx264", "yuv420p", 90000, 2),
        ("h264_b_frames.mkv", "libx264", "yuv420p", 1000, 2),
        ("h264_b_frames.ts", "libx264", "yuv420p", 90000, 2),
    ],
)
def test_uneven_frame_times_are_the_containers(tmp_path, name, codec, pixels, time_base, b_frames):
    path = write_timed_video(tmp_path / name, grey_steps(40), UNEVEN_S, codec, pixels, time_base, b_frames)
    frames = read_all(path)
    reference = container_times_s(path)
    assert times_s(frames) == pytest.approx([t - reference[0] for t in reference], abs=1e-6)
    assert times_s(frames) == pytest.approx(UNEVEN_S, abs=1e-6)
    # and each time belongs to its own picture: picture i is 2 * i, to within what lossy coding does
    assert [round(frame.bgr.mean()) for frame in frames] == pytest.approx([2 * i for i in range(40)], abs=5)


@pytest.mark.parametrize(("name", "fourcc"),
                         [("a.avi", "FFV1"), ("a.avi", "MJPG"), ("a.mkv", "FFV1"), ("a.mp4", "mp4v")])
@pytest.mark.parametrize("fps", [5.0, 25.0, 29.97])
def test_constant_rate_times(tmp_path, name, fourcc, fps):
    frames = read_all(write_video(tmp_path / name, grey_steps(12), fps, fourcc))
    assert [frame.seq for frame in frames] == list(range(12))
    assert times_s(frames) == pytest.approx([i / fps for i in range(12)], abs=0.6e-3)  # Matroska counts milliseconds


def test_a_clip_that_starts_late_starts_at_zero(tmp_path):
    path = write_timed_video(tmp_path / "late.mkv", grey_steps(5), [7.0, 7.1, 7.2, 7.4, 7.5])
    assert times_s(read_all(path)) == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.5])


def test_times_that_do_not_rise_are_dropped_and_counted(tmp_path, caplog):
    # AVI keeps no presentation times: with B frames the last pictures come without any
    path = write_timed_video(tmp_path / "b.avi", grey_steps(30), even_s(30), "libx264", "yuv420p", 30, 2)
    with open_camera(str(path)) as camera:
        frames = list(camera)
    assert 25 <= len(frames) < 30 and frames[0].t_ns == 0
    assert camera.bad_stamps == 30 - len(frames)
    assert np.all(np.diff(times_s(frames)) > 0)
    assert "times do not rise" in caplog.text


def test_a_clock_that_starts_again_is_an_error_after_the_good_frames(tmp_path):
    once = write_timed_video(tmp_path / "once.ts", grey_steps(60), even_s(60), "libx264", "yuv420p", 90000)
    twice = tmp_path / "twice.ts"
    twice.write_bytes(once.read_bytes() * 2)
    with open_camera(str(twice)) as camera:
        assert len(list(itertools.islice(camera, 60))) == 60
        with pytest.raises(CameraError, match="no usable times: after frame 60"):
            next(camera)


@pytest.mark.parametrize(("name", "codec", "pixels"), [
    ("raw.mjpeg", "mjpeg", "yuvj420p"),
    ("raw.h264", "libx264", "yuv420p"),
    ("raw.m2v", "mpeg2video", "yuv420p"),
])
def test_pictures_without_a_container_are_refused(tmp_path, name, codec, pixels):
    path = write_timed_video(tmp_path / name, grey_steps(40), even_s(40), codec, pixels, 30)
    with pytest.raises(CameraError, match="without times"):
        open_camera(str(path))


def test_real_clips_have_the_times_of_their_containers(clips):
    for path in sorted(clips.glob("resp_*/*.avi")) + sorted(clips.glob("resp_*/*.mp4")):
        with open_camera(str(path)) as camera:
            got = [frame.t_ns / 1e9 for frame in itertools.islice(camera, 60)]
        assert got == pytest.approx(container_times_s(path)[:60], abs=1e-6), path


# ---- realtime


def test_realtime_paces_frames_on_the_monotonic_clock(tmp_path):
    path = write_timed_video(tmp_path / "v.mkv", grey_steps(8), [0.0, 0.03, 0.05, 0.1, 0.12, 0.2, 0.21, 0.3])

    def last_is_late_by_s() -> float:
        before_ns = time.monotonic_ns()
        with open_camera(str(path), realtime=True) as camera:
            assert camera.live
            arrivals = [(frame.t_ns, time.monotonic_ns()) for frame in camera]
        t_ns = [t for t, _ in arrivals]
        assert t_ns[0] >= before_ns
        assert [(t - t_ns[0]) / 1e9 for t in t_ns] == pytest.approx([0.0, 0.03, 0.05, 0.1, 0.12, 0.2, 0.21, 0.3], abs=1e-6)
        assert all(arrival >= t for t, arrival in arrivals)
        return (arrivals[-1][1] - arrivals[-1][0]) / 1e9

    assert any(last_is_late_by_s() < 0.2 for _ in range(5))  # a machine that stalls makes some late


def test_as_fast_as_it_goes_does_not_wait(tmp_path):
    path = write_timed_video(tmp_path / "v.mkv", grey_steps(4), [0.0, 20.0, 40.0, 60.0])
    start = time.monotonic()
    assert times_s(read_all(path)) == [0.0, 20.0, 40.0, 60.0]
    assert time.monotonic() - start < 20.0


# ---- pictures


@pytest.mark.parametrize("spec", ["{}", "file:{}"])
def test_size_rate_and_name(tmp_path, spec):
    path = write_video(tmp_path / "v.avi", grey_steps(6, (80, 44)), 25.0)
    with open_camera(spec.format(path)) as camera:
        assert (camera.width, camera.height, camera.fps_nominal, camera.live) == (80, 44, 25.0, False)
        assert camera.name == str(path)
        assert len(list(camera)) == 6


def test_grey_video_gives_three_equal_channels(tmp_path):
    path = write_timed_video(tmp_path / "grey.mkv", grey_steps(5), [0.0, 0.1, 0.2, 0.3, 0.4], pixels="gray")
    for i, frame in enumerate(read_all(path)):
        assert frame.bgr.shape == (48, 64, 3) and np.all(frame.bgr == 2 * i)


def test_lossless_video_keeps_every_count(tmp_path):
    pictures = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(4)]
    path = write_timed_video(tmp_path / "v.mkv", pictures, [0.0, 0.1, 0.2, 0.3])
    for picture, frame in zip(pictures, read_all(path), strict=True):
        np.testing.assert_array_equal(frame.bgr, picture)


def test_4k_video(tmp_path):
    path = write_video(tmp_path / "4k.avi", grey_steps(3, (3840, 2160)), 30.0, "MJPG")
    assert [frame.bgr.shape for frame in read_all(path)] == [(2160, 3840, 3)] * 3


# ---- bad files


def unreadable(path: Path) -> Path:
    return Path("/proc/self/mem")  # a file that opens and cannot be read, whoever runs the tests


def junk(path: Path) -> Path:
    path.write_bytes(np.random.default_rng(0).bytes(20_000))
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def no_frames(path: Path) -> Path:
    path = path.with_suffix(".avi")
    cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), 30.0, (64, 48)).release()
    return path


def without_index(path: Path) -> Path:
    whole = write_video(path, grey_steps(30), fourcc="mp4v").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such file"),
        (unreadable, "cannot be read: Input/output error"),
        (junk, "not a video that can be decoded"),
        (empty, "is empty"),
        (folder, "expected a video file, got a folder"),
        (no_frames, "holds no picture"),
        (without_index, "cut off before its index was written"),
    ],
)
def test_a_file_that_cannot_be_played_is_refused_by_name(tmp_path, capfd, make, message):
    path = make(tmp_path / "v.mp4")
    with pytest.raises(CameraError, match=message) as caught:
        open_camera(f"file:{path}")
    assert str(path) in str(caught.value)
    assert capfd.readouterr().err == ""  # the decoder's own chatter stays off the terminal


@pytest.mark.parametrize("suffix", ["avi", "mkv"])
def test_a_truncated_video_plays_what_there_is_and_says_so(tmp_path, caplog, suffix):
    noise = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(90)]
    whole = write_video(tmp_path / f"whole.{suffix}", noise)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        assert len(read_all(whole)) == 90
        assert caplog.text == ""
        frames = read_all(cut)
    assert 40 <= len(frames) <= 46
    assert f"truncated or damaged: {len(frames)} frames" in caplog.text and "claims 3.0 s" in caplog.text


# ---- capture thread


class Scripted(Camera):
    """Frames 0, 1, 2, ... each released by the test; then `ending` is raised."""

    name, width, height, fps_nominal, live = "scripted", 6, 4, None, True

    def __init__(self, count: int, ending: BaseException, gate: threading.Semaphore | None = None) -> None:
        self.frames: Iterator[int] = iter(range(count))
        self.ending = ending
        self.gate = gate
        self.closed = threading.Event()

    def __next__(self) -> Frame:
        if self.gate is not None:
            self.gate.acquire()
        seq = next(self.frames, None)
        if seq is None:
            raise self.ending
        return Frame(seq, seq + 1, np.zeros((4, 6, 3), np.uint8))

    def cancel(self) -> None:
        if self.gate is not None:
            self.gate.release()

    def close(self) -> None:
        self.closed.set()


def test_capture_thread_hands_over_in_order_then_ends():
    camera = Scripted(5, StopIteration())
    with CaptureThread(camera) as capture:
        assert [capture.get(20.0).seq for _ in range(5)] == [0, 1, 2, 3, 4]
        assert capture.get(20.0) is None and capture.ended and capture.dropped == 0
    assert camera.closed.is_set()


def test_a_slow_reader_loses_the_oldest_frames_and_they_are_counted():
    camera = Scripted(20, StopIteration())
    with CaptureThread(camera) as capture:
        assert camera.closed.wait(20.0)
        assert not capture.ended
        assert [capture.get(0.0).seq for _ in range(8)] == list(range(12, 20))
        assert capture.ended and capture.dropped == 12 == capture.missed


def test_frames_that_never_came_are_counted_by_their_numbers():
    camera = Scripted(6, StopIteration())
    camera.frames = iter([5, 6, 9, 10, 20, 21])  # a camera may begin anywhere
    with CaptureThread(camera) as capture:
        assert [capture.get(20.0).seq for _ in range(6)] == [5, 6, 9, 10, 20, 21]
        assert capture.missed == 2 + 9 and capture.dropped == 0


def test_a_frame_that_does_not_come_is_none_and_not_the_end():
    gate = threading.Semaphore(0)
    with CaptureThread(Scripted(1, StopIteration(), gate)) as capture:
        assert capture.get(0.02) is None and not capture.ended
        gate.release()
        assert capture.get(20.0).seq == 0


def test_a_lost_camera_is_told_once_after_its_last_frames():
    with CaptureThread(Scripted(2, CameraLost("gone"))) as capture:
        assert [capture.get(20.0).seq, capture.get(20.0).seq] == [0, 1]
        with pytest.raises(CameraLost, match="gone"):
            capture.get(20.0)
        assert capture.get(0.0) is None and capture.ended


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_the_thread_is_not_taken_for_the_end():
    with CaptureThread(Scripted(0, ZeroDivisionError())) as capture, pytest.raises(RuntimeError, match="crashed"):
        capture.get(20.0)


def test_closing_wakes_a_file_that_waits_for_its_next_frame(tmp_path):
    path = write_timed_video(tmp_path / "v.mkv", grey_steps(2), [0.0, 60.0])
    capture = CaptureThread(open_camera(str(path), realtime=True))
    assert capture.get(20.0).seq == 0
    start = time.monotonic()
    capture.close(30.0)
    assert time.monotonic() - start < 10.0
    assert capture.get(0.0) is None or capture.ended
