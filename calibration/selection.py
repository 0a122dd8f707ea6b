"""Which clips calibrate: chosen evenly over source, light, skin, motion and rate, from what may be trained on only.

Every candidate is rendered or read once, and light and motion are measured on it; a calibration that has seen no fast motion
and no dim ward would set scales that clip there. The choice is a manifest, which calibration/clips.py reads back.

A clip is 64 frames (2.1 s at 30 /s) from 2 s on: the stem sees one frame at a time, so length buys nothing that another clip
would not buy better; before 2 s the running mean has not settled and the values are small. Motion bursts fall anywhere in a
scene, so in that window as often as in any other, and the motion strata take the few that have one.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.clips import FORMAT, TRAINING_SEEDS, ClipError, Clips, Entry, in_order, open_clips, sealed
from calibration.domains import DOMAINS, NICU, mixed_domain, mixed_scene
from calibration.recordings import Recordings
from calibration.scene import HEADED, Scene
from calibration.source import bands_of, truth_of_wave
from calibration.windows import STEPS_PER_UNIT, Seen, made_with, sha256_of, windows
from edge.clip import FLOW_SCALE, MEAN_TAU_S
from edge.pipeline import normalisation
from edge.vitals import PROFILES
from engines.files import write_whole

if TYPE_CHECKING:
    from calibration.datasets.record import ClipRecord

__all__ = ["ClipError", "Clips", "Selection", "SelectionError", "open_clips", "select", "trained_without", "write_manifest"]

FACTORS = ("source", "light", "skin", "motion", "rate")

POOL_PER_CLIP = 4
"""Rendered candidates for each clip that is wanted: enough that the seldom ones (strong motion, infrared) are among them."""

WINDOW_STEP_S, WINDOWS_PER_RECORD = 7.0, 4
"""A recording offers a clip every so often, in other phases of its motion and light; deeper in, decoding costs more than a
further clip of the same subject is worth."""

MARGIN_S = 0.5
"""Rendered beyond the window: frames that jitter or are dropped do not cut it."""

LIGHT_COUNTS = {"dark": 50.0, "dim": 85.0, "normal": 125.0}
"""Mean level of the picture up to which it counts as such; `bright` above. A fifth to a third of the training draw each."""

MOTION_CELLS = {"still": 0.08, "moving": 0.2}
"""Mean normal flow of a clip's liveliest frame, cells of the grid; `strong` above. Thirds of the training draw."""

SKIN_TONES = {"light": 1 / 3, "medium": 2 / 3}
FITZPATRICK = {"1": "light", "2": "light", "3": "medium", "4": "medium", "5": "dark", "6": "dark"}

RATES_PER_MIN = {"below 100": 100.0, "100-150": 150.0, "150-200": 200.0}

AVERAGING_S = 10.0
"""A recorded pulse's rate is told over this long."""


class SelectionError(ValueError):
    """A selection that cannot be made as it was asked for."""


@dataclass(frozen=True)
class Selection:
    """What to select. fs_hz, size: the model's. frames: of a clip. datasets: root by reader's name. held_out_subjects: as
    `ClipRecord.who`. held_out_domains: rendered domains that the weights were trained without. recordings: folder of recorded
    beat and breath times, whose training half drives a third of the rendered clips.
    """

    fs_hz: float
    size: int
    n: int = 256
    seed: int = 1
    frames: int = 64
    datasets: Mapping[str, Path] | None = None
    held_out_subjects: tuple[str, ...] = ()
    held_out_domains: tuple[str, ...] = ()
    recordings: Path | None = None
    width: int = 192
    height: int = 144

    def __post_init__(self) -> None:
        if min(self.n, self.frames) < 1 or self.n * POOL_PER_CLIP > len(TRAINING_SEEDS):
            raise SelectionError(f"{self.n} clips of {self.frames} frames: expected at least one of each, and at most "
                                 f"{len(TRAINING_SEEDS) // POOL_PER_CLIP} clips")
        if unknown := sorted(set(self.held_out_domains) - {*DOMAINS, *NICU}):
            raise SelectionError(f"held-out domain {unknown[0]!r} unknown; choose from {', '.join((*DOMAINS, *NICU))}")

    @property
    def start(self) -> int:
        """Grid point at which the running mean has settled."""
        return round(MEAN_TAU_S * self.fs_hz)


