"""MMPD and mini-MMPD: subject{n}/p{n}_{k}.mat (v5) with the video, the pulse wave per frame, and eight circumstances.

The file holds no rate: the set is 30 fps. Its own description writes the axes as frames, width, height, colour, while
every reader takes rows first, which gives upright faces; so do we, and a size the set does not have is flagged. Frames
are loaded whole while they are read (see matfile); labels and sizes are not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import matfile
from calibration.datasets.fields import matching, nothing_found
from calibration.datasets.pictures import open_mat_video
from calibration.datasets.record import ClipRecord, DatasetError, check_counts, make_label

FPS = 30.0
_LAYOUT = "subject{n}/p{n}_{k}.mat"
_SIZES = {(320, 240), (240, 320), (80, 60), (60, 80)}
_FACTS = {
    "light": {"LED-low", "LED-high", "Incandescent", "Nature"},
    "motion": {"Stationary", "Stationary (after exercise)", "Rotation", "Talking", "Walking"},
    "exercise": {"True", "False"}, "skin_color": {"3", "4", "5", "6"}, "gender": {"male", "female"},
    "glasser": {"True", "False"}, "hair_cover": {"True", "False"}, "makeup": {"True", "False"},
}


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    path: Path


def find(root: Path) -> list[Place]:
    places = [Place(path.parent.name.removeprefix("subject"), path.stem.removeprefix("p"), path)
              for path in matching(root, "subject*/p*_*.mat", _LAYOUT, folders=False)
              if re.fullmatch(r"p\d+_\d+", path.stem)]
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    video = open_mat_video(place.path, "video", FPS)
    wave = matfile.numbers(place.path, "GT_ppg")
    check_counts(place.path, "GT_ppg", wave.size, video)
    # one value per frame, but for a few: stretched over the frames, as the set's authors do
    pulse = make_label(place.path, "GT_ppg", wave, "a.u.", "contact", rate_hz=FPS * (wave.size - 1) / (video.count - 1))
    size = (video.width, video.height)
    flags = () if size in _SIZES else (f"video is {size[0]}x{size[1]}; the set has 320x240 and 80x60 either way up",)
    return ClipRecord("mmpd", place.subject, place.name, video, {"pulse": pulse}, "mmpd", flags, _facts(place.path))


def _facts(path: Path) -> dict[str, str]:
    facts = {}
    for name, known in _FACTS.items():
        value = matfile.text(path, name).strip("[] ").removesuffix(".0")
        value = "Walking" if value == "Watching Videos" else value  # a wrong name in the first release
        if value not in known:
            raise DatasetError(path, name, f"expected {' or '.join(sorted(known))}, got {value!r}")
        facts[name] = value
    return facts
