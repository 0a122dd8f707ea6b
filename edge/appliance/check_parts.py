"""The doctor's checks of our own parts: configuration, service, camera, port, display, weights, engines, bundle."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

from edge.appliance.devices import of_rule, plugged_in
from edge.appliance.doctor import Case, Check, Level, fault, none, ok, warn
from edge.appliance.install import BUNDLES, CACHE, CAMERA, CONFIG, DISPLAY, RECORDS, RULES, UNIT
from engines.errors import EngineError
from engines.sidecar import DEFAULT_WEIGHTS, ModelSpec, SidecarError, load

Found = tuple[Level, str, str]

SETTLE_S = 8.0
"""Twice what a camera takes before its automatisms are switched off."""

STATUS_S = 3.0
"""A two-way display sends STATUS once a second (PROTOCOL.md)."""


def config(case: Case) -> Found:
    if case.config_error:
        wrong = next((file for file in case.config_files if file in case.config_error), CONFIG)
        return fault(case.config_error, "sudo physvlm bundle rollback" if BUNDLES in wrong else f"sudoedit {wrong}")
    return ok(case.config_file)


def unit(case: Case) -> Found:
    if case.system.text(UNIT) is None:
        return warn(f"not installed (no {UNIT})", "sudo physvlm install --apply")
    program = case.unit_setting("ExecStart").partition(" ")[0]
    if not case.system.at(program).exists():
        return fault(f"{program}, which the service starts, is not there", "sudo physvlm install --program PATH --apply")
    if case.system.groups_of(case.user) is None:
        return fault(f"there is no user {case.user}, whom the service runs as", "sudo systemd-sysusers")
    enabled, active = (case.system.command("systemctl", word, "physvlm") for word in ("is-enabled", "is-active"))
    if enabled is None or active is None:
        return none("installed; systemd cannot be asked here")
    if enabled.text != "enabled":
        return warn(f"{enabled.text or 'not known to systemd'}; expected enabled, or nothing runs after the next start",
                    "sudo systemctl daemon-reload; sudo systemctl enable --now physvlm")
    if active.text == "failed":
        return fault("failed; expected active", "journalctl -u physvlm -n 50; sudo systemctl restart physvlm")
    if active.text != "active":
        return warn(f"{active.text}; expected active", "sudo systemctl start physvlm; journalctl -u physvlm -n 50")
    return ok("enabled and active")


def _node(source: str) -> str:
    """The device of usb:N or usb:/dev/..., whatever size and rate are asked of it."""
    name = source.removeprefix("usb:").partition(",")[0]
    return f"/dev/video{name}" if name.isascii() and name.isdigit() else name


def names(case: Case) -> Found:
    """udev's names for camera and display, where the configuration uses them."""
    used = [n for n in (CAMERA, DISPLAY) if n in (_node(case.config.camera.source), case.config.serial.port)]
    if not used:
        return none("neither camera nor display goes by a name of ours")
    rules = case.system.text(RULES) or ""
    for name in used:
        flag, subsystem = ("--camera", "video4linux") if name == CAMERA else ("--display", "tty")
        device = of_rule(rules, name)
        if device is None:
            return fault(f"no rule gives {name}; expected one in {RULES}",
                         f"sudo physvlm install {flag} VENDOR:PRODUCT --apply, then {_RELOAD}")
        found = plugged_in(case.system.root, subsystem, device)
        if len(found) > 1:
            return fault(f"{name} may lead to any of {len(found)} devices that fit {device}: "
                         + "; ".join(f"{node} ({where})" for node, where in found.items()) + "; expected one",
                         f"sudo physvlm install {flag} VENDOR:PRODUCT:SERIAL (or its USB port) --apply, then {_RELOAD}")
        if found and not os.path.lexists(case.system.at(name)):
            return fault(f"{next(iter(found))} fits {device}, and udev has not made {name}; expected it at once", _RELOAD)
    return ok(f"{RULES} gives {' and '.join(used)}")


_RELOAD = "sudo udevadm control --reload && sudo udevadm trigger"


def _denied(case: Case, path: str) -> str:
    """Why the service (or this user, where none is installed) may not use a device; empty where it may."""
    found = case.system.at(path).stat()
    known = case.system.groups_of(case.user) if case.user else None
    if known is None:
        return "" if os.access(case.system.at(path), os.R_OK | os.W_OK) else "this user"
    return "" if _may(found, known, 0o6) else case.user


def _may(found: os.stat_result, known: tuple[int, set[int]], bits: int) -> bool:
    """As the kernel decides: the owner's bits for the owner, the group's for the group, else the others'."""
    uid, gids = known
    shift = 6 if found.st_uid == uid else 3 if found.st_gid in gids else 0
    return found.st_mode >> shift & bits == bits


def _device(case: Case, path: str, what: str, group: str) -> Found | None:
    """What is wrong with a device's node, or None."""
    there = case.system.at(path)
    if not case.system.live and not any(case.system.at("/dev").glob("*")):
        return none("an image has no devices")
    try:
        mode = there.stat().st_mode
    except OSError as e:
        others = sorted(p.name for p in case.system.at("/dev").glob("video*" if group == "video" else "tty[UAT][SCH]*"))
        return fault(f"no {what} at {path}: {e.strerror}; found: {', '.join(others) or 'none'}",
                     f"check cable and power; lsusb; ls -l {Path(path).parent}")
    if stat.S_ISDIR(mode):
        return fault(f"{path} is a folder; expected the {what}'s device", f"sudoedit {CONFIG}")
    if case.system.live and not stat.S_ISCHR(mode):
        return fault(f"{path} is no device; expected the {what}'s", f"sudo rm {path}, then unplug it and plug it in again")
    if user := _denied(case, path):
        return fault(f"{user} may not use {path} (mode {stat.S_IMODE(mode):03o}); expected group {group} with rw",
                     f"sudo usermod -aG {group} {case.user or '$USER'}; sudo systemctl restart physvlm")
    return None


def _others(case: Case, path: str) -> tuple[str, bool]:
    """(who has it open, whether that is our own service)."""
    holders = case.system.holders(path)
    own = case.system.command("systemctl", "show", "--property=MainPID", "--value", "physvlm")
    ours = own is not None and any(str(pid) == own.text for pid, _ in holders)
    return ", ".join(f"{name} (process {pid})" for pid, name in holders), ours


def camera(case: Case) -> Found:
    source = case.config.camera.source
    scheme, colon, _ = source.partition(":")
    if not colon or scheme not in ("usb", "csi", "gst"):
        return warn(f"{source} is a video file; expected a camera", f"sudoedit {CONFIG}: [camera] source")
    if scheme == "usb":
        path = _node(source)
        if not path.startswith("/"):
            return fault(f"{source}: expected usb:N or usb:/dev/...", f"sudoedit {CONFIG}: [camera] source")
        if wrong := _device(case, path, "camera", "video"):
            return wrong
        holder, ours = _others(case, path)
        if ours:
            return ok(f"{source}, in use by the service")
        if holder:
            return fault(f"{source} is in use by {holder}; expected nobody else", "end that program; sudo fuser -v " + path)
    elif case.service_runs():
        return ok(f"{source}, in use by the service")
    return _picture(case, source) if case.system.live else ok(f"{source} is there")


