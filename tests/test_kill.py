"""kill -9 at ten moments of every stage: the same command again, and the folder holds the bytes of a quiet run.

A moment is a change of the file system, so every test knows where it kills: ten seeded draws from all changes that a
quiet run of the stage makes, its first and last among them. A file that is about to get its name is left half written.
"""

from __future__ import annotations

import random
import shutil

import pytest

from warm import STAGES, command, held

pytestmark = pytest.mark.slow

KILLS = 10


@pytest.mark.parametrize("stage", STAGES)
def test_ten_kills_of_a_stage_leave_the_bytes_of_a_quiet_run(warm, small_tree, quiet, tmp_path, stage):
    before, after, changes = quiet[stage]
    wanted = held(after)
    inner = random.Random(stage).sample(range(2, changes), min(KILLS, changes) - 2)
    for event in sorted({1, changes, *inner}):
        folder = tmp_path / f"{event}"
        if before.exists():
            shutil.copytree(before, folder)
        assert warm.start(["die_at", folder, event], command(stage, folder, small_tree)).wait() == -9, event
        told = warm.vpl(*command(stage, folder, small_tree)[1:])
        assert told.status == 0, (event, told.err)
        found = held(folder)
        assert found.keys() == wanted.keys(), (event, found.keys() ^ wanted.keys())
        assert [name for name in wanted if found[name] != wanted[name]] == [], event
        shutil.rmtree(folder)
