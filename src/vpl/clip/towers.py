"""The two towers: blocks between an embedding and a projection, of the sizes that the weights' shapes tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpl.clip.block import Block, Pool, rotation
from vpl.clip.facts import GELU, GELU_TANH, QUICK, SWIGLU, Architecture
from vpl.errors import ModelError


class _Tower(nn.Module):
    """The blocks that both towers have."""

    blocks: Sequence[Block]

    def __init__(self, width: int, inner: int, layers: int, heads: int, activation: str, eps: float):
        super().__init__()
        self.heads, self.activation = heads, activation
        blocks = (Block(width, inner, heads, activation, eps) for _ in range(layers))
        self.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]  # a ModuleList does not say of what


class ImageTower(_Tower):
    """CLIP's: a class token goes before the patches (`first` = 1), and its answer is projected. SigLIP's (`dim` None):
    there is none (`first` = 0), and a pooling head asks the patches. EVA's (`turned`) is CLIP's without a first
    norm, with biases, and patches that know their place in every block."""

    def __init__(self, width: int, patch: int, grid: int, dim: int | None, turned: int | None = None, **shared: Any):
        super().__init__(width, **shared)
        self.turned = turned
        self.first = 0 if dim is None else 1
        self.patch = nn.Parameter(torch.empty(width, 3, patch, patch))
        self.positions = nn.Parameter(torch.empty(self.first + grid * grid, width))
        self.ln_post = nn.LayerNorm(width, eps=shared["eps"])
        if dim is None:
            self.patch_bias = nn.Parameter(torch.empty(width))
            inner, heads, activation = shared["inner"], shared["heads"], shared["activation"]
            self.pool = Pool(width, inner, heads, activation, shared["eps"])
        else:
            self.start = nn.Parameter(torch.empty(width))
            self.projection = nn.Parameter(torch.empty(width, dim))
            if turned is None:
                self.ln_pre = nn.LayerNorm(width, eps=shared["eps"])
            else:
                self.patch_bias = nn.Parameter(torch.empty(width))
                self.bias = nn.Parameter(torch.empty(dim))

    @property
    def plain(self) -> bool:
        """Whether it is a CLIP's own, of which the seeds know the backward in closed form."""
        return self.first == 1 and self.turned is None

    def turn(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
        """By what its blocks turn q and k on this grid; None: they don't."""
        if self.turned is None:
            return None
        return rotation(grid, len(self.start) // self.heads, self.turned, self.start.device)

    def begin(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Tokens (N, T, width) that enter the first block, from embedded patches (N, hw, width)."""
        if not self.first:
            return patches + self.patch_bias + positions
        start = self.start.expand(len(patches), 1, -1)
        if self.turned is not None:
            return torch.cat([start, patches + self.patch_bias], 1) + positions
        return self.ln_pre(torch.cat([start, patches], 1) + positions)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens (…, width) that left the last block, each on its own, in the joint space (…, D)."""
        post = self.ln_post(tokens)
        if not self.first:
            return self.pool.alone(post)
        return post @ self.projection if self.turned is None else post @ self.projection + self.bias

    def whole(self, tokens: Tensor) -> Tensor:
        """The image's own embedding (N, D), not normalised: of the class token, or what the pooling head hears."""
        return self.project(tokens[:, 0]) if self.first else self.pool.together(self.ln_post(tokens))


class TextTower(_Tower):
    def __init__(self, width: int, words: int, context: int, dim: int, biased: bool = False, **shared: Any):
        super().__init__(width, **shared)
        self.words = nn.Parameter(torch.empty(words, width))
        self.positions = nn.Parameter(torch.empty(context, width))
        self.ln_final = nn.LayerNorm(width, eps=shared["eps"])
        self.projection = nn.Parameter(torch.empty(width, dim))
        self.bias: Tensor | None = nn.Parameter(torch.empty(dim)) if biased else None


def towers(weights: Mapping[str, Tensor], architecture: Architecture, name: str) -> tuple[ImageTower, TextTower]:
    """Towers of the sizes that the weights' shapes tell."""

    def shape(key: str, dimensions: int) -> torch.Size:
        if key not in weights or weights[key].ndim != dimensions or 0 in weights[key].shape:
            raise ModelError(
                f"{name} is no complete CLIP ViT: {key} is missing or of a wrong shape. Give the original weights."
            )
        return weights[key].shape

    def shared(side: str, heads: int, activation: str, eps: float) -> dict:
        width = shape("image.patch", 4)[0] if side == "image" else shape("text.projection", 2)[0]
        if heads < 1 or width % heads:
            raise ModelError(f"{name}: {heads} attention heads do not divide {width} columns. Correct it.")
        if (activation == SWIGLU) != (f"{side}.blocks.0.gate.weight" in weights):
            raise ModelError(
                f"{name}: the activation {activation!r} does not fit its {side} tower's blocks. Correct it."
            )
        if activation not in (QUICK, GELU, GELU_TANH, SWIGLU):
            raise ModelError(f"{name}: the activation {activation!r} is unknown; expected quick_gelu or gelu.")
        if not 0 < eps < 1:
            raise ModelError(f"{name}: LayerNorm's epsilon is {eps}; expected a small number such as 1e-05.")
        layers = len({key.split(".")[2] for key in weights if key.startswith(f"{side}.blocks.")})
        inner = shape(f"{side}.blocks.0.up.weight", 2)[0]
        return {"inner": inner, "layers": layers, "heads": heads, "activation": activation, "eps": eps}

    pooled = "image.pool.probe" in weights
    width, channels, patch, _ = shape("image.patch", 4)
    cells = shape("image.positions", 2)[0] - (not pooled)
    grid = round(cells**0.5)
    if not grid or grid * grid != cells or channels != 3:
        raise ModelError(
            f"{name} has {cells} patch positions and {channels} channels; expected a square grid and 3 channels. "
            "Give the original weights."
        )
    dim = shape("text.projection" if pooled else "image.projection", 2)[1]
    if pooled and dim != width:
        raise ModelError(f"{name}: texts have {dim} columns and images {width}; expected one joint space.")
    words, text_width = shape("text.words", 2)
    image = ImageTower(
        width, patch, grid, None if pooled else dim, architecture.image_turned,
        **shared("image", architecture.image_heads, architecture.image_activation, architecture.image_eps),
    )  # fmt: skip
    text = TextTower(
        text_width, words, shape("text.positions", 2)[0], dim, pooled,
        **shared("text", architecture.text_heads, architecture.text_activation, architecture.text_eps),
    )  # fmt: skip
    return image, text
