"""wire.toml is the one source: whatever else says something about the wire says the same, or a test fails."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firmware_bridge import core, generate, messages, schema
from firmware_bridge.frame import Verdict
from firmware_bridge.messages import FrameError, Wave
from firmware_bridge.schema import MessageType, SchemaError, ScreenMode, Tech, VitalState

DISPLAY = core.SOURCES
HEADER_TEXT = (DISPLAY / "pvl_wire.h").read_text(encoding="utf-8")
PROTOCOL = " ".join((DISPLAY.parent / "PROTOCOL.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize("path", generate.outputs(), ids=lambda path: path.name)
def test_generated_files_are_what_comes_out_of_the_source_now(path):
    assert path.read_text(encoding="utf-8") == generate.outputs()[path], "run: python -m firmware_bridge.generate"


def test_the_schema_hash_is_the_one_that_senders_in_the_field_state():
    assert schema.schema_hash() == 0xF2698206
    assert "#define PVL_SCHEMA_HASH 0xf2698206u" in HEADER_TEXT


def test_protocol_md_has_a_place_for_every_table():
    document = (DISPLAY.parent / "PROTOCOL.md").read_text(encoding="utf-8")
    assert [name for name, table in generate.markdown().items() if table not in document] == []


def stale_files(folder: Path, change: tuple[str, str] | None) -> int:
    """In a copy of the package with a changed source: how many generated files differ; 100 where it is refused."""
    package = shutil.copytree(DISPLAY.parent, folder / "firmware_bridge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(generate.VECTORS, folder / "tests" / "vectors")
    if change is not None:
        source = package / "wire.toml"
        text = source.read_text(encoding="utf-8")
        assert change[0] in text
        source.write_text(text.replace(*change, 1), encoding="utf-8")
    program = ("try:\n from firmware_bridge import generate\n generate.outputs()\nexcept ValueError:\n raise SystemExit(100)\n"
               f"assert generate.__file__.startswith({str(folder)!r})\n"
               "raise SystemExit(sum(path.read_text() != text for path, text in generate.outputs().items()))")
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode


@pytest.mark.parametrize("change, stale", [
    (None, 0),
    (('{ name = "OFF", code = 0', '{ name = "OFF", code = 9'), 100),
    (('{ name = "MOTION", bit = 4', '{ name = "MOVING", bit = 4'), 100),
    (('kind = "u16", unit = "0.1 /min"', 'kind = "u32", unit = "0.1 /min"'), 4),
    (("blank_after_ms = 3_000", "blank_after_ms = 3_001"), 1),
    (('text = "TOO DARK"', 'text = "DARK"'), 2),
    (('{ name = "BAD_CRC", intact = false },\n', ""), 1),
    (("version = 1", "version = 2"), 3),
], ids=lambda change: None if isinstance(change, int) else str(change and change[1])[:20])
def test_a_changed_source_is_noticed(change, stale, tmp_path):
    assert stale_files(tmp_path, change) == stale


def test_names_in_schema_py_that_the_file_does_not_have_stop_the_import():
    codes = {member.name: member.value for member in VitalState}
    schema._require_same(VitalState, codes)
    for wrong in (codes | {"NEW": 8}, codes | {"OFF": 1}, {k: v for k, v in codes.items() if k != "FAULT"}):
        with pytest.raises(SchemaError, match="VitalState and its entries differ"):
            schema._require_same(VitalState, wrong)


def test_the_verdicts_of_frame_py_are_those_of_the_source_in_their_order():
    assert {verdict.name: verdict.intact for verdict in Verdict} == schema.VERDICTS
    assert [verdict.name for verdict in Verdict] == list(schema.VERDICTS)
    assert all(verdict.value == verdict.name.lower() for verdict in Verdict)


def test_a_wave_may_have_any_rate_that_the_source_allows_and_no_other():
    Wave(0, 1, schema.MAX_RATE_HZ, ())
    with pytest.raises(FrameError):
        Wave(0, 1, schema.MAX_RATE_HZ + 1, ())
    assert schema.MAX_BODY - schema.HEADER.size - schema.CRC_SIZE - 6 == messages.MAX_WAVE_SAMPLES


@pytest.mark.parametrize("phrase", [
    f"+ its age <= {schema.MAX_AGE_MS / 1000:.1f} s",
    f"Over {schema.MAX_LAG_MS} ms: the frame is late",
    f"Zero lag leaks 1 ms per {schema.LEAK_INTERVAL_MS // 1000} s",
    f"after {schema.SETTLE_MS / 1000:.1f} s in which every frame was within {schema.SETTLE_BAND_MS} ms of the first, "
    f"and none came more than {schema.SETTLE_PAUSE_MS / 1000:.1f} s after",
    f"a frame more than {schema.SETTLE_BAND_MS} ms *ahead* of zero lag",
    f"{schema.BLANK_AFTER_MS / 1000:.1f} s without a VITALS taken",
    f"DISPLAY UPDATE REQUIRED for {schema.BLANK_AFTER_MS / 1000:.1f} s",
    f"{ {3: 'Three'}[schema.FAULT_BAD_FRAMES]} bad frames within {schema.FAULT_WINDOW_MS // 1000} s",
    f"until { {5: 'five'}[schema.FAULT_CLEARING_FRAMES]} good frames",
    f"after {schema.FORGET_AFTER_MS // 3_600_000} h of silence",
    f"less than {schema.SEQ_TRUSTED_MS // 1000} s ahead",
    "`pr_x10` is within {}-{}".format(*schema.PR_PAINTABLE_X10),
    "`rr_x10` within {}-{}".format(*schema.RR_PAINTABLE_X10),
    f"at most {schema.MAX_BODY} bytes",
])
def test_the_rules_of_protocol_md_state_the_numbers_of_the_source(phrase):
    assert phrase in PROTOCOL


def defines() -> dict[str, str]:
    return dict(re.findall(r"^#define PVL_(\w+) (.+)$", HEADER_TEXT, flags=re.MULTILINE))


def test_the_c_header_has_every_code_and_offset():
    found = defines()
    for enum, prefix in ((MessageType, "TYPE"), (VitalState, "STATE"), (ScreenMode, "MODE"), (Tech, "TECH")):
        for member in enum:
            assert int(found[f"{prefix}_{member.name}"].rstrip("u"), 0) == member.value
    for layout in schema.PAYLOADS.values():
        for offset, field in layout.rows():
            assert found[f"{layout.title}_{field.name.upper()}"] == f"{offset}u"
    assert found["NO_SAMPLE"] == "(-128)"


def test_the_words_stand_in_the_c_header_in_the_order_of_their_codes():
    block = HEADER_TEXT.split("#define PVL_TEXTS")[1]
    words = [word.removesuffix("\\0") for word in re.findall(r'"(.*?)"', block)]
    found = {name: int(defines()[name].rstrip("u")) for name in ("TEXT_MODE", "TEXT_STATE", "TEXT_TECH", "TEXT_UNKNOWN_TECH")}
    assert words[found["TEXT_MODE"]:][:8] == list(schema.MODE_TEXT.values())
    assert words[found["TEXT_STATE"]:][:8] == list(schema.STATE_TEXT.values())
    assert words[found["TEXT_TECH"]:][:16] == list(schema.TECH_TEXT.values())
    assert words[found["TEXT_UNKNOWN_TECH"]:] == [schema.UNKNOWN_TECH_TEXT]


def test_codes_with_a_hole_are_refused_where_words_are_found_by_code(monkeypatch):
    monkeypatch.setattr(generate, "STATE_TEXT", dict(list(schema.STATE_TEXT.items())[1:]))
    with pytest.raises(SchemaError, match="in order"):
        generate.c_header()


def test_writing_a_generated_file_replaces_it_whole(tmp_path):
    target = tmp_path / "x.h"
    target.write_text("old")
    generate.write(target, "new\n")
    assert target.read_text() == "new\n" and list(tmp_path.iterdir()) == [target]
