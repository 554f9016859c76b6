"""Tools that can't live beside our packages run in a Python of their own, which an environment variable names.

.ci/run makes these environments, so that nothing is skipped there.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest


def in_other_python(variable: str, code: str, *arguments: object) -> Any:
    """What a tool says: the last line that `code` prints, in its own Python."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python that has the tool")
    done = subprocess.run([python, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
