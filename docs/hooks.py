"""Pages of the reference that are made from the program itself, when mkdocs builds the site.

reference/cli.md            from `vpl --help` and each command's
reference/configuration.md  from `vpl.config`
reference/python.md         from the docstrings of `vpl.__all__`
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os

import vpl
from vpl.cli.parser import parser
from vpl.config import PRESETS, Config, Section
from vpl.presets import QUALITY

WIDTH = "100"
"""Columns of the help texts, whatever terminal builds the site."""


def on_files(files, config):
    """mkdocs: called once, with the files of docs/."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    return files


def command_line() -> str:
    """Every command with its help, as the program prints it."""
    os.environ["COLUMNS"] = WIDTH
    whole = parser()
    lines = ["# The command line", "", "What `vpl --help` and `vpl COMMAND --help` print.", ""]
    lines += ["```text", whole.format_help().rstrip(), "```", ""]
    for name, one in commands(whole).items():
        lines += [f"## vpl {name}", "", "```text", one.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def commands(whole: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Name -> the parser of a command, in the order of the help."""
    (found,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def configuration() -> str:
    """Every value with its default, range, source and meaning."""
    defaults = Config()
    lines = [
        "# Every configuration value",
        "",
        "`vpl run RUN --set SECTION.KEY=VALUE` sets any of them, and `vpl config RUN` prints a run's, which are in its",
        "`config.toml`. A source is *paper* (arXiv 2412.19650), *reference* (CLIP-ES, InMaP, DenseCRF) or *ours*; see",
        "[decisions](../explanation/decisions.md). `METHOD.md` is [the method](../explanation/method.md).",
        "",
        *_table([("seed", defaults.seed)], defaults),
    ]
    for item in dataclasses.fields(defaults)[1:]:
        section = getattr(defaults, item.name)
        lines += [f"## {item.name}", "", inspect.getdoc(section) or "", ""]
        if type(section).__bases__ == (Section,):
            rows = [(f"{item.name}.{one.name}", getattr(section, one.name)) for one in dataclasses.fields(section)]
            lines += _table(rows, defaults)
        else:
            lines += [f"The same keys as {type(section).__bases__[0].name}'s.", ""]
    for title, rows in (("Presets", PRESETS), ("Qualities", QUALITY)):
        lines += [f"## {title}", "", "| key | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
        for key in dict.fromkeys(key for row in rows.values() for key in row):
            lines.append(f"| `{key}` | " + " | ".join(f"{row.get(key, '')}" for row in rows.values()) + " |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _table(rows: list[tuple[str, object]], defaults: Config) -> list[str]:
    lines = ["| key | default | range | source | meaning |", "|---|---|---|---|---|"]
    for key, default in rows:
        told = defaults.field(key).metadata
        bounds = ", ".join(told["choices"]) or ("" if told["low"] is None else f"{told['low']:g} to {told['high']:g}")
        shown = str(list(default) if isinstance(default, tuple) else default).lower()
        shown = f"`{shown}`" if shown else ""
        cells = [
            f"`{key.rpartition('.')[2]}`",
            shown,
            bounds,
            told["source"],
            told["help"].replace("|", "\\|").replace("<", "&lt;"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def python() -> str:
    """Every public name, from its docstring."""
    lines = ["# Python", "", "`import vpl` is quick: each name is loaded on first use.", ""]
    for name in vpl.__all__:
        lines += [f"::: vpl.{name}", ""]
    return "\n".join(lines)


PAGES = {
    "reference/cli.md": command_line,
    "reference/configuration.md": configuration,
    "reference/python.md": python,
}
"""Place in docs/ -> what makes the page."""
