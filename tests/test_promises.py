"""docs/explanation/promises.md: every test that a promise names exists, and every promise names one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HOME = Path(__file__).parent.parent
TEXT = (HOME / "docs" / "explanation" / "promises.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def functions_of(place: str) -> set[str]:
    tree = ast.parse((HOME / place).read_text(encoding="utf-8"))
    return {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}


def test_every_named_test_exists():
    assert len(NAMED) > 30
    known = {place: functions_of(place) for place, _ in NAMED}
    assert [f"{place}::{name}" for place, name in NAMED if name not in known[place]] == []


def test_every_promise_and_every_fault_names_a_test():
    promises = re.split(r"^- \*\*", TEXT, flags=re.MULTILINE)[1:]
    assert len(promises) > 15 and all("::test_" in one for one in promises)
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| fault")]
    assert rows and all("::test_" in row.split("|")[-2] for row in rows)
