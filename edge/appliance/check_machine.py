"""The doctor's checks of the machine: release, Python, TensorRT, GStreamer, power, clocks, heat, memory, disk, log."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.appliance.doctor import Case, Check, Level, fault, none, ok, warn
from edge.appliance.install import BUNDLES, CACHE, JOURNAL
from engines.recipe import l4t_release

Found = tuple[Level, str, str]


@dataclass(frozen=True)
class JetPack:
    """One line of NVIDIA's releases. l4t: first and last release of Linux for Tegra. tensorrt: its own, then those that may
    be added to it."""

    name: str
    l4t: tuple[tuple[int, ...], tuple[int, ...]]
    python: tuple[int, int]
    tensorrt: tuple[str, ...]


# As of November 2026, from NVIDIA's release notes and support matrix and jetson_stats; JetPack 7.x was never tried here.
JETPACKS = (
    JetPack("5.1", ((35, 2, 1), (35, 6, 4)), (3, 8), ("8.5",)),
    JetPack("6.0", ((36, 3), (36, 3, 99)), (3, 10), ("8.6",)),
    JetPack("6.1 or 6.2", ((36, 4), (36, 5)), (3, 10), ("10.3", "10.4", "10.5", "10.7")),
    JetPack("7.0", ((38, 2), (38, 3)), (3, 12), ("10.13",)),
    JetPack("7.1", ((38, 4), (38, 5)), (3, 12), ("10.13",)),
    JetPack("7.2", ((39, 2), (39, 99)), (3, 12), ("10.16", "11.4")),
)
OLDEST_PYTHON = (3, 10)
TENSORRT_RANGE = ((8, 6), (11, 4))
"""Releases that the shipped files are made for (docs/engines.md)."""

MEMORY_FAULT_MB, MEMORY_WARN_MB = 200, 500
"""The runtime takes 150 MB on the CPU; CUDA and TensorRT about 1 GB, which a Jetson shares with its GPU."""

DISK_FAULT_MB, DISK_WARN_MB = 50, 500
"""A bundle takes 10 MB, plans and logs 200 MB each."""

HEAT_WARN_C, HEAT_FAULT_C = 80, 95
"""An Orin slows down a little below 100 degrees (from memory; its trip points say it exactly)."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _release(case: Case) -> tuple[str, JetPack | None]:
    """(L4T release, its JetPack); empty on what is no Jetson, None for a release that the table lacks."""
    found = l4t_release(case.system.at("/etc/nv_tegra_release"))
    numbers = _numbers(found)
    return found, next((j for j in JETPACKS if j.l4t[0] <= numbers <= j.l4t[1]), None) if numbers else None


def jetpack(case: Case) -> Found:
    release, found = _release(case)
    if not release:
        return none("no Jetson (no /etc/nv_tegra_release): ONNX Runtime runs here, TensorRT's checks do not apply")
    if found is None:
        return warn(f"L4T {release} is none that this program knows; expected JetPack 6 or 7", "look for a newer release of "
                    "physvlm-edge, then run physvlm prepare --rebuild")
    if found.python < OLDEST_PYTHON:
        return fault(f"JetPack {found.name} (L4T {release}) has Python {found.python[0]}.{found.python[1]}; expected JetPack 6 "
                     "or 7, whose Python is 3.10 or newer", "flash JetPack 6.2 or 7.2")
    return ok(f"JetPack {found.name} (L4T {release})")


def _theirs(found: JetPack | None) -> bool:
    """Whether this JetPack's own Python is too old for this program, which `jetpack` tells once for all."""
    return found is not None and found.python < OLDEST_PYTHON


def python(case: Case) -> Found:
    if not case.system.live:
        return none("cannot be seen from here")
    major_minor, (_, found) = case.system.python, _release(case)
    mine = ".".join(map(str, major_minor))
    if major_minor < OLDEST_PYTHON:
        return fault(f"Python {mine}; expected 3.10 or newer", "make the environment with python3.10 or newer")
    if found is not None and not _theirs(found) and case.config.model.backend == "tensorrt" and major_minor != found.python:
        theirs = ".".join(map(str, found.python))
        return fault(f"Python {mine}; expected {theirs}, which TensorRT's bindings of JetPack {found.name} are built for",
                     _new_environment(found))
    return ok(f"Python {mine}")


