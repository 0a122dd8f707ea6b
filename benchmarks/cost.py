"""What the runtime costs on this machine: `python benchmarks/cost.py [VIDEO]`; without a video it renders one (640x480, 30 s).

Prints the model step, the chain's CPU time per frame without decoding, peak memory, and the time from launch to the first
processed frame, each on one core and against the limit it is held to. Exit 1 when a limit is broken. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

LIMITS = {"model_ms_per_frame": 0.4, "chain_ms_per_frame": 1.5, "peak_rss_mb": 180.0, "first_frame_s": 1.5}
PHYSVLM = [sys.executable, "-m", "edge"]


def one_core() -> None:
    """In the child: all of it, decoder included, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def rendered(folder: Path) -> Path:
    path = folder / "clip.avi"
    subprocess.run([sys.executable, "-m", "calibration", "phantom", str(path), "--seconds", "30", "--seed", "7"], check=True)
    return path


def first_frame_s(video: Path) -> float:
    """Wall time from launch until the log says that the first frame went through the pipeline."""
    start = time.monotonic()
    process = subprocess.Popen([*PHYSVLM, "replay", str(video), "--log-level", "info"], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True, preexec_fn=one_core)
    assert process.stderr is not None
    for line in process.stderr:
        if "first frame" in line:
            taken = time.monotonic() - start
            process.kill()
            process.wait()
            return taken
    raise SystemExit(f"{video}: replay ended without a first frame (exit {process.wait()})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--roi", default="full", help="auto pays for a second view while it tries one")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = args.video or rendered(Path(folder))
        found: dict[str, list[float]] = {name: [] for name in LIMITS}
        for _ in range(args.repeats):
            out = Path(folder) / "replay.json"
            subprocess.run([*PHYSVLM, "replay", str(video), "--roi", args.roi, "--json", str(out)], check=True,
                           stdout=subprocess.DEVNULL, preexec_fn=one_core)
            result = json.loads(out.read_text())
            stages = result["timing"]["stages"]
            found["model_ms_per_frame"].append(stages["stem"] + stages["head"])
            found["chain_ms_per_frame"].append(result["timing"]["ms_per_frame"])
            found["peak_rss_mb"].append(result["peak_rss_mb"])
            found["first_frame_s"].append(first_frame_s(video))
    print(f"{'figure':<20} {'median':>8} {'min':>8} {'max':>8} {'limit':>8}")
    broken = False
    for name, values in found.items():
        broken = broken or median(values) > LIMITS[name]
        print(f"{name:<20} {median(values):8.3f} {min(values):8.3f} {max(values):8.3f} {LIMITS[name]:8.2f}")
    print("stages, ms per frame:", json.dumps(stages))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
