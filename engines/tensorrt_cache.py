"""The engines of this device: found in the cache folder, built where they do not fit, proven at every start.

What is built depends on everything in `engines.recipe.components`; the file is `engines.plan`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines import plan
from engines.cuda import Cuda
from engines.errors import EngineError
from engines.parity import Agreement, load_fixture, verify
from engines.plan import Plan, PlanError, PlanMismatch, PlanMissing
from engines.recipe import PARTS, WORKSPACE_MB, Recipe, artefact, components, power_mode, profile, typings
from engines.sidecar import ModelSpec
from engines.tensorrt_backend import TensorRtEngine
from engines.tensorrt_build import Say, build, import_tensorrt

log = logging.getLogger("physvlm.engine")

TIMING_CACHE = "timing.cache"

Prove = Callable[[TensorRtEngine, str], Agreement]


def open_engine(spec: ModelSpec, precision: str, folder: Path, *, make: bool = False, rebuild: bool = False,
                workspace_mb: int | None = None, via: str | None = None, say: Say | None = None) -> TensorRtEngine:
    """The student in this precision from the plans in the cache folder, proven by the parity fixture.

    make: build plans that are not there (else EngineError says how). rebuild: do not even look at those that are.
    workspace_mb, via: None = as the plans there were built. say: told how far a build is, about twice a second.
    Plans of another device, release or student are built anew, with the reason in the log. Raises EngineError, and
    SidecarError for a precision that the bundle lacks.
    """
    trt = import_tensorrt()
    prove = _proof(spec, precision)
    with closing(Cuda()) as cuda:  # held all along: the engines open it a second time, which is cheap then
        cache = _Cache(spec, precision, folder, cuda, trt, workspace_mb, via)
        why = "asked for"
        if not rebuild:
            try:
                return cache.open(prove)
            except PlanMissing as e:
                if not make:
                    raise EngineError(f"{e}; build it on this device: physvlm prepare --precision {precision} --cache "
                                      f"{folder}") from e
                why = str(e)
            except PlanMismatch as e:
                why = str(e)
        log.info("%s in %s has to be built: %s", spec.name, precision, why)
        plan.trusted_folder(folder, make=True)
        with plan.locked(folder, log.warning):
            if not rebuild:
                try:
                    return cache.open(prove)  # another process may have built it meanwhile
                except (PlanMissing, PlanMismatch) as e:
                    log.debug("still: %s", e)
            return cache.build(prove, say or _seldom())


def _proof(spec: ModelSpec, precision: str) -> Prove:
    """The parity check of this precision, before anything costs time. Raises EngineError where the bundle has none."""
    tolerance = spec.tolerances.get(precision)
    if spec.parity is None or tolerance is None:
        raise EngineError(f"{spec.folder}: no parity fixture or no tolerance for {precision}, so no engine of it can be "
                          "proven; quantize the weights again, or use --backend onnxruntime")
    fixture = load_fixture(spec.parity)
    return lambda engine, what: verify(engine, fixture, tolerance, what)


def _seldom(every_s: float = 15.0) -> Say:
    said_s = time.monotonic()

    def say(text: str) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= every_s:
            said_s = time.monotonic()
            log.info("building %s", text)

    return say


class _Cache:
    """One precision of the student in the cache folder; see `open_engine`."""

    def __init__(self, spec: ModelSpec, precision: str, folder: Path, cuda: Cuda, trt: Any, workspace_mb: int | None,
                 via: str | None) -> None:
        self._spec, self._precision, self._folder, self._cuda, self._trt = spec, precision, folder, cuda, trt
        self._workspace_mb, self._via = workspace_mb, via
        self._onnx = {part: spec.path(part, artefact(trt, precision)).read_bytes() for part in PARTS}

    def _path(self, part: str) -> Path:
        return self._folder / f"{self._spec.name}_{self._precision}_{part}.plan"

    def _components(self, recipe: Recipe) -> dict[str, Any]:
        return components(self._trt, self._cuda.facts, self._onnx[recipe.part], recipe)

    def _recipe(self, part: str, typing: str, workspace_mb: int, via: str) -> Recipe:
        return Recipe(part, self._precision, typing, workspace_mb, via, profile(self._spec, part))

    def _read(self, part: str) -> Plan:
        """Raises PlanMissing, PlanMismatch with the reason, and PlanError for a plan that is not to be trusted."""
        found = plan.read(self._path(part), part, self._precision)
        built = found.components
        via = self._via or str(built.get("via"))
        allowed = typings(self._trt, via)
        typing = built.get("typing")
        self._workspace_mb = self._workspace_mb or built.get("workspace_mb", WORKSPACE_MB)
        # the mode that a fallback arrived at is as good as the first choice; anything else must be as it would be built now
        plan.check(found, self._components(self._recipe(part, typing if typing in allowed else allowed[0],
                                                        self._workspace_mb, via)))
        return found

    def open(self, prove: Prove) -> TensorRtEngine:
        """From the plans that are there. Raises as `_read`, and EngineError where they do not run or not prove themselves."""
        plan.trusted_folder(self._folder)
        plans = {part: self._read(part) for part in PARTS}
        mode, now = plans["stem"].notes.get("power_mode", ""), power_mode()
        if mode != now:
            log.warning("the plans were timed in power mode %s, this is %s; physvlm prepare --rebuild times them anew",
                        mode or "unknown", now or "unknown")
        try:
            engine = self._engine({part: found.data for part, found in plans.items()})
        except EngineError as e:
            raise EngineError(f"{self._path('stem')} and {self._path('head').name} do not run here: {e}; build them anew with "
                              "physvlm prepare --rebuild") from e
        self._proven(engine, prove, f"the engine in {self._path('stem')} and {self._path('head').name}")
        return engine

    def _engine(self, data: Mapping[str, bytes]) -> TensorRtEngine:
        return TensorRtEngine(self._spec, data, Cuda(), self._trt)

    def _proven(self, engine: TensorRtEngine, prove: Prove, what: str) -> Agreement:
        with ExitStack() as unless_proven:
            unless_proven.callback(engine.close)
            agreement = prove(engine, what)
            unless_proven.pop_all()
        return agreement

    def build(self, prove: Prove, say: Say) -> TensorRtEngine:
        """Builds, proves, and only then keeps. Call it under the folder's lock."""
        via = self._via or "onnx"
        modes = typings(self._trt, via)
        for typing in modes:
            recipes = {part: self._recipe(part, typing, self._workspace_mb or WORKSPACE_MB, via) for part in PARTS}
            try:
                data = {part: self._build_part(recipe, say) for part, recipe in recipes.items()}
                engine = self._engine(data)
                agreement = self._proven(engine, prove, f"what TensorRT {self._trt.__version__} built in {self._precision}, "
                                                        f"{typing}ly typed,")
            except EngineError as e:
                if typing == modes[-1]:
                    raise
                log.warning("%s; building with weak typing instead", e)
                continue
            with ExitStack() as unless_kept:
                unless_kept.callback(engine.close)
                self._keep(recipes, data, engine.layers(), agreement)
                unless_kept.pop_all()
            return engine
        raise EngineError("no typing mode to build in")

    def _build_part(self, recipe: Recipe, say: Say) -> bytes:
        if recipe.via == "torch2trt":
            from engines.torch2trt_builder import build as build_torch2trt

            return build_torch2trt(self._spec, recipe.part, recipe.precision, workspace_mb=recipe.workspace_mb)
        path, machine = self._folder / TIMING_CACHE, {"tensorrt": self._trt.__version__, "device": self._cuda.facts.name}
        timing = b""
        try:
            found = plan.read(path, "timing", "any")
            plan.check(found, machine)
            timing = found.data
        except PlanMissing:
            log.debug("no timing cache yet")
        except PlanError as e:
            log.info("the timing cache is not used: %s", e)
        built = build(self._trt, self._cuda, self._onnx[recipe.part], recipe, timing, say)
        if built.timing_refused:
            log.info("the timing cache is not used: TensorRT refuses it")
        if built.timing:
            plan.write(path, Plan("timing", "any", machine, built.timing))
        log.info("built the %s in %s, %sly typed, in %.0f s", recipe.part, recipe.precision, recipe.typing, built.seconds)
        return built.data

    def _keep(self, recipes: Mapping[str, Recipe], data: Mapping[str, bytes], layers: Mapping[str, Any],
              agreement: Agreement) -> None:
        for part, recipe in recipes.items():
            notes = {"power_mode": power_mode(), "layers": layers[part], "agreement": asdict(agreement),
                     "built_unix_s": round(time.time())}
            plan.write(self._path(part), Plan(part, self._precision, self._components(recipe), data[part], notes))
