"""What keeps a long run's memory level, and what it must not hide."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from edge import memory
from edge.camera import CameraLost, CaptureThread, open_camera
from edge.config import CameraConfig, Config
from edge.memory import TIDY_NS, Tidy, one_arena
from edge.runtime import make_pipeline
from tests.fake_engine import FakeEngine
from tests.videos import grey_steps, write_video

ROOT = Path(__file__).resolve().parents[1]

ARENAS = """
import ctypes, re, sys, threading
import numpy, cv2, onnxruntime  # what `physvlm run` has imported by then
from edge.memory import one_arena

def arenas():
    text, size, libc = ctypes.c_char_p(), ctypes.c_size_t(), ctypes.CDLL(None)
    libc.open_memstream.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    return len(re.findall(rb"<heap nr", text.value))

def work():
    kept.append([bytearray(3000) for _ in range(500)])
    done.wait()

if sys.argv[1] == "one":
    one_arena()
kept, done = [], threading.Event()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
while len(kept) < 6:
    pass
print(arenas())
done.set()
"""


@pytest.fixture
def thawed():
    gc.collect()
    yield
    gc.unfreeze()


def has_arenas():
    return hasattr(ctypes.CDLL(None), "mallopt") and hasattr(ctypes.CDLL(None), "malloc_info")


@pytest.mark.skipif(not has_arenas(), reason="only glibc gives each thread a heap of its own")
@pytest.mark.parametrize(("how", "one"), [("one", True), ("many", False)])
def test_threads_share_one_heap_also_when_numpy_has_its_threads_already(how, one):
    found = subprocess.run([sys.executable, "-c", ARENAS, how], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (int(found.stdout) == 1) is one


@pytest.mark.parametrize("library", [object(), OSError("static")])
def test_another_c_library_is_left_alone(monkeypatch, library):
    def dlopen(name):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(memory.ctypes, "CDLL", dlopen)
    one_arena()


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self):
        self.me, self.picture = self, np.zeros(1000, np.uint8)


def test_garbage_of_later_is_found_although_the_start_is_frozen(thawed):
    tidy = Tidy()
    tidy.look(0)
    tidy.look(TIDY_NS)
    assert gc.get_freeze_count() > 1000
    gone = weakref.ref(Ring())
    frozen = gc.get_freeze_count()
    tidy.look(2 * TIDY_NS - 1)
    assert gone() is not None  # not before its time
    tidy.look(2 * TIDY_NS)
    assert gone() is None
    assert gc.get_freeze_count() <= frozen  # frozen once: a second time would hide what leaked since


def test_a_collection_looks_at_what_is_new_alone(thawed):
    """Its time follows from that: 0.2 ms instead of 20, which would be most of a frame."""
    tidy, looked_at = Tidy(), []
    tidy.look(0)
    for minute in range(1, 5):
        for _ in range(100):  # some garbage of a minute
            Ring()
        tidy.look(minute * TIDY_NS)
        looked_at.append(len(gc.get_objects()))
    assert gc.get_freeze_count() > 20_000 and max(looked_at) < 1000


def test_what_a_lost_camera_or_a_new_picture_size_leaves_goes_without_a_collection(tmp_path):
    """So that what was frozen with them cannot stay: the ring's pictures, a decoder, a pipeline."""
    clip = str(write_video(tmp_path / "c.avi", grey_steps(40)))
    config = Config(camera=CameraConfig(roi="full"))
    gc.collect()
    gc.disable()
    try:
        camera = open_camera(clip)
        pipeline = make_pipeline(FakeEngine(), camera, config)
        with CaptureThread(camera) as capture:
            while not capture.ended:
                frame = capture.get(1.0)
                if frame is not None:
                    pipeline.push(frame, frame.t_ns)
        gone = [weakref.ref(each) for each in (camera, capture, pipeline)]
        del camera, capture, pipeline, frame
        assert [each() for each in gone] == [None, None, None]
    finally:
        gc.enable()


def test_what_a_camera_s_end_leaves_is_gone_with_the_next_collection(tmp_path):
    class Unplugged:
        live, recorded, name = True, False, "unplugged"

        def __iter__(self):
            raise CameraLost("unplugged")

        def cancel(self): ...

        def close(self): ...

    capture = CaptureThread(Unplugged())
    with pytest.raises(CameraLost):
        capture.get(2.0)
    capture.close()
    gone = weakref.ref(capture)
    del capture
    gc.collect()
    assert gone() is None


def test_a_collection_empties_the_free_lists_of_this_python():
    code = ("import gc, sys\nx = [tuple(range(i, i + 5)) for i in range(3000)]\ndel x\nsys._debugmallocstats()\n"
            "from edge.memory import *\ntidy = Tidy()\ntidy.look(0)\ntidy.look(TIDY_NS)\nsys._debugmallocstats()\n")
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    free = [int(line.split()[0]) for line in found.stderr.splitlines() if "free 5-sized PyTupleObject" in line]
    if len(free) != 2:
        pytest.skip("this Python does not tell of its free lists")
    assert free[0] > 1000 and free[1] < 100
