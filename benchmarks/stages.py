"""Time, memory and distance from the machine's floor of every stage from a JPEG to its pseudo-mask, with ViT-B/16.

    python benchmarks/stages.py [--quick] [--device cpu] [--threads N] [--sizes 640x480 500x375] [--tags 1 3 6]

Stages: read (JPEG to RGB and to the encoder's input), encode, seeds, refine, CRF (exact), write (five label maps); of
quality standard: makers (all but GradCAM, from the encoding that is there) and PAR (its rounds before the CRF); of
quality best: looks (all makers at the other scales and mirrored, with their encodings); and refiners that are off by
default: classes (affinity of patches' classes, and seeds along it) and features (the same of a DINOv2 small of random
weights, with its encoding).
ViT-B/16 with random weights, in float32 and bfloat16. Everything is measured in turn in every repeat, so that a busy
machine slows all alike; medians, after a first call that is not counted. With --threads 1, which is how a run's
threads compute, processor time is taken: other processes change it least. On CUDA: device events, a batch of images.

Yardsticks, in the same run:
  sdpa encoder     transformers' CLIPVisionModel with fused attention, which gives no attention maps and no seeds
  per-class loop   the field's way: every block but the last without gradients, then the last block with autograd and
                   one backward per tag, attention kept for the refinement, affinity made anew for each tag; float32
  floor            what this machine can't beat: the stage's multiplications at the best rate that it reaches on the
                   encoder's own products (same format), or the bytes that the stage must touch at the rate at which
                   it copies a buffer of their size, whichever takes longer

Prints one number a line, then one Markdown table: milliseconds an image, and in brackets how many times the floor's
time that is. The raw numbers go to stages-DEVICE.json in the results folder, beside those of other sizes and tags.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from crf import synthetic
from PIL import Image
from torch import Tensor

from vpl.clip.block import linear
from vpl.clip.dinov2 import FrozenDinov2
from vpl.clip.model import Features, FrozenClip
from vpl.config import PAR_DILATIONS, Config, quality
from vpl.edges import images
from vpl.method import affinities, looks, refine, selfself
from vpl.method.crf import dense_crfs
from vpl.method.looks import Seen
from vpl.method.masks import label_map
from vpl.method.par import par
from vpl.method.seeds import seeds
from vpl.method.views import View, encode, guided, prepared

BACKGROUND = 25
CONFIG = Config()
PALETTE = tuple((n, n, n) for n in range(BACKGROUND))
PRECISIONS = ("float32", "bfloat16")
STAGES = ("read", "encode", "seeds", "refine", "makers", "looks", "classes", "features", "PAR", "CRF", "write")
STANDARD = Config().with_values(quality("standard"))
BEST = Config().with_values(quality("best"))
MAKERS = tuple(name for name in STANDARD.looks.makers if name != "gradcam")
ALONG = {
    kind: Config().with_values({"refine.affinity": (kind,), "refine.features": name}).refine
    for kind, name in {"classes": "", "features": "a random DINOv2"}.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one repeat of 320x240 and 2 tags")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, help="images at once (default: 1, on CUDA 16)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["640x480", "500x375"], help="WIDTHxHEIGHT")
    parser.add_argument("--tags", nargs="+", type=int, default=[1, 3, 6])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    if given.quick:
        given.sizes, given.tags, given.repeats = ["320x240"], [2], 1
    torch.set_num_threads(given.threads)
    machine = Machine(torch.device(given.device), given.batch or (16 if given.device == "cuda" else 1))
    models = Models.of(machine.device)
    found = [
        case
        for size in given.sizes
        for case in measure(machine, models, size, given.tags, given.repeats, given.precisions)
    ]
    facts = {
        "date": date.today().isoformat(),
        "device": machine.name(),
        "threads": given.threads,
        "torch": torch.__version__,
        "batch": machine.batch,
        "repeats": given.repeats,
    }
    given.results.mkdir(exist_ok=True)
    path = given.results / f"stages-{machine.device.type}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    made = {(case["size"], case["tags"], case["precision"]) for case in found}
    kept = [case for case in known if (case["size"], case["tags"], case["precision"]) not in made]
    cases = kept + [case | {"machine": facts} for case in found]
    path.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    print(table(cases))


@dataclass(frozen=True)
class Machine:
    """Where it is measured, and how."""

    device: torch.device
    batch: int

    def name(self) -> str:
        """The kind of processor."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""
        if self.device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            work()
            last.record()
            torch.cuda.synchronize()
            return first.elapsed_time(last) / 1000
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = clock()
        work()
        return clock() - start

    def peak(self, work: Callable[[], object]) -> float:
        """Megabytes that one call takes beyond what was held before, at its worst moment."""
        if self.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # and the high-water mark starts anew
        before = status("VmRSS")
        work()
        return status("VmHWM") - before

    def best(self, work: Callable[[], object], seconds: float = 0.25) -> float:
        """Seconds of the quickest of as many calls as go into `seconds`."""
        quickest, stop = float("inf"), time.perf_counter() + seconds
        self.seconds(work)
        while time.perf_counter() < stop:
            quickest = min(quickest, self.seconds(work))
        return quickest

    @functools.cache  # noqa: B019 (there is one machine)
    def copied(self, size: int) -> float:
        """Bytes a second at which a buffer of `size` bytes is read or written."""
        here = torch.ones(max(size, 4096) // 4, device=self.device)
        there = torch.empty_like(here)
        return 2 * 4 * len(here) / self.best(lambda: there.copy_(here), 0.1)

    def multiplied(self, products: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
        """The best rate, in floating-point operations a second, over matrix products (rows, inner, columns)."""
        rate = 0.0
        for rows, inner, columns in products:
            x = torch.randn(rows, inner, device=self.device, dtype=dtype)
            layer = torch.nn.Linear(inner, columns, device=self.device, dtype=dtype).requires_grad_(False)
            for work in (lambda x=x, layer=layer: linear(layer, x), lambda x=x, layer=layer: x @ layer.weight.T):
                rate = max(rate, 2 * rows * inner * columns / self.best(work))
        return rate


def status(name: str) -> float:
    """A line of /proc/self/status, MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Models:
    """ViT-B/16 with random weights: transformers' vision tower, ours in both precisions."""

    theirs: torch.nn.Module
    ours: dict[str, FrozenClip]
    guide: FrozenDinov2

    @classmethod
    def of(cls, device: torch.device) -> Models:
        from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.manual_seed(0)
        config = CLIPConfig(vision_config={"patch_size": 16})
        config._attn_implementation = "sdpa"
        theirs = CLIPModel(config).eval().requires_grad_(False)
        ours = {name: FrozenClip.from_state_dict(theirs.state_dict()).prepare(str(device), name) for name in PRECISIONS}
        small = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518)
        guide = FrozenDinov2(Dinov2Model(small), "DINOv2 small, random").prepare(str(device))
        return cls(theirs.vision_model.to(device), ours, guide)


def measure(
    machine: Machine, models: Models, size: str, tag_counts: list[int], repeats: int, precisions: list[str]
) -> list[dict]:
    """One case for each number of tags and precision: seconds an image, floors, peaks."""
    width, height = (int(side) for side in size.split("x"))
    clip, count = models.ours["float32"], machine.batch
    photo = synthetic(width, height, 0)
    generator = torch.Generator().manual_seed(1)
    prototypes = F.normalize(torch.randn(max(tag_counts) + BACKGROUND, clip.dim, generator=generator), dim=1)
    prototypes = prototypes.to(machine.device)
    runs: dict[tuple, list[float]] = {}
    peaks: dict[tuple, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "photo.jpg"
        Image.fromarray(photo).save(file, quality=90)

        def read() -> View:
            view = View(images.read_image(file, CONFIG.clip.max_side), (), photo.shape[:2])
            return prepared(clip, view, CONFIG.clip)

        pixels = torch.stack([read().pixels] * count).to(machine.device)
        calls: dict[tuple, Callable[[], object]] = {("read",): read}
        for precision in precisions:
            calls["sdpa encoder", precision] = lambda p=precision: sdpa(models.theirs, pixels, p)
        tables = {tags: torch.cat([prototypes[:tags], prototypes[-BACKGROUND:]]) for tags in tag_counts}
        for precision in precisions:  # in the order of a run, so that caches hold what they would hold there
            own = models.ours[precision]
            calls["encode", precision] = lambda own=own: own.encode(pixels, CONFIG.clip.attention_blocks)
            features = own.encode(pixels, CONFIG.clip.attention_blocks)
            same = [View(photo, (), photo.shape[:2])] * count
            scaled = {one: encode(own, same, replace(CONFIG.clip, scale=one)) for one in BEST.looks.scales}
            for tags, rows in tables.items():

                def look(own=own, features=features, rows=rows, tags=tags) -> list[Tensor]:
                    return seeds(own, features, [rows] * count, [tags] * count, own.logit_scale).cam

                cams = look()
                calls["seeds", precision, tags] = look
                seen = Seen(own, features, [tuple(range(tags))] * count, prototypes, None, max(tag_counts), STANDARD)
                calls["makers", precision, tags] = lambda seen=seen: [looks.MAKERS[name](seen) for name in MAKERS]
                views = [View(photo, tuple(range(tags)), photo.shape[:2])] * count
                known = {"gradcam": cams} | {name: looks.MAKERS[name](seen) for name in MAKERS}
                best = replace(seen, config=BEST)
                calls["looks", precision, tags] = lambda b=best, v=views, k=known: looks.gathered(b, v, known=k)
                calls["makers of looks", precision, tags] = lambda b=best, f=scaled: makers_of_looks(b, f)
                calls["refine", precision, tags] = lambda s=seen, c=cams: s.spread(c)

                def along(kind: str, features=features, seen=seen, cams=cams, views=views) -> list[Tensor]:
                    if kind == "features":
                        features = guided(features, views, models.guide)
                    return affinities.refined(
                        seen.clip, features, seen.tags, cams, prototypes, max(tag_counts), ALONG[kind]
                    )

                for kind in ALONG:
                    calls[kind, precision, tags] = functools.partial(along, kind)
        for tags, rows in tables.items():
            calls["per-class loop", tags] = lambda rows=rows, tags=tags: [
                per_class_loop(clip, one[None], rows, tags) for one in pixels
            ]
            features = clip.encode(pixels[:1], CONFIG.clip.attention_blocks)
            cam = seeds(clip, features, [rows], [tags], clip.logit_scale).cam[0]
            view = View(photo, tuple(range(tags)), photo.shape[:2])
            mask, scores = label_map(cam.cpu(), view, CONFIG.labels.background_exponent)
            unary = scores.to(machine.device)
            colours = torch.from_numpy(photo.copy()).to(machine.device).permute(2, 0, 1)[None].float()
            calls["PAR", tags] = lambda c=colours, unary=unary: par(c, unary[None], STANDARD.par.rounds)
            calls["CRF", tags] = lambda unary=unary: dense_crfs([photo], [unary], CONFIG.crf)
            calls["write", tags] = lambda mask=mask: [
                images.write_mask(Path(folder) / f"{n}.png", mask, PALETTE) for n in range(5)
            ]
        for name, call in calls.items():
            peaks[name] = machine.peak(call)  # and warms up
        for _ in range(repeats):
            for name, call in calls.items():
                taken = machine.seconds(call)
                runs.setdefault(name, []).append(taken / (1 if name[0] in ("read", "PAR", "CRF", "write") else count))
    medians = {name: statistics.median(taken) for name, taken in runs.items()}
    for name, taken in medians.items():
        print(f"{size} {' '.join(map(str, name))}: {1 / taken:.3f} images/s, peak {peaks[name]:.0f} MB", flush=True)
    rates = {precision: rate_of(machine, clip, pixels, getattr(torch, precision)) for precision in precisions}
    cases = []
    for tags in tag_counts:
        for precision in precisions:
            names = {stage: key_of(stage, precision, tags) for stage in STAGES}
            floors = floor(machine, models, (height, width), tags, rates, precision)
            encoder, others = medians["encode", precision], medians["looks", precision, tags]
            apart = medians["makers of looks", precision, tags]
            case = {
                "size": size,
                "tags": tags,
                "precision": precision,
                "seconds": {stage: medians[name] for stage, name in names.items()},
                "floor_seconds": floors,
                "peak_mb": {stage: peaks[name] for stage, name in names.items()},
                "sdpa_encoder_seconds": medians["sdpa encoder", precision],
                "per_class_loop_seconds": medians["per-class loop", tags],
                "matmul_flops": rates[precision],
                "looks_over_encodings": (encoder + others) / (BEST.looks.encodings * encoder),
                "looks_without_makers_over_encodings": (encoder + others - apart) / (BEST.looks.encodings * encoder),
                "runs": {stage: runs[name] for stage, name in names.items()},
            }
            cases.append(case)
            for name in ("looks_over_encodings", "looks_without_makers_over_encodings"):
                print(f"{size} {name} {precision} {tags} tags: {case[name]:.3f}")
            for stage in STAGES:
                ratio = case["seconds"][stage] / floors[stage]
                print(f"{size} {stage} {precision} {tags} tags: {ratio:.2f} × the floor's time")
    return cases


def key_of(stage: str, precision: str, tags: int) -> tuple:
    """The name that a stage is measured under: not every one depends on precision or tags."""
    by_stage = {"read": (), "encode": (precision,), "PAR": (tags,), "CRF": (tags,), "write": (tags,)}
    return (stage, *by_stage.get(stage, (precision, tags)))


def makers_of_looks(seen: Seen, features: dict[float, Features]) -> None:
    """What makers say at the looks of quality best but the first, from encodings that are there."""
    for look in looks.looks_of(BEST.looks.scales, BEST.looks.flip):
        if look != looks.Look(1.0):
            for name in BEST.looks.makers:
                looks.MAKERS[name](replace(seen, features=features[look.scale]))


@torch.no_grad()
def sdpa(model: torch.nn.Module, pixels: Tensor, precision: str) -> None:
    """transformers' encoder with fused attention."""
    dtype = getattr(torch, precision)
    with torch.autocast(pixels.device.type, dtype=dtype, enabled=precision != "float32"):
        model(pixels, interpolate_pos_encoding=True)


def rate_of(machine: Machine, clip: FrozenClip, pixels: Tensor, dtype: torch.dtype) -> float:
    """The machine's best rate on the encoder's own matrix products."""
    tokens = pixels.shape[0] * (1 + pixels.shape[2] * pixels.shape[3] // clip.patch**2)
    width, inner = clip.width, clip.image.blocks[0].up.weight.shape[0]
    products = [(tokens, width, 3 * width), (tokens, width, width), (tokens, width, inner), (tokens, inner, width)]
    return machine.multiplied(products, dtype)


def floor(
    machine: Machine, models: Models, size: tuple[int, int], tags: int, rates: dict[str, float], precision: str
) -> dict[str, float]:
    """Seconds an image that no implementation on this machine could beat by much."""
    clip = models.ours[precision]
    h, w = images.patch_size_of(*size, clip.patch)
    patches, pixels = h * w, size[0] * size[1]
    tokens, width, inner = patches + 1, clip.width, clip.image.blocks[0].up.weight.shape[0]
    block = 2 * tokens * width * (4 * width + 2 * inner) + 4 * tokens * tokens * width
    encode = 2 * patches * width * (3 * clip.patch**2 + clip.dim) + clip.layers * block
    # seeds: of the last block's backward the products that remain (seeds.py); the attention's are float32
    mlp = 2 * patches * width * (inner + 2 * width) + tags * 2 * patches * inner * (width + 1)
    attention = 2 * patches * tokens * width * (1 + tags)
    # refine: the attention is read twice in each of three rounds and four times for the maps
    read_again = 10 * 4 * patches**2
    # makers: of each likeness its scores and what is heard, the output projection, LN-post's; SCLIP the MLP, too
    kinds = [selfself.LIKENESS[name.removesuffix("-words")] for name in MAKERS]
    heard = sum(2 * tokens * tokens * width * (len(one.pairs) + bool(one.pairs)) for one in kinds)
    after = sum(2 * tokens * width * (width + clip.dim) + one.whole * 4 * tokens * width * inner for one in kinds)
    # PAR: in each round the kernel of every neighbour is read, and every label of every pixel read and written
    kernel_bytes = STANDARD.par.rounds * 4 * pixels * (8 * len(PAR_DILATIONS) + 2 * (tags + 1))
    # CRF: in each round two kernels read and write every label of every pixel, and the unaries are read
    labels_bytes = CONFIG.crf.rounds * 5 * 4 * (tags + 1) * pixels
    # looks: the encodings beside the first, which grow with the patches at least, and makers and seeds at each
    more = BEST.looks.encodings - 1
    # classes: a logarithm for each two patches and each label, and MaskCLIP's products; features: the encoder's own
    table = torch.rand(2**20, device=machine.device)
    logarithms = (patches**2 / 2 * (tags + BACKGROUND)) * machine.best(lambda: torch.log(table), 0.1) / len(table)
    small = models.guide.width
    wide = 2 * tokens * small * (4 * small + 8 * small) + 4 * tokens * tokens * small
    other = 12 * wide + 2 * patches * small * 3 * models.guide.patch**2 + 2 * patches * patches * small
    decoded = 3 * pixels + 3 * 4 * patches * clip.patch**2
    return {
        "read": decoded / machine.copied(decoded),
        "encode": encode / rates[precision],
        "seeds": mlp / rates[precision] + attention / rates["float32"],
        "refine": read_again / machine.copied(4 * patches**2),
        "makers": (heard + after) / rates[precision],
        "looks": more * ((encode + heard + after + mlp) / rates[precision] + attention / rates["float32"]),
        "classes": logarithms + 2 * tokens * width * (width + clip.dim) / rates[precision],
        "features": other / rates["float32"],
        "PAR": kernel_bytes / machine.copied(4 * 8 * len(PAR_DILATIONS) * pixels),
        "CRF": labels_bytes / machine.copied(4 * (tags + 1) * pixels),
        "write": 5 * pixels / machine.copied(pixels),
    }


def per_class_loop(clip: FrozenClip, pixels: Tensor, prototypes: Tensor, tags: int) -> Tensor:
    """Refined maps (K, h, w) the way the field makes them: plain float32 modules and one autograd call per tag."""
    tower, (h, w) = clip.image, (pixels.shape[2] // clip.patch, pixels.shape[3] // clip.patch)

    def attention(block, a: Tensor) -> tuple[Tensor, Tensor]:
        query, key, value = block.qkv(a).unflatten(-1, (3, tower.heads, -1)).permute(2, 0, 3, 1, 4)
        p = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, -1)
        return block.out((p @ value).transpose(1, 2).flatten(2)), p.mean(1)

    def mlp(block, x: Tensor) -> Tensor:
        hidden = block.up(block.ln2(x))
        quick = tower.activation == "quick_gelu"
        return block.down(hidden * torch.sigmoid(1.702 * hidden) if quick else F.gelu(hidden))

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
    average = torch.stack([*maps, p.detach()][-CONFIG.clip.attention_blocks :]).mean(0)[:, 1:, 1:]
    e = F.normalize((tower.ln_post(x) @ tower.projection)[0, 1:].mean(0), dim=0)
    s = torch.softmax(clip.logit_scale * e @ prototypes.T, 0)
    results = []
    for tag in range(tags):
        (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
        cam = torch.relu(a.detach()[0, 1:] @ gradient[0, 1:].mean(0)).view(1, h, w)
        seed = refine.minmax(refine.minmax(cam))
        inside = refine.boxes_mask(seed[0], CONFIG.refine.box_threshold).flatten()
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


def table(cases: list[dict]) -> str:
    """Markdown: milliseconds an image by stage (times the floor), and encoder, seeds, refinement against yardsticks."""
    head = ["size", "tags", "precision", *(f"{stage}, ms (× floor)" for stage in STAGES)]
    head += ["encode + seeds + refine, images/s", "× SDPA encoder's time", "× per-class loop's rate", "× floor", "MB"]
    lines = io.StringIO()
    lines.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
    for case in cases:
        seconds, floors = case["seconds"], case["floor_seconds"]
        cells = [case["size"].replace("x", "×"), str(case["tags"]), case["precision"]]
        cells += [
            f"{1000 * seconds[stage]:.3g} ({seconds[stage] / floors[stage]:.3g})" if stage in seconds else ""
            for stage in STAGES
        ]
        three = ("encode", "seeds", "refine")
        ours, best = (sum(one[stage] for stage in three) for one in (seconds, floors))
        cells += [
            f"{1 / ours:.3f}",
            f"{ours / case['sdpa_encoder_seconds']:.2f}",
            f"{case['per_class_loop_seconds'] / ours:.2f}",
            f"{ours / best:.2f}",
            f"{max(case['peak_mb'].values()):.0f}",
        ]
        lines.write(f"| {' | '.join(cells)} |\n")
    return lines.getvalue()


if __name__ == "__main__":
    main()
