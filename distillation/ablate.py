"""What each part of the student buys: the same training without it, judged on domains and recordings never trained on.

Every variant has the same clips, seeds, steps and schedule. Judged are single windows through edge.vitals and the gate's
quality threshold, without the gate's agreement over time, so the table shows the network and not the policy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from distillation import losses
from distillation.cache import Cache, CacheSpec, build
from distillation.example import INT8_STEP
from distillation.train import TrainConfig, train
from edge.gate import SHOWN_QUALITY
from edge.records import Waveform
from edge.vitals import PROFILES, estimate
from engines.files import write_whole
from engines.student import LEAK_HARMONICS, Student, StudentConfig

NEAR_PER_MIN = 5.0
"""A shown rate further than this from the truth is wrong, as in calibration.evaluate."""

STARTS = (0, 24, 48)
"""Window starts in a test clip (samples): 0.8 s apart, as hops are."""


@dataclass(frozen=True)
class Variant:
    """What is taken out; `full` takes nothing."""

    name: str
    wavelet: bool = True
    attention: bool = True
    distillation: bool = True
    cross_task: bool = True
    leak_gate: bool = True


VARIANTS = (Variant("full"), Variant("without distillation", distillation=False), Variant("without WTB", wavelet=False),
            Variant("without FASA", attention=False), Variant("without cross-task", cross_task=False),
            Variant("without cross-task and leak gate", cross_task=False, leak_gate=False))


@dataclass(frozen=True)
class Window:
    """One window's answer. true_per_min: None where the rhythm is not in the clip; seen: whether it can be read there."""

    domain: str
    task: str
    true_per_min: float | None
    seen: bool
    rate_per_min: float | None
    quality: float
    leak_db: float | None


@torch.no_grad()
def windows(student: Student, folder: Path, domain: str) -> list[Window]:
    """Every window of a test cache through student and post-processing."""
    student.eval()
    cache, head, made = Cache(folder), student.head, []
    length = student.config.window
    for index in range(len(cache)):
        truth = {name: column[index] for name, column in cache.truth.items()}
        features = student.stem(torch.from_numpy(cache.frames(index, slice(None))) * INT8_STEP)
        for start in STARTS:
            cut = slice(start, start + length)
            mask = torch.from_numpy(truth["valid"][cut].astype(np.float32))
            out = head.full((features[cut] * mask[:, None, None])[None], mask[None])
            waves, belief = out.waves[0].numpy(), torch.sigmoid(out.presence[0])
            side = student.config.grid
            found = estimate(Waveform(waves[0], waves[1], mask.numpy() > 0, float(belief[0]), float(belief[1]),
                                      out.attention[0].reshape(2, side, side).numpy(), student.config.fs_hz,
                                      int(1e9 * length / student.config.fs_hz)), PROFILES["neonate"])
            rates = {"pulse": truth["hr"][cut] / 60, "resp": truth["rr"][cut] / 60}
            tracks = [torch.from_numpy(rates[name] * mask.numpy())[None] for name in ("pulse", "resp")]
            leak = losses.leak_share(losses.power_share(out.waves[:, 0], head.dft), tracks[1], tracks[0],
                                     LEAK_HARMONICS["pulse"], head.freqs_hz)
            leaks = bool(truth["pulse_presence"] == 1 and truth["resp_presence"] == 1)
            for name, rate, quality in (("pulse", found.hr_per_min, found.hr_quality),
                                        ("resp", found.rr_per_min, found.rr_quality)):
                span = rates[name][-round((8 if name == "pulse" else 16) * student.config.fs_hz):]
                true = 60 * float(span[span > 0].mean()) if (span > 0).mean() > 0.5 else None
                made.append(Window(domain, name, true, bool(truth[f"{name}_presence"] == 1), rate, quality,
                                   10 * float(torch.log10(leak[0] + 1e-6)) if leaks and name == "pulse" else None))
    return made


