"""README and docs/ are true: every code block is executed or parsed, every command, key and section exists."""

from __future__ import annotations

import contextlib
import re
import runpy
import shlex
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from vpl.cli.parser import parser
from vpl.config import Config

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CITATION = re.compile(r"METHOD\.md ((?:\d+b?(?:\.\d+)?(?:, | to | and | or )?)+)")
OTHER_PROGRAMS = {"accelerate", "cp", "cvat-cli", "head", "make", "mkdir", "pip", "pre-commit", "python", "python3"}
GENERATED = runpy.run_path(str(DOCS / "hooks.py"))


def blocks(language: str) -> list:
    """The code blocks of a language, of all pages."""
    return [
        pytest.param(content, id=f"{page}:{text[: text.index(content)].count(chr(10))}")
        for page, text in PAGES.items()
        for found, content in FENCE.findall(text)
        if found == language
    ]


# Commands


def test_every_block_says_what_it_is():
    for page, text in PAGES.items():
        assert {language for language, _ in FENCE.findall(text)} <= {"console", "python", "toml", "text"}, page


@pytest.mark.slow
@pytest.mark.parametrize("content", blocks("console"))
def test_commands_parse(content):
    for line in re.findall(r"^\$ (.*)$", content, re.MULTILINE):
        words = shlex.split(line)
        program = words[0].removeprefix(".venv/bin/")
        if program == "vpl":
            parser().parse_args(words[1:])
        elif program == "accelerate":
            parser().parse_args(words[words.index("vpl") + 1 :])
        elif program == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        else:
            assert program in OTHER_PROGRAMS, line
            assert all((ROOT / word).exists() for word in words if word.startswith(("benchmarks/", "tests/"))), line


def test_commands_and_keys_in_the_text_exist():
    commands = GENERATED["commands"](parser())
    for page, text in PAGES.items():
        for name in re.findall(r"`vpl ([a-z]+)", text):
            assert name in commands, f"{page}: vpl {name}"
        for key in re.findall(r"--set ([a-z_.]+)=", text):
            assert key in Config().flat(), f"{page}: {key}"


@pytest.mark.parametrize("content", blocks("toml"))
def test_toml_is_toml(content):
    assert tomllib.loads(content)


# Python


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Path:
    """What the pages speak of, small: photographs with tags, and a run with a network."""
    import vpl
    from vpl.scenes import tree

    folder = tmp_path_factory.mktemp("workshop")
    tree.write_tree(folder / "drawn", {"train": 2, "val": 1}, seed=3, style="demo", size=48)
    (folder / "photos").mkdir()
    for name, path in zip(("garden", "street"), sorted((folder / "drawn/images/train").iterdir()), strict=True):
        shutil.copy(path, folder / "photos" / f"{name}.jpg")
        shutil.copy(path, folder / f"{name}.jpg")
    (folder / "tags.csv").write_text("file_name,tags\ngarden.jpg,dog;chair\nstreet.jpg,bus\n", encoding="utf-8")
    config = vpl.Config().with_values({"data.images": "photos", "data.tags": "tags.csv", **QUICK})
    with contextlib.chdir(folder), vpl.Run("runs/mine", config) as run:
        run.labels()
        run.train()
    return folder


PARSED = ("docs/how-to/ways-out.md",)
"""Its graph takes a minute to make; tests/exports/test_onnx.py runs it."""
QUICK = {"train.steps": 2, "train.crop": 32, "decoder.width": 16, "decoder.heads": 2}


@pytest.mark.parametrize("content", blocks("python"))
def test_python_parses(content):
    compile(content, "page", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```python" in text and page not in PARSED])
def test_python_runs(page, workshop, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    server = SimpleNamespace(serve_forever=lambda: None)
    monkeypatch.setattr("wsgiref.simple_server.make_server", lambda host, port, app: server)  # no port is taken
    names: dict[str, object] = {"__name__": page}
    for language, content in FENCE.findall(PAGES[page]):
        if language == "python":  # one page is one session; training is cut short
            exec(compile(content.replace('"train.steps": 2000', f"**{QUICK}"), page, "exec"), names)


# The method


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
    known = sections(PAGES["docs/explanation/method.md"])
    for path in (ROOT / place).rglob("*"):
        if path.suffix not in (".py", ".md", ".html") or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        assert set(cited(text)) <= known, path
        assert len(re.findall(r"\bMETHOD", text)) == len(CITATION.findall(text)), (
            f"{path} cites the method in another form"
        )


def test_the_check_can_fail():
    assert cited("METHOD.md 3.5 and 7; METHOD.md 1 to 4, METHOD.md 5b") == ["3.5", "7", "1", "4", "5b"]
    found = sections(PAGES["docs/explanation/method.md"])
    assert "3.9" not in found and {"0", "3.5", "5b", "8"} <= found


# The site


def test_the_reference_names_every_command_value_and_name():
    import vpl

    made = {name: make() for name, make in GENERATED["PAGES"].items()}
    assert all(f"\n## vpl {name}\n" in made["reference/cli.md"] for name in GENERATED["commands"](parser()))
    for key in Config().flat():
        if not key.startswith("validation."):
            assert f"| `{key.rpartition('.')[2]}` |" in made["reference/configuration.md"], key
    assert all(f"::: vpl.{name}\n" in made["reference/python.md"] for name in vpl.__all__)


def test_every_page_is_in_the_contents():
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in [*DOCS.rglob("*.md"), *GENERATED["PAGES"]]:
        name = path if isinstance(path, str) else path.relative_to(DOCS).as_posix()
        assert f"- {name}\n" in contents, name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for place in re.findall(r"\]\((?!http|#)([^)#]+)", PAGES[page]):
        target = (ROOT / page).parent / place
        assert target.exists() or place.endswith(tuple(Path(name).name for name in GENERATED["PAGES"])), place
