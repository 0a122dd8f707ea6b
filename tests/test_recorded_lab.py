"""Real data sets as training clips: what they label teaches, what they do not label is left out."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="training needs torch; it is in the extra `lab`")
pytest.importorskip("h5py", reason="COHFACE is HDF5; h5py is in the extra `lab`")

from calibration.datasets.record import DatasetError  # noqa: E402
from distillation.cache import Cache  # noqa: E402
from distillation.recorded import build_dataset, rate_of_wave  # noqa: E402
from distillation.train import TrainConfig, TrainingError, settings_of, train  # noqa: E402
from engines.student import StudentConfig  # noqa: E402
from tests.dataset_fixtures import write_cohface, write_ubfc_2  # noqa: E402

TINY = StudentConfig(window=24, stem_width=4, features=8, series=2, hidden=8, wavelet_levels=3)


def test_the_rate_of_a_contact_wave_follows_it():
    fs_hz = 30.0
    rate = np.linspace(1.5, 2.5, 900)
    wave = np.sin(2 * np.pi * np.cumsum(rate) / fs_hz)
    found = rate_of_wave(wave, fs_hz, 0.6, 4.4)
    assert np.abs(found - rate)[150:-150].max() < 0.1
    assert rate_of_wave(np.sin(2 * np.pi * 2.0 * np.arange(60) / fs_hz), fs_hz, 0.6, 4.4) == pytest.approx(2.0, abs=0.05)


def test_a_source_with_both_labels_teaches_both(tmp_path):
    write_cohface(tmp_path / "set")
    cache = Cache(build_dataset("cohface", tmp_path / "set", 40, 20.0, 48, tmp_path))
    assert len(cache) == 1 and cache.frames(0, slice(None)).shape == (40, 5, 48, 48)
    truth = {name: column[0] for name, column in cache.truth.items()}
    assert (truth["pulse_presence"], truth["resp_presence"]) == (1, 1)
    assert truth["hr"][20] == pytest.approx(80, abs=3) and truth["rr"].min() > 0
    assert truth["pulse"].std() == pytest.approx(1, abs=1e-3)


def test_a_source_without_breathing_leaves_it_out(tmp_path):
    write_ubfc_2(tmp_path / "set")
    cache = Cache(build_dataset("ubfc", tmp_path / "set", 60, 30.0, 48, tmp_path))
    truth = {name: column[0] for name, column in cache.truth.items()}
    assert (truth["pulse_presence"], truth["resp_presence"]) == (1, -1)
    assert not truth["rr"].any() and not truth["resp"].any()


def test_a_cache_is_made_once_and_a_broken_set_names_its_fault(tmp_path):
    folder = write_ubfc_2(tmp_path / "set")
    first = build_dataset("ubfc", tmp_path / "set", 60, 30.0, 48, tmp_path)
    before = (first / "frames.npy").stat().st_mtime_ns
    assert build_dataset("ubfc", tmp_path / "set", 60, 30.0, 48, tmp_path) == first
    assert (first / "frames.npy").stat().st_mtime_ns == before
    (folder / "ground_truth.txt").write_text("1 2 3\n")
    with pytest.raises(DatasetError, match="ground_truth.txt"):
        build_dataset("ubfc", tmp_path / "set", 60, 30.0, 48, tmp_path)
    write_ubfc_2(tmp_path / "short", frames=50)
    with pytest.raises(ValueError, match="as long as a training clip"):
        build_dataset("ubfc", tmp_path / "short", 600, 30.0, 48, tmp_path)


def test_training_takes_real_sets_beside_rendered_clips(tmp_path):
    write_ubfc_2(tmp_path / "set")
    config = TrainConfig(n_train=4, n_restraint=0, n_valid=4, epochs=1, batch=4, teacher="", device="cpu", workers=1,
                         datasets=f"ubfc={tmp_path / 'set'}")
    assert train(config, tmp_path / "cache", tmp_path / "run", TINY).exists()
    assert settings_of(config, TINY)["train"]["datasets"] == "ubfc"
    with pytest.raises(TrainingError, match="NAME=FOLDER"):
        train(TrainConfig(n_train=4, n_restraint=0, n_valid=4, datasets="pure", workers=1), tmp_path / "cache",
              tmp_path / "other", TINY)
