"""The plots of an evaluation, each one question. A plot without anything to show is None.

Colours are Okabe and Ito's, which the colour-blind can tell apart, and every method has its own line and marker too.
Points, of which there are thousands, are pixels inside the vector drawing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.metrics import NEAR_PER_MIN, Array, bland_altman, coverage_risk
from calibration.score import STUDENT, ClipScore
from calibration.summary import HELD_OUT, TOTALS, pool

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

LOOKS: dict[str, tuple[str, str, Any, str]] = {
    STUDENT: ("PhysVLM student", "#0072B2", "-", "o"), "pos": ("POS", "#E69F00", "--", "s"),
    "chrom": ("CHROM", "#009E73", "-.", "^"), "pos_oracle": ("POS, oracle mask", "#CC79A7", ":", "D"),
    "chrom_oracle": ("CHROM, oracle mask", "#56B4E9", (0, (5, 1, 1, 1, 1, 1)), "v")}
"""Name, colour, line and marker of each method."""

WRONG_COLOUR, LIMIT_COLOUR = "#D55E00", "#555555"

VITAL_NAMES = {"hr": ("Heart rate", "beats/min"), "rr": ("Breathing rate", "breaths/min")}

BINNED_AT_LEAST = 12
"""Readings below which a bin of signal to noise ratio says too little for a median."""


def _figure(width: float = 6.4, height: float = 4.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Without pyplot: no state is shared and no window is ever looked for."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.hashsalt": "physvlm", "font.family": "DejaVu Sans", "font.size": 10})
    figure = Figure((width, height), layout="constrained", facecolor="white")
    axes = np.atleast_1d(figure.subplots(1, columns))
    for ax in axes:
        ax.grid(True, color="#e3e8ee", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def difference(clips: Sequence[ClipScore], vital: str) -> Figure | None:
    pooled = pool(clips, vital)
    agreed = bland_altman(pooled.shown, pooled.truth, pooled.subject)
    if agreed.bias is None:
        return None
    unit = VITAL_NAMES[vital][1]
    figure, (ax,) = _figure()
    _dots(ax, (pooled.shown + pooled.truth) / 2, pooled.shown - pooled.truth)
    limits = [(agreed.repeated_lower, agreed.repeated_upper), (agreed.lower, agreed.upper)]
    low, high = next((pair for pair in limits if pair[0] is not None), (None, None))
    lines = [("bias", agreed.bias, "-")] + [(name, v, "--") for name, v in (("lower", low), ("upper", high)) if v is not None]
    for name, value, style in lines:
        ax.axhline(value, color="#1a1f26", linestyle=style, linewidth=1.2)
        ax.annotate(f"{name} {value:+.2f}".replace("-", "\u2212"), (1.0, value), xycoords=("axes fraction", "data"),
                    xytext=(-4, 3), textcoords="offset points", ha="right", fontsize=9)
    far = float(np.nanquantile(np.abs(pooled.shown - pooled.truth), 0.998))
    reach = 1.15 * max(NEAR_PER_MIN, far, *(abs(value) for _, value, _ in lines))
    beyond = int((np.abs(pooled.shown - pooled.truth) > reach).sum())
    ax.set(xlabel=f"Mean of shown and true, {unit}", ylabel=f"Shown less true, {unit}", ylim=(-reach, reach),
           title=f"{agreed.pairs} readings of {agreed.subjects} subjects" + (f", {beyond} beyond the plot" if beyond else ""))
    return figure


def scatter(clips: Sequence[ClipScore], vital: str) -> Figure | None:
    pooled = pool(clips, vital)
    both = np.isfinite(pooled.shown) & np.isfinite(pooled.truth)
    if not both.any():
        return None
    name, unit = VITAL_NAMES[vital]
    shown, true = pooled.shown[both], pooled.truth[both]
    figure, (ax,) = _figure()
    ends = np.array([min(shown.min(), true.min()) - 3, max(shown.max(), true.max()) + 3])
    ax.fill_between(ends, ends - NEAR_PER_MIN, ends + NEAR_PER_MIN, color="#dfe7ef", linewidth=0,
                    label=f"within {NEAR_PER_MIN:g} /min")
    ax.plot(ends, ends, color=LIMIT_COLOUR, linewidth=1)
    wrong = np.abs(shown - true) > NEAR_PER_MIN
    _dots(ax, true[~wrong], shown[~wrong])
    ax.plot(true[wrong], shown[wrong], "x", color=WRONG_COLOUR, markersize=5, rasterized=True,
            label=f"wrong ({int(wrong.sum())})")
    ax.set(xlabel=f"True {name.lower()}, {unit}", ylabel=f"Shown, {unit}", xlim=ends, ylim=ends,
           title=f"{shown.size} shown readings")
    ax.legend(loc="upper left", frameon=False)
    return figure


def _plain_log(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade, as plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _dots(ax: Axes, x: Array, y: Array) -> None:
    ax.plot(x, y, "o", color=LOOKS[STUDENT][1], markersize=3, alpha=0.35, markeredgewidth=0, rasterized=True)


def error_by_snr(clips: Sequence[ClipScore], vital: str, methods: Sequence[str]) -> Figure | None:
    figure, (ax,) = _figure()
    drawn = False
    for method in methods:
        pooled = pool(clips, vital, method)
        error, snr = np.abs(pooled.estimate - pooled.truth), pooled.snr_db
        known = np.isfinite(error) & np.isfinite(snr)
        bins = np.floor(snr[known] / 3.0).astype(int)
        middles, quartiles = [], []
        for each in np.unique(bins):
            if (bins == each).sum() >= BINNED_AT_LEAST:
                middles.append(3.0 * each + 1.5)
                quartiles.append(np.quantile(error[known][bins == each], (0.25, 0.5, 0.75)))
        if not middles:
            continue
        drawn = True
        low, median, high = np.maximum(np.array(quartiles), 0.02).T
        name, colour, line, marker = LOOKS[method]
        ax.plot(middles, median, linestyle=line, marker=marker, color=colour, markersize=5, label=name)
        ax.fill_between(middles, low, high, color=colour, alpha=0.12, linewidth=0)
    if not drawn:
        return None
    ax.axhline(NEAR_PER_MIN, color=LIMIT_COLOUR, linestyle="--", linewidth=1)
    ax.set(xlabel="Signal to noise ratio of the wave at the true rate, dB", yscale="log",
           ylabel=f"Absolute error of the estimate, {VITAL_NAMES[vital][1]}", title="Error against signal to noise ratio")
    _plain_log(ax.yaxis)
    ax.legend(frameon=False)
    return figure


def risk(clips: Sequence[ClipScore], vital: str, methods: Sequence[str]) -> Figure | None:
    figure, axes = _figure(columns=2, width=7.6)
    drawn = False
    for method in methods:
        pooled = pool(clips, vital, method)
        owed = np.isfinite(pooled.truth) & pooled.settled & pooled.in_band
        curve = coverage_risk(pooled.quality[owed], pooled.estimate[owed], pooled.truth[owed])
        if not curve.coverage.size:
            continue
        drawn = True
        name, colour, line, marker = LOOKS[method]
        shown = owed & np.isfinite(pooled.shown)
        off = np.abs(pooled.shown - pooled.truth)[shown]
        for ax, risk, of_gate in ((axes[0], curve.mae, off), (axes[1], 100 * curve.wrong, 100.0 * (off > NEAR_PER_MIN))):
            ax.plot(100 * curve.coverage, risk, linestyle=line, color=colour, label=name)
            if off.size:
                ax.plot(100 * shown.sum() / owed.sum(), of_gate.mean(), marker=marker, color=colour, markersize=8,
                        markeredgecolor="white", linestyle="none", zorder=5)
    if not drawn:
        return None
    axes[0].set(ylabel=f"Mean absolute error, {VITAL_NAMES[vital][1]}", title="Error of the answered")
    axes[1].set(ylabel="Wrong of the answered, %", title=f"More than {NEAR_PER_MIN:g} /min off")
    for ax in axes:
        ax.set(xlabel="Coverage, % of owed readings", xlim=(0, 102))
        ax.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    return figure


def first(clips: Sequence[ClipScore], vital: str, methods: Sequence[str]) -> Figure | None:
    owing = [clip for clip in clips if clip.labels[vital] == "rate"]
    if not owing:
        return None
    figure, (ax,) = _figure()
    end_s = max(clip.video_s for clip in owing)
    for method in methods:
        times = np.sort([t for t in (clip.first_s(vital, method) for clip in owing) if t is not None])
        name, colour, line, _ = LOOKS[method]
        share = 100 * np.arange(times.size + 1) / len(owing)
        ax.step(np.concatenate([[0.0], times, [end_s]]), np.append(share, share[-1]), where="post", linestyle=line,
                color=colour, label=name)
    ax.set(xlabel="Time of video, s", ylabel="Clips that have shown a number, %", xlim=(0, end_s), ylim=(0, 102),
           title=f"First number, {len(owing)} clips with this rhythm")
    ax.legend(frameon=False, loc="lower right")
    return figure


def by_domain(result: Mapping[str, Any], vital: str) -> Figure | None:
    """Error and coverage of every domain that has a truth, methods side by side."""
    table = {group: methods for group, methods in result["table"].items()
             if group not in TOTALS and methods[STUDENT][vital]["judged"]}
    if not table:
        return None
    methods = [m for m in LOOKS if any(m in row and vital in row[m] for row in table.values())]
    figure, axes = _figure(11.5, 1.6 + 0.36 * len(table), columns=2)
    rows = np.arange(len(table))[::-1]
    for i, method in enumerate(methods):
        name, colour, _, marker = LOOKS[method]
        place = rows + 0.13 * ((len(methods) - 1) / 2 - i)
        figures = [row.get(method, {}).get(vital, {}) for row in table.values()]

        def values(key: str, of: Sequence[Mapping[str, Any]] = figures) -> Array:
            return np.array([np.nan if each.get(key) is None else each[key] for each in of], np.float64)

        axes[0].plot(np.maximum(values("open_mae"), 0.05), place, marker, color=colour, markerfacecolor="none", markersize=5,
                     alpha=0.7)
        axes[0].plot(np.maximum(values("mae"), 0.05), place, marker, color=colour, markersize=6, label=name)
        axes[1].plot(100 * values("coverage"), place, marker, color=colour, markersize=6, label=name)
    asked = {(limit["vital"], limit["figure"]): limit["bound"] for limit in result["limits"]
             if limit["group"] in (HELD_OUT, *TOTALS) and limit["bound"] is not None}
    coverage = asked.get((vital, "coverage_visible"), asked.get((vital, "coverage")))
    for ax, bound in ((axes[0], asked.get((vital, "mae"))), (axes[1], None if coverage is None else 100 * coverage)):
        if bound is not None:
            ax.axvline(bound, color=LIMIT_COLOUR, linestyle="--", linewidth=1.2)
        ax.set_yticks(rows, [f"{name} *" if name in result["held_out"] else name for name in table])
        ax.set_ylim(-0.7, len(table) - 0.3)
    axes[0].set(xscale="log", xlabel=f"Mean absolute error, {VITAL_NAMES[vital][1]}", title=f"{VITAL_NAMES[vital][0]}: error")
    _plain_log(axes[0].xaxis)
    axes[1].set(xlim=(-2, 102), xlabel="Coverage, % of owed readings", title=f"{VITAL_NAMES[vital][0]}: coverage")
    axes[1].tick_params(labelleft=False)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), frameon=False)
    return figure
