"""A signed bundle is taken whole, by its signature, and only once it proves itself; or the old one goes on."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="bundles need the extra `appliance`")

from edge.__main__ import main
from edge.appliance import bundle_make, bundle_proof, bundle_store
from edge.appliance.bundle import (
    MOST_SERIAL,
    SIGNED_AS,
    Bundle,
    BundleError,
    Entry,
    SelfTest,
    _verified,
    archive,
    program_version,
    public_keys,
    read_manifest,
    verify,
)
from edge.appliance.bundle_make import make, make_key
from edge.appliance.bundle_store import current, highest, install, rollback
from edge.config import load_config
from engines.sidecar import DEFAULT_WEIGHTS, load
from tests.fake_engine import picture, textured
from tests.videos import write_video

OK, FAULT = 0, 1
RELEASE = "0.1.0"
WEIGHTS = DEFAULT_WEIGHTS.parent


def passes(folder, test):
    return "proven"


def fails(folder, test):
    raise BundleError("it does not read its clip")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    make_key(folder / "maker")
    make_key(folder / "stranger")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """What the shipped student reads as a heart of 150 and a breath of 45."""
    still = textured()
    pictures = [picture(still, i / 30, 150.0, 45.0) for i in range(30 * 13)]
    return write_video(tmp_path_factory.mktemp("clip") / "clip.avi", pictures, fourcc="MJPG")


@pytest.fixture(scope="module")
def small(tmp_path_factory, keys, clip):
    """A bundle of a few hundred bytes a file, so that every byte of it can be flipped: (path, its bytes)."""
    return sealed(tmp_path_factory.mktemp("small") / "small.pvb", keys / "maker.key",
                  [("weights/student.json", b"{}\n"), ("physvlm.toml", b"# none\n"), ("selftest/clip.avi", b"RIFF" * 20)])


def sealed(path, key, files, release=(RELEASE, RELEASE), name="b1", change=dict):
    entries = [{"path": p, "size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for p, c in files]
    record = {"format": 1, "id": name, "created": "2026-11-24T00:00:00Z", "program": list(release), "files": entries,
              "self_test": {"clip": "selftest/clip.avi", "hr_per_min": 150.0, "rr_per_min": 45.0}}
    text = json.dumps(change(record)).encode()
    signature = bundle_make._signer(key).sign(SIGNED_AS + text)
    path.write_bytes(archive(text, signature, files))
    return path


# --- the file


def test_a_bundle_is_a_tar_that_anybody_can_list(small):
    with tarfile.open(small) as tar:
        assert tar.getnames() == ["manifest.sig", "manifest.json", "weights/student.json", "physvlm.toml", "selftest/clip.avi"]


def test_a_signed_bundle_is_taken(small, keys):
    found = verify(small, keys / "maker.pub", RELEASE)
    assert found.manifest.id == "b1" and found.files["physvlm.toml"] == b"# none\n"
    assert verify(small, keys, RELEASE).manifest == found.manifest  # a folder of keys: one of them fits


def test_a_bundle_altered_in_any_byte_is_refused(small, keys, tmp_path):
    data, trusted = small.read_bytes(), public_keys(keys / "maker.pub")
    rng = random.Random(1)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << rng.randrange(8)
        with pytest.raises(BundleError):
            _verified(bytes(changed), trusted, RELEASE)  # what `verify` asks once it has read file and keys
    (tmp_path / "altered").write_bytes(changed)
    with pytest.raises(BundleError, match="is refused: it does not end where its manifest says"):
        verify(tmp_path / "altered", keys / "maker.pub", RELEASE)


def test_a_bundle_cut_off_or_with_more_behind_it_is_refused(small, keys, tmp_path):
    data = small.read_bytes()
    cut = tmp_path / "cut"
    ends = 0, 1, 511, 512, 600, 1024, 1536, 2100, len(data) - 1024, len(data) - 1
    for part in (*(data[:end] for end in ends), data + bytes(512)):
        cut.write_bytes(part)
        with pytest.raises(BundleError):
            verify(cut, keys / "maker.pub", RELEASE)


def test_another_s_key_is_refused_and_named(small, keys):
    with pytest.raises(BundleError, match=r"not signed by any key of this device \(stranger.pub\)"):
        verify(small, keys / "stranger.pub", RELEASE)


@pytest.mark.parametrize(("release", "fits"), [
    ("0.0.9", False), ("0.1.0", True), ("0.1.5", True), ("0.2", True), ("0.2.1", False)])
def test_a_bundle_runs_on_the_releases_that_it_names(small, keys, tmp_path, release, fits):
    files = [(e.path, verify(small, keys, RELEASE).files[e.path]) for e in verify(small, keys, RELEASE).manifest.files]
    path = sealed(tmp_path / "b", keys / "maker.key", files, ("0.1.0", "0.2"))
    if fits:
        verify(path, keys, release)
    else:
        with pytest.raises(BundleError, match="0.1.0 to 0.2"):
            verify(path, keys, release)


@pytest.mark.parametrize("path", [
    "../evil", "/etc/passwd", "a/../../b", "weights/../x", "a//b", "./a", "..", "a\\b", "a\0b", ".ssh",
    "weights/student.json/x", "WEIGHTS/student.json", "a/b/c/d", "x" * 101, "ä", "a b", ""])
def test_a_path_that_leads_elsewhere_is_refused_even_when_signed(keys, tmp_path, path):
    files = [("weights/student.json", b"{}"), ("physvlm.toml", b""), ("selftest/clip.avi", b"x")]
    text = bundle_text([*files, (path, b"evil")])
    with pytest.raises(BundleError, match="manifest is wrong"):
        read_manifest(text)


def bundle_text(files):
    record = {"format": 1, "id": "b1", "created": "", "program": [RELEASE, RELEASE],
              "files": [{"path": p, "size": len(c), "sha256": "0" * 64} for p, c in files],
              "self_test": {"clip": "selftest/clip.avi", "hr_per_min": 150.0, "rr_per_min": 45.0}}
    return json.dumps(record).encode()


@pytest.mark.parametrize(("field", "value"), [
    ("format", 3), ("format", "1"), ("id", "../x"), ("id", "current"), ("id", "highest"),
    ("id", 5), ("program", ["0.1.0"]), ("program", 3), ("files", []),
    ("files", [{"path": "a"}]), ("self_test", {}), ("self_test", {"clip": ["x"], "hr_per_min": 1, "rr_per_min": 1}),
    ("self_test", {"clip": "selftest/clip.avi", "hr_per_min": float("nan"), "rr_per_min": 45}), ("more", 1)])
def test_a_manifest_that_makes_no_sense_is_refused_even_when_signed(keys, tmp_path, field, value):
    files = [("weights/student.json", b"{}"), ("physvlm.toml", b""), ("selftest/clip.avi", b"x")]
    path = sealed(tmp_path / "b", keys / "maker.key", files, change=lambda record: record | {field: value})
    with pytest.raises(BundleError):
        verify(path, keys, RELEASE)


@pytest.mark.parametrize("serial", [-1, 1.5, True, "7", 10**18, None])
def test_a_serial_number_that_is_none_is_refused_even_when_signed(keys, tmp_path, serial):
    files = [("weights/student.json", b"{}"), ("physvlm.toml", b""), ("selftest/clip.avi", b"x")]
    path = sealed(tmp_path / "b", keys / "maker.key", files, change=lambda r: r | {"format": 2, "serial": serial})
    with pytest.raises(BundleError, match="the serial number is none"):
        verify(path, keys, RELEASE)
    sealed(path, keys / "maker.key", files, change=lambda r: r | {"format": 2, "serial": 7})
    assert verify(path, keys, RELEASE).manifest.serial == 7


@pytest.mark.parametrize("path", ["/dev/zero", "/", "pipe"])
def test_what_would_never_end_is_not_read(keys, tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="is no file; expected a bundle"):
        verify(tmp_path / path, keys, RELEASE)


def test_sizes_are_bounded_before_anything_is_read(keys, tmp_path, small):
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(200 << 20)  # a hole: costs no disk
    with pytest.raises(BundleError, match="at most 128"):
        verify(huge, keys, RELEASE)
    with pytest.raises(BundleError, match="size of a"):
        read_manifest(bundle_text([]).replace(b'"files": []', b'"files": [{"path": "a", "size": 999999999999, "sha256": "'
                                              + b"0" * 64 + b'"}]'))


@pytest.mark.parametrize(("keys_path", "message"), [
    ("none", "put your maker's key"), ("empty", "no public key"), ("text.pub", "no public key in PEM"),
    ("maker.key", "no public key")])
def test_a_key_that_is_none_is_named(keys, small, tmp_path, keys_path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pub").write_text("hello")
    shutil.copy(keys / "maker.key", tmp_path)
    with pytest.raises(BundleError, match=message):
        verify(small, tmp_path / keys_path, RELEASE)


def test_a_private_key_is_only_its_owner_s_and_never_replaced(keys):
    assert (keys / "maker.key").stat().st_mode & 0o077 == 0
    with pytest.raises(BundleError, match="not replaced"):
        make_key(keys / "maker")


# --- the store


SERIAL = {"old": 1, "one": 1, "two": 2, "new": 2, "three": 3}


def unpacked(name):
    """A bundle as `verify` would give it, with weights that nobody runs."""
    files = {"weights/student.json": b"{}", "weights/a.onnx": bytes(200), "physvlm.toml": b"",
             "selftest/clip.avi": name.encode()}
    entries = tuple(Entry(path, len(content), "0" * 64) for path, content in files.items())
    manifest = replace(read_manifest(bundle_text(files.items())), id=name, serial=SERIAL[name], files=entries)
    return Bundle(manifest, files)


def held(store):
    return {p.name for p in store.iterdir() if p.name not in (".lock", "highest")}


def whole(store):
    """What `current` leads to is all that the bundle of this name holds."""
    bundle = unpacked(current(store))
    return all((store / "current" / path).read_bytes() == content for path, content in bundle.files.items())


def test_a_new_bundle_lies_beside_the_old_one_and_rolling_back_returns_to_it(tmp_path):
    for name in ("one", "two", "three"):
        install(unpacked(name), tmp_path, passes)
        assert current(tmp_path) == name and whole(tmp_path)
    assert held(tmp_path) == {"two", "three", "current"}
    assert rollback(tmp_path) == ("three", "two") and current(tmp_path) == "two" and whole(tmp_path)
    with pytest.raises(BundleError, match="nothing to go back to"):
        rollback(tmp_path)
    assert current(tmp_path) == "two"
    install(unpacked("three"), tmp_path, passes)  # the one that was left, again
    assert current(tmp_path) == "three" and rollback(tmp_path)[1] == "two"


def test_a_bundle_that_does_not_prove_itself_is_not_used_and_leaves_nothing(tmp_path):
    with pytest.raises(BundleError, match="the shipped weights stay"):
        install(unpacked("one"), tmp_path, fails)
    assert current(tmp_path) is None and held(tmp_path) == set()
    install(unpacked("one"), tmp_path, passes)
    with pytest.raises(BundleError, match="two is not used, one stays: it does not read its clip"):
        install(unpacked("two"), tmp_path, fails)
    assert current(tmp_path) == "one" and whole(tmp_path) and held(tmp_path) == {"one", "current"}


def test_an_older_bundle_is_refused_however_well_it_is_signed(tmp_path):
    install(unpacked("two"), tmp_path, passes)
    with pytest.raises(BundleError, match=r"one is older \(serial number 1\).*here \(2\).*insist with --allow-older"):
        install(unpacked("one"), tmp_path, passes)
    assert current(tmp_path) == "two" and whole(tmp_path) and held(tmp_path) == {"two", "current"}
    install(unpacked("one"), tmp_path, passes, allow_older=True)
    assert current(tmp_path) == "one" and highest(tmp_path) == 2  # who insisted once has not said so for ever
    install(unpacked("three"), tmp_path, passes)
    with pytest.raises(BundleError, match="older"):
        install(unpacked("two"), tmp_path, passes)


def test_the_highest_serial_number_outlives_the_bundle_that_had_it(tmp_path):
    install(unpacked("three"), tmp_path, passes)
    for name in ("one", "two"):
        install(unpacked(name), tmp_path, passes, allow_older=True)
    assert held(tmp_path) == {"one", "two", "current"} and highest(tmp_path) == 3


def test_rolling_back_works_without_insisting_and_forgets_nothing(tmp_path):
    for name in ("one", "two", "three"):
        install(unpacked(name), tmp_path, passes)
    assert rollback(tmp_path) == ("three", "two") and highest(tmp_path) == 3
    with pytest.raises(BundleError, match="older"):
        install(unpacked("one"), tmp_path, passes)
    install(unpacked("three"), tmp_path, passes)
    assert current(tmp_path) == "three"


def test_a_bundle_that_failed_does_not_keep_others_out(tmp_path):
    with pytest.raises(BundleError, match="is not used"):
        install(unpacked("three"), tmp_path, fails)
    install(unpacked("one"), tmp_path, passes)
    assert highest(tmp_path) == 1


def test_a_store_that_kept_no_serial_number_knows_it_from_what_lies_there(tmp_path):
    install(unpacked("two"), tmp_path, passes)
    (tmp_path / "highest").unlink()
    with pytest.raises(BundleError, match="older"):
        install(unpacked("one"), tmp_path, passes)


@pytest.mark.parametrize("text", ["", "many", "-1", "9" * 30])
def test_a_damaged_serial_number_keeps_all_out_until_somebody_insists(tmp_path, text):
    install(unpacked("two"), tmp_path, passes)
    (tmp_path / "highest").write_text(text)
    with pytest.raises(BundleError, match="is damaged: expected the highest serial number"):
        install(unpacked("three"), tmp_path, passes)
    install(unpacked("three"), tmp_path, passes, allow_older=True)
    assert current(tmp_path) == "three" and highest(tmp_path) == 3


def test_a_bundle_of_the_first_format_is_read_and_its_date_is_its_serial_number(small, keys, tmp_path):
    with tarfile.open(small) as tar:
        assert json.loads(tar.extractfile("manifest.json").read())["format"] == 1
    assert verify(small, keys, RELEASE).manifest.serial == 20261124000000
    files = [("weights/student.json", b"{}"), ("physvlm.toml", b""), ("selftest/clip.avi", b"x")]
    undated = sealed(tmp_path / "b", keys / "maker.key", files, change=lambda record: record | {"created": "today"})
    assert verify(undated, keys, RELEASE).manifest.serial == 0


def test_nothing_current_cannot_be_rolled_back_and_a_current_one_not_installed_again(tmp_path):
    with pytest.raises(BundleError, match="no bundle is current"):
        rollback(tmp_path / "none")
    install(unpacked("one"), tmp_path, passes)
    with pytest.raises(BundleError, match="current already"):
        install(unpacked("one"), tmp_path, passes)


def test_what_is_installed_can_be_read_by_the_service_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        install(unpacked("one"), tmp_path / "store", passes)
    finally:
        os.umask(before)
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "store").rglob("*") if p.name != ".lock"}
    assert modes == {0o755, 0o644} and (tmp_path / "store").stat().st_mode & 0o777 == 0o755


def test_two_installations_at_once_are_refused(tmp_path):
    def second(folder, test):
        with pytest.raises(BundleError, match="another process"):
            install(unpacked("two"), tmp_path, passes)
        return "proven"

    install(unpacked("one"), tmp_path, second)
    assert current(tmp_path) == "one"


CALLS = ("fsync", "mkdir", "symlink", "rename", "replace", "unlink", "open", "write", "rmdir")


def dies_at(step, work):
    """Runs work in a child that loses its power at the step-th change of the disk; whether it got to the end."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(real):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return real(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("what", ["new", "again", "rollback"])
