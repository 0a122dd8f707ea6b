"""A stand-in for nvcc: it takes our command line and gives, for a cubin, a library of the host that runs the same kernels.

`installed` puts it on PATH. What it makes is loaded by the stand-ins for pycuda and for the driver; see cuda_on_host.h.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

HEADER = Path(__file__).parent / "fakecuda" / "cuda_on_host.h"
FLAGS = ("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
"""Fortified, a jump from one stack to another counts as an attack."""


def missing() -> str | None:
    return None if shutil.which("g++") else "no g++ on PATH to build the kernels for the host with"


def installed(folder: Path, kept: Path) -> Path:
    """An `nvcc` in this folder, which keeps what it made in `kept`. It logs each call as a line of nvcc.log beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "nvcc"
    script.write_text(f'#!/bin/sh\necho "$@" >> {folder}/nvcc.log\nexec {sys.executable} {__file__} {kept} "$@"\n')
    script.chmod(0o755)
    return script


def kernels(text: str) -> list[str]:
    return re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(", text)


def build(source: Path, out: Path, architecture: str) -> subprocess.CompletedProcess[str]:
    wrapper = "".join(f"LAUNCHABLE({name})\n" for name in kernels(source.read_text()))
    text = f'#include "{HEADER}"\n#include "{source}"\n{wrapper}extern "C" const char architecture[] = "{architecture}";\n'
    return subprocess.run(["g++", *FLAGS, "-x", "c++", "-o", str(out), "-"], input=text, capture_output=True, text=True)


def main(kept: Path, *words: str) -> int:
    given = list(words)
    out = Path(given.pop(given.index("-o") + 1))
    architecture = next(word for word in given if word.startswith("-arch=sm_")).removeprefix("-arch=")
    source = Path(given.pop())
    unknown = set(given) - {"-cubin", f"-arch={architecture}", "-std=c++17", "-o"}
    if unknown or "-cubin" not in given:
        print(f"nvcc fatal   : Unknown option '{' '.join(sorted(unknown))}'", file=sys.stderr)
        return 1
    named = hashlib.sha256(b"".join(path.read_bytes() for path in (source, HEADER)) + architecture.encode()).hexdigest()
    if not (kept / named).exists():
        kept.mkdir(parents=True, exist_ok=True)
        done = build(source, kept / f"{named}.partial", architecture)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return done.returncode
        (kept / f"{named}.partial").rename(kept / named)
    shutil.copyfile(kept / named, out)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
