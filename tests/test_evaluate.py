"""Scoring, summing up and reporting: what was shown against what is true, on clips whose answer is known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calibration import evaluate, report
from calibration.datasets.record import ClipRecord, Label
from calibration.domains import DOMAIN_TEST_SEED0, DOMAINS, NICU
from calibration.evaluate import chosen, domain_suites, merge_lodo, result_of, run, scene_of
from calibration.phantom import Phantom
from calibration.rhythms import breath_shape, from_times
from calibration.scene import Scene
from calibration.scenes import PULSE_FREE
from calibration.score import STARTUP_S, ClipScore, Series, score
from calibration.source import (
    NO_RHYTHM,
    Source,
    Truth,
    source_of_phantom,
    source_of_record,
    truth_of_breaths,
    truth_of_rate,
    truth_of_wave,
)
from calibration.summary import (
    ALL_DOMAINS,
    HELD_OUT,
    LIMITS,
    RECORDINGS,
    EvaluationError,
    Limit,
    check,
    groups,
    per_subject,
    pool,
    summarise,
    tabulate,
)
from calibration.sweep import SWEEP_HR_PER_MIN, SWEEP_RR_PER_MIN, sweep_scene
from edge.vitals import PROFILES
from tests.fake_engine import FakeEngine, at_fps, frames

pytest.importorskip("scipy.signal")

NEONATE = PROFILES["neonate"]
NAN = float("nan")


def steady(per_min: float) -> Truth:
    return truth_of_rate(lambda t_s: np.full(np.shape(t_s), per_min))


def source(truth: Mapping[str, Truth], hr: float | None = 150.0, rr: float | None = 45.0, seconds: float = 16.0,
           start_s: float = 0.0) -> Source:
    pictures = list(frames(at_fps(30, seconds, start_s), hr, rr))
    return Source("domains", "studio", "clip", "who", 64, 48, pictures, truth, 0.01)


def scored(truth: Mapping[str, Truth], **changed: float | None) -> ClipScore:
    return score(source(truth, **changed), FakeEngine(), NEONATE, "full", baselines=())


def made(shown: list[float], truth: list[float], *, domain: str = "studio", suite: str = "domains", subject: str = "a",
         label: str = "rate", first_s: float = 5.967, visible: bool | None = True, quality: list[float] | None = None,
         estimate: list[float] | None = None, methods: tuple[str, ...] = (), **facts: str) -> ClipScore:
    """A score with these numbers for both vitals, a reading a second."""
    found = np.array(shown if estimate is None else estimate)
    series = Series(np.array(shown), found, np.array(quality or [0.8] * len(shown)), found, np.full(len(shown), 3.0))
    vitals = {"hr": series, "rr": series}
    return ClipScore(suite, domain, f"{domain}-{subject}", subject, float(len(shown)), 0.01, visible, facts,
                     {"hr": label, "rr": label}, {"hr": (60.0, 250.0), "rr": (5.0, 250.0)},
                     first_s + np.arange(len(shown)), {"hr": np.array(truth), "rr": np.array(truth)},
                     {"student": vitals} | {name: {"hr": series} for name in methods})


# --- one clip


@pytest.fixture(scope="module")
def right() -> ClipScore:
    return scored({"hr": steady(150.0), "rr": steady(45.0)})


def test_a_clip_that_is_read_right_has_small_errors_and_full_coverage(right):
    row = summarise([right], "hr")
    assert right.readings == 16 and right.labels == {"hr": "rate", "rr": "rate"} and right.visible
    assert max(right.hr_errors) < 1 and max(right.rr_errors) < 1.5 and right.hr_false == right.rr_false == 0
    assert row["coverage"] == 1.0 and row["wrong"] == 0.0 and row["coverage_all"] < 0.8
    assert right.methods["student"]["hr"].snr_db[-1] > 3
    assert abs(right.methods["student"]["hr"].peak[-1] - 150) < 1 and abs(right.methods["student"]["rr"].peak[-1] - 45) < 1.5


def test_start_up_ends_where_the_gate_can_first_show_a_number(right):
    # the coverage counted after it must neither forgive a second nor ask for one that cannot be
    assert right.hr_first_s == pytest.approx(STARTUP_S["hr"], abs=0.1)
    assert right.rr_first_s == pytest.approx(STARTUP_S["rr"], abs=0.1)


def test_a_number_far_from_the_truth_is_wrong(right):
    off = scored({"hr": steady(130.0), "rr": steady(45.0)})
    assert summarise([off], "hr")["wrong"] == 1.0 and summarise([off], "hr")["near"] == 0.0
    assert summarise([off], "rr")["wrong"] == 0.0
    assert summarise([off], "hr")["bias"] == pytest.approx(20, abs=1)


def test_a_number_of_a_rhythm_that_is_not_there_is_false_and_wrong():
    clip = scored({"hr": NO_RHYTHM, "rr": steady(45.0)})
    row = summarise([clip], "hr")
    assert clip.hr_false == row["false"] == row["shown"] > 5 and row["wrong"] == 1.0 and not clip.hr_errors
    assert row["mae"] is None and row["coverage"] is None and row["judged"] == 0 and row["shown_share"] > 0.5


def test_what_is_not_labelled_is_not_judged():
    clip = scored({"hr": steady(150.0)})
    row = summarise([clip], "rr")
    assert clip.labels["rr"] == "unlabelled" and clip.rr_false == 0
    assert row["wrong"] is None and row["mae"] is None and row["unjudged_shown"] == row["shown"] > 0


def test_time_counts_from_the_first_frame_and_truth_follows_the_frames_clock():
    heard = []

    def mean_rate(t_s: float, averaging_s: float) -> float:
        heard.append((t_s, averaging_s))
        return 150.0

    clip = scored({"hr": Truth(mean_rate)}, start_s=1000.0, seconds=8.0)
    assert clip.t_s[0] == pytest.approx(29 / 30, abs=0.02) and clip.video_s == pytest.approx(8, abs=0.1)
    assert heard[0] == pytest.approx((1000 + 29 / 30, 8.0), abs=0.02)


def test_the_truth_is_the_mean_over_the_averaging_time_without_its_pauses():
    climbing = truth_of_rate(lambda t_s: 100 + t_s)
    assert climbing.mean_rate(20.0, 8.0) == pytest.approx(116)
    assert climbing.mean_rate(4.0, 8.0) == pytest.approx(102), "the clip's own start is the averaging time's, too"
    pausing = truth_of_rate(lambda t_s: np.where(t_s % 20 < 12, 40.0, 0.0))
    assert pausing.mean_rate(15.0, 16.0) == pytest.approx(40)
    assert truth_of_rate(lambda t_s: np.where(t_s < 7, 40.0, 0.0)).mean_rate(16.0, 16.0) is None
    assert truth_of_rate(lambda t_s: np.full(np.shape(t_s), NAN)).mean_rate(16.0, 16.0) is None


def test_a_contact_wave_gives_its_own_rate_and_a_torn_one_none():
    def pulse(t_s):
        t_s = np.asarray(t_s)
        wave = np.sin(2 * np.pi * 2.31 * t_s) + 0.4 * np.sin(4 * np.pi * 2.31 * t_s) + 0.1 * t_s
        return np.where((t_s < 0) | (t_s > 60), NAN, wave)

    truth = truth_of_wave(pulse, (1.0, 250 / 60))
    assert truth.mean_rate(30.0, 8.0) == pytest.approx(2.31 * 60, abs=0.5)
    assert truth.mean_rate(4.0, 8.0) is None and truth.mean_rate(63.0, 8.0) is None


def test_a_recorded_clip_is_scored_like_a_rendered_one():
    class Listed:
        path, width, height, fps, count = Path("made.avi"), 64, 48, 30.0, 480

        def frames(self) -> Iterator:
            return frames(at_fps(30, 16.0), 150.0, 45.0)

    t = np.arange(0, 16, 0.01)
    labels = {"pulse": Label(np.sin(2 * np.pi * 2.5 * t), t, "1", "contact"),
              "hr": Label(np.full(16, 70.0), np.arange(16.0), "per_min", "device"),
              "rr": Label(np.full(16, 45.0), np.arange(16.0), "per_min", "derived")}
    record = ClipRecord("made", "s1", "s1-1", Listed(), labels, "somewhere", ("late",), {"light": "lamp"})
    clip = score(source_of_record(record, NEONATE), FakeEngine(), NEONATE, "full")
    assert (clip.suite, clip.domain, clip.subject, clip.visible) == ("made", "somewhere", "made/s1", None)
    assert clip.labels == {"hr": "rate", "rr": "unlabelled"}, "a derived label is no truth"
    assert max(clip.hr_errors) < 1.5, "the contact wave is the truth, not the device's rate"
    assert set(clip.methods) == {"student", "pos", "chrom"}, "nobody knows the skin of a recording in every frame"
    assert clip.facts == {"light": "lamp", "flags": "late"}


def test_one_rendering_serves_every_method_at_the_same_times():
    scene = Scene("newborn", 3, 64, 48, duration_s=9.0, hr_per_min=150, rr_per_min=45, pulse_amplitude=0.02, subject_frac=0.9)
    clip = score(source_of_phantom("domains", "ward", Phantom(scene)), FakeEngine(), NEONATE, "full")
    assert set(clip.methods) == {"student", "pos", "chrom", "pos_oracle", "chrom_oracle"}
    assert all(each["hr"].shown.size == clip.readings for each in clip.methods.values())
    assert "rr" in clip.methods["student"] and "rr" not in clip.methods["pos"]
    assert clip.errors("hr", "pos_oracle") and max(clip.errors("hr", "pos_oracle")) < 3
    again = score(source_of_phantom("domains", "ward", Phantom(scene)), FakeEngine(), NEONATE, "full")
    assert again.as_json() == clip.as_json()


def test_a_score_survives_its_json(right):
    text = json.dumps(right.as_json(), allow_nan=False)
    back = ClipScore.from_json(json.loads(text))
    assert back.as_json() == right.as_json() and back.hr_first_s == pytest.approx(right.hr_first_s, abs=1e-3)
    assert np.isnan(back.methods["student"]["hr"].shown[0])
    assert summarise([back], "hr")["mae"] == pytest.approx(summarise([right], "hr")["mae"], abs=1e-3)


# --- summing up


def test_figures_are_those_counted_by_hand():
    clip = made([NAN, 100, 104, NAN, 110, 90], [100, 100, 100, 100, 100, NAN], first_s=4.967)
    row = summarise([clip], "hr")
    assert (row["readings"], row["judged"], row["shown"], row["false"]) == (6, 5, 4, 0)
    assert row["mae"] == pytest.approx(14 / 3) and row["wrong"] == pytest.approx(1 / 3) and row["near"] == pytest.approx(2 / 3)
    # the first reading is start-up, the last has no truth: four are owed, three answered, two of them rightly
    assert row["coverage"] == row["coverage_visible"] == 0.75 and row["near_of_time"] == 0.5
    assert row["coverage_all"] == 0.6 and row["shown_share"] == pytest.approx(4 / 6) and row["unjudged_shown"] == 1
    assert row["snr_db"] == 3.0 and row["first_median_s"] == pytest.approx(5.967)


def test_false_numbers_count_among_the_wrong_ones():
    clips = [made([100.0] * 6, [100.0] * 6), made([90.0, 90.0] + [NAN] * 4, [NAN] * 6, label="absent", domain="nicu_empty_cot")]
    row = summarise(clips, "hr")
    assert row["false"] == 2 and row["wrong"] == 2 / 8 and row["near"] == 1.0 and row["unjudged_shown"] == 0


def test_only_what_could_be_shown_is_owed():
    slow = made([NAN] * 4 + [100.0] * 4, [50.0] * 4 + [100.0] * 4)
    assert summarise([slow], "hr")["coverage"] == 1.0, "50 /min lies outside the profile's band"
    wrong = made([80.0] * 4, [50.0] * 4)
    assert summarise([wrong], "hr")["wrong"] == 1.0, "but a number there is still held against the truth"
    faint = made([NAN] * 3 + [100.0], [100.0] * 4, visible=False)
    both = summarise([faint, made([100.0] * 4, [100.0] * 4, subject="b")], "hr")
    assert both["coverage"] == 5 / 8 and both["coverage_visible"] == 1.0


def test_without_a_gate_every_owed_reading_answers():
    clip = made([NAN, NAN, 100.0, 100.0], [100.0] * 4, estimate=[160.0, 140.0, 100.0, 100.0], quality=[0.1, 0.2, 0.9, 0.9])
    row = summarise([clip], "hr")
    assert row["mae"] == 0.0 and row["open_mae"] == 25.0 and row["open_near"] == 0.5
    assert row["mae_at_80"] == 25.0


def test_nothing_shown_is_undefined_and_not_zero():
    row = summarise([made([NAN] * 4, [100.0] * 4)], "hr")
    assert row["coverage"] == 0.0
    for figure in ("mae", "rmse", "mape", "pearson", "snr_db", "wrong", "near", "bias", "lower", "first_median_s",
                   "subject_mae_worst"):
        assert row[figure] is None, figure
    assert summarise([], "hr")["coverage"] is None


def test_subjects_count_once_each():
    clips = [made([101.0] * 10, [100.0] * 10, subject="a"), made([109.0] * 5, [100.0] * 5, subject="b"),
             made([103.0] * 10, [100.0] * 10, subject="a", domain="ward")]
    row = summarise(clips, "hr")
    assert row["subjects"] == 2 and row["subject_mae_worst"] == 9.0 and row["subject_mae_median"] == 5.5
    assert row["subject_bias"] == 5.5
    subjects = per_subject(clips)
    assert subjects["a"]["domains"] == ["studio", "ward"] and subjects["a"]["hr"]["mae"] == 2.0
    assert pool(clips, "hr").subject.tolist() == ["a"] * 10 + ["b"] * 5 + ["a"] * 10


def test_groups_are_totals_and_domains():
    clips = [made([1.0], [1.0], domain="studio"), made([1.0], [1.0], domain="light", recording="r"),
             made([NAN], [NAN], domain="static", suite="pulse-free", label="absent")]
    assert list(groups(clips, ["light"])) == [ALL_DOMAINS, HELD_OUT, RECORDINGS, "pulse-free", "studio", "light", "static"]
    assert [c.domain for c in groups(clips, ["light"])[ALL_DOMAINS]] == ["studio", "light"]
    assert HELD_OUT not in groups(clips)
    table = tabulate([*clips, made([1.0], [1.0], domain="studio", methods=("pos",))])
    assert set(table["studio"]) == {"student"}, "a method that did not read all clips has no row"


# --- limits


def verdicts(clips: list[ClipScore], held_out: tuple[str, ...] = ()) -> dict[str, str]:
    return {f"{row['group']} {row['text']}": row["verdict"] for row in check(tabulate(clips, held_out))}


def test_what_is_asked_is_kept_or_broken_or_undefined():
    good, bad, mute = [100.4] * 8, [102.0] * 8, [NAN] * 8
    of = {"good": verdicts([made(good, [100.0] * 8)]), "bad": verdicts([made(bad, [100.0] * 8)]),
          "mute": verdicts([made(mute, [100.0] * 8)])}
    assert set(of["good"].values()) == {"kept"}
    assert of["bad"]["all domains HR mae <= 1.5"] == "broken" and of["bad"]["all domains RR mae <= 2"] == "kept"
    assert of["mute"]["all domains HR mae <= 1.5"] == "undefined"
    assert of["mute"]["all domains HR coverage_visible >= 0.8"] == "broken"


def test_held_out_domains_take_the_place_of_all():
    clips = [made([120.0] * 8, [100.0] * 8), made([100.0] * 8, [100.0] * 8, domain="light")]
    assert verdicts(clips)["all domains HR mae <= 1.5"] == "broken"
    held = verdicts(clips, ("light",))
    assert held["held out HR mae <= 1.5"] == "kept" and not any(key.startswith("all domains") for key in held)


@pytest.mark.parametrize(("shown", "verdict"), [(101.8, "kept"), (102.2, "broken")])
def test_the_student_is_held_to_half_of_a_baselines_error(shown, verdict):
    clip = made([shown] * 4, [100.0] * 4, domain="motion")
    opponent = made([104.0] * 4, [100.0] * 4, domain="motion").methods["student"]["hr"]
    clip = replace(clip, methods={**clip.methods, "pos": {"hr": opponent}})
    assert verdicts([clip])["motion HR mae <= 0.5 x pos"] == verdict
    assert "motion HR mae <= 0.5 x chrom" not in verdicts([clip])


@pytest.mark.parametrize(("scene", "numbers", "verdict"), [
    ("static", 1, "kept"), ("static", 2, "broken"), ("drift", 1, "broken"), ("drift", 0, "kept"),
    ("nicu_empty_cot", 3, "broken")])
def test_a_picture_without_a_pulse_may_show_next_to_no_heart_rate(scene, numbers, verdict):
    clip = made([90.0] * numbers + [NAN] * (300 - numbers), [NAN] * 300, label="absent", domain=scene, suite="pulse-free")
    text = next(key for key in verdicts([clip]) if key.startswith(f"{scene} HR shown_share"))
    assert verdicts([clip])[text] == verdict


def test_every_limit_names_a_figure_and_a_group_that_exist():
    row = summarise([made([100.0], [100.0])], "hr")
    known = {ALL_DOMAINS, HELD_OUT, RECORDINGS, "pulse-free", *domain_suites()}
    assert all(limit.figure in row and limit.group in known for limit in LIMITS)
    assert Limit("x", "hr", "mae", most=0.5, against="pos").text == "HR mae <= 0.5 x pos"


# --- choosing and running


def test_suites_and_domains_are_chosen_by_name():
    assert chosen("domains") == list(DOMAINS) and chosen("pulse-free") == list(PULSE_FREE)
    assert chosen("light, empty_cot,light") == ["light", "empty_cot"] and chosen("") == []
    nicu = {*NICU, "nicu_empty_cot"} - {"empty_cot"}
    assert set(chosen("all")) == {"newborn", "sweep", *DOMAINS, *PULSE_FREE, *nicu}
    with pytest.raises(EvaluationError, match="sleeping.*newborn.*studio"):
        chosen("light,sleeping")


def test_every_domain_has_clips_of_its_own():
    scenes = {domain: scene_of(domain, 3) for domain in domain_suites()}
    assert len({scene.seed for scene in scenes.values()}) == len(scenes)
    assert scene_of("light", 3) == scenes["light"] and scene_of("light", 4) != scenes["light"]
    assert scenes["nicu_empty_cot"].seed >= DOMAIN_TEST_SEED0 > scenes["empty_cot"].seed


@pytest.fixture
def quick(monkeypatch):
    """Small clips and an engine of a few lines instead of the real ones: `static` is still, all else has both rhythms."""
    def quick_source(suite: str, domain: str, phantom: Phantom) -> Source:
        name, still = f"{domain}-{phantom.scene.seed}", domain == "static"
        truth = {"hr": NO_RHYTHM, "rr": NO_RHYTHM} if still else {"hr": steady(150.0), "rr": steady(45.0)}
        clip = source(truth, None if still else 150.0, None if still else 45.0, seconds=8.0 if still else 14.0)
        return replace(clip, suite=suite, domain=domain, name=name, subject=name, skin_at=lambda frame: np.ones((48, 64)))

    monkeypatch.setattr(evaluate, "scene_of", lambda domain, index: Scene("black", 50 + index, 64, 48, duration_s=1.0))
    monkeypatch.setattr(evaluate, "source_of_phantom", quick_source)
    monkeypatch.setattr(evaluate, "_engine", lambda weights, precision: FakeEngine())


def test_an_evaluation_writes_what_it_found(quick, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out, page = tmp_path / "e.json", tmp_path / "e.html"
    code = run(suite="static,ward", n=2, roi="full", workers=1, held_out=["ward"], json_out=out, report=page,
               command="me & you")
    result = json.loads(out.read_text())
    assert code == (1 if any(row["verdict"] == "broken" for row in result["limits"]) else 0)
    assert [clip["name"] for clip in result["clips"]] == ["static-50", "static-51", "ward-50", "ward-51"]
    assert result["held_out"] == ["ward"] and result["weights"]["fp32"]["stem"]["sha256"] and len(result["code_sha256"]) == 64
    assert result["table"]["ward"]["student"]["hr"]["clips"] == 2 and "pos_oracle" in result["table"]["ward"]
    assert result["suites"]["static"]["hr_shown"] == 0 and result["suites"]["ward"]["clips"] == 2
    assert set(result["subjects"]) == {"static-50", "static-51", "ward-50", "ward-51"}
    printed = capsys.readouterr().out
    assert "ward *" in printed and "static" in printed and "POS" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.html", "e.json"]
    html = page.read_text()
    assert "me &amp; you" in html and "held out" in html and html.count("data:image/svg+xml") >= 8
    assert not re.search(r"<script|<link|src=\"(?!data:)|https?://|url\(", html), "nothing is fetched from anywhere"


def test_a_broken_limit_is_exit_code_1(monkeypatch, quick, capsys):
    assert run(suite="static", n=1, roi="full", workers=1, baselines=False) == 0
    assert "POS" not in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "source_of_phantom", lambda suite, domain, phantom: replace(
        source({"hr": NO_RHYTHM, "rr": NO_RHYTHM}, seconds=8.0), suite=suite, domain=domain))
    assert run(suite="static", n=1, roi="full", workers=1, baselines=False) == 1
    assert "broken: static: HR shown_share <= 0.005" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "message"), [
    ({"suite": "sleeping"}, "sleeping"), ({"suite": "static", "held_out": ["light"]}, "light"), ({"suite": ""}, "nothing"),
    ({"suite": "static", "n": 0}, "at least 1"), ({"suite": "static", "workers": 0}, "workers"),
    ({"suite": "static", "json_out": Path("/nowhere/e.json")}, "nowhere"), ({"suite": "static", "roi": "face"}, "face"),
    ({"suite": "", "datasets": [("kinetics", Path("."))]}, "kinetics")])
def test_what_cannot_be_evaluated_is_refused_before_anything_is_rendered(quick, monkeypatch, asked, message):
    monkeypatch.setattr(evaluate, "_scored", lambda job: pytest.fail("rendered"))
    with pytest.raises(EvaluationError, match=message):
        run(**{"workers": 1, **asked})


# --- leave one domain out


def written(path: Path, held_out: list[str], errors: Mapping[str, float]) -> Path:
    """An evaluation of these domains, each with a constant error."""
    clips = [made([100.0 + off] * 8, [100.0] * 8, domain=domain) for domain, off in errors.items()]
    about = {"kind": "evaluation", "weights": {"fp32": {}}, "weights_folder": "x", "profile": "neonate", "roi": "full",
             "clips_per_domain": 1}
    path.write_text(json.dumps({"format": evaluate.FORMAT, "command": ""} | result_of(clips, held_out, about), allow_nan=False))
    return path


def test_each_domain_is_taken_from_the_student_that_never_saw_it(tmp_path, capsys):
    one = written(tmp_path / "a.json", ["light"], {"light": 3.0, "motion": 0.5, "studio": 0.2})
    other = written(tmp_path / "b.json", ["motion"], {"light": 1.0, "motion": 4.0, "studio": 0.2})
    merged = merge_lodo([one, other])
    held = {domain: merged["table"][domain]["student"]["hr"]["mae"] for domain in ("light", "motion")}
    seen = {domain: merged["seen"][domain]["student"]["hr"]["mae"] for domain in ("light", "motion")}
    assert held == {"light": 3.0, "motion": 4.0} and seen == {"light": 1.0, "motion": 0.5}
    assert merged["table"]["held out"]["student"]["hr"]["mae"] == 3.5 and "studio" not in merged["table"]
    out = tmp_path / "lodo.json"
    assert run(lodo=[one, other], json_out=out) == 1, "3.5 is more than 1.5"
    assert json.loads(out.read_text())["kind"] == "lodo"
    assert "light *" in capsys.readouterr().out


def test_what_is_no_such_protocol_is_refused(tmp_path):
    good = written(tmp_path / "a.json", ["light"], {"light": 3.0})
    none = written(tmp_path / "b.json", [], {"light": 3.0})
    absent = written(tmp_path / "c.json", ["motion"], {"studio": 3.0})
    (tmp_path / "d.json").write_text("{}")
    for paths, message in (([good, none], "holds no domain out"), ([good, good], "expected one"), ([absent], "not evaluated"),
                           ([tmp_path / "d.json"], "no evaluation"), ([tmp_path / "e.json"], "cannot be read")):
        with pytest.raises(EvaluationError, match=message):
            merge_lodo(paths)


def test_a_merged_report_shows_held_out_beside_seen(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(report, "_embedded", lambda figure: "data:,")  # drawn as an evaluation's are, which takes its time
    one = written(tmp_path / "a.json", ["light"], {"light": 3.0, "motion": 0.5})
    other = written(tmp_path / "b.json", ["motion"], {"light": 1.0, "motion": 4.0})
    page = tmp_path / "lodo.html"
    run(lodo=[one, other], report=page)
    assert "Held out against seen" in page.read_text() and "without light" in page.read_text()


def test_the_sweep_meets_every_rate_and_every_pair_of_rates():
    scenes = [sweep_scene(i) for i in range(len(SWEEP_HR_PER_MIN) * len(SWEEP_RR_PER_MIN))]
    assert {s.hr_per_min for s in scenes[:len(SWEEP_HR_PER_MIN)]} == set(map(float, SWEEP_HR_PER_MIN))
    assert len({(s.hr_per_min, s.rr_per_min) for s in scenes}) == len(scenes)
    assert max(SWEEP_HR_PER_MIN) == 240 and max(SWEEP_RR_PER_MIN) == 100
    assert scene_of("sweep", 3) == sweep_scene(3)


def breath_of(times_s):
    return from_times(np.array(times_s), 40.0, breath_shape(np.random.default_rng(0)), longest_s=3.0)


def test_uneven_breaths_are_counted_and_not_averaged_by_their_rates():
    """0.5 s and 1.5 s in turn are 60 breaths a minute; the mean of 120 and 40 would be 80."""
    truth = truth_of_breaths(breath_of(np.cumsum([0.5, 1.5] * 20)))
    assert truth.mean_rate(34.0, 16.0) == pytest.approx(60, abs=0.5)


def test_a_pause_in_breathing_is_no_slow_breath():
    times = [*np.arange(0, 14, 1.0), *np.arange(20, 40, 1.0)]
    truth = truth_of_breaths(breath_of(times))
    assert truth.mean_rate(24.0, 16.0) == pytest.approx(60, abs=1)
    assert truth.mean_rate(19.5, 6.0) is None