def figures(found: Sequence[Window]) -> dict[str, float | None]:
    """Both tasks' errors and coverage where the rhythm can be read; wrong also counts numbers for no rhythm.

    mae_80: mean error of the four fifths of readable windows with the best quality: an order, free of any threshold.
    """
    out: dict[str, float | None] = {}
    for task, name in (("pulse", "hr"), ("resp", "rr")):
        every = [w for w in found if w.task == task]
        readable = [w for w in every if w.seen and w.true_per_min is not None]
        shown = [w for w in every if w.rate_per_min is not None and w.quality >= SHOWN_QUALITY]
        errors = [abs(w.rate_per_min - w.true_per_min) for w in shown if w.true_per_min is not None]
        wrong = sum(e > NEAR_PER_MIN for e in errors) + sum(w.true_per_min is None for w in shown)
        ranked = sorted(readable, key=lambda w: -w.quality)[:round(0.8 * len(readable))]
        best = [abs((w.rate_per_min or 0.0) - w.true_per_min) for w in ranked if w.true_per_min is not None]
        covered = sum(w.rate_per_min is not None and w.quality >= SHOWN_QUALITY for w in readable)
        out[f"{name}_mae"] = float(np.mean(errors)) if errors else None
        out[f"{name}_wrong"] = wrong / len(shown) if shown else None
        out[f"{name}_coverage"] = covered / len(readable) if readable else None
        out[f"{name}_mae_80"] = float(np.mean(best)) if best else None
    leaks = [w.leak_db for w in found if w.leak_db is not None]
    out["leak_db"] = float(np.mean(leaks)) if leaks else None
    return out


def run_of(variant: Variant, config: TrainConfig, size: StudentConfig) -> tuple[TrainConfig, StudentConfig]:
    """The training of one variant: the given one with one part taken out."""
    return (replace(config, teacher=config.teacher if variant.distillation else "",
                    cross_task=config.cross_task if variant.cross_task else 0.0),
            replace(size, wavelet=variant.wavelet, attention=variant.attention, leak_gate=variant.leak_gate))


def ablate(config: TrainConfig, domains: Sequence[str], seeds: Sequence[int], n_test: int, cache_folder: Path, out: Path,
           size: StudentConfig | None = None, variants: Sequence[Variant] = VARIANTS) -> Path:
    """Train every variant with every seed, or go on with it; judge on test clips of `domains`; write the table.

    Returns OUT/ablation.json; ablation.md beside it is the table of the documentation.
    """
    size = size or StudentConfig()
    samples = size.window + 48
    tests = {name: build(CacheSpec(f"test:{name}", n_test, 0, samples, size.fs_hz, size.size, (), config.recordings),
                         cache_folder, config.workers) for name in domains}
    rows: dict[str, list[dict[str, float | None]]] = {}
    for seed in seeds:
        for variant in variants:
            trained, sized = run_of(variant, replace(config, seed=seed), size)
            folder = out / f"{variant.name.replace(' ', '-')}-{seed}"
            checkpoint = train(trained, cache_folder, folder, sized)
            student = Student(sized)
            student.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["student"])
            judged = [w for name, test in tests.items() for w in windows(student, test, name)]
            rows.setdefault(variant.name, []).append(figures(judged))
    record = {"config": asdict(config), "student": asdict(size), "domains": list(domains), "seeds": list(seeds),
              "n_test": n_test, "variants": rows}
    write_whole(out / "ablation.json", json.dumps(record, indent=1).encode())
    write_whole(out / "ablation.md", table(rows).encode())
    return out / "ablation.json"


COLUMNS = (("HR MAE", "hr_mae", 1.0), ("HR wrong %", "hr_wrong", 100.0), ("HR coverage %", "hr_coverage", 100.0),
           ("HR MAE at 80 %", "hr_mae_80", 1.0), ("RR MAE", "rr_mae", 1.0), ("RR wrong %", "rr_wrong", 100.0),
           ("RR coverage %", "rr_coverage", 100.0), ("RR MAE at 80 %", "rr_mae_80", 1.0), ("leak dB", "leak_db", 1.0))


def table(rows: dict[str, list[dict[str, float | None]]]) -> str:
    """Markdown: mean over seeds, half the spread between them in brackets."""
    lines = ["| variant | " + " | ".join(title for title, _, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, runs in rows.items():
        cells = []
        for _, key, scale in COLUMNS:
            values = [scale * v for run in runs if (v := run[key]) is not None]
            cells.append(f"{np.mean(values):.2f} ({np.ptp(values) / 2:.2f})" if values else "-")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
