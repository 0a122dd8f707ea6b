"""A stand-in for the part of pycuda that engines/cuda.py uses, over host memory: `Machine().modules()` gives the modules.

It keeps pycuda's rules, the awkward ones above all (read in the source of 2026.1):
* calls need a current context in the calling thread; pycuda's own stack of contexts stands beside the driver's, and a
  released primary context stays on the driver's stack of the thread that released it;
* an object freed in another thread than it was made in, its context not current, is not freed: a warning, and a leak;
* memory is filled with rubbish when it is made and when it is freed, copies check both ends, a second `free` raises.

As on a GPU, nothing happens before the stream is synchronised: who reads earlier reads rubbish. A cubin is a library of the
host here, made by tests/host_nvcc.py. What it cannot show: speed, and that a real GPU writes before it is asked to.

`Machine` is what tests turn and count: see also tests/standin_driver.py, the same over real pycuda.
"""

from __future__ import annotations

import ctypes
import gc
import struct
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

FRESH, FREED = 0xCD, 0xDD
"""What new device memory and freed memory hold."""

FAULTS = {"cuInit": 100, "cuDeviceGet": 101, "cuDevicePrimaryCtxRetain": 2, "cuCtxPushCurrent": 201, "cuStreamCreate": 2,
          "cuMemHostAlloc": 2, "cuMemHostGetDevicePointer": 1, "cuMemAlloc": 2, "cuMemcpyHtoDAsync": 1,
          "cuMemcpyDtoHAsync": 1, "cuStreamSynchronize": 719, "cuModuleLoadDataEx": 209, "cuModuleGetFunction": 500,
          "cuLaunchKernel": 1}
"""Calls that can be told to fail, and the driver's number for how."""

_TEXTS = {1: "invalid argument", 2: "out of memory", 100: "no CUDA-capable device is detected", 101: "invalid device ordinal",
          201: "invalid device context", 209: "no kernel image is available for execution on the device",
          400: "invalid resource handle", 500: "named symbol not found", 719: "unspecified launch failure"}


@dataclass(frozen=True)
class Card:
    """What the device says of itself."""

    name: str = "Orin (stand-in)"
    compute_capability: tuple[int, int] = (8, 7)
    sm_count: int = 8
    memory_bytes: int = 7_990_000_000
    driver_version: int = 12_060
    integrated: bool = True


