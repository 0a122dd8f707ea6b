"""Do FP16 and INT8 read what FP32 reads? The same clips through the runtime's own pipeline and gate, once per precision.

Judged are the waves (correlation with FP32's, every window, whether a rhythm was believed in it or not), the rates where both
show one, and the gate's decision for each vital in every reading. The clips are the evaluation's: rendered ones that were
never trained or calibrated on, and data sets. On the device the same command judges TensorRT's engines (--backend tensorrt).
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.evaluate import EvaluationError, Job, jobs_of
from calibration.score import VITALS
from edge.config import Config
from edge.pipeline import Engine, Hop, Pipeline
from edge.runtime import make_engine
from edge.vitals import PROFILES
from engines import sidecar
from engines.files import write_whole
from engines.parity import correlation
from engines.sidecar import DEFAULT_WEIGHTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

FORMAT = 1
SUITE = "newborn,nicu,domains"
REFERENCE = "fp32"
BELIEVED = 0.5
"""FP32's presence from which its window counts as one with a rhythm, for the figure that stands beside the judged one."""


@dataclass(frozen=True)
class Limits:
    """What a precision must keep. correlation_median, correlation_p5: of windows. hr_p99, rr_p99: per minute, of readings
    shown by both. gate_equal: share of decisions (state of each vital in each reading)."""

    correlation_median: float
    correlation_p5: float
    hr_p99: float
    rr_p99: float
    gate_equal: float


INT8_LIMITS = Limits(0.999, 0.995, 0.25, 0.25, 0.99)
LIMITS = {"fp16": Limits(0.99999, 0.9999, 0.05, 0.05, 0.999), "int8": INT8_LIMITS, "int8_opset17": INT8_LIMITS}
"""As the issue of this project asked, but for FP16's 5th percentile, which it leaves open."""


@dataclass(frozen=True, eq=False)
class Compared:
    """One clip in one precision against FP32, by reading and vital (n, 2): correlation of the waves, FP32's presence,
    difference of the rates (NaN unless both show one), whether the gate decided alike."""

    domain: str
    name: str
    precision: str
    correlation: Array
    presence: Array
    difference: Array
    equal: NDArray[np.bool_]


def run(*, suite: str = SUITE, n: int = 3, datasets: Sequence[tuple[str, Path]] = (), weights: str = "",
        precisions: Sequence[str] = (), backend: str = "onnxruntime", workers: int = 2, json_out: Path | None = None,
        plot: Path | None = None, keep: bool = False, command: str = "") -> int:
    """Compare, print a table, write what was asked for: 0, or 1 beyond a limit.

    precisions: all that the weights have, where none is named. keep: write the figures into the weights' sidecar.
    Raises EvaluationError, SidecarError, EngineError or DatasetError.
    """
    for out in filter(None, (json_out, plot)):
        if not out.parent.is_dir():
            raise EvaluationError(f"{out}: its folder does not exist; make it first")
    folder = Path(weights) / DEFAULT_WEIGHTS.name if weights else DEFAULT_WEIGHTS
    spec, record = sidecar.load(folder)
    chosen = tuple(precisions) or tuple(p for p in spec.files if p in LIMITS)
    if unknown := set(chosen) - (set(spec.files) & set(LIMITS)):
        raise EvaluationError(f"precision {sorted(unknown)[0]!r}: these weights have {', '.join(p for p in spec.files)}; "
                              "make the others with physvlm-lab quantize")
    if not chosen:
        raise EvaluationError(f"{folder} has {REFERENCE} alone, so there is nothing to compare; run physvlm-lab quantize first")
    jobs = jobs_of(suite, n, weights=weights, datasets=datasets)
    compared = [each for clip in _all(jobs, chosen, backend, workers) for each in clip]
    result = {"format": FORMAT, "kind": "agreement", "command": command, "backend": backend,
              "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "weights": record["files"],
              "suite": suite, "clips_per_domain": n, "clips": len(jobs), **judge(compared, chosen)}
    print_table(result)
    if json_out is not None:
        write_whole(json_out, json.dumps(result, allow_nan=False, indent=1).encode() + b"\n")
    if plot is not None:
        picture = io.BytesIO()
        draw(compared, chosen).savefig(picture, format="png", dpi=110)
        write_whole(plot, picture.getvalue())
    if keep:
        kept = {key: result[key] for key in ("command", "backend", "date", "suite", "clips", "precisions")}
        sidecar.write(folder, record | {"agreement": kept})
    return 1 if any(row["broken"] for row in result["precisions"].values()) else 0


