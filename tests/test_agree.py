"""Agreement between precisions: what differs is found, in the terms of its limits, and decides the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from calibration import agree
from calibration.agree import LIMITS, Compared, Limits, broken, compare, figures, judge, run
from calibration.evaluate import EvaluationError
from calibration.scenes import NEWBORN_SEED0, newborn_scene
from edge.records import Reason, State, VitalReading, Waveform
from engines import sidecar
from engines.sidecar import DEFAULT_WEIGHTS
from tests.fake_engine import FakeEngine


def compared(correlation=1.0, apart=0.0, equal=True, precision="int8", n=200):
    return Compared("newborn", "clip", precision, np.full((n, 2), correlation), np.ones((n, 2)), np.full((n, 2), apart),
                    np.full((n, 2), equal))


def test_what_agrees_keeps_every_limit():
    found = judge([compared()], ["int8"])["precisions"]["int8"]
    assert found["broken"] == [] and found["windows"] == 400 and found["gate_equal"] == 1.0


@pytest.mark.parametrize(("change", "named"), [
    ({"correlation": 0.9949}, "correlation_p5"), ({"apart": 0.26}, "hr_p99"), ({"apart": 0.26}, "rr_p99"),
    ({"equal": False}, "gate_equal"), ({"correlation": np.nan}, "correlation_median"), ({"apart": np.nan}, "hr_p99"),
])
def test_each_limit_is_found_broken(change, named):
    found = judge([compared(**change)], ["int8"])["precisions"]["int8"]
    assert any(line.startswith(named) for line in found["broken"])


def test_one_reading_in_a_hundred_may_differ_and_two_may_not():
    clip = compared(n=100)
    clip.equal[:1] = False
    assert broken(figures([clip]), LIMITS["int8"]) == []
    clip.equal[:2] = False
    assert "gate_equal 0.98" in broken(figures([clip]), LIMITS["int8"])[0]


def test_a_precision_is_judged_by_its_own_clips_and_domains():
    clips = [compared(precision="fp16"), compared(correlation=0.9, precision="int8"),
             replace(compared(precision="int8"), domain="ward")]
    result = judge(clips, ["fp16", "int8"])
    assert result["precisions"]["fp16"]["broken"] == [] and result["precisions"]["int8"]["broken"]
    assert result["domains"]["ward"]["int8"]["correlation_p5"] == 1.0
    assert result["domains"]["newborn"]["int8"]["correlation_p5"] == 0.9


def hop(pulse, resp, hr=150.0, rr=50.0, state=State.VALID):
    valid = np.ones(pulse.size, bool)
    valid[:50] = False
    wave = Waveform(pulse.astype(np.float32), resp.astype(np.float32), valid, 0.9, 0.8, np.ones((2, 2, 2), np.float32) / 4,
                    30.0, 1)
    readings = [VitalReading(rate, state if rate is not None else State.SEARCHING, 0.9, 1000, 8.0, Reason.NONE)
                if rate is not None else SimpleNamespace(value_per_min=None, state=State.SEARCHING) for rate in (hr, rr)]
    return SimpleNamespace(waveform=wave, reading=SimpleNamespace(hr=readings[0], rr=readings[1]))


@pytest.fixture
def wave():
    return np.sin(np.arange(512) / 5)


def test_which_way_the_breath_moves_is_arbitrary_and_the_pulse_is_not(wave):
    turned = compare("newborn", "c", "int8", [hop(wave, wave)], [hop(-wave, -wave)])
    assert turned.correlation[0] == pytest.approx([-1.0, 1.0])


def test_samples_without_a_frame_do_not_count(wave):
    other = wave.copy()
    other[:50] = 9.0
    assert compare("newborn", "c", "int8", [hop(wave, wave)], [hop(other, other)]).correlation[0] == pytest.approx([1, 1])


def test_rates_are_compared_where_both_show_one_and_decisions_always(wave):
    found = compare("newborn", "c", "int8", [hop(wave, wave, 150.0, 50.0)] * 2,
                    [hop(wave, wave, 150.5, None), hop(wave, wave, 150.0, 50.0)])
    assert found.difference[0, 0] == 0.5 and np.isnan(found.difference[0, 1]) and (found.difference[1] == 0).all()
    assert found.equal.tolist() == [[True, False], [True, True]]


class Deaf(FakeEngine):
    """Believes in nothing, so the gate never shows a number."""

    def head(self, features, mask):
        waves, presence, attention = super().head(features, mask)
        return waves[:, ::-1].copy(), presence * 0, attention


@pytest.fixture
def engines(monkeypatch, tmp_path):
    """A weights folder that names three precisions, and what answers for each."""
    spec, record = sidecar.load(DEFAULT_WEIGHTS)
    fp32 = record["files"]["fp32"]
    for part in fp32.values():
        (tmp_path / part["file"]).write_bytes((spec.folder / part["file"]).read_bytes())
    record = {key: value for key, value in record.items() if key not in ("parity", "agreement")}
    sidecar.write(tmp_path / "student.json", record | {"files": dict.fromkeys(("fp32", "fp16", "int8"), fp32)})
    answers = {"fp32": FakeEngine(), "fp16": FakeEngine(), "int8": FakeEngine()}
    monkeypatch.setattr(agree, "_engine", lambda weights, precision, backend: answers[precision])
    # a pulse is a ripple of half a count here: pictures of one texture would be rounded away
    scene = replace(newborn_scene(1), duration_s=16.0, hr_per_min=150.0, width=96, height=96)
    monkeypatch.setattr("calibration.evaluate.scene_of", lambda domain, index: replace(scene, seed=index + 1))
    monkeypatch.setattr(agree, "LIMITS", dict.fromkeys(("fp16", "int8"), Limits(0.99, 0.99, 1e9, 1e9, 0.99)))
    return tmp_path, answers


def found(folder, **given):
    given = {"suite": "newborn", "n": 1, "weights": str(folder), "workers": 1} | given
    return run(**given)


def test_a_run_writes_table_plot_and_json_and_keeps_the_figures(engines, capsys):
    pytest.importorskip("matplotlib")
    folder, answers = engines
    answers["int8"] = Deaf()
    out, plot = folder / "a.json", folder / "a.png"
    assert found(folder, json_out=out, plot=plot, keep=True, command="me") == 1
    result = json.loads(out.read_text())
    assert result["precisions"]["fp16"]["correlation_median"] == 1.0
    assert any(line.startswith("correlation_median") for line in result["precisions"]["int8"]["broken"])
    assert plot.read_bytes()[:4] == b"\x89PNG" and "broken: int8" in capsys.readouterr().out
    assert sidecar.load(folder / "student.json")[1]["agreement"]["command"] == "me"
    assert not list(folder.glob("*partial*"))


def test_a_precision_that_the_weights_lack_is_refused_before_anything_is_rendered(engines):
    with pytest.raises(EvaluationError, match="int8_opset17.*these weights have fp32, fp16, int8"):
        found(engines[0], precisions=["int8_opset17"])


def test_weights_with_fp32_alone_say_what_makes_the_others(engines):
    _, record = sidecar.load(engines[0] / "student.json")
    sidecar.write(engines[0] / "student.json", record | {"files": {"fp32": record["files"]["fp32"]}})
    with pytest.raises(EvaluationError, match="physvlm-lab quantize"):
        found(engines[0])


def test_a_folder_that_is_not_there_is_said_first(engines):
    with pytest.raises(EvaluationError, match="does not exist"):
        found(engines[0], json_out=engines[0] / "no" / "a.json")


def test_the_shipped_precisions_read_a_newborn_as_fp32_does(monkeypatch, capsys):
    scene = newborn_scene(NEWBORN_SEED0 + 1, width=192, height=144, duration_s=18.0)
    monkeypatch.setattr("calibration.evaluate.scene_of", lambda domain, index: scene)
    assert run(suite="newborn", n=1, workers=1) == 0
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["fp16", "int8", "int8_opset17"]
