"""What vpl made is known again, what it did not make is never replaced."""

from __future__ import annotations

import os

import pytest

from vpl.edges.outputs import NAME, Made, check_apart
from vpl.errors import DataError, RunError


def test_only_what_was_made_from_the_same_is_fresh(tmp_path):
    made = Made(tmp_path)
    made.begin(["a.png"])
    (tmp_path / "a.png").write_bytes(b"1")
    assert not Made(tmp_path).is_fresh(["a.png"], "x"), "a kill came before its end"
    made.finish(["a.png"], "x")
    again = Made(tmp_path)
    assert again.is_fresh(["a.png"], "x") and not again.is_fresh(["a.png"], "y")
    again.begin(["a.png"])
    assert not Made(tmp_path).is_fresh(["a.png"], "x"), "it may be half of something else now"
    again.finish(["a.png"], "y")
    (tmp_path / "a.png").unlink()
    assert not again.is_fresh(["a.png"], "y")


def test_what_vpl_did_not_make_is_refused(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"photograph")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    for name in ("mine.png", "link.png"):
        with pytest.raises(DataError, match=f"{name} is there and was not made by vpl"):
            Made(tmp_path).begin([name])
    assert not (tmp_path / NAME).exists()


def test_a_journal_that_a_kill_cut_is_read(tmp_path):
    made = Made(tmp_path)
    (tmp_path / "a.png").write_bytes(b"1")
    made.finish(["a.png"], "x")
    with (tmp_path / NAME).open("a") as file:
        file.write('["b.png", "y')
    Made(tmp_path).finish(["c.png"], "z")
    (tmp_path / "c.png").write_bytes(b"3")
    assert Made(tmp_path).is_fresh(["a.png"], "x") and Made(tmp_path).is_fresh(["c.png"], "z")


def test_outputs_and_inputs_are_apart_whatever_the_links(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "overlays").symlink_to(tmp_path / "in")
    check_apart([tmp_path / "out"], [tmp_path / "in", ""])
    with pytest.raises(RunError, match="is a folder that is read from"):
        check_apart([tmp_path / "out", tmp_path / "out" / "overlays"], [tmp_path / "in"])


def test_an_empty_file_is_made_again(tmp_path):
    made = Made(tmp_path)
    made.begin(["a.png"])
    (tmp_path / "a.png").write_bytes(b"1")
    made.finish(["a.png"], "x")
    assert made.is_fresh(["a.png"], "x")
    (tmp_path / "a.png").write_bytes(b"")
    assert not made.is_fresh(["a.png"], "x"), "as a power cut leaves it"


def test_the_journal_is_on_the_disk_before_the_file_is(tmp_path, monkeypatch):
    told, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: told.append((tmp_path / NAME).read_text()) or real(number))
    Made(tmp_path).begin(["a.png"])
    assert "a.png" in told[0], "or what a power cut leaves would be taken for the user's"
