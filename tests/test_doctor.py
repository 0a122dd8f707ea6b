"""Every check of the doctor on a machine where all is well, and on machines where one thing is not."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.__main__ import main
from edge.appliance import check_machine, check_parts
from edge.appliance.devices import device_id
from edge.appliance.doctor import Case, Finding, Level, as_json, case_of, examine, runnable, table
from edge.appliance.install import CONFIG, JOURNAL, RULES, UNIT, Settings, apply
from edge.appliance.system import Disk, Ran, System, run_command
from edge.camera import CameraError
from edge.config import CameraConfig, Config, SerialConfig
from firmware_bridge.frame import Sender
from firmware_bridge.messages import Status
from firmware_bridge.port import LinkError
from tests.test_install import usb_device

MS = 1_000_000


class Machine(System):
    """A Jetson in a folder, with commands, devices and a clock of its own."""

    @property
    def live(self):
        return True


SAID = {("systemctl", "is-enabled", "physvlm"): "enabled", ("systemctl", "is-active", "physvlm"): "active",
        ("systemctl", "is-active", "nvargus-daemon"): "active", ("systemctl", "is-active", "ModemManager"): "inactive",
        ("systemctl", "is-active", "nvgetty"): "inactive", ("ldconfig", "-p"): "libgstreamer-1.0.so.0 libgstapp-1.0.so.0",
        ("nvpmodel", "-q"): "NV Power Mode: MAXN\n0", ("systemctl", "show", "--property=MainPID", "--value", "physvlm"): "812"}


class Picture:
    """A camera that gives one."""

    width, height = 640, 480

    def __init__(self, *notes):
        self._notes, self._left = notes, 3

    @property
    def settling(self):
        return self._left > 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __next__(self):
        self._left -= 1

    def notes(self):
        return () if self.settling else self._notes


class Answers:
    """A port at which these bytes come, then nothing; waiting takes time on the machine's clock."""

    def __init__(self, clock, data=b"", error=None):
        self.clock, self.data, self.error, self.closed = clock, data, error, False

    def read(self, timeout_s):
        if self.error is not None:
            raise self.error
        self.clock[0] += int(max(0.05, timeout_s) * 1e9) if not self.data else MS
        data, self.data = self.data, b""
        return data

    def close(self):
        self.closed = True


def status_bytes():
    return Sender(lambda: 0).encode(Status(1, 9, 7, 0, 0, 0, 0, 0, 60, 0xFFFF, 0xFFFF, 0))


