"""Text prototypes, region embeddings, soft labels, and vision prototypes learned under a KL divergence.

METHOD.md 0 and 3.
    t_c = unit(mean over templates of unit(text_encoder(template(word_c))))
    q_n = softmax(x_n Tᵀ / τT) over the classes that the image may show
    p_n = softmax(x_n Vᵀ / τI)
    V  <- unit(V - η (P - Q)ᵀ X),  η = step / (N τI), halved whenever the gradient's norm grows, from V = T
so that the mean over n of KL(q_n ‖ p_n) falls; its gradient with respect to V is (P - Q)ᵀ X / (N τI).

Letters: C foreground classes, B background texts, P = C + B prototypes, N regions, D joint embedding width,
hw patches of one image, K regions of one image.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from vpl.classes import ClassSet
from vpl.config import REGIONS_AT_ONCE, PromptConfig, PrototypeConfig
from vpl.errors import ConfigError, DataError
from vpl.machine import cores, threads
from vpl.progress import Progress, silent

if TYPE_CHECKING:
    from vpl.clip.model import FrozenClip

CHECK_EVERY = 20
"""Steps between two looks at the KL divergence: the stopping rule's window and the spacing of the curve. [ours]"""


@dataclass(frozen=True)
class TextPrototypes:
    """Unit rows in the joint space: one per class, one per background text."""

    foreground: Float[Tensor, "C D"]
    background: Float[Tensor, "B D"]

    @property
    def all(self) -> Float[Tensor, "P D"]:
        """T: the classes first, then the background texts."""
        return torch.cat([self.foreground, self.background])


@dataclass(frozen=True)
class Learned:
    """Vision prototypes and how they were reached.

    Attributes:
        prototypes: V, unit rows, in the order of the start.
        kl_before, kl_after: mean over the regions of KL(q ‖ p) in nats, for the start and for `prototypes`.
        curve: the mean KL at step 0, then every `CHECK_EVERY` steps, last at the last step.
        steps: steps taken.
    """

    prototypes: Float[Tensor, "P D"]
    kl_before: float
    kl_after: float
    curve: tuple[float, ...]
    steps: int


def text_prototypes(clip: FrozenClip, classes: ClassSet, prompts: PromptConfig) -> TextPrototypes:
    """Text prototypes of the class and background words: the unit mean over the templates' unit embeddings. [ref]

    Every text is encoded once, all in one call. Words come from `classes.words`, or from `classes.names` when
    `prompts.class_words` is off; without `prompts.background_words` there are no background rows.
    """
    words = classes.words if prompts.class_words else classes.names
    background = classes.background if prompts.background_words else ()
    texts = [template.replace("{}", word) for word in (*words, *background) for template in prompts.templates]
    embedded = F.normalize(clip.encode_texts(texts), dim=-1)
    rows = F.normalize(embedded.unflatten(0, (-1, len(prompts.templates))).mean(1), dim=-1)
    return TextPrototypes(foreground=rows[: len(words)], background=rows[len(words) :])


def region_embeddings(
    patches: Float[Tensor, "hw D"], regions: Bool[Tensor, "K hw"]
) -> tuple[Float[Tensor, "K D"], Bool[Tensor, " K"]]:
    """Pooled region embeddings: the unit mean of the projected patch tokens in each region. [ours: `pooled`]

    Args:
        patches: projected patch tokens of one image, not normalised.
        regions: which patches belong to each region.

    Returns:
        The K unit rows, and which of them are valid: an empty region has no embedding, its row is zero.
    """
    size = regions.sum(1)
    mean = (regions.to(patches.dtype) @ patches) / size.clamp(min=1)[:, None]
    rows = F.normalize(mean, dim=-1)
    return rows, (size > 0) & (rows.norm(dim=-1) > 0.5)


def soft_labels(
    x: Float[Tensor, "N D"],
    text: Float[Tensor, "P D"],
    allowed: Bool[Tensor, "N P"] | None,
    temperature: float,
    sinkhorn_rounds: int = 0,
    one_hot: float = 1.0,
) -> Float[Tensor, "N P"]:
    """Soft labels q of the regions from the text prototypes; rows sum to 1.

    q = softmax(x · textᵀ / τT) over the allowed classes (the others get exactly 0), then, where asked, InMaP's two
    refinements in its order: Sinkhorn balancing (all classes that are allowed anywhere get equal total weight, ending
    with the rows), and rows whose largest label exceeds `one_hot` become one-hot. [paper/ref]

    Args:
        x: unit region embeddings.
        text: unit text prototypes.
        allowed: the classes that each region's image may show; None: all.
        temperature: τT.
        sinkhorn_rounds: rounds of balancing; 0: off.
        one_hot: threshold on the largest label; 1: off.

    Raises:
        ConfigError: the temperature is not above 0.
        DataError: a region has no allowed class.
    """
    if not temperature > 0:
        raise ConfigError(f"the text temperature is {temperature!r}; expected a number above 0, such as 0.01.")
    logits = x @ text.T / temperature
    if allowed is not None:
        barred = ~allowed.any(1)
        if barred.any():
            number = int(barred.nonzero()[0])
            raise DataError(f"region {number} has no allowed class; give each region at least one tag.")
        logits = logits.masked_fill(~allowed, -math.inf)
    if sinkhorn_rounds:
        logits = _balance(logits, sinkhorn_rounds)
    q = torch.softmax(logits, dim=1)
    if one_hot < 1:
        largest, index = q.max(1)
        q = torch.where((largest > one_hot)[:, None], F.one_hot(index, q.shape[1]).to(q.dtype), q)
    return q


