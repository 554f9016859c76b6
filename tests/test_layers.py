"""The rooms: a room imports from rooms before it alone, a module of a room in no circle, and `import vpl` is quick."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vpl"
ROWS = (
    ("moved", "errors", "presets", "progress", "sampling"),
    ("config", "classes", "machine"),
    ("edges", "clip"),
    ("scenes",),
    ("method",),
    ("network", "pocket"),
    ("runs",),
    ("pages", "exports"),
    ("judge", "integrations"),
    ("build", "app", "demo", "notebook", "cli", "__main__"),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def module(path: Path) -> tuple[str, ...]:
    """(room, module) of a file, or (module,) on the ground floor."""
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path) -> set[tuple[str, ...]]:
    """Modules of vpl that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vpl":
            base = tuple(node.module.split(".")[1:])
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("vpl.")}
    known = {module(one) for one in FILES}
    return {one if one in known else one[:-1] for one in found} & known - {()}


def climbs(room: str, others: set[str]) -> list[str]:
    """Rooms that `room` may not import from: its own row's others, and later ones."""
    return sorted(other for other in others if other != room and ROW[other] >= ROW[room])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_come_from_rooms_before(path):
    if path.stem == "__init__" and len(path.parts) == 1:
        return  # the face names everything, and loads it on first use
    room = module(path)[0]
    assert room in ROW, f"{path} is in no room of tests/test_layers.py"
    if ROW[room] < len(ROWS) - 1:  # the command line's row is read in order: demo, cli, __main__
        assert climbs(room, {one[0] for one in imported(path)}) == []


def test_the_check_can_fail():
    assert climbs("method", {"runs", "clip", "method"}) == ["runs"]
    assert climbs("pages", {"exports"}) == ["exports"]


def test_no_circle_inside_a_room():
    order = graphlib.TopologicalSorter({module(path): imported(path) for path in FILES if module(path)})
    order.prepare()  # raises graphlib.CycleError


def test_every_room_says_what_it_is():
    for room in SOURCE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(room.read_text(encoding="utf-8"))), room


def test_only_the_command_line_prints_and_exits():
    for path in FILES:
        names = {
            node.func.id
            for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if path.parts[0] != "cli" and path.stem not in ("pretrain", "__main__"):
            assert not names & {"print", "exit", "input"}, path


def test_import_is_lazy():
    names = ("torch", "numpy", "transformers", "torchvision")
    code = f"import sys, vpl; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_torchvision_is_never_needed():
    names = ", ".join(".".join(("vpl", *module(path))) for path in FILES if path.stem != "__main__")
    code = f"import sys; sys.modules['torchvision'] = None\nimport {names}\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.slow
def test_names_of_before_the_rooms_import_with_a_warning():
    code = (
        "import warnings; warnings.simplefilter('error'); import vpl\n"
        "try:\n    import vpl.datasets\nexcept DeprecationWarning as told: print(told)\n"
        "warnings.simplefilter('ignore')\n"
        "from vpl.datasets import open_dataset\nfrom vpl import crf\nimport vpl.edges.datasets as now, vpl.method.crf\n"
        "print(now.open_dataset is open_dataset, crf is vpl.method.crf, now.__spec__.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "vpl.datasets is now vpl.edges.datasets; the old name goes with vpl 0.3.",
        "True True vpl.edges.datasets",
    ]