class Bench:
    """A well machine, to be made ill. write(path, text), said (commands), versions, camera, answers."""

    def __init__(self, root):
        self.root, self.said, self.clock = root, dict(SAID), [0]
        self.versions = {"numpy": "2.2.6", "pyserial": "3.5", "onnxruntime": "1.23.2", "tensorrt": "10.3.0", "pycuda": "2025.1",
                         "cryptography": "45.0"}
        self.picture = lambda source: Picture("locked: exposure 10 ms")
        self.answers = status_bytes()
        self.port_error = None
        self.space = Disk(5 << 30, False)
        self.python = (3, 10)
        self.config = Config(camera=CameraConfig(source="usb:/dev/physvlm-camera"),
                             serial=SerialConfig(port="/dev/physvlm-display"))
        self.write("/opt/bin/physvlm", "")
        apply(Settings("/opt/bin/physvlm", root=root, camera=device_id("046d:0825"), display=device_id("0403:6001")))
        self.write("/etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n")
        self.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nphysvlm:x:990:990::/var/lib/physvlm:/sbin/nologin\n")
        gid = os.getgid()
        self.write("/etc/group", f"physvlm:x:990:\ndialout:x:{gid}:physvlm\nvideo:x:{gid}:physvlm\n")
        self.write("/proc/meminfo", "MemTotal: 8000000 kB\nMemAvailable: 4000000 kB\n")
        self.write("/proc/cmdline", "root=/dev/mmcblk0p1 console=ttyTCU0")
        self.write("/sys/class/thermal/thermal_zone0/type", "cpu-thermal")
        self.write("/sys/class/thermal/thermal_zone0/temp", "51000")
        for end in ("min", "max"):
            self.write(f"/sys/devices/system/cpu/cpufreq/policy0/scaling_{end}_freq", "2201600")
        for name in ("video0", "ttyUSB0"):
            self.write(f"/dev/{name}", "").chmod(0o660)
        (root / "dev/physvlm-camera").symlink_to("video0")
        (root / "dev/physvlm-display").symlink_to("ttyUSB0")

    def write(self, path, text):
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(text)
        return at

    def holds(self, pid, name, device):
        self.write(f"/proc/{pid}/comm", name + "\n")
        (self.root / f"proc/{pid}/fd").mkdir(parents=True)
        (self.root / f"proc/{pid}/fd/3").symlink_to(device)

    def set(self, section, **keys):
        self.config = replace(self.config, **{section: replace(getattr(self.config, section), **keys)})

    def system(self):
        def port(path, baud, stop_bits):
            if isinstance(self.port_error, LinkError):
                raise self.port_error
            return Answers(self.clock, self.answers, self.port_error)

        def command(words):
            text = self.said.get(tuple(words))
            return None if text is None else Ran(0, text)

        return Machine(self.root, run=command, version=self.versions.get, camera=lambda source: self.picture(source), port=port,
                       disk=lambda path: self.space, clock_ns=lambda: self.clock[0], python=self.python)

    def findings(self):
        return {f.check: f for f in examine(Case(self.system(), self.config, CONFIG))}

    def finding(self, name):
        (check,) = [c for n, c, _ in (*check_machine.CHECKS, *check_parts.CHECKS) if n == name]
        level, text, mend = check(Case(self.system(), self.config, CONFIG))
        return Finding(level, name, text, mend)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)  # nobody takes this machine's power
    monkeypatch.setattr("edge.appliance.check_parts.stat.S_ISCHR", lambda mode: True)  # the nodes of this machine are files
    return Bench(tmp_path)


def test_on_a_well_machine_every_check_is_well(bench):
    found = bench.findings()
    assert {f.check: f.level for f in found.values() if f.level not in (Level.OK, Level.NONE)} == {}
    assert {name for name, f in found.items() if f.level is Level.NONE} == {"tensorrt", "gstreamer", "bundle", "record"}
    assert "JetPack 6.1 or 6.2 (L4T 36.4.3)" in found["jetpack"].text and "7 frames taken" in found["display"].text
    assert "exposure 10 ms" in found["camera"].text and "MAXN" in found["power"].text


# --- one thing is wrong: (name of the check, level, what the line says, what mends it)


def l4t(release):
    def ill(b):
        b.write("/etc/nv_tegra_release", f"# R{release[:2]} (release), REVISION: {release[3:]}, GCID: 1\n")

    return ill


def trt(version, release="36.4.3"):
    def ill(b):
        l4t(release)(b)
        b.set("model", backend="tensorrt")
        b.versions["tensorrt"] = version

    return ill


def attr(**values):
    return lambda b: [setattr(b, name, value) for name, value in values.items()]


def said(command, text):
    return lambda b: b.said.__setitem__(tuple(command.split()), text)


def written(path, text):
    return lambda b: b.write(path, text)


def config(section, **keys):
    return lambda b: b.set(section, **keys)


def gone(path):
    return lambda b: (b.root / path.lstrip("/")).unlink()


def both(*ills):
    return lambda b: [ill(b) for ill in ills]


def no_camera(source):
    raise CameraError(f"{source}: opened, but gives no picture")


def a_folder(b):
    (b.root / "dev/ttyUSB0").unlink()
    (b.root / "dev/ttyUSB0").mkdir()


def a_bundle_that_leads_nowhere(b):
    (b.root / "var/lib/physvlm/bundles").mkdir(parents=True)
    (b.root / "var/lib/physvlm/bundles/current").symlink_to("away")


def altered_weights(b):
    from engines.sidecar import DEFAULT_WEIGHTS

    for name in ("student.json", "parity.npz", "student_stem_fp32.onnx"):
        target = b.root / "w" / name
        target.parent.mkdir(exist_ok=True)
        data = bytearray((DEFAULT_WEIGHTS.parent / name).read_bytes())
        if name.endswith("onnx"):
            data[100] ^= 1
        target.write_bytes(data)
    b.set("model", weights="/w")


