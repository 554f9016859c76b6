"""stored.py: a torn config.toml is known as torn, and an edit by hand is allowed and told."""

from __future__ import annotations

import os

import pytest

from vpl.config import Config, preset
from vpl.errors import ConfigError
from vpl.runs import stored
from vpl.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    with RunFolder(tmp_path / "run", preset("scenes").with_values({"train.steps": 7})) as made:
        made.settle()
    return made.folder


def test_what_vpl_wrote_is_whole_and_read_as_it_is(run):
    found = stored.look(run)
    assert found.config.train.steps == 7 and not found.edits and not found.torn
    assert (run / stored.FILE).read_text().splitlines()[-1].startswith(stored.SEAL)
    assert Config.from_toml(run / stored.FILE) == found.config


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("end", [b"", b"\0" * 100])
def test_a_torn_file_is_no_other_configuration(run, caplog, share, end):
    path, wanted = run / stored.FILE, stored.read(run)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))] + end)
    assert stored.read(run) == wanted and "was torn" in caplog.text
    with RunFolder(run, stored.read(run)) as again:
        again.settle()
    assert path.read_bytes() == data, "it is made again"


def test_a_hole_in_the_middle_is_refused_or_filled(run):
    path, wanted = run / stored.FILE, stored.read(run)
    data = path.read_bytes()
    path.write_bytes(data[:2000] + b"\0" * 1000 + data[3000:])
    assert stored.read(run) == wanted
    lines = data.decode().splitlines(keepends=True)
    path.write_text("".join(lines[:30] + lines[40:]))
    with pytest.raises(ConfigError, match=r"lacks \d+ of the values that vpl wrote, .* copy .*state/config.toml over"):
        stored.read(run)


def test_an_edit_by_hand_is_allowed_and_told(run):
    path = run / stored.FILE
    path.write_text(path.read_text().replace("steps = 7 ", "steps = 9 ").replace("phi = 0.5 ", "phi = 0.25 "))
    found = stored.look(run)
    assert found.edits == ("prototypes.phi 0.5, now 0.25", "train.steps 7, now 9") and not found.torn
    with RunFolder(run, found.config) as again:
        again.settle()
        assert [line.split(": ", 1)[1] for line in again.said] == list(found.edits)
    assert stored.look(run) == stored.Stored(found.config), "told once"


def test_a_broken_edit_names_its_line_and_the_copy(run):
    path = run / stored.FILE
    path.write_text(path.read_text().replace("steps = 7 ", "steps = [7 "))
    with pytest.raises(ConfigError, match=r"no valid TOML .* What vpl wrote last is in .*state/config.toml"):
        stored.read(run)


@pytest.mark.parametrize("kind", ["no copy", "a torn copy", "of one's own"])
def test_without_a_copy_a_configuration_is_read_as_it_is(run, kind):
    path, copy = run / stored.FILE, run / stored.COPY
    if kind == "a torn copy":
        copy.write_bytes(copy.read_bytes()[:500])
    else:
        copy.unlink()
    path.write_text("train.steps = 3\n" if kind == "of one's own" else path.read_text().replace("= 7 ", "= 3 "))
    found = stored.look(run)
    assert found.config.train.steps == 3 and not found.edits and not found.torn


def test_a_pipe_in_its_place_hangs_nothing(run):
    (run / stored.FILE).unlink()
    os.mkfifo(run / stored.FILE)
    with pytest.raises(ConfigError, match="no regular file"):
        stored.read(run)
