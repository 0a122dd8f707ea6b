"""`physvlm bench`: what this device does, measured through the very loop it runs, and held to QA's limits.

A run is: a clip played in real time as if it were a camera, its display on a pty, then faults (with --minutes); reference clips
of known rates; INT8 against the precision that is used. Results go to a table, JSON, JUnit XML and one HTML page.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge import bench_clips as clips
from edge import bench_figures as figures
from edge.bench_clips import ClipError, Truth
from edge.bench_figures import FIGURES, Change, LimitError, Verdict
from edge.bench_glass import Wrong
from edge.bench_machine import differences, facts
from edge.bench_run import FAULTS, Log, RunError, conduct
from edge.config import KEYS, Config, ConfigError, flag_overrides, load_config
from engines.files import write_whole
from engines.sidecar import DEFAULT_WEIGHTS, SidecarError, load
from firmware_bridge.core import CoreError

FORMAT, KIND = 1, "physvlm-bench"
DEFAULT_LIMITS = Path(__file__).with_name("limits.toml")
QUIET_S = 75.0
"""Without --minutes; with it, as much of the run at least."""
HELD = [name for name, hold_s in FAULTS.items() if hold_s]
LEAST_S, MOST_S = 4.0, 600.0
SERIES = 400
"""Points of a plotted line that are kept."""
CONFIG_KEYS = ("camera.roi", "model.backend", "model.precision", "model.preprocess", "model.weights", "model.engine_cache",
               "vitals.profile")


class OtherMachine(ValueError):
    """The other run is of another machine: a ratio would say nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `physvlm bench`, beside CONFIG_KEYS."""
    parser.add_argument("video", nargs="?", type=Path, metavar="VIDEO",
                        help="clip for the live run, with its truth in VIDEO.json (default: a rendered newborn)")
    parser.add_argument("--minutes", type=float, metavar="N", help="soak so long, with faults on schedule")
    parser.add_argument("--faults", type=_plan, metavar="KIND:N@S,...",
                        help=f"these faults instead, N times, held for S seconds, however long it takes: {', '.join(FAULTS)}")
    parser.add_argument("--clips", type=Path, metavar="DIR", help="reference clips with JSON truths (default: rendered ones)")
    parser.add_argument("--h264", type=Path, metavar="CLIP", help="file for the cost of decoding (default: encoded here)")
    parser.add_argument("--limits", type=Path, default=DEFAULT_LIMITS, metavar="TOML", help="default: the shipped ones")
    parser.add_argument("--against", type=Path, metavar="OLD.json", help="compare with an earlier --json of this machine")
    parser.add_argument("--other-machine", action="store_true", help="compare even with another machine's")
    parser.add_argument("--live-only", action="store_true", help="leave the reference clips and precisions out")
    for kind, what in (("json", "all of it as JSON"), ("junit", "one test case a limit"), ("html", "one page with plots")):
        parser.add_argument(f"--{kind}", type=Path, metavar="OUT", help=what)


def _plan(text: str) -> list[tuple[str, float]]:
    """"camera_unplug:3,process_stop@30" -> names and seconds held, in turn."""
    plan: list[tuple[str, float]] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\w+)(?::(\d+))?(?:@(\d+(?:\.\d+)?))?\s*", part)
        if found is None or found[1] not in FAULTS:
            raise argparse.ArgumentTypeError(
                f"{part!r}: expected KIND, KIND:N, KIND@S or KIND:N@S (N times, S seconds), KIND one of {', '.join(FAULTS)}")
        hold_s = float(found[3] or FAULTS[found[1]])
        if found[1] in HELD and not LEAST_S <= hold_s <= MOST_S:
            raise argparse.ArgumentTypeError(f"{part!r}: expected it held for {LEAST_S:g} to {MOST_S:g} s (the display blanks "
                                             "3 s after the last message, so a shorter one need not be seen)")
        plan += [(found[1], hold_s)] * int(found[2] or 1)
    return plan


def main(args: argparse.Namespace) -> int:
    """0 all limits kept, 1 one broken or a figure worse than before, 2 bad usage."""
    try:
        config = load_config(args.config, flag_overrides(args))
        limits = figures.read_limits(args.limits)
        old = _read_old(args.against) if args.against else None
        machine = facts()
        if old is not None and not args.other_machine and (other := differences(machine, old["machine"])):
            raise OtherMachine(f"{args.against} is of another machine ({'; '.join(other)}); --other-machine compares anyway")
        if args.minutes is not None and not 0.5 <= args.minutes <= 7 * 24 * 60:
            raise ConfigError(f"--minutes {args.minutes:g}: expected 0.5 to 10080")
        for out in (args.json, args.junit, args.html):
            if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
                raise ConfigError(f"{out}: expected a file in a folder that exists")
        result = measure(args, config, machine)
    except (ConfigError, LimitError, OtherMachine, ClipError, SidecarError, CoreError) as e:
        print(f"physvlm bench: {e}", file=sys.stderr)
        return 2
    except RunError as e:
        print(f"physvlm bench: {e}", file=sys.stderr)
        return 1
    decided = figures.verdicts(limits, result["figures"], result["why"])
    changed = figures.changes(result["figures"], old["figures"], limits) if old is not None else []
    broken = [v for v in decided if v.ok is False]
    result |= {"limits_file": str(args.limits), "limits": [asdict(v) for v in decided], "changes": [asdict(c) for c in changed],
               "verdict": "fail" if broken or any(c.worse for c in changed) else "pass"}
    _write(args, result)
    print(table(result["figures"], decided, changed))
    return 0 if result["verdict"] == "pass" else 1


def _write(args: argparse.Namespace, result: Mapping[str, Any]) -> None:
    from edge.bench_report import html, junit

    for out, text in ((args.json, lambda: json.dumps(result, indent=1, allow_nan=False) + "\n"),
                      (args.junit, lambda: junit(result)), (args.html, lambda: html(result))):
        if out is not None:
            write_whole(out, text().encode())


def _read_old(path: Path) -> dict[str, Any]:
    try:
        old = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ConfigError(f"--against {path}: cannot be read as JSON: {e}") from e
    if not isinstance(old, dict) or old.get("kind") != KIND or old.get("format") != FORMAT:
        raise ConfigError(f"--against {path}: expected a {KIND} of format {FORMAT}; measure that release anew")
    return old


def measure(args: argparse.Namespace, config: Config, machine: Mapping[str, Any]) -> dict[str, Any]:
    """Everything measured, ready for JSON. Raises RunError and ClipError."""
    spec, _ = load(Path(config.model.weights) / DEFAULT_WEIGHTS.name if config.model.weights else DEFAULT_WEIGHTS)
    kept = _cache(config)
    began = datetime.now(timezone.utc)
    live_clip = args.video or clips.as_mjpeg(clips.rendered(kept, "live", clips.LIVE, _tell), _tell)
    settings = _settings(config)
    total_s = 60 * args.minutes if args.minutes is not None else 0.0
    plan = args.faults if args.faults is not None else (None if args.minutes is not None else [])
    quiet_s = max(QUIET_S, 0.4 * total_s) if plan is None else max(QUIET_S, total_s)
    truth = clips.truth_of(live_clip)
    with tempfile.TemporaryDirectory(prefix="physvlm-bench-") as folder:
        log = conduct(live_clip, settings, Path(folder), quiet_s, plan, max(total_s, quiet_s), _tell)
    wrong = figures.judge(log)
    result: dict[str, Any] = {
        "format": FORMAT, "kind": KIND, "machine": dict(machine),
        "run": {"began_utc": began.isoformat(timespec="seconds"), "seconds": round((log.end_ns - log.spawned_ns[0]) / 1e9, 1),
                "clip": live_clip.name, "weights": spec.name, "backend": config.model.backend,
                "precision": config.model.precision, "roi": settings["camera.roi"], "profile": config.vitals.profile},
        "stages": figures.stage_table(log), "faults": figures.fault_table(log, wrong),
        "wrong": [_wrong_row(log, each) for each in wrong[:50]], "series": _series(log, truth),
        "reference": [], "precisions": [], "exits": log.exits}
    found, why = figures.live_figures(log, truth, wrong), dict[str, str]()
    if not args.live_only:
        more, why = _reference(args, kept, settings, spec.files, result)
        found |= more
    result["why"] = _why(args, found, why)
    result["figures"] = {name: _rounded(found.get(name)) for name in FIGURES}
    result["slope_range"] = [_rounded(found.get(f"rss_slope_{end}")) for end in ("low", "high")]
    return result


def _reference(args: argparse.Namespace, kept: Path, settings: Mapping[str, str], precisions: Mapping[str, Any],
               result: dict[str, Any]) -> tuple[dict[str, float | None], dict[str, str]]:
    """Accuracy on clips of known rates as configured, and what INT8 changes on them against the best precision here."""
    why: dict[str, str] = {}
    found = _reference_clips(args.clips, kept)
    rows: list[dict[str, Any]] = []
    compared: dict[str, list[Any]] = {"hr": [], "rr": [], "same": []}
    cost: dict[str, list[float]] = {}
    best = "fp16" if settings["model.backend"] == "tensorrt" else "fp32"
    options = _options(settings)
    for name, clip in found.items():
        _tell(f"replaying {name}")
        done = {settings["model.precision"]: clips.replay(clip, options)[0]}
        rows.append(clips.score(name, clips.truth_of(clip), done[settings["model.precision"]]))
        if best == "fp32" and "auto" in done:
            done["fp32"] = done["auto"]
        for precision in {best, "int8"} & set(precisions) - set(done):
            done[precision] = clips.replay(clip, _options({**settings, "model.precision": precision}))[0]
        if best in done and "int8" in done:
            for key, values in clips.compare(done[best], done["int8"]).items():
                compared[key] += values
        for precision in (best, "int8"):
            if precision in done:
                stages = done[precision]["timing"]["stages"]
                cost.setdefault(precision, []).append(stages["stem"] + stages["head"])
    result["reference"] = rows
    result["precisions"] = [{"precision": label, "model_ms_per_frame": round(sum(ms) / len(ms), 4)}
                            for label, ms in cost.items()]
    out = figures.reference_figures(rows) | figures.precision_figures(compared)
    h264 = args.h264 or (clips.as_h264(clips.rendered(kept, "file", clips.FILE, _tell), _tell) if clips.can_render() else None)
    if h264 is None:
        why["file_cpu_ms_per_frame"] = "no H.264 clip: name one with --h264 (an encoder is not installed here)"
    else:
        _tell("decoding H.264")
        with tempfile.TemporaryDirectory() as folder:
            out["file_cpu_ms_per_frame"] = clips.file_cost_ms(h264, options, Path(folder))
    return out, why


def _reference_clips(folder: Path | None, kept: Path) -> dict[str, Path]:
    if folder is None:
        return {name: clips.rendered(kept, name, scene, _tell) for name, scene in clips.REFERENCE.items()}
    found = {path.stem: path for path in sorted(folder.rglob("*"))
             if path.suffix.lower() in (".avi", ".mkv", ".mp4", ".mov") and clips.truth_of(path).known}
    if not found:
        raise ClipError(f"--clips {folder}: no video with its truth (NAME.json or truth.json) in it")
    return found


def _why(args: argparse.Namespace, found: Mapping[str, float | None], known: Mapping[str, str]) -> dict[str, str]:
    """For each figure that is missing, the reason."""
    why = {name: "left out by --live-only" if args.live_only else "not measured" for name in FIGURES if found.get(name) is None}
    why |= {name: "no fault was injected: bench --minutes N" for name in why if name.startswith("fault")}
    why |= {name: "the board does not say" for name in ("power_w", "gpu_percent", "temperature_c") if name in why}
    why |= {name: "this weights bundle has no INT8" for name in why if name.startswith("int8") and not args.live_only}
    why |= {"rss_slope_mb_per_h": "too short: bench --minutes 5 or more"} if "rss_slope_mb_per_h" in why else {}
    why |= {name: "none was shown" for name in ("first_hr_s", "first_rr_s", "first_hr_glass_s") if name in why}
    why |= {"off_truth_percent": "no truth beside the clip"} if "off_truth_percent" in why else {}
    return why | dict(known)


def _wrong_row(log: Log, wrong: Wrong) -> dict[str, Any]:
    return {"t_s": round(wrong.t_ms / 1e3 - log.first_ns[0] / 1e9, 2), "what": wrong.what}


def _series(log: Log, truth: Truth) -> dict[str, Any]:
    """What the plots show, in seconds since the first frame, at most SERIES points each."""
    zero_ns = log.first_ns[0]
    seconds = [line for line in log.seconds if line["process"] == 0]
    rates = [((b["t"] - zero_ns) / 1e9, (b["frames"] - a["frames"]) / (b["t"] - a["t"]) * 1e9,
              100 * (b["loop_cpu_s"] - a["loop_cpu_s"]) / (b["t"] - a["t"]) * 1e9)
             for a, b in zip(seconds, seconds[1:], strict=False) if b["t"] - a["t"] > 0.7e9]
    def rate(x10: int | None) -> float | None:
        return None if x10 is None else x10 / 10

    glass = [((each.t_ms * 1_000_000 - zero_ns) / 1e9, rate(each.pr_x10), rate(each.rr_x10)) for each in log.shown]
    return {"rss": _memory(log),
            "fps": _thin([(t, round(fps, 2)) for t, fps, _ in rates]), "cpu": _thin([(t, round(c, 2)) for t, _, c in rates]),
            "latency": _thin([(t, round(ms, 2)) for t, ms in figures.camera_to_wire_ms(log)]),
            "glass": [[round(t, 2), pr, rr] for t, pr, rr in glass[:: max(1, len(glass) // (4 * SERIES))]],
            "truth": [truth.steady("hr"), truth.steady("rr")],
            "faults": [{"name": f.name, "begin": round((f.begin_ms * 1_000_000 - zero_ns) / 1e9, 2),
                        "end": round((f.end_ms * 1_000_000 - zero_ns) / 1e9, 2),
                        "over": round((f.over_ms * 1_000_000 - zero_ns) / 1e9, 2)} for f in log.faults],
            "quiet_end": round((log.quiet_end_ns - zero_ns) / 1e9, 1)}


def _memory(log: Log) -> list[list[float | None]]:
    """MB; None where one process ended and the next began."""
    lines: dict[int, list[tuple[float, float]]] = {}
    for t_ns, number, weight in log.loads:
        lines.setdefault(number, []).append(((t_ns - log.first_ns[0]) / 1e9, round(weight.rss_mb, 2)))
    out: list[list[float | None]] = []
    for line in lines.values():
        out.extend([t, mb] for t, mb in _thin(line))
        out.append([line[-1][0], None])
    return out


def _thin(points: Sequence[tuple[float, float]]) -> list[list[float]]:
    step = max(1, -(-len(points) // SERIES))
    return [[round(t, 2), value] for t, value in points[::step]]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _cache(config: Config) -> Path:
    from edge.prepare import cache_folder

    return cache_folder(config.model.engine_cache) / "bench"


def _settings(config: Config) -> dict[str, str]:
    """What of the configuration the benchmark's own processes get, as a file would write it."""
    roi = config.camera.roi
    text = roi if isinstance(roi, str) else f"{roi.x_px},{roi.y_px},{roi.w_px},{roi.h_px}"
    return {"camera.roi": text, "vitals.profile": config.vitals.profile,
            **{key: getattr(config.model, key.partition(".")[2]) for key in CONFIG_KEYS if key.startswith("model.")}}