def trained_without(sidecar: Mapping[str, Any]) -> tuple[str, ...]:
    """Domains that the sidecar's weights were trained without, in any stage."""
    stages = (sidecar.get("training") or {}).get("stages", [])
    return tuple(sorted({name for stage in stages for name in stage["config"].get("held_out", "").split(",") if name}))


def select(wanted: Selection, workers: int = 2) -> dict[str, Any]:
    """The manifest of a selection; the same for the same arguments, whatever the number of workers.

    A recording that cannot be read is left out and told on stderr. Raises SelectionError where fewer candidates than clips
    are left or a held-out subject is in no data set, DatasetError for a folder that is no such set, MissingRecordingError.
    """
    _check_held_out(wanted)
    candidates: list[Entry] = []
    left_out: Counter[str] = Counter()
    jobs = itertools.chain(_rendered(wanted), _recorded(wanted, left_out))
    for done, (made, reasons) in enumerate(in_order(_candidates, jobs, workers), 1):
        candidates += made
        for reason, detail in reasons:
            _leave_out(left_out, reason, detail)
        if done % 20 == 0:
            print(f"\r{done} looked at", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    once = {entry.sha256: entry for entry in reversed(candidates)}
    left_out["the same as another"] += len(candidates) - len(once)
    candidates = [entry for entry in candidates if once[entry.sha256] is entry]
    if len(candidates) < wanted.n:
        raise SelectionError(f"{wanted.n} clips wanted and {len(candidates)} candidates left (left out: {dict(+left_out)})")
    chosen = balanced(candidates, wanted.n, wanted.seed)
    return sealed({"format": FORMAT, "settings": _settings(wanted), "preprocessing": normalisation(), "made_with": made_with(),
                   "strata": _counted(chosen, candidates), "left_out": dict(+left_out),
                   "clips": [entry.as_json() for entry in chosen]})


def write_manifest(out: Path, wanted: Selection, workers: int = 2) -> dict[str, Any]:
    """Select, and write the manifest whole or not at all. Raises as `select`, and SelectionError before anything is rendered
    where it could not be written."""
    if not out.parent.is_dir():
        raise SelectionError(f"{out}: its folder does not exist; make it first")
    manifest = select(wanted, workers)
    head = json.dumps({key: value for key, value in manifest.items() if key != "clips"}, indent=1)
    clips = ",\n  ".join(json.dumps(clip) for clip in manifest["clips"])
    write_whole(out, f'{head[:-2]},\n "clips": [\n  {clips}\n ]\n}}\n'.encode())
    return manifest


def table(manifest: Mapping[str, Any]) -> str:
    """The strata as text: clips chosen of those there were."""
    rows = [f"{len(manifest['clips'])} clips of {manifest['settings']['frames']} frames, chosen of so many candidates"]
    for factor, levels in manifest["strata"].items():
        rows.append(f"{factor:>8}: " + ", ".join(f"{level} {chosen}/{of}" for level, (chosen, of) in levels.items()))
    rows += [f"left out: {reason}: {count}" for reason, count in manifest["left_out"].items()]
    return "\n".join(rows)


def _settings(wanted: Selection) -> dict[str, Any]:
    roots = {name: str(Path(root).resolve()) for name, root in (wanted.datasets or {}).items()}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(wanted).items()}
    return plain | {"datasets": roots, "recordings": wanted.recordings is not None, "start": wanted.start,
                    "pool": wanted.n * POOL_PER_CLIP}


# --- choosing


