"""The weights folder is verified before anything runs, and an engine answers with finite numbers or not at all."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge.pipeline import check_normalisation
from engines import sidecar
from engines.errors import EngineError
from engines.onnxruntime_backend import OnnxRuntimeEngine
from engines.parity import Agreement, ParityError, Tolerance, load_fixture, measure, verify
from engines.sidecar import DEFAULT_WEIGHTS, SidecarError, load, write
from tests.fake_engine import FakeEngine

MODEL = {"name": "test", "fs_hz": 30.0, "window": 512, "size": 48, "channels": 5, "cells": 36, "features": 24,
         "normalisation": {"gap_s": 0.3}}


@pytest.fixture
def bundle(tmp_path):
    """A weights folder whose two files are no models at all; returns its sidecar."""
    files = {}
    for part in ("stem", "head"):
        (tmp_path / f"{part}.onnx").write_bytes(f"the {part}".encode())
        files[part] = {"file": f"{part}.onnx", "sha256": sidecar.sha256(tmp_path / f"{part}.onnx")}
    write(tmp_path / "student.json", {"format": sidecar.FORMAT, "model": MODEL, "files": {"fp32": files}})
    return tmp_path / "student.json"


def changed(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


def test_a_whole_bundle_is_read(bundle):
    spec, record = load(bundle)
    assert (spec.name, spec.window, spec.cells, spec.features) == ("test", 512, 36, 24)
    assert spec.path("stem", "fp32") == bundle.parent / "stem.onnx" and record["model"] == MODEL
    assert sorted(p.name for p in bundle.parent.iterdir()) == ["head.onnx", "stem.onnx", "student.json"]


def test_a_missing_sidecar_says_what_belongs_there(tmp_path):
    with pytest.raises(SidecarError, match="no sidecar at .*student.json"):
        load(tmp_path / "student.json")


@pytest.mark.parametrize("part", ["stem", "head"])
def test_one_altered_byte_is_refused(bundle, part):
    path = bundle.parent / f"{part}.onnx"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(SidecarError, match=f"{part}.onnx was altered: expected SHA-256"):
        load(bundle)


def test_a_missing_file_is_refused(bundle):
    (bundle.parent / "head.onnx").unlink()
    with pytest.raises(SidecarError, match="head.onnx is missing"):
        load(bundle)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00\x81", b"[1]", b"null", b'{"format": 99}', b'{"format": 1}'])
def test_what_is_no_sidecar_is_refused(bundle, content):
    bundle.write_bytes(content)
    with pytest.raises(SidecarError, match="student.json"):
        load(bundle)


@pytest.mark.parametrize("field", sorted(MODEL))
def test_every_field_must_be_there_and_of_its_kind(bundle, field):
    whole = bundle.read_text()
    changed(bundle, lambda record: record["model"].pop(field))
    with pytest.raises(SidecarError, match=field):
        load(bundle)
    bundle.write_text(whole)
    changed(bundle, lambda record: record["model"].update({field: None}))
    with pytest.raises(SidecarError, match=field):
        load(bundle)


@pytest.mark.parametrize("change", [
    lambda record: record["files"]["fp32"].pop("stem"),
    lambda record: record["files"]["fp32"]["head"].pop("sha256"),
    lambda record: record["files"].update(fp32="student.onnx"),
    lambda record: record["model"].update(colour="blue"),
    lambda record: record.update(model=[1, 2]),
])
def test_an_incomplete_or_unknown_record_is_refused(bundle, change):
    with pytest.raises(SidecarError, match="export the weights again"):
        load(changed(bundle, change))


def test_a_precision_that_is_not_there_names_those_that_are(bundle):
    with pytest.raises(SidecarError, match="no int8 weights; this bundle has fp32"):
        load(bundle)[0].path("stem", "int8")


def test_what_is_no_model_is_an_engine_error_with_its_path(bundle):
    spec, _ = load(bundle)
    with pytest.raises(EngineError, match=r"stem\.onnx is no model"):
        OnnxRuntimeEngine(spec)


# --- the shipped student


@pytest.fixture(scope="module")
def shipped():
    return OnnxRuntimeEngine(load(DEFAULT_WEIGHTS)[0])


def test_the_shipped_student_was_trained_on_this_preprocessing_and_is_small(shipped):
    _, record = load(DEFAULT_WEIGHTS)
    check_normalisation(shipped.spec)
    assert record["onnx"]["opset"] == 17 and record["parameters"] <= 300_000
    assert sum(f.stat().st_size for f in DEFAULT_WEIGHTS.parent.iterdir()) < 8_000_000


def test_shapes_are_those_of_the_sidecar(shipped):
    spec, rng = shipped.spec, np.random.default_rng(0)
    for n in (1, 30):
        features = shipped.stem(rng.standard_normal((n, spec.channels, spec.size, spec.size), np.float32))
        assert features.shape == (n, spec.cells, spec.features) and features.dtype == np.float32
    ring = rng.standard_normal((spec.window, spec.cells, spec.features)).astype(np.float32)
    waves, presence, attention = shipped.head(ring, np.ones(spec.window, np.float32))
    assert waves.shape == (2, spec.window) and presence.shape == (2,) and attention.shape == (2, spec.cells)
    assert ((presence >= 0) & (presence <= 1)).all()
    np.testing.assert_allclose(attention.sum(axis=1), 1, atol=1e-4)


def test_a_frame_does_not_depend_on_its_neighbours_in_the_stem(shipped):
    frames = np.random.default_rng(1).standard_normal((4, 5, 48, 48), np.float32)
    together = shipped.stem(frames)
    np.testing.assert_allclose(together, np.concatenate([shipped.stem(frame[None]) for frame in frames]), atol=1e-4)


@pytest.mark.parametrize("mask", ["none", "all", "newest", "holes"])
def test_the_head_is_finite_on_an_empty_ring(shipped, mask):
    spec = shipped.spec
    keep = np.zeros(spec.window, np.float32)
    keep[{"none": slice(0, 0), "all": slice(None), "newest": slice(-30, None), "holes": slice(None, None, 3)}[mask]] = 1
    waves, _, _ = shipped.head(np.zeros((spec.window, spec.cells, spec.features), np.float32), keep)
    assert not waves[:, keep == 0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_never_come_out(shipped, bad):
    spec = shipped.spec
    frames = np.zeros((2, spec.channels, spec.size, spec.size), np.float32)
    frames[1, 2, 5, 5] = bad
    with pytest.raises(EngineError, match="not finite"):
        shipped.stem(frames)
    ring = np.zeros((spec.window, spec.cells, spec.features), np.float32)
    ring[100, 3, 1] = bad
    with pytest.raises(EngineError, match="not finite"):
        shipped.head(ring, np.ones(spec.window, np.float32))


def test_a_wrong_shape_is_an_engine_error(shipped):
    with pytest.raises(EngineError, match="inference failed"):
        shipped.stem(np.zeros((1, 3, 48, 48), np.float32))


def test_the_fake_of_the_other_tests_answers_like_the_student(shipped):
    fake = FakeEngine()
    spec = fake.spec
    answers = [fake.head(fake.stem(np.zeros((spec.window, 5, spec.size, spec.size), np.float32)), np.ones(512, np.float32)),
               shipped.head(np.zeros((512, 36, 24), np.float32), np.ones(512, np.float32))]
    for ours, real in zip(*answers, strict=True):
        assert ours.dtype == real.dtype and ours.shape[:-1] == real.shape[:-1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8_opset17"])
def test_every_shipped_precision_proves_itself_by_the_shipped_fixture(precision):
    spec, record = load(DEFAULT_WEIGHTS)
    verify(OnnxRuntimeEngine(spec, precision), load_fixture(spec.parity), spec.tolerances[precision], precision)
    assert record["agreement"]["precisions"].get(precision, {"broken": []})["broken"] == []


def test_an_engine_that_answers_otherwise_is_refused(shipped):
    spec = shipped.spec
    fixture = load_fixture(spec.parity)

    class Late:
        stem = staticmethod(shipped.stem)

        @staticmethod
        def head(features, mask):
            waves, presence, attention = shipped.head(features, mask)
            return np.roll(waves, 3, axis=1), presence, attention

    assert measure(shipped, fixture).within(spec.tolerances["fp32"])
    for precision in spec.tolerances:
        with pytest.raises(ParityError, match="does not answer as the student does"):
            verify(Late(), fixture, spec.tolerances[precision], "late")


def test_an_agreement_of_nan_is_none(shipped):
    loose = Tolerance(1e9, -1.0, 1e9)
    assert Agreement(0.0, 1.0, 0.0).within(loose)
    assert not any(Agreement(*(np.nan if i == k else 0.5 for i in range(3))).within(loose) for k in range(3))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_what_is_no_fixture_is_refused(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(EngineError, match="no parity fixture"):
        load_fixture(tmp_path / "p.npz")


def test_a_fixture_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "p.npz", frames=np.zeros((1, 2)))
    with pytest.raises(EngineError, match="no parity fixture"):
        load_fixture(tmp_path / "p.npz")


def test_an_altered_fixture_is_refused_with_the_bundle(bundle):
    (bundle.parent / "p.npz").write_bytes(b"inputs")
    parity = {"file": "p.npz", "sha256": sidecar.sha256(bundle.parent / "p.npz"),
              "tolerances": {"fp32": {"features": 0.1, "correlation": 0.9, "presence": 0.1}}}
    changed(bundle, lambda record: record.update(parity=parity))
    assert load(bundle)[0].tolerances["fp32"] == Tolerance(0.1, 0.9, 0.1)
    (bundle.parent / "p.npz").write_bytes(b"inputx")
    with pytest.raises(SidecarError, match="p.npz was altered"):
        load(bundle)
