"""What is shown against what is true, over suites of clips: the evidence behind the figures in the README.

Every clip goes through the runtime's own pipeline and gate, frame by frame, so what is scored is what a clinician would
have seen. One rendering serves the student and the baselines (calibration/baselines.py). Suites:

domains      rendered conditions that differ as the public data sets do       nicu    what happens in an incubator
pulse-free   pictures on which no number may be shown                         newborn the plain case

Coverage is counted from the first second at which a number could exist (score.STARTUP_S), over readings with a truth inside
the profile's band; the figures with start-up and over all readings stand beside it. A number shown over an averaging time
that is mostly a pause in breathing has no truth: it is counted (`unjudged_shown`) and not judged.

Leave-one-domain-out: train without a domain, evaluate with `held_out` naming it, once per domain; `merge_lodo` puts the
files together.

The JSON: format, kind (evaluation or lodo), command, date, version, code_sha256 (of the packages that decide a reading),
weights (file hashes, by precision), weights_folder, precision (evaluated), profile, roi, clips_per_domain, held_out,
startup_s, limits (see summary.check), table (group -> method -> vital -> figures, see summary.py), suites (the student's
chief figures by group, flat, which `physvlm-lab export --measured` keeps), subjects,
clips (every reading, score.ClipScore.as_json), and for lodo
also seen (the same domains under students that were trained with them) and merged (the files).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.baselines import METHODS, ORACLES
from calibration.domains import DOMAINS, NICU, domain_test_scene
from calibration.phantom import Phantom
from calibration.recordings import Recordings, recordings_folder
from calibration.scene import Scene
from calibration.scenes import NEWBORN_SEED0, PULSE_FREE, PULSE_FREE_SEED0, newborn_scene, pulse_free_scene
from calibration.score import STARTUP_S, STUDENT, VITALS, ClipScore, score
from calibration.source import Source, source_of_phantom, source_of_record
from calibration.summary import LIMITS, TOTALS, EvaluationError, Table, check, held_out_clips, per_subject, tabulate
from calibration.sweep import sweep_scene
from edge.config import Config
from edge.pipeline import Engine
from edge.runtime import make_engine
from edge.vitals import PROFILES
from engines.files import write_whole
from engines.sidecar import DEFAULT_WEIGHTS, load

if TYPE_CHECKING:
    from calibration.datasets.record import ClipRecord

FORMAT = 2

CODE = ("edge", "engines", "calibration")
"""Packages whose code decides what a reading is and what it is held against."""


def domain_suites() -> dict[str, str]:
    """Suite of every rendered domain, in the order of the table. An empty cot is both a pulse-free scene, 60 s of it, and
    one of the NICU's, which is nicu_empty_cot here."""
    nicu = {f"nicu_{name}" if name in PULSE_FREE else name: "nicu" for name in NICU}
    plain = {"newborn": "newborn", "sweep": "sweep"}
    return plain | dict.fromkeys(DOMAINS, "domains") | nicu | dict.fromkeys(PULSE_FREE, "pulse-free")


def chosen(text: str) -> list[str]:
    """Domains of a comma-separated choice of suites and domains; `all` is everything. Raises EvaluationError."""
    suites, out = domain_suites(), []
    for name in filter(None, (part.strip() for part in text.split(","))):
        found = [domain for domain, suite in suites.items() if name in (domain, "all") or name == suite]
        if not found:
            raise EvaluationError(f"unknown suite {name!r}; choose all, domains, nicu, pulse-free, newborn, sweep, or any of "
                                  f"{', '.join(suites)}")
        out += [domain for domain in found if domain not in out]
    return out


def scene_of(domain: str, index: int) -> Scene:
    """The domain's judged clip of that number: the same on every machine, and never trained on."""
    if domain == "newborn":
        return newborn_scene(NEWBORN_SEED0 + index)
    if domain == "sweep":
        return sweep_scene(index)
    if domain in PULSE_FREE:
        return pulse_free_scene(PULSE_FREE_SEED0 + 1000 * PULSE_FREE.index(domain) + index, domain)
    return domain_test_scene(domain if domain in DOMAINS or domain in NICU else domain.removeprefix("nicu_"), index,
                             _recordings(recordings_folder()))


@lru_cache(maxsize=1)
def _recordings(folder: Path | None) -> Recordings | None:
    return None if folder is None else Recordings(folder, "test")


def score_scene(suite: str, scene: Scene, roi: str, profile: str = "neonate", weights: str = "",
                baselines: Sequence[str] = ()) -> ClipScore:
    """Render one clip, run it through the pipeline and hold what was shown against the truth. suite: also its domain."""
    source = source_of_phantom(domain_suites().get(suite, suite), suite, Phantom(scene))
    return score(source, _engine(weights, "fp32"), PROFILES[profile], roi, baselines)


@lru_cache(maxsize=1)
def _engine(weights: str, precision: str) -> Engine:
    """One engine a process: it keeps nothing between clips."""
    config = Config()
    engine, _ = make_engine(replace(config, model=replace(config.model, weights=weights, precision=precision)))
    return engine


