"""The figures of an evaluation: numbers against an independent reference in rPPG-Toolbox's manner, and undefined is None."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.metrics import (
    TOOLBOX_BAND_HZ,
    bland_altman,
    coverage_risk,
    detrended,
    first_shown,
    folded,
    mae,
    mape,
    mean,
    pearson,
    prepared,
    rate_by_fft,
    rmse,
    share_within,
    snr_db,
)

signal = pytest.importorskip("scipy.signal")

FS_HZ = 30.0
NEWBORN_BAND_HZ = (1.0, 250 / 60)


def wave(rate_per_min: float, seconds: float, noise: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(FS_HZ * seconds)) / FS_HZ
    beat = np.sin(2 * np.pi * rate_per_min / 60 * t) + 0.3 * np.sin(4 * np.pi * rate_per_min / 60 * t + 1)
    return beat + noise * rng.standard_normal(t.size) + 3 * t / t[-1] + 2 * np.sin(2 * np.pi * 0.05 * t)


def reference(x: np.ndarray, label_per_min: float, band_hz: tuple[float, float]) -> tuple[float, float]:
    """(rate, SNR) by scipy alone and dense algebra: detrend lambda 100, Butterworth order 1, periodogram, +-6 /min."""
    n = len(x)
    second = np.diff(np.eye(n), 2, axis=0)
    flat = x - np.linalg.solve(np.eye(n) + 100.0**2 * second.T @ second, x)
    b, a = signal.butter(1, [2 * band_hz[0] / FS_HZ, 2 * band_hz[1] / FS_HZ], "bandpass")
    filtered = signal.filtfilt(b, a, flat)
    f, p = signal.periodogram(filtered, FS_HZ, nfft=int(2 ** np.ceil(np.log2(n))), detrend=False)
    in_band = (f >= band_hz[0]) & (f <= band_hz[1])
    around = [(f >= k * label_per_min / 60 - 0.1) & (f <= k * label_per_min / 60 + 0.1) for k in (1, 2)]
    power = sum(p[each].sum() for each in around)
    rest = p[in_band & ~around[0] & ~around[1]].sum()
    return 60 * f[in_band][p[in_band].argmax()], 10 * np.log10(power / rest)


@pytest.mark.parametrize("band_hz", [TOOLBOX_BAND_HZ, NEWBORN_BAND_HZ])
@pytest.mark.parametrize("seconds", [8.0, 10.0, 17.07])
@pytest.mark.parametrize("rate_per_min", [72.0, 131.0, 187.0])
@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_rate_and_snr_are_those_of_the_reference(band_hz, seconds, rate_per_min, noise):
    x = wave(rate_per_min, seconds, noise, seed=round(rate_per_min + seconds))
    ready = prepared(x, FS_HZ, band_hz)
    rate, snr = reference(x, rate_per_min, band_hz)
    assert rate_by_fft(ready, FS_HZ, band_hz) == pytest.approx(rate, abs=1e-9)
    assert snr_db(ready, rate_per_min, FS_HZ, band_hz) == pytest.approx(snr, abs=1e-6)


def test_errors_and_their_standard_errors_are_those_of_the_reference():
    rng = np.random.default_rng(3)
    true = rng.uniform(90, 210, 57)
    found = true + rng.normal(0.5, 6, 57)
    off = found - true
    n = len(off)
    r = signal.correlate((found - found.mean()) / found.std(), (true - true.mean()) / true.std(), "valid")[0] / n
    expected = {
        mae: (np.abs(off).sum() / n, np.sqrt(((np.abs(off) - np.abs(off).mean()) ** 2).sum() / n) / np.sqrt(n)),
        rmse: (np.sqrt((off @ off) / n), np.sqrt(np.std(off**2) / np.sqrt(n))),
        mape: (100 * np.abs(off / true).mean(), 100 * np.std(np.abs(off / true)) / np.sqrt(n)),
        pearson: (r, np.sqrt((1 - r * r) / (n - 2))),
    }
    for metric, (value, standard_error) in expected.items():
        got = metric(found, true)
        assert (got.value, got.standard_error) == pytest.approx((value, standard_error), rel=1e-9), metric.__name__


def test_a_known_case_by_hand():
    found, true = [100.0, 110.0, 130.0], [102.0, 110.0, 124.0]
    assert mae(found, true).value == pytest.approx(8 / 3)
    assert rmse(found, true).value == pytest.approx(np.sqrt(40 / 3))
    assert mape(found, true).value == pytest.approx(100 * (2 / 102 + 6 / 124) / 3)
    assert mape([1.0, 110.0], [0.0, 100.0]).value == pytest.approx(10), "a truth of 0 is no rate"
    assert share_within(found, true) == pytest.approx(2 / 3)
    assert share_within([105.0], [100.0]) == 1.0 and share_within([105.01], [100.0]) == 0.0


def test_what_is_undefined_is_none_and_never_zero():
    nothing: list[float] = []
    for metric in (mae, rmse, mape, pearson):
        for found, true in ((nothing, nothing), ([np.nan], [100.0]), ([100.0], [np.nan])):
            got = metric(found, true)
            assert got.value is None and got.standard_error is None, metric.__name__
    assert mean(nothing).value is None and share_within(nothing, nothing) is None
    assert pearson([1.0, 2.0], [1.0, 2.0]).value is None
    assert pearson([5.0, 5.0, 5.0], [1.0, 2.0, 3.0]).value is None
    assert first_shown([]).median_s is None and first_shown([]).shown is None
    assert bland_altman(nothing, nothing, []).bias is None
    alone = bland_altman([101.0], [100.0], ["a"])
    assert alone.bias == 1.0 and alone.lower is None and alone.subject_lower is None and alone.repeated_upper is None
    for flat in (np.zeros(240), np.full(240, np.nan)):
        assert rate_by_fft(flat, FS_HZ, TOOLBOX_BAND_HZ) is None and snr_db(flat, 120, FS_HZ, TOOLBOX_BAND_HZ) is None
    assert coverage_risk(nothing, nothing, nothing).mae_at(0.5) is None


def test_a_pair_with_nan_is_left_out_and_lengths_must_agree():
    assert mae([100.0, np.nan, 103.0], [101.0, 100.0, np.nan]).value == 1.0
    with pytest.raises(ValueError, match="one length"):
        mae([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="subject"):
        bland_altman([1.0], [1.0], [])
    with pytest.raises(ValueError, match="band"):
        prepared(np.zeros(100), 6.0, TOOLBOX_BAND_HZ)


def test_detrending_takes_the_drift_and_leaves_the_pulse():
    t = np.arange(512) / FS_HZ
    pulse, drift = np.sin(2 * np.pi * 2.2 * t), 4 * np.sin(2 * np.pi * 0.03 * t) + t
    left = detrended(pulse + drift)
    assert np.abs(left - pulse)[40:-40].max() < 0.05
    assert not detrended(np.ones(2)).any()


def test_snr_falls_with_noise_and_knows_a_wrong_rate():
    clean, noisy = (prepared(wave(150, 10, noise, 1), FS_HZ, NEWBORN_BAND_HZ) for noise in (0.2, 3.0))
    at = {name: snr_db(x, 150, FS_HZ, NEWBORN_BAND_HZ) for name, x in (("clean", clean), ("noisy", noisy))}
    assert at["clean"] > 8 > 3 > at["noisy"]
    assert snr_db(clean, 110, FS_HZ, NEWBORN_BAND_HZ) < -10
    # breathing is read more narrowly: what lies 4 /min away is no signal then
    assert snr_db(clean, 154, FS_HZ, NEWBORN_BAND_HZ) > snr_db(clean, 154, FS_HZ, NEWBORN_BAND_HZ, near_per_min=1.0)


def test_more_bins_read_a_rate_between_two_bins():
    t = np.arange(240) / FS_HZ
    x = np.sin(2 * np.pi * 151.7 / 60 * t)
    assert abs(rate_by_fft(x, FS_HZ, NEWBORN_BAND_HZ) - 151.7) > 0.7
    assert abs(rate_by_fft(x, FS_HZ, NEWBORN_BAND_HZ, nfft=8192) - 151.7) < 0.4


def test_limits_of_agreement_hold_95_percent_and_count_subjects_once():
    rng = np.random.default_rng(0)
    true = rng.uniform(90, 200, 20000)
    plain = bland_altman(true + rng.normal(1.0, 3.0, true.size), true, [str(i) for i in range(true.size)])
    assert plain.bias == pytest.approx(1.0, abs=0.1)
    assert (plain.lower, plain.upper) == pytest.approx((1 - 1.96 * 3, 1 + 1.96 * 3), abs=0.2)
    assert plain.repeated_lower is None  # every subject read once: nothing within subjects to tell apart


def test_limits_of_repeated_readings_hold_the_bias_between_subjects():
    rng = np.random.default_rng(5)
    bias, sizes = rng.normal(0, 4, 400), rng.integers(5, 60, 400)
    subjects = [f"s{i}" for i, n in enumerate(sizes) for _ in range(n)]
    off = np.repeat(bias, sizes) + rng.normal(0, 2, sizes.sum())
    got = bland_altman(100 + off, np.full(off.size, 100.0), subjects)
    spread = 1.96 * np.sqrt(4**2 + 2**2)
    assert got.pairs == off.size and got.subjects == 400
    assert got.repeated_upper - got.bias == pytest.approx(spread, rel=0.08)
    assert got.subject_upper - got.subject_bias == pytest.approx(1.96 * 4, rel=0.12)
    # by hand: two subjects of two, MSW = 0.5, MSB = 16, so variance = 0.5 + (16 - 0.5) / 2
    small = bland_altman([0.0, 1.0, 4.0, 5.0], [0.0] * 4, ["a", "a", "b", "b"])
    assert small.repeated_upper == pytest.approx(2.5 + 1.96 * np.sqrt(8.25))


def test_the_coverage_risk_curve_takes_the_best_first():
    quality = [0.9, 0.8, 0.8, 0.1, 0.0]
    estimate = [100.0, 101.0, 103.0, 160.0, np.nan]
    true = [100.0, 100.0, 100.0, 100.0, 100.0]
    curve = coverage_risk(quality, estimate, true)
    np.testing.assert_allclose(curve.coverage, [0.2, 0.6, 0.8])
    np.testing.assert_allclose(curve.mae, [0.0, 4 / 3, 16.0])
    np.testing.assert_allclose(curve.wrong, [0.0, 0.0, 0.25])
    assert curve.mae_at(0.5) == pytest.approx(4 / 3) and curve.mae_at(0.81) is None
    assert coverage_risk(quality, estimate, [100.0, np.nan, 100.0, 100.0, 100.0]).coverage[0] == 0.25


def test_the_first_number_is_told_with_the_share_that_never_came():
    got = first_shown([6.0, 8.0, None, 20.0])
    assert (got.shown, got.median_s) == (0.75, 8.0) and 17 < got.p90_s < 20
    assert first_shown([None]).median_s is None and first_shown([None]).shown == 0.0


@pytest.mark.parametrize(("found", "folds"), [(75.0, 1), (300.0, 1), (51.0, 1), (450.0, 1), (150.0, 0), (154.0, 0), (100.0, 0),
                                              (float("nan"), 0)])
def test_a_simple_multiple_or_part_of_the_truth_is_a_fold(found, folds):
    assert folded(np.array([found, 150.0]), np.array([150.0, 150.0])) == folds


def test_a_slow_rate_that_is_read_right_is_no_fold():
    assert folded(np.array([6.0]), np.array([5.0])) == 0
