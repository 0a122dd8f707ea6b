"""One running GStreamer pipeline that ends in an appsink named `sink`: its pictures, errors and properties. No policy here."""

from __future__ import annotations

import ctypes as c
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.gst_library import NONE, PROBE, Buffer, Error, MapInfo, PipelineError, SensorMeta, library

Picture = NDArray[np.uint8]
_P = c.c_void_p

START_S, STOP_S = 5.0, 3.0
"""How long a driver may take to start and to stop. Argus takes about a second; with a dead daemon it never returns."""

_NULL, _PAUSED, _PLAYING = 1, 3, 4  # GstState
_FAILURE, _ASYNC, _NO_PREROLL = 0, 2, 3  # GstStateChangeReturn
_PROBE_BUFFER, _PROBE_OK = 1 << 4, 1  # GstPadProbeType, GstPadProbeReturn
_MESSAGE_ERROR, _FORMAT_TIME, _MAP_READ = 1 << 1, 3, 1
_SLICE_NS = 100_000_000  # the longest wait in one call, so that a cancelled reader comes back

_MARKS = 64  # buffers on their way between a probe and the reader: a queue of 4 at the sink, and what converts them

# from what arrives -> (bytes a pixel, how it becomes BGR; None: it is)
_FORMATS = {"BGRx": (4, cv2.COLOR_BGRA2BGR), "BGRA": (4, cv2.COLOR_BGRA2BGR), "RGBx": (4, cv2.COLOR_RGBA2BGR),
            "RGBA": (4, cv2.COLOR_RGBA2BGR), "BGR": (3, None), "RGB": (3, cv2.COLOR_RGB2BGR), "GRAY8": (1, cv2.COLOR_GRAY2BGR)}


@dataclass(frozen=True)
class Mark:
    """What a probe saw of a buffer. number: rises by one for each picture that the source took.

    sensor_ns: when the sensor says that it took it, on whatever clock it has; None where it says nothing.
    """

    pts_ns: int
    number: int
    sensor_ns: int | None


class Marks:
    """What a probe saw, kept until the buffer's picture arrives at the sink. The converter between them makes new buffers
    but keeps their PTS."""

    def __init__(self) -> None:
        self._seen: deque[Mark] = deque(maxlen=_MARKS)

    def put(self, mark: Mark) -> None:
        """From the source's thread."""
        self._seen.append(mark)

    def take(self, pts_ns: int) -> Mark | None:
        """The mark of this picture, and forget what came before it. Pictures are asked for in their order."""
        while self._seen and self._seen[0].pts_ns <= pts_ns:
            mark = self._seen.popleft()
            if mark.pts_ns == pts_ns:
                return mark
        return None


@dataclass(frozen=True)
class Sample:
    """One picture. t_ns: its PTS on the monotonic clock, None where it has none. fps: as its caps claim."""

    bgr: Picture
    t_ns: int | None
    mark: Mark | None
    fps: float | None


