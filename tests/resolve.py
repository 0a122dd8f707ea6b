"""Does pip find aarch64 wheels of what we need for the Pythons of JetPack 6 and 7? `make resolve` (needs the package index).

Nothing is installed. The requirements are setup.py's own; a lower bound that JetPack's Python cannot reach, or a package
without a wheel for aarch64, fails here instead of on the bench.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {"JetPack 6": ("3.10", "manylinux_2_35_aarch64"), "JetPack 7": ("3.12", "manylinux_2_39_aarch64")}
"""Python and the newest tag that their C library takes (Ubuntu 22.04 has glibc 2.35, 24.04 has 2.39)."""

KNOWN = {"JetPack 6": {"numpy": "2.2.6", "onnxruntime": "1.23.2", "scipy": "1.15.3", "pywavelets": "1.8.0"}}
"""The last releases for cp310: bounds above these would lock JetPack 6 out."""

CHECKED_WITH = ("scipy", "PyWavelets")
"""What the tests hold the runtime against, there too."""

TAGS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


def requirements(setup: Path) -> dict[str, list[str]]:
    """The lists of setup.py by name, read without running it."""
    found = {}
    for node in ast.parse(setup.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = [e.value for e in node.value.elts
                                         if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    return found


def for_python(wanted: list[str], version: str) -> list[str]:
    """Without markers: pip would evaluate them for the Python that it runs in."""
    kept = []
    for line in wanted:
        name, _, marker = (part.strip() for part in line.partition(";"))
        bound = re.fullmatch(r"python_version < '3\.(\d+)'", marker)
        if marker and not bound:
            raise SystemExit(f"setup.py: {line!r}: this check knows only markers like python_version < '3.11'")
        if not bound or int(version.split(".")[1]) < int(bound[1]):
            kept.append(name)
    return kept


def resolve(wanted: list[str], version: str, platform: str) -> dict[str, str]:
    """Package -> version that pip would install there. Ends the program with pip's words where it finds none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        platforms = [word for tag in (platform, *(f"{tag}_aarch64" for tag in TAGS)) for word in ("--platform", tag)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--disable-pip-version-check",
             "--ignore-installed", "--target", folder, "--only-binary=:all:", "--python-version", version,
             "--implementation", "cp", *platforms,
             "--report", str(report), *wanted], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"Python {version} on aarch64: pip finds no set of wheels for {', '.join(wanted)}:\n{done.stderr}")
        installed = json.loads(report.read_text())["install"]
    return {item["metadata"]["name"].lower(): item["metadata"]["version"] for item in installed}


def main() -> int:
    lists = requirements(Path(__file__).resolve().parents[1] / "setup.py")
    wrong = 0
    for name, (version, platform) in TARGETS.items():
        oracles = [line for line in lists["TEST"] if re.split(r"[^\w-]", line)[0] in CHECKED_WITH]
        wanted = [*lists["RUNTIME"], *lists["CPU"], *lists["APPLIANCE"], *oracles]
        found = resolve(for_python(wanted, version), version, platform)
        print(f"{name} (Python {version}, aarch64): " + ", ".join(f"{p} {v}" for p, v in sorted(found.items())))
        for package, newest in KNOWN.get(name, {}).items():
            if tuple(map(int, found[package].split("."))) > tuple(map(int, newest.split("."))):
                print(f"{package} {found[package]} is newer than {newest}, which was the last for it: look again",
                      file=sys.stderr)
                wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main())
