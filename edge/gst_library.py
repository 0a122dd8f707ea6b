"""GStreamer's libraries through ctypes: the functions and structures that `gst_pipeline` uses.

Any Python can use them, and only the system's own libraries are needed; PyGObject would tie us to the distribution's
Python, and OpenCV's wheels have no GStreamer. Structures as on 64-bit machines (LP64: x86-64 and aarch64 agree).
"""

from __future__ import annotations

import ctypes as c
import functools
from collections.abc import Callable
from typing import Any

_P = c.c_void_p

NONE = 2**64 - 1
"""GStreamer's word for "no time" and "no offset"."""

PACKAGES = "libgstreamer1.0-0 libgstreamer-plugins-base1.0-0"
"""Where the libraries come from, on Debian, Ubuntu and so on a Jetson."""


class PipelineError(RuntimeError):
    """What GStreamer said, or that it is not there."""


class MiniObject(c.Structure):
    _fields_ = [("type", c.c_size_t), ("refcount", c.c_int), ("lockstate", c.c_int), ("flags", c.c_uint), ("copy", _P),
                ("dispose", _P), ("free", _P), ("priv_uint", c.c_uint), ("priv_pointer", _P)]


class Buffer(c.Structure):
    _fields_ = [("mini_object", MiniObject), ("pool", _P), ("pts", c.c_uint64), ("dts", c.c_uint64), ("duration", c.c_uint64),
                ("offset", c.c_uint64), ("offset_end", c.c_uint64)]


class MapInfo(c.Structure):
    _fields_ = [("memory", _P), ("flags", c.c_int), ("data", _P), ("size", c.c_size_t), ("maxsize", c.c_size_t),
                ("user_data", _P * 4), ("_gst_reserved", _P * 4)]


class VideoMeta(c.Structure):
    """As far as it is read here."""

    _fields_ = [("meta", _P * 2), ("buffer", _P), ("flags", c.c_int), ("format", c.c_int), ("id", c.c_int),
                ("width", c.c_uint), ("height", c.c_uint), ("n_planes", c.c_uint), ("offset", c.c_size_t * 4),
                ("stride", c.c_int * 4)]


class Error(c.Structure):  # GError
    _fields_ = [("domain", c.c_uint32), ("code", c.c_int), ("message", c.c_char_p)]


class SensorMeta(c.Structure):
    """What nvarguscamerasrc hangs on its buffers as qdata (gstnvarguscamerasrc.cpp, L4T 32 and later)."""

    _fields_ = [("frame_num", c.c_int64), ("timestamp", c.c_int64)]


SIZES = {MiniObject: 64, Buffer: 112, MapInfo: 104, VideoMeta: 96, Error: 16, SensorMeta: 16}
OFFSETS = {Buffer.pts: 72, Buffer.offset: 96, MapInfo.data: 16, VideoMeta.offset: 48, VideoMeta.stride: 80}
PROBE = c.CFUNCTYPE(c.c_int, _P, _P, _P)
_ERRORS = c.POINTER(c.POINTER(Error))

