"""`physvlm dump`: wire bytes as text, one line per frame, broken ones included."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from firmware_bridge import recording
from firmware_bridge.frame import DecodedFrame, Decoder, Verdict
from firmware_bridge.link import Link
from firmware_bridge.port import BAUDS, LinkError
from firmware_bridge.schema import NO_RATE, Tech, schema_hash


def describe(frame: DecodedFrame) -> dict[str, Any]:
    """A frame as plain data, ready for JSON."""
    entry: dict[str, Any] = {"offset": frame.offset, "verdict": frame.verdict.value}
    if frame.header is not None:
        entry["header"] = asdict(frame.header)
    if frame.message is not None:
        fields = asdict(frame.message)
        for name in ("pr_state", "rr_state"):
            if name in fields:
                fields[name] = fields[name].name
        entry |= {"message": frame.message.TYPE.name, "fields": fields}
    if frame.notes:
        entry["notes"] = list(frame.notes)
    if frame.verdict is not Verdict.OK:
        entry["raw"] = frame.raw.hex()
    return entry


def line(frame: DecodedFrame) -> str:
    """A frame as one line of text."""
    entry = describe(frame)
    head = f"{frame.offset:>8}  "
    if frame.header is not None:
        h = frame.header
        head += f"session {h.session:04x} seq {h.seq:>5} t {h.t_ms / 1000:>10.3f} s flags {h.flags:02x}  "
    if frame.message is None:
        kind = f" type 0x{frame.header.type:02x}" if frame.header else ""
        return f"{head}{frame.verdict.value.upper()}{kind}  {frame.raw.hex()}"
    words = [f"{name}={_value(name, value)}" for name, value in entry["fields"].items()]
    return f"{head}{entry['message']:<6} {' '.join(words)}" + "".join(f"  ! {note}" for note in frame.notes)


def _value(name: str, value: Any) -> str:
    if name in ("pr_x10", "rr_x10", "shown_pr_x10", "shown_rr_x10"):
        return "none" if value == NO_RATE else f"{value / 10:.1f}"
    if name == "tech":
        known = [bit.name or "" for bit in Tech if value & bit]
        unknown = value & ~sum(Tech)
        return "|".join(known + ([f"0x{unknown:x}"] if unknown else [])) or "0"
    if name == "schema":
        return f"{value:08x}" + ("" if value == schema_hash() else f" (ours {schema_hash():08x})")
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def dump(chunks: Iterable[bytes], as_json: bool = False) -> Iterator[tuple[str, bool]]:
    """Bytes in any portions -> (text line, whether the frame was good), one per frame, and one for a cut-off end."""
    decoder = Decoder()
    offset = 0
    for chunk in chunks:
        offset += len(chunk)
        for frame in decoder.feed(chunk):
            text = json.dumps(describe(frame)) if as_json else line(frame)
            yield text, frame.verdict is Verdict.OK and not frame.notes
    if decoder.unfinished:
        start, length = offset - decoder.unfinished, decoder.unfinished
        entry = {"offset": start, "verdict": "unfinished", "bytes": length}
        yield json.dumps(entry) if as_json else f"{start:>8}  UNFINISHED  {length} bytes without an end", False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `physvlm dump`."""
    parser.add_argument("source", help="a file of recorded wire bytes, a serial port, or - for standard input")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--baud", type=int, default=115200, choices=BAUDS, help="default 115200")
    parser.add_argument("--stop-bits", type=int, default=1, choices=(1, 2), help="default 1")
    parser.add_argument("--seconds", type=float, help="stop reading a port after so long")


def main(args: argparse.Namespace) -> int:
    """Prints every frame; 0 when all were good, 1 when one was not, 2 when the source cannot be read."""
    good = True
    try:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(_chunks(args)) as chunks:
            for text, is_good in dump(chunks, args.json):
                good &= is_good
                print(text, flush=args.source != "-" and not os.path.isfile(args.source))
    except BrokenPipeError:  # `physvlm dump ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (LinkError, OSError) as error:
        print(f"physvlm dump: {error}", file=sys.stderr)
        return 2
    return 0 if good else 1


def _chunks(args: argparse.Namespace) -> Generator[bytes, None, None]:
    if args.source == "-":
        yield from iter(lambda: os.read(sys.stdin.fileno(), 65536), b"")
    elif recording.is_recording(args.source):
        yield from (data for _, data in recording.Recording.read(Path(args.source)))
    elif os.path.isfile(args.source):
        with open(args.source, "rb") as file:
            yield from iter(lambda: file.read(65536), b"")
    else:
        with Link(args.source, args.baud, args.stop_bits) as link:
            end_s = time.monotonic() + (args.seconds if args.seconds is not None else float("inf"))
            while time.monotonic() < end_s:
                yield link.read(timeout_s=0.1)
