"""CUDA kernels of our own: compiled by nvcc for this device's GPU, kept in the cache folder, loaded and launched.

A cubin that came with the program would have to fit every driver that JetPack ever had, and one made by CUDA 13 does not
load on JetPack 6; so the source travels, and the device's own nvcc makes a second or two's work of it, once.

None of this has run on a GPU yet: it is tested on a stand-in for pycuda, and on real pycuda over a stand-in driver.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines import plan
from engines.cuda import Cuda, CudaError, Stream
from engines.plan import Plan, PlanError, PlanMismatch, PlanMissing

log = logging.getLogger("physvlm.cuda")

OPTIONS = ("-std=c++17",)
"""Nothing that trades exactness for speed: no --use_fast_math, whose logarithm is another one."""

NVCC_S = 50.0
"""A hanging compiler must not hold up the start for longer than the supervisor waits (60 s)."""


def nvcc() -> str:
    """The compiler. Raises CudaError where there is none."""
    found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if found is None:
        raise CudaError("no nvcc on PATH or in /usr/local/cuda/bin to compile our CUDA kernels with; install JetPack's CUDA "
                        "toolkit")
    return found


def cubin(source: Path, cuda: Cuda, folder: Path) -> bytes:
    """The source compiled for this GPU: from the folder where it fits, else by nvcc, and then kept there for the next time.

    Raises CudaError, and PlanError for a file or folder that is not to be trusted: what lies there runs on the GPU.
    """
    text = source.read_bytes()
    capability = "{}.{}".format(*cuda.facts.compute_capability)
    components = {"format": plan.FORMAT, "source": hashlib.sha256(text).hexdigest(), "compute_capability": capability,
                  "options": list(OPTIONS)}
    kept = folder / f"{source.stem}.cubin"
    try:
        plan.trusted_folder(folder)
        found = plan.read(kept, source.stem, "cubin")
        plan.check(found, components)
        return found.data
    except (PlanMissing, PlanMismatch) as e:
        log.info("%s is compiled for compute capability %s: %s", source.name, capability, str(e))
    made = _compiled(source, "sm_{}{}".format(*cuda.facts.compute_capability), folder)
    try:
        plan.write(kept, Plan(source.stem, "cubin", components, made))
    except PlanError as e:
        log.warning("%s is compiled anew at every start: %s", source.name, str(e))
    return made


def _compiled(source: Path, architecture: str, folder: Path) -> bytes:
    compiler = nvcc()
    try:
        plan.trusted_folder(folder, make=True)
        # in the cache folder, nvcc's own files too: to the service /tmp is read-only
        with tempfile.TemporaryDirectory(prefix="nvcc-", dir=folder) as work:
            out = Path(work) / "out.cubin"
            command = [compiler, "-cubin", f"-arch={architecture}", *OPTIONS, "-o", str(out), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=NVCC_S,
                                  env={**os.environ, "TMPDIR": work})
            if done.returncode == 0:
                return out.read_bytes()
    except (OSError, subprocess.SubprocessError) as e:
        raise CudaError(f"{compiler} does not compile {source.name} in {folder}: {e}") from e
    said = next((line for line in (done.stderr + done.stdout).splitlines() if line.strip()), "it says nothing")
    raise CudaError(f"{compiler} does not compile {source.name} for {architecture}: {said.strip()}; install the CUDA that "
                    "belongs to this device's JetPack")


class Module:
    """Kernels of one cubin on one device. Make it inside `cuda.current()`, launch it there, `free` it before `cuda.close()`."""

    def __init__(self, cuda: Cuda, data: bytes, signatures: Mapping[str, str]) -> None:
        """signatures: by kernel, the `struct` letter of each argument; P is an address. Raises CudaError."""
        self._cuda = cuda
        self._functions: dict[str, Any] = {}
        self._module: Any = None
        with cuda._doing(f"load the kernels {', '.join(signatures)}"):
            self._module = cuda._driver.module_from_buffer(data)
            try:
                for name, letters in signatures.items():
                    self._functions[name] = self._module.get_function(name)
                    self._functions[name].prepare(letters)
            except cuda._driver.Error:
                self._functions.clear()
                self._module = None
                raise

    def launch(self, name: str, grid: tuple[int, int], block: tuple[int, int, int], stream: Stream, *arguments: Any) -> None:
        """In the order of the stream. Raises CudaError; what goes wrong later, `stream.synchronize` raises."""
        if self._module is None:
            raise CudaError("this CUDA module was freed; make a new one")
        with self._cuda._doing(f"launch the kernel {name}"):
            self._functions[name].prepared_async_call(grid, block, stream._alive(), *arguments)

    def free(self) -> None:
        """In any thread, once nothing of it is under way; a second time does nothing."""
        if self._module is None:
            return
        with self._cuda.current():
            self._functions.clear()
            self._module = None  # pycuda unloads it with its last reference, which this is


def free_all(things: list[Any]) -> None:
    """The newest first. What cannot be freed went with its context."""
    while things:
        with suppress(CudaError):
            things.pop().free()
