"""The one configuration: what the TOML file may say, what the command line may say, and what holds when neither speaks.

Every key stands once, in the dataclasses below, with its default, its meaning, its flag and its check; the reader, the
flags and the commented file that `default_toml` writes all come from there.
"""

from __future__ import annotations

import argparse
import difflib
import json
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from edge.clip import Region

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ConfigError(ValueError):
    """The configuration cannot be used: whoever started the program has to change it (exit code 2)."""


Roi = Literal["full", "auto"] | Region
"""All of the picture; the rhythmic region, found and followed; or this one (that it lies inside, the picture tells)."""


def parse_roi(value: object) -> Roi:
    """"full", "auto" or "X,Y,W,H" in pixels, W and H above 0."""
    expected = f"expected full, auto or X,Y,W,H in whole pixels with W and H above 0, got {value!r}"
    if not isinstance(value, str):
        raise ConfigError(expected)
    if value == "full":
        return "full"
    if value == "auto":
        return "auto"
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(expected)
    x, y, w, h = map(int, parts)
    if w == 0 or h == 0:
        raise ConfigError(expected)
    return Region(x, y, w, h)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"expected text, got {value!r}")
    return value


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"expected true or false, got {value!r}")
    return value


def _one_of(*allowed: str | int) -> Callable[[object], Any]:
    def check(value: object) -> object:
        # True == 1 and 9600.0 == 9600: neither may pass for the whole number
        if type(value) is not type(allowed[0]) or value not in allowed:
            raise ConfigError(f"expected {', '.join(map(str, allowed[:-1]))} or {allowed[-1]}, got {value!r}")
        return value

    return check


