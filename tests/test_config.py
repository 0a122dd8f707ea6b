from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, fields

import pytest

from edge.clip import Region
from edge.config import Config, ConfigError, add_flags, default_toml, flag_overrides, load_config, parse_roi


@pytest.fixture
def toml(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "edge.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_without_file_or_flags_the_defaults_hold():
    assert load_config() == Config()
    assert load_config().vitals.profile == "neonate" and load_config().serial.baud == 115200


def test_the_default_file_says_the_defaults_and_explains_every_key(toml):
    text = default_toml()
    assert load_config(toml(text)) == Config()
    lines = text.splitlines()
    for section in fields(Config):
        for key in fields(getattr(Config(), section.name)):
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{key.name} = "))
            assert lines[at - 1].startswith("# ") and len(lines[at - 1]) > 10


def test_flags_win_over_the_file_and_the_file_over_the_defaults(toml):
    path = toml('[camera]\nsource = "usb:2"\nroi = "full"\n[serial]\nbaud = 9600\n')
    parser = argparse.ArgumentParser()
    add_flags(parser)
    config = load_config(path, flag_overrides(parser.parse_args(["--roi", "10,20,30,40", "--demo"])))
    assert config.camera.source == "usb:2"
    assert config.camera.roi == Region(10, 20, 30, 40)
    assert config.serial.baud == 9600 and config.serial.demo and config.serial.stop_bits == 1


def test_only_the_named_flags_are_added():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser, "camera.roi")
    assert flag_overrides(parser.parse_args(["--roi", "full"])) == {"camera.roi": "full"}
    assert "--baud" not in parser.format_help()


def test_the_configuration_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Config().serial.baud = 9600  # type: ignore[misc]


@pytest.mark.parametrize(("text", "message"), [
    ('[camera]\nrio = "full"', r"unknown key 'rio' in \[camera\]; did you mean 'roi' in \[camera\]\?"),
    ('[camera]\nprofile = "adult"', r"unknown key 'profile' in \[camera\]; did you mean 'profile' in \[vitals\]\?"),
    ("[serial]\nbaudrate = 9600", r"unknown key 'baudrate' in \[serial\]; did you mean 'baud' in \[serial\]\?"),
    ("[serial]\nqqq = 9600", r"unknown key 'qqq' in \[serial\]; known keys: camera.source, .*log.level"),
    ('roi = "full"', r"unknown key 'roi' outside any section; did you mean 'roi' in \[camera\]\?"),
    ("[seriel]\nbaud = 9600", r"unknown section \[seriel\], expected one of \[camera\], .*\[log\]"),
    ("[serial]\nbaud = 9601", r"serial.baud: expected 9600, 19200, .* or 921600, got 9601"),
    ('[serial]\nbaud = "9600"', r"serial.baud: expected .*, got '9600'"),
    ("[serial]\nbaud = 9600.0", r"serial.baud: expected .*, got 9600.0"),
    ("[serial]\nstop_bits = true", r"serial.stop_bits: expected 1 or 2, got True"),
    ("[serial]\nport = 0", r"serial.port: expected text, got 0"),
    ("[serial]\ndemo = 1", r"serial.demo: expected true or false, got 1"),
    ('[model]\nprecision = "int4"', r"model.precision: expected fp32, fp16, int8 or auto, got 'int4'"),
    ('[camera]\nroi = "1,2,3"', r"camera.roi: expected full, auto or X,Y,W,H .*, got '1,2,3'"),
    ("[camera]\nroi = [1, 2, 3, 4]", r"camera.roi: expected full, auto or X,Y,W,H .*, got \[1, 2, 3, 4\]"),
    ("[camera\n", r"not a TOML file"),
    (b"[camera]\nsource = '\xff'", r"not a TOML file: byte 19 is no UTF-8"),
])
def test_a_bad_file_is_an_error_that_names_file_and_key(toml, text, message):
    path = toml(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.toml: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.toml")


def test_a_bad_flag_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="^--precision: expected fp32, fp16, int8 or auto, got 'int4'"):
        load_config(None, {"model.precision": "int4"})
    with pytest.raises(ConfigError, match="unknown key 'camera.rio'; did you mean 'roi'"):
        load_config(None, {"camera.rio": "full"})


@pytest.mark.parametrize(("text", "roi"), [("full", "full"), ("auto", "auto"), ("0,0,1,1", Region(0, 0, 1, 1)),
                                           ("12, 34 ,560,780", Region(12, 34, 560, 780))])
def test_roi(text, roi):
    assert parse_roi(text) == roi


@pytest.mark.parametrize("text", ["", "Full", "1,2,3", "1,2,3,4,5", "1,2,0,4", "1,2,3,0", "-1,2,3,4", "1.0,2,3,4",
                                  "a,b,c,d", "1;2;3;4", "²,1,1,1", ",,,", None, 4])
def test_roi_that_is_none(text):
    with pytest.raises(ConfigError, match="expected full, auto or X,Y,W,H"):
        parse_roi(text)
