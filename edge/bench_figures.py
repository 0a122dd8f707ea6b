"""From a run's log to figures, from figures to verdicts, and one run against another. Pure: no clock, no files."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.bench_clips import WRONG_PER_MIN, Truth
from edge.bench_glass import Wrong, off_truth, wrong_shown
from edge.bench_machine import Board, slope_per_h
from edge.bench_run import CAMERA_FAULTS, ENDS_PROCESS, RIGHT_LIMIT_S, Log

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WARM_UP_S = 12.0
"""Left out of rates and latencies: models load, the window fills."""

SLOPE_FROM_S = 45.0
"""Left out of the memory's slope: the window's ring and the libraries' pools grow until then."""

STAGES = ("capture wait", "preprocess", "stem", "head", "vitals", "region", "gate", "wire")


class LimitError(ValueError):
    """The limits file cannot be used."""


@dataclass(frozen=True)
class Figure:
    """noise: by how much of itself it varies between runs of one machine; floor: and by how much at least."""

    unit: str
    what: str
    better: str = "low"
    noise: float = 0.25
    floor: float = 0.0


FIGURES: dict[str, Figure] = {
    "fps": Figure("/s", "frames processed a second, live", "high", 0.02),
    "dropped_frames": Figure("", "frames that were due and not processed", floor=2),
    "live_cpu_percent": Figure("% of a core", "the loop live, without decoding", floor=0.3),
    "live_cpu_decoding_percent": Figure("% of a core", "the whole process live, decoding and recording included", floor=1),
    "chain_ms_per_frame": Figure("CPU ms", "a frame through the chain, without decoding", floor=0.05),
    "file_cpu_ms_per_frame": Figure("CPU ms", "a frame of an H.264 file, decoding included", floor=0.1),
    "rss_peak_mb": Figure("MB", "memory of the process at its largest", noise=0.05),
    "rss_slope_mb_per_h": Figure("MB/h", "growth of that memory, Theil-Sen", noise=0.5, floor=0.5),
    "launch_s": Figure("s", "from launch to the first frame", floor=0.1),
    "camera_to_wire_p50_ms": Figure("ms", "from a picture's time to the bytes accepted that say what it showed", floor=2),
    "camera_to_wire_p95_ms": Figure("ms", "the same, 95th percentile", noise=0.4, floor=4),
    "camera_to_wire_p99_ms": Figure("ms", "the same, 99th percentile", noise=0.5, floor=8),
    "first_hr_s": Figure("s", "of good video until the first pulse rate", floor=1),
    "first_rr_s": Figure("s", "of good video until the first breathing rate", floor=1),
    "first_hr_glass_s": Figure("s", "from launch to the first pulse rate on the glass", floor=1),
    "wrong_shown": Figure("", "things on the glass that were not sent, too old, or from a camera that was away"),
    "off_truth_percent": Figure("% of time", "a number on the glass more than 5 /min from the truth", floor=0.5),
    "wire_lost": Figure("", "frames of the wire that were lost or damaged without a fault"),
    "reference_hr_error_per_min": Figure("/min", "mean error of the pulse rate, reference clips", floor=0.1),
    "reference_rr_error_per_min": Figure("/min", "mean error of the breathing rate, reference clips", floor=0.2),
    "reference_coverage_percent": Figure("%", "of readings with a number, reference clips with a body", "high", 0.05),
    "shown_without_body_percent": Figure("%", "of readings with a number, reference clips without a body", floor=0.5),
    "int8_hr_difference_per_min": Figure("/min", "INT8 against FP32 (TensorRT: FP16), 95th percentile", floor=0.1),
    "int8_rr_difference_per_min": Figure("/min", "the same for breathing", floor=0.1),
    "int8_same_decision_percent": Figure("%", "of readings that both precisions show or withhold", "high", 0.02),
    "fault_right_max_s": Figure("s", "the longest until a fault was seen on the glass", floor=0.5),
    "fault_recovery_max_s": Figure("s", "the longest from a fault's end to both numbers", floor=5),
    "faults_not_recovered": Figure("", "faults after which the numbers did not come back"),
    "power_w": Figure("W", "board, mean", noise=0.1),
    "gpu_percent": Figure("%", "GPU load, mean", floor=3),
    "temperature_c": Figure("C", "hottest sensor", noise=0.1),
    "load_of_others_percent": Figure("% of a core", "what else ran on the machine meanwhile", noise=10.0, floor=50),
}


