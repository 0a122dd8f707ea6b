"""The scratch teacher's two towers: one reads maps as spectra on a logarithmic axis, the other reads prompts.

On a logarithmic axis a change of pace is a shift, so the ratio of two halves is where their spectra correlate and one
convolution knows a rhythm at every rate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.prompts import RATES_PER_MIN, TASKS, Knowledge, vocabulary, words
from distillation.stmap import SPAN_S

PER_OCTAVE = 24
"""Bins of the spectral axis: 2.9 % a bin, finer than 17 s resolve below 150 per minute."""

MARGIN = 1.15
"""The axis goes this factor beyond the prompts' rates on both sides."""

TILT = (0.5, 1.0)
"""Spectra are weighted by frequency to this power first, as in the student: light and posture fall off as 1/f."""

MIXES = ((0.0, 1.0, 0.0), (0.0, 1.0, -1.0), (-0.5, 1.0, -0.5), (0.4, 0.6, -0.4), (1.0, 1.0, 1.0)), \
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.7, 0.7, 0.0), (0.7, -0.7, 0.0))
"""Where the learned mixes of a map's three channels begin: what is known to pulse (B, G, R) and to breathe (x, y, light)."""

START_TEMPERATURE = 0.08
"""Of the contrast between maps and prompts, as in VL-phys; learned from there."""

LONGEST = 32
"""Tokens of the longest prompt that the text tower takes."""


def spectral_axis(task: int) -> Tensor:
    """Frequencies in Hz, PER_OCTAVE to an octave."""
    low, high = RATES_PER_MIN[task][0] / 60 / MARGIN, RATES_PER_MIN[task][-1] / 60 * MARGIN
    count = int(math.log2(high / low) * PER_OCTAVE) + 1
    return low * 2 ** (torch.arange(count, dtype=torch.float64) / PER_OCTAVE)