class Machine:
    """The device and its driver. Tests set `card` with `configure`, break calls with `fail` and count with `live`."""

    def __init__(self) -> None:
        self.card = Card()
        self.copies: Counter[str] = Counter()
        self._live: Counter[str] = Counter()
        self._faults: dict[str, range] = {}
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._allocations: dict[int, tuple[int, str, Any]] = {}
        self._buried: list[Any] = []
        self._streams: dict[int, list[Callable[[], object]]] = {}
        self._next_handle = 0x5700
        self._retained = 0
        self._ready = False
        self._here = threading.local()

    def configure(self, **card: Any) -> None:
        self.card = replace(self.card, **card)

    def fail(self, call: str, nth: int = 1, times: int = 1) -> None:
        """The nth call of this driver function from now on fails, and as many as `times` in a row."""
        if call not in FAULTS:
            raise KeyError(f"{call} cannot fail here; known: {', '.join(FAULTS)}")
        self._faults[call] = range(self._calls[call] + nth, self._calls[call] + nth + times)

    def live(self) -> dict[str, int]:
        """What exists: device and host allocations, streams, and how often the primary context is retained."""
        return {**{kind: self._live[kind] for kind in ("device", "host", "streams")}, "contexts": self._retained}

    def loaded(self) -> int:
        """How many modules are."""
        return self._live["modules"]

    def waiting(self) -> int:
        """How much work all streams together still have."""
        return sum(map(len, self._streams.values()))

    def depth(self) -> int:
        """How many contexts lie on the driver's stack of this thread."""
        return len(self.driver_stack)

    def enqueue(self, handle: int, work: Callable[[], object]) -> None:
        """What a kernel is: work that a stream does when its turn comes."""
        self.require_context()
        if handle not in self._streams:
            raise self.driver.LogicError(f"launch failed: {_TEXTS[400]}")
        self._streams[handle].append(work)

    def require_context(self) -> None:
        """Raise as a driver call does where no live context is current."""
        if not self._ready or not self.driver_stack or not self._retained:
            raise self.driver.LogicError(f"call failed: {_TEXTS[201]}")

    def modules(self) -> dict[str, ModuleType]:
        """For sys.modules."""
        package = ModuleType("pycuda")
        package.driver = self.driver  # type: ignore[attr-defined]
        return {"pycuda": package, "pycuda.driver": self.driver}

    @property
    def driver_stack(self) -> list[Any]:
        return self._here.__dict__.setdefault("driver", [])

    @property
    def pycuda_stack(self) -> list[Any]:
        return self._here.__dict__.setdefault("pycuda", [])

    @property
    def driver(self) -> ModuleType:
        if not hasattr(self, "_driver"):
            self._driver = _make_driver(self)
        return self._driver

    # --- the driver's own doings

    def call(self, name: str) -> None:
        """Count it, and fail where a test said so."""
        with self._lock:
            self._calls[name] += 1
            failed = self._calls[name] in self._faults.get(name, ())
        if failed:
            raise self.error(name, FAULTS[name])

    def error(self, name: str, code: int) -> Exception:
        kind = {2: self.driver.MemoryError, 100: self.driver.RuntimeError, 719: self.driver.LaunchError}
        return kind.get(code, self.driver.LogicError)(f"{name} failed: {_TEXTS[code]}")

    def allocate(self, kind: str, call: str, size: int) -> int:
        self.require_context()
        self.call(call)
        if size <= 0:
            raise self.error(call, 1)
        memory = ctypes.create_string_buffer(size)
        address = ctypes.addressof(memory)
        ctypes.memset(address, FRESH, size)
        with self._lock:
            self._live[kind] += 1
            self._allocations[address] = (size, kind, memory)
        return address

    def release(self, address: int) -> None:
        with self._lock:
            size, kind, memory = self._allocations.pop(address)
            self._live[kind] -= 1
            self._buried.append(memory)  # so that work still queued spoils nothing but this
        ctypes.memset(address, FREED, size)

    def copy(self, call: str, to: int, source: int, size: int, device: int, stream: Any) -> None:
        self.require_context()
        self.call(call)
        with self._lock:
            inside = any(base <= device and device + size <= base + length
                         for base, (length, kind, _) in self._allocations.items() if kind == "device")
        if not inside:
            raise self.error(call, 1)
        self.enqueue(stream.handle, lambda: ctypes.memmove(to, source, size))
        self.copies[call] += 1

    def drain(self, handle: int) -> None:
        work, self._streams[handle][:] = list(self._streams[handle]), []
        for each in work:
            each()


def _make_driver(machine: Machine) -> ModuleType:
    driver = ModuleType("pycuda.driver")

    class Error(Exception):
        pass

    def error(name: str) -> type[Error]:
        return type(name, (Error,), {"__module__": "pycuda._driver"})

    def init(flags: int = 0) -> None:
        machine.call("cuInit")
        machine._ready = True

    def mem_alloc(size: int) -> Any:
        try:
            return _DeviceAllocation(machine, size)
        except driver.MemoryError:
            gc.collect()  # as pycuda does, in case Python still holds some
            return _DeviceAllocation(machine, size)

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        return np.asarray(_PagelockedHostAllocation(machine, tuple(shape), np.dtype(dtype), mem_flags))

    def memcpy_htod_async(dest: Any, src: Any, stream: Any = None) -> None:
        machine.copy("cuMemcpyHtoDAsync", int(dest), src.ctypes.data, src.nbytes, int(dest), stream)

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Any = None) -> None:
        machine.copy("cuMemcpyDtoHAsync", dest.ctypes.data, int(src), dest.nbytes, int(src), stream)

    def module_from_buffer(data: bytes) -> Any:
        return _Module(machine, data)

    driver.__dict__.update(
        Error=Error, MemoryError=error("MemoryError"), LogicError=error("LogicError"), LaunchError=error("LaunchError"),
        RuntimeError=error("RuntimeError"), init=init, get_driver_version=lambda: machine.card.driver_version,
        Device=_bound(_Device, machine), Context=_Context, Stream=_bound(_Stream, machine), DeviceAllocation=_DeviceAllocation,
        PagelockedHostAllocation=_PagelockedHostAllocation, mem_alloc=mem_alloc, pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=memcpy_htod_async, memcpy_dtoh_async=memcpy_dtoh_async, module_from_buffer=module_from_buffer,
        Module=_Module, Function=_Function,
        device_attribute=SimpleNamespace(MULTIPROCESSOR_COUNT=16, INTEGRATED=18),
        host_alloc_flags=SimpleNamespace(PORTABLE=1, DEVICEMAP=2, WRITECOMBINED=4))
    return driver


