"""The vision-language teacher: made, measured, kept and loaded. Used in training only; nothing of it is deployed.

`scratch` trains two small towers on rendered clips, `clip:DIR` takes a pre-trained CLIP and fits adapters on the same
lessons. Either is then asked about clips it never saw, and may teach only when it answers better than chance.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation.clip_teacher import ClipTeacher
from distillation.lessons import Batch, Lessons
from distillation.prompts import (
    N_RATES,
    RATIOS,
    TASKS,
    Knowledge,
    TeacherError,
    bin_hz,
    rate_labels,
    rate_prompts,
    relation_prompts,
)
from distillation.towers import ScratchTeacher
from engines.files import write_whole

Teacher = ScratchTeacher | ClipTeacher

CHUNK = 64
"""Maps embedded at a time outside training."""

POOL = 48
"""Steps whose frozen features a CLIP's adapters are fitted on, again and again: its towers take seconds a step on a CPU."""

COOLING = 0.8
"""Share of the time budget after which the learning rate falls with time, whatever steps are left."""

BESIDE_PEAK = 2
"""Prompts on each side of the likeliest one that share in the teacher's rate: a rate between prompts is in several."""

RELATION_MARGIN, RATE_FACTOR = 0.15, 3.0
"""A teacher must name ratios this far above chance, and the right rate this many times as often as chance."""


@dataclass(frozen=True)
class TeacherConfig:
    """steps: of four batches each (rates and relations of both tasks). minutes: a budget that ends training sooner, in
    processor time of the training thread, so that a busy machine makes a late teacher and not a poor one; the learning
    rate falls to its end either way. A run that needs less than COOLING of it repeats bit for bit on a CPU."""

    steps: int = 1100
    minutes: float = 8.0
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 1
    threads: int = 1
    device: str = "cpu"


def new_teacher(choice: str) -> Teacher:
    """`scratch` or `clip:DIR`, not yet trained."""
    if choice == "scratch":
        return ScratchTeacher()
    if choice.startswith("clip:"):
        return ClipTeacher(Path(choice.removeprefix("clip:")).expanduser().resolve())
    raise TeacherError(f"teacher {choice!r} unknown; give scratch, or clip:DIR with a local CLIP checkpoint")


def version_of(teacher: Teacher) -> str:
    """Hash of all weights, frozen ones too."""
    made_of = hashlib.sha256(type(teacher).__name__.encode())
    for name, tensor in sorted(teacher.state_dict().items()):
        made_of.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        made_of.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return made_of.hexdigest()


