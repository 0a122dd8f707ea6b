"""Makes from wire.toml what other languages and readers need: `python -m firmware_bridge.generate`, in a checkout.

display/pvl_wire.h (offsets, codes, limits, words for C), the tables of PROTOCOL.md, and tests/vectors/frames.json and
vectors.h (from tests/vectors/source.toml, by the layouts). A test fails when a file differs from what comes out here.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from firmware_bridge import schema
from firmware_bridge.frame import cobs_encode
from firmware_bridge.schema import (
    BANNER_TEXT,
    HEADER,
    MAX_BODY,
    MODE_TEXT,
    PAYLOADS,
    SOURCE,
    STATE_TEXT,
    TECH_TEXT,
    UNKNOWN_TECH_TEXT,
    VERDICTS,
    VERSION,
    Channel,
    Flags,
    Layout,
    MessageType,
    SchemaError,
    ScreenMode,
    Tech,
    VitalState,
    schema_hash,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent
VECTORS = HERE.parent / "tests" / "vectors"
_HEADER_DEFAULTS = {"ver": VERSION, "flags": 0, "session": 0xBEEF, "seq": 7, "t_ms": 123456}


def outputs() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    document = HERE / "PROTOCOL.md"
    frames = vectors(tomllib.loads((VECTORS / "source.toml").read_text(encoding="utf-8"))["vector"])
    return {
        HERE / "display" / "pvl_wire.h": c_header(),
        document: fill(document.read_text(encoding="utf-8")),
        VECTORS / "frames.json": json.dumps(frames, indent=1) + "\n",
        VECTORS / "vectors.h": vectors_header(frames),
    }


def write(path: Path, text: str) -> None:
    """The file whole, or the old one."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _define(name: str, value: int, form: str = "d") -> str:
    return f"#define PVL_{name.upper()} {f'({value})' if value < 0 else f'{value:{form}}u'}"


def _enum_lines(prefix: str, enum: Any, form: str = "d") -> list[str]:
    return [_define(f"{prefix}_{member.name}", member.value, form) for member in enum]


def _layout_lines(title: str, layout: Layout) -> list[str]:
    lines = [_define(f"{title}_{field.name}", offset) for offset, field in layout.rows()]
    if layout.tail:
        lines.append(_define(f"{title}_{layout.tail}", layout.size))
    return [*lines, _define(f"{title}_size", layout.size)]


def c_header() -> str:
    """pvl_wire.h. Texts stand in one block, one after the other, so that a table of pointers is not needed."""
    source = tomllib.loads(SOURCE.read_text(encoding="utf-8"))
    groups = [
        ("versions", [_define("version", VERSION), _define("schema_hash", schema_hash(), "#010x")]),
        ("limits", [_define(name, value) for name, value in source["limits"].items()]
         + [_define("max_encoded", MAX_BODY + 1)]),
        ("what the display holds itself to", [_define(name, value) for name, value in source["display"].items()]),
        ("message types", _enum_lines("type", MessageType, "#04x")),
        ("header flags", _enum_lines("flag", Flags, "#04x")),
        ("offsets in the body", _layout_lines("header", HEADER)),
    ]
    groups += [(f"offsets in the payload of {layout.title}", _layout_lines(layout.title, layout))
               for layout in PAYLOADS.values()]
    groups += [
        ("channels of a WAVE", _enum_lines("channel", Channel)),
        ("states of a vital", _enum_lines("state", VitalState)),
        ("screen modes", _enum_lines("mode", ScreenMode)),
        ("technical conditions", _enum_lines("tech", Tech, "#06x") + [_define("tech_known", sum(Tech), "#06x")]),
        ("verdicts on a frame", [_define(name, code) for code, name in enumerate(VERDICTS)]
         + [_define("verdicts", len(VERDICTS))]),
        ("banners", [f'#define PVL_BANNER_{flag.name} "{text}"' for flag, text in BANNER_TEXT.items()]),
        ("words, each ended by 0: modes, states, conditions with the most important first, an unknown one", _texts()),
    ]
    body = "\n\n".join(f"/* {title} */\n" + "\n".join(lines) for title, lines in groups)
    return ("/* Made from wire.toml by `python -m firmware_bridge.generate`; change it there. */\n"
            f"#ifndef PVL_WIRE_H\n#define PVL_WIRE_H\n\n{body}\n\n#endif\n")


