"""Calibration clips as a manifest names them: read back one at a time, each held against its hash.

A clip is a run of normalised frames, as the stem is fed them. It is kept, hashed and handed out in steps of a thousandth, so
what was hashed is what calibrates, to the bit. What is empty, short, altered, held out or cannot be read fails: an engine that
was calibrated on fewer clips than its sidecar says would look like any other.

The hash holds on the machine, NumPy and OpenCV that made it. Elsewhere the last bit of a float may differ, and rounding does
not mend that (a value between two steps still falls either way): a manifest made elsewhere is made anew there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.domains import MIXED_SEED0, RECOMPRESSED_SEED0
from calibration.recordings import BrokenRecordingError, MissingRecordingError, half_of
from calibration.scene import Scene
from calibration.windows import STEPS_PER_UNIT, made_with, sha256_of, windows
from edge.clip import CHANNELS
from edge.pipeline import normalisation

if TYPE_CHECKING:
    from calibration.datasets.record import ClipRecord

FORMAT = 1

AHEAD_PER_WORKER = 2
"""Clips that are made before they are asked for; each is 1.5 MB, so a slow reader never piles them up."""

TRAINING_SEEDS = range(MIXED_SEED0, RECOMPRESSED_SEED0)
"""Of rendered clips: the training draw's. Validation and test seeds lie beyond."""

Job, Made = TypeVar("Job"), TypeVar("Made")


class ClipError(RuntimeError):
    """A calibration clip, or the manifest itself, cannot be used as it stands. clip: its id, or the manifest's path."""

    def __init__(self, clip: str, reason: str) -> None:
        super().__init__(clip, reason)  # these two, so that it survives pickling between processes
        self.clip, self.reason = clip, reason

    def __str__(self) -> str:
        return f"{self.clip}: {self.reason}"


@dataclass(frozen=True)
class Entry:
    """One clip of a manifest: count normalised frames from grid point `start` of a scene or of a data set's record.

    who: the subject as `ClipRecord.who`, "" for a rendered clip. strata: level by factor.
    """

    id: str
    scene: Scene | None
    dataset: str
    record: str
    who: str
    strata: Mapping[str, str]
    start: int
    count: int
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """A scene as the fields in which it differs from the defaults; the hash tells if those ever change."""
        if self.scene is not None:
            differ = {name: value for name, value in vars(self.scene).items() if value != getattr(Scene, name, None)}
            source: dict[str, Any] = {"scene": differ}
        else:
            source = {"dataset": self.dataset, "record": self.record, "subject": self.who}
        return {"id": self.id, **source, "strata": dict(self.strata), "start": self.start, "count": self.count,
                "sha256": self.sha256}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Entry:
        """The inverse of as_json. Raises KeyError, TypeError or ValueError for what is none."""
        scene = Scene(**content["scene"]) if "scene" in content else None
        named = ("", "", "") if scene is not None else tuple(content[key] for key in ("dataset", "record", "subject"))
        texts = (content["id"], *named, content["sha256"])
        numbers = (content["start"], content["count"])
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            raise TypeError("expected texts for id, dataset, record, subject and sha256, whole numbers for start and count")
        if not re.fullmatch("[0-9a-f]{64}", content["sha256"]):
            raise ValueError(f"sha256 {content['sha256']!r} is no SHA-256")
        return Entry(content["id"], scene, *named, dict(content["strata"]), *numbers, content["sha256"])


# --- the manifest


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's content with its own hash in it."""
    return {**content, "sha256": _content_sha256(content)}


def _content_sha256(content: Mapping[str, Any]) -> str:
    bare = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def open_clips(manifest: Path, *, fs_hz: float, size: int, held_out: Collection[str] = (),
               roots: Mapping[str, Path] | None = None, recordings: Path | None = None, cache: Path | None = None,
               workers: int = 1) -> Clips:
    """The clips of a manifest for a model of this rate and input size; nothing is rendered yet.

    held_out: subjects (`ClipRecord.who`) that may not calibrate, beside those that the manifest itself lists. roots: where
    data sets lie now, if not where they did. recordings: folder of the beat and breath times that scenes may name. cache:
    folder that keeps what was made, for a second pass. workers: processes that read ahead; 1 reads in this one.

    Raises ClipError for a manifest that cannot be read, was altered, or does not fit: other preprocessing, another size,
    fewer clips than it says, a clip twice, a held-out subject, a seed or recording that is not the training's.
    """
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ClipError(str(manifest), f"cannot be read as a manifest: {e}; make one with physvlm-lab clips") from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ClipError(str(manifest), f"is no manifest of format {FORMAT}; make one with physvlm-lab clips")
    if content.get("sha256") != _content_sha256(content):
        raise ClipError(str(manifest), "was altered after it was made: its hash does not fit; make it anew with the same seed")
    try:
        settings, listed = content["settings"], content["clips"]
        entries = tuple(_entry(manifest, place, item) for place, item in enumerate(listed))
        _check_fits(manifest, content, settings, entries, fs_hz, size)
        barred = {*held_out, *settings["held_out_subjects"]}
        for entry in entries:
            _check_entry(entry, settings["frames"], barred, settings["held_out_domains"])
        found = {name: Path(root) for name, root in settings["datasets"].items()} | dict(roots or {})
    except (KeyError, TypeError, AttributeError) as e:
        raise ClipError(str(manifest), f"field missing or of another kind: {e!r}; make it anew") from e
    return Clips(entries, content["sha256"], content["made_with"], fs_hz, size, found, recordings, cache, workers)


