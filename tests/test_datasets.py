"""Readers of public data sets: what was written in the set's own format comes back, and what is broken is named."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from calibration.datasets import (
    NAMES,
    ClipRecord,
    DatasetError,
    Label,
    matfile,
    normalised,
    open_dataset,
    split_subjects,
    subjects,
)
from calibration.datasets.listing import main_list
from calibration.datasets.pictures import open_mat_video
from tests.dataset_fixtures import (
    coloured,
    wave,
    write_buaa,
    write_cohface,
    write_manifest,
    write_mmpd,
    write_pure,
    write_scamps,
    write_ubfc_1,
    write_ubfc_2,
    write_v4v,
    write_v73,
    write_vipl,
)
from tests.videos import grey_steps, write_timed_video, write_video

h5py = pytest.importorskip("h5py", reason="HDF5 is read by h5py; it is in the extra `test`")


def only(name: str, root: Path) -> ClipRecord:
    (record,) = open_dataset(name, root)
    return record


def grey_levels(record: ClipRecord) -> list[int]:
    return [round(float(frame.bgr.mean())) for frame in record.frames()]


def times_s(record: ClipRecord) -> np.ndarray:
    return np.array([frame.t_ns for frame in record.frames()]) / 1e9


def assert_label(record, kind, values, times, truth, unit="a.u."):
    label = record.labels[kind]
    np.testing.assert_allclose(label.values, values, atol=1e-9)
    np.testing.assert_allclose(label.times_s, times, atol=1e-9)
    assert (label.truth, label.unit) == (truth, unit)


# --- each set, as it is distributed ---


def test_ubfc_part_2_gives_the_wave_on_its_own_times_and_no_rate_while_the_device_shows_zero(tmp_path):
    write_ubfc_2(tmp_path)
    record = only("ubfc", tmp_path)
    t = np.arange(75) / 30
    assert (record.subject, record.name, record.width, record.height) == ("2-1", "2-1", 64, 48)
    assert record.fps == pytest.approx(30)
    assert grey_levels(record) == pytest.approx([2 * i for i in range(75)], abs=1)
    np.testing.assert_allclose(times_s(record), t, atol=1e-6)
    assert_label(record, "pulse", wave(75, 30.0), np.round(t, 8), "contact")
    np.testing.assert_array_equal(record.labels["hr"].values, [np.nan] * 4 + [93.0] * 71)
    assert (record.labels["hr"].truth, record.labels["hr"].unit) == ("device", "per_min")
    assert record.flags == ("line 2 (HR): 4 of 75 values are no reading",)


def test_ubfc_part_1_is_read_from_its_log_in_milliseconds(tmp_path):
    write_ubfc_1(tmp_path)
    record = only("ubfc", tmp_path)
    assert record.fps == pytest.approx(28.5)
    np.testing.assert_allclose(times_s(record), np.arange(57) / 28.5, atol=1e-3)
    assert_label(record, "pulse", np.arange(124) % 50, np.round(np.arange(124) * 1e3 / 62) / 1e3, "contact")
    assert_label(record, "hr", np.full(124, 71), record.labels["pulse"].times_s, "device", "per_min")


def test_ubfc_parts_are_found_together_or_alone_and_in_natural_order(tmp_path):
    for subject in (10, 9):
        write_ubfc_2(tmp_path, subject, frames=30)
    write_ubfc_1(tmp_path)
    write_ubfc_1(tmp_path, "after-exercise", "vid.avi")
    assert subjects("ubfc", tmp_path) == ("1-5", "1-after-exercise", "2-9", "2-10")
    assert subjects("ubfc", tmp_path / "DATASET_2") == ("2-9", "2-10")
    assert [record.name for record in open_dataset("ubfc", tmp_path / "DATASET_1")] == ["1-5", "1-after-exercise"]


@pytest.mark.parametrize("layout", ["nested", "inside", "beside"])
def test_pure_takes_frame_times_from_the_file_names_in_every_layout(tmp_path, layout):
    write_pure(tmp_path, layout=layout)
    record = only("pure", tmp_path)
    assert (record.subject, record.name, record.facts["motion"]) == ("01", "01-01", "steady")
    frames = list(record.frames())
    assert [frame.t_ns for frame in frames] == [33_400_000 * i for i in range(60)]
    np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in frames], coloured(60))
    assert record.fps == pytest.approx(1 / 0.0334)
    assert_label(record, "pulse", np.arange(120) % 97, np.arange(120) * 0.0167 - 0.01, "contact")
    assert_label(record, "hr", np.full(120, 66), np.arange(120) * 0.0167 - 0.01, "device", "per_min")


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_cohface_gives_both_waves_at_256_hz(tmp_path, suffix):
    write_cohface(tmp_path, suffix=suffix)
    record = only("cohface", tmp_path)
    assert (record.subject, record.name, record.facts["light"]) == ("1", "1/0", "studio")
    assert record.fps == pytest.approx(20)
    np.testing.assert_allclose(times_s(record), np.arange(60) / 20, atol=1e-3)
    for kind, per_min in (("pulse", 80), ("resp", 18)):
        assert_label(record, kind, wave(768, 256.0, per_min), np.arange(768) / 256, "contact")
        assert record.labels[kind].rate_hz == pytest.approx(256)
    assert not record.flags


def test_cohface_zeros_before_the_sensor_delivers_are_no_wave(tmp_path):
    write_cohface(tmp_path, leading_zeros=128)
    record = only("cohface", tmp_path)
    assert record.flags == ("pulse: zeros for the first 0.50 s",)
    assert np.isnan(record.labels["pulse"].values[:128]).all() and np.isfinite(record.labels["pulse"].values[128:]).all()


def test_cohface_recordings_that_others_leave_out_are_flagged(tmp_path):
    for session in (1, 2):
        write_cohface(tmp_path, 6, session)
    assert [bool(record.flags) for record in open_dataset("cohface", tmp_path)] == [False, True]


def test_mmpd_gives_upright_pictures_the_wave_and_the_circumstances(tmp_path):
    write_mmpd(tmp_path, subject=3, index=7)
    record = only("mmpd", tmp_path)
    assert (record.subject, record.name, record.width, record.height, record.fps) == ("3", "3_7", 60, 80, 30.0)
    np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in record.frames()], coloured(60, 60, 80))
    np.testing.assert_allclose(times_s(record), np.arange(60) / 30, atol=1e-9)
    assert_label(record, "pulse", wave(60, 30.0), np.arange(60) / 30, "contact")
    assert record.facts == {"light": "LED-low", "motion": "Walking", "exercise": "False", "skin_color": "4",
                            "gender": "female", "glasser": "True", "hair_cover": "False", "makeup": "False"}
    assert not record.flags


def test_mmpd_of_another_size_is_flagged_and_v73_reads_alike(tmp_path):
    path = write_mmpd(tmp_path, frames=30, size=(16, 12))
    (odd,) = open_dataset("mmpd", tmp_path)
    assert odd.flags == ("video is 16x12; the set has 320x240 and 80x60 either way up",)
    path.unlink()
    write_mmpd(tmp_path, frames=30, size=(16, 12), write=write_v73)
    (v73,) = open_dataset("mmpd", tmp_path)
    np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in v73.frames()], coloured(30))
    np.testing.assert_array_equal(v73.labels["pulse"].values, odd.labels["pulse"].values)
    assert v73.facts == odd.facts


def test_pictures_stored_with_time_last_are_put_upright(tmp_path):
    rows_first = coloured(8).transpose(1, 2, 3, 0)
    scipy.io.savemat(tmp_path / "v5.mat", {"video": rows_first})
    write_v73(tmp_path / "v73.mat", {"video": rows_first})
    for path in (tmp_path / "v5.mat", tmp_path / "v73.mat"):
        frames = list(open_mat_video(path, "video", 30.0).frames())
        np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in frames], coloured(8))


def test_vipl_frames_are_at_the_listed_times_and_its_wave_is_never_truth(tmp_path):
    write_vipl(tmp_path)
    record = only("vipl", tmp_path)
    listed = np.round(40.1 * np.arange(50)) / 1e3
    assert (record.subject, record.name) == ("p1", "p1/v1/source1")
    np.testing.assert_allclose(times_s(record), listed, atol=1e-9)  # the container says 30 fps
    assert record.fps == pytest.approx(49 / listed[-1])
    assert_label(record, "hr", [80, 82, 84], [0, 1, 2], "device", "per_min")
    pulse = record.labels["pulse"]
    assert (pulse.aligned, pulse.values.size) == (False, 120) and pulse.times_s[-1] == pytest.approx(listed[-1])
    assert record.truth("pulse") is None and record.truth("hr") is record.labels["hr"]


def test_vipl_phone_videos_go_by_their_container(tmp_path):
    folder = write_vipl(tmp_path, "p2/v1-2/source2")
    (folder / "time.txt").unlink()
    record = only("vipl", tmp_path / "data")
    np.testing.assert_allclose(times_s(record), np.arange(50) / 30, atol=1e-3)
    assert record.fps == pytest.approx(30)


def test_vipl_known_faults_of_the_set_are_no_errors(tmp_path):
    (write_vipl(tmp_path, "p45/v1/source2") / "wave.csv").unlink()
    (write_vipl(tmp_path, "p19/v2/source2") / "video.avi").write_bytes(b"")
    record = only("vipl", tmp_path)
    assert set(record.labels) == {"hr"} and record.flags == ("known: this recording has no wave",)


def test_buaa_takes_the_rate_from_the_file(tmp_path):
    for lux in ("100.0", "6.3"):
        write_buaa(tmp_path, lux=lux)
    dim, bright = open_dataset("buaa", tmp_path)
    assert (dim.name, dim.facts, dim.flags) == ("01/lux6.3", {"lux": "6.3"}, ("dim: 6.3 lux",))
    assert (bright.name, bright.flags) == ("01/lux100", ())
    assert_label(bright, "pulse", wave(118, 59.0, 75), np.arange(118) / 59.0, "contact")


@pytest.mark.parametrize("phase_1", ["Phase 1_ Training_Validation sets", "Phase1_data"])
def test_v4v_is_found_by_file_names_whatever_the_folders_are_called(tmp_path, phase_1):
    train, test = open_dataset("v4v", write_v4v(tmp_path, phase_1))
    assert (train.subject, train.name, test.subject) == ("F001", "F001_T1", "M002")
    per_frame = np.arange(50) / 25
    assert_label(train, "hr", np.round(72 + 0.01 * np.arange(50), 2), per_frame, "device", "per_min")
    assert_label(train, "rr", np.round(16 + 0.01 * np.arange(50), 2), per_frame, "device", "per_min")
    assert_label(train, "pulse", np.round(80 + 20 * wave(2100, 1000.0), 4), np.arange(2100) / 1000, "contact", "mmHg")
    np.testing.assert_allclose(times_s(train), per_frame, atol=1e-3)
    assert test.labels["hr"].values[0] == 64 and test.labels["pulse"].values.size == 2000


def test_a_device_that_never_had_a_reading_gives_a_flag_and_no_label(tmp_path):
    _, test = open_dataset("v4v", write_v4v(tmp_path))  # its RR line is zeros
    assert set(test.labels) == {"hr", "pulse"} and test.flags == ("RR of M002_T2: 50 of 50 values are no reading",)


def test_scamps_streams_frames_and_gives_rendered_truth(tmp_path):
    write_scamps(tmp_path)
    record = only("scamps", tmp_path)
    assert (record.subject, record.name, record.width, record.height, record.fps) == ("P000001", "P000001", 16, 12, 30.0)
    np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in record.frames()], coloured(60))
    for kind, per_min in (("pulse", 70), ("resp", 15)):
        assert_label(record, kind, wave(60, 30.0, per_min), np.arange(60) / 30, "synthetic")


def test_scamps_frames_do_not_depend_on_the_block_they_are_read_in(tmp_path, monkeypatch):
    write_scamps(tmp_path)
    for frames_a_block in (1, 7, 60):
        monkeypatch.setattr(matfile, "BLOCK_BYTES", frames_a_block * 16 * 12 * 3 * 8)
        np.testing.assert_array_equal([f.bgr[..., ::-1] for f in only("scamps", tmp_path).frames()], coloured(60))


def test_scamps_without_the_whole_picture_gives_the_face(tmp_path):
    write_scamps(tmp_path, RawFrames=None)
    record = only("scamps", tmp_path)
    assert (record.width, record.height, record.facts) == (8, 8, {"frames": "Xsub"})


# --- the manifest ---

ROW = {"subject": "s1", "name": "a", "video": "a.mkv", "label": "a.csv", "kind": "pulse", "truth": "contact", "column": "ppg",
       "rate_hz": "60"}


def manifest_set(root: Path, *rows: dict[str, object]) -> Path:
    write_video(root / "a.mkv", grey_steps(60), 30.0)
    lines = "".join(f"{i / 60:.6f},{100 * i + 1},{60 if i % 2 else 61}\n" for i in range(120))
    (root / "a.csv").write_text("t,ppg,hr\n" + lines)
    return write_manifest(root, *(rows or (ROW,)))


@pytest.mark.parametrize("name", ["manifest", "nbhr"])
def test_a_manifest_joins_the_labels_of_one_recording(tmp_path, name):
    path = manifest_set(tmp_path, ROW | {"offset_s": "-0.25", "domain": "ward"}, {
        "subject": "s1", "name": "a", "video": "a.mkv", "label": "a.csv", "kind": "hr", "truth": "device", "column": "hr",
        "times": "t", "times_unit": "s", "domain": "ward"})
    record = only(name, path)
    assert (record.dataset, record.who, record.name, record.domain) == (name, f"{name}/s1", "s1/a", "ward")
    assert_label(record, "pulse", 100 * np.arange(120) + 1, np.arange(120) / 60 - 0.25, "contact")
    assert_label(record, "hr", [61, 60] * 60, np.round(np.arange(120) / 60, 6), "device", "per_min")
    assert only(name, tmp_path).name == "s1/a"  # its folder does as well


def write_label_files(root: Path) -> None:
    values = 100 * np.arange(120) + 1.0
    np.savetxt(root / "bare.txt", values)
    np.savetxt(root / "two.tsv", np.column_stack([np.zeros(120), values]), delimiter="\t")
    scipy.io.savemat(root / "v5.mat", {"ppg": values, "S": {"data": values}})
    write_v73(root / "v73.mat", {"ppg": values, "S": {"data": values}})
    with h5py.File(root / "x.h5", "w") as out:
        out["group/ppg"] = values
    np.save(root / "x.npy", values)
    np.savez(root / "x.npz", PPG=values)


@pytest.mark.parametrize(("file", "column"), [
    ("bare.txt", ""), ("two.tsv", "2"), ("v5.mat", "ppg"), ("v5.mat", "S.data"), ("v73.mat", "ppg"), ("v73.mat", "S.data"),
    ("x.h5", "group/ppg"), ("x.npy", ""), ("x.npz", "PPG")])
def test_a_manifest_reads_labels_of_every_format(tmp_path, file, column):
    path = manifest_set(tmp_path, ROW | {"label": file, "column": column})
    write_label_files(tmp_path)
    np.testing.assert_array_equal(only("manifest", path).labels["pulse"].values, 100 * np.arange(120) + 1)


def test_a_manifest_overrides_a_wrong_rate_or_gives_every_frame_its_time(tmp_path):
    (tmp_path / "times.txt").write_text("".join(f"{500 + 50 * i}\n" for i in range(60)))
    faster, listed = open_dataset("manifest", manifest_set(
        tmp_path, ROW | {"fps": "60"},
        ROW | {"name": "b", "frame_times": "times.txt", "frame_times_unit": "ms", "label": "", "kind": "", "truth": "",
               "rate_hz": ""}))
    np.testing.assert_allclose(times_s(faster), np.arange(60) / 60, atol=1e-9)
    np.testing.assert_allclose(times_s(listed), np.arange(60) / 20, atol=1e-9)
    assert (faster.fps, listed.fps, dict(listed.labels)) == (60.0, pytest.approx(20), {})


def test_a_manifest_reads_a_folder_of_pictures(tmp_path):
    pictures = write_pure(tmp_path / "p", layout="inside")
    record = only("manifest", manifest_set(tmp_path, ROW | {"video": pictures.relative_to(tmp_path), "fps": "25"}))
    np.testing.assert_allclose(times_s(record), np.arange(60) / 25, atol=1e-9)
    np.testing.assert_array_equal([frame.bgr[..., ::-1] for frame in record.frames()], coloured(60))


def test_a_breath_derived_from_a_pulse_is_a_label_but_never_truth(tmp_path):
    record = only("manifest", manifest_set(tmp_path, ROW | {"kind": "rr", "truth": "derived", "column": "hr"}))
    assert record.labels["rr"].truth == "derived" and record.truth("rr") is None
    assert normalised(record, 30.0, 8)[1] == {}


def test_video_times_are_those_of_the_container_also_where_they_are_uneven(tmp_path):
    uneven = [0.0, 0.04, 0.07, 0.2, 0.24, 0.5, 0.52, 0.9, 1.0, 1.5]
    write_manifest(tmp_path, ROW | {"label": "", "kind": "", "truth": ""})
    write_timed_video(tmp_path / "a.mkv", grey_steps(10), uneven)
    np.testing.assert_allclose(times_s(only("manifest", tmp_path)), uneven, atol=1e-3)


# --- broken records ---


def assert_broken(name: str, root: Path, file: str, field: str) -> str:
    """Reading every record and frame fails, with a DatasetError that names this file and this field."""
    with pytest.raises(DatasetError) as caught:
        for record in open_dataset(name, root):
            for _ in record.frames():
                pass
    assert caught.value.path.name == file and field in caught.value.field, str(caught.value)
    assert str(caught.value.path) in str(caught.value) and len(caught.value.problem) > 15
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


def cut(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:int(keep * len(content))])


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def line(text: str, index: int, change) -> str:
    lines = text.splitlines()
    lines[index] = change(lines[index])
    return "\n".join(lines) + "\n"


def half(text: str) -> str:
    words = text.split()
    return " ".join(words[:len(words) // 2])


def per_line_half(text: str) -> str:
    return "\n".join(half(row) for row in text.splitlines()) + "\n"


UBFC_BROKEN = {
    "no truth": (lambda p: (p / "ground_truth.txt").unlink(), "ground_truth.txt", "ground truth"),
    "empty truth": (lambda p: (p / "ground_truth.txt").write_text(""), "ground_truth.txt", "ground truth"),
    "not text": (lambda p: (p / "ground_truth.txt").write_bytes(b"\xff\xfe\xff"), "ground_truth.txt", "ground truth"),
    "two lines": (lambda p: rewrite(p / "ground_truth.txt", lambda t: t[:t.rindex("\n", 0, -1)]), "ground_truth.txt", "lines"),
    "cut line": (lambda p: rewrite(p / "ground_truth.txt", lambda t: line(t, 1, half)), "ground_truth.txt", "line 2 (HR)"),
    "cut times": (lambda p: rewrite(p / "ground_truth.txt", lambda t: line(t, 2, half)), "ground_truth.txt", "line 1 (wave)"),
    "text": (lambda p: rewrite(p / "ground_truth.txt", lambda t: line(t, 0, lambda s: s.replace("e", "x", 1))),
             "ground_truth.txt", "line 1 (wave)"),
    "times fall": (lambda p: rewrite(p / "ground_truth.txt", lambda t: line(t, 2, lambda s: " ".join(reversed(s.split())))),
                   "ground_truth.txt", "times of line 2"),
    "times stand": (lambda p: rewrite(p / "ground_truth.txt", lambda t: line(t, 2, lambda s: " ".join(["1.0"] * 75))),
                    "ground_truth.txt", "times of line 2"),
    "half of the frames": (lambda p: rewrite(p / "ground_truth.txt", per_line_half), "ground_truth.txt", "line 1 (wave)"),
    "no video": (lambda p: (p / "vid.avi").unlink(), "vid.avi", "video"),
    "empty video": (lambda p: (p / "vid.avi").write_bytes(b""), "vid.avi", "video"),
    "text as video": (lambda p: (p / "vid.avi").write_text("no video at all"), "vid.avi", "video"),
}


@pytest.mark.parametrize("fault", UBFC_BROKEN)
def test_ubfc_2_faults_are_named(tmp_path, fault):
    damage, file, field = UBFC_BROKEN[fault]
    damage(write_ubfc_2(tmp_path))
    assert_broken("ubfc", tmp_path, file, field)


@pytest.mark.parametrize(("change", "field"), [
    (lambda t: line(t, 7, lambda s: s.rpartition(",")[0]), "line 8"),
    (lambda t: line(t, 7, lambda s: "abc" + s[s.index(","):]), "column time_ms"),
    (lambda t: line(t, 7, lambda s: s.replace(",71,", ",--,")), "column HR"),
    (lambda t: line(t, 7, lambda s: "1" + s[s.index(","):]), "times of column HR"),
    (lambda t: "", "log"),
])
def test_ubfc_1_faults_are_named(tmp_path, change, field):
    rewrite(write_ubfc_1(tmp_path) / "gtdump.xmp", change)
    assert_broken("ubfc", tmp_path, "gtdump.xmp", field)


def test_two_videos_where_one_belongs_are_an_error(tmp_path):
    folder = write_ubfc_1(tmp_path)
    shutil.copy(folder / "vid-5.avi", folder / "vid-6.avi")
    assert_broken("ubfc", tmp_path, "5-gt", "video")


PURE_BROKEN = {
    "no json": (lambda p: (p / "01-01.json").unlink(), "01-01", "01-01.json"),
    "cut json": (lambda p: cut(p / "01-01.json"), "01-01.json", "samples"),
    "a list": (lambda p: (p / "01-01.json").write_text("[1]"), "01-01.json", "samples"),
    "no samples": (lambda p: edit_json(p / "01-01.json", lambda c: c.pop("/FullPackage")), "01-01.json", "/FullPackage"),
    "no wave": (lambda p: edit_json(p / "01-01.json", lambda c: c["/FullPackage"][3]["Value"].pop("waveform")),
                "01-01.json", "/FullPackage[3].Value.waveform"),
    "text": (lambda p: edit_json(p / "01-01.json", lambda c: c["/FullPackage"][3]["Value"].update(pulseRate="x")),
             "01-01.json", "/FullPackage[3].Value.pulseRate"),
    "time falls": (lambda p: edit_json(p / "01-01.json", lambda c: c["/FullPackage"].reverse()), "01-01.json", "times of"),
    "half of the frames": (lambda p: edit_json(p / "01-01.json", lambda c: c.update({"/Image": c["/Image"][:25]})),
                           "01-01.json", "/Image"),
    "another clock": (lambda p: edit_json(p / "01-01.json", lambda c: [s.update(Timestamp=s["Timestamp"] // 1000)
                                                                       for s in c["/Image"]]), "01-01.json", "/Image[0]"),
    "samples of another day": (lambda p: edit_json(p / "01-01.json", lambda c: [
        s.update(Timestamp=s["Timestamp"] + 10**13) for s in c["/FullPackage"]]), "01-01", "pulse label"),
    "empty picture": (lambda p: sorted((p / "01-01").iterdir())[9].write_bytes(b""),
                      "Image1392643993943415000.png", "picture"),
    "odd name": (lambda p: sorted((p / "01-01").iterdir())[9].rename(p / "01-01" / "extra.png"), "extra.png", "file name"),
    "a time twice": (lambda p: shutil.copy(sorted((p / "01-01").iterdir())[9], p / "01-01" / "Image01392643993943415000.png"),
                     "01-01", "time of"),
    "no pictures": (lambda p: [path.unlink() for path in (p / "01-01").iterdir()], "01-01", "pictures"),
}


@pytest.mark.parametrize("fault", PURE_BROKEN)
def test_pure_faults_are_named(tmp_path, fault):
    damage, file, field = PURE_BROKEN[fault]
    damage(write_pure(tmp_path))
    assert_broken("pure", tmp_path, file, field)


def rewrite_hdf5(path: Path, **arrays: object) -> None:
    with h5py.File(path, "a") as stored:
        for name, array in arrays.items():
            del stored[name]
            if array is not None:
                stored[name] = array


COHFACE_BROKEN = {
    "no pulse": (lambda p: rewrite_hdf5(p, pulse=None), "pulse"),
    "no breath": (lambda p: rewrite_hdf5(p, respiration=None), "respiration"),
    "no time": (lambda p: rewrite_hdf5(p, time=None), "time"),
    "lengths differ": (lambda p: rewrite_hdf5(p, pulse=np.zeros(100) + 1), "pulse"),
    "text": (lambda p: rewrite_hdf5(p, respiration=["a"] * 768), "respiration"),
    "time falls": (lambda p: rewrite_hdf5(p, time=-np.arange(768.0)), "times of pulse"),
    "time not a number": (lambda p: rewrite_hdf5(p, time=np.full(768, np.nan)), "times of pulse"),
    "nothing but NaN": (lambda p: rewrite_hdf5(p, pulse=np.full(768, np.nan)), "pulse"),
    "cut": (cut, "time"),
    "empty": (lambda p: p.write_bytes(b""), "time"),
    "missing": (Path.unlink, "time"),
}


@pytest.mark.parametrize("fault", COHFACE_BROKEN)
def test_cohface_faults_are_named(tmp_path, fault):
    damage, field = COHFACE_BROKEN[fault]
    damage(write_cohface(tmp_path) / "data.hdf5")
    assert_broken("cohface", tmp_path, "data.hdf5", field)


def test_a_label_over_too_little_of_the_video_is_an_error(tmp_path):
    folder = write_cohface(tmp_path)
    rewrite_hdf5(folder / "data.hdf5", pulse=np.ones(300), respiration=np.ones(300), time=np.arange(300) / 256)
    assert_broken("cohface", tmp_path, "data.avi", "pulse label")


def test_a_video_that_ends_early_is_an_error_even_though_it_opens(tmp_path):
    folder = write_cohface(tmp_path, suffix=".mkv")
    cut(folder / "data.mkv", 0.5)
    (record,) = open_dataset("cohface", tmp_path)  # the header still claims all of it
    with pytest.raises(DatasetError, match="ends early.*fetch"):
        list(record.frames())


@pytest.mark.parametrize(("changed", "field"), [
    ({"video": None}, "video"), ({"GT_ppg": None}, "GT_ppg"), ({"light": None}, "light"),
    ({"video": np.zeros((60, 12, 16))}, "video"), ({"video": np.zeros((60, 3, 12, 16))}, "video"),
    ({"video": np.full((60, 12, 16, 3), 200.0)}, "video, frame 0"),
    ({"video": np.full((60, 12, 16, 3), np.nan)}, "video, frame 0"),
    ({"GT_ppg": wave(20, 30.0)[None]}, "GT_ppg"), ({"GT_ppg": "text"}, "GT_ppg"), ({"light": "Candle"}, "light"),
    ({"skin_color": np.array([[2]])}, "skin_color"), ({"GT_ppg": np.zeros((1, 0))}, "GT_ppg"),
])
def test_mmpd_faults_are_named(tmp_path, changed, field):
    write_mmpd(tmp_path, size=(16, 12), **changed)
    assert_broken("mmpd", tmp_path, "p1_0.mat", field)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.02, 0.3, 0.9])
def test_a_matlab_5_file_cut_anywhere_is_an_error(tmp_path, keep):
    cut(write_mmpd(tmp_path), keep)
    assert_broken("mmpd", tmp_path, "p1_0.mat", "")


def test_a_file_that_is_no_matlab_file_is_named(tmp_path):
    write_mmpd(tmp_path).write_text("404 not found " * 60)
    assert_broken("mmpd", tmp_path, "p1_0.mat", "file")


@pytest.mark.parametrize(("changed", "field"), [
    ({"RawFrames": None, "Xsub": None}, "RawFrames"), ({"d_ppg": None}, "d_ppg"), ({"d_br": None}, "d_br"),
    ({"d_ppg": wave(29, 30.0)}, "d_ppg"), ({"RawFrames": np.zeros((60, 12, 16))}, "RawFrames"),
    ({"RawFrames": np.full((60, 12, 16, 3), 2.0)}, "RawFrames, frame 0"), ({"d_br": {"x": np.zeros(3)}}, "d_br"),
])
def test_scamps_faults_are_named(tmp_path, changed, field):
    if "RawFrames" in changed and changed["RawFrames"] is not None and changed["RawFrames"].ndim < 4:
        write_v73(tmp_path / "P000001.mat", {"RawFrames": changed["RawFrames"]})
    else:
        write_scamps(tmp_path, **changed)
    assert_broken("scamps", tmp_path, "P000001.mat", field)


@pytest.mark.parametrize("keep", [0.0, 0.005, 0.1, 0.95])
def test_a_matlab_73_file_cut_anywhere_is_an_error(tmp_path, keep):
    cut(write_scamps(tmp_path), keep)
    assert_broken("scamps", tmp_path, "P000001.mat", "")


VIPL_BROKEN = {
    "no wave": (lambda p: (p / "wave.csv").unlink(), "wave.csv", "wave"),
    "no header": (lambda p: rewrite(p / "wave.csv", lambda t: t.removeprefix("Wave\n")), "wave.csv", "header"),
    "text": (lambda p: rewrite(p / "wave.csv", lambda t: line(t, 5, lambda s: "a")), "wave.csv", "column Wave"),
    "two columns": (lambda p: rewrite(p / "gt_HR.csv", lambda t: line(t, 2, lambda s: s + ",1")), "gt_HR.csv", "line 3"),
    "header alone": (lambda p: (p / "gt_HR.csv").write_text("HR\n"), "gt_HR.csv", "heart rate"),
    "one rate": (lambda p: (p / "gt_HR.csv").write_text("HR\n70\n"), "gt_HR.csv", "column HR"),
    "no times": (lambda p: (p / "time.txt").unlink(), "time.txt", "frame times"),
    "times fall": (lambda p: rewrite(p / "time.txt", lambda t: line(t, 9, lambda s: "3")), "time.txt", "frame times"),
    "few times": (lambda p: rewrite(p / "time.txt", lambda t: "\n".join(t.splitlines()[:20])), "time.txt", "frame times"),
    "one time too few": (lambda p: rewrite(p / "time.txt", lambda t: "\n".join(t.splitlines()[:-1])), "video.avi", "times"),
    "empty video": (lambda p: (p / "video.avi").write_bytes(b""), "video.avi", "video"),
}


@pytest.mark.parametrize("fault", VIPL_BROKEN)
def test_vipl_faults_are_named(tmp_path, fault):
    damage, file, field = VIPL_BROKEN[fault]
    damage(write_vipl(tmp_path))
    assert_broken("vipl", tmp_path, file, field)


@pytest.mark.parametrize(("ppg", "field"), [
    ({"fs": None}, "PPG.fs"), ({"data": None}, "PPG.data"), ({"fs": 0.0}, "PPG.data"), ({"fs": np.array([1.0, 2.0])}, "PPG.fs"),
    ({"data": "text"}, "PPG.data"), ({"data": wave(30, 59.0)}, "pulse label")])
def test_buaa_faults_are_named(tmp_path, ppg, field):
    write_buaa(tmp_path, **ppg)
    assert_broken("buaa", tmp_path, "lux10.0_APH.avi" if "label" in field else "lux10.0_PPGData.mat", field)


V4V_BROKEN = {
    "no rates": (lambda p: next(p.rglob("F001_T1.txt")).unlink(), "F001_T1.mkv", "HR, RR"),
    "one line": (lambda p: rewrite(next(p.rglob("F001_T1.txt")), lambda t: t.splitlines()[0]), "F001_T1.txt", "RR of F001_T1"),
    "cut line": (lambda p: rewrite(next(p.rglob("F001_T1.txt")), lambda t: t[:t.rindex("RR") + 60]), "F001_T1.txt", "RR of"),
    "no name": (lambda p: rewrite(next(p.rglob("F001_T1.txt")), lambda t: t.replace("F001_T1.mkv, ", "")), "F001_T1.txt",
                "line 1"),
    "another clip": (lambda p: rewrite(next(p.rglob("F001_T1.txt")), lambda t: t.replace("F001", "F009")), "F001_T1.txt",
                     "clip"),
    "text": (lambda p: rewrite(next(p.rglob("F001_T1.txt")), lambda t: t.replace("72.01", "high")), "F001_T1.txt", "HR of"),
    "no pressure": (lambda p: next(p.rglob("F001-T1-BP.txt")).unlink(), "F001_T1.mkv", "blood pressure"),
    "text as pressure": (lambda p: rewrite(next(p.rglob("F001-T1-BP.txt")), lambda t: line(t, 4, lambda s: "x")),
                         "F001-T1-BP.txt", "column pressure"),
    "cut pressure": (lambda p: rewrite(next(p.rglob("F001-T1-BP.txt")), lambda t: t[:3000]), "F001_T1.mkv", "pulse label"),
    "empty release": (lambda p: next(p.rglob("*_gt_release.txt")).write_text(""), "test_set_gt_release.txt", "rates"),
}


@pytest.mark.parametrize("fault", V4V_BROKEN)
def test_v4v_faults_are_named(tmp_path, fault):
    damage, file, field = V4V_BROKEN[fault]
    damage(write_v4v(tmp_path))
    assert_broken("v4v", tmp_path, file, field)


def test_v4v_copies_without_any_blood_pressure_still_give_rates(tmp_path):
    for path in [*write_v4v(tmp_path).rglob("*-BP.txt"), *tmp_path.rglob("M002-T2.txt")]:
        path.unlink()
    assert [set(record.labels) for record in open_dataset("v4v", tmp_path)] == [{"hr", "rr"}, {"hr"}]


@pytest.mark.parametrize(("changed", "field"), [
    ({"rate_hz": ""}, "line 2, rate_hz"), ({"rate_hz": "fast"}, "line 2, rate_hz"), ({"rate_hz": "-1"}, "line 2, rate_hz"),
    ({"times": "t", "times_unit": "s"}, "line 2, rate_hz"), ({"rate_hz": "", "times": "t"}, "line 2, times_unit"),
    ({"kind": "spo2"}, "line 2, kind"), ({"truth": ""}, "line 2, truth"), ({"truth": "good"}, "line 2, truth"),
    ({"label": ""}, "line 2, label"), ({"video": "b.mkv"}, "line 2, video"), ({"subject": ""}, "line 2, subject"),
    ({"fps": "0"}, "line 2, fps"), ({"fps": "30", "frame_times": "a.csv"}, "line 2, fps"), ({"offset_s": "nan"}, "offset_s"),
    ({"aligned": "maybe"}, "line 2, aligned"), ({"kind": "hr", "unit": "Hz"}, "line 2, unit"),
])
def test_manifest_faults_are_named_by_line_and_column(tmp_path, changed, field):
    manifest_set(tmp_path, ROW | changed)
    assert_broken("manifest", tmp_path, "manifest.csv", field)


@pytest.mark.parametrize(("label", "column", "file", "field"), [
    ("gone.csv", "ppg", "gone.csv", "column ppg"), ("a.csv", "pulse", "a.csv", "column pulse"),
    ("a.csv", "4", "a.csv", "column 4"), ("a.csv", "2", "a.csv", "column 2"),
    ("a.wav", "", "a.wav", "file name"), ("bad.npy", "", "bad.npy", "array"),
    ("x.npz", "other", "x.npz", "other"), ("bad.npz", "PPG", "bad.npz", "PPG"), ("x.h5", "ppg", "x.h5", "ppg"),
    ("v5.mat", "S.other", "v5.mat", "S.other"), ("v73.mat", "S.other", "v73.mat", "S.other"),
    ("v73.mat", "no", "v73.mat", "no"),
])
def test_label_files_of_a_manifest_that_do_not_fit_are_named(tmp_path, label, column, file, field):
    manifest_set(tmp_path, ROW | {"label": label, "column": column})
    write_label_files(tmp_path)
    for bad in ("bad.npy", "bad.npz"):
        (tmp_path / bad).write_bytes(b"PK nothing of the kind")
    assert_broken("manifest", tmp_path, file, field)


@pytest.mark.parametrize(("change", "field"), [
    (lambda t: t.replace("kind,", "sort,", 1), "header"), (lambda t: t.replace("domain", "place", 1), "header"),
    (lambda t: t.splitlines()[0] + "\n", "rows"), (lambda t: "", "manifest"), (lambda t: t[:-20], "line 2"),
    (lambda t: t.rstrip("\n") + ",x\n", "line 2"), (lambda t: t + t.splitlines()[1] + "\n", "line 3, kind"),
    (lambda t: t + t.splitlines()[1].replace("a.mkv", "b.mkv") + "\n", "line 3, video"),
])
def test_a_damaged_manifest_is_named(tmp_path, change, field):
    rewrite(manifest_set(tmp_path), change)
    assert_broken("manifest", tmp_path, "manifest.csv", field)


def test_a_picture_folder_without_a_rate_is_refused_and_so_is_a_bare_stream(tmp_path):
    pictures = write_pure(tmp_path / "p", layout="inside")
    manifest_set(tmp_path, ROW | {"video": pictures.relative_to(tmp_path)})
    assert_broken("manifest", tmp_path, "manifest.csv", "line 2, fps")
    (tmp_path / "bare.mjpeg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    write_manifest(tmp_path, ROW | {"video": "bare.mjpeg"})
    assert "ffmpeg" in assert_broken("manifest", tmp_path, "bare.mjpeg", "video")


@pytest.mark.parametrize("name", NAMES)
def test_a_root_that_is_missing_or_another_set_is_refused_at_once(tmp_path, name):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DatasetError, match="expected|holds no|no such file") as caught:
            open_dataset(name, root)
        assert caught.value.path.is_relative_to(root)


def test_an_unknown_data_set_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'ubfc3'; choose from ubfc, pure"):
        open_dataset("ubfc3", tmp_path)


def test_broken_records_stop_the_reading_unless_they_are_collected(tmp_path):
    for subject in (1, 2, 3):
        write_ubfc_2(tmp_path, subject, frames=30)
    (tmp_path / "DATASET_2/subject2/ground_truth.txt").unlink()
    with pytest.raises(DatasetError, match="subject2"):
        list(open_dataset("ubfc", tmp_path))
    broken: list[DatasetError] = []
    assert [record.name for record in open_dataset("ubfc", tmp_path, broken)] == ["2-1", "2-3"]
    assert [error.path.parent.name for error in broken] == ["subject2"]
    assert str(pickle.loads(pickle.dumps(broken[0]))) == str(broken[0])


# --- constant memory ---


def peak_bytes(record: ClipRecord) -> int:
    tracemalloc.start()
    try:
        count = sum(1 for _ in record.frames())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == record.pictures.count
    return peak


def write_long(kind: str, root: Path, frames: int) -> ClipRecord:
    size = (80, 60)
    if kind == "video":
        write_manifest(root, ROW | {"label": "", "kind": "", "truth": ""})
        write_video(root / "a.mkv", grey_steps(frames, size), 30.0)
        return only("manifest", root)
    if kind == "pictures":
        write_pure(root, frames=frames, size=size)
        return only("pure", root)
    write_scamps(root, frames=frames, size=size)
    return only("scamps", root)


@pytest.mark.parametrize("kind", ["video", "pictures", "v7.3 array"])
def test_ten_times_the_frames_need_no_more_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(matfile, "BLOCK_BYTES", 5 * 80 * 60 * 3 * 8)
    short, long = (write_long(kind, tmp_path / str(frames), frames) for frames in (20, 200))
    peak_bytes(short)  # what libraries allocate once
    first, second = peak_bytes(short), peak_bytes(long)
    assert second < 1.2 * first + 20_000 and second < 0.5 * 200 * 80 * 60 * 3


def test_frames_are_decoded_when_they_are_asked_for(tmp_path):
    folder = write_pure(tmp_path)
    frames = iter(only("pure", tmp_path).frames())
    next(frames)
    for path in sorted((folder / "01-01").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match="picture"):
        next(frames)


# --- labels, splits, the student's view, the table ---


def test_a_label_is_interpolated_inside_and_nowhere_else():
    label = Label(np.array([0.0, 1.0, 2.0, np.nan, 4.0, 5.0, 15.0]), np.array([0.0, 1, 2, 3, 4, 5, 15]), "a.u.", "contact")
    np.testing.assert_allclose(label.at([0.25, 1.5]), [0.25, 1.5])
    np.testing.assert_allclose(label.at([0.0, 2.0, 4.0, 5.0, 15.0, 15 + 1e-8, -1e-8]), [0, 2, 4, 5, 15, 15, 0])
    assert np.isnan(label.at([-0.1, 15.1, 2.5, 3.0, 3.5, 9.0])).all()
    assert label.at(1.5) == 1.5 and label.rate_hz == pytest.approx(0.4)
    even = Label(np.arange(3.0), np.arange(3.0), "a.u.", "contact")
    outside = np.isnan(even.at([-0.01, 0.0, 1.99, 2.0, 2.01, 2.9]))
    np.testing.assert_array_equal(outside, [True, False, False, False, True, True])


@pytest.mark.parametrize(("values", "times", "truth"), [
    ([1.0], [0.0], "contact"), ([1.0, 2.0], [0.0], "contact"), ([1.0, 2.0], [0.0, 0.0], "contact"),
    ([1.0, 2.0], [0.0, np.nan], "contact"), ([1.0, 2.0], [0.0, 1.0], "guess")])
def test_a_label_that_is_no_label_cannot_be_made(values, times, truth):
    with pytest.raises(ValueError, match="label:"):
        Label(np.array(values), np.array(times), "a.u.", truth)


def test_a_few_repeated_times_are_dropped(tmp_path):
    path = write_ubfc_2(tmp_path) / "ground_truth.txt"
    rewrite(path, lambda t: line(t, 2, lambda s: " ".join([*s.split()[:10], s.split()[9], *s.split()[11:]])))
    assert only("ubfc", tmp_path).labels["pulse"].values.size == 74


def test_splits_keep_each_subject_on_one_side_and_refuse_a_name_nobody_has(tmp_path):
    for name in ("01-01", "01-02", "02-01"):
        write_pure(tmp_path, name)
    records = list(open_dataset("pure", tmp_path))
    rest, held = split_subjects(records, {"pure/01"})
    assert ([r.name for r in rest], [r.name for r in held]) == (["02-01"], ["01-01", "01-02"])
    with pytest.raises(ValueError, match="pure/03 is in no record"):
        split_subjects(records, {"pure/03"})


def test_the_student_sees_a_record_through_the_runtimes_preprocessing(tmp_path):
    write_cohface(tmp_path, leading_zeros=128)
    clip, labels = normalised(only("cohface", tmp_path), 25.0, 8)
    t = np.arange(clip.valid.size) / 25.0
    assert clip.frames.shape == (74, 5, 8, 8) and clip.valid.all()
    assert set(labels) == {"pulse", "resp"}
    np.testing.assert_allclose(labels["resp"], np.interp(t, np.arange(768) / 256, wave(768, 256.0, 18)), atol=1e-6)
    np.testing.assert_array_equal(np.isnan(labels["pulse"]), t < 0.5)
    assert normalised(only("cohface", tmp_path), 25.0, 8, limit=10)[0].valid.size == 10


def test_a_record_and_its_pictures_can_go_to_another_process(tmp_path):
    write_vipl(tmp_path)
    record = only("vipl", tmp_path)
    np.testing.assert_array_equal(times_s(pickle.loads(pickle.dumps(record))), times_s(record))


def test_the_table_lists_records_and_reports_the_broken_ones(tmp_path, capsys):
    write_vipl(tmp_path)
    assert main_list("vipl", tmp_path) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "p1/v1/source1" in rows[1] and "64x48" in rows[1] and "hr 1 Hz device" in rows[1] and "contact unaligned" in rows[1]
    assert rows[2] == "1 records of 1 subjects, 0 broken"
    (write_vipl(tmp_path, "p2/v1/source1") / "gt_HR.csv").unlink()
    assert main_list("vipl", tmp_path) == 1
    assert "p2/v1/source1/gt_HR.csv: heart rate: no such file" in capsys.readouterr().err
    assert main_list("vipl", tmp_path / "nowhere") == 2 and "does not exist" in capsys.readouterr().err


def test_the_table_finds_damaged_pictures_only_when_it_decodes_them(tmp_path, capsys):
    sorted((write_pure(tmp_path) / "01-01").iterdir())[30].write_bytes(b"")
    assert main_list("pure", tmp_path) == 0
    assert main_list("pure", tmp_path, decode=True) == 1
    assert "0 records of 0 subjects, 1 broken" in capsys.readouterr().out