def usb_camera(*ports):
    """Cameras alike at these USB ports, as sysfs shows them."""
    def ill(b):
        for n, port in enumerate(ports):
            usb_device(b.root, "video4linux", f"video{2 * n}", port, "046d", "0825", index="0")

    return ill


def records(folder="/data/records", owner_bits=0o777, unit="/data", **keys):
    """Recording is on, in a folder with these permissions that the unit lets the service write."""
    def ill(b):
        b.set("record", folder=folder, **({"max_mb": 100} | keys))
        at = b.root / folder.lstrip("/")
        at.mkdir(parents=True, exist_ok=True)
        at.chmod(owner_bits)
        b.write(UNIT, (b.root / UNIT.lstrip("/")).read_text() + f"ReadWritePaths=-{unit}\n")

    return ill


def a_file_to_record_in(b):
    b.write("/data/records", "")
    b.set("record", folder="/data/records")


DPKG = "Package: python3-libnvinfer\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n"
OF_BUNDLE = config("model", weights="/var/lib/physvlm/bundles/current/weights")
FAULT, WARN, NONE, OK = Level.FAULT, Level.WARN, Level.NONE, Level.OK
ILL = {
    "no Jetson": (gone("/etc/nv_tegra_release"), "jetpack", NONE, "no Jetson", ""),
    "JetPack 5": (l4t("35.4.1"), "jetpack", FAULT, "Python 3.8", "flash JetPack"),
    "JetPack of the future": (l4t("41.2.0"), "jetpack", WARN, "expected JetPack 6 or 7", "newer release"),
    "old Python": (attr(python=(3, 9)), "python", FAULT, "expected 3.10", "python3.10"),
    "Python that is not JetPack's": (both(trt("10.3.0"), attr(python=(3, 12))),
                                     "python", FAULT, "expected 3.10", "python3.10 -m"),
    "no onnxruntime": (lambda b: b.versions.pop("onnxruntime"), "packages", FAULT, "onnxruntime", "pip install"),
    "no TensorRT": (trt(None), "tensorrt", FAULT, "not installed", "apt-get install python3-libnvinfer"),
    "pip's TensorRT": (trt("10.14.1"), "tensorrt", FAULT, "does not belong to JetPack 6.1 or 6.2", "pip uninstall tensorrt"),
    "JetPack's TensorRT out of sight": (both(trt(None), written("/var/lib/dpkg/status", DPKG)), "tensorrt", FAULT,
                                        "TensorRT 10.3.0.30 is JetPack's, and this environment does not see it",
                                        "python3.10 -m venv --clear --system-site-packages"),
    "JetPack 5's TensorRT": (trt("8.5.2.2", "35.4.1"), "tensorrt", NONE, "see jetpack", ""),
    "JetPack 5's Python": (both(trt("8.5.2.2", "35.4.1"), attr(python=(3, 10))), "python", OK, "3.10", ""),
    "no pycuda": (both(trt("10.3.0"), lambda b: b.versions.pop("pycuda")), "packages", FAULT, "pycuda", "physvlm-edge[jetson]"),
    "a bundle and nothing to prove it on": (both(trt("10.3.0"), OF_BUNDLE, lambda b: b.versions.pop("onnxruntime")),
                                            "packages", FAULT, "not installed: onnxruntime", "pip install 'onnxruntime'"),
    "a bundle and nothing to verify it with": (both(OF_BUNDLE, lambda b: b.versions.pop("cryptography")),
                                               "packages", FAULT, "not installed: cryptography", "'cryptography'"),
    "TensorRT of 7.2": (trt("10.16.2", "39.2.0"), "tensorrt", OK, "10.16.2", ""),
    "TensorRT 11 on JetPack 6": (trt("11.4.1"), "tensorrt", FAULT, "11.4.1", "reinstall python3-libnvinfer"),
    "no GStreamer": (both(config("camera", source="csi:0"), said("ldconfig -p", "libc.so")),
                     "gstreamer", FAULT, "libgstapp", "apt-get"),
    "no Argus": (both(config("camera", source="csi:0"), said("systemctl is-active nvargus-daemon", "failed")),
                 "gstreamer", FAULT, "nvargus-daemon is failed", "restart nvargus-daemon"),
    "no power mode": (said("nvpmodel -q", "error"), "power", WARN, "does not tell", "sudo nvpmodel"),
    "moving clocks": (written("/sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq", "115200"),
                      "clocks", WARN, "115-2201 MHz", "jetson_clocks"),
    "no clocks": (gone("/sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq"), "clocks", NONE, "no clock to be read", ""),
    "warm": (written("/sys/class/thermal/thermal_zone0/temp", "85000"), "heat", WARN, "85 degrees", "fan"),
    "hot": (written("/sys/class/thermal/thermal_zone0/temp", "97000"), "heat", FAULT, "97 degrees", "fan"),
    "little memory": (written("/proc/meminfo", "MemAvailable: 400000 kB\n"), "memory", WARN, "390 MB", "desktop"),
    "no memory": (written("/proc/meminfo", "MemAvailable: 100000 kB\n"), "memory", FAULT, "97 MB", "desktop"),
    "little disk": (attr(space=Disk(300 << 20, False)), "disk", WARN, "300 MB", "du"),
    "full disk": (attr(space=Disk(10 << 20, False)), "disk", FAULT, "10 MB", "du"),
    "read-only disk": (attr(space=Disk(5 << 30, True)), "disk", FAULT, "read-only", "remount"),
    "no log limits": (both(gone(JOURNAL), written("/etc/systemd/journald.conf", "[Journal]\n")),
                      "log", WARN, "tenth of the disk", "physvlm install"),
    "not installed": (gone(UNIT), "service", WARN, "not installed", "physvlm install --apply"),
    "no program": (gone("/opt/bin/physvlm"), "service", FAULT, "/opt/bin/physvlm", "--program"),
    "no user": (written("/etc/passwd", "root:x:0:0::/root:/bin/sh\n"), "service", FAULT, "no user physvlm", "systemd-sysusers"),
    "not enabled": (said("systemctl is-enabled physvlm", "disabled"), "service", WARN, "disabled", "enable --now"),
    "failed": (said("systemctl is-active physvlm", "failed"), "service", FAULT, "failed", "journalctl -u physvlm"),
    "no rules": (gone(RULES), "names", FAULT, "no rule gives", "physvlm install --camera"),
    "one of two cameras": (usb_camera("1-2", "1-3"), "names", FAULT,
                           "any of 2 devices that fit 046d:0825: video0 (USB port 1-2)", "--camera VENDOR:PRODUCT:SERIAL"),
    "one camera": (usb_camera("1-2"), "names", OK, "/dev/physvlm-camera", ""),
    "rules not read yet": (both(usb_camera("1-2"), gone("/dev/physvlm-camera")), "names", FAULT,
                           "video0 fits 046d:0825, and udev has not made", "udevadm control --reload && sudo udevadm trigger"),
    "no camera": (gone("/dev/physvlm-camera"), "camera", FAULT, "found: video0", "lsusb"),
    "camera of others": (lambda b: (b.root / "dev/video0").chmod(0o600),
                         "camera", FAULT, "physvlm may not use", "usermod -aG video"),
    "camera in use": (lambda b: b.holds(77, "cheese", b.root / "dev/video0"),
                      "camera", FAULT, "in use by cheese (process 77)", "fuser"),
    "camera in use by us": (lambda b: b.holds(812, "physvlm", b.root / "dev/video0"), "camera", OK, "by the service", ""),
    "camera without picture": (attr(picture=no_camera), "camera", FAULT, "gives no picture", "unplug"),
    "camera that refuses": (attr(picture=lambda s: Picture("refused: gain: EACCES")),
                            "camera", FAULT, "refused: gain", "v4l2-ctl"),
    "camera that lacks": (attr(picture=lambda s: Picture("lacking: no gain")), "camera", WARN, "lacking", "light steady"),
    "a file for a camera": (config("camera", source="clip.mkv"), "camera", WARN, "video file", "source"),
    "no port configured": (config("serial", port=""), "port", WARN, "no display", "[serial] port"),
    "no port": (gone("/dev/physvlm-display"), "port", FAULT, "no serial port at", "cable"),
    "port is a folder": (a_folder, "port", FAULT, "is a folder", CONFIG),
    "port of others": (lambda b: (b.root / "dev/ttyUSB0").chmod(0o600), "port", FAULT, "may not use", "usermod -aG dialout"),
    "port held by a prompt": (lambda b: b.holds(90, "agetty", b.root / "dev/ttyUSB0"),
                              "port", FAULT, "held by agetty", "nvgetty"),
    "port held by ModemManager": (lambda b: b.holds(91, "ModemManager", b.root / "dev/ttyUSB0"), "port", FAULT, "ModemManager",
                                  "disable --now ModemManager"),
    "kernel's console": (written("/proc/cmdline", "console=ttyUSB0,115200"), "rivals", FAULT, "console", "extlinux.conf"),
    "console of a port with a longer name": (written("/proc/cmdline", "console=ttyUSB01,115200"), "rivals", OK, "nobody", ""),
    "login prompt": (said("systemctl is-active serial-getty@ttyUSB0", "active"), "rivals", FAULT, "login prompt on ttyUSB0",
                     "systemctl mask --now serial-getty@ttyUSB0"),
    "ModemManager about": (both(said("systemctl is-active ModemManager", "active"), written(RULES, "")),
                           "rivals", WARN, "AT commands",
                           "physvlm install --display"),
    "silent display": (attr(answers=b""), "display", WARN, "no STATUS within 3 s", "TX"),
    "wrong baud": (attr(answers=bytes(range(200))), "display", FAULT, "200 bytes came, none of them a STATUS", "baud alike"),
    "display unplugged": (attr(port_error=OSError(errno.EIO, "Input/output error")), "display", FAULT, "was lost", "cable"),
    "display's port taken": (attr(port_error=LinkError("port is taken by x")), "display", FAULT, "is taken by", "ls -l"),
    "no weights": (config("model", weights="/nowhere"), "weights", FAULT, "no sidecar", "physvlm-edge"),
    "altered weights": (altered_weights, "weights", FAULT, "was altered", "physvlm-edge"),
    "no plans": (both(trt("10.3.0"), config("model", engine_cache="/plans")), "engine", FAULT, "no plans", "physvlm prepare"),
    "records": (records(), "record", OK, "/data/records, 0 of 100 MB", ""),
    "records where systemd makes the place": (config("record", folder="/var/lib/physvlm/records/x", max_mb=16), "record", OK,
                                              "0 of 16 MB", ""),
    "records in a file": (a_file_to_record_in, "record", FAULT, "is a file; expected a folder", "[record] folder"),
    "records that the unit shuts out": (records(unit="/elsewhere"), "record", FAULT, "may write only below",
                                        "--data /data/records"),
    "records of others": (records(owner_bits=0o755), "record", FAULT, "physvlm may not write", "sudo install -d -o physvlm"),
    "records on a read-only disk": (both(records(), attr(space=Disk(5 << 30, True))),
                                    "record", FAULT, "read-only", "remount,rw"),
    "records without room": (both(records(), attr(space=Disk(90 << 20, False))),
                             "record", WARN, "90 MB free", "[record] max_mb"),
    "bundle of nothing": (a_bundle_that_leads_nowhere, "bundle", FAULT, "leads nowhere", "bundle install"),
    "bundle not installed": (config("model", weights="/var/lib/physvlm/bundles/current/weights"), "bundle", FAULT, "no bundle",
                             "bundle install"),
}


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_found_and_said_with_what_mends_it(bench, name):
    ill, check, level, text, mend = ILL[name]
    ill(bench)
    found = bench.finding(check)
    assert found.level is level and text in found.text and mend in found.mend, found
    assert (found.level in (Level.WARN, Level.FAULT)) == bool(found.mend)
    assert "\n" not in table([found]).splitlines()[0] and len(found.text) < 400