def _bound(made: type, machine: Machine) -> type:
    """The class with the machine as a hidden first argument."""
    return type(made.__name__.strip("_"), (made,), {"__init__": lambda self, *args: made.__init__(self, machine, *args)})


class _Device:
    def __init__(self, machine: Machine, ordinal: int) -> None:
        machine.call("cuDeviceGet")
        if not machine._ready or ordinal != 0:
            raise machine.error("cuDeviceGet", 101)
        self._machine = machine

    def name(self) -> str:
        return self._machine.card.name

    def compute_capability(self) -> tuple[int, int]:
        return self._machine.card.compute_capability

    def total_memory(self) -> int:
        return self._machine.card.memory_bytes

    def get_attribute(self, attribute: int) -> int:
        return {16: self._machine.card.sm_count, 18: int(self._machine.card.integrated)}[attribute]

    def retain_primary_context(self) -> _Context:
        self._machine.call("cuDevicePrimaryCtxRetain")
        self._machine._retained += 1
        return _Context(self._machine)


class _Context:
    """The rules are those of `context` and `primary_context` in pycuda's cuda.hpp."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._thread = threading.get_ident()
        self.valid = True

    def push(self) -> None:
        if self._machine.pycuda_stack:
            self._machine.driver_stack.pop()
        self._machine.call("cuCtxPushCurrent")
        if not self._machine._retained:
            raise self._machine.error("cuCtxPushCurrent", 201)
        self._machine.driver_stack.append(self)
        self._machine.pycuda_stack.append(self)

    def pop(self) -> None:
        machine = self._machine  # static in pycuda: it takes whatever is on top
        if machine.pycuda_stack:
            if not machine.driver_stack:
                raise machine.error("cuCtxPopCurrent", 201)
            machine.driver_stack.pop()
        if _current(machine) is None:
            raise machine.error("context::pop", 201)
        machine.pycuda_stack.pop()
        if (below := _current(machine)) is not None:
            machine.driver_stack.append(below)

    def detach(self) -> None:
        machine = self._machine
        if not self.valid:
            raise machine.error("context::detach", 201)
        active = _current(machine) is self
        if active or self._thread == threading.get_ident():
            if not active:
                machine.driver_stack.append(self)  # and stays there: pycuda takes the release for a pop
            machine._retained -= 1
        self.valid = False
        if active and (below := _current(machine)) is not None:
            machine.driver_stack.append(below)

    def __del__(self) -> None:
        """pycuda's destructor does not know a primary context from another: this one stays retained, and on the stack."""
        if self.valid and self._thread == threading.get_ident():
            self._machine.driver_stack.append(self)


def _current(machine: Machine) -> _Context | None:
    stack = machine.pycuda_stack
    while stack and not stack[-1].valid:
        stack.pop()
    return stack[-1] if stack else None


