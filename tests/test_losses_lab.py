"""What the student is held to, on waves whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("repeatable_torch")]
torch = pytest.importorskip("torch", reason="losses need torch; it is in the extra `lab`")

from distillation import losses  # noqa: E402
from engines.student import LEAK_HARMONICS, Student, StudentConfig  # noqa: E402

CONFIG = StudentConfig()
T_S = torch.arange(CONFIG.window) / CONFIG.fs_hz
ONE = torch.ones(1)
MASK = torch.ones(1, CONFIG.window)


@pytest.fixture(scope="module")
def head():
    return Student(CONFIG).head


def sine(rate_hz, phase=0.0):
    return torch.sin(2 * torch.pi * rate_hz * T_S + phase)[None]


def track(rate_hz):
    return torch.full((1, CONFIG.window), float(rate_hz))


def share_of(head, wave):
    return losses.power_share(wave, head.dft)


# --- waveform


def sines(rate_hz, shift=0.0, n=300):
    return torch.sin(2 * torch.pi * rate_hz * (torch.arange(n) / 30.0 + shift))[None]


ONES = torch.ones(1, 300)


def test_a_lag_within_the_limit_costs_little_and_beyond_it_much():
    truth, weight = sines(1.0), torch.ones(1)

    def loss(samples):
        return float(losses.waveform_loss(sines(1.0, shift=samples / 30), truth, ONES, weight, 6, True))

    assert loss(0) < 0.01 and loss(6) < 0.05 and loss(-6) < 0.05
    assert loss(12) > 0.3
    assert float(losses.lagged_correlation(truth, truth, ONES, 6).argmax()) == 6


def test_only_breathing_may_be_mirrored():
    weight = torch.ones(1)
    # half a period of lag mirrors a sine too, so the sine is slow against the lag
    assert float(losses.waveform_loss(-sines(0.5), sines(0.5), ONES, weight, 6, False)) < 0.02
    assert float(losses.waveform_loss(-sines(0.5), sines(0.5), ONES, weight, 6, True)) > 1.0


def test_what_is_masked_or_unlabelled_costs_nothing():
    mask = ONES.clone()
    mask[:, :100] = 0
    spoilt = sines(1.0) + 50 * (1 - mask)
    assert float(losses.waveform_loss(spoilt, sines(1.0), mask, torch.ones(1), 6, True)) < 0.05
    both = torch.cat([sines(1.0), torch.randn(1, 300)])
    weight = torch.tensor([1.0, 0.0])
    assert float(losses.waveform_loss(both, sines(1.0).repeat(2, 1), ONES.repeat(2, 1), weight, 6, True)) < 0.02
    assert float(losses.waveform_loss(both, both, ONES.repeat(2, 1), torch.zeros(2), 6, True)) == 0
    logits = torch.tensor([8.0, -8.0, 5.0])
    assert float(losses.presence_loss(logits, torch.tensor([1.0, 0.0, -1.0]))) < 0.01
    assert float(losses.presence_loss(-logits, torch.tensor([1.0, 0.0, -1.0]))) > 5


# --- spectrum


def test_the_share_of_a_sine_lies_at_its_rate_and_adds_up(head):
    share = share_of(head, sine(2.5))
    assert float(share.sum()) == pytest.approx(1, abs=1e-3)
    assert float(head.freqs_hz[share.argmax()]) == pytest.approx(2.5, abs=0.06)


@pytest.mark.parametrize("rate_hz", [0.8, 2.0, 3.9])
def test_the_soft_rate_is_the_rate_and_falls_with_the_error(head, rate_hz):
    wave = sine(rate_hz) + 0.1 * torch.randn(1, CONFIG.window)
    assert float(losses.soft_rate(share_of(head, wave), head.freqs_hz)) == pytest.approx(rate_hz, abs=0.03)
    near, far = (float(losses.rate_loss(share_of(head, wave), torch.tensor([rate_hz + d]), ONE, head.freqs_hz))
                 for d in (0.02, 0.4))
    assert near < 0.2 < far


def test_power_in_the_band_of_a_moving_rate_is_in_band(head):
    """A heart that slows from 150 to 90 within the window is judged along the whole way."""
    rate = torch.linspace(2.5, 1.5, CONFIG.window)[None]
    wave = torch.sin(2 * torch.pi * torch.cumsum(rate, 1) / CONFIG.fs_hz)
    moving = float(losses.spectral_loss(share_of(head, wave), rate, ONE, head.freqs_hz))
    fixed = float(losses.spectral_loss(share_of(head, wave), track(2.0), ONE, head.freqs_hz))
    assert moving < 0.2 < fixed


def test_the_rate_of_a_pause_is_no_rate():
    rate = track(0.7)
    rate[:, 100:200] = 0
    assert float(losses.mean_rate(rate, MASK)) == pytest.approx(0.7)
    assert float(losses.mean_rate(0 * rate, MASK)) == 0


# --- distillation


def test_prompts_pull_the_embedding_to_the_text_that_the_teacher_believes():
    text = torch.nn.functional.normalize(torch.randn(12, 16), dim=1)
    teacher = torch.zeros(1, 12)
    teacher[0, 4] = 1
    right, wrong = (float(losses.prompt_loss(text[i][None], text, teacher, ONE, 0.08)) for i in (4, 5))
    assert right < 0.3 < wrong
    assert float(losses.prompt_loss(text[5][None], text, teacher, 0 * ONE, 0.08)) == 0


def test_the_teachers_belief_becomes_a_spectrum_at_its_rate(head):
    prompts = torch.linspace(0.75, 4.1, 40)
    belief = torch.zeros(1, 40)
    belief[0, 20] = 1
    spectrum = losses.teacher_spectrum(belief, prompts, head.freqs_hz)
    assert float(spectrum.sum()) == pytest.approx(1, abs=1e-4)
    assert float(head.freqs_hz[spectrum.argmax()]) == pytest.approx(float(prompts[20]), abs=0.06)
    agree, differ = (float(losses.log_spectrum_loss(share_of(head, sine(f)), spectrum, ONE)) for f in (prompts[20], 1.2))
    assert agree < 0.5 * differ


# --- cross-task


@pytest.mark.parametrize("harmonic", [1, 2, 3])
def test_breathing_and_its_harmonics_in_the_pulse_are_leak(head, harmonic):
    clean = share_of(head, sine(2.6))
    leaking = share_of(head, sine(2.6) + 0.5 * sine(harmonic * 0.7))
    of = [float(losses.leak_share(s, track(0.7), track(2.6), LEAK_HARMONICS["pulse"], head.freqs_hz)[0])
          for s in (clean, leaking)]
    assert of[0] < 1e-3 and of[1] == pytest.approx(0.2, abs=0.05)
    losses_of = [float(losses.leak_loss(torch.tensor([x]), ONE)) for x in of]
    assert losses_of[0] < 2.5 < 5 < losses_of[1]


def test_a_harmonic_that_falls_on_the_pulse_is_not_punished(head):
    """RR 60 and HR 120: the breath's 2nd harmonic and the pulse are not told apart in 17 s."""
    share = share_of(head, sine(2.0))
    assert float(losses.leak_share(share, track(1.0), track(2.0), (1, 2, 3), head.freqs_hz)[0]) < 1e-3
    assert float(losses.leak_share(share, track(1.0), track(3.0), (1, 2, 3), head.freqs_hz)[0]) > 0.9


