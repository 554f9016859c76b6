"""The README is true: its tree names every module, its commands and flags exist, its pictures are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from vpl import classes
from vpl.cli.parser import parser
from vpl.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tree_names_every_module():
    named, room = set(), ""
    for indent, name in re.findall(r"^(  |    )(\w+\.py|\w+/) ", README, re.MULTILINE):
        if name.endswith("/"):
            room = name
        else:
            named.add((room if len(indent) == 4 else "") + name)
    source = ROOT / "src" / "vpl"
    kept = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert named == {name for name in kept if not name.endswith("__init__.py")} - {"__main__.py"}


def commands() -> list[str]:
    lines = re.findall(r"^\$ (vpl .*)$", README, re.MULTILINE) + re.findall(r"`(vpl [a-z]+ [^`]*)`", README)
    return [" ".join(line.split()) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    parser().parse_args(shlex.split(line)[1:])


def test_there_are_commands():
    assert len(commands()) >= 4


def test_values_exist():
    for key in re.findall(r"--set ([a-z_.]+)=", README):
        assert key in Config().flat()


def test_the_classes_file_is_one(tmp_path):
    path = tmp_path / "classes.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1], encoding="utf-8")
    assert classes.from_file(path).words == ("sofa couch",)


def test_files_exist():
    for place in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / place).exists(), place


def test_make_stands_for_the_plain_commands():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "torch==2.13.0" in makefile and "torch==2.13.0" in README
    for words in ("vpl demo --out demo", "python -m pytest -n 2", '".[openai,test,dev]"'):
        assert words in makefile and words in README