def _entry(manifest: Path, place: int, item: Mapping[str, Any]) -> Entry:
    try:
        return Entry.from_json(item)
    except (KeyError, TypeError, ValueError) as e:
        name = item.get("id", place) if isinstance(item, dict) else place
        raise ClipError(str(name), f"cannot be read in {manifest}: {e!r}; make the manifest anew") from e


def _check_fits(manifest: Path, content: Mapping[str, Any], settings: Mapping[str, Any], entries: tuple[Entry, ...],
                fs_hz: float, size: int) -> None:
    theirs, ours = content["preprocessing"], normalisation()
    for name in sorted(ours.keys() | theirs.keys()):
        if theirs.get(name) != ours.get(name):
            raise ClipError(str(manifest), f"was made with {name} = {theirs.get(name)}, this program has {ours.get(name)}; "
                            "make it anew")
    if (settings["fs_hz"], settings["size"]) != (fs_hz, size):
        raise ClipError(str(manifest), f"is for {settings['size']} cells a side at {settings['fs_hz']} /s, the model takes "
                        f"{size} at {fs_hz}; make it anew with these weights")
    if len(entries) != settings["n"] or not entries:
        raise ClipError(str(manifest), f"lists {len(entries)} clips and says {settings['n']}; make it anew")
    for what, counted in (("id", Counter(entry.id for entry in entries)),
                          ("content", Counter(entry.sha256 for entry in entries))):
        (name, times), = counted.most_common(1)
        if times > 1:
            raise ClipError(name, f"{times} clips of this {what} in {manifest}; each may count once")


def _check_entry(entry: Entry, frames: int, barred: Collection[str], barred_domains: Collection[str]) -> None:
    if entry.count < 1 or entry.start < 0:
        raise ClipError(entry.id, f"is empty: {entry.count} frames from {entry.start} on; make the manifest anew")
    if entry.count != frames:
        raise ClipError(entry.id, f"has {entry.count} frames, the manifest's clips have {frames}; make it anew")
    if entry.who in barred:
        raise ClipError(entry.id, f"is of {entry.who}, a held-out subject; select clips without it")
    if entry.strata["source"] in barred_domains:
        raise ClipError(entry.id, f"is of the held-out domain {entry.strata['source']}; select clips without it")
    if entry.scene is not None and entry.scene.seed not in TRAINING_SEEDS:
        raise ClipError(entry.id, f"has seed {entry.scene.seed}, which is not the training's ({TRAINING_SEEDS.start} to "
                        f"{TRAINING_SEEDS.stop - 1}); validation and test clips may not calibrate")
    if entry.scene is not None and entry.scene.recording and half_of(entry.scene.recording) != "train":
        raise ClipError(entry.id, f"is driven by {entry.scene.recording}, a recording of the test half")


# --- reading


@dataclass(frozen=True)
class _Job:
    entry: Entry
    record: ClipRecord | None
    fs_hz: float
    size: int
    recordings: Path | None
    cache: Path | None
    made_with: Mapping[str, str]


