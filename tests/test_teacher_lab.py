"""The teacher: maps and prompts say what they should, CLIP is CLIP, scratch learns, and targets belong to their makers."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="the teacher needs torch; it is in the extra `lab`")

from distillation import targets as targets_module  # noqa: E402
from distillation.lessons import Lessons  # noqa: E402
from distillation.prompts import (  # noqa: E402
    N_RATES,
    RATES_PER_MIN,
    RATIOS,
    TASKS,
    TeacherError,
    bin_hz,
    rate_labels,
    rate_prompts,
    relation_prompts,
)
from distillation.stmap import ROWS, SPAN_S, joined, resample, spacetime_maps  # noqa: E402
from distillation.targets import StudentProjection, Targets, load_targets, save_targets, teacher_targets  # noqa: E402
from distillation.teacher import (  # noqa: E402
    TeacherConfig,
    load_teacher,
    make_teacher,
    measure,
    new_teacher,
    require_knowledge,
    train_teacher,
)
from distillation.towers import ScratchTeacher  # noqa: E402

FS_HZ, N = 30.0, 560
QUICK = TeacherConfig(steps=120, minutes=5.0, batch=12, learning_rate=5e-3)


def sines(n: int, seed: int, rows: int = 4) -> Lessons:
    """Clips of a sine and its harmonic in some rows, among noise and drift; every fourth holds none."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(N) / FS_HZ
    hz = np.stack([np.exp(rng.uniform(*np.log(bin_hz()[task][[0, -1]]), n)) for task in range(2)], 1)
    presence = np.ones((n, 2), np.int64)
    presence[::4] = 0
    phase = 2 * np.pi * (hz[..., None] * time_s + rng.random((n, 2, 1)))
    wave = (np.cos(phase) + 0.3 * np.cos(2 * phase)) * presence[..., None]
    gains = rng.uniform(0, 1, (n, 2, 3, rows, 1))
    drift = np.cumsum(rng.normal(0, 0.05, (n, 2, 3, rows, N)), -1)
    maps = gains * wave[:, :, None, None] + rng.normal(0, 0.3, (n, 2, 3, rows, N)) + drift
    rates = np.broadcast_to((hz * presence)[..., None], (n, 2, N))
    return Lessons(torch.from_numpy(maps).half(), rates, presence, FS_HZ)


