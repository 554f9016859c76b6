"""What a CLIP knows of held-out captions without having been trained for it: tags, retrieval, the modality gap.

    AP of a word = mean over the images it is right for of the precision at their rank, ranked by e · t
    gap = ‖ mean of e − mean of t ‖, e and t unit

Used by `pretrain` to follow a training and by `card` to describe its result. No mask is read.

Letters: B images, M texts, n tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from vpl.method.gap import modality_gap
from vpl.pocket.captions import Chunk
from vpl.pocket.contrast import encode_images, encode_texts, normalise

PROMPT = "a photo of a {}."


@dataclass(frozen=True)
class ZeroShot:
    """Figures on N held-out images.

    Attributes:
        ap: average precision of each word by the patch mean, as METHOD.md 1 scores tags; empty without words.
        class_token_ap: the same by the class token.
        retrieval: share of images whose nearest caption is right. text_retrieval: of captions whose nearest image is.
        gap: distance between the mean image embedding and the mean caption embedding.
        images: N. texts: number of distinct captions.
    """

    ap: dict[str, float]
    class_token_ap: dict[str, float]
    retrieval: float
    text_retrieval: float
    gap: float
    images: int
    texts: int


def token_ids(tokenizer: Any, texts: Sequence[str], context: int) -> Int[Tensor, "M n"]:
    """Rows of token ids, padded to the longest."""
    return torch.tensor(tokenizer(list(texts), padding=True, truncation=True, max_length=context)["input_ids"])


def marked(rows: Sequence[Sequence[str]]) -> tuple[list[str], Float[Tensor, "B M"]]:
    """Every distinct text of B images once, sorted, and a 1 where it is right for an image."""
    known = {text: i for i, text in enumerate(sorted({text for row in rows for text in row}))}
    right = torch.zeros(len(rows), len(known))
    for i, row in enumerate(rows):
        right[i, [known[text] for text in row]] = 1.0
    return list(known), right


@torch.no_grad()
def zero_shot(model: Any, tokenizer: Any, held: Chunk, size: int, batch: int = 64) -> ZeroShot:
    """Measure a transformers CLIPModel on held-out captioned images, resized to `size` pixels a side."""
    device, context = model.logit_scale.device, model.config.text_config.max_position_embeddings

    def encoded(texts: list[str]) -> Tensor:
        ids = token_ids(tokenizer, texts, context).to(device)
        return torch.cat([encode_texts(model, some) for some in ids.split(256)])

    images = torch.from_numpy(held.images).permute(0, 3, 1, 2).float() / 255
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    parts = [encode_images(model, normalise(some).to(device)) for some in images.split(batch)]
    e = F.normalize(torch.cat([patches.float().mean(1) for _, patches in parts]), dim=-1)
    first = F.normalize(torch.cat([one.float() for one, _ in parts]), dim=-1)
    captions, right = marked([(caption,) for caption in held.captions])
    t = encoded(captions)
    scores, right = e @ t.T, right.to(device)
    ap: dict[str, float] = {}
    class_token_ap: dict[str, float] = {}
    words, word_right = marked(held.words)
    if words:
        w = encoded([PROMPT.format(word) for word in words])
        truth = dict(zip(words, word_right.T.numpy() > 0, strict=True))
        for found, columns in ((ap, (e @ w.T).T), (class_token_ap, (first @ w.T).T)):
            for (word, y), column in zip(truth.items(), columns.cpu().numpy(), strict=True):
                found[word] = average_precision(column, y)
    return ZeroShot(
        ap=ap,
        class_token_ap=class_token_ap,
        retrieval=float(right.gather(1, scores.argmax(1, keepdim=True)).mean()),
        text_retrieval=float(right.T.gather(1, scores.T.argmax(1, keepdim=True)).mean()),
        gap=modality_gap(e.cpu().numpy(), t.cpu().numpy()),
        images=len(images),
        texts=len(captions),
    )


def average_precision(scores: Float[ndarray, " N"], right: Bool[ndarray, " N"]) -> float:
    """Mean over the right items of the precision at their rank (ties in the given order); NaN where none is right."""
    ranks = np.flatnonzero(right[np.argsort(-scores, kind="stable")]) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean()) if len(ranks) else math.nan


def mean_of(figures: dict[str, float]) -> float:
    """Mean, NaN left out; NaN where there is nothing."""
    known = [figure for figure in figures.values() if not math.isnan(figure)]
    return sum(known) / len(known) if known else math.nan