@pytest.mark.parametrize(("mend", "runs"), [
    ("sudo physvlm install --apply", "sudo /opt/p/physvlm install --apply"),
    ("dmesg | tail", "dmesg | tail"), ("sudoedit /etc/physvlm/physvlm.toml", "sudoedit /etc/physvlm/physvlm.toml"),
    ("sudo -u physvlm physvlm prepare --config /etc/physvlm/physvlm.toml",
     "sudo -u physvlm /opt/p/physvlm prepare --config /etc/physvlm/physvlm.toml"),
    ("sudo usermod -aG video physvlm; sudo systemctl restart physvlm",
     "sudo usermod -aG video physvlm; sudo systemctl restart physvlm"),
    ("pip uninstall tensorrt", f"{sys.executable} -m pip uninstall tensorrt")])
def test_a_command_that_mends_runs_from_any_shell(mend, runs):
    """sudo searches no environment of Python, and of pip there are many."""
    assert runnable(mend, "/opt/p/physvlm").removeprefix("sudo " * ("pip" in mend and os.geteuid() != 0)) == runs
    assert runnable("sudo physvlm doctor") == f"sudo {Path(sys.executable).with_name('physvlm')} doctor"


def test_the_command_that_mends_is_that_of_the_installed_program(bench):
    bench.write("/etc/systemd/journald.conf", "[Journal]\n")
    (bench.root / JOURNAL.lstrip("/")).unlink()
    assert bench.findings()["log"].mend == "sudo /opt/bin/physvlm install --apply"


