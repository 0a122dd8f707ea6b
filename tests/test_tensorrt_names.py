"""Every name of TensorRT's that the device's code uses is there in every claimed release, or is asked for before it is used.

How a name finds its class is told in tensorrt_walk.py: keep to its naming convention in code that touches TensorRT.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import fake_tensorrt, fake_tensorrt_native
from tests.tensorrt_table import ENUMS, OWNERS, RELEASES, values, where
from tests.tensorrt_walk import Walk, faults, flags_defined

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
           for folder in ("engines", "edge") for path in sorted((ROOT / folder).rglob("*.py"))}
FLAGS = flags_defined(ast.parse(source) for source in SOURCES.values())
WALKS = {name: walk for name, source in SOURCES.items() if (walk := Walk(source, FLAGS)).uses or walk.problems}
USED = sorted({(use.owner, use.name) for walk in WALKS.values() for use in walk.uses})


@pytest.mark.parametrize("name", WALKS)
def test_every_tensorrt_name_is_in_every_claimed_release_or_asked_for(name):
    assert faults(WALKS[name]) == []


def test_the_check_looks_at_the_code_that_builds_and_runs_engines():
    assert {"engines/tensorrt_build.py", "engines/tensorrt_backend.py"} <= set(WALKS)
    assert len(USED) > 40
    assert {("Builder", "build_serialized_network"), ("IBuilderConfig", "progress_monitor"), ("BuilderFlag", "FP16"),
            ("IExecutionContext", "execute_async_v3"), ("BuilderFlag", "TF32"), ("ILayer", "precision")} <= set(USED)


def of(source: str) -> list[str]:
    return [fault.split(": ", 1)[1] for fault in faults(Walk(source, frozenset({"FP16", "INT8"})))]


@pytest.mark.parametrize(("source", "fault"), [
    ("def f(trt):\n trt.Bilder", "trt.Bilder: in no release"),
    ("import tensorrt as t\nt.Bilder", "trt.Bilder: in no release"),
    ("def f(trt):\n trt.BuilderFlag.FP61", "trt.BuilderFlag.FP61: in no release"),
    ("def f(trt):\n trt.BuilderFlag.FP16", "trt.BuilderFlag.FP16: not in 11.0.0, 11.4.0"),
    ("def f(trt):\n trt.IProgressMonitor", "trt.IProgressMonitor: not in 8.6.1;"),
    ("def f(trt, x):\n builder = trt.Builder(x)\n builder.build_engine(x)", "trt.Builder.build_engine: not in 10.3.0, 10.7.0"),
    ("def f(trt, x):\n b = trt.Builder(x)\n b.max_batch_size = 1", "trt.Builder.max_batch_size: not in"),
    ("def f(trt, x):\n with trt.Builder(x) as b, b.create_network(1) as n:\n  n.num_leyers",
     "trt.INetworkDefinition.num_leyers: in no release"),
    ("def f(trt, engine):\n engine.num_bindings", "trt.ICudaEngine.num_bindings: not in 10.3.0"),
    ("class A:\n def __init__(self, trt, p):\n  self._e = trt.Runtime(p).deserialize_cuda_engine(p)\n"
     " def g(self):\n  return self._e.num_bindings", "trt.ICudaEngine.num_bindings: not in"),
    ("def f(trt: Any, engines: dict):\n engines['a'].num_bindings", "trt.ICudaEngine.num_bindings: not in"),
    ("def f(trt, network):\n [x.precision for x in (network.get_layer(i) for i in range(3))]", "trt.ILayer.precision: not in"),
    ("def f(trt, parser):\n e = parser.get_error(0)\n e.node_name()", "trt.ParserError.node_name: not in 8.6.1"),
    ("def f(trt):\n return 1 if hasattr(trt.BuilderFlag, 'FP61') else 0", "trt.BuilderFlag.FP61: in no release"),
    ("def f(trt):\n getattr(trt.BuilderFlag, 'FP61', None)", "trt.BuilderFlag.FP61: in no release"),
    ("def f(trt):\n getattr(trt.BuilderFlag, 'FP16')", "trt.BuilderFlag.FP16: not in 11.0.0"),
    ("def f(trt, recipe):\n for n in recipe.flags:\n  getattr(trt.BuilderFlag, n)", "trt.BuilderFlag.FP16: not in 11.0.0"),
    ("def f(trt):\n for n in ('FP16', 'FP61'):\n  getattr(trt.BuilderFlag, n, 0)", "trt.BuilderFlag.FP61: in no release"),
    ("def f(trt, n):\n getattr(trt.BuilderFlag, n, 0)", "cannot tell which names getattr asks for"),
    ("def f(trt, net: Any):\n net.get_layer(0)", "cannot tell what .get_layer belongs to"),
    ("def f(trt):\n trt.ActivationType.RELU", "trt.ActivationType.RELU: the table knows no members"),
    ("def f(trt, config):\n if not hasattr(trt, 'IProgressMonitor'):\n  config.progress_monitor = 1", "monitor: not in 8.6.1"),
    ("def f(trt, config):\n if x or hasattr(trt, 'IProgressMonitor'):\n  config.progress_monitor = 1", "monitor: not in 8.6.1"),
    ("def f(trt):\n if version(trt) < (11,):\n  trt.BuilderFlag.FP8\n trt.BuilderFlag.BF16", "BuilderFlag.BF16: not in 8.6.1"),
])
def test_the_check_itself_finds_a_wrong_name(source, fault):
    assert any(fault in each for each in of(source))


@pytest.mark.parametrize("source", [
    "def f(trt):\n if hasattr(trt.BuilderFlag, 'FP16'):\n  trt.BuilderFlag.FP16",
    "def f(trt):\n if not hasattr(trt.BuilderFlag, 'FP16'):\n  return\n trt.BuilderFlag.FP16",
    "def f(trt):\n return trt.BuilderFlag.FP16 if hasattr(trt.BuilderFlag, 'FP16') else None",
    "def f(trt):\n return hasattr(trt.BuilderFlag, 'FP16') and trt.BuilderFlag.FP16",
    "def f(trt, config):\n if hasattr(trt, 'IProgressMonitor'):\n  config.progress_monitor = 1",
    "def f(trt, config):\n monitor = getattr(trt, 'IProgressMonitor', None)\n if monitor is not None:\n"
    "  config.progress_monitor = monitor()",
    "def f(trt):\n if version(trt) < (10,):\n  return trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH\n"
    " trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "def f(trt):\n try:\n  trt.CalibrationAlgoType\n except AttributeError:\n  pass",
    "def f(trt, recipe):\n for n in recipe.flags:\n  getattr(trt.BuilderFlag, n, None)",
    "def f(trt, engine: Engine):\n engine.stem",
    "def f(trt, x):\n engine = Engine(x)\n engine.stem",
    "def f(engine):\n engine.num_bindings",  # nothing of TensorRT's in sight
    "import json\ndef f(trt, text):\n for layer in json.loads(text):\n  layer.get('Name')",
])
def test_the_check_lets_through_what_is_asked_for_or_not_tensorrts(source):
    assert of(source) == []


@pytest.fixture(params=RELEASES)
def release(request):
    return request.param


def surface(module) -> set[tuple[str, str]]:
    """Every public name of a stand-in: (owner, name) as in the table."""
    found = {("", name) for name in vars(module) if name[0] != "_"}
    for owner in OWNERS:
        holder = module
        for part in owner.split("."):
            holder = getattr(holder, part, None)
        if holder is not None:
            enum = issubclass(holder, fake_tensorrt_native.Member)
            found |= {(owner, name) for name in dir(holder) if name[0] != "_" and not (enum and name in ("name", "value"))}
    return found


def test_the_stand_in_has_no_name_that_the_real_module_lacks(release):
    real = {key for key, releases in where().items() if release in releases}
    extra = surface(fake_tensorrt.make(release)) - real - {("", name) for name in fake_tensorrt.CONTROLS}
    assert extra == set()


def test_the_stand_in_has_every_name_that_our_code_uses_and_the_release_has(release):
    # layers that torch2trt's converters add have a stand-in of their own
    walks = [walk for name, walk in WALKS.items() if name != "engines/torch2trt_builder.py"]
    used = {(use.owner, use.name) for walk in walks for use in walk.uses}
    there = {key for key in used if release in where().get(key, ())}
    assert there - surface(fake_tensorrt.make(release)) == set()


def test_no_control_of_the_stand_in_could_be_taken_for_a_real_name():
    assert not {("", name) for name in fake_tensorrt.CONTROLS} & set(where())


def test_enum_integers_are_those_of_the_release(release):
    module = fake_tensorrt.make(release)
    for enum in ENUMS:
        expected = values(release, enum)
        assert bool(expected) == hasattr(module, enum)
        assert {name: int(getattr(getattr(module, enum), name)) for name in expected} == expected


@pytest.mark.parametrize(("enum", "name", "integers"), [
    ("BuilderFlag", "TF32", [7, 6, 6]),
    ("BuilderFlag", "VERSION_COMPATIBLE", [15, 13, 12]),
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED", [None, 1, 0]),
])
def test_integers_that_moved_between_releases_are_in_the_table(enum, name, integers):
    assert [values(release, enum).get(name) for release in ("8.6.1", "10.3.0", "11.0.0")] == integers
