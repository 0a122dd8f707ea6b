"""Calibration clips: chosen evenly and from training material alone, read back whole or not at all."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from calibration import clips as clips_module
from calibration import selection as selection_module
from calibration.clips import TRAINING_SEEDS, in_order, sealed
from calibration.domains import DOMAIN_TEST_SEED0, MIXED_VALIDATION_SEED0
from calibration.recordings import TEST_RECORDINGS, TRAIN_RECORDINGS
from calibration.scenes import NEWBORN_SEED0
from calibration.selection import (
    FACTORS,
    ClipError,
    Selection,
    SelectionError,
    balanced,
    open_clips,
    select,
    table,
    trained_without,
    write_manifest,
)
from calibration.windows import STEPS_PER_UNIT, Seen, sha256_of
from engines.sidecar import load
from tests.dataset_fixtures import write_mmpd, write_pure, write_ubfc_2

FS_HZ, SIZE, FRAMES, N = 10.0, 12, 8, 12
SMALL = Selection(FS_HZ, SIZE, n=N, frames=FRAMES, width=32, height=24)


def small(**changed: object) -> Selection:
    return Selection(**{**vars(SMALL), **changed})


def opened(path: Path, **given: object) -> clips_module.Clips:
    return open_clips(path, **{"fs_hz": FS_HZ, "size": SIZE, **given})


def frames_of(path: Path, **given: object) -> list[np.ndarray]:
    return list(opened(path, **given))


@pytest.fixture(scope="module", autouse=True)
def few_candidates() -> Iterator[None]:
    """Two for each clip that is wanted: rendering them is what takes long here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection_module, "POOL_PER_CLIP", 2)
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """PURE with two subjects, one long enough for two clips; MMPD, which tells the skin; UBFC, all grey."""
    root = tmp_path_factory.mktemp("sets")
    for name, frames, size in (("01-01", 310, (16, 12)), ("02-01", 120, (20, 16))):
        write_pure(root / "pure", name, frames=frames, size=size)
    write_mmpd(root / "mmpd", frames=110, size=(16, 20))
    write_ubfc_2(root / "ubfc", frames=110)
    return {name: root / name for name in ("pure", "mmpd", "ubfc")}


@pytest.fixture(scope="module")
def made(tmp_path_factory, sets) -> Path:
    """A manifest of rendered clips and every clip that PURE, MMPD and UBFC offer."""
    path = tmp_path_factory.mktemp("made") / "clips.json"
    write_manifest(path, small(datasets=sets, held_out_domains=("lux", "phone")), workers=1)
    return path


@pytest.fixture
def content(made) -> dict:
    return json.loads(made.read_text())


@pytest.fixture
def written(tmp_path) -> Callable[[dict], Path]:
    """Write a changed manifest with a hash that fits, as somebody with a script would."""
    def write(content: dict, seal: bool = True) -> Path:
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(sealed(content) if seal else content))
        return path
    return write


def only(content: dict, *clips: dict) -> dict:
    """The manifest with these of its clips alone."""
    return content | {"clips": list(clips), "settings": content["settings"] | {"n": len(clips)}}


def recorded(content: dict, dataset: str = "pure") -> dict:
    return next(clip for clip in content["clips"] if clip.get("dataset") == dataset)


def rendered(content: dict) -> dict:
    return next(clip for clip in content["clips"] if "scene" in clip)


# --- choosing


def entries(**levels: int) -> list[clips_module.Entry]:
    """So many candidates of each source, alike in all else."""
    same = dict.fromkeys(FACTORS, "x")
    return [clips_module.Entry(f"{source}-{i}", None, "d", f"{i}", f"{source}/{i}", same | {"source": source}, 0, 1, "")
            for source, count in levels.items() for i in range(count)]


def test_every_stratum_gets_its_share_and_the_rarest_all_it_has():
    chosen = balanced(entries(plenty=900, some=40, rare=3), 33, 1)
    assert Counter(entry.strata["source"] for entry in chosen) == {"plenty": 15, "some": 15, "rare": 3}
    assert {entry.strata["source"] for entry in chosen[:3]} == {"plenty", "some", "rare"}
    assert len({entry.id for entry in chosen}) == 33


