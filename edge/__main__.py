"""physvlm: the device's command line. Every subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.runtime import Record

OK, FAULT, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand: 0 done, 1 a fault was found, 2 bad usage or configuration."""
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parser(words[:1]).parse_args(words)
    try:
        return int(args.command(args))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # who reads our results has enough of them; the interpreter must not complain about it on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    """asked: the subcommand that was given, if any."""
    parser = argparse.ArgumentParser(prog="physvlm", description="Camera heart and breathing rate for the incubator's "
                                     "display. Investigational: not for diagnosis, not for alarms.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="camera to display, until stopped")
    replay = commands.add_parser("replay", help="a recorded video through the same chain, as fast as it goes")
    from edge.config import KEYS, add_flags

    for sub in (run, replay):
        sub.add_argument("--config", metavar="TOML", help="configuration file; flags win over it")
    add_flags(run, *(key for key in KEYS if key != "camera.realtime"))
    replay.add_argument("video", metavar="VIDEO")
    replay.add_argument("--json", metavar="OUT", help="write readings, summary and timing here (- for stdout)")
    replay.add_argument("--plot", metavar="PNG", help="draw waveforms, scalograms and what was shown")
    add_flags(replay, "camera.realtime", "camera.roi", "model.backend", "model.precision", "model.weights",
              "model.engine_cache", "vitals.profile", "serial.wire_file", "log.level")
    run.set_defaults(command=_run)
    replay.set_defaults(command=_replay)
    _add_prepare(commands)
    _bridge(commands, "display", asked, "the display's screen in this terminal, from a port or a wire file")
    _bridge(commands, "dump", asked, "serial bytes as text, one line a frame")
    return parser


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from edge.config import add_flags

    sub = commands.add_parser("prepare", help="build the TensorRT engines on this device, prove and time them")
    sub.add_argument("--config", metavar="TOML", help="configuration file; flags win over it")
    add_flags(sub, "model.weights", "model.precision", "model.engine_cache", "log.level")
    sub.add_argument("--workspace-mb", type=int, default=256, metavar="N",
                     help="memory that the builder may take for trying things out (default: 256)")
    sub.add_argument("--rebuild", action="store_true", help="build anew whatever is there")
    sub.add_argument("--via", choices=("onnx", "torch2trt"), default="onnx",
                     help="who reads the network: TensorRT's ONNX parser (default), or torch2trt, which needs torch with CUDA")
    sub.add_argument("--json", action="store_true", help="the result as one JSON object instead of a table")
    sub.set_defaults(command=_prepare)


def _bridge(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str,
            asked: Sequence[str], help_text: str) -> None:
    """A command of firmware_bridge. Its module is imported when the command is the one asked for."""
    sub = commands.add_parser(name, help=help_text)
    if name not in asked:
        return
    module = importlib.import_module({"display": "firmware_bridge.terminal", "dump": "firmware_bridge.dump"}[name])
    module.add_arguments(sub)
    sub.set_defaults(command=module.main)


def _refuse(error: Exception) -> int:
    print(f"physvlm: {error}", file=sys.stderr)
    return USAGE


def _run(args: argparse.Namespace) -> int:
    from edge.camera import CameraError
    from edge.clip import RegionError
    from edge.config import ConfigError, flag_overrides, load_config
    from edge.pipeline import ModelMismatch
    from edge.runtime import Live, RuntimeFault, make_engine
    from engines.errors import EngineError
    from engines.sidecar import SidecarError
    from firmware_bridge.port import LinkError

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    try:
        config = load_config(args.config, flag_overrides(args))
        _log_to_stderr(config.log.level)
        engine, product = make_engine(config)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        Live(config, engine, product, stop=lambda: stopping).run()
    except (ConfigError, CameraError, RegionError, ModelMismatch, EngineError, SidecarError, LinkError) as e:
        return _refuse(e)
    except RuntimeFault as e:
        print(f"physvlm: {e}", file=sys.stderr)
        return FAULT
    return OK


def _replay(args: argparse.Namespace) -> int:
    from edge.camera import CameraError, open_camera
    from edge.clip import RegionError
    from edge.config import ConfigError, flag_overrides, load_config
    from edge.pipeline import ModelMismatch
    from edge.runtime import make_engine, make_pipeline, replay, report, write_json
    from engines.errors import EngineError
    from engines.sidecar import SidecarError
    from firmware_bridge.port import LinkError

    try:
        # a replay runs faster than time, which a live display would refuse: its bytes go to --wire alone
        config = load_config(args.config, {**flag_overrides(args), "serial.port": ""})
        _log_to_stderr(config.log.level)
        for flag, out in (("--json", args.json), ("--plot", args.plot)):
            if out and out != "-" and (Path(out).is_dir() or not Path(out).absolute().parent.is_dir()):
                raise ConfigError(f"{flag} {out}: expected a file in a folder that exists; choose another path")
        for out in (args.json, args.plot, config.serial.wire_file):
            if out and Path(out).exists() and Path(out).resolve() == Path(args.video.removeprefix("file:")).resolve():
                raise ConfigError(f"{out} is the video itself and would be overwritten; choose another path")
        with open_camera(args.video, config.camera.realtime) as camera:
            try:
                engine, product = make_engine(config)
            except EngineError as e:  # not to be had at all, unlike one that fails on the way
                return _refuse(e)
            pipeline = make_pipeline(engine, camera, config)
            record = replay(camera, pipeline, config, product, _progress if sys.stderr.isatty() else None,
                            keep_hops=bool(args.plot))
            result = report(record, camera, pipeline)
    except (ConfigError, CameraError, RegionError, ModelMismatch, SidecarError, LinkError) as e:
        return _refuse(e)
    except EngineError as e:
        print(f"physvlm: {e}", file=sys.stderr)
        return FAULT
    if args.json == "-":
        import json

        print(json.dumps(result, indent=1))
    elif args.json:
        write_json(Path(args.json), result)
    if args.plot:
        from edge.chart import draw
        from edge.vitals import PROFILES

        draw(record.hops, Path(args.plot), PROFILES[config.vitals.profile], None)
    if args.json != "-":
        _print_table(result)
    return OK


def _prepare(args: argparse.Namespace) -> int:
    from edge.config import ConfigError, flag_overrides, load_config
    from edge.prepare import AUTO, Progress, as_json, cache_folder, prepare, table
    from engines.cuda import Cuda
    from engines.errors import EngineError
    from engines.sidecar import DEFAULT_WEIGHTS, SidecarError, load
    from engines.tensorrt_build import import_tensorrt

    try:
        config = load_config(args.config, flag_overrides(args))
        if not 1 <= args.workspace_mb <= 65536:
            raise ConfigError(f"--workspace-mb: expected 1 to 65536, got {args.workspace_mb}")
        _log_to_stderr(config.log.level)
        weights = config.model.weights
        spec, _ = load(Path(weights) / DEFAULT_WEIGHTS.name if weights else DEFAULT_WEIGHTS)
        import_tensorrt()
        Cuda().close()  # a machine without these can prepare nothing
    except (ConfigError, SidecarError, EngineError) as e:
        return _refuse(e)
    folder, precision, progress = cache_folder(config.model.engine_cache), config.model.precision, Progress()
    try:
        rows, best = prepare(spec, folder, AUTO if precision == "auto" else (precision,), args.workspace_mb, args.rebuild,
                             args.via, progress)
    except SidecarError as e:  # a precision that the bundle lacks
        return _refuse(e)
    except EngineError as e:
        print(f"physvlm: {e}", file=sys.stderr)
        return FAULT
    finally:
        progress.end()
    if args.json:
        import json

        print(json.dumps(as_json(rows, best, folder), indent=1))
    else:
        print(table(rows, best))
    return OK


def _progress(record: Record) -> None:
    last = record.readings[-1]
    hr, rr = ("---" if last[k] is None else f"{last[k]:.0f}" for k in ("hr", "rr"))
    print(f"\r{last['t_s']:7.1f} s  PR {hr:>3}  RR {rr:>3} ", end="", file=sys.stderr, flush=True)


def _print_table(result: dict[str, Any]) -> None:
    readings, summary = result["readings"], result["summary"]
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{'t s':>7} {'PR':>6} {'state':<13} {'q':>4} {'RR':>6} {'state':<13} {'q':>4}")
    for r in readings:
        hr, rr = ("---" if r[k] is None else f"{r[k]:.1f}" for k in ("hr", "rr"))
        print(f"{r['t_s']:7.1f} {hr:>6} {r['hr_state']:<13} {r['hr_quality']:4.2f} "
              f"{rr:>6} {r['rr_state']:<13} {r['rr_quality']:4.2f}")
    if not readings:
        print("no reading: the video is shorter than one second")
    for name, label in (("hr", "PR"), ("rr", "RR")):
        middle = summary[f"{name}_median"]
        print(f"{label}: {'no number shown' if middle is None else f'median {middle:.1f} /min'}, "
              f"shown in {100 * summary[f'{name}_shown_fraction']:.0f} % of {len(readings)} readings")


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")


if __name__ == "__main__":
    sys.exit(main())
