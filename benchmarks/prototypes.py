"""How long learning the vision prototypes takes: regions x prototypes x width, on this machine.

    python benchmarks/prototypes.py [--regions 100000] [--prototypes 107] [--width 512] [--device cpu]

Regions are drawn around hidden class centres, away from the text prototypes (a modality gap), with noise that makes
classes overlap; each may show its own class and up to two others. Prints the seconds of one step, its share of the
machine's own matrix-product rate, and the seconds, steps and KL of `learn` with the default configuration. Regions are
passed over in parts of REGIONS_AT_ONCE, a thread each. One number per line; asserts nothing.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

from vpl.config import PrototypeConfig
from vpl.machine import cores
from vpl.method.prototypes import learn, soft_labels


def seconds(work, device: str) -> float:
    """Wall-clock seconds of one call, the device's queue drained."""
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def problem(regions: int, classes: int, width: int, noise: float, seed: int = 0):
    """Unit regions, unit text prototypes and which classes each region may show."""
    generator = torch.Generator().manual_seed(seed)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    kinds, own = unit(classes, width), torch.randint(classes, (regions,), generator=generator)
    text = F.normalize(1.5 * unit(width) + kinds, dim=-1)
    shift, own_look = unit(width), unit(classes, width)
    centres = 1.2 * shift + 0.5 * kinds + 0.2 * own_look
    x = F.normalize(centres[own] + noise * unit(regions, width), dim=-1)
    allowed = torch.rand(regions, classes, generator=generator) < 2 / classes
    allowed[torch.arange(regions), own] = True
    return x, text, allowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--prototypes", type=int, default=107)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--noise", type=float, default=3.0, help="length of a region's noise; its class part is 0.5")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = f"{given.regions} regions x {given.prototypes} prototypes x {given.width}"
    name = torch.cuda.get_device_name() if given.device.startswith("cuda") else f"{cores()} cores"
    print(f"learning prototypes, {size}, float32, {name}, torch {torch.__version__}")

    x, text, allowed = (
        one.to(given.device) for one in problem(given.regions, given.prototypes, given.width, given.noise, given.seed)
    )
    config = PrototypeConfig()
    q = soft_labels(x, text, allowed, config.text_temperature)
    labels = min(
        seconds(lambda: soft_labels(x, text, allowed, config.text_temperature), given.device) for _ in range(2)
    )
    print(f"soft labels, s: {labels:.2f}")

    side = 2048
    square = torch.randn(side, side, device=given.device)
    product = min(seconds(lambda: square @ square, given.device) for _ in range(5))
    floor = 4 * given.regions * given.prototypes * given.width / (2 * side**3 / product)
    print(f"one step's two products at this machine's rate for squares of {side}, s: {floor:.4f}")

    def steps(count: int) -> float:
        settings = replace(config, steps=count, tolerance=0.0)
        return seconds(lambda: learn(x, q, text, settings), given.device)

    step = (steps(6) - steps(1)) / 5
    print(f"one step, s: {step:.4f}")
    print(f"step over its floor: {step / floor:.2f}")
    start = time.perf_counter()
    learned = learn(x, q, text, config)
    print(f"learn to tolerance {config.tolerance:g}, s: {time.perf_counter() - start:.1f}")
    print(f"steps: {learned.steps}")
    print(f"KL before, nats: {learned.kl_before:.6f}")
    print(f"KL after, nats: {learned.kl_after:.6f}")


if __name__ == "__main__":
    main()
