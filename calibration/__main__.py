"""physvlm-lab: the lab's command line. Every subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distillation.train import TrainConfig

USAGE = 2

MISSING = {"onnxruntime": "cpu", "cv2": "cpu",
           **dict.fromkeys(("torch", "onnx", "modelopt", "av", "h5py", "scipy", "matplotlib", "transformers"), "lab")}
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
    parser = argparse.ArgumentParser(prog="physvlm-lab",
                                     description="Rendering, training, export, quantisation and evaluation.")
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

    sub = command("datasets", _datasets, "list what a public data set's folder holds, and what is broken in it")
    sub.add_argument("name", help="ubfc, pure, cohface, ... (an unknown name lists them), or manifest")
    sub.add_argument("root", type=Path)
    sub.add_argument("--decode", action="store_true", help="read every frame too")

    sub = command("teacher", _teacher, "make a vision-language teacher and measure what it knows")
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--minutes", type=float, help="budget; training ends at it at the latest")
    _add_clips(sub)

    sub = command("train", _train, "train the student on rendered clips, taught by the teacher")
    sub.add_argument("--out", type=Path, required=True, help="run folder (resumes what it holds)")
    for name, kind in (("minutes", float), ("start", str), ("distillation", float), ("cross-task", float)):
        sub.add_argument(f"--{name}", type=kind)
    _add_clips(sub)
    _add_steps(sub)

    sub = command("ablate", _ablate, "train the student without each of its parts and compare")
    sub.add_argument("--out", type=Path, required=True, help="folder of the runs (resumes what it holds)")
    sub.add_argument("--domains", help="judged on these, comma separated (default: the held-out ones)")
    sub.add_argument("--seeds", default="1,2")
    sub.add_argument("--n-test", type=int, default=24, help="clips of each judged domain")
    _add_clips(sub)
    _add_steps(sub)

    sub = command("export", _export, "a training run -> ONNX weights and sidecar")
    sub.add_argument("run", type=Path)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--measured", type=Path, help="JSON of an evaluation, kept in the sidecar")

    sub = command("clips", _clips, "select calibration clips, balanced over light, skin, motion and rate, as a manifest")
    sub.add_argument("--out", type=Path, required=True, metavar="MANIFEST")
    sub.add_argument("--n", type=int, default=256)
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--weights", default="", help="weights folder other than the shipped one")
    sub.add_argument("--held-out-subjects", default="", help="comma separated, as SET/SUBJECT: never calibrated on")
    _add_sources(sub)

    sub = command("quantize", _quantize, "FP16 and INT8 artefacts from calibration clips, beside the FP32 ones")
    sub.add_argument("--clips", type=Path, required=True, metavar="MANIFEST", help="made by physvlm-lab clips")
    sub.add_argument("--out", type=Path, required=True, help="weights folder to write; may be the one that is read")
    sub.add_argument("--weights", default="", help="weights folder to read other than the shipped one")
    sub.add_argument("--cache", type=Path, help="keep the clips' frames here (else they are made anew each time)")
    sub.add_argument("--held-out-subjects", default="", help="comma separated: refuse a manifest that holds one of them")
    _add_sources(sub)

    sub = command("agree", _agree, "FP16 and INT8 against FP32 on unseen clips; exit 1 beyond a tolerance")
    sub.add_argument("--suite", default="", help="as for evaluate (default newborn,nicu,domains, or none with a data set)")
    sub.add_argument("--n", type=int, default=3, help="clips of each domain")
    sub.add_argument("--weights", default="", help="weights folder other than the shipped one")
    sub.add_argument("--precisions", default="", help="comma separated (default: all that the weights have)")
    sub.add_argument("--backend", default="onnxruntime", choices=("onnxruntime", "tensorrt"), help="what runs them")
    sub.add_argument("--json", type=Path, metavar="OUT")
    sub.add_argument("--plot", type=Path, metavar="OUT.png")
    sub.add_argument("--keep", action="store_true", help="write the figures into the weights' sidecar")
    _add_sources(sub)

    sub = command("evaluate", _evaluate, "score clips through the whole chain; exit 1 beyond a limit")
    sub.add_argument("--suite", default="", help="comma separated: all, domains, nicu, pulse-free, newborn, sweep, or "
                     "names of domains (default all, or none where a data set is given)")
    sub.add_argument("--n", type=int, default=20, help="clips of each domain")
    sub.add_argument("--roi", default="auto", choices=("auto", "full"))
    sub.add_argument("--profile", default="neonate", choices=("neonate", "adult"))
    sub.add_argument("--workers", type=int, default=2)
    sub.add_argument("--weights", default="", help="weights folder other than the shipped one")
    sub.add_argument("--precision", default="fp32", choices=("fp32", "fp16", "int8", "int8_opset17"))
    sub.add_argument("--held-out", default="", help="domains that these weights were trained without, comma separated")
    sub.add_argument("--dataset", nargs=2, action="append", default=[], metavar=("NAME", "ROOT"))
    sub.add_argument("--recordings", type=Path, help="folder of recorded beat and breath times (else PHYSVLM_RECORDINGS)")
    sub.add_argument("--no-baselines", action="store_true", help="leave POS and CHROM out")
    sub.add_argument("--lodo", type=Path, nargs="+", default=[], metavar="JSON",
                     help="merge evaluations, each without one domain, into one table")
    sub.add_argument("--json", type=Path, metavar="OUT")
    sub.add_argument("--report", type=Path, metavar="OUT.html")
    return parser


def _add_sources(sub: argparse.ArgumentParser) -> None:
    """Where clips come from beside the renderer, and how many processes make them."""
    sub.add_argument("--dataset", nargs=2, action="append", default=[], metavar=("NAME", "ROOT"))
    sub.add_argument("--recordings", type=Path, help="folder of recorded beat and breath times (else PHYSVLM_RECORDINGS)")
    sub.add_argument("--workers", type=int, default=2)


def _add_clips(sub: argparse.ArgumentParser) -> None:
    """Which rendered clips, and who teaches."""
    sub.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "physvlm", help="rendered clips")
    sub.add_argument("--recordings", help="folder of recorded beat and breath times (else PHYSVLM_RECORDINGS)")
    sub.add_argument("--datasets", help="real data sets to train on too: NAME=FOLDER, semicolon separated")
    sub.add_argument("--teacher", help="scratch (default), clip:DIR, the folder of one made before, or none")
    for name, kind in (("n-train", int), ("n-restraint", int), ("n-recompressed", int), ("n-valid", int),
                       ("held-out", str), ("seed", int), ("threads", int), ("workers", int), ("device", str)):
        sub.add_argument(f"--{name}", type=kind)


def _add_steps(sub: argparse.ArgumentParser) -> None:
    for name, kind in (("epochs", int), ("batch", int), ("learning-rate", float)):
        sub.add_argument(f"--{name}", type=kind)


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


def _datasets(args: argparse.Namespace) -> int:
    from calibration.datasets.listing import main_list

    return main_list(args.name, args.root, args.decode)


def _training(args: argparse.Namespace) -> TrainConfig:
    from dataclasses import fields

    from calibration.recordings import recordings_folder
    from distillation.train import TrainConfig

    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if getattr(args, f.name, None) is not None}
    folder = recordings_folder(Path(args.recordings) if args.recordings else None)
    given["recordings"] = str(folder) if folder else ""
    if given.get("teacher") == "none":
        given["teacher"] = ""
    return TrainConfig(**given)


def _lab(command: str, work: Callable[[], Path]) -> int:
    """Run a training command; what the user can mend is said in one line."""
    from calibration.datasets.record import DatasetError
    from calibration.recordings import BrokenRecordingError, MissingRecordingError
    from distillation.prompts import TeacherError
    from distillation.train import TrainingError

    try:
        print(work())
    except (TrainingError, TeacherError, DatasetError, MissingRecordingError, BrokenRecordingError) as e:
        print(f"physvlm-lab {command}: {e}", file=sys.stderr)
        return USAGE
    return 0


def _teacher(args: argparse.Namespace) -> int:
    from distillation.train import teach

    args.teacher = args.teacher or "scratch"
    return _lab("teacher", lambda: teach(_training(args), args.cache, args.out))


def _train(args: argparse.Namespace) -> int:
    from distillation.train import train

    return _lab("train", lambda: train(_training(args), args.cache, args.out))


def _ablate(args: argparse.Namespace) -> int:
    from distillation.ablate import ablate

    def work() -> Path:
        config = _training(args)
        domains = (args.domains or config.held_out).split(",")
        made = ablate(config, domains, [int(seed) for seed in args.seeds.split(",")], args.n_test, args.cache, args.out)
        print(made.with_suffix(".md").read_text())
        return made

    return _lab("ablate", work)


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


def _sidecar_of(weights: str) -> Path:
    from engines.sidecar import DEFAULT_WEIGHTS

    return Path(weights) / DEFAULT_WEIGHTS.name if weights else DEFAULT_WEIGHTS


def _clips(args: argparse.Namespace) -> int:
    from calibration.clips import ClipError
    from calibration.datasets.record import DatasetError
    from calibration.recordings import BrokenRecordingError, MissingRecordingError, recordings_folder
    from calibration.selection import Selection, SelectionError, table, trained_without, write_manifest
    from engines.sidecar import SidecarError, load

    try:
        if len({name for name, _ in args.dataset}) < len(args.dataset):
            raise SelectionError("a data set is named twice; give each one folder")
        spec, record = load(_sidecar_of(args.weights))
        wanted = Selection(spec.fs_hz, spec.size, args.n, args.seed,
                           datasets={name: Path(root) for name, root in args.dataset} or None,
                           held_out_subjects=tuple(filter(None, args.held_out_subjects.split(","))),
                           held_out_domains=trained_without(record), recordings=recordings_folder(args.recordings))
        print(table(write_manifest(args.out, wanted, args.workers)))
    except (SelectionError, ClipError, DatasetError, SidecarError, MissingRecordingError, BrokenRecordingError) as e:
        print(f"physvlm-lab clips: {e}", file=sys.stderr)
        return USAGE
    return 0


def _quantize(args: argparse.Namespace) -> int:
    import tempfile

    from calibration.clips import ClipError, open_clips
    from calibration.onnx_rules import RuleError
    from calibration.quantize import QuantizeError, quantize, table
    from calibration.recordings import MissingRecordingError, recordings_folder
    from engines.sidecar import SidecarError, load

    try:
        sidecar = _sidecar_of(args.weights)
        spec, _ = load(sidecar)
        with tempfile.TemporaryDirectory(prefix="physvlm-clips-") as scratch:
            clips = open_clips(args.clips, fs_hz=spec.fs_hz, size=spec.size, cache=args.cache or Path(scratch),
                               held_out=tuple(filter(None, args.held_out_subjects.split(","))),
                               roots={name: Path(root) for name, root in args.dataset},
                               recordings=recordings_folder(args.recordings), workers=args.workers)
            print(table(quantize(clips, args.clips, args.out, sidecar)))
    except (ClipError, SidecarError, MissingRecordingError) as e:
        print(f"physvlm-lab quantize: {e}", file=sys.stderr)
        return USAGE
    except (QuantizeError, RuleError) as e:
        print(f"physvlm-lab quantize: {e}", file=sys.stderr)
        return 1
    return 0


def _agree(args: argparse.Namespace) -> int:
    import os
    import shlex

    from calibration.agree import SUITE, run
    from calibration.datasets.record import DatasetError
    from calibration.evaluate import EvaluationError
    from calibration.recordings import RECORDINGS_ENV, MissingRecordingError
    from engines.errors import EngineError
    from engines.sidecar import SidecarError

    if args.recordings:
        os.environ[RECORDINGS_ENV] = str(args.recordings)  # the workers' too
    try:
        return run(suite=args.suite or ("" if args.dataset else SUITE), n=args.n, weights=args.weights,
                   datasets=[(name, Path(root)) for name, root in args.dataset], backend=args.backend, workers=args.workers,
                   precisions=tuple(filter(None, args.precisions.split(","))), json_out=args.json, plot=args.plot,
                   keep=args.keep, command=shlex.join(["physvlm-lab", *sys.argv[1:]]))
    except (SidecarError, EvaluationError, EngineError, DatasetError, MissingRecordingError) as e:
        print(f"physvlm-lab agree: {e}", file=sys.stderr)
        return USAGE


def _evaluate(args: argparse.Namespace) -> int:
    import os
    import shlex

    from calibration.datasets.record import DatasetError
    from calibration.evaluate import EvaluationError, run
    from calibration.recordings import RECORDINGS_ENV, MissingRecordingError
    from engines.sidecar import SidecarError

    if args.recordings:
        os.environ[RECORDINGS_ENV] = str(args.recordings)  # the workers' too
    suite = args.suite or ("" if args.dataset or args.lodo else "all")
    try:
        return run(suite=suite, n=args.n, roi=args.roi, profile=args.profile, workers=args.workers, weights=args.weights,
                   precision=args.precision, baselines=not args.no_baselines,
                   held_out=tuple(filter(None, args.held_out.split(","))),
                   datasets=[(name, Path(root)) for name, root in args.dataset], json_out=args.json, report=args.report,
                   lodo=args.lodo, command=shlex.join(["physvlm-lab", *sys.argv[1:]]))
    except (SidecarError, EvaluationError, DatasetError, MissingRecordingError) as e:
        print(f"physvlm-lab evaluate: {e}", file=sys.stderr)
        return USAGE


if __name__ == "__main__":
    sys.exit(main())
