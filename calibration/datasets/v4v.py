"""V4V: F001_T1.mkv at 25 fps, blood pressure at 1 kHz (the pulse wave), HR and RR per frame as the recorder worked them out.

Copies of the set differ in their folders, so files are found by their names anywhere under the root:
F001_T1.mkv; F001-T1-BP.txt (or F001-T1.txt in the test sets), one value a line; F001_T1.txt, or a line each in
*_gt_release.txt: "F001_T1.mkv, HR, v, v..." and the same with RR. No breathing wave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from calibration.datasets.fields import matching, nothing_found, read_table, read_text, to_numbers
from calibration.datasets.pictures import VideoFile, open_video
from calibration.datasets.record import ClipRecord, DatasetError, Label, check_counts, make_label, make_rate

_LAYOUT = "F001_T1.mkv and the like"
_CLIP = r"[FM]\d{3}_T\d+"
_PRESSURE_HZ = 1000.0  # the set's rate; the file is a bare column


@dataclass(frozen=True)
class Place:
    """rates: the file that tells this clip's HR and RR, and their lines where it tells those of many clips.

    wave: its blood pressure; None where it has none, which is a fault only in a copy that has others (waves).
    """

    subject: str
    name: str
    path: Path
    rates: tuple[Path, Mapping[str, str] | None] | None = field(repr=False)
    wave: Path | None
    waves: bool


def find(root: Path) -> list[Place]:
    videos = [path for path in matching(root, "**/*.mkv", _LAYOUT, folders=False) if re.fullmatch(_CLIP, path.stem)]
    if not videos:
        raise nothing_found(root, _LAYOUT)
    rates: dict[str, tuple[Path, Mapping[str, str] | None]] = {}
    waves: dict[str, Path] = {}
    for path in matching(root, "**/*.txt", _LAYOUT, folders=False):
        if path.stem.endswith("_gt_release"):
            rates |= {clip: (path, lines) for clip, lines in _rate_lines(path).items()}
        elif re.fullmatch(_CLIP, path.stem):
            rates.setdefault(path.stem, (path, None))
        elif wave := re.fullmatch(r"([FM]\d{3})-(T\d+)(-BP)?", path.stem):
            waves.setdefault(f"{wave[1]}_{wave[2]}", path)
    return [Place(path.stem[:4], path.stem, path, rates.get(path.stem), waves.get(path.stem), bool(waves))
            for path in videos]


def _rate_lines(path: Path) -> dict[str, dict[str, str]]:
    """clip -> HR|RR -> the rest of the line, unread."""
    out: dict[str, dict[str, str]] = {}
    for i, line in enumerate(read_text(path, "rates").splitlines(), 1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split(",", 2)]
        if len(parts) < 3 or parts[1] not in ("HR", "RR") or not parts[0].endswith(".mkv"):
            raise DatasetError(path, f"line {i}", f"expected NAME.mkv, HR or RR, values..., got {line[:40]!r}")
        out.setdefault(parts[0].removesuffix(".mkv"), {})[parts[1]] = parts[2]
    return out


def read(place: Place) -> ClipRecord:
    video = open_video(place.path)
    if place.rates is None:
        raise DatasetError(place.path, "HR, RR", f"no {place.name}.txt and no line in a *_gt_release.txt under the root")
    path, lines = place.rates
    if lines is None:
        lines = _rate_lines(path).get(place.name)
        if lines is None:
            raise DatasetError(path, "clip", f"expected lines of {place.name}.mkv, got those of another")
    labels: dict[str, Label] = {}
    flags: tuple[str, ...] = ()
    for kind, name in (("hr", "HR"), ("rr", "RR")):
        rates, none = _rate(kind, video, path, f"{name} of {place.name}", lines.get(name))
        labels, flags = labels | rates, (*flags, *none)
    if place.wave is not None:
        table = read_table(place.wave, ("pressure",), "blood pressure", header=False, delimiter=None)
        labels["pulse"] = make_label(place.wave, "pressure", table["pressure"], "mmHg", "contact", rate_hz=_PRESSURE_HZ)
    elif place.waves:
        raise DatasetError(place.path, "blood pressure", f"no {place.name.replace('_', '-')}-BP.txt under the root; fetch it")
    return ClipRecord("v4v", place.subject, place.name, video, labels, "v4v", flags, {"task": place.name[5:]})


def _rate(kind: str, video: VideoFile, path: Path, field: str,
          line: str | None) -> tuple[dict[str, Label], tuple[str, ...]]:
    if line is None:
        raise DatasetError(path, field, "no such line; the file was cut: fetch it again")
    if video.fps is None:
        raise DatasetError(video.path, "frame rate", "the container gives none, and the rates are one per frame")
    values = to_numbers(line.split(","), path, field)
    check_counts(path, field, values.size, video)
    return make_rate(kind, path, field, values, "device", rate_hz=video.fps)