@dataclass(frozen=True)
class Job:
    """One clip to score: a rendered domain's number, or a record of a data set."""

    domain: str
    index: int
    roi: str
    profile: str
    weights: str
    baselines: tuple[str, ...]
    record: ClipRecord | None = None
    precision: str = "fp32"

    def source(self) -> Source:
        if self.record is not None:
            return source_of_record(self.record, PROFILES[self.profile])
        return source_of_phantom(domain_suites()[self.domain], self.domain, Phantom(scene_of(self.domain, self.index)))


def _scored(job: Job) -> ClipScore:
    return score(job.source(), _engine(job.weights, job.precision), PROFILES[job.profile], job.roi, job.baselines)


def run(*, suite: str = "all", n: int = 20, roi: str = "auto", profile: str = "neonate", workers: int = 2,
        weights: str = "", precision: str = "fp32", baselines: bool = True, held_out: Sequence[str] = (),
        datasets: Sequence[tuple[str, Path]] = (), json_out: Path | None = None, report: Path | None = None,
        lodo: Sequence[Path] = (), command: str = "") -> int:
    """Evaluate, print a table, write what was asked for: 0, or 1 when a limit is broken.

    suite: comma-separated suites and domains, n clips of each domain; empty where data sets alone are scored.
    datasets: (reader's name, folder), every record that can be read (the others are told on stderr). held_out: domains
    that these weights were trained without. baselines: POS and CHROM on the same clips. lodo: merge these evaluations
    instead of making one. json_out, report: files to write, whole or not at all. command: kept in both.

    Raises EvaluationError, SidecarError or DatasetError before anything is rendered; a data set's record that breaks
    later raises DatasetError too.
    """
    for out in filter(None, (json_out, report)):
        if not out.parent.is_dir():
            raise EvaluationError(f"{out}: its folder does not exist; make it first")
    if lodo:
        result = merge_lodo(lodo)
    else:
        jobs = jobs_of(suite, n, roi=roi, profile=profile, weights=weights, baselines=tuple(METHODS) if baselines else (),
                       held_out=held_out, datasets=datasets, precision=precision)
        folder = Path(weights) / DEFAULT_WEIGHTS.name if weights else DEFAULT_WEIGHTS
        _, sidecar = load(folder)
        result = result_of(_score_all(jobs, workers), held_out, {
            "kind": "evaluation", "weights": sidecar["files"], "weights_folder": weights or "shipped",
            "precision": precision, "profile": profile,
            "roi": roi, "clips_per_domain": n})
    result = {"format": FORMAT, "command": command} | result
    print_table(result)
    if json_out is not None:
        write_whole(json_out, json.dumps(result, allow_nan=False).encode())
    if report is not None:
        from calibration.report import render

        write_whole(report, render(result).encode())
    return 1 if any(row["verdict"] == "broken" for row in result["limits"]) else 0


def jobs_of(suite: str, n: int, *, roi: str = "full", profile: str = "neonate", weights: str = "",
            baselines: tuple[str, ...] = (), held_out: Sequence[str] = (), datasets: Sequence[tuple[str, Path]] = (),
            precision: str = "fp32") -> list[Job]:
    """Every clip to be looked at. Raises EvaluationError, and DatasetError for a folder that is no such set."""
    if n < 1 or profile not in PROFILES or roi not in ("auto", "full"):
        raise EvaluationError(f"n {n}, profile {profile!r}, roi {roi!r}: expected at least 1, one of {', '.join(PROFILES)}, "
                              "and auto or full")
    domains = chosen(suite)
    common = {"roi": roi, "profile": profile, "weights": weights, "baselines": baselines, "precision": precision}
    jobs = [Job(domain, i, **common) for domain in domains for i in range(n)]
    jobs += [Job(record.domain, i, record=record, **common) for i, record in enumerate(_records(datasets))]
    if unknown := set(held_out) - {job.domain for job in jobs}:
        raise EvaluationError(f"held-out domain {sorted(unknown)[0]!r} is not evaluated; choose it in --suite too, or leave "
                              f"it out (evaluated: {', '.join(dict.fromkeys(job.domain for job in jobs))})")
    if not jobs:
        raise EvaluationError("nothing to evaluate: name a suite or a data set")
    return jobs


def _records(datasets: Sequence[tuple[str, Path]]) -> Iterator[ClipRecord]:
    """Every record that can be read; the others are told on stderr. Raises DatasetError for a folder that is no such set."""
    from calibration.datasets import NAMES, DatasetError, open_dataset

    for name, root in datasets:
        if name not in NAMES:
            raise EvaluationError(f"no data set called {name!r}; choose from {', '.join(NAMES)}")
        broken: list[DatasetError] = []
        yield from open_dataset(name, root, broken)
        for error in broken:
            print(f"left out: {error}", file=sys.stderr)


