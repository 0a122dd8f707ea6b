"""The one training loop: rendered clips and a teacher's targets in, a checkpoint and its record out.

Resumes from its last checkpoint, logs one JSON line per epoch, and stops at an epoch count or a time budget.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.domains import DOMAINS, MIXED_SEED0, MIXED_VALIDATION_SEED0, NICU, RECOMPRESSED_SEED0
from calibration.scenes import RESTRAINT_SEED0
from distillation import losses
from distillation.cache import Cache, CacheSpec, build, recordings_hash
from distillation.example import INT8_STEP
from distillation.objective import Batch, Objective
from distillation.recorded import build_dataset
from distillation.targets import Targets, teacher_targets
from distillation.teacher import TeacherConfig, load_teacher, make_teacher
from engines.student import LEAK_HARMONICS, TASKS, Student, StudentConfig


class TrainingError(ValueError):
    """The run folder or the budget does not allow the training that was asked for."""


@dataclass(frozen=True)
class TrainConfig:
    """n_train, n_restraint, n_recompressed, n_valid: rendered clips. minutes: stop after the epoch that passes this budget.

    held_out: domains, comma separated, that no training clip comes from. recordings: folder of recorded beat and breath
    times, or empty for synthetic ones alone. datasets: real ones to train on too, `NAME=FOLDER`, semicolon separated.
    teacher: `scratch` or `clip:DIR` (made first, in OUT/teacher), the folder of one that was made before, or empty: no
    distillation. cross_task: weight of those terms. start: checkpoint whose weights to begin from; empty = from scratch.
    device: empty = a GPU where there is one.
    """

    n_train: int = 2200
    n_restraint: int = 500
    n_recompressed: int = 0
    n_valid: int = 96
    epochs: int = 18
    minutes: float = 150.0
    batch: int = 8
    learning_rate: float = 3e-3
    seed: int = 1
    threads: int = 1
    workers: int = 2
    device: str = ""
    held_out: str = "lux,phone"
    recordings: str = ""
    datasets: str = ""
    teacher: str = "scratch"
    distillation: float = 1.0
    cross_task: float = 1.0
    start: str = ""

    def caches(self, size: StudentConfig) -> tuple[list[CacheSpec], CacheSpec]:
        """What is rendered to train on and to validate with. Raises TrainingError for what cannot be rendered."""
        if min(self.n_train, self.n_valid, self.epochs, self.batch, self.threads, self.workers) < 1 or \
                min(self.n_restraint, self.n_recompressed) < 0:
            raise TrainingError(f"{self}: clips, epochs, batch, threads and workers must be at least 1")
        samples = size.window + 48
        held_out = tuple(sorted(filter(None, self.held_out.split(","))))
        if unknown := set(held_out) - {*DOMAINS, *NICU}:
            raise TrainingError(f"held-out domain {sorted(unknown)[0]!r} unknown; choose from {', '.join((*DOMAINS, *NICU))}")

        def spec(suite: str, n: int, seed0: int) -> CacheSpec:
            return CacheSpec(suite, n, seed0, samples, size.fs_hz, size.size, held_out, self.recordings)

        training = [spec("mixed", self.n_train, MIXED_SEED0)]
        if self.n_restraint:
            training.append(spec("restraint", self.n_restraint, RESTRAINT_SEED0))
        if self.n_recompressed:
            training.append(spec("recompressed", self.n_recompressed, RECOMPRESSED_SEED0))
        return training, spec("mixed", self.n_valid, MIXED_VALIDATION_SEED0)


def best_device() -> str:
    """A GPU where torch can use one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _augmented(frames: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Flips and quarter turns (the flow channels turn along), more or less contrast, cameras of other colour balance.

    int8 (T, 5, S, S) -> float32, channels last in memory.
    """
    signs = torch.ones(5)
    turned = torch.from_numpy(frames)
    if rng.random() < 0.5:
        turned, signs[3] = turned.flip(-1), -signs[3]
    if rng.random() < 0.5:
        turned, signs[4] = turned.flip(-2), -signs[4]
    if rng.random() < 0.5:
        turned, signs = turned.transpose(-1, -2)[:, [0, 1, 2, 4, 3]], signs[[0, 1, 2, 4, 3]]
    colour = torch.from_numpy(np.exp(rng.normal(0, 0.08, 5)).astype(np.float32))
    gain = signs * colour * INT8_STEP * float(np.exp(rng.uniform(-0.5, 0.3)))
    turned = turned.contiguous(memory_format=torch.channels_last)
    return turned * gain[:, None, None]


def _shortened(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """As at start-up and in gaps: some windows begin late, some lose a piece."""
    window = mask.numel()
    if rng.random() < 0.4:
        mask[:int(rng.integers(0, int(0.68 * window)))] = 0
    if rng.random() < 0.1:
        hole = int(rng.integers(0, window - 40))
        mask[hole:hole + int(rng.integers(10, 40))] = 0
    return mask


def batches(cache: Cache, config: TrainConfig, window: int, rng: np.random.Generator, train: bool) -> Iterator[Batch]:
    """Windows of `window` samples with truth."""
    order = rng.permutation(len(cache)) if train else np.arange(len(cache))
    for first in range(0, len(order), config.batch):
        rows = []
        for index in map(int, order[first:first + config.batch]):
            start = int(rng.integers(0, cache.n_samples - window + 1)) if train else 0
            cut = slice(start, start + window)
            mask = torch.from_numpy(cache.truth["valid"][index, cut].astype(np.float32))
            if train:
                mask = _shortened(mask, rng)
            stored = cache.frames(index, cut)
            frames = _augmented(stored, rng) if train else torch.from_numpy(stored) * INT8_STEP
            row: Batch = {"frames": frames.mul_(mask[:, None, None, None]), "mask": mask, "index": torch.tensor(index)}
            for name, rate in (("pulse", "hr"), ("resp", "rr")):
                row[name] = torch.from_numpy(cache.truth[name][index, cut])
                row[f"{name}_hz"] = torch.from_numpy(cache.truth[rate][index, cut]) / 60
                row[f"{name}_presence"] = torch.tensor(float(cache.truth[f"{name}_presence"][index]))
            rows.append(row)
        yield {name: [row[name] for row in rows] if name == "frames" else torch.stack([row[name] for row in rows])
               for name in rows[0]}


def on_device(batch: Batch, device: str) -> Batch:
    return {k: [f.to(device) for f in v] if isinstance(v, list) else v.to(device) for k, v in batch.items()}


@torch.no_grad()
def validate(student: Student, objective: Objective, cache: Cache, config: TrainConfig,
             rng: np.random.Generator) -> dict[str, float]:
    """Median rate errors where the rhythm is visible (to a spectral bin), how presence ranks (AUC), and leak in dB."""
    student.eval()
    freqs, dft = objective.freqs_hz, objective.dft
    errors: dict[str, list[Tensor]] = {name: [] for name in TASKS}
    ranked: dict[str, list[Tensor]] = {name: [] for name in TASKS}
    leaks: list[Tensor] = []
    for batch in batches(cache, config, student.config.window, rng, train=False):
        batch = on_device(batch, config.device or best_device())
        out = student(batch["frames"], batch["mask"])
        shares = [losses.power_share(out.waves[:, task], dft) for task in range(len(TASKS))]
        for task, (name, low, high) in enumerate((("pulse", 0.6, 4.3), ("resp", 0.08, 2.0))):
            peak = freqs[(shares[task] * ((freqs >= low) & (freqs <= high))).argmax(1)]
            error = (peak - losses.mean_rate(batch[f"{name}_hz"], batch["mask"])).abs() * 60
            errors[name].append(error[batch[f"{name}_presence"] > 0])
            ranked[name].append(torch.stack([out.presence[:, task], batch[f"{name}_presence"]], 1))
        leak = losses.leak_share(shares[0], batch["resp_hz"], batch["pulse_hz"], LEAK_HARMONICS["pulse"], freqs)
        leaks.append(leak[(batch["resp_presence"] > 0) & (batch["pulse_presence"] > 0)])
    found = {"pulse_leak_db": 10 * float(torch.log10(torch.cat(leaks) + 1e-6).mean())}
    for name in TASKS:
        error, scores = torch.cat(errors[name]), torch.cat(ranked[name])
        yes, no = scores[scores[:, 1] == 1, 0], scores[scores[:, 1] == 0, 0]
        found[f"{name}_median_error_per_min"] = float(error.median())
        found[f"{name}_within_5"] = float((error <= 5).float().mean())
        found[f"{name}_presence_auc"] = float((yes[:, None] > no[None]).float().mean())
    student.train()
    return found


def settings_of(config: TrainConfig, size: StudentConfig) -> dict[str, dict[str, Any]]:
    """What a run records of itself. Recordings stand there by their content: a folder's name says nothing."""
    used = recordings_hash(config.recordings) if config.recordings else ""
    names = ";".join(part.partition("=")[0] for part in filter(None, config.datasets.split(";")))
    return {"train": asdict(config) | {"recordings": used, "datasets": names}, "student": asdict(size)}


def teach(config: TrainConfig, cache_folder: Path, out: Path, size: StudentConfig | None = None) -> Path:
    """Make the teacher that the config asks for in `out`, from the student's own training clips, or keep the one there.

    Raises TeacherError. What it knows stands in OUT/teacher.json, measured on the validation clips.
    """
    specs, valid = config.caches(size or StudentConfig())
    minutes = {} if config.minutes == TrainConfig.minutes else {"minutes": config.minutes}
    settings = TeacherConfig(seed=config.seed, threads=config.threads, device=config.device or best_device(), **minutes)
    return make_teacher(config.teacher, [build(specs[0], cache_folder, config.workers)],
                        [build(valid, cache_folder, config.workers)], out, settings)


def _data(config: TrainConfig, like: CacheSpec, cache_folder: Path) -> list[Path]:
    """Caches of the real data sets. Raises DatasetError, or TrainingError for a set that is none or too short."""
    made = []
    for name, found, root in (part.partition("=") for part in filter(None, config.datasets.split(";"))):
        if not found:
            raise TrainingError(f"datasets {config.datasets!r}: expected NAME=FOLDER, several of them with ; between")
        try:
            made.append(build_dataset(name, Path(root), like.n_samples, like.fs_hz, like.size, cache_folder))
        except ValueError as e:
            raise TrainingError(str(e)) from e
    return made


def _targets(config: TrainConfig, folders: list[Path], cache_folder: Path, out: Path, size: StudentConfig) -> Targets | None:
    """The teacher's targets for these caches, in their order; None without a teacher. Makes the teacher where asked to."""
    if not config.teacher or not config.distillation:
        return None
    folder = Path(config.teacher)
    if config.teacher == "scratch" or config.teacher.startswith("clip:"):
        folder = teach(replace(config, minutes=TrainConfig.minutes), cache_folder, out / "teacher", size)
    teacher = load_teacher(folder)
    return Targets.joined([teacher_targets(teacher, each, cache_folder / "targets") for each in folders])


def train(config: TrainConfig, cache_folder: Path, out: Path, student_config: StudentConfig | None = None) -> Path:
    """Train to the epoch count or the time budget; returns the checkpoint. Resumes when `out` holds one."""
    torch.set_num_threads(config.threads)
    device = config.device or best_device()
    student_config = student_config or StudentConfig()
    specs, valid_spec = config.caches(student_config)
    folders = [build(spec, cache_folder, config.workers) for spec in specs] + _data(config, specs[0], cache_folder)
    caches = [Cache(*folders), Cache(build(valid_spec, cache_folder, config.workers))]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = out / "student.pt", out / "log.jsonl"
    _keep_settings(out / "config.json", settings_of(config, student_config))
    targets = _targets(config, folders, cache_folder, out, student_config)
    torch.manual_seed(config.seed)  # again: the same student whether or not a teacher was made just now
    student = Student(student_config)
    if config.start:
        student.load_state_dict(torch.load(config.start, map_location="cpu", weights_only=True)["student"])
    objective = Objective(student, targets, config.distillation, config.cross_task).to(device)
    student = student.to(device)
    student.stem.to(memory_format=torch.channels_last)
    learned = [*student.parameters(), *objective.parameters()]
    optimiser = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=1e-3)
    steps = config.epochs * -(-len(caches[0]) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, total_steps=steps + 1,
                                                   pct_start=min(0.9, max(0.1, 2.5 / (steps + 1))))
    state = {"student": student, "objective": objective, "optimiser": optimiser, "schedule": schedule}
    taught_by = targets.version if targets else ""
    epoch = _resume(checkpoint, state, taught_by, device) if checkpoint.exists() else 0
    if config.minutes <= 0 and epoch == 0:
        raise TrainingError(f"minutes = {config.minutes}: not even one epoch; give a positive budget")
    # the log's minutes count all of the run, also what came before a resumption
    spent = json.loads(log.read_text().splitlines()[-1])["minutes"] if epoch and log.exists() else 0.0
    started = time.monotonic()
    while epoch < config.epochs and time.monotonic() - started < config.minutes * 60:
        rng = np.random.default_rng((config.seed, epoch))
        line = _one_epoch(student, objective, caches[0], config, rng, optimiser, schedule, epoch)
        line |= validate(student, objective, caches[1], config, rng)
        epoch += 1
        line |= {"epoch": epoch, "minutes": round(spent + (time.monotonic() - started) / 60, 1)}
        with log.open("a") as sink:
            sink.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + "\n")
        partial = checkpoint.with_suffix(".partial")
        torch.save({k: v.state_dict() for k, v in state.items()} | {"epoch": epoch, "targets": taught_by}, partial)
        partial.replace(checkpoint)
    return checkpoint


