"""What may import what: the device never needs the lab's packages, and the arrows between our own point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.videos import grey_steps, write_video

ROOT = Path(__file__).resolve().parents[1]

# package -> which of ours it may use beside itself
ARROWS = {
    "distillation": {"calibration", "edge", "engines", "firmware_bridge"},
    "calibration": {"edge", "engines", "firmware_bridge"},
    "edge": {"engines", "firmware_bridge"},
    "engines": set(),
    "firmware_bridge": set(),
}
# The one exception: the lab's command line is the way into everything, `physvlm-lab train` too. Lazily, see below.
COMMAND_LINES = {"calibration.__main__": {"distillation"}}
# package -> what it may use of others beside the standard library; a new entry is a new dependency on the device
RUNTIME_DEPENDENCIES = {
    "edge": {"numpy", "cv2", "tomllib", "tomli", "cryptography"},  # tomllib is not in the library of Python 3.10
    "engines": {"numpy", "onnxruntime", "tensorrt", "pycuda"},
    "firmware_bridge": {"serial", "tomllib", "tomli"},
}
# the network's definition and its export, which the device never imports
LAB_MODULES = {"engines.student", "engines.export", "engines.torch2trt_builder"}
# device module -> lab module that it may import where it is asked for, never at the top: `--via torch2trt`
OPTIONAL = {"engines.tensorrt_cache": {"engines.torch2trt_builder"}}
LAB_PACKAGES = ("torch", "torch2trt", "onnx", "onnxscript", "matplotlib", "scipy", "pywt", "av", "h5py", "transformers",
                "calibration", "distillation")


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


ALL_MODULES = {name: path for package in ARROWS for name, path in modules(package).items()}
RUNTIME_MODULES = [name for package in RUNTIME_DEPENDENCIES for name in modules(package) if name not in LAB_MODULES]


def imported(name: str, source: str, is_package: bool = False) -> set[str]:
    """Dotted names of every module that this source imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = name.split(".")
                up = stem[: len(stem) - node.level + is_package]
                base = ".".join([*up, base] if base else up)
            # `from engines import student` names a module as well as `from engines.student import X`
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def wrong_imports(name: str, source: str, is_package: bool = False) -> set[str]:
    package = name.split(".")[0]
    allowed = {package} | ARROWS[package] | COMMAND_LINES.get(name, set())
    roots = {target.split(".")[0] for target in imported(name, source, is_package)}
    wrong = {root for root in roots if root in ARROWS and root not in allowed}
    if package in RUNTIME_DEPENDENCIES and name not in LAB_MODULES:
        wrong |= roots - set(ARROWS) - RUNTIME_DEPENDENCIES[package] - sys.stdlib_module_names
        wrong |= (imported(name, source, is_package) & LAB_MODULES) - OPTIONAL.get(name, set())
    return wrong


@pytest.mark.parametrize("name", ALL_MODULES)
def test_imports_point_down_and_to_known_dependencies(name):
    path = ALL_MODULES[name]
    assert wrong_imports(name, path.read_text(encoding="utf-8"), path.name == "__init__.py") == set()


@pytest.mark.parametrize(("name", "source", "wrong"), [
    ("edge.vitals", "def f():\n    import scipy.signal", {"scipy"}),
    ("edge.vitals", "from calibration import phantom", {"calibration"}),
    ("edge.vitals", "from engines import student", {"engines.student"}),
    ("edge.vitals", "from engines.export import x", {"engines.export"}),
    ("engines.sidecar", "import edge.records", {"edge"}),
    ("engines.sidecar", "from .student import Student", {"engines.student"}),
    ("engines.student", "import torch", set()),
    ("firmware_bridge.link", "import numpy", {"numpy"}),
    ("calibration.phantom", "import distillation.losses", {"distillation"}),
    ("calibration.phantom", "import scipy, edge.clip", set()),
])
def test_the_check_itself_finds_a_wrong_import(name, source, wrong):
    assert wrong_imports(name, source) == wrong


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_a_command_line_imports_what_is_above_it_only_inside_its_commands(name):
    top = [node for node in ast.parse(ALL_MODULES[name].read_text(encoding="utf-8")).body
           if isinstance(node, (ast.Import, ast.ImportFrom))]
    roots = {target.split(".")[0] for node in top for target in imported(name, ast.unparse(node))}
    assert not roots & COMMAND_LINES[name]


BLOCKER = f"""
    import importlib, importlib.util, sys

    class Blocked:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {LAB_PACKAGES!r}:
                raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

    sys.meta_path.insert(0, Blocked())
"""


def run_without_the_lab(script: str, *args: str) -> str:
    """Run a script in a new interpreter where none of LAB_PACKAGES can be imported; its stdout."""
    code = textwrap.dedent(BLOCKER) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_runtime_module_imports_without_the_lab():
    # TensorRT and pycuda live on the device alone: a module that needs one imports it where it is used
    run_without_the_lab("for name in sys.argv[1:]: importlib.import_module(name)", *RUNTIME_MODULES)


def test_the_runtime_reads_a_video_without_the_lab(tmp_path):
    video = write_video(tmp_path / "v.avi", grey_steps(7))
    script = """
        from edge.camera import open_camera
        from edge.config import load_config
        with open_camera(load_config(None, {"camera.source": sys.argv[1]}).camera.source) as camera:
            print(len(list(camera)))
        try:
            importlib.import_module("torch")
        except ModuleNotFoundError as error:
            print(error)
    """
    assert run_without_the_lab(script, str(video)).split("\n")[:2] == ["7", "blocked: torch"]
