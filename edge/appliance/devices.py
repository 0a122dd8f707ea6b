"""How udev knows the camera and the display, and which devices of a machine that fits."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


class InstallError(ValueError):
    """It cannot be installed like this; the message says what to change."""


@dataclass(frozen=True)
class DeviceId:
    """By USB ids (and serial number), by the USB port that it is plugged into, or as an own UART."""

    vendor: str = ""
    product: str = ""
    serial: str = ""
    usb_port: str = ""
    uart: str = ""

    def __str__(self) -> str:
        """As `device_id` reads it."""
        return self.usb_port or self.uart or ":".join(filter(None, (self.vendor, self.product, self.serial)))

    def parent(self) -> str:
        """udev's match on the USB device above a camera or a serial port."""
        if self.usb_port:
            return f'SUBSYSTEMS=="usb", KERNELS=="{self.usb_port}"'
        found = f'SUBSYSTEMS=="usb", ATTRS{{idVendor}}=="{self.vendor}", ATTRS{{idProduct}}=="{self.product}"'
        return found + (f', ATTRS{{serial}}=="{self.serial}"' if self.serial else "")

    def itself(self) -> str:
        """udev's match on the USB device."""
        match = self.parent().replace("SUBSYSTEMS", "SUBSYSTEM").replace("ATTRS", "ATTR").replace("KERNELS", "KERNEL")
        return match + ', ENV{DEVTYPE}=="usb_device"'

    def fits(self, folder: Path) -> bool:
        """Whether this folder of sysfs is the USB device."""
        if self.usb_port:
            return folder.name == self.usb_port
        wanted = {"idVendor": self.vendor, "idProduct": self.product} | ({"serial": self.serial} if self.serial else {})
        return all(_attribute(folder, name) == value for name, value in wanted.items())


def device_id(text: str) -> DeviceId:
    """VENDOR:PRODUCT[:SERIAL] in hexadecimal as lsusb prints it, a USB port such as 1-2.3, or a UART such as ttyTHS1."""
    if found := re.fullmatch(r"([0-9a-fA-F]{4}):([0-9a-fA-F]{4})(?::([\w.-]{1,126}))?", text, re.ASCII):
        return DeviceId(found[1].lower(), found[2].lower(), found[3] or "")
    if re.fullmatch(r"[0-9]+-[0-9]+(\.[0-9]+)*", text):
        return DeviceId(usb_port=text)
    if re.fullmatch(r"tty(THS|S|AMA|TCU)[0-9]+", text):
        return DeviceId(uart=text)
    raise InstallError(f"{text!r}: expected VENDOR:PRODUCT or VENDOR:PRODUCT:SERIAL as lsusb prints them (0403:6001), a USB "
                       "port (1-2.3; udevadm info names it), or for a display a UART (ttyTHS1)")


def of_rule(rules: str, name: str) -> DeviceId | None:
    """The device that a rule of ours gives this name (/dev/...); None where no rule does."""
    line = next((line for line in rules.splitlines() if f'SYMLINK+="{Path(name).name}"' in line), None)
    if line is None:
        return None
    found = dict(re.findall(r'(idVendor}|idProduct}|serial}|KERNELS|KERNEL)=="([^"]*)"', line))
    return DeviceId(found.get("idVendor}", ""), found.get("idProduct}", ""), found.get("serial}", ""),
                    found.get("KERNELS", ""), found.get("KERNEL", ""))


def plugged_in(root: Path, subsystem: str, device: DeviceId) -> dict[str, str]:
    """The nodes that fit, as udev would match them: name -> "USB port 1-2, serial number A1". subsystem: video4linux or tty."""
    found = {}
    for node in sorted((root / "sys/class" / subsystem).glob("*")):
        if device.uart:
            if node.name == device.uart:
                found[node.name] = "UART"
            continue
        if subsystem == "video4linux" and _attribute(node, "index") != "0":
            continue
        place = Path(os.path.realpath(node))
        usb = next((folder for folder in (place, *place.parents) if device.fits(folder)), None)
        if usb is not None:
            serial = _attribute(usb, "serial")
            found[node.name] = f"USB port {usb.name}" + (f", serial number {serial}" if serial else "")
    return found


def _attribute(folder: Path, name: str) -> str | None:
    try:
        return (folder / name).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
