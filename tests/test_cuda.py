"""engines/cuda.py over a stand-in machine: over fake_pycuda here, over real pycuda from tests/test_pycuda_real.py."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from engines.cuda import Cuda, CudaError, DeviceFacts

NOTHING = {"device": 0, "host": 0, "streams": 0, "contexts": 0}


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def machine(request, cuda_modules):
    """Once as an integrated GPU, once as a card of its own."""
    cuda_modules.configure(integrated=request.param)
    return cuda_modules


def in_thread(work):
    """Run work in a new thread; its result, or its exception raised here."""
    done, failed = [], []

    def run():
        try:
            done.append(work())
        except Exception as e:
            failed.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def double(machine, cuda, source, target, stream):
    """What the engine does: upload, compute, download, wait. The GPU's side is reached through the pointers alone."""
    def kernel():
        view(target)[:] = 2 * view(source)

    def view(buffer):
        from ctypes import POINTER, c_float, cast
        return np.ctypeslib.as_array(cast(pointers[buffer], POINTER(c_float)), (4,))

    pointers = {source: source.pointer, target: target.pointer}
    with cuda.current():
        source.upload(stream)
        machine.enqueue(stream.handle, kernel)
        target.download(stream)
        stream.synchronize()
    return target.host.copy()


def opened(cuda):
    with cuda.current():
        return cuda.buffer((4,), np.float32), cuda.buffer((4,), np.float32), cuda.stream()


def test_what_the_device_says_of_itself_is_read(machine):
    machine.configure(name="Thor", compute_capability=(11, 0), sm_count=20, memory_bytes=128 << 30, driver_version=13_020)
    cuda = Cuda()
    assert cuda.facts == DeviceFacts("Thor", (11, 0), 20, 128 << 30, 13_020, machine.card.integrated)
    cuda.close()


def test_what_is_uploaded_is_computed_on_and_comes_back(machine):
    cuda = Cuda()
    source, target, stream = opened(cuda)
    source.host[:] = [1, 2, 3, 4]
    assert double(machine, cuda, source, target, stream).tolist() == [2, 4, 6, 8]
    cuda.close()
    assert machine.live() == NOTHING


def test_an_integrated_gpu_copies_nothing_and_another_copies_both_ways(machine):
    before = sum(machine.copies.values())
    cuda = Cuda()
    source, target, stream = opened(cuda)
    double(machine, cuda, source, target, stream)
    same = source.pointer == source.host.ctypes.data
    made = machine.live()
    cuda.close()
    assert same is machine.card.integrated
    assert sum(machine.copies.values()) - before == (0 if machine.card.integrated else 2)
    assert made == {"host": 2, "device": 0 if machine.card.integrated else 2, "streams": 1, "contexts": 1}


def test_a_new_buffer_holds_zeros(machine):
    cuda = Cuda()
    with cuda.current():
        assert not cuda.buffer((3, 5), np.int32).host.any()
    cuda.close()


def test_the_context_is_current_inside_the_block_alone(machine):
    cuda = Cuda()
    assert machine.depth() == 0
    with cuda.current():
        assert machine.depth() == 1
        with cuda.current():
            cuda.stream()
        cuda.stream()  # an inner block does not take the context from an outer one
        assert in_thread(machine.depth) == 0
    assert machine.depth() == 0
    with pytest.raises(CudaError, match="cannot make a CUDA stream"):
        cuda.stream()
    with pytest.raises(CudaError, match="cannot get 16 bytes"):
        cuda.buffer((4,), np.float32)
    cuda.close()


def test_a_failure_inside_the_block_leaves_no_context_behind(machine):
    cuda = Cuda()
    with pytest.raises(ZeroDivisionError), cuda.current():
        raise ZeroDivisionError
    assert machine.depth() == 0
    cuda.close()


def test_made_in_one_thread_used_in_another_and_freed_in_a_third(machine):
    cuda = in_thread(Cuda)
    source, target, stream = in_thread(lambda: opened(cuda))
    source.host[:] = 3
    assert in_thread(lambda: double(machine, cuda, source, target, stream)).tolist() == [6, 6, 6, 6]
    for thing in (source, target, stream):
        in_thread(thing.free)
    assert machine.live() == NOTHING | {"contexts": 1}
    cuda.close()
    assert machine.live() == NOTHING


def test_closing_leaves_nothing_of_ours_in_any_thread(machine):
    cuda = Cuda()
    opened(cuda)  # and never freed
    cuda.close()
    assert (machine.live(), machine.depth()) == (NOTHING, 0)
    cuda.close()
    with pytest.raises(CudaError, match="was closed"), cuda.current():
        pass


