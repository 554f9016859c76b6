"""locks.py: one process works in a folder, its end frees it, and nothing of POSIX is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vpl.edges import locks
from vpl.errors import RunError

SOURCE = Path(__file__).parents[2] / "src"


def test_one_process_at_a_time(tmp_path):
    first = locks.claim(tmp_path)
    with pytest.raises(RunError, match=r"another process works in .*; wait until it ends, or name another folder"):
        locks.claim(tmp_path)
    with locks.alone(tmp_path) as alone:
        assert not alone
    first.release()
    with locks.alone(tmp_path) as alone:
        assert alone
    with locks.alone(tmp_path) as alone:
        assert alone


def test_a_kill_frees_the_folder(tmp_path):
    code = f"import pathlib, time; from vpl.edges import locks; kept = locks.claim(pathlib.Path({str(tmp_path)!r}))"
    code += "; print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=SOURCE)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match="another process works in"):
        locks.claim(tmp_path)
    other.kill()
    other.wait()
    locks.claim(tmp_path).release()


@pytest.mark.slow
def test_nothing_of_posix_is_needed(tmp_path):
    """Windows has neither fcntl nor these flags, and can't open a folder."""
    code = """
import os, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY"):
    delattr(os, name)
import numpy as np, pathlib
from vpl.edges import images, locks
folder = pathlib.Path(sys.argv[1])
lock = locks.claim(folder)
images.write_image(folder / "a.png", np.zeros((2, 3, 3), np.uint8))
print(images.read_image(folder / "a.png").shape)
lock.release()
import vpl.cli, vpl.network.predict, vpl.runs.stages, vpl.runs.ray, vpl.judge.tune, vpl.pages.report, vpl.exports.export
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout == "(2, 3, 3)\n" and done.returncode == 0, done.stderr


def test_locks_and_flags_have_one_place():
    """fcntl, msvcrt and the flags of os.open stand nowhere else, so that nothing new stops on another system."""
    for path in sorted((SOURCE / "vpl").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"^import (fcntl|msvcrt|resource)$|os\.O_(NONBLOCK|NOFOLLOW|CLOEXEC|DIRECTORY)", text, re.MULTILINE
        ), path
