"""engines/cuda.py over the real pycuda and a stand-in driver; `make test-cuda` builds pycuda where CUDA's toolkit is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import standin_driver
from tests.fake_pycuda import Machine

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(standin_driver.missing() is not None, reason=standin_driver.missing() or "")


def python(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter: a driver that was loaded once can never be another."""
    return subprocess.run([sys.executable, *args], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
                          timeout=120)


def test_the_behaviours_of_test_cuda_hold_on_real_pycuda():
    done = python("-m", "pytest", "tests/test_cuda.py", "-q", "-p", "no:cacheprovider", PHYSVLM_TEST_PYCUDA="real")
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 30  # type: ignore[index]
    assert "skipped" not in done.stdout


CYCLES = """
    import sys
    from pathlib import Path
    import numpy as np
    from tests.standin_driver import StandinDriver, build

    machine = StandinDriver(build(Path(sys.argv[1]), tuple(sys.argv[2:])))
    from engines.cuda import Cuda
    for i in range(1000):
        machine.configure(integrated=i % 2 == 0)
        cuda = Cuda()
        with cuda.current():
            stream = cuda.stream()
            source, target = cuda.buffer((3, 5), np.float32), cuda.buffer((1000,), np.float64)
            source.upload(stream)
            machine.enqueue(stream.handle, lambda: None)
            target.download(stream)
            stream.synchronize()
        if i % 3 == 0:
            source.free()
        cuda.close()
    print(machine.live(), machine.depth(), sum(machine.copies.values()))
"""
CLEAN = "{'device': 0, 'host': 0, 'streams': 0, 'contexts': 0} 0 1000\n"


def test_a_thousand_times_opened_run_and_closed_leaves_nothing(tmp_path):
    done = python("-c", textwrap.dedent(CYCLES), str(tmp_path))
    assert (done.stdout, done.stderr, done.returncode) == (CLEAN, "", 0)


def test_a_thousand_times_under_the_memory_checker_finds_nothing(tmp_path):
    libraries = [subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
                 for name in ("libasan.so", "libstdc++.so")]
    if not os.path.isabs(libraries[0]):
        pytest.skip("gcc has no address sanitiser here (libasan)")
    done = python("-c", textwrap.dedent(CYCLES), str(tmp_path), *standin_driver.SANITISERS, LD_PRELOAD=" ".join(libraries),
                  ASAN_OPTIONS="detect_leaks=0:halt_on_error=1", PYTHONMALLOC="malloc")
    assert (done.stdout, done.stderr, done.returncode) == (CLEAN, "", 0)


@pytest.mark.parametrize(("misuse", "says"), [
    ("view = buffer.host; buffer.free(); view[0]", "end"), ("stream.free(); driver.mem_alloc(1)", "invalid device context"),
    ("with cuda.current(): a = driver.mem_alloc(8); driver.memcpy_htod_async(int(a) + 4, b'12345678')", "invalid argument")])
def test_the_stand_in_driver_notices_misuse(tmp_path, misuse, says):
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from tests.standin_driver import StandinDriver, build
        machine = StandinDriver(build(Path(sys.argv[1])))
        from engines.cuda import Cuda
        from pycuda import driver
        cuda = Cuda()
        with cuda.current():
            stream, buffer = cuda.stream(), cuda.buffer((1,), 'f4')
        try:
            {misuse}
        except driver.Error as e:
            print(e)
        cuda.close()
    """)
    done = python("-c", script, str(tmp_path))
    if says == "end":  # the memory is gone, and with it the process
        assert done.returncode == -11
    else:
        assert says in done.stdout


def test_every_name_of_the_stand_in_for_pycuda_exists_in_the_real_one(tmp_path):
    fake = Machine().driver
    names = []
    for name, thing in vars(fake).items():
        if not name.startswith("_"):
            names += [name, *(f"{name}.{member}" for member in dir(thing) if not member.startswith("_") or member == "__int__")]
    names = [name for name in names if name not in OURS]
    assert {"Stream.synchronize", "Device.retain_primary_context", "device_attribute.INTEGRATED"} <= set(names)
    script = textwrap.dedent("""
        import sys
        from operator import attrgetter
        from pathlib import Path
        from tests.standin_driver import StandinDriver, build
        StandinDriver(build(Path(sys.argv[1])))
        from pycuda import driver
        for name in sys.argv[2:]:
            try:
                attrgetter(name)(driver)
            except AttributeError:
                print(name)
    """)
    done = python("-c", script, str(tmp_path), *names)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


OURS = {"Context.valid"}
"""Attributes that the stand-in keeps its own state in."""