def test_the_pulse_in_the_breathing_wave_is_leak(head):
    share = share_of(head, sine(0.7) + sine(2.6))
    assert float(losses.leak_share(share, track(2.6), track(0.7), LEAK_HARMONICS["resp"], head.freqs_hz)[0]) > 0.3


@pytest.mark.parametrize("by", ["size", "interval"])
def test_breathing_is_read_from_the_pulses_modulation(head, by):
    breath = sine(0.5)
    if by == "size":
        wave = (1 + 0.4 * breath) * sine(2.4)
    else:
        wave = torch.sin(2 * torch.pi * torch.cumsum(2.4 * (1 + 0.05 * breath), 1) / CONFIG.fs_hz)
    spectra = losses.modulation_spectra(wave, MASK, torch.tensor([2.4]), CONFIG.fs_hz, head.dft)
    own = spectra[0, 0 if by == "size" else 1]
    assert float(head.freqs_hz[own.argmax()]) == pytest.approx(0.5, abs=0.06)
    band = ((head.freqs_hz < 1.0) & (head.freqs_hz > 0.1)).float()
    same, other = (float(losses.agreement_loss(spectra, share_of(head, sine(f)), band, ONE)) for f in (0.5, 0.9))
    assert same < 0.6 * other


def test_unmodulated_pulse_says_nothing_about_breathing(head):
    noise = torch.randn(1, CONFIG.window)
    spectra = losses.modulation_spectra(sine(2.4) + 0.5 * noise, MASK, torch.tensor([2.4]), CONFIG.fs_hz, head.dft)
    band = ((head.freqs_hz < 1.0) & (head.freqs_hz > 0.1)).float()
    modulated = losses.modulation_spectra((1 + 0.4 * sine(0.5)) * sine(2.4), MASK, torch.tensor([2.4]), CONFIG.fs_hz, head.dft)
    loss = [float(losses.agreement_loss(s, share_of(head, sine(0.9)), band, ONE)) for s in (spectra, modulated)]
    assert loss[0] < 0.3 * loss[1]


