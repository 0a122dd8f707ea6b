"""Writes small data sets in the layouts and file formats in which the public ones are distributed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.videos import grey_steps, write_video

START_NS = 1392643993642815000
"""The first picture of PURE 01-01: nanoseconds that no double can hold."""


def wave(n: int, rate_hz: float, per_min: float = 90.0) -> NDArray[np.float64]:
    return np.round(np.sin(2 * np.pi * per_min / 60 * np.arange(n) / rate_hz) + 0.01, 6)


def coloured(count: int, width: int = 16, height: int = 12) -> NDArray[np.uint8]:
    """(count, height, width, 3) RGB in which time, row, column and colour each tell themselves."""
    t, row, col, colour = np.ogrid[:count, :height, :width, :3]
    return ((t + 3 * row + 5 * col + 60 * colour) % 251).astype(np.uint8)


def write_ubfc_2(root: Path, subject: int = 1, frames: int = 75, part: str = "DATASET_2/") -> Path:
    folder = root / f"{part}subject{subject}"
    folder.mkdir(parents=True)
    write_video(folder / "vid.avi", grey_steps(frames), 30.0)
    hr = np.full(frames, 93.0)
    hr[:4] = 0.0
    lines = [" ".join(f"{x:.7e}" for x in row) for row in (wave(frames, 30.0), hr, np.arange(frames) / 30.0)]
    (folder / "ground_truth.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_ubfc_1(root: Path, name: str = "5-gt", video: str = "vid-5.avi") -> Path:
    folder = root / "DATASET_1" / name
    folder.mkdir(parents=True)
    write_video(folder / video, grey_steps(57), 28.5)
    n = 124
    table = np.column_stack([np.round(np.arange(n) * 1e3 / 62), np.full(n, 71), np.full(n, 98), np.arange(n) % 50])
    np.savetxt(folder / "gtdump.xmp", table, fmt="%d", delimiter=",")
    return folder


def write_pure(root: Path, name: str = "01-01", layout: str = "nested", frames: int = 60,
               size: tuple[int, int] = (16, 12)) -> Path:
    """layout: nested, inside (pictures and JSON in one folder) or beside (JSON next to the folder)."""
    folder = root / name
    pictures = folder / name if layout == "nested" else folder
    pictures.mkdir(parents=True)
    step_ns = 33_400_000
    for i, picture in enumerate(coloured(frames, *size)):
        cv2.imwrite(str(pictures / f"Image{START_NS + i * step_ns}.png"), picture[..., ::-1])
    samples = 2 * frames
    content = {
        "/FullPackage": [{"Timestamp": START_NS - 10_000_000 + i * step_ns // 2,
                          "Value": {"waveform": i % 97, "pulseRate": 66, "o2saturation": 99, "signalStrength": 5}}
                         for i in range(samples)],
        "/Image": [{"Timestamp": START_NS + i * step_ns, "Value": {}} for i in range(frames)],
    }
    where = root if layout == "beside" else folder
    (where / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_cohface(root: Path, subject: int = 1, session: int = 0, suffix: str = ".avi", leading_zeros: int = 0) -> Path:
    import h5py

    folder = root / str(subject) / str(session)
    folder.mkdir(parents=True)
    write_video(folder / f"data{suffix}", grey_steps(60), 20.0, "MJPG" if suffix == ".avi" else "FFV1")
    n = 3 * 256
    pulse, resp = wave(n, 256.0, 80), wave(n, 256.0, 18)
    pulse[:leading_zeros] = 0.0
    with h5py.File(folder / "data.hdf5", "w") as out:
        out["pulse"], out["respiration"], out["time"] = pulse, resp, np.arange(n) / 256.0
    return folder


MMPD_FACTS = {"light": "LED-low", "motion": "Watching Videos", "exercise": "False", "skin_color": np.array([[4]]),
              "gender": "female", "glasser": "True", "hair_cover": "False", "makeup": "False"}


def write_mmpd(root: Path, subject: int = 1, index: int = 0, frames: int = 60, size: tuple[int, int] = (60, 80),
               write: Callable[..., None] | None = None, **changed: object) -> Path:
    """write: another writer than MATLAB v5, such as write_v73."""
    import scipy.io

    folder = root / f"subject{subject}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"p{subject}_{index}.mat"
    content = {"video": coloured(frames, *size) / 255.0, "GT_ppg": wave(frames, 30.0)[None]} | MMPD_FACTS | changed
    content = {key: value for key, value in content.items() if value is not None}
    if write is None:
        scipy.io.savemat(path, content, do_compression=True)
    else:
        write(path, content)
    return path


def write_v73(path: Path, variables: dict[str, object], chunks: dict[str, tuple[int, ...]] | None = None) -> Path:
    """HDF5 behind MATLAB's header of 512 bytes, axes reversed, texts as UTF-16 codes, structs as groups."""
    import h5py

    with h5py.File(path, "w", userblock_size=512) as out:
        for key, value in variables.items():
            if isinstance(value, dict):
                for inner, array in value.items():
                    out.create_dataset(f"{key}/{inner}", data=np.atleast_2d(array).T)
            elif isinstance(value, str):
                out.create_dataset(key, data=np.array([[ord(c)] for c in value], np.uint16)).attrs["MATLAB_class"] = b"char"
            else:
                chunked = {"chunks": chunks[key], "compression": "gzip"} if chunks and key in chunks else {}
                out.create_dataset(key, data=np.atleast_2d(value).T, **chunked)
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Tue Jun  7 00:00:00 2022 HDF5 schema 1.00 ."
    with path.open("r+b") as stream:
        stream.write(header.ljust(116) + bytes(8) + b"\x00\x02IM")
    return path


