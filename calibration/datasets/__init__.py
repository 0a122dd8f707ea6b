"""Public data sets, and one's own through a manifest, each read as ClipRecords: `open_dataset(name, root)`.

A reader is a module with `find(root)`, which looks at names alone, and `read(place)`, which opens one recording. The
layouts are described at the top of each. Pictures are decoded one at a time, when asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from calibration.datasets import buaa, cohface, manifest, mmpd, pure, scamps, ubfc, v4v, vipl
from calibration.datasets.normalised import normalised
from calibration.datasets.record import KINDS, ClipRecord, DatasetError, Label, split_subjects

__all__ = ["KINDS", "NAMES", "ClipRecord", "DatasetError", "Label", "normalised", "open_dataset", "split_subjects", "subjects"]

_READERS = {"ubfc": ubfc, "pure": pure, "cohface": cohface, "mmpd": mmpd, "vipl": vipl, "buaa": buaa, "v4v": v4v,
            "scamps": scamps, "nbhr": manifest, "manifest": manifest}

NAMES = tuple(_READERS)
"""What `open_dataset` can open; `nbhr` and `manifest` take a CSV (see calibration/datasets/manifest.py)."""


def open_dataset(name: str, root: Path | str, broken: list[DatasetError] | None = None) -> Iterator[ClipRecord]:
    """The records of a data set in a stable order, each opened when it is its turn.

    broken: when given, a record that cannot be read is added to it and left out; else it raises DatasetError. A root that
    is not this data set raises in either case, and at once. Raises ValueError for an unknown name.
    """
    return _read(name, _find(name, Path(root)), broken)


def subjects(name: str, root: Path | str) -> tuple[str, ...]:
    """Every subject once, in the order of the records; no recording is opened."""
    return tuple(dict.fromkeys(place.subject for place in _find(name, Path(root))))


def _find(name: str, root: Path) -> list:
    if name not in _READERS:
        raise ValueError(f"no data set called {name!r}; choose from {', '.join(NAMES)}")
    return manifest.find(root, name) if _READERS[name] is manifest else _READERS[name].find(root)


def _read(name: str, places: list, broken: list[DatasetError] | None) -> Iterator[ClipRecord]:
    for place in places:
        try:
            record = _READERS[name].read(place)
        except DatasetError as error:
            if broken is None:
                raise
            broken.append(error)
        else:
            yield record