def test_two_that_share_the_primary_context_do_not_end_each_other(machine):
    first, second = Cuda(), Cuda()
    source, target, stream = opened(second)
    first.close()
    source.host[:] = 1
    assert double(machine, second, source, target, stream).tolist() == [2, 2, 2, 2]
    second.close()
    assert machine.live() == NOTHING


def test_what_was_freed_refuses_every_use_and_a_second_free_does_nothing(machine):
    cuda = Cuda()
    source, target, stream = opened(cuda)
    source.free()
    source.free()
    uses = [lambda: source.host, lambda: source.pointer, lambda: source.upload(stream), lambda: source.download(stream)]
    for use in uses:
        with pytest.raises(CudaError, match="was freed"), cuda.current():
            use()
    stream.free()
    stream.free()
    for use in (lambda: stream.handle, stream.synchronize, lambda: target.upload(stream)):
        with pytest.raises(CudaError, match="was freed"), cuda.current():
            use()
    cuda.close()
    assert machine.live() == NOTHING


@pytest.mark.parametrize(("call", "says"), [
    ("cuInit", "cannot open CUDA device 0.*tegrastats"), ("cuDeviceGet", "cannot open CUDA device 0"),
    ("cuDevicePrimaryCtxRetain", "cannot open CUDA device 0.*out of memory")])
def test_a_device_that_does_not_open_holds_nothing(machine, call, says):
    machine.fail(call)
    with pytest.raises(CudaError, match=says) as caught:
        Cuda()
    assert caught.value.__cause__ is not None
    assert machine.live() == NOTHING
    Cuda().close()  # and it was that one time


def test_an_ordinal_that_no_device_has_is_refused(machine):
    with pytest.raises(CudaError, match="cannot open CUDA device 7"):
        Cuda(7)


@pytest.mark.parametrize(("integrated", "call", "says"), [
    *[(integrated, call, says) for integrated in (True, False) for call, says in (
        ("cuStreamCreate", "cannot make a CUDA stream"), ("cuMemHostAlloc", "other programs"),
        ("cuCtxPushCurrent", "make the CUDA context current"))],
    (True, "cuMemHostGetDevicePointer", "cannot get 16 bytes"), (False, "cuMemAlloc", "other programs")])
def test_each_step_that_fails_leaves_only_what_was_there_before(cuda_modules, integrated, call, says):
    cuda_modules.configure(integrated=integrated)
    cuda = Cuda()
    before = cuda_modules.live()
    cuda_modules.fail(call, times=2 if call == "cuMemAlloc" else 1)  # where pycuda itself tries once more
    with pytest.raises(CudaError, match=says) as kept, cuda.current():  # kept: its traceback must hold nothing alive
        cuda.stream().free()
        cuda.buffer((4,), np.float32)
    assert (cuda_modules.live(), cuda_modules.depth()) == (before, 0)
    assert kept.value.__cause__ is not None
    cuda.close()
    assert cuda_modules.live() == NOTHING


def test_a_kernel_that_failed_is_an_error_and_its_memory_is_still_freed(machine):
    cuda = Cuda()
    source, target, stream = opened(cuda)
    machine.fail("cuStreamSynchronize")
    with pytest.raises(CudaError, match="its context is lost; restart"):
        double(machine, cuda, source, target, stream)
    machine.fail("cuStreamSynchronize")
    cuda.close()
    assert machine.live() == NOTHING


@pytest.mark.parametrize(("call", "says"), [
    ("cuMemcpyHtoDAsync", "copy to the GPU"), ("cuMemcpyDtoHAsync", "copy from the GPU")])
def test_a_copy_that_fails_is_an_error(cuda_modules, call, says):
    cuda_modules.configure(integrated=False)
    cuda = Cuda()
    buffers = opened(cuda)
    cuda_modules.fail(call)
    with pytest.raises(CudaError, match=says):
        double(cuda_modules, cuda, *buffers)
    cuda.close()
    assert cuda_modules.live() == NOTHING


def test_without_pycuda_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(CudaError, match=r"physvlm-edge\[jetson\].*nvcc on PATH.*JetPack"):
        Cuda()


def test_many_threads_on_one_device_each_get_their_own_answer(machine):
    cuda = Cuda()
    wrong = []

    def work(number):
        source, target, stream = opened(cuda)
        for i in range(20):
            source.host[:] = number + i
            if double(machine, cuda, source, target, stream).tolist() != [2 * (number + i)] * 4:
                wrong.append((number, i))
        for thing in (source, target, stream):
            thing.free()

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    cuda.close()
    assert machine.live() == NOTHING
