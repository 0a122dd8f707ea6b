"""Scored clips into figures: per domain, in total and per subject, each method beside the student, and what must hold.

A row of figures (`summarise`) is of one group of clips, one vital and one method. Shares lie in 0-1, rates and errors are
per minute, None is undefined. Its keys:

clips, subjects, video_s, readings   what was seen
judged, shown, false                 readings with a truth; numbers shown; numbers of a rhythm that is not there
mae, rmse, mape, pearson, snr_db     over shown numbers with a truth, each with its standard error (`_se`)
near, wrong                          of shown numbers: within 5 /min; further off or false
near_of_time                         owed readings that show a number within 5 /min. Owed: judged, after start-up, and
                                     with a truth that the profile may show
coverage, coverage_visible           owed readings with a number; those where a pulse of 0.2 % is visible
coverage_all, shown_share            of all judged readings, start-up included; of all readings
folded                               numbers shown that are a simple multiple or part of the truth
unjudged_shown                       numbers shown over a time that is mostly pause or unlabelled
bias, lower, upper, repeated_*, subject_*   Bland-Altman, see metrics.Agreement
subject_mae_median, subject_mae_worst       of each subject's own mean error
first_shown, first_median_s, first_p90_s    clips that ever show a number, and when
open_*                               the same wave without a gate: highest line of every owed reading
mae_at_80                            error of the 80 % of owed readings with the best quality, gate or no gate
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibration import metrics
from calibration.metrics import NEAR_PER_MIN, Array
from calibration.score import STARTUP_S, STUDENT, VITALS, ClipScore
from edge.pipeline import HOP_S

Row = dict[str, float | int | None]
Table = dict[str, dict[str, dict[str, Row]]]
"""By group, method, vital."""

ALL_DOMAINS, HELD_OUT, RECORDINGS, PULSE_FREE_TOTAL = "all domains", "held out", "recordings", "pulse-free"
DOMAIN_SUITES = ("domains", "nicu")
TOTALS = (ALL_DOMAINS, HELD_OUT, RECORDINGS, PULSE_FREE_TOTAL)

COMPARED_COVERAGE = 0.8
"""Methods are compared at this coverage, the least that is asked of the student."""


def groups(clips: Sequence[ClipScore], held_out: Sequence[str] = ()) -> dict[str, list[ClipScore]]:
    """Totals that hold any clip, then every domain in the order of its first clip."""
    domains: dict[str, list[ClipScore]] = {}
    for clip in clips:
        domains.setdefault(clip.domain, []).append(clip)
    rendered = [clip for clip in clips if clip.suite in DOMAIN_SUITES]
    totals = {ALL_DOMAINS: rendered, HELD_OUT: [clip for clip in clips if clip.domain in held_out],
              RECORDINGS: [clip for clip in rendered if "recording" in clip.facts],
              PULSE_FREE_TOTAL: [clip for clip in clips if clip.suite == "pulse-free"]}
    return {name: members for name, members in totals.items() if members} | domains


def tabulate(clips: Sequence[ClipScore], held_out: Sequence[str] = ()) -> Table:
    """Every group's figures, of every method that read all of the group's clips."""
    table: Table = {}
    for name, members in groups(clips, held_out).items():
        methods = [m for m in members[0].methods if all(m in clip.methods for clip in members)]
        table[name] = {m: {vital: summarise(members, vital, m) for vital in VITALS
                           if all(vital in clip.methods[m] for clip in members)} for m in methods}
    return table


def summarise(clips: Sequence[ClipScore], vital: str, method: str = STUDENT) -> Row:
    """The figures of one group; keys as the module says."""
    pooled = pool(clips, vital, method)
    judged, shown = np.isfinite(pooled.truth), np.isfinite(pooled.shown)
    both = judged & shown
    owed = judged & pooled.settled & pooled.in_band
    false, wrong = int((shown & pooled.absent).sum()), int((np.abs(pooled.shown - pooled.truth) > NEAR_PER_MIN).sum())
    row: Row = {
        "clips": len(clips), "subjects": len({clip.subject for clip in clips}),
        "video_s": float(sum(clip.video_s for clip in clips)), "readings": int(judged.size), "judged": int(judged.sum()),
        "shown": int(shown.sum()), "false": false,
        "near": metrics.share_within(pooled.shown, pooled.truth),
        "wrong": metrics.share(wrong + false, int(both.sum()) + false),
        "near_of_time": metrics.share(int((owed & (np.abs(pooled.shown - pooled.truth) <= NEAR_PER_MIN)).sum()),
                                      int(owed.sum())),
        "coverage": metrics.share(int((owed & shown).sum()), int(owed.sum())),
        "coverage_visible": metrics.share(int((owed & shown & pooled.visible).sum()), int((owed & pooled.visible).sum())),
        "coverage_all": metrics.share(int(both.sum()), int(judged.sum())),
        "shown_share": metrics.share(int(shown.sum()), int(shown.size)),
        "folded": metrics.folded(pooled.shown, pooled.truth),
        "unjudged_shown": int((shown & ~judged & ~pooled.absent).sum())}
    row |= _errors(pooled.shown, pooled.truth)
    snr = metrics.mean(pooled.snr_db[both])
    row |= {"snr_db": snr.value, "snr_db_se": snr.standard_error}
    agreement = asdict(metrics.bland_altman(pooled.shown, pooled.truth, pooled.subject))
    row |= {name: agreement[name] for name in agreement if name not in ("pairs", "subjects")}
    of_subjects = [each for each in (metrics.mae(pooled.shown[mine], pooled.truth[mine]).value
                                     for mine in _by_subject(pooled.subject)) if each is not None]
    row |= {"subject_mae_median": float(np.median(of_subjects)) if of_subjects else None,
            "subject_mae_worst": max(of_subjects, default=None)}
    first = metrics.first_shown([clip.first_s(vital, method) for clip in clips])
    row |= {"first_shown": first.shown, "first_median_s": first.median_s, "first_p90_s": first.p90_s}
    row |= {f"open_{name}": value for name, value in _errors(pooled.peak[owed], pooled.truth[owed]).items()}
    row["open_near"] = metrics.share_within(pooled.peak[owed], pooled.truth[owed])
    curve = metrics.coverage_risk(pooled.quality[owed], pooled.estimate[owed], pooled.truth[owed])
    row["mae_at_80"] = curve.mae_at(COMPARED_COVERAGE)
    return row


def _errors(found: Array, true: Array) -> Row:
    row: Row = {}
    for metric in (metrics.mae, metrics.rmse, metrics.mape, metrics.pearson):
        measured = metric(found, true)
        row |= {metric.__name__: measured.value, f"{metric.__name__}_se": measured.standard_error}
    return row


@dataclass(frozen=True)
class Pooled:
    """Readings of many clips end to end; (n,) each.

    settled: after start-up. in_band: the truth is a rate that the profile may show. absent: no such rhythm in the clip.
    """

    shown: Array
    estimate: Array
    quality: Array
    peak: Array
    snr_db: Array
    truth: Array
    settled: Array
    in_band: Array
    absent: Array
    visible: Array
    subject: Array


def pool(clips: Sequence[ClipScore], vital: str, method: str = STUDENT) -> Pooled:
    series = [clip.methods[method][vital] for clip in clips]
    sizes = [clip.readings for clip in clips]

    def joined(parts: Sequence[Array]) -> Array:
        return np.concatenate(parts) if parts else np.zeros(0)

    def repeated(values: Sequence[object], kind: type) -> Array:
        return np.repeat(np.array(values, kind), sizes)

    low, high = (repeated([clip.bands[vital][side] for clip in clips], float) for side in (0, 1))
    truth = joined([clip.truth[vital] for clip in clips])
    return Pooled(*(joined([getattr(s, name) for s in series]) for name in ("shown", "estimate", "quality", "peak", "snr_db")),
                  truth, joined([clip.t_s for clip in clips]) > STARTUP_S[vital] - HOP_S / 2, (truth >= low) & (truth <= high),
                  repeated([clip.labels[vital] == "absent" for clip in clips], bool),
                  repeated([clip.visible is not False for clip in clips], bool),
                  repeated([clip.subject for clip in clips], object))


def _by_subject(subject: Array) -> list[Array]:
    names, whose = np.unique(subject.astype(str), return_inverse=True)
    return np.split(np.argsort(whose, kind="stable"), np.cumsum(np.bincount(whose, minlength=names.size))[:-1])


def per_subject(clips: Sequence[ClipScore]) -> dict[str, dict[str, Any]]:
    """The student's figures of each subject: domains, clips, and per vital the few that a subject can carry."""
    subjects: dict[str, list[ClipScore]] = {}
    for clip in clips:
        subjects.setdefault(clip.subject, []).append(clip)
    kept = ("judged", "shown", "false", "mae", "bias", "wrong", "coverage")
    return {name: {"domains": sorted({clip.domain for clip in mine}), "clips": len(mine)} | {
        vital: {key: row[key] for key in kept} for vital in VITALS for row in [summarise(mine, vital)]}
        for name, mine in sorted(subjects.items())}


