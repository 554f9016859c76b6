"""Images per second of encoder, seeds and refinement with ViT-B/16 (random weights), stage by stage.

Two yardsticks are timed in the same run, in turn with ours, so that a busy machine slows all alike:
  sdpa encoder     transformers' CLIPVisionModel with fused attention, which gives no attention maps and no seeds
  per-class loop   the field's way: every block but the last without gradients, then the last block with autograd and
                   one backward per tag, attention kept for the refinement, affinity made anew for each tag
Median of the repeats; one number per line.

    python benchmarks/seeds.py [--quick] [--threads 2] [--sizes 480x640,375x500] [--tags 1,3,6]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vpl import refine
from vpl.clip import FrozenClip
from vpl.seeds import seeds

BACKGROUND = 25
BOX_THRESHOLD = 0.4
ATTENTION_BLOCKS = 8


def models():
    """ViT-B/16 with random weights: transformers' model, ours in float32, ours in bfloat16."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={"patch_size": 16})
    config._attn_implementation = "sdpa"
    theirs = CLIPModel(config).eval().requires_grad_(False)
    exact, half = (FrozenClip.from_state_dict(theirs.state_dict()) for _ in range(2))
    return theirs.vision_model, exact.prepare("cpu"), half.prepare("cpu", "bfloat16")


def per_class_loop(clip: FrozenClip, pixels: Tensor, prototypes: Tensor, tags: int) -> Tensor:
    """Refined maps (K, h, w) the way the field makes them: plain float32 modules and one autograd call per tag."""
    tower, (h, w) = clip.image, (pixels.shape[2] // clip.patch, pixels.shape[3] // clip.patch)

    def attention(block, a: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = block.qkv(a).unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)
        p = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, -1)
        return block.out((p @ value).transpose(1, 2).flatten(2)), p.mean(1)

    def mlp(block, x: Tensor) -> Tensor:
        hidden = block.up(block.ln2(x))
        return block.down(hidden * torch.sigmoid(1.702 * hidden))

    with torch.no_grad():
        x, _ = clip._embed_patches(pixels)
        maps = []
        for block in tower.blocks[:-1]:
            out, p = attention(block, block.ln1(x))
            x = x + out
            x = x + mlp(block, x)
            maps.append(p)
    a = tower.blocks[-1].ln1(x).detach().requires_grad_()
    out, p = attention(tower.blocks[-1], a)
    x = x + out
    x = x + mlp(tower.blocks[-1], x)
    average = torch.stack([*maps, p.detach()][-ATTENTION_BLOCKS:]).mean(0)[:, 1:, 1:]
    e = F.normalize((tower.ln_post(x) @ tower.projection)[0, 1:].mean(0), dim=0)
    s = torch.softmax(clip.logit_scale * e @ prototypes.T, 0)
    results = []
    for tag in range(tags):
        (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
        cam = torch.relu(a.detach()[0, 1:] @ gradient[0, 1:].mean(0)).view(1, h, w)
        seed = refine.minmax(cam)
        inside = refine.boxes_mask(seed[0], BOX_THRESHOLD).flatten()
        refined = (dense_affinity(average[0]) * inside) @ seed.flatten()
        results.append(refine.minmax(refined.view(1, h, w)))
    return torch.cat(results)


def dense_affinity(attention: Tensor, rounds: int = 3) -> Tensor:
    """M as the field makes it: every normalisation and the square on the whole matrix."""
    for _ in range(rounds):
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    m = (attention + attention.T) / 2
    return m @ m


def staged(clip: FrozenClip, pixels: Tensor, prototypes: Tensor, tags: int) -> dict[str, float]:
    """Seconds of each of our stages for one image."""
    times, start = {}, time.perf_counter()
    features = clip.encode(pixels, attention_blocks=ATTENTION_BLOCKS)
    times["encode"] = time.perf_counter() - start
    start = time.perf_counter()
    cam = seeds(clip, features, [prototypes], [tags], clip.logit_scale).cam[0]
    times["seeds"] = time.perf_counter() - start
    start = time.perf_counter()
    refine.minmax(refine.refine(refine.affinity(features.attention)[0], cam, BOX_THRESHOLD))
    times["refine"] = time.perf_counter() - start
    times["all"] = sum(times.values())
    return times


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(theirs, exact: FrozenClip, half: FrozenClip, size: tuple[int, int], tags: list[int], repeats: int):
    """Rows (name, seconds) of one image size."""
    h, w = (-(-side // 16) for side in size)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, h * 16, w * 16, generator=generator)
    prototypes = F.normalize(torch.randn(max(tags) + BACKGROUND, exact.dim, generator=generator), dim=1)

    @torch.no_grad()
    def encoder(dtype: torch.dtype):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            theirs(pixels, interpolate_pos_encoding=True)

    rows: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):  # the first is thrown away
        found = {
            "sdpa encoder float32": seconds(lambda: encoder(torch.float32)),
            "sdpa encoder bfloat16": seconds(lambda: encoder(torch.bfloat16)),
        }
        for k in tags:
            rows_of_tags = torch.cat([prototypes[:k], prototypes[-BACKGROUND:]])
            for clip, name in ((exact, "float32"), (half, "bfloat16")):
                for stage, taken in staged(clip, pixels, rows_of_tags, k).items():
                    found[f"ours {name} {k} tags {stage}"] = taken
            found[f"per-class loop float32 {k} tags all"] = seconds(
                lambda k=k, rows=rows_of_tags: per_class_loop(exact, pixels, rows, k)
            )
        if repeat:
            for name, taken in found.items():
                rows.setdefault(name, []).append(taken)
    return {name: statistics.median(taken) for name, taken in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two repeats in place of seven")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", default="480x640,375x500", help="height x width, in pixels")
    parser.add_argument("--tags", default="1,3,6")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tags = [int(k) for k in given.tags.split(",")]
    print(f"torch {torch.__version__}, {platform.machine()}, {given.threads} threads, ViT-B/16 with random weights")
    theirs, exact, half = models()
    for text in given.sizes.split(","):
        size = tuple(int(side) for side in text.split("x"))
        rows = measure(theirs, exact, half, size, tags, repeats=2 if given.quick else 7)
        for name, taken in rows.items():
            print(f"{text} {name}: {1 / taken:.3f} images/s")
        for k in tags:
            for name in ("float32", "bfloat16"):
                ours = rows[f"ours {name} {k} tags all"]
                encoder = rows[f"sdpa encoder {name}"]
                print(f"{text} ours {name} {k} tags / sdpa encoder {name}: {ours / encoder:.3f} × its time")
                loop = rows[f"per-class loop float32 {k} tags all"]
                print(f"{text} ours {name} {k} tags / per-class loop float32: {loop / ours:.3f} × its rate")


if __name__ == "__main__":
    main()