def test_the_configuration_is_that_which_the_service_runs_with(bench):
    apply(Settings("/opt/bin/physvlm", root=bench.root, bundle=True))
    bench.write("/var/lib/physvlm/bundles/current/physvlm.toml", '[vitals]\nprofile = "adult"\n')
    case = case_of(bench.system(), None)
    assert case.config.vitals.profile == "adult" and case.config.model.engine_cache == "/var/cache/physvlm"
    bench.write("/var/lib/physvlm/bundles/current/physvlm.toml", "[vitals\n")
    found = {f.check: f for f in examine(case_of(bench.system(), None))}
    assert found["config"].level is Level.FAULT and found["config"].mend.endswith("physvlm bundle rollback")


def test_a_check_that_breaks_is_one_fault_and_spares_the_others(bench):
    bench.write("/etc/passwd", "physvlm:x:many:990::/var/lib/physvlm:/sbin/nologin\n")
    found = bench.findings()
    assert found["service"].level is Level.FAULT and "this check broke: ValueError" in found["service"].text
    assert found["memory"].level is Level.OK and len(found) == 22


@pytest.mark.parametrize("closed", ["etc", "etc/systemd", "var/cache/physvlm", "var/lib/physvlm"])
def test_what_may_not_be_read_is_said_and_is_no_traceback(tmp_path, closed):
    root = tmp_path / "root"
    root.mkdir()
    apply(Settings("/opt/bin/physvlm", root=root, bundle=True, config={"model.backend": "tensorrt"}))
    (root / "var/cache/physvlm").mkdir(parents=True)
    (root / closed).chmod(0)
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("no setpriv here (util-linux)")
    try:
        done = subprocess.run([*drop, sys.executable, "-m", "edge", "doctor", "--root", str(root)], capture_output=True,
                              text=True, cwd=Path(__file__).parents[1], timeout=60)
    finally:
        (root / closed).chmod(0o755)
    assert done.returncode == 1 and done.stderr == "" and "broke" not in done.stdout, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 23