def _whole(low: int, high: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(f"expected a whole number from {low} to {high}, got {value!r}")
        return value

    return check


def _key(default: Any, doc: str, check: Callable[[object], Any], flag: str = "") -> Any:
    """One key: `default` as the file would write it; `check` turns a value into the one kept or raises ConfigError."""
    return field(default_factory=lambda: check(default),
                 metadata={"doc": doc, "check": check, "flag": flag, "default": default})


@dataclass(frozen=True)
class CameraConfig:
    """Where the pictures come from, and which part of them is looked at."""

    source: str = _key("usb:0", "usb:N, usb:/dev/... (with ,WxH@FPS), file:PATH or just the path of a video", _text, "--source")
    realtime: bool = _key(False, "replay at the video's own pace, as run always does, not as fast as it goes",
                          _switch, "--realtime")
    roi: Roi = _key("auto", "full = the whole picture, auto = find and follow the rhythm, X,Y,W,H = this region, in px",
                    parse_roi, "--roi")
    mains_hz: int = _key(50, "50 or 60, of the power line: an exposure is whole half-periods of it, so that no lamp flickers",
                         _one_of(50, 60), "--mains-hz")


@dataclass(frozen=True)
class ModelConfig:
    """The network, and what runs it."""

    backend: str = _key("onnxruntime", "onnxruntime runs anywhere, tensorrt on a Jetson",
                        _one_of("onnxruntime", "tensorrt"), "--backend")
    preprocess: str = _key("auto", "what makes pictures small and even: cpu, cuda, or auto: with tensorrt, the faster of both",
                           _one_of("auto", "cpu", "cuda"), "--preprocess")
    precision: str = _key("auto", "fp32, fp16, int8, or auto: what `physvlm prepare` chose; fp32 on ONNX Runtime",
                          _one_of("fp32", "fp16", "int8", "auto"), "--precision")
    weights: str = _key("", "folder of another student than the shipped one; empty = the shipped one",
                        _text, "--weights")
    engine_cache: str = _key("", "folder of the engines that TensorRT built; empty = /var/cache/physvlm for root "
                             "and the service, ~/.cache/physvlm for others", _text, "--cache")


@dataclass(frozen=True)
class VitalsConfig:
    """Who lies in front of the camera."""

    profile: str = _key("neonate", "neonate or adult: the bands a rate may be shown in, and its averaging time",
                        _one_of("neonate", "adult"), "--profile")


@dataclass(frozen=True)
class SerialConfig:
    """The link to the display."""

    port: str = _key("", "serial port of the display, such as /dev/ttyUSB0; empty = no display", _text, "--port")
    baud: int = _key(115200, "bits per second; the display must be set to the same",
                     _one_of(9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600), "--baud")
    stop_bits: int = _key(1, "1 or 2; a Jetson's own UART needs 2 towards some microcontrollers",
                          _one_of(1, 2), "--stop-bits")
    wire_file: str = _key("", "file that keeps every byte sent; empty = none", _text, "--wire")
    demo: bool = _key(False, "mark all that is sent as a demonstration, and the display says so (replays always are)",
                      _switch, "--demo")


@dataclass(frozen=True)
class RecordConfig:
    """What is kept of a run: readings, waveforms, states and the wire's bytes."""

    folder: str = _key("", "folder that keeps them; empty = nothing is kept", _text, "--record")
    pictures: bool = _key(False, "keep a picture a second, too: they show the child", _switch, "--record-pictures")
    max_mb: int = _key(1024, "room for all runs together; the oldest goes first", _whole(16, 1_000_000),
                       "--record-max-mb")


@dataclass(frozen=True)
class LogConfig:
    """What goes to stderr."""

    level: str = _key("info", "debug, info, warning or error",
                      _one_of("debug", "info", "warning", "error"), "--log-level")


@dataclass(frozen=True)
class Config:
    """All of it; made by `load_config`, or Config() for the defaults."""

    camera: CameraConfig = field(default_factory=CameraConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    vitals: VitalsConfig = field(default_factory=VitalsConfig)
    serial: SerialConfig = field(default_factory=SerialConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    log: LogConfig = field(default_factory=LogConfig)


_SECTIONS: dict[str, type] = {
    "camera": CameraConfig, "model": ModelConfig, "vitals": VitalsConfig, "serial": SerialConfig,
    "record": RecordConfig, "log": LogConfig,
}
KEYS: dict[str, Field[Any]] = {
    f"{section}.{key.name}": key for section, kind in _SECTIONS.items() for key in fields(kind)
}


def load_config(path: str | Path | Sequence[str] | None = None, overrides: Mapping[str, object] | None = None) -> Config:
    """Defaults, then the TOML file, then the overrides. Of several files a later one wins.

    overrides: {"camera.roi": "auto", ...}, values as the file writes them; None = not given (see flag_overrides).
    Raises ConfigError for an unreadable file, an unknown key, and a value of the wrong type or outside its range.
    """
    given: dict[str, tuple[object, str]] = {}
    for file in [path] if isinstance(path, (str, Path)) else path or ():
        given.update({name: (value, f"{file}: {name}") for name, value in read_toml(Path(file)).items()})
    for name, value in (overrides or {}).items():
        if name not in KEYS:
            raise ConfigError(f"unknown key {name!r}{_nearest(name)}")
        if value is not None:
            given[name] = (value, KEYS[name].metadata["flag"] or name)
    kept: dict[str, dict[str, object]] = {section: {} for section in _SECTIONS}
    for name, (value, where) in given.items():
        section, key = name.split(".")
        try:
            kept[section][key] = KEYS[name].metadata["check"](value)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return Config(**{section: kind(**kept[section]) for section, kind in _SECTIONS.items()})


def read_toml(path: Path) -> dict[str, object]:
    """The file's keys as section.key, every one of them known; the values are not looked at. Raises ConfigError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: cannot be read: no file; expected a TOML file")
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: byte {error.start} is no UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    found: dict[str, object] = {}
    for section, table in document.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: unknown key {section!r} outside any section{_nearest(section)}")
        if section not in _SECTIONS:
            raise ConfigError(f"{path}: unknown section [{section}], expected one of "
                              + ", ".join(f"[{known}]" for known in _SECTIONS))
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in KEYS:
                raise ConfigError(f"{path}: unknown key {key!r} in [{section}]{_nearest(name)}")
            found[name] = value
    return found


def _nearest(name: str) -> str:
    """The end of a message about an unknown key: the known one most like it, or all of them."""
    sections = {known.split(".")[1]: known.split(".")[0] for known in KEYS}
    for key in difflib.get_close_matches(name.rpartition(".")[2], sections, n=1):
        return f"; did you mean {key!r} in [{sections[key]}]?"
    return f"; known keys: {', '.join(KEYS)}"


def add_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add the flags of these keys (all that have one, where none is named) to a parser; a flag not given stays None."""
    for name in names or KEYS:
        meta = KEYS[name].metadata
        if not meta["flag"]:
            continue
        doc = meta["doc"].replace("%", "%%")
        default = meta["default"]
        if isinstance(default, bool):
            parser.add_argument(meta["flag"], dest=name, action="store_const", const=True, help=doc)
        else:
            parser.add_argument(meta["flag"], dest=name, type=type(default), metavar=name.split(".")[1].upper(),
                                help=doc if default == "" else f"{doc} (default: {default})")


def flag_overrides(namespace: argparse.Namespace) -> dict[str, object]:
    """What `add_flags` read from the command line, as `load_config` takes it."""
    return {name: value for name, value in vars(namespace).items() if name in KEYS}


def default_toml(given: Mapping[str, object] | None = None) -> str:
    """A TOML file with every key at its default, each under a line that says what it is.

    given: with it, these keys have these values and all others are commented out, so that a file read before shows through.
    """
    lines = ["# PhysVLM Edge. Flags on the command line win over this file; an unknown key is an error."]
    for section, kind in _SECTIONS.items():
        lines += ["", f"# {kind.__doc__}", f"[{section}]"]
        for key in fields(kind):
            name, value = f"{section}.{key.name}", key.metadata["default"]
            mark = "" if given is None or name in given else "# "
            lines += [f"# {key.metadata['doc']}", f"{mark}{key.name} = {_as_toml((given or {}).get(name, value))}"]
    return "\n".join(lines) + "\n"


def _as_toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)  # a JSON string is a TOML string
