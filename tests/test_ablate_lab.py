"""The ablation: every variant is trained alike, and its table says what was seen."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
pytest.importorskip("torch", reason="training needs torch; it is in the extra `lab`")

from distillation.ablate import VARIANTS, Variant, Window, ablate, figures, run_of, table  # noqa: E402
from distillation.train import TrainConfig  # noqa: E402
from engines.student import StudentConfig  # noqa: E402

TINY = StudentConfig(window=96, stem_width=4, features=8, series=2, hidden=8, wavelet_levels=3)
SMALL_RUN = TrainConfig(n_train=4, n_restraint=0, n_valid=4, epochs=1, batch=4, teacher="", device="cpu", workers=1)


def pulse(rate, true=120.0, quality=0.9, seen=True, leak=None):
    return Window("lux", "pulse", true, seen, rate, quality, leak)


def test_what_is_shown_is_judged_and_what_is_withheld_is_not():
    found = figures([pulse(121.0), pulse(130.0), pulse(200.0, quality=0.1), pulse(None)])
    assert found["hr_mae"] == pytest.approx(5.5) and found["hr_wrong"] == pytest.approx(0.5)
    assert found["hr_coverage"] == pytest.approx(0.5)
    assert found["rr_mae"] is None and found["rr_coverage"] is None and found["leak_db"] is None


def test_a_number_for_no_rhythm_is_wrong_and_covers_nothing():
    found = figures([pulse(121.0), pulse(150.0, true=None, seen=False)])
    assert found["hr_wrong"] == pytest.approx(0.5) and found["hr_coverage"] == pytest.approx(1.0)


def test_the_best_four_fifths_need_no_threshold():
    ranked = [pulse(120.0 + i, quality=0.5 - 0.05 * i) for i in range(4)] + [pulse(60.0, quality=0.01)]
    assert figures(ranked)["hr_mae_80"] == pytest.approx(1.5)


def test_leak_is_averaged_in_decibels():
    assert figures([pulse(120.0, leak=-10.0), pulse(120.0, leak=-30.0)])["leak_db"] == pytest.approx(-20.0)


def test_each_variant_takes_one_part_out_and_leaves_the_rest():
    config, size = TrainConfig(teacher="scratch"), StudentConfig()
    made = {v.name: run_of(v, config, size) for v in VARIANTS}
    assert made["full"] == (config, size)
    assert made["without distillation"] == (replace(config, teacher=""), size)
    assert made["without WTB"] == (config, replace(size, wavelet=False))
    assert made["without FASA"] == (config, replace(size, attention=False))
    assert made["without cross-task"] == (replace(config, cross_task=0.0), size)
    assert made["without cross-task and leak gate"] == (replace(config, cross_task=0.0), replace(size, leak_gate=False))


def test_the_table_gives_the_mean_and_half_the_spread():
    run = figures([pulse(121.0)])
    lines = table({"full": [run | {"hr_mae": 1.0}, run | {"hr_mae": 2.0}]}).splitlines()
    assert lines[0].startswith("| variant | HR MAE |") and lines[2].startswith("| full | 1.50 (0.50) | 0.00 (0.00) |")


def test_an_ablation_trains_judges_and_is_not_done_twice(tmp_path):
    variants = (Variant("full"), Variant("without WTB", wavelet=False))
    record = ablate(SMALL_RUN, ["lux"], [1], 2, tmp_path / "cache", tmp_path / "out", TINY, variants)
    made = json.loads(record.read_text())
    assert list(made["variants"]) == ["full", "without WTB"] and made["domains"] == ["lux"]
    checkpoint = tmp_path / "out" / "without-WTB-1" / "student.pt"
    before = checkpoint.stat().st_mtime_ns
    ablate(SMALL_RUN, ["lux"], [1], 2, tmp_path / "cache", tmp_path / "out", TINY, variants)
    assert checkpoint.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "ablation.md").read_text().count("\n") == 4
