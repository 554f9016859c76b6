"""How the package is cut: modules, lines, the largest module, arrows between rooms, public names, install size.

    python benchmarks/house.py              of this tree
    python benchmarks/house.py --install    and what its environment takes on disk

An arrow is a pair of modules in different rooms of which the first imports the second; what all rooms stand on (the
ground floor: errors, config, classes, machine, ...) is counted apart.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from pathlib import Path

import vpl

SOURCE = Path(vpl.__file__).parent
CUDA_OR_TORCH = ("torch", "nvidia", "triton")
"""Folders that are torch's own."""


def module(path: Path) -> tuple[str, ...]:
    """("room", "module") of a file, or ("module",) on the ground floor."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported(path: Path, known: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Modules of vpl that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vpl":
            base = tuple((node.module or "").split(".")[1:])
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")[1:]) for alias in node.names if alias.name.startswith("vpl.")}
    return {one if one in known else one[:-1] for one in found} & known


def counts() -> dict[str, object]:
    """Name -> number, in the order of the table."""
    files = sorted(SOURCE.rglob("*.py"))
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    known = {module(path) for path in files} - {()}
    arrows = {
        (one, other) for path in files if (one := module(path)) for other in imported(path, known) if one[0] != other[0]
    }
    between = {pair for pair in arrows if all(len(one) > 1 for one in pair)}
    largest = max(lines, key=lines.__getitem__)
    return {
        "modules": sum(path.name != "__init__.py" for path in files),
        "lines": sum(lines.values()),
        "largest module": f"{largest.relative_to(SOURCE)}, {lines[largest]}",
        "arrows between rooms": len(between),
        "arrows from and to the ground floor": len(arrows) - len(between),
        "pairs of rooms with an arrow": len({(one[0], other[0]) for one, other in between}),
        "public names": len(vpl.__all__),
    }


def installed() -> dict[str, int]:
    """MB of this environment's site-packages, whole and without torch's own."""
    place = Path(sysconfig.get_paths()["purelib"])
    sizes = {
        one.name: sum(path.stat().st_size for path in ([one] if one.is_file() else one.rglob("*")) if path.is_file())
        for one in place.iterdir()
    }
    other = sum(size for name, size in sizes.items() if not name.startswith(CUDA_OR_TORCH))
    return {"site-packages, MB": round(sum(sizes.values()) / 2**20), "less torch, MB": round(other / 2**20)}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--install", action="store_true", help="and the size of the environment that runs this")
    given = parser.parse_args()
    for name, number in (counts() | (installed() if given.install else {})).items():
        print(f"| {name} | {number} |")


if __name__ == "__main__":
    main()