def _picture(case: Case, source: str) -> Found:
    """Opens it, takes one picture, and tells what could not be locked."""
    from edge.camera import CameraError

    try:
        with case.system.camera(source) as opened:
            next(opened)
            until_ns = case.system.clock_ns() + int(SETTLE_S * 1e9)
            while opened.settling and case.system.clock_ns() < until_ns:  # what could be locked is known after that
                next(opened)
            notes = opened.notes()
            size = f"{opened.width}x{opened.height}"
    except CameraError as e:
        return fault(str(e), "unplug it and plug it in again; for csi: sudo systemctl restart nvargus-daemon")
    refused = [note for note in notes if note.startswith("refused")]
    if refused:
        return fault(f"{source} {size}: {'; '.join(refused)}", "end other programs that steer it; v4l2-ctl --list-ctrls")
    lacking = [note for note in notes if note.startswith("lacking")]
    if lacking:
        return warn(f"{source} {size}: {'; '.join(lacking)}", "keep the light steady, or take another camera")
    return ok(f"{source} {size}" + "".join(f", {note}" for note in notes))


def port(case: Case) -> Found:
    path = case.config.serial.port
    if not path:
        return warn("no display is configured", f"sudoedit {CONFIG}: [serial] port")
    if wrong := _device(case, path, "serial port", "dialout"):
        return wrong
    holder, ours = _others(case, path)
    if holder and not ours:
        stop = "nvgetty" if "getty" in holder or "login" in holder else "ModemManager" if "Modem" in holder else ""
        return fault(f"{path} is held by {holder}; expected nobody but the service",
                     f"sudo systemctl disable --now {stop}" if stop else f"sudo fuser -v {path}; end that program")
    return ok(f"{path}" + (", in use by the service" if ours else " is free"))


def port_rivals(case: Case) -> Found:
    """What will take the port sooner or later: a login prompt, the kernel's console, ModemManager."""
    path = case.config.serial.port
    if not path:
        return none("no display is configured")
    name = Path(os.path.realpath(case.system.at(path))).name
    if re.search(rf"\bconsole={re.escape(name)}\b", case.system.text("/proc/cmdline") or ""):
        return fault(f"the kernel writes its console to {name}; expected it for the display alone",
                     f"take console={name} out of APPEND in /boot/extlinux/extlinux.conf, then restart")
    for service in ("nvgetty", f"serial-getty@{name}"):
        said = case.system.command("systemctl", "is-active", service)
        if name.startswith("tty") and said is not None and said.text == "active":
            word = "disable" if service == "nvgetty" else "mask"  # made by a generator, which a disabled one comes back from
            return fault(f"{service} holds a login prompt on {name}; expected the display alone there",
                         f"sudo systemctl {word} --now {service}")
    said = case.system.command("systemctl", "is-active", "ModemManager")
    if said is not None and said.text == "active" and "ID_MM_" not in (case.system.text(RULES) or ""):
        return warn("ModemManager sends AT commands to new serial ports; expected a rule that keeps it away",
                    "sudo physvlm install --display VENDOR:PRODUCT --apply")
    return ok("nobody else wants the port")


def display(case: Case) -> Found:
    """The handshake: a two-way display tells within 3 s what is on its glass."""
    from firmware_bridge.frame import Decoder, Verdict
    from firmware_bridge.messages import Status
    from firmware_bridge.port import LinkError

    serial = case.config.serial
    if not serial.port or not case.system.live:
        return none("no display to be asked")
    if _others(case, serial.port)[0]:
        return none("the port is in use; the service's log says what the display answers")
    try:
        opened = case.system.port(serial.port, serial.baud, serial.stop_bits)
    except LinkError as e:
        return fault(str(e), f"ls -l {serial.port}")
    decoder, until_ns, heard = Decoder(), case.system.clock_ns() + int(STATUS_S * 1e9), 0
    try:
        while (left_ns := until_ns - case.system.clock_ns()) > 0:
            data = opened.read(left_ns / 1e9)
            heard += len(data)
            for frame in decoder.feed(data):
                if frame.verdict is Verdict.OK and isinstance(frame.message, Status):
                    return ok(f"the display answers: {frame.message.frames_ok} frames taken")
    except OSError as e:
        return fault(f"{serial.port} was lost: {e.strerror or e}", "check cable and power")
    finally:
        opened.close()
    if heard:
        return fault(f"{heard} bytes came, none of them a STATUS; expected the display at {serial.baud} baud",
                     f"set display and [serial] baud alike; physvlm dump {serial.port}")
    return warn("no STATUS within 3 s; expected one a second, unless the display is one-way", "check the line from its TX")