def percentiles(values: Sequence[float]) -> dict[str, float | int] | None:
    if not values:
        return None
    p50, p95, p99 = np.percentile(np.asarray(values, float), (50, 95, 99))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "p99": round(float(p99), 3),
            "max": round(float(max(values)), 3), "n": len(values)}


def stage_table(log: Log) -> dict[str, dict[str, float | int]]:
    """Wall milliseconds by stage in the quiet part: capture wait and preprocess per frame, the model and gate per hop."""
    calls: dict[str, list[float]] = {}
    for line in _quiet(log):
        calls.setdefault("capture wait", []).extend(line["wait_ms"])
        for stage, ms in line["stages"].items():
            calls.setdefault(stage, []).extend(ms)
    found = {stage: percentiles(calls.get(stage, ())) for stage in STAGES}
    return {stage: row for stage, row in found.items() if row is not None}


def camera_to_wire_ms(log: Log) -> list[tuple[float, float]]:
    """(seconds since the first frame, ms from a picture's time to the accepted VITALS that it made), outside faults."""
    zero_ns = log.first_ns[0]
    windows = [(fault.begin_ms * 1_000_000, fault.over_ms * 1_000_000) for fault in log.faults]
    return [((line["t"] - zero_ns) / 1e9, (line["t"] - line["frame"]) / 1e6) for line in log.said
            if line["frame"] is not None and line["t"] - log.first_ns[line["process"]] > WARM_UP_S * 1e9
            and not any(begin <= line["t"] <= over for begin, over in windows)]


