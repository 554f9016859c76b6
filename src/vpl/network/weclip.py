"""WeCLIP's head: published, and pinned by golden files (arXiv 2406.11189; METHOD.md 5, "published peers"). [ref]

    F = fuse( concat_l( B_l · relu( A_l · z_l ) ) ),   logits = W · transformer(F) on the patch grid

z_l are the patch tokens that leave block l of the frozen encoder. The transformer is pre-norm with quick GELU, without
position embeddings and without a last norm; in training, whole channels of F are dropped. F also gives the affinity
that a loss teaches (affinity) and that refines the seeds (online).

Letters: L blocks of the encoder that the head reads · C foreground classes · P = C + 1 · N images · h w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpl.clip.block import QUICK_GELU_SLOPE
from vpl.config import DecoderConfig
from vpl.errors import ModelError
from vpl.network.grids import guided
from vpl.network.head import Answer, Block, Network, Sight, check_width


class Weclip(Network):
    """Logits on the patch grid from the patch tokens of the encoder's first L blocks.

    Args:
        encoder_blocks: of the frozen encoder; L is `decoder.skip_last` fewer, at least 1.
        encoder_width: channels of its tokens.
        classes: C; background comes on top.

    Raises:
        ConfigError: `decoder.width` is no multiple of `decoder.heads`.
    """

    def __init__(self, encoder_blocks: int, encoder_width: int, classes: int, config: DecoderConfig):
        super().__init__()
        check_width(config)
        self.config = config
        width, read = config.width, max(1, encoder_blocks - config.skip_last)
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(encoder_width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(read)
        )
        self.fuse = nn.Linear(read * width, width)
        self.drop = nn.Dropout1d(config.dropout)
        self.blocks = nn.ModuleList(Block(width, config.heads, QuickGelu()) for _ in range(config.blocks))
        self.classify = nn.Linear(width, classes + 1)

    def forward(self, seen: Sight) -> Answer:
        """Logits on the patch grid, or the finer one that `decoder.cells` asks for, and F."""
        tokens = self.tokens(seen.blocks)
        return Answer(guided(self.logits(tokens, seen.grid), seen.pixels, self.config), tokens)

    def tokens(self, blocks: Sequence[Float[Tensor, "N hw width"]]) -> Float[Tensor, "N hw inner"]:
        """F. `blocks` are treated as constants; those after the first L are not read.

        Raises:
            ModelError: the encoder has fewer blocks than the head reads.
        """
        if len(blocks) < len(self.projections):
            raise ModelError(
                f"the decoder got the features of {len(blocks)} blocks; expected at least {len(self.projections)}. "
                "Use the CLIP that it was trained with."
            )
        parts = [project(tokens.detach()) for project, tokens in zip(self.projections, blocks, strict=False)]
        fused = self.fuse(torch.cat(parts, dim=-1))
        return self.drop(fused.transpose(1, 2)).transpose(1, 2)

    def logits(self, tokens: Float[Tensor, "N hw inner"], grid: tuple[int, int]) -> Float[Tensor, "N P h w"]:
        """Logits of F on the patch grid, background first."""
        for block in self.blocks:
            tokens = block(tokens)
        return self.classify(tokens).transpose(1, 2).unflatten(2, grid)


class QuickGelu(nn.Module):
    """x · sigmoid(1.702 x), OpenAI CLIP's activation."""

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        return x * torch.sigmoid(QUICK_GELU_SLOPE * x)
