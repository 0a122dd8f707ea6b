"""A recording of `physvlm run --record`, read back: whole rows only, whatever a crash left of the rest.

DIR of a recorder, one session in it, or one file of it may be named.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from firmware_bridge.recording import (
    HEAD,
    MAX_SILENCE_MS,
    TICK_MS,
    Recording,
    RecordingError,
    Step,
    is_recording,
)

SUFFIXES = {"readings": ".csv", "estimates": ".csv", "waveforms": ".csv", "states": ".csv", "wire": ".pvl", "pictures": ""}
"""Stream -> how the names of its segments end; pictures are a folder."""

BLOCK_BYTES = 4096
"""A file takes whole blocks of a disk, and the room is counted in them."""

_SESSION = re.compile(r"(\d{4,})-\d{8}T\d{6}Z")
_SEGMENT = re.compile(r"([a-z]+)-(\d{4,})(\.csv|\.pvl|)")


def csv_row(t_s: float, *values: object) -> bytes:
    """One line with its CRC last. None stands empty; commas and line ends in text become blanks."""
    text = ",".join([f"{t_s:.3f}", *(_cell(value) for value in values)]).encode("utf-8", "replace")
    return b"%b,%d\n" % (text, zlib.crc32(text))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value).translate(_BLANKED)


_BLANKED = {**{code: " " for code in range(32)}, ord(","): " ", ord('"'): " "}


def is_whole(line: bytes) -> bool:
    """Whether a row, its line end included, is as it was written."""
    text, _, crc = line.rpartition(b",")
    return line.endswith(b"\n") and crc.strip() == str(zlib.crc32(text)).encode()


def sessions(folder: Path) -> list[Path]:
    """Oldest first. Empty where there is none, or no such folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _SESSION.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=session_number)


def session_number(session: Path) -> int:
    return int(session.name.partition("-")[0])


def blocks(size: int) -> int:
    """The room that a file of so many bytes takes."""
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


def segments(session: Path) -> list[tuple[str, int]]:
    """[(number, bytes of its disk blocks)] of one session, oldest first."""
    sizes: dict[str, int] = {}
    for path in session.iterdir():
        match = _SEGMENT.fullmatch(path.name)
        if match:
            files = path.iterdir() if path.is_dir() else (path,)
            sizes[match[2]] = sizes.get(match[2], 0) + sum(blocks(file.stat().st_size) for file in files)
    return sorted(sizes.items(), key=lambda item: int(item[0]))


def remove_segment(session: Path, number: str) -> None:
    """Its files, found by their names: a session may hold very many. Raises OSError."""
    for stream, suffix in SUFFIXES.items():
        path = session / f"{stream}-{number}{suffix}"
        if suffix:
            path.unlink(missing_ok=True)
        elif path.is_dir():
            shutil.rmtree(path)


def mend(session: Path) -> int:
    """Cuts what a loss of power tore off the ends of a session's newest files; how many bytes that were. Raises OSError.

    A file without a whole head goes altogether. Older segments were on the disk before the next began.
    """
    cut = 0
    for number, _ in segments(session)[-2:]:
        for stream, suffix in SUFFIXES.items():
            path = session / f"{stream}-{number}{suffix}"
            if suffix != ".csv" or not path.is_file():
                continue
            data = path.read_bytes()
            end = _whole_end(data)
            if end == 0:
                path.unlink()
            elif end < len(data):
                os.truncate(path, end)
            cut += len(data) - end
    return cut


def _whole_end(data: bytes) -> int:
    """Where the last whole row of a CSV file ends; 0 without a whole head."""
    head = data.find(b"\n") + 1
    if not data.startswith(b"t_s,") or not data[:head].endswith(b",crc\n"):
        return 0
    end = len(data)
    while end > head:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if is_whole(data[start:end]):
            break
        end = start
    return end


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """(rows of one CSV file, how many lines were torn and left out). Raises OSError."""
    head, *lines = path.read_bytes().splitlines(keepends=True) or [b""]
    names = head.decode("ascii", "replace").strip().split(",")
    cells = [line.decode().strip("\n").split(",") for line in lines if is_whole(line)]
    rows = [dict(zip(names, row, strict=True)) for row in cells if len(row) == len(names)]
    return rows, len(lines) - len(rows)


def read_stream(session: Path, stream: str) -> tuple[list[dict[str, str]], int]:
    """All segments of a stream, in order."""
    rows: list[dict[str, str]] = []
    torn = 0
    for number, _ in segments(session):
        path = session / f"{stream}-{number}{SUFFIXES[stream]}"
        if path.exists():
            found, lost = read_rows(path)
            rows.extend(found)
            torn += lost
    return rows, torn


def is_wire(path: Path) -> bool:
    """Whether `wire_parts` can read it."""
    return bool(wire_files(path))


def wire_files(path: Path) -> list[Path]:
    """The wire's segments behind a recorder's folder (its newest session with a wire), a session, or one file.

    A segment of which a crash left no whole head is none.
    """
    if path.is_file():
        return [path] if is_recording(path) else []
    for session in [path] if _SESSION.fullmatch(path.absolute().name) else reversed(sessions(path)):
        if session.is_dir():
            found = [session / f"wire-{number}{SUFFIXES['wire']}" for number, _ in segments(session)]
            found = [file for file in found if is_recording(file)]
            if found:
                return found
    return []


def wire_parts(path: Path) -> list[Recording]:
    """The recorded wire, segment by segment, as far as a crash left each. Raises RecordingError."""
    files = wire_files(path)
    if not files:
        raise RecordingError(f"{path}: no recorded wire; expected a folder of `physvlm run --record`, a session in it, or "
                             f"a file that begins with {HEAD.decode().strip()!r}")
    return [Recording.read(file) for file in files]


def wire_steps(path: Path) -> Iterator[Step]:
    """(ms since the session began, bytes), across segments. Raises RecordingError."""
    for part in wire_parts(path):
        yield from part


@dataclass(frozen=True)
class RecordedWire(Recording):
    """The recorded wire as a display took it, of whatever length: with the looks that it takes while nothing comes.

    Times are those of the session; a silence before the first step, as where only a late segment is left, is cut to
    MAX_SILENCE_MS, and `origin_ms` is then taken off all of them.
    """

    parts: tuple[Recording, ...] = ()
    origin_ms: int = 0

    @classmethod
    def of(cls, path: Path) -> RecordedWire:
        """Reads all of it once. Raises RecordingError."""
        parts = tuple(wire_parts(path))
        first_ms = next((t_ms for part in parts for t_ms, _ in part), 0)
        origin_ms = max(0, first_ms - MAX_SILENCE_MS)
        duration_ms = max(0, max(part.duration_ms for part in parts) - origin_ms)
        return cls(path, sum(part.steps for part in parts), duration_ms, "", all(part.complete for part in parts), parts,
                   origin_ms)

    def __iter__(self) -> Iterator[Step]:
        last_ms = 0
        for part in self.parts:
            for t_ms, data in part:
                now_ms = max(last_ms, t_ms - self.origin_ms)
                for tick_ms in range(last_ms + TICK_MS, now_ms, TICK_MS):
                    yield tick_ms, b""
                yield now_ms, data
                last_ms = now_ms
