"""VIPL-HR: data/p{n}/v{k}/source{s}/ with video.avi, wave.csv, gt_HR.csv (1 Hz), time.txt (ms, one per frame).

Frame times are time.txt's: the container's rate is nominal. source2, a phone at a steady 30 fps, goes by its container.
source4 is near infrared. The wave's start is not that of the video: it is stretched over it and marked unaligned, so it
may give rates but not phase. HR is the device's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets.fields import matching, nothing_found, read_table
from calibration.datasets.pictures import VideoFile, open_video
from calibration.datasets.record import ClipRecord, DatasetError, Label, make_label, make_rate

_LAYOUT = "data/p{n}/v{k}/source{s}/video.avi"
_PHONE, _INFRARED = "source2", "source4"
_NO_FRAMES = {"p19/v2/source2"}
_NO_WAVE = {"p45/v1/source2"}
"""Faults of the set as it is distributed."""


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    folder: Path


def find(root: Path) -> list[Place]:
    """root: the set, or its folder `data`."""
    places = []
    for inside in ("", "data/"):
        for folder in matching(root, f"{inside}p*/v*/source*", _LAYOUT, folders=True):
            name = "/".join(folder.parts[-3:])
            if re.fullmatch(r"p\d+/v\d(-\d)?/source[1-4]", name) and name not in _NO_FRAMES:
                places.append(Place(folder.parts[-3], name, folder))
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    source = place.folder.name
    video = _video(place.folder, source)
    path = place.folder / "gt_HR.csv"
    hr = read_table(path, ("HR",), "heart rate", header=True)["HR"]
    labels, flags = make_rate("hr", path, "column HR", hr, "device", rate_hz=1.0)
    if place.name in _NO_WAVE:
        flags = (*flags, "known: this recording has no wave")
    else:
        labels["pulse"] = _wave(place.folder / "wave.csv", video)
    return ClipRecord("vipl", place.subject, place.name, video, labels, "vipl", flags,
                      {"source": source, "light": "near infrared" if source == _INFRARED else "visible"})


def _video(folder: Path, source: str) -> VideoFile:
    path = folder / "video.avi"
    if source == _PHONE:
        return open_video(path)
    times = folder / "time.txt"
    return open_video(path, times=(times, read_table(times, ("ms",), "frame times", header=False, delimiter=None)["ms"] / 1e3))


def _wave(path: Path, video: VideoFile) -> Label:
    wave = read_table(path, ("Wave",), "wave", header=True)["Wave"]
    if video.times_s is not None:
        video_s = float(video.times_s[-1])
    elif video.count is not None and video.fps is not None:
        video_s = (video.count - 1) / video.fps
    else:
        raise DatasetError(video.path, "duration", "the container gives none, so the wave cannot be laid over it")
    return make_label(path, "column Wave", wave, "a.u.", "contact", rate_hz=(wave.size - 1) / video_s, aligned=False)
