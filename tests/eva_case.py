"""A small EVA-02 image tower: its weights by a seed, and what timm's own tower answers (golden/eva_tower.safetensors).

`python tests/eva_case.py TIMM FILE` writes the golden file anew: TIMM is a folder in which `pip install --no-deps
--target TIMM timm` put timm. It needs torchvision only to be imported, so an empty one stands in for it.
"""

from __future__ import annotations

import functools
import importlib.machinery
import sys
import types

import torch
import torch.nn.functional as F

SEED, SIDE, PATCH, WIDTH, HEADS, LAYERS, INNER, DIM = 5, 4, 16, 96, 12, 3, 256, 24
GRIDS = ((4, 4), (3, 5))


def shapes() -> dict[str, tuple[int, ...]]:
    """timm's keys of the tower, and their shapes."""
    vector, square = (WIDTH,), (WIDTH, WIDTH)
    block = {
        "norm1.weight": vector, "norm1.bias": vector, "norm2.weight": vector, "norm2.bias": vector,
        "attn.q_proj.weight": square, "attn.k_proj.weight": square, "attn.v_proj.weight": square,
        "attn.q_proj.bias": vector, "attn.v_proj.bias": vector, "attn.norm.weight": vector, "attn.norm.bias": vector,
        "attn.proj.weight": square, "attn.proj.bias": vector,
        "mlp.fc1_g.weight": (INNER, WIDTH), "mlp.fc1_g.bias": (INNER,), "mlp.fc1_x.weight": (INNER, WIDTH),
        "mlp.fc1_x.bias": (INNER,), "mlp.norm.weight": (INNER,), "mlp.norm.bias": (INNER,),
        "mlp.fc2.weight": (WIDTH, INNER), "mlp.fc2.bias": vector,
    }  # fmt: skip
    return {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + SIDE**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": vector,
        "norm.weight": vector, "norm.bias": vector, "head.weight": (DIM, WIDTH), "head.bias": (DIM,),
    } | {f"blocks.{n}.{key}": shape for n in range(LAYERS) for key, shape in block.items()}  # fmt: skip


def drawn(wanted: dict[str, tuple[int, ...]], seed: int = SEED) -> dict[str, torch.Tensor]:
    """Random weights: norms around 1, matrices that neither swell nor shrink what they multiply."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for key, shape in sorted(wanted.items()):
        slim = len(shape) < 2 or key.endswith(("cls_token", "pos_embed", "embedding", "embedding.weight"))
        scale = 0.3 if slim else 1.5 * torch.Size(shape[1:]).numel() ** -0.5
        centre = float("norm" in key.replace("ln_", "norm_") and key.endswith("weight"))
        found[key] = torch.randn(shape, generator=generator) * scale + centre
    return found


def pixels(grid: tuple[int, int]) -> torch.Tensor:
    """Two random images (2, 3, H, W)."""
    size = (2, 3, grid[0] * PATCH, grid[1] * PATCH)
    return torch.randn(size, generator=torch.Generator().manual_seed(SEED + grid[0]))


def moved(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """timm's positions (1, T, WIDTH) on another grid, as vpl moves them: bilinearly."""
    square = positions[0, 1:].T.reshape(1, WIDTH, SIDE, SIDE)
    return torch.cat([positions[:, :1], F.interpolate(square, size=grid, mode="bilinear").flatten(2).mT], 1)


def _without_torchvision() -> None:
    class Empty(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            modes = ("NEAREST", "BILINEAR", "BICUBIC", "BOX", "HAMMING", "LANCZOS")
            return type(name, (), {mode: mode.lower() for mode in modes})

    for name in (
        "torchvision", "torchvision.transforms", "torchvision.transforms.functional",
        "torchvision.transforms.transforms", "torchvision.datasets", "torchvision.datasets.folder",
        "torchvision.ops", "torchvision.ops.misc",
        "torchvision.models", "torchvision.models.feature_extraction", "torchvision.io", "torchvision.utils",
    ):  # fmt: skip
        module = Empty(name)
        module.__dict__.update(__path__=[], __version__="0", __spec__=importlib.machinery.ModuleSpec(name, None))
        sys.modules[name] = module
        if "." in name:
            setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)


def main(timm_folder: str, file: str) -> None:
    sys.path.insert(0, timm_folder)
    _without_torchvision()
    import timm
    from safetensors.torch import save_file
    from timm.layers import LayerNorm
    from timm.models.eva import Eva

    weights, made = drawn(shapes()), {}
    for grid in GRIDS:
        tower = Eva(
            img_size=tuple(side * PATCH for side in grid), patch_size=PATCH, embed_dim=WIDTH, depth=LAYERS,
            num_heads=HEADS, qkv_fused=False, mlp_ratio=4 * 2 / 3, swiglu_mlp=True, scale_mlp=True,
            scale_attn_inner=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16), global_pool="token", num_classes=DIM,
            norm_layer=functools.partial(LayerNorm, eps=1e-6),
        ).eval()  # fmt: skip
        tower.load_state_dict(weights | {"pos_embed": moved(weights["pos_embed"], grid)})
        with torch.no_grad():
            tokens = tower.forward_features(pixels(grid))
            name = "x".join(map(str, grid))
            made |= {f"embedding_{name}": tower(pixels(grid)), f"patches_{name}": tower.head(tokens[:, 1:])}
    save_file(made, file, {"timm": timm.__version__, "seed": str(SEED)})


if __name__ == "__main__":
    main(*sys.argv[1:])
