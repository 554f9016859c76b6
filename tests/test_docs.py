"""The pages of docs/ are true: what the code cites of the method exists there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
METHOD = (DOCS / "explanation" / "method.md").read_text(encoding="utf-8")
CITATION = re.compile(r"METHOD\.md ((?:\d+b?(?:\.\d+)?(?:, | to | and | or )?)+)")


def sections(text: str) -> set[str]:
    """Numbers of the method's sections ("3") and of the points in them ("3.5")."""
    found = set()
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if number := re.match(r"(\d+b?)\. ", part):
            found |= {number[1]} | {f"{number[1]}.{point}" for point in re.findall(r"^(\d+)\. ", part, re.MULTILINE)}
    return found


def cited(text: str) -> list[str]:
    return [number for numbers in CITATION.findall(text) for number in re.findall(r"\d+b?(?:\.\d+)?", numbers)]


@pytest.mark.parametrize("place", ["src", "tests", "benchmarks"])
def test_sections_that_are_cited_exist(place):
    known = sections(METHOD)
    for path in (ROOT / place).rglob("*"):
        if path.suffix not in (".py", ".md", ".html") or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert set(cited(text)) <= known, path
        assert text.count("METHOD") == len(CITATION.findall(text)), f"{path} cites the method in another form"


def test_the_check_can_fail():
    assert cited("METHOD.md 3.5 and 7; METHOD.md 1 to 4, METHOD.md 5b") == ["3.5", "7", "1", "4", "5b"]
    assert "3.9" not in sections(METHOD) and {"0", "3.5", "5b", "8"} <= sections(METHOD)
