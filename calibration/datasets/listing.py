"""`physvlm-lab datasets NAME ROOT`: what a data set on disk holds, as a table."""

from __future__ import annotations

import sys
from pathlib import Path

from calibration.datasets import open_dataset
from calibration.datasets.record import KINDS, ClipRecord, DatasetError

_USAGE = 2


def main_list(name: str, root: Path, decode: bool = False) -> int:
    """Print a row per record to stdout and each broken one to stderr: 0 all sound, 1 some broken, 2 not this data set.

    decode: read every frame too, which finds pictures that are damaged or missing.
    """
    broken: list[DatasetError] = []
    try:
        records = open_dataset(name, root, broken)
    except (DatasetError, ValueError) as error:
        print(f"physvlm-lab datasets: {error}", file=sys.stderr)
        return _USAGE
    seen: set[str] = set()
    sound = 0
    print(f"{'subject':12} {'name':24} {'size':>9} {'frames':>7} {'fps':>7}  labels")
    for record in records:
        try:
            count = sum(1 for _ in record.frames()) if decode else record.pictures.count
        except DatasetError as error:
            broken.append(error)
            continue
        sound += 1
        seen.add(record.subject)
        print(_row(record, count))
    for fault in broken:
        print(f"broken: {fault}", file=sys.stderr)
    print(f"{sound} records of {len(seen)} subjects, {len(broken)} broken")
    return 1 if broken else 0


def _row(record: ClipRecord, count: int | None) -> str:
    fps = "?" if record.fps is None else f"{record.fps:.2f}"
    labels = ", ".join(f"{kind} {label.rate_hz:.4g} Hz {label.truth}{'' if label.aligned else ' unaligned'}"
                       for kind in KINDS if (label := record.labels.get(kind)) is not None)
    flags = f"  [{'; '.join(record.flags)}]" if record.flags else ""
    return (f"{record.subject:12} {record.name:24} {f'{record.width}x{record.height}':>9} "
            f"{'?' if count is None else count:>7} {fps:>7}  {labels or 'none'}{flags}")