def test_power_lost_at_any_step_leaves_the_old_one_or_the_new_one_whole(tmp_path, what, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # a step all the same, but the disk is not waited for
    seen = set()
    for step in range(1, 200):
        store = tmp_path / str(step)
        install(unpacked("old"), store, passes)
        if what != "new":
            install(unpacked("new"), store, passes)
        if what == "again":
            rollback(store)
        before, after = ("new", "old") if what == "rollback" else ("old", "new")
        done = dies_at(step, lambda s=store: rollback(s) if what == "rollback" else install(unpacked("new"), s, passes))
        now = current(store)
        assert now in (before, after) and whole(store), step
        assert highest(store) >= SERIAL[now], step
        seen.add(now)
        if now == before:  # and it can be done again
            if what == "rollback":
                rollback(store)
            else:
                install(unpacked("new"), store, passes)
        assert current(store) == after and whole(store)
        if done:
            break
    assert done and seen == {before, after} and step > (3 if what == "rollback" else 12)


def test_a_full_disk_is_said_and_the_old_one_stays(tmp_path, monkeypatch):
    install(unpacked("old"), tmp_path, passes)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle_store.os, "fsync", full)
    with pytest.raises(BundleError, match="No space left"):
        install(unpacked("new"), tmp_path, passes)
    monkeypatch.undo()
    assert current(tmp_path) == "old" and whole(tmp_path)
    install(unpacked("new"), tmp_path, passes)
    assert held(tmp_path) == {"old", "new", "current"}


