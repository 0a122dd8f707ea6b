"""Twenty bad configurations and twenty bad devices, through the real command line: one clear line each, and no traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tty
from pathlib import Path

import pytest

from edge.__main__ import main
from engines.sidecar import DEFAULT_WEIGHTS
from firmware_bridge.port import open_serial
from tests.videos import grey_steps, write_video

ROOT = Path(__file__).resolve().parents[1]
FAULT, USAGE = 1, 2


def said(capsys, *args):
    """A command in this process: (exit code, what it said on stderr). An exception, which would be a traceback, fails here."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = main([str(arg) for arg in args])
    except SystemExit as stop:  # argparse's own refusals
        code = stop.code
    finally:
        for number, handler in handlers.items():  # `run` takes them over
            signal.signal(number, handler)
    out = capsys.readouterr()
    return code, out.out, out.err


def refusal(err):
    """The one line of a refusal; the log's lines before it are not counted."""
    lines = [line for line in err.splitlines() if line.startswith("physvlm: ")]
    assert len(lines) == 1 and len(lines[0]) < 600, err
    assert "Traceback" not in err and "Error(" not in err
    return lines[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "c.avi", grey_steps(5))


# name -> (what stands in the file, what the message must hold: where, what was expected or what to do)
BAD_CONFIGS = {
    "unknown key": ('[camera]\nrio = "full"\n', ("rio", "did you mean 'roi' in [camera]")),
    "unknown section": ('[kamera]\nroi = "full"\n', ("[kamera]", "[camera], [model]")),
    "key without section": ('roi = "full"\n', ("'roi' outside any section", "did you mean")),
    "key of another section": ('[camera]\nprofile = "adult"\n', ("profile", "[vitals]")),
    "no TOML": ("camera: {roi: full}\n", ("not a TOML file", "line 1")),
    "a key twice": ('[log]\nlevel = "info"\nlevel = "debug"\n', ("not a TOML file", "line 3")),
    "no UTF-8": (b'[camera]\nsource = "\xff"\n', ("not a TOML file", "no UTF-8")),
    "a zero byte": (b"[camera]\x00\n", ("not a TOML file",)),
    "a number for text": ("[camera]\nsource = 0\n", ("camera.source", "expected text, got 0")),
    "text for a number": ('[serial]\nbaud = "115200"\n', ("serial.baud", "expected 9600", "got '115200'")),
    "a rate that no display has": ("[serial]\nbaud = 12345\n", ("serial.baud", "9600", "got 12345")),
    "true for one": ("[serial]\nstop_bits = true\n", ("serial.stop_bits", "1 or 2", "got True")),
    "text for a switch": ('[serial]\ndemo = "yes"\n', ("serial.demo", "true or false", "got 'yes'")),
    "a profile of no person": ('[vitals]\nprofile = "cat"\n', ("vitals.profile", "neonate or adult", "got 'cat'")),
    "an engine of no kind": ('[model]\nbackend = "cuda"\n', ("model.backend", "onnxruntime or tensorrt", "got 'cuda'")),
    "a precision of no kind": ('[model]\nprecision = "int4"\n', ("model.precision", "fp16", "got 'int4'")),
    "a region of no size": ('[camera]\nroi = "0,0,0,10"\n', ("camera.roi", "above 0", "got '0,0,0,10'")),
    "a region outside the picture": ('[camera]\nroi = "60,40,20,20"\n', ("64x48",)),
    "a region of words": ('[camera]\nroi = "left"\n', ("camera.roi", "X,Y,W,H", "got 'left'")),
    "a log level of no kind": ('[log]\nlevel = "loud"\n', ("log.level", "debug, info", "got 'loud'")),
    "weights that are not there": ('[model]\nweights = "/nowhere"\n', ("no sidecar at /nowhere", "expected a weights folder")),
    "a table for a value": ('[camera]\nroi = {x = 1}\n', ("camera.roi", "X,Y,W,H")),
    "an infinite room": ("[record]\nmax_mb = inf\n", ("record.max_mb", "got inf")),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_configuration_is_refused_with_place_and_reason(capsys, clip, tmp_path, name):
    content, expected = BAD_CONFIGS[name]
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    source = [] if b"source" in content else ["--source", clip]  # a flag wins over the file, and so hides what is wrong there
    code, out, err = said(capsys, "run", *source, "--config", path)
    line = refusal(err)
    assert code == USAGE and out == "" and all(part in line for part in expected), line


@pytest.mark.parametrize(("make", "expected"), [
    (lambda p: p / "none.toml", "cannot be read: No such file"), (lambda p: p, "no file; expected a TOML file"),
    (lambda p: Path("/dev/zero"), "no file; expected a TOML file"),
    (lambda p: "/proc/self/mem", "cannot be read")])
def test_a_configuration_that_cannot_be_read_is_refused(capsys, clip, tmp_path, make, expected):
    code, _, err = said(capsys, "run", "--source", clip, "--config", make(tmp_path))
    assert code == USAGE and expected in refusal(err)


# --- devices


def a_file(p):
    (p / "device").write_text("no device")
    return p / "device"


def below_a_file(p):
    return a_file(p) / "records"


def a_folder(p):
    return p


def dangling(p):
    (p / "physvlm-device").symlink_to("away")
    return p / "physvlm-device"


def altered(p):
    weights = shutil.copytree(DEFAULT_WEIGHTS.parent, p / "weights")
    data = bytearray((weights / "student_stem_fp32.onnx").read_bytes())
    data[1000] ^= 4
    (weights / "student_stem_fp32.onnx").write_bytes(data)
    return weights


def pipe(p):
    os.mkfifo(p / "pipe")
    return p / "pipe"


def broken_video(p):
    whole = write_video(p / "whole.avi", grey_steps(20)).read_bytes()
    (p / "broken.avi").write_bytes(whole[:400])
    return p / "broken.avi"


CLIP = object()
# name -> (arguments of `run`, where a function makes the device; what the message must hold)
BAD_DEVICES = {
    "no camera": (["--source", "usb:97"], ("usb:97", "/dev/video97", "found")),
    "no camera by name": (["--source", "usb:/dev/physvlm-camera"], ("no camera at /dev/physvlm-camera",)),
    "a name that leads nowhere": (["--source", dangling, "usb:"], ("physvlm-device", "No such file")),
    "a file for a camera": (["--source", a_file, "usb:"], ("device", "no video device")),
    "a folder for a camera": (["--source", a_folder, "usb:"], ("no video device",)),
    "another device for a camera": (["--source", "usb:/dev/null"], ("/dev/null", "no video device")),
    "a camera without a name": (["--source", "usb:"], ("usb:", "expected usb:N")),
    "a camera of words": (["--source", "usb:front"], ("usb:front", "expected usb:N")),
    "no such video": (["--source", "/nowhere/clip.mkv"], ("no such file", "a source is")),
    "a pipe for a video": (["--source", pipe], ("special file",)),
    "a video cut off": (["--source", broken_video], ("broken.avi", "picture", "decode")),
    "no port": (["--port", "/dev/ttyUSB97"], ("/dev/ttyUSB97 is not there", "Check cable")),
    "a port's name that leads nowhere": (["--port", dangling], ("is not there", "Check cable")),
    "a file for a port": (["--port", a_file], ("terminal device",)),
    "a folder for a port": (["--port", a_folder], ("terminal device",)),
    "another device for a port": (["--port", "/dev/null"], ("/dev/null", "terminal device")),
    "a wire file on a device that is full": (["--wire", "/proc/none"], ("/proc/none", "choose another")),
    "a file to record in": (["--record", a_file], ("device is a file", "expected a folder")),
    "a folder to record in, below a file": (["--record", below_a_file], ("device is a file", "expected a folder")),
    "altered weights": (["--weights", altered], ("student_stem_fp32.onnx was altered", "restore it")),
    "weights that are a file": (["--weights", a_file], ("student.json", "restore it")),
    "no TensorRT": (["--backend", "tensorrt"], ("ensor", "--backend onnxruntime")),
}


@pytest.mark.parametrize("name", BAD_DEVICES)
def test_a_bad_device_is_refused_with_what_to_do(capsys, clip, tmp_path, name):
    args, expected = BAD_DEVICES[name]
    flag, value, prefix = args[0], args[1], args[2] if len(args) > 2 else ""
    value = f"{prefix}{value(tmp_path) if callable(value) else value}"
    source = [] if flag == "--source" else ["--source", str(clip)]
    code, out, err = said(capsys, "run", *source, flag, value)
    line = refusal(err)
    assert code in (FAULT, USAGE) and out == "" and any(part in line for part in expected[-1:]) and expected[0] in line, line


def test_a_port_that_another_process_holds_is_refused_with_its_name(capsys, clip):
    master, slave = os.openpty()
    tty.setraw(slave)
    other = open_serial(os.ttyname(slave), 115200, 1)
    try:
        code, _, err = said(capsys, "run", "--source", clip, "--port", os.ttyname(slave))
        assert code == USAGE and "is taken by" in refusal(err) and "Stop the other process" in err
    finally:
        other.close()
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("args", [
    ["run", "--source", "usb:97"], ["run", "--source", "csi:97"], ["run", "--source", "gst:nonsense ! "],
    ["run", "--source", "usb:97", "--config", "/nowhere"], ["prepare"], ["replay", "/dev/null"],
    ["install", "--root", "/nowhere"], ["doctor", "--root", "/nowhere"], ["bundle", "verify", "/nowhere"],
    ["bundle", "rollback", "--store", "/nowhere/x"], ["bundle"], ["nonsense"]], ids=" ".join)
def test_from_a_shell_too_there_is_no_traceback(args):
    done = subprocess.run([sys.executable, "-m", "edge", *args], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (FAULT, USAGE) and done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "physvlm" in done.stderr.splitlines()[-1] and done.stdout == ""


# --- what the doctor says of bad devices, through its command line, over commands and files that say so


def fake_command(folder, name, script):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_the_doctor_tells_of_a_failed_service_and_a_restless_clock(capsys, tmp_path, monkeypatch):
    fake_command(tmp_path / "bin", "nvpmodel", "echo 'NV Power Mode: 15W'")
    fake_command(tmp_path / "bin", "systemctl", "echo failed; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "c.toml").write_text('[camera]\nsource = "csi:0"\n')
    code, out, err = said(capsys, "doctor", "--config", tmp_path / "c.toml")
    assert code == FAULT and err == "" and "power mode 15W" in out
    assert any(line.startswith(("FAULT gstreamer", "FAULT camera")) for line in out.splitlines())


@pytest.mark.parametrize(("path", "text", "line"), [
    ("etc/nv_tegra_release", "# R35 (release), REVISION: 4.1", "FAULT jetpack      JetPack 5.1"),
    ("proc/meminfo", "MemAvailable: 1000 kB", "FAULT memory       0 MB free"),
    ("sys/class/thermal/thermal_zone0/temp", "99000", "FAULT heat         thermal_zone0 at 99 degrees"),
    ("etc/physvlm/physvlm.toml", "[camera]\nrio = 1", "FAULT config"),
    ("etc/physvlm/physvlm.toml", '[camera]\nsource = "usb:5"\n', "FAULT camera       no camera at /dev/video5"),
    ("etc/physvlm/physvlm.toml", '[serial]\nport = "/dev/ttyUSB5"\n', "FAULT port         no serial port at /dev/ttyUSB5"),
    ("etc/physvlm/physvlm.toml", '[model]\nweights = "/w"\n', "FAULT weights      no sidecar"),
    ("etc/systemd/system/physvlm.service", "[Service]\nUser=physvlm\nExecStart=/opt/x run\n", "FAULT service      /opt/x")])
def test_the_doctor_tells_what_ails_another_root(capsys, tmp_path, path, text, line):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/null").touch()
    code, out, err = said(capsys, "doctor", "--root", tmp_path)
    assert code == FAULT and err == "" and any(found.startswith(line) and " -> " in found for found in out.splitlines()), out