# --- what must hold


@dataclass(frozen=True)
class Limit:
    """A figure of the student that must stay at or below `most`, or at or above `least`. against: times that method's own
    figure instead. Groups that were not evaluated are not held to anything, nor are figures that are undefined."""

    group: str
    vital: str
    figure: str
    most: float | None = None
    least: float | None = None
    against: str = ""

    @property
    def text(self) -> str:
        sign, bound = ("<=", self.most) if self.most is not None else (">=", self.least)
        return f"{self.vital.upper()} {self.figure} {sign} {bound:g}" + (f" x {self.against}" if self.against else "")


def _accuracy(group: str) -> tuple[Limit, ...]:
    """What is asked on domains and subjects never trained on (the published figure on newborns is an HR error of 2.85)."""
    return (Limit(group, "hr", "mae", most=1.5), Limit(group, "hr", "wrong", most=0.01),
            Limit(group, "hr", "coverage_visible", least=0.80), Limit(group, "rr", "mae", most=2.0),
            Limit(group, "rr", "wrong", most=0.03), Limit(group, "rr", "coverage", least=0.75))


def _restraint(group: str, hr: float, rr: float | None) -> tuple[Limit, ...]:
    of_hr = (Limit(group, "hr", "shown_share", most=hr),)
    return of_hr if rr is None else (*of_hr, Limit(group, "rr", "shown_share", most=rr))


