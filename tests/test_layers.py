"""The layout: a module imports from rows above its own alone, nothing needs torchvision, `import vpl` is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vpl"
ROWS = (
    ("errors", "machine"),
    ("storage",),
    ("config", "classes", "lattice"),
    ("weights",),
    ("images", "clip", "maps"),
    ("datasets", "scenes", "sheet", "plots", "charts"),
    ("captions", "recipe", "prototypes", "seeds", "refine", "crf", "decoder", "losses", "metrics", "contrast"),
    ("hub", "graph"),
    ("labels", "predict", "runfolder", "zeroshot", "signs", "formats"),
    ("train", "learner", "card", "bench"),
    ("run", "pretrain", "committee", "ablations"),
    ("modality", "gallery"),
    ("report", "checkup", "exports"),
    ("demo", "ablate", "tune", "compare", "scaleout"),
    ("cli",),
    ("__main__",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}


def imported(path: Path) -> set[str]:
    """Modules of vpl that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "vpl":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vpl."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("vpl.")}
    return {name for name in found if (SOURCE / f"{name}.py").exists()}


def climbs(name: str, names: set[str]) -> list[str]:
    """Imports of `name` that do not come from a row above its own."""
    return sorted(other for other in names if ROW[other] >= ROW[name])


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_come_from_rows_above(path):
    if path.stem == "__init__":
        assert not imported(path)
        return
    assert path.stem in ROW, f"{path.name} has no row in tests/test_layers.py"
    assert climbs(path.stem, imported(path)) == []


def test_the_check_can_fail():
    assert climbs("seeds", {"run", "clip"}) == ["run"]
    assert climbs("seeds", {"refine"}) == ["refine"]


def test_only_the_command_line_prints_and_exits():
    for path in SOURCE.glob("*.py"):
        names = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        if path.stem not in ("cli", "pretrain", "__main__"):
            assert not names & {"print", "exit", "input"}, path.name


def test_import_is_lazy():
    names = ("torch", "numpy", "transformers", "torchvision")
    code = f"import sys, vpl; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_torchvision_is_never_needed():
    names = ", ".join(f"vpl.{name}" for name in ROW if name != "__main__")
    code = f"import sys; sys.modules['torchvision'] = None\nimport {names}\nprint('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr
