"""Which device node a `usb:` spec means, also after the camera was plugged in again and has another number."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge.camera import CameraError
from edge.v4l2_device import Device, Kernel
from edge.v4l2_format import FPS, HEIGHT, WIDTH, Wish


def parse(rest: str) -> tuple[str, Wish]:
    """(device, the picture wished for) of what stands behind `usb:`. Raises CameraError."""
    device, comma, options = rest.partition(",")
    expected = (f"usb:{rest}: expected usb:N, usb:/dev/videoN or usb:/dev/v4l/by-id/NAME, "
                "with ,WIDTHxHEIGHT@FPS behind it where wanted, such as usb:0,640x480@30")
    if not (device.isascii() and device.isdigit() or Path(device).is_absolute()):
        raise CameraError(expected)
    if not comma:
        return device, Wish()
    found = re.fullmatch(r"(?:([1-9]\d{1,4})x([1-9]\d{1,4}))?(?:@([1-9]\d{0,2}(?:\.\d+)?))?", options)
    if not options or found is None:
        raise CameraError(expected)
    width, height, fps = found.groups()
    return device, Wish(int(width or WIDTH), int(height or HEIGHT), float(fps or FPS), width is not None)


@dataclass(frozen=True)
class Identity:
    """What tells a camera from others after it was plugged in again, when its number may be another."""

    card: str
    bus: str
    by_id: str | None


def named(rest: str, device_name: str, kernel: Kernel) -> Device:
    """The device of that number or path, open. Raises CameraError, which says what is wrong with it. rest: the spec."""
    path = kernel.root / (f"dev/video{device_name}" if device_name.isdigit() else device_name.lstrip("/"))
    try:
        is_device = kernel.is_device(path)
    except OSError as error:
        raise CameraError(f"usb:{rest}: no camera at {path}: {error.strerror}; "
                          f"found: {', '.join(map(str, _nodes(kernel.root))) or 'none'}") from error
    if not is_device:
        raise CameraError(f"usb:{rest}: {path} is no video device; expected /dev/videoN or a link to one")
    try:
        device = Device(path, kernel)
    except PermissionError as error:
        raise CameraError(f"usb:{rest}: no permission for {path}; add this user to the group that owns it: "
                          "sudo usermod -aG video $USER, then log in again") from error
    except OSError as error:
        raise CameraError(f"usb:{rest}: {path} {why(error)}") from error
    if not device.captures:
        device.close()
        raise CameraError(f"usb:{rest}: {path} gives no pictures: it is the camera's metadata node, or no camera; "
                          "try the next number")
    return device


def again(rest: str, known: Identity, kernel: Kernel) -> Device:
    """The same camera, whatever its number is now: by its serial name, then at its port, then the only one of its kind."""
    if known.by_id is not None and (kernel.root / known.by_id).exists():
        return named(rest, f"/{known.by_id}", kernel)
    found, alike = None, []
    for path in _nodes(kernel.root):
        try:
            device = Device(path, kernel)
        except OSError:  # not ours: in use, forbidden or no video device
            continue
        if found is None and device.captures and device.bus == known.bus:
            found = device
            continue
        if device.captures and device.card == known.card:
            alike.append(path)
        device.close()
    if found is not None:
        return found
    if known.by_id is None and len(alike) == 1:
        return Device(alike[0], kernel)
    raise CameraError(f"usb:{rest}: {known.card} is gone from {known.bus}; plug it in again, at the same port")


def _nodes(root: Path) -> list[Path]:
    return sorted((root / "dev").glob("video*"), key=lambda path: (len(path.name), path.name))


def identity(device: Device, root: Path) -> Identity:
    return Identity(device.card, device.bus, _by_id(device.path, root))


def _by_id(path: Path, root: Path) -> str | None:
    """The name under /dev/v4l/by-id of this node, below root; None where udev has made none."""
    for link in sorted((root / "dev/v4l/by-id").glob("*")):
        if os.path.realpath(link) == os.path.realpath(path):
            return str(link.relative_to(root))
    return None


def why(error: OSError) -> str:
    """What the kernel's refusal means, and what to do."""
    if error.errno == errno.EBUSY:
        return "is in use by another program; end that one first: sudo fuser -v /dev/video*"
    if error.errno == errno.ENOTTY:
        return "is no video device; expected /dev/videoN or a link to one"
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return "has gone while it was being opened; plug it in again"
    if error.errno in (errno.ENOSPC, errno.EPROTO, errno.EPIPE):
        return f"does not start: {error.strerror}; too little room on its USB bus: use another port, or a smaller picture"
    return f"cannot be used for capture: {error.strerror}; plug it in again, or try another port"
