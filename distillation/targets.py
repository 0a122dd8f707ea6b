"""The teacher's answers about every clip, kept on disk beside its name: computed once, read by every run.

A clip's rates hardly change in its 19 s, so one answer a clip, from its middle 17 s, serves every window that training cuts
from it. A file belongs to one teacher's weights and one cache's frames and is refused for any other.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.cache import open_frames
from distillation.lessons import Lessons
from distillation.prompts import N_RATES, TASKS, TeacherError, bin_hz, rate_prompts
from distillation.teacher import Teacher, answers, rate_of, require_knowledge, version_of
from engines.files import write_whole


@dataclass(frozen=True)
class Targets:
    """n clips, both tasks, N_RATES rate prompts, teacher's dimension d. float32.

    prob (n, 2, N_RATES): over the rate prompts alone, sums to 1. visible (n, 2): probability that the rhythm is there at
    all. rate_hz (n, 2): the teacher's peak. confidence (n, 2): probability around that peak, the chance of "not visible"
    included, so 0 to 1. embedding (n, 2, d) of the maps, text (2, N_RATES, d) of the prompts, unit length.
    bin_hz (2, N_RATES): the prompts' rates. temperature (1,): of the teacher's contrast.
    """

    prob: NDArray[np.float32]
    visible: NDArray[np.float32]
    rate_hz: NDArray[np.float32]
    confidence: NDArray[np.float32]
    embedding: NDArray[np.float32]
    text: NDArray[np.float32]
    bin_hz: NDArray[np.float32]
    temperature: NDArray[np.float32]
    version: str

    @staticmethod
    def joined(parts: list[Targets]) -> Targets:
        """Targets of several caches by one teacher as one, clips in the order of the parts."""
        first = parts[0]
        if any(not np.array_equal(part.text, first.text) for part in parts):
            raise TeacherError("targets of different teachers cannot be joined")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PER_CLIP}
        version = hashlib.sha256(" ".join(part.version for part in parts).encode()).hexdigest()
        return replace(first, **columns, version=version)


PER_CLIP = ("prob", "visible", "rate_hz", "confidence", "embedding")


def version_of_clips(folder: Path) -> str:
    """Hash of a rendered cache: its name and specification, all truth, and the middle frame of every clip (all frames
    would be gigabytes at each start)."""
    for name in ("spec.json", "truth.npz", "frames.npy"):
        if not (folder / name).is_file():
            raise TeacherError(f"{folder} is no rendered cache: {name} is missing")
    made_of = hashlib.sha256(folder.name.encode())
    made_of.update((folder / "spec.json").read_bytes())
    with np.load(folder / "truth.npz") as truth:
        for name in sorted(truth.files):
            made_of.update(truth[name].tobytes())
    frames = open_frames(folder)
    made_of.update(repr(frames.shape).encode())
    for clip in frames:
        made_of.update(clip[frames.shape[1] // 2].tobytes())
    return made_of.hexdigest()


def _answered(teacher: Teacher, lessons: Lessons, version: str) -> Targets:
    clips = np.arange(lessons.maps.shape[0])
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*PER_CLIP, "text")}
    for task in range(len(TASKS)):
        maps, _ = lessons.whole(clips, task, teacher.columns)
        share, seen, said = answers(teacher, maps, rate_prompts(task), task)
        rate_hz, sure = rate_of(share, task)
        rates = share[:, :N_RATES]
        for name, value in (("prob", rates / rates.sum(1, keepdim=True).clamp(min=1e-9)), ("visible", 1 - share[:, N_RATES]),
                            ("rate_hz", rate_hz), ("confidence", sure), ("embedding", seen), ("text", said[:N_RATES])):
            parts[name].append(value.detach().float().numpy())
    temperature = (-teacher.log_scale.detach().cpu()).exp().float().numpy().reshape(1)
    per_task = {name: np.stack(value, 0 if name == "text" else 1) for name, value in parts.items()}
    return Targets(**per_task, bin_hz=bin_hz().astype(np.float32), temperature=temperature, version=version)


def _digest(targets: Targets) -> str:
    made_of = hashlib.sha256(targets.version.encode())
    for name, value in sorted(asdict(targets).items()):
        if name != "version":
            made_of.update(f"{name}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    return made_of.hexdigest()


def save_targets(targets: Targets, path: Path) -> None:
    """One npz, whole or not at all, with a digest of what it holds."""
    arrays = {name: value for name, value in asdict(targets).items() if name != "version"}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays, version=np.array(targets.version), digest=np.array(_digest(targets)))
    write_whole(path, buffer.getvalue())


def load_targets(path: Path, version: str) -> Targets:
    """TeacherError where the file is damaged or was made by another teacher or from other clips than `version` says."""
    try:
        with np.load(path) as held:
            arrays = {name: held[name] for name in held.files}
            kept, digest = str(arrays.pop("version")), str(arrays.pop("digest"))
            targets = Targets(**arrays, version=kept)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TeacherError(f"{path} cannot be read as teacher's targets ({error}); delete it, it will be made anew") from error
    if kept != version:
        raise TeacherError(f"{path}: targets of {kept[:12]}, expected {version[:12]}: another teacher or other clips; "
                           "delete it, it will be made anew")
    if _digest(targets) != digest:
        raise TeacherError(f"{path}: the arrays are not those that were written; delete it, it will be made anew")
    return targets


def teacher_targets(teacher: Teacher, cache_folder: Path, out: Path) -> Targets:
    """The teacher's answers about a cache's clips: read from `out`, or computed and kept there.

    TeacherError where the teacher's measured knowledge is not above chance by a margin.
    """
    require_knowledge(teacher)
    version = hashlib.sha256(f"{version_of(teacher)} {version_of_clips(cache_folder)}".encode()).hexdigest()
    path = out / f"targets-{cache_folder.name}-{version[:12]}.npz"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        save_targets(_answered(teacher, Lessons.of([cache_folder]), version), path)
    return load_targets(path, version)


class StudentProjection(nn.Module):
    """The student's features of each task into the teacher's space, for training only."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.tasks = nn.ModuleList(nn.Sequential(nn.LayerNorm(features), nn.Linear(features, dim)) for _ in TASKS)

    def forward(self, features: Tensor) -> Tensor:
        """(b, 2, features) -> unit embeddings (b, 2, dim)."""
        return torch.stack([F.normalize(layer(features[:, i]), dim=-1) for i, layer in enumerate(self.tasks)], 1)
