"""What several tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


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
def cuda_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The machine under `pycuda`: a stand-in for both, or with PHYSVLM_TEST_PYCUDA=real the real pycuda over a stand-in for
    the driver. Never a GPU. Tests break and count it the same way: `fail`, `configure`, `live`, `enqueue` ..."""
    if os.environ.get("PHYSVLM_TEST_PYCUDA") == "real":
        from tests.standin_driver import StandinDriver

        return StandinDriver.load()
    from tests.fake_pycuda import Machine

    machine = Machine()
    for name, module in machine.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return machine