def _texts() -> list[str]:
    """The words by code, and where each group starts in them."""
    for texts in (MODE_TEXT, STATE_TEXT):
        if [int(code) for code in texts] != list(range(len(texts))):
            raise SchemaError(f"{SOURCE.name}: codes of {[c.name for c in texts]}: expected 0, 1, 2 ... in order")
    words = [*MODE_TEXT.values(), *STATE_TEXT.values(), *TECH_TEXT.values(), UNKNOWN_TECH_TEXT]
    states = len(MODE_TEXT)
    lines = [_define("text_mode", 0), _define("text_state", states), _define("text_tech", states + len(STATE_TEXT)),
             _define("text_unknown_tech", len(words) - 1), _define("text_count", len(words)),
             "#define PVL_TECH_ORDER " + ", ".join(str(bit.value.bit_length() - 1) for bit in TECH_TEXT)]
    return [*lines, "#define PVL_TEXTS \\", *(f'    "{text}\\0" \\' for text in words[:-1]), f'    "{words[-1]}"']


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def markdown() -> dict[str, str]:
    """The tables of PROTOCOL.md by name; the document holds each of them word for word."""
    tables = {}
    for layout in (HEADER, *PAYLOADS.values()):
        rows: list[tuple[object, ...]] = []
        rows += [(offset, f.kind, f"`{f.name}`", f.unit, f.rule) for offset, f in layout.rows()]
        if layout.tail:
            rule = "to the end of the payload; -128 = no sample"
            rows.append((layout.size, "i8...", f"`{layout.tail}`", "relative", rule))
        if rows:
            tables[layout.title] = _table(("offset", "kind", "field", "unit", "rule"), rows)
    types: list[tuple[object, ...]] = [
        (f"0x{layout.code:02X}", layout.title, f"{layout.size}{' + n' if layout.tail else ''}")
        for layout in PAYLOADS.values()
    ]
    tables["Types"] = _table(("code", "message", "payload bytes"), types)
    states: list[tuple[object, ...]] = []
    states += [(s.value, s.name, "yes" if s.shows_number else "no", text) for s, text in STATE_TEXT.items()]
    tables["States"] = _table(("code", "state", "number", "words on the screen"), states)
    modes: list[tuple[object, ...]] = [(mode.value, mode.name, MODE_TEXT[mode]) for mode in ScreenMode]
    tables["Modes"] = _table(("code", "screen mode", "message line"), modes)
    tech: list[tuple[object, ...]] = [(bit.value.bit_length() - 1, bit.name, text) for bit, text in TECH_TEXT.items()]
    tables["Tech"] = _table(("bit", "condition", "words on the screen"), tech)
    tables["Hash"] = f"Schema hash: `0x{schema.schema_hash():08X}`"
    return tables


def fill(document: str) -> str:
    """The document with what stands between `<!-- table NAME -->` and `<!-- end -->` replaced by the tables."""
    tables = markdown()
    return re.sub(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)",
                  lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", document, flags=re.DOTALL)


def vectors(source: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The vectors of source.toml with their bytes, and what a receiver reads in those that are ok."""
    wires: dict[str, bytes] = {}
    made = []
    for entry in source:
        header, wire = _build(entry, wires)
        wires[entry["name"]] = wire
        vector = {"name": entry["name"], "wire": wire.hex(), "verdict": entry["verdict"]}
        if entry["verdict"] == "ok":
            vector |= {"header": header, "message": entry["message"], "fields": _as_read(entry)}
        if entry.get("mended"):
            vector["mended"] = True
        made.append(vector)
    return made


def _build(entry: dict[str, Any], wires: dict[str, bytes]) -> tuple[dict[str, int], bytes]:
    if "wire" in entry:
        return {}, bytes.fromhex(entry["wire"])
    if "like" in entry:
        byte, bit = entry["flip"]
        wire = bytearray(wires[entry["like"]])
        wire[byte] ^= 1 << bit
        return {}, bytes(wire)
    layout = PAYLOADS[MessageType[entry["message"]]]
    values = [entry["fields"][name] for name in layout.names]
    payload = layout.struct.pack(*(v.encode() if isinstance(v, str) else v for v in values))
    payload += struct.pack(f"{len(entry['fields'].get(layout.tail, ()))}b", *entry["fields"].get(layout.tail, ()))
    payload += bytes.fromhex(entry.get("more", ""))
    payload = payload[:len(payload) - entry.get("cut", 0)]
    given = _HEADER_DEFAULTS | {"type": int(MessageType[entry["message"]]), "len": len(payload)} | entry.get("header", {})
    header = {name: given[name] for name in HEADER.names}
    body = HEADER.struct.pack(*header.values()) + payload
    return header, b"\0" + cobs_encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"


def _as_read(entry: dict[str, Any]) -> dict[str, Any]:
    fields = dict(entry["fields"])
    for name in ("pr_state", "rr_state"):
        if name in fields and fields[name] in list(VitalState):
            fields[name] = VitalState(fields[name]).name
    return fields | entry.get("read", {})


def vectors_header(frames: list[dict[str, Any]]) -> str:
    """The vectors for C: bytes and verdict, in the order of frames.json."""
    lines = ["/* Made from source.toml by `python -m firmware_bridge.generate`. */",
             "#include <stdint.h>", "", "static const struct {", "    const char *name;", "    uint8_t verdict;",
             "    uint8_t n;", f"    uint8_t wire[{max(len(v['wire']) // 2 for v in frames)}];", "} vectors[] = {"]
    for vector in frames:
        wire = bytes.fromhex(vector["wire"])
        lines.append(f'    {{"{vector["name"]}", PVL_{vector["verdict"].upper()}, {len(wire)},')
        pieces = [", ".join(str(byte) for byte in wire[at:at + 24]) for at in range(0, len(wire), 24)]
        lines += [f"     {'{' if at == 0 else ' '}{piece}{'}},' if at == len(pieces) - 1 else ','}"
                  for at, piece in enumerate(pieces)]
    return "\n".join([*lines, "};", ""])


if __name__ == "__main__":
    for path, text in outputs().items():
        write(path, text)
        print(path.relative_to(HERE.parent))
