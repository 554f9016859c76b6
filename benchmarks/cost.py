"""What many images need in hours, storage and money: arithmetic over a small table of rates, which any flag changes.

    python benchmarks/cost.py [--images 100e6] [--core-encode 3.69] ...

Prints the Markdown tables of docs/how-to/many-machines.md. Sources of the values are there.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """Per image unless said otherwise. Times in seconds of one core, sizes in bytes, prices in dollars."""

    images: float = 100e6
    core_encode: float = 3.69  # encode, seeds and refinement, float32
    core_encode_bf16: float = 2.19
    core_crf: float = 0.61  # exact
    core_crf_fast: float = 0.17
    gpu_tflops: float = 989  # data sheet, dense bfloat16
    gpu_use: float = 0.35  # share of it that is reached
    seed_factor: float = 1.25  # time of encode, seeds and refinement over the encoder's
    cores_per_gpu: float = 16
    photo_bytes: float = 152e3
    map_bytes: float = 7.0e3  # one label map
    maps: float = 5
    core_price: float = 0.04  # an hour
    gpu_price: float = 3.00  # an hour
    gb_month_price: float = 0.023
    put_price: float = 5e-6
    get_price: float = 4e-7


def vit_b16_flops(height: int = 480, width: int = 640) -> float:
    """Multiplications and additions of ViT-B/16's image tower, 2 for each product."""
    d, blocks, patches = 768, 12, (height // 16) * (width // 16)
    tokens = patches + 1
    products = patches * 3 * 16 * 16 * d + blocks * (12 * tokens * d * d + 2 * tokens * tokens * d)
    return 2.0 * products


def tables(r: Rates) -> str:
    """Both tables as Markdown."""
    hours = r.images / 3600
    flops = vit_b16_flops()
    gpu_rate = r.gpu_tflops * 1e12 * r.gpu_use / (flops * r.seed_factor)
    rows = []
    for name, seconds in (
        ("CPU, float32, exact CRF", r.core_encode + r.core_crf),
        ("CPU, bfloat16, fast CRF", r.core_encode_bf16 + r.core_crf_fast),
    ):
        rows.append((name, f"{1 / seconds:.2f} a core", f"{hours * seconds:,.0f} core", hours * seconds * r.core_price))
    for name, crf in (("exact", r.core_crf), ("fast", r.core_crf_fast)):
        rate = min(gpu_rate, r.cores_per_gpu / crf)
        price = r.gpu_price + r.cores_per_gpu * r.core_price
        words = f"GPU and {r.cores_per_gpu:.0f} cores, bfloat16, {name} CRF"
        rows.append((words, f"{rate:,.0f} a GPU", f"{hours / rate:,.0f} GPU", hours / rate * price))
    rows.append(
        ("GPU alone, no CRF", f"{gpu_rate:,.0f} a GPU", f"{hours / gpu_rate:,.0f} GPU", hours / gpu_rate * r.gpu_price)
    )
    first = ["| compute | images/s | hours | dollars |", "|---|---|---|---|"]
    first += [f"| {name} | {rate} | {time} | {money:,.0f} |" for name, rate, time, money in rows]
    photos, maps = r.images * r.photo_bytes, r.images * r.maps * r.map_bytes
    second = ["| storage | TB | dollars a month | requests | dollars once |", "|---|---|---|---|---|"]
    for name, size, count, price in (
        ("photographs, read once", photos, r.images, r.get_price),
        (f"{r.maps:.0f} label maps an image", maps, r.images * r.maps, r.put_price),
    ):
        month = size / 1e9 * r.gb_month_price
        second.append(
            f"| {name} | {size / 1e12:.1f} | {month:,.0f} | {count / 1e6:,.0f} million | {count * price:,.0f} |"
        )
    whole = flops * r.seed_factor
    notes = [
        f"ViT-B/16 at 640 x 480: {flops / 1e9:.0f} GFLOP an image; with seeds and refinement {whole / 1e9:.0f}.",
        f"Cores that keep one GPU busy: {gpu_rate * r.core_crf:,.0f} for the exact CRF, "
        f"{gpu_rate * r.core_crf_fast:,.0f} for the fast one.",
    ]
    return "\n".join([*first, "", *second, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for item in dataclasses.fields(Rates):
        parser.add_argument(f"--{item.name.replace('_', '-')}", type=float, default=item.default)
    print(tables(Rates(**vars(parser.parse_args()))))


if __name__ == "__main__":
    main()
