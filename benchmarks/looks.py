"""What looks bring: pseudo-masks of the paper's one look, of each maker alone, of committees, and of each quality.

python benchmarks/looks.py measure demo     three sets of 60 scenes; what is measured already is kept
python benchmarks/looks.py measure web-flat web-photo web-ink --sets 1 --scenes 40     on which values were chosen
python benchmarks/looks.py table            the tables of docs/how-to/quality.md

A style that is not of pre-training (demo, sketch, night, pastel) has chosen nothing here; the web styles did. Raw
results: benchmarks/results/looks-STYLE.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from vpl.clip.model import FrozenClip
from vpl.config import PATCH_FEATURES, Config, preset, quality
from vpl.edges.storage import write_text_atomic
from vpl.judge.bench import Bench
from vpl.judge.material import Scenes
from vpl.method.metrics import Confusion
from vpl.presets import QUALITY

RESULTS = Path(__file__).parent / "results"
SETS, SCENES, SIDE = 3, 60, 128
TRAINING_FREE = ("gradcam", "sclip", "naclip")
FOUR = (*TRAINING_FREE, "maskclip-words")
ALONG: dict[str, object] = {"refine.affinity": ("classes",)}
VOTES: dict[str, object] = {"refine.votes": ("classes",), "refine.class_width": 0.01}
SCLIP: dict[str, object] = {"prototypes.features": "sclip"}
SETTINGS: dict[str, dict[str, object]] = {
    "paper": {},
    "paper, PAR": {"par.rounds": 5},
    **{f"{name} alone": {"looks.makers": (name,)} for name in ("similarity", *FOUR[1:], "clearclip", "words")},
    "gradcam, similarity, words": {"looks.makers": ("gradcam", "similarity", "words")},
    "gradcam, sclip": {"looks.makers": ("gradcam", "sclip")},
    "gradcam, sclip, naclip": {"looks.makers": TRAINING_FREE},
    "gradcam, sclip, naclip, PAR": {"looks.makers": TRAINING_FREE, "par.rounds": 5},
    "gradcam, sclip, naclip, words, PAR": {"looks.makers": (*TRAINING_FREE, "words"), "par.rounds": 5},
    "standard without PAR": {"looks.makers": FOUR},
    "standard without gradcam": quality("standard") | {"looks.makers": FOUR[1:]},
    **{name: quality(name) for name in QUALITY},
    "best without words": quality("best") | {"looks.makers": TRAINING_FREE},
    "paper, seeds along classes": ALONG,
    "paper, along attention, then classes": {"refine.affinity": ("attention", "classes")},
    "paper, along classes, then attention": {"refine.affinity": ("classes", "attention")},
    "standard, seeds along classes": quality("standard") | ALONG,
    "standard without words, seeds along classes": quality("standard") | {"looks.makers": TRAINING_FREE} | ALONG,
    "best, seeds along classes": quality("best") | ALONG,
    "best without words, seeds along classes": quality("best") | {"looks.makers": TRAINING_FREE} | ALONG,
    "standard, votes along classes": quality("standard") | VOTES,
    "best, votes along classes": quality("best") | VOTES,
    **{f"paper, regions of {name}": {"prototypes.features": name} for name in PATCH_FEATURES[1:]},
    "standard, regions of sclip": quality("standard") | SCLIP,
    "standard, vision prototypes of sclip": quality("standard")
    | SCLIP
    | {"looks.makers": ("gradcam", "sclip-vision", "naclip-vision", "maskclip-words")},
    "standard and sclip-vision": quality("standard") | SCLIP | {"looks.makers": (*FOUR, "sclip-vision")},
}
"""Name -> values beside those of the preset scenes."""


def scores(bench: Bench, truths: tuple[np.ndarray, ...], config: Config) -> dict[str, float]:
    """mIoU in percent of the most probable labels after the CRF, and of the pseudo-masks."""
    found = {}
    for name, masks in bench.masks(config, ("crf", "labels")).items():
        confusion = Confusion(len(bench.classes) + 1)
        for truth, mask in zip(truths, masks, strict=True):
            confusion.update(truth, mask)
        found[name] = round(100 * confusion.miou(), 3)
    return found


def measure(style: str, sets: int, count: int, only: str = "") -> None:
    path, base, clip = RESULTS / f"looks-{style}.json", preset("scenes"), FrozenClip.load("pocket", "cpu")
    facts = {"style": style, "scenes": count, "side": SIDE, "clip": clip.weights_hash}
    kept = json.loads(path.read_text()) if path.exists() else {}
    rows = kept.get("rows", []) if kept.items() >= facts.items() else []
    done = {(row["setting"], row["set"], json.dumps(row["values"])) for row in rows}
    for number in range(sets):
        material = Scenes(style, count, SIDE).load(number)
        bench = Bench(clip, material.classes, material.views, workers=1)
        for name, values in SETTINGS.items():
            if only not in name or (name, number, json.dumps(values)) in done:
                continue
            start = time.perf_counter()
            made = scores(bench, material.truths, base.with_values(values))
            rows.append({"setting": name, "set": number, "values": values, **made,
                         "seconds": round(time.perf_counter() - start, 1)})  # fmt: skip
            print(style, rows[-1], flush=True)
            write_text_atomic(path, json.dumps(facts | {"rows": rows}, indent=1) + "\n")


def table(styles: list[str]) -> str:
    """Markdown: pseudo-masks, and in brackets labels after the CRF, as mean ± std over the sets, in percent."""
    found = {style: json.loads((RESULTS / f"looks-{style}.json").read_text())["rows"] for style in styles}
    lines = [f"| | encodings | {' | '.join(styles)} |", "|---|---|" + "---|" * len(styles)]
    for name, values in SETTINGS.items():
        cells = []
        for style in styles:
            rows = [row for row in found[style] if row["setting"] == name]
            labels, crf = (np.array([row[key] for row in rows]) for key in ("labels", "crf"))
            spread = labels.std(ddof=1) if len(labels) > 1 else 0.0
            cells.append(f"{labels.mean():.1f} ± {spread:.1f} ({crf.mean():.1f})" if rows else "")
        config = Config().with_values(values)
        cost = config.looks.encodings * (2 if config.refine.guided else 1)
        lines.append(f"| {name} | {cost:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=("measure", "table"))
    arguments.add_argument("styles", nargs="*", default=["demo", "sketch", "night"])
    arguments.add_argument("--sets", type=int, default=SETS)
    arguments.add_argument("--scenes", type=int, default=SCENES)
    arguments.add_argument("--only", default="", help="settings whose names hold this")
    given = arguments.parse_args()
    if given.what == "table":
        print(table(given.styles))
    else:
        for one in given.styles:
            measure(one, given.sets, given.scenes, given.only)
