"""What the machine says: facts that make two runs comparable, a process's CPU and memory, the board's power and GPU load.

Everything is read below `root`, so that tests can lay out a board; what is not there is None, never a guess.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("physvlm-edge", "numpy", "opencv-python-headless", "opencv-python", "onnxruntime", "tensorrt", "pycuda", "pyserial")
IDENTITY = ("board", "cpu", "cores", "arch", "memory_gb", "power_mode")
"""Two runs are of one machine when these agree."""

_WHOLE_BOARD = ("VDD_IN", "VIN", "POM_5V_IN")
"""Rails that carry everything: Orin Nano and NX, Thor, older boards. Elsewhere the rails are summed."""


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def facts(root: Path = Path("/"), run: Callable[[Sequence[str]], str] = _run) -> dict[str, Any]:
    """Board, release, power mode, processor and versions; None where the machine does not say."""
    cpuinfo = _read(root / "proc/cpuinfo")
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read(root / "proc/meminfo"), re.M)
    mode = re.search(r"NV Power Mode:\s*(\S+)", run(["nvpmodel", "-q"]))
    release = re.search(r"# (R\d+) \(release\), REVISION: ([\d.]+)", _read(root / "etc/nv_tegra_release"))
    jetpack = re.search(r"^Version: (\S+)", run(["dpkg", "-s", "nvidia-jetpack"]), re.M)
    governor = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    board = _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name")
    return {
        "board": board.strip("\x00\n ") or None,
        "cpu": model[1].strip() if model else platform.processor() or None, "cores": len(os.sched_getaffinity(0)),
        "arch": platform.machine(), "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "power_mode": mode[1] if mode else None, "governor": governor or None,
        "l4t": f"{release[1]}.{release[2]}" if release else None, "jetpack": jetpack[1] if jetpack else None,
        "kernel": platform.release(), "python": platform.python_version(), "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Where two machines differ in what makes timings comparable."""
    return [f"{name}: {other.get(name)} then, {one.get(name)} now" for name in IDENTITY if one.get(name) != other.get(name)]


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- one process, and the load of the others


@dataclass(frozen=True)
class Load:
    """rss_mb and cpu_s of one process; busy_s and stolen_s: all cores together, this process included, and what the
    hypervisor took."""

    rss_mb: float
    cpu_s: float
    busy_s: float
    stolen_s: float


def load_of(pid: int, root: Path = Path("/")) -> Load | None:
    """None once the process is gone."""
    statm, stat = _read(root / f"proc/{pid}/statm"), _read(root / f"proc/{pid}/stat")
    cells, total = stat.rpartition(")")[2].split(), _read(root / "proc/stat").split("\n", 1)[0].split()
    if len(cells) < 13 or len(statm.split()) < 2 or len(total) < 9:
        return None
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    user, nice, system, _, _, irq, softirq, steal = map(int, total[1:9])
    return Load(int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, (int(cells[11]) + int(cells[12])) * tick_s,
                (user + nice + system + irq + softirq) * tick_s, steal * tick_s)


def slope_per_h(t_s: Sequence[float], values: Sequence[float]) -> tuple[float, float, float] | None:
    """Theil-Sen: the median of the slopes between all pairs, and the range that holds nine in ten fits, per hour.

    A step (an allocation that stays) or a spike moves it little. The range comes from ten equal parts of the run, left out
    in turn. None below 30 values or 4 minutes.
    """
    t, v = np.asarray(t_s, float), np.asarray(values, float)
    if t.size < 30 or t[-1] - t[0] < 240:
        return None
    keep = np.linspace(0, t.size - 1, min(t.size, 400)).round().astype(int)
    t, v = t[keep], v[keep]
    parts = np.array_split(np.arange(t.size), 10)
    fits = [_theil_sen(np.delete(t, part), np.delete(v, part)) for part in parts]
    return 3600 * _theil_sen(t, v), 3600 * min(fits), 3600 * max(fits)


def _theil_sen(t: NDArray[np.float64], v: NDArray[np.float64]) -> float:
    i, j = np.triu_indices(t.size, 1)
    return float(np.median((v[j] - v[i]) / (t[j] - t[i])))


# --- the board


@dataclass(frozen=True)
class Board:
    """None: the board does not tell. power_w is that of the whole board where one rail carries it, else the sum."""

    power_w: float | None
    gpu_percent: float | None
    temp_c: float | None


def parse_tegrastats(line: str) -> Board:
    """One line of `tegrastats`: JetPack 5 to 7, Orin and Thor.

    GR3D_FREQ stands as 5%, 5%@305, 5%@[305,305] or, on Thor, @[0,0,0] without a load. A rail may read below zero when idle.
    """
    rails = {name: int(mw) for name, mw in re.findall(r"([A-Z][A-Z0-9_]+) (-?\d+)mW(?:/-?\d+mW)?", line)}
    gpu = re.search(r"GR3D_FREQ (\d+)%", line)
    temps = [float(value) for value in re.findall(r"[a-zA-Z0-9_]+@(-?\d+(?:\.\d+)?)C", line)]
    real = [value for value in temps if value > -100]  # a sensor that is switched off reads -256
    whole = next((rails[name] for name in _WHOLE_BOARD if name in rails), sum(rails.values()) if rails else None)
    return Board(None if whole is None else whole / 1000, float(gpu[1]) if gpu else None, max(real) if real else None)


def read_board(root: Path = Path("/")) -> Board:
    """The same from sysfs, where tegrastats may not be run: INA monitors, the GPU's load in per mille, thermal zones."""
    rails: dict[str, float] = {}
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        number = label.name[2:-6]
        volts, amps = _number(label.with_name(f"in{number}_input")), _number(label.with_name(f"curr{number}_input"))
        if volts is not None and amps is not None:
            rails[_read(label).strip()] = volts * amps / 1e6  # mV and mA
    whole = next((rails[name] for name in _WHOLE_BOARD if name in rails), sum(rails.values()) if rails else None)
    loads = [_number(root / place) for place in ("sys/devices/platform/gpu.0/load", "sys/devices/gpu.0/load")]
    gpu = next((load for load in loads if load is not None), None)
    zones = [_number(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    real = [zone / 1000 for zone in zones if zone is not None and zone > -100_000]
    return Board(whole, None if gpu is None else gpu / 10, max(real) if real else None)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


class BoardWatch:
    """Samples of the board, once a second, by tegrastats where it is on the PATH, else from sysfs."""

    def __init__(self) -> None:
        self.samples: list[Board] = []
        self._tool: subprocess.Popen[str] | None = None
        self._stop = threading.Event()

    def __enter__(self) -> BoardWatch:
        if shutil.which("tegrastats"):
            self._tool = subprocess.Popen(["tegrastats", "--interval", "1000"], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._look if self._tool is None else self._listen, name="board", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._tool is not None:
            self._tool.terminate()
            self._tool.wait(5)
        self._thread.join(5)

    def _listen(self) -> None:
        if self._tool is not None and self._tool.stdout is not None:
            for line in self._tool.stdout:
                self.samples.append(parse_tegrastats(line))

    def _look(self) -> None:
        while not self._stop.wait(1.0):
            self.samples.append(read_board())
