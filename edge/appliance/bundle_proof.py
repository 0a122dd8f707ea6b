"""Whether an unpacked bundle may become current: its parity fixture, and its self-test clip through the whole chain.

On ONNX Runtime always. On TensorRT too where the service runs on it: what a build of TensorRT loses shows on the device alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from edge.appliance.bundle import BundleError, SelfTest

if TYPE_CHECKING:
    from edge.config import Config, ModelConfig
    from edge.pipeline import Engine
    from engines.sidecar import ModelSpec

ENGINES = "engines"
"""Where the proof builds its engines, below the unpacked bundle: root's, and so none that the service would use."""


def proven(folder: Path, test: SelfTest, service: Sequence[Path] = ()) -> str:
    """What the proof found. service: the configuration files that the service will run with once this bundle is current.

    Raises BundleError.
    """
    if find_spec("onnxruntime") is None:
        raise BundleError("the proof runs on ONNX Runtime, with TensorRT too, and it is not installed; pip install onnxruntime")
    from edge.camera import CameraError
    from edge.clip import RegionError
    from edge.config import ConfigError, load_config
    from edge.pipeline import ModelMismatch
    from engines.errors import EngineError
    from engines.onnxruntime_backend import OnnxRuntimeEngine
    from engines.parity import load_fixture, verify
    from engines.sidecar import SidecarError, load

    try:
        # all of the clip's picture, whatever region the device will look at: so the answer is always the same
        settings = {"camera.roi": "full"}
        config = load_config(folder / "physvlm.toml", settings | {"model.backend": "onnxruntime"})
        spec, _ = load(folder / "weights" / "student.json")
        # INT8 and FP16 run on ONNX Runtime too, where they only show what they lose
        precisions = [p for p in ("fp32", "fp16", "int8") if p in spec.files]
        if spec.parity is None or any(p not in spec.tolerances for p in precisions):
            raise BundleError("it brings no parity fixture for its weights; make it with physvlm-lab quantize first")
        fixture = load_fixture(spec.parity)
        for precision in precisions:
            verify(OnnxRuntimeEngine(spec, precision), fixture, spec.tolerances[precision], f"its student in {precision}")
        said = _clip_read(folder, test, OnnxRuntimeEngine(spec, "fp32"), config)
        model = load_config([str(file) for file in service]).model
        if model.backend != "tensorrt":
            return said
        config = load_config(folder / "physvlm.toml", settings | {
            "model.backend": "tensorrt", "model.engine_cache": str(folder / ENGINES), "model.preprocess": model.preprocess})
        return f"{said}; {_proven_on_tensorrt(folder, test, spec, model, config)}"
    except (ConfigError, SidecarError, EngineError, ModelMismatch, CameraError, RegionError) as e:
        raise BundleError(str(e)) from e


def _proven_on_tensorrt(folder: Path, test: SelfTest, spec: ModelSpec, model: ModelConfig, config: Config) -> str:
    """Builds what the service would run, in the bundle's own folder. Raises BundleError, EngineError and their kin."""
    from edge.prepare import AUTO, Progress, prepare
    from engines.tensorrt_cache import open_engine

    engines, progress = folder / ENGINES, Progress()
    try:
        try:
            _, best = prepare(spec, engines, AUTO if model.precision == "auto" else (model.precision,), None, False, "onnx",
                              progress)
        finally:
            progress.end()
        engine = open_engine(spec, best, engines)
        try:
            return f"TensorRT in {best}: {_clip_read(folder, test, engine, config)}"
        except BundleError as e:
            raise BundleError(f"on TensorRT in {best}, {e}") from e
        finally:
            engine.close()
    finally:
        shutil.rmtree(engines, ignore_errors=True)


def _clip_read(folder: Path, test: SelfTest, engine: Engine, config: Config) -> str:
    from edge.camera import open_camera
    from edge.runtime import make_pipeline, replay

    with open_camera(str(folder / test.clip)) as camera:
        pipeline = make_pipeline(engine, camera, config)
        return _judged(replay(camera, pipeline, config, engine.spec.name).summary(), test)


def _judged(found: dict[str, float | None], test: SelfTest) -> str:
    said = []
    for name, what in (("hr", "heart rate"), ("rr", "breathing rate")):
        expected, within, least = (getattr(test, f"{name}_{end}") for end in ("per_min", "within_per_min", "shown_at_least"))
        rate, shown = found[f"{name}_median"], found[f"{name}_shown_fraction"] or 0.0
        if rate is None or abs(rate - expected) > within or shown < least:
            got = "no number" if rate is None else f"{rate:.1f} /min"
            raise BundleError(f"its self-test clip gives a {what} of {got}, shown {100 * shown:.0f} % of the time; expected "
                              f"{expected:.1f} +- {within:.1f}, shown at least {100 * least:.0f} %")
        said.append(f"{what} {rate:.1f} (expected {expected:.1f})")
    return ", ".join(said)
