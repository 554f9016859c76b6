"""What made each file: lines that survive kills, digests that are remembered, records of what is on the disk."""

from __future__ import annotations

import os

import pytest

from vpl.runs.contents import UNREAD, Contents
from vpl.runs.lines import Lines
from vpl.runs.plan import WHOLE
from vpl.runs.state import State


@pytest.mark.parametrize("torn", ["masks\tb", "masks\tb\tfp", "masks\tb\tfp\t", "\xff", "\t\t\t\t\t"])
def test_a_torn_or_strange_line_counts_for_none(tmp_path, torn):
    path = tmp_path / "made.tsv"
    path.write_bytes(b"masks\ta\tone\t\n" + torn.encode("latin-1"))
    lines = Lines(path, 4)
    assert lines.rows == [["masks", "a", "one", ""]]
    lines.add("masks", "c", "two", "")
    lines.close()
    assert Lines(path, 4).rows == [["masks", "a", "one", ""], ["masks", "c", "two", ""]]


def test_equal_lines_have_equal_bytes_and_are_not_written_again(tmp_path):
    path = tmp_path / "lines.tsv"
    lines = Lines(path, 2)
    for row in ("ba", "ab", "aa"):
        lines.add(*row)
    lines.rewrite([("a", "a"), ("a", "b")])
    assert path.read_text() == "a\ta\na\tb\n"
    before = path.stat().st_mtime_ns
    Lines(path, 2).rewrite([("a", "a"), ("a", "b")])
    assert path.stat().st_mtime_ns == before


def test_a_product_counts_once_it_is_there_and_not_while_it_is_made_again(tmp_path):
    state = State(tmp_path)
    with state.making("masks", "first", "a"):
        assert "a" not in State(tmp_path).records.get("masks", {})
    assert State(tmp_path).records == {"masks": {"a": "first"}}
    with pytest.raises(KeyboardInterrupt), state.making("masks", "second", "a"):
        assert "a" not in State(tmp_path).records["masks"], "a kill now leaves no record of either"
        raise KeyboardInterrupt
    assert "a" not in State(tmp_path).records["masks"]


def test_what_is_set_aside_comes_back_with_its_fingerprint(tmp_path):
    state = State(tmp_path)
    with state.making("network", "one"):
        pass
    state.move("network", WHOLE, "network-1", back=False)
    assert State(tmp_path).aside == {"network": {"network-1": "one"}} and not State(tmp_path).records["network"]
    state.move("network", WHOLE, "network-1", back=True)
    assert State(tmp_path).records == {"network": {WHOLE: "one"}}


def test_failures_and_settings_are_remembered_and_old_settings_forgotten(tmp_path):
    state = State(tmp_path)
    state.remember({"end": {"crf.rounds": 3}, "other": {"crf.rounds": 4}})
    state.fail("a", "bytes-end", "it is\tdamaged\n")
    with state.making("masks", "bytes-tags-end", "b"):
        pass
    state.close(["b", "a"])
    again = State(tmp_path)
    assert again.failed == {"a": ("bytes-end", "it is\tdamaged\n")} and again.settings == {"end": {"crf.rounds": 3}}
    again.mend("a")
    assert State(tmp_path).failed == {}


def test_contents_read_what_has_changed_alone(tmp_path, monkeypatch):
    photographs = [tmp_path / name for name in "abc"]
    for number, path in enumerate(photographs):
        path.write_bytes(bytes([number]) * 100)
    contents = Contents(tmp_path / "state" / "contents.tsv")
    first = contents.of(photographs)
    assert len(set(first)) == 3 and all(map(contents.unchanged, photographs))
    contents.close(photographs)
    read: list = []
    real = Contents._read
    monkeypatch.setattr(Contents, "_read", lambda own, file: read.append(file) or real(own, file))
    photographs[1].write_bytes(b"other" * 20)
    again = Contents(tmp_path / "state" / "contents.tsv")
    assert not again.unchanged(photographs[1])
    second = again.of(photographs)
    assert read == [photographs[1]] and [a == b for a, b in zip(first, second, strict=True)] == [True, False, True]


def test_a_photograph_of_the_same_size_and_time_is_seen_by_its_change_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    times = path.stat()
    contents = Contents(tmp_path / "state" / "contents.tsv")
    before = contents.of([path])
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert contents.of([path]) != before


def test_what_cannot_be_read_has_no_content(tmp_path):
    contents = Contents(tmp_path / "state" / "contents.tsv")
    assert contents.of([tmp_path / "absent", tmp_path]) == [UNREAD, UNREAD]
    assert not contents.unchanged(tmp_path / "absent")
    assert contents.of(["s3://bucket/a.jpg"]) != contents.of(["s3://bucket/b.jpg"])
