"""UBFC-rPPG, both parts: an AVI a subject and the oximeter's log beside it.

DATASET_2/subject{N}/vid.avi, ground_truth.txt: three lines (wave, HR, time in s), one value per video frame.
DATASET_1/{N-gt | after-exercise}/vid*.avi, gtdump.xmp: CSV without a header (time in ms, HR, SpO2, wave) at some 62 Hz.

The oximeter's HR lags by some 4 s and is 0 while it searches (subjects 11, 18, 20, 24): 'device', zeros are NaN. The
set's authors score against the wave.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.datasets.fields import matching, nothing_found, one_file, read_table, read_text, to_numbers
from calibration.datasets.pictures import open_video
from calibration.datasets.record import ClipRecord, DatasetError, check_counts, make_label, make_rate

_LAYOUT = "subject*/vid.avi (part 2) or *-gt/vid.avi (part 1)"


@dataclass(frozen=True)
class Place:
    subject: str
    name: str
    folder: Path
    part: int


def find(root: Path) -> list[Place]:
    """root: one part, or the folder of DATASET_1 and DATASET_2. Part 1 comes first."""
    places = []
    for part, folders in ((1, ("*-gt", "after-exercise*")), (2, ("subject*",))):
        for inside in ("", f"DATASET_{part}/"):
            for pattern in folders:
                for folder in matching(root, inside + pattern, _LAYOUT, folders=True):
                    subject = folder.name.removesuffix("-gt") if part == 1 else folder.name.removeprefix("subject")
                    places.append(Place(f"{part}-{subject}", f"{part}-{subject}", folder, part))
    if not places:
        raise nothing_found(root, _LAYOUT)
    return places


def read(place: Place) -> ClipRecord:
    if place.part == 1:
        return _read_part_1(place)
    path = place.folder / "ground_truth.txt"
    video = open_video(place.folder / "vid.avi")
    lines = [line for line in read_text(path, "ground truth").splitlines() if line.strip()]
    if len(lines) != 3:
        raise DatasetError(path, "lines", f"expected 3 (wave, HR, time), got {len(lines)}; fetch the file again")
    wave, hr, times_s = (to_numbers(line.split(), path, f"line {i} ({what})")
                         for i, (line, what) in enumerate(zip(lines, ("wave", "HR", "time"), strict=True), 1))
    for i, (what, row) in enumerate((("wave", wave), ("HR", hr)), 1):
        if row.size != times_s.size:
            raise DatasetError(path, f"line {i} ({what})", f"expected {times_s.size} values as in line 3 (time), got "
                               f"{row.size}; the line was cut: fetch the file again")
    check_counts(path, "line 1 (wave)", wave.size, video)
    rates, flags = make_rate("hr", path, "line 2 (HR)", hr, "device", times_s=times_s)
    pulse = make_label(path, "line 1 (wave)", wave, "a.u.", "contact", times_s=times_s)
    return ClipRecord("ubfc", place.subject, place.name, video, {"pulse": pulse, **rates}, "ubfc", flags)


def _read_part_1(place: Place) -> ClipRecord:
    path = place.folder / "gtdump.xmp"
    video = open_video(one_file(place.folder, ("vid*.avi",), "video"))
    table = read_table(path, ("time_ms", "HR", "SpO2", "wave"), "log", header=False)
    times_s = table["time_ms"] / 1e3
    rates, flags = make_rate("hr", path, "column HR", table["HR"], "device", times_s=times_s)
    pulse = make_label(path, "column wave", table["wave"], "a.u.", "contact", times_s=times_s)
    if place.folder.name.startswith("after-exercise"):
        flags = (*flags, "the subject is not named and may be one of the others")
    return ClipRecord("ubfc", place.subject, place.name, video, {"pulse": pulse, **rates}, "ubfc", flags)
