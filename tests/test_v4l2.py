"""usb: cameras on a machine in memory; tests/vivid puts the same code in front of the real kernel."""

from __future__ import annotations

import errno
import logging
import os
import time

import numpy as np
import pytest

from edge import v4l2, v4l2_device
from edge.camera import CameraError, CameraLost, CaptureThread, open_camera
from edge.v4l2 import open_usb
from edge.v4l2_device import Control, Format
from edge.v4l2_format import to_bgr
from edge.v4l2_lock import whole_half_periods
from tests.fake_v4l2 import (
    AE,
    AWB,
    EXPOSURE,
    FOCUS_AUTO,
    GAIN,
    MAINS,
    PRIORITY,
    WB,
    FakeCamera,
    FakeControl,
    FakeKernel,
    uvc_controls,
)


@pytest.fixture(autouse=True)
def nothing_is_known():
    v4l2.forget_cameras()
    yield
    v4l2.forget_cameras()


@pytest.fixture
def kernel(tmp_path):
    return FakeKernel(tmp_path)


def opened(kernel, camera=None, spec="0", **options):
    kernel.plug(camera or FakeCamera(), 0)
    return open_usb(spec, kernel=kernel, **options)


def taken(camera, count):
    return [next(camera) for _ in range(count)]


def until_locked(camera):
    for _ in range(200):
        next(camera)
        if not camera.settling:
            return camera
    raise AssertionError("still settling after 200 frames")


def test_the_calls_have_the_kernels_numbers():
    # as <linux/videodev2.h> of a 64-bit machine gives them
    assert {name: getattr(v4l2_device, name) for name in (
        "QUERYCAP", "ENUM_FMT", "S_FMT", "TRY_FMT", "REQBUFS", "QUERYBUF", "QBUF", "DQBUF", "STREAMON", "STREAMOFF", "S_PARM",
        "G_CTRL", "S_CTRL", "QUERYCTRL", "ENUM_FRAMESIZES", "ENUM_FRAMEINTERVALS")} == {
        "QUERYCAP": 0x80685600, "ENUM_FMT": 0xC0405602, "S_FMT": 0xC0D05605, "TRY_FMT": 0xC0D05640, "REQBUFS": 0xC0145608,
        "QUERYBUF": 0xC0585609, "QBUF": 0xC058560F, "DQBUF": 0xC0585611, "STREAMON": 0x40045612, "STREAMOFF": 0x40045613,
        "S_PARM": 0xC0CC5616, "G_CTRL": 0xC008561B, "S_CTRL": 0xC008561C, "QUERYCTRL": 0xC0445624,
        "ENUM_FRAMESIZES": 0xC02C564A, "ENUM_FRAMEINTERVALS": 0xC034564B}


# ---- pictures and their format


def colour_bars(seq):
    """Blocks of colour, even in size so that halved chroma loses nothing inside them."""
    bgr = np.zeros((480, 640, 3), np.uint8)
    for i in range(8):
        bgr[:, i * 80:(i + 1) * 80] = (30 + 25 * i, 200 - 20 * i, 60 + 15 * i)
    return bgr


@pytest.mark.parametrize("padding", [0, 32])
@pytest.mark.parametrize("pixels", ["YUYV", "UYVY", "NV12", "BGR3", "RGB3", "MJPG"])
def test_every_format_becomes_the_same_bgr_picture(kernel, pixels, padding):
    camera = opened(kernel, FakeCamera({pixels: {(640, 480): 30.0}}, bgr=colour_bars, padding=padding))
    frame = next(camera)
    assert (camera.width, camera.height, camera.fps_nominal) == (640, 480, 30.0)
    assert frame.bgr.shape == (480, 640, 3) and frame.bgr.flags.owndata
    inside = np.s_[8:-8, 20:60]
    difference = np.abs(frame.bgr[inside].astype(int) - colour_bars(0)[inside])
    assert difference.max() <= (0 if pixels in ("BGR3", "RGB3") else 4)
    assert any(note.startswith("compressed") for note in camera.notes()) == (pixels == "MJPG")


SEVERAL = {"MJPG": {(1280, 720): 30.0, (640, 480): 30.0}, "NV12": {(640, 480): 30.0},
           "YUYV": {(1280, 720): 10.0, (640, 480): 30.0}}


