"""A benchmark's result as JUnit XML and as one self-contained HTML page with SVG plots: no script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from xml.sax.saxutils import quoteattr

from edge.bench_figures import FIGURES

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 170, 46, 12, 10, 26
INK, GRID, GOOD, BAD, ASIDE, SHADE = "#1f2933", "#e4e7eb", "#0b7a4b", "#c0261c", "#2360a5", "#f6d9a8"

_CSS = """
@page{size:A4;margin:12mm}*{box-sizing:border-box}
body{font:13px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1f2933;margin:0 auto;padding:24px;
max-width:1200px;background:#fff}
h1{font-size:22px;margin:0}h2{font-size:14px;margin:22px 0 6px;border-bottom:1px solid #cbd2d9;padding-bottom:3px}
header{display:flex;justify-content:space-between;align-items:flex-start;gap:24px}
.verdict{font-size:20px;font-weight:700;padding:8px 20px;border-radius:4px;color:#fff;white-space:nowrap}
.pass{background:#0b7a4b}.fail{background:#c0261c}.sub{color:#52606d}
.busy{background:#fdf3dc;border-left:4px solid #d9a441;padding:6px 10px;
margin:12px 0 0}td.unit{white-space:nowrap}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:3px 8px;border-bottom:1px solid #e4e7eb;
vertical-align:top}
th{font-weight:600;color:#52606d;font-size:12px}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.ok{color:#0b7a4b;font-weight:600}td.no{color:#fff;background:#c0261c;font-weight:700}td.open{color:#7b8794}td.n,td.ok,td.no,td.open{white-space:nowrap}
tr.broken td{background:#fdeceb}tr.broken td.no{background:#c0261c}
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 28px}figure{margin:6px 0;break-inside:avoid}
figcaption{font-size:12px;color:#52606d;margin-bottom:2px}svg{width:100%;height:auto;display:block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:1px 12px;margin:0}dt{color:#52606d}dd{margin:0;word-break:break-word}
.sign{display:grid;grid-template-columns:2fr 2fr 1fr;gap:24px;margin-top:34px}.sign div{border-top:1px solid #1f2933;
padding-top:3px;color:#52606d;font-size:12px}section{break-inside:avoid}
footer{margin-top:18px;color:#52606d;font-size:11px}
@media(max-width:800px){.two,.sign{grid-template-columns:1fr}}
"""


def junit(result: Mapping[str, Any]) -> str:
    """One test case a limit, and one for each figure that became worse."""
    cases, failures, skipped = [], 0, 0
    for row in result["limits"]:
        inner = ""
        if row["ok"] is False:
            failures += 1
            why = f" ({row['reason']})" if row["reason"] else ""
            said = f"{_plain(row['figure'], row['value'])}, limit {row['limit']}{why}"
            inner = f"<failure message={quoteattr(said)}/>"
        elif row["ok"] is None:
            skipped += 1
            inner = f"<skipped message={quoteattr(row['reason'])}/>"
        cases.append(f'<testcase classname="physvlm.bench.limits" name={quoteattr(row["figure"])}>{inner}</testcase>')
    for change in result["changes"]:
        inner = ""
        if change["worse"]:
            failures += 1
            said = f"{_plain(change['figure'], change['now'])}, was {change['then']:g}"
            inner = f"<failure message={quoteattr(said)}/>"
        cases.append(f'<testcase classname="physvlm.bench.against" name={quoteattr(change["figure"])}>{inner}</testcase>')
    return ('<?xml version="1.0" encoding="utf-8"?>\n'
            f'<testsuites><testsuite name="physvlm bench" tests="{len(cases)}" failures="{failures}" skipped="{skipped}" '
            f'errors="0" time="{result["run"]["seconds"]}" timestamp={quoteattr(result["run"]["began_utc"])}>\n'
            + "\n".join(cases) + "\n</testsuite></testsuites>\n")


def html(result: Mapping[str, Any]) -> str:
    """The page that QA signs."""
    run, machine, verdict = result["run"], result["machine"], result["verdict"]
    said = _in_words(result)
    board = machine.get("board") or machine.get("cpu") or "unknown machine"
    parts = [
        f"<header><div><h1>PhysVLM Edge: device benchmark</h1><div class=sub>{escape(str(board))}, {escape(run['began_utc'])}, "
        f"{_duration(run['seconds'])}; {escape(said)}</div></div>"
        f"<div class='verdict {verdict}'>{verdict.upper()}</div></header>", _busy(result),
        _limits(result), "<div class=two>", *_plots(result), "</div>", _faults(result), _wrong(result),
        "<div class=two><section>", _stages(result), "</section><section>", _precisions(result), _machine(result),
        "</section></div>", _reference(result),
        "<div class=sign><div>Tested by</div><div>Signature</div><div>Date</div></div>",
        "<footer>Investigational software: not for diagnosis, not for alarms. CPU figures are CPU time of one core; latencies "
        "are wall time. Nothing on this page is loaded from elsewhere.</footer>"]
    return (f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
            f"<title>PhysVLM bench: {verdict}</title><style>{_CSS}</style><body>" + "\n".join(parts) + "</body></html>\n")


def _in_words(result: Mapping[str, Any]) -> str:
    limits = result["limits"]
    counts = {"broken": sum(row["ok"] is False for row in limits), "not measured": sum(row["ok"] is None for row in limits),
              "worse than before": sum(row["worse"] for row in result["changes"])}
    return ", ".join([f"{sum(row['ok'] is True for row in limits)} of {len(limits)} limits kept",
                      *(f"{count} {what}" for what, count in counts.items() if count)])


def _busy(result: Mapping[str, Any]) -> str:
    """A machine that does other things, too, gives figures that are not its own."""
    others, cores = result["figures"]["load_of_others_percent"], result["machine"]["cores"]
    if others is None or others < 20 * cores:
        return ""
    return (f"<p class=busy>Other work took {others / 100:.1f} of {cores} cores meanwhile: rates, latencies and CPU figures "
            "are worse than this machine's own. Measure again on an idle machine before signing.</p>")


# --- tables


def _limits(result: Mapping[str, Any]) -> str:
    then = {row["figure"]: row for row in result["changes"]}
    limited = {row["figure"]: row for row in result["limits"]}
    missing: dict[str, list[str]] = {}
    before: list[Any] = [("before", "n"), ("ratio", "n")] if then else []
    head = ["figure", ("value", "n"), "unit", ("limit", "n"), "", *before, "what it is"]
    rows = []
    for name in (name for name in FIGURES if name in limited or result["figures"].get(name) is not None):
        row, change = limited.get(name), then.get(name)
        value = result["figures"].get(name)
        ok = row["ok"] if row else None
        mark = {True: ("ok", "kept"), False: ("no", "broken"), None: ("open", "")}[ok]
        if row is not None and ok is None:
            missing.setdefault(row["reason"], []).append(name)
            continue
        what = FIGURES[name].what + (f"; {row['reason']}" if row and row["reason"] else "")
        cells = [name, (_number(value), "n"), (FIGURES[name].unit, "unit"), (row["limit"] if row else "", "n"),
                 (mark[1], mark[0])]
        if then:
            moved = "" if change is None else "no" if change["worse"] else "ok" if change["better"] else ""
            cells += [("" if change is None else _number(change["then"]), "n"),
                      ("" if change is None or change["ratio"] is None else f"{change['ratio']:.2f}", f"n {moved}")]
        rows.append((cells + [what], "broken" if ok is False else ""))
    open_ends = "; ".join(f"{', '.join(names)} ({why})" for why, names in missing.items())
    return "<h2>Figures and limits</h2>" + _table(head, rows) + (
        f"<div class=sub>Not measured, and not required: {escape(open_ends)}.</div>" if open_ends else "")


def _faults(result: Mapping[str, Any]) -> str:
    if not result["faults"]:
        return ""

    def pair(value: Sequence[float] | None) -> str:
        return "never" if value is None else f"{value[0]:g} / {value[1]:g}"

    def count(n: int) -> tuple[int, str]:
        return n, "n no" if n else "n"

    rows = [([row["fault"], (row["times"], "n"), (row["held_s"], "n"), *((pair(row[key]), "n") for key in (
        "right_s", "pr_back_s", "back_s")), count(row["not_recovered"]), count(row["wrong"]), ", ".join(row["said"])], "")
        for row in result["faults"]]
    head = ["fault", ("times", "n"), ("held s", "n"), ("glass right after s", "n"), ("PR back after s", "n"),
            ("both back after s", "n"), ("not recovered", "n"), ("wrong shown", "n"), "the display said"]
    return ("<section><h2>Faults injected</h2>" + _table(head, rows)
            + "<div class=sub>Seconds: median / worst. Right: from the fault's begin until the glass holds no "
            "number (full or read-only disk, clock: the numbers stay, and back is the recorder). Back: from its end until the "
            "numbers stand again.</div></section>")


def _wrong(result: Mapping[str, Any]) -> str:
    if not result["wrong"]:
        return ""
    rows = [([(row["t_s"], "n"), (row["what"], "no")], "") for row in result["wrong"]]
    return "<section><h2>Wrong on the glass</h2>" + _table([("t s", "n"), "what"], rows) + "</section>"


def _stages(result: Mapping[str, Any]) -> str:
    rows = [([name, *((f"{row[p]:.2f}", "n") for p in ("p50", "p95", "p99", "max")), (row["n"], "n")], "")
            for name, row in result["stages"].items()]
    head = ["stage", *((p, "n") for p in ("p50", "p95", "p99", "max", "calls"))]
    return "<h2>Latency by stage, ms</h2>" + _table(head, rows) + _stage_bars(result["stages"])


def _precisions(result: Mapping[str, Any]) -> str:
    if not result["precisions"]:
        return ""
    rows = [([row["precision"], (f"{row['model_ms_per_frame']:.3f}", "n")], "") for row in result["precisions"]]
    return "<h2>Precisions</h2>" + _table(["precision", ("model, CPU ms a frame", "n")], rows)


def _reference(result: Mapping[str, Any]) -> str:
    if not result["reference"]:
        return ""
    head = ["reference clip", *((f"{vital} {what}", "n") for vital in ("HR", "RR")
                                for what in ("truth", "median", "error", "wrong", "shown"))]
    rows = []
    for row in result["reference"]:
        cells: list[Any] = [row["clip"]]
        for vital in ("hr", "rr"):
            wrong = row[f"{vital}_wrong"]
            cells += [("none" if row["known"] and row[f"{vital}_truth"] is None else _number(row[f"{vital}_truth"]), "n"),
                      (_number(row[f"{vital}_median"]), "n"), (_number(row[f"{vital}_error"]), "n"),
                      ("?" if wrong is None else wrong, "n" + (" no" if wrong else "")),
                      (f"{row[f'{vital}_shown']}/{row[f'{vital}_due']}", "n")]
        rows.append((cells, ""))
    return ("<section><h2>Reference clips</h2>" + _table(head, rows)
            + "<div class=sub>Rates per minute. Error: mean, against the truth averaged over the reading's own window. Wrong: "
            "readings more than 5 /min off, or shown where there is no such rhythm. Shown: of the readings due.</div>"
            "</section>")


def _machine(result: Mapping[str, Any]) -> str:
    machine, run = result["machine"], result["run"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    pairs = {"board": machine["board"], "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['arch']}",
             "memory": f"{machine['memory_gb']} GB", "JetPack": machine["jetpack"], "L4T": machine["l4t"],
             "power mode": machine["power_mode"], "governor": machine["governor"], "kernel": machine["kernel"],
             "Python": machine["python"], "packages": versions, "clip": run["clip"], "weights": run["weights"],
             "engine": f"{run['backend']}, precision {run['precision']}", "region": run["roi"], "profile": run["profile"]}
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs.items() if value)
    return f"<h2>Machine and software</h2><dl>{rows}</dl>"


def _table(head: Sequence[Any], rows: Sequence[tuple[Sequence[Any], str]]) -> str:
    def cell(tag: str, content: Any) -> str:
        text, kind = content if isinstance(content, tuple) else (content, "")
        return f"<{tag} class='{kind}'>{escape(str(text))}</{tag}>"

    body = "".join(f"<tr class='{kind}'>{''.join(cell('td', each) for each in cells)}</tr>" for cells, kind in rows)
    return f"<table><thead><tr>{''.join(cell('th', each) for each in head)}</tr></thead><tbody>{body}</tbody></table>"


# --- plots


def _plots(result: Mapping[str, Any]) -> list[str]:
    series = result["series"]
    hr, rr = series["truth"]
    glass = {"PR": [(t, pr) for t, pr, _ in series["glass"]], "RR": [(t, value) for t, _, value in series["glass"]]}
    low, high = result["slope_range"]
    slope = result["figures"]["rss_slope_mb_per_h"]
    fit = "" if slope is None else f"; slope {slope:+.2f} MB/h ({low:+.2f} to {high:+.2f})"
    limits = {row["figure"]: row["limit"] for row in result["limits"]}
    return [
        _plot("Numbers on the glass, /min (gaps: dashes; thin line: truth)", series,
              [(glass["PR"], GOOD), (glass["RR"], ASIDE)], marks=[v for v in (hr, rr) if v is not None], steps=True),
        _plot("Picture to wire, ms", series, [(series["latency"], ASIDE)], dots=True, zero=True,
              limit=_limit(limits, "camera_to_wire_p99_ms")),
        _plot(f"Memory, MB{fit}", series, [(series["rss"], ASIDE)], limit=_limit(limits, "rss_peak_mb"), near=True),
        _plot("CPU of the loop without decoding, % of a core", series, [(series["cpu"], ASIDE)], zero=True,
              limit=_limit(limits, "live_cpu_percent")),
        _plot("Frames a second", series, [(series["fps"], GOOD)], zero=True, limit=_limit(limits, "fps")),
        _histogram("Picture to wire: how often", [ms for _, ms in series["latency"]]),
    ]


def _limit(limits: Mapping[str, str], name: str) -> float | None:
    return float(limits[name].split()[1]) if name in limits else None


def _plot(title: str, series: Mapping[str, Any], lines: Sequence[tuple[Sequence[Sequence[Any]], str]], *,
          limit: float | None = None, marks: Sequence[float] = (), zero: bool = False, near: bool = False, dots: bool = False,
          steps: bool = False) -> str:
    """Lines over seconds, faults shaded. near: a limit far away is only named, so that the line's shape can be seen."""
    points = [(t, v) for line, _ in lines for t, v in line if v is not None]
    if not points:
        return f"<figure><figcaption>{escape(title)}: nothing measured</figcaption></figure>"
    end_s = max([t for t, _ in points] + [fault["over"] for fault in series["faults"]])
    values = [v for _, v in points] + list(marks)
    if limit is not None and not (near and limit > 1.15 * max(values)):
        values.append(limit)
    y0, y1, ticks = _scale(0.0 if zero else min(values), max(values))
    px = lambda t: LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, t) / end_s  # noqa: E731
    py = lambda v: TOP + (HEIGHT - TOP - BOTTOM) * (1 - (v - y0) / (y1 - y0))  # noqa: E731
    out = [f"<rect x='{px(f['begin']):.1f}' y='{TOP}' width='{max(1.0, px(f['end']) - px(f['begin'])):.1f}' "
           f"height='{HEIGHT - TOP - BOTTOM}' fill='{SHADE}'><title>{escape(f['name'])}</title></rect>"
           for f in series["faults"]]
    out += _axes(ticks, py, end_s, px)
    out += [f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(v):.1f}' y2='{py(v):.1f}' stroke='{INK}' stroke-width='.6'/>"
            for v in marks]
    if limit is not None and y0 <= limit <= y1:
        out.append(f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(limit):.1f}' y2='{py(limit):.1f}' stroke='{BAD}' "
                   "stroke-dasharray='5 3'/>")
    for line, colour in lines:
        if dots:
            out += [f"<circle cx='{px(t):.1f}' cy='{py(v):.1f}' r='1.6' fill='{colour}'/>" for t, v in line if v is not None]
        else:
            out.append(f"<path d='{_path(line, px, py, steps)}' fill='none' stroke='{colour}' stroke-width='1.4'/>")
    named = f" (limit {limit:g})" if limit is not None else ""
    return f"<figure><figcaption>{escape(title + named)}</figcaption>{_svg(out)}</figure>"


def _path(line: Sequence[Sequence[Any]], px: Any, py: Any, steps: bool) -> str:
    """An SVG path that breaks where there is no value. steps: each value holds until the next."""
    words, drawing = [], False
    for t, v in line:
        if v is None:
            if steps and drawing:
                words.append(f"H{px(t):.1f}")
            drawing = False
            continue
        if steps and drawing:
            words.append(f"H{px(t):.1f}V{py(v):.1f}")
        else:
            words.append(f"{'L' if drawing else 'M'}{px(t):.1f} {py(v):.1f}")
        drawing = True
    return "".join(words)


def _scale(low: float, high: float) -> tuple[float, float, list[float]]:
    """A range of round numbers around both, and its ticks."""
    span = max(high - low, 1e-9, 0.02 * abs(high))
    step = 10 ** math.floor(math.log10(span / 3))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step + 1e-9)
    return first * step, max(last, first + 1) * step, [i * step for i in range(first, max(last, first + 1) + 1)]


def _axes(ticks: Sequence[float], py: Any, end_s: float, px: Any) -> list[str]:
    out = []
    for value in ticks:
        out += [f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(value):.1f}' y2='{py(value):.1f}' stroke='{GRID}'/>",
                _text(LEFT - 6, py(value) + 4, f"{value:g}" if abs(value) < 1e5 else f"{value:.0f}", "end")]
    unit, name = (60.0, "min") if end_s > 240 else (1.0, "s")
    for value in _scale(0.0, end_s / unit)[2]:
        if value * unit <= end_s:
            out.append(_text(px(value * unit), HEIGHT - 8, f"{value:g}" + (f" {name}" if value else ""), "middle"))
    return out


def _histogram(title: str, values: Sequence[float], bins: int = 40) -> str:
    if not values:
        return f"<figure><figcaption>{escape(title)}: nothing measured</figcaption></figure>"
    top = max(max(values) * 1.02, 1e-6)
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int(value / top * bins))] += 1
    y0, y1, ticks = _scale(0.0, max(counts))
    px = lambda v: LEFT + (WIDTH - LEFT - RIGHT) * v / top  # noqa: E731
    py = lambda v: TOP + (HEIGHT - TOP - BOTTOM) * (1 - (v - y0) / (y1 - y0))  # noqa: E731
    out = [f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(v):.1f}' y2='{py(v):.1f}' stroke='{GRID}'/>"
           + _text(LEFT - 6, py(v) + 4, f"{v:g}", "end") for v in ticks]
    out += [f"<rect x='{px(i * top / bins):.1f}' y='{py(n):.1f}' width='{px(top / bins) - LEFT - 1:.1f}' "
            f"height='{HEIGHT - BOTTOM - py(n):.1f}' fill='{ASIDE}'/>" for i, n in enumerate(counts) if n]
    out += [_text(px(v), HEIGHT - 8, f"{v:g} ms", "middle") for v in _scale(0.0, top)[2][1:] if v <= top]
    return f"<figure><figcaption>{escape(title)}</figcaption>{_svg(out)}</figure>"