def judge(log: Log) -> list[Wrong]:
    away = [(fault.begin_ms, fault.end_ms) for fault in log.faults if fault.name in CAMERA_FAULTS]
    return wrong_shown(log.shown, log.sent, away, log.end_ns // 1_000_000)


def live_figures(log: Log, truth: Truth, wrong: Sequence[Wrong]) -> dict[str, float | None]:
    quiet, zero_ns = _quiet(log), log.first_ns[0]
    out: dict[str, float | None] = {"launch_s": (zero_ns - log.spawned_ns[0]) / 1e9, "wrong_shown": len(wrong)}
    if len(quiet) > 5:
        span_s, frames = (quiet[-1]["t"] - quiet[0]["t"]) / 1e9, quiet[-1]["frames"] - quiet[0]["frames"]
        loop_s = quiet[-1]["loop_cpu_s"] - quiet[0]["loop_cpu_s"]
        out |= {"fps": frames / span_s, "dropped_frames": quiet[-1]["missed"] - quiet[0]["missed"],
                "live_cpu_percent": 100 * loop_s / span_s, "chain_ms_per_frame": 1000 * loop_s / frames,
                "live_cpu_decoding_percent": 100 * (quiet[-1]["cpu_s"] - quiet[0]["cpu_s"]) / span_s}
    first = [hop for hop in log.hops if hop["process"] == 0]
    for vital in ("hr", "rr"):
        out[f"first_{vital}_s"] = next(((hop["t"] - zero_ns) / 1e9 for hop in first if hop[vital] is not None), None)
    glass = next((each.t_ms for each in log.shown if each.pr_x10 is not None), None)
    out["first_hr_glass_s"] = None if glass is None else glass / 1e3 - log.spawned_ns[0] / 1e9
    latency = percentiles([ms for _, ms in camera_to_wire_ms(log)])
    out |= {f"camera_to_wire_{p}_ms": None if latency is None else latency[p] for p in ("p50", "p95", "p99")}
    share = off_truth(log.shown, truth.steady("hr"), truth.steady("rr"), WRONG_PER_MIN, log.end_ns // 1_000_000)
    out["off_truth_percent"] = None if share is None else 100 * share
    out["wire_lost"] = log.lost + log.bad
    return out | _memory(log) | _others(log) | board_figures(log.board) | fault_figures(log)


def _memory(log: Log) -> dict[str, float | None]:
    """Of the first process, before a fault that ends it: another would begin anew."""
    end_ns = min((fault.begin_ms * 1_000_000 for fault in log.faults if fault.name in ENDS_PROCESS), default=log.end_ns)
    loads = [(t_ns, load) for t_ns, number, load in log.loads if number == 0 and t_ns < end_ns]
    late = [(t_ns / 1e9, load.rss_mb) for t_ns, load in loads if t_ns - log.first_ns[0] > SLOPE_FROM_S * 1e9]
    slope = slope_per_h(*zip(*late, strict=True)) if late else None
    return {"rss_peak_mb": max((load.rss_mb for _, load in loads), default=None),
            "rss_slope_mb_per_h": None if slope is None else slope[0],
            "rss_slope_low": None if slope is None else slope[1], "rss_slope_high": None if slope is None else slope[2]}


def _others(log: Log) -> dict[str, float | None]:
    loads = [(t_ns, load) for t_ns, number, load in log.loads if number == 0 and t_ns < log.quiet_end_ns]
    if len(loads) < 5:
        return {"load_of_others_percent": None}
    (begin_ns, a), (end_ns, b) = loads[0], loads[-1]
    busy_s = b.busy_s - a.busy_s - (b.cpu_s - a.cpu_s) + b.stolen_s - a.stolen_s
    return {"load_of_others_percent": max(0.0, 100 * busy_s / ((end_ns - begin_ns) / 1e9))}


def board_figures(samples: Sequence[Board]) -> dict[str, float | None]:
    """Means over the run; the hottest moment."""
    power, gpu, temperature = ([getattr(each, name) for each in samples if getattr(each, name) is not None]
                               for name in ("power_w", "gpu_percent", "temp_c"))
    return {"power_w": float(np.mean(power)) if power else None, "gpu_percent": float(np.mean(gpu)) if gpu else None,
            "temperature_c": max(temperature) if temperature else None}


def fault_figures(log: Log) -> dict[str, float | None]:
    if not log.faults:
        return {"fault_right_max_s": None, "fault_recovery_max_s": None, "faults_not_recovered": None}
    right = [fault.right_ms for fault in log.faults]
    back = [fault.back_ms for fault in log.faults if fault.back_ms is not None]
    return {"fault_right_max_s": RIGHT_LIMIT_S if None in right else max(r for r in right if r is not None) / 1000,
            "fault_recovery_max_s": max(back) / 1000 if back else None,
            "faults_not_recovered": sum(fault.back_ms is None for fault in log.faults)}


def fault_table(log: Log, wrong: Sequence[Wrong]) -> list[dict[str, Any]]:
    """One row a kind of fault: how often, seconds (median, worst), and what was wrong on the glass meanwhile."""
    rows = []
    for name in dict.fromkeys(fault.name for fault in log.faults):
        these = [fault for fault in log.faults if fault.name == name]
        seen = [w for w in wrong if any(f.begin_ms <= w.t_ms <= f.over_ms for f in these)]
        row: dict[str, Any] = {"fault": name, "times": len(these), "held_s": round(np.median(
            [f.end_ms - f.begin_ms for f in these]) / 1000, 1), "wrong": len(seen),
            "not_recovered": sum(f.back_ms is None for f in these),
            "said": list(dict.fromkeys(word for f in these for word in f.messages))[:4]}
        for key in ("right", "pr_back", "back"):
            ms = [value for f in these if (value := getattr(f, f"{key}_ms")) is not None]
            row[f"{key}_s"] = [round(float(np.median(ms)) / 1000, 1), round(max(ms) / 1000, 1)] if ms else None
        rows.append(row)
    return rows


def reference_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Of all the clips together, each reading counting the same."""
    out: dict[str, float | None] = {}
    shown = due = idle = idle_due = 0
    for vital in ("hr", "rr"):
        told = [(row[f"{vital}_error"], row[f"{vital}_shown"]) for row in rows
                if row["known"] and row[f"{vital}_error"] is not None]
        count = sum(n for _, n in told)
        out[f"reference_{vital}_error_per_min"] = sum(error * n for error, n in told) / count if count else None
        for row in rows:
            if row["known"] and row[f"{vital}_truth"] is not None:
                shown, due = shown + min(row[f"{vital}_shown"], row[f"{vital}_due"]), due + row[f"{vital}_due"]
            elif row["known"]:
                idle, idle_due = idle + row[f"{vital}_shown"], idle_due + row[f"{vital}_due"]
    out["reference_coverage_percent"] = 100 * shown / due if due else None
    out["shown_without_body_percent"] = 100 * idle / idle_due if idle_due else None
    return out


def precision_figures(compared: Mapping[str, Sequence[Any]]) -> dict[str, float | None]:
    worst = {vital: float(np.percentile(compared[vital], 95)) if compared[vital] else None for vital in ("hr", "rr")}
    same = compared["same"]
    return {"int8_hr_difference_per_min": worst["hr"], "int8_rr_difference_per_min": worst["rr"],
            "int8_same_decision_percent": 100 * sum(same) / len(same) if same else None}


def _quiet(log: Log) -> list[dict[str, Any]]:
    from_ns = log.first_ns[0] + int(WARM_UP_S * 1e9)
    return [line for line in log.seconds if line["process"] == 0 and from_ns <= line["t"] <= log.quiet_end_ns]


# --- limits, and another run


@dataclass(frozen=True)
class Limit:
    figure: str
    max: float | None = None
    min: float | None = None
    required: bool = False
    noise: float | None = None
    note: str = ""

    @property
    def text(self) -> str:
        return f"≤ {self.max:g}" if self.max is not None else f"≥ {self.min:g}"


@dataclass(frozen=True)
class Verdict:
    """ok None: not measured, and not required."""

    figure: str
    limit: str
    value: float | None
    ok: bool | None
    reason: str


def read_limits(path: Path) -> dict[str, Limit]:
    """Raises LimitError: unreadable, an unknown figure, a limit without a number."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise LimitError(f"{path}: cannot be read as TOML: {e}") from e
    kinds: dict[str, Any] = {"max": (int, float), "min": (int, float), "required": bool, "noise": (int, float), "note": str}
    limits = {}
    for name, table in tables.items():
        if name not in FIGURES or not isinstance(table, dict):
            raise LimitError(f"{path}: [{name}] is no figure; figures are {', '.join(FIGURES)}")
        for key, value in table.items():
            if key not in kinds or not isinstance(value, kinds[key]) or isinstance(value, bool) != (key == "required"):
                raise LimitError(f"{path}: [{name}] {key} = {value!r}: expected max or min, and required, noise or note")
        if ("max" in table) == ("min" in table):
            raise LimitError(f"{path}: [{name}]: expected either max or min")
        limits[name] = Limit(name, **table)
    return limits


def verdicts(limits: Mapping[str, Limit], figures: Mapping[str, float | None], why: Mapping[str, str]) -> list[Verdict]:
    """why: for figures that could not be measured."""
    out = []
    for name, limit in limits.items():
        value = figures.get(name)
        if value is None:
            reason = why.get(name, "not measured")
            out.append(Verdict(name, limit.text, None, False if limit.required else None, reason))
            continue
        ok = value <= limit.max if limit.max is not None else value >= (limit.min or 0.0)  # False for a NaN
        out.append(Verdict(name, limit.text, value, bool(ok), limit.note))
    return out


@dataclass(frozen=True)
class Change:
    """ratio None: no ratio to nothing. worse: beyond what such figures vary by."""

    figure: str
    then: float
    now: float
    ratio: float | None
    worse: bool
    better: bool


def changes(now: Mapping[str, float | None], then: Mapping[str, float | None], limits: Mapping[str, Limit]) -> list[Change]:
    out = []
    for name, figure in FIGURES.items():
        a, b = then.get(name), now.get(name)
        if a is None or b is None:
            continue
        limit = limits.get(name)
        noise = limit.noise if limit is not None and limit.noise is not None else figure.noise
        margin = max(noise * abs(a), figure.floor)
        gain = (b - a) * (1 if figure.better == "high" else -1)
        out.append(Change(name, a, b, b / a if a else None, gain < -margin, gain > margin))
    return out
