"""Which label-free score to trust, and how far the choice made with it is from the best one.

python benchmarks/tune.py rank       on the web styles: rank correlation of each score with mIoU, value by value, and
                                     the mIoU lost by following it            -> benchmarks/evidence/tune-rank.json
python benchmarks/tune.py distance   on other styles: defaults, label-free choice and oracle
                                                                               -> benchmarks/evidence/tune-distance.json

rank keeps the scores that the file already has for the same images and measures the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import scores
from scipy import stats

from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.edges.storage import write_text_atomic
from vpl.judge import committee, tune
from vpl.judge.bench import Bench
from vpl.judge.material import ImageSet, Scenes
from vpl.method.metrics import Confusion
from vpl.scenes.styles import STYLES

EVIDENCE = Path(__file__).parent / "evidence"
RANKED = {
    "web-flat": {},
    "web-photo": {},
    "web-ink": {},
    "web-flat, small objects": {"size": (0.14, 0.3)},
    "web-photo, crowded": {"objects": (3, 4)},
}
OTHERS = {
    "sketch": {},
    "night": {},
    "demo, crowded": {"objects": (3, 4)},
    "demo, small objects": {"size": (0.14, 0.3)},
}
"""Style, and what is changed of it."""
SIZES = {"rank": (2, 32), "distance": (3, 60)}
"""Sets of each kind of scenes, and scenes of a set, unless the command line names others."""


def miou(bench: Bench, material: ImageSet, config: Config) -> float:
    """Of the refined seeds after the CRF, in percent."""
    confusion = Confusion(len(material.classes) + 1)
    for truth, mask in zip(material.truths, bench.masks(config, ("crf",))["crf"], strict=True):
        confusion.update(truth, mask)
    return 100 * confusion.miou()


def opened(clip: FrozenClip, style: str, number: int, count: int, side: int) -> tuple[Bench, ImageSet]:
    base, _, _ = style.partition(",")
    STYLES[style] = dataclasses.replace(STYLES[base], name=style, **(RANKED | OTHERS)[style])
    material = Scenes(style, count, side).load(number)
    return Bench(clip, material.classes, material.views), material


def rank(clip: FrozenClip, sets: int, count: int, side: int) -> dict:
    """For each score and value: Spearman's correlation with mIoU and the mIoU lost, for each style and set."""
    base = preset("scenes")
    facts = _facts(clip, base, sets, count, side)
    found = _kept("rank", facts).get("scores", {})
    names = [name for name in scores.SCORES if any(name not in found.get(key, {}) for key in tune.GRIDS)]
    for style, number in [(style, number) for style in RANKED for number in range(sets)] if names else []:
        bench, material = opened(clip, style, number, count, side)
        for key, values in tune.grids(base).items():
            settings = [base.with_values({key: one}) for one in values]
            truth = [miou(bench, material, one) for one in settings]
            for name in names:
                made = [float(np.nanmean(scores.SCORES[name](bench, one))) for one in settings]
                row = {
                    "style": style,
                    "set": number,
                    "values": list(values),
                    "miou": truth,
                    "score": made,
                    "spearman": float(stats.spearmanr(made, truth).statistic) if len(set(made)) > 1 else 0.0,
                    "lost": max(truth) - truth[int(np.argmax(made))],
                }
                found.setdefault(key, {}).setdefault(name, []).append(row)
                print(style, number, key, f"{name:20s} {row['spearman']:5.2f} lost {row['lost']:4.1f}", flush=True)
    return facts | {"scores": {key: {name: found[key][name] for name in scores.SCORES} for key in tune.GRIDS}}


def _kept(what: str, facts: dict) -> dict:
    """An earlier result, if it was measured on the same images around the same values."""
    path = EVIDENCE / f"tune-{what}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known if all(known.get(key) == one for key, one in facts.items()) else {}


