"""A bundle where the service runs on TensorRT, over stand-ins for it and CUDA: proven there too before it is current."""

from __future__ import annotations

import gc
import sys

import pytest

pytest.importorskip("cryptography", reason="bundles need the extra `appliance`")

from edge import prepare as preparing
from edge.__main__ import FAULT, OK, main
from edge.appliance import bundle_store
from edge.appliance.bundle import program_version, verify
from edge.appliance.bundle_make import make, make_key
from edge.appliance.bundle_store import current
from engines.tensorrt_backend import TensorRtEngine
from tests.fake_engine import picture, textured
from tests.tensorrt_device import Device, make_bundle
from tests.videos import write_video


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with keys, two signed bundles, old.pvb and new.pvb, and their weights' sidecar: (folder, sidecar)."""
    folder = tmp_path_factory.mktemp("made")
    make_key(folder / "maker")
    weights, still = make_bundle(folder / "weights"), textured()
    clip = write_video(folder / "clip.avi", [picture(still, i / 30, 150.0, 45.0) for i in range(30 * 13)], fourcc="MJPG")
    settings = folder / "settings.toml"
    settings.write_text('[model]\nbackend = "tensorrt"\n')
    for serial, name in enumerate(("old", "new"), 1):
        make(folder / f"{name}.pvb", folder / "maker.key", weights.parent, clip, (150.0, 45.0), (program_version(),) * 2,
             settings, name, serial, prove=lambda unpacked, test: "")
    return folder, weights


@pytest.fixture
def device(cuda_modules, monkeypatch, made, tmp_path):
    monkeypatch.setattr(preparing, "WARM_UP", 0)
    monkeypatch.setattr(preparing, "ROUNDS", 2)
    device = Device(cuda_modules, monkeypatch, made[1], tmp_path / "cache")
    yield device
    gc.collect()
    assert device.nothing_left(), (device.machine.live(), device.trt.live)


@pytest.fixture
def install(made, tmp_path, capsys):
    """`physvlm bundle install` where the service's own file says this: (exit code, stdout, stderr)."""
    def call(name, own):
        (tmp_path / "own.toml").write_text(f'[model]\nengine_cache = "{tmp_path / "cache"}"\n{own}')
        code = main(["bundle", "install", str(made[0] / f"{name}.pvb"), "--keys", str(made[0] / "maker.pub"), "--store",
                     str(tmp_path / "store"), "--config", str(tmp_path / "own.toml")])
        return code, *capsys.readouterr()

    return call


ON_CPU = 'preprocess = "cpu"\n'


@pytest.mark.parametrize(("precision", "built"), [("fp16", ["fp16"]), ("auto", ["fp16", "int8"])])
def test_it_is_proven_on_tensorrt_and_leaves_the_service_s_engines_alone(device, install, tmp_path, precision, built):
    code, out, err = install("old", f'precision = "{precision}"\n{ON_CPU}')
    assert code == OK, err
    assert out.startswith("old is current: heart rate 150") and out.count("heart rate 150") == 2
    assert any(f"TensorRT in {each}: heart rate" in out for each in built)
    assert len(device.trt.builds) == 2 * len(built)
    assert not device.folder.exists() and not list((tmp_path / "store").rglob("*.plan"))
    assert f"physvlm prepare --config {tmp_path / 'own.toml'}" in out and out.endswith("sudo systemctl restart physvlm\n")


def loses_much(stem):
    """A build of TensorRT that does not keep to the student."""
    return lambda engine, frames: 1.2 * stem(engine, frames)


def loses_whole_seconds(stem):
    """One that answers the fixture's few frames well and a second's as nothing."""
    return lambda engine, frames: stem(engine, frames) * (len(frames) < 30)


@pytest.mark.parametrize(("broken", "why"), [
    (loses_much, "does not answer as the student does"),
    (loses_whole_seconds, "on TensorRT in fp16, its self-test clip gives a heart rate of no number")])
def test_one_that_fails_on_tensorrt_alone_is_not_used_and_the_old_stays(
        device, install, made, tmp_path, monkeypatch, broken, why):
    old = verify(made[0] / "old.pvb", made[0] / "maker.pub", program_version())
    bundle_store.install(old, tmp_path / "store", lambda unpacked, test: "")
    monkeypatch.setattr(TensorRtEngine, "stem", broken(TensorRtEngine.stem))
    code, out, err = install("new", f'precision = "fp16"\n{ON_CPU}')
    assert (code, out) == (FAULT, "") and "new is not used, old stays" in err and why in err
    assert current(tmp_path / "store") == "old"
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"old", "current", "highest", ".lock"}
    monkeypatch.undo()


def test_the_device_s_own_file_decides_what_runs_it(device, install):
    """These bundles ask for TensorRT."""
    code, out, err = install("old", 'backend = "onnxruntime"\n')
    assert code == OK and "TensorRT" not in out and "prepare" not in out and not device.trt.builds, err


def test_where_the_service_wants_tensorrt_and_there_is_none_nothing_is_current(device, install, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    code, _, err = install("old", ON_CPU)
    assert code == FAULT and "the shipped weights stay" in err and "tensorrt" in err.lower() and "Traceback" not in err
    assert current(tmp_path / "store") is None


def test_a_file_of_the_service_that_cannot_be_used_keeps_a_bundle_out(device, install, tmp_path):
    code, _, err = install("old", "precision = 7\n")
    assert code == FAULT and "own.toml" in err and "precision" in err and current(tmp_path / "store") is None
