"""The preprocessing: area means, the uniform grid, and the normalisation that training and the device share."""

from __future__ import annotations

import numpy as np
import pytest

from edge import clip
from edge.clip import ClipBuilder, GridResampler, Normaliser, Region, RegionError, area_means, normalise_clip
from edge.records import Frame

FS = 30.0
STEP_NS = 1e9 / FS


def plain_means(bgr, region, size):
    """Cell by cell, as the docstring says: borders on whole pixels."""
    rows = np.round(np.linspace(0, region.h_px, size + 1)).astype(int) + region.y_px
    cols = np.round(np.linspace(0, region.w_px, size + 1)).astype(int) + region.x_px
    return np.array([[bgr[rows[r]:rows[r + 1], cols[c]:cols[c + 1]].reshape(-1, 3).mean(axis=0) for c in range(size)]
                     for r in range(size)])


@pytest.mark.parametrize("region", [
    Region(0, 0, 96, 64), Region(3, 5, 83, 51), Region(95 - 16, 0, 16, 64), Region(7, 1, 17, 33)])
def test_area_means_are_the_means_of_the_cells(region):
    bgr = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)
    got = area_means(bgr, region, 16)
    assert got.dtype == np.float32 and got.shape == (16, 16, 3)
    np.testing.assert_allclose(got, plain_means(bgr, region, 16), rtol=1e-6)


def test_nothing_is_rounded_one_count_in_one_pixel_shows():
    bgr = np.full((40, 40, 3), 100, np.uint8)
    before = area_means(bgr, Region(0, 0, 40, 40), 2)
    bgr[0, 0, 1] += 1
    difference = area_means(bgr, Region(0, 0, 40, 40), 2) - before
    assert difference[0, 0, 1] == pytest.approx(1 / 400, rel=1e-2)
    difference[0, 0, 1] = 0
    assert not difference.any()


@pytest.mark.parametrize("width", [3840, 4200])
def test_the_sums_of_a_white_4k_frame_do_not_overflow(width):
    white = np.full((2160, width, 3), 255, np.uint8)
    assert (area_means(white, Region(0, 0, width, 2160), 48) == 255).all()


@pytest.mark.parametrize("region", [Region(10, 10, 1, 1), Region(0, 0, 7, 5), Region(20, 3, 40, 5), Region(3, 2, 5, 40)])
def test_regions_smaller_than_the_grid_are_interpolated(region):
    bgr = np.random.default_rng(2).integers(50, 200, (64, 96, 3), np.uint8)
    crop = bgr[region.y_px:region.y_px + region.h_px, region.x_px:region.x_px + region.w_px]
    got = area_means(bgr, region, 16)
    assert got.shape == (16, 16, 3) and np.isfinite(got).all()
    assert got.min() >= crop.min() and got.max() <= crop.max()


def test_a_flat_thin_region_still_averages_along_its_long_side():
    noisy = np.random.default_rng(3).integers(0, 256, (8, 640, 3), np.uint8)
    columns = area_means(noisy, Region(0, 0, 640, 8), 16).mean(axis=0)
    np.testing.assert_allclose(columns, noisy.reshape(8, 16, 40, 3).mean(axis=(0, 2)), atol=4)


@pytest.mark.parametrize("region", [Region(-1, 0, 10, 10), Region(0, 0, 0, 10), Region(60, 0, 10, 10), Region(0, 44, 10, 5)])
def test_a_region_outside_the_frame_is_refused_with_the_frame_size(region):
    with pytest.raises(RegionError, match="64x48"):
        region.check_inside(64, 48)


# --- the grid


def value(x: float):
    return np.full((1, 1, 3), x, np.float32)


def resampled(times_s, values=None, start_ns=0):
    """Frames at these times with these values (by default the time itself) -> list of (value or None, grid time in s)."""
    resampler = GridResampler(FS)
    out = []
    for t_s, x in zip(times_s, times_s if values is None else values, strict=True):
        out += [(None if m is None else float(m[0, 0, 0]), (t_ns - start_ns) / 1e9)
                for m, t_ns in resampler.push(start_ns + round(t_s * 1e9), value(x))]
    return out


def follows_a_line(points):
    assert all(v is not None for v, _ in points)
    np.testing.assert_allclose([v for v, _ in points], [t for _, t in points], atol=2e-5)
    np.testing.assert_allclose([t for _, t in points], np.arange(len(points)) / FS, atol=2e-9)


def test_frames_on_the_grid_pass_through():
    values = np.random.default_rng(0).uniform(50, 200, 90).astype(np.float32)
    points = resampled(np.arange(90) / FS, values)
    assert len(points) == 90
    np.testing.assert_allclose([v for v, _ in points], values, rtol=1e-6)


def test_uneven_times_give_the_light_at_the_grid_time():
    rng = np.random.default_rng(4)
    jittered = np.arange(120) / FS + rng.uniform(-0.01, 0.01, 120)
    follows_a_line(resampled(np.maximum(0, jittered - jittered[0])))


