"""Peak memory and time of what the check-up, `vpl tune` and `vpl ablate` stand on, by where features are kept.

    python benchmarks/memory.py [--count 40] [--size 1024x768] [--clip pocket] [--results FOLDER]

Regions and prototypes, seeds, refined seeds at two thresholds, and pseudo-masks of noise photographs, each way in a
process of its own, whose peak is what the system says of it (`ru_maxrss`):

  memory    all features in memory, without a bound
  bounded   as vpl has it: `bench.KEPT_BYTES` of features in memory, encodings beyond them on disk
  again     nothing kept: every pass encodes again

All ways must give the same bytes. Prints one number a line; the raw ones go to memory.json in the results folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import date
from pathlib import Path

import numpy as np
from PIL import Image

from vpl.classes import scenes
from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.judge.bench import KEPT_BYTES, Bench, Shelf
from vpl.method.views import View

WAYS = ("memory", "bounded", "again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="photographs")
    parser.add_argument("--size", default="1024x768", help="WIDTHxHEIGHT")
    parser.add_argument("--clip", default="pocket")
    parser.add_argument("--most", type=int, default=KEPT_BYTES, help="bytes of features in memory of `bounded`")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--way", choices=WAYS, help="this one alone, in this process")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.count, given.size, given.clip, given.most)))
        return
    asked = ["--count", str(given.count), "--size", given.size, "--clip", given.clip, "--most", str(given.most)]
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *asked, "--way", way]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for name in ("peak_mb", "seconds", "encoded"):
            print(f"{way} {name}: {found[way][name]}", flush=True)
    same = len({one["digest"] for one in found.values()}) == 1
    print(f"same bytes: {same}")
    facts = {"date": date.today().isoformat(), "count": given.count, "size": given.size, "clip": given.clip}
    given.results.mkdir(exist_ok=True)
    (given.results / "memory.json").write_text(json.dumps(facts | {"ways": found}, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(0 if same else 1)


def measured(way: str, count: int, size: str, name: str, most: int) -> dict:
    """Peak, seconds, encodings and a digest of all that was made."""
    classes, clip, config = scenes(), FrozenClip.load(name, "cpu"), preset("scenes")
    config = config.with_values({"crf.mode": "fast", "crf.rounds": 2})
    views = [photograph(number, size, len(classes)) for number in range(count)]
    start, before = time.perf_counter(), peak()
    with tempfile.TemporaryDirectory() as folder:
        kept = {"memory": Shelf(2**60), "bounded": Shelf(most, Path(folder) / "kept"), "again": Shelf(0)}[way]
        with closing(Bench(clip, classes, views, shelf=kept)) as bench:
            digest = hashlib.sha256(bench.lesson(config).vision.numpy().tobytes())
            for threshold in (0.4, 0.6):
                for cam in bench.refined(config.with_values({"refine.box_threshold": threshold})):
                    digest.update(cam.numpy().tobytes())
            for mask in bench.masks(config, ("labels",))["labels"]:
                digest.update(mask.tobytes())
    return {
        "peak_mb": peak(),
        "before_mb": before,
        "seconds": round(time.perf_counter() - start, 1),
        "encoded": kept.encoded,
        "digest": digest.hexdigest(),
    }


def photograph(number: int, size: str, classes: int) -> View:
    """Smooth noise with three tags."""
    width, height = (int(side) for side in size.split("x"))
    rng = np.random.default_rng(number)
    rough = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    image = np.asarray(rough.resize((width, height), Image.Resampling.BICUBIC))
    return View(image, tuple(sorted(rng.permutation(classes)[:3].tolist())), (height, width))


def peak() -> int:
    """Most memory that this process has held so far, in 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6


if __name__ == "__main__":
    main()
