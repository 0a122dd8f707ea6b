"""physvlm-lab: the lab's command line. Every subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

USAGE = 2

MISSING = {"torch": "lab", "onnx": "lab", "av": "lab", "onnxruntime": "cpu", "cv2": "cpu"}
"""Packages that a subcommand may lack, and the extra that brings them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand: 0 done, 1 a limit was broken, 2 bad usage or a missing package."""
    args = _parser().parse_args(argv)
    try:
        return int(args.command(args))
    except ModuleNotFoundError as e:
        extra = MISSING.get((e.name or "").partition(".")[0])
        if extra is None:
            raise
        print(f"physvlm-lab: {e.name} is not installed; pip install 'physvlm-edge[{extra}]'", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="physvlm-lab", description="Rendering, training, export and evaluation.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(command=function)
        return sub

    sub = command("phantom", _phantom, "render a clip with known truth (FFV1 and JSON)")
    sub.add_argument("out", type=Path, metavar="OUT.avi")
    sub.add_argument("--kind", default="newborn", help="newborn, face, patch, chest, doll, empty_cot, object, noise, black")
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--hr", type=_rate, default=150.0, metavar="PER_MIN", help="or none (default 150)")
    sub.add_argument("--rr", type=_rate, default=50.0, metavar="PER_MIN", help="or none (default 50)")
    sub.add_argument("--seconds", type=float, default=40.0)
    sub.add_argument("--size", default="640x480", metavar="WxH")
    sub.add_argument("--fps", type=float, default=30.0)
    sub.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                     help="any other field of the scene, such as motion_frac=0.004 or codec=mjpeg:85")

    sub = command("train", _train, "train the student on rendered clips")
    sub.add_argument("--out", type=Path, required=True, help="run folder (resumes what it holds)")
    sub.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "physvlm", help="rendered clips")
    for name, kind in (("n-train", int), ("n-restraint", int), ("n-valid", int), ("epochs", int),
                       ("minutes", float), ("batch", int), ("learning-rate", float), ("seed", int),
                       ("threads", int), ("device", str), ("start", str)):
        sub.add_argument(f"--{name}", type=kind)

    sub = command("export", _export, "a training run -> ONNX weights and sidecar")
    sub.add_argument("run", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--measured", type=Path, help="JSON of an evaluation, kept in the sidecar")

    sub = command("evaluate", _evaluate, "score rendered clips through the whole chain; exit 1 beyond a limit")
    sub.add_argument("--suite", default="all", help="all, pulse-free, newborn, or one pulse-free scene")
    sub.add_argument("--n", type=int, default=200, help="clips of a suite")
    sub.add_argument("--roi", default="auto", choices=("auto", "full"))
    sub.add_argument("--workers", type=int, default=2)
    sub.add_argument("--weights", default="", help="weights folder other than the shipped one")
    sub.add_argument("--json", type=Path, metavar="OUT")
    return parser


def _rate(text: str) -> float | None:
    return None if text == "none" else float(text)


def _phantom(args: argparse.Namespace) -> int:
    from calibration.phantom import Phantom, Scene
    from calibration.record import RecordingError, record

    try:
        width, _, height = args.size.partition("x")
        given = {"kind": args.kind, "seed": args.seed, "width": int(width), "height": int(height), "fps": args.fps,
                 "duration_s": args.seconds, "hr_per_min": args.hr, "rr_per_min": args.rr}
        scene = Scene(**(given | _fields(Scene, args.set)))
        record(Phantom(scene), args.out, f"rendering {args.out.name}")
    except (ValueError, RecordingError) as e:
        print(f"physvlm-lab phantom: {e}", file=sys.stderr)
        return USAGE
    return 0


def _fields(scene: type, given: Sequence[str]) -> dict[str, object]:
    """FIELD=VALUE pairs as the scene's own types."""
    kinds = {"str": str, "float": float, "int": int, "bool": lambda v: v in ("1", "true", "yes")}
    out: dict[str, object] = {}
    for pair in given:
        name, _, value = pair.partition("=")
        kind = scene.__annotations__.get(name)
        if kind not in kinds:
            raise ValueError(f"--set {pair}: no such field; a scene has {', '.join(scene.__annotations__)}")
        out[name] = kinds[kind](value)
    return out


def _train(args: argparse.Namespace) -> int:
    from dataclasses import fields

    from distillation.train import TrainConfig, TrainingError, train

    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if getattr(args, f.name, None) is not None}
    try:
        print(train(TrainConfig(**given), args.cache, args.out))
    except TrainingError as e:
        print(f"physvlm-lab train: {e}", file=sys.stderr)
        return USAGE
    return 0


def _export(args: argparse.Namespace) -> int:
    import json

    from edge.pipeline import normalisation
    from engines.export import ExportError, export

    try:
        measured = json.loads(args.measured.read_text()) if args.measured else None
        print(export(args.run, args.out, normalisation(), measured))
    except (OSError, json.JSONDecodeError, ExportError) as e:
        print(f"physvlm-lab export: {e}", file=sys.stderr)
        return 1 if isinstance(e, ExportError) else USAGE
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from calibration.evaluate import SUITES, evaluate
    from calibration.scenes import PULSE_FREE
    from engines.sidecar import SidecarError

    suites = {"all": list(SUITES), "pulse-free": list(PULSE_FREE)}.get(args.suite, [args.suite])
    if unknown := set(suites) - set(SUITES):
        print(f"physvlm-lab evaluate: unknown suite {unknown.pop()!r}; choose all, pulse-free, {', '.join(SUITES)}",
              file=sys.stderr)
        return USAGE
    if args.n < 1 or args.workers < 1:
        print(f"physvlm-lab evaluate: --n {args.n} --workers {args.workers}: expected at least 1", file=sys.stderr)
        return USAGE
    try:
        return evaluate(suites, args.n, args.roi, args.workers, args.json, args.weights)
    except SidecarError as e:
        print(f"physvlm-lab evaluate: {e}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