def test_dropped_frames_are_interpolated_over():
    times = np.delete(np.arange(120) / FS, [10, 40, 41, 42, 43, 90])
    points = resampled(times)
    follows_a_line(points)
    assert len(points) == 120


@pytest.mark.parametrize("fps", [28.6, 29.97, 25.0, 60.0, 5.0])
def test_other_rates_land_on_the_same_grid(fps):
    times = np.arange(int(4 * fps)) / fps
    points = resampled(times)
    follows_a_line(points)
    assert len(points) == int(times[-1] * FS + 1e-6) + 1


def test_a_clock_far_from_zero_loses_nothing():
    follows_a_line(resampled(np.arange(90) / 28.6, start_ns=40 * 24 * 3600 * 10**9 + 12345))


def test_a_gap_is_marked_and_not_bridged():
    before, after = np.arange(31) / FS, 1.4 + np.arange(30) / FS
    points = resampled(np.concatenate([before, after]))
    missing = [t for v, t in points if v is None]
    assert missing[0] == pytest.approx(31 / FS) and missing[-1] == pytest.approx(1.4)
    np.testing.assert_allclose(np.diff([t for _, t in points]), 1 / FS, atol=1e-8)
    assert all(abs(v - t) < 1e-5 for v, t in points if v is not None)


@pytest.mark.parametrize(("hole_s", "bridged"), [(0.29, True), (0.31, False)])
def test_a_gap_begins_above_its_limit(hole_s, bridged):
    points = resampled([0.0, hole_s])
    assert all((v is not None) == bridged for v, _ in points[1:]) and len(points) > 8


def test_a_frame_whose_time_does_not_rise_changes_nothing():
    good = resampled([0.0, 0.05, 0.1, 0.15])
    assert resampled([0.0, 0.05, 0.05, 0.02, 0.1, 0.1, 0.15], [0.0, 0.05, 99, 99, 0.1, 99, 0.15]) == good


# --- the normalisation


def light(n, size=8, seed=0, noise=0.01):
    rng = np.random.default_rng(seed)
    still = rng.uniform(60, 220, (size, size, 3))
    return [(still * (1 + noise * rng.standard_normal(still.shape))).astype(np.float32) for _ in range(n)]


def normalised(sequence, size=8):
    return Normaliser(FS, size).push(sequence)


def test_normalisation_is_causal():
    sequence = light(60)
    np.testing.assert_array_equal(normalised(sequence)[:40], normalised([*sequence[:40], *light(20, seed=9)])[:40])


@pytest.mark.parametrize("size", [1, 2, 8])
def test_it_does_not_matter_how_many_come_at_once(size):
    seen = light(70, size)
    sequence = [*seen[:20], *[None] * 5, *seen[20:31], *[None] * 35, *seen[31:]]
    whole, rng = normalised(sequence, size), np.random.default_rng(2)
    normaliser, parts = Normaliser(FS, size), []
    while sequence:
        n = int(rng.integers(0, 14))
        parts.append(normaliser.push(sequence[:n]))
        sequence = sequence[n:]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def plain_flow(delta, mean):
    """Cell by cell, as the docstring says: (2, S, S), x then y."""
    size = len(mean)
    mirrored = np.pad(np.arange(size), 1, mode="reflect")
    out = []
    for axis in (1, 0):
        after, before = mean.take(mirrored[2:], axis), mean.take(mirrored[:-2], axis)
        gradient = (after - before) / 2
        box = [np.mean([values[np.ix_(mirrored[r:r + size], mirrored[c:c + size])] for r in range(3) for c in range(3)], axis=0)
               for values in (-delta * gradient, gradient**2)]
        out.append(np.clip(clip.FLOW_SCALE * box[0] / (box[1] + clip.FLOW_FLOOR**2), -clip.FLOW_CLIP, clip.FLOW_CLIP))
    return np.array(out)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_light_and_flow_are_what_their_formulas_say(size):
    sequence = light(25, size, noise=0.02)
    out, mean, tau = normalised(sequence, size), None, clip.MEAN_TAU_S * FS
    for i, means in enumerate(sequence):
        logs = np.log(means.astype(float) + clip.LOG_OFFSET_COUNTS)
        mean = logs if mean is None else mean
        delta = logs - mean
        mean = mean + max(1 / (i + 1), 1 / tau) * delta
        np.testing.assert_allclose(out[i, :3], np.clip(clip.LIGHT_SCALE * delta, -clip.LIGHT_CLIP, clip.LIGHT_CLIP)
                                   .transpose(2, 0, 1), atol=1e-4)
        np.testing.assert_allclose(out[i, 3:], plain_flow(delta.mean(axis=-1), mean.mean(axis=-1)), atol=1e-4)


def test_the_first_frame_is_zero_and_a_still_picture_stays_so():
    out = normalised([light(1)[0]] * 10)
    assert out.shape == (10, clip.CHANNELS, 8, 8) and out.dtype == np.float32
    assert np.abs(out).max() < 1e-5
    assert np.abs(normalised(light(2))[1]).max() > 0.01


