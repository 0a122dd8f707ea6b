"""physvlm: the device's command line. Every subcommand imports only what it needs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.config import Config
    from edge.recorder import Recorder
    from edge.runtime import Record, Tap

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
    replay = commands.add_parser("replay", help="a recorded video through the same chain, as fast as it goes; or what "
                                 "`run --record` kept, on the display")
    from edge.config import KEYS, add_flags

    _add_config(run)
    _add_config(replay)
    run.add_argument("--wait", action="store_true", help="wait for a camera and a display that are not there yet")
    add_flags(run, *(key for key in KEYS if key != "camera.realtime"))
    replay.add_argument("video", metavar="VIDEO", help="a video, or a folder or wire-*.pvl of `run --record`")
    replay.add_argument("--json", metavar="OUT", help="write readings, summary and timing here (- for stdout)")
    replay.add_argument("--plot", metavar="PNG", help="draw waveforms, scalograms and what was shown")
    add_flags(replay, "camera.realtime", "camera.roi", "model.backend", "model.precision", "model.preprocess",
              "model.weights", "model.engine_cache", "vitals.profile", "serial.wire_file", "log.level")
    run.set_defaults(command=_run)
    replay.set_defaults(command=_replay)
    _add_prepare(commands)
    _add_appliance(commands, asked)
    _add_bench(commands, asked)
    _bridge(commands, "display", asked,
            "the display's screen from a port or a recording: in this terminal, as a page, as a picture")
    _bridge(commands, "dump", asked, "serial bytes as text, one line a frame")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="TOML", action="append",
                        help="configuration file; flags win over it, and a later file over an earlier one")


def _add_prepare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from edge.config import add_flags

    sub = commands.add_parser("prepare", help="build the TensorRT engines on this device, prove and time them")
    _add_config(sub)
    add_flags(sub, "model.weights", "model.precision", "model.engine_cache", "log.level")
    sub.add_argument("--workspace-mb", type=int, default=256, metavar="N",
                     help="memory that the builder may take for trying things out (default: 256)")
    sub.add_argument("--rebuild", action="store_true", help="build anew whatever is there")
    sub.add_argument("--via", choices=("onnx", "torch2trt"), default="onnx",
                     help="who reads the network: TensorRT's ONNX parser (default), or torch2trt, which needs torch with CUDA")
    sub.add_argument("--json", action="store_true", help="the result as one JSON object instead of a table")
    sub.set_defaults(command=_prepare)


def _add_appliance(commands: argparse._SubParsersAction[argparse.ArgumentParser], asked: Sequence[str]) -> None:
    for name, text in (("install", "what the appliance needs in the system, as files: prints them, writes them with --apply"),
                       ("doctor", "checks this device, one line each, with the command that mends it"),
                       ("bundle", "signed weights: make, verify, install, roll back")):
        sub = commands.add_parser(name, help=text)
        if name in asked:
            from edge.appliance.commands import ADD

            ADD[name](sub)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser], asked: Sequence[str]) -> None:
    sub = commands.add_parser("bench", help="what this device does, measured and held to QA's limits; soak with faults")
    if "bench" in asked:
        from edge import bench
        from edge.config import add_flags

        _add_config(sub)
        add_flags(sub, *bench.CONFIG_KEYS)
        bench.add_arguments(sub)
        sub.set_defaults(command=bench.main)


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
    from edge.memory import one_arena
    from edge.pipeline import ModelMismatch
    from edge.runtime import Live, RuntimeFault, make_engine
    from edge.watchdog import Watchdog
    from engines.errors import EngineError
    from engines.sidecar import SidecarError
    from firmware_bridge.port import LinkError

    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    try:
        config = load_config(args.config, flag_overrides(args))
        _check_record(config.record.folder)
        _log_to_stderr(config.log.level)
        one_arena()
        watchdog = Watchdog(os.environ.get("NOTIFY_SOCKET"))
        engine, product = make_engine(config, watchdog.starting)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        with contextlib.ExitStack() as stack:
            taps: list[Tap] = []
            if config.record.folder:
                taps.append(stack.enter_context(_recorder(config, product)))
            Live(config, engine, product, stop=lambda: stopping, taps=taps, watchdog=watchdog,
                 patient=args.wait).run()
    except (ConfigError, CameraError, RegionError, ModelMismatch, EngineError, SidecarError, LinkError) as e:
        return _refuse(e)
    except RuntimeFault as e:
        print(f"physvlm: {e}", file=sys.stderr)
        return FAULT
    return OK


def _check_record(folder: str) -> None:
    """One that does not exist yet is made later, and a disk that is full or away is waited for: neither is a mistake.
    Raises ConfigError for what can never become a folder."""
    from edge.config import ConfigError

    if not folder:
        return
    there = Path(folder).absolute()
    while not os.path.lexists(there):
        there = there.parent
    if there.exists() and not there.is_dir():
        raise ConfigError(f"record.folder (--record) {folder}: {there} is a file; expected a folder, or one that can be made")


def _recorder(config: Config, product: str) -> Recorder:
    from edge.recorder import Recorder

    record, model = config.record, config.model
    facts = {"product": product, "backend": model.backend, "precision": model.precision, "source": config.camera.source,
             "profile": config.vitals.profile, "demo": config.serial.demo}
    return Recorder(Path(record.folder), record.max_mb << 20, record.pictures, facts)


def _replay_wire(args: argparse.Namespace) -> int:
    """A recorded wire on the display, as it came at the time."""
    from edge.recorded import RecordedWire
    from edge.runtime import write_json
    from firmware_bridge.port import LinkError
    from firmware_bridge.simulator import Simulator
    from firmware_bridge.terminal import Glass, Summary, Watch, display_maker

    try:
        recording = RecordedWire.of(Path(args.video))
        paced = bool(getattr(args, "camera.realtime"))
        with Glass(sys.stderr if args.json == "-" else sys.stdout, args.video, plain=not paced) as glass:
            watch = Watch(glass, Summary())
            Simulator(recording, display_maker(needs_pixels=False), paced=paced, send_status=False).run(watch)
    except LinkError as e:
        return _refuse(e)
    result = watch.summary.as_dict()
    if args.json == "-":
        import json

        print(json.dumps(result, indent=1))
    elif args.json:
        write_json(Path(args.json), result)
    return OK


def _replay(args: argparse.Namespace) -> int:
    from edge.recorded import is_wire

    if is_wire(Path(args.video)):
        return _replay_wire(args)
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
    from edge.cuda_clip import Gpu
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
    try:
        Gpu(folder).close()  # compiles the pre-processing's kernels, so that no start has to
    except EngineError as e:
        print(f"physvlm: pre-processing will run on the CPU: {e}", file=sys.stderr)
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
