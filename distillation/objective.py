"""The student's total loss: its own truth, what the teacher knows, and what pulse and breathing must not share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distillation import losses
from distillation.targets import Targets
from engines.student import LEAK_HARMONICS, TASKS, HeadOutput, Student

LAG_PULSE, LAG_RESP = 6, 10
"""Samples of lag that a waveform is forgiven: 0.2 s for the pulse's transit, 0.33 s for chest against flow."""

CYCLES_SEEN = 2.0
"""Fewer cycles than this in view teach nothing about a rate."""

WEIGHT = {"wave": 1.0, "spectrum": 0.3, "rate": 0.01, "band": 0.2, "presence": 0.5, "prompt": 0.03, "log_spectrum": 0.1,
          "leak": 0.03, "agreement": 0.03}
"""Of each loss in the total. Distillation and cross-task terms steer and must not outvote the truth, where there is one."""

PROMPT_TEMPERATURE = 0.08
"""As VL-phys and CLIP-like models use for normalised embeddings."""


Batch = dict[str, Any]
"""frames: list of (T, 5, S, S); the rest Tensors: mask (b, T), pulse and resp (b, T), pulse_hz and resp_hz (b, T) with 0
where there is no rate, pulse_presence and resp_presence (b,), index (b,) into the cache."""


class Objective(nn.Module):
    """The total loss. Holds what distillation needs beside the student: targets, and a projection thrown away after it.

    The projection maps a head's log spectrum and activity to the teacher's space, where the prompts' texts are.
    """

    def __init__(self, student: Student, targets: Targets | None, distillation: float, cross_task: float) -> None:
        super().__init__()
        head = student.head
        self.fs_hz, self.distillation, self.cross_task = head.config.fs_hz, distillation, cross_task
        self.register_buffer("dft", head.dft, persistent=False)
        self.register_buffer("freqs_hz", head.freqs_hz, persistent=False)
        self.register_buffer("slow", (head.freqs_hz < losses.MODULATION_HZ).float() * (head.freqs_hz > 0.1),
                             persistent=False)
        self.distils = targets is not None and distillation > 0
        if targets is not None and distillation > 0:
            for name in ("prob", "bin_hz", "confidence", "text"):
                self.register_buffer(name, torch.as_tensor(getattr(targets, name)).float(), persistent=False)
            width = head.freqs_hz.numel() + head.config.hidden
            self.project = nn.ModuleList(nn.Linear(width, self.text.shape[-1]) for _ in TASKS)

    def forward(self, out: HeadOutput, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """(total, its weighted parts)."""
        parts: dict[str, Tensor] = {}
        shares = [losses.power_share(out.waves[:, task], self.dft) for task in range(len(TASKS))]
        for task, name in enumerate(TASKS):
            parts |= {f"{name}_{k}": v for k, v in self._own(task, name, out, batch, shares[task]).items()}
            if self.distils:
                parts |= {f"{name}_{k}": v for k, v in self._taught(task, name, out, batch, shares[task]).items()}
        if self.cross_task:
            parts |= self._crossed(out, batch, shares)
        total = torch.stack(list(parts.values())).sum()
        return total, {k: float(v.detach()) for k, v in parts.items()}

    def _own(self, task: int, name: str, out: HeadOutput, batch: Batch, share: Tensor) -> dict[str, Tensor]:
        presence, mask, rate = batch[f"{name}_presence"], batch["mask"], batch[f"{name}_hz"]
        seconds = (mask * (rate > 0)).sum(1) / self.fs_hz
        mean_hz = losses.mean_rate(rate, mask)
        seen = (presence > 0).float() * (mean_hz * seconds > CYCLES_SEEN)
        lag, signed = ((LAG_PULSE, True), (LAG_RESP, False))[task]
        tracked = rate * mask
        own = {"wave": losses.waveform_loss(out.waves[:, task], batch[name], mask, seen, lag, signed),
               "spectrum": losses.spectral_loss(share, tracked, seen, self.freqs_hz),
               "rate": losses.rate_loss(share, mean_hz, seen, self.freqs_hz),
               "band": losses.spectral_loss(out.chosen[:, task], tracked, seen, self.freqs_hz),
               "presence": losses.presence_loss(out.presence[:, task], presence)}
        return {k: WEIGHT[k] * v for k, v in own.items()}

    def _taught(self, task: int, name: str, out: HeadOutput, batch: Batch, share: Tensor) -> dict[str, Tensor]:
        index = batch["index"]
        teacher = self.prob[index, task]
        # where the renderer or the source says that there is nothing, a teacher's rate is a guess
        weight = self.confidence[index, task] * (batch[f"{name}_presence"] != 0)
        embedding = self.project[task](torch.cat([torch.log(share + 1e-4), out.activity[:, task]], dim=1))
        target = losses.teacher_spectrum(teacher, self.bin_hz[task], self.freqs_hz)
        taught = {"prompt": losses.prompt_loss(embedding, self.text[task], teacher, weight, PROMPT_TEMPERATURE),
                  "log_spectrum": losses.log_spectrum_loss(share, target, weight)}
        return {k: self.distillation * WEIGHT[k] * v for k, v in taught.items()}

    def _crossed(self, out: HeadOutput, batch: Batch, shares: list[Tensor]) -> dict[str, Tensor]:
        mask, parts = batch["mask"], {}
        rates = [batch[f"{name}_hz"] * mask for name in TASKS]
        seen = [(batch[f"{name}_presence"] > 0).float() for name in TASKS]
        for task, name in enumerate(TASKS):
            leak = losses.leak_share(shares[task], rates[1 - task], rates[task], LEAK_HARMONICS[name], self.freqs_hz)
            parts[f"{name}_leak"] = WEIGHT["leak"] * losses.leak_loss(leak, seen[1 - task])
        modulation = losses.modulation_spectra(out.waves[:, 0], mask, losses.mean_rate(rates[0], mask), self.fs_hz, self.dft)
        breathes = (batch["resp_presence"] != 0).float()
        parts["agreement"] = WEIGHT["agreement"] * losses.agreement_loss(modulation, shares[1], self.slow, seen[0] * breathes)
        return {k: self.cross_task * v for k, v in parts.items()}