def _restore(case: Case) -> str:
    in_bundle = BUNDLES in case.config.model.weights
    return "sudo physvlm bundle rollback" if in_bundle else "pip install --force-reinstall physvlm-edge"


def _sidecar(case: Case) -> Path:
    folder = case.config.model.weights
    return case.system.at(folder) / DEFAULT_WEIGHTS.name if folder else DEFAULT_WEIGHTS


def weights(case: Case) -> Found:
    from edge.pipeline import ModelMismatch, check_normalisation

    sidecar = _sidecar(case)
    if not case.system.live and sidecar == DEFAULT_WEIGHTS:
        return none("shipped with the program, which is not that of another root")
    try:
        spec, _ = load(sidecar)
        check_normalisation(spec)
    except (SidecarError, ModelMismatch) as e:
        return fault(str(e), _restore(case))
    return ok(f"{spec.name}, hashes right, in {sidecar.parent}")


def engine(case: Case) -> Found:
    """Whether it answers as the student does, on this machine."""
    try:
        spec, _ = load(_sidecar(case))
    except SidecarError:
        return none("not looked at: the weights cannot be used")
    if case.config.model.backend == "tensorrt":
        return _plans(case, spec)
    if not case.system.live:
        return none("ONNX Runtime, which cannot be tried from here")
    from engines.onnxruntime_backend import OnnxRuntimeEngine
    from engines.parity import load_fixture, verify

    precision = "fp32" if case.config.model.precision == "auto" else case.config.model.precision
    try:
        made = OnnxRuntimeEngine(spec, precision)
        if spec.parity is None or precision not in spec.tolerances:
            return warn(f"these weights bring no proof for {precision}", "install a signed bundle: it brings one")
        found = verify(made, load_fixture(spec.parity), spec.tolerances[precision], f"ONNX Runtime in {precision}")
    except SidecarError as e:
        return fault(str(e), "choose another [model] precision")
    except EngineError as e:
        return fault(str(e), _restore(case))
    return ok(f"ONNX Runtime in {precision} answers as the student does (waves agree to {found.correlation:.5f})")


def _three(release: object) -> str:
    return ".".join(str(release).split(".")[:3])


def _plans(case: Case, spec: ModelSpec) -> Found:
    """The plans that `physvlm prepare` made, held against what can be known without opening the GPU."""
    from edge.prepare import CHOICE, cache_folder
    from engines import plan
    from engines.recipe import PARTS, l4t_release

    folder, precision = case.system.at(cache_folder(case.config.model.engine_cache)), case.config.model.precision
    configs = " ".join(f"--config {file}" for file in case.config_files)
    again = f"sudo -u {case.user or '$USER'} physvlm prepare {configs}".rstrip()
    installed = case.system.version("tensorrt") if case.system.live else case.system.apt_version("python3-libnvinfer")
    now = {"tensorrt": installed, "l4t": l4t_release(case.system.at("/etc/nv_tegra_release"))}
    try:
        if precision == "auto":
            precision = json.loads((folder / CHOICE).read_bytes())["precision"]
        for part in PARTS:
            path = folder / f"{spec.name}_{precision}_{part}.plan"
            built = plan.unseal(path.read_bytes(), part, precision).components
            for key, value in now.items():
                if _three(built.get(key)) != _three(value):  # dpkg and pip tell more of TensorRT's numbers than it does itself
                    return fault(f"the {part}'s plan was built for {key} {built.get(key)}, this is {value}: it would be built "
                                 "anew at the next start, for minutes", f"{again} --rebuild")
    except PermissionError as e:
        return fault(f"{e.filename} may not be read by this user", "sudo physvlm doctor")
    except OSError as e:
        return fault(f"no plans for {spec.name} in {precision} in {folder}: {e.strerror}", again)
    except (EngineError, ValueError, KeyError, TypeError) as e:
        return fault(f"the plans in {folder} cannot be read: {e}", f"{again} --rebuild")
    return ok(f"plans of {spec.name} in {precision} fit this release; they are proven at every start")