def _stage_bars(stages: Mapping[str, Mapping[str, float]]) -> str:
    """p50 (dark), p95 and p99 (light) of each stage on one scale of roots, since they span three decades."""
    if not stages:
        return ""
    top = max(row["p99"] for row in stages.values()) or 1.0
    height = 20 * len(stages) + 8
    out = []
    for i, (name, row) in enumerate(stages.items()):
        y = 4 + 20 * i
        out.append(_text(96, y + 12, name, "end"))
        for p, colour in (("p99", "#cfdcec"), ("p95", "#8fb0d6"), ("p50", ASIDE)):
            long = max(1.0, 380 * math.sqrt(row[p] / top))
            out.append(f"<rect x='102' y='{y}' width='{long:.1f}' height='14' fill='{colour}'/>")
        out.append(_text(108 + 380 * math.sqrt(row["p99"] / top), y + 12, f"{row['p99']:.2f}", "start"))
    return ("<figure><figcaption>p50, p95, p99; lengths are roots, figures are p99</figcaption>"
            + _svg(out, height=height) + "</figure>")


def _svg(content: Sequence[str], height: int = HEIGHT) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {height}' role=img font-size='11' fill='{INK}'>{''.join(content)}</svg>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='#52606d'>{escape(text)}</text>"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _plain(name: str, value: float | None) -> str:
    return f"{name} not measured" if value is None else f"{name} {value:g} {FIGURES[name].unit}".strip()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
