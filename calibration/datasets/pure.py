"""PURE: a folder of PNG named by their time in ns, and a JSON of pictures' times and oximeter samples on the same clock.

{NN-MM}/{NN-MM}/Image*.png beside {NN-MM}/{NN-MM}.json; or {NN-MM}/Image*.png with the JSON inside or beside the folder.
NN is the subject, MM what it does. Frame times come from the file names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.datasets.fields import json_integers, json_numbers, matching, nothing_found, read_json
from calibration.datasets.pictures import ImageFiles, open_images
from calibration.datasets.record import ClipRecord, DatasetError, check_counts, make_label, make_rate

_LAYOUT = "NN-MM/NN-MM/Image*.png and NN-MM/NN-MM.json"
_MOTION = {"01": "steady", "02": "talking", "03": "slow translation", "04": "fast translation", "05": "small rotation",
           "06": "medium rotation"}
_CLOCKS_AGREE_S = 1.0  # between the first picture's name and its entry in the JSON


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    folder: Path


def find(root: Path) -> list[Place]:
    places = [Place(folder.name[:2], folder.name, folder) for folder in matching(root, "*", _LAYOUT, folders=True)
              if re.fullmatch(r"\d\d-\d\d", folder.name)]
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    pictures = _pictures(place)
    path = next((path for path in (place.folder / f"{place.name}.json", place.folder.parent / f"{place.name}.json",
                                   place.folder / place.name / f"{place.name}.json") if path.is_file()), None)
    if path is None:
        raise DatasetError(place.folder, f"{place.name}.json", "no such file inside or beside the folder; fetch it again")
    content = read_json(path, "samples")
    listed_ns = json_integers(content, path, "/Image", "Timestamp")
    check_counts(path, "/Image", listed_ns.size, pictures)
    apart_s = (listed_ns[0] - pictures.times_ns[0]) / 1e9
    if abs(apart_s) > _CLOCKS_AGREE_S:
        raise DatasetError(path, "/Image[0].Timestamp", f"{apart_s:.3f} s from the name of {pictures.files[0]}; expected one "
                           "clock: is this the JSON of these pictures?")
    # subtracted as integers: a double holds nanoseconds since 1970 to a quarter of a microsecond only
    times_s = (json_integers(content, path, "/FullPackage", "Timestamp") - pictures.times_ns[0]) / 1e9
    pulse = make_label(path, "/FullPackage waveform", json_numbers(content, path, "/FullPackage", "Value", "waveform"),
                       "a.u.", "contact", times_s=times_s)
    hr = json_numbers(content, path, "/FullPackage", "Value", "pulseRate")
    rates, flags = make_rate("hr", path, "/FullPackage pulseRate", hr, "device", times_s=times_s)
    return ClipRecord("pure", place.subject, place.name, pictures, {"pulse": pulse, **rates}, "pure", flags,
                      {"motion": _MOTION.get(place.name[3:], "unknown")})


def _pictures(place: Place) -> ImageFiles:
    nested = place.folder / place.name
    folder = nested if nested.is_dir() else place.folder
    timed = []
    for path in matching(folder, "*.png", _LAYOUT, folders=False):
        stamp = re.fullmatch(r"Image(\d+)", path.stem)
        if stamp is None:
            raise DatasetError(path, "file name", "expected Image and a time in ns, such as Image1392643993642815000.png")
        timed.append((int(stamp[1]), path))
    if not timed:
        raise DatasetError(folder, "pictures", "expected Image<time>.png, found none; fetch this recording again")
    timed.sort()
    return open_images(folder, [path for _, path in timed], np.array([ns for ns, _ in timed], np.int64))