def _new_environment(found: JetPack) -> str:
    theirs = ".".join(map(str, found.python))
    return (f"sudo apt-get install python{theirs}-venv; sudo python{theirs} -m venv --clear --system-site-packages "
            "/opt/physvlm, then install this program there")


def packages(case: Case) -> Found:
    if not case.system.live:
        return none("cannot be seen from here")
    names = {"numpy": "numpy", "pyserial": "pyserial"}
    if case.config.model.backend == "onnxruntime" or BUNDLES in case.config.model.weights:
        names |= {"onnxruntime": "onnxruntime"}  # a bundle proves itself on it, whatever runs it then
    if BUNDLES in case.config.model.weights:
        names |= {"cryptography": "cryptography"}
    if case.config.model.backend == "tensorrt":
        names |= {"pycuda": "physvlm-edge[jetson]"}
    missing = [name for name in names if case.system.version(name) is None]
    if missing:
        return fault(f"not installed: {', '.join(missing)}", f"pip install {' '.join(repr(names[name]) for name in missing)}")
    opencv = next((v for n in ("opencv-python-headless", "opencv-python", "opencv-contrib-python", "opencv")
                   if (v := case.system.version(n))), "the system's")
    return ok(", ".join(f"{name} {case.system.version(name)}" for name in names) + f", OpenCV {opencv}")


def tensorrt(case: Case) -> Found:
    if case.config.model.backend != "tensorrt":
        return none("not used: the backend is onnxruntime")
    release, found = _release(case)
    if _theirs(found):
        return none("see jetpack")
    of_apt = case.system.apt_version("python3-libnvinfer")
    version = case.system.version("tensorrt") if case.system.live else of_apt
    if version is None and of_apt is not None and found is not None:
        return fault(f"TensorRT {of_apt} is JetPack's, and this environment does not see it; expected one that takes the "
                     "system's packages", _new_environment(found))
    if version is None:
        return fault("not installed, and the backend is tensorrt; expected JetPack's own package",
                     "sudo apt-get install python3-libnvinfer")
    numbers = _numbers(version)[:2]
    if found is not None and ".".join(map(str, numbers)) not in found.tensorrt:
        return fault(f"TensorRT {version} does not belong to JetPack {found.name} (L4T {release}), which has "
                     f"{' or '.join(found.tensorrt)}: a wheel of pip cannot run on a Jetson",
                     "pip uninstall tensorrt; sudo apt-get install --reinstall python3-libnvinfer")
    if not TENSORRT_RANGE[0] <= numbers <= TENSORRT_RANGE[1]:
        return warn(f"TensorRT {version}; expected 8.6 to 11.4", "look for a newer release of physvlm-edge")
    return ok(f"TensorRT {version}" + ("" if found is None else f" as JetPack {found.name} has it"))


def gstreamer(case: Case) -> Found:
    if not case.config.camera.source.startswith(("csi:", "gst:")):
        return none(f"not used: the camera is {case.config.camera.source}")
    known = case.system.command("ldconfig", "-p")
    if known is None:
        return none("cannot be seen from here")
    missing = [lib for lib in ("libgstreamer-1.0.so.0", "libgstapp-1.0.so.0") if lib not in known.text]
    if missing:
        return fault(f"{' and '.join(missing)} not there, which {case.config.camera.source} needs",
                     "sudo apt-get install libgstreamer1.0-0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good")
    daemon = case.system.command("systemctl", "is-active", "nvargus-daemon")
    if case.config.camera.source.startswith("csi:") and (daemon is None or daemon.text != "active"):
        return fault(f"nvargus-daemon is {'not there' if daemon is None else daemon.text}; expected active, no CSI camera "
                     "without it", "sudo systemctl restart nvargus-daemon")
    return ok("GStreamer's libraries are there")


def power(case: Case) -> Found:
    said = case.system.command("nvpmodel", "-q")
    if said is None:
        return none("no nvpmodel here" if case.system.live else "cannot be seen from here")
    mode = re.search(r"Power Mode: *(\S+)", said.text)
    if said.code != 0 or mode is None:
        return warn(f"nvpmodel does not tell the mode: {said.text[:80]!r}; expected a line NV Power Mode", "sudo nvpmodel -q")
    return ok(f"power mode {mode[1]}; engines timed in another one: physvlm prepare --rebuild")


