"""CUDA for the engines: the device, its primary context, streams and buffers. The only file that touches pycuda.

Rules of pycuda's that are kept here, so that nobody else has to know them:
* A context is current in one thread. `Cuda.current()` makes ours current in the calling thread and takes it away again, so
  capture, inference and other users of the same GPU (OpenCV, torch) live side by side. The primary context is the one
  that they all share.
* An object that dies in another thread than it was made in, with the context not current, is never freed: pycuda only warns.
  Hence `free` makes the context current itself, and Cuda keeps what it handed out until then.
* An exception's traceback keeps the frames it came through, and so what they had allocated: half-made things are freed by
  hand.

None of this has run on a GPU yet: it is tested on a stand-in for pycuda, and on real pycuda over a stand-in driver.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from engines.errors import EngineError


class CudaError(EngineError):
    """CUDA is absent or refused something; the message says what was wanted and what to do."""


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan depends on. driver_version: the newest CUDA that the driver serves, 12060 for 12.6. integrated: CPU and
    GPU share one memory, as on every Jetson."""

    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    memory_bytes: int
    driver_version: int
    integrated: bool


class Cuda:
    """One GPU, its primary context held until `close`. May be used from any thread, in each inside `current()`.

    It has to be closed: pycuda itself never lets a primary context go, and leaves it on the stack of the thread that drops it.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Raises CudaError; nothing is held then."""
        self._context: Any = None
        self._owned: list[Stream | Buffer] = []
        self._driver = _import_driver()
        with self._doing(f"open CUDA device {ordinal}"):
            self._driver.init()
            device = self._driver.Device(ordinal)
            self.facts = _facts(self._driver, device)
            self._context = device.retain_primary_context()  # last, so that no failure leaves it held

    @contextmanager
    def current(self) -> Iterator[None]:
        """Our context is current in the calling thread inside the block; what was current before is so again after it."""
        context = self._context
        if context is None:
            raise CudaError("this CUDA device was closed; open it anew")
        with self._doing("make the CUDA context current"):
            context.push()
        try:
            yield
        finally:
            with self._doing("take the CUDA context from this thread"):
                context.pop()

    def stream(self) -> Stream:
        """A new stream, which lives until its `free` or ours. Call it inside `current()`."""
        made = Stream(self)
        self._owned.append(made)
        return made

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        """A new buffer, `host` all zeros, which lives until its `free` or ours. Call it inside `current()`."""
        made = Buffer(self, shape, dtype)
        self._owned.append(made)
        return made

    def close(self) -> None:
        """Free what is left, the newest first, and let the context go. Once closed, closing again does nothing."""
        context = self._context
        if context is None:
            return
        try:
            for stream in [each for each in self._owned if isinstance(each, Stream)]:
                with suppress(CudaError), self.current():  # a failed kernel must not keep the memory
                    stream.synchronize()
            for each in sorted(reversed(self._owned), key=lambda each: isinstance(each, Stream)):  # buffers first
                each.free()
        finally:
            try:
                with self._doing("release the CUDA context"):
                    _release(context)
            finally:
                self._context = None

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as e:
            raise CudaError(f"cannot {what}: {e}; {self._advice(e)}") from e

    def _advice(self, error: Exception) -> str:
        if isinstance(error, self._driver.MemoryError):
            return "end other programs that use the GPU (on a Jetson it shares the memory with everything), or add swap"
        if isinstance(error, self._driver.LaunchError):
            return "work on the GPU failed and its context is lost; restart the program"
        if self._context is None:
            return ("is there an NVIDIA GPU, does its driver run (nvidia-smi, on a Jetson tegrastats), may this user open "
                    "/dev/nvidia*, and does a container have it (--runtime nvidia)?")
        return "a call out of place, or the GPU failed earlier: the log's first CUDA error tells which; restart the program"


class Stream:
    """Work in order, beside that of other streams. `handle` is what TensorRT takes."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._stream: Any = None
        with cuda._doing("make a CUDA stream"):
            self._stream = cuda._driver.Stream()

    @property
    def handle(self) -> int:
        """The driver's CUstream."""
        return int(self._alive().handle)

    def synchronize(self) -> None:
        """Wait until all its work is done. Raises CudaError when any of it failed."""
        stream = self._alive()
        with self._cuda._doing("finish the work of a CUDA stream"):
            stream.synchronize()

    def free(self) -> None:
        """In any thread; a second time does nothing."""
        if self._stream is None:
            return
        with self._cuda.current():
            self._stream = None  # pycuda destroys it with its last reference, which this is
        self._cuda._owned.remove(self)

    def _alive(self) -> Any:
        if self._stream is None:
            raise CudaError("this CUDA stream was freed; make a new one")
        return self._stream


