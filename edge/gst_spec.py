"""How `csi:` and `gst:` cameras are written, the pipelines that they mean, and what to do about their errors.

`csi:N[,WxH][@FPS][,key=value...]`: sensor N through Argus, 1280x720 at 30 where nothing else is asked for. Keys: `size=WxH`
of the pictures handed on (else the taken size over a whole number, at most 960 wide); `mode=` the sensor's mode;
`exposure=` in ms, `gain=` and `digital=`, each a value or LOW:HIGH; `wb=` 0-9; `antibanding=` 0-3. All but the exposure are
nvarguscamerasrc's own values.

`gst:PIPELINE` as gst-launch-1.0 takes it. Its pictures come from an appsink named `sink`; without an appsink one is appended.
A source named `cam` is looked at where its pictures leave it: what is dropped after it is counted, and a sensor's own time is
found there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from edge.camera import CameraError

_WIDEST_PX = 960  # more pixels than this across the picture cost time and add nothing to the means of a region
_NVIDIA_SCALER = 2  # nvvidconv's interpolation-method: 5-tap. Its own choice, nearest, throws most pixels away
_ANTIBANDING = {50: 2, 60: 3}
_SINK = "appsink name=sink sync=false max-buffers=4 drop=true"

_ARGUS_ADVICE = "sudo systemctl restart nvargus-daemon; journalctl -u nvargus-daemon says more"
_ADVICE = (  # words of GStreamer or of Argus -> what to do
    ("no cameras available", "check the ribbon cable, and the sensor's overlay in sudo /opt/nvidia/jetson-io/jetson-io.py; "
     f"then {_ARGUS_ADVICE}"),
    ('no element "nv', "only a Jetson has it: sudo apt-get install nvidia-l4t-gstreamer; elsewhere use usb: or gst:"),
    ("no element", "check its name with gst-inspect-1.0, or sudo apt-get install gstreamer1.0-plugins-base "
     "gstreamer1.0-plugins-good"),
    ("not installed", ""),
    ("pictures arrive", ""),
)


@dataclass(frozen=True)
class Csi:
    """What is asked of a sensor. Ranges are (low, high) in nvarguscamerasrc's own units; None: its own choice.

    taken, size: (width, height) of what Argus takes and of the picture handed on, px.
    """

    sensor: int
    taken: tuple[int, int] = (1280, 720)
    fps: str = "30/1"
    size: tuple[int, int] | None = None
    mode: int | None = None
    exposure_ns: tuple[int, int] | None = None
    gain: tuple[float, float] | None = None
    digital: tuple[float, float] | None = None
    wb: int = 1
    antibanding: int | None = None

    @property
    def picture(self) -> tuple[int, int]:
        """Of the picture handed on: `size`, or `taken` over the smallest whole number that makes it narrow enough."""
        if self.size is not None:
            return self.size
        parts = -(-self.taken[0] // _WIDEST_PX)
        return self.taken[0] // parts, self.taken[1] // parts


def parse_csi(rest: str) -> Csi:
    """What stands behind `csi:`. Raises CameraError."""
    number, *options = rest.split(",")
    if not re.fullmatch(r"\d{1,2}", number, re.ASCII):
        raise CameraError(f"csi:{rest}: expected csi:N with ,WIDTHxHEIGHT@FPS and ,key=value behind it where wanted, "
                          "such as csi:0,1920x1080@30,exposure=10")
    asked = Csi(int(number))
    for option in options:
        try:
            asked = _with_option(asked, option)
        except ValueError as error:
            raise CameraError(f"csi:{rest}: {option or 'an empty option'}: {error}") from error
    return asked


def _with_option(asked: Csi, option: str) -> Csi:
    """Raises ValueError with what was expected."""
    key, equals, value = option.partition("=")
    if not equals:
        found = re.fullmatch(r"(\d{2,5}x\d{2,5})?(?:@([1-9]\d{0,2}(?:\.\d{1,3})?))?", option, re.ASCII)
        if not option or found is None:
            raise ValueError("expected WIDTHxHEIGHT@FPS or key=value")
        taken, fps = found.groups()
        return replace(asked, taken=_size(taken) if taken else asked.taken, fps=_fraction(fps) if fps else asked.fps)
    if key == "size":
        return replace(asked, size=_size(value))
    if key == "mode":
        return replace(asked, mode=_whole(value, 0, 255))
    if key == "exposure":
        low, high = _range(value, 0.01, 1000.0)
        return replace(asked, exposure_ns=(round(low * 1e6), round(high * 1e6)))
    if key == "gain":
        return replace(asked, gain=_range(value, 1.0, 256.0))
    if key == "digital":
        return replace(asked, digital=_range(value, 1.0, 256.0))
    if key == "wb":
        return replace(asked, wb=_whole(value, 0, 9))
    if key == "antibanding":
        return replace(asked, antibanding=_whole(value, 0, 3))
    raise ValueError("no such option; expected size, mode, exposure, gain, digital, wb or antibanding")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{2,5})x(\d{2,5})", text, re.ASCII)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (16 <= width <= 8192 and 16 <= height <= 8192) or width % 2 or height % 2:
        raise ValueError("expected WIDTHxHEIGHT, even numbers from 16 to 8192")
    return width, height


def _whole(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not low <= int(text) <= high:
        raise ValueError(f"expected a whole number from {low} to {high}")
    return int(text)


def _range(text: str, lowest: float, highest: float) -> tuple[float, float]:
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)(?::(\d{1,4}(?:\.\d{1,4})?))?", text, re.ASCII)
    low, high = (float(found[1]), float(found[2] or found[1])) if found else (0.0, -1.0)
    if not lowest <= low <= high <= highest:
        raise ValueError(f"expected a number or LOW:HIGH from {lowest:g} to {highest:g}")
    return low, high


def _fraction(fps: str) -> str:
    """29.97 as 2997/100: GStreamer's frame rates are fractions."""
    whole, _, part = fps.partition(".")
    return f"{int(whole + part)}/{10 ** len(part)}"


