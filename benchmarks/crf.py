"""How many images a second does the dense CRF label, and does mode "fast" keep the labels?

    python benchmarks/crf.py [--images FOLDER] [--count N] [--repeats N] [--sizes 640x480 500x375] [--labels 2 4 7]
    python benchmarks/crf.py --device cuda --count 16

One number a line: lattice build and rounds apart, exact and fast; each image's best of the repeats, in which all that
is compared takes turns. The lattice's size depends on the image: without --images a synthetic one with smooth regions
and sensor noise is used. When the C++ library's Python binding (`pydensecrf`, or `pydensecrf2`, the same in a package
that builds today) can be imported, it takes its turns too. A pseudo-mask is the labels, and 255 where the most probable
one has less than `labels.confidence`. --soft gives the seeds a quarter of their contrast.
--device cuda times the --count images of a size as one batch instead, as a run on a GPU computes them, by device events
(the best of the repeats), and compares its labels with the CPU's. --scenes N adds the mIoU of both modes on three sets
of N drawn scenes of 128 and of 96 pixels, seen by the pocket CLIP.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vpl.clip.model import FrozenClip
from vpl.config import Config, CrfConfig, preset
from vpl.judge.bench import Bench
from vpl.judge.material import Scenes
from vpl.method.crf import dense_crf, dense_crfs
from vpl.method.metrics import Confusion


def main() -> None:
    arguments = parse()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads by default")
    for size in arguments.sizes:
        width, height = (int(side) for side in size.split("x"))
        images = photographs(arguments.images, width, height, arguments.count)
        for labels in arguments.labels:
            guesses = [seeds(image, labels, seed, 1.0 if arguments.soft else 4.0) for seed, image in enumerate(images)]
            if arguments.device != "cpu":
                name = f"{size} {labels} labels {arguments.device}, {len(images)} at once"
                measure_batch(name, images, guesses, arguments.repeats, torch.device(arguments.device))
                continue
            for threads in arguments.threads:
                torch.set_num_threads(threads)
                measure(f"{size} {labels} labels {threads} threads", images, guesses, arguments.repeats)
    for side in (128, 96) if arguments.scenes else ():
        miou(side, arguments.scenes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs instead of the synthetic image")
    parser.add_argument("--count", type=int, default=1, help="images measured per size")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the best counts")
    parser.add_argument("--sizes", nargs="+", default=["640x480", "500x375"], help="WIDTHxHEIGHT")
    parser.add_argument("--labels", nargs="+", type=int, default=[2, 4, 7])
    parser.add_argument("--soft", action="store_true", help="seeds of a quarter of the contrast")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda: all images of a size as one batch")
    parser.add_argument("--scenes", type=int, default=0, help="scenes a set for the mIoU of both modes; 0: none")
    return parser.parse_args()


def measure(name: str, images: list[np.ndarray], guesses: list[torch.Tensor], repeats: int) -> None:
    """Prints the lines of one size, number of labels and number of threads."""
    works = {
        (mode, rounds): partial(dense_crf, rounds=rounds, mode=mode) for mode in ("exact", "fast") for rounds in (10, 1)
    }
    if torch.get_num_threads() == 1 and importlib.util.find_spec("pydensecrf"):
        works["C++ library", 10] = library
    for work in works.values():
        work(images[0], guesses[0])  # keeps the smoothness kernel
    seconds = {key: np.full(len(images), np.inf) for key in works}
    made = {key: [] for key in works}
    for _ in range(repeats):
        for number, pair in enumerate(zip(images, guesses, strict=True)):
            for key, work in works.items():
                start = time.perf_counter()
                found = work(*pair)
                seconds[key][number] = min(seconds[key][number], time.perf_counter() - start)
                made[key] = [*made[key][:number], found]
    mean = {key: best.mean() for key, best in seconds.items()}
    labels = {key: [one.argmax(0).numpy() for one in maps] for key, maps in made.items()}
    masks = {key: [pseudo_mask(one) for one in maps] for key, maps in made.items()}
    for mode in ("exact", "fast"):
        print(f"{name} {mode}: {1 / mean[mode, 10]:.2f} images/s")
        print(f"{name} {mode}, lattice and first round: {1000 * mean[mode, 1]:.0f} ms")
        print(f"{name} {mode}, further rounds: {1000 * (mean[mode, 10] - mean[mode, 1]):.0f} ms")
    print(f"{name} fast, labels equal to exact: {agreement(labels['fast', 10], labels['exact', 10])}")
    print(f"{name} fast, pseudo-masks equal to exact: {agreement(masks['fast', 10], masks['exact', 10])}")
    print(f"{name} fast, time of exact over its own: {mean['exact', 10] / mean['fast', 10]:.1f}")
    if ("C++ library", 10) in works:
        print(f"{name} C++ library: {1 / mean['C++ library', 10]:.2f} images/s")
        for mode in ("exact", "fast"):
            same = agreement(labels[mode, 10], labels["C++ library", 10])
            print(f"{name} {mode}, labels equal to the C++ library: {same}")
            print(
                f"{name} {mode}, time of the C++ library over its own: {mean['C++ library', 10] / mean[mode, 10]:.1f}"
            )


def measure_batch(
    name: str, images: list[np.ndarray], guesses: list[torch.Tensor], repeats: int, device: torch.device
) -> None:
    """Prints the lines of one size and number of labels on a device."""
    there, labels = [guess.to(device) for guess in guesses], {}
    for mode in ("exact", "fast"):
        best = {}
        for rounds in (10, 1):
            work = partial(dense_crfs, images, there, CrfConfig(rounds=rounds, mode=mode))
            found = work()
            if rounds == 10:
                labels[mode] = [one.argmax(0).cpu().numpy() for one in found]
            best[rounds] = min(seconds_on(device, work) for _ in range(repeats))
        print(f"{name} {mode}: {len(images) / best[10]:.2f} images/s")
        print(f"{name} {mode}, lattice and first round: {1000 * best[1]:.1f} ms a batch")
        print(f"{name} {mode}, further rounds: {1000 * (best[10] - best[1]):.1f} ms a batch")
        here = [dense_crf(*pair, mode=mode).argmax(0).numpy() for pair in zip(images, guesses, strict=True)]
        print(f"{name} {mode}, labels equal to the CPU's: {agreement(labels[mode], here)}")
    print(f"{name} fast, labels equal to exact: {agreement(labels['fast'], labels['exact'])}")
    if device.type == "cuda":
        print(f"{name}, most memory: {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MiB since the start")


def seconds_on(device: torch.device, work: Callable[[], object]) -> float:
    """How long `work` takes on the device, copies to it and waits for it included."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


