"""A recording of `physvlm run --record`, read back: whole rows only, whatever a crash left of the rest.

DIR of a recorder, one session in it, or one file of it may be named.
"""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

from firmware_bridge.recording import HEAD, Recorder, Recording, RecordingError, is_recording

_SESSION = re.compile(r"\d{4,}-\d{8}T\d{6}Z")
_SEGMENT = re.compile(r"([a-z]+)-(\d{4,})(\.csv|\.pvl|)")


def csv_row(t_s: float, *values: object) -> bytes:
    """One line with its CRC last. None stands empty; commas and line ends in text become blanks."""
    text = ",".join([f"{t_s:.3f}", *(_cell(value) for value in values)])
    return f"{text},{zlib.crc32(text.encode())}\n".encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 100 else f"{value:.4g}"
    return str(value).translate({ord(c): " " for c in ',"\r\n'})


def is_whole(line: bytes) -> bool:
    """Whether a row, its line end included, is as it was written."""
    text, _, crc = line.rpartition(b",")
    return line.endswith(b"\n") and crc.strip() == str(zlib.crc32(text)).encode()


def sessions(folder: Path) -> list[Path]:
    """Oldest first. Empty where there is none, or no such folder."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_dir() and _SESSION.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[0]))


def segments(session: Path) -> list[tuple[str, int]]:
    """[(number, bytes)] of one session, oldest first."""
    sizes: dict[str, int] = {}
    for path in session.iterdir():
        match = _SEGMENT.fullmatch(path.name)
        if match:
            files = path.iterdir() if path.is_dir() else (path,)
            sizes[match[2]] = sizes.get(match[2], 0) + sum(file.stat().st_size for file in files)
    return sorted(sizes.items(), key=lambda item: int(item[0]))


def remove_segment(session: Path, number: str) -> None:
    """Its files, and the session once nothing else is left of it. Raises OSError."""
    for path in session.iterdir():
        match = _SEGMENT.fullmatch(path.name)
        if match and match[2] == number:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not segments(session):
        shutil.rmtree(session)


def mend(session: Path) -> int:
    """Cuts what a loss of power tore off the ends of a session's files; how many bytes that were. Raises OSError."""
    cut = 0
    for path in session.glob("*.csv"):
        data = path.read_bytes()
        end = len(data)
        while end > 0:
            start = data.rfind(b"\n", 0, end - 1) + 1
            if start == 0 or is_whole(data[start:end]):  # the first line is the head
                break
            end = start
        if end < len(data):
            with path.open("r+b") as file:
                file.truncate(end)
            cut += len(data) - end
    return cut


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """(rows of one CSV file, how many lines were torn and left out). Raises OSError."""
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return [], 0
    names = lines[0].decode("ascii", "replace").strip().split(",")
    whole = [line for line in lines[1:] if is_whole(line)]
    rows = [dict(zip(names, line.decode().strip().split(","), strict=True)) for line in whole]
    return rows, len(lines) - 1 - len(whole)


def read_stream(session: Path, stream: str) -> tuple[list[dict[str, str]], int]:
    """All segments of a stream, in order."""
    rows: list[dict[str, str]] = []
    torn = 0
    for number, _ in segments(session):
        path = session / f"{stream}-{number}.csv"
        if path.exists():
            found, lost = read_rows(path)
            rows, torn = rows + found, torn + lost
    return rows, torn


def is_wire(path: Path) -> bool:
    """Whether `wire_steps` can read it."""
    return bool(wire_files(path))


def wire_files(path: Path) -> list[Path]:
    """The wire's segments behind a recorder's folder (its newest session), a session, or one file."""
    if path.is_file():
        return [path] if is_recording(path) else []
    session = path if _SESSION.fullmatch(path.absolute().name) else next(reversed(sessions(path)), None)
    if session is None or not session.is_dir():
        return []
    found = [session / f"wire-{number}.pvl" for number, _ in segments(session)]
    return [file for file in found if file.exists()]


def wire_steps(path: Path) -> Iterator[tuple[int, bytes]]:
    """(ms since the session began, bytes), across segments, as far as each can be read. Raises RecordingError."""
    files = wire_files(path)
    if not files:
        raise RecordingError(f"{path}: no recorded wire; expected a folder of `physvlm run --record`, a session in it, or "
                             f"a file that begins with {HEAD.decode().strip()!r}")
    for file in files:
        if file.stat().st_size > len(HEAD):  # a crash may have left it empty
            yield from Recording.read(file)


TICK_MS = 50
"""A display looks at its glass at least so often, whether or not anything came."""


def join_wire(path: Path, out: Path) -> Path:
    """`wire_steps` as one recording for the display, with the looks that it took while nothing came. Returns `out`.

    Raises RecordingError, also for more than one recording may hold (some 15 hours).
    """
    recorder, last_ms = Recorder(out), 0
    for t_ms, data in wire_steps(path):
        for tick_ms in range(last_ms + TICK_MS, t_ms, TICK_MS):
            recorder.step(tick_ms, b"")
        if not recorder.step(t_ms, data):
            raise RecordingError(f"{path}: the recording for the display is {recorder.problem} after {last_ms / 3.6e6:.1f} h; "
                                 "name one of its wire-*.pvl files instead")
        last_ms = max(last_ms, t_ms)
    recorder.finish("")
    return out
