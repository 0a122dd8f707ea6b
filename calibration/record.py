"""Writes a rendered clip as a video that loses nothing (FFV1), with its truth beside it."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from calibration.phantom import Phantom

TRUTH_HZ = 30.0
"""Rate at which the truth's waves are written."""


class RecordingError(RuntimeError):
    """The clip cannot be written as a video."""


def record(phantom: Phantom, path: Path, title: str) -> None:
    """Render into `path` (.avi or .mkv) and write PATH.json: the scene, and rates and waves at TRUTH_HZ.

    The container holds one rate, so the scene must have even frame times. Progress goes to stderr. A clip that fails
    half way leaves nothing behind under its name.
    """
    scene = phantom.scene
    if scene.jitter_ms or scene.drop_fraction:
        raise RecordingError(f"scene has jitter_ms {scene.jitter_ms} and drop_fraction {scene.drop_fraction}; a video "
                             "file of one rate cannot hold them: set both to 0")
    if path.suffix not in (".avi", ".mkv"):
        raise RecordingError(f"{path}: expected a name ending in .avi or .mkv (FFV1 is written)")
    if not path.absolute().parent.is_dir():
        raise RecordingError(f"{path}: its folder does not exist; make it or choose another path")
    partial = path.with_name(f"partial-{path.name}")
    writer = cv2.VideoWriter(str(partial), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*"FFV1"), scene.fps,
                             (scene.width, scene.height))
    if not writer.isOpened():
        raise RecordingError(f"{path}: this OpenCV cannot write FFV1; install opencv-python-headless")
    total = phantom.frame_times_s.size
    with contextlib.ExitStack() as undo:
        undo.callback(partial.unlink, missing_ok=True)
        undo.callback(writer.release)
        for frame in phantom:
            writer.write(frame.bgr)
            if frame.seq % 15 == 0 or frame.seq + 1 == total:
                _progress(title, (frame.seq + 1) / total)
        undo.pop_all()
    writer.release()
    print(file=sys.stderr)
    partial.replace(path)
    path.with_suffix(".json").write_text(json.dumps(truth(phantom)))


def _progress(title: str, done: float) -> None:
    bar = "#" * round(30 * done)
    print(f"\r{title} [{bar:<30}] {100 * done:3.0f} %", end="", file=sys.stderr, flush=True)


def truth(phantom: Phantom) -> dict[str, object]:
    """The scene and, where there is a rhythm, its rate (per minute) and wave at TRUTH_HZ from time 0."""
    t_s = np.arange(int(phantom.scene.duration_s * TRUTH_HZ)) / TRUTH_HZ
    out: dict[str, object] = {"scene": asdict(phantom.scene), "fs_hz": TRUTH_HZ}
    for name, rhythm in (("hr", phantom.pulse), ("rr", phantom.breath)):
        out[f"{name}_per_min"] = None if rhythm is None else np.round(rhythm.rate_at(t_s), 2).tolist()
        out[f"{name}_wave"] = None if rhythm is None else np.round(rhythm.at(t_s), 4).tolist()
    return out
