"""The device's engine: the student's stem and head as two TensorRT plans. `engines.tensorrt_cache` finds and builds those.

None of this has run on a GPU yet: it is tested through stand-ins for `tensorrt` and for CUDA.
"""

from __future__ import annotations

import atexit
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cuda import Cuda
from engines.errors import EngineError
from engines.recipe import BATCH, PARTS, shapes
from engines.sidecar import ModelSpec
from engines.tensorrt_build import bare, logger, made

F32 = NDArray[np.float32]


class TensorRtEngine:
    """Stem and head on the GPU, one call at a time, from any thread. Takes over `cuda`; `close` it when done."""

    def __init__(self, spec: ModelSpec, plans: Mapping[str, bytes], cuda: Cuda, trt: Any) -> None:
        """plans: serialised engines by part. Raises EngineError, and leaves nothing behind then."""
        self.spec = spec
        self._trt = trt
        self._lock = threading.Lock()
        self._cuda: Cuda | None = cuda
        self._stream: Any = None
        self._buffers: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        self._runtime: Any = None
        self._engines: dict[str, Any] = {}
        self._contexts: dict[str, Any] = {}
        atexit.register(self.close)  # the interpreter's own order of freeing would end the CUDA context first
        ready = False
        try:
            with cuda.current():
                try:
                    self._open(plans, cuda)
                except EngineError as e:
                    raise bare(e)  # noqa: B904 - the same error
            ready = True
        finally:
            if not ready:
                self.close()

    def _open(self, plans: Mapping[str, bytes], cuda: Cuda) -> None:
        """Everything straight into its place: what a local name held would outlive `close`."""
        self._stream = cuda.stream()
        for part in PARTS:
            for group in shapes(self.spec, part):
                for name, shape in group.items():
                    self._buffers[part][name] = cuda.buffer(shape, np.float32)
        self._runtime = made("runtime", self._trt.Runtime, logger(self._trt))
        for part in PARTS:
            self._engines[part] = made(f"engine from the plan of the {part}", self._runtime.deserialize_cuda_engine,
                                       plans[part])
            self._contexts[part] = made(f"execution context of the {part}", self._engines[part].create_execution_context)
            self._connect(part)

    def _connect(self, part: str) -> None:
        """Fixed shapes and addresses, set once. Raises EngineError where the plan is not the student's."""
        trt, engine, context = self._trt, self._engines[part], self._contexts[part]
        inputs, outputs = shapes(self.spec, part)
        found: dict[Any, set[str]] = {trt.TensorIOMode.INPUT: set(), trt.TensorIOMode.OUTPUT: set()}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            found[engine.get_tensor_mode(name)].add(name)
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise EngineError(f"the {part}'s {name} is {engine.get_tensor_dtype(name)}, expected float32")
        names = (found[trt.TensorIOMode.INPUT], found[trt.TensorIOMode.OUTPUT])
        if names != (set(inputs), set(outputs)):
            raise EngineError(f"the plan of the {part} has inputs and outputs {sorted(names[0])} and {sorted(names[1])}, "
                              f"expected {sorted(inputs)} and {sorted(outputs)}")
        for name, shape in inputs.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"the plan of the {part} does not take {name} of shape {shape}")
        for name, shape in (inputs | outputs).items():
            if tuple(context.get_tensor_shape(name)) != shape:
                raise EngineError(f"the {part}'s {name} has shape {tuple(context.get_tensor_shape(name))}, expected {shape}")
            if not context.set_tensor_address(name, self._buffers[part][name].pointer):
                raise EngineError(f"TensorRT does not take the memory for the {part}'s {name}")

    def stem(self, frames: F32) -> F32:
        """(n, channels, size, size) normalised frames -> (n, cells, features), BATCH at a time. Raises EngineError."""
        spec = self.spec
        _check("frames", frames, (len(frames) if frames.ndim else 1, spec.channels, spec.size, spec.size))
        out = np.empty((len(frames), spec.cells, spec.features), np.float32)
        for first in range(0, len(frames), BATCH):
            piece = frames[first:first + BATCH]
            out[first:first + BATCH] = self._run("stem", {"frames": piece})["features"][:len(piece)]
        return out

    def head(self, features: F32, mask: F32) -> tuple[F32, F32, F32]:
        """features (window, cells, features), mask (window,) -> waves (2, window), presence 0-1 (2,), attention
        (2, cells). Raises EngineError."""
        _check("features", features, (self.spec.window, self.spec.cells, self.spec.features))
        _check("mask", mask, (self.spec.window,))
        out = self._run("head", {"features": features[None], "mask": mask[None]})
        return out["waves"][0], 1.0 / (1.0 + np.exp(-out["presence"][0].clip(-30, 30))), out["attention"][0]

    def _run(self, part: str, feeds: dict[str, F32]) -> dict[str, F32]:
        """Copies of the outputs; EngineError unless this very call computed them. A shorter first axis is filled with 0."""
        with self._held() as cuda, cuda.current():
            try:
                out = self._execute(part, feeds)
            except EngineError as e:
                raise bare(e)  # noqa: B904 - the same error
        for name, array in out.items():
            if not np.isfinite(array).all():
                raise EngineError(f"the {part} gave {name} that are not finite; the weights or the device are damaged")
        return out

    def _execute(self, part: str, feeds: dict[str, F32]) -> dict[str, F32]:
        stream, buffers = self._stream, self._buffers[part]
        for name, array in feeds.items():
            host = buffers[name].host
            host[:len(array)] = array
            host[len(array):] = 0
            buffers[name].upload(stream)
        answers = [name for name in buffers if name not in feeds]
        for name in answers:  # so that what an earlier call left here can never pass for an answer
            buffers[name].host.fill(np.nan)
            buffers[name].upload(stream)
        if not self._contexts[part].execute_async_v3(stream.handle):
            stream.synchronize()  # the copies above must end before the next call writes there
            raise EngineError(f"TensorRT did not run the {part}; its own lines say why")
        for name in answers:
            buffers[name].download(stream)
        stream.synchronize()
        return {name: buffers[name].host.copy() for name in answers}

    @contextmanager
    def _held(self) -> Iterator[Cuda]:
        with self._lock:
            if self._cuda is None:
                raise EngineError("the engine is closed")
            yield self._cuda

    def layers(self) -> dict[str, dict[str, int]]:
        """How many layers of each part run in which precision, as the inspector tells; empty where it tells nothing."""
        with self._held() as cuda, cuda.current():
            return {part: self._inspect(engine) for part, engine in self._engines.items()}

    def _inspect(self, engine: Any) -> dict[str, int]:
        inspector = engine.create_engine_inspector()
        text = None if inspector is None else inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        return count_precisions(text or "")

    def close(self) -> None:
        """May be called twice. Order: contexts, engines, runtime, buffers, stream, CUDA context."""
        with self._lock:
            cuda, self._cuda = self._cuda, None
            if cuda is None:
                return
            atexit.unregister(self.close)
            try:
                with cuda.current():
                    self._contexts.clear()
                    self._engines.clear()
                    self._runtime = None
                    for buffers in self._buffers.values():
                        for buffer in buffers.values():
                            buffer.free()
                        buffers.clear()
                    if self._stream is not None:
                        self._stream.free()
            finally:
                cuda.close()


def _check(name: str, array: F32, shape: tuple[int, ...]) -> None:
    """Before INT8 turns what is not finite into a number that is."""
    if array.dtype != np.float32 or array.shape != shape:
        raise EngineError(f"{name}: expected float32 of shape {shape}, got {array.dtype} of shape {array.shape}")
    if not np.isfinite(array).all():
        raise EngineError(f"{name} hold values that are not finite; the preprocessing or the memory is damaged")


def count_precisions(text: str) -> dict[str, int]:
    """Layers by the narrowest type among their inputs and outputs, from the inspector's JSON (its fields: from memory)."""
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    counts: dict[str, int] = {}
    for layer in layers if isinstance(layers, list) else []:
        ends = [*layer.get("Inputs", []), *layer.get("Outputs", [])] if isinstance(layer, dict) else []
        said = " ".join(str(end) for end in ends).lower()
        kind = next((name for name, words in _TYPE_WORDS.items() if any(word in said for word in words)), "other")
        counts[kind] = counts.get(kind, 0) + 1
    return counts


_TYPE_WORDS = {"int8": ("int8",), "fp16": ("fp16", "half"), "fp32": ("fp32", "float")}