def record(case: Case) -> Found:
    """The folder of the recordings: whether the service may write it, and whether there is the room that it may take."""
    wanted, room_mb = case.config.record.folder, case.config.record.max_mb
    if not wanted:
        return none("nothing is recorded")
    choose = f"sudoedit {case.config_files[-1] if case.config_files else CONFIG}: [record] folder"
    there = case.system.at(os.path.abspath(wanted))
    if os.path.exists(there) and not there.is_dir():
        return fault(f"{wanted} is a file; expected a folder", choose)
    known = case.system.groups_of(case.user) if case.user else None
    if known is not None:
        places = [CACHE, RECORDS, *(p.lstrip("-+") for p in case.unit_setting("ReadWritePaths").split())]
        if not any(Path(os.path.abspath(wanted)).is_relative_to(place) for place in places):
            return fault(f"{wanted}: the service may write only below {', '.join(places)}",
                         f"sudo physvlm install --data {wanted} --apply; sudo systemctl daemon-reload; "
                         "sudo systemctl restart physvlm")
    own = Path(os.path.abspath(wanted)).is_relative_to(RECORDS)  # systemd makes and owns it
    if not own and (user := _denied_folder(case, there)):
        return fault(f"{user} may not write to {wanted}; expected a folder of its own",
                     f"sudo install -d -o {case.user or '$USER'} -m 750 {wanted}")
    try:
        disk = case.system.disk(there)
    except OSError as e:
        return fault(f"{wanted}: {e.strerror}", choose)
    if disk.read_only:
        return fault(f"{wanted} is read-only; expected writable", f"dmesg | tail, then sudo mount -o remount,rw {wanted}")
    free_mb, taken_mb = disk.free_bytes >> 20, _taken_mb(there)
    if free_mb + taken_mb < room_mb:
        return warn(f"{free_mb} MB free for {wanted}, which holds {taken_mb} MB; expected room for [record] max_mb = {room_mb}",
                    f"make room, or {choose.replace('folder', 'max_mb')}")
    return ok(f"{wanted}, {taken_mb} of {room_mb} MB")


def _denied_folder(case: Case, there: Path) -> str:
    """Who may not write to a folder, or make it; empty where it may."""
    while not os.path.exists(there):
        there = there.parent
    known = case.system.groups_of(case.user) if case.user else None
    if known is None:
        return "" if os.access(there, os.W_OK | os.X_OK) else "this user"
    return "" if _may(there.stat(), known, 0o3) else case.user


def _taken_mb(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) >> 20 if folder.is_dir() else 0


def bundle(case: Case) -> Found:
    current = case.system.at(BUNDLES) / "current"
    if not os.path.lexists(current):
        if BUNDLES in case.config.model.weights:
            return fault(f"no bundle is installed, and the weights are {case.config.model.weights}",
                         "sudo physvlm bundle install FILE")
        return none("none installed: the shipped weights run")
    if not os.path.exists(current / "manifest.json"):
        return fault(f"{current} leads nowhere; expected an installed bundle", "sudo physvlm bundle install FILE")
    if BUNDLES not in case.config.model.weights:
        return warn(f"{current.resolve().name} is installed, and not what the configuration runs",
                    "sudo physvlm install --bundle --apply")
    return ok(current.resolve().name)


CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("config", config, False), ("service", unit, False), ("names", names, True), ("camera", camera, True), ("port", port, True),
    ("rivals", port_rivals, True), ("display", display, True), ("weights", weights, True), ("engine", engine, True),
    ("bundle", bundle, True), ("record", record, True))
"""(name, check, whether it needs the configuration)."""
