"""A network as training and prediction see it, and the segmentation head over frozen features (METHOD.md 5).

g = fuse( concat_l( gelu( P_l · norm(z_l) ) ) ),   logits = W · norm( transformer(g) ) on the patch grid

z_l are the patch tokens of block l of the frozen encoder; they already carry CLIP's interpolated position embeddings,
so the head adds none and works on any grid. The head is ours, in WeCLIP's spirit.

Letters: L blocks of the encoder · C foreground classes · P = C + 1 logits, background first · N images of a batch · h w
patch grid · gh gw a network's own grid · H W pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpl.clip.model import Features, FrozenClip
from vpl.config import DecoderConfig
from vpl.errors import ConfigError, ModelError
from vpl.network.grids import guided


class Sight:
    """A batch as a network looks at it: pixels, and what the frozen encoder says of them, computed once when asked for.

    Args:
        pixels: normalised with the network's mean and std; sides are multiples of the patch.
        clip: the frozen encoder; None for a network that reads pixels alone.
        layers: of how many of its last blocks the attention is wanted too, and then the inside of the last one.
    """

    def __init__(self, pixels: Float[Tensor, "N 3 H W"], clip: FrozenClip | None, layers: int = 0):
        self.pixels, self._clip, self._layers = pixels, clip, layers

    @functools.cached_property
    def features(self) -> Features:
        """Patch tokens of every block, and projected ones of the last.

        Raises:
            ModelError: there is no encoder.
        """
        if self._clip is None:
            raise ModelError(
                "this network reads the features of a CLIP, and none was given; give the one it learned on."
            )
        with torch.autocast(self.pixels.device.type, enabled=False):
            count, wanted = self._layers, self._layers > 0
            return self._clip.encode(
                self.pixels, attention_blocks=count, keep_blocks=True, keep_last=wanted, apart=wanted
            )

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches."""
        return self.features.grid

    @property
    def blocks(self) -> Sequence[Float[Tensor, "N hw width"]]:
        """Patch tokens that leave each block of the encoder, first block first."""
        return self.features.blocks or ()


@dataclass(frozen=True)
class Answer:
    """What a network says of a batch.

    Attributes:
        logits: background first, on the network's own grid.
        tokens: its own features of the patches; None where it has none of them.
    """

    logits: Float[Tensor, "N P gh gw"]
    tokens: Float[Tensor, "N hw inner"] | None = None


class Network(nn.Module):
    """What training, prediction and export ask of a network, whichever kind it is."""

    reads_clip = True
    """Whether it needs the frozen encoder to answer."""

    def forward(self, seen: Sight) -> Answer:
        raise NotImplementedError

    def tokens(self, blocks: Sequence[Float[Tensor, "N hw width"]]) -> Float[Tensor, "N hw inner"]:
        """Its own features of the patches, whose affinity refines what it learns from; for heads over CLIP's features.

        Raises:
            ModelError: it has none.
        """
        raise ModelError("this network has no features of CLIP's patches; set train.online=false and train.affinity=0.")

    def describe(self) -> dict[str, Any] | None:
        """The architecture as plain values where the card's own sizes don't tell it; else None."""
        return None


class Decoder(Network):
    """Logits on the patch grid from the patch tokens of every block.

    Args:
        encoder_blocks: L, blocks of the frozen encoder.
        encoder_width: channels of its tokens.
        classes: C; background comes on top.

    Raises:
        ConfigError: `decoder.width` is no multiple of `decoder.heads`.
    """

    def __init__(self, encoder_blocks: int, encoder_width: int, classes: int, config: DecoderConfig):
        super().__init__()
        check_width(config)
        self.config = config
        self.projections = nn.ModuleList(nn.Linear(encoder_width, config.width) for _ in range(encoder_blocks))
        self.fuse = nn.Linear(encoder_blocks * config.width, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, nn.GELU()) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.classify = nn.Linear(config.width, classes + 1)

    def forward(self, seen: Sight) -> Answer:
        """`logits` of `tokens`, on the patch grid or the finer one that `decoder.cells` asks for."""
        tokens = self.tokens(seen.blocks)
        return Answer(guided(self.logits(tokens, seen.grid), seen.pixels, self.config), tokens)

    def tokens(self, blocks: Sequence[Float[Tensor, "N hw width"]]) -> Float[Tensor, "N hw inner"]:
        """The head's own features. `blocks` are treated as constants: no gradient ever reaches them.

        Raises:
            ModelError: the encoder has another number of blocks than the head was made for.
        """
        if len(blocks) != len(self.projections):
            raise ModelError(
                f"the decoder got the features of {len(blocks)} blocks; expected {len(self.projections)}. "
                "Use the CLIP that it was trained with."
            )
        parts = [
            F.gelu(project(F.layer_norm(tokens.detach(), tokens.shape[-1:])))
            for project, tokens in zip(self.projections, blocks, strict=True)
        ]
        tokens = self.fuse(torch.cat(parts, dim=-1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def logits(self, tokens: Float[Tensor, "N hw inner"], grid: tuple[int, int]) -> Float[Tensor, "N P h w"]:
        """Logits of the head's features on the patch grid, background first."""
        logits = self.classify(tokens)
        return logits.transpose(1, 2).reshape(logits.shape[0], logits.shape[2], *grid)


def check_width(config: DecoderConfig) -> None:
    """Raises:
    ConfigError: `decoder.width` is no multiple of `decoder.heads`.
    """
    if config.width % config.heads:
        raise ConfigError(
            f"decoder.width is {config.width} and decoder.heads is {config.heads}; expected a width that is a "
            f"multiple of the heads. Try --set decoder.width={-(-config.width // config.heads) * config.heads}."
        )


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int, activation: nn.Module):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation, nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "N n width"]) -> Float[Tensor, "N n width"]:
        count, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm_mlp(x))
