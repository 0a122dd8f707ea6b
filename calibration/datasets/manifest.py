"""Any set through a CSV, one row per label: for NBHR, whose layout is not public, and for recordings of one's own.

Columns, in any order, those in brackets may be left out or left empty. Paths are relative to the CSV.

subject, name        whose, and which recording; the rows of one recording together make one record
video                a video file, or a folder of pictures (by name, in natural order)
[fps]                the true frame rate, over the container's times; a folder needs it, or:
[frame_times]        a text file of one time per frame, and [frame_times_unit]: s, ms, us or ns
label, kind, truth   the label's file; pulse, resp, hr or rr; contact, device, derived or synthetic. All empty: no label
[column]             .csv .tsv .txt: a name in the header, or a number from 1 where there is no header (none: column 1);
                     .mat: KEY or KEY.FIELD; .h5 .hdf5: the data set; .npz: the array
[rate_hz]            samples a second; or:
[times]              where the samples' times are, as `column`, and [times_unit]: s, ms, us or ns
[offset_s]           when the label's first sample (or its clock's zero) is, s after the first frame; may be negative
[unit] [aligned]     of a wave (a.u. unless given); no where the wave's times cannot be held against the frames'
[domain]             what a domain-wise evaluation groups by (the data set's name unless given)
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.datasets import matfile
from calibration.datasets.fields import matching, read_hdf5, read_text, to_numbers
from calibration.datasets.pictures import ImageFiles, VideoFile, open_images, open_video
from calibration.datasets.record import KINDS, RATES, TRUTHS, ClipRecord, DatasetError, Label, make_label, make_rate

_OF_RECORD = ("video", "fps", "frame_times", "frame_times_unit", "domain")
_REQUIRED = ("subject", "name", "video", "label", "kind", "truth")
_OPTIONAL = ("fps", "frame_times", "frame_times_unit", "column", "rate_hz", "times", "times_unit", "offset_s", "unit",
             "aligned", "domain")
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_PICTURES = {".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"}


@dataclass(frozen=True)
class Row:
    """One line of the manifest; an empty or absent cell is ''."""

    path: Path
    line: int
    cells: Mapping[str, str] = field(repr=False)

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")

    def error(self, column: str, problem: str) -> DatasetError:
        return DatasetError(self.path, f"line {self.line}, {column}", problem)

    def file(self, column: str) -> Path:
        return self.path.parent / self[column]

    def number(self, column: str) -> float | None:
        """None for an empty cell."""
        if not self[column]:
            return None
        try:
            value = float(self[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.error(column, f"expected a number, got {self[column]!r}")
        return value

    def rate(self, column: str) -> float | None:
        value = self.number(column)
        if value is not None and value <= 0:
            raise self.error(column, f"expected a rate above 0 Hz, got {value:g}")
        return value

    def choice(self, column: str, choices: tuple[str, ...]) -> str:
        if self[column] not in choices:
            raise self.error(column, f"expected {', '.join(choices)}, got {self[column]!r}")
        return self[column]


@dataclass(frozen=True)
class Place:
    dataset: str
    subject: str
    name: str
    rows: tuple[Row, ...]


def find(root: Path, dataset: str = "manifest") -> list[Place]:
    """root: the CSV, or a folder with manifest.csv in it."""
    path = root / "manifest.csv" if root.is_dir() else root
    table = csv.DictReader(read_text(path, "manifest").splitlines(), skipinitialspace=True)
    columns = [name.strip() for name in table.fieldnames or ()]
    table.fieldnames = columns
    for name in _REQUIRED:
        if name not in columns:
            raise DatasetError(path, "header", f"expected a column {name}, got {', '.join(columns)}")
    if unknown := [name for name in columns if name not in _REQUIRED + _OPTIONAL]:
        raise DatasetError(path, "header", f"no such column: {unknown[0]}; choose from {', '.join(_REQUIRED + _OPTIONAL)}")
    places: dict[tuple[str, str], list[Row]] = {}
    for cells in table:
        if None in cells or None in cells.values():
            raise DatasetError(path, f"line {table.line_num}", f"expected {len(columns)} cells as in the header; the line is "
                               "cut or has a comma too many")
        row = Row(path, table.line_num, {name: cell.strip() for name, cell in cells.items()})
        for column in ("subject", "name", "video"):
            if not row[column]:
                raise row.error(column, "is empty; expected a text")
        rows = places.setdefault((row["subject"], row["name"]), [])
        for column in _OF_RECORD:
            if rows and rows[0][column] != row[column]:
                raise row.error(column, f"expected {rows[0][column]!r} as on line {rows[0].line} of the same recording")
        rows.append(row)
    if not places:
        raise DatasetError(path, "rows", "there are none under the header")
    return [Place(dataset, subject, f"{subject}/{name}", tuple(rows)) for (subject, name), rows in places.items()]


def read(place: Place) -> ClipRecord:
    first = place.rows[0]
    pictures = _pictures(first)
    labels: dict[str, Label] = {}
    flags: tuple[str, ...] = ()
    for row in place.rows:
        if not (row["label"] or row["kind"] or row["truth"]):
            continue
        kind = row.choice("kind", KINDS)
        if kind in labels:
            raise row.error("kind", f"a second {kind} label for {place.name}; expected one of each kind")
        more, none = _label(row, kind)
        labels, flags = labels | more, (*flags, *none)
    return ClipRecord(place.dataset, place.subject, place.name, pictures, labels, first["domain"] or place.dataset, flags)


def _pictures(row: Row) -> VideoFile | ImageFiles:
    path, fps = row.file("video"), row.rate("fps")
    times_s = None
    if row["frame_times"]:
        if fps is not None:
            raise row.error("fps", "given beside frame_times; keep the one that is true")
        times = row.file("frame_times")
        lines = [line for line in read_text(times, "frame times").splitlines() if line.strip()]
        times_s = to_numbers(lines, times, "frame times") * _SECONDS[row.choice("frame_times_unit", tuple(_SECONDS))]
    if not path.is_dir():
        if not path.is_file():
            raise row.error("video", f"no such file or folder: {path}")
        return open_video(path, fps, None if times_s is None else (row.file("frame_times"), times_s))
    files = [file for file in matching(path, "*", "pictures", folders=False) if file.suffix.lower() in _PICTURES]
    if times_s is None:
        if fps is None:
            raise row.error("fps", "expected the rate of this folder of pictures, or frame_times; it has no times of its own")
        times_s = np.arange(len(files)) / fps
    return open_images(path, files, np.round((times_s - times_s[:1]) * 1e9).astype(np.int64))


def _label(row: Row, kind: str) -> tuple[dict[str, Label], tuple[str, ...]]:
    truth = row.choice("truth", TRUTHS)
    if not row["label"]:
        raise row.error("label", f"is empty; expected the file of the {kind} label")
    path, column = row.file("label"), f"column {row['column'] or '1'}"
    values = _values(path, row["column"])
    rate_hz, offset_s, times_s = row.rate("rate_hz"), row.number("offset_s") or 0.0, None
    if row["times"]:
        if rate_hz is not None:
            raise row.error("rate_hz", "given beside times; keep the one that is true")
        times_s = _values(path, row["times"]) * _SECONDS[row.choice("times_unit", tuple(_SECONDS))]
    elif rate_hz is None:
        raise row.error("rate_hz", "is empty; expected the label's samples a second, or the column of its times")
    aligned = (row.choice("aligned", ("yes", "no")) if row["aligned"] else "yes") == "yes"
    if kind in RATES:
        if row["unit"] not in ("", "per_min") or not aligned:
            raise row.error("unit" if aligned else "aligned", "a rate is per_min and aligned; leave both empty")
        return make_rate(kind, path, column, values, truth, times_s=times_s, rate_hz=rate_hz, offset_s=offset_s)
    wave = make_label(path, column, values, row["unit"] or "a.u.", truth, times_s=times_s, rate_hz=rate_hz,
                      offset_s=offset_s, aligned=aligned)
    return {kind: wave}, ()


def _values(path: Path, column: str) -> NDArray[np.float64]:
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        return _text_column(path, column, {".csv": ",", ".tsv": "\t"}.get(suffix))
    if suffix == ".mat":
        key, _, inner = column.partition(".")
        return matfile.numbers(path, key, inner or None)
    if suffix in (".h5", ".hdf5"):
        return read_hdf5(path, column)
    if suffix in (".npy", ".npz"):
        return _numpy_array(path, column)
    raise DatasetError(path, "file name", "expected .csv, .tsv, .txt, .mat, .h5, .hdf5, .npy or .npz")


def _text_column(path: Path, column: str, delimiter: str | None) -> NDArray[np.float64]:
    """delimiter None: white space."""
    rows = [line.split(delimiter) for line in read_text(path, f"column {column or '1'}").splitlines() if line.strip()]
    names = [name.strip() for name in rows[0]]
    if not column or column.isdigit():
        index = int(column or "1") - 1
        if not 0 <= index < len(names):
            raise DatasetError(path, f"column {column}", f"expected a number from 1 to {len(names)}")
    elif column in names:
        index, rows = names.index(column), rows[1:]
    else:
        raise DatasetError(path, f"column {column}", f"no such column; the header has {', '.join(names)}")
    for i, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DatasetError(path, f"row {i}", f"expected {len(names)} columns, got {len(row)}; the file is cut, or no table")
    return to_numbers([row[index] for row in rows], path, f"column {column or '1'}")


def _numpy_array(path: Path, key: str) -> NDArray[np.float64]:
    import zipfile

    field = key or "array"
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            found = stored
        else:
            with stored:
                if key not in stored:
                    raise DatasetError(path, field, f"no such array; the file holds {', '.join(stored) or 'nothing'}")
                found = stored[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(path, field, f"not NumPy's format, or cut off: {error}") from error
    if found.dtype.kind not in "iuf":
        raise DatasetError(path, field, f"expected numbers, got {found.dtype}")
    return found.astype(np.float64).reshape(-1)