def test_other_subjects_come_before_more_of_one():
    many = entries(a=10)
    same = [clips_module.Entry(f"s{i}", None, "d", f"s{i}", "a/0", many[0].strata, 0, 1, "") for i in range(50)]
    assert len({entry.who for entry in balanced(same + many, 10, 3)}) == 10


def test_all_levels_that_occur_are_chosen_and_counted(content):
    assert len(content["clips"]) == N
    for factor in FACTORS:
        chosen = Counter(clip["strata"][factor] for clip in content["clips"])
        counted = content["strata"][factor]
        assert {level: took for level, (took, _) in counted.items() if took} == chosen
        assert factor == "source" or set(chosen) == set(counted)  # more sources than clips
    text = table(content)
    assert "12 clips of 8 frames" in text and f"infrared {content['strata']['light']['infrared'][0]}/" in text


def test_a_selection_is_the_same_again_with_other_workers_and_another_with_another_seed(content, sets, made, tmp_path):
    again = small(datasets=sets, held_out_domains=("lux", "phone"))
    write_manifest(tmp_path / "again.json", again, workers=2)
    assert (tmp_path / "again.json").read_bytes() == made.read_bytes()
    other = select(small(seed=2, n=4), workers=1)
    assert not {clip["id"] for clip in other["clips"]} & {clip["id"] for clip in content["clips"]}


def test_rendered_clips_are_the_training_draw_without_held_out_domains(content):
    assert all(clip["scene"]["seed"] in TRAINING_SEEDS for clip in content["clips"] if "scene" in clip)
    assert not {"lux", "phone"} & set(content["strata"]["source"])
    for seed in (MIXED_VALIDATION_SEED0, DOMAIN_TEST_SEED0, NEWBORN_SEED0):
        assert seed not in TRAINING_SEEDS


def test_recordings_of_the_training_half_drive_some_and_none_of_the_test_half(tmp_path, written):
    for name, hr in ((TRAIN_RECORDINGS[0], 140), (TEST_RECORDINGS[0], 150)):
        (tmp_path / "r" / name).mkdir(parents=True)
        (tmp_path / "r" / name / "truth.json").write_text(json.dumps({"beats_s": list(np.arange(0, 60, 60 / hr))}))
    made = select(small(recordings=tmp_path / "r", n=6), workers=1)
    driven = [clip for clip in made["clips"] if "recording" in clip.get("scene", {})]
    assert driven and {clip["scene"]["recording"] for clip in driven} == {TRAIN_RECORDINGS[0]}
    assert len(frames_of(written(made, seal=False), recordings=tmp_path / "r")) == 6
    with pytest.raises(ClipError, match=f"{driven[0]['id']}: cannot be read: .*driven by recording"):
        frames_of(written(only(made, driven[0])), recordings=tmp_path / "nowhere")
    driven[0]["scene"]["recording"] = TEST_RECORDINGS[0]
    with pytest.raises(ClipError, match=f"{driven[0]['id']}: .*recording of the test half"):
        opened(written(made), recordings=tmp_path / "r")


def test_what_is_known_of_a_recording_is_its_stratum(sets, monkeypatch):
    monkeypatch.setattr(selection_module, "_rendered", lambda wanted: iter(()))
    made = select(small(datasets=sets, n=5), workers=1)
    by_id = {clip["id"]: clip["strata"] for clip in made["clips"]}
    assert by_id["mmpd/1_0@20"]["skin"] == "medium"  # Fitzpatrick 4
    assert by_id["pure/01-01@20"]["skin"] == "unknown" and by_id["pure/01-01@20"]["rate"] == "below 100"  # told: 66
    assert {"pure/01-01@20", "pure/01-01@90", "pure/02-01@20"} <= set(by_id) and len(by_id) == 5  # one is long enough for two
    grey = next(strata for name, strata in by_id.items() if name.startswith("ubfc/"))
    assert grey["light"] == "infrared"  # the three colours are one


def test_held_out_subjects_are_never_selected(sets):
    made = select(small(datasets={"pure": sets["pure"]}, held_out_subjects=("pure/01",), n=4), workers=1)
    assert made["strata"]["source"]["pure"][1] == 1  # candidates: the other subject's
    assert "pure/01" not in {clip.get("subject") for clip in made["clips"]}


