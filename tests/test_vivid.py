"""Our V4L2 code in front of a real kernel: vivid, the kernel's virtual camera, in an emulated machine. `make soak`.

Needs qemu and the tools that make an initial ramdisk; fetches Debian's kernels (70 MB each), and for arm64 Python with numpy
and OpenCV (60 MB), once into .cache/vivid. PHYSVLM_VIVID names another folder for them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).parent / "vivid"
CHECKS = ("formats", "stream", "drops", "errors", "slow", "woken", "fatal", "unplugs")


def run_in_machine(arch: str, emulator: str, root: str, python: str, tmp_path: Path) -> str:
    missing = [tool for tool in (emulator, "cpio", "modprobe", "depmod") if shutil.which(tool, path=sbin()) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; on Debian: apt-get install qemu-system-x86 qemu-system-arm cpio kmod")
    kernel = fetched("kernel.sh", arch, arch)
    command = f"cd /tmp && PYTHONPATH=/mnt/repo PYTHONDONTWRITEBYTECODE=1 {python} /mnt/repo/tests/vivid/check.py 25"
    run = subprocess.run(["bash", SCRIPTS / "vm.sh", arch, kernel, root, REPOSITORY, tmp_path, command], capture_output=True,
                         text=True, timeout=900, env=os.environ | {"PATH": sbin()})
    return run.stdout + run.stderr


def fetched(script: str, argument: str, name: str) -> Path:
    """What a script makes, made unless it is there already; the test skips where it cannot be."""
    folder = Path(os.environ.get("PHYSVLM_VIVID", REPOSITORY / ".cache/vivid")).resolve() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = subprocess.run(["sh", SCRIPTS / script, argument, folder], capture_output=True, text=True, timeout=600)
    if run.returncode:
        pytest.skip(f"{script} {argument}: {run.stderr.strip()[-300:]}")
    return folder


def sbin() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def judge(output: str) -> None:
    print(output)
    assert "VM_READY" in output, "the machine did not start"
    assert [name for name in CHECKS if f"OK {name}:" not in output] == []
    assert "VM_DONE rc=0" in output


@pytest.mark.soak
def test_the_real_kernels_camera_on_x86(tmp_path):
    judge(run_in_machine("amd64", "qemu-system-x86_64", "/", sys.executable, tmp_path))


@pytest.mark.soak
def test_the_real_kernels_camera_on_arm64(tmp_path):
    pip = Path(sys.executable).with_name("pip")
    root = fetched("arm64_root.sh", str(pip), "arm64-root")
    judge(run_in_machine("arm64", "qemu-system-aarch64", str(root), "/usr/bin/python3.11", tmp_path))
