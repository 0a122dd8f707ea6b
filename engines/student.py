"""The student network: a per-frame stem and a temporal head with frequency-aligned attention and wavelet blocks (torch).

The stem runs once per frame. The head runs once per hop over the ring of the stem's features, so its cost does not depend
on how windows overlap. Temporal convolutions are written (1, k), the Fourier transform is a constant matrix product, and
the wavelet filters are constant convolutions, so that every operation exists in ONNX opset 17 and TensorRT 10.3 on.

The published abstract names the parts (wavelet temporal block, frequency-aligned spatial attention); their equations here
are our design.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TASKS = ("pulse", "resp")

BAND_HZ = {"pulse": (0.6, 4.4), "resp": (0.07, 2.1)}
"""Where each task's rhythm may lie: 36-264 and 4-126 per minute, a little wider than what may be shown."""


DRIFT_SAMPLES = {"pulse": 41, "resp": 181}
"""Length of the Hann average that is taken off each task's series: at 30 Hz it halves 0.73 and 0.17 Hz.
Light and posture drift hold ten times the power of a pulse; left in, they own every normalisation that follows."""

TILT = {"pulse": 0.5, "resp": 1.0}
"""Spectra are weighted by frequency to this power before cells are compared: posture and light fall off as 1/f."""


LEAK_HARMONICS = {"pulse": (1, 2, 3), "resp": (1,)}
"""Multiples of the other task's rate that are leak: a breath's harmonics in the pulse, the beat itself in the breath."""


@dataclass(frozen=True)
class StudentConfig:
    """Sizes. window: samples the head sees (17 s at 30 Hz, so that slow breathing has cycles enough).

    wavelet, attention, leak_gate: False takes that part out, for the ablation: sub-bands pass as they are, all cells count
    alike, the other task's rhythm stays in.
    """

    fs_hz: float = 30.0
    window: int = 512
    size: int = 48
    channels: int = 5
    stem_width: int = 16
    features: int = 24
    series: int = 4
    hidden: int = 32
    wavelet_levels: int = 7
    top_hz: float = 6.6
    wavelet: bool = True
    attention: bool = True
    leak_gate: bool = True

    @property
    def grid(self) -> int:
        """Cells along one side of the stem's feature map."""
        return self.size // 8


