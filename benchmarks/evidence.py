"""Does each part help? The project's own answer, from raw results that lie in benchmarks/evidence/.

    python benchmarks/evidence.py             write benchmarks/evidence.md from the raw results
    python benchmarks/evidence.py measure     measure them again first (about half an hour on two cores)

Raw results: one JSON per ablation with the number of each set, as vpl ablate writes it, and two of benchmarks/tune.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vpl.edges.storage import write_text_atomic
from vpl.judge.ablated import Ablated
from vpl.judge.ablations import ROW_NAMES

HERE = Path(__file__).parent
RAW = HERE / "evidence"
USED = "committee"
"""The score that vpl tune follows (scores.py)."""
PEERS = ("baselines",)
BROAD = ("temperature", "labels", "regions", "refine")
"""Ablations over several styles, as those of the peers; the others run on the first one."""
STYLES = ("demo", "sketch", "night")
SIDE = 96
KINDS, KIND_STYLES, KIND_SIDE = ("prototypes.kind=vision,text",), ("demo", "sketch", "pastel", "web-flat"), 128
"""Vision against text prototypes once more, on larger scenes and a style of the pre-training (see decisions.md)."""
GOAL = 0.5
"""How near to the oracle the label-free choice should come, in mIoU percent points."""
NARROW = (
    "phi", "background_phi", "step", "steps", "rounds", "prompts", "box", "exponent", "crf", "scale", "rsc",
)  # fmt: skip


def measure(
    names: Sequence[str], styles: Sequence[str], count: int, *more: str, side: int = SIDE, suffix: str = ""
) -> None:
    """Run the ablations and keep their JSON."""
    RAW.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "vpl", "ablate", *names, "--styles", *styles, "--out", folder]
        subprocess.run([*command, "--count", str(count), "--side", str(side), *more], check=True)
        for path in Path(folder).glob("*.json"):
            shutil.copy(path, RAW / f"{path.stem}{suffix}.json")


def loaded() -> list[Ablated]:
    """The raw results in the order of this file."""
    order = [*PEERS, *BROAD, *NARROW]
    found = [
        Ablated.from_dict(json.loads(path.read_text(encoding="utf-8")))
        for path in RAW.glob("*.json")
        if not path.name.startswith("tune-")
    ]
    places = {name: place for place, name in enumerate(order)}
    return sorted(found, key=lambda one: (places.get(one.ablation.name, len(order)), one.title))


def command(made: Ablated) -> str:
    """The command that gives a table again."""
    return (
        f"vpl ablate {_named(made)} --styles {' '.join(made.groups)} --sets {made.sets} --count {made.images} "
        f"--side {made.side}" + "".join(f" --set {key}={value}" for key, value in made.base.items())
    )


def _named(made: Ablated) -> str:
    """The ablation as the command line takes it."""
    if "." not in made.ablation.name:
        return made.ablation.name
    return f"{made.ablation.name}={','.join(one.name for one in made.ablation.settings)}"


def headline(made: Ablated) -> list[str]:
    """Vision prototypes against text prototypes, stage by stage and style by style, paired over the sets."""
    names = [one.name for one in made.ablation.settings]
    vpl, peer = names[0], names[1]
    lines = [
        "## Vision prototypes against text prototypes",
        "",
        f"mIoU of {vpl} less that of {peer}, paired over {made.sets} sets of {made.images} scenes of each style (split "
        f"{made.split}), mean ± standard deviation.",
        "",
        "| style | " + " | ".join(ROW_NAMES[stage] for stage in made.stages if stage != "text") + " |",
        "|---|" + "---:|" * (len(made.stages) - 1),
    ]
    for group in made.groups:
        cells = []
        for stage in made.stages:
            if stage == "text":
                continue
            pairs = zip(made.cells[group, vpl, stage].values, made.cells[group, peer, stage].values, strict=True)
            gains = [a - b for a, b in pairs]
            cells.append(f"{np.mean(gains):+.1f} ± {np.std(gains, ddof=1):.1f}")
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"The same against every peer, in {ROW_NAMES[made.ablation.row]}:",
        "",
        f"| {vpl} less | " + " | ".join(made.groups) + " |",
        "|---|" + "---:|" * len(made.groups),
    ]
    for name in names[1:]:
        cells = [f"{-one.mean:+.1f} ± {one.std:.1f}" for one in (made.claim(name, group) for group in made.groups)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def ranking() -> list[str]:
    """Which label-free score ranks settings best, from tune-rank.json."""
    path = RAW / "tune-rank.json"
    if not path.exists():
        return []
    tree = json.loads(path.read_text(encoding="utf-8"))
    keys = list(tree["scores"])
    names = list(next(iter(tree["scores"].values())))
    count = len(next(iter(next(iter(tree["scores"].values())).values())))
    styles = dict.fromkeys(row["style"] for row in tree["scores"][keys[0]][names[0]])
    lines = [
        "## Without ground truth: which score to trust",
        "",
        f"Pre-training styles ({'; '.join(styles)}), {count} sets of {tree['images']} scenes: mean mIoU (refined seeds "
        "after the CRF) lost by following a score rather than the truth, and in brackets the mean rank correlation "
        "(Spearman) of score and mIoU over the values tried. Varied one at a time around "
        + ", ".join(f"{key} {value:g}" for key, value in tree["around"].items())
        + ". `python benchmarks/tune.py rank`",
        "",
        "| score | " + " | ".join(keys) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    for name in names:
        cells = []
        for key in keys:
            rows = tree["scores"][key][name]
            lost, spearman = (np.mean([row[what] for row in rows]) for what in ("lost", "spearman"))
            cells.append(f"{lost:.1f} ({spearman:+.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    chosen, kept = [], []
    for key in keys:
        rows = tree["scores"][key][USED]
        truths = [row["miou"] for row in rows]
        picks = [int(np.argmax(row["score"])) for row in rows]
        chosen.append(f"{np.mean([max(m) - m[place] for m, place in zip(truths, picks, strict=True)]):.1f}")
        own = rows[0]["values"].index(tree["around"][key])
        kept.append(f"{np.mean([max(m) - m[own] for m in truths]):.1f}")
    lines += [
        "| **used by `vpl tune`** | " + " | ".join(chosen) + " |",
        "| the value they are varied around | " + " | ".join(kept) + " |",
        "",
        "Used: " + "; ".join(f"{key}: {USED}" for key in keys) + ". evidence (vision) is METHOD.md 8's "
        "score as it stands.",
    ]
    return [*lines, ""]


def distances() -> list[str]:
    """How far the label-free choice is from the oracle, from tune-distance.json."""
    path = RAW / "tune-distance.json"
    if not path.exists():
        return []
    tree = json.loads(path.read_text(encoding="utf-8"))
    lines = [
        "## Without ground truth: how far the choice is from the best one",
        "",
        f"mIoU of refined seeds after the CRF on {tree['sets']} sets of {tree['images']} scenes, mean ± std over the "
        "sets. The oracle searches the same values in the same order with the truth of the very images it is judged "
        "on, so part of its lead is luck: the fourth column has what its choice gives on other sets. Both change one "
        "value after the other, so that the choice can also end above the oracle. The last column is the committee's "
        "own opinion, the label maps that settings are compared with. None of these styles took part in choosing the "
        "scores. `python benchmarks/tune.py distance`",
        "",
        "| scenes | defaults | label-free choice | oracle | oracle, other sets | choice to oracle | to defaults "
        "| opinion |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    keys, near, names = ("default", "chosen", "oracle", "transferred"), 0, 0
    for name in dict.fromkeys(row["setting"] for row in tree["rows"]):
        rows = [row for row in tree["rows"] if row["setting"] == name]
        cells = [np.array([row[key] for row in rows]) for key in keys]
        cells += [cells[1] - cells[2], cells[1] - cells[0]]
        spread = [one.std(ddof=1) if len(one) > 1 else float("nan") for one in cells]
        texts = [f"{one.mean():.1f} ± {std:.1f}" for one, std in zip(cells[:4], spread[:4], strict=True)]
        texts += [f"{one.mean():+.1f} ± {std:.1f}" for one, std in zip(cells[4:], spread[4:], strict=True)]
        opinion = np.array([row["opinion"] for row in rows])
        texts.append(f"{opinion.mean():.1f}")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
        near += bool(np.minimum(cells[4], 0).mean() >= -GOAL)
        names += 1
    lines += [
        "",
        f"The goal, at most {GOAL} mIoU below the oracle, is reached in {near} of these {names} kinds of scenes (sets "
        "where the choice is above the oracle count as zero).",
    ]
    return [*lines, ""]


def page() -> str:
    """The whole page."""
    results = loaded()
    lines = [
        "# Evidence",
        "",
        "Made by `python benchmarks/evidence.py` from the raw results in benchmarks/evidence/. Drawn scenes, the "
        "embedded CLIP; the styles here took no part in its training. mIoU in percent. Each table names the command "
        "that measures it again; a second run gives the same numbers on the same machine.",
        "",
    ]
    for made in results:
        if made.ablation.name == "baselines" and not made.base:
            lines += headline(made)
    lines += [
        "Plain similarity maps of text prototypes, without any gradient, are the strongest peer here. They depend on "
        "the background exponent: with 1 instead of the scenes' 2 they are better than VPL as bare seeds, and no worse "
        "in night after the CRF (the second table of baselines). The embedded CLIP was pre-trained with a loss that "
        "also matches single patches with words (`vpl.contrast`), which makes such maps unusually good; published "
        "CLIPs had no such loss. So these numbers compare VPL with CLIP-ES and InMaP prototypes, and say nothing about "
        "similarity maps of a published CLIP.",
        "",
        "## What each ablation supports",
        "",
    ]
    for made in results:
        lines += [f"- **{made.title}**: {made.sentence}"]
    lines += ["", *ranking(), *distances(), "## Tables", ""]
    for made in results:
        lines += [made.markdown(), f"`{command(made)}`", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure",))
    if parser.parse_args().what:
        measure(PEERS, STYLES, 60)
        measure(PEERS, STYLES, 60, "--set", "labels.background_exponent=1", suffix="-exponent-1")
        measure(BROAD, STYLES, 40)
        measure(NARROW, STYLES[:1], 40)
        measure(KINDS, KIND_STYLES, 60, side=KIND_SIDE)
        for what in ("rank", "distance"):
            subprocess.run([sys.executable, str(HERE / "tune.py"), what], check=True)
    write_text_atomic(HERE / "evidence.md", page())


if __name__ == "__main__":
    main()