LIMITS: tuple[Limit, ...] = (
    *(limit for group in (ALL_DOMAINS, HELD_OUT, RECORDINGS, "newborn") for limit in _accuracy(group)),
    Limit("newborn", "hr", "first_median_s", most=10.0), Limit("newborn", "rr", "first_median_s", most=20.0),
    *(Limit(group, "hr", "mae", most=0.5, against=other) for group in ("motion", "light") for other in ("pos", "chrom")),
    *_restraint(PULSE_FREE_TOTAL, 0.005, None),
    *(limit for scene in ("black", "noise", "static", "empty_cot", "amplitude_0", "lamp")
      for limit in _restraint(scene, 0.005, 0.01)),
    *_restraint("nicu_empty_cot", 0.005, 0.01), *_restraint("drift", 0.0, 0.0), *_restraint("vibration", 0.0, 0.0),
    *_restraint("talking_doll", 0.005, None), *_restraint("hand", 0.005, None),
    *(Limit("sweep", vital, "folded", most=0) for vital in VITALS),
    # a thing that moves may look like breathing: no camera can tell
    *_restraint("moving_object", 0.005, None),
)
"""Everything an evaluation must keep; `held out`, where domains were, takes the place of `all domains`."""


def check(table: Table, limits: Sequence[Limit] = LIMITS) -> list[dict[str, Any]]:
    """Each limit whose group was evaluated: group, text, value, bound, verdict (kept, broken, undefined)."""
    out = []
    for limit in limits:
        if limit.group not in table or limit.group == ALL_DOMAINS and HELD_OUT in table:
            continue
        methods = table[limit.group]
        if limit.against and limit.against not in methods:
            continue
        value = methods[STUDENT][limit.vital][limit.figure]
        factor = methods[limit.against][limit.vital][limit.figure] if limit.against else 1.0
        bound = limit.most if limit.most is not None else limit.least
        if value is None or factor is None or bound is None:
            verdict = "undefined"
        else:
            bound *= factor
            verdict = "kept" if (value <= bound if limit.most is not None else value >= bound) else "broken"
        out.append({"group": limit.group, "vital": limit.vital, "figure": limit.figure, "text": limit.text, "value": value,
                    "bound": bound, "verdict": verdict})
    return out


# --- leave one domain out


class EvaluationError(ValueError):
    """What was asked for cannot be evaluated; the message says what can."""


def held_out_clips(results: Sequence[Mapping[str, Any]]) -> tuple[list[ClipScore], dict[str, list[ClipScore]]]:
    """(clips of each domain from the result that held it out, clips of the same domains from those that did not).

    results: evaluations as evaluate.py writes them, one per training run. Raises EvaluationError.
    """
    held: list[ClipScore] = []
    seen: dict[str, list[ClipScore]] = {}
    claimed: dict[str, int] = {}
    for i, result in enumerate(results):
        if not result["held_out"]:
            raise EvaluationError(f"evaluation {i + 1} holds no domain out; evaluate it with --held-out, naming what it was "
                            "trained without")
        for domain in result["held_out"]:
            if domain in claimed:
                raise EvaluationError(f"domain {domain} is held out by evaluations {claimed[domain] + 1} and {i + 1}; expected "
                                      "one that does")
            claimed[domain] = i
    for i, result in enumerate(results):
        for content in result["clips"]:
            if claimed.get(content["domain"]) == i:
                held.append(ClipScore.from_json(content))
            elif content["domain"] in claimed:
                seen.setdefault(content["domain"], []).append(ClipScore.from_json(content))
    if missing := set(claimed) - {clip.domain for clip in held}:
        raise EvaluationError(f"domain {sorted(missing)[0]} is held out but was not evaluated; name it in --suite too")
    return held, seen
