"""What a second command costs beside the first: one more photograph, one corrected tag, nothing to do.

    python benchmarks/again.py [--images 200] [--side 320] [--quality draft] [--clip pocket]

Drawn scenes, `vpl run --steps 0`, each command a process of its own, start included. Prints seconds, shares of the
first run, and the stages of run.json that took the most of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vpl.scenes.tree import write_tree


def stages(run: Path) -> dict[str, float]:
    """Seconds by stage that run.json has added up."""
    record = json.loads((run / "run.json").read_text()) if (run / "run.json").exists() else {}
    return {name: one["seconds"] for name, one in record.get("stages", {}).items()}


def timed(run: Path, command: str, words: Sequence[str]) -> tuple[float, str]:
    """Seconds of a command, and where they went."""
    before, start = stages(run), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "vpl", command, str(run), *words], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    spent = {name: one - before.get(name, 0.0) for name, one in stages(run).items()}
    most = sorted(spent.items(), key=lambda one: -one[1])[:4]
    return seconds, ", ".join(f"{name} {one:.1f}" for name, one in most if one >= 0.05)


def main() -> None:
    """Prints the table of README.md."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--images", type=int, default=200)
    given.add_argument("--side", type=int, default=320)
    given.add_argument("--quality", default="draft")
    given.add_argument("--clip", default="pocket")
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tree = write_tree(Path(name) / "scenes", {"train": asked.images + 1}, seed=5, style="demo", size=asked.side)
        run, table = Path(name) / "run", tree / "train.csv"
        header, *rows = table.read_text().splitlines()

        def listed(lines: Sequence[str]) -> None:
            table.write_text("\n".join([header, *lines]) + "\n")

        listed(rows[:-1])
        data = ["--images", str(tree / "images/train"), "--tags", str(table), "--clip", asked.clip]
        first = timed(run, "run", [*data, "--quality", asked.quality, "--steps", "0", "--set", "data.classes=scenes"])
        listed(rows)
        made = [("first run", first), ("one more photograph", timed(run, "run", []))]
        photograph, _, tags = rows[0].partition(",")
        other = next(tag for tag in rows[1].partition(",")[2].split(";") if tag not in tags.split(";"))
        listed([f"{photograph},{tags};{other}", *rows[1:]])
        made += [("one corrected tag", timed(run, "run", [])), ("nothing to do", timed(run, "run", []))]
        made += [("the same, vpl plan", timed(run, "plan", []))]
    print(f"| {asked.images} scenes of {asked.side} px, {asked.quality} | seconds | of the first run | most of it |")
    print("|---|---|---|---|")
    for words, (seconds, most) in made:
        print(f"| {words} | {seconds:.1f} | {100 * seconds / first[0]:.1f} % | {most} |")


if __name__ == "__main__":
    main()
