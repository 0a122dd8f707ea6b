"""What several tests share."""

from __future__ import annotations

import os
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
