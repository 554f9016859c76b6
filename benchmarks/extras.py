"""What each extra costs: megabytes beyond the base install, and seconds to import it. Nothing is downloaded.

    python benchmarks/extras.py [--repeats 5]

Counts what lies in this environment: the packages that an extra needs and the base does not, their files as their own
records list them. An extra that is not installed here has no row. Times are the best of the repeats, of a new process
less an empty one; base is `import vpl` alone. One row a line, as JSON; a table in Markdown at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

NAMES = {
    "openai": "instant_clip_tokenizer", "ray": "ray.data", "launch": "accelerate", "tensorboard": "tensorboard",
    "video": "av", "heic": "pillow_heif", "onnx": "onnxruntime", "cvat": "cvat_sdk.auto_annotation",
    "supervision": "supervision", "datasets": "datasets", "siglip": "sentencepiece",
}  # fmt: skip
"""Extra -> what vpl imports of it."""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """The packages that a distribution asks for, with their own extras; none where it is not installed."""
    from packaging.requirements import Requirement

    try:
        given = metadata.requires(name) or ()
    except metadata.PackageNotFoundError:
        return set()
    found = set()
    for text in given:
        one = Requirement(text)
        if any(one.marker is None or one.marker.evaluate({"extra": extra}) for extra in (extras or {""}) | {""}):
            found.add((plain(one.name), frozenset(one.extras)))
    return found


def closure(seeds: set[tuple[str, frozenset[str]]]) -> set[str]:
    """All packages that these bring."""
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = list(seeds)
    while queue:
        one = queue.pop()
        if one not in seen:
            seen.add(one)
            queue.extend(needed(*one))
    return {name for name, _ in seen}


def megabytes(names: set[str]) -> float:
    total = 0
    for name in names:
        try:
            files = metadata.files(name) or ()
        except metadata.PackageNotFoundError:
            continue
        total += sum(path.stat().st_size for file in files if (path := Path(file.locate())).is_file())
    return total / 1e6


def seconds(code: str, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        if done.returncode:
            return float("nan")
        best = min(best, time.perf_counter() - start)
    return best


def asked(project: dict) -> tuple[set[tuple[str, frozenset[str]]], dict[str, set[tuple[str, frozenset[str]]]]]:
    from packaging.requirements import Requirement

    def of(texts: list[str]) -> set[tuple[str, frozenset[str]]]:
        return {(plain(one.name), frozenset(one.extras)) for one in map(Requirement, texts)}

    return of(project["dependencies"]), {name: of(one) for name, one in project["optional-dependencies"].items()}


def main() -> None:
    import tomllib

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base, extras = asked(project)
    own, empty = closure(base), seconds("pass", repeats)
    rows = [("base", len(own), megabytes(own), seconds("import vpl", repeats) - empty)]
    for name, module in NAMES.items():
        more = closure(extras[name]) - own
        took = seconds(f"import {module}", repeats) - empty
        if took == took:
            rows.append((name, len(more), megabytes(more), max(0.0, took)))
    for name, count, size, took in rows:
        print(json.dumps({"extra": name, "packages": count, "MB": round(size, 1), "import_s": round(took, 2)}))
    print("| extra | packages more | MB more | import, s |\n|---|---|---|---|")
    for name, count, size, took in rows:
        print(f"| {name} | {count} | {size:.0f} | {took:.2f} |")


if __name__ == "__main__":
    main()