@pytest.mark.parametrize(("release", "version", "level"), [
    ("35.4.1", "8.5.2.2-1+cuda11.4", Level.NONE), ("36.4.3", "10.3.0.30-1+cuda12.5", Level.OK),
    ("38.2.0", "1:10.13.3.9-1+cuda13.0", Level.OK), ("36.4.3", "10.13.3.9-1+cuda13.0", Level.FAULT)])
def test_of_an_image_tensorrt_is_what_its_packages_say(tmp_path, release, version, level):
    apply(Settings("/opt/bin/physvlm", root=tmp_path, config={"model.backend": "tensorrt"}))
    (tmp_path / "etc/nv_tegra_release").write_text(f"# R{release[:2]} (release), REVISION: {release[3:]}, GCID: 1\n")
    (tmp_path / "var/lib/dpkg").mkdir()
    (tmp_path / "var/lib/dpkg/status").write_text("Package: libc6\nStatus: install ok installed\nVersion: 2.35\n\n"
                                                  + DPKG.replace("10.3.0.30-1+cuda12.5", version))
    found = {f.check: f for f in examine(case_of(System(tmp_path), None))}
    assert found["tensorrt"].level is level and found["python"].level is Level.NONE
    assert found["jetpack"].level is (Level.FAULT if release.startswith("35") else Level.OK)
    assert found["camera"].level is Level.NONE and found["weights"].level is Level.NONE


