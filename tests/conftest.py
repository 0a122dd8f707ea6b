"""What several tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Pools of threads, by default as wide as the machine, only wait for one another where the tests run in two processes. A test
# file imports numpy before it imports edge, which asks for the same.
for _pool in ("OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"):
    os.environ.setdefault(_pool, "1")


@pytest.fixture(scope="session")
def clips() -> Path:
    """The folder of real clips; the test skips where there is none."""
    beside = Path(__file__).resolve().parents[1] / "../shared/clips"
    folder = Path(os.environ.get("PHYSVLM_CLIPS", beside))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder}; name their folder in PHYSVLM_CLIPS")
    return folder


@pytest.fixture
def repeatable_torch() -> Iterator[None]:
    """One thread and one seed, so that a lab test gives the same numbers each time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cuda_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The machine under `pycuda`: a stand-in for both, or with PHYSVLM_TEST_PYCUDA=real the real pycuda over a stand-in for
    the driver. Never a GPU. Tests break and count it the same way: `fail`, `configure`, `live`, `enqueue` ..."""
    if os.environ.get("PHYSVLM_TEST_PYCUDA") == "real":
        from tests.standin_driver import StandinDriver

        machine: Any = StandinDriver.load()
    else:
        from tests.fake_pycuda import Machine

        machine = Machine()
        for name, module in machine.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    gc.freeze()  # what the test leaves is collected without going through every module that there is
    yield machine
    gc.unfreeze()
