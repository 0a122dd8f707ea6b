"""ONNX -> plan, on the device that will run it, through one code path for TensorRT 8.6 to 11.4.

None of this has run on a GPU yet: it is tested through a stand-in `tensorrt` whose names are those of each release.
Unproven on hardware: build time and memory, whether 10.3 takes the graphs strongly typed, what the inspector says.

No DLA: Orin Nano and Thor have none, and it would hand attention and normalisation back to the GPU anyway.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from engines.cuda import Cuda
from engines.errors import EngineError
from engines.recipe import OPT_LEVEL, STRONG, Recipe, version

OLDEST = (8, 6)

SAID_EVERY_S = 0.5
"""How often a build tells how far it is."""

Say = Callable[[str], None]


class NotInstalled(EngineError):
    """A package is missing on this machine; the message names it."""


class BuildError(EngineError):
    """TensorRT made no plan of this graph."""


def import_tensorrt() -> Any:
    """The one place that imports it. Raises NotInstalled."""
    try:
        import tensorrt
    except (ImportError, OSError) as e:  # OSError: its libraries are missing
        raise NotInstalled(f"tensorrt cannot be imported ({e}): on a Jetson sudo apt-get install python3-libnvinfer and make "
                           "the venv with --system-site-packages (a wheel from pip does not fit); elsewhere use --backend "
                           "onnxruntime") from e
    if version(tensorrt)[:2] < OLDEST:
        raise NotInstalled(f"TensorRT {tensorrt.__version__} is older than 8.6, the oldest that is supported; update JetPack, "
                           "or use --backend onnxruntime")
    return tensorrt


@functools.cache
def logger(trt: Any) -> Any:
    """One per process and never freed: TensorRT keeps a bare pointer to it."""
    return trt.Logger(trt.Logger.WARNING)


@dataclass(frozen=True)
class Built:
    """timing: the timing cache as TensorRT serialised it, empty where it gave none. timing_refused: the old one was not used.
    """

    data: bytes
    timing: bytes
    timing_refused: bool
    seconds: float


def build(trt: Any, cuda: Cuda, onnx: bytes, recipe: Recipe, timing: bytes = b"", say: Say = lambda text: None) -> Built:
    """A plan of this ONNX. timing: a timing cache of an earlier build, or nothing. say: told how far it is, about twice a
    second, from the calling thread.

    Raises BuildError, and KeyboardInterrupt once the builder has let go. The builder works in a thread of its own, so that
    this one can say how long it takes (8.6 has no progress monitor) and hear Ctrl-C.
    """
    watch = _watch(trt)
    begun_s = time.monotonic()
    interrupted = False
    with ThreadPoolExecutor(1, "physvlm-build") as pool:
        work = pool.submit(_build_here, trt, cuda, onnx, recipe, timing, watch)
        while not work.done():
            try:
                wait([work], SAID_EVERY_S)
                say(f"{recipe.part} {recipe.precision}: {watch.text()}, {time.monotonic() - begun_s:.0f} s")
            except KeyboardInterrupt:
                interrupted = watch.cancelled = True
                say(f"{recipe.part} {recipe.precision}: interrupted; TensorRT finishes its step first")
    if interrupted:
        raise KeyboardInterrupt
    return Built(*work.result(), time.monotonic() - begun_s)


def _build_here(trt: Any, cuda: Cuda, onnx: bytes, recipe: Recipe, timing: bytes,
                watch: _Watch) -> tuple[bytes, bytes, bool]:
    with cuda.current():
        try:
            return _build(trt, onnx, recipe, timing, watch)
        except EngineError as e:
            raise bare(e)  # noqa: B904 - the same error


def _build(trt: Any, onnx: bytes, recipe: Recipe, timing: bytes, watch: _Watch) -> tuple[bytes, bytes, bool]:
    builder = network = parser = config = cache = data = None
    try:
        builder = made("builder", trt.Builder, logger(trt))
        network = made("network", builder.create_network, _network_flags(trt, recipe))
        parser = made("ONNX parser", trt.OnnxParser, network, logger(trt))
        _parse(parser, onnx, recipe)
        config = made("builder configuration", builder.create_builder_config)
        _configure(trt, builder, network, config, recipe)
        cache, refused = _timing_cache(config, timing)
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = watch
        data = builder.build_serialized_network(network, config)
        if data is None:
            raise BuildError(
                f"TensorRT {trt.__version__} made no plan of the {recipe.part} in {recipe.precision}, {recipe.typing}ly typed; "
                "its own lines say why. If memory ran out: end other programs, start without a desktop, add swap, or give a "
                f"smaller --workspace-mb than {recipe.workspace_mb}")
        serialised = None if cache is None else cache.serialize()
        return bytes(data), b"" if serialised is None else bytes(serialised), refused
    finally:
        # in this order; left alone, the frame would free the builder first
        data = cache = config = parser = network = builder = None


def bare(error: EngineError) -> EngineError:
    """The error without the frames that it and its causes came through: those hold TensorRT's and CUDA's objects, which must
    go while the context is current, and in their order."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


