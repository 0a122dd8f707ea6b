"""MATLAB files of both kinds behind one face: v5 (scipy) and v7.3, which is HDF5 with the axes reversed (h5py).

Shapes and axes are MATLAB's own in both. Pictures of a v7.3 file stream in blocks; of a v5 file they cannot: the array is
one compressed piece in which time runs fastest, so it is loaded whole while it is read (a full MMPD record: 3.3 GB as
doubles).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.datasets.record import DatasetError

if TYPE_CHECKING:
    import h5py

BLOCK_BYTES = 128 * 2**20
"""Of a v7.3 array held at a time. Where its chunks span all frames, each block decompresses the array anew."""

_HDF5_START = b"\x89HDF\r\n\x1a\n"


def is_v73(path: Path) -> bool:
    """True for v7.3, False for v5; DatasetError for anything else."""
    try:
        with path.open("rb") as stream:
            start = stream.read(520)
    except FileNotFoundError as error:
        raise DatasetError(path, "file", "no such file; fetch this recording again") from error
    except OSError as error:
        raise DatasetError(path, "file", f"cannot be read: {error.strerror}") from error
    if start.startswith(_HDF5_START) or start[512:] == _HDF5_START:
        return True
    if start[126:128] not in (b"IM", b"MI"):
        raise DatasetError(path, "file", f"{'is no MATLAB file' if start else 'is empty'}; fetch it again")
    return False


def names(path: Path) -> list[str]:
    """Every variable of the file."""
    return sorted(_shapes(path, "variables"))


def shape(path: Path, key: str) -> tuple[int, ...]:
    """Of one variable, without reading it."""
    shapes = _shapes(path, key)
    if key not in shapes:
        raise _no_key(path, key, list(shapes))
    return shapes[key]


def _shapes(path: Path, key: str) -> dict[str, tuple[int, ...]]:
    """key: what is asked for, for the message should the file be damaged."""
    if is_v73(path):
        import h5py

        with _hdf5(path, key) as stored:
            return {name: tuple(reversed(found.shape)) if isinstance(found, h5py.Dataset) else ()
                    for name, found in stored.items() if not name.startswith("#")}
    import scipy.io

    with _v5(path, key):
        return {name: tuple(found_shape) for name, found_shape, _ in scipy.io.whosmat(str(path))}


def numbers(path: Path, key: str, inner: str | None = None) -> NDArray[np.float64]:
    """A numeric variable, or one field of a struct (inner), flattened to float64."""
    field = f"{key}.{inner}" if inner else key
    found = _whole(path, key, inner)
    if found.dtype.kind not in "iuf":
        raise DatasetError(path, field, f"expected numbers, got {found.dtype}")
    return found.astype(np.float64).reshape(-1)


def text(path: Path, key: str) -> str:
    """A char variable, or a number as text."""
    found = _whole(path, key, None)
    if found.size == 0:
        raise DatasetError(path, key, "is empty; expected a text")
    if is_v73(path) and found.dtype == np.uint16:  # MATLAB's char
        return "".join(chr(code) for code in found.reshape(-1).tolist())
    return str(found.reshape(-1)[0])


def _whole(path: Path, key: str, inner: str | None) -> NDArray[np.generic]:
    if is_v73(path):
        import h5py

        with _hdf5(path, key) as stored:
            if key not in stored:
                raise _no_key(path, key, list(stored))
            found = stored[key]
            if inner is not None:
                if not isinstance(found, h5py.Group) or inner not in found:
                    raise _no_key(path, f"{key}.{inner}", list(found) if isinstance(found, h5py.Group) else [])
                found = found[inner]
            if not isinstance(found, h5py.Dataset):
                raise DatasetError(path, key, "expected an array, got a struct")
            return np.asarray(found[()]).T
    import scipy.io

    with _v5(path, key):
        loaded = scipy.io.loadmat(str(path), variable_names=[key])
    if key not in loaded:
        raise _no_key(path, key, list(_shapes(path, key)))
    found = loaded[key]
    if inner is None:
        return found
    if found.dtype.names is None or inner not in found.dtype.names or found.size == 0:
        raise _no_key(path, f"{key}.{inner}", list(found.dtype.names or ()))
    return np.asarray(found.reshape(-1)[0][inner])


def pictures(path: Path, key: str, axes: tuple[int, int, int, int]) -> Iterator[NDArray[np.generic]]:
    """Each picture (H, W, 3) in the stored type. axes: where time, row, column and colour stand in MATLAB's shape."""
    if not is_v73(path):
        yield from _whole(path, key, None).transpose(axes)
        return
    with _hdf5(path, key) as stored:
        video = stored[key]
        time_axis = 3 - axes[0]
        count = video.shape[time_axis]
        block = max(1, min(count, BLOCK_BYTES * count // max(1, video.size * video.dtype.itemsize)))
        where: list[slice] = [slice(None)] * 4
        for start in range(0, count, block):
            where[time_axis] = slice(start, start + block)
            yield from video[tuple(where)].T.transpose(axes)


def _no_key(path: Path, key: str, there: list[str]) -> DatasetError:
    return DatasetError(path, key, f"no such variable; the file holds {', '.join(sorted(there)) or 'nothing'}")


@contextmanager
def _v5(path: Path, key: str) -> Iterator[None]:
    """scipy's many ways of saying that a v5 file is damaged, as one."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (OSError, ValueError, TypeError, EOFError, IndexError, NotImplementedError, zlib.error, MatReadError) as error:
        raise DatasetError(path, key, f"damaged or cut off: {error}; fetch the file again") from error


@contextmanager
def _hdf5(path: Path, key: str) -> Iterator[h5py.File]:
    """An open v7.3 file; what HDF5 finds wrong in it, also later while it is read, becomes a DatasetError."""
    import h5py

    try:
        with h5py.File(path, "r") as stored:
            yield stored
    except OSError as error:
        raise DatasetError(path, key, f"damaged or cut off: {error}; fetch the file again") from error
