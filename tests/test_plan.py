"""A plan file is used whole, from a trusted place, for what it was built for, or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import pytest

from engines import plan
from engines.plan import Plan, PlanError, PlanMismatch, PlanMissing

COMPONENTS = {"onnx": "ab" * 32, "tensorrt": "10.3.0.30", "device": "Orin", "sm_count": 8, "flags": ["FP16"], "tf32": False,
              "profile": {"frames": [30, 5, 48, 48]}, "workspace_mb": 256}
STEM = Plan("stem", "int8", COMPONENTS, bytes(range(256)) * 40, {"power_mode": "0002"})
HEAD = Plan("head", "int8", COMPONENTS, bytes(reversed(range(256))) * 40)


@pytest.fixture
def folder(tmp_path):
    return plan.trusted_folder(tmp_path / "engines", make=True)


@pytest.fixture
def path(folder):
    plan.write(folder / "stem.plan", STEM)
    return folder / "stem.plan"


def resealed(data, **changed):
    """A file with other metadata and a hash that fits: what damage never makes, but a meddler may."""
    body = plan._HEAD.size + plan._DIGEST_BYTES
    size = plan._HEAD.unpack_from(data)[2]
    record = json.loads(data[body:body + size]) | changed
    metadata, content = json.dumps(record).encode(), data[body + size:]
    head = plan._HEAD.pack(plan.MAGIC, plan.FORMAT, len(metadata), len(content))
    return head + plan.hashlib.sha256(head + metadata + content).digest() + metadata + content


def test_what_was_written_is_read_and_nothing_else_is_left(path):
    assert plan.read(path, "stem", "int8") == STEM
    assert [p.name for p in path.parent.iterdir()] == ["stem.plan"]


def broken(rng, whole, other):
    """One of the ways in which a file goes wrong, and its name."""
    at = rng.randrange(len(whole))
    ways = {
        "bits flipped": lambda: bytes(b ^ (1 << rng.randrange(8)) if i == at or rng.random() < 1e-4 else b
                                      for i, b in enumerate(whole)),
        "header bits flipped": lambda: whole[:(i := rng.randrange(64))] + bytes([whole[i] ^ (1 << rng.randrange(8))])
        + whole[i + 1:],
        "cut off": lambda: whole[:at],
        "beginning lost": lambda: whole[at + 1:],
        "bytes appended": lambda: whole + rng.randbytes(rng.randrange(1, 2000)),
        "bytes put in": lambda: whole[:at] + rng.randbytes(rng.randrange(1, 50)) + whole[at:],
        "block of zeros": lambda: whole[:at] + bytes(min(512, len(whole) - at)) + whole[at + 512:] + b"\1",
        "foreign header": lambda: rng.choice([b"\x7fELF", b"ftrt", b"GIF89a", rng.randbytes(16)]) + whole[16:],
        "other format": lambda: whole[:16] + rng.randrange(2, 2**32).to_bytes(4, "little") + whole[20:],
        "wrong length": lambda: whole[:20] + rng.randbytes(12) + whole[32:],
        "wrong key": lambda: resealed(whole, key=rng.randbytes(32).hex()),
        "other components under the old key": lambda: resealed(whole, components={**COMPONENTS, "device": f"{rng.random()}"}),
        "wrong kind of metadata": lambda: resealed(whole, **{rng.choice(["key", "components", "part", "notes"]): rng.random()}),
        "stem and head swapped": lambda: other,
        "noise": lambda: rng.randbytes(rng.randrange(5000)),
        "nothing": lambda: b"",
    }
    name = rng.choice(list(ways))
    return name, ways[name]()


def test_a_thousand_broken_files_are_a_thousand_refusals(path):
    rng, seen, reasons = random.Random(4), set(), set()
    whole, other = path.read_bytes(), plan.seal(HEAD)
    for _ in range(1000):
        name, data = broken(rng, whole, other)
        if data == whole:  # a flip that came out the same: not broken
            data = whole[:-1]
        path.write_bytes(data)
        with pytest.raises(PlanError) as caught:
            plan.read(path, "stem", "int8")
        assert "\n" not in str(caught.value) and "stem.plan" in str(caught.value), name
        seen.add(name)
        reasons.add(str(caught.value).split(" is refused: ")[1][:25])
    assert len(seen) == 16 and len(reasons) >= 8
    path.write_bytes(whole)
    assert plan.read(path, "stem", "int8") == STEM


def test_the_hash_covers_every_single_bit(folder):
    small = plan.seal(Plan("stem", "fp32", {"a": 1}, b"plan"))
    for i in range(8 * len(small)):
        data = bytearray(small)
        data[i // 8] ^= 1 << i % 8
        with pytest.raises(PlanError):
            plan.unseal(bytes(data), "stem", "fp32")


@pytest.mark.parametrize("metadata", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b"{}", b"[" * 100000])
def test_metadata_that_cannot_be_read_is_refused(metadata):
    head = plan._HEAD.pack(plan.MAGIC, plan.FORMAT, len(metadata), 0)
    with pytest.raises(PlanError, match="metadata"):
        plan.unseal(head + plan.hashlib.sha256(head + metadata).digest() + metadata, "stem", "int8")


@pytest.mark.parametrize(("name", "value"), [("onnx", "cd" * 32), ("tensorrt", "10.7.0.23"), ("device", "Thor"),
                                             ("sm_count", 16), ("flags", []), ("tf32", True), ("workspace_mb", 128),
                                             ("profile", {"frames": [1, 5, 48, 48]}), ("new", 1)])
def test_every_component_makes_another_key_and_is_named(name, value):
    wanted = {**COMPONENTS, name: value}
    assert plan.key_of(wanted) != STEM.key
    with pytest.raises(PlanMismatch, match=f"^built for .*, this is {str(value)[:5].replace('[', '.')}"):
        plan.check(STEM, wanted)


def test_the_reason_names_what_changed_and_what_did_not_change_is_no_reason():
    assert plan.differences(COMPONENTS, dict(reversed(list(COMPONENTS.items())))) == ""
    plan.check(STEM, COMPONENTS)
    assert plan.differences(COMPONENTS, {**COMPONENTS, "tensorrt": "10.7.0.23", "l4t": "36.4.0"}) == (
        "built for L4T unknown, this is 36.4.0; built for TensorRT 10.3.0.30, this is 10.7.0.23")


def test_a_missing_plan_is_told_from_a_broken_one(folder):
    with pytest.raises(PlanMissing, match="stem.plan is not there"):
        plan.read(folder / "stem.plan", "stem", "int8")
    with pytest.raises(PlanMissing, match="no folder of engines"):
        plan.trusted_folder(folder / "none")


# --- who may write


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_may_write_is_refused(path, mode):
    path.chmod(mode)
    with pytest.raises(PlanError, match=f"mode {mode:03o}.*chmod go-w"):
        plan.read(path, "stem", "int8")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777, 0o1777])
def test_a_folder_that_others_may_write_is_refused(folder, mode):
    folder.chmod(mode)
    with pytest.raises(PlanError, match="may be written by others"):
        plan.trusted_folder(folder)


def test_what_belongs_to_another_user_is_refused(path, monkeypatch):
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(PlanError, match="belongs to user .* delete it"):
        plan.read(path, "stem", "int8")


def test_links_pipes_and_folders_are_no_plans(path, folder):
    (folder / "link.plan").symlink_to(path)
    os.mkfifo(folder / "pipe.plan")
    (folder / "folder.plan").mkdir()
    for name in ("link", "pipe", "folder"):
        with pytest.raises(PlanError, match=f"{name}.plan"):
            plan.read(folder / f"{name}.plan", "stem", "int8")
    for make in (False, True):
        with pytest.raises(PlanError, match="name another with --cache"):
            plan.trusted_folder(path, make)


def test_what_claims_to_be_huge_is_not_read(path):
    os.truncate(path, plan._FILE_MOST + 1)
    with pytest.raises(PlanError, match="no plan of the student has"):
        plan.read(path, "stem", "int8")


def test_a_write_that_fails_leaves_the_old_plan(path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanError, match="cannot be written: No space left"):
        plan.write(path, HEAD)
    assert plan.read(path, "stem", "int8") == STEM and len(list(path.parent.iterdir())) == 1


def test_the_file_can_be_read_by_the_service_whatever_the_umask(folder):
    before = os.umask(0o077)
    try:
        plan.write(folder / "x.plan", STEM)
    finally:
        os.umask(before)
    assert (folder / "x.plan").stat().st_mode & 0o777 == 0o644


# --- the lock


def hold(folder, ready, seconds):
    with plan.locked(folder, print):
        ready.set()
        time.sleep(seconds)


@pytest.fixture
def holder(folder):
    """Another process that holds the lock for long."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(folder, ready, 60))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_builder_says_who_holds_the_lock_and_gives_up_in_the_end(folder, holder):
    said = []
    with pytest.raises(PlanError, match=f"process {holder.pid} holds .*build.lock"), \
            plan.locked(folder, said.append, wait_s=0.3, every_s=0.05):
        pytest.fail("two builders at once")
    assert said == [f"process {holder.pid} is building in {folder}; waiting for it"]


def test_the_lock_of_a_dead_builder_is_free(folder, holder):
    os.kill(holder.pid, signal.SIGKILL)
    with plan.locked(folder, print, wait_s=60, every_s=0.02):
        assert (folder / "build.lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_free_again_after_an_error(folder):
    for _ in range(2):
        with pytest.raises(KeyError), plan.locked(folder, print, wait_s=0):
            raise KeyError
