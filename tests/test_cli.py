"""The device's commands as a user meets them: exit codes, clean messages, and what a replay writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tty
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.__main__ import main as lab
from edge.__main__ import main
from engines.sidecar import DEFAULT_WEIGHTS
from firmware_bridge.frame import Decoder, Verdict
from firmware_bridge.messages import Bye, Hello, Vitals
from firmware_bridge.port import open_serial
from tests.fake_engine import picture, textured
from tests.videos import grey_steps, write_video

ROOT = Path(__file__).resolve().parents[1]
OK, USAGE = 0, 2


def command(*args, module="edge"):
    """A subcommand in a process of its own, as from a shell."""
    return subprocess.run([sys.executable, "-m", module, *map(str, args)], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)


def here(capsys, *args):
    """A subcommand in this process (a tenth of the time): (exit code, stdout, stderr). An exception fails the test."""
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


def moving(seconds, fps=30.0, hr=150.0):
    still = textured()
    return [picture(still, i / fps, hr, 45.0) for i in range(round(seconds * fps))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "short.avi", moving(4.0))


# --- replay


def test_replay_in_its_own_process_writes_json_table_wire_and_picture(clip, tmp_path):
    out, wire, plot = tmp_path / "out.json", tmp_path / "wire.bin", tmp_path / "out.png"
    done = command("replay", clip, "--json", out, "--wire", wire, "--plot", plot, "--roi", "full")
    assert done.returncode == OK, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(out.read_text())
    assert result["video"] == str(clip) and result["frames"] == 120 and len(result["readings"]) == 4
    assert result["peak_rss_mb"] <= 180
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 4 + 2 and lines[-1].startswith("RR:")
    decoded = Decoder().feed(wire.read_bytes())
    assert {frame.verdict for frame in decoded} == {Verdict.OK}
    assert isinstance(decoded[0].message, Hello) and isinstance(decoded[-1].message, Bye)
    assert sum(isinstance(frame.message, Vitals) for frame in decoded) == 8
    assert cv2.imread(str(plot)).shape == (1040, 1280, 3)


def test_a_clip_shorter_than_any_reading_needs_shows_no_number(capsys, tmp_path):
    clip = write_video(tmp_path / "short.avi", moving(3.5))  # four seconds are the least that a pulse is looked for in
    code, out, _ = here(capsys, "replay", clip, "--json", "-")
    result = json.loads(out)
    assert code == OK and result["summary"]["hr_median"] is None and result["summary"]["rr_shown_fraction"] == 0
    assert {row["hr_state"] for row in result["readings"]} == {"SEARCHING"}


def test_a_clip_of_under_a_second_says_so(capsys, tmp_path):
    code, out, _ = here(capsys, "replay", write_video(tmp_path / "v.avi", moving(0.5)), "--plot", tmp_path / "p.png")
    assert code == OK and "shorter than one second" in out and (tmp_path / "p.png").exists()


def test_a_grey_video_is_read(capsys, tmp_path):
    av = pytest.importorskip("av", reason="PyAV writes grey video")
    path = tmp_path / "grey.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for bgr in moving(1.2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr[..., 1]), format="gray")))
        container.mux(stream.encode(None))
    code, out, _ = here(capsys, "replay", path, "--json", "-")
    assert code == OK and len(json.loads(out)["readings"]) == 1


def test_4k_is_read(capsys, tmp_path):
    big = [cv2.resize(p, (3840, 2160), interpolation=cv2.INTER_NEAREST) for p in moving(0.2)]
    code, out, _ = here(capsys, "replay", write_video(tmp_path / "4k.avi", big, fourcc="MJPG"), "--json", "-")
    assert code == OK and json.loads(out)["frames"] == 6


def test_five_frames_a_second_show_no_pulse(capsys, tmp_path):
    code, out, _ = here(capsys, "replay", write_video(tmp_path / "slow.avi", moving(14, fps=5.0), fps=5.0), "--json", "-")
    result = json.loads(out)
    assert code == OK and result["fps"] == pytest.approx(5, abs=0.1) and result["summary"]["hr_median"] is None


def test_replay_imports_nothing_of_the_lab_and_no_heavy_package(clip):
    """Start-up and memory are spent on imports: the budget is 1.5 s and 180 MB."""
    script = ("import sys; from edge.__main__ import main; code = main(['replay', sys.argv[1], '--json', '-']); "
              "print(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", script, str(clip)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == OK, done.stderr
    loaded = set(eval(done.stderr.splitlines()[-1]))
    assert {"numpy", "cv2", "onnxruntime"} <= loaded
    assert not loaded & {"torch", "scipy", "pywt", "onnx", "matplotlib", "av", "tensorrt", "calibration", "distillation"}


def test_nothing_is_told_to_the_makers_of_onnx_runtime(clip, tmp_path):
    """Its official builds keep a number for this machine, and a database of reports to be sent, unless they are told not to."""
    places = {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    keep = {k: v for k, v in os.environ.items() if k not in ("CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")}
    done = subprocess.run([sys.executable, "-m", "edge", "replay", clip, "--json", "-"], cwd=ROOT, env=keep | places,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == OK, done.stderr
    assert list(tmp_path.rglob("*")) == []


# --- what cannot be used


def text_file(tmp_path):
    (tmp_path / "v.avi").write_text("this is no video\n" * 50)
    return tmp_path / "v.avi"


def headless(tmp_path):
    (tmp_path / "v.avi").write_bytes(write_video(tmp_path / "whole.avi", grey_steps(30)).read_bytes()[:300])
    return tmp_path / "v.avi"


def empty_file(tmp_path):
    (tmp_path / "v.avi").touch()
    return tmp_path / "v.avi"


@pytest.mark.parametrize(("video", "message"), [
    (lambda p: p / "none.avi", "no such file"), (lambda p: p, "folder"), (empty_file, "is empty"),
    (text_file, "not a video"), (headless, "v.avi")])
def test_what_is_no_video_is_refused(capsys, tmp_path, video, message):
    code, out, err = here(capsys, "replay", video(tmp_path))
    assert code == USAGE and out == "" and message in err and err.startswith("physvlm: ")


def test_a_truncated_video_is_read_as_far_as_it_goes(capsys, tmp_path):
    whole = write_video(tmp_path / "whole.mkv", moving(3.0)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[:len(whole) * 2 // 3])
    code, out, _ = here(capsys, "replay", tmp_path / "cut.mkv", "--json", "-")
    assert code == OK and 30 <= json.loads(out)["frames"] < 90


@pytest.mark.parametrize(("args", "message"), [
    (["--roi", "50,0,20,20"], "64x48"), (["--roi", "0,0,0,5"], "above 0"), (["--roi", "face"], "X,Y,W,H"),
    (["--backend", "tensorrt"], "onnxruntime"), (["--backend", "magic"], "magic"), (["--precision", "int4"], "int4"),
    (["--weights", "/nowhere"], "no sidecar"), (["--profile", "cat"], "cat"), (["--config", "/nowhere.toml"], "nowhere.toml"),
    (["--wire", "{tmp}/none/wire.bin"], "cannot be written"), (["--json", "{tmp}/none/out.json"], "folder"),
    (["--json", "{tmp}"], "file"), (["--plot", "{tmp}/none/p.png"], "folder"), (["--frobnicate"], "unrecognized")])
def test_wrong_usage_is_exit_2_with_the_reason(capsys, clip, tmp_path, args, message):
    code, out, err = here(capsys, "replay", clip, *(arg.format(tmp=tmp_path) for arg in args))
    assert code == USAGE and out == "" and message in err


@pytest.mark.parametrize("flag", ["--wire", "--json", "--plot"])
def test_the_recording_is_never_overwritten(capsys, clip, tmp_path, flag):
    video = shutil.copy(clip, tmp_path / "v.avi")
    code, _, err = here(capsys, "replay", video, flag, video)
    assert code == USAGE and "would be overwritten" in err and video.read_bytes() == clip.read_bytes()


def test_an_unknown_key_is_named_and_so_is_what_was_meant(capsys, clip, tmp_path):
    (tmp_path / "c.toml").write_text('[camera]\nrio = "full"\n')
    code, _, err = here(capsys, "replay", clip, "--config", tmp_path / "c.toml")
    assert code == USAGE and "unknown key 'rio'" in err and "did you mean 'roi'" in err


@pytest.mark.parametrize("part", ["student_stem_fp32.onnx", "student.json"])
def test_altered_weights_refuse_to_start(capsys, clip, tmp_path, part):
    weights = shutil.copytree(DEFAULT_WEIGHTS.parent, tmp_path / "weights")
    data = bytearray((weights / part).read_bytes())
    data[len(data) // 2] ^= 0x80
    (weights / part).write_bytes(data)
    code, out, err = here(capsys, "replay", clip, "--weights", weights)
    assert code == USAGE and out == "" and part in err


def test_weights_of_another_preprocessing_refuse_to_start(capsys, clip, tmp_path):
    weights = shutil.copytree(DEFAULT_WEIGHTS.parent, tmp_path / "weights")
    record = json.loads((weights / "student.json").read_text())
    record["model"]["normalisation"]["gap_s"] = 0.5
    (weights / "student.json").write_text(json.dumps(record))
    code, _, err = here(capsys, "replay", clip, "--weights", weights)
    assert code == USAGE and "gap_s" in err


def test_a_refusal_from_the_shell_has_no_traceback():
    done = command("replay", "/nowhere/clip.avi")
    assert done.returncode == USAGE and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# --- run, dump


def test_run_plays_a_file_to_a_port_that_is_its_own(capsys, clip, tmp_path):
    master, slave = os.openpty()
    tty.setraw(slave)
    try:
        other = open_serial(os.ttyname(slave), 115200, 1)
        code, _, err = here(capsys, "run", "--source", clip, "--port", os.ttyname(slave), "--roi", "full")
        assert code == USAGE and "is taken by" in err
        other.close()
        code, _, err = here(capsys, "run", "--source", clip, "--port", os.ttyname(slave), "--roi", "full",
                            "--wire", tmp_path / "wire")
        assert code == OK, err
        heard = [frame.message for frame in Decoder().feed(os.read(master, 65536))]
        assert isinstance(heard[0], Hello) and any(isinstance(m, Vitals) for m in heard)
    finally:
        os.close(master)
        os.close(slave)
    frames = Decoder().feed((tmp_path / "wire").read_bytes())
    assert isinstance(frames[-1].message, Bye) and all(frame.header.flags & 1 for frame in frames)
    code, out, _ = here(capsys, "dump", tmp_path / "wire")
    assert code == OK and "BYE" in out


@pytest.mark.parametrize("args", [["--port", "/dev/none0"], ["--source", "usb:none"], ["--source", "csi:none"]])
def test_run_without_port_or_camera_is_refused(capsys, clip, args):
    code, _, err = here(capsys, "run", *([] if "--source" in args else ["--source", clip]), *args)
    assert code == USAGE and args[1].rpartition(":")[2] in err


def test_without_a_command_usage_is_shown(capsys):
    code, _, err = here(capsys)
    assert code == USAGE and "usage: physvlm" in err


# --- the lab's commands that need no torch


def test_the_lab_renders_a_clip_that_replay_reads(capsys, tmp_path):
    clip = tmp_path / "baby.avi"
    assert lab(["phantom", str(clip), "--seconds", "1.2", "--size", "64x48", "--set", "codec=mjpeg:90", "--hr", "180"]) == OK
    capsys.readouterr()
    assert json.loads(clip.with_suffix(".json").read_text())["scene"]["hr_per_min"] == 180
    code, out, _ = here(capsys, "replay", clip, "--json", "-")
    assert code == OK and json.loads(out)["frames"] == 36


@pytest.mark.parametrize(("args", "message"), [
    (["--kind", "cat"], "cat"), (["--size", "64"], "phantom"), (["--set", "codec=mjpeg"], "mjpeg:QUALITY"),
    (["--set", "colour=3"], "colour"), (["--seconds", "0"], "holds no clip"), (["--set", "kind=cat"], "cat")])
def test_the_lab_refuses_a_scene_that_cannot_be(capsys, tmp_path, args, message):
    assert lab(["phantom", str(tmp_path / "x.avi"), "--size", "64x48", "--seconds", "0.2", *args]) == USAGE
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_lab_names_the_suites_it_knows(capsys):
    assert lab(["evaluate", "--suite", "sleeping"]) == USAGE
    assert "newborn" in capsys.readouterr().err