@dataclass(frozen=True)
class Clips:
    """Verified as far as a manifest can be; iterate for each clip's frames, float32 (count, CHANNELS, size, size).

    Iterating makes one clip after another, as often as asked, and raises ClipError at the first that is not what it should
    be. The order is that of selection: the first k clips are as balanced as k can be. sha256: of the manifest.
    """

    entries: tuple[Entry, ...]
    sha256: str
    made_with: Mapping[str, str]
    fs_hz: float
    size: int
    roots: Mapping[str, Path]
    recordings: Path | None
    cache: Path | None
    workers: int

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        missing = [entry for entry in self.entries if self.cache is None or not _file(self.cache, entry).exists()]
        records = self._records(entry for entry in missing if entry.scene is None)
        jobs = (_Job(entry, records.get(entry.id), self.fs_hz, self.size, self.recordings, self.cache, self.made_with)
                for entry in self.entries)
        for frames in in_order(_frames, jobs, self.workers if missing else 1):
            yield frames.astype(np.float32) / np.float32(STEPS_PER_UNIT)

    def _records(self, entries: Iterable[Entry]) -> dict[str, ClipRecord]:
        """Of each clip by its id. Every data set is listed once."""
        by_name: dict[str, list[Entry]] = {}
        for entry in entries:
            by_name.setdefault(entry.dataset, []).append(entry)
        found = {}
        for name, wanted in by_name.items():
            records = _records(name, self.roots, wanted)
            found |= {entry.id: records[entry.record] for entry in wanted}
        return found


def _records(name: str, roots: Mapping[str, Path], wanted: list[Entry]) -> dict[str, ClipRecord]:
    """The wanted records of a data set, without their labels. Raises ClipError for the first that cannot be had."""
    from calibration.datasets import DatasetError, open_dataset

    broken: list[DatasetError] = []
    names = {entry.record for entry in wanted}
    try:
        records = {record.name: replace(record, labels={}) for record in open_dataset(name, roots[name], broken)
                   if record.name in names}
    except (KeyError, ValueError, DatasetError) as e:
        raise ClipError(wanted[0].id, f"its data set {name} cannot be opened: {e}; name its folder with --dataset") from e
    for entry in wanted:
        if entry.record not in records:
            why = f"; unreadable there: {broken[0]}" if broken else ""
            raise ClipError(entry.id, f"{roots[name]} has no readable record {entry.record}{why}")
        if records[entry.record].who != entry.who:
            raise ClipError(entry.id, f"is of {records[entry.record].who} in {roots[name]}, the manifest says {entry.who}")
    return records


def _file(cache: Path, entry: Entry) -> Path:
    return cache / f"{entry.sha256}.npy"


def _frames(job: _Job) -> NDArray[np.int16]:
    """One clip, from the cache or made; either way held against the hash."""
    entry, shape = job.entry, (job.entry.count, CHANNELS, job.size, job.size)
    if job.cache is not None and (kept := _kept(_file(job.cache, entry), shape, entry.sha256)) is not None:
        return kept
    source = entry.scene or job.record
    if source is None:
        raise ClipError(entry.id, f"its cached frames are damaged; delete {job.cache} and start again")
    frames = _made(job, source)
    if frames.shape != shape:
        raise ClipError(entry.id, f"is short: {frames.shape[0]} frames from {entry.start} on, the manifest says {entry.count}")
    if (found := sha256_of(frames)) != entry.sha256:
        raise ClipError(entry.id, f"is not the clip that was selected: SHA-256 {found[:12]}, the manifest says "
                        f"{entry.sha256[:12]} (made with {_listed(job.made_with)}, here {_listed(made_with())}); its source or "
                        "this program changed, so make the manifest anew with the same seed")
    if job.cache is not None:
        _keep(_file(job.cache, entry), frames)
    return frames


def _made(job: _Job, source: Scene | ClipRecord) -> NDArray[np.int16]:
    from calibration.datasets.record import DatasetError

    entry = job.entry
    try:
        return next(windows(source, (entry.start,), entry.count, job.fs_hz, job.size, job.recordings)).frames
    except (DatasetError, MissingRecordingError, BrokenRecordingError) as e:
        raise ClipError(entry.id, f"cannot be read: {e}") from e


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _kept(path: Path, shape: tuple[int, ...], sha256: str) -> NDArray[np.int16] | None:
    """A cached clip, or None where there is none or it is damaged (it is made anew then)."""
    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = frames.shape == shape and frames.dtype == np.int16 and sha256_of(frames) == sha256
    return frames if whole else None


def _keep(path: Path, frames: NDArray[np.int16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial")
    with partial.open("wb") as sink:
        np.save(sink, frames)
    partial.replace(path)


def in_order(function: Callable[[Job], Made], jobs: Iterable[Job], workers: int) -> Iterator[Made]:
    """function of each job, in the order of the jobs; at most AHEAD_PER_WORKER a worker are made before they are asked for.

    Raises what function does, and ClipError when a worker dies.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # the workers are the parallelism
        os.environ.setdefault(name, "1")
    waiting: deque[Future[Made]] = deque()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) > AHEAD_PER_WORKER * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as e:
            raise ClipError("a worker", "died while it made a clip (killed for memory?); try --workers 1") from e
        finally:
            for future in waiting:
                future.cancel()
