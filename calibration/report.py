"""An evaluation as one HTML file: verdicts, tables and plots, nothing fetched from anywhere.

Made from the evaluation's JSON alone (calibration/evaluate.py), so a report can be made again from a kept file. The plots
(calibration/plots.py) are SVG inside the page.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from calibration import plots
from calibration.metrics import NEAR_PER_MIN
from calibration.plots import LOOKS, VITAL_NAMES
from calibration.score import STUDENT, VITALS, ClipScore
from calibration.summary import TOTALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;color:#1a1f26;background:#fff;
 margin:0 auto;max-width:1240px;padding:28px 28px 60px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:20px;margin:40px 0 8px;border-bottom:2px solid #0072B2;padding-bottom:4px}
h3{font-size:16px;margin:24px 0 6px}p{max-width:900px;margin:6px 0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:8px 0 4px}
th,td{padding:4px 9px;text-align:right;white-space:nowrap}th{background:#eef3f8;font-weight:600;border-bottom:1px solid #b9c6d3}
td{border-bottom:1px solid #e6ebf0}th:first-child,td:first-child,.l{text-align:left}
tr.total td{background:#f7f9fb;font-weight:600}tr.other td{color:#4a5561}tr.first td{border-top:1px solid #b9c6d3}
.kept{color:#00664b;font-weight:600}.broken{color:#b04300;font-weight:600}.undefined{color:#5b6570}
.banner{display:inline-block;padding:6px 14px;border-radius:6px;font-weight:600;margin:10px 0;border:1px solid}
.banner.kept{background:#e5f5ef;border-color:#009E73}.banner.broken{background:#fdeee4;border-color:#D55E00}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(520px,1fr));gap:18px}
figure{margin:0}figure img{width:100%;height:auto;display:block}figcaption{font-size:13px;color:#4a5561;max-width:620px}
.note{font-size:13px;color:#4a5561}code{background:#f1f4f7;padding:1px 4px;border-radius:3px;overflow-wrap:anywhere}
.meta td{text-align:left;white-space:normal}.tag{font-weight:600;color:#0072B2}
"""


def render(result: Mapping[str, Any]) -> str:
    """The whole page. result: an evaluation or a merged one, as evaluate.py writes it."""
    clips = [ClipScore.from_json(content) for content in result["clips"]]
    held = [clip for clip in clips if clip.domain in result["held_out"]]
    plotted, whose = (held, "held-out domains") if held else (clips, "everything evaluated")
    title = "Leave-one-domain-out evaluation" if result.get("kind") == "lodo" else "Evaluation"
    parts = [f"<h1>PhysVLM Edge: {title.lower()}</h1>", _meta(result), _verdicts(result["limits"])]
    parts += [f"<h2>{VITAL_NAMES[vital][0]}</h2>{_figures_table(result, vital)}" for vital in VITALS]
    parts.append(_restraint_table(result))
    if "seen" in result:
        parts.append(_seen_table(result))
    parts.append(f"<h2>By domain</h2>{_plots([(plots.by_domain(result, vital), _BY_DOMAIN) for vital in VITALS], wide=True)}")
    for vital in VITALS:
        parts.append(f"<h2>{VITAL_NAMES[vital][0]}: plots over {whose}</h2>{_vital_plots(plotted, vital)}")
    parts.append(f"<h2>How it was measured</h2>{_METHOD}")
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>PhysVLM Edge: {title.lower()}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n'
            + "\n".join(parts) + "\n</body></html>\n")


_METHOD = f"""<p>Every clip goes through the runtime's own pipeline and gate, frame by frame: one reading a second. A shown
number is held against the true mean rate over its own averaging time; more than {NEAR_PER_MIN:g} /min off is <b>wrong</b>, and
so is any number of a rhythm that the clip does not have. <b>Coverage</b> is the share of readings with a number, from the first
second at which one could exist, where there is a truth inside the profile's band. An averaging time that is mostly a pause in
breathing has no true rate and is not judged.</p>
<p>POS and CHROM read the same frames with the skin known from the rendering (at rest, as a region found once; with the
<b>oracle mask</b> in every single frame, which nothing in the field can do), and stand behind the same post-processing and
the same gate. On real data their skin is found by its colour in the first frame. <b>No gate</b> is the highest spectral line
of every reading. MAE, RMSE, MAPE, Pearson's r and SNR, with their standard errors, are rPPG-Toolbox's definitions, with the
band widened to newborns. Plain limits of agreement take readings as independent, which those of one subject are not; the
limits for repeated measures (Bland and Altman, 2007) do not.</p>"""


