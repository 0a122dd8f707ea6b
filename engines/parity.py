"""Does an engine answer as the student does? Inputs with the answers of the FP32 student travel beside the weights.

An accelerator's compiler may get a network wrong without a word, so the fixture runs after every build and at every start.
It proves one engine on one machine; what a precision costs in beats and breaths is measured in the lab (physvlm-lab agree).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.files import write_whole

F32 = NDArray[np.float32]


class ParityError(EngineError):
    """The engine's answers differ from the student's beyond the tolerance: it must not be used."""


@dataclass(frozen=True)
class Tolerance:
    """What may differ. features: largest difference over the features' RMS. correlation: least between two waves.
    presence: largest difference of a belief (0-1)."""

    features: float
    correlation: float
    presence: float


@dataclass(frozen=True)
class Agreement:
    """What did differ, in the terms of `Tolerance`; the worst of the fixture."""

    features: float
    correlation: float
    presence: float

    def within(self, tolerance: Tolerance) -> bool:
        """NaN is never within."""
        return (self.features <= tolerance.features and self.correlation >= tolerance.correlation
                and self.presence <= tolerance.presence)


@dataclass(frozen=True, eq=False)
class Fixture:
    """Inputs and the FP32 student's answers, float32.

    frames (k, channels, S, S) -> features (k, cells, features); windows (w, window, cells, features) and masks (w, window)
    -> waves (w, 2, window) and presence (w, 2), 0-1.
    """

    frames: F32
    features: F32
    windows: F32
    masks: F32
    waves: F32
    presence: F32


class StemAndHead(Protocol):
    """The part of an engine that is tried here."""

    def stem(self, frames: F32) -> F32: ...
    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]: ...


_KEPT = {"frames": (np.int8, 4), "frames_step": (np.float32, 0), "features": (np.float32, 3), "windows": (np.int8, 4),
         "windows_step": (np.float32, 1), "masks": (np.bool_, 2), "waves": (np.float32, 3), "presence": (np.float32, 2)}
"""Arrays of the file, their type and dimensions. Inputs are whole steps: a quarter of the size, and still exact."""


def save_fixture(path: Path, engine: StemAndHead, frames: F32, frames_step: float, windows: F32,
                 masks: NDArray[np.bool_]) -> None:
    """Round the inputs to whole steps (frames: of frames_step; windows: of each feature's 127th part) and keep them with
    what `engine`, the FP32 student, answers."""
    windows_step = np.maximum(np.abs(windows).max(axis=(0, 1, 2)), 1e-6).astype(np.float32) / np.float32(127)
    kept = {"frames": np.rint(frames / frames_step).clip(-127, 127).astype(np.int8), "frames_step": np.float32(frames_step),
            "windows": np.rint(windows / windows_step).astype(np.int8), "windows_step": windows_step, "masks": masks}
    frames, windows = _inputs(kept)
    answers = [engine.head(window, mask.astype(np.float32)) for window, mask in zip(windows, masks, strict=True)]
    kept |= {"features": engine.stem(frames), "waves": np.stack([waves for waves, _, _ in answers]),
             "presence": np.stack([presence for _, presence, _ in answers]).astype(np.float32)}
    content = io.BytesIO()
    np.savez_compressed(content, **kept)
    write_whole(path, content.getvalue())


def _inputs(kept: dict[str, NDArray]) -> tuple[F32, F32]:
    return kept["frames"] * kept["frames_step"], kept["windows"] * kept["windows_step"]


def load_fixture(path: Path) -> Fixture:
    """Raises EngineError for a file that is no fixture."""
    try:
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in _KEPT}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise EngineError(f"{path} is no parity fixture: {e}; restore it from the release") from e
    for name, (kind, dimensions) in _KEPT.items():
        if kept[name].dtype != kind or kept[name].ndim != dimensions:
            raise EngineError(f"{path}: {name}: expected {np.dtype(kind)} of {dimensions} dimensions, got {kept[name].dtype} "
                              f"of {kept[name].ndim}; restore it from the release")
    frames, windows = _inputs(kept)
    return Fixture(frames, kept["features"], windows, kept["masks"].astype(np.float32), kept["waves"], kept["presence"])


def measure(engine: StemAndHead, fixture: Fixture) -> Agreement:
    """The engine's own error where it fails to answer."""
    features = engine.stem(fixture.frames)
    rms = float(np.sqrt((fixture.features.astype(np.float64) ** 2).mean()))
    worst = [float(np.abs(features - fixture.features).max()) / rms]
    correlations, beliefs = [], []
    for window, mask, waves, presence in zip(fixture.windows, fixture.masks, fixture.waves, fixture.presence, strict=True):
        found, believed, _ = engine.head(window, mask)
        correlations += [correlation(ours, theirs, mask) for ours, theirs in zip(found, waves, strict=True)]
        beliefs.append(float(np.abs(believed - presence).max()))
    return Agreement(worst[0], min(correlations), max(beliefs))


def correlation(a: F32, b: F32, mask: NDArray) -> float:
    """Pearson's, of two waves where the mask is not 0; 0 where one of them is flat."""
    x, y = (wave[mask > 0].astype(np.float64) for wave in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0


def verify(engine: StemAndHead, fixture: Fixture, tolerance: Tolerance, what: str) -> Agreement:
    """`measure`, and ParityError beyond the tolerance. what: the engine, for the message."""
    found = measure(engine, fixture)
    if not found.within(tolerance):
        raise ParityError(
            f"{what} does not answer as the student does: features differ by {found.features:.2g} (at most "
            f"{tolerance.features:.2g}), waves agree to {found.correlation:.5f} (at least {tolerance.correlation:.5f}), belief "
            f"differs by {found.presence:.2g} (at most {tolerance.presence:.2g}); use another --precision, or another release")
    return found
