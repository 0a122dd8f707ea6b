"""The clips of the benchmark: rendered newborns of known rates, or a folder of QA's own, replayed by the very command.

Rendering belongs to the lab, which this package never imports: it is asked for as a command of its own, where it is
installed. Rendered clips are kept and made anew when the renderer changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

WRONG_PER_MIN = 5.0
"""Further from the truth a number is wrong: the accuracy asked of heart rate meters (EC13)."""

STARTING_S = {"hr": 6.0, "rr": 12.0}
"""Before this no number can be expected, so that it is no lack of coverage."""

AVERAGING_S = {"hr": 8.0, "rr": 16.0}

STEADY_PER_MIN = 3.0
"""A clip that is played over and over has one truth, its median, as long as its averaged rate stays this near."""

# a well lit newborn that fills the picture: what the first numbers and the soak are judged on
_GOOD = ("--set", "subject_frac=0.9", "--set", "bare_chest=true", "--set", "motion_frac=0.001", "--set",
         "drift_amplitude=0.005", "--set", "pulse_amplitude=0.012", "--set", "breath_frac=0.008")
LIVE = ("--seconds", "30", "--seed", "10", "--hr", "150", "--rr", "48", "--size", "640x480", *_GOOD)
FILE = ("--seconds", "20", "--seed", "10", "--hr", "150", "--rr", "48", "--size", "528x592", *_GOOD)
_SMALL = ("--seconds", "40", "--size", "320x240", "--set", "subject_frac=0.7")
REFERENCE: dict[str, tuple[str, ...]] = {
    "newborn-110": (*_SMALL, "--seed", "11", "--hr", "110", "--rr", "35"),
    "newborn-150": (*_SMALL, "--seed", "12", "--hr", "150", "--rr", "50", "--set", "bare_chest=true"),
    "newborn-190": (*_SMALL, "--seed", "13", "--hr", "190", "--rr", "65"),
    "dark-skin": (*_SMALL, "--seed", "14", "--hr", "135", "--rr", "45", "--set", "skin_tone=0.9"),
    "dim-light": (*_SMALL, "--seed", "15", "--hr", "165", "--rr", "55", "--set", "brightness=0.5"),
    "empty-cot": (*_SMALL, "--seed", "16", "--kind", "empty_cot", "--hr", "none", "--rr", "none"),
    "doll": (*_SMALL, "--seed", "17", "--kind", "doll", "--hr", "none", "--rr", "none"),
}


class ClipError(RuntimeError):
    """A clip cannot be rendered or replayed; the message says what to do."""


@dataclass(frozen=True)
class Truth:
    """Rates per minute as series of fs_hz (one value: constant). None: there is no such rhythm; known False: nobody knows."""

    hr: NDArray[np.float64] | None
    rr: NDArray[np.float64] | None
    fs_hz: float = 1.0
    known: bool = True

    def at(self, vital: str, t_s: float) -> float | None:
        """The mean over the vital's averaging time before t_s: what a reading of then is about."""
        series = getattr(self, vital)
        if series is None:
            return None
        stop = int(np.clip(round(t_s * self.fs_hz), 1, series.size))
        return float(series[max(0, stop - round(AVERAGING_S[vital] * self.fs_hz)):stop].mean())

    def steady(self, vital: str) -> float | None:
        """The median, where what an averaging monitor shows stays near it; else None."""
        series = getattr(self, vital)
        if series is None or not self.known:
            return None
        middle = float(np.median(series))
        seen = [self.at(vital, t_s) or 0.0 for t_s in np.arange(AVERAGING_S[vital], max(series.size / self.fs_hz, 20.0))]
        return middle if all(abs(value - middle) <= STEADY_PER_MIN for value in seen) else None


def can_render() -> bool:
    return importlib.util.find_spec("calibration") is not None


def rendered(folder: Path, name: str, scene: Sequence[str], tell: Callable[[str], None]) -> Path:
    """The clip, from the folder where it lies there as this renderer makes it. Raises ClipError."""
    path = folder / f"{name}-{_renderer()}-{hashlib.sha256(repr(scene).encode()).hexdigest()[:8]}.avi"
    if not path.exists():
        tell(f"rendering {path.name}")
        folder.mkdir(parents=True, exist_ok=True)
        _command("calibration", "phantom", str(path), *scene)
    return path


def as_mjpeg(clip: Path, tell: Callable[[str], None]) -> Path:
    """The clip as a web camera would give it, beside it with its truth: decoding FFV1 live would cost more than the chain."""
    path = clip.with_name(f"{clip.stem}-mjpeg.avi")
    if not path.exists():
        tell(f"encoding {path.name}")
        source = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG)
        size = int(source.get(cv2.CAP_PROP_FRAME_WIDTH)), int(source.get(cv2.CAP_PROP_FRAME_HEIGHT))
        partial = path.with_name(f"partial-{path.name}")
        sink = cv2.VideoWriter(str(partial), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"),
                               source.get(cv2.CAP_PROP_FPS), size)
        sink.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)
        while True:
            ok, picture = source.read()
            if not ok:
                break
            sink.write(picture)
        source.release()
        sink.release()
        path.with_suffix(".json").write_text(clip.with_suffix(".json").read_text())
        partial.replace(path)
    return path


