"""The lab's command line: what can be mended is said in one line, with exit code 2, before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.__main__ import main


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.mark.parametrize(("argv", "said"), [
    (("evaluate", "--suite", "sleeping"), "unknown suite 'sleeping'"),
    (("evaluate", "--suite", "ward", "--n", "0"), "expected at least 1"),
    (("evaluate", "--suite", "ward", "--weights", "nowhere"), "no sidecar at nowhere"),
    (("evaluate", "--suite", "ward", "--held-out", "lux"), "held-out domain 'lux' is not evaluated"),
    (("evaluate", "--lodo", "missing.json"), "missing.json cannot be read"),
    (("evaluate", "--suite", "ward", "--json", "no/such/folder/out.json"), "its folder does not exist"),
    (("datasets", "imagenet", "."), "ubfc, pure, cohface"),
    (("datasets", "pure", "nowhere"), "nowhere"),
])
def test_what_cannot_be_done_is_said(argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, *argv)


def test_an_empty_folder_of_recordings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSVLM_RECORDINGS", "")
    said = refused(capsys, "evaluate", "--suite", "ward", "--n", "1", "--recordings", str(tmp_path), "--workers", "1")
    assert str(tmp_path) in said


@pytest.mark.lab
@pytest.mark.parametrize(("argv", "said"), [
    (("train", "--held-out", "moon"), "'moon' unknown"),
    (("train", "--epochs", "0"), "at least 1"),
    (("train", "--teacher", "clip:nowhere"), "nowhere"),
    (("train", "--teacher", "nowhere"), "nowhere"),
    (("train", "--teacher", "none", "--datasets", "pure"), "NAME=FOLDER"),
    (("train", "--teacher", "none", "--datasets", "pure=nowhere"), "nowhere"),
    (("train", "--teacher", "none", "--minutes", "0"), "positive budget"),
])
def test_training_says_what_is_wrong(argv: tuple[str, ...], said: str, tmp_path: Path,
                                     capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="training needs torch; it is in the extra `lab`")
    small = ("--out", str(tmp_path / "run"), "--cache", str(tmp_path), "--n-train", "2", "--n-valid", "2", "--n-restraint", "0",
             "--workers", "1")
    assert main([*argv, *small]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err
