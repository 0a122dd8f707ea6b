"""Another way to a plan: NVIDIA-AI-IOT's torch2trt, where it can be imported (`physvlm prepare --via torch2trt`).

torch2trt runs the torch student once and puts a TensorRT layer in the place of each torch function that it knows. The ONNX way
needs nothing but TensorRT, keeps TF32 off and the head in FP32, and has its INT8 scales in the file; this one needs PyTorch
with CUDA and the onnx package on the device, and can do none of that. It is here for those who have torch2trt in use.

Written against torch2trt 0.5.0 (May 2024, its last release). None of it has run on a GPU: it is tested through a stand-in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.parity import Fixture, load_fixture
from engines.recipe import BATCH, WORKSPACE_MB
from engines.sidecar import ModelSpec
from engines.tensorrt_build import import_tensorrt

if TYPE_CHECKING:
    from torch import Tensor, nn

F32 = NDArray[np.float32]

INPUTS = {"stem": ["frames"], "head": ["features", "mask"]}
OUTPUTS = {"stem": ["features"], "head": ["waves", "presence", "attention"]}

LEAST_CALIBRATION_FRAMES = 256
"""Fewer say too little of how large activations become; the lab's own calibration takes 256 clips."""

INSTEAD = "leave --via out: the default builds from ONNX and needs neither torch nor torch2trt"


class Torch2trtError(EngineError):
    """torch2trt cannot make this plan here; the message says why and what to do instead."""


