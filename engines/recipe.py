"""What is built of the student on which TensorRT, and everything that the result depends on: the cache key's components."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines import plan
from engines.cuda import DeviceFacts
from engines.sidecar import ModelSpec

PARTS = ("stem", "head")

BATCH = 30
"""Frames that the stem's plan takes at once: one hop at the model's rate."""

WORKSPACE_MB = 256
"""What the builder may take for trying out kernels; a Jetson shares its memory with everything else."""

OPT_LEVEL = 3
"""TensorRT's own default; 4 and 5 build for much longer."""

STRONG, WEAK = "strong", "weak"
"""Typing modes. Strong: every type is the graph's. Weak: the builder chooses among the precisions it is allowed."""

Shapes = dict[str, tuple[int, ...]]


def version(trt: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", trt.__version__)[:4])


def shapes(spec: ModelSpec, part: str) -> tuple[Shapes, Shapes]:
    """Names and shapes of a plan's inputs and of its outputs; all are float32."""
    n, cells, features = spec.window, spec.cells, spec.features
    if part == "stem":
        return {"frames": (BATCH, spec.channels, spec.size, spec.size)}, {"features": (BATCH, cells, features)}
    return ({"features": (1, n, cells, features), "mask": (1, n)},
            {"waves": (1, 2, n), "presence": (1, 2), "attention": (1, 2, cells)})


def typings(trt: Any, via: str = "onnx") -> tuple[str, ...]:
    """Typing modes to try, best first. Strong typing exists from 10.0 and is complete from 10.12 (NVIDIA's migration guide);
    from 11.0 on there is no other. torch2trt knows the weak one alone."""
    release = version(trt)
    if via == "torch2trt":
        return (WEAK,)
    if release >= (10, 12):
        return (STRONG,)
    return (STRONG, WEAK) if release >= (10,) else (WEAK,)


def artefact(trt: Any, precision: str) -> str:
    """The precision of the ONNX files that this release builds `precision` from.

    8.x takes no opset above 17, and in FP16 it is given the FP32 graph: the flag does the rest.
    """
    if version(trt) >= (10,):
        return precision
    return {"int8": "int8_opset17", "fp16": "fp32"}.get(precision, precision)


@dataclass(frozen=True)
class Recipe:
    """How one part is built. via: who reads the network, onnx or torch2trt. profile: fixed shape of every input that has
    an open one."""

    part: str
    precision: str
    typing: str
    workspace_mb: int = WORKSPACE_MB
    via: str = "onnx"
    profile: Shapes = field(default_factory=dict)

    @property
    def flags(self) -> tuple[str, ...]:
        """Builder flags by name: weakly typed networks alone have any."""
        if self.typing == STRONG or self.precision == "fp32":
            return ()
        narrow = ("FP16", "INT8") if self.precision == "int8" else ("FP16",)
        return (*narrow, "OBEY_PRECISION_CONSTRAINTS")


def profile(spec: ModelSpec, part: str) -> Shapes:
    """Inputs of open shape, which the plan fixes: the stem's frames. The head is static in itself."""
    return shapes(spec, part)[0] if part == "stem" else {}


def components(trt: Any, facts: DeviceFacts, onnx: bytes, recipe: Recipe) -> dict[str, Any]:
    """Everything that a plan depends on; a change in any of it means building anew."""
    return {"format": plan.FORMAT, "onnx": hashlib.sha256(onnx).hexdigest(), "tensorrt": trt.__version__,
            "driver": facts.driver_version, "l4t": l4t_release(), "device": facts.name,
            "compute_capability": ".".join(str(n) for n in facts.compute_capability), "sm_count": facts.sm_count,
            "memory_bytes": facts.memory_bytes, "part": recipe.part, "precision": recipe.precision, "typing": recipe.typing,
            "flags": list(recipe.flags), "workspace_mb": recipe.workspace_mb, "opt_level": OPT_LEVEL, "tf32": False,
            "profile": {name: list(shape) for name, shape in recipe.profile.items()}, "dla": "none", "via": recipe.via}


def l4t_release(path: Path = Path("/etc/nv_tegra_release")) -> str:
    """NVIDIA's release of Linux for Tegra, such as 36.4.0; empty on other machines."""
    text = _first_line(path)
    found = re.search(r"R(\d+).*?REVISION: *([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else text


def power_mode(path: Path = Path("/var/lib/nvpmodel/status")) -> str:
    """The power mode that kernels are timed under, empty where none is known. Where the file lies is from memory, unproven."""
    return _first_line(path).removeprefix("pmode:")


def _first_line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ""