# --- the real weights, through the command line


@pytest.fixture(scope="module")
def bundle_file(tmp_path_factory, keys, clip):
    out = tmp_path_factory.mktemp("made") / "physvlm.pvb"
    (out.parent / "settings.toml").write_text('[camera]\nroi = "full"\n')
    assert main(["bundle", "make", str(out), "--key", str(keys / "maker.key"), "--weights", str(WEIGHTS), "--clip", str(clip),
                 "--hr", "150", "--rr", "45", "--settings", str(out.parent / "settings.toml"), "--id", "good"]) == OK
    return out


def run(capsys, *args):
    capsys.readouterr()
    code = main(["bundle", *map(str, args)])
    return code, *capsys.readouterr()


def test_a_bundle_goes_from_the_maker_to_the_device_and_runs(capsys, bundle_file, keys, tmp_path, clip):
    code, out, err = run(capsys, "verify", bundle_file, "--keys", keys)
    assert code == OK and "good" in out and "whole and signed" in out, err
    code, out, err = run(capsys, "install", bundle_file, "--keys", keys, "--store", tmp_path)
    assert code == OK and "good is current: heart rate 150" in out, err
    weights = tmp_path / "current" / "weights"
    spec, _ = load(weights / "student.json")
    assert {p.name for p in weights.iterdir()} < {p.name for p in WEIGHTS.iterdir()}
    assert load_config(tmp_path / "current" / "physvlm.toml").camera.roi == "full" and spec.parity is not None
    code, out, err = run(capsys, "rollback", "--store", tmp_path)
    assert code == FAULT and "nothing to go back to" in err and "Traceback" not in err
    made = highest(tmp_path)
    assert 20261101000000 < made < MOST_SERIAL  # the date and time of making, where nothing else was said
    (tmp_path / "highest").write_text(f"{made + 1}\n")
    shutil.rmtree(tmp_path / "good")
    (tmp_path / "current").unlink()
    code, out, err = run(capsys, "install", bundle_file, "--keys", keys, "--store", tmp_path)
    assert code == FAULT and f"good is older (serial number {made})" in err and current(tmp_path) is None
    code, out, err = run(capsys, "install", bundle_file, "--keys", keys, "--store", tmp_path, "--allow-older")
    assert code == OK and current(tmp_path) == "good", err


