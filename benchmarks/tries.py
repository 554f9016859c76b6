"""Ways to a faster encoder that vpl does not take: what each would bring, on one thread, for a photograph of 640x480.

    python benchmarks/tries.py [packing] [compile] [int8] [maps]

packing  the weights of ViT-B/16's products reordered for oneDNN once, against reordered in each call
compile  torch.compile of one block against the block as it is; the seconds of compiling it
int8     products with torch's dynamic int8 weights against bfloat16 and float32, and how far results are from float32's
maps     what adding up attention over the heads costs of a block: no halved map and no skipped head can save more
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpl.clip.block import Block, attend, linear, through

TOKENS, WIDTH, INNER, HEADS = 1201, 768, 3072, 12
PRODUCTS = ((WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tries = {"packing": packing, "compile": compiled, "int8": int8, "maps": maps}
    parser.add_argument("tries", nargs="*", metavar="TRY", help="those above (default: all)")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name in parser.parse_args().tries or tries:
            tries[name]()


def best(work: Callable[[], object], calls: int = 7) -> float:
    """Processor seconds of the quickest call."""
    work()
    found = []
    for _ in range(calls):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def layers(dtype: torch.dtype) -> list[tuple[Tensor, nn.Linear]]:
    """A block's products: rows and layer."""
    return [(torch.randn(1, TOKENS, rows).to(dtype), nn.Linear(rows, columns).to(dtype)) for rows, columns in PRODUCTS]


def packing() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        ours = packed = 0.0
        for x, layer in layers(dtype):
            weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, TOKENS)
            ours += best(lambda x=x, layer=layer: linear(layer, x))
            packed += best(
                lambda x=x, w=weight, b=layer.bias: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")
            )
        print(f"packing, {dtype}: products of a block {1000 * ours:.1f} ms, packed {1000 * packed:.1f} ms")


def compiled() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        block, x = Block(WIDTH, INNER, HEADS, "quick_gelu", 1e-5).to(dtype), torch.randn(1, TOKENS, WIDTH)
        block.ln1.float(), block.ln2.float()
        sums, run = torch.zeros(1, TOKENS, TOKENS), torch.compile(plain)
        start = time.perf_counter()
        run(block, x, sums)
        first = time.perf_counter() - start
        ours = best(lambda b=block, x=x, s=sums: through(b, x, attention=s, keep=False))
        theirs = best(lambda b=block, x=x, s=sums, r=run: r(b, x, s))
        print(f"compile, {dtype}: block {1000 * ours:.0f} ms, compiled {1000 * theirs:.0f} ms after {first:.0f} s")


def plain(block: Block, x: Tensor, sums: Tensor) -> Tensor:
    """A block with its attention's mean, in plain operations for a compiler."""
    dtype = block.qkv.weight.dtype
    query, key, value = block.qkv(block.ln1(x).to(dtype)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    p = torch.softmax(query @ key.transpose(2, 3) * query.shape[-1] ** -0.5, -1)
    sums += p.float().mean(1)
    x = x + block.out((p @ value).transpose(1, 2).flatten(2))
    hidden = block.up(block.ln2(x).to(dtype))
    return x + block.down(hidden * torch.sigmoid(1.702 * hidden))


def int8() -> None:
    times, furthest = dict.fromkeys(("float32", "bfloat16", "int8"), 0.0), 0.0
    for x, layer in layers(torch.float32):
        small = torch.ao.quantization.quantize_dynamic(nn.Sequential(copy.deepcopy(layer)), dtype=torch.qint8)
        half, rows = copy.deepcopy(layer).bfloat16(), x.bfloat16()
        times["float32"] += best(lambda x=x, layer=layer: linear(layer, x))
        times["bfloat16"] += best(lambda x=rows, layer=half: linear(layer, x))
        times["int8"] += best(lambda x=x, small=small: small(x))
        furthest = max(furthest, float(1 - F.cosine_similarity(small(x), layer(x), dim=-1).min()))
    told = ", ".join(f"{name} {1000 * one:.1f} ms" for name, one in times.items())
    print(f"int8: products of a block {told}; cosine with float32's at least {1 - furthest:.4f}")


def maps() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        qkv, sums = torch.randn(1, TOKENS, 3, HEADS, WIDTH // HEADS).to(dtype), torch.zeros(1, TOKENS, TOKENS)
        kept, none = best(lambda q=qkv, s=sums: attend(q, s)), best(lambda q=qkv: attend(q))
        print(f"maps, {dtype}: attention of a block {1000 * kept:.1f} ms, without its mean {1000 * none:.1f} ms")


if __name__ == "__main__":
    main()
