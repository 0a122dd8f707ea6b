"""The one training loop: rendered clips in, a checkpoint and its record out. Supervised for now.

Resumes from its last checkpoint, logs one JSON line per epoch, and stops at an epoch count or a time budget.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.scenes import RESTRAINT_SEED0, TRAINING_SEED0, VALIDATION_SEED0
from distillation.cache import INT8_STEP, CacheSpec, build
from distillation.losses import presence_loss, spectral_loss, waveform_loss
from engines.student import Student, StudentConfig

LAG_PULSE, LAG_RESP = 6, 10
"""Samples of lag that a waveform is forgiven: 0.2 s for the pulse's transit, 0.33 s for chest against flow."""


@dataclass(frozen=True)
class TrainConfig:
    """n_train, n_restraint, n_valid: rendered clips. minutes: stop after the epoch that passes this budget.

    start: checkpoint whose weights to begin from; empty = from scratch.
    """

    n_train: int = 1400
    n_restraint: int = 500
    n_valid: int = 96
    epochs: int = 12
    minutes: float = 90.0
    batch: int = 8
    learning_rate: float = 2e-3
    seed: int = 1
    threads: int = 2
    device: str = "cpu"
    start: str = ""


class TrainingError(ValueError):
    """The run folder or the budget does not allow the training that was asked for."""