class Judge:
    """A set of scenes with its truth: mIoU of any setting, computed once."""

    def __init__(self, clip: FrozenClip, style: str, number: int, count: int, side: int):
        self.bench, self.material = opened(clip, style, number, count, side)
        self.known: dict[Config, float] = {}

    def __call__(self, config: Config) -> float:
        config = config.with_values({"labels.confidence": 0.0})  # changes nothing before pixels are ignored
        if config not in self.known:
            self.known[config] = miou(self.bench, self.material, config)
        return self.known[config]


def oracle(judge: Judge, config: Config) -> Config:
    """The same search with mIoU in place of the score."""
    for key, values in tune.grids(config).items():
        best = max(values, key=lambda one: judge(config.with_values({key: one})))
        config = config.with_values({key: best})
    return config


def distance(clip: FrozenClip, sets: int, count: int, side: int) -> dict:
    """mIoU with the defaults, with the label-free choice and with the oracle's, for each setting of scenes and set.

    "transferred" is the mean mIoU with the values that the oracle chose on the other sets: what of the oracle's gain is
    more than luck on its own images. "opinion" is the committee's own mIoU.
    """
    base, rows = preset("scenes"), []
    for name in OTHERS:
        found, judges = [], []
        for number in range(sets):
            judge = Judge(clip, name, number, count, side)
            start = time.process_time()
            made = tune.choose(judge.bench, base)
            seconds = time.process_time() - start
            best = oracle(judge, base)
            found.append(
                {
                    "setting": name,
                    "set": number,
                    "default": judge(base),
                    "chosen": judge(made.config),
                    "oracle": judge(best),
                    "opinion": agreed(judge, base),
                    "cpu_seconds": round(seconds, 1),
                    "chosen_values": {one.key: one.value for one in made.choices},
                    "oracle_values": {key: best.flat()[key] for key in tune.GRIDS},
                }
            )
            judges.append(judge)
            shown = ("default", "chosen", "oracle", "opinion", "cpu_seconds")
            print(name, number, *(f"{key} {found[-1][key]:.1f}" for key in shown), flush=True)
        rows += [row | {"transferred": one} for row, one in zip(found, transferred(found, judges, base), strict=True)]
    return _facts(clip, base, sets, count, side) | {"rows": rows}


def agreed(judge: Judge, config: Config) -> float:
    """mIoU of the committee's opinion, in percent."""
    confusion = Confusion(len(judge.material.classes) + 1)
    for truth, mask in zip(judge.material.truths, committee.opinion(judge.bench, config), strict=True):
        confusion.update(truth, mask)
    return 100 * confusion.miou()


def transferred(rows: list[dict], judges: list[Judge], base: Config) -> list[float | None]:
    """For each set the mean mIoU with the oracle's values of the other sets; None for a single set."""
    found = []
    for number, judge in enumerate(judges):
        others = [row["oracle_values"] for place, row in enumerate(rows) if place != number]
        values = [judge(base.with_values(one)) for one in others]
        found.append(float(np.mean(values)) if values else None)
    return found


def _facts(clip: FrozenClip, base: Config, sets: int, count: int, side: int) -> dict:
    """What was measured on, and what the configuration around which values were varied was."""
    shared = {key: base.flat()[key] for key in tune.GRIDS}
    return {"sets": sets, "images": count, "side": side, "clip": clip.weights_hash, "around": shared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(SIZES))
    parser.add_argument("--sets", type=int, help="sets of each kind of scenes")
    parser.add_argument("--count", type=int, help="scenes of a set")
    parser.add_argument("--side", type=int, default=96)
    given = parser.parse_args()
    sets, count = (own or usual for own, usual in zip((given.sets, given.count), SIZES[given.what], strict=True))
    made = {"rank": rank, "distance": distance}[given.what](FrozenClip.load("pocket"), sets, count, given.side)
    EVIDENCE.mkdir(exist_ok=True)
    write_text_atomic(EVIDENCE / f"tune-{given.what}.json", json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