def _balance(logits: Float[Tensor, "N P"], rounds: int) -> Float[Tensor, "N P"]:
    """Logits whose softmax over rows is the Sinkhorn balancing of softmax(logits); in logarithms, so nothing vanishes.

    A class that no row allows keeps its -inf.
    """
    rows = torch.logsumexp(logits, dim=1, keepdim=True)
    for _ in range(rounds):
        columns = torch.logsumexp(logits - rows, dim=0, keepdim=True)
        columns = columns.masked_fill(columns.isneginf(), 0.0)
        rows = torch.logsumexp(logits - columns, dim=1, keepdim=True)
    return logits - columns


def learn(
    x: Float[Tensor, "N D"],
    q: Float[Tensor, "N P"],
    start: Float[Tensor, "P D"],
    config: PrototypeConfig,
    kept: Bool[Tensor, " P"] | None = None,
    progress: Progress = silent,
) -> Learned:
    """Vision prototypes: the unit rows V that lower the mean KL(q ‖ softmax(x Vᵀ / τI)), from V = start. [paper; ref]

    Projected gradient descent as InMaP has it, `config.steps` at most: the step is halved whenever the gradient's norm
    grows. [ref] Every `CHECK_EVERY` steps the KL is looked at: it ends where the last window changed it by less than
    `config.tolerance` of itself. Its first steps may be far too long, so the KL often rises before it falls; should it
    still be above the start's after `CHECK_EVERY` steps or more, the best V that was looked at is returned. [ours]

    More than `REGIONS_AT_ONCE` regions are passed over in parts, on a CPU on as many threads as it has cores, and the
    parts are added up in order: where torch computes on one core, the result does not depend on their number.

    Args:
        x: unit region embeddings, float32 or float64; the result has their dtype and device.
        q: soft labels, rows sum to 1.
        start: unit rows, usually the text prototypes.
        config: τI, step, steps and tolerance.
        kept: rows that stay as they start; None: none.
        progress: shows the steps, of which the last may not be needed.

    Raises:
        DataError: there is no region, or a number that is not finite.
    """
    if not len(x):
        raise DataError("there is no region to learn from; lower prototypes.phi or use more images.")
    for name, rows in (("region embeddings", x), ("soft labels", q), ("start prototypes", start)):
        if not rows.isfinite().all():
            raise DataError(f"the {name} hold numbers that are not finite; expected finite rows. Check the encoder.")
    parts = list(zip(x.split(REGIONS_AT_ONCE), q.split(REGIONS_AT_ONCE), strict=True))
    alone = len(parts) == 1 or x.device.type != "cpu"
    with contextlib.nullcontext() if alone else threads(min(cores(), len(parts))) as pool:
        return _descend(parts, start, config, kept, pool.map if pool else map, progress)


def _descend(
    parts: Sequence[tuple[Tensor, Tensor]],
    start: Float[Tensor, "P D"],
    config: PrototypeConfig,
    kept: Bool[Tensor, " P"] | None,
    spread: Callable[..., Iterable[Tensor]],
    progress: Progress,
) -> Learned:
    """`learn` over parts of the regions and their labels; `spread` is `map`, or that of a pool.

    The gradient is taken as Xᵀ P - Xᵀ Q with Xᵀ Q computed once. In float32 the two products' rounding is what moves V
    where the KL is nearly flat, so the order of the reference's operations is kept.
    """
    temperature = config.image_temperature
    columns, norm = start.T.contiguous(), math.inf

    def weighted(part: tuple[Tensor, Tensor]) -> Tensor:
        x, _ = part
        return x.T @ torch.softmax(x @ columns / temperature, dim=1)

    def divergence() -> float:
        rows = torch.cat(list(spread(lambda part: _kl_rows(part[0], part[1], columns.T, temperature), parts)))
        return max(0.0, rows.double().mean().item())

    target = functools.reduce(torch.add, spread(lambda part: part[0].T @ part[1], parts))
    rate = config.step / (sum(len(x) for x, _ in parts) * temperature)
    best = before = divergence()
    best_columns, curve, step = columns, [before], 0
    for step in progress(range(1, config.steps + 1), config.steps, "learn"):
        gradient = functools.reduce(torch.add, spread(weighted, parts)) - target
        if kept is not None:
            gradient[:, kept] = 0
        last, norm = norm, gradient.norm().item()
        if norm > last:
            rate /= 2
        moved = F.normalize(columns - rate * gradient, dim=0)
        columns = moved if kept is None else torch.where(kept, columns, moved)
        if step % CHECK_EVERY == 0 or step == config.steps:
            now = divergence()
            done = abs(curve[-1] - now) <= config.tolerance * curve[-1]
            curve.append(now)
            if now <= best:
                best, best_columns = now, columns
            if done:
                break
    if curve[-1] <= before or step < CHECK_EVERY:
        best, best_columns = curve[-1], columns
    return Learned(best_columns.T.contiguous(), before, best, tuple(curve), step)


def mean_kl(
    x: Float[Tensor, "N D"], q: Float[Tensor, "N P"], prototypes: Float[Tensor, "P D"], temperature: float
) -> float:
    """The mean over the regions of KL(q ‖ softmax(x prototypesᵀ / temperature)), in nats; 0 · log 0 is 0."""
    return max(0.0, _kl_rows(x, q, prototypes, temperature).double().mean().item())


def _kl_rows(
    x: Float[Tensor, "N D"], q: Float[Tensor, "N P"], prototypes: Float[Tensor, "P D"], temperature: float
) -> Float[Tensor, " N"]:
    log_p = torch.log_softmax(x @ prototypes.T / temperature, dim=1)
    return (torch.xlogy(q, q) - q * log_p).sum(1)