class Pipeline:
    """A pipeline and its appsink. Every call comes back: within its timeout, or START_S, or STOP_S.

    description: as for gst-launch-1.0; an element named `cam`, where there is one, is the one whose pad is probed.
    live: known once started. Raises PipelineError.
    """

    def __init__(self, description: str) -> None:
        self._gst = gst = library()
        self.live = True
        self._marks = Marks()
        self._arrived = 0
        self._owned: list[int] = []  # references that we hold, in the order in which we got them
        self._probe: tuple[int | None, int] | None = None
        self._error = ""  # what went wrong, told once the pictures from before it are fetched
        self._base_ns = 0
        self._handover = threading.Lock()
        self._abandoned = False  # a thread hangs in the driver, and everything is that thread's now
        error = c.POINTER(Error)()
        self._pipeline = gst.gst_parse_launch(description.encode(), c.byref(error))
        if self._pipeline:
            self._owned.append(self._pipeline)
        if error:  # a pipeline may come with it, without the parts that were not understood
            self._release()
            raise PipelineError(gst.taken(error))
        if not gst.g_type_check_instance_is_a(self._pipeline, gst.gst_pipeline_get_type()):
            self._release()
            raise PipelineError("that is one element or one bin, expected elements joined by !")
        self._bus = self._own(gst.gst_element_get_bus(self._pipeline))
        self.cam = self._own(gst.gst_bin_get_by_name(self._pipeline, b"cam"))
        self._sink = self._own(gst.gst_bin_get_by_name(self._pipeline, b"sink"))
        if not self._sink or not gst.g_type_check_instance_is_a(self._sink, gst.gst_app_sink_get_type()):
            self._release()
            raise PipelineError("the pipeline has no appsink named sink")
        self._callback = PROBE(self._seen)
        self._add_probe()

    def _own(self, pointer: int | None) -> int | None:
        if pointer:
            self._owned.append(pointer)
        return pointer

    def _add_probe(self) -> None:
        """On the source's own pad, where its metadata still is; else on the sink's, to number what arrives there."""
        gst = self._gst
        pad = self.cam and self._own(gst.gst_element_get_static_pad(self.cam, b"src"))
        pad = pad or self._own(gst.gst_element_get_static_pad(self._sink, b"sink"))
        self._probe = pad, gst.gst_pad_add_probe(pad, _PROBE_BUFFER, self._callback, None, None)

    def _seen(self, pad: int, info: int, data: int) -> int:
        """In the source's thread, for every buffer: nothing here may fail, or wait."""
        pointer = self._gst.gst_pad_probe_info_get_buffer(info)
        if pointer:
            buffer = Buffer.from_address(pointer)
            meta = self._gst.gst_mini_object_get_qdata(pointer, self._gst.sensor_meta)
            self._arrived += 1
            if meta:
                sensor = SensorMeta.from_address(meta)
                self._marks.put(Mark(buffer.pts, sensor.frame_num, sensor.timestamp))
            elif buffer.offset != NONE and buffer.offset_end == buffer.offset + 1:
                # a picture's offset is its number; where it counts bytes, the end is not the next one
                self._marks.put(Mark(buffer.pts, buffer.offset, None))
            else:
                self._marks.put(Mark(buffer.pts, self._arrived, None))
        return _PROBE_OK

    def start(self) -> None:
        """Set it going on the system's monotonic clock. A source that is not live plays at its own pace from here on."""
        gst = self._gst
        clock = gst.gst_system_clock_obtain()
        gst.gst_pipeline_use_clock(self._pipeline, clock)
        gst.gst_object_unref(clock)
        result = self._within(START_S, functools.partial(gst.gst_element_set_state, self._pipeline, _PAUSED))
        until_s = time.monotonic() + START_S
        while result == _ASYNC and time.monotonic() < until_s:
            self._raise_error()
            result = gst.gst_element_get_state(self._pipeline, None, None, _SLICE_NS)
        if result in (_FAILURE, _ASYNC):
            self._raise_error()
            raise PipelineError("it does not start" if result == _FAILURE else f"no picture within {START_S:g} s of the start")
        self.live = result == _NO_PREROLL
        # whatever was written: an endless queue grows old, and a recording must not be dropped
        for key, value in (("max-buffers", "4"), ("drop", str(self.live)), ("sync", str(not self.live))):
            self.set(self._sink, key, value)
        if self._within(START_S, functools.partial(gst.gst_element_set_state, self._pipeline, _PLAYING)) == _FAILURE:
            self._raise_error()
            raise PipelineError("it does not start")
        self._base_ns = gst.gst_element_get_base_time(self._pipeline)

    def pull(self, timeout_s: float) -> Sample | None:
        """The next picture; None when there was none in time or there will be none (see `ended`)."""
        sample = self._gst.gst_app_sink_try_pull_sample(self._sink, round(timeout_s * 1e9))
        self._error = self._error or self._message()
        if not sample:
            self._raise_error()  # only now: pictures taken before it went wrong are good
            return None
        try:
            return self._read(sample)
        finally:
            self._gst.gst_mini_object_unref(sample)

    @property
    def ended(self) -> bool:
        return bool(self._gst.gst_app_sink_is_eos(self._sink))

    def _read(self, sample: int) -> Sample:
        gst = self._gst
        pointer = gst.gst_sample_get_buffer(sample)
        pts_ns = Buffer.from_address(pointer).pts
        running_ns = NONE
        if pts_ns != NONE:
            running_ns = gst.gst_segment_to_running_time(gst.gst_sample_get_segment(sample), _FORMAT_TIME, pts_ns)
        formats = gst.gst_sample_get_caps(sample)
        if not formats:
            raise PipelineError("pictures arrive without a format; put videoconvert ! video/x-raw,format=BGRx before the sink")
        caps = gst.gst_caps_get_structure(formats, 0)
        numbers = [c.c_int() for _ in range(4)]
        width, height, rate, per = numbers
        gst.gst_structure_get_int(caps, b"width", c.byref(width))
        gst.gst_structure_get_int(caps, b"height", c.byref(height))
        gst.gst_structure_get_fraction(caps, b"framerate", c.byref(rate), c.byref(per))
        pixels = (gst.gst_structure_get_string(caps, b"format") or b"an unknown format").decode()
        fps = rate.value / per.value if rate.value > 0 and per.value > 0 else None
        return Sample(self._copied(pointer, width.value, height.value, pixels),
                      None if running_ns == NONE else self._base_ns + running_ns, self._marks.take(pts_ns), fps)

    def _copied(self, buffer: int, width: int, height: int, pixels: str) -> Picture:
        """The picture as BGR, copied once. The buffer's own word on how its rows lie wins over the usual one."""
        if pixels not in _FORMATS:
            raise PipelineError(f"pictures arrive as {pixels}, expected one of {', '.join(_FORMATS)}; put videoconvert ! "
                                "video/x-raw,format=BGRx before the sink")
        depth, conversion = _FORMATS[pixels]
        meta = self._gst.gst_buffer_get_video_meta(buffer)
        stride = meta.contents.stride[0] if meta else (width * depth + 3) // 4 * 4
        start = meta.contents.offset[0] if meta else 0
        info = MapInfo()
        if not self._gst.gst_buffer_map(buffer, c.byref(info), _MAP_READ):
            raise PipelineError("a picture's memory cannot be read; the pipeline must end in plain memory, not in NVMM")
        try:
            if stride < width * depth or info.size < start + stride * (height - 1) + width * depth:
                raise PipelineError(f"a picture of {width}x{height} {pixels} has {info.size} bytes, expected {stride * height}")
            view = np.ndarray((height, width, depth), np.uint8, (c.c_uint8 * info.size).from_address(info.data), start,
                              (stride, depth, 1))
            return view.copy() if conversion is None else cv2.cvtColor(view, conversion).astype(np.uint8, copy=False)
        finally:
            self._gst.gst_buffer_unmap(buffer, c.byref(info))

    def _raise_error(self) -> None:
        self._error = self._error or self._message()
        if self._error:
            raise PipelineError(self._error)

    def _message(self) -> str:
        """The oldest error on the bus, "" for none. All other messages are taken off: they would pile up."""
        message = self._gst.gst_bus_timed_pop_filtered(self._bus, 0, _MESSAGE_ERROR)
        if not message:
            return ""
        error, debug = c.POINTER(Error)(), _P()
        self._gst.gst_message_parse_error(message, c.byref(error), c.byref(debug))
        self._gst.g_free(debug)
        self._gst.gst_mini_object_unref(message)
        return self._gst.taken(error)

    def set(self, element: int | None, key: str, value: str) -> bool | None:
        """Set a property. True or False as a switch reads back afterwards; None where the element has no such property."""
        if not element or not self._property(element, key):
            return None
        self._gst.gst_util_set_object_arg(element, key.encode(), value.encode())
        answer = c.c_int()
        if value.lower() in ("true", "false"):
            self._gst.g_object_get(element, key.encode(), c.byref(answer), None)
        return bool(answer.value)

    def _property(self, element: int, key: str) -> bool:
        klass = _P.from_address(element).value  # an instance begins with the pointer to its class
        return bool(self._gst.g_object_class_find_property(klass, key.encode()))

    def close(self) -> None:
        """Stop it and give everything back; harmless when repeated. Raises PipelineError when it does not stop within STOP_S:
        it is then given back as soon as it does."""
        if self._owned and not self._abandoned:
            self._within(STOP_S, functools.partial(self._gst.gst_element_set_state, self._pipeline, _NULL))
            self._release()

    def _within(self, timeout_s: float, call: Callable[[], int]) -> int:
        """The call's result. Raises PipelineError when a driver hangs in it; who comes back late then cleans up."""
        done, answer = threading.Event(), [_FAILURE]

        def work() -> None:
            answer[0] = call()
            with self._handover:
                done.set()
                late = self._abandoned
            if late:
                self._gst.gst_element_set_state(self._pipeline, _NULL)
                self._release()

        threading.Thread(target=work, name="gst-state", daemon=True).start()
        if not done.wait(timeout_s):
            with self._handover:
                self._abandoned = not done.is_set()
        if self._abandoned:
            raise PipelineError(f"the driver has hung for {timeout_s:g} s")
        return answer[0]

    def _release(self) -> None:
        if self._probe is not None:
            self._gst.gst_pad_remove_probe(*self._probe)
            self._probe = None
        while self._owned:
            self._gst.gst_object_unref(self._owned.pop())