def csi_pipeline(asked: Csi, mains_hz: int) -> str:
    """The Jetson's pipeline. No noise reduction over time and no sharpening: the first erases most of a pulse."""
    # a fixed exposure is the user's word, and the automatism's care for the lamps would bend it
    fixed = asked.exposure_ns is not None and asked.exposure_ns[0] == asked.exposure_ns[1]
    banding = asked.antibanding if asked.antibanding is not None else 0 if fixed else _ANTIBANDING[mains_hz]
    words = [f"nvarguscamerasrc name=cam sensor-id={asked.sensor}", "tnr-mode=0 ee-mode=0", f"wbmode={asked.wb}",
             f"aeantibanding={banding}", "aelock=false awblock=false"]
    if asked.mode is not None:
        words.append(f"sensor-mode={asked.mode}")
    for key, limits in (("exposuretimerange", asked.exposure_ns), ("gainrange", asked.gain),
                        ("ispdigitalgainrange", asked.digital)):
        if limits is not None:
            words.append(f'{key}="{limits[0]:.10g} {limits[1]:.10g}"')
    (taken_w, taken_h), (width, height) = asked.taken, asked.picture
    scaler = "" if asked.taken == asked.picture else f" interpolation-method={_NVIDIA_SCALER}"
    return (f"{' '.join(words)} ! video/x-raw(memory:NVMM),format=NV12,width={taken_w},height={taken_h},framerate={asked.fps}"
            f" ! nvvidconv{scaler} ! video/x-raw,format=BGRx,width={width},height={height} ! {_SINK}")


def exposure_note(asked: Csi, mains_hz: int) -> str | None:
    """What is wrong with a fixed exposure, if anything: only whole half-periods of the mains hold the same light each time."""
    if asked.exposure_ns is None or asked.exposure_ns[0] != asked.exposure_ns[1]:
        return None
    exposure_ms, half_ms = asked.exposure_ns[0] / 1e6, 500 / mains_hz
    parts = exposure_ms / half_ms
    if parts > 0.5 and abs(parts - round(parts)) < 0.01:
        return None
    return (f"flicker: an exposure of {exposure_ms:g} ms is no whole number of half-periods of {mains_hz} Hz; "
            f"use a multiple of {half_ms:.3f} ms")


def complete(pipeline: str) -> str:
    """The pipeline with an appsink named `sink` at its end. Raises CameraError where there is one with another name."""
    if not pipeline.strip():
        raise CameraError("gst: expected a pipeline such as gst:v4l2src device=/dev/video0")
    if re.search(r"(?<![\w-])appsink(?![\w-])", pipeline):
        if not re.search(r"(?<![\w-])name\s*=\s*\"?sink\"?(?![\w-])", pipeline):
            raise CameraError(f"gst:{pipeline}: its appsink must be named: appsink name=sink")
        if "!" not in pipeline:
            raise CameraError(f"gst:{pipeline}: a sink alone gives no pictures; expected gst:SOURCE ! ... ! appsink name=sink")
        return pipeline
    return f"{pipeline} ! videoconvert ! video/x-raw,format=BGRx ! {_SINK}"


def advice(words: str, argus: bool) -> str:
    """What to do about an error in GStreamer's words; "" where the words say so themselves."""
    for part, what in _ADVICE:
        if part in words.lower():
            return what
    return _ARGUS_ADVICE if argus else "try the same pipeline with gst-launch-1.0"