def _meta(result: Mapping[str, Any]) -> str:
    weights = {part["file"]: part["sha256"][:16] for parts in result.get("weights", {}).values() for part in parts.values()}
    rows = [("Made", f"{result['date']}, PhysVLM Edge {result['version']}, code <code>{result['code_sha256'][:16]}</code>"),
            ("Command", f"<code>{html.escape(result.get('command') or 'not recorded')}</code>"),
            ("Settings", html.escape(f"profile {result['profile']}, region {result['roi']}, "
                                     f"{result['clips_per_domain']} clips of each rendered domain"))]
    if weights:
        listed = ", ".join(f"{html.escape(name)} <code>{digest}</code>" for name, digest in weights.items())
        rows.append(("Weights", f"{html.escape(str(result['weights_folder']))}: {listed}"))
    for each in result.get("merged", ()):
        rows.append(("Merged", html.escape(f"{each['file']} of {each['date']}, without {', '.join(each['held_out'])}")))
    if result["held_out"]:
        rows.append(("Held out", html.escape(", ".join(result["held_out"])) + ": the student was trained without these"))
    cells = "".join(f"<tr><td><b>{name}</b></td><td>{text}</td></tr>" for name, text in rows)
    return f'<table class="meta">{cells}</table>'


def _verdicts(limits: Sequence[Mapping[str, Any]]) -> str:
    if not limits:
        return '<p class="note">Nothing that was evaluated is held to a limit.</p>'
    broken = sum(row["verdict"] == "broken" for row in limits)
    banner = (f'<div class="banner broken">{broken} of {len(limits)} limits broken</div>' if broken
              else f'<div class="banner kept">All of {len(limits)} limits kept</div>')
    marks = {"kept": "&#10003; kept", "broken": "&#10007; broken", "undefined": "&ndash; undefined"}
    order = sorted(limits, key=lambda row: ("broken", "undefined", "kept").index(row["verdict"]))
    rows = "".join(f'<tr><td>{html.escape(row["group"])}</td><td class="l">{html.escape(row["text"])}</td>'
                   f'<td>{_number(row["value"], 4)}</td><td>{_number(row["bound"], 4)}</td>'
                   f'<td class="l {row["verdict"]}">{marks[row["verdict"]]}</td></tr>' for row in order)
    head = '<tr><th>group</th><th class="l">limit</th><th>is</th><th>bound</th><th class="l">verdict</th></tr>'
    return (f"{banner}<details{' open' if broken else ''}><summary>Limits</summary>"
            f'<div class="scroll"><table>{head}{rows}</table></div></details>')


COLUMNS: tuple[tuple[str, str, Callable[[Mapping[str, Any]], str]], ...] = (
    ("MAE", "Mean absolute error of shown numbers, /min, and its standard error", lambda r: _with_error(r, "mae", 2)),
    ("wrong", "Share of shown numbers more than 5 /min off, or of a rhythm that is not there", lambda r: _percent(r["wrong"])),
    ("coverage", "Share of owed readings with a number, after start-up", lambda r: _percent(r["coverage"])),
    ("time within 5", "Share of owed readings that show a number within 5 /min", lambda r: _percent(r["near_of_time"])),
    ("first s", "Median time of the first number, s", lambda r: _number(r["first_median_s"], 1)),
    ("RMSE", "Root mean squared error, /min", lambda r: _with_error(r, "rmse", 2)),
    ("MAPE %", "Mean absolute error in percent of the truth", lambda r: _with_error(r, "mape", 1)),
    ("r", "Pearson's correlation", lambda r: _with_error(r, "pearson", 3)),
    ("SNR dB", "Signal to noise ratio of the wave at the true rate, shown readings", lambda r: _with_error(r, "snr_db", 1)),
    ("bias", "Mean of shown less true, /min", lambda r: _number(r["bias"], 2)),
    ("95 % limits", "Limits of agreement, /min", lambda r: _range(r["lower"], r["upper"])),
    ("repeated", "Limits of agreement for repeated measures, /min", lambda r: _range(r["repeated_lower"], r["repeated_upper"])),
    ("MAE at 80 %", "Error of the best 80 % of owed readings by quality, /min", lambda r: _number(r["mae_at_80"], 2)),
    ("no gate MAE", "Error of every owed reading's highest spectral line, /min", lambda r: _with_error(r, "open_mae", 2)),
    ("judged", "Readings with a truth", lambda r: str(r["judged"])),
)


def _figures_table(result: Mapping[str, Any], vital: str) -> str:
    head = "".join(f'<th title="{html.escape(text)}">{html.escape(name)}</th>' for name, text, _ in COLUMNS)
    rows = []
    for group, methods in result["table"].items():
        if not methods[STUDENT][vital]["judged"]:
            continue
        for i, method in enumerate(m for m in LOOKS if m in methods and vital in methods[m]):
            tag = ' <span class="tag">held out</span>' if group in result["held_out"] else ""
            kind = f"{'total' if group in TOTALS else ''} {'other' if i else 'first'}"
            cells = "".join(f"<td>{show(methods[method][vital])}</td>" for _, _, show in COLUMNS)
            name = f"{html.escape(group)}{tag}" if i == 0 else ""
            rows.append(f'<tr class="{kind}"><td>{name}</td><td class="l">{LOOKS[method][0]}</td>{cells}</tr>')
    if not rows:
        return '<p class="note">No reading has a truth to be held against.</p>'
    return (f'<div class="scroll"><table><tr><th>group</th><th class="l">method</th>{head}</tr>{"".join(rows)}</table></div>'
            '<p class="note">Rates and errors per minute, &plusmn; one standard error. Hover over a heading for its meaning; '
            "&ndash; is undefined, never zero.</p>")


