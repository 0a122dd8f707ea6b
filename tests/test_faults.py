"""A wire broken on purpose: how much of it, when, and always the same way for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_bridge.faults import MAX_HELD_BYTES, FaultError, Faults, FaultyWire
from firmware_bridge.frame import Decoder, Sender
from firmware_bridge.messages import Hello


def frames(n: int) -> list[bytes]:
    sender = Sender(lambda: 0)
    return [sender.encode(Hello(product=str(i))) for i in range(n)]


def through(wire: FaultyWire, data: bytes, now_ms: int = 0) -> bytes:
    wire.put(data, now_ms)
    return wire.take(now_ms)


def test_a_sound_wire_changes_nothing():
    data = random.Random(1).randbytes(5000)
    wire = FaultyWire()
    assert through(wire, data) == data and not any(wire.damage.as_dict().values())


def test_dropped_frames_are_whole_ones_and_about_as_many_as_asked_for():
    sent = frames(2000)
    wire = FaultyWire(Faults(drop=0.25))
    decoder = Decoder()
    decoder.feed(through(wire, b"".join(sent)))
    assert decoder.counters.bad == 0 and decoder.counters.ok + wire.damage.frames_dropped == 2000
    assert 430 <= wire.damage.frames_dropped <= 570  # 500 give or take 3.6 standard deviations


def test_all_or_none_dropped():
    assert through(FaultyWire(Faults(drop=1.0)), b"".join(frames(50))) == b""
    wire, frame = FaultyWire(Faults(drop=1.0)), frames(1)[0]
    through(wire, frame[:9])
    wire.faults = Faults()  # repaired in the middle of a frame: its rest does not come out of nowhere
    assert through(wire, frame[9:] + frame) == frame


def test_bits_flip_at_the_rate_that_was_asked_for():
    data = bytes(200_000)
    wire = FaultyWire(Faults(bit_errors=1e-3))
    flipped = sum(byte.bit_count() for byte in through(wire, data))
    assert flipped == wire.damage.bits_flipped and 1450 <= flipped <= 1750  # 1600 +- 4 standard deviations


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), drop=st.sampled_from([0.0, 0.3, 1.0]), errors=st.sampled_from([0.0, 0.01, 0.5]))
def test_the_same_bytes_meet_the_same_faults_however_they_are_cut(seed, drop, errors):
    rng = random.Random(seed)
    data = b"".join(frames(6)) + rng.randbytes(60) + b"\0\0\0" + rng.randbytes(40)
    whole = FaultyWire(Faults(drop, errors), seed)
    once = through(whole, data)
    pieces, out, at = FaultyWire(Faults(drop, errors), seed), b"", 0
    while at < len(data):
        size = rng.randint(0, 30)
        out += through(pieces, data[at:at + size])
        at += size
    assert (out, pieces.damage) == (once, whole.damage)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_a_wire_that_drops_from_the_middle_of_a_frame_on_leaves_that_frame_whole(seed):
    rng = random.Random(seed)
    sent = b"".join(frames(4))
    cut = rng.randrange(1, len(sent))
    first = rng.randrange(0, cut)
    wire = FaultyWire(Faults())
    out = through(wire, sent[:first]) + through(wire, sent[first:cut])
    wire.faults = Faults(drop=1.0)
    out += through(wire, sent[cut:])
    size = len(sent) // 4
    assert out == sent[:-(-cut // size) * size]


def test_another_seed_hits_other_frames():
    data = b"".join(frames(100))
    assert through(FaultyWire(Faults(drop=0.5), 1), data) != through(FaultyWire(Faults(drop=0.5), 2), data)


def test_delay_holds_everything_back_in_order_and_a_shorter_one_delivers_the_backlog_at_once():
    wire = FaultyWire(Faults(delay_ms=1000))
    for n in range(5):
        wire.put(bytes([n]), 100 * n)
    assert wire.take(999) == b"" and wire.take(1000) == b"\0" and wire.take(1150) == b"\1"
    wire.faults = Faults(delay_ms=800)
    assert wire.take(1150) == b"\2\3"
    wire.faults = Faults()
    assert wire.take(1150) == b"\4"


def test_what_is_on_its_way_is_lost_with_the_cable():
    wire = FaultyWire(Faults(delay_ms=500))
    wire.put(b"abc", 0)
    wire.faults = Faults(delay_ms=500, unplugged=True)
    wire.put(b"de", 100)
    assert wire.take(2000) == b""
    wire.faults = Faults()
    assert through(wire, b"f", 2000) == b"f" and wire.damage.bytes_lost == 5


def test_a_delayed_wire_keeps_no_more_than_it_may():
    wire = FaultyWire(Faults(delay_ms=60_000))
    for n in range(40):
        wire.put(bytes([n]) * 65_536, n)
    kept = wire.take(10**6)
    assert len(kept) <= MAX_HELD_BYTES and kept[-1] == 39 and wire.damage.bytes_lost == 40 * 65_536 - len(kept)


@pytest.mark.parametrize("wrong", [{"drop": -0.1}, {"drop": 1.1}, {"drop": float("nan")}, {"drop": "1"}, {"drop": True},
                                   {"bit_errors": 0.6}, {"delay_ms": -1}, {"delay_ms": 60_001}, {"delay_ms": 0.5},
                                   {"unplugged": 1}])
def test_impossible_faults_are_refused(wrong):
    with pytest.raises(FaultError, match=next(iter(wrong))):
        Faults(**wrong)
