"""edge.clip on the GPU: the same frames normalised by the kernels in edge/kernels, and whether that is worth it here.

`choose` opens the GPU, holds its answers against the CPU's, times both on pictures of the camera's size, and says which is
to be used. Whatever goes wrong on the GPU later, the CPU takes over for good.

None of this has run on a GPU yet: it is tested on a stand-in for pycuda, and on real pycuda over a stand-in driver, which run
the very kernels on the CPU.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge import clip
from edge.clip import CHANNELS, Builder, BuilderLost, ClipBuilder, Gains, Grid, MakeBuilder, Points, Region, area_means
from edge.config import ConfigError
from edge.records import Frame
from engines.cuda import Buffer, Cuda, CudaError, Memory
from engines.cuda_kernels import Module, cubin, free_all
from engines.errors import EngineError
from engines.tensorrt_build import bare

F32 = NDArray[np.float32]

log = logging.getLogger("physvlm.preprocess")

KERNELS = Path(__file__).parent / "kernels"
SIGNATURES = {"area_means": {"area_means_bgr": "PNiiiiiP", "area_means_bgrx": "PNiiiiiP"},
              "normalise": {"normalise_light": "PPfffffiPPP", "normalise_flow": "PfffiP"}}
"""By source and kernel, the `struct` letters of the arguments."""

AGREE = 1e-3
"""How far the GPU's normalised frames may be from the CPU's. A pulse of 0.5 % of the light is 0.1 there."""

WARM_UP, ROUNDS = 5, 25
"""Frames before the clocks have settled, and frames that are timed: a quarter of a second at 4K on a CPU."""

_PITCH = 64  # rows in the copy begin at multiples of this many bytes; BGRx needs 4


class Gpu:
    """What builders share: the device, our kernels on it, and a stream. Lives as long as the last of them."""

    def __init__(self, folder: Path) -> None:
        """folder: where compiled kernels are kept. Raises EngineError, and holds nothing then."""
        self.cuda = cuda = Cuda()
        self.modules: dict[str, Module] = {}
        self.close = weakref.finalize(self, _close, cuda, self.modules)
        opened = False
        try:
            try:
                self._open(folder)
            except EngineError as e:
                raise bare(e)  # noqa: B904 - the same error
            opened = True
        finally:
            if not opened:
                self.close()

    def _open(self, folder: Path) -> None:
        cubins = {source: cubin(KERNELS / f"{source}.cu", self.cuda, folder) for source in SIGNATURES}
        with self.cuda.current():
            for source, data in cubins.items():
                self.modules[source] = Module(self.cuda, data, SIGNATURES[source])
            self.stream = self.cuda.stream()

    def launch(self, source: str, kernel: str, grid: tuple[int, int], *arguments: Any) -> None:
        self.modules[source].launch(kernel, grid, (32, 8, 1), self.stream, *arguments)


def _close(cuda: Cuda, modules: dict[str, Module]) -> None:
    free_all(list(modules.values()))
    with suppress(CudaError):  # a context that is lost went with all that it had
        cuda.close()


class CudaClipBuilder:
    """edge.clip.ClipBuilder with its arrays on the GPU. One frame at a time: what comes back is complete.

    Any failure of the GPU is BuilderLost, and this builder is then of no more use. lost: hears of it. Raises CudaError when it
    is made.
    """

    def __init__(self, gpu: Gpu, region: Region, fs_hz: float, size: int,
                 lost: Callable[[Exception], None] = lambda why: None) -> None:
        self.fs_hz = fs_hz
        self.size = size
        self._gpu = gpu
        self._lost = lost
        self._shape = CHANNELS, size, size
        self._owned: list[Any] = []
        self._picture: Buffer | None = None
        self._answers: list[Buffer] = []
        self.close = weakref.finalize(self, free_all, self._owned)
        try:
            with gpu.cuda.current():
                self._before, self._means = (self._buffer((size, size, 3)) for _ in range(2))
                self._mean, self._grey = self._memory(3 * size * size), self._memory(2 * size * size)
        except CudaError:
            self.close()
            raise
        self.restart(region)

    def _buffer(self, shape: tuple[int, ...], dtype: type = np.float32) -> Buffer:
        self._owned.append(made := self._gpu.cuda.buffer(shape, dtype))
        return made

    def _memory(self, floats: int) -> Memory:
        self._owned.append(made := Memory(self._gpu.cuda, 4 * floats))
        return made

    def restart(self, region: Region) -> None:
        """As ClipBuilder's."""
        self.region = region
        self._grid = Grid(self.fs_hz)
        self._gains = Gains(self.fs_hz)
        self._begun = False

    def push(self, frame: Frame) -> tuple[F32, Points]:
        """As ClipBuilder's. Raises BuilderLost."""
        try:
            with self._gpu.cuda.current():
                try:
                    return self._push(frame)
                except CudaError:
                    with suppress(CudaError):  # what is still under way must end before its memory is freed
                        self._gpu.stream.synchronize()
                    raise
        except CudaError as e:
            self._lost(bare(e))
            raise BuilderLost(str(e)) from e

    def frames(self, points: Points) -> F32:
        """As ClipBuilder's: a point holds its normalised frame here, None for zeros."""
        out = np.zeros((len(points), *self._shape), np.float32)
        for into, (made, _, _) in zip(out, points, strict=True):
            if made is not None:
                into[:] = made
        return out

    def _push(self, frame: Frame) -> tuple[F32, Points]:
        stream = self._gpu.stream
        self._area_means(frame)
        self._means.download(stream)
        grid = self._grid.push(frame.t_ns)
        gains = [self._gains.push(weight is not None) for weight, _ in grid or ()]
        waiting: list[Buffer | None] = []
        for (weight, _), gain in zip(grid or (), gains, strict=True):
            waiting.append(self._normalise(weight, gain, sum(bool(each) for each in waiting)))
        stream.synchronize()
        means = _finite(self._means)
        frames = [None if answer is None else _finite(answer) for answer in waiting]
        if grid is not None:
            self._before, self._means, self._begun = self._means, self._before, True
        return means, [(normalised, gain is not None, t_ns)
                       for normalised, gain, (_, t_ns) in zip(frames, gains, grid or (), strict=True)]

    def _unanswered(self, buffer: Buffer) -> None:
        """So that what an earlier frame left can never pass for an answer."""
        buffer.host.fill(np.nan)
        buffer.upload(self._gpu.stream)

    def _area_means(self, frame: Frame) -> None:
        """The region's area means into `_means`.

        The crop is copied once, by rows, into page-locked memory, which a Jetson's GPU reads in place, each byte once. To
        register the frame's own memory with CUDA would be a call into the driver for every frame, and what belongs to the
        camera or to a pool of GStreamer's may be gone before its registration is.
        """
        region, gpu, size = self.region, self._gpu, self.size
        if min(region.w_px, region.h_px) < size:  # interpolated, and too few pixels to be worth a kernel
            self._means.host[:] = area_means(frame.bgr, region, size)
            self._means.upload(gpu.stream)
            return
        crop = frame.bgr[region.y_px:region.y_px + region.h_px, region.x_px:region.x_px + region.w_px]
        step = crop.strides[1]
        if step not in (3, 4) or crop.strides[2] != 1:
            crop, step = np.ascontiguousarray(crop), 3
        row = (region.w_px - 1) * step + 3  # not the last pixel's fourth byte, which may be beyond the end
        pitch = (row + 1 + _PITCH - 1) // _PITCH * _PITCH
        picture = self._picture
        if picture is None or picture.host.shape != (region.h_px, pitch):
            if picture is not None:
                self._owned.remove(picture)
                picture.free()
            picture = self._picture = self._buffer((region.h_px, pitch), np.uint8)
        self._unanswered(self._means)
        picture.host[:, :row] = np.lib.stride_tricks.as_strided(crop, (region.h_px, row), (crop.strides[0], 1))
        picture.upload(gpu.stream)
        gpu.launch("area_means", "area_means_bgr" if step == 3 else "area_means_bgrx", ((size + 7) // 8, size),
                   picture.pointer, pitch, 0, 0, region.w_px, region.h_px, size, self._means.pointer)

    def _normalise(self, weight: np.float32 | None, gain: float | None, number: int) -> Buffer | None:
        """One grid point: where its frame will stand, the nth of this picture's; None for zeros. gain: see edge.clip.Gains."""
        if weight is None or gain is None:
            return None
        size, gpu = self.size, self._gpu
        if number == len(self._answers):
            self._answers.append(self._buffer(self._shape))
        out = self._answers[number]
        grid, before = ((size + 31) // 32, (size + 7) // 8), self._before if self._begun else self._means
        if gain:
            self._unanswered(out)
        gpu.launch("normalise", "normalise_light", grid, before.pointer, self._means.pointer, float(weight), gain,
                   clip.LOG_OFFSET_COUNTS, clip.LIGHT_SCALE, clip.LIGHT_CLIP, size, self._mean.pointer, self._grey.pointer,
                   out.pointer)
        if not gain:
            return None
        gpu.launch("normalise", "normalise_flow", grid, self._grey.pointer, clip.FLOW_FLOOR**2, clip.FLOW_SCALE,
                   clip.FLOW_CLIP, size, out.pointer)
        out.download(gpu.stream)
        return out


def _finite(buffer: Buffer) -> F32:
    """A copy of what the GPU answered. Raises CudaError where it did not, or not with numbers."""
    answer: F32 = buffer.host.copy()
    if not np.isfinite(answer).all():
        raise CudaError("a kernel gave no answer, or one that is not finite")
    return answer


class CudaBuilders:
    """Makes the GPU's builders; after the first failure of the GPU, the CPU's. notes: told then that it is the CPU."""

    def __init__(self, folder: Path, notes: dict[str, Any]) -> None:
        """Raises EngineError."""
        self.gpu = Gpu(folder)
        self._notes = notes
        self._failed = False

    def __call__(self, region: Region, fs_hz: float, size: int) -> Builder:
        if not self._failed:
            try:
                return CudaClipBuilder(self.gpu, region, fs_hz, size, self.failed)
            except CudaError as e:
                self.failed(e)
        return ClipBuilder(region, fs_hz, size)

    def failed(self, why: Exception) -> None:
        """From here on the CPU."""
        if not self._failed:
            self._failed = True
            self._notes["preprocess"] = {**self._notes.get("preprocess", {}), "on": "cpu", "failed": str(why)}
            # as text: whoever keeps the record would keep the frames of the error, and what they hold of the GPU
            log.error("pre-processing goes on on the CPU, because the GPU failed: %s", str(why))


# --- which of the two


@dataclass(frozen=True)
class Comparison:
    """apart: the largest difference of any value, infinite where they differ in more. Times: medians of wall time a frame,
    copies, waiting and its share of the hop's work included."""

    apart: float
    cpu_ms: float
    cuda_ms: float


def compare(cpu: Builder, cuda: Builder, width_px: int, height_px: int) -> Comparison:
    """Both on the same pictures of this size, in turn, so that a clock that changes meets both. Raises BuilderLost."""
    pictures = _pictures(width_px, height_px)
    times_ms: dict[Builder, list[float]] = {cpu: [], cuda: []}
    points: dict[Builder, Points] = {cpu: [], cuda: []}
    apart, t_ns, first = 0.0, 0, len(_STEPS_MS) + WARM_UP
    for i in range(first + ROUNDS):
        t_ns += round(_STEPS_MS[i] * 1e6) if i < len(_STEPS_MS) else 33_366_667
        frame = Frame(i, t_ns, pictures[i % len(pictures)])
        means = {}
        for builder in (cpu, cuda):
            begun_s = time.perf_counter()
            means[builder], completed = builder.push(frame)
            times_ms[builder].append((time.perf_counter() - begun_s) * 1e3)
            points[builder] += completed
        apart = max(apart, _apart(means[cpu], means[cuda]))
        if i + 1 in (first, first + ROUNDS):  # as a hop asks for them, all at once
            frames, share_ms = {}, {}
            for builder in (cpu, cuda):
                begun_s = time.perf_counter()
                frames[builder] = builder.frames(points[builder])
                share_ms[builder] = (time.perf_counter() - begun_s) * 1e3 / ROUNDS
            same = [point[1:] for point in points[cpu]] == [point[1:] for point in points[cuda]]
            apart = max(apart, _apart(frames[cpu], frames[cuda]) if same else inf)
            points = {cpu: [], cuda: []}
    cpu_ms, cuda_ms = (median(times_ms[builder][first:]) + share_ms[builder] for builder in (cpu, cuda))
    return Comparison(apart, cpu_ms, cuda_ms)


_STEPS_MS = (0, 33, 34, 33, 0, 12, 55, 33, 150, 34, 290, 33, 340, 33, 33, 1400, 33, 33)
"""Between the first pictures, a camera's bad day: a repeated time, lost frames, a gap, and a hole that ends the mean."""


def _pictures(width_px: int, height_px: int) -> list[NDArray[np.uint8]]:
    """Three that differ: soft patches of all brightnesses that move and pulse, so that light and flow both have something."""
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 240, (12, 16, 3)).astype(np.uint8)
    out = []
    for shift, gain in ((0.0, 1.0), (0.4, 1.03), (-0.3, 0.96)):
        matrix = np.array([[16 / width_px, 0, shift], [0, 12 / height_px, shift]])
        moved = cv2.warpAffine(patches, matrix, (width_px, height_px), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                               borderMode=cv2.BORDER_REPLICATE)
        out.append(np.asarray(cv2.convertScaleAbs(moved, alpha=gain), np.uint8))
    return out


def _apart(one: F32, other: F32) -> float:
    """The largest difference; infinite where a value is no number."""
    most = float(np.abs(one - other).max(initial=0.0))
    return most if np.isfinite(most) else inf


def choose(wanted: str, fs_hz: float, size: int, folder: Path, width_px: int, height_px: int, roi: Region | None,
           notes: dict[str, Any]) -> MakeBuilder:
    """What makes this camera's builders: "auto" the faster of both, "cuda" the GPU's.

    roi: what will be looked at first, None = all. notes: told where pre-processing runs and both times. Where the GPU cannot be
    had, or answers otherwise than the CPU, "auto" takes the CPU and says why, "cuda" raises ConfigError. Raises RegionError.
    """
    region = roi or Region(0, 0, width_px, height_px)
    region.check_inside(width_px, height_px)
    try:
        builders = CudaBuilders(folder, notes)
        try:
            found = _measured(builders, region, fs_hz, size, width_px, height_px)
        except EngineError:
            builders.gpu.close()
            raise
    except EngineError as e:
        if wanted == "cuda":
            raise ConfigError(f"pre-processing on the GPU was asked for and is not to be had: {e}; or let it run on the CPU: "
                              "--preprocess auto") from e
        log.warning("pre-processing on the CPU: %s", str(e))
        notes["preprocess"] = {"on": "cpu", "why": str(e)}
        return ClipBuilder
    on = "cuda" if wanted == "cuda" or found.cuda_ms < found.cpu_ms else "cpu"
    notes["preprocess"] = {"on": on, "cpu_ms": round(found.cpu_ms, 4), "cuda_ms": round(found.cuda_ms, 4),
                           "apart": found.apart}
    log.info("pre-processing on the %s: a frame of %dx%d takes %.3f ms on the GPU and %.3f ms on the CPU, answers %.1e apart",
             {"cuda": "GPU", "cpu": "CPU"}[on], width_px, height_px, found.cuda_ms, found.cpu_ms, found.apart)
    if on == "cuda":
        return builders
    builders.gpu.close()
    return ClipBuilder


def _measured(builders: CudaBuilders, region: Region, fs_hz: float, size: int, width_px: int, height_px: int) -> Comparison:
    """Raises EngineError, also where both do not agree."""
    try:
        with_gpu = CudaClipBuilder(builders.gpu, region, fs_hz, size)
        try:
            found = compare(ClipBuilder(region, fs_hz, size), with_gpu, width_px, height_px)
        finally:
            with_gpu.close()
    except BuilderLost as e:
        raise CudaError(str(e)) from e
    if not found.apart <= AGREE:
        raise CudaError(f"the GPU's answers are {found.apart:.2g} from the CPU's, at most {AGREE:g} is allowed; its driver or "
                        "its nvcc computes wrongly")
    return found
