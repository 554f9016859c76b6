"""CLIP's contrastive loss for pre-training, on the class token and on patch tokens. Used by `pretrain` alone.

    L(S, Y) = ½ [ CE( softmax over texts of S, Y / row sums ) + CE( softmax over images of S, Y / column sums ) ]
    S = exp(logit_scale) · e · tᵀ

after CLIP (arXiv 2103.00020), where Y marks every text that is right for an image, so that equal captions are never
negatives. e is the class token, and, because METHOD.md 1 pools patch tokens, also unit( mean over patch tokens of
LN-post · projection ), with one shared projection. Ours beyond CLIP: tokens are dropped at random while training (as
FLIP, arXiv 2212.00794, does), images stand alone or four in a mosaic, where the patch mean of a cell meets its own
cell's caption, and a word of the caption may be met by the few patches that match it best (logsumexp).

Letters: h w patch grid · D joint embedding width; B images, M texts, n patch tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vpl.clip.facts import CLIP_MEAN, CLIP_STD

POOLING_TEMPERATURE = 0.1
"""Of the logsumexp over patches, in units of cosine. Ours."""


def augment(
    images: Float[Tensor, "B 3 S S"], height: int, width: int, rng: torch.Generator
) -> Float[Tensor, "B 3 {height} {width}"]:
    """A random window of every image (shift, scale, stretch), resampled to (height, width), with changed colours.

    RGB in [0, 1] in, normalised by CLIP's mean and standard deviation out.
    """
    n = len(images)
    u = torch.rand(n, 12, generator=rng).to(images.device)
    zoom = 0.62 + 0.43 * u[:, 0]
    stretch = (0.3 * (u[:, 1] - 0.5)).exp()
    scale = torch.stack([zoom * stretch, zoom / stretch], 1).clamp(max=1.1)
    shift = (1 - scale).abs() * (2 * u[:, 2:4] - 1)
    theta = torch.zeros(n, 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[:, 0], scale[:, 1], shift
    grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
    x = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (0.4 + 1.0 * u[:, 4]).view(n, 1, 1, 1)
    centre = x.mean((1, 2, 3), keepdim=True)
    x = centre + (x - centre) * (0.6 + 0.8 * u[:, 5]).view(n, 1, 1, 1)
    x = x * (0.65 + 0.7 * u[:, 6]).view(n, 1, 1, 1) * (0.85 + 0.3 * u[:, 7:10]).view(n, 3, 1, 1)
    return normalise(x.clamp(0, 1))


def normalise(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """RGB in [0, 1] to CLIP's mean and standard deviation."""
    mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def mosaic_spans(grid: int, row: int, column: int) -> list[tuple[slice, slice]]:
    """The four cells (rows, columns) of a patch grid cut before `row` and `column`, in reading order."""
    rows, columns = (slice(0, row), slice(row, grid)), (slice(0, column), slice(column, grid))
    return [(r, c) for r in rows for c in columns]


def mosaic(
    images: Float[Tensor, "B 3 S S"], grid: int, spans: list[tuple[slice, slice]], patch: int, rng: torch.Generator
) -> tuple[Float[Tensor, "part 3 side side"], Int[Tensor, "grid grid"]]:
    """Augmented images four by four: the first quarter of the batch fills the first cell, and so on.

    Returns the mosaics and the number of each patch's cell.
    """
    part = len(images) // len(spans)
    pixels = images.new_empty(part, 3, patch * grid, patch * grid)
    cells = torch.empty(grid, grid, dtype=torch.long)
    for number, (r, c) in enumerate(spans):
        rows, columns = (slice(patch * one.start, patch * one.stop) for one in (r, c))
        some = images[number * part : (number + 1) * part]
        pixels[:, :, rows, columns] = augment(some, rows.stop - rows.start, columns.stop - columns.start, rng)
        cells[r, c] = number
    return pixels, cells


def encode_images(
    model: Any, pixels: Float[Tensor, "B 3 H W"], kept: Int[Tensor, " n"] | None = None
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B n D"]]:
    """Class token and patch tokens of a transformers CLIPModel, through LN-post and the projection, not unit.

    kept: numbers of the patches to encode, row by row; None: all. Position embeddings are interpolated bilinearly.
    """
    tower = model.vision_model
    weight = tower.embeddings.patch_embedding.weight
    x = tower.embeddings.patch_embedding(pixels.to(weight.dtype))
    h, w = x.shape[-2:]
    places = tower.embeddings.position_embedding.weight
    side = math.isqrt(len(places) - 1)
    table = places[1:].T.reshape(1, -1, side, side)
    if (h, w) != (side, side):
        table = F.interpolate(table.float(), (h, w), mode="bilinear", align_corners=False).to(weight.dtype)
    x = (x + table).flatten(2).transpose(1, 2)
    if kept is not None:
        x = x[:, kept]
    first = (tower.embeddings.class_embedding + places[0]).expand(len(x), 1, -1)
    x = tower.pre_layrnorm(torch.cat([first, x], 1))
    x = tower.encoder(inputs_embeds=x).last_hidden_state
    x = model.visual_projection(tower.post_layernorm(x))
    return x[:, 0], x[:, 1:]


def encode_texts(model: Any, ids: Int[Tensor, "M n"]) -> Float[Tensor, "M D"]:
    """Unit text embeddings, float32."""
    return F.normalize(model.text_projection(model.text_model(input_ids=ids).pooler_output).float(), dim=-1)


def contrast(scores: Float[Tensor, "B M"], right: Float[Tensor, "B M"]) -> Float[Tensor, ""]:
    """CLIP's symmetric loss where several texts may be right for an image and several images for a text.

    scores: logits. right: 1 where the text is right for the image, else 0; rows or columns without any are left out.
    """
    parts = []
    for s, y in ((scores, right), (scores.T, right.T)):
        n = y.sum(1)
        loss = -(s.log_softmax(1) * y).sum(1) / n.clamp(min=1)
        parts.append(loss.sum() / (n > 0).sum().clamp(min=1))
    return (parts[0] + parts[1]) / 2


def best_patches(patches: Float[Tensor, "B n D"], texts: Float[Tensor, "M D"]) -> Float[Tensor, "B M"]:
    """Soft maximum over patches of the cosine of patch and text (unit rows): τ logsumexp( cosine / τ )."""
    near = F.normalize(patches.float(), dim=-1) @ texts.T
    return (near / POOLING_TEMPERATURE).logsumexp(1) * POOLING_TEMPERATURE