class Cache:
    """Rendered caches, opened as one: frames stay on disk until a batch needs them."""

    def __init__(self, *folders: Path) -> None:
        self._stores = [np.load(folder / "frames.npy", mmap_mode="r") for folder in folders]
        truths = [np.load(folder / "truth.npz") for folder in folders]
        self.truth = {name: np.concatenate([t[name] for t in truths]) for name in truths[0].files}
        self._rows = [(store, i) for store in self._stores for i in range(store.shape[0])]
        self.n_samples = int(self._stores[0].shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def frames(self, index: int, cut: slice) -> Tensor:
        """int8 (n, channels, S, S)."""
        store, row = self._rows[index]
        return torch.from_numpy(np.array(store[row, cut]))


def _augmented(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Flips and quarter turns (the flow channels turn along), and more or less contrast: int8 -> float32."""
    signs = torch.ones(5)
    if rng.random() < 0.5:
        frames, signs[3] = frames.flip(-1), -signs[3]
    if rng.random() < 0.5:
        frames, signs[4] = frames.flip(-2), -signs[4]
    if rng.random() < 0.5:
        frames, signs = frames.transpose(-1, -2)[:, [0, 1, 2, 4, 3]], signs[[0, 1, 2, 4, 3]]
    return frames * (signs * INT8_STEP * float(np.exp(rng.uniform(-0.5, 0.3))))[:, None, None]


def batches(cache: Cache, config: TrainConfig, window: int, rng: np.random.Generator,
            train: bool) -> Iterator[dict[str, Tensor]]:
    """Windows of `window` samples with truth. Some begin late or lose a piece, as at start-up and in gaps."""
    order = rng.permutation(len(cache)) if train else np.arange(len(cache))
    for first in range(0, len(order), config.batch):
        rows = []
        for index in order[first:first + config.batch]:
            start = int(rng.integers(0, cache.n_samples - window + 1)) if train else 0
            cut = slice(start, start + window)
            stored = cache.frames(int(index), cut)
            mask = torch.from_numpy(cache.truth["valid"][index, cut].astype(np.float32))
            frames = _augmented(stored, rng) if train else stored * INT8_STEP
            if train:
                if rng.random() < 0.4:
                    mask[:int(rng.integers(0, int(0.68 * window)))] = 0
                if rng.random() < 0.1:
                    hole = int(rng.integers(0, window - 40))
                    mask[hole:hole + int(rng.integers(10, 40))] = 0
            row = {"frames": frames.mul_(mask[:, None, None, None]), "mask": mask}
            for name in ("pulse", "resp"):
                rate = cache.truth["hr" if name == "pulse" else "rr"][index, cut]
                row[name] = torch.from_numpy(cache.truth[name][index, cut])
                row[f"{name}_hz"] = torch.tensor(float((rate * mask.numpy()).sum() / max(mask.sum().item(), 1)) / 60)
                row[f"{name}_presence"] = torch.tensor(float(cache.truth[f"{name}_presence"][index]))
            rows.append(row)
        yield {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def loss_of(student: Student, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float], Tensor, Tensor]:
    """Total loss, its parts, waves (b, 2, T) and presence logits (b, 2)."""
    waves, logits, _ = student(batch["frames"], batch["mask"])
    head = student.head
    parts: dict[str, Tensor] = {}
    for task, (name, lag, signed) in enumerate((("pulse", LAG_PULSE, True), ("resp", LAG_RESP, False))):
        presence, wave = batch[f"{name}_presence"], waves[:, task]
        # fewer than two cycles in view teach nothing about a rate
        seen = (presence > 0).float() * (batch[f"{name}_hz"] * batch["mask"].sum(1) / head.config.fs_hz > 2).float()
        parts[f"{name}_wave"] = waveform_loss(wave, batch[name], batch["mask"], seen, lag, signed)
        parts[f"{name}_spectrum"] = 0.3 * spectral_loss(wave, batch[f"{name}_hz"], seen, head.dft, head.freqs_hz)
        parts[f"{name}_presence"] = 0.5 * presence_loss(logits[:, task], presence)
    total = torch.stack(list(parts.values())).sum()
    return total, {k: float(v.detach()) for k, v in parts.items()}, waves.detach(), logits.detach()


def _peak_per_min(wave: Tensor, student: Student, low: float, high: float) -> Tensor:
    spectrum = wave @ student.head.dft
    freqs = student.head.freqs_hz
    power = spectrum[:, :freqs.numel()] ** 2 + spectrum[:, freqs.numel():] ** 2
    power = power * ((freqs >= low) & (freqs <= high))
    return freqs[power.argmax(1)] * 60


@torch.no_grad()
def validate(student: Student, cache: Cache, config: TrainConfig, rng: np.random.Generator) -> dict[str, float]:
    """Losses, median rate errors where the rhythm is visible (to a spectral bin), and how presence ranks (AUC)."""
    student.eval()
    sums: dict[str, float] = {}
    errors: dict[str, list[Tensor]] = {"pulse": [], "resp": []}
    ranked: dict[str, list[Tensor]] = {"pulse": [], "resp": []}
    count = 0
    for batch in batches(cache, config, student.config.window, rng, train=False):
        batch = {k: v.to(config.device) for k, v in batch.items()}
        _, parts, waves, logits = loss_of(student, batch)
        count += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        for task, (name, low, high) in enumerate((("pulse", 0.6, 4.3), ("resp", 0.08, 2.0))):
            peak = _peak_per_min(waves[:, task], student, low, high)
            errors[name].append((peak - batch[f"{name}_hz"] * 60).abs()[batch[f"{name}_presence"] > 0])
            ranked[name].append(torch.stack([logits[:, task], batch[f"{name}_presence"]], 1))
    out = {f"valid_{k}": v / count for k, v in sums.items()}
    for name in errors:
        error, scores = torch.cat(errors[name]), torch.cat(ranked[name])
        yes, no = scores[scores[:, 1] == 1, 0], scores[scores[:, 1] == 0, 0]
        out[f"{name}_median_error_per_min"] = float(error.median())
        out[f"{name}_within_5"] = float((error <= 5).float().mean())
        out[f"{name}_presence_auc"] = float((yes[:, None] > no[None]).float().mean())
    student.train()
    return out


def train(config: TrainConfig, cache_folder: Path, out: Path, student_config: StudentConfig | None = None) -> Path:
    """Train to the epoch count or the time budget; returns the checkpoint. Resumes when `out` holds one."""
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    student_config = student_config or StudentConfig()
    samples = student_config.window + 48

    def cache(suite: str, n: int, seed0: int) -> Path:
        return build(CacheSpec(suite, n, seed0, samples, student_config.fs_hz, student_config.size), cache_folder,
                     config.threads)

    training = [cache("training", config.n_train, TRAINING_SEED0)]
    if config.n_restraint:
        training.append(cache("restraint", config.n_restraint, RESTRAINT_SEED0))
    caches = [Cache(*training), Cache(cache("training", config.n_valid, VALIDATION_SEED0))]
    student = Student(student_config).to(config.device)
    student.stem.to(memory_format=torch.channels_last)
    if config.start:
        student.load_state_dict(torch.load(config.start, map_location=config.device, weights_only=True)["student"])
    optimiser = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=1e-3)
    steps = config.epochs * -(-len(caches[0]) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps + 1,
                                                   pct_start=max(0.1, 2.5 / (steps + 1)))
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "student.pt", out / "log.jsonl"
    _keep_settings(out / "config.json", {"train": asdict(config), "student": asdict(student_config)})
    epoch = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=config.device, weights_only=True)
        student.load_state_dict(saved["student"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        epoch = saved["epoch"]
    if config.minutes <= 0 and epoch == 0:
        raise TrainingError(f"minutes = {config.minutes}: not even one epoch; give a positive budget")
    # the log's minutes count all of the run, also what came before a resumption
    spent = json.loads(log.read_text().splitlines()[-1])["minutes"] if epoch and log.exists() else 0.0
    started = time.monotonic()
    while epoch < config.epochs and time.monotonic() - started < config.minutes * 60:
        rng = np.random.default_rng((config.seed, epoch))
        line = _one_epoch(student, caches[0], config, rng, optimiser, schedule, epoch)
        line |= validate(student, caches[1], config, rng)
        epoch += 1
        line |= {"epoch": epoch, "minutes": round(spent + (time.monotonic() - started) / 60, 1)}
        with log.open("a") as sink:
            sink.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
        partial = checkpoint.with_suffix(".partial")
        torch.save({"student": student.state_dict(), "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(), "epoch": epoch}, partial)
        partial.replace(checkpoint)
    return checkpoint


def _keep_settings(path: Path, settings: dict[str, dict[str, object]]) -> None:
    """Write the run's settings, or check that they are the ones it began with; budget and machine may change."""
    free = {"minutes", "threads", "device"}
    if path.exists():
        old = json.loads(path.read_text())
        changed = [f"{name}: began with {old.get(part, {}).get(name)!r}, now {value!r}"
                   for part, values in settings.items() for name, value in values.items()
                   if name not in free and old.get(part, {}).get(name) != value]
        if changed:
            raise TrainingError(f"{path.parent} holds another run ({'; '.join(changed)}); continue it with its own "
                                "settings, or give another --out")
    path.write_text(json.dumps(settings, indent=1))


def _one_epoch(student: Student, cache: Cache, config: TrainConfig, rng: np.random.Generator,
               optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
               epoch: int) -> dict[str, float]:
    sums: dict[str, float] = {}
    count = 0
    for batch in batches(cache, config, student.config.window, rng, train=True):
        batch = {k: v.to(config.device) for k, v in batch.items()}
        total, parts, _, _ = loss_of(student, batch)
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        count += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        shown = " ".join(f"{k} {v / count:.3f}" for k, v in sums.items())
        print(f"\repoch {epoch + 1} step {count}: {shown}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {f"train_{k}": v / count for k, v in sums.items()}
