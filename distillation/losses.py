"""What the student is held to. Every loss takes per-example weights: a label that a source does not have costs nothing.

Four families: the waveform itself; its spectrum; what the teacher knows (distillation); and what pulse and breathing must
not or must have in common (cross-task consistency). All are differentiable and finite on empty windows. The published
abstract names the last two; their equations here are our design.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

RATE_WIDTH_HZ = 0.08
"""Half width of a true rate's peak in the spectrum: 5 /min, what is asked of heart rate meters, and 1.4 bins of 17 s."""

SHARPENED = 3.0
"""Spectra are raised to this power before their centre of mass is read as a rate: a softmax over log power, less greedy."""

LEAK_FLOOR = 1e-4
"""Share of the power (-40 dB) below which a leak is no longer counted."""

CLASH_HZ = 0.2
"""Harmonics nearer than this to the own rhythm are not told apart in 17 s, and a rate wanders: they are not punished."""

MODULATION_HZ = 1.0
"""Half width of the band around the pulse that is demodulated; breathing faster than 60 /min is not looked for in it."""


def weighted(value: Tensor, weight: Tensor) -> Tensor:
    """Mean of value (b,) over weight (b,); 0 where nothing has weight."""
    return (value * weight).sum() / (weight.sum() + 1e-3)


def power_share(wave: Tensor, dft: Tensor) -> Tensor:
    """Share of each frequency in the power of a wave: (b, T), dft (T, 2F) -> (b, F)."""
    spectrum = wave @ dft
    bins = dft.shape[1] // 2
    power = spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2
    return power / (power.sum(1, keepdim=True) + 1e-6)