def as_h264(clip: Path, tell: Callable[[str], None]) -> Path | None:
    """The clip as H.264, beside it; None where no encoder is installed (a device has none)."""
    path = clip.with_suffix(".mp4")
    if not path.exists():
        if importlib.util.find_spec("av") is None:
            return None
        tell(f"encoding {path.name}")
        partial = path.with_name(f"partial-{path.name}")
        _command("calibration.h264", str(clip), str(partial))
        partial.replace(path)
    return path


def _renderer() -> str:
    """A hash of the renderer's source."""
    spec = importlib.util.find_spec("calibration")
    if spec is None or not spec.submodule_search_locations:
        raise ClipError("nothing to render clips with (the package calibration is not installed): name a VIDEO, and a folder "
                        "of clips with --clips")
    digest = hashlib.sha256()
    for place in spec.submodule_search_locations:
        for file in sorted(Path(place).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def _command(module: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *args], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ClipError(f"{module} {' '.join(args)} failed (exit {done.returncode}): {last}")
    return done.stdout


def truth_of(clip: Path) -> Truth:
    """From CLIP.json or truth.json beside it: hr_per_min and rr_per_min, a number, a series or null. A key that is missing
    means that nobody knows. Raises ClipError for a file that says something else."""
    for path in (clip.with_suffix(".json"), clip.with_name("truth.json")):
        if not path.exists():
            continue
        try:
            said = json.loads(path.read_text())
            if "hr_per_min" not in said or "rr_per_min" not in said:
                break
            hr, rr = (None if said[name] is None else np.atleast_1d(np.asarray(said[name], float))
                      for name in ("hr_per_min", "rr_per_min"))
            return Truth(hr, rr, float(said.get("fs_hz", 1.0)))
        except (OSError, ValueError, TypeError) as e:
            raise ClipError(f"{path}: expected hr_per_min and rr_per_min, each a number, a list or null ({e})") from e
    return Truth(None, None, known=False)


def replay(clip: Path, options: Sequence[str]) -> tuple[dict[str, Any], float]:
    """(`physvlm replay --json`, CPU seconds of all of it, start and decoding included). Raises ClipError."""
    command = [sys.executable, "-m", "edge", "replay", str(clip), "--json", "-", "--log-level", "error", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("no pipes")
    out, said = process.stdout.read(), process.stderr.read()  # an error is short: it cannot fill its pipe
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise ClipError(f"replay of {clip} failed (exit {process.returncode}): {(said.strip().splitlines() or ['?'])[-1]}")
    return json.loads(out), used.ru_utime + used.ru_stime


def file_cost_ms(clip: Path, options: Sequence[str], folder: Path) -> float:
    """CPU milliseconds a frame, decoding included: of a replay, less what one of a single frame takes to start."""
    single = folder / "single.avi"
    capture = cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG)
    ok, picture = capture.read()
    capture.release()
    if not ok:
        raise ClipError(f"{clip}: no picture can be decoded")
    code = cv2.VideoWriter.fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(single), cv2.CAP_FFMPEG, code, 30.0, (picture.shape[1], picture.shape[0]))
    writer.write(picture)
    writer.release()
    start_s = min(replay(single, options)[1] for _ in range(3))
    runs = [replay(clip, options) for _ in range(2)]
    return min((cpu_s - start_s) / result["frames"] * 1e3 for result, cpu_s in runs)


def score(name: str, truth: Truth, result: dict[str, Any]) -> dict[str, Any]:
    """One row of the reference table. A number where there is no such rhythm is wrong; error: mean over what was shown."""
    row: dict[str, Any] = {"clip": name, "known": truth.known, "ms_per_frame": result["timing"]["ms_per_frame"]}
    for vital in ("hr", "rr"):
        rates = getattr(truth, vital)
        shown = [(r["t_s"], r[vital]) for r in result["readings"] if r[vital] is not None]
        due = [r for r in result["readings"] if r["t_s"] >= STARTING_S[vital]]
        errors = [] if rates is None else [abs(value - (truth.at(vital, t_s) or 0.0)) for t_s, value in shown]
        wrong = sum(error > WRONG_PER_MIN for error in errors) if rates is not None else len(shown)
        row |= {f"{vital}_truth": None if rates is None else round(float(np.median(rates)), 1),
                f"{vital}_median": round(median(value for _, value in shown), 1) if shown else None,
                f"{vital}_error": round(float(np.mean(errors)), 2) if errors else None,
                f"{vital}_wrong": wrong if truth.known else None, f"{vital}_shown": len(shown), f"{vital}_due": len(due)}
    return row


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Two replays of a clip in two precisions, reading by reading: differences where both show, and whether both or none do."""
    out: dict[str, list[Any]] = {"hr": [], "rr": [], "same": []}
    for a, b in zip(one["readings"], other["readings"], strict=True):
        for vital in ("hr", "rr"):
            out["same"].append((a[vital] is None) == (b[vital] is None))
            if a[vital] is not None and b[vital] is not None:
                out[vital].append(abs(a[vital] - b[vital]))
    return out