class Buffer:
    """An array that CPU and GPU both reach: the CPU through `host`, the GPU at `pointer`.

    On an integrated GPU both are the same memory, page-locked and mapped, and upload and download copy nothing. The rules
    are the same either way: write `host` only while nothing that reads it is under way, and read it only after `download`
    and `synchronize` on the stream.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._cuda = cuda
        self._host: NDArray[Any] | None = None
        self._device: Any = None
        driver, mapped = cuda._driver, cuda.facts.integrated
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        with cuda._doing(f"get {size} bytes that CPU and GPU share"):
            flags = driver.host_alloc_flags.DEVICEMAP if mapped else 0
            host = driver.pagelocked_empty(shape, dtype, mem_flags=flags)
            try:
                host.fill(0)
                if mapped:
                    self._pointer = int(host.base.get_device_pointer())
                else:
                    self._device = driver.mem_alloc(size)
                    self._pointer = int(self._device)
            except driver.Error:
                _free_host(host)
                raise
        self._host = host

    @property
    def host(self) -> NDArray[Any]:
        """The CPU's side. It, and every view of it, is gone after `free`: copy what has to last."""
        return self._alive()

    @property
    def pointer(self) -> int:
        """The GPU's address of the first element."""
        self._alive()
        return self._pointer

    def upload(self, stream: Stream) -> None:
        """Have the GPU see what stands in `host`, in the order of the stream."""
        host, on = self._alive(), stream._alive()
        if self._device is not None:
            with self._cuda._doing("copy to the GPU"):
                self._cuda._driver.memcpy_htod_async(self._device, host, on)

    def download(self, stream: Stream) -> None:
        """Have `host` hold what the GPU wrote, once the stream is synchronised."""
        host, on = self._alive(), stream._alive()
        if self._device is not None:
            with self._cuda._doing("copy from the GPU"):
                self._cuda._driver.memcpy_dtoh_async(host, self._device, on)

    def free(self) -> None:
        """In any thread, once no work under way uses it; a second time does nothing."""
        host = self._host
        if host is None:
            return
        with self._cuda.current(), self._cuda._doing("free memory shared with the GPU"):
            self._host = None
            if self._device is not None:
                self._device.free()
            _free_host(host)  # by hand: a view that somebody kept would hold it beyond the context
        self._cuda._owned.remove(self)

    def _alive(self) -> NDArray[Any]:
        if self._host is None:
            raise CudaError("this buffer was freed; make a new one")
        return self._host


class Memory:
    """Bytes that the GPU alone reads and writes: what a kernel leaves for the next. Not zeroed. Make it inside
    `cuda.current()`, and `free` it before `cuda.close()`."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda = cuda
        self._memory: Any = None
        with cuda._doing(f"get {size} bytes of the GPU's memory"):
            self._memory = cuda._driver.mem_alloc(size)

    @property
    def pointer(self) -> int:
        if self._memory is None:
            raise CudaError("this memory was freed; make a new one")
        return int(self._memory)

    def free(self) -> None:
        """In any thread, once no work under way uses it; a second time does nothing."""
        memory = self._memory
        if memory is None:
            return
        with self._cuda.current(), self._cuda._doing("free the GPU's memory"):
            self._memory = None
            memory.free()


def _free_host(host: NDArray[Any]) -> None:
    """The array's memory, now: pycuda keeps it in the array's base."""
    allocation: Any = host.base
    allocation.free()


def _import_driver() -> Any:
    try:
        import pycuda.driver
    except ImportError as e:
        raise CudaError(
            f"pycuda cannot be imported ({e}): install it on the device with pip install 'physvlm-edge[jetson]', which "
            "compiles it and needs CUDA's nvcc on PATH (export PATH=/usr/local/cuda/bin:$PATH); libcuda.so.1 comes with the "
            "GPU's driver, on a Jetson with JetPack; elsewhere use --backend onnxruntime") from e
    return pycuda.driver


def _facts(driver: Any, device: Any) -> DeviceFacts:
    known = driver.device_attribute
    major, minor = device.compute_capability()
    return DeviceFacts(device.name(), (int(major), int(minor)), int(device.get_attribute(known.MULTIPROCESSOR_COUNT)),
                       int(device.total_memory()), int(driver.get_driver_version()),
                       bool(device.get_attribute(known.INTEGRATED)))


def _release(context: Any) -> None:
    """Let a primary context go.

    pycuda releases it only where it is current or in the thread that retained it, and either way leaves it on the driver's
    stack of the thread that does so, where later calls would find a dead context. A thread of its own takes that stack with it.
    """
    failures: list[BaseException] = []

    def work() -> None:
        try:
            context.push()
            context.detach()
        except BaseException as e:  # noqa: BLE001 - carried into the calling thread, whatever it is
            failures.append(e)

    thread = threading.Thread(target=work, name="physvlm-cuda-release")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