def _resume(checkpoint: Path, state: dict[str, Any], taught_by: str, device: str) -> int:
    """Put a checkpoint's state back; returns the epochs done. Raises TrainingError when another teacher taught it."""
    saved = torch.load(checkpoint, map_location=device, weights_only=True)
    if saved["targets"] != taught_by:
        raise TrainingError(f"{checkpoint.parent} was begun with targets {saved['targets'][:12] or 'none'}, now "
                            f"{taught_by[:12] or 'none'}; go on with its own teacher and clips, or give another --out")
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return int(saved["epoch"])


def _keep_settings(path: Path, settings: dict[str, dict[str, Any]]) -> None:
    """Write the run's settings, or check that they are the ones it began with; budget and machine may change."""
    free = {"minutes", "threads", "workers", "device"}
    if path.exists():
        old = json.loads(path.read_text())
        changed = [f"{name}: began with {old.get(part, {}).get(name)!r}, now {value!r}"
                   for part, values in settings.items() for name, value in values.items()
                   if name not in free and old.get(part, {}).get(name) != value]
        if changed:
            raise TrainingError(f"{path.parent} holds another run ({'; '.join(changed)}); continue it with its own "
                                "settings, or give another --out")
    path.write_text(json.dumps(settings, indent=1))


def _one_epoch(student: Student, objective: Objective, cache: Cache, config: TrainConfig, rng: np.random.Generator,
               optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler,
               epoch: int) -> dict[str, float]:
    sums: dict[str, float] = {}
    count = 0
    learned = [p for group in optimiser.param_groups for p in group["params"]]
    for batch in batches(cache, config, student.config.window, rng, train=True):
        batch = on_device(batch, config.device or best_device())
        total, parts = objective(student(batch["frames"], batch["mask"]), batch)
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        schedule.step()
        count += 1
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + value
        if count % 10 == 0:
            shown = " ".join(f"{k} {v / count:.3f}" for k, v in sums.items())
            print(f"\repoch {epoch + 1} step {count}: {shown}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {f"train_{k}": v / count for k, v in sums.items()}