def test_other_weights_that_read_the_clip_wrongly_are_not_used(capsys, bundle_file, keys, tmp_path, clip):
    """Signed and whole, but its maker mistook the truth: the device finds out by itself."""
    store = tmp_path / "store"
    install(verify(bundle_file, keys / "maker.pub", program_version()), store, passes)
    wrong = tmp_path / "wrong.pvb"
    make(wrong, keys / "maker.key", WEIGHTS, clip, (140.0, 45.0), (program_version(),) * 2, name="wrong", prove=passes)
    code, out, err = run(capsys, "install", wrong, "--keys", keys, "--store", store)
    assert code == FAULT and "wrong is not used, good stays" in err and "expected 140.0" in err and current(store) == "good"


def test_weights_that_do_not_answer_as_their_parity_fixture_says_are_not_used(capsys, keys, tmp_path, clip):
    weights = shutil.copytree(WEIGHTS, tmp_path / "weights")
    record = json.loads((weights / "student.json").read_text())
    for limits in record["parity"]["tolerances"].values():
        limits["features"] = 1e-12
    (weights / "student.json").write_text(json.dumps(record))
    make(tmp_path / "b.pvb", keys / "maker.key", weights, clip, (150.0, 45.0), (program_version(),) * 2, prove=passes)
    code, _, err = run(capsys, "install", tmp_path / "b.pvb", "--keys", keys, "--store", tmp_path / "store")
    assert code == FAULT and "does not answer as the student does" in err and current(tmp_path / "store") is None


