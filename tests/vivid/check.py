"""Runs inside the emulated machine: our V4L2 code against the kernel's own virtual camera. Prints a line for each check.

python check.py [unplugs]; exit 1 when one fails.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge.camera import CameraError, CameraLost, CaptureThread
from edge.v4l2 import UsbCamera, forget_cameras, open_usb
from edge.v4l2_device import QUERYCTRL, Device, Kernel
from edge.v4l2_format import to_bgr

DRIVER = Path("/sys/bus/platform/drivers/vivid")
SPEC = "0,640x360@30"


def numbers(device: Device) -> dict[str, int]:
    """Every control's number by its name in small letters: vivid's own have no names in our code."""
    found, last = {}, 0
    while True:
        buffer = bytearray(68)
        struct.pack_into("=I", buffer, 0, last | 0x80000000)
        try:
            device._call(QUERYCTRL, buffer)
        except OSError:
            return found
        last, name = struct.unpack_from("=I4x32s", buffer)
        found[re.sub(r"[^a-z0-9]+", "_", name.split(b"\0")[0].decode().lower()).strip("_")] = last


def fault(name: str, value: int) -> None:
    """Set one of vivid's controls through a second descriptor, as another program would."""
    device = Device(node(), Kernel())
    device.set(numbers(device)[name], value)
    device.close()


def node() -> Path:
    return next(iter(sorted(Path("/dev").glob("video*"))))


def settled(camera: UsbCamera) -> UsbCamera:
    while camera.settling:
        next(camera)
    return camera


def unbind() -> None:
    (DRIVER / "unbind").write_text("vivid.0")


def bind() -> None:
    (DRIVER / "bind").write_text("vivid.0")
    for _ in range(200):
        if list(Path("/dev").glob("video*")):
            return
        time.sleep(0.02)
    raise RuntimeError("no /dev/video after binding the driver again")


def formats() -> str:
    pictures = {}
    for pixels in ("BGR3", "RGB3", "YUYV", "UYVY", "NV12"):
        device = Device(node(), Kernel())
        try:
            if pixels not in device.pixel_formats():
                continue
            agreed = device.format(pixels, 640, 360, keep=True)
            assert (agreed.pixels, agreed.width, agreed.height) == (pixels, 640, 360), agreed
            device.start(4)
            wake = os.eventfd(0)
            assert device.wait(wake, 2.0)[0]
            os.close(wake)
            taken = device.take()
            picture = to_bgr(np.frombuffer(device.maps[taken.index], np.uint8), taken.used_bytes, agreed)
            assert picture is not None
            pictures[pixels] = picture[200:340].mean(axis=(0, 1))  # below the counter that runs in the picture
        finally:
            device.close()
    worst = max(float(np.abs(mean - pictures["BGR3"]).max()) for mean in pictures.values())
    assert len(pictures) >= 4 and worst < 12, pictures  # vivid's YUV is narrow or wide as its colour space says
    return f"{', '.join(pictures)}: means within {worst:.1f} counts of BGR3"


def stream() -> str:
    forget_cameras()
    fault("timestamp_source", 1)  # the start of exposure: vivid's frame ends lie in the future
    with open_usb(SPEC) as camera:
        settled(camera)
        before = camera.lost
        frames = [next(camera) for _ in range(120)]
        ages_ms = [(time.monotonic_ns() - frames[-1].t_ns) / 1e6]
        step_ms = (frames[-1].t_ns - frames[0].t_ns) / (frames[-1].seq - frames[0].seq) / 1e6
        assert camera.driver_clock and camera.damaged == camera.bad_stamps == 0, (camera.damaged, camera.bad_stamps)
        assert abs(step_ms - 33.3) < 0.5, step_ms  # single steps jump by the emulated kernel's ticks of 4 ms
        assert frames[-1].seq - frames[0].seq == 119 + camera.lost - before
        assert any(note.startswith("locked") and "gain" in note for note in camera.notes()), camera.notes()
        assert not any(note.startswith("refused") for note in camera.notes()), camera.notes()
        return f"120 frames, step {step_ms:.2f} ms, age {ages_ms[0]:.0f} ms, lost {camera.lost - before}; {camera.notes()}"


def drops() -> str:
    with open_usb(SPEC) as camera:
        next(camera)
        fault("percentage_of_dropped_buffers", 20)
        frames = [next(camera) for _ in range(100)]
        fault("percentage_of_dropped_buffers", 0)
        gaps = frames[-1].seq - frames[0].seq - 99
        assert gaps >= 5 and camera.lost + camera.damaged >= gaps, (gaps, camera.lost, camera.damaged)
        return f"{camera.lost} lost of {100 + gaps}, all seen in the numbers"


def errors() -> str:
    with open_usb(SPEC) as camera:
        next(camera)
        for _ in range(5):
            fault("inject_v4l2_buf_flag_error", 1)
            for _ in range(5):
                next(camera)
        assert camera.damaged >= 4, camera.damaged
        return f"{camera.damaged} damaged pictures dropped"


def slow() -> str:
    with open_usb(SPEC) as camera:
        next(camera)
        frames = []
        for _ in range(15):
            frames.append(next(camera))
            time.sleep(0.12)
        assert camera.lost > 15 and np.all(np.diff([frame.t_ns for frame in frames]) > 0)
        return f"{camera.lost} lost and counted, at 120 ms a frame"


def woken() -> str:
    capture = CaptureThread(open_usb(SPEC))
    assert capture.get(3.0) is not None
    start = time.monotonic()
    capture.close(3.0)
    took_ms = (time.monotonic() - start) * 1e3
    assert took_ms < 300, took_ms
    return f"closed in {took_ms:.0f} ms"


def fatal() -> str:
    with open_usb(SPEC) as camera:
        next(camera)
        fault("inject_fatal_streaming_error", 1)
        try:
            while True:
                next(camera)
        except CameraLost as e:
            said = str(e)
    with open_usb(SPEC) as camera:
        next(camera)
    return f"{said}; opened again"


def unplugs(count: int) -> str:
    forget_cameras()
    lost_ms, back_ms, names = [], [], set()
    camera = open_usb(SPEC)
    for _ in range(count):
        next(camera)
        start = time.monotonic()
        unbind()
        try:
            while True:
                next(camera)
        except CameraLost:
            lost_ms.append((time.monotonic() - start) * 1e3)
        try:
            open_usb(SPEC)
            raise AssertionError("opened a camera that is not there")
        except CameraError:
            pass
        bind()  # before the old descriptor is closed: the camera comes back under another number
        start = time.monotonic()
        again = open_usb(SPEC)
        next(again)
        back_ms.append((time.monotonic() - start) * 1e3)
        names.add(node().name)
        camera.close()
        camera = again
    camera.close()
    assert max(lost_ms) < 500, lost_ms
    return (f"{count} unplugs: told within {max(lost_ms):.0f} ms, first frame within {max(back_ms):.0f} ms of opening, "
            f"nodes {sorted(names)}")


def checks(count: int) -> Iterator[tuple[str, bool]]:
    for name, check in (("formats", formats), ("stream", stream), ("drops", drops), ("errors", errors), ("slow", slow),
                        ("woken", woken), ("fatal", fatal), ("unplugs", lambda: unplugs(count))):
        try:
            print(f"OK {name}: {check()}", flush=True)
            yield name, True
        except Exception:  # every check is to be reported
            traceback.print_exc()
            print(f"FAILED {name}", flush=True)
            yield name, False


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    results = list(checks(int(sys.argv[1]) if len(sys.argv) > 1 else 25))
    sys.exit(0 if all(ok for _, ok in results) else 1)