# --- together


def every_loss(head, waves, weight):
    share = [losses.power_share(waves[:, i], head.dft) for i in range(2)]
    text, belief = torch.randn(12, 16), torch.softmax(torch.randn(len(waves), 12), 1)
    hz, resp_hz = track(2.4).expand(len(waves), -1), track(0.6).expand(len(waves), -1)
    mask = torch.ones(len(waves), CONFIG.window)
    target = losses.teacher_spectrum(belief, torch.linspace(0.8, 4, 12), head.freqs_hz)
    modulation = losses.modulation_spectra(waves[:, 0], mask, losses.mean_rate(hz, mask), CONFIG.fs_hz, head.dft)
    band = (head.freqs_hz < 1.0).float()
    return torch.stack([
        losses.waveform_loss(waves[:, 0], sine(2.4).expand_as(mask), mask, weight, 6, True),
        losses.spectral_loss(share[0], hz, weight, head.freqs_hz),
        losses.rate_loss(share[0], hz[:, 0], weight, head.freqs_hz),
        losses.prompt_loss(waves[:, 0, :16], text, belief, weight, 0.08),
        losses.log_spectrum_loss(share[0], target, weight),
        losses.leak_loss(losses.leak_share(share[0], resp_hz, hz, (1, 2, 3), head.freqs_hz), weight),
        losses.agreement_loss(modulation, share[1], band, weight)])


def test_every_loss_moves_the_waves_and_none_counts_a_missing_label(head):
    waves = torch.randn(3, 2, CONFIG.window, requires_grad=True)
    each = every_loss(head, waves, torch.tensor([1.0, 0.0, 1.0]))
    for value in each[:-1]:  # the agreement is silent on noise, on purpose
        gradient, = torch.autograd.grad(value, waves, retain_graph=True)
        assert bool(torch.isfinite(gradient).all()) and bool(gradient[0].any()) and not gradient[1].any()
    assert not every_loss(head, waves, torch.zeros(3)).any()


@pytest.mark.parametrize("wave", ["zeros", "constant", "one"])
def test_losses_and_gradients_are_finite_on_empty_waves(head, wave):
    waves = torch.zeros(1, 2, CONFIG.window)
    waves += 3.0 * (wave == "constant")
    waves[0, :, 200] += 1.0 * (wave == "one")
    waves.requires_grad_()
    total = every_loss(head, waves, ONE).sum()
    total.backward()
    assert bool(torch.isfinite(total)) and bool(torch.isfinite(waves.grad).all())


def test_the_lag_that_is_forgiven_is_bounded():
    early, late = (float(losses.waveform_loss(sine(0.5), sine(0.5, -2 * np.pi * 0.5 * lag / CONFIG.fs_hz), MASK, ONE, 6, True))
                   for lag in (5, 20))
    assert early < 0.02 and late > 0.3
