"""The codec: what is sent is what is received, and what is damaged is never taken for something else."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge import schema
from firmware_bridge.dump import describe
from firmware_bridge.frame import MAX_ENCODED, Decoder, Sender, Verdict, cobs_decode, cobs_encode, encode
from firmware_bridge.messages import (
    MAX_WAVE_SAMPLES,
    Bye,
    FrameError,
    Hello,
    Status,
    Vitals,
    Wave,
    age_to_wire,
    quality_to_wire,
    rate_to_wire,
)
from firmware_bridge.schema import NO_AGE, NO_RATE, NO_SQI, PR_PAINTABLE_X10, VitalState

VECTORS = json.loads((Path(__file__).parent / "vectors" / "frames.json").read_text())
GOOD_NAMES, GOOD = zip(*((v["name"], bytes.fromhex(v["wire"])) for v in VECTORS
                         if v["verdict"] == "ok" and "mended" not in v), strict=True)
SEEN = [Decoder().feed(wire)[0] for wire in GOOD]

u8, u16, u32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))


@st.composite
def vitals(draw):
    fields = {}
    for name in ("pr", "rr"):
        state = draw(st.sampled_from(VitalState))
        fields[f"{name}_state"] = state
        fields[f"{name}_x10"] = draw(st.integers(1, NO_RATE - 1)) if state.shows_number else NO_RATE
        fields[f"{name}_sqi"] = draw(st.integers(0, 100) | st.just(NO_SQI))
        fields[f"{name}_age_ds"], fields[f"{name}_avg_s"] = draw(u16), draw(u8)
    return Vitals(**fields, tech=draw(u32), gap_ds=draw(u16))


waves = st.builds(Wave, u32, u8, st.integers(1, 100),
                  st.lists(st.integers(-128, 127), max_size=MAX_WAVE_SAMPLES).map(tuple))
printable = st.characters(min_codepoint=32, max_codepoint=126)
hellos = st.builds(Hello, u8, u8, u32, u32, u32, st.text(printable, max_size=16))
statuses = st.builds(Status, *[u16] * 11, u8, u8)
messages = vitals() | waves | hellos | st.builds(Bye) | statuses


@given(messages, st.integers(1, 0xFFFF), u16, u32, st.integers(0, 15))
@settings(max_examples=300, deadline=None)
def test_every_message_comes_back_as_it_was_sent(message, session, seq, t_ms, flags):
    wire = encode(message, session=session, seq=seq, t_ms=t_ms, flags=flags)
    assert wire[0] == wire[-1] == 0 and b"\0" not in wire[1:-1] and len(wire) <= MAX_ENCODED + 2
    frame, = Decoder().feed(wire)
    assert (frame.verdict, frame.message, frame.notes) == (Verdict.OK, message, ())
    header = frame.header
    assert (header.session, header.seq, header.t_ms, header.flags) == (session, seq, t_ms, flags)


@given(st.binary(max_size=128))
def test_cobs_comes_back(data):
    encoded = cobs_encode(data)
    assert b"\0" not in encoded and cobs_decode(encoded) == data


@pytest.mark.parametrize("vector", VECTORS, ids=[v["name"] for v in VECTORS])
def test_golden_vector(vector):
    wire = bytes.fromhex(vector["wire"])
    frame, = Decoder().feed(wire)
    seen = json.loads(json.dumps(describe(frame)))
    assert seen["verdict"] == vector["verdict"]
    assert bool(frame.notes) == vector.get("mended", False)
    if vector["verdict"] != "ok":
        assert frame.message is None
        return
    assert (seen["header"], seen["message"], seen["fields"]) == (vector["header"], vector["message"], vector["fields"])
    if not vector["name"].startswith(("A", "M")):
        h = frame.header
        assert encode(frame.message, session=h.session, seq=h.seq, t_ms=h.t_ms, flags=h.flags) == wire


def accepted(stream: bytes) -> list[tuple]:
    frames = Decoder().feed(stream + b"\0\0")
    return [(f.header, f.message) for f in frames if f.verdict is Verdict.OK]


SENT = [(f.header, f.message) for f in SEEN]


def flipped(wire: bytes, *bits: int) -> bytes:
    damaged = bytearray(wire)
    for bit in bits:
        damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


@pytest.mark.parametrize("index", range(len(GOOD)))
def test_one_flipped_bit_costs_that_frame_and_no_other(index):
    wire, before, after = GOOD[index], GOOD[index - 1], GOOD[index - 2]
    for bit in range(len(wire) * 8):
        got = accepted(before + flipped(wire, bit) + after)
        # A flipped delimiter costs nothing, or joins the frame to nothing: both neighbours survive every time.
        assert SENT[index - 1] in got and SENT[index - 2] in got
        assert [pair for pair in got if pair not in SENT] == []


# Further frames of a kind and length that was there already, in `make soak`: the same code over other bytes.
FURTHER = {"V3", "V4", "A2", "U1", "U2"}


@pytest.mark.parametrize("index", [pytest.param(i, marks=pytest.mark.soak) if name[:2] in FURTHER else i
                                   for i, name in enumerate(GOOD_NAMES)])
def test_any_two_flipped_bits_are_refused(index):
    wire = GOOD[index]
    decoder, tried = Decoder(), 0
    for one in range(len(wire) * 8):
        damaged = bytearray(flipped(wire, one) + b"\0")
        for two in range(one + 1, len(wire) * 8):
            damaged[two // 8] ^= 1 << two % 8
            for frame in decoder.feed(damaged):
                # Two flips in the outer delimiters may leave the inside whole; nothing else may pass.
                assert frame.verdict is not Verdict.OK or (frame.header, frame.message) == SENT[index]
            damaged[two // 8] ^= 1 << two % 8
            tried += 1
    assert tried == len(wire) * 8 * (len(wire) * 8 - 1) // 2
    assert decoder.counters.ok < 0.01 * tried < decoder.counters.bad


def test_any_byte_changed_to_any_other_is_refused():
    """COBS code bytes too: there one flip rewrites several bytes of the body at once (vector N1)."""
    for wire, sent in zip(GOOD[:4], SENT, strict=False):
        for at in range(1, len(wire) - 1):
            for value in range(256):
                damaged = wire[:at] + bytes((value,)) + wire[at + 1:]
                assert all(pair == sent for pair in accepted(damaged)) and (damaged == wire or not accepted(damaged))


@pytest.mark.parametrize("index", range(len(GOOD)))
def test_truncated_frames_are_refused_and_the_next_one_is_whole(index):
    wire, after = GOOD[index], GOOD[index - 1]
    for length in range(len(wire) - 1):
        assert accepted(wire[:length] + after) == [SENT[index - 1]]
        assert accepted(wire[length + 1:] + after)[-1] == SENT[index - 1]
        assert all(pair in SENT for pair in accepted(wire[length + 1:] + after))


def test_every_split_point_gives_the_same_frames():
    stream = b"".join(GOOD)
    for cut in range(len(stream) + 1):
        decoder = Decoder()
        frames = decoder.feed(stream[:cut]) + decoder.feed(stream[cut:])
        assert [(f.header, f.message) for f in frames] == SENT
        assert [stream[f.offset:f.offset + len(f.raw)] for f in frames] == [f.raw for f in frames]


def test_byte_by_byte_gives_the_same_frames():
    decoder = Decoder()
    frames = [f for byte in b"".join(GOOD) for f in decoder.feed(bytes((byte,)))]
    assert [(f.header, f.message) for f in frames] == SENT


@pytest.mark.parametrize("index", range(len(GOOD)))
def test_a_lost_or_doubled_byte_is_refused(index):
    wire = GOOD[index]
    for at in range(1, len(wire) - 1):
        assert accepted(wire[:at] + wire[at + 1:]) == []
        assert accepted(wire[:at] + wire[at:at + 1] + wire[at:]) == []
        for value in (0, 1, 0x55, 0xFF):
            assert all(pair == SENT[index] for pair in accepted(wire[:at] + bytes((value,)) + wire[at:]))


def corrupt(wire: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(wire)), rng.randrange(7)
        if kind < 3:
            wire[at] ^= 1 << rng.randrange(8)
        elif kind == 3:
            wire[at] = rng.randrange(256)
        elif kind == 4:
            del wire[at:at + rng.randint(1, 8)]
        elif kind == 5:
            wire[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            other = GOOD[rng.randrange(len(GOOD))]
            start = rng.randrange(len(other))
            wire[at:at + 8] = other[start:start + 8]
        if not wire:
            return


def run_corruptions(count: int, seed: int) -> None:
    rng = random.Random(seed)
    decoder = Decoder()
    for n in range(count):
        wire = bytearray(GOOD[n % len(GOOD)])
        corrupt(wire, rng)
        for frame in decoder.feed(wire + b"\0"):
            assert frame.verdict is not Verdict.OK or (frame.header, frame.message) in SENT
    # Most were refused, so the property was not held vacuously.
    assert decoder.counters.bad > 0.9 * count


def test_200_000_random_corruptions_yield_no_wrong_frame():
    run_corruptions(200_000, seed=1)


@pytest.mark.soak
def test_2_000_000_random_corruptions_yield_no_wrong_frame():
    run_corruptions(2_000_000, seed=2)


@given(st.lists(st.binary(max_size=300), max_size=8), st.integers(0, len(GOOD) - 1))
@settings(deadline=None)
def test_after_any_garbage_at_most_one_good_frame_is_lost(garbage, index):
    decoder = Decoder()
    for chunk in garbage:
        decoder.feed(chunk)
    frames = decoder.feed(GOOD[index] + GOOD[index])
    assert (frames[-1].header, frames[-1].message) == SENT[index]
    assert decoder.unfinished == 0


def test_endless_noise_without_a_delimiter_takes_no_memory_and_counts_once():
    decoder = Decoder()
    for _ in range(1000):
        assert decoder.feed(b"\xff" * 1000) == []
    assert len(decoder._buffer) <= MAX_ENCODED
    frame, = decoder.feed(b"\0")
    assert frame.verdict is Verdict.BAD_LEN and decoder.counters.bad_len == 1


def test_crc_is_the_one_protocol_md_names():
    assert zlib.crc32(b"123456789") == 0xCBF43926


@pytest.mark.parametrize("cls", [Vitals, Wave, Hello, Bye, Status])
def test_messages_have_the_fields_of_their_table_in_order(cls):
    layout = schema.PAYLOADS[cls.TYPE]
    expected = list(layout.names) + ([layout.tail] if layout.tail else [])
    assert [field.name for field in dataclasses.fields(cls)] == expected


def test_sizes_and_offsets_are_those_agreed_with_display_makers():
    sizes = {layout.title: layout.size for layout in schema.PAYLOADS.values()}
    assert schema.HEADER.size == 12
    assert sizes == {"VITALS": 20, "WAVE": 6, "HELLO": 30, "BYE": 0, "STATUS": 24}


def test_what_goes_over_the_line_fits_it():
    # Load at 2 Hz VITALS, two 5 Hz WAVE, HELLO every 5 s; ten bits a byte.
    def size(message):
        return len(encode(message, session=1, seq=1, t_ms=1))
    vital, wave = size(SEEN[0].message), size(Wave(0, 1, 25, (0,) * 5))
    everything = 2 * vital + 10 * wave + 0.2 * size(Hello())
    assert 2 * vital * 10 <= 0.15 * 9600
    assert everything * 10 <= 0.10 * 115200


def test_sender_counts_and_stamps_and_wraps():
    now_ns = [(2**32 - 1) * 1_000_000]
    sender = Sender(lambda: now_ns[0], flags=3)
    sender._seq = 0xFFFF
    one = Decoder().feed(sender.encode(Bye()))[0].header
    now_ns[0] += 1_000_000
    two = Decoder().feed(sender.encode(Bye()))[0].header
    assert (one.seq, one.t_ms, one.flags) == (0xFFFF, 2**32 - 1, 3)
    assert (two.seq, two.t_ms, two.session) == (0, 0, one.session)


def test_sessions_differ_and_are_never_0():
    sessions = {Sender(lambda: 0).session for _ in range(50)}
    assert len(sessions) > 45 and 0 not in sessions


@pytest.mark.parametrize("change, complaint", [
    ({"pr_x10": NO_RATE}, "state VALID with value 65535"),
    ({"pr_state": VitalState.SEARCHING}, "state SEARCHING with value 1432"),
    ({"pr_x10": 0}, "0 is never sent"),
    ({"pr_x10": 70000}, "expected an integer 0-65535"),
    ({"pr_x10": 143.2}, "expected an integer"),
    ({"pr_state": 2}, "expected a VitalState"),
    ({"rr_sqi": 101}, "expected 0-100 or 255"),
    ({"tech": -1}, "expected an integer"),
])
def test_a_sender_cannot_make_vitals_that_contradict_themselves(change, complaint):
    with pytest.raises(FrameError, match=complaint):
        dataclasses.replace(SEEN[0].message, **change)


def test_other_messages_refuse_what_does_not_fit():
    for make in (lambda: Wave(0, 1, 0, ()), lambda: Wave(0, 1, 25, (0,) * (MAX_WAVE_SAMPLES + 1)),
                 lambda: Wave(0, 1, 25, (128,)), lambda: Hello(product="x" * 17), lambda: Hello(product="\n"),
                 lambda: encode(Bye(), session=0, seq=0, t_ms=0)):
        with pytest.raises(FrameError):
            make()


def test_natural_units_become_wire_units():
    assert rate_to_wire(143.16, PR_PAINTABLE_X10, "pulse") == 1432
    assert rate_to_wire(None, PR_PAINTABLE_X10, "pulse") == NO_RATE
    for nonsense in (0.0, -3.0, 29.0, 301.0, float("nan"), float("inf")):
        with pytest.raises(FrameError, match="pulse: expected 30-300 /min or None"):
            rate_to_wire(nonsense, PR_PAINTABLE_X10, "pulse")
    assert (quality_to_wire(0.875), quality_to_wire(None)) == (88, NO_SQI)
    # Rounded up: nothing may look fresher than it is.
    assert [age_to_wire(s) for s in (0.0, 0.31, 0.3, 6553.4, 9e9, None)] == [0, 4, 3, 65534, NO_AGE, NO_AGE]
    wave = Wave.from_samples(schema.Channel.PULSE, 7, 25, [0.0, 1.0, -1.0, 5.0, None, float("nan")])
    assert wave.samples == (0, 127, -127, 127, -128, -128)


def test_readings_become_vitals():
    pr = SimpleNamespace(value_per_min=143.2, state=2, quality=0.88, age_s=0.3, averaging_s=8.0)
    rr = SimpleNamespace(value_per_min=None, state=4, quality=0.1, age_s=0.5, averaging_s=16.0)
    message = Vitals.from_readings(pr, rr, tech=16)
    assert message == Vitals(1432, NO_RATE, VitalState.VALID, VitalState.INVALID, 88, 10, 3, 5, 8, 16, 16, NO_AGE)


def test_schema_hash_moves_with_fields_and_not_with_prose(monkeypatch):
    before = schema.schema_hash()
    header = schema.HEADER
    monkeypatch.setattr(schema, "HEADER", dataclasses.replace(
        header, fields=tuple(dataclasses.replace(f, rule="other words") for f in header.fields)))
    assert schema.schema_hash() == before
    monkeypatch.setattr(schema, "HEADER", dataclasses.replace(header, fields=header.fields[::-1]))
    assert schema.schema_hash() != before


def test_wave_with_an_impossible_rate_yields_no_samples():
    body = struct.pack("<BBBBHHI", 1, 0x11, 0, 9, 1, 1, 1) + struct.pack("<IBB3b", 0, 1, 0, 1, 2, 3)
    wire = b"\0" + cobs_encode(body + struct.pack("<I", zlib.crc32(body))) + b"\0"
    frame, = Decoder().feed(wire)
    assert frame.message.samples == () and frame.notes