_FUNCTIONS: dict[str, tuple[tuple[str, Any, tuple[Any, ...]], ...]] = {
    "libgstreamer-1.0.so.0": (
        ("gst_init_check", c.c_int, (_P, _P, _ERRORS)),
        ("gst_parse_launch", _P, (c.c_char_p, _ERRORS)),
        ("gst_bin_get_by_name", _P, (_P, c.c_char_p)),
        ("gst_element_set_state", c.c_int, (_P, c.c_int)),
        ("gst_element_get_state", c.c_int, (_P, _P, _P, c.c_uint64)),
        ("gst_element_get_base_time", c.c_uint64, (_P,)),
        ("gst_element_get_static_pad", _P, (_P, c.c_char_p)),
        ("gst_element_get_bus", _P, (_P,)),
        ("gst_bus_timed_pop_filtered", _P, (_P, c.c_uint64, c.c_int)),
        ("gst_message_parse_error", None, (_P, _ERRORS, c.POINTER(_P))),
        ("gst_system_clock_obtain", _P, ()),
        ("gst_pipeline_get_type", c.c_size_t, ()),
        ("gst_pipeline_use_clock", None, (_P, _P)),
        ("gst_pad_add_probe", c.c_ulong, (_P, c.c_int, PROBE, _P, _P)),
        ("gst_pad_remove_probe", None, (_P, c.c_ulong)),
        ("gst_pad_probe_info_get_buffer", _P, (_P,)),
        ("gst_mini_object_get_qdata", _P, (_P, c.c_uint32)),
        ("gst_mini_object_unref", None, (_P,)),
        ("gst_object_unref", None, (_P,)),
        ("gst_sample_get_buffer", _P, (_P,)),
        ("gst_sample_get_caps", _P, (_P,)),
        ("gst_sample_get_segment", _P, (_P,)),
        ("gst_segment_to_running_time", c.c_uint64, (_P, c.c_int, c.c_uint64)),
        ("gst_caps_get_structure", _P, (_P, c.c_uint)),
        ("gst_structure_get_int", c.c_int, (_P, c.c_char_p, c.POINTER(c.c_int))),
        ("gst_structure_get_fraction", c.c_int, (_P, c.c_char_p, c.POINTER(c.c_int), c.POINTER(c.c_int))),
        ("gst_structure_get_string", c.c_char_p, (_P, c.c_char_p)),
        ("gst_buffer_map", c.c_int, (_P, c.POINTER(MapInfo), c.c_int)),
        ("gst_buffer_unmap", None, (_P, c.POINTER(MapInfo))),
        ("gst_util_set_object_arg", None, (_P, c.c_char_p, c.c_char_p))),
    "libgstapp-1.0.so.0": (
        ("gst_app_sink_get_type", c.c_size_t, ()),
        ("gst_app_sink_try_pull_sample", _P, (_P, c.c_uint64)),
        ("gst_app_sink_is_eos", c.c_int, (_P,))),
    "libgstvideo-1.0.so.0": (("gst_buffer_get_video_meta", c.POINTER(VideoMeta), (_P,)),),
    "libgobject-2.0.so.0": (
        ("g_type_check_instance_is_a", c.c_int, (_P, c.c_size_t)),
        ("g_object_class_find_property", _P, (_P, c.c_char_p)),
        ("g_object_get", None, (_P, c.c_char_p, c.POINTER(c.c_int), _P))),
    "libglib-2.0.so.0": (
        ("g_quark_from_string", c.c_uint32, (c.c_char_p,)),
        ("g_error_free", None, (_P,)),
        ("g_free", None, (_P,))),
}


class Gst:
    """The functions by name. Raises PipelineError where the libraries are not installed or not as we know them."""

    def __init__(self) -> None:
        for kind, size in SIZES.items():
            if c.sizeof(kind) != size:
                raise PipelineError(f"GStreamer's {kind.__name__} has {c.sizeof(kind)} bytes on this machine, expected {size}: "
                                    "only 64-bit systems are supported")
        if any(field.offset != at for field, at in OFFSETS.items()):
            raise PipelineError("GStreamer's structures lie otherwise on this machine: only 64-bit systems are supported")
        for file, functions in _FUNCTIONS.items():
            try:
                library = c.CDLL(file)
            except OSError as error:
                raise PipelineError(f"GStreamer is not installed ({file}); sudo apt-get install {PACKAGES} "
                                    "gstreamer1.0-plugins-base gstreamer1.0-plugins-good") from error
            for name, result, arguments in functions:
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        error_p = c.POINTER(Error)()
        if not self.gst_init_check(None, None, c.byref(error_p)):
            raise PipelineError(f"GStreamer does not start: {self.taken(error_p)}")
        self.sensor_meta = self.g_quark_from_string(b"GstBufferMetaData")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(name)

    def taken(self, error: Any) -> str:
        """The words of a GError, which is freed."""
        words = (error.contents.message or b"").decode(errors="replace")
        self.g_error_free(error)
        return words


@functools.cache
def library() -> Gst:
    """Loaded when first asked for. Raises PipelineError."""
    return Gst()