def build(spec: ModelSpec, part: str, precision: str, *, workspace_mb: int = WORKSPACE_MB, calibration: F32 | None = None,
          device: str = "cuda") -> bytes:
    """The serialised engine of 'stem' or 'head' in fp32, fp16 or int8 (the stem's; the head is FP16 then).

    calibration: normalised frames (n, channels, size, size), for INT8 alone, at least LEAST_CALIBRATION_FRAMES. workspace_mb:
    torch2trt heeds it before TensorRT 10 only. Raises EngineError; the caller still has to prove the engine by its parity.
    """
    trt = import_tensorrt()
    torch, torch2trt = _import_torch2trt(trt, device)
    batches = _batches(trt, calibration) if (part, precision) == ("stem", "int8") else None
    module = load_part(spec, part).to(device)
    inputs = [torch.zeros(shape, device=device) for shape in _shapes(spec, part)]
    register_converters(torch, torch2trt, trt)
    missing = without_converter(functions_used(module, inputs), torch2trt.CONVERTERS)
    if missing:
        raise Torch2trtError(f"torch2trt {_version(torch2trt)} has no converter for {', '.join(missing)}, which the student's "
                             f"{part} needs; {INSTEAD}")
    asked: dict[str, Any] = {"fp16_mode": precision != "fp32", "max_workspace_size": workspace_mb << 20}
    if batches is not None:
        asked |= {"int8_mode": True, "int8_calib_dataset": [[torch.from_numpy(each).to(device)] for each in batches]}
    try:
        with torch.no_grad():
            made = torch2trt.torch2trt(module, inputs, input_names=INPUTS[part], output_names=OUTPUTS[part], **asked)
    except (AssertionError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise Torch2trtError(f"torch2trt {_version(torch2trt)} failed on the student's {part}: {e!r}; {INSTEAD}") from e
    engine = getattr(made, "engine", None)
    plan = None if engine is None else engine.serialize()
    if plan is None:
        raise Torch2trtError(f"torch2trt made no engine of the student's {part} in {precision}; TensorRT's own lines say why; "
                             f"{INSTEAD}")
    return bytes(plan)


def _import_torch2trt(trt: Any, device: str) -> tuple[Any, Any]:
    try:
        import torch
    except ImportError as e:
        raise Torch2trtError(f"--via torch2trt needs PyTorch with CUDA on this device ({e}); {INSTEAD}") from e
    if device == "cuda" and not torch.cuda.is_available():
        raise Torch2trtError(f"PyTorch {torch.__version__} sees no CUDA device, and torch2trt needs one: install NVIDIA's "
                             f"build for this JetPack, or {INSTEAD}")
    try:
        import torch2trt
    except ModuleNotFoundError as e:
        raise Torch2trtError(f"--via torch2trt needs torch2trt ({e}): install it from its source tree, or {INSTEAD}") from e
    except (ImportError, AttributeError) as e:
        raise Torch2trtError(f"torch2trt cannot be imported with TensorRT {trt.__version__} ({e}): its last release is of 2024 "
                             f"and names INT8 calibrators, which TensorRT 11 no longer has; {INSTEAD}") from e
    return torch, torch2trt


def _version(torch2trt: Any) -> str:
    return str(getattr(torch2trt, "__version__", "of unknown version"))


def _shapes(spec: ModelSpec, part: str) -> list[tuple[int, ...]]:
    if part == "stem":
        return [(BATCH, spec.channels, spec.size, spec.size)]
    return [(1, spec.window, spec.cells, spec.features), (1, spec.window)]


def _batches(trt: Any, calibration: F32 | None) -> list[F32]:
    """Whole batches of the calibration frames: what is left over fills the last one up from the beginning."""
    if not hasattr(trt, "IInt8Calibrator"):
        raise Torch2trtError(f"TensorRT {trt.__version__} has no INT8 calibrators (they went with 11.0), and torch2trt knows "
                             f"no other way to INT8; use --precision fp16, or {INSTEAD}")
    n = 0 if calibration is None else len(calibration)
    if calibration is None or n < LEAST_CALIBRATION_FRAMES:
        raise Torch2trtError(f"torch2trt measures INT8 scales on this device: expected at least {LEAST_CALIBRATION_FRAMES} "
                             f"calibration frames, got {n}; use --precision fp16, or {INSTEAD}, and has its scales in the file")
    order = np.arange(-(-n // BATCH) * BATCH) % n
    return [calibration[order[i:i + BATCH]] for i in range(0, len(order), BATCH)]


# --- the torch student, from the ONNX file that is shipped


def load_part(spec: ModelSpec, part: str) -> nn.Module:
    """engines/student.py's stem or head with the weights of the FP32 ONNX file, proven by the parity fixture; on the CPU.

    No checkpoint is needed: the exporter keeps the parameters' names. Raises Torch2trtError.
    """
    try:
        import onnx
    except ImportError as e:
        raise Torch2trtError(f"--via torch2trt reads the weights with the onnx package ({e}): pip install onnx, or "
                             f"{INSTEAD}") from e
    import torch

    from engines.student import Student, StudentConfig

    if spec.parity is None:
        raise Torch2trtError(f"{spec.folder}: no parity fixture, so the torch student cannot be proven; quantize the weights "
                             "again")
    graph = onnx.load(str(spec.path(part, "fp32"))).graph
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    fed = {node.name: [arrays[name] for name in node.input if name in arrays] for node in graph.node}
    module: nn.Module = getattr(Student(StudentConfig(fs_hz=spec.fs_hz, window=spec.window, size=spec.size,
                                                      channels=spec.channels, features=spec.features)), part)
    found = {name: _parameter(name, arrays, fed) for name in module.state_dict()}
    wrong = [name for name, tensor in module.state_dict().items()
             if (array := found[name]) is None or array.shape != tuple(tensor.shape)]
    if wrong:
        raise Torch2trtError(f"{spec.path(part, 'fp32').name} is not of the student that engines/student.py defines: "
                             f"{', '.join(wrong)} missing or of another shape; {INSTEAD}")
    module.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in found.items()})
    _prove(module.eval(), part, load_fixture(spec.parity))
    return module


def _parameter(name: str, arrays: dict[str, F32], fed: dict[str, list[F32]]) -> F32 | None:
    """A parameter by its name, or, where the exporter folded it into a constant, from the node that the constant feeds."""
    if name in arrays:
        return arrays[name]
    owner, _, last = name.rpartition(".")
    path = "/" + owner.replace(".", "/").replace("heads/", "heads.").replace("attend/", "attend.")
    if last == "weight" and len(fed.get(f"{path}/MatMul", [])) == 1:
        return fed[f"{path}/MatMul"][0].T
    if last == "depth" and len(fed.get(f"{path}/Sigmoid", [])) == 1:
        return fed[f"{path}/Sigmoid"][0] / np.float32(4)  # LeakGate multiplies its depth by 4
    return None


def _prove(module: nn.Module, part: str, fixture: Fixture) -> None:
    import torch

    from engines.export import AGREEMENT

    with torch.no_grad():
        if part == "stem":
            found, expected = module(torch.from_numpy(fixture.frames)).numpy(), fixture.features
        else:
            waves, _, _ = module(torch.from_numpy(fixture.windows), torch.from_numpy(fixture.masks))
            found, expected = waves.numpy(), fixture.waves
    worst = float(np.abs(found - expected).max())
    if not worst <= AGREEMENT:
        raise Torch2trtError(f"the torch student made of the {part}'s ONNX file differs from it by {worst:.2g}, more than "
                             f"{AGREEMENT}; {INSTEAD}")


# --- which torch functions torch2trt must know

_OPERATORS = {"add": "add", "sub": "sub", "mul": "mul", "div": "truediv", "matmul": "matmul", "pow": "pow", "neg": "neg"}
"""Methods of a tensor that `a + b` and the like call, and the operator that torch2trt hooks for them."""


def functions_used(module: nn.Module, inputs: Iterable[Tensor]) -> set[str]:
    """Names of the torch functions that the module calls, as torch2trt names them. Reading a property is none."""
    import torch
    from torch.overrides import TorchFunctionMode, resolve_name

    seen = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(resolve_name(func) or str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Watch():
        module(*inputs)
    return {_hooked(name) for name in seen if name.startswith("torch.") and not name.endswith(".__get__")}


def _hooked(name: str) -> str:
    owner, _, last = name.rpartition(".")
    return f"{owner}.__{_OPERATORS[last]}__" if owner == "torch.Tensor" and last in _OPERATORS else name


def without_converter(used: Collection[str], converters: dict[str, dict[str, Any]]) -> list[str]:
    """torch2trt lists every torch function, but what it cannot convert is not `is_real`."""
    return sorted(name for name in used if not converters.get(name, {}).get("is_real"))


# --- converters that the student needs and torch2trt lacks, or has for narrower cases


def register_converters(torch: Any, torch2trt: Any, trt: Any) -> None:
    """torch.softmax and Tensor.norm are not in 0.5.0; its sum and mean take no negative axis, its matmul no unequal ranks."""

    def axes_of(dim: Any, ndim: int) -> int:
        dims = range(ndim) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
        return sum(1 << (int(each) % ndim) for each in dims)

    def reduce(ctx: Any, operation: Any, square: bool = False) -> None:
        source = ctx.method_args[0]
        dim, keep = (torch2trt.get_arg(ctx, name, pos=at + square, default=default)
                     for name, at, default in (("dim", 1, None), ("keepdim", 2, False)))
        (tensor,) = torch2trt.add_missing_trt_tensors(ctx.network, [source])
        if square:
            tensor = ctx.network.add_elementwise(tensor, tensor, trt.ElementWiseOperation.PROD).get_output(0)
        layer = ctx.network.add_reduce(tensor, operation, axes_of(dim, source.dim()), bool(keep))
        if square:
            layer = ctx.network.add_unary(layer.get_output(0), trt.UnaryOperation.SQRT)
        ctx.method_return._trt = layer.get_output(0)

    @torch2trt.tensorrt_converter("torch.sum")
    @torch2trt.tensorrt_converter("torch.Tensor.sum")
    def convert_sum(ctx: Any) -> None:
        reduce(ctx, trt.ReduceOperation.SUM)

    @torch2trt.tensorrt_converter("torch.mean")
    @torch2trt.tensorrt_converter("torch.Tensor.mean")
    def convert_mean(ctx: Any) -> None:
        reduce(ctx, trt.ReduceOperation.AVG)

    @torch2trt.tensorrt_converter("torch.Tensor.norm")
    def convert_norm(ctx: Any) -> None:
        if torch2trt.get_arg(ctx, "p", pos=1, default="fro") not in ("fro", 2):
            raise NotImplementedError("a norm other than the Euclidean one")
        reduce(ctx, trt.ReduceOperation.SUM, square=True)

    @torch2trt.tensorrt_converter("torch.softmax")
    def convert_softmax(ctx: Any) -> None:
        source = ctx.method_args[0]
        (tensor,) = torch2trt.add_missing_trt_tensors(ctx.network, [source])
        layer = ctx.network.add_softmax(tensor)
        layer.axes = axes_of(torch2trt.get_arg(ctx, "dim", pos=1, default=None), source.dim())
        ctx.method_return._trt = layer.get_output(0)

    @torch2trt.tensorrt_converter("torch.matmul")
    @torch2trt.tensorrt_converter("torch.Tensor.__matmul__")
    def convert_matmul(ctx: Any) -> None:
        ndim = max(each.dim() for each in ctx.method_args[:2])
        if min(each.dim() for each in ctx.method_args[:2]) < 2:
            raise NotImplementedError("a matrix product with a vector")
        first, second = (_with_rank(ctx, torch2trt, each, ndim) for each in ctx.method_args[:2])
        plain = trt.MatrixOperation.NONE
        ctx.method_return._trt = ctx.network.add_matrix_multiply(first, plain, second, plain).get_output(0)


def _with_rank(ctx: Any, torch2trt: Any, source: Any, ndim: int) -> Any:
    """A tensor's TensorRT twin with ones put before its shape, as torch does; TensorRT wants equal ranks."""
    twin = getattr(source, "_trt", None)
    if twin is None:  # made here: torch2trt strips leading ones from a constant's shape
        array = np.ascontiguousarray(source.detach().cpu().numpy())  # a transposed one would be read in its old order
        return ctx.network.add_constant((1,) * (ndim - source.dim()) + tuple(source.shape), array).get_output(0)
    return torch2trt.broadcast_trt_tensors(ctx.network, [twin], ndim)[0]
