"""COHFACE: {subject}/{session}/data.avi (newer copies: data.mkv) and data.hdf5 (pulse, respiration, time; 256 Hz).

Sessions 0 and 1 are under studio light, 2 and 3 under daylight. Video and signals begin together. Some waves begin with
zeros, before the sensor delivered: these are NaN here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.datasets.fields import matching, nothing_found, one_file, read_hdf5
from calibration.datasets.pictures import open_video
from calibration.datasets.record import ClipRecord, Label, make_label

_LAYOUT = "{subject}/{session}/data.avi"
_LEADING_ZEROS_S = 0.25
"""Exact zeros for this long at the start are no signal: a real wave passes zero in a sample or two."""

_KNOWN_BAD = {("3", "2"), ("3", "3"), ("6", "2"), ("11", "2")}
"""Left out by other readers of this set (subject, session); read here, and flagged."""


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    folder: Path


def find(root: Path) -> list[Place]:
    places = [Place(folder.parent.name, f"{folder.parent.name}/{folder.name}", folder)
              for folder in matching(root, "*/*", _LAYOUT, folders=True)
              if folder.name.isdigit() and folder.parent.name.isdigit()]
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    path = place.folder / "data.hdf5"
    video = open_video(one_file(place.folder, ("data.mkv", "data.avi"), "video"))
    times_s = read_hdf5(path, "time")
    session = place.folder.name
    flags = ("known bad: left out by other readers",) if (place.subject, session) in _KNOWN_BAD else ()
    labels: dict[str, Label] = {}
    for kind, name in (("pulse", "pulse"), ("resp", "respiration")):
        values, zeros_s = _without_leading_zeros(read_hdf5(path, name), times_s)
        if zeros_s:
            flags = (*flags, f"{name}: zeros for the first {zeros_s:.2f} s")
        labels[kind] = make_label(path, name, values, "a.u.", "contact", times_s=times_s - times_s[:1])
    return ClipRecord("cohface", place.subject, place.name, video, labels, "cohface", flags,
                      {"light": "studio" if session in ("0", "1") else "daylight"})


def _without_leading_zeros(values: np.ndarray, times_s: np.ndarray) -> tuple[np.ndarray, float]:
    """NaN in place of the zeros at the start, and for how long they last; untouched and 0 where there are few."""
    nonzero = np.flatnonzero(values)
    lead = int(nonzero[0]) if nonzero.size else 0
    if lead == 0 or values.size != times_s.size or times_s[lead] - times_s[0] < _LEADING_ZEROS_S:
        return values, 0.0
    return np.concatenate((np.full(lead, np.nan), values[lead:])), float(times_s[lead] - times_s[0])