def _all(jobs: Sequence[Job], precisions: Sequence[str], backend: str, workers: int) -> list[list[Compared]]:
    """Every clip in every precision, in the order of the jobs."""
    if workers < 1:
        raise EvaluationError(f"workers {workers}: expected at least 1")
    tasks, done, start = [(job, tuple(precisions), backend) for job in jobs], [], time.monotonic()

    def watched(results: Iterable[list[Compared]]) -> None:
        for each in results:
            done.append(each)
            print(f"\r{len(done)}/{len(jobs)} clips, {(time.monotonic() - start) / len(done):.1f} s each", end="",
                  file=sys.stderr, flush=True)
        print(file=sys.stderr)

    if workers == 1 or backend == "tensorrt":  # one process owns the GPU
        watched(map(_compared, tasks))
        return done
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the workers are the parallelism
        os.environ.setdefault(name, "1")
    with multiprocessing.get_context("spawn").Pool(min(workers, len(tasks))) as pool:
        watched(pool.imap(_compared, tasks))
    return done


@lru_cache(maxsize=8)
def _engine(weights: str, precision: str, backend: str) -> Engine:
    config = Config()
    # FP32 on ONNX Runtime is the student itself: what every engine is held against
    backend = "onnxruntime" if precision == REFERENCE else backend
    return make_engine(replace(config, model=replace(config.model, weights=weights, precision=precision, backend=backend)))[0]


def _compared(task: tuple[Job, tuple[str, ...], str]) -> list[Compared]:
    job, precisions, backend = task
    cv2.setNumThreads(1)
    source = job.source()
    pipelines = {precision: Pipeline(_engine(job.weights, precision, backend), PROFILES[job.profile], source.width,
                                     source.height, None, False) for precision in (REFERENCE, *precisions)}
    hops: dict[str, list[Hop]] = {precision: [] for precision in pipelines}
    for frame in source.frames:
        for precision, pipeline in pipelines.items():
            hops[precision] += pipeline.push(frame, frame.t_ns)
    return [compare(job.domain, source.name, precision, hops[REFERENCE], hops[precision]) for precision in precisions]


def compare(domain: str, name: str, precision: str, reference: Sequence[Hop], other: Sequence[Hop]) -> Compared:
    """Reading by reading; both saw the same frames, so there are as many of either."""
    rows = [[_against(a, b, vital) for vital in VITALS] for a, b in zip(reference, other, strict=True)]
    table = np.array(rows, np.float64).reshape(-1, len(VITALS), 4)
    return Compared(domain, name, precision, table[..., 0], table[..., 1], table[..., 2], table[..., 3] > 0)


def _against(a: Hop, b: Hop, vital: str) -> tuple[float, float, float, float]:
    wave, presence = ("pulse", a.waveform.pulse_presence) if vital == "hr" else ("resp", a.waveform.resp_presence)
    ours, theirs = getattr(a.waveform, wave), getattr(b.waveform, wave)
    # which way a chest moves in the picture is arbitrary, and so is the sign of the breath's wave
    alike = correlation(ours, theirs, a.waveform.valid)
    shown, other = getattr(a.reading, vital), getattr(b.reading, vital)
    both = shown.value_per_min is not None and other.value_per_min is not None
    apart = abs(shown.value_per_min - other.value_per_min) if both else np.nan
    return abs(alike) if vital == "rr" else alike, presence, apart, float(shown.state is other.state)


# --- judging


def judge(compared: Sequence[Compared], precisions: Sequence[str]) -> dict[str, Any]:
    """{"precisions": figures, limits and what is broken, by precision; "domains": the figures by domain and precision}."""
    out: dict[str, Any] = {"precisions": {}, "domains": {}}
    for precision in precisions:
        mine = [each for each in compared if each.precision == precision]
        found, limits = figures(mine), LIMITS[precision]
        out["precisions"][precision] = found | {"limits": asdict(limits), "broken": broken(found, limits)}
        for domain in dict.fromkeys(each.domain for each in mine):
            of_domain = figures([each for each in mine if each.domain == domain])
            out["domains"].setdefault(domain, {})[precision] = of_domain
    return out