def test_the_maker_s_own_program_refuses_to_sign_what_fails(capsys, keys, tmp_path, clip):
    code, _, err = run(capsys, "make", tmp_path / "b.pvb", "--key", keys / "maker.key", "--weights", WEIGHTS, "--clip", clip,
                       "--hr", "120", "--rr", "45")
    assert code == FAULT and "expected 120.0" in err and not (tmp_path / "b.pvb").exists()


@pytest.mark.parametrize(("change", "message"), [
    ({"--key": "none"}, "cannot be read"), ({"--key": "maker.pub"}, "private key"), ({"--weights": "/nowhere"}, "no sidecar"),
    ({"--clip": "/nowhere"}, "cannot be read"), ({"--settings": "port.toml"}, "belong to the device"),
    ({"--serial": "-5"}, "the serial number is none"),
    ({"--min": "one"}, "numbers with dots"), ({"--min": "9.0"}, "newer than the newest"), ({"--id": "A/B"}, "no plain name")])
def test_what_cannot_be_made_is_refused_with_the_reason(capsys, keys, tmp_path, clip, change, message):
    (tmp_path / "port.toml").write_text('[serial]\nport = "/dev/ttyS0"\n')
    args = {"--key": "maker.key", "--weights": WEIGHTS, "--clip": clip, "--hr": "150", "--rr": "45"} | change
    args["--key"] = keys / args["--key"]
    if "--settings" in args:
        args["--settings"] = tmp_path / args["--settings"]
    code, _, err = run(capsys, "make", tmp_path / "b.pvb", *(str(x) for pair in args.items() for x in pair))
    assert code == FAULT and message in err and not (tmp_path / "b.pvb").exists()