class _Owner:
    """What belongs to the context that was current when it was made."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._ward = _current(machine)
        if self._ward is None:
            raise machine.error("explicit_context_dependent", 201)

    def _freeing(self, free: Callable[[], None]) -> None:
        ward = self._ward
        if not ward.valid:
            return  # pycuda takes it that the context's end freed everything
        if _current(self._machine) is ward:
            free()
        elif ward._thread != threading.get_ident():
            warnings.warn(f"{type(self).__name__} in out-of-thread context could not be cleaned up", UserWarning, stacklevel=3)
        else:
            ward.push()
            free()
            ward.pop()


class _Stream(_Owner):
    def __init__(self, machine: Machine, flags: int = 0) -> None:
        self.handle = 0
        super().__init__(machine)
        machine.call("cuStreamCreate")
        machine._next_handle += 16
        self.handle = machine._next_handle
        machine._streams[self.handle] = []
        machine._live["streams"] += 1

    def synchronize(self) -> None:
        self._machine.require_context()
        try:
            self._machine.call("cuStreamSynchronize")
        except self._machine.driver.Error:
            self._machine._streams[self.handle].clear()  # what failed was never done
            raise
        self._machine.drain(self.handle)

    def __del__(self) -> None:
        if self.handle:
            self._freeing(self._destroy)

    def _destroy(self) -> None:
        self._machine.drain(self.handle)
        del self._machine._streams[self.handle]
        self._machine._live["streams"] -= 1


class _Allocation(_Owner):
    def __init__(self, machine: Machine, kind: str, call: str, size: int) -> None:
        self._address = 0
        super().__init__(machine)
        self._address = machine.allocate(kind, call, size)
        self._valid = True

    def free(self) -> None:
        if not self._valid:
            raise self._machine.error(f"{type(self).__name__}.free", 400)
        self._freeing(lambda: self._machine.release(self._address))
        self._valid = False

    def __del__(self) -> None:
        if self._address and self._valid:
            self.free()


class _DeviceAllocation(_Allocation):
    def __init__(self, machine: Machine, size: int) -> None:
        super().__init__(machine, "device", "cuMemAlloc", size)

    def __int__(self) -> int:
        return self._address


class _PagelockedHostAllocation(_Allocation):
    """The `base` of an array: numpy reads where and what it is from __array_interface__."""

    def __init__(self, machine: Machine, shape: tuple[int, ...], dtype: np.dtype[Any], flags: int) -> None:
        self._mapped = bool(flags & machine.driver.host_alloc_flags.DEVICEMAP)
        super().__init__(machine, "host", "cuMemHostAlloc", int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (self._address, False)}

    def get_device_pointer(self) -> int:
        self._machine.require_context()
        self._machine.call("cuMemHostGetDevicePointer")
        if not self._mapped:
            raise self._machine.error("cuMemHostGetDevicePointer", 1)
        return self._address


class _Module(_Owner):
    def __init__(self, machine: Machine, data: bytes) -> None:
        self._library: Any = None
        super().__init__(machine)
        machine.require_context()
        machine.call("cuModuleLoadDataEx")
        with tempfile.NamedTemporaryFile(prefix="cubin-") as file:  # a name of its own: dlopen takes it for the same otherwise
            file.write(data)
            file.flush()
            try:
                library = ctypes.CDLL(file.name)
                architecture = ctypes.c_char * 16
                made_for = architecture.in_dll(library, "architecture").value.decode()
            except (OSError, ValueError):
                made_for = "no GPU at all"
        if made_for != "sm_{}{}".format(*machine.card.compute_capability):
            raise machine.error("cuModuleLoadDataEx", 209)
        self._library = library
        machine._live["modules"] += 1

    def get_function(self, name: str) -> Any:
        self._machine.require_context()
        self._machine.call("cuModuleGetFunction")
        try:
            launch = getattr(self._library, f"launch_{name}")
        except AttributeError:
            raise self._machine.error("cuModuleGetFunction", 500) from None
        return _Function(self, launch)

    def __del__(self) -> None:
        if self._library is not None:
            self._freeing(self._unload)

    def _unload(self) -> None:
        self._machine._live["modules"] -= 1


class _Function:
    """It keeps its module, as pycuda's does."""

    def __init__(self, module: _Module, launch: Any) -> None:
        self._module, self._launch = module, launch
        launch.argtypes = [ctypes.POINTER(ctypes.c_uint), ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]

    def prepare(self, arg_types: str) -> Any:
        self._format = arg_types
        return self

    def prepared_async_call(self, grid: tuple[int, ...], block: tuple[int, int, int], stream: Any, *args: Any) -> None:
        machine, packed = self._module._machine, struct.pack(self._format, *args)
        machine.require_context()
        machine.call("cuLaunchKernel")
        dims = (ctypes.c_uint * 6)(*grid, *[1] * (3 - len(grid)), *block)
        if min(dims) < 1 or not self._launch(dims, packed, len(packed), 0):
            raise machine.error("cuLaunchKernel", 1)
        launch = self._launch
        machine.enqueue(stream.handle, lambda: launch(dims, packed, len(packed), 1))