def write_scamps(root: Path, index: int = 1, frames: int = 60, size: tuple[int, int] = (16, 12), **changed: object) -> Path:
    """As the set is: axes (t, h, w, c) to MATLAB, so (c, w, h, t) to h5py; a mask one frame short."""
    root.mkdir(parents=True, exist_ok=True)
    video = coloured(frames, *size) / 255.0
    variables = {"RawFrames": video, "Xsub": video[:, :8, :8], "skin_mask": np.ones((frames - 1, 8, 8)),
                 "d_ppg": wave(frames, 30.0, 70), "d_br": wave(frames, 30.0, 15)} | changed
    variables = {key: value for key, value in variables.items() if value is not None}
    return write_v73(root / f"P{index:06d}.mat", variables, {"RawFrames": (1, *size, min(frames, 20))})


def write_vipl(root: Path, name: str = "p1/v1/source1", frames: int = 50) -> Path:
    folder = root / "data" / name
    folder.mkdir(parents=True)
    write_video(folder / "video.avi", grey_steps(frames), 30.0, "MJPG")
    samples = 120
    (folder / "wave.csv").write_text("Wave\n" + "\n".join(str(int(50 + 40 * x)) for x in wave(samples, 60.0)) + "\n")
    (folder / "gt_HR.csv").write_text("HR\n80\n82\n84\n")
    (folder / "gt_SpO2.csv").write_text("SpO2\n98\n98\n97\n")
    (folder / "time.txt").write_text("".join(f"{40.1 * i:.0f}\n" for i in range(frames)))
    return folder


def write_buaa(root: Path, subject: str = "01", lux: str = "10.0", **ppg: object) -> Path:
    import scipy.io

    folder = root / f"Sub {subject}" / f"lux {lux}"
    folder.mkdir(parents=True)
    for other in ("APH", "LXR"):
        write_video(folder / f"lux{lux}_{other}.avi", grey_steps(60), 30.0)
    (folder / f"lux{lux}.csv").write_text("1,2\n")
    stored = {"data": wave(118, 59.0, 75)[:, None], "fs": 59.0, "peaks": np.array([10, 57])} | ppg
    scipy.io.savemat(folder / f"lux{lux}_PPGData.mat", {"PPG": {k: v for k, v in stored.items() if v is not None}})
    return folder


def write_v4v(root: Path, phase_1: str = "Phase 1_ Training_Validation sets", clip: str = "F001_T1") -> Path:
    """One clip labelled as the training sets are, and M002_T2 as the test set is. Returns the root."""
    video_folder = root / phase_1 / "Videos" / "train-001_of_002"
    truth = root / phase_1 / "Ground truth"
    for folder in (video_folder, truth / "BP_raw_1KHz", truth / "Physiology"):
        folder.mkdir(parents=True)
    n = 50
    write_video(video_folder / f"{clip}.mkv", grey_steps(n), 25.0)
    (truth / "BP_raw_1KHz" / f"{clip.replace('_', '-')}-BP.txt").write_text(
        "".join(f"{80 + 20 * x:.4f}\n" for x in wave(2100, 1000.0)))
    (truth / "Physiology" / f"{clip}.txt").write_text(_v4v_lines(clip, n, 72.0, 16.0))
    test = root / "Phase 2_ Testing set"
    (test / "Videos" / "Test" / "test").mkdir(parents=True)
    (test / "blood_pressure" / "test_set_bp").mkdir(parents=True)
    write_video(test / "Videos" / "Test" / "test" / "M002_T2.mkv", grey_steps(n), 25.0)
    (test / "blood_pressure" / "test_set_bp" / "M002-T2.txt").write_text(
        "".join(f"{90 + 20 * x:.4f}\n" for x in wave(2000, 1000.0)))
    (test / "test_set_gt_release.txt").write_text(_v4v_lines("M002_T2", n, 64.0, 0.0))
    return root


def _v4v_lines(clip: str, n: int, hr: float, rr: float) -> str:
    return "".join(f"{clip}.mkv, {name}, " + ", ".join(f"{rate + 0.01 * i * (rate > 0):.2f}" for i in range(n)) + "\n"
                   for name, rate in (("HR", hr), ("RR", rr)))


MANIFEST_COLUMNS = ("subject", "name", "video", "label", "kind", "truth", "column", "rate_hz", "times", "times_unit",
                    "offset_s", "fps", "frame_times", "frame_times_unit", "unit", "aligned", "domain")


def write_manifest(root: Path, *rows: dict[str, object]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = [",".join(MANIFEST_COLUMNS)]
    lines += [",".join(str(row.get(column, "")) for column in MANIFEST_COLUMNS) for row in rows]
    path = root / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