def fourier(task: int, columns: int) -> Tensor:
    """(columns, 3 * 2 * F): a map's row -> spectra of the whole, the left and the right half, each freed of its line and
    under a Hann window; cosine, then sine."""
    axis = spectral_axis(task)
    time = torch.arange(columns, dtype=torch.float64)
    tilt = (axis / axis[-1]) ** TILT[task]
    parts = []
    for first, last in ((0, columns), (0, columns // 2), (columns // 2, columns)):
        inside = ((time >= first) & (time < last)).double()
        size = last - first
        ramp = (time - (first + last - 1) / 2) * inside
        line = torch.stack([inside / math.sqrt(size), ramp / ramp.norm()], 1)
        hann = torch.zeros(columns, dtype=torch.float64)
        hann[first:last] = torch.hann_window(size + 2, periodic=False, dtype=torch.float64)[1:-1]
        angle = 2 * math.pi * time[:, None] * SPAN_S / columns * axis[None]
        wave = torch.cat([torch.cos(angle) * tilt, torch.sin(angle) * tilt], 1) * hann[:, None] * 2 / size
        parts.append(wave - line @ (line.T @ wave))
    return torch.cat(parts, 1).float()


class SpectralTower(nn.Module):
    """One task's maps -> embeddings. Cells agree on a spectrum, those that show it are attended, both are read along
    frequency; the whole gives the rate, the halves' correlation gives their ratio."""

    def __init__(self, task: int, columns: int, dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.bins = spectral_axis(task).numel()
        self.register_buffer("fourier", fourier(task, columns), persistent=False)
        self.mix = nn.Parameter(torch.tensor(MIXES[task]))
        mixes = self.mix.shape[0]
        self.focus = nn.Parameter(torch.tensor(2.0))
        self.sharpness = nn.Parameter(torch.tensor(20.0))
        self.enter = nn.Conv1d(4 * mixes, hidden, 5, padding=2)
        self.near = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.octave = nn.Conv1d(hidden, hidden, 3, padding=PER_OCTAVE, dilation=PER_OCTAVE)
        self.mixed = nn.Conv1d(hidden, hidden, 5, padding=2)
        self.evidence = nn.Conv1d(hidden, 1, 5, padding=2)
        self.lags = min(self.bins - 1, int(2.3 * PER_OCTAVE))
        self.rate = nn.Linear(self.bins, dim)
        self.ratio = nn.Linear(2 * self.lags + 1, dim)
        self.trust = nn.Linear(hidden + 2, dim)
        self.leave = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    @torch.no_grad()
    def front(self, maps: Tensor) -> Tensor:
        """(b, 3, R, columns) -> spectra (b, 3 segments, 3 channels, R, 2 F), each segment to unit power. Fixed."""
        b, channels, rows, _ = maps.shape
        spectra = (maps @ self.fourier).reshape(b, channels, rows, 3, 2 * self.bins).permute(0, 3, 1, 2, 4)
        power = (spectra**2).sum((2, 4)).mean(2)
        return (spectra / torch.sqrt(power + 1e-12)[:, :, None, None, None]).contiguous()

    def pooled(self, spectra: Tensor) -> Tensor:
        """(n, 3, R, 2 F) -> log spectra of the whole picture (n, 4 * mixes, F): what cells agree on, their plain sum, the
        attended sum, and the attended cells' power."""
        rows = spectra.shape[2]
        mixed = (self.mix @ spectra.flatten(2)).reshape(-1, self.mix.shape[0], rows, 2 * self.bins)
        power = mixed[..., :self.bins] ** 2 + mixed[..., self.bins:] ** 2
        energy = power.sum(-1)
        gain = torch.rsqrt(energy + 0.05 * energy.mean(2, keepdim=True) + 1e-9)
        share = power * (gain**2)[..., None]
        agreed = (share**2).sum(2) / (share.sum(2) + 1e-6)
        band = torch.softmax(self.sharpness * agreed, -1)
        prominence = torch.log((share @ band[..., None])[..., 0] + 1e-3)
        attention = torch.softmax(self.focus * prominence, 2)
        sums = torch.stack([gain / rows, gain * attention], 2) @ mixed
        summed = sums[..., :self.bins] ** 2 + sums[..., self.bins:] ** 2
        shown = (attention[:, :, None] @ share)[:, :, 0]
        return torch.log(torch.cat([agreed, summed[:, :, 0], summed[:, :, 1], shown], 1) + 1e-4)

    def read(self, spectra: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, R, 2 F) -> hidden (n, H, F) and the distribution over frequency (n, F)."""
        logs = self.pooled(spectra)
        x = F.gelu(self.enter(logs - logs.mean(-1, keepdim=True)))
        x = x + F.gelu(self.near(x))
        x = x + F.gelu(self.octave(x))
        x = x + F.gelu(self.mixed(x))
        return x, torch.softmax(self.evidence(x)[:, 0], -1)

    def embed(self, spectra: Tensor) -> Tensor:
        """`front`'s spectra -> unit embeddings (b, dim)."""
        b = spectra.shape[0]
        hidden, share = self.read(spectra.flatten(0, 1))
        hidden, share = hidden.reshape(b, 3, -1, self.bins), share.reshape(b, 3, self.bins)
        at_peak = (hidden[:, 0] * share[:, :1]).sum(-1)
        sure = torch.stack([share[:, 0].max(-1).values, (share[:, 0] * torch.log(share[:, 0] + 1e-6)).sum(-1)], 1)
        windows = F.pad(share[:, 1], (self.lags, self.lags)).unfold(-1, self.bins, 1)
        ratio = torch.einsum("blf,bf->bl", windows, share[:, 2])
        x = self.rate(8 * share[:, 0]) + self.ratio(8 * ratio) + self.trust(torch.cat([at_peak, sure], 1))
        return F.normalize(x + self.leave(x), dim=-1)


class TextTower(nn.Module):
    """A small transformer over a prompt's words and digits; the end token's state is the embedding."""

    def __init__(self, dim: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        tokens = ["<pad>", "<end>", *vocabulary()]
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.token = nn.Embedding(len(tokens), width)
        self.place = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.project = nn.Linear(width, dim)

    def encode(self, prompts: list[str]) -> Tensor:
        """(p, LONGEST) token numbers, padded. A word that no prompt of the teacher holds is a ValueError."""
        rows = torch.zeros(len(prompts), LONGEST, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            tokens = [*words(prompt), "<end>"]
            unknown = [token for token in tokens if token not in self.ids]
            if unknown or len(tokens) > LONGEST:
                raise ValueError(f"prompt {prompt!r}: words unknown to the scratch teacher: {', '.join(unknown) or 'none'}; "
                                 f"{len(tokens)} tokens of at most {LONGEST}")
            rows[row, :len(tokens)] = torch.tensor([self.ids[token] for token in tokens])
        return rows

    def forward(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (p, dim)."""
        ids = self.encode(prompts)
        ids = ids[:, :int((ids > 0).sum(1).max())].to(self.place.device)
        hidden = self.layers(self.token(ids) + self.place[:ids.shape[1]], src_key_padding_mask=ids == 0)
        end = (ids > 0).sum(1) - 1
        return F.normalize(self.project(hidden[torch.arange(len(prompts), device=ids.device), end]), dim=-1)


class ScratchTeacher(nn.Module):
    """A spectral tower for each task's maps and one text tower for all prompts, to be trained together."""

    frozen_front = False
    knowledge: Knowledge | None = None
    choice = "scratch"

    def __init__(self, columns: int = 256, dim: int = 64) -> None:
        super().__init__()
        self.columns, self.dim = columns, dim
        self.image = nn.ModuleList(SpectralTower(task, columns, dim) for task in range(len(TASKS)))
        self.words = TextTower(dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / START_TEMPERATURE)))

    def learned(self) -> dict[str, Tensor]:
        """What training changes, and so what a saved teacher holds."""
        return dict(self.state_dict())

    def front(self, maps: Tensor, task: int) -> Tensor:
        """The fixed part: spectra."""
        return self.image[task].front(maps)

    def embed(self, front: Tensor, task: int) -> Tensor:
        """Unit embeddings (b, dim) of what `front` gave."""
        return self.image[task].embed(front)

    def text(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (p, dim)."""
        return self.words(prompts)
