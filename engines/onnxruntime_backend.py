"""The portable engine: the shipped student on ONNX Runtime, CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.sidecar import ModelSpec

F32 = NDArray[np.float32]


class OnnxRuntimeEngine:
    """Stem and head as two sessions. threads: cores that one call may take (one: the camera needs the other)."""

    def __init__(self, spec: ModelSpec, precision: str = "fp32", threads: int = 1) -> None:
        # importing onnxruntime costs 0.1 s and 30 MB, which a TensorRT device should not pay
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
        try:
            import onnxruntime
        except ModuleNotFoundError as e:
            raise EngineError("onnxruntime is not installed; pip install 'physvlm-edge[cpu]', or choose "
                              "--backend tensorrt on a Jetson") from e
        self.spec = spec
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        # ONNX Runtime's fusions around Q/DQ are known to give wrong numbers in FP16 graphs (its issue 25259; ours are right
        # with 1.32): rounding in place is no faster, and right in every release
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        self._failures = (onnxruntime.capi.onnxruntime_pybind11_state.Fail,
                          onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
                          onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
                          onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
                          onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
                          onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented)

        def session(path: Path) -> onnxruntime.InferenceSession:
            try:
                return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except self._failures as e:
                raise EngineError(f"{path} is no model that ONNX Runtime {onnxruntime.__version__} can run: {e}; "
                                  "restore it from the release") from e

        self._stem = session(spec.path("stem", precision))
        self._head = session(spec.path("head", precision))

    def stem(self, frames: F32) -> F32:
        """(n, channels, size, size) normalised frames -> (n, cells, features). Raises EngineError."""
        (features,) = self._run(self._stem, {"frames": frames})
        return features

    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]:
        """features (window, cells, features), mask (window,) -> waves (2, window), presence 0-1 (2,), attention
        (2, cells). Raises EngineError."""
        waves, logits, attention = self._run(self._head, {"features": features[None], "mask": mask[None]})
        return waves[0], 1.0 / (1.0 + np.exp(-logits[0].clip(-30, 30))), attention[0]

    def _run(self, session: object, feeds: dict[str, F32]) -> list[F32]:
        try:
            outputs = session.run(None, feeds)  # type: ignore[attr-defined]
        except self._failures as e:
            raise EngineError(f"inference failed: {e}") from e
        for output in outputs:
            if not np.isfinite(output).all():
                raise EngineError("inference gave values that are not finite; the weights or the input are damaged")
        return outputs
