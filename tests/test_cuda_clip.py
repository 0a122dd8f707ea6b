"""edge/cuda_clip.py: its arithmetic against edge.clip's, the choice between both, and what happens when the GPU fails.

Over stand-ins for pycuda or its driver, which run the kernels built for the host (tests/host_nvcc.py). Never a GPU.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge import clip, cuda_clip
from edge.clip import BuilderLost, ClipBuilder, Region, RegionError
from edge.config import CameraConfig, Config, ConfigError, ModelConfig
from edge.cuda_clip import AGREE, CudaBuilders, CudaClipBuilder, Gpu, choose
from edge.pipeline import Pipeline
from edge.records import Frame
from edge.runtime import make_pipeline, replay, report
from edge.vitals import PROFILES
from engines.cuda import Cuda, CudaError, Memory
from engines.cuda_kernels import Module, cubin
from engines.plan import PlanError
from tests import host_nvcc
from tests.fake_engine import FakeEngine, at_fps, frames
from tests.test_runtime import FakeCamera

ROOT = Path(__file__).resolve().parents[1]
NOTHING = {"device": 0, "host": 0, "streams": 0, "contexts": 0}
FS, SIZE = 30.0, 12

pytestmark = pytest.mark.skipif(host_nvcc.missing() is not None, reason=host_nvcc.missing() or "")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def compiler(compiled, tmp_path, monkeypatch):
    """The stand-in for nvcc, first on PATH."""
    script = host_nvcc.installed(tmp_path / "bin", compiled)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return script


@pytest.fixture
def machine(cuda_modules, compiler):
    yield cuda_modules
    gc.collect()
    assert (cuda_modules.live(), cuda_modules.loaded(), cuda_modules.depth()) == (NOTHING, 0, 0)


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def either(request, machine):
    """Once as an integrated GPU, once as a card of its own."""
    machine.configure(integrated=request.param)
    return machine


@pytest.fixture(scope="session")
def prepared(compiled, tmp_path_factory):
    """A cache folder with our kernels for the card that the stand-ins are."""
    root = tmp_path_factory.mktemp("prepared")
    card = SimpleNamespace(facts=SimpleNamespace(compute_capability=(8, 7)))
    with pytest.MonkeyPatch.context() as path:
        path.setenv("PATH", f"{host_nvcc.installed(root / 'bin', compiled).parent}:{os.environ['PATH']}")
        for source in cuda_clip.KERNELS.glob("*.cu"):
            cubin(source, card, root / "cache")
    return root / "cache"


@pytest.fixture
def folder(prepared, tmp_path):
    """As a first start left it: nothing is compiled but what a test alters."""
    return Path(shutil.copytree(prepared, tmp_path / "cache"))


@pytest.fixture
def unused(tmp_path):
    """Before the first start."""
    return tmp_path / "cache"


@pytest.fixture
def altered(tmp_path, monkeypatch):
    """Our kernels with some text replaced, as a compiler or a GPU would have it that computes wrongly."""
    def change(source, text, by):
        kernels = tmp_path / "kernels"
        kernels.mkdir()
        for path in cuda_clip.KERNELS.glob("*.cu"):
            content = path.read_text()
            assert path.stem != source or text in content
            (kernels / path.name).write_text(content.replace(text, by) if path.stem == source else content)
        monkeypatch.setattr(cuda_clip, "KERNELS", kernels)

    return change


@pytest.fixture
def slow_cpu(monkeypatch):
    """A CPU that takes a quarter of a second for the area means, which the stand-in does not."""
    def slowly(bgr, region, size):
        time.sleep(0.25)
        return area_means(bgr, region, size)

    area_means = clip.area_means
    monkeypatch.setattr(clip, "area_means", slowly)
    monkeypatch.setattr(cuda_clip, "ROUNDS", 3)
    monkeypatch.setattr(cuda_clip, "WARM_UP", 0)
    monkeypatch.setattr(cuda_clip, "_STEPS_MS", (0, 33, 33))


def calls(compiler):
    log = compiler.with_name("nvcc.log")
    return log.read_text().splitlines() if log.exists() else []


# --- the same answers


def camera_day(rng, n):
    """Times of n frames: jitter, drops, repeats, steps back, gaps, and holes that end the running mean."""
    steps_ms = rng.choice([33.4, 25, 0, -5, 66.7, 170, 299, 301, 900, 1330, 3300], n,
                          p=[0.55, 0.1, 0.05, 0.02, 0.1, 0.05, 0.03, 0.03, 0.03, 0.02, 0.02])
    return np.maximum(np.cumsum(steps_ms + rng.uniform(-3, 3, n)), 0) * 1e6


def camera_frames(rng, n, height, width, step, spare):
    """Moving, pulsing patches in rows that are `spare` bytes longer than they need be; BGRx (step 4) as a view of its BGR."""
    patches = np.repeat(np.repeat(rng.integers(0, 256, (9, 9, 3)), height // 8, axis=0), width // 8, axis=1)
    for i, t_ns in enumerate(camera_day(rng, n)):
        rows = np.full((height, width * step + spare), 255, np.uint8)
        bgr = np.lib.stride_tricks.as_strided(rows, (height, width, 3), (rows.strides[0], step, 1))
        moved = np.roll(patches, rng.integers(0, 2, 2), axis=(0, 1))[:height, :width]
        bgr[:] = (moved * rng.uniform(0.9, 1.0) + rng.normal(0, 4, bgr.shape)).clip(0, 255)
        yield Frame(i, round(t_ns), bgr)


def pushed(builder, frame):
    """(area means, [(normalised frame, valid, t_ns) of every grid point]), normalised at once."""
    means, points = builder.push(frame)
    return means, [(made, *point[1:]) for made, point in zip(builder.frames(points), points, strict=True)]


def assert_alike(one, other, at_most=AGREE):
    """Means exactly, grid points exactly, and normalised values within the tolerance; returns the largest difference."""
    np.testing.assert_array_equal(one[0], other[0])
    assert [point[1:] for point in one[1]] == [point[1:] for point in other[1]]
    most = max((float(np.abs(a[0] - b[0]).max()) for a, b in zip(one[1], other[1], strict=True)), default=0.0)
    assert most <= at_most
    return most


@pytest.mark.parametrize(("height", "width", "region", "size", "fs_hz", "step", "spare"), [
    (48, 64, None, 12, 30.0, 3, 0), (48, 64, None, 12, 30.0, 4, 0), (48, 64, Region(5, 3, 51, 41), 12, 30.0, 3, 7),
    (49, 63, Region(62 - 31, 1, 31, 47), 11, 25.0, 3, 1), (48, 64, Region(13, 0, 51, 48), 16, 30.0, 4, 12),
    (40, 40, Region(2, 2, 38, 38), 33, 29.97, 3, 5), (48, 64, Region(7, 9, 8, 30), 12, 30.0, 3, 3),
    (48, 64, Region(7, 9, 30, 8), 12, 30.0, 4, 0), (24, 24, None, 1, 30.0, 3, 0), (64, 96, None, 2, 15.0, 4, 4)])
def test_the_gpus_frames_are_the_cpus(either, folder, height, width, region, size, fs_hz, step, spare):
    region = region or Region(0, 0, width, height)
    builder, reference = CudaClipBuilder(Gpu(folder), region, fs_hz, size), ClipBuilder(region, fs_hz, size)
    seen = {"points": 0, "gaps": 0, "zeros": 0}
    for frame in camera_frames(np.random.default_rng(height + size), 70, height, width, step, spare):
        got = pushed(builder, frame)
        assert_alike(got, pushed(reference, frame))
        seen["points"] += len(got[1])
        seen["gaps"] += sum(not valid for _, valid, _ in got[1])
        seen["zeros"] += sum(valid and not normalised.any() for normalised, valid, _ in got[1])
    assert seen["gaps"] > 5 and seen["points"] - seen["gaps"] > 40 and seen["zeros"] >= 2, seen


def test_two_regions_at_once_do_not_mix(machine, folder):
    gpu, regions = Gpu(folder), (Region(0, 0, 64, 48), Region(20, 10, 30, 30))
    builders = [(CudaClipBuilder(gpu, region, FS, SIZE), ClipBuilder(region, FS, SIZE)) for region in regions]
    for frame in camera_frames(np.random.default_rng(1), 40, 48, 64, 3, 0):
        for builder, reference in builders:
            assert_alike(pushed(builder, frame), pushed(reference, frame))


def test_a_picture_of_another_layout_midway_is_no_matter(machine, folder):
    """A region that shrinks or grows, pixels of three bytes and of four, rows upside down, planes, a mirror image."""
    whole, part = Region(0, 0, 64, 48), Region(30, 8, 20, 20)
    builder, reference = CudaClipBuilder(Gpu(folder), whole, FS, SIZE), ClipBuilder(whole, FS, SIZE)
    rng, views = np.random.default_rng(2), [
        lambda a: a[..., :3].copy(), lambda a: a[..., :3], lambda a: a[::-1, :, :3], lambda a: a[:, ::-1, :3],
        lambda a: np.ascontiguousarray(a[..., :3].transpose(2, 0, 1)).transpose(1, 2, 0), lambda a: a[..., 2::-1]]
    for i, view in enumerate(views * 2):
        if i == len(views):
            builder.restart(part), reference.restart(part)
        frame = Frame(i, i * 33_000_000, view(rng.integers(0, 256, (48, 64, 4), np.uint8)))
        plain = Frame(i, frame.t_ns, np.ascontiguousarray(frame.bgr))
        assert_alike(pushed(builder, frame), pushed(reference, plain))


def test_what_was_handed_out_is_not_written_again(machine, folder):
    builder = CudaClipBuilder(Gpu(folder), Region(0, 0, 64, 48), FS, SIZE)
    kept = [pushed(builder, frame) for frame in camera_frames(np.random.default_rng(3), 12, 48, 64, 3, 0)]
    again = CudaClipBuilder(Gpu(folder), Region(0, 0, 64, 48), FS, SIZE)
    for before, frame in zip(kept, camera_frames(np.random.default_rng(3), 12, 48, 64, 3, 0), strict=True):
        assert_alike(before, pushed(again, frame), 0.0)


def test_made_in_one_thread_used_in_another_and_dropped_in_a_third(machine, folder):
    kept = []

    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    in_thread(lambda: kept.append(CudaClipBuilder(Gpu(folder), Region(0, 0, 64, 48), FS, SIZE)))
    in_thread(lambda: kept.append(kept[0].push(next(camera_frames(np.random.default_rng(4), 1, 48, 64, 3, 0)))))
    assert kept[1][0].shape == (SIZE, SIZE, 3)
    in_thread(kept.clear)
    assert machine.live() == NOTHING and machine.loaded() == 0


# --- compiled once


def test_kernels_are_compiled_once_for_this_gpu_and_this_source(machine, compiler, unused, altered):
    machine.configure(compute_capability=(11, 0))
    Gpu(unused).close()
    assert [re.search(r"-arch=(\S+)", line)[1] for line in calls(compiler)] == ["sm_110"] * 2
    assert not any("fast_math" in line for line in calls(compiler))
    Gpu(unused).close()
    assert len(calls(compiler)) == 2
    machine.configure(compute_capability=(8, 7))
    Gpu(unused).close()
    assert [re.search(r"-arch=(\S+)", line)[1] for line in calls(compiler)[2:]] == ["sm_87"] * 2
    altered("normalise", "// Two frames", "// 2 frames")
    Gpu(unused).close()
    assert [line.split("/")[-1] for line in calls(compiler)[4:]] == ["normalise.cu"]


def test_a_compiled_kernel_that_was_damaged_or_that_others_may_write_is_not_run(machine, folder):
    Gpu(folder).close()
    path = folder / "normalise.cubin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(PlanError, match="SHA-256 does not match.*delete it"):
        Gpu(folder)
    path.write_bytes(whole)
    path.chmod(0o666)
    with pytest.raises(PlanError, match="chmod go-w"):
        Gpu(folder)
    path.chmod(0o644)
    folder.chmod(0o777)
    with pytest.raises(PlanError, match="chmod go-w"):
        Gpu(folder)


def test_a_folder_that_cannot_be_one_is_refused(machine, unused):
    unused.mkdir()
    (unused / "area_means.cubin").mkdir()
    with pytest.raises(PlanError, match="Is a directory"):
        Gpu(unused)
    (unused / "file").write_text("")
    with pytest.raises(PlanError, match="cannot be the folder"):
        Gpu(unused / "file" / "below")


def test_where_nothing_can_be_kept_it_still_runs_and_says_so(machine, unused, monkeypatch, caplog):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engines.files.write_whole", full)
    Gpu(unused).close()
    assert sum("compiled anew at every start" in r.message and "No space" in r.message for r in caplog.records) == 2


@pytest.mark.parametrize(("script", "says"), [
    ("echo 'error: no such architecture' >&2; exit 1", "does not compile area_means.cu for sm_87: error: no such architecture"),
    ("exit 3", "it says nothing"), ("exit 0", "does not compile area_means.cu in .*No such file"),
    ("exec sleep 9", "does not compile area_means.cu in .*timed out")])
def test_a_compiler_that_does_not_do_its_work_is_an_error(machine, compiler, unused, monkeypatch, script, says):
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    monkeypatch.setattr("engines.cuda_kernels.NVCC_S", 0.5)
    with pytest.raises(CudaError, match=says):
        Gpu(unused)
    assert list(unused.iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_compiled_and_the_message_says_so(machine, unused, monkeypatch):
    """A service's /tmp is read-only, so it is the cache folder that is used; and that may be full or read-only itself."""
    source = cuda_clip.KERNELS / "normalise.cu"
    with cuda_of(machine, (8, 7)) as cuda, monkeypatch.context() as service:
        service.setattr("tempfile.tempdir", "/proc/no-such-folder")
        assert cubin(source, cuda, unused)[:4] == b"\x7fELF"

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    with pytest.raises(CudaError, match="Read-only file system"):
        Gpu(unused.with_name("other"))