@pytest.mark.parametrize(("formats", "spec", "expected"), [
    (SEVERAL, "0", ("YUYV", 640, 480, 30.0)),
    (SEVERAL, "0,640x480@15", ("YUYV", 640, 480, 15.0)),
    (SEVERAL, "0,1280x720@10", ("YUYV", 1280, 720, 10.0)),
    (SEVERAL, "0,1280x720", ("MJPG", 1280, 720, 30.0)),
    ({"MJPG": {(640, 480): 30.0}, "YUYV": {(640, 480): 15.0}}, "0", ("MJPG", 640, 480, 30.0)),
    ({"MJPG": {(640, 480): 30.0}, "YUYV": {(640, 480): 15.0}}, "0,@15", ("YUYV", 640, 480, 15.0)),
    ({"MJPG": {(640, 480): 25.0}, "YUYV": {(640, 480): 20.0}}, "0", ("YUYV", 640, 480, 20.0)),
    ({"UYVY": {(800, 600): 29.97}}, "0", ("UYVY", 800, 600, 29.97)),
])
def test_compressed_only_where_nothing_else_does_the_size_and_rate(kernel, formats, spec, expected):
    height, width = expected[2], expected[1]
    source = FakeCamera(formats, bgr=lambda seq: np.full((height, width, 3), 90, np.uint8))
    camera = opened(kernel, source, spec)
    frame = next(camera)
    state = next(iter(kernel.opened.values()))
    assert (state.pixels, frame.bgr.shape[1], frame.bgr.shape[0], camera.fps_nominal) == expected


def test_a_compressed_camera_is_told_of_loudly(kernel, caplog):
    with caplog.at_level(logging.WARNING):
        opened(kernel, FakeCamera({"MJPG": {(640, 480): 30.0}}))
    assert "MJPEG" in caplog.text and caplog.records[0].levelno == logging.WARNING


def test_a_size_that_was_asked_for_and_is_not_there_is_refused_with_those_that_are(kernel):
    with pytest.raises(CameraError, match="no picture of 1920x1080; it has 320x240, 640x480, 1280x720"):
        opened(kernel, spec="0,1920x1080")


def test_a_rate_that_the_camera_cannot_do_is_said(kernel):
    camera = opened(kernel, FakeCamera({"YUYV": {(640, 480): 25.0}}))
    assert "rate: asked for 30 a second" in camera.notes()


def test_a_camera_with_no_known_format_is_refused(kernel):
    with pytest.raises(CameraError, match="no picture format that can be read: expected one of YUYV.*got H264, GREY"):
        opened(kernel, FakeCamera({"H264": {(640, 480): 30.0}, "GREY": {(640, 480): 30.0}}))


# ---- times, numbers, damage


