"""The training loop in small: it learns, resumes, repeats itself, and reuses what it rendered."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="training needs torch; it is in the extra `lab`")

from calibration.phantom import Phantom  # noqa: E402
from calibration.scenes import TRAINING_SEED0, training_scene  # noqa: E402
from distillation.cache import Cache, CacheSpec, build  # noqa: E402
from distillation.example import INT8_STEP, make_example, pulse_r2  # noqa: E402
from distillation.objective import Objective  # noqa: E402
from distillation.targets import Targets  # noqa: E402
from distillation.train import TrainConfig, TrainingError, _augmented, batches, train  # noqa: E402
from edge.clip import normalise_clip  # noqa: E402
from engines.student import Student, StudentConfig  # noqa: E402

TINY = StudentConfig(window=96, stem_width=4, features=8, series=2, hidden=8, wavelet_levels=3)
SMALL_RUN = TrainConfig(n_train=8, n_restraint=4, n_valid=4, epochs=3, batch=4, threads=1, learning_rate=4e-3, teacher="",
                        device="cpu")


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first_run(cache_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("first")
    train(SMALL_RUN, cache_folder, out, TINY)
    return out


def logged(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run):
    return torch.load(run / "student.pt", weights_only=True)["student"]


def test_a_run_leaves_its_record(first_run):
    log = logged(first_run)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert {"train_pulse_wave", "train_pulse_leak", "pulse_within_5", "pulse_leak_db", "minutes"} <= set(log[0])
    assert json.loads((first_run / "config.json").read_text()) == {"train": asdict(SMALL_RUN), "student": asdict(TINY)}


def made_up_targets(n, tasks=2, prompts=12):
    """A teacher that believes in one rate a clip."""
    prob = torch.nn.functional.one_hot(torch.randint(prompts, (n, tasks)), prompts).float().numpy()
    text = torch.nn.functional.normalize(torch.randn(tasks, prompts, 16), dim=-1).numpy()
    rates = np.stack([np.linspace(0.8, 4, prompts), np.linspace(0.15, 1.8, prompts)])
    bin_hz = np.broadcast_to(rates, (tasks, prompts)).astype(np.float32)
    ones = np.ones((n, tasks), np.float32)
    return Targets(prob, ones, ones, ones, np.zeros((n, tasks, 16), np.float32), text, bin_hz, np.ones(1, np.float32), "x")


EVERY_PART = {f"{t}_{p}" for t in ("pulse", "resp")
              for p in ("wave", "spectrum", "rate", "band", "presence", "prompt", "log_spectrum", "leak")} | {"agreement"}


def test_the_loss_falls_on_what_is_seen_again_and_again(first_run, cache_folder):
    cache = Cache(next(cache_folder.glob("*-8-*")))
    batch = next(batches(cache, replace(SMALL_RUN, batch=8), TINY.window, np.random.default_rng(0), train=False))
    student = Student(TINY)
    objective = Objective(student, made_up_targets(len(cache)), 1.0, 1.0)
    optimiser = torch.optim.AdamW([*student.parameters(), *objective.parameters()], lr=5e-3)
    seen = []
    for _ in range(40):
        total, parts = objective(student(batch["frames"], batch["mask"]), batch)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        seen.append((float(total.detach()), parts))
    assert seen[-1][0] < 0.8 * seen[0][0] and set(seen[0][1]) == EVERY_PART
    assert seen[-1][1]["pulse_prompt"] < seen[0][1]["pulse_prompt"]


def test_what_is_switched_off_is_no_part_of_the_loss(first_run, cache_folder):
    cache = Cache(next(cache_folder.glob("*-8-*")))
    batch = next(batches(cache, replace(SMALL_RUN, batch=8), TINY.window, np.random.default_rng(0), train=False))
    student = Student(TINY)
    targets = made_up_targets(len(cache))

    def parts(targets, distillation, cross_task):
        return set(Objective(student, targets, distillation, cross_task)(student(batch["frames"], batch["mask"]), batch)[1])

    crossed = {"pulse_leak", "resp_leak", "agreement"}
    taught = {p for p in EVERY_PART if p.endswith(("prompt", "log_spectrum"))}
    assert parts(targets, 1.0, 0.0) == EVERY_PART - crossed
    assert parts(None, 1.0, 1.0) == parts(targets, 0.0, 1.0) == EVERY_PART - taught


def test_a_clip_whose_labels_a_source_does_not_have_teaches_nothing(first_run, cache_folder):
    cache = Cache(next(cache_folder.glob("*-8-*")))
    batch = next(batches(cache, replace(SMALL_RUN, batch=8), TINY.window, np.random.default_rng(0), train=False))
    for name in ("pulse", "resp"):
        batch[f"{name}_presence"] = torch.full((8,), -1.0)
    student = Student(TINY)
    total, _ = Objective(student, None, 0.0, 1.0)(student(batch["frames"], batch["mask"]), batch)
    assert float(total.detach()) == 0


def test_the_same_seed_gives_the_same_student_from_the_same_cache(first_run, cache_folder, tmp_path):
    rendered = {p: p.stat().st_mtime_ns for p in cache_folder.rglob("*.np?")}
    train(SMALL_RUN, cache_folder, tmp_path, TINY)
    assert {p: p.stat().st_mtime_ns for p in cache_folder.rglob("*.np?")} == rendered
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, weights(first_run)[name], atol=1e-6, rtol=1e-5)


def test_an_interrupted_run_goes_on_where_it_was(first_run, cache_folder, tmp_path):
    train(replace(SMALL_RUN, minutes=1e-3), cache_folder, tmp_path, TINY)
    assert len(logged(tmp_path)) == 1
    train(SMALL_RUN, cache_folder, tmp_path, TINY)
    assert [line["epoch"] for line in logged(tmp_path)] == [1, 2, 3]
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(value, weights(first_run)[name], atol=1e-6, rtol=1e-5)


def test_another_run_is_not_continued_by_mistake(first_run, cache_folder):
    with pytest.raises(TrainingError, match="epochs: began with 3, now 4"):
        train(replace(SMALL_RUN, epochs=4), cache_folder, first_run, TINY)
    with pytest.raises(TrainingError, match="positive budget"):
        train(replace(SMALL_RUN, minutes=0), cache_folder, first_run.parent / "none", TINY)


def test_the_cache_knows_the_code_that_made_it(monkeypatch, tmp_path):
    spec = CacheSpec("mixed", 1, TRAINING_SEED0, 40, 30.0, 48)
    before = spec.key()
    changed = tmp_path / "clip.py"
    changed.write_text("# other preprocessing")
    monkeypatch.setattr("distillation.cache.clip.__file__", str(changed))
    assert spec.key() != before and replace(spec, suite="restraint").key() != spec.key()


def test_a_half_rendered_cache_is_gone_on_with(tmp_path, monkeypatch):
    spec = CacheSpec("restraint", 3, TRAINING_SEED0, 40, 30.0, 48)
    whole = build(spec, tmp_path / "whole", workers=1)
    folder = tmp_path / "half" / spec.key()
    (folder / "parts").mkdir(parents=True)
    (folder / "frames.npy").write_bytes((whole / "frames.npy").read_bytes())
    store = np.lib.format.open_memmap(folder / "frames.npy", mode="r+")
    store[2] = 0
    store.flush()
    with np.load(whole / "truth.npz") as truth:
        for i in range(2):
            np.savez(folder / "parts" / f"{i}.npz", **{name: truth[name][i] for name in truth.files})
        marked = {name: truth[name][0] for name in truth.files} | {"pulse_presence": np.array(7)}
    np.savez(folder / "parts" / "0.npz", **marked)  # would be lost if the clip were rendered again
    assert build(spec, tmp_path / "half", workers=1) == folder and not (folder / "parts").exists()
    assert (folder / "frames.npy").read_bytes() == (whole / "frames.npy").read_bytes()
    assert np.load(folder / "truth.npz")["pulse_presence"][0] == 7


def test_a_cache_whose_frames_are_damaged_is_begun_anew(tmp_path):
    spec = CacheSpec("restraint", 1, TRAINING_SEED0, 40, 30.0, 48)
    folder = build(spec, tmp_path, workers=1)
    truth = (folder / "truth.npz").read_bytes()
    (folder / "spec.json").unlink()
    (folder / "frames.npy").write_bytes(b"half")
    assert build(spec, tmp_path, workers=1) == folder
    assert len(Cache(folder)) == 1 and (folder / "truth.npz").read_bytes() == truth


def test_a_clip_in_the_cache_is_what_the_runtime_sees(cache_folder, first_run):
    """Frames lie within half a step of int8 of what edge.clip gives, on the same grid as their truth."""
    scene = replace(training_scene(TRAINING_SEED0 + 11), kind="face", hr_per_min=120.0, fps=30.0, duration_s=4.0,
                    jitter_ms=0.0, drop_fraction=0.0, codec="raw")
    frames, example = make_example(scene, 60, 30.0, 48)
    phantom = Phantom(scene)
    clip = normalise_clip(iter(phantom), None, 30.0, 48, limit=60)
    assert np.abs(frames.transpose(0, 3, 1, 2) * INT8_STEP - clip.frames).max() <= INT8_STEP / 2 + 1e-6
    np.testing.assert_allclose(example.pulse, phantom.pulse.at(np.arange(60) / 30), atol=1e-6)
    assert example.hr.mean() == pytest.approx(120, rel=0.1)


def test_a_pulse_counts_as_seen_when_the_light_holds_it():
    rng = np.random.default_rng(0)
    pulse = np.sin(2 * np.pi * 2 * np.arange(300) / 30)
    light = np.outer(pulse, [0.2, -1.0, 0.3]) + rng.normal(0, 0.2, (300, 3))
    assert pulse_r2(light, pulse, 30.0, 2.0, 2.0) > 0.9
    assert pulse_r2(rng.normal(0, 1, (300, 3)), pulse, 30.0, 2.0, 2.0) < 0.4


def test_augmentation_turns_the_flow_with_the_picture():
    """Flow points where the picture goes: after a flip the x flow of a moving edge has the other sign."""
    frames = np.zeros((2, 5, 8, 8), np.int8)
    frames[:, 3, 2, 1] = 100  # something moves right at row 2, column 1
    for seed in range(40):
        out = _augmented(frames, np.random.default_rng(seed))[0]
        (channel, row, column), = (out != 0).nonzero().tolist()
        value = float(out[channel, row, column])
        assert (channel, min(row, 7 - row), min(column, 7 - column)) in ((3, 2, 1), (4, 1, 2))
        # the nearer border along the way it moves was the left one: still behind it, whichever way the picture was turned
        along = column if channel == 3 else row
        assert (value > 0) == (along < 4)


def test_batches_hold_the_newest_samples_and_mask_what_is_missing(first_run, cache_folder):
    cache = Cache(next(cache_folder.glob("*-8-*")))
    rng = np.random.default_rng(1)
    for batch in [b for _ in range(3) for b in batches(cache, SMALL_RUN, TINY.window, rng, train=True)]:
        assert [tuple(f.shape) for f in batch["frames"]] == 4 * [(96, 5, 48, 48)]
        assert set(batch["mask"].unique().tolist()) <= {0.0, 1.0}
        for frames, mask in zip(batch["frames"], batch["mask"], strict=True):
            assert not (frames * (1 - mask)[:, None, None, None]).any()
        assert batch["mask"][:, -1].any()
