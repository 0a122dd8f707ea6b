"""`make run`: the whole appliance on one clip, in real time, over a real pty pair, with the display in this terminal.

The clip is a rendered newborn, or the user's own video. The display runs as its own process, as it does on the incubator:
it knows nothing but the serial bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.phantom import Phantom
from calibration.record import RecordingError, record
from calibration.scenes import demo_scene
from edge.camera import CameraError
from edge.chart import Truth, draw
from edge.clip import RegionError
from edge.config import CameraConfig, Config, ConfigError, SerialConfig, parse_roi
from edge.pipeline import Hop, ModelMismatch
from edge.runtime import Live, RuntimeFault, make_engine
from edge.vitals import PROFILES
from engines.errors import EngineError
from engines.sidecar import SidecarError
from firmware_bridge.port import LinkError

OUT = Path("out")


def main(argv: Sequence[str] | None = None) -> int:
    """0 done; 1 the chain failed, or showed no number for the rendered newborn; 2 the clip or the port cannot be used."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--video", help="your own video instead of a rendered newborn")
    parser.add_argument("--seconds", type=float, default=45.0, help="length of the rendered clip (default 45)")
    parser.add_argument("--profile", default="neonate", choices=("neonate", "adult"))
    parser.add_argument("--roi", default="auto")
    args = parser.parse_args(argv)
    if args.seconds < 1:
        parser.error(f"--seconds {args.seconds:g}: expected at least 1")
    # the display owns this terminal; the appliance's log goes to a file
    OUT.mkdir(exist_ok=True)
    logging.basicConfig(filename=OUT / "run.log", level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        return _run(args)
    except (CameraError, ConfigError, RegionError, LinkError, SidecarError, EngineError, ModelMismatch, RecordingError) as e:
        print(f"make run: {e}", file=sys.stderr)
        return 2
    except RuntimeFault as e:
        print(f"make run: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _rendered(seconds: float) -> tuple[Path, Truth]:
    scene = replace(demo_scene(), duration_s=seconds)
    path = OUT / "newborn.avi"
    phantom = Phantom(scene)
    record(phantom, path, "rendering a newborn")
    pulse, breath = phantom.pulse, phantom.breath
    if pulse is None or breath is None:
        raise RuntimeError("the demonstration scene must have pulse and breathing")
    return path, Truth(lambda t: float(pulse.rate_at(t)), lambda t: float(breath.rate_at(t)))


def _run(args: argparse.Namespace) -> int:
    video, truth = (Path(args.video), None) if args.video else _rendered(args.seconds)
    hops: list[Hop] = []
    with tempfile.TemporaryDirectory() as folder:
        port = Path(folder) / "display"
        summary = OUT / "display.json"
        summary.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edge", "display", "--pty", str(port), "--until-bye", "--summary-json",
                   str(summary)]
        if not sys.stdout.isatty():
            command.append("--plain")
        display = subprocess.Popen(command)
        try:
            _await(port, display)
            config = Config(camera=CameraConfig(source=f"file:{video}", realtime=True, roi=parse_roi(args.roi)),
                            serial=SerialConfig(port=str(port), wire_file=str(OUT / "wire.bin"), demo=True))
            config = replace(config, vitals=replace(config.vitals, profile=args.profile))
            engine, product = make_engine(config)
            Live(config, engine, product, on_hop=hops.append).run()
            with contextlib.suppress(subprocess.TimeoutExpired):
                display.wait(timeout=10)
        finally:
            if display.poll() is None:
                display.terminate()
                display.wait(timeout=5)
        if display.returncode != 0 or not summary.exists():
            raise RuntimeFault(f"the display ended by itself (exit {display.returncode}): what was on the glass is unknown")
    draw(hops, OUT / "run.png", PROFILES[args.profile], truth)
    return _summarise(hops, summary, truth)


def _await(port: Path, display: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 10
    while not port.exists():
        if display.poll() is not None or time.monotonic() > until:
            raise LinkError("the display did not open its pty within 10 s; run `physvlm display --pty LINK` to see why")
        time.sleep(0.05)


def _summarise(hops: Sequence[Hop], summary: Path, truth: Truth | None) -> int:
    shown = json.loads(summary.read_text())
    print(f"\n{len(hops)} readings; on the glass: PR {100 * shown['pr_shown_fraction']:.0f} % and "
          f"RR {100 * shown['rr_shown_fraction']:.0f} % of the time")
    any_number = False
    for name, label, true_rate in (("hr", "PR", truth.hr if truth else None), ("rr", "RR", truth.rr if truth else None)):
        pairs = [((h.reading.t_ns - hops[0].reading.t_ns) / 1e9 + 1, getattr(h.reading, name)) for h in hops]
        values = [(t, v.value_per_min, v.averaging_s) for t, v in pairs if v.value_per_min is not None]
        any_number = any_number or bool(values)
        line = f"{label}: shown {len(values)}/{len(hops)}"
        if values:
            line += f", first after {values[0][0]:.0f} s, median {sorted(v for _, v, _ in values)[len(values) // 2]:.1f} /min"
        if values and true_rate is not None:
            errors = [abs(v - _average(true_rate, t, span)) for t, v, span in values]
            line += f", mean error {sum(errors) / len(errors):.2f}, worst {max(errors):.2f} against truth"
        print(line)
    print(f"picture: {OUT / 'run.png'}   bytes: {OUT / 'wire.bin'} (physvlm dump {OUT / 'wire.bin'})   "
          f"log: {OUT / 'run.log'}")
    return 0 if any_number or truth is None else 1


def _average(rate: Callable[[float], float], t_s: float, span_s: float) -> float:
    """Mean of the true rate over the reading's own averaging time."""
    times = [max(0.0, t_s - span_s * i / 20) for i in range(21)]
    return sum(rate(t) for t in times) / len(times)


if __name__ == "__main__":
    sys.exit(main())
