"""Start, memory and cost a frame beside the peers, on one clip in one run: `python benchmarks/peers.py [--venv DIR] [--json]`.

Peers: open-rppg 0.1.1 (FacePhys.rlap, its default, and TSCAN.rlap, the cheapest of its networks), vitallens 0.6.2 (its local
method pos) and a plain POS loop. They are installed into an environment of their own (about 1.5 GB, once; network needed) and
run one after another, each on one core, repeats interleaved, so that a busy machine slows all alike: read the ratios. The
clip is rendered: a face of 528x592 at 30 frames a second, 10 s. Nothing of the peers is changed; the face's box is given to
those that take one.

Columns: start, from launch to the first model step done; step, CPU ms a frame of the model alone (stem and head for us); chain,
CPU ms a frame from picture to heart rate without decoding (where a peer takes pictures); memory, peak of the process, in which
the clip's 281 MB are counted for all. Exit 1
when a figure that the project claims is not reached: 5 times less CPU a frame than the best neural peer's model step, 10
times faster to start than open-rppg.
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

import numpy as np

PACKAGES = ("setuptools<80", "psutil", "open-rppg==0.1.1", "vitallens==0.6.2")
"""setuptools: open-rppg imports pkg_resources, which later ones lack. psutil: vitallens needs it and does not say so."""

LIMITS = {"step_ratio": 5.0, "start_ratio": 10.0}

COMMON = """
import json, resource, sys, time
import numpy as np
frames = np.load(sys.argv[1], mmap_mode="r")
def ready(): print("READY", flush=True)
def done(**found):
    found["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("FOUND " + json.dumps(found), flush=True)
def cpu_ms(work, n):
    begun = time.process_time()
    work()
    return (time.process_time() - begun) / n * 1e3
"""

OURS = COMMON + """
from edge.config import Config
from edge.pipeline import Pipeline
from edge.records import Frame
from edge.runtime import make_engine
from edge.vitals import PROFILES
import cv2
cv2.setNumThreads(1)
engine, _ = make_engine(Config())
spec = engine.spec
batch = np.zeros((30, spec.channels, spec.size, spec.size), np.float32)
ring, mask = np.random.default_rng(0).normal(size=(spec.window, spec.cells, spec.features)).astype(np.float32), \\
    np.ones(spec.window, np.float32)
engine.stem(batch); engine.head(ring, mask)
ready()
def steps():
    for _ in range(20):
        engine.stem(batch); engine.head(ring, mask)
step = cpu_ms(steps, 600)
h, w = frames.shape[1:3]
pipeline = Pipeline(engine, PROFILES["adult"], w, h, None, False)
def chain():
    for i, picture in enumerate(frames):
        pipeline.push(Frame(i, round(i / 30 * 1e9), picture), round(i / 30 * 1e9))
done(step_ms=step, chain_ms=cpu_ms(chain, len(frames)))
"""

OPEN_RPPG = COMMON + """
import rppg
model = rppg.Model("MODEL")
n = model.meta["input"][0]
face = np.random.default_rng(0).integers(0, 255, model.meta["input"], np.uint8)
def step():
    answer, model.state = model.call(face, model.state)
    return [np.asarray(value) for value in answer.values()]  # waits for it
step()
ready()
def steps():
    for _ in range(max(2, 200 // n)): step()
cost = cpu_ms(steps, max(2, 200 // n) * n)
def chain():
    with model:
        for i, picture in enumerate(frames):
            model.update_frame(np.ascontiguousarray(picture[..., ::-1]), ts=i / 30)
    model.hr(return_hrv=False)
done(step_ms=cost, chain_ms=cpu_ms(chain, len(frames)))
"""

VITALLENS = COMMON + """
import vitallens
h, w = frames.shape[1:3]
lens = vitallens.VitalLens(method="pos", detect_faces=False, export_to_json=False)
box = [int(0.25 * w), int(0.2 * h), int(0.75 * w), int(0.8 * h)]
rgb = np.ascontiguousarray(frames[..., ::-1])
lens(rgb[:150], faces=box, fps=30)
ready()
done(step_ms=None, chain_ms=cpu_ms(lambda: lens(rgb, faces=box, fps=30), len(frames)))
"""

POS_LOOP = COMMON + """
h, w = frames.shape[1:3]
box = np.s_[int(0.2 * h):int(0.8 * h), int(0.25 * w):int(0.75 * w)]
def pos(colour, fs=30.0, window=48):
    out = np.zeros(len(colour))
    for start in range(len(colour) - window + 1):
        c = colour[start:start + window]; c = c / c.mean(0)
        a, b = c[:, 1] - c[:, 2], c[:, 1] + c[:, 2] - 2 * c[:, 0]
        s = a + a.std() / (b.std() + 1e-9) * b
        out[start:start + window] += s - s.mean()
    power = np.abs(np.fft.rfft(out * np.hanning(len(out)), 4096)) ** 2
    hz = np.fft.rfftfreq(4096, 1 / fs); band = (hz > 0.7) & (hz < 4)
    return 60 * hz[band][power[band].argmax()]
import cv2
cv2.setNumThreads(1)
pos(np.random.default_rng(0).uniform(90, 100, (300, 3)))
ready()
def chain():
    colour = []
    for i, picture in enumerate(frames):
        colour.append(cv2.mean(picture[box])[2::-1])
        if i % 30 == 29 and i > 60: pos(np.array(colour[-300:]))
done(step_ms=None, chain_ms=cpu_ms(chain, len(frames)))
"""


def rendered(path: Path) -> None:
    """The clip's pictures as uint8 (n, H, W, 3) BGR; the children map it, so that it counts in nobody's memory until read."""
    from calibration.phantom import Phantom
    from calibration.scene import Scene

    scene = Scene(kind="face", seed=3, width=528, height=592, duration_s=10.0, hr_per_min=72.0, rr_per_min=16.0, upright=True)
    np.save(path, np.stack([frame.bgr for frame in Phantom(scene)]))


def installed(folder: Path) -> Path:
    """The peers' own interpreter."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES], check=True)
    return python


def measured(python: Path | str, script: str, clip: Path) -> dict[str, float | None]:
    """One run of a child on one core."""
    env = os.environ | {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")} | {"JAX_PLATFORMS": "cpu"}
    begun_s = time.monotonic()
    child = subprocess.Popen([str(python), "-c", script, str(clip)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env=env, preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
    assert child.stdout is not None and child.stderr is not None
    start_s, found = None, None
    for line in child.stdout:
        if line.startswith("READY"):
            start_s = time.monotonic() - begun_s
        elif line.startswith("FOUND "):
            found = json.loads(line[6:])
    said = child.stderr.read()
    if child.wait() or found is None:
        raise SystemExit(f"a peer failed:\n{said[-2000:]}")
    return found | {"start_s": start_s}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=Path("out/venv-peers"), help="where the peers are installed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peer = installed(args.venv)
    runs = {"physvlm": (sys.executable, OURS), "open-rppg": (peer, OPEN_RPPG.replace("MODEL", "FacePhys.rlap")),
            "open-rppg TSCAN": (peer, OPEN_RPPG.replace("MODEL", "TSCAN.rlap")), "vitallens pos": (peer, VITALLENS),
            "POS loop": (sys.executable, POS_LOOP)}
    found: dict[str, list[dict[str, float | None]]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.npy"
        rendered(clip)
        for _ in range(args.repeats):
            for name, (python, script) in runs.items():
                found[name].append(measured(python, script, clip))
    rows = {name: {key: None if each[0][key] is None else median(run[key] for run in each)  # type: ignore[type-var]
                   for key in ("start_s", "step_ms", "chain_ms", "rss_mb")} for name, each in found.items()}
    theirs = [row for name, row in rows.items() if name.startswith("open-rppg")]
    ratios = {"step_ratio": min(row["step_ms"] for row in theirs) / rows["physvlm"]["step_ms"],
              "start_ratio": min(row["start_s"] for row in theirs) / rows["physvlm"]["start_s"]}
    if args.json:
        print(json.dumps({"rows": rows, "ratios": ratios, "limits": LIMITS, "repeats": args.repeats}, indent=1))
    else:
        print(f"{'':<14} {'start s':>8} {'step ms':>8} {'chain ms':>9} {'peak MB':>8}")
        for name, row in rows.items():
            cells = ["-" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in (
                ("start_s", 2), ("step_ms", 3), ("chain_ms", 2), ("rss_mb", 0))]
            print(f"{name:<14} {cells[0]:>8} {cells[1]:>8} {cells[2]:>9} {cells[3]:>8}")
        print(f"the cheapest network's step takes {ratios['step_ratio']:.1f} times ours, the quickest start of a network "
              f"{ratios['start_ratio']:.0f} times")
    return int(any(ratios[name] < limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