def _options(settings: Mapping[str, str]) -> list[str]:
    return [word for key, value in settings.items() if value for word in (str(KEYS[key].metadata["flag"]), value)]


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(found: Mapping[str, float | None], decided: Sequence[Verdict], changed: Sequence[Change]) -> str:
    """Every figure with its limit and, against another run, its ratio; what is broken marked."""
    limits, before = {v.figure: v for v in decided}, {c.figure: c for c in changed}
    lines = [f"{'figure':<30} {'value':>10} {'unit':<12} {'limit':>8}  verdict"]
    for name, figure in FIGURES.items():
        value, verdict, change = found.get(name), limits.get(name), before.get(name)
        if value is None and verdict is None:
            continue
        word = "" if verdict is None else {True: "ok", False: "BROKEN", None: "-"}[verdict.ok]
        if value is None and verdict is not None:
            word += f" ({verdict.reason})"
        if change is not None:
            ratio = "" if change.ratio is None else f" x{change.ratio:.2f}"
            word += f"  then {change.then:g}{ratio}{' WORSE' if change.worse else ' better' if change.better else ''}"
        lines.append(f"{name:<30} {'-' if value is None else f'{value:.4g}':>10} {figure.unit:<12} "
                     f"{verdict.limit if verdict else '':>8}  {word}")
    return "\n".join(lines)