def rendered(folder, seed: int, n: int = 6):
    """A cache in the shape that distillation.cache writes, of small frames with sines."""
    folder.mkdir(parents=True)
    lessons = sines(n, seed)
    rng = np.random.default_rng(seed)
    frames = rng.normal(0, 4, (n, N, 12, 12, 5))
    frames += 30 * lessons.maps.float().numpy()[:, 0, :1, 0].transpose(0, 2, 1)[:, :, None, None]
    np.save(folder / "frames.npy", frames.clip(-127, 127).astype(np.int8))
    np.savez(folder / "truth.npz", hr=lessons.rates_hz[:, 0] * 60, rr=lessons.rates_hz[:, 1] * 60,
             pulse_presence=lessons.presence[:, 0], resp_presence=lessons.presence[:, 1])
    (folder / "spec.json").write_text(json.dumps({"fs_hz": FS_HZ, "n": n}))
    return folder


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A randomly initialised CLIP in the standard layout, a few kilobytes of it."""
    transformers = pytest.importorskip("transformers", reason="a pre-trained teacher needs transformers, in the extra `lab`")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    vocabulary = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    words = folder / "words"
    words.mkdir()
    (words / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(words / "vocab.json"), str(words / "merges.txt")).save_pretrained(folder)
    shutil.rmtree(words)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "projection_dim": 16}
    n = len(vocabulary)
    torch.manual_seed(0)
    transformers.CLIPModel(transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": n, "max_position_embeddings": 128, "bos_token_id": n - 2, "eos_token_id": n - 1,
                             "pad_token_id": n - 1},
        vision_config=sizes | {"image_size": 64, "patch_size": 16}, projection_dim=16)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "crop_size": {"height": 64, "width": 64}, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}))
    return folder


@pytest.fixture(scope="module")
def taught():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    teacher = ScratchTeacher()
    done = train_teacher(teacher, sines(60, 1), QUICK)
    return teacher, done


# --- maps and prompts


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_relation_map_holds_the_frequencies_it_says(ratio):
    own_hz, right_pace = 1.6, 0.9
    half = SPAN_S * FS_HZ / 2
    row = torch.sin(2 * torch.pi * own_hz * torch.arange(N) / FS_HZ).expand(1, 3, 2, N)

    def part(pace):
        return resample(row, torch.tensor([5.0]), torch.tensor([pace * half]), 128)

    picture = joined(part(ratio * right_pace), part(right_pace))
    peaks = [np.abs(np.fft.rfft(side.numpy() * np.hanning(128), 4096)).argmax()
             for side in picture[0, 0, 0].split(128)]
    assert peaks[0] / peaks[1] == pytest.approx(ratio, rel=0.06)
    assert peaks[1] / 4096 * 128 / (SPAN_S / 2) == pytest.approx(right_pace * own_hz, rel=0.05)


def test_resampling_keeps_the_mean_and_refuses_samples_that_are_not_there():
    row = torch.randn(1, 3, 2, N)
    out = resample(row, torch.tensor([10.0]), torch.tensor([500.0]), 50)
    assert torch.allclose(out.mean(-1), row[..., 10:510].mean(-1), atol=1e-4)
    with pytest.raises(ValueError, match="asked of a map of 560"):
        resample(row, torch.tensor([100.0]), torch.tensor([500.0]), 50)


def test_int8_and_float_clips_give_the_same_map():
    frames = np.random.default_rng(0).integers(-127, 128, (20, 5, 48, 48)).astype(np.int8)
    stored = spacetime_maps(frames)
    assert stored.shape == (2, 3, ROWS, 20)
    assert torch.allclose(stored, spacetime_maps((frames * (3 / 127)).astype(np.float32)), atol=1e-5)
    assert torch.allclose(stored[0, 1, 7], torch.from_numpy(frames[:, 1, 8:16, 8:16]).float().mean((1, 2)) * 3 / 127,
                          atol=1e-5)
    assert torch.allclose(stored[1, 2], stored[0].mean(0), atol=1e-5)


@pytest.mark.parametrize("task", range(2))
def test_labels_average_to_the_rate_and_absence_has_its_own_prompt(task):
    bins = bin_hz()[task]
    rates = np.array([bins[0], 0.3 * bins[3] + 0.7 * bins[4], bins[-1], 2 * bins[-1], np.nan])
    labels = rate_labels(rates, task)
    assert labels.sum(1) == pytest.approx(1)
    assert labels[:3, :N_RATES] @ bins == pytest.approx(rates[:3])
    assert labels[3, N_RATES - 1] == 1 and labels[4, N_RATES] == 1
    assert len(rate_prompts(task)) == N_RATES + 1 and len(set(relation_prompts(task))) == len(RATIOS)
    assert RATES_PER_MIN[task][0] <= (45, 8)[task] and RATES_PER_MIN[task][-1] >= (245, 108)[task]


def test_lessons_take_rates_only_from_what_is_seen_and_steady():
    lessons = sines(8, 3)
    rates = lessons.rates_hz.copy()
    rates[1, 0, 300:] *= 1.6
    rates[2, 1, 100:200] = 0
    presence = lessons.presence.copy()
    presence[3] = -1
    known = Lessons(lessons.maps, rates, presence, FS_HZ)
    assert not {0, 1, 3, 4} & set(known.seen[0]) and not {0, 2, 3, 4} & set(known.seen[1])
    assert set(known.absent[0]) == {0, 4}
    batch = known.rates(0, 64, 32, np.random.default_rng(0))
    assert 5 < int(batch.labels[:, N_RATES].sum()) < 40


@pytest.mark.parametrize("ratio", RATIOS)
def test_halves_have_the_ratio_also_where_the_rate_wanders(ratio):
    lessons = sines(8, 3)
    wander = 1 + 0.25 * np.sin(2 * np.pi * np.arange(N) / N)
    known = Lessons(lessons.maps, 1.2 / (1 + np.arange(2))[:, None] * np.broadcast_to(wander, (8, 2, N)),
                    lessons.presence, FS_HZ)
    rng = np.random.default_rng(0)
    for _ in range(20):
        span = known.pair(1, 1, ratio, rng)
        left, right = (known.rate(1, 1, *part) * part[1] for part in (span[:2], span[2:]))
        assert left / right == pytest.approx(ratio, rel=0.03)
        assert min(span) >= 0 and max(span[0] + span[1], span[2] + span[3]) <= N + 1e-6


# --- scratch


def test_an_untrained_teacher_is_at_chance_and_may_not_teach():
    teacher = ScratchTeacher()
    teacher.knowledge = measure(teacher, sines(40, 9))
    for name in TASKS:
        assert abs(teacher.knowledge[name]["relation_accuracy"] - 1 / 6) < 0.1
        assert teacher.knowledge[name]["rate_top1"] < 0.12
    with pytest.raises(TeacherError, match=r"pulse relation_accuracy 0\.\d+, needed 0\.317"):
        require_knowledge(teacher)


def test_scratch_learns_to_name_ratios_and_rates_of_unseen_sines(taught):
    teacher, done = taught
    assert done["steps"] == QUICK.steps
    knowledge = measure(teacher, sines(40, 9))
    for name in TASKS:
        line = knowledge[name]
        assert line["relation_accuracy"] > 0.6 and line["order_accuracy"] > 0.75
        assert line["rate_top1"] > 8 / N_RATES
        assert line["rate_median_error_per_min"] < 0.25 * line["rate_median_error_of_a_guess_per_min"]
        assert line["none_auc"] > 0.8


def test_training_repeats_itself_bit_for_bit():
    made = []
    for _ in range(2):
        torch.manual_seed(4)
        teacher = ScratchTeacher(columns=96, dim=16)
        train_teacher(teacher, sines(12, 1), TeacherConfig(steps=3, batch=4))
        made.append(teacher.learned())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_a_word_no_prompt_holds_is_refused():
    with pytest.raises(ValueError, match="lungs"):
        ScratchTeacher().text(["the lungs rate is about 40"])


# --- CLIP from a folder


def test_an_unfitted_clip_gives_the_embeddings_of_transformers(tiny_clip):
    import transformers
    teacher = new_teacher(f"clip:{tiny_clip}")
    model = transformers.CLIPModel.from_pretrained(tiny_clip, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_clip, local_files_only=True)
    maps, prompts = torch.randn(3, 3, ROWS, teacher.columns), rate_prompts(0)[::9]
    with torch.no_grad():
        pictures = teacher.pictures(maps)
        ids = tokenizer(prompts, padding=True, return_tensors="pt")
        whole = model(pixel_values=pictures, **ids)
        assert torch.allclose(teacher.embed(teacher.front(maps, 0), 0), whole.image_embeds, atol=1e-5)
        assert torch.allclose(teacher.text(prompts), whole.text_embeds, atol=1e-5)
        assert torch.allclose(teacher.log_scale.exp() * whole.image_embeds @ whole.text_embeds.T, whole.logits_per_image,
                              atol=1e-3)
    grey = pictures * teacher.std + teacher.mean
    assert pictures.shape == (3, 3, 64, 64) and float(grey.min()) >= 0 and float(grey.max()) <= 1 + 1e-5


def test_fitting_changes_clips_adapters_and_nothing_else(tiny_clip):
    teacher = new_teacher(f"clip:{tiny_clip}")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    train_teacher(teacher, sines(12, 1, rows=ROWS), TeacherConfig(steps=12, batch=6))
    moved = {name.split(".")[0] for name, tensor in teacher.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"see", "say", "log_scale"}


@pytest.mark.parametrize("name, says", [
    ("config.json", r"lacks config\.json"), ("model.safetensors", r"lacks model\.safetensors"),
    ("preprocessor_config.json", r"lacks preprocessor_config\.json"), ("tokenizer.json", r"lacks tokenizer\.json or vocab")])
def test_a_folder_without_a_file_is_refused_by_name(tiny_clip, tmp_path, name, says):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    (folder / name).unlink()
    with pytest.raises(TeacherError, match=says):
        new_teacher(f"clip:{folder}")


@pytest.mark.parametrize("name, content, says", [
    ("config.json", b'{"model_type": "bert"}', "model_type is 'bert'"), ("config.json", b"{", "no JSON"),
    ("preprocessor_config.json", b'{"image_mean": [0.5]}', r"image_mean is \[0\.5\]"),
    ("preprocessor_config.json", b'{"size": 224, "image_mean": [1,1,1], "image_std": [1,1,1]}', "pictures of 224 pixels"),
    ("model.safetensors", b"x" * 100, "cannot be read as a CLIP checkpoint")])
def test_a_folder_with_a_broken_file_is_refused(tiny_clip, tmp_path, name, content, says):
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    (folder / name).write_bytes(content)
    with pytest.raises(TeacherError, match=says):
        new_teacher(f"clip:{folder}")


def test_weights_that_lack_a_tensor_are_refused(tiny_clip, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = shutil.copytree(tiny_clip, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TeacherError, match=r"lack 1 of the model's tensors, first visual_projection\.weight"):
        new_teacher(f"clip:{folder}")


@pytest.mark.parametrize("choice, says", [("clip:/no/such/folder", "no CLIP folder at"), ("gpt", "'gpt' unknown")])
def test_no_teacher_where_there_is_none(choice, says):
    with pytest.raises(TeacherError, match=says):
        new_teacher(choice)


# --- made, kept, loaded; targets


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    caches = [rendered(root / f"cache{seed}", seed) for seed in (1, 2)]
    config = TeacherConfig(steps=2, batch=4)
    return make_teacher("scratch", caches[:1], caches[1:], root / "teacher", config), caches, config


def test_a_made_teacher_is_kept_and_another_request_refused(made):
    folder, caches, config = made
    before = (folder / "teacher.pt").stat().st_mtime_ns
    assert make_teacher("scratch", caches[:1], caches[1:], folder, config) == folder
    assert (folder / "teacher.pt").stat().st_mtime_ns == before
    with pytest.raises(TeacherError, match="holds another teacher"):
        make_teacher("scratch", caches[1:], caches[1:], folder, config)
    record = json.loads((folder / "teacher.json").read_text())
    assert record["training"]["steps"] == 2 and set(record["knowledge"]) == set(TASKS)


def test_a_teacher_whose_weights_changed_is_refused(made, tmp_path):
    folder = shutil.copytree(made[0], tmp_path / "teacher")
    load_teacher(folder)
    saved = torch.load(folder / "teacher.pt", weights_only=True)
    saved["learned"]["log_scale"] += 0.1
    torch.save(saved, folder / "teacher.pt")
    with pytest.raises(TeacherError, match="not those that were measured"):
        load_teacher(folder)
    (folder / "teacher.pt").unlink()
    with pytest.raises(TeacherError, match=r"lacks teacher\.pt"):
        load_teacher(folder)


def test_a_fitted_clip_is_loaded_with_the_folder_it_came_from(tiny_clip, made, tmp_path):
    source = shutil.copytree(tiny_clip, tmp_path / "clip")
    _, caches, config = made
    folder = make_teacher(f"clip:{source}", caches[:1], caches[1:], tmp_path / "teacher", config)
    assert (folder / "teacher.pt").stat().st_size < 400_000, "the towers stay where they are"
    assert load_teacher(folder).choice == f"clip:{source}"
    shutil.rmtree(source)
    with pytest.raises(TeacherError, match="no CLIP folder at"):
        load_teacher(folder)


@pytest.fixture
def trusted(made):
    """The made teacher, as if it had passed its measurement."""
    teacher = load_teacher(made[0])
    good = {"relation_accuracy": 0.9, "relation_chance": 1 / 6, "rate_top1": 0.7, "rate_top1_chance": 1 / N_RATES}
    teacher.knowledge = {name: dict(good) for name in TASKS}
    return teacher


def test_targets_are_reused_and_not_computed_again(made, trusted, tmp_path, monkeypatch):
    cache = made[1][0]
    first = teacher_targets(trusted, cache, tmp_path)
    monkeypatch.setattr(targets_module, "_answered", None)
    again = teacher_targets(trusted, cache, tmp_path)
    assert again.version == first.version and np.array_equal(again.prob, first.prob)
    assert first.prob.shape == (6, 2, N_RATES) and first.prob.sum(-1) == pytest.approx(1, abs=1e-5)
    assert first.text.shape == (2, N_RATES, trusted.dim) and first.embedding.shape == (6, 2, trusted.dim)
    assert np.linalg.norm(first.embedding, axis=-1) == pytest.approx(1, abs=1e-5)
    assert ((first.confidence >= 0) & (first.confidence <= first.visible + 1e-5)).all()


def test_other_clips_and_another_teacher_get_targets_of_their_own(made, trusted, tmp_path):
    cache = shutil.copytree(made[1][0], tmp_path / "cache")
    first = teacher_targets(trusted, cache, tmp_path)
    frames = np.load(cache / "frames.npy")
    frames[3] = -frames[3]
    np.save(cache / "frames.npy", frames)
    second = teacher_targets(trusted, cache, tmp_path)
    with torch.no_grad():
        trusted.log_scale += 0.5
    third = teacher_targets(trusted, cache, tmp_path)
    assert len({first.version, second.version, third.version}) == 3
    assert len(list(tmp_path.glob("targets-*.npz"))) == 3
    joined_targets = Targets.joined([first, second])
    assert joined_targets.prob.shape[0] == 12 and joined_targets.version not in (first.version, second.version)


def test_targets_of_another_version_or_damaged_are_refused(made, trusted, tmp_path):
    kept = teacher_targets(trusted, made[1][0], tmp_path)
    path = next(tmp_path.glob("targets-*.npz"))
    with pytest.raises(TeacherError, match="expected other"):
        load_targets(path, "other")
    with np.load(path) as held:
        arrays = dict(held)
    arrays["confidence"] = arrays["confidence"] + 0.01
    np.savez(path, **arrays)
    with pytest.raises(TeacherError, match="not those that were written"):
        teacher_targets(trusted, made[1][0], tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TeacherError, match="cannot be read"):
        load_targets(path, kept.version)
    save_targets(kept, path)
    assert load_targets(path, kept.version).version == kept.version


def test_a_teacher_that_knows_nothing_gives_no_targets(made, tmp_path):
    with pytest.raises(TeacherError, match="knows too little to teach"):
        teacher_targets(load_teacher(made[0]), made[1][0], tmp_path)
    with pytest.raises(TeacherError, match="was not measured"):
        teacher_targets(ScratchTeacher(), made[1][0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_projection_can_be_drawn_to_the_teachers_prompts(made, trusted, tmp_path):
    text = torch.from_numpy(teacher_targets(trusted, made[1][0], tmp_path).text)
    features, wanted = torch.randn(8, 2, 10), torch.arange(8) * 5
    layer = StudentProjection(10, trusted.dim)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        logits = torch.einsum("btd,tpd->btp", layer(features), text) / 0.08
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.repeat_interleave(2))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0] and not math.isnan(losses[-1])
