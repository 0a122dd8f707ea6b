"""Folders, text, JSON and HDF5 read so that whatever is wrong is named: the file, and the field in it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.datasets.record import DatasetError


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: digits count as numbers, so subject2 comes before subject10."""
    return [(int(part), "") if part.isdigit() else (-1, part)
            for name in path.parts for part in re.split(r"(\d+)", name) if part]


def matching(root: Path, pattern: str, expected: str, folders: bool | None = None) -> list[Path]:
    """What lies under root by this glob, in natural order, hidden entries left out; DatasetError where root is no folder.

    folders: True keeps folders alone, False files alone. expected: for the message, when nothing is there.
    """
    if not root.is_dir():
        raise DatasetError(root, "folder", f"{'is a file' if root.exists() else 'does not exist'}; expected the folder that "
                           f"holds {expected}")
    return sorted((path for path in root.glob(pattern)
                   if not any(part.startswith(".") for part in path.relative_to(root).parts)
                   and (folders is None or path.is_dir() == folders)), key=natural)


def nothing_found(root: Path, expected: str) -> DatasetError:
    return DatasetError(root, "folder", f"holds no {expected}; name the folder that does")


def one_file(folder: Path, names: Sequence[str], field: str) -> Path:
    """The one file in folder by the first of these globs that matches any."""
    for name in names:
        found = [path for path in sorted(folder.glob(name), key=natural)
                 if path.is_file() and not path.name.startswith(".")]
        if len(found) > 1:
            raise DatasetError(folder, field, f"expected one {name}, got {', '.join(path.name for path in found[:4])}; "
                               "keep one of them here")
        if found:
            return found[0]
    raise DatasetError(folder, field, f"expected {' or '.join(names)}, found none; fetch this recording again")


def read_text(path: Path, field: str) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(path, field, "no such file; fetch this recording again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(path, field, f"cannot be read as text: {error}") from error
    if not text.strip():
        raise DatasetError(path, field, "the file is empty; fetch it again")
    return text


def to_numbers(tokens: Sequence[str], path: Path, field: str) -> NDArray[np.float64]:
    """Each token as a number (`nan` is one, infinity is not); DatasetError gives the first that is none."""
    out = np.empty(len(tokens))
    for i, token in enumerate(tokens):
        try:
            out[i] = float(token)
        except ValueError:
            out[i] = math.inf
        if math.isinf(out[i]):
            raise DatasetError(path, field, f"value {i + 1} of {len(tokens)}: expected a number, got {token.strip()!r}")
    return out


def read_table(path: Path, columns: Sequence[str], field: str, header: bool,
               delimiter: str | None = ",") -> dict[str, NDArray[np.float64]]:
    """A text table with exactly these columns, as numbers by column name.

    header: the first line must hold these names. delimiter None: white space. A row of another width is an error.
    """
    lines = read_text(path, field).splitlines()
    if header:
        got = [name.strip() for name in lines[0].split(delimiter)]
        if got != list(columns):
            raise DatasetError(path, "header", f"expected {','.join(columns)}, got {lines[0].strip()[:60]!r}")
        lines = lines[1:]
    cells: list[list[str]] = []
    for i, line in enumerate(lines, 1 + header):
        if not line.strip():
            continue
        row = line.split(delimiter)
        if len(row) != len(columns):
            raise DatasetError(path, f"line {i}", f"expected {len(columns)} columns ({', '.join(columns)}), got {len(row)}; "
                               "the file is cut or not this table")
        cells.append(row)
    if not cells:
        raise DatasetError(path, field, "no row of numbers; fetch the file again")
    return {name: to_numbers([row[c] for row in cells], path, f"column {name}") for c, name in enumerate(columns)}


def read_json(path: Path, field: str) -> dict[str, object]:
    try:
        content = json.loads(read_text(path, field))
    except json.JSONDecodeError as error:
        raise DatasetError(path, field, f"not JSON, or cut off: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(path, field, f"expected a JSON object, got a {type(content).__name__}")
    return content


def json_numbers(content: dict[str, object], path: Path, listed: str, *keys: str) -> NDArray[np.float64]:
    """content[listed][i][keys[0]][keys[1]]... for every i, as float64. Integers above 2**53 lose their last digits."""
    return np.array(_json_items(content, path, listed, *keys), np.float64)


def json_integers(content: dict[str, object], path: Path, listed: str, *keys: str) -> NDArray[np.int64]:
    """As `json_numbers`, exactly: for nanoseconds since an epoch."""
    items = _json_items(content, path, listed, *keys)
    for i, item in enumerate(items):
        if not isinstance(item, int) or abs(item) >= 2**63:
            raise DatasetError(path, f"{listed}[{i}].{'.'.join(keys)}", f"expected a whole number, got {item!r}")
    return np.array(items, np.int64)


def _json_items(content: dict[str, object], path: Path, listed: str, *keys: str) -> list[int | float]:
    entries = content.get(listed)
    if not isinstance(entries, list) or not entries:
        raise DatasetError(path, listed, "expected a list of samples, got "
                           f"{'an empty one' if entries == [] else 'none'}; it holds {', '.join(sorted(content)) or 'nothing'}")
    out = []
    for i, entry in enumerate(entries):
        value: object = entry
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise DatasetError(path, f"{listed}[{i}].{'.'.join(keys)}", f"expected a number, got {value!r}")
        out.append(value)
    return out


def read_hdf5(path: Path, name: str) -> NDArray[np.float64]:
    """One data set of an HDF5 file, flattened to float64."""
    import h5py

    if not path.is_file():
        raise DatasetError(path, name, "no such file; fetch this recording again")
    try:
        with h5py.File(path, "r") as stored:
            found = stored.get(name)
            if not isinstance(found, h5py.Dataset):
                raise DatasetError(path, name, f"no such data set; the file holds {', '.join(stored) or 'nothing'}")
            if found.dtype.kind not in "iuf":
                raise DatasetError(path, name, f"expected numbers, got {found.dtype}")
            return np.asarray(found[()], np.float64).reshape(-1)
    except OSError as error:
        raise DatasetError(path, name, f"not HDF5, or cut off: {error}") from error