@pytest.mark.parametrize(("changed", "message"), [
    ({"held_out_subjects": ("pure/77",)}, "'pure/77' is in no data set given; they hold pure/01, pure/02"),
    ({"datasets": {"nosuch": Path(".")}}, "no data set called 'nosuch'"),
    ({"held_out_domains": ("kitchen",)}, "'kitchen' unknown"),
    ({"n": 0}, "expected at least one"),
    ({"n": 10**6}, "at most"),
])
def test_a_selection_that_makes_no_sense_is_refused_before_rendering(changed, message, sets, monkeypatch):
    monkeypatch.setattr(selection_module, "_rendered", lambda wanted: pytest.fail("rendered"))
    with pytest.raises(SelectionError, match=message):
        select(small(**{"datasets": {"pure": sets["pure"]}} | changed), workers=1)


def test_too_few_candidates_fail_instead_of_a_smaller_manifest(sets, monkeypatch):
    monkeypatch.setattr(selection_module, "_rendered", lambda wanted: iter(()))
    with pytest.raises(SelectionError, match="5 clips wanted and 3 candidates left"):
        select(small(datasets={"pure": sets["pure"]}, n=5), workers=1)


def test_an_unreadable_recording_is_left_out_told_and_counted(sets, tmp_path, capsys):
    shutil.copytree(sets["pure"], tmp_path / "pure")
    (tmp_path / "pure/01-01/01-01.json").write_text("{")
    pictures = sorted((tmp_path / "pure/02-01/02-01").iterdir())
    pictures[50].write_bytes(b"no picture")
    made = select(small(datasets={"pure": tmp_path / "pure"}, n=4), workers=1)
    assert made["left_out"]["unreadable"] == 2 and "pure" not in made["strata"]["source"]
    told = capsys.readouterr().err
    assert "01-01.json" in told and pictures[50].name in told


