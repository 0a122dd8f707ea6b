"""The stand-in driver of tests/fakecuda built with gcc, and turned and counted as tests/fake_pycuda.py's Machine is."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from tests.fake_pycuda import FAULTS, Card

SOURCE = Path(__file__).parent / "fakecuda" / "libcuda.c"
SONAME = "libcuda.so.1"
_WORK = ctypes.CFUNCTYPE(None, ctypes.c_int)
SANITISERS = ("-fsanitize=address", "-fno-omit-frame-pointer")


def missing() -> str | None:
    """Why real pycuda cannot be run here, None where it can. Imports nothing: that needs the driver to be there."""
    if importlib.util.find_spec("pycuda") is None:
        return "pycuda is not installed in this environment (make test-cuda builds one where CUDA's toolkit is)"
    absent = [tool for tool in ("gcc", "nm") if shutil.which(tool) is None]
    return f"no {' and no '.join(absent)} on PATH to build the stand-in driver with" if absent else None


def build(folder: Path, flags: tuple[str, ...] = ()) -> Path:
    """libcuda.so.1 in the folder, every symbol of pycuda's that it lacks answering 801."""
    spec = importlib.util.find_spec("pycuda")
    assert spec is not None and spec.submodule_search_locations
    (extension,) = Path(spec.submodule_search_locations[0]).glob("_driver*.so")
    undefined = subprocess.run(["nm", "-D", "--undefined-only", str(extension)], check=True, capture_output=True, text=True)
    wanted = set(re.findall(r"\bU (cu[A-Z]\w*)", undefined.stdout))
    text = SOURCE.read_text()
    stubs = sorted(wanted - set(re.findall(r"^Result (cu\w+)\(", text, re.MULTILINE)))
    whole = folder / "all.c"
    whole.write_text(text + "".join(f"\nResult {name}(void) {{ return 801; }}" for name in stubs) + "\n")
    out = folder / SONAME
    subprocess.run(["gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread",
                    f"-Wl,-soname,{SONAME}", *flags, "-o", str(out), str(whole)], check=True)
    return out


class StandinDriver:
    """The driver in this process. Loaded before pycuda is imported, it is the libcuda.so.1 that pycuda finds."""

    def __init__(self, library: Path) -> None:
        self._lib = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._lib.standin_configure.argtypes = [ctypes.c_char_p, *[ctypes.c_int] * 3, ctypes.c_size_t, *[ctypes.c_int] * 2]
        self._lib.standin_enqueue.argtypes = [ctypes.c_void_p, _WORK]
        self._waiting: dict[int, Callable[[], object]] = {}
        self._calls: list[Any] = []
        self._counted_before = [0] * 7
        self.configure()

    @classmethod
    def load(cls) -> StandinDriver:
        """As new for each test: no faults, and what earlier tests left behind not counted."""
        driver = _loaded()
        driver._lib.standin_no_faults()
        driver._counted_before = driver._count()
        driver.card = Card()
        driver.configure()
        return driver

    card = Card()

    def configure(self, **card: Any) -> None:
        self.card = replace(self.card, **card)
        name, (major, minor), *rest = astuple(self.card)
        self._lib.standin_configure(name.encode(), major, minor, *rest)

    def fail(self, call: str, nth: int = 1, times: int = 1) -> None:
        assert self._lib.standin_fail(call.encode(), FAULTS[call], nth, times) == 0

    def live(self) -> dict[str, int]:
        return dict(zip(("device", "host", "streams", "contexts"), self._since()[:4], strict=True))

    def loaded(self) -> int:
        return self._since()[6]

    @property
    def copies(self) -> Counter[str]:
        return +Counter(dict(zip(("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync"), self._since()[4:6], strict=True)))

    def waiting(self) -> int:
        return int(self._lib.standin_waiting())

    def depth(self) -> int:
        return int(self._lib.standin_depth())

    def require_context(self) -> None:
        import pycuda.driver

        if code := self._lib.standin_require_context():
            raise pycuda.driver.LogicError(f"call failed: {code}")

    def enqueue(self, handle: int, work: Callable[[], object]) -> None:
        number = len(self._calls)

        def once(perform: int) -> None:
            kept = self._waiting.pop(number)
            if perform:
                kept()

        call = _WORK(once)
        self._calls.append(call)  # ctypes keeps it not, and it must outlive its own return: so for good
        self._waiting[number] = work  # but not what it holds
        if code := self._lib.standin_enqueue(handle, call):
            del self._waiting[number]
            import pycuda.driver

            raise pycuda.driver.LogicError(f"launch failed: {code}")

    def _since(self) -> list[int]:
        return [now - before for now, before in zip(self._count(), self._counted_before, strict=True)]

    def _count(self) -> list[int]:
        counts = (ctypes.c_long * 7)()
        self._lib.standin_count(counts)
        return list(counts)


@functools.cache
def _loaded() -> StandinDriver:
    with tempfile.TemporaryDirectory() as folder:  # loaded, the file itself is no longer needed
        return StandinDriver(build(Path(folder)))