def _standardised(wave: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(1, keepdim=True) + 1e-3
    wave = (wave - (wave * mask).sum(1, keepdim=True) / count) * mask
    return wave / torch.sqrt((wave**2).sum(1, keepdim=True) / count + 1e-6)


# --- waveform


def lagged_correlation(wave: Tensor, truth: Tensor, mask: Tensor, max_lag: int) -> Tensor:
    """Pearson correlation at every lag of up to max_lag samples: (b, T) x 2 -> (b, 2 * max_lag + 1).

    A pulse arrives at the skin some tenths of a second after the heart, by an amount nobody labelled.
    """
    a, b = _standardised(wave, mask), _standardised(truth, mask)
    count = mask.sum(1) + 1e-3
    padded = F.pad(b, (max_lag, max_lag))
    lags = [(a * padded[:, lag:lag + a.shape[1]]).sum(1) / count for lag in range(2 * max_lag + 1)]
    return torch.stack(lags, dim=1)


def waveform_loss(wave: Tensor, truth: Tensor, mask: Tensor, weight: Tensor, max_lag: int, signed: bool) -> Tensor:
    """1 - the best lagged correlation. signed False also takes the mirrored wave (which way a chest moves is unknown)."""
    r = lagged_correlation(wave, truth, mask, max_lag)
    best = (r if signed else r.abs()).max(dim=1).values
    return weighted(1 - best, weight)


# --- spectrum


def rate_band(rate_hz: Tensor, freqs_hz: Tensor) -> Tensor:
    """Where a rhythm's fundamental lies while its rate moves: rate_hz (b, T), 0 where there is none -> (b, F), 0-1."""
    step = max(1, rate_hz.shape[1] // 32)  # a rate changes over seconds: every half second is enough
    tracks = rate_hz[:, ::step, None]
    near = torch.exp(-0.5 * ((freqs_hz - tracks) / RATE_WIDTH_HZ) ** 2) * (tracks > 0)
    return near.amax(1)


def mean_rate(rate_hz: Tensor, mask: Tensor) -> Tensor:
    """Mean rate over the samples that have one: (b, T) x 2 -> (b,), 0 where none has."""
    known = mask * (rate_hz > 0)
    return (rate_hz * known).sum(1) / known.sum(1).clamp(min=1)


def spectral_loss(share: Tensor, rate_hz: Tensor, weight: Tensor, freqs_hz: Tensor) -> Tensor:
    """In band against out of band: -log of the share (b, F) that lies where the true rate goes, rate_hz (b, T).

    Also what the attention's belief about the fundamental is held to: it sums to 1 as a spectrum's shares do.
    """
    inside = (share * rate_band(rate_hz, freqs_hz)).sum(1).clamp(1e-3, 1.0)
    return weighted(-torch.log(inside), weight)


def soft_rate(share: Tensor, freqs_hz: Tensor) -> Tensor:
    """The rate as a differentiable argmax: centre of mass of the sharpened spectrum, (b, F) -> (b,) in hertz."""
    sharp = (share + 1e-6) ** SHARPENED
    return (sharp * freqs_hz).sum(1) / sharp.sum(1)


def rate_loss(share: Tensor, target_hz: Tensor, weight: Tensor, freqs_hz: Tensor) -> Tensor:
    """Error of the soft rate in units of RATE_WIDTH_HZ, linear beyond one: an octave slip costs no more than it is."""
    error = (soft_rate(share, freqs_hz) - target_hz) / RATE_WIDTH_HZ
    return weighted(F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none"), weight)


def presence_loss(logit: Tensor, presence: Tensor) -> Tensor:
    """Binary cross-entropy where presence is 0 or 1; -1 is not taught."""
    known = (presence >= 0).float()
    return weighted(F.binary_cross_entropy_with_logits(logit, presence.clamp(min=0), reduction="none"), known)


# --- distillation


def prompt_loss(embedding: Tensor, text: Tensor, teacher: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Frequency-prompt contrast: the student's embedding (b, d) against the teacher's texts (n, d), with the teacher's
    own distribution over them (b, n) as the soft target."""
    logits = F.normalize(embedding, dim=1) @ F.normalize(text, dim=1).T / temperature
    return weighted(-(teacher * F.log_softmax(logits, dim=1)).sum(1), weight)


def teacher_spectrum(teacher: Tensor, prompt_hz: Tensor, freqs_hz: Tensor) -> Tensor:
    """The teacher's belief over prompt rates as one over frequencies: (b, n), prompt_hz (n,) rising -> (b, F), sums to 1."""
    gaps = torch.diff(prompt_hz)
    width = 0.6 * torch.cat([gaps[:1], torch.maximum(gaps[1:], gaps[:-1]), gaps[-1:]]).clamp(min=0.03)
    onto = torch.exp(-0.5 * ((freqs_hz[None] - prompt_hz[:, None]) / width[:, None]) ** 2)
    spread = teacher @ (onto / (onto.sum(1, keepdim=True) + 1e-6))
    return spread / (spread.sum(1, keepdim=True) + 1e-6)


def log_spectrum_loss(share: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Agreement of the log spectra where the teacher sees the rhythm: (b, F) x 2.

    Differences of log power count in proportion to the teacher's belief there, so its peak decides and its tails do not.
    """
    difference = torch.log(share + 1e-3) - torch.log(target + 1e-3)
    return weighted((target * difference.abs()).sum(1), weight)


# --- cross-task consistency


def harmonic_band(rate_hz: Tensor, harmonics: tuple[int, ...], freqs_hz: Tensor) -> Tensor:
    """Where the harmonics of a moving rate lie: rate_hz (b, T) -> (b, F), 0-1."""
    return torch.stack([rate_band(k * rate_hz, freqs_hz) for k in harmonics]).amax(0)


def clear_of(own_hz: Tensor, freqs_hz: Tensor) -> Tensor:
    """1 where a frequency is further than CLASH_HZ from the own rate and its double, wherever it goes: (b, T) -> (b, F)."""
    near = torch.zeros(own_hz.shape[0], freqs_hz.numel(), dtype=freqs_hz.dtype, device=freqs_hz.device)
    for track in (own_hz, 2 * own_hz):
        sampled = track[:, ::16, None]
        near = torch.maximum(near, (((freqs_hz - sampled).abs() < CLASH_HZ) & (sampled > 0)).to(near).amax(1))
    return 1 - near


def leak_share(share: Tensor, other_hz: Tensor, own_hz: Tensor, harmonics: tuple[int, ...], freqs_hz: Tensor) -> Tensor:
    """Share of a wave's power that lies at the other task's rate and its harmonics, clear of the own rhythm: (b,)."""
    return (share * harmonic_band(other_hz, harmonics, freqs_hz) * clear_of(own_hz, freqs_hz)).sum(1)


def leak_loss(leak: Tensor, weight: Tensor) -> Tensor:
    """Log of the leaked share above LEAK_FLOOR: each halving is worth the same, so small leaks go on shrinking."""
    return weighted(torch.log1p(leak / LEAK_FLOOR), weight)


def modulation_spectra(pulse: Tensor, mask: Tensor, hr_hz: Tensor, fs_hz: float, dft: Tensor) -> Tensor:
    """Spectra of the pulse's size and of its beat intervals: (b, T), hr_hz (b,) -> (b, 2, F), each summing to 1.

    The wave is shifted down by its own rate and smoothed (a Hann window that reaches MODULATION_HZ); the modulus is the
    beat's size, the turning of the phase its interval. Breathing modulates both.
    """
    n = pulse.shape[1]
    time_s = torch.arange(n, dtype=pulse.dtype, device=pulse.device) / fs_hz
    turn = 2 * torch.pi * hr_hz[:, None] * time_s
    length = round(fs_hz / MODULATION_HZ) // 2 * 2 + 1
    window = torch.hann_window(length + 2, periodic=False, dtype=pulse.dtype, device=pulse.device)[1:-1]
    kernel = (window / window.sum()).reshape(1, 1, -1)

    def smooth(x: Tensor) -> Tensor:
        return F.conv1d(x[:, None], kernel, padding=length // 2)[:, 0]

    real, imag = smooth(pulse * torch.cos(turn)), smooth(-pulse * torch.sin(turn))
    size = torch.sqrt(real**2 + imag**2 + 1e-6)
    # d(angle) = (x dy - y dx) / |z|^2, without unwrapping
    slope = (real[:, :-1] * imag[:, 1:] - imag[:, :-1] * real[:, 1:]) / (size[:, 1:] * size[:, :-1] + 1e-3)
    # the smoother is not yet full, or empties, within half its length of an edge
    inner = (smooth(mask) > 0.98).to(pulse.dtype)
    pair = [_standardised(size, inner), _standardised(F.pad(slope, (1, 0)), inner)]
    return torch.stack([power_share(x, dft) for x in pair], dim=1)


def agreement_loss(modulation: Tensor, resp_share: Tensor, band: Tensor, weight: Tensor) -> Tensor:
    """Breathing read from the pulse's modulation agrees with the breathing head, where the modulation is confident.

    modulation (b, 2, F), resp_share (b, F), band (F,) 0-1: breathing rates that modulation can carry. Confidence is how far
    the modulation's spectrum is from flat; it weighs and is not itself taught.
    """
    seen = modulation.mean(1) * band
    seen = seen / (seen.sum(1, keepdim=True) + 1e-6)
    entropy = -(seen * torch.log(seen + 1e-6)).sum(1) / torch.log(band.sum().clamp(min=2.0))
    confidence = ((0.8 - entropy) / 0.4).clamp(0, 1).detach()
    own = resp_share * band
    own = own / (own.sum(1, keepdim=True) + 1e-6)
    alike = (torch.sqrt(seen + 1e-8) * torch.sqrt(own + 1e-8)).sum(1)
    return weighted(1 - alike, weight * confidence)
