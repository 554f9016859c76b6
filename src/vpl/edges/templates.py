"""Plain data to text through a template, and what templates need: tables in Markdown, pictures as data URIs.

A template lies in the folder templates/ of the room that fills it. Text that goes into HTML or SVG is escaped, and a
name that the data lack is an error. The only module that knows jinja.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import jinja2

ESCAPED = ("html", "svg")
"""Endings of templates whose values are escaped."""


def render(room: str, template: str, /, **data: object) -> str:
    """The text of a room's template, filled with `data`; functions among them can be called in it."""
    return _environment(room).get_template(template).render(data)


def source(room: str, template: str) -> str:
    """A room's template as it is."""
    return resources.files(f"vpl.{room}").joinpath("templates", template).read_text(encoding="utf-8")


@functools.cache
def _environment(room: str) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: source(room, name)),
        autoescape=lambda name: (name or "").endswith(ESCAPED),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "table": markdown_table}
    return environment


def percent(value: float | None) -> str:
    """A share as a number of percent with one digit; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f}"


def markdown_table(rows: Iterable[Sequence[object]], head: Sequence[str], right: bool = False) -> str:
    """Rows under a head as a Markdown table.

    Args:
        right: whether all columns but the first are set to the right.
    """
    lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in (head, *rows)]
    rule = "|---|" + ("---:|" if right else "---|") * (len(head) - 1)
    return "\n".join([lines[0].replace("|  ", "| "), rule, *lines[1:]])


def data_uri(picture: Image.Image, kind: str, **options: object) -> str:
    """A picture as text that stands where a page names a file.

    Args:
        kind: "JPEG" or "PNG".
        options: of Pillow's writer.
    """
    packed = io.BytesIO()
    picture.save(packed, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(packed.getvalue()).decode()}"