def test_without_a_compiler_the_message_says_where_it_is_looked_for(cuda_modules, unused, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(CudaError, match="no nvcc on PATH or in /usr/local/cuda/bin"):
        Gpu(unused)
    assert cuda_modules.live() == NOTHING


def test_a_kernel_of_another_gpu_or_another_name_is_an_error_and_holds_nothing(machine, folder):
    with cuda_of(machine, (8, 7)) as cuda:
        data = cubin(cuda_clip.KERNELS / "normalise.cu", cuda, folder)
        with cuda.current(), pytest.raises(CudaError, match="cannot load the kernels no_such.*symbol not found"):
            Module(cuda, data, {"no_such": "P"})
    with cuda_of(machine, (11, 0)) as cuda, cuda.current(), pytest.raises(CudaError, match="no kernel image"):
        Module(cuda, data, {"normalise_flow": "PfffiP"})


def test_arguments_that_are_not_the_kernels_are_an_error(machine, folder):
    with cuda_of(machine, (8, 7)) as cuda, cuda.current():
        module = Module(cuda, cubin(cuda_clip.KERNELS / "normalise.cu", cuda, folder), {"normalise_flow": "PfffiPi"})
        memory, stream = Memory(cuda, 64), cuda.stream()
        with pytest.raises(CudaError, match="cannot launch the kernel normalise_flow"):
            module.launch("normalise_flow", (1, 1), (32, 8, 1), stream, memory.pointer, 1.0, 1.0, 1.0, 1, memory.pointer, 0)
        module.free(), module.free(), memory.free(), memory.free()
        with pytest.raises(CudaError, match="was freed"):
            module.launch("normalise_flow", (1, 1), (32, 8, 1), stream)
        with pytest.raises(CudaError, match="was freed"):
            _ = memory.pointer


def cuda_of(machine, capability):
    from contextlib import closing

    machine.configure(compute_capability=capability)
    return closing(Cuda())


# --- failures


LATER = {  # calls of the driver that can fail in the middle, and which of them does
    "cuCtxPushCurrent": 3, "cuLaunchKernel": 8, "cuStreamSynchronize": 4}


@pytest.mark.parametrize(("call", "integrated", "nth"), [
    *[(call, True, nth) for call, nth in LATER.items()], *[(call, False, nth) for call, nth in LATER.items()],
    ("cuMemcpyHtoDAsync", False, 9), ("cuMemcpyDtoHAsync", False, 7)])
def test_a_gpu_that_fails_later_gives_way_to_the_cpu_once_and_for_all(machine, folder, caplog, call, integrated, nth):
    machine.configure(integrated=integrated)
    region, notes = Region(0, 0, 64, 48), {"preprocess": {"on": "cuda", "cuda_ms": 1.0}}
    builders = CudaBuilders(folder, notes)
    builder, other = builders(region, FS, SIZE), builders(region, FS, SIZE)
    source = list(camera_frames(np.random.default_rng(6), 30, 48, 64, 3, 0))
    builder.push(source[0])
    machine.fail(call, nth)
    lost = next(i for i in range(1, 30) if fails(builder, source[i]))
    assert 1 <= lost < 8
    del builder
    again = builders(region, FS, SIZE)
    assert type(again) is ClipBuilder
    assert notes["preprocess"]["on"] == "cpu" and notes["preprocess"]["cuda_ms"] == 1.0 and notes["preprocess"]["failed"]
    machine.fail("cuStreamSynchronize")
    assert fails(other, source[lost])
    assert [r.levelname for r in caplog.records if "goes on on the CPU" in r.message] == ["ERROR"]


@pytest.mark.parametrize("call", ["cuLaunchKernel", "cuMemcpyDtoHAsync", "cuMemAlloc"])
def test_nothing_is_freed_while_work_on_it_is_still_to_come(machine, folder, call):
    machine.configure(integrated=False)
    gpu, region = Gpu(folder), Region(0, 0, 64, 48)
    builder, other, reference = (CudaClipBuilder(gpu, region, FS, SIZE) for _ in range(3))
    first, second = camera_frames(np.random.default_rng(7), 2, 48, 64, 3, 0)
    machine.fail(call, nth=3 if call == "cuLaunchKernel" else 1, times=2)
    assert fails(builder, first) or fails(builder, second)
    assert machine.waiting() == 0
    del builder
    machine.fail(call, times=0)
    assert_alike(pushed(other, second), pushed(reference, second), 0.0)


def fails(builder, frame):
    try:
        builder.push(frame)
    except BuilderLost:
        return True
    return False


@pytest.mark.parametrize("call", ["cuMemHostAlloc", "cuMemAlloc", "cuMemHostGetDevicePointer"])
def test_a_builder_for_which_there_is_no_memory_is_the_cpus(machine, folder, caplog, call):
    builders = CudaBuilders(folder, {})
    machine.fail(call, nth=2, times=2)
    assert type(builders(Region(0, 0, 64, 48), FS, SIZE)) is ClipBuilder
    assert type(builders(Region(0, 0, 64, 48), FS, SIZE)) is ClipBuilder
    assert sum("goes on on the CPU" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("call", ["cuInit", "cuDevicePrimaryCtxRetain", "cuModuleLoadDataEx", "cuModuleGetFunction",
                                  "cuStreamCreate", "cuCtxPushCurrent"])
def test_a_gpu_that_does_not_open_holds_nothing(machine, folder, call):
    machine.fail(call)
    with pytest.raises(CudaError):
        Gpu(folder)
    assert (machine.live(), machine.loaded()) == (NOTHING, 0)


def test_a_kernel_that_does_not_answer_is_never_taken_for_the_last_answer(either, folder, altered):
    altered("normalise", "out[3 * cells + cell] =", "if (level[0] < 4.0f) out[3 * cells + cell] =")
    builder = CudaClipBuilder(Gpu(folder), Region(0, 0, 64, 48), FS, SIZE)
    dark, light = (np.full((48, 64, 3), level, np.uint8) for level in (20, 120))
    assert len(builder.push(Frame(0, 0, dark))[1]) == len(builder.push(Frame(1, 34_000_000, dark))[1]) == 1
    with pytest.raises(BuilderLost, match="gave no answer"):
        for i in range(2, 40):
            builder.push(Frame(i, i * 34_000_000, light))


# --- the choice


def chosen(folder, wanted="auto", notes=None, **changed):
    return choose(wanted, changed.get("fs_hz", FS), changed.get("size", SIZE), folder, 64, 48, changed.get("roi"),
                  {} if notes is None else notes)


def test_auto_takes_the_cpu_where_it_is_faster_and_frees_the_gpu(machine, folder, caplog):
    caplog.set_level(logging.INFO)
    notes = {}
    assert chosen(folder, notes=notes) is ClipBuilder  # a stand-in for a GPU is slow
    told = notes["preprocess"]
    assert told["on"] == "cpu" and 0 < told["cpu_ms"] < told["cuda_ms"] and 0 < told["apart"] < AGREE / 10
    (line,) = [r.message for r in caplog.records if r.name == "physvlm.preprocess"]
    assert "on the CPU" in line and "64x48" in line and f"{told['cuda_ms']:.3f} ms on the GPU" in line
    assert machine.live() == NOTHING and json.dumps(notes)


def test_auto_takes_the_gpu_where_it_is_faster(machine, folder, slow_cpu, caplog):
    caplog.set_level(logging.INFO)
    notes = {}
    make = chosen(folder, notes=notes)
    assert isinstance(make(Region(0, 0, 64, 48), FS, SIZE), CudaClipBuilder)
    assert notes["preprocess"]["on"] == "cuda" and notes["preprocess"]["cpu_ms"] > notes["preprocess"]["cuda_ms"] > 0
    assert any("pre-processing on the GPU" in r.message for r in caplog.records)


def test_cuda_is_taken_where_it_was_asked_for_though_it_is_slower(machine, folder):
    notes = {}
    make = chosen(folder, "cuda", notes)
    assert isinstance(make(Region(0, 0, 64, 48), FS, SIZE), CudaClipBuilder)
    assert notes["preprocess"]["on"] == "cuda" and notes["preprocess"]["cpu_ms"] < notes["preprocess"]["cuda_ms"]


WRONG = {
    "flow over eight cells": ("normalise", "across / 9.0f", "across / 8.0f"),
    "another border": ("normalise", "return size > 1 ? 1 : 0;", "return 0;"),
    "the mean follows too fast": ("normalise", "mean[i] + gain * delta", "mean[i] + 1.05f * gain * delta"),
    "the mean does not begin anew": ("normalise", "if (gain == 0.0f) {", "if (gain == 0.0f && !(mean[i] > 0.0f)) {"),
    "no interpolation": ("normalise", "before[i] + weight * (means[i] - before[i])", "means[i] + 0.0f * (weight + before[i])"),
    "light is not clipped": ("normalise", "= clipped(delta * scale, most);", "= delta * scale + 0.0f * most;"),
    "flow is not clipped": ("normalise", "clipped(down / 9.0f / (down_energy / 9.0f + floor) * scale, most)",
                            "down / 9.0f / (down_energy / 9.0f + floor) * scale + 0.0f * most"),
    "a row too many": ("area_means", "y + top", "y + top + (top > 20 ? -1 : 0)"),
    "no answer": ("normalise", "out[4 * cells + cell] =", "if (cell < 0) out[4 * cells + cell] ="),
    "not a number": ("normalise", "change / 3.0f", "change / 0.0f * 0.0f")}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_gpu_that_computes_otherwise_is_not_used(machine, folder, altered, monkeypatch, caplog, wrong):
    monkeypatch.setattr(cuda_clip, "ROUNDS", 2)  # refused before the times matter
    altered(*WRONG[wrong])
    notes = {}
    assert chosen(folder, notes=notes) is ClipBuilder
    assert notes["preprocess"]["on"] == "cpu"
    assert re.search("answers are .* from the CPU's|no answer", notes["preprocess"]["why"])
    assert [r for r in caplog.records if r.levelname == "WARNING" and "pre-processing on the CPU" in r.message]
    with pytest.raises(ConfigError, match="answers are|no answer"):
        chosen(folder, "cuda")
    assert machine.live() == NOTHING


@pytest.mark.parametrize("call", ["cuInit", "cuModuleLoadDataEx", "cuMemAlloc", "cuLaunchKernel", "cuStreamSynchronize"])
def test_a_gpu_that_fails_at_the_start_is_not_used(machine, folder, call):
    machine.fail(call, nth=2 if call == "cuLaunchKernel" else 1, times=2)
    assert chosen(folder) is ClipBuilder
    machine.fail(call, times=2)
    with pytest.raises(ConfigError, match="was asked for and is not to be had.*--preprocess auto"):
        chosen(folder, "cuda")
    assert machine.live() == NOTHING


def test_without_pycuda_auto_takes_the_cpu_and_cuda_says_how_to_get_it(monkeypatch, unused, caplog):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    notes = {}
    assert chosen(unused, notes=notes) is ClipBuilder
    assert "pycuda cannot be imported" in notes["preprocess"]["why"]
    with pytest.raises(ConfigError, match=r"physvlm-edge\[jetson\]"):
        chosen(unused, "cuda")


def test_a_region_outside_the_picture_is_refused_before_anything_is_opened(machine, unused):
    with pytest.raises(RegionError, match="64x48"):
        chosen(unused, "cuda", roi=Region(60, 0, 20, 20))
    assert not unused.exists()


# --- in the chain


def camera(n_s=10):
    return FakeCamera(frames(at_fps(28.6, n_s), hr=150, rr=45), recorded=True)


def config(folder, preprocess, backend="onnxruntime"):
    return Config(camera=CameraConfig(roi="full"),
                  model=ModelConfig(backend=backend, preprocess=preprocess, engine_cache=str(folder)))


def run(settings, engine=None):
    source = camera()
    pipeline = make_pipeline(engine or FakeEngine(), source, settings)
    record = replay(source, pipeline, settings, "fake")
    return record, report(record, source, pipeline)


def test_a_replay_on_the_gpu_reads_what_one_on_the_cpu_reads_and_tells_it(machine, folder):
    _, on_cpu = run(config(folder, "cpu"))
    _, on_gpu = run(config(folder, "cuda"))
    assert "preprocess" not in on_cpu["timing"]
    assert on_gpu["timing"]["preprocess"]["on"] == "cuda" and json.dumps(on_gpu)
    assert on_gpu["summary"]["hr_median"] == pytest.approx(150, abs=1) and len(on_gpu["readings"]) == 9
    for gpu, cpu in zip(on_gpu["readings"], on_cpu["readings"], strict=True):
        assert (gpu["hr_state"], gpu["rr_state"]) == (cpu["hr_state"], cpu["rr_state"])
        for name in ("hr", "rr"):
            assert gpu[name] == (None if cpu[name] is None else pytest.approx(cpu[name], abs=0.05))


@pytest.mark.parametrize(("preprocess", "backend", "told"), [
    ("auto", "onnxruntime", False), ("cpu", "tensorrt", False), ("auto", "tensorrt", True), ("cuda", "onnxruntime", True)])
def test_auto_looks_at_the_gpu_with_tensorrt_alone(machine, unused, preprocess, backend, told):
    pipeline = make_pipeline(FakeEngine(), camera(1), config(unused, preprocess, backend))
    assert ("preprocess" in pipeline.stages.notes, unused.exists()) == (told, told)


def test_after_the_gpu_failed_every_number_comes_from_the_cpu_alone(machine, folder):
    """The features that were made on the GPU do not join those made on the CPU, whose running mean begins anew."""
    source, engine = list(frames(at_fps(30, 17), hr=150, rr=45)), FakeEngine()
    builders = CudaBuilders(folder, {})
    pipeline = Pipeline(engine, PROFILES["neonate"], 64, 48, None, False, builder=builders)
    hops = []
    for i, frame in enumerate(source):
        if i == 250:
            machine.fail("cuStreamSynchronize")
            before = len(hops)
            seen_before = len(engine.seen)
        hops += pipeline.push(frame, frame.t_ns)
    assert hops[before - 1].reading.hr.value_per_min == pytest.approx(150, abs=1)
    fresh = ClipBuilder(Region(0, 0, 64, 48), engine.spec.fs_hz, engine.spec.size)
    expected = [point[0] for frame in source[250:] for point in pushed(fresh, frame)[1]]
    after = engine.seen[seen_before:]
    assert len(after) > 220
    np.testing.assert_array_equal(np.stack(after), np.stack(expected[:len(after)]))
    for hop in hops[before:]:
        valid = hop.waveform.valid
        assert not valid[:-round((hop.reading.t_ns - source[250].t_ns) / 1e9 * 30) - 31].any()
        assert hop.reading.hr.value_per_min is None or hop.reading.hr.value_per_min == pytest.approx(150, abs=2)
    assert hops[-1].reading.hr.value_per_min == pytest.approx(150, abs=1)


def test_the_cpu_path_loads_nothing_of_cuda():
    script = """
        import sys
        import edge.runtime
        from edge.config import Config
        from tests.fake_engine import FakeEngine
        from types import SimpleNamespace
        edge.runtime.make_pipeline(FakeEngine(), SimpleNamespace(width=64, height=48), Config())
        print([name for name in sys.modules if "cuda" in name and name.split(".")[0] in ("edge", "engines", "pycuda")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_program_that_ends_with_everything_open_ends_quietly(compiler, tmp_path):
    """pycuda complains at exit about contexts that are still current, and about memory freed too late."""
    script = """
        import atexit, os, sys
        from pathlib import Path
        # registered before anything else is, it runs last
        atexit.register(lambda: print(machine.live(), machine.loaded(), machine.depth()))
        if os.environ.get("PHYSVLM_TEST_PYCUDA") == "real":
            from tests.standin_driver import StandinDriver
            machine = StandinDriver.load()
        else:
            from tests.fake_pycuda import Machine
            machine = Machine()
            sys.modules.update(machine.modules())
        import numpy as np
        from edge.clip import Region
        from edge.cuda_clip import CudaBuilders
        from edge.records import Frame
        builders = CudaBuilders(Path(sys.argv[1]), {})
        builder = builders(Region(0, 0, 64, 48), 30.0, 12)
        for i in range(3):
            builder.push(Frame(i, i * 33_000_000, np.zeros((48, 64, 3), np.uint8)))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "cache")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr, done.returncode) == (f"{NOTHING} 0 0\n", "", 0)
