"""Seeds: one class-specific GradCAM per tag, all tags of a batch of images in one closed-form backward. METHOD.md 1.

    e = unit( mean over patches of patches_i )      s = softmax( scale · e · Pᵀ ), P = [P_tags ; P_background]
    α_k = mean over patches of ∂s_k/∂A              cam_k = minmax( ReLU( A · α_k ) )

A is the LayerNorm-1 output of the last block. The backward is written out instead of recorded: α_k is a sum over
tokens, and most of a gradient's cost goes into what that sum forgets. With cotangents written dX, patch tokens i, all
tokens j, per head, probabilities p, output O, D_i = dO_i · O_i and scale c = 1/√d:

    Σ_i dV_i = Σ_i (1 − p_i,class) dO_i                                rows of p sum to one
    Σ_i dK_i = −dK_class = −c Σ_i p_i,class (dO_i · v_class − D_i) q_i   rows of the softmax's Jacobian sum to zero
    Σ_i dQ_i = c Σ_j ( v_j · (pᵀ dO)_j − (pᵀ D)_j ) k_j

so a tag costs one product (T, hw)·(hw, d + 1) per head, and no T × T matrix of its own. Every patch token has the same
cotangent before LN-post, so of the MLP's two products per tag one is shared by all tags: with x̂ LN-post's and x̂₂ LN2's
normalised input (1/σ and 1/σ₂ their scales), H the MLP before its activation, γ the LayerNorms' weights,

    dx_i = (u − c_i x̂_i) / σ_i, u the centred γ-post · d(LN-post), c_i = mean(u · x̂_i)
    dH_i = act′(H_i) (u Wdown − c_i x̂_i Wdown) / σ_i                   x̂ Wdown: once per image
    dO_i = dx_i Wout + ( dH_i Wup γ₂ (centred) Wout − m_i x̂₂_i Wout ) / σ₂_i    Wup γ₂ Wout: once per model
    m_i = mean over columns of (dH_i Wup γ₂) x̂₂_i = dH_i · (H_i − H at x̂₂ = 0) / width

SigLIP has no class token: T = hw, and a patch reaches the joint space through the pooling head, heard alone
(block.Pool), which is no matrix; then α comes from autograd.

Letters: N images, K tags of an image, h w patch grid, D joint width, P the rows of an image's prototypes, T = 1 + hw.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.clip.block import MLP_ROWS_AT_ONCE, LastBlock, plainly
from vpl.clip.block import slope as slope_of
from vpl.clip.model import Features, FrozenClip
from vpl.errors import VplError
from vpl.machine import shared
from vpl.method.refine import minmax

CPU_CELLS_AT_ONCE = 2**22
"""Cells of the MLP's hidden layer worked on at a time on the CPU; on a GPU many images go together."""
GPU_CELLS_AT_ONCE = 2**28
CPU_SCORES_AT_ONCE = 2**21
"""Attention scores of the last block held at a time."""
GPU_SCORES_AT_ONCE = 2**28
_SLOPES_AT_ONCE = 8


@dataclass(frozen=True)
class SeedMaps:
    """Seeds of N images, in their order.

    Attributes:
        cam: per image (K, h, w) float32, each map from 0 to 1 (all 0 where nothing speaks for the tag).
        scores: per image (P,) float32, softmax over its tags and the background.
    """

    cam: list[Float[Tensor, "_ h w"]]
    scores: list[Float[Tensor, " _"]]


def scores(features: Features, prototypes: Sequence[Float[Tensor, "_ D"]], scale: float) -> list[Float[Tensor, " _"]]:
    """Per image softmax(scale · e · Pᵀ), float32: METHOD.md 1, steps 2 and 3.

    Raises:
        VplError: there is not one set of prototypes per image.
    """
    _check(features, prototypes)
    e = F.normalize(features.patches.mean(1), dim=1)
    return [torch.softmax(scale * (rows.to(e) @ one), 0) for one, rows in zip(e, prototypes, strict=True)]