def _restraint_table(result: Mapping[str, Any]) -> str:
    """Groups without a pulse: any heart rate there is false."""
    groups = {group: methods for group, methods in result["table"].items() if not methods[STUDENT]["hr"]["judged"]}
    if not groups:
        return ""
    others = [m for m in LOOKS if m != STUDENT and all(m in methods for methods in groups.values())]
    head = "".join(f"<th>HR shown, {LOOKS[m][0]}</th>" for m in others)
    rows = []
    for group, methods in groups.items():
        hr, rr = methods[STUDENT]["hr"], methods[STUDENT]["rr"]
        cells = "".join(f"<td>{_percent(methods[m]['hr']['shown_share'])}</td>" for m in others)
        rows.append(f'<tr class="{"total" if group in TOTALS else ""}"><td>{html.escape(group)}</td><td>{hr["clips"]}</td>'
                    f'<td>{hr["video_s"] / 60:.0f}</td><td>{hr["readings"]}</td><td>{_percent(hr["shown_share"])}</td>'
                    f'<td>{_percent(rr["shown_share"])}</td>{cells}</tr>')
    return ('<h2>Pictures without a pulse</h2><div class="scroll"><table><tr><th>group</th><th>clips</th><th>minutes</th>'
            f'<th>readings</th><th>HR shown</th><th>RR shown</th>{head}</tr>{"".join(rows)}</table></div>'
            '<p class="note">Every heart rate shown here is false. A thing that moves may look like breathing.</p>')


def _seen_table(result: Mapping[str, Any]) -> str:
    """Each held-out domain beside the same domain under students that had seen it."""
    rows = []
    for domain in result["held_out"]:
        sides = [result["table"].get(domain), result["seen"].get(domain)]
        cells = [f"<td>{_number(side[STUDENT][vital]['mae'], 2) if side else '&ndash;'}</td>"
                 f"<td>{_percent(side[STUDENT][vital]['wrong']) if side else '&ndash;'}</td>"
                 f"<td>{_percent(side[STUDENT][vital]['coverage']) if side else '&ndash;'}</td>"
                 for vital in VITALS for side in sides]
        rows.append(f"<tr><td>{html.escape(domain)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{vital.upper()} MAE, {side}</th><th>wrong</th><th>coverage</th>"
                   for vital in VITALS for side in ("held out", "seen"))
    return (f'<h2>Held out against seen</h2><div class="scroll"><table><tr><th>domain</th>{head}</tr>'
            f'{"".join(rows)}</table></div>'
            '<p class="note">Seen: the same clips under the students that other runs trained with this domain.</p>')


def _number(value: float | None, digits: int) -> str:
    return "&ndash;" if value is None else f"{value:.{digits}f}".replace("-", "&minus;")


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{100 * value:.1f} %"


def _range(low: float | None, high: float | None) -> str:
    return "&ndash;" if low is None or high is None else f"{_number(low, 1)} to {_number(high, 1)}"


def _with_error(row: Mapping[str, Any], name: str, digits: int) -> str:
    value, error = row[name], row[f"{name}_se"]
    return _number(value, digits) + (f" &plusmn; {error:.{digits}f}" if value is not None and error is not None else "")


# --- plots

_BY_DOMAIN = ("Filled: shown numbers behind the gate. Open: every owed reading's highest spectral line, no gate. Dashed: what "
              "is asked of the student.")


def _plots(drawn: Sequence[tuple[Figure | None, str]], wide: bool = False) -> str:
    """Figures side by side, each with its caption; one that had nothing to show is left out."""
    cells = [f'<figure><img alt="{html.escape(caption)}" src="{_embedded(figure)}">'
             f"<figcaption>{html.escape(caption)}</figcaption></figure>" for figure, caption in drawn if figure is not None]
    if not cells:
        return '<p class="note">Nothing to plot: no reading has a truth.</p>'
    return f"<div{'' if wide else ' class=plots'}>{''.join(cells)}</div>"


def _embedded(figure: Figure) -> str:
    sink = io.BytesIO()
    figure.savefig(sink, format="svg", dpi=160, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(sink.getvalue()).decode()


def _vital_plots(clips: Sequence[ClipScore], vital: str) -> str:
    methods = [m for m in LOOKS if clips and all(m in clip.methods and vital in clip.methods[m] for clip in clips)]
    return _plots([
        (plots.difference(clips, vital), "Bland-Altman plot of the student's shown numbers: difference against mean of both. "
         "Solid: bias. Dashed: 95 % limits of agreement for repeated measures (plain ones where each subject was read once)."),
        (plots.scatter(clips, vital), f"Shown against true rate. Orange crosses are more than {NEAR_PER_MIN:g} /min off."),
        (plots.error_by_snr(clips, vital, methods), "Error of the estimate, shown or withheld, against the signal to noise "
         "ratio of the method's own wave: median and quartiles in bins of 3 dB."),
        (plots.risk(clips, vital, methods), "What answering more often costs: estimates taken in from the best quality "
         "down. Markers stand where the gate answers."),
        (plots.first(clips, vital, methods), "Share of clips that have shown a number by a given time of video."),
    ])