def contrast(image: Tensor, text: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: each map picks its prompts among all, and each prompt that the batch holds its maps.

    image (b, d) and text (p, d) of unit length, labels (b, p) with rows that sum to 1.
    """
    logits = scale * image @ text.T
    to_text = -(labels * logits.log_softmax(1)).sum(1).mean()
    mass = labels.sum(0)
    held = mass > 0.2
    to_image = -(labels / mass.clamp(min=1e-6) * logits.log_softmax(0)).sum(0)[held].mean()
    return (to_text + to_image) / 2


def _lesson(teacher: Teacher, lessons: Lessons, config: TeacherConfig,
            rng: np.random.Generator) -> list[tuple[Batch, Tensor]]:
    """One step's batches and their fixed features."""
    batches = [batch for task in range(len(TASKS))
               for batch in (lessons.rates(task, config.batch, teacher.columns, rng),
                             lessons.relations(task, config.batch, teacher.columns, rng)) if batch is not None]
    return [(batch, teacher.front(batch.maps.to(config.device), batch.task)) for batch in batches]


def _progress(config: TeacherConfig) -> Iterator[float]:
    """One value from 0 to 1 a step, until the steps or the minutes are spent."""
    started = time.thread_time()
    for step in range(config.steps):
        spent = (time.thread_time() - started) / (60 * config.minutes) if config.minutes > 0 else 1.0
        if spent >= 1:
            return
        yield max(step / config.steps, (spent - COOLING) / (1 - COOLING))


def train_teacher(teacher: Teacher, lessons: Lessons, config: TeacherConfig) -> dict[str, float]:
    """Fit in place; returns the mean loss of the last tenth and the steps taken."""
    rng = np.random.default_rng(config.seed)
    learned = [p for p in teacher.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=1e-3)
    pool: list[list[tuple[Batch, Tensor]]] = []
    losses: list[float] = []
    for progress in _progress(config):
        fresh = not teacher.frozen_front or not pool or (len(pool) < POOL and progress < 0.5)
        lesson = _lesson(teacher, lessons, config, rng) if fresh else pool[int(rng.integers(len(pool)))]
        if teacher.frozen_front and fresh:
            pool.append(lesson)
        scale = teacher.log_scale.exp()
        loss = torch.stack([
            contrast(teacher.embed(front, batch.task),
                     teacher.text(relation_prompts(batch.task) if batch.relation else rate_prompts(batch.task)),
                     batch.labels.to(config.device), scale) for batch, front in lesson]).sum()
        rate = config.learning_rate * min(1.0, 10 * progress + 0.05) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        with torch.no_grad():
            teacher.log_scale.clamp_(0.0, math.log(100.0))
        losses.append(float(loss.detach()))
        if len(losses) % 20 == 0:
            print(f"\rteacher step {len(losses)}: loss {np.mean(losses[-20:]):.3f}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"steps": len(losses), "loss": float(np.mean(losses[-max(1, len(losses) // 10):])) if losses else math.nan}


@torch.no_grad()
def embeddings(teacher: Teacher, maps: Tensor, task: int) -> Tensor:
    """Unit embeddings (b, dim) of maps (b, 3, R, columns), in chunks; on the CPU."""
    device = teacher.log_scale.device
    return torch.cat([teacher.embed(teacher.front(part.to(device), task), task).cpu() for part in maps.split(CHUNK)])


@torch.no_grad()
def answers(teacher: Teacher, maps: Tensor, prompts: list[str], task: int) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of each prompt (b, p), the maps' embeddings (b, dim) and the prompts' (p, dim); on the CPU."""
    seen, said = embeddings(teacher, maps, task), teacher.text(prompts).cpu()
    return (teacher.log_scale.exp().cpu() * seen @ said.T).softmax(1), seen, said


def rate_of(share: Tensor, task: int) -> tuple[Tensor, Tensor]:
    """share (b, N_RATES + 1) over `rate_prompts` -> expected rate in Hz around the likeliest prompt (b,), and how sure: the
    probability that lies there (b,)."""
    rates = share[:, :N_RATES]
    beside = (torch.arange(N_RATES)[None] - rates.argmax(1)[:, None]).abs() <= BESIDE_PEAK
    near = rates * beside
    sure = near.sum(1)
    return near @ torch.from_numpy(bin_hz()[task]).to(near) / sure.clamp(min=1e-9), sure


def _ratios_named(teacher: Teacher, lessons: Lessons, task: int, rng: np.random.Generator) -> tuple[float, int]:
    """Share of relation maps whose ratio is named, over every seen clip at every ratio it can give; and their number."""
    clips, spans, labels = [], [], []
    for clip in lessons.seen[task]:
        for index, ratio in enumerate(RATIOS):
            span = lessons.pair(int(clip), task, ratio, rng)
            if span is not None:
                clips.append(int(clip))
                spans.append(span)
                labels.append(index)
    if not clips:
        return math.nan, 0
    batch = lessons.pairs(task, clips, spans, labels, teacher.columns)
    share, _, _ = answers(teacher, batch.maps, relation_prompts(task), task)
    return float((share.argmax(1) == torch.tensor(labels)).float().mean()), len(clips)


def _orders_right(teacher: Teacher, lessons: Lessons, task: int, rng: np.random.Generator) -> float:
    """Share of pairs of paces of one clip that the teacher's rates put in the true order; ties count half."""
    right: list[float] = []
    for clip in lessons.seen[task]:
        spans = np.array([lessons.paced(int(clip), task, rng) for _ in range(4)])
        maps = lessons.cut(np.full(4, clip), task, spans[:, 0], spans[:, 1], teacher.columns)
        told = rate_of(answers(teacher, maps, rate_prompts(task), task)[0], task)[0].double().numpy()
        for i in range(4):
            for j in range(i):
                if abs(math.log(spans[i, 2] / spans[j, 2])) > 0.05:
                    right.append(0.5 + 0.5 * float(np.sign(told[i] - told[j]) * np.sign(spans[i, 2] - spans[j, 2])))
    return float(np.mean(right)) if right else math.nan


def measure(teacher: Teacher, lessons: Lessons, seed: int = 0) -> Knowledge:
    """What the teacher knows about these clips (which it must not have been trained on), per task, chance beside it.

    Rates are judged on the middle of each clip at its own pace; for top1 only the prompt nearest to the truth counts.
    """
    rng = np.random.default_rng(seed)
    teacher.eval()
    knowledge: Knowledge = {}
    for task, name in enumerate(TASKS):
        seen, absent = lessons.seen[task], lessons.absent[task]
        if not seen.size:
            raise TeacherError(f"no validation clip shows a steady {name}: nothing to measure the teacher on")
        named, relations = _ratios_named(teacher, lessons, task, rng)
        maps, true_hz = lessons.whole(seen, task, teacher.columns)
        share, _, _ = answers(teacher, maps, rate_prompts(task), task)
        told_hz = rate_of(share, task)[0].numpy()
        error = np.abs(told_hz - true_hz) * 60
        line = {
            "clips": float(seen.size), "relations": float(relations), "relation_accuracy": named,
            "relation_chance": 1 / len(RATIOS), "order_accuracy": _orders_right(teacher, lessons, task, rng),
            "order_chance": 0.5,
            "rate_top1": float((share[:, :N_RATES].argmax(1).numpy() == _nearest(true_hz, task)).mean()),
            "rate_top1_chance": 1 / N_RATES, "rate_median_error_per_min": float(np.median(error)),
            "rate_median_error_of_a_guess_per_min": float(np.median(np.abs(true_hz - np.median(true_hz))) * 60),
            "rate_within_5": float((error <= 5).mean())}
        if absent.size:
            others, _ = lessons.whole(absent, task, teacher.columns)
            none = answers(teacher, others, rate_prompts(task), task)[0][:, N_RATES]
            line["none_auc"] = float((share[:, N_RATES][:, None] < none[None]).float().mean())
        knowledge[name] = line
    return knowledge


def _nearest(rates_hz: NDArray[np.float64], task: int) -> NDArray[np.intp]:
    return rate_labels(rates_hz, task).argmax(1)


def require_knowledge(teacher: Teacher) -> None:
    """TeacherError with the figures where the teacher is not better than chance by a margin, for both tasks."""
    if not teacher.knowledge:
        raise TeacherError("the teacher was not measured; measure() it on clips it never saw before it teaches")
    poor = []
    for name, line in teacher.knowledge.items():
        for key, least in (("relation_accuracy", line["relation_chance"] + RELATION_MARGIN),
                           ("rate_top1", RATE_FACTOR * line["rate_top1_chance"])):
            if not line[key] >= least:  # NaN too
                poor.append(f"{name} {key} {line[key]:.3f}, needed {least:.3f}")
    if poor:
        raise TeacherError(f"the teacher knows too little to teach ({'; '.join(poor)}); train it longer or on more clips")


def make_teacher(choice: str, training: list[Path], validation: list[Path], out: Path,
                 config: TeacherConfig | None = None) -> Path:
    """Train on the rendered caches `training`, measure on `validation`; returns `out` with teacher.pt and teacher.json.

    A teacher that was made there from the same request is kept; one from another is a TeacherError. The knowledge is in
    teacher.json; whether it is enough is asked where it would teach.
    """
    config = config or TeacherConfig()
    free = {"minutes", "threads", "device"}
    request = {"choice": choice, "training": [f.name for f in training], "validation": [f.name for f in validation],
               "config": {k: v for k, v in asdict(config).items() if k not in free}}
    record = out / "teacher.json"
    if record.exists():
        before = json.loads(record.read_text())["request"]
        if before == request:
            return out
        raise TeacherError(f"{out} holds another teacher (made from {before}, now {request}); give another --out")
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    teacher = new_teacher(choice).to(config.device)
    done = train_teacher(teacher, Lessons.of(training), config)
    knowledge = measure(teacher, Lessons.of(validation))
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "teacher.pt.partial"
    torch.save({"choice": teacher.choice, "learned": teacher.learned()}, partial)
    partial.replace(out / "teacher.pt")
    saved = {"request": request, "version": version_of(teacher), "training": done, "knowledge": knowledge}
    write_whole(record, json.dumps(saved, indent=1).encode())
    return out


def load_teacher(folder: Path, device: str = "cpu") -> Teacher:
    """A made teacher, with what was measured of it as its `knowledge`. TeacherError where files are missing or belong to
    another teacher."""
    for name in ("teacher.pt", "teacher.json"):
        if not (folder / name).is_file():
            raise TeacherError(f"{folder} lacks {name}; make one with: physvlm-lab teacher --out {folder}")
    saved = torch.load(folder / "teacher.pt", map_location="cpu", weights_only=True)
    record = json.loads((folder / "teacher.json").read_text())
    teacher = new_teacher(saved["choice"])
    wrong = set(saved["learned"]) ^ set(teacher.learned())
    if wrong:
        raise TeacherError(f"{folder / 'teacher.pt'} does not fit today's teacher ({', '.join(sorted(wrong)[:3])}); make it "
                           "anew")
    try:
        teacher.load_state_dict(saved["learned"], strict=False)
    except RuntimeError as error:
        raise TeacherError(f"{folder / 'teacher.pt'} does not fit today's teacher ({error}); make it anew") from error
    if version_of(teacher) != record["version"]:
        raise TeacherError(f"{folder}: weights {version_of(teacher)[:12]} are not those that were measured "
                           f"({record['version'][:12]}); the checkpoint or the CLIP folder has changed, make it anew")
    teacher.knowledge = record["knowledge"]
    return teacher.to(device).eval().requires_grad_(False)