def test_plans_of_another_release_are_found_before_the_next_start(bench):
    from engines import plan
    from engines.plan import Plan
    from engines.sidecar import load

    spec, _ = load()
    folder = bench.root / "plans"
    folder.mkdir()
    bench.set("model", backend="tensorrt", engine_cache="/plans")
    (folder / "selected.json").write_text(json.dumps({"model": spec.name, "precision": "int8"}))
    for part in ("stem", "head"):
        plan.write(folder / f"{spec.name}_int8_{part}.plan", Plan(part, "int8", {"tensorrt": "10.3.0", "l4t": "36.4.3"}, b"x"))
    assert bench.finding("engine").level is Level.OK
    l4t("36.5.0")(bench)
    found = bench.finding("engine")
    assert found.level is Level.FAULT and "built for l4t 36.4.3, this is 36.5.0" in found.text and "--rebuild" in found.mend
    (folder / f"{spec.name}_int8_head.plan").write_bytes(b"nonsense")
    l4t("36.4.3")(bench)
    assert "cannot be read" in bench.finding("engine").text


def test_a_configuration_that_cannot_be_used_is_one_fault_and_its_checks_wait(bench):
    bench.write(CONFIG, '[camera]\nrio = "full"\n')
    case = case_of(bench.system(), None)
    found = {f.check: f for f in examine(case)}
    assert found["config"].level is Level.FAULT and "did you mean 'roi'" in found["config"].text
    assert found["camera"].level is Level.NONE and "not looked at" in found["camera"].text
    assert found["memory"].level is Level.OK


def test_the_table_of_releases_leaves_no_release_to_two_jetpacks():
    spans = [j.l4t for j in check_machine.JETPACKS]
    assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_on_this_machine_it_looks_and_tells_in_lines_and_in_json(capsys, tmp_path):
    (tmp_path / "c.toml").write_text('[camera]\nsource = "usb:/dev/none"\n')
    code = main(["doctor", "--config", str(tmp_path / "c.toml")])
    lines = capsys.readouterr().out.splitlines()
    assert code == 1 and all(re.match(r"(OK|-|WARN|FAULT) +\w+ +\S", line) for line in lines[:-1])
    assert len(lines) == 1 + len(check_machine.CHECKS) + 11
    assert any(line.startswith("FAULT camera") and "/dev/none" in line for line in lines)
    code = main(["doctor", "--config", str(tmp_path / "c.toml"), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 1 and told["faults"] >= 1 and {"level", "check", "text", "mend"} == set(told["checks"][0])


def test_of_another_root_only_files_are_looked_at(bench, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a command was run"))
    case = case_of(System(bench.root), None)
    found = examine(case)
    assert as_json(case, found)["config"].endswith("physvlm.toml")
    assert {f.check: f.level for f in found}["service"] is Level.NONE


def test_a_command_that_hangs_or_is_not_there_is_none(monkeypatch):
    monkeypatch.setattr("edge.appliance.system.COMMAND_S", 60.0)
    assert run_command(["echo", "x"]) == Ran(0, "x") and run_command(["no-such-command"]) is None
    monkeypatch.setattr("edge.appliance.system.COMMAND_S", 0.1)
    assert run_command(["sleep", "5"]) is None


def test_who_has_a_device_open_is_found_in_this_machine_s_own_proc(tmp_path):
    path = tmp_path / "device"
    path.touch()
    script = "import sys; held = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        assert [pid for pid, _ in System().holders(str(path))] == [child.pid]
    finally:
        child.communicate()
    assert System().holders(str(path)) == []