def figures(compared: Sequence[Compared]) -> dict[str, float | int | None]:
    """None where there is nothing to take a figure of."""
    alike, presence, apart = (np.concatenate([getattr(each, name) for each in compared] or [np.empty((0, 2))])
                              for name in ("correlation", "presence", "difference"))
    equal = np.concatenate([each.equal for each in compared] or [np.empty((0, 2), bool)])
    return {"windows": int(alike.size), "correlation_median": _quantile(alike, 0.5), "correlation_p5": _quantile(alike, 0.05),
            "correlation_p5_believed": _quantile(alike[presence >= BELIEVED], 0.05), "correlation_least": _quantile(alike, 0),
            "hr_p99": _quantile(apart[:, 0], 0.99), "rr_p99": _quantile(apart[:, 1], 0.99),
            "hr_worst": _quantile(apart[:, 0], 1), "rr_worst": _quantile(apart[:, 1], 1),
            "hr_readings": int(np.isfinite(apart[:, 0]).sum()), "rr_readings": int(np.isfinite(apart[:, 1]).sum()),
            "gate_equal": round(float(equal.mean()), 6) if equal.size else None}


def _quantile(values: Array, at: float) -> float | None:
    values = values[np.isfinite(values)]
    return round(float(np.quantile(values, at)), 7) if values.size else None


def broken(found: Mapping[str, Any], limits: Limits) -> list[str]:
    """Every limit that is not kept, in words; a figure that could not be taken keeps none."""
    out = []
    for name, limit in asdict(limits).items():
        value, most = found[name], name.endswith("p99")
        if value is None:
            out.append(f"{name}: nothing to judge it by; more clips are needed")
        elif value > limit if most else value < limit:
            out.append(f"{name} {value:.6g}, expected at {'most' if most else 'least'} {limit:g}")
    return out


def print_table(result: Mapping[str, Any]) -> None:
    print(f"{'against fp32':<14} {'windows':>8} {'corr median':>12} {'corr 5 %':>10} {'HR 99 %':>8} {'RR 99 %':>8} "
          f"{'gate equal':>11}")
    for precision, row in result["precisions"].items():
        cells = [_cell(row[name], digits) for name, digits in (
            ("correlation_median", 6), ("correlation_p5", 5), ("hr_p99", 3), ("rr_p99", 3))]
        gate = "-" if row["gate_equal"] is None else f"{100 * row['gate_equal']:.2f} %"
        print(f"{precision:<14} {row['windows']:>8} {cells[0]:>12} {cells[1]:>10} {cells[2]:>8} {cells[3]:>8} {gate:>11}")
        for line in row["broken"]:
            print(f"broken: {precision}: {line}")


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


LOOKS = {"fp16": ("#009E73", "--"), "int8": ("#0072B2", "-"), "int8_opset17": ("#D55E00", "-.")}


def draw(compared: Sequence[Compared], precisions: Sequence[str]) -> Figure:
    """How many windows and readings are at most so far from FP32, one panel a question."""
    from matplotlib.figure import Figure

    figure = Figure((13, 4.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, 3)
    questions = (("1 - correlation of the waves", lambda each: 1 - each.correlation.ravel(), 1e-7),
                 ("heart rate, /min apart", lambda each: each.difference[:, 0], 1e-3),
                 ("breathing, /min apart", lambda each: each.difference[:, 1], 1e-3))
    for ax, (title, take, least) in zip(panels, questions, strict=True):
        for precision in precisions:
            values = np.concatenate([take(each) for each in compared if each.precision == precision] or [np.empty(0)])
            values = np.sort(np.maximum(values[np.isfinite(values)], least))
            if values.size:
                colour, line = LOOKS[precision]
                ax.step(values, 100 * np.arange(1, values.size + 1) / values.size, where="post", color=colour, linestyle=line,
                        label=precision)
        ax.set(xscale="log", xlabel=title, ylabel="% at most so far from FP32", ylim=(0, 101))
        ax.grid(True, color="#e3e8ee", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    limit = INT8_LIMITS
    for ax, value in zip(panels, (1 - limit.correlation_p5, limit.hr_p99, limit.rr_p99), strict=True):
        ax.axvline(value, color="#555555", linewidth=1, linestyle=":")
    panels[0].legend(loc="lower right", frameon=False)
    figure.suptitle("Lower precisions against FP32 (dotted: INT8's limit at the 5th and 99th percentile)", fontsize=11)
    return figure
