"""BUAA-MIHR: Sub {NN}/lux {X}/lux{X}_APH.avi and lux{X}_PPGData.mat (v5): a struct PPG with data and fs.

The other videos of a folder (_LXR, _SPH) are not read. Papers keep 10 lux and more; dimmer ones are flagged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import matfile
from calibration.datasets.fields import matching, nothing_found, one_file
from calibration.datasets.pictures import open_video
from calibration.datasets.record import ClipRecord, DatasetError, make_label

_LAYOUT = "Sub NN/lux X/luxX_APH.avi"
_DIM_LUX = 10.0
_KNOWN_BAD = {"04"}
"""Left out by another reader of this set, without a reason given."""


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    folder: Path
    lux: float


def find(root: Path) -> list[Place]:
    places = []
    for folder in matching(root, "Sub */*", _LAYOUT, folders=True):
        lux = re.fullmatch(r"lux\s*(\d+(?:\.\d+)?)", folder.name, re.IGNORECASE)
        if lux:
            subject = folder.parent.name.removeprefix("Sub ").strip()
            places.append(Place(subject, f"{subject}/lux{float(lux[1]):g}", folder, float(lux[1])))
    if not places:
        raise nothing_found(root, _LAYOUT)
    return sorted(places, key=lambda place: (place.subject, place.lux))


def read(place: Place) -> ClipRecord:
    video = open_video(one_file(place.folder, ("*_APH.avi",), "video"))
    path = one_file(place.folder, ("*PPGData.mat", "*.mat"), "pulse wave")
    rates = matfile.numbers(path, "PPG", "fs")
    if rates.size != 1:
        raise DatasetError(path, "PPG.fs", f"expected one number, got {rates.size}")
    pulse = make_label(path, "PPG.data", matfile.numbers(path, "PPG", "data"), "a.u.", "contact", rate_hz=float(rates[0]))
    flags = (("known bad: left out by another reader",) if place.subject in _KNOWN_BAD else ()) \
        + ((f"dim: {place.lux:g} lux",) if place.lux < _DIM_LUX else ())
    return ClipRecord("buaa", place.subject, place.name, video, {"pulse": pulse}, "buaa", flags, {"lux": f"{place.lux:g}"})