def test_nothing_is_written_where_the_folder_is_missing_or_the_selection_fails(tmp_path, monkeypatch):
    with pytest.raises(SelectionError, match="folder does not exist"):
        write_manifest(tmp_path / "no" / "clips.json", SMALL)
    monkeypatch.setattr(selection_module, "_rendered", lambda wanted: iter(()))
    with pytest.raises(SelectionError, match="0 candidates"):
        write_manifest(tmp_path / "clips.json", SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_the_sidecar_tells_the_domains_that_the_weights_never_saw():
    _, sidecar = load()
    assert trained_without(sidecar) == ("lux", "phone")
    assert trained_without({}) == ()


# --- reading


def test_every_clip_comes_back_as_it_was_hashed(made, content):
    clips = opened(made)
    assert len(clips) == N and clips.sha256 == content["sha256"]
    for frames, clip in zip(clips, content["clips"], strict=True):
        assert frames.dtype == np.float32 and frames.shape == (FRAMES, 5, SIZE, SIZE)
        assert sha256_of(np.rint(frames * STEPS_PER_UNIT).astype(np.int16)) == clip["sha256"]
        assert np.abs(frames).max() <= 3.0 and frames.any()


def test_a_second_pass_comes_from_the_cache_to_the_bit(made, tmp_path, monkeypatch):
    first = frames_of(made, cache=tmp_path / "cache")
    monkeypatch.setattr(clips_module, "windows", lambda *_: pytest.fail("rendered again"))
    monkeypatch.setattr(clips_module, "ProcessPoolExecutor", lambda *_: pytest.fail("started workers for nothing"))
    second = frames_of(made, cache=tmp_path / "cache", workers=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not list((tmp_path / "cache").glob("*.partial"))


@pytest.mark.parametrize("damage", [lambda b: b[:-7], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_a_damaged_cache_is_made_anew(content, written, tmp_path, damage):
    made = written(only(content, rendered(content), recorded(content)))
    first = frames_of(made, cache=tmp_path)
    file = tmp_path / f"{rendered(content)['sha256']}.npy"
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    again = frames_of(made, cache=tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)) and file.read_bytes() == whole
    record = tmp_path / f"{recorded(content)['sha256']}.npy"
    record.write_bytes(damage(record.read_bytes()))
    with pytest.raises(ClipError, match=f"{recorded(content)['id']}: its cached frames are damaged"):
        frames_of(made, cache=tmp_path)


def change_preprocessing(content: dict) -> None:
    content["preprocessing"]["light_scale"] = 10.0


def repeat_id(content: dict) -> None:
    content["clips"][1]["id"] = content["clips"][0]["id"]


def repeat_content(content: dict) -> None:
    content["clips"][1] = {**content["clips"][0], "id": "another"}


def set_rendered(**fields: object) -> Callable[[dict], None]:
    return lambda content: rendered(content).update(fields)


def set_scene(**fields: object) -> Callable[[dict], None]:
    return lambda content: rendered(content)["scene"].update(fields)


REFUSED: list[tuple[Callable[[dict], object], str]] = [
    (change_preprocessing, r"light_scale = 10.0, this program has 20.0"),
    (lambda c: c["preprocessing"].pop("flow_clip"), r"flow_clip = None"),
    (lambda c: c["clips"].pop(), r"lists 11 clips and says 12"),
    (lambda c: (c["clips"].clear(), c["settings"].update(n=0)), r"lists 0 clips"),
    (repeat_id, r"2 clips of this id"), (repeat_content, r"2 clips of this content"),
    (set_rendered(count=0), r"is empty: 0 frames"), (set_rendered(start=-1), r"is empty"),
    (set_rendered(count=7), r"has 7 frames, the manifest's clips have 8"),
    (set_rendered(count="8"), r"cannot be read in"), (set_rendered(sha256="../../etc"), r"is no SHA-256"),
    (set_scene(seed=MIXED_VALIDATION_SEED0 + 3), r"seed 6000003, which is not the training's"),
    (set_scene(seed=DOMAIN_TEST_SEED0), r"not the training's"), (set_scene(seed=NEWBORN_SEED0), r"not the training's"),
    (set_scene(nosuch=1), r"cannot be read in"), (set_scene(kind="cat"), r"scene kind 'cat' unknown"),
    (lambda c: rendered(c)["strata"].update(source="phone"), r"held-out domain phone"),
    (lambda c: c["settings"]["held_out_subjects"].append(recorded(c)["subject"]), r"of pure/0\d, a held-out subject"),
    (lambda c: c["clips"].__setitem__(3, "mixed-5000001"), r"cannot be read in"),
    (lambda c: c["settings"].pop("held_out_subjects"), r"field missing or of another kind: KeyError\('held_out_subjects'\)"),
    (lambda c: c.update(format=0), r"is no manifest of format 1"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_manifest_that_does_not_fit_is_refused_before_anything_is_rendered(change, message, content, written):
    change(content)
    with pytest.raises(ClipError, match=message):
        opened(written(content))


def test_a_manifest_that_was_altered_or_is_none_is_refused(content, written, made, tmp_path):
    content["clips"][0]["start"] += 1
    with pytest.raises(ClipError, match="was altered after it was made"):
        opened(written(content, seal=False))
    (tmp_path / "cut.json").write_bytes(made.read_bytes()[:-200])
    (tmp_path / "list.json").write_text("[]")
    for name, message in (("cut", "cannot be read as a manifest"), ("list", "is no manifest"), ("missing", "cannot be read")):
        with pytest.raises(ClipError, match=f"{name}.json: {message}"):
            opened(tmp_path / f"{name}.json")


def test_a_manifest_for_another_model_or_with_a_subject_that_is_judged_is_refused(made, content):
    for fits in ({"size": 48}, {"fs_hz": 30.0}):
        with pytest.raises(ClipError, match="is for 12 cells a side at 10.0 /s, the model takes"):
            opened(made, **fits)
    with pytest.raises(ClipError, match=f"{recorded(content)['id']}: .*held-out subject"):
        opened(made, held_out=(recorded(content)["subject"],))


def test_a_clip_that_is_no_longer_what_was_selected_fails_the_pass(content, written):
    rendered(content)["scene"]["brightness"] = 0.9
    with pytest.raises(ClipError, match=f"{rendered(content)['id']}: is not the clip that was selected: .*made with numpy"):
        frames_of(written(content))


def test_a_clip_that_ends_early_fails_the_pass(content, written):
    rendered(content)["scene"]["duration_s"] = 2.3
    with pytest.raises(ClipError, match=f"{rendered(content)['id']}: is short: [1-7] frames from 20 on, the manifest says 8"):
        frames_of(written(content))
    rendered(content)["scene"]["duration_s"] = 1.0
    with pytest.raises(ClipError, match="is short: 0 frames"):
        frames_of(written(content))


def spoil_picture(root: Path) -> None:
    for folder in (root / "01-01/01-01", root / "02-01/02-01"):
        sorted(folder.iterdir())[60].write_bytes(b"no picture")


def cut_recording(root: Path) -> None:
    for name in ("01-01", "02-01"):
        for picture in sorted((root / name / name).iterdir())[70:]:
            picture.unlink()


def shorten_recording(root: Path) -> None:
    shutil.rmtree(root)
    for name in ("01-01", "02-01"):
        write_pure(root, name, frames=70)


def rename_subject(root: Path) -> None:
    for old, new in (("01", "03"), ("02", "04")):
        shutil.move(root / f"{old}-01", root / f"{new}-01")


SPOILERS = [(spoil_picture, "cannot be read: .*Image"), (cut_recording, ".*no readable record 0.*expected one value per frame"),
            (shorten_recording, "is short: [03] frames from [29]0 on"), (rename_subject, ".*has no readable record 0"),
            (shutil.rmtree, "its data set pure cannot be opened")]


def pure_after_a_rendered_one(content: dict) -> dict:
    return only(content, rendered(content), *(clip for clip in content["clips"] if clip.get("dataset") == "pure"))


@pytest.mark.parametrize(("spoil", "message"), SPOILERS)
def test_a_recording_that_cannot_be_read_any_more_fails_the_pass(spoil, message, content, written, sets, tmp_path):
    shutil.copytree(sets["pure"], tmp_path / "pure")
    spoil(tmp_path / "pure")
    with pytest.raises(ClipError, match=f"^pure/0[12]-01@[0-9]+: {message}"):
        frames_of(written(pure_after_a_rendered_one(content)), roots={"pure": tmp_path / "pure"})


def test_workers_make_the_same_clips_and_tell_the_same_errors(content, written, sets, tmp_path):
    shutil.copytree(sets["pure"], tmp_path / "pure")
    spoil_picture(tmp_path / "pure")
    path, roots = written(pure_after_a_rendered_one(content)), {"pure": tmp_path / "pure"}
    clips = iter(opened(path, roots=roots, workers=2))
    assert np.array_equal(next(clips), next(iter(opened(path, roots=roots))))
    with pytest.raises(ClipError, match="^pure/0[12]-01@[0-9]+: cannot be read: .*Image"):
        list(clips)


def test_a_record_of_another_subject_than_the_manifest_says_fails_the_pass(content, written):
    recorded(content)["subject"] = "pure/09"
    with pytest.raises(ClipError, match=r"is of pure/0\d in .*, the manifest says pure/09"):
        frames_of(written(content))


def cheap_windows(source, starts, count, fs_hz, size, recordings):
    """Any frames, without rendering: another for every scene."""
    rng = np.random.default_rng(source.seed)
    yield Seen(rng.integers(-3000, 3001, (count, 5, size, size)).astype(np.int16), True, 100.0, False)


def test_memory_does_not_grow_with_the_number_of_clips(monkeypatch, written, tmp_path):
    monkeypatch.setattr(selection_module, "POOL_PER_CLIP", 1)
    for module in (selection_module, clips_module):
        monkeypatch.setattr(module, "windows", cheap_windows)
    many = select(small(n=400, frames=32), workers=1)
    few = only(many, *many["clips"][:10])
    one_clip = 32 * 5 * SIZE * SIZE * 4

    def peak(content: dict, cache: Path | None) -> int:
        clips = opened(written(content), cache=cache)
        tracemalloc.start()
        assert sum(frames.nbytes for frames in clips) == len(content["clips"]) * one_clip
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        # 390 more clips. Python's own tables may grow meanwhile, by some MB in a long test run, which is why this is no less
        assert peak(many, cache) < peak(few, cache) + 150 * one_clip


@pytest.mark.parametrize("workers", [1, 2])
def test_no_more_clips_are_made_ahead_than_a_few_for_each_worker(workers, monkeypatch):
    monkeypatch.setattr(clips_module, "ProcessPoolExecutor", lambda count, _: ThreadPoolExecutor(count))
    begun = []

    def jobs():
        for i in range(100):
            begun.append(i)
            yield i

    results = in_order(lambda i: -i, jobs(), workers)
    for got in range(40):
        assert next(results) == -got
        assert len(begun) <= got + 1 + clips_module.AHEAD_PER_WORKER * workers
    results.close()
    assert len(begun) < 60
