"""What a waveform and a presence belief are held to. Each loss takes per-example weights: a missing label costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _standardised(wave: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum(1, keepdim=True) + 1e-3
    wave = (wave - (wave * mask).sum(1, keepdim=True) / count) * mask
    return wave / torch.sqrt((wave**2).sum(1, keepdim=True) / count + 1e-6)


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
    return ((1 - best) * weight).sum() / (weight.sum() + 1e-3)


def spectral_loss(wave: Tensor, rate_hz: Tensor, weight: Tensor, dft: Tensor, freqs_hz: Tensor) -> Tensor:
    """Cross-entropy of the wave's power spectrum against a narrow peak at the true rate. rate_hz: (b,)."""
    spectrum = wave @ dft
    bins = freqs_hz.numel()
    power = spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2
    share = power / (power.sum(1, keepdim=True) + 1e-6)
    target = torch.exp(-0.5 * ((freqs_hz[None] - rate_hz[:, None]) / 0.08) ** 2)
    inside = (share * target).sum(1).clamp(1e-3, 1.0)
    return (-torch.log(inside) * weight).sum() / (weight.sum() + 1e-3)


def presence_loss(logit: Tensor, presence: Tensor) -> Tensor:
    """Binary cross-entropy where presence is 0 or 1; -1 is not taught."""
    known = (presence >= 0).float()
    loss = F.binary_cross_entropy_with_logits(logit, presence.clamp(min=0), reduction="none")
    return (loss * known).sum() / (known.sum() + 1e-3)