def balanced(candidates: Sequence[Entry], n: int, seed: int) -> list[Entry]:
    """n of them, one after another, each the one whose levels have been taken least so far; ties by a drawn order.

    So every level that occurs is taken early, the rarest with all they have, and the plentiful share what is left. A subject
    counts as a further factor: another one is better than more of the same.
    """
    drawn = [candidates[i] for i in np.random.default_rng((seed, 2)).permutation(len(candidates))]
    names = [[(factor, entry.strata[factor]) for factor in FACTORS] + [("who", entry.who or entry.id)] for entry in drawn]
    number = {level: i for i, level in enumerate(dict.fromkeys(level for levels in names for level in levels))}
    levels = np.array([[number[level] for level in own] for own in names])
    taken = np.zeros(len(number))
    free = np.ones(len(drawn), bool)
    chosen = []
    for _ in range(n):
        worth = np.where(free, (1 / (1 + taken))[levels].sum(axis=1), -1.0)
        best = int(worth.argmax())
        free[best] = False
        taken[levels[best]] += 1
        chosen.append(drawn[best])
    return chosen


def _counted(chosen: Sequence[Entry], candidates: Sequence[Entry]) -> dict[str, dict[str, list[int]]]:
    """By factor and level: clips chosen, and candidates."""
    counts = {}
    for factor in FACTORS:
        had = Counter(entry.strata[factor] for entry in candidates)
        took = Counter(entry.strata[factor] for entry in chosen)
        counts[factor] = {level: [took[level], had[level]] for level in sorted(had)}
    return counts


# --- candidates


@dataclass(frozen=True)
class _Job:
    """One scene or record to look at. strata: what is known without looking."""

    name: str
    source: Scene | ClipRecord
    starts: tuple[int, ...]
    strata: Mapping[str, str]
    wanted: Selection


def _rendered(wanted: Selection) -> Iterator[_Job]:
    """The training draw's scenes, short ones, from seeds drawn among its own."""
    recordings = None if wanted.recordings is None else Recordings(wanted.recordings, "train")
    duration_s = (wanted.start + wanted.frames) / wanted.fs_hz + MARGIN_S
    barred = frozenset(wanted.held_out_domains)
    drawn = np.random.default_rng((wanted.seed, 1)).choice(len(TRAINING_SEEDS), wanted.n * POOL_PER_CLIP, replace=False)
    for seed in (TRAINING_SEEDS[int(place)] for place in np.sort(drawn)):
        scene = mixed_scene(seed, barred, recordings, width=wanted.width, height=wanted.height, duration_s=duration_s)
        yield _Job(f"mixed-{seed}", scene, (wanted.start,), {
            "source": mixed_domain(seed, barred),
            "skin": _level(scene.skin_tone, SKIN_TONES, "dark") if scene.kind in (*HEADED, "patch") else "none",
            "rate": _rate_level(scene.hr_per_min if scene.has_pulse else 0.0)}, wanted)


def _recorded(wanted: Selection, left_out: Counter[str]) -> Iterator[_Job]:
    """Records of the data sets, without those of held-out subjects, each opened when it is its turn."""
    from calibration.datasets import DatasetError, open_dataset

    step = max(round(WINDOW_STEP_S * wanted.fs_hz), wanted.frames)
    starts = tuple(wanted.start + i * step for i in range(WINDOWS_PER_RECORD))
    for name, root in (wanted.datasets or {}).items():
        broken: list[DatasetError] = []
        for record in open_dataset(name, root, broken):
            if record.who not in wanted.held_out_subjects:
                yield _Job(f"{record.dataset}/{record.name}", record, starts, {
                    "source": record.dataset, "skin": FITZPATRICK.get(record.facts.get("skin_color", ""), "unknown")}, wanted)
        for error in broken:
            _leave_out(left_out, "unreadable", str(error))


def _leave_out(left_out: Counter[str], reason: str, detail: str) -> None:
    left_out[reason] += 1
    if detail:
        print(f"left out, {reason}: {detail}", file=sys.stderr)