def test_frames_carry_the_drivers_time_and_number(kernel):
    camera = opened(kernel)
    frames = taken(camera, 10)
    state = next(iter(kernel.opened.values()))
    expected = [(state.began_ns + round((i + 1) / 30 * 1e9) - 3_000_000) // 1000 * 1000 for i in range(10)]
    assert [frame.t_ns for frame in frames] == expected and [frame.seq for frame in frames] == list(range(10))
    assert camera.driver_clock and camera.live and not camera.recorded and camera.lost == camera.damaged == 0


@pytest.mark.parametrize("stamps", ["none", "unflagged", "hours_ahead"])
def test_without_a_monotonic_driver_clock_it_is_the_moment_of_the_grab_said_once(kernel, caplog, stamps):
    camera = opened(kernel, FakeCamera(stamps=stamps))
    frames = taken(camera, 20)
    state = next(iter(kernel.opened.values()))
    assert [frame.t_ns for frame in frames] == [state.began_ns + round((i + 1) / 30 * 1e9) for i in range(20)]
    assert not camera.driver_clock and caplog.text.count("of the grab") == 1


def test_a_clock_that_leaves_us_midway_is_a_lost_camera_and_no_frame_of_the_future(kernel):
    source = FakeCamera()
    camera = opened(kernel, source)
    first = taken(camera, 5)
    source.stamps = "hours_ahead"
    with pytest.raises(CameraLost, match="times have stopped rising"):
        next(camera)
    assert camera.bad_stamps == 30 and first[-1].t_ns < kernel.now_ns()


def test_dropped_pictures_are_counted_and_leave_a_gap(kernel):
    camera = opened(kernel, FakeCamera(drop={3, 4, 8}))
    assert [frame.seq for frame in taken(camera, 7)] == [0, 1, 2, 5, 6, 7, 9]
    assert camera.lost == 3


@pytest.mark.parametrize(("number", "expected", "lost"), [
    (lambda seq: 2**32 - 3 + seq, [0, 1, 2, 3, 4, 5], 0),  # 32 bits run over
    (lambda seq: 2**32 - 3 + 2 * seq, [0, 2, 4, 6, 8, 10], 5),  # and lose every second one meanwhile
    (lambda seq: 0, [0, 1, 2, 3, 4, 5], 0),  # a driver that does not count
    (lambda seq: seq - (seq > 2), [0, 1, 2, 3, 4, 5], 0),  # a number told twice
    (lambda seq: 700 + seq if seq < 3 else seq - 3, [0, 1, 2, 3, 4, 5], 0),  # counts anew
    (lambda seq: seq if seq < 3 else 2_000_000 + seq, [0, 1, 2, 3, 4, 5], 0),  # or from anywhere
])
def test_numbers_that_run_over_repeat_or_begin_anew_lose_nothing(kernel, number, expected, lost):
    camera = opened(kernel, FakeCamera(number=number))
    assert [frame.seq for frame in taken(camera, 6)] == expected
    assert camera.lost == lost


@pytest.mark.parametrize(("shift_s", "dropped"), [
    (lambda seq: 10.0 * (seq == 5), [5]),  # one from the future
    (lambda seq: -10.0 * (seq == 5), [5]),
    (lambda seq: -0.1 * (seq >= 5), [5, 6, 7]),  # set back for good: until they rise beyond what was seen
    (lambda seq: 0.09 * (seq == 5), [6, 7]),  # ahead by less than can be told: what lies before it is out of order
])
def test_times_that_jump_never_run_backwards_nor_into_the_future(kernel, shift_s, dropped):
    camera = opened(kernel, FakeCamera(shift_stamp_s=shift_s))
    frames = taken(camera, 20)
    assert [seq for seq in range(frames[-1].seq) if seq not in {frame.seq for frame in frames}] == dropped
    assert camera.bad_stamps == len(dropped) and np.all(np.diff([frame.t_ns for frame in frames]) > 0)
    assert frames[-1].t_ns < kernel.now_ns()


@pytest.mark.parametrize("pixels", ["YUYV", "NV12", "MJPG"])
@pytest.mark.parametrize("fault", ["error", "short"])
def test_damaged_pictures_are_dropped_and_counted(kernel, fault, pixels):
    camera = opened(kernel, FakeCamera({pixels: {(640, 480): 30.0}}, **{fault: {2, 5}}))
    assert [frame.seq for frame in taken(camera, 6)] == [0, 1, 3, 4, 6, 7]
    assert (camera.damaged, camera.lost) == (2, 0)


@pytest.mark.parametrize("junk", [b"\xff\xd8\xff\xd9", b"\x00" * 5000 + b"\xff\xd9", b""])
def test_what_is_no_jpeg_is_damaged_and_no_crash(junk):
    raw = np.frombuffer(junk.ljust(10_000, b"\0"), np.uint8)
    assert to_bgr(raw, len(junk), Format("MJPG", 640, 480, 0, 10_000)) is None


def test_a_jpeg_of_another_size_than_agreed_on_is_damaged(kernel):
    source = FakeCamera({"MJPG": {(640, 480): 30.0}}, bgr=lambda seq: colour_bars(seq)[:240], stall_at=3)
    camera = opened(kernel, source)
    with pytest.raises(CameraLost):
        next(camera)
    assert camera.damaged == 3


def test_nothing_but_damage_is_a_lost_camera(kernel):
    camera = opened(kernel, FakeCamera(error=set(range(10, 10_000))))
    taken(camera, 10)
    with pytest.raises(CameraLost, match="nothing but damaged pictures"):
        next(camera)


def test_a_repeated_stamp_is_dropped_and_leaves_a_gap_in_seq(kernel):
    camera = opened(kernel, FakeCamera(repeat_stamp={3}))
    assert [frame.seq for frame in taken(camera, 5)] == [0, 1, 2, 4, 5]
    assert camera.bad_stamps == 1


def test_a_slow_reader_sees_its_losses_in_the_numbers(kernel):
    camera = opened(kernel)
    frames = []
    for _ in range(20):
        frames.append(next(camera))
        kernel.clock_ns += 120_000_000
    steps = np.diff([frame.seq for frame in frames])
    assert camera.lost == int((steps - 1).sum()) > 30
    ages_ms = [(kernel.clock_ns - frame.t_ns) / 1e6 for frame in frames[-1:]]
    assert 120 < ages_ms[0] < 600
    assert np.all(np.diff([frame.t_ns for frame in frames]) > 0)


# ---- gone, silent, woken


def test_an_unplugged_camera_is_lost_at_once(kernel):
    camera = opened(kernel, FakeCamera(unplug_at=5))
    taken(camera, 5)
    before_ns = kernel.now_ns()
    with pytest.raises(CameraLost, match="unplugged"):
        next(camera)
    assert kernel.now_ns() - before_ns < 100e6
    camera.close()
    camera.close()


def test_a_camera_that_hangs_is_lost_after_two_seconds(kernel):
    camera = opened(kernel, FakeCamera(stall_at=5))
    taken(camera, 5)
    before_ns = kernel.now_ns()
    with pytest.raises(CameraLost, match="no picture for 2 s"):
        next(camera)
    assert 2.0 <= (kernel.now_ns() - before_ns) / 1e9 < 2.1


def test_the_first_picture_may_take_longer_and_not_for_ever(kernel):
    camera = opened(kernel, FakeCamera(stall_at=0))
    before_ns = kernel.now_ns()
    with pytest.raises(CameraLost, match="no picture for 5 s"):
        next(camera)
    assert (kernel.now_ns() - before_ns) / 1e9 == pytest.approx(5.0, abs=0.1)


def test_a_program_that_stood_still_does_not_blame_the_camera(kernel):
    camera = opened(kernel)
    taken(camera, 5)
    kernel.clock_ns += 30_000_000_000
    later = next(camera)
    assert kernel.now_ns() - later.t_ns < 1e9 and camera.bad_stamps <= 4  # the queue's pictures were 30 s old


def test_cancel_wakes_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(v4l2, "STALL_S", 60.0)
    kernel = FakeKernel(tmp_path, real_time=True)
    camera = opened(kernel, FakeCamera(stall_at=2))
    capture = CaptureThread(camera)
    assert capture.get(20.0) is not None and capture.get(20.0) is not None
    assert capture.get(0.05) is None
    start = time.monotonic()
    capture.close(30.0)
    assert time.monotonic() - start < 10.0 and capture.ended
    camera.cancel()  # after its end: harmless


# ---- locking


def test_the_automatisms_run_and_then_are_locked_at_what_they_settled_on(kernel):
    source = FakeCamera()
    camera = opened(kernel, source)
    first = next(camera)
    assert camera.settling and source.controls[AE].value == 3 and source.controls[AWB].value == 1
    while source.controls[AE].value == 3:
        frame = next(camera)
    assert 2.0 <= (frame.t_ns - first.t_ns) / 1e9 < 2.3
    assert camera.settling  # what was exposed before is still under way
    locked_ns = frame.t_ns
    while camera.settling:
        frame = next(camera)
    assert (frame.t_ns - locked_ns) / 1e9 == pytest.approx(0.3, abs=0.04)
    values = {number: source.controls[number].value for number in source.controls}
    assert values == {AE: 1, EXPOSURE: 100, PRIORITY: 0, AWB: 0, WB: 4230, GAIN: 12, MAINS: 1, FOCUS_AUTO: 0}
    notes = "\n".join(camera.notes())
    assert "exposure 10.0 ms" in notes and "gain 12" in notes and "white balance 4230 K" in notes
    assert "moved: exposure from 15.7 ms to 10.0 ms" in notes and "refused" not in notes


def test_an_automatism_goes_off_before_its_value_is_written(kernel):
    source = FakeCamera()
    until_locked(opened(kernel, source))
    order = [number for number, _ in source.writes]
    assert order.index(AE) < order.index(EXPOSURE) and order.index(AWB) < order.index(WB)


def test_the_automatisms_settle_knowing_the_mains_and_at_a_fixed_rate(kernel):
    source = FakeCamera()
    taken(opened(kernel, source), 2)
    assert source.controls[AE].value == 3 and (source.controls[MAINS].value, source.controls[PRIORITY].value) == (1, 0)


def test_settling_waits_for_an_exposure_that_still_moves_but_not_for_ever(kernel):
    source = FakeCamera(settle_until=2.4)
    camera = opened(kernel, source)
    first = next(camera)
    while source.controls[AE].value == 3:
        frame = next(camera)
    assert 2.4 < (frame.t_ns - first.t_ns) / 1e9 < 3.1
    restless = FakeCamera(settle_until=60.0)
    kernel.plug(restless, 1)
    camera = open_usb("1", kernel=kernel)
    first = next(camera)
    while restless.controls[AE].value == 3:
        frame = next(camera)
    assert (frame.t_ns - first.t_ns) / 1e9 == pytest.approx(3.0, abs=0.3)


def test_a_control_that_the_camera_lacks_is_noted_and_no_fault(kernel):
    source = FakeCamera(controls={GAIN: FakeControl(23)})
    camera = until_locked(opened(kernel, source))
    notes = camera.notes()
    assert any(note.startswith("lacking") and "auto exposure" in note and "white balance" in note for note in notes)
    assert any(note.startswith("locked: gain 23") for note in notes)
    assert not any(note.startswith("refused") for note in notes)


@pytest.mark.parametrize(("broken", "message"), [
    ({AE: FakeControl(3, 0, 3, refuses=errno.EIO)}, "refused: auto exposure: 1 not taken: Input/output error"),
    ({AE: FakeControl(3, 0, 3, refuses=errno.EIO)}, "refused: exposure: 100 not taken: Permission denied"),
    ({GAIN: FakeControl(12, flags=4)}, "refused: gain: read-only"),
    ({WB: FakeControl(4230, 2800, 6500, 10, sticks=True, held_by=(AWB, 0)), AWB: FakeControl(1, 0, 1, sticks=True)},
     "refused: auto white balance: 0 written, reads 1"),
    ({EXPOSURE: FakeControl(333, 1, 5000, sticks=True, held_by=(AE, 1))}, "refused: exposure: 300 written, reads 333"),
])
def test_a_control_that_refuses_is_a_fault_that_is_shown(kernel, caplog, broken, message):
    camera = until_locked(opened(kernel, FakeCamera(controls=uvc_controls() | broken)))
    assert message in camera.notes()
    assert message in caplog.text


def test_a_camera_unplugged_while_it_is_set_up_is_lost(kernel):
    source = FakeCamera()
    camera = opened(kernel, source)
    first = next(camera)
    while (next(camera).t_ns - first.t_ns) < 1.4e9:
        pass
    source.controls[GAIN].refuses = errno.ENODEV
    with pytest.raises(CameraLost, match="while it was being set up"):
        until_locked(camera)


@pytest.mark.parametrize(("settled", "mains_hz", "fps", "expected"), [
    (157, 50, 30.0, 100), (200, 50, 30.0, 200), (199, 50, 30.0, 200), (333, 50, 30.0, 300), (20, 50, 30.0, 100),
    (157, 60, 30.0, 83), (166, 60, 30.0, 167), (83, 60, 30.0, 83), (333, 60, 30.0, 333), (20, 60, None, 83),
    (5000, 50, 30.0, 300), (5000, 60, 15.0, 667), (5000, 50, None, 5000)])
def test_exposures_are_whole_half_periods_of_the_mains(settled, mains_hz, fps, expected):
    assert whole_half_periods(settled, Control(1, 5000, 1, False), mains_hz, fps) == expected
    assert expected / 1e4 * 2 * mains_hz == pytest.approx(round(expected / 1e4 * 2 * mains_hz), abs=0.01)


def test_at_sixty_hertz_the_menu_and_the_exposure_follow(kernel):
    source = FakeCamera()
    until_locked(opened(kernel, source, mains_hz=60))
    assert (source.controls[MAINS].value, source.controls[EXPOSURE].value) == (2, 83)


# ---- which camera


@pytest.mark.parametrize(("spec", "message"), [
    ("usb:97", "no camera at /dev/video97: No such file"),
    ("usb:/dev/null", "is no video device"),
    ("usb:", "expected usb:N"),
    ("usb:front", "expected usb:N"),
    ("usb:0,", "expected usb:N"),
    ("usb:0,640", "expected usb:N"),
    ("usb:0,640x480@0", "expected usb:N"),
    ("usb:0,0x480", "expected usb:N"),
])
def test_a_spec_that_names_no_camera_says_so(spec, message):
    with pytest.raises(CameraError, match=message):
        open_camera(spec)


def test_a_metadata_node_is_told_from_a_camera(kernel):
    with pytest.raises(CameraError, match="metadata node"):
        opened(kernel, FakeCamera(captures=False))


def test_a_camera_in_use_is_said_to_be(kernel):
    with pytest.raises(CameraError, match="in use by another program"):
        opened(kernel, FakeCamera(busy=errno.EBUSY))
    source = FakeCamera(busy=errno.ENOSPC)
    kernel.plug(source, 1)
    with pytest.raises(CameraError, match="too little room on its USB bus"):
        open_usb("1", kernel=kernel)


def replugged(kernel, source, spec, number, by_id=""):
    """Open, unplug, plug in again as another number, open by the same spec: the card found."""
    camera = open_usb(spec, kernel=kernel)
    taken(camera, 3)
    kernel.unplug(source)
    with pytest.raises(CameraLost):
        taken(camera, 10)
    camera.close()
    with pytest.raises(CameraError, match="gone|no camera"):
        open_usb(spec, kernel=kernel)
    kernel.plug(source, number, by_id)
    again = open_usb(spec, kernel=kernel)
    assert next(again).seq == 0
    return kernel.started


def test_a_camera_plugged_in_again_is_found_by_its_port_though_its_number_is_another(kernel):
    ours = kernel.plug(FakeCamera(card="ours"), 0)
    kernel.plug(FakeCamera(card="other", bus="usb-0000:00:14.0-4"), 1)
    assert replugged(kernel, ours, "0", 3) is ours


def test_a_camera_with_a_serial_name_is_found_at_another_port(kernel):
    ours = kernel.plug(FakeCamera(card="ours"), 0, "usb-ours_1234-video-index0")
    camera = open_usb("0", kernel=kernel)
    next(camera)
    kernel.unplug(ours)
    camera.close()
    # another one of its kind now has its number and its port
    kernel.plug(FakeCamera(card="ours"), 0, "usb-ours_9999-video-index0")
    ours.bus = "usb-0000:00:14.0-9"
    kernel.plug(ours, 1, "usb-ours_1234-video-index0")
    open_usb("0", kernel=kernel)
    assert kernel.started is ours
    kernel.unplug(ours)
    kernel.cameras[kernel.root / "dev/video0"].bus = "usb-0000:00:14.0-7"
    with pytest.raises(CameraError, match="is gone"):  # the other one of its kind is not ours, its serial name says so
        open_usb("0", kernel=kernel)


def test_another_camera_under_the_old_number_is_never_taken_for_ours(kernel):
    ours = kernel.plug(FakeCamera(card="ours"), 0)
    camera = open_usb("0", kernel=kernel)
    next(camera)
    kernel.unplug(ours)
    camera.close()
    kernel.plug(FakeCamera(card="other", bus="usb-0000:00:14.0-4"), 0)
    with pytest.raises(CameraError, match="ours is gone from usb-0000:00:14.0-3; plug it in again, at the same port"):
        open_usb("0", kernel=kernel)


def test_without_a_serial_name_the_only_one_of_its_kind_is_ours_at_any_port(kernel):
    ours = kernel.plug(FakeCamera(card="ours"), 0)
    camera = open_usb("0", kernel=kernel)
    next(camera)
    kernel.unplug(ours)
    camera.close()
    ours.bus = "usb-0000:00:14.0-9"
    kernel.plug(ours, 2)
    assert next(open_usb("0", kernel=kernel)).seq == 0 and kernel.started is ours
    kernel.plug(FakeCamera(card="ours", bus="usb-0000:00:14.0-5"), 3)
    ours.bus = "usb-0000:00:14.0-8"
    with pytest.raises(CameraError, match="is gone"):
        open_usb("0", kernel=kernel)


def test_a_link_opens_the_camera_behind_it(kernel):
    kernel.plug(FakeCamera(), 4, "usb-Cam_1-video-index0")
    camera = open_usb("/dev/v4l/by-id/usb-Cam_1-video-index0,320x240@30", kernel=kernel)
    assert (camera.width, camera.height) == (320, 240)


def test_everything_is_given_back_on_every_way_out(kernel):
    kernel.plug(FakeCamera(), 0)
    kernel.plug(FakeCamera(busy=errno.EBUSY), 1)
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        camera = open_usb("0", kernel=kernel)
        next(camera)
        camera.close()
        with pytest.raises(CameraError):
            open_usb("1", kernel=kernel)
    assert len(os.listdir("/proc/self/fd")) - fds == kernel.opens >= 6  # one each of the stand-in's own, none of ours
