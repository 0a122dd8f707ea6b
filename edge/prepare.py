"""`physvlm prepare`: builds the engines on this device, proves and times them, and keeps which one is best.

What it chose is `selected.json` in the cache folder; `--precision auto` of run and replay reads it. Times from a GPU have
never been seen yet: this is tested through stand-ins.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np

from engines import plan
from engines.errors import EngineError
from engines.plan import PlanMissing
from engines.sidecar import ModelSpec
from engines.tensorrt_backend import TensorRtEngine
from engines.tensorrt_cache import open_engine

AUTO = ("int8", "fp16")
"""What `auto` builds and compares. INT8 is not always the faster one: small layers gain nothing by it."""

WARM_UP, ROUNDS = 10, 100
"""Calls before the clocks have settled, and calls that are timed."""

CHOICE = "selected.json"


def cache_folder(configured: str) -> Path:
    """Where plans lie: as configured, else one for the whole machine (the service, root) or this user."""
    if configured:
        return Path(configured).expanduser()
    if given := os.environ.get("CACHE_DIRECTORY"):  # systemd's, by the unit's CacheDirectory
        return Path(given.partition(":")[0])
    if os.geteuid() == 0:
        return Path("/var/cache/physvlm")
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "physvlm"


def chosen(folder: Path, spec: ModelSpec) -> str:
    """The precision that `prepare` chose for this student here. Raises EngineError where it chose none."""
    path = folder / CHOICE
    again = f"run physvlm prepare --cache {folder}, or name a --precision"
    try:
        record = json.loads(plan.read_trusted(path))
        model, precision = record["model"], record["precision"]
    except PlanMissing as e:
        raise EngineError(f"no engine was chosen on this device yet ({e}); {again}") from e
    except (ValueError, KeyError, TypeError) as e:
        raise EngineError(f"{path} cannot be read: {type(e).__name__} {e}; {again}") from e
    if model != spec.name or precision not in ("fp32", "fp16", "int8"):
        raise EngineError(f"{path} chose {precision} for {model}, this student is {spec.name}; {again}")
    return str(precision)


@dataclass(frozen=True)
class Row:
    """One precision: milliseconds of a stem call (30 frames) and a head call together, or why there is no engine."""

    precision: str
    p50_ms: float | None = None
    p95_ms: float | None = None
    layers: dict[str, dict[str, int]] | None = None
    error: str = ""


def prepare(spec: ModelSpec, folder: Path, precisions: Sequence[str], workspace_mb: int | None, rebuild: bool, via: str,
            say: Callable[[str], None]) -> tuple[list[Row], str]:
    """Build and prove each precision, time them in turn, keep the fastest as the choice: (rows, the chosen precision).

    A precision that cannot be built or does not prove itself is a row with its error. Raises EngineError where none is left.
    """
    failed: dict[str, str] = {}
    engines: dict[str, TensorRtEngine] = {}
    with ExitStack() as closing:
        for precision in precisions:
            try:
                engine = open_engine(spec, precision, folder, make=True, rebuild=rebuild, workspace_mb=workspace_mb, via=via,
                                     say=say)
            except EngineError as e:
                failed[precision] = str(e)
                continue
            closing.callback(engine.close)
            engines[precision] = engine
        if not engines:
            raise EngineError("; ".join(f"{precision}: {why}" for precision, why in failed.items()))
        times_ms = benchmark(engines, ROUNDS)
        rows = [Row(p, error=failed[p]) if p in failed else
                Row(p, round(times_ms[p][0], 3), round(times_ms[p][1], 3), engines[p].layers()) for p in precisions]
    best = min(engines, key=lambda precision: times_ms[precision][0])
    record = {"model": spec.name, "precision": best, "via": via,
              "p50_ms": {row.precision: row.p50_ms for row in rows if not row.error}}
    plan.write_whole(folder / CHOICE, json.dumps(record, indent=1).encode() + b"\n")
    return rows, best


def benchmark(engines: dict[str, TensorRtEngine], rounds: int) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile in ms by precision. In turn, so that a clock that changes meets them all."""
    rng = np.random.default_rng(0)
    times_ms: dict[str, list[float]] = {precision: [] for precision in engines}
    spec = next(iter(engines.values())).spec
    frames = rng.standard_normal((30, spec.channels, spec.size, spec.size), np.float32)
    features = rng.standard_normal((spec.window, spec.cells, spec.features), np.float32)
    mask = np.ones(spec.window, np.float32)
    for i in range(WARM_UP + rounds):
        for precision, engine in engines.items():
            begun_s = time.perf_counter()
            engine.stem(frames)
            engine.head(features, mask)
            if i >= WARM_UP:
                times_ms[precision].append((time.perf_counter() - begun_s) * 1e3)
    cuts = {precision: quantiles(ms, n=20, method="inclusive") for precision, ms in times_ms.items()}
    return {precision: (cut[9], cut[18]) for precision, cut in cuts.items()}


def table(rows: Sequence[Row], best: str) -> str:
    lines = [f"{'precision':<10} {'p50 ms':>8} {'p95 ms':>8}  layers"]
    for row in rows:
        if row.error:
            lines.append(f"{row.precision:<10} {'-':>8} {'-':>8}  {row.error}")
            continue
        counts = "; ".join(f"{part} " + (", ".join(f"{n} {kind}" for kind, n in sorted(found.items())) or "unknown")
                           for part, found in (row.layers or {}).items())
        lines.append(f"{row.precision:<10} {row.p50_ms:>8.3f} {row.p95_ms:>8.3f}  {counts}")
    return "\n".join([*lines, f"chosen: {best}"])


def as_json(rows: Sequence[Row], best: str, folder: Path) -> dict[str, Any]:
    return {"chosen": best, "cache": str(folder), "engines": [
        {"precision": r.precision, "p50_ms": r.p50_ms, "p95_ms": r.p95_ms, "layers": r.layers, "error": r.error or None}
        for r in rows]}


class Progress:
    """How far a build is, on stderr: one line that changes on a terminal, else a line every 15 s."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._said_s = time.monotonic()

    def __call__(self, text: str) -> None:
        if self._tty:
            print(f"\r{text[:78]:<78}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said_s >= 15:
            self._said_s = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._tty:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