def _check_held_out(wanted: Selection) -> None:
    """Before anything is rendered: every data set is one, and holds the subjects that are to be left out of it."""
    from calibration.datasets import subjects

    try:
        known = {f"{name}/{who}" for name, root in (wanted.datasets or {}).items() for who in subjects(name, root)}
    except ValueError as e:
        raise SelectionError(str(e)) from e
    if missing := sorted(set(wanted.held_out_subjects) - known):
        raise SelectionError(f"held-out subject {missing[0]!r} is in no data set given; they hold "
                             f"{', '.join(sorted(known)[:8]) or 'none'}")


def _candidates(job: _Job) -> tuple[list[Entry], list[tuple[str, str]]]:
    """(clips that a scene or record offers, why others are not among them: reason and detail)."""
    from calibration.datasets.record import DatasetError

    wanted, record = job.wanted, None if isinstance(job.source, Scene) else job.source
    made, reasons = [], []
    looking = windows(job.source, job.starts, wanted.frames, wanted.fs_hz, wanted.size, wanted.recordings)
    try:
        for start, seen in zip(job.starts, looking, strict=False):
            if seen.frames.shape[0] < wanted.frames:
                if start == job.starts[0]:  # a record may well be shorter than the last of its windows
                    reasons.append(("too short", job.name if record else ""))
                break
            if not seen.valid or not seen.frames.any():
                reasons.append(("a hole in it" if not seen.valid else "nothing changes in it", ""))
                continue
            strata = dict(job.strata) | _measured(seen, job.source)
            if record is not None:
                strata["rate"] = _rate_level(_recorded_rate(record, (start + wanted.frames) / wanted.fs_hz))
            made.append(Entry(**_named(job, start), strata={factor: strata[factor] for factor in FACTORS}, start=start,
                              count=wanted.frames, sha256=sha256_of(seen.frames)))
    except DatasetError as error:
        reasons.append(("unreadable", str(error)))
    return made, reasons


def _named(job: _Job, start: int) -> dict[str, Any]:
    if isinstance(job.source, Scene):
        return {"id": job.name, "scene": job.source, "dataset": "", "record": "", "who": ""}
    record = job.source
    return {"id": f"{job.name}@{start}", "scene": None, "dataset": record.dataset, "record": record.name, "who": record.who}


def _measured(seen: Seen, source: Scene | ClipRecord) -> dict[str, str]:
    """Light and motion of a clip as its frames have them."""
    infrared = source.infrared if isinstance(source, Scene) else seen.grey or source.facts.get("light") == "near infrared"
    flow = np.abs(seen.frames[:, 3:].astype(np.float32)).mean(axis=(1, 2, 3)).max() / STEPS_PER_UNIT / FLOW_SCALE
    return {"light": "infrared" if infrared else _level(seen.level_counts, LIGHT_COUNTS, "bright"),
            "motion": _level(float(flow), MOTION_CELLS, "strong")}


def _recorded_rate(record: ClipRecord, t_s: float) -> float | None:
    """Heart rate around a clip's end: as a device told it, else of the contact wave; None where neither tells."""
    told, wave = record.truth("hr"), record.truth("pulse")
    rate = float(told.at(t_s)) if told is not None else np.nan
    if np.isfinite(rate) or wave is None:
        return rate if np.isfinite(rate) else None
    low, high = bands_of(PROFILES["neonate"])["hr"]
    return truth_of_wave(wave.at, (min(low, 40.0) / 60.0, high / 60.0)).mean_rate(max(t_s, AVERAGING_S), AVERAGING_S)


def _rate_level(rate_per_min: float | None) -> str:
    if rate_per_min is None:
        return "unknown"
    return _level(rate_per_min, RATES_PER_MIN, "200 and above") if rate_per_min else "none"


def _level(value: float, edges: Mapping[str, float], above: str) -> str:
    """The first level whose edge the value is below."""
    return next((level for level, edge in edges.items() if value < edge), above)
