"""Dense patch features: the last block's attention replaced, so that a patch hears those that are like it.

With x the stream that enters the last block, q k v of LN1(x) for all T tokens, s = 1/√d, O Wout + b the block's output
projection and F(y) = y + MLP(LN2(y)):

    SCLIP      F(x + out( (softmax(s q qᵀ) + softmax(s k kᵀ)) v ))         arXiv 2312.01597
    ClearCLIP      out( softmax(s q qᵀ) v )                                arXiv 2407.12442
    NACLIP         out( softmax(s k kᵀ + G) v )                            arXiv 2404.08181
    MaskCLIP       out( v )                                                arXiv 2112.01071
    plain      F(x + out( softmax(s q kᵀ) v ))                             CLIP itself

then LN-post, the projection, and the class token dropped. SCLIP's two softmaxes are added, not halved. G is
exp(−δ² / 2 std²) between patches that are δ apart, not multiplied by s; the class token's row and column are 0.
METHOD.md 5b; tests/golden/README-2.md A. [ref] None costs an encoding: all start from what `FrozenClip.encode` keeps.

Letters: N images, T = 1 + hw tokens, D joint width, d columns of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.clip.block import LastBlock, activate, attend, linear
from vpl.clip.model import Features, FrozenClip
from vpl.clip.towers import ImageTower
from vpl.config import NACLIP_STD
from vpl.errors import ConfigError

_QUERY, _KEY, _VALUE = 0, 1, 2


@dataclass(frozen=True)
class Likeness:
    """How the last block's attention is replaced.

    Attributes:
        pairs: places in q, k, v whose products are softmaxed and added; none: a patch hears itself alone.
        std: of G, in patches; None: no G.
        whole: the residual stream and the MLP are kept.
    """

    pairs: tuple[tuple[int, int], ...]
    std: float | None = None
    whole: bool = False


LIKENESS: Mapping[str, Likeness] = MappingProxyType(
    {
        "sclip": Likeness(((_QUERY, _QUERY), (_KEY, _KEY)), whole=True),
        "clearclip": Likeness(((_QUERY, _QUERY),)),
        "naclip": Likeness(((_KEY, _KEY),), std=NACLIP_STD),
        "maskclip": Likeness(()),
        "plain": Likeness(((_QUERY, _KEY),), whole=True),
    }
)
"""Name -> how. A new one is one line."""


@torch.no_grad()
def dense(
    tower: ImageTower, last: LastBlock, grid: tuple[int, int], likeness: Likeness | str
) -> Float[Tensor, "N hw D"]:
    """Projected patch features (N, hw, D) float32, row-major, not normalised.

    Args:
        tower: the image tower whose last block this is.
        last: the inside of its last block, as `FrozenClip.encode` keeps it.
        grid: (h, w) patches.
        likeness: one of `LIKENESS`, or its name.

    Raises:
        ConfigError: the name is unknown.
    """
    if isinstance(likeness, str):
        if likeness not in LIKENESS:
            raise ConfigError(f"the likeness of patches is {likeness!r}; expected one of {', '.join(LIKENESS)}.")
        likeness = LIKENESS[likeness]
    block = tower.blocks[-1]
    heard, near = last.qkv[:, :, _VALUE], None
    if likeness.std is not None:
        near = F.pad(_nearness(grid, likeness.std).to(last.qkv), (tower.first, 0, tower.first, 0))
    if likeness.pairs:
        heard = attend(last.qkv, pairs=likeness.pairs, near=near)
    y = linear(block.out, block.said(heard)).float()
    if likeness.whole:
        y = last.residual + y
        hidden = block.thought(block.ln2(y).to(last.qkv.dtype), linear)
        y = y + linear(block.down, activate(hidden, block.activation))
    return tower.project(y[:, tower.first :])


def patches_of(clip: FrozenClip, features: Features, name: str) -> Float[Tensor, "N hw D"]:
    """Patch features of an encoding by name: "plain", as CLIP has them, or `dense`; not normalised.

    Raises:
        ConfigError: the encoding came without the inside of the last block, or the name is unknown.
    """
    if name == "plain":
        return features.patches
    if features.last is None:
        raise ConfigError(f"patch features of {name} read the inside of the last block; encode with keep_last=True.")
    return dense(clip.image, features.last, features.grid, name)


def _nearness(grid: tuple[int, int], std: float) -> Float[Tensor, "hw hw"]:
    """G between the patches."""
    down, across = (
        torch.exp(-((torch.arange(side)[:, None] - torch.arange(side)) ** 2) / (2 * std**2)) for side in grid
    )
    return torch.kron(down, across)
