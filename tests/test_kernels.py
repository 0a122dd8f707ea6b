"""CUDA sources: that they compile for the boards, and that their arithmetic is edge.clip's, on the host without a GPU."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge import clip
from edge.clip import Gains, Normaliser, Region, area_means
from edge.cuda_clip import AGREE, SIGNATURES
from engines.cuda_kernels import OPTIONS
from tests import host_nvcc

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
    done = subprocess.run([compiler, "-cubin", f"-arch={architecture}", *OPTIONS, "-Werror", "all-warnings", "-Xptxas",
                           "-Werror", "-o", str(tmp_path / "out.cubin"), str(source)], capture_output=True, text=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert (tmp_path / "out.cubin").read_bytes()[:4] == b"\x7fELF"


def test_every_kernel_is_one_that_the_runtime_loads():
    assert {path.stem: set(host_nvcc.kernels(path.read_text())) for path in KERNELS} == {
        source: set(found) for source, found in SIGNATURES.items()}


@pytest.fixture(scope="module")
def host_kernels(tmp_path_factory):
    """The kernels built by the host's compiler: kernel(name, grid, arguments), each argument a number or an array."""
    if reason := host_nvcc.missing():
        pytest.skip(reason)
    folder, functions = tmp_path_factory.mktemp("kernels"), {}
    for source in KERNELS:
        done = host_nvcc.build(source, folder / f"{source.stem}.so", "sm_87")
        assert done.returncode == 0, done.stderr
        library = ctypes.CDLL(str(folder / f"{source.stem}.so"))
        for name, letters in SIGNATURES[source.stem].items():
            functions[name] = getattr(library, f"launch_{name}"), letters

    def kernel(name, grid, *arguments):
        function, letters = functions[name]
        packed = struct.pack(letters, *(a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments))
        assert function((ctypes.c_uint * 6)(*grid, 1, 32, 8, 1), packed, ctypes.c_size_t(len(packed)), 1)

    return kernel


@pytest.fixture
def on_host(host_kernels):
    """(frame with pitch and pixel size, region, size) -> means."""
    def run(frame, region, size):
        means = np.full((size + 2, size, 3), -1.0, np.float32)  # a row before and after, which must stay as they are
        host_kernels("area_means_bgr" if frame.shape[2] == 3 else "area_means_bgrx", ((size + 7) // 8, size), frame,
                     frame.strides[0], region.x_px, region.y_px, region.w_px, region.h_px, size, means[1:])
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


# --- normalisation


class HostNormaliser:
    """edge.clip.Normaliser by the kernels, one grid point at a time; `before` and `weight` say between which two means."""

    def __init__(self, kernel, fs_hz, size):
        self._kernel, self._gains, self._size = kernel, Gains(fs_hz), size
        self._mean = np.full((size, size, 3), np.nan, np.float32)  # new memory holds anything
        self._grey = np.full((2, size, size), np.nan, np.float32)

    def push(self, means, before=None, weight=1.0):
        gain, size = self._gains.push(means is not None), self._size
        out = np.full((7, size, size), -9.0, np.float32)  # a plane before and after, which must stay as they are
        if gain is not None:
            grid = ((size + 31) // 32, (size + 7) // 8)
            self._kernel("normalise_light", grid, means if before is None else before, means, weight, gain,
                         clip.LOG_OFFSET_COUNTS, clip.LIGHT_SCALE, clip.LIGHT_CLIP, size, self._mean, self._grey, out[1:])
        if gain:
            self._kernel("normalise_flow", grid, self._grey, clip.FLOW_FLOOR**2, clip.FLOW_SCALE, clip.FLOW_CLIP, size, out[1:])
        assert (out[[0, -1]] == -9.0).all()
        return out[1:-1] if gain else np.zeros((5, size, size), np.float32)


def soft_means(rng, size):
    """Area means with edges of every steepness, black and white among them."""
    level = rng.choice([0.0, 3.0, 60.0, 128.0, 255.0], (size, size, 3)) + rng.normal(0, 1, (size, size, 3))
    return level.clip(0, 255).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 33, 48])
def test_the_kernels_normalise_as_the_preprocessing_does(host_kernels, size):
    rng = np.random.default_rng(size)
    cpu, gpu = Normaliser(30.0, size), HostNormaliser(host_kernels, 30.0, size)
    base, most = soft_means(rng, size), 0.0
    for i in range(130):
        if i % 40 == 39:
            base = soft_means(rng, size)
        means = (base * rng.choice([1.0, 1.01, 0.8]) + rng.normal(0, 0.3, base.shape)).clip(0, 255).astype(np.float32)
        expected, got = cpu.push([means])[0], gpu.push(means)
        assert expected.any() == (i not in (0, 91))
        most = max(most, float(np.abs(got - expected).max()))
        for _ in range({60: 5, 90: 31}.get(i, 0)):  # a gap, and one after which the mean begins anew
            assert not cpu.push([None]).any() and not gpu.push(None).any()
    assert most <= AGREE / 10


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_kernels_interpolate_between_two_frames(host_kernels, weight):
    rng = np.random.default_rng(3)
    first, before, means = (soft_means(rng, 16) for _ in range(3))
    cpu, gpu = Normaliser(30.0, 16), HostNormaliser(host_kernels, 30.0, 16)
    cpu.push([first]), gpu.push(first)
    expected = cpu.push([before + np.float32(weight) * (means - before)])[0]
    np.testing.assert_allclose(gpu.push(means, before, weight), expected, atol=AGREE / 10)


def test_what_is_not_a_number_does_not_become_one(host_kernels):
    gpu, means = HostNormaliser(host_kernels, 30.0, 16), np.full((16, 16, 3), 100, np.float32)
    gpu.push(means)
    broken = means.copy()
    broken[4, 7, 1] = np.nan
    out = gpu.push(broken)
    assert np.isnan(out[1, 4, 7]) and np.isnan(out[3:, 3:6, 6:9]).all()
    assert np.isfinite(out[:, 9:, 11:]).all()
