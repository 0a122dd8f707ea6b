"""CUDA sources: that they compile for the boards, and that their arithmetic is edge.clip's, on the host without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge.clip import Region, area_means

ROOT = Path(__file__).resolve().parents[1]
KERNELS = sorted((ROOT / "edge" / "kernels").glob("*.cu"))
BOARDS = {"sm_87": "Orin", "sm_110": "Thor"}


def nvcc() -> str:
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    return found or pytest.skip("no nvcc on PATH or in /usr/local/cuda/bin")


@pytest.mark.parametrize("architecture", BOARDS)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_every_kernel_compiles_without_a_warning(source, architecture, tmp_path):
    compiler = nvcc()
    known = subprocess.run([compiler, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc is too old for {architecture} ({BOARDS[architecture]})")
    done = subprocess.run([compiler, "-cubin", f"-arch={architecture}", "-std=c++17", "-Werror", "all-warnings", "-Xptxas",
                           "-Werror", "-o", str(tmp_path / "out.cubin"), str(source)], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "out.cubin").read_bytes()[:4] == b"\x7fELF"


def test_there_is_a_kernel_to_test():
    assert [path.name for path in KERNELS] == ["area_means.cu"]


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """The kernel built by the host's compiler: (frame with pitch and pixel size, region, size) -> means."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on PATH to build the kernel for the host with")
    library = tmp_path_factory.mktemp("kernel") / "area_means.so"
    subprocess.run(["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
                    str(library), str(ROOT / "tests/fakecuda/run_area_means.cpp")], check=True)
    function = ctypes.CDLL(str(library)).run_area_means
    function.restype = None
    pointer = ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t, *[ctypes.c_int] * 5, pointer]

    def run(frame, region, size):
        means = np.full((size + 2, size, 3), -1.0, np.float32)  # a row before and after, which must stay as they are
        function(frame.shape[2], frame.ctypes.data, frame.strides[0], region.x_px, region.y_px, region.w_px, region.h_px, size,
                 means[1:].ctypes.data)
        assert (means[[0, -1]] == -1.0).all()
        return means[1:-1]

    return run


def picture(height, width, bytes_per_pixel, pitch, seed):
    """Random pixels in rows of `pitch` bytes; what fills a row up, and the fourth byte, are of the brightest."""
    rows = np.full((height, pitch), 255, np.uint8)
    frame = np.lib.stride_tricks.as_strided(rows, (height, width, bytes_per_pixel), (pitch, bytes_per_pixel, 1))
    frame[..., :3] = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return frame


@pytest.mark.parametrize(("height", "width", "region", "size"), [
    (48, 48, Region(0, 0, 48, 48), 48),          # a pixel a cell
    (72, 72, Region(0, 0, 72, 72), 48),          # borders at halves, which round to even
    (240, 321, Region(0, 0, 321, 240), 48),
    (241, 319, Region(7, 11, 301, 217), 48),     # odd in everything
    (480, 640, Region(100, 0, 500, 480), 48),    # a warp takes several turns
    (97, 1031, Region(3, 1, 1027, 96), 7),       # cells wider than a warp, and not 8 of them
    (60, 90, Region(30, 20, 49, 33), 33),
    (50, 50, Region(1, 1, 1, 49), 1)])
@pytest.mark.parametrize("bytes_per_pixel", [3, 4], ids=["BGR", "BGRx"])
def test_the_kernel_means_are_those_of_the_preprocessing(on_host, height, width, region, size, bytes_per_pixel):
    pitch = (width * bytes_per_pixel + 63) // 64 * 64
    frame = picture(height, width, bytes_per_pixel, pitch, seed=height + width)
    expected = area_means(np.ascontiguousarray(frame[..., :3]), region, size)
    np.testing.assert_array_equal(on_host(frame, region, size), expected)


@pytest.mark.parametrize(("size", "lengths"), [(12, range(12, 90)), (48, (49, 50, 99, 251))])
def test_cell_borders_are_numpys_at_every_length(on_host, size, lengths):
    """Odd lengths have borders that lie half-way between two pixels. A diagonal shows where they went."""
    for length in lengths:
        frame = np.zeros((length, length, 3), np.uint8)
        frame[np.arange(length), np.arange(length)] = np.arange(1, length + 1)[:, None] % 251
        region = Region(0, 0, length, length)
        np.testing.assert_array_equal(on_host(frame, region, size), area_means(frame, region, size), err_msg=str(length))


def test_a_cell_without_a_pixel_is_not_a_number(on_host):
    frame = picture(40, 40, 3, 120, seed=1)
    assert np.isnan(on_host(frame, Region(0, 0, 40, 40), 48)).any()
