"""What several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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