def miou(side: int, count: int) -> None:
    """Prints the mIoU of both modes on drawn scenes, by the project's own pipeline."""
    clip, config = FrozenClip.load("pocket", device="cpu"), preset("scenes")
    found = {"exact": [], "fast": []}
    for number in range(3):
        drawn = Scenes(count=count, side=side).load(number)
        bench = Bench(clip, drawn.classes, drawn.views)
        for mode, means in found.items():
            changed = replace(config, crf=replace(config.crf, mode=mode))
            table = Confusion(len(drawn.classes) + 1)
            for truth, mask in zip(drawn.truths, bench.masks(changed, ("crf",))["crf"], strict=True):
                table.update(truth, mask)
            means.append(100 * table.miou())
    for mode, means in found.items():
        sets = ", ".join(f"{one:.2f}" for one in means)
        print(f"scenes of {side} pixels, {mode}: mIoU {np.mean(means):.2f} % ({sets})")


def pseudo_mask(probabilities: torch.Tensor) -> np.ndarray:
    """Labels (H, W), and 255 where the most probable one has less than `labels.confidence`."""
    confidence, best = probabilities.max(0)
    return torch.where(confidence >= Config().labels.confidence, best, 255).numpy()


def library(image: np.ndarray, guess: torch.Tensor) -> torch.Tensor:
    """The same CRF by the C++ library."""
    from pydensecrf.densecrf import DenseCRF2D

    count, height, width = guess.shape
    field = DenseCRF2D(width, height, count)
    field.setUnaryEnergy(-guess.clamp_min(1e-5).log().view(count, -1).numpy())
    field.addPairwiseGaussian(sxy=1, compat=3)
    field.addPairwiseBilateral(sxy=67, srgb=3, rgbim=np.ascontiguousarray(image), compat=4)
    return torch.from_numpy(np.array(field.inference(10))).view(count, height, width)


def agreement(these: list[np.ndarray], those: list[np.ndarray]) -> str:
    """Share of equal labels: mean over the images, and the worst of them."""
    shares = [100 * (one == other).mean() for one, other in zip(these, those, strict=True)]
    return f"{np.mean(shares):.2f} % (worst {min(shares):.2f} %)"


def photographs(folder: Path | None, width: int, height: int, count: int) -> list[np.ndarray]:
    """`count` RGB images (height, width, 3) uint8."""
    if folder is None:
        return [synthetic(width, height, seed) for seed in range(count)]
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})[:count]
    return [np.array(Image.open(path).convert("RGB").resize((width, height))) for path in paths]


def synthetic(width: int, height: int, seed: int) -> np.ndarray:
    """Smooth coloured regions with shading, fine texture and sensor noise."""
    random = np.random.default_rng(seed)
    regions = smooth(random, 12, width, height, cells=6).argmax(0)
    shading = 25 * smooth(random, 3, width, height, cells=4) + 6 * smooth(random, 3, width, height, cells=80)
    colours = random.uniform(30, 225, (12, 3))[regions]
    return (colours + shading.transpose(1, 2, 0) + random.normal(0, 3, colours.shape)).clip(0, 255).astype(np.uint8)


def smooth(random: np.random.Generator, planes: int, width: int, height: int, cells: int) -> np.ndarray:
    """Random planes (planes, height, width) that vary over `cells` cells a side."""
    coarse = torch.from_numpy(random.normal(size=(1, planes, cells, cells)))
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].numpy()


def seeds(image: np.ndarray, labels: int, seed: int, contrast: float = 4.0) -> torch.Tensor:
    """Probabilities (C, H, W) as seeds give them: regions of the image, seen through a grid of 16-pixel patches."""
    random = np.random.default_rng(seed)
    height, width, _ = image.shape
    centres = torch.from_numpy(random.uniform(40, 215, (labels, 3)))
    colour = torch.from_numpy(image.astype(np.float64))[None] - centres[:, None, None]
    place = torch.from_numpy(smooth(random, labels, width, height, cells=5))
    regions = (2 * place - colour.norm(dim=-1) / 40).argmax(0)
    maps = torch.nn.functional.one_hot(regions, labels).permute(2, 0, 1)[None].float()
    patches = torch.nn.functional.avg_pool2d(maps, 16, ceil_mode=True)
    patches = contrast * (patches + 0.125 * torch.from_numpy(random.normal(size=patches.shape)).float())
    return torch.nn.functional.interpolate(patches, size=(height, width), mode="bilinear")[0].softmax(0)


if __name__ == "__main__":
    main()
