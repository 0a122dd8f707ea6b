"""What `physvlm install` writes, keeps and takes away again; and whether systemd would take it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.__main__ import main
from edge.appliance.devices import InstallError, device_id, of_rule, plugged_in
from edge.appliance.install import (
    BACKUP,
    CACHE,
    CAMERA,
    CONFIG,
    DISPLAY,
    RECORDS,
    RULES,
    UNIT,
    WANTED,
    Settings,
    apply,
    planned,
    preview,
    udev_rules,
    uninstall,
)
from edge.config import load_config

OK, USAGE = 0, 2
PROGRAM = "/opt/physvlm/bin/physvlm"


def settings(root, **more):
    return Settings(**({"program": PROGRAM, "root": root} | more))


def all_files(root):
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def at(root, path):
    return root / path.lstrip("/")


def install(capsys, root, *args):
    code = main(["install", "--root", str(root), "--program", PROGRAM, *args])
    return code, *capsys.readouterr()


def test_a_dry_run_prints_every_file_whole_and_writes_none(capsys, tmp_path):
    code, out, _ = install(capsys, tmp_path)
    assert code == OK and not list(tmp_path.iterdir())
    for file in planned(settings(tmp_path)):
        assert f"=== new: {file.path}\n{file.text.rstrip()}" in out
    assert "nothing was written" in out and "systemctl enable physvlm" in out


def test_apply_writes_what_the_dry_run_printed_and_a_second_time_nothing(capsys, tmp_path):
    code, out, _ = install(capsys, tmp_path, "--apply", "--display", "0403:6001", "--profile", "adult")
    first = all_files(tmp_path)
    assert code == OK and {p for p in first if "installed.json" not in p} == {f.path[1:] for f in planned(settings(tmp_path))}
    times = {p: (tmp_path / p).stat().st_mtime_ns for p in first}
    code, out, _ = install(capsys, tmp_path, "--apply", "--display", "0403:6001", "--profile", "adult")
    assert code == OK and all_files(tmp_path) == first and "changed" not in out and "new" not in out
    assert {p: (tmp_path / p).stat().st_mtime_ns for p in first} == times


def test_the_configuration_is_usable_and_has_what_the_flags_said(capsys, tmp_path):
    install(capsys, tmp_path, "--apply", "--camera", "046d:0825", "--display", "ttyTHS1", "--baud", "9600", "--bundle")
    config = load_config(at(tmp_path, CONFIG))
    assert config.camera.source == "usb:/dev/physvlm-camera" and config.serial.port == "/dev/physvlm-display"
    assert config.serial.baud == 9600 and config.model.weights == "/var/lib/physvlm/bundles/current/weights"
    assert config.model.engine_cache == "/var/cache/physvlm"
    unit = at(tmp_path, UNIT).read_text()
    assert (f"ExecStart={PROGRAM} run --wait --config /var/lib/physvlm/bundles/current/physvlm.toml --config {CONFIG}") in unit


def test_keys_that_were_not_given_let_the_bundle_s_settings_through(tmp_path):
    apply(settings(tmp_path, bundle=True))
    (tmp_path / "bundle.toml").write_text('[vitals]\nprofile = "adult"\n')
    assert load_config([str(tmp_path / "bundle.toml"), str(at(tmp_path, CONFIG))]).vitals.profile == "adult"


def test_a_configuration_that_is_there_stays_and_what_it_lacks_is_said(capsys, tmp_path):
    at(tmp_path, CONFIG).parent.mkdir(parents=True)
    at(tmp_path, CONFIG).write_text("# mine\n")
    code, out, _ = install(capsys, tmp_path, "--apply", "--display", "0403:6001")
    assert code == OK and at(tmp_path, CONFIG).read_text() == "# mine\n"
    assert "is yours and stays; set there: serial.port = '/dev/physvlm-display'" in out


def test_a_later_call_with_one_flag_leaves_the_rest_as_it_was(capsys, tmp_path):
    """Each command that the doctor names gives the one flag that mends something."""
    install(capsys, tmp_path, "--apply", "--camera", "046d:0825:A1", "--display", "1-2.3", "--user", "nurse", "--data", "/data",
            "--bundle")
    before = all_files(tmp_path)
    code, out, _ = install(capsys, tmp_path, "--apply")
    assert code == OK and all_files(tmp_path) == before and "changed" not in out
    install(capsys, tmp_path, "--apply", "--display", "ttyTHS1")
    rules = at(tmp_path, RULES).read_text()
    assert of_rule(rules, CAMERA) == device_id("046d:0825:A1") and of_rule(rules, DISPLAY) == device_id("ttyTHS1")
    install(capsys, tmp_path, "--apply", "--camera", "none", "--no-bundle", "--data", "none")
    unit = at(tmp_path, UNIT).read_text()
    assert of_rule(at(tmp_path, RULES).read_text(), CAMERA) is None and "User=nurse" in unit
    assert "bundles" not in unit and "ReadWritePaths=-" not in unit


def test_the_program_is_that_of_last_time_as_long_as_it_is_there(capsys, tmp_path):
    install(capsys, tmp_path, "--apply")
    assert main(["install", "--root", str(tmp_path)]) == OK
    assert f"-ExecStart={PROGRAM}" in capsys.readouterr().out  # it is not there: this environment's takes its place
    at(tmp_path, PROGRAM).parent.mkdir(parents=True)
    at(tmp_path, PROGRAM).touch()
    assert main(["install", "--root", str(tmp_path)]) == OK
    assert f"=== same: {UNIT}" in capsys.readouterr().out


def test_what_the_service_may_write_are_the_places_that_its_unit_gives_it(capsys, tmp_path):
    code, _, err = install(capsys, tmp_path, "--apply", "--data", "/data", "--record", "/data/records", "--cache",
                           f"{CACHE}/engines", "--wire", f"{RECORDS}/wire")
    unit = at(tmp_path, UNIT).read_text()
    assert code == OK and "ReadWritePaths=-/data\n" in unit, err
    assert f"/var/cache/{re.search('CacheDirectory=(.*)', unit)[1]}" == CACHE
    assert f"/var/lib/{re.search('StateDirectory=(.*)', unit)[1]}" == RECORDS
    folders = dict(re.findall(r"\b([A-Z_]+)=(/\S+)", "\n".join(re.findall("^Environment=(.*)", unit, re.MULTILINE))))
    assert {"XDG_CACHE_HOME", "GST_REGISTRY", "CUDA_CACHE_PATH", "TMPDIR"} == set(folders)
    writable = (CACHE, f"/run/{re.search('RuntimeDirectory=(.*)', unit)[1]}")
    assert all(Path(folder).is_relative_to(writable[name == "TMPDIR"]) for name, folder in folders.items())


def test_what_is_replaced_is_shown_as_a_difference_and_kept_beside(capsys, tmp_path):
    at(tmp_path, UNIT).parent.mkdir(parents=True)
    at(tmp_path, UNIT).write_text("[Unit]\nDescription=an older one\n")
    _, out, _ = install(capsys, tmp_path)
    assert f"=== changed: {UNIT}" in out and "-Description=an older one" in out and "+Description=PhysVLM" in out
    install(capsys, tmp_path, "--apply")
    assert at(tmp_path, UNIT + BACKUP).read_text() == "[Unit]\nDescription=an older one\n"
    install(capsys, tmp_path, "--apply", "--user", "nurse")
    assert "User=physvlm" in at(tmp_path, UNIT + BACKUP + ".1").read_text()
    assert "User=nurse" in at(tmp_path, UNIT).read_text()


def test_uninstalling_puts_back_what_was_there_and_keeps_what_was_edited(capsys, tmp_path):
    at(tmp_path, UNIT).parent.mkdir(parents=True)
    at(tmp_path, UNIT).write_text("an older one\n")
    install(capsys, tmp_path, "--apply")
    at(tmp_path, CONFIG).write_text("# edited\n")
    before = all_files(tmp_path)
    code, out, _ = install(capsys, tmp_path, "--uninstall")
    assert code == OK and all_files(tmp_path) == before and "nothing was removed" in out
    at(tmp_path, WANTED).parent.mkdir()
    at(tmp_path, WANTED).symlink_to(UNIT)
    install(capsys, tmp_path, "--uninstall", "--apply")
    assert all_files(tmp_path) == {UNIT[1:]: "an older one\n", CONFIG[1:] + BACKUP: "# edited\n"}
    assert at(tmp_path, WANTED).is_symlink()  # of the older unit, which is there again
    assert "nothing was installed" in install(capsys, tmp_path, "--uninstall", "--apply")[1]


def test_uninstalling_takes_the_service_out_of_the_start_too(capsys, tmp_path):
    """systemctl cannot disable a unit whose file is gone."""
    install(capsys, tmp_path, "--apply")
    at(tmp_path, WANTED).parent.mkdir()
    at(tmp_path, WANTED).symlink_to(UNIT)
    code, out, _ = install(capsys, tmp_path, "--uninstall")
    assert code == OK and f"removed: {WANTED}" in out and at(tmp_path, WANTED).is_symlink()
    code, out, _ = install(capsys, tmp_path, "--uninstall", "--apply")
    assert code == OK and not at(tmp_path, WANTED).is_symlink() and not all_files(tmp_path)
    assert "systemctl stop physvlm-recover physvlm" in out and "systemctl disable" not in out


@pytest.mark.parametrize("args", [[], ["--apply"], ["--uninstall"], ["--uninstall", "--apply"]], ids=" ".join)
@pytest.mark.parametrize("closed", ["etc/systemd", "var/lib"])
def test_a_folder_that_may_not_be_entered_is_said_in_one_line(tmp_path, args, closed):
    """As a user without sudo meets it; for root, without the right to pass over permissions."""
    (tmp_path / "root" / closed).mkdir(parents=True)
    tmp_path.chmod(0o755)
    (tmp_path / "root" / closed).chmod(0)
    drop = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("no setpriv here (util-linux)")
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    try:
        done = subprocess.run([*drop, sys.executable, "-m", "edge", "install", "--root", str(tmp_path / "root"), *args],
                              cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60)
    finally:
        (tmp_path / "root" / closed).chmod(0o755)
    if done.returncode == OK:  # its files lie elsewhere
        assert closed == "etc/systemd" and "--uninstall" in args
        return
    assert done.returncode == USAGE and "Permission denied" in done.stderr and "sudo" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("physvlm: ")


def test_a_write_that_fails_leaves_whole_files_and_can_be_repeated(tmp_path, monkeypatch):
    from edge.appliance import install as module
    from engines.files import write_whole

    for fail_at in range(9):
        count = 0

        def failing(path, data, fail_at=fail_at):
            nonlocal count
            count += 1
            if count == fail_at:
                raise OSError(28, "No space left on device")
            write_whole(path, data)

        root = tmp_path / str(fail_at)
        root.mkdir()
        monkeypatch.setattr(module, "write_whole", failing)
        if fail_at:
            with pytest.raises(InstallError, match="No space left"):
                apply(settings(root))
        monkeypatch.setattr(module, "write_whole", write_whole)
        apply(settings(root))
        assert not any(BACKUP in name for name in all_files(root))
        assert all("same" in line or "kept" in line for line in apply(settings(root)))


def test_what_is_written_can_be_read_by_the_service_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        apply(settings(tmp_path))
    finally:
        os.umask(before)
    assert at(tmp_path, CONFIG).parent.stat().st_mode & 0o777 == 0o755 and at(tmp_path, CONFIG).stat().st_mode & 0o777 == 0o644


def test_a_masked_unit_is_not_written_through(tmp_path):
    at(tmp_path, UNIT).parent.mkdir(parents=True)
    at(tmp_path, UNIT).symlink_to("/dev/null")
    with pytest.raises(InstallError, match="symbolic link"):
        preview(settings(tmp_path))


@pytest.mark.parametrize(("args", "message"), [
    (["--camera", "logitech"], "VENDOR:PRODUCT"), (["--camera", "ttyTHS1"], "is a serial port"),
    (["--user", "root"], "not root"),
    (["--user", "a b"], "small letters"), (["--program", "physvlm"], "absolute path"), (["--program", "/a b"], "absolute path"),
    (["--data", "/x;y"], "absolute path"), (["--root", "/nowhere"], "no such folder"), (["--baud", "1"], "9600"),
    (["--bundle", "--weights", "/w"], "leave one of them out"), (["--display", '0403:6001:"x'], "VENDOR:PRODUCT"),
    (["--camera", ""], "VENDOR:PRODUCT"), (["--camera", "046d:0825", "--source", "usb:0"], "--source usb:0 is another"),
    (["--display", "ttyTHS1", "--port", "/dev/ttyTHS1"], "--port /dev/ttyTHS1 is another"),
    (["--record", "/home/x"], "may write only below /var/cache/physvlm, /var/lib/physvlm/records"),
    (["--data", "/data", "--record", "/data/../etc"], "may write only below"),
    (["--wire", "/tmp/wire"], "give the folder to --data too"), (["--cache", "engines"], "may write only below")])
def test_what_cannot_be_installed_is_refused_with_the_reason(capsys, tmp_path, args, message):
    root = [] if "--root" in args else ["--root", str(tmp_path)]
    code = main(["install", *root, "--program", PROGRAM, *args])
    captured = capsys.readouterr()
    assert code == USAGE and message in captured.err and captured.out == ""


def usb_device(root, subsystem, node, port, vendor, product, serial="", index=""):
    """As sysfs has it: the class's entry is a link into the device's own folder."""
    usb = root / "sys/devices/usb1" / port
    place = usb / f"{port}:1.0" / subsystem / node
    place.mkdir(parents=True)
    for name, value in (("idVendor", vendor), ("idProduct", product), ("serial", serial)):
        if value:
            (usb / name).write_text(value + "\n")
    if index:
        (place / "index").write_text(index + "\n")
    (root / "sys/class" / subsystem).mkdir(parents=True, exist_ok=True)
    (root / "sys/class" / subsystem / node).symlink_to(place)


def test_two_cameras_alike_are_told_apart_by_serial_number_or_port(capsys, tmp_path):
    usb_device(tmp_path, "video4linux", "video0", "1-2", "046d", "0825", "A1", "0")
    usb_device(tmp_path, "video4linux", "video2", "1-3.1", "046d", "0825", "B2", "0")
    usb_device(tmp_path, "tty", "ttyUSB0", "1-4", "0403", "6001")
    _, out, _ = install(capsys, tmp_path, "--camera", "046d:0825", "--display", "0403:6001")
    assert "# --camera 046d:0825 fits 2 devices" in out and "video0 (USB port 1-2, serial number A1)" in out
    assert "video2 (USB port 1-3.1, serial number B2)" in out and "--display 0403:6001 fits" not in out
    for one, node in (("046d:0825:A1", "video0"), ("1-3.1", "video2")):
        assert list(plugged_in(tmp_path, "video4linux", device_id(one))) == [node]
        assert "fits" not in install(capsys, tmp_path, "--camera", one)[1]
    _, out, _ = install(capsys, tmp_path, "--camera", "046d:9999", "--display", "ttyTHS1")
    assert "# --camera 046d:9999: nothing like it is plugged in now" in out
    assert "# --display ttyTHS1: nothing like it" in out


def test_of_a_camera_s_several_nodes_the_first_is_the_one(tmp_path):
    usb_device(tmp_path, "video4linux", "video0", "1-2", "046d", "0825", index="0")
    place = tmp_path / "sys/devices/usb1/1-2/1-2:1.0/video4linux/video1"
    place.mkdir()
    (place / "index").write_text("1\n")
    (tmp_path / "sys/class/video4linux/video1").symlink_to(place)
    assert list(plugged_in(tmp_path, "video4linux", device_id("046d:0825"))) == ["video0"]


@pytest.mark.parametrize("text", ["046d:0825", "046d:0825:A1.b", "1-2.3", "ttyTHS1"])
def test_a_device_is_found_again_in_the_rule_that_was_written_for_it(text):
    for flag, name in (("camera", CAMERA), ("display", DISPLAY)):
        if flag == "display" or not text.startswith("tty"):
            assert str(of_rule(udev_rules(Settings(PROGRAM, **{flag: device_id(text)})), name)) == text
    assert of_rule(udev_rules(Settings(PROGRAM)), CAMERA) is None


@pytest.mark.parametrize(("display", "commands"), [
    ("0403:6001", []), ("ttyS0", ["systemctl mask --now serial-getty@ttyS0"]),
    ("ttyTHS1", ["systemctl disable --now nvgetty", "systemctl mask --now serial-getty@ttyTHS1"])])
def test_a_login_prompt_is_looked_for_where_the_display_is_a_uart(capsys, tmp_path, display, commands):
    _, out, _ = install(capsys, tmp_path, "--display", display)
    assert [line.removeprefix("  sudo ") for line in out.splitlines() if "getty" in line] == commands


def test_engines_are_prepared_with_the_configuration_of_the_service(capsys, tmp_path):
    _, out, _ = install(capsys, tmp_path, "--bundle", "--backend", "tensorrt")
    unit = next(f.text for f in planned(settings(tmp_path, bundle=True)) if f.path == UNIT)
    flags = re.search(r"run --wait (.*)", unit)[1]
    assert flags.count("--config") == 2 and f"sudo -u physvlm {PROGRAM} prepare {flags}" in out


# --- what is in the files


def test_every_udev_rule_matches_one_device_and_parses():
    for camera, display in (("046d:0825:A1", "0403:6001"), ("1-2.3", "3-1"), ("046d:0825", "ttyTHS1")):
        text = udev_rules(Settings(PROGRAM, camera=device_id(camera), display=device_id(display)))
        rules = [line for line in text.splitlines() if line and not line.startswith("#")]
        assert len(rules) == (6 if ":" in display or "-" in display else 4)
        part = r'[A-Z_]+(\{[\w/]+\})?(==|\+=|=)"[^"]*"'
        for rule in rules:
            assert re.fullmatch(rf"{part}(, {part})*", rule), rule
            assert "==" in rule and ("SYMLINK+=" in rule or 'ENV{DEVTYPE}=="usb_device"' in rule)
    assert 'SYMLINK+="physvlm-display"' in text and 'KERNEL=="ttyTHS1"' in text


def test_a_display_on_usb_is_kept_from_modemmanager_and_from_sleep():
    text = udev_rules(Settings(PROGRAM, display=device_id("0403:6001:AB.1")))
    assert 'ATTRS{serial}=="AB.1"' in text and 'ENV{ID_MM_DEVICE_IGNORE}="1"' in text
    assert 'ATTR{power/control}="on"' in text and "KERNELS" not in text


def test_the_unit_gives_the_service_no_rights_and_systemd_the_watchdog(tmp_path):
    unit = next(f.text for f in planned(settings(tmp_path, data="/data")) if f.path == UNIT)
    lines = set(unit.splitlines())
    assert {"Type=notify", "NotifyAccess=main", "WatchdogSec=10", "Restart=always", "StartLimitBurst=10", "User=physvlm",
            "SupplementaryGroups=dialout video render", "ProtectSystem=strict", "NoNewPrivileges=yes", "DevicePolicy=closed",
            "CacheDirectory=physvlm", "ReadWritePaths=-/data", "CapabilityBoundingSet="} <= lines
    assert any(line.startswith("MemoryMax=") for line in lines)
    # a hang is over within 15 s: seen after 1 s, WatchdogSec, TimeoutAbortSec, RestartSec, and 2 s to the first frame
    seconds = {k: float(v.removesuffix("ms")) / (1000 if v.endswith("ms") else 1) for k, v in
               (line.split("=") for line in lines if line.startswith(("WatchdogSec", "TimeoutAbortSec", "RestartSec")))}
    assert 1 + sum(seconds.values()) + 2 <= 15
    assert not re.search(r"@[A-Z]+@", "".join(f.text for f in planned(settings(tmp_path))))


@pytest.fixture
def written(tmp_path):
    """The units with a program that is there, since systemd looks for it."""
    apply(settings(tmp_path, program=shutil.which("true") or "/bin/true", data="/data"))
    return at(tmp_path, UNIT)


def test_systemd_finds_nothing_wrong_with_the_unit(written):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", written], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "physvlm" not in done.stderr, done.stderr


def test_systemd_rates_the_unit_as_well_closed(written):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", written],
                          capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline")
    assert done.returncode == 0, done.stdout[-300:]


def test_udev_finds_nothing_wrong_with_the_rules(tmp_path):
    if shutil.which("udevadm") is None:
        pytest.skip("no udevadm here")
    apply(settings(tmp_path, camera=device_id("046d:0825"), display=device_id("1-2.3")))
    done = subprocess.run(["udevadm", "verify", at(tmp_path, RULES)], capture_output=True, text=True, timeout=60)
    if "Unknown command verb" in done.stderr:
        pytest.skip("udevadm before 254 has no verify")
    assert done.returncode == 0, done.stderr


def test_the_data_files_are_those_that_setup_py_packs():
    folder = Path(__file__).resolve().parents[1] / "edge/appliance/files"
    names = {"physvlm.service", "physvlm-recover.service", "journald.conf", "sysusers.conf"}
    assert {p.name for p in folder.iterdir()} == names


def test_uninstalling_another_root_touches_no_other(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for root in ("a", "b"):
        apply(settings(tmp_path / root))
    uninstall(tmp_path / "a", True)
    assert not all_files(tmp_path / "a") and len(all_files(tmp_path / "b")) == 7