def test_a_short_gap_is_zeros_and_the_mean_lives_on():
    still = light(1)[0]
    out = normalised([still] * 30 + [None] * 20 + [still * np.float32(1.02)])
    assert not out[30:50].any()
    assert out[50, 1].mean() == pytest.approx(clip.LIGHT_SCALE * 0.02, rel=0.15)


def test_after_a_gap_of_over_a_second_the_mean_starts_anew():
    still = light(1)[0]
    out = normalised([still] * 30 + [None] * 31 + [still * np.float32(1.5), still * np.float32(1.5 * 1.02)])
    assert not out[30:62].any()
    assert out[62, 1].mean() == pytest.approx(clip.LIGHT_SCALE * 0.02, rel=0.15)


def test_gaps_are_counted_together_only_while_they_last():
    still = light(1)[0]
    out = normalised([still] * 30 + [None] * 20 + [still] + [None] * 20 + [still * np.float32(1.02)])
    assert out[-1, 1].mean() > 0.2


def test_the_size_of_the_light_does_not_matter():
    sequence = light(60, noise=0.003)
    bright = normalised([means * np.float32(0.8) for means in sequence])
    assert np.abs(bright - normalised(sequence)).max() < 0.1 * np.abs(bright).max()


def test_a_pulse_of_half_a_per_cent_becomes_a_tenth():
    t = np.arange(300) / FS
    out = normalised([np.full((8, 8, 3), 200 * (1 + 0.005 * np.sin(2 * np.pi * 2.5 * x)), np.float32) for x in t])
    assert np.sqrt(2) * out[150:, 1].std() == pytest.approx(0.1, rel=0.15)


def test_everything_stays_within_its_limits():
    out = normalised([light(1, seed=s)[0] for s in range(20)])
    assert np.abs(out[:, :3]).max() <= clip.LIGHT_CLIP and np.abs(out[:, 3:]).max() <= clip.FLOW_CLIP


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift_cells", [0.15, -0.3])
def test_flow_tells_how_far_the_picture_moved_on_both_sides_of_an_edge(axis, shift_cells):
    """axis 0: x, 1: y. A brighter bar: its two edges darken and brighten, but move the same way."""
    def bar(shift):
        x = np.arange(32) - shift
        profile = 60 + 120 / (1 + np.exp(-(x - 10) / 1.2)) / (1 + np.exp((x - 20) / 1.2))
        row = np.repeat(profile[None], 32, axis=0)
        return np.repeat((row if axis == 0 else row.T)[..., None], 3, axis=2).astype(np.float32)

    moved = normalised([bar(0)] * 60 + [bar(shift_cells)], size=32)[-1]
    along, across = moved[3 + axis], moved[4 - axis]
    profile = along.mean(axis=0) if axis == 0 else along.mean(axis=1)
    for edge in (10, 20):
        assert profile[edge] == pytest.approx(clip.FLOW_SCALE * shift_cells, rel=0.3)
    brightness = moved[1].mean(axis=axis)
    assert brightness[10] * brightness[20] < 0
    assert np.abs(across).max() < 0.1 * np.abs(along).max()


# --- the three together


def rough_frames(n=100, seed=5):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.choice(np.arange(round(1.3 * n)), n, replace=False)) / 28.6
    times[n // 2:] += 0.7
    return [Frame(i, round(t * 1e9), rng.integers(80, 120, (48, 64, 3), np.uint8)) for i, t in enumerate(times)]


def test_a_whole_recording_and_a_stream_are_the_same():
    region = Region(8, 4, 40, 40)
    builder = ClipBuilder(region, FS, 16)
    seen = [builder.push(frame)[1] for frame in rough_frames()]
    frames, points = [builder.frames(points) for points in seen], [point for points in seen for point in points]
    whole = normalise_clip(iter(rough_frames()), region, FS, 16)
    np.testing.assert_array_equal(whole.frames, np.concatenate(frames))
    np.testing.assert_array_equal(whole.valid, [p[1] for p in points])
    assert whole.t_end_ns == points[-1][2] and not whole.valid.all()
    assert not whole.frames[~whole.valid].any()


def test_the_limit_cuts_the_recording_and_no_region_means_the_frame():
    whole = normalise_clip(iter(rough_frames()), None, FS, 16)
    part = normalise_clip(iter(rough_frames()), Region(0, 0, 64, 48), FS, 16, limit=50)
    np.testing.assert_array_equal(part.frames, whole.frames[:50])
    assert part.t_end_ns == round(rough_frames()[0].t_ns + round(49 * STEP_NS))


def test_an_empty_recording_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        normalise_clip(iter([]), None, FS, 16)


def test_another_region_starts_afresh():
    builder = ClipBuilder(Region(0, 0, 64, 48), FS, 16)
    for frame in rough_frames(10):
        builder.push(frame)
    builder.restart(Region(0, 0, 32, 24))
    later = Frame(99, 10**12, rough_frames(1)[0].bgr)
    means, points = builder.push(later)
    assert len(points) == 1 and points[0][1] and points[0][2] == later.t_ns and not builder.frames(points).any()
    np.testing.assert_array_equal(means, area_means(later.bgr, Region(0, 0, 32, 24), 16))