def made(name: str, make: Callable[..., Any], *args: Any) -> Any:
    """What one of TensorRT's functions makes. Raises EngineError where it gives None, or no object at all (TypeError)."""
    try:
        thing = make(*args)
    except (TypeError, RuntimeError) as e:
        raise EngineError(f"TensorRT gave no {name}: {e}") from e
    if thing is None:
        raise EngineError(f"TensorRT gave no {name}; its own lines say why: out of memory, or a library that is not complete")
    return thing


def _network_flags(trt: Any, recipe: Recipe) -> int:
    """Always through the enumeration, whose numbers move between releases, and only where a name still means something."""
    known = trt.NetworkDefinitionCreationFlag
    if version(trt) < (10,):
        return 1 << int(known.EXPLICIT_BATCH)
    if recipe.typing == STRONG and hasattr(known, "STRONGLY_TYPED"):
        return 1 << int(known.STRONGLY_TYPED)
    return 0


def _parse(parser: Any, onnx: bytes, recipe: Recipe) -> None:
    if parser.parse(onnx):
        return
    errors = (parser.get_error(i) for i in range(parser.num_errors))
    said = "; ".join(" ".join(str(e).split()) for e in errors) or "it does not say why"
    raise BuildError(f"TensorRT cannot read the ONNX of the {recipe.part} in {recipe.precision}: {said[:600]}")


def _configure(trt: Any, builder: Any, network: Any, config: Any, recipe: Recipe) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mb << 20)
    config.builder_optimization_level = OPT_LEVEL
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the inspector tells no precisions
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and leaves 10 bits of mantissa for the head's matrix products
    if version(trt) < (11,) and recipe.flags:  # later releases know neither the flags nor a layer's precision
        for name in recipe.flags:
            config.set_flag(getattr(trt.BuilderFlag, name))
        _keep_fp32(trt, network, recipe.part)
    if recipe.profile:
        shapes = made("optimisation profile", builder.create_optimization_profile)
        for name, shape in recipe.profile.items():
            shapes.set_shape(name, shape, shape, shape)
        if config.add_optimization_profile(shapes) < 0:
            raise BuildError(f"TensorRT refuses the fixed input shapes {recipe.profile} of the {recipe.part}")


def _keep_fp32(trt: Any, network: Any, part: str) -> None:
    """Weakly typed alone: what the graph computes in FP32 stays so, but for convolutions (and the stem's ReLUs, which fuse
    with them). Normalisation, logarithms, matrix products over time and the plain cell means keep their bits that way."""
    kinds = trt.LayerType
    free = {kinds.CONVOLUTION, kinds.QUANTIZE, kinds.DEQUANTIZE, kinds.CONSTANT, kinds.SHAPE, kinds.CAST}
    if part == "stem":
        free.add(kinds.ACTIVATION)
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        outputs = [layer.get_output(j) for j in range(layer.num_outputs)]
        floats = all(o is not None and o.dtype == trt.DataType.FLOAT for o in outputs)
        if layer.type not in free and floats and hasattr(layer, "precision"):
            layer.precision = trt.DataType.FLOAT
            for j in range(layer.num_outputs):
                layer.set_output_type(j, trt.DataType.FLOAT)


def _timing_cache(config: Any, timing: bytes) -> tuple[Any, bool]:
    """The cache that the builder uses, and whether it refused the old one (another release or device made it)."""
    for content in (timing, b"") if timing else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache, bool(timing) and not content
    return None, bool(timing)


class _Watch:
    """How far the builder is. TensorRT calls the phase_ and step_ functions from several of its threads."""

    def __init__(self) -> None:
        self.cancelled = False
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[int, int]] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._phases[phase_name] = (0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """False asks TensorRT to give up."""
        with self._lock:
            if phase_name in self._phases:
                self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
        return not self.cancelled

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._phases.pop(phase_name, None)

    def text(self) -> str:
        """The outermost phase, which began first."""
        with self._lock:
            name, (done, steps) = next(iter(self._phases.items()), ("building", (0, 0)))
        return f"{name} {done}/{steps}" if steps else name


def _watch(trt: Any) -> _Watch:
    """A monitor that TensorRT takes where it has such a thing (10.0 on); it lives until `build` ends, after the builder."""
    if not hasattr(trt, "IProgressMonitor"):
        return _Watch()

    class Monitor(_Watch, trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            _Watch.__init__(self)

    return Monitor()