@torch.no_grad()
def seeds(
    clip: FrozenClip,
    features: Features,
    prototypes: Sequence[Float[Tensor, "_ D"]],
    counts: Sequence[int],
    scale: float,
) -> SeedMaps:
    """Seed maps of every tag of N images, in one batched backward through the last block.

    Args:
        clip: the model that made the features.
        features: of N images, with `last`.
        prototypes: per image its rows, unit length: first those of its tags, then the background's.
        counts: per image its number of tags K.
        scale: factor on the cosines: exp(logit_scale) for text prototypes, 1/τI for vision prototypes.

    Raises:
        VplError: counts and prototypes do not fit the images, or the features were made without their last block.
    """
    _check(features, prototypes)
    if features.last is None:
        raise VplError("the features lack their last block; encode the images with keep_last=True.")
    if len(counts) != len(prototypes) or any(k < 0 or k > len(p) for k, p in zip(counts, prototypes, strict=True)):
        raise VplError(
            f"tag counts are {list(counts)} for prototypes of {[len(p) for p in prototypes]} rows; "
            "expected one count per image, at most its rows."
        )
    (h, w), first = features.grid, clip.image.first
    mean = features.patches.mean(1)
    probabilities = scores(features, prototypes, scale)
    cams: list[Tensor] = [mean.new_zeros((0, h, w)) for _ in counts]
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for n, (k, rows) in enumerate(zip(counts, prototypes, strict=True)):
        if k:
            groups[k, len(rows)].append(n)
    inner = features.last.hidden.shape[-1]
    for (k, _), images in groups.items():
        at_once = CPU_CELLS_AT_ONCE if mean.device.type == "cpu" else GPU_CELLS_AT_ONCE
        step = max(1, at_once // (h * w * inner))
        for start in range(0, len(images), step):
            these = images[start : start + step]
            part = (
                slice(these[0], these[-1] + 1) if these[-1] - these[0] == len(these) - 1 else these
            )  # a view if it can
            p = torch.stack([prototypes[n] for n in these]).to(mean)
            s = torch.stack([probabilities[n] for n in these])
            d_patch = _score_gradients(mean[part], p, s, k, scale) / (h * w)
            last = LastBlock(*(getattr(features.last, name)[part] for name in LastBlock.__dataclass_fields__))
            alpha = _alpha(clip, last, d_patch, features.grid)
            cam = torch.relu(alpha @ last.a[:, first:].transpose(1, 2)).unflatten(2, (h, w))
            for n, one in zip(these, cam, strict=True):
                cams[n] = minmax(minmax(one))  # the reference does it twice
    return SeedMaps(cams, probabilities)


class Slopes:
    """α of each prototype of one image, made once: after that seeds under any scale are a few small products.

    The backward is linear in its cotangent, so with β_p = α of (P_p − e (e · P_p)) / |mean patch|

        α_k = scale · s_k ( β_k − Σ_p s_p β_p )

    which equals `seeds` but for float32's rounding of a difference of near values. For one who looks at a photograph
    while a temperature moves; a run has one temperature, and `seeds` costs it less.

    Args:
        clip: the model that made the features.
        features: of one image, with `last`.
        prototypes: its rows, unit length: first those of its tags, then the background's.

    Raises:
        VplError: the features are of several images, or were made without their last block.
    """

    def __init__(self, clip: FrozenClip, features: Features, prototypes: Float[Tensor, "P D"]):
        _check(features, [prototypes])
        if features.last is None:
            raise VplError("the features lack their last block; encode the images with keep_last=True.")
        self._features, self._prototypes = features, prototypes
        h, w = features.grid
        mean = features.patches.mean(1).double()
        norm = mean.norm(dim=1, keepdim=True).clamp_min(1e-12)
        e, rows = mean / norm, prototypes.to(features.patches).double()
        cotangents = ((rows - (rows @ e.T) * e) / norm / (h * w)).float()
        parts = cotangents.split(_SLOPES_AT_ONCE)
        self._beta = torch.cat([_alpha(clip, features.last, one[None], features.grid)[0] for one in parts])
        self._own = features.last.a[0, clip.image.first :]

    def seeds(self, count: int, scale: float) -> Float[Tensor, "K h w"]:
        """Maps of the first `count` rows, as `seeds` makes them."""
        s = scores(self._features, [self._prototypes], scale)[0].double()
        beta = self._beta.double()
        alpha = (scale * s[:count, None] * (beta[:count] - s @ beta)).to(self._features.patches)
        cam = torch.relu(alpha @ self._own.T.to(alpha)).unflatten(1, self._features.grid)
        return minmax(minmax(cam))


def _check(features: Features, prototypes: Sequence[Tensor]) -> None:
    count, _, dim = features.patches.shape
    if len(prototypes) != count or any(p.ndim != 2 or p.shape[1] != dim for p in prototypes):
        raise VplError(
            f"prototypes have shapes {[tuple(p.shape) for p in prototypes]}; expected one (P, {dim}) for each of "
            f"{count} images. Use the CLIP that made them."
        )


def _score_gradients(mean: Tensor, prototypes: Tensor, s: Tensor, k: int, scale: float) -> Tensor:
    """∂s_k/∂(mean patch token) for the first k rows: (N, K, D) from mean (N, D), prototypes (N, P, D), s (N, P).

    In float64, because prototypes of related words are nearly parallel: of each, only its small difference from their
    expectation counts, and float32's rounding of that difference reached the maps 5 to 10 times enlarged.
    """
    exact = torch.float32 if mean.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
    mean, prototypes, s = mean.to(exact), prototypes.to(exact), s.to(exact)
    norm = mean.norm(dim=1)[:, None, None].clamp_min(1e-12)
    e = mean[:, None] / norm
    expected = s[:, None] @ prototypes
    d_unit = scale * s[:, :k, None] * (prototypes[:, :k] - expected)
    return ((d_unit - e * (d_unit * e).sum(2, keepdim=True)) / norm).float()


_FOLDED: weakref.WeakKeyDictionary[FrozenClip, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def _folded(clip: FrozenClip) -> tuple[Tensor, Tensor]:
    """Per model: Wup γ₂ (centred) Wout (4·width, width) in the encoder's precision, and H at x̂₂ = 0 (4·width,)."""
    block = clip.image.blocks[-1]
    known = _FOLDED.get(clip)
    if known is None or known[0].device != clip.device or known[0].dtype != clip.dtype:
        up = block.up.weight.float()
        scaled = up * block.ln2.weight
        centred = scaled - scaled.mean(1, keepdim=True)
        known = ((centred @ block.out.weight.float()).to(clip.dtype), up @ block.ln2.bias + block.up.bias.float())
        _FOLDED[clip] = known
    return known


def _alpha(
    clip: FrozenClip, last: LastBlock, d_patch: Float[Tensor, "N K D"], grid: tuple[int, int]
) -> Float[Tensor, "N K width"]:
    """α, from the cotangent that all patches in the joint space share: in closed form where that holds."""
    if clip.image.plain:
        return _weights(clip, last, d_patch @ clip.image.projection.T)
    return _recorded(clip, last, d_patch, grid)


def _weights(clip: FrozenClip, last: LastBlock, d_token: Float[Tensor, "N K width"]) -> Float[Tensor, "N K width"]:
    """α: mean over patch tokens of the gradient at A, given the one cotangent that all LN-post outputs share."""
    d_out = _through_mlp(clip, last, d_token)
    return _through_attention(clip, last, d_out)


def _recorded(
    clip: FrozenClip, last: LastBlock, d_patch: Float[Tensor, "N K D"], grid: tuple[int, int]
) -> Float[Tensor, "N K width"]:
    """`_weights` by autograd, for an encoder whose patches go through a head that is no matrix, or whose block is not a
    CLIP's own: a backward for each tag through head and block, whose graph is recorded once."""
    first = clip.image.first
    with torch.enable_grad():
        a = last.a.detach().requires_grad_()
        output = plainly(clip.image.blocks[-1], last.residual, a, clip.image.turn(grid))
        patches = clip.image.project(output[:, first:].float())
        given = [torch.autograd.grad(patches, a, one[:, None].expand_as(patches), retain_graph=True)[0]
                 for one in d_patch.unbind(1)]  # fmt: skip
    return torch.stack([one[:, first:].mean(1) for one in given], 1)


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """LayerNorm's x̂ and 1/σ."""
    normalised, _, inverse = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
    return normalised, inverse


def _through_mlp(clip: FrozenClip, last: LastBlock, d_token: Tensor) -> Float[Tensor, "N K hw width"]:
    """Cotangent of the attention's output O at the patch tokens (at the class token it is 0)."""
    block, dtype = clip.image.blocks[-1], clip.dtype
    folded, at_zero = _folded(clip)
    down, out = block.down.weight, block.out.weight
    output, middle, hidden = (one[:, 1:] for one in (last.output, last.middle, last.hidden))
    u = d_token * clip.image.ln_post.weight
    u = u - u.mean(2, keepdim=True)
    u_out, u_hidden, at_zero = u @ out.float(), u.to(dtype) @ down, at_zero.to(dtype)  # N K width, N K 4·width
    d_out = u.new_empty((*d_token.shape[:2], *output.shape[1:]))

    def think(rows: slice) -> None:
        x, inverse = _normalised(output[:, rows], clip.image.ln_post.eps)
        x2, inverse2 = _normalised(middle[:, rows], block.ln2.eps)
        c = u @ x.transpose(1, 2) / clip.width  # N K rows
        slope = slope_of(hidden[:, rows], clip.image.activation).mul_(inverse.to(dtype))
        common = (x.to(dtype) @ down).mul_(slope)
        # m = mean over columns of (dH Wup γ₂) x̂₂, without a pass over dH
        reach = hidden[:, rows] - at_zero
        of_common = (common * reach).sum(2, dtype=torch.float32)[:, None]
        m = (reach.mul_(slope) @ u_hidden.transpose(1, 2)).float().transpose(1, 2) - c * of_common
        m = m / clip.width
        x_out, x2_out = (x.to(dtype) @ out).float(), (x2.to(dtype) @ out).mul_(inverse2.to(dtype)).float()
        own = u_out[:, :, None] - c[..., None] * x_out[:, None]
        own *= inverse[:, None]
        own -= m[..., None] * x2_out[:, None]
        for k in range(d_token.shape[1]):
            d_hidden = torch.mul(slope, u_hidden[:, k, None], out=reach)
            d_hidden.addcmul_(common, c[:, k, :, None].to(dtype), value=-1)
            d_out[:, k, rows] = own[:, k].addcmul_((d_hidden @ folded).float(), inverse2)

    count = output.shape[1]
    step = MLP_ROWS_AT_ONCE if d_out.device.type == "cpu" else count
    shared(think, [slice(row, row + step) for row in range(0, count, step)])
    return d_out


def _through_attention(clip: FrozenClip, last: LastBlock, d_out: Tensor) -> Float[Tensor, "N K width"]:
    """Mean over patch tokens of the cotangent at A, from that of O (N, K, hw, width)."""
    block = clip.image.blocks[-1]
    count, tags, patches, _ = d_out.shape
    tokens, _, heads, depth = last.qkv.shape[1:]
    scale = depth**-0.5
    attended = last.attended[:, 1:].unflatten(2, (heads, depth))
    parts = d_out.new_empty((count, tags, 3, heads, depth))
    at_once = CPU_SCORES_AT_ONCE if d_out.device.type == "cpu" else GPU_SCORES_AT_ONCE
    step = max(1, at_once // (count * tokens * tokens))

    def heard(own: slice) -> None:
        qkv = last.qkv[:, :, :, own].permute(2, 0, 3, 1, 4)  # in the encoder's precision: 3 N heads T d
        asking, asked, value = qkv[0, :, :, 1:], qkv[1], qkv[2].float()
        d = d_out.unflatten(3, (heads, depth))[..., own, :].permute(0, 3, 2, 1, 4)  # N heads hw K d
        spread = d.new_empty((*d.shape[:4], depth + 1))
        spread[..., :depth] = d
        d = spread[..., :depth]
        spread[..., depth] = (d * attended[:, :, own].float().transpose(1, 2)[:, :, :, None]).sum(4)
        p = torch.softmax((asking * scale) @ asked.transpose(2, 3), 3)  # N heads hw T
        received = (spread.flatten(3).to(p.dtype).transpose(2, 3) @ p).float().transpose(2, 3)
        received = received.unflatten(3, (tags, depth + 1))  # N heads T K d+1
        row_sum = (received[..., :depth] * value[:, :, :, None]).sum(4) - received[..., depth]  # N heads T K
        to_class, query, key = p[..., :1].float(), asking.float(), asked.float()
        class_share = to_class * ((d @ value[:, :, :1, :, None]).squeeze(4) - spread[..., depth])
        parts[:, :, 0, own] = (scale * row_sum.transpose(2, 3) @ key).transpose(1, 2)
        parts[:, :, 1, own] = (-scale * class_share.transpose(2, 3) @ query).transpose(1, 2)
        parts[:, :, 2, own] = ((1 - to_class)[..., None] * d).sum(2).transpose(1, 2)

    shared(heard, [slice(first, first + step) for first in range(0, heads, step)])
    return parts.flatten(2) @ block.qkv.weight.float() / patches


def seed_maps(
    clip: FrozenClip,
    features: Features,
    tags: Sequence[tuple[int, ...]],
    table: Float[Tensor, "P D"],
    classes: int,
    scale: float,
    kind: str = "gradcam",
) -> list[Float[Tensor, "_ h w"]]:
    """One class-specific map per tag of each image, in [0, 1] (METHOD.md 1).

    Args:
        tags: class numbers of each image.
        table: prototypes, the `classes` foreground rows first, then the background rows. Without background rows the
            classes that the image does not carry stand in for them: a softmax over one tag alone has no gradient.
        scale: what multiplies the cosines: CLIP's own for text prototypes, 1/τI for vision prototypes.
        kind: "gradcam", or the baseline "similarity": each patch's cosine with the tag's prototype, min-max normalised.
    """
    if kind == "similarity":
        patches = F.normalize(features.patches, dim=2)
        maps = [table[list(own)].to(one) @ one.T for one, own in zip(patches, tags, strict=True)]
        return [minmax(one.unflatten(1, features.grid)) for one in maps]
    rows = [table[rows_of(own, classes, len(table))] for own in tags]
    return seeds(clip, features, rows, [len(own) for own in tags], scale).cam


def rows_of(tags: Sequence[int], classes: int, rows: int) -> list[int]:
    """Rows of a table that speak of a photograph: its tags', then the background's or what stands in for them."""
    return [*tags, *(range(classes, rows) if rows > classes else (one for one in range(classes) if one not in tags))]