class Stem(nn.Module):
    """(n, channels, S, S) -> (n, cells, features). The first features are plain cell means, the rest are learned."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        width = config.stem_width
        self.patch = nn.Conv2d(config.channels, width, 4, stride=4)
        self.mix = nn.Conv2d(width, 24, 3, padding=1)
        self.down = nn.Conv2d(24, config.features - config.channels, 3, stride=2, padding=1)
        self.mean = nn.AvgPool2d(8)

    def forward(self, frames: Tensor) -> Tensor:
        learned = self.down(F.relu(self.mix(F.relu(self.patch(frames)))))
        return torch.cat([self.mean(frames), learned], dim=1).flatten(2).transpose(1, 2)


class Found(NamedTuple):
    """What one task's attention found.

    series: rhythm, attended and mean series (b, 1 + 2 K, T). attention: (b, P). chosen: how the belief about the
    fundamental is spread over frequencies (b, F), sums to 1. band: what passes around it (b, F). stats: (b, 5).
    """

    series: Tensor
    attention: Tensor
    chosen: Tensor
    band: Tensor
    stats: Tensor


class HeadOutput(NamedTuple):
    """Everything that training looks at. The first three are what is exported.

    waves (b, 2, T), presence logits (b, 2), attention (b, 2, P), chosen (b, 2, F), activity (b, 2, hidden).
    """

    waves: Tensor
    presence: Tensor
    attention: Tensor
    chosen: Tensor
    activity: Tensor


class BandChoice(nn.Module):
    """Which frequency is the task's rhythm: a small network along the frequency axis of what the whole picture shows.

    It sees the own and the other task's agreed spectrum, each with its power an octave up and down, so that it can tell a
    peak from a slope of drift, a fundamental from a harmonic, and the pulse from a breath that moves the same skin.
    """

    def __init__(self, config: StudentConfig, task: str, freqs_hz: Tensor) -> None:
        super().__init__()
        low, high = BAND_HZ[task]
        inside = torch.sigmoid((freqs_hz - low) / 0.02) * torch.sigmoid((high - freqs_hz) / 0.05)
        self.register_buffer("log_band", torch.log(inside + 1e-6), persistent=False)
        step = float(freqs_hz[1] - freqs_hz[0])
        doubled = (2 * freqs_hz[:, None] - freqs_hz[None, :]) / step
        self.register_buffer("octave", torch.exp(-0.5 * (doubled / 1.3) ** 2), persistent=False)
        self.sharpness = nn.Parameter(torch.tensor(25.0))
        self.harmonic = nn.Parameter(torch.tensor(0.3))
        self.see = nn.Conv2d(6, 16, (1, 11), padding=(0, 5))
        self.place = nn.Parameter(torch.zeros(1, 16, 1, freqs_hz.numel()))
        self.weigh = nn.Conv2d(16, 16, (1, 7), padding=(0, 3))
        self.say = nn.Conv2d(16, 1, (1, 1))
        nn.init.zeros_(self.say.weight)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """own, other: agreed spectra (b, F) -> belief (b, F), sums to 1."""
        up = own @ self.octave.T
        seen = torch.log(torch.stack([own, up, own @ self.octave, other, other @ self.octave.T, other @ self.octave], 1) + 1e-4)
        x = F.relu(self.see(seen[:, :, None] + 5.0) + self.place)
        said = self.say(F.relu(self.weigh(x)))[:, 0, 0]
        return torch.softmax(self.sharpness * (own + self.harmonic * up) + said + self.log_band, dim=-1)


class FrequencyAlignedAttention(nn.Module):
    """Where the rhythm is: per-cell spectra, the band that the whole picture agrees on, prominence in it, attention.

    The cells' series are then combined by the leading singular vector of their spectra inside the band (power iteration),
    so that cells moving in opposite directions add up instead of cancelling.
    """

    def __init__(self, config: StudentConfig, task: str, freqs_hz: Tensor) -> None:
        super().__init__()
        self.aligned = config.attention
        low, high = BAND_HZ[task]
        weight = (freqs_hz / high) ** TILT[task] * torch.sigmoid((freqs_hz - 0.9 * low) / 0.02)
        self.register_buffer("weight", torch.cat([weight, weight]), persistent=False)
        distance = (freqs_hz[:, None] - freqs_hz[None, :]) / (freqs_hz[1] - freqs_hz[0])
        self.register_buffer("spread", torch.exp(-0.5 * (distance / 1.3) ** 2), persistent=False)
        self.choose = BandChoice(config, task, freqs_hz)
        self.focus = nn.Parameter(torch.tensor(1.5))
        self.start = nn.Parameter(torch.randn(config.series) * 0.3 + 0.5)

    def agree(self, series: Tensor, spectra: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """series (b, P, K, T), spectra (b, P, K, 2F) -> both at a like loudness in every cell, each cell's power shares
        (b, P, F), and the spectrum that the cells agree on (b, F)."""
        spectra = spectra * self.weight
        energy = (spectra**2).sum((2, 3), keepdim=True)
        gain = 1.0 / torch.sqrt(energy + 0.05 * energy.mean(1, keepdim=True) + 1e-8)
        spectra, series = spectra * gain, series * gain
        bins = spectra.shape[-1] // 2
        power = (spectra[..., :bins] ** 2 + spectra[..., bins:] ** 2).sum(2)
        share = power / (power.sum(-1, keepdim=True) + 1e-6)
        return series, spectra, share, (share**2).sum(1) / (share.sum(1) + 1e-6)

    def forward(self, series: Tensor, spectra: Tensor, share: Tensor, chosen: Tensor) -> Found:
        """What `agree` gave, and the belief about the fundamental (b, F)."""
        b, cells, k, _ = series.shape
        bins = chosen.shape[-1]
        fundamental = chosen @ self.spread
        band = fundamental + 0.5 * (chosen @ self.choose.octave)
        inside = (share * band[:, None]).sum(-1).clamp(0, 0.999)
        prominence = torch.log(inside + 1e-3) - torch.log(1.0 - inside + 1e-2)
        attention = torch.softmax(self.focus * prominence * float(self.aligned), dim=-1)
        weight = torch.sqrt(fundamental + 1e-6)
        rows = spectra * torch.cat([weight, weight], dim=-1)[:, None, None] * attention[:, :, None, None]
        rows = rows.reshape(b, cells * k, 2 * bins)
        vector = (attention[:, :, None] * self.start).reshape(b, cells * k, 1)
        for _ in range(3 * self.aligned):
            vector = rows @ (rows.transpose(1, 2) @ vector)
            vector = vector / (vector.norm(dim=1, keepdim=True) + 1e-8)
        explained = ((rows.transpose(1, 2) @ vector) ** 2).sum((1, 2)) / ((rows**2).sum((1, 2)) + 1e-8)
        rhythm = ((vector.reshape(b, cells, k) * attention[:, :, None])[..., None] * series).sum((1, 2))
        power = (spectra[..., :bins] ** 2 + spectra[..., bins:] ** 2).sum(2)
        together = (spectra.mean(1) ** 2).sum(1)
        common = ((together[..., :bins] + together[..., bins:]) * band).sum(-1) / ((power.mean(1) * band).sum(-1) + 1e-6)
        entropy = -(chosen * torch.log(chosen + 1e-6)).sum(-1)
        stats = torch.stack([prominence.max(1).values, (attention * prominence).sum(1), entropy,
                             torch.log(explained + 1e-3), torch.log(common + 1e-3)], dim=1)
        pooled = (series * attention[:, :, None, None]).sum(1)
        return Found(torch.cat([rhythm[:, None], pooled, series.mean(1)], dim=1), attention, chosen, band, stats)


class WaveletTemporalBlock(nn.Module):
    """A-trous B3-spline analysis along time, adaptive gates per sub-band and channel, reconstruction by the sum.

    With all gates open the output equals the input (the transform is additive): tested.
    """

    def __init__(self, channels: int, levels: int, filters: bool = True) -> None:
        super().__init__()
        self.levels = levels
        self.filters = filters
        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16.0
        self.register_buffer("kernel", kernel.reshape(1, 1, 1, 5).repeat(channels, 1, 1, 1), persistent=False)
        self.gate = nn.Sequential(nn.Linear(channels * (levels + 1), 48), nn.ReLU(),
                                  nn.Linear(48, channels * (levels + 1)))

    def bands(self, x: Tensor) -> Tensor:
        """x (b, C, 1, T) -> (b, C, levels + 1, T), finest first, residual last; sums to x."""
        parts, coarse = [], x
        for level in range(self.levels):
            step = 2**level
            smooth = F.conv2d(coarse, self.kernel, padding=(0, 2 * step), dilation=(1, step), groups=x.shape[1])
            parts.append(coarse - smooth)
            coarse = smooth
        return torch.cat([*parts, coarse], dim=2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.filters:
            return x
        parts = self.bands(x)
        energy = torch.log((parts**2).mean(-1) + 1e-4)
        gates = torch.sigmoid(self.gate(energy.flatten(1)) + 1.0).reshape(energy.shape)
        return (parts * gates[..., None]).sum(2, keepdim=True)


class LeakGate(nn.Module):
    """Takes the breath's rhythm and its harmonics out of the pulse's wave: cross-task, at the frequencies seen right now.

    A breath moves the whole picture and its 2nd and 3rd harmonics lie where a newborn's heart beats. The wave is projected
    on the bins of a plain (untapered, orthogonal) DFT there, and as much of that is subtracted as the learned depth says,
    except where the own rhythm lies. Where the other task sees no clear rhythm its belief is spread thin and nothing goes.
    """

    def __init__(self, config: StudentConfig, freqs_hz: Tensor, harmonics: tuple[int, ...]) -> None:
        super().__init__()
        step = config.fs_hz / config.window
        angle = 2 * torch.pi * (torch.arange(config.window)[:, None] / config.fs_hz) * freqs_hz[None]
        basis = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1) * (2.0 / config.window) ** 0.5
        self.register_buffer("basis", basis.float(), persistent=False)

        def reach(k: int, bins: float, wander: float) -> Tensor:
            # a rate that wanders is k times as wide at its k-th harmonic
            width = bins * step + wander * k * freqs_hz[:, None]
            return torch.exp(-0.5 * ((k * freqs_hz[:, None] - freqs_hz[None]) / width) ** 2)

        self.register_buffer("other", torch.stack([reach(k, 1.3, 0.04) for k in harmonics]).amax(0), persistent=False)
        self.register_buffer("own", torch.stack([reach(k, 1.5, 0.02) for k in (1, 2)]).amax(0), persistent=False)
        self.depth = nn.Parameter(torch.tensor(-0.25))

    def forward(self, wave: Tensor, other: Tensor, own: Tensor) -> Tensor:
        """wave (b, T); both beliefs about the fundamental (b, F) -> (b, T)."""
        # a belief is never a single line: two thirds of it within reach of a bin count as all of it
        of_other, of_own = ((1.5 * (belief @ reach)).clamp(0, 1) for belief, reach in ((other, self.other), (own, self.own)))
        leak = torch.sigmoid(4 * self.depth) * of_other * (1 - of_own)
        return wave - ((wave @ self.basis) * torch.cat([leak, leak], dim=1)) @ self.basis.T


class TaskHead(nn.Module):
    """One task's waveform and presence from its attended series."""

    def __init__(self, config: StudentConfig, task: str, inputs: int, dilations: tuple[int, ...], freqs_hz: Tensor) -> None:
        super().__init__()
        hidden = config.hidden
        self.half = DRIFT_SAMPLES[task] // 2
        smooth = torch.hann_window(DRIFT_SAMPLES[task] + 2, periodic=False)[1:-1]
        self.register_buffer("smooth", (smooth / smooth.sum()).reshape(1, 1, 1, -1).repeat(inputs, 1, 1, 1),
                             persistent=False)
        self.wavelet = WaveletTemporalBlock(inputs, config.wavelet_levels, config.wavelet)
        self.enter = nn.Conv2d(inputs, hidden, (1, 7), padding=(0, 3))
        self.blocks = nn.ModuleList(
            nn.Conv2d(hidden, hidden, (1, 7), padding=(0, 3 * d), dilation=(1, d)) for d in dilations)
        self.leave = nn.Conv2d(hidden, 1, (1, 1))
        self.skip = nn.Parameter(torch.tensor(1.0))
        # the breath's wave has none: a heart's rate is seldom in it, and taking it out cost more readings than it mended
        self.leak = LeakGate(config, freqs_hz, LEAK_HARMONICS[task]) if config.leak_gate and task == "pulse" else None
        self.presence = nn.Sequential(nn.Linear(hidden + 5 + 2, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, series: Tensor, mask: Tensor, own: Found, other: Found, dft: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """series (b, C, T), mask (b, T), what both tasks found -> waveform (b, T), presence logit (b,), activity."""
        series = self._without_drift(series, mask)
        x = F.relu(self.enter(self.wavelet(series[:, :, None]) * mask[:, None, None]))
        for block in self.blocks:
            x = x + F.relu(block(x))
        wave = self.leave(x)[:, 0, 0] + self.skip * series[:, 0]
        if self.leak is not None:
            wave = self.leak(wave * mask, other.chosen, own.chosen)
        wave = wave * mask
        wave = wave - (wave.sum(1, keepdim=True) / (mask.sum(1, keepdim=True) + 1e-3)) * mask
        wave = wave / torch.sqrt((wave**2).sum(1, keepdim=True) / (mask.sum(1, keepdim=True) + 1e-3) + 1e-6)
        spectrum = wave @ dft
        bins = own.band.shape[1]
        power = spectrum[:, :bins] ** 2 + spectrum[:, bins:] ** 2
        share = power / (power.sum(1, keepdim=True) + 1e-6)
        shape = torch.stack([(share * own.band).sum(1), torch.log(share.max(1).values + 1e-3)], dim=1)
        activity = (torch.abs(x[:, :, 0]) * mask[:, None]).sum(2) / (mask.sum(1, keepdim=True) + 1e-3)
        return wave, self.presence(torch.cat([activity, own.stats, shape], dim=1))[:, 0], activity

    def _without_drift(self, series: Tensor, mask: Tensor) -> Tensor:
        """series (b, C, T) minus its local mean over valid samples, then to unit variance."""
        total = F.conv2d(series[:, :, None], self.smooth, padding=(0, self.half), groups=series.shape[1])[:, :, 0]
        weight = F.conv2d(mask[:, None, None], self.smooth[:1], padding=(0, self.half))[:, 0]
        series = (series - total / (weight + 1e-3)) * mask[:, None]
        count = mask.sum(1)[:, None, None] + 1e-3
        return series / torch.sqrt((series**2).sum(-1, keepdim=True) / count + 1e-8)


class Head(nn.Module):
    """features (b, T, cells, features), mask (b, T) -> waves (b, 2, T), presence logits (b, 2), attention (b, 2, cells)."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        time = torch.arange(config.window, dtype=torch.float64) / config.fs_hz
        step = config.fs_hz / config.window
        freqs = torch.arange(1, int(config.top_hz / step) + 1, dtype=torch.float64) * step
        hann = torch.hann_window(config.window, periodic=False, dtype=torch.float64)
        angle = 2 * torch.pi * time[:, None] * freqs[None]
        dft = torch.cat([torch.cos(angle), torch.sin(angle)], dim=1) * hann[:, None] * (2.0 / config.window)
        self.register_buffer("dft", dft.float(), persistent=False)
        self.register_buffer("freqs_hz", freqs.float(), persistent=False)
        self.project = nn.Linear(config.features, 2 * config.series, bias=False)
        with torch.no_grad():
            # begin from what is known: blood darkens green most, motion and lamps move all colours, a chest moves
            self.project.weight.mul_(0.1)
            known = torch.tensor([[0.0, -1.0, 0.0, 0, 0], [0.0, -1.0, 1.0, 0, 0], [0.5, -1.0, 0.5, 0, 0],
                                  [-0.4, -0.6, 0.4, 0, 0], [0, 0, 0, 1.0, 0], [0, 0, 0, 0, 1.0], [0.3, 0.3, 0.3, 0, 0],
                                  [0, 0, 0, 0.7, 0.7]])
            rows = torch.arange(2 * config.series) % 4 + 4 * (torch.arange(2 * config.series) >= config.series).long()
            self.project.weight[:, :config.channels] += known[rows]
        self.attend = nn.ModuleList(FrequencyAlignedAttention(config, t, freqs.float()) for t in TASKS)
        inputs = 2 + 2 * config.series
        self.heads = nn.ModuleList([TaskHead(config, "pulse", inputs, (2, 4, 8), freqs.float()),
                                    TaskHead(config, "resp", inputs, (2, 8, 16), freqs.float())])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.full(features, mask)[:3]

    def full(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """The same, and what training looks at beside it."""
        b, t, cells, _ = features.shape
        k = self.config.series
        count = mask.sum(1)[:, None, None, None] + 1e-3
        series = self.project(features).permute(0, 2, 3, 1)
        series = (series - (series * mask[:, None, None]).sum(-1, keepdim=True) / count) * mask[:, None, None]
        spectra = series @ self.dft
        agreed = [attend.agree(series[:, :, i * k:(i + 1) * k], spectra[:, :, i * k:(i + 1) * k])
                  for i, attend in enumerate(self.attend)]
        chosen = [attend.choose(agreed[i][3], agreed[1 - i][3]) for i, attend in enumerate(self.attend)]
        found = [attend(*agreed[i][:3], chosen[i]) for i, attend in enumerate(self.attend)]
        made = []
        for task, head in enumerate(self.heads):
            own, other = found[task], found[1 - task]
            inputs = torch.cat([own.series[:, :1], other.series[:, :1], own.series[:, 1:]], dim=1)
            made.append(head(inputs, mask, own, other, self.dft))
        waves, logits, activity = (torch.stack(each, 1) for each in zip(*made, strict=True))
        return HeadOutput(waves, logits, torch.stack([f.attention for f in found], 1),
                          torch.stack([f.chosen for f in found], 1), activity)


class Student(nn.Module):
    """Stem and head together, for training."""

    def __init__(self, config: StudentConfig | None = None) -> None:
        super().__init__()
        self.config = config or StudentConfig()
        self.stem = Stem(self.config)
        self.head = Head(self.config)

    def forward(self, frames: Tensor, mask: Tensor) -> HeadOutput:
        """frames (b, T, channels, S, S), mask (b, T), 1 where there was a frame."""
        return self.head.full(torch.stack([self._features(*each) for each in zip(frames, mask, strict=True)]), mask)

    def _features(self, frames: Tensor, mask: Tensor) -> Tensor:
        """One clip through the stem: (T, cells, features). Frames before the first valid one are not looked at.

        Clip by clip a CPU core trains half as fast again as with the whole batch at once: activations stay in its cache.
        """
        first = int(mask.argmax())
        seen = self.stem(frames[first:].contiguous(memory_format=torch.channels_last)) * mask[first:, None, None]
        return F.pad(seen, (0, 0, 0, 0, first, 0))
