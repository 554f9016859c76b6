"""What a number format does: bfloat16 to masks of drawn scenes, float32 to GradCAM's maps beside float64.

    python benchmarks/precision.py scenes [--styles demo sketch night] [--sets 3] [--scenes 60]
    python benchmarks/precision.py float64 [--images FOLDER] [--count 5]

scenes   three sets of each style, 128 px, the embedded CLIP: mIoU of pseudo-masks and of labels after the CRF, encoder
         in bfloat16 less the same in float32, mean ± std over the sets, and the share of equal pixels
float64  ViT-B/16 with random weights, photographs of 640x480 with three tags: the furthest that maps in [0, 1] are from
         those of a twin that computes in float64, of vpl (either format) and of the published way, which is plain
         modules and one autograd call a tag

Raw: precision.json in the results folder.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from crf import photographs
from scale import vit_b16
from torch import Tensor

from vpl.clip.model import FrozenClip
from vpl.config import Config, preset, quality
from vpl.judge.bench import Bench
from vpl.judge.material import Scenes
from vpl.method.metrics import Confusion
from vpl.method.refine import minmax
from vpl.method.seeds import seeds
from vpl.method.views import View, pixels_of

SETTINGS = {"paper": {}, "standard": quality("standard")}
FORMATS = ("float32", "bfloat16")
TAGS, BACKGROUND = ("dog", "chair", "car"), ("grass", "road", "wall", "sky", "water", "tree", "house", "ground")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("scenes", "float64"))
    parser.add_argument("--styles", nargs="+", default=["demo", "sketch", "night"])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--images", type=Path, help="a folder of photographs instead of drawn ones")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.question == "scenes":
        found = [row for style in given.styles for row in scenes(style, given.sets, given.scenes)]
    else:
        found = float64(photographs(given.images, 640, 480, given.count))
    path = given.results / "precision.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[given.question] = {"date": date.today().isoformat(), "torch": torch.__version__, "rows": found}
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def scenes(style: str, sets: int, count: int) -> list[dict]:
    """A row for each setting and set: mIoU in percent by format, and equal pixels."""
    clips, rows = {name: FrozenClip.load("pocket", "cpu", name) for name in FORMATS}, []
    for number in range(sets):
        material = Scenes(style, count, 128).load(number)
        benches = {name: Bench(clip, material.classes, material.views, workers=1) for name, clip in clips.items()}
        for setting, values in SETTINGS.items():
            config, row = preset("scenes").with_values(values), {"style": style, "set": number, "setting": setting}
            made = {name: bench.masks(config, ("crf", "labels")) for name, bench in benches.items()}
            for kind in ("labels", "crf"):
                for name in FORMATS:
                    table = Confusion(len(material.classes) + 1)
                    for truth, mask in zip(material.truths, made[name][kind], strict=True):
                        table.update(truth, mask)
                    row[f"{kind}, {name}"] = 100 * table.miou()
                pairs = zip(*(made[name][kind] for name in FORMATS), strict=True)
                row[f"{kind}, equal"] = float(np.mean([(one == other).mean() for one, other in pairs]))
            rows.append(row)
    for setting in SETTINGS:
        own = [row for row in rows if row["setting"] == setting]
        for kind in ("labels", "crf"):
            apart = np.array([row[f"{kind}, bfloat16"] - row[f"{kind}, float32"] for row in own])
            level, equal = (np.mean([row[f"{kind}, {one}"] for row in own]) for one in ("float32", "equal"))
            spread = apart.std(ddof=1) if sets > 1 else 0.0
            print(f"{style}, {setting}, {kind}: float32 {level:.2f}, bfloat16 {apart.mean():+.2f} ± {spread:.2f} mIoU, "
                  f"{100 * equal:.2f} % of pixels equal", flush=True)  # fmt: skip
    return rows


def float64(images: list[np.ndarray]) -> list[dict]:
    """A row for each photograph: how far maps are from float64's."""
    with tempfile.TemporaryDirectory() as folder:
        vit_b16(Path(folder))
        clips, exact = {name: FrozenClip.load(folder, "cpu", name) for name in FORMATS}, None
    clip, config, rows = clips["float32"], Config().clip, []
    exact = copy.deepcopy(clip).double()
    texts = clip.encode_texts([f"a clean origami {word}." for word in (*TAGS, *BACKGROUND)])
    for number, image in enumerate(images):
        pixels = pixels_of(clip, View(image, (), image.shape[:2]), config)[None]
        twin = published(exact, pixels.double(), texts.double())
        row = {"photograph": number, "published script": furthest(published(clip, pixels, texts), twin)}
        for name, one in clips.items():
            own = seeds(one, one.encode(pixels), [texts], [len(TAGS)], one.logit_scale).cam[0]
            row[f"vpl, {name}"] = furthest(own, twin)
        print(", ".join(f"{key} {value:.2g}" for key, value in row.items()), flush=True)
        rows.append(row)
    for name in rows[0].keys() - {"photograph"}:
        print(f"{name}: at most {max(row[name] for row in rows):.2g} from float64")
    return rows


def furthest(these: Tensor, those: Tensor) -> float:
    return float((these.double() - those).abs().max())


def published(clip: FrozenClip, pixels: Tensor, texts: Tensor) -> Tensor:
    """GradCAM's maps (K, h, w) by plain modules in the weights' own format, one autograd call a tag."""
    tower, (h, w) = clip.image, (pixels.shape[2] // clip.patch, pixels.shape[3] // clip.patch)

    def after(block, x: Tensor, a: Tensor) -> Tensor:
        query, key, value = block.qkv(a).unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)
        p = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, -1)
        x = x + block.out((p @ value).transpose(1, 2).flatten(2))
        hidden = block.up(block.ln2(x))
        return x + block.down(hidden * torch.sigmoid(1.702 * hidden))

    with torch.no_grad():
        patches = F.conv2d(pixels, tower.patch, stride=clip.patch).flatten(2).transpose(1, 2)
        x = tower.begin(patches, clip._positions((h, w)))
        for block in tower.blocks[:-1]:
            x = after(block, x, block.ln1(x))
    a = tower.blocks[-1].ln1(x).detach().requires_grad_()
    x = after(tower.blocks[-1], x, a)
    e = F.normalize((tower.ln_post(x) @ tower.projection)[0, 1:].mean(0), dim=0)
    s = torch.softmax(clip.logit_scale * e @ texts.T, 0)
    maps = []
    for tag in range(len(TAGS)):
        (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
        maps.append(torch.relu(a.detach()[0, 1:] @ gradient[0, 1:].mean(0)).view(h, w))
    return minmax(minmax(torch.stack(maps)))


if __name__ == "__main__":
    main()
