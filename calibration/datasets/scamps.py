"""SCAMPS: P000001.mat and on (MATLAB v7.3), 600 rendered frames of one avatar each, pulse and breathing per frame.

The whole picture (RawFrames) is read, for the chest is in it; a file without it gives its face crop (Xsub). The file
holds no rate: the set is 30 fps. Every file is a subject of its own. Truth is 'synthetic'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import matfile
from calibration.datasets.fields import matching, nothing_found
from calibration.datasets.pictures import MatVideo, open_mat_video
from calibration.datasets.record import ClipRecord, DatasetError, check_counts, make_label

FPS = 30.0
_LAYOUT = "P000001.mat and the like"


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    path: Path


def find(root: Path) -> list[Place]:
    places = [Place(path.stem, path.stem, path) for path in matching(root, "**/P*.mat", _LAYOUT, folders=False)
              if re.fullmatch(r"P\d+", path.stem)]
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    video = _video(place.path)
    labels = {}
    for kind, key in (("pulse", "d_ppg"), ("resp", "d_br")):
        values = matfile.numbers(place.path, key)
        check_counts(place.path, key, values.size, video)
        labels[kind] = make_label(place.path, key, values, "a.u.", "synthetic", rate_hz=FPS)
    return ClipRecord("scamps", place.subject, place.name, video, labels, "scamps", facts={"frames": video.key})


def _video(path: Path) -> MatVideo:
    there = matfile.names(path)
    for key in ("RawFrames", "Xsub"):
        if key in there:
            return open_mat_video(path, key, FPS)
    raise DatasetError(path, "RawFrames", f"neither it nor Xsub is there; the file holds {', '.join(there) or 'nothing'}: "
                       "labels without pictures are another download of this set")