def _score_all(jobs: Sequence[Job], workers: int) -> list[ClipScore]:
    """Scores in the order of the jobs, whatever order the workers end in."""
    if workers < 1:
        raise EvaluationError(f"workers {workers}: expected at least 1")
    start, scores = time.monotonic(), []

    def watched(done: Iterable[ClipScore]) -> None:
        for clip in done:
            scores.append(clip)
            print(f"\r{len(scores)}/{len(jobs)} clips, {(time.monotonic() - start) / len(scores):.1f} s each", end="",
                  file=sys.stderr, flush=True)
        print(file=sys.stderr)

    if workers == 1:
        watched(map(_scored, jobs))
        return scores
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the workers are the parallelism
        os.environ.setdefault(name, "1")
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        watched(pool.imap(_scored, jobs))
    return scores


def result_of(clips: Sequence[ClipScore], held_out: Sequence[str], about: Mapping[str, Any]) -> dict[str, Any]:
    """The evaluation as its JSON holds it. about: what is known of the weights and the settings."""
    table = tabulate(clips, held_out)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": now, "version": _version(), "code_sha256": _code_sha256(), **about, "held_out": list(held_out),
            "startup_s": STARTUP_S, "limits": check(table, LIMITS), "table": table,
            "suites": _flat(table), "subjects": per_subject(clips), "clips": [clip.as_json() for clip in clips]}


def merge_lodo(paths: Sequence[Path]) -> dict[str, Any]:
    """One result of several: each domain as scored by the student that was trained without it.

    `seen` holds the same domains as scored by the students that were trained with them. Raises EvaluationError for a file
    that is no evaluation, and for files that are no such protocol.
    """
    results = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as e:
            raise EvaluationError(f"{path} cannot be read as an evaluation: {e}") from e
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("kind") != "evaluation":
            raise EvaluationError(f"{path} is no evaluation of format {FORMAT}; make it anew with physvlm-lab evaluate --json")
        results.append(content)
    held, seen = held_out_clips(results)
    merged = [{"file": str(path), "held_out": each["held_out"], "weights": each["weights"], "date": each["date"]}
              for path, each in zip(paths, results, strict=True)]
    about = {key: results[0][key] for key in ("profile", "roi", "clips_per_domain")}
    result = result_of(held, [domain for each in results for domain in each["held_out"]],
                       {"kind": "lodo", "merged": merged} | about)
    return result | {"seen": {domain: tabulate(clips)[domain] for domain, clips in seen.items()}}


def _version() -> str:
    try:
        return version("physvlm-edge")
    except PackageNotFoundError:
        return "not installed"


@lru_cache(maxsize=1)
def _code_sha256() -> str:
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _flat(table: Table) -> dict[str, dict[str, float | int | None]]:
    kept = {"shown": "shown_share", "near": "near", "mae": "mae", "wrong": "wrong", "coverage": "coverage",
            "first_median_s": "first_median_s", "first_p90_s": "first_p90_s"}
    return {group: {"clips": methods[STUDENT]["hr"]["clips"], "readings": methods[STUDENT]["hr"]["readings"]} | {
        f"{vital}_{short}": methods[STUDENT][vital][figure] for vital in VITALS for short, figure in kept.items()}
        for group, methods in table.items()}


# --- the table on the terminal


def print_table(result: Mapping[str, Any]) -> None:
    table = result["table"]
    methods = [m for m in METHODS if m not in ORACLES and any(m in row for row in table.values())]
    print(f"{'':<22} {'':>5} | {'heart rate':<36}" + "".join(f" | {m.upper() + ' (same gate)':<21}" for m in methods)
          + f" | {'breathing':<36}")
    print(f"{'group':<22} {'clips':>5} | {_HEAD}" + f" | {_SHORT_HEAD}" * len(methods) + f" | {_HEAD}")
    for group, row in table.items():
        mark = "" if group in TOTALS else " *" if group in result["held_out"] else ""
        student = row[STUDENT]
        others = "".join(f" | {_short(row[m]['hr']) if m in row else '':<21}" for m in methods)
        print(f"{group + mark:<22} {student['hr']['clips']:>5} | {_full(student['hr'])}{others} | {_full(student['rr'])}")
    if result["held_out"]:
        print("* trained without this domain")
    for row in result["limits"]:
        if row["verdict"] != "kept":
            print(f"{row['verdict']}: {row['group']}: {row['text']}, is {_cell(row['value'], 1, '', 4)}")


_HEAD = f"{'MAE':>5} {'wrong':>6} {'cover':>6} {'shown':>6} {'first':>6}  "
_SHORT_HEAD = f"{'MAE':>5} {'wrong':>6} {'cover':>6}  "


def _short(row: Mapping[str, Any]) -> str:
    return f"{_cell(row['mae'], 1, '', 2):>5} {_cell(row['wrong'], 100, '%', 1):>6} {_cell(row['coverage'], 100, '%', 1):>6}"


def _full(row: Mapping[str, Any]) -> str:
    return (f"{_short(row)} {_cell(row['shown_share'], 100, '%', 1):>6} {_cell(row['first_median_s'], 1, 's', 1):>6}  ")


def _cell(value: float | None, scale: float, unit: str, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}{unit}"
