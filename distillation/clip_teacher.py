"""A pre-trained CLIP from a local folder as the teacher: its own towers, tokenizer and picture normalisation.

The towers stay as they are. What may be fitted on rendered clips is an adapter, since no general CLIP was ever asked for a
frequency: a residual on the image side that also sees the map's left and right halves, and one on the text side. Both
begin at zero, so an unfitted teacher gives CLIP's own embeddings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillation.prompts import Knowledge, TeacherError

CONTRAST = 2.5
"""Standard deviations of a map's channel that span half the picture's range; beyond it saturates."""

NEEDED = (("config.json",), ("preprocessor_config.json",), ("model.safetensors", "model.safetensors.index.json"),
          ("tokenizer.json", "vocab.json"))
"""The standard layout; one name of each group must be there. vocab.json needs merges.txt beside it."""


def _checked(folder: Path) -> dict[str, Any]:
    """The folder's preprocessor settings; TeacherError where something is missing or no CLIP."""
    if not folder.is_dir():
        raise TeacherError(f"no CLIP folder at {folder}; give --teacher clip:DIR with a local checkpoint, or scratch")
    missing = [" or ".join(names) for names in NEEDED if not any((folder / name).is_file() for name in names)]
    if not (folder / "tokenizer.json").is_file() and (folder / "vocab.json").is_file() \
            and not (folder / "merges.txt").is_file():
        missing.append("merges.txt")
    if missing:
        raise TeacherError(f"{folder} lacks {', '.join(missing)}; a CLIP checkpoint in the transformers layout has "
                           "config.json, preprocessor_config.json, model.safetensors and its tokenizer's files")
    model_type = _json(folder / "config.json").get("model_type")
    if model_type != "clip":
        raise TeacherError(f"{folder / 'config.json'}: model_type is {model_type!r}, expected 'clip'")
    settings = _json(folder / "preprocessor_config.json")
    for key in ("image_mean", "image_std"):
        if not isinstance(settings.get(key), list) or len(settings[key]) != 3:
            raise TeacherError(f"{folder / 'preprocessor_config.json'}: {key} is {settings.get(key)!r}, expected 3 numbers")
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TeacherError(f"{path} holds no JSON object: {error}") from error


def _side(settings: dict[str, Any]) -> int | None:
    """Pixels of the picture that the processor hands on; None where it does not say."""
    size = settings.get("crop_size") or settings.get("size")
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return int(size) if size else None


def _loaded(folder: Path) -> tuple[nn.Module, Any]:
    """CLIPModel and tokenizer, from this folder's files alone."""
    try:
        from safetensors import SafetensorError
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise TeacherError(f"--teacher clip:DIR needs transformers ({error}); pip install physvlm-edge[lab]") from error
    try:
        model, report = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                  output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise TeacherError(f"{folder} cannot be read as a CLIP checkpoint: {error}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise TeacherError(f"{folder}: the weights lack {len(missing)} of the model's tensors, first {missing[0]}")
    return model.eval().requires_grad_(False), tokenizer


class ClipTeacher(nn.Module):
    """CLIP with adapters. Both tasks share it: which rhythm is meant, the map and the prompt say."""

    frozen_front = True
    knowledge: Knowledge | None = None

    def __init__(self, folder: Path, hidden: int = 256) -> None:
        super().__init__()
        settings = _checked(folder)
        self.choice = f"clip:{folder}"
        self.clip, self.tokenizer = _loaded(folder)
        vision = self.clip.config.vision_config
        self.columns, self.patch = int(vision.image_size), int(vision.patch_size)
        self.dim = int(self.clip.config.projection_dim)
        if _side(settings) not in (None, self.columns):
            raise TeacherError(f"{folder}: the processor makes pictures of {_side(settings)} pixels, the image tower takes "
                               f"{self.columns}; the files belong to different models")
        self.register_buffer("mean", torch.tensor(settings["image_mean"]).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings["image_std"]).reshape(3, 1, 1), persistent=False)
        self.see = nn.Sequential(nn.LayerNorm(3 * self.dim), nn.Linear(3 * self.dim, hidden), nn.GELU(),
                                 nn.Linear(hidden, self.dim))
        self.say = nn.Sequential(nn.LayerNorm(self.dim), nn.Linear(self.dim, hidden), nn.GELU(),
                                 nn.Linear(hidden, self.dim))
        for adapter in (self.see, self.say):
            nn.init.zeros_(adapter[-1].weight)
            nn.init.zeros_(adapter[-1].bias)
        self.log_scale = nn.Parameter(self.clip.logit_scale.detach().clone())
        self._spoken: dict[tuple[object, ...], Tensor] = {}

    def learned(self) -> dict[str, Tensor]:
        """What fitting changes, and so what a saved teacher holds."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("clip.")}

    def pictures(self, maps: Tensor) -> Tensor:
        """(b, 3, R, columns) -> (b, 3, columns, columns) as the image tower wants them: channels to mid grey and equal
        contrast, rows widened, then the checkpoint's own mean and deviation."""
        centred = maps - maps.mean((2, 3), keepdim=True)
        grey = 0.5 + 0.5 * centred / (CONTRAST * centred.std((2, 3), keepdim=True) + 1e-9)
        wide = F.interpolate(grey.clamp(0, 1), (self.columns, self.columns), mode="nearest")
        return (wide - self.mean) / self.std

    @torch.no_grad()
    def front(self, maps: Tensor, task: int) -> Tensor:
        """(b, 3, dim): the image tower's projected embedding, and the means of its left and right patches. Fixed."""
        seen = self.clip.vision_model(pixel_values=self.pictures(maps))
        side = self.columns // self.patch
        patches = self.clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:])
        grid = patches.reshape(maps.shape[0], side, side, -1)
        halves = [grid[:, :, :side // 2].mean((1, 2)), grid[:, :, side - side // 2:].mean((1, 2))]
        return torch.stack([self.clip.visual_projection(part) for part in (seen.pooler_output, *halves)], 1)

    def embed(self, front: Tensor, task: int) -> Tensor:
        """Unit embeddings (b, dim) of what `front` gave."""
        unit = F.normalize(front, dim=-1)
        return F.normalize(unit[:, 0] + self.see(unit.flatten(1)), dim=-1)

    @torch.no_grad()
    def spoken(self, prompts: list[str]) -> Tensor:
        """CLIP's own unit embeddings of the prompts; kept, since the text tower does not change."""
        key = (self.mean.device, *prompts)
        if key not in self._spoken:
            ids = self.tokenizer(prompts, padding=True, truncation=True, return_tensors="pt",
                                 max_length=self.clip.config.text_config.max_position_embeddings)
            said = self.clip.text_model(input_ids=ids["input_ids"].to(self.mean.device),
                                        attention_mask=ids["attention_mask"].to(self.mean.device))
            self._spoken[key] = F.normalize(self.clip.text_projection(said.pooler_output), dim=-1)
        return self._spoken[key]

    def text(self, prompts: list[str]) -> Tensor:
        """Unit embeddings (p, dim)."""
        own = self.spoken(prompts)
        return F.normalize(own + self.say(own), dim=-1)