def clocks(case: Case) -> Found:
    if not _release(case)[0]:
        return none("no Jetson")
    moving, seen = [], 0
    for policy in sorted(case.system.at("/sys/devices/system/cpu/cpufreq").glob("policy*")):
        low, high = (case.system.text(policy.relative_to(case.system.root) / f"scaling_{end}_freq") for end in ("min", "max"))
        seen += bool(low and high)
        if low and high and int(low) < int(high):
            moving.append(f"{int(low) // 1000}-{int(high) // 1000} MHz")
    if moving:
        return warn(f"the CPU's clock moves ({moving[0]}), so latency jitters; expected one fixed clock",
                    "sudo jetson_clocks, after each start of the machine")
    if not seen:
        return none("no clock to be read")
    return ok("clocks are fixed")


def heat(case: Case) -> Found:
    found = {}
    for zone in sorted(case.system.at("/sys/class/thermal").glob("thermal_zone*")):
        at = zone.relative_to(case.system.root)
        reading = (case.system.text(at / "temp") or "").strip()
        if re.fullmatch(r"-?\d+", reading):
            found[(case.system.text(at / "type") or zone.name).strip()] = int(reading) / 1000
    if not found:
        return none("no thermal zone to be read")
    name, most = max(found.items(), key=lambda each: each[1])
    said = f"{name} at {most:.0f} degrees"
    if most >= HEAT_FAULT_C:
        return fault(f"{said}; expected below {HEAT_WARN_C}, before the clocks are cut", "clean or mount a fan")
    if most >= HEAT_WARN_C:
        return warn(f"{said}; expected below {HEAT_WARN_C}", "give it air, or a fan")
    return ok(said)


def memory(case: Case) -> Found:
    found = re.search(r"MemAvailable: *(\d+) kB", case.system.text("/proc/meminfo") or "")
    if found is None:
        return none("/proc/meminfo cannot be read")
    free_mb = int(found[1]) // 1024
    mend = "sudo systemctl set-default multi-user.target (no desktop), or end what takes it: ps --sort=-rss aux"
    if free_mb < MEMORY_FAULT_MB:
        return fault(f"{free_mb} MB free; expected {MEMORY_WARN_MB} or more", mend)
    if free_mb < MEMORY_WARN_MB:
        return warn(f"{free_mb} MB free; expected {MEMORY_WARN_MB} or more", mend)
    return ok(f"{free_mb} MB free")


def disk(case: Case) -> Found:
    folders = {"/var/log": "sudo journalctl --vacuum-size=100M", CACHE: "sudo du -xhd1 /var",
               "/var/lib/physvlm": "sudo du -xhd1 /var/lib/physvlm"}
    free = []
    for folder, mend in folders.items():
        try:
            found = case.system.disk(case.system.at(folder))
        except OSError as e:
            return fault(f"{folder}: {e.strerror}", "dmesg | tail")
        if found.read_only:
            return fault(f"{folder} is read-only; expected writable", "dmesg | tail, then sudo mount -o remount,rw /")
        free.append((found.free_bytes >> 20, folder, mend))
    free_mb, folder, mend = min(free)
    said = f"{free_mb} MB free at {folder}"
    if free_mb < DISK_FAULT_MB:
        return fault(f"{said}; expected {DISK_WARN_MB} or more", mend)
    if free_mb < DISK_WARN_MB:
        return warn(f"{said}; expected {DISK_WARN_MB} or more", mend)
    return ok(said)


def log_limits(case: Case) -> Found:
    texts = [case.system.text("/etc/systemd/journald.conf"), case.system.text(JOURNAL)]
    texts += [f.read_text(errors="replace") for f in sorted(case.system.at(JOURNAL).parent.glob("*.conf"))]
    if texts[:2] == [None, None]:
        return none("no journald here")
    limits = re.findall(r"^SystemMaxUse=(\S+)", "\n".join(t for t in texts if t), re.MULTILINE)
    if not limits:
        return warn("the journal may grow to a tenth of the disk; expected a limit", "sudo physvlm install --apply")
    return ok(f"the journal is held to {limits[-1]}")


CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("jetpack", jetpack, False), ("python", python, True), ("packages", packages, True), ("tensorrt", tensorrt, True),
    ("gstreamer", gstreamer, True), ("power", power, False), ("clocks", clocks, False), ("heat", heat, False),
    ("memory", memory, False), ("disk", disk, True), ("log", log_limits, False))
"""(name, check, whether it needs the configuration)."""
