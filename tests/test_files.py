"""A file is there whole or not at all, and what was there before stays until then."""

from __future__ import annotations

import os
import stat

import pytest

from engines.files import write_whole


def test_what_was_there_is_replaced_and_may_be_read_by_all(tmp_path):
    path = tmp_path / "f.json"
    before = os.umask(0o077)
    try:
        write_whole(path, b"one")
        write_whole(path, b"two")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"two" and stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    write_whole(path, b"before")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"half of it")
    assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_what_a_dead_process_left_under_our_number_is_no_obstacle(tmp_path):
    (tmp_path / f".f.json.{os.getpid()}.partial").write_bytes(b"rest")
    write_whole(tmp_path / "f.json", b"whole")
    assert (tmp_path / "f.json").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