def test_without_onnx_runtime_a_bundle_is_not_proven_and_the_line_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_proof, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match="pip install onnxruntime"):
        install(unpacked("one"), tmp_path)
    assert current(tmp_path) is None


def test_without_cryptography_it_says_what_to_install(capsys, small, keys, monkeypatch):
    from edge.appliance import bundle

    monkeypatch.setattr(bundle, "find_spec", lambda name: None)
    code, _, err = run(capsys, "verify", small, "--keys", keys)
    assert code == FAULT and "physvlm-edge[appliance]" in err


def test_the_self_test_s_limits_are_held():
    found = {"hr_median": 151.0, "hr_shown_fraction": 0.5, "rr_median": 44.0, "rr_shown_fraction": 0.5}
    test = SelfTest("c", 150.0, 45.0)
    assert "151.0" in bundle_proof._judged(found, test)
    for change in ({"hr_median": None}, {"hr_median": 154.0}, {"rr_median": 51.0}, {"rr_shown_fraction": 0.0},
                   {"hr_shown_fraction": 0.1}):
        with pytest.raises(BundleError, match="its self-test clip gives"):
            bundle_proof._judged(found | change, test)


def test_what_is_signed_is_not_the_manifest_alone(small, keys):
    """A signature of the bare manifest, made by the key for something else, is none of ours."""
    text = bundle_text([("weights/student.json", b"{}"), ("physvlm.toml", b""), ("selftest/clip.avi", b"x")])
    bare = bundle_make._signer(keys / "maker.key").sign(text)
    path = Path(small.parent / "bare")
    path.write_bytes(archive(text, bare, []))
    with pytest.raises(BundleError, match="not signed"):
        verify(path, keys, RELEASE)
