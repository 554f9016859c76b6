"""Text prototypes, region embeddings, soft labels, and vision prototypes learned under a KL divergence.

METHOD.md 0 and 3.
    t_c = unit(mean over templates of unit(text_encoder(template(word_c))))
    q_n = softmax(x_n Tᵀ / τT) over the classes that the image may show
    p_n = softmax(x_n Vᵀ / τI)
    V  <- unit(V - η (P - Q)ᵀ X),  η = step / (N τI), halved whenever the gradient's norm grows, from V = T
so that the mean over n of KL(q_n ‖ p_n) falls; its gradient with respect to V is (P - Q)ᵀ X / (N τI). From
`MANY_REGIONS` regions on the same descent has momentum, and goes back where the KL grew:
    U  <- unit(V - η (P - Q)ᵀ X),  V <- unit(U + k/(k + 3) (U - U_last)),  k steps since it last went back.

Letters: C foreground classes, B background texts, P = C + B prototypes, N regions, D joint embedding width,
hw patches of one image, K regions of one image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vpl.classes import ClassSet
from vpl.config import MANY_REGIONS, REGIONS_AT_ONCE, PromptConfig, PrototypeConfig
from vpl.errors import ConfigError, DataError

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
        curve: the mean KL at step 0, then every `CHECK_EVERY` steps, last at the last step. From `MANY_REGIONS` regions
            on it is the lowest KL until then.
        steps: steps taken, those that were taken back among them.
    """

    prototypes: Float[Tensor, "P D"]
    kl_before: float
    kl_after: float
    curve: tuple[float, ...]
    steps: int


@dataclass(frozen=True)
class Report:
    """METHOD.md 3.5, over the regions whose class is known. Cosines are in [-1, 1], accuracies in [0, 1].

    Attributes:
        regions: number of regions N.
        kl_text, kl_vision: mean KL(q ‖ p) in nats with the text and with the vision prototypes at τI.
        gap_text, gap_vision: distance between the mean region embedding and the mean prototype, over the P prototypes.
        own_text, own_vision: mean cosine of a region with its own prototype.
        other_text, other_vision: mean cosine of a region with the best prototype that is not its own.
        accuracy_text, accuracy_vision: share of the regions whose nearest prototype is their own.
    """

    regions: int
    kl_text: float
    kl_vision: float
    gap_text: float
    gap_vision: float
    own_text: float
    own_vision: float
    other_text: float
    other_vision: float
    accuracy_text: float
    accuracy_vision: float


def text_prototypes(clip: FrozenClip, classes: ClassSet, prompts: PromptConfig) -> TextPrototypes:
    """Text prototypes of the class and background words: the unit mean over the templates' unit embeddings. [ref]

    Every text is encoded once, all in one call. Words come from `classes.words`, or from `classes.names` when
    `prompts.class_words` is off; without `prompts.background_words` there are no background rows.
    """
    words = classes.words if prompts.class_words else classes.names
    background = classes.background if prompts.background_words else ()
    texts = [template.format(word) for word in (*words, *background) for template in prompts.templates]
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
    x: Float[Tensor, "N D"], q: Float[Tensor, "N P"], start: Float[Tensor, "P D"], config: PrototypeConfig
) -> Learned:
    """Vision prototypes: the unit rows V that lower the mean KL(q ‖ softmax(x Vᵀ / τI)), from V = start. [paper; ref]

    Projected gradient descent, `config.steps` at most: below `MANY_REGIONS` regions as InMaP does it [ref], from there
    on with momentum, which needs a third of the steps or fewer and ends at the same KL or a lower one. [ours] Every
    `CHECK_EVERY` steps the KL is looked at: it ends where the last window changed it by less than `config.tolerance`
    of itself. [ours]

    Args:
        x: unit region embeddings, float32 or float64; the result has their dtype.
        q: soft labels, rows sum to 1.
        start: unit rows, usually the text prototypes.
        config: τI, step, steps and tolerance.

    Raises:
        DataError: there is no region, or a number that is not finite.
    """
    if not len(x):
        raise DataError("there is no region to learn from; lower prototypes.phi or use more images.")
    for name, rows in (("region embeddings", x), ("soft labels", q), ("start prototypes", start)):
        if not rows.isfinite().all():
            raise DataError(f"the {name} hold numbers that are not finite; expected finite rows. Check the encoder.")
    return (_descend if len(x) < MANY_REGIONS else _accelerate)(x, q, start, config)


def _descend(x: Tensor, q: Tensor, start: Tensor, config: PrototypeConfig) -> Learned:
    """The reference's iteration: the step is halved whenever the gradient's norm grows. [ref]

    Its first steps may be far too long, so the KL often rises before it falls; should it still be above the start's
    after `CHECK_EVERY` steps or more, the best V that was looked at is returned. [ours]

    The gradient is taken as Xᵀ P - Xᵀ Q with Xᵀ Q computed once. In float32 the two products' rounding is what moves V
    where the KL is nearly flat, so the order of the reference's operations is kept.
    """
    count, temperature = len(x), config.image_temperature
    inputs, target = x.T, x.T @ q
    rate = config.step / (count * temperature)
    columns, norm = start.T.contiguous(), math.inf
    best = before = mean_kl(x, q, start, temperature)
    best_columns, curve, step = columns, [before], 0
    while step < config.steps:
        gradient = inputs @ torch.softmax(x @ columns / temperature, dim=1) - target
        last, norm = norm, gradient.norm().item()
        if norm > last:
            rate /= 2
        columns = F.normalize(columns - rate * gradient, dim=0)
        step += 1
        if step % CHECK_EVERY == 0 or step == config.steps:
            now = mean_kl(x, q, columns.T, temperature)
            done = abs(curve[-1] - now) <= config.tolerance * curve[-1]
            curve.append(now)
            if now <= best:
                best, best_columns = now, columns
            if done:
                break
    if curve[-1] <= before or step < CHECK_EVERY:
        best, best_columns = curve[-1], columns
    return Learned(best_columns.T.contiguous(), before, best, tuple(curve), step)


def _accelerate(x: Tensor, q: Tensor, start: Tensor, config: PrototypeConfig) -> Learned:
    """The same descent with Nesterov's momentum; where the KL grew it goes back and halves the step. [ours]

    Every step looks at the KL, which the gradient's pass yields as well. A step that is taken back counts as one.
    """
    rate = config.step / (len(x) * config.image_temperature)
    best = here = last = start
    low, age, settled, curve, step = math.inf, 0, False, [], 0
    for step in range(config.steps + 1):
        gradient, now = _slope(x, q, here, config.image_temperature)
        if now <= low:
            low, best, downhill, settled = now, here, gradient, True
        else:
            rate, age, last = rate / 2, 0, best
        if step % CHECK_EVERY == 0 or step == config.steps:
            curve.append(low)
            if step and settled and curve[-2] - low <= config.tolerance * curve[-2]:
                break
            settled = False
        landed = F.normalize(best - rate * downhill, dim=1)
        here = F.normalize(landed + age / (age + 3) * (landed - last), dim=1)
        last, age = landed, age + 1
    return Learned(best.contiguous(), curve[0], low, tuple(curve), step)


def _slope(
    x: Float[Tensor, "N D"], q: Float[Tensor, "N P"], prototypes: Float[Tensor, "P D"], temperature: float
) -> tuple[Float[Tensor, "P D"], float]:
    """(P - Q)ᵀ X and the mean KL in one pass, `REGIONS_AT_ONCE` rows at a time so that they stay in the cache."""
    scaled, gradient = prototypes / temperature, torch.zeros_like(prototypes)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows, labels in zip(x.split(REGIONS_AT_ONCE), q.split(REGIONS_AT_ONCE), strict=True):
        log_p = torch.log_softmax(F.linear(rows, scaled), dim=1)
        total += (torch.xlogy(labels, labels) - labels * log_p).sum().double()
        gradient.addmm_((log_p.exp_() - labels).T, rows)
    return gradient, max(0.0, total.item() / len(x))


def mean_kl(
    x: Float[Tensor, "N D"], q: Float[Tensor, "N P"], prototypes: Float[Tensor, "P D"], temperature: float
) -> float:
    """The mean over the regions of KL(q ‖ softmax(x prototypesᵀ / temperature)), in nats; 0 · log 0 is 0."""
    log_p = torch.log_softmax(x @ prototypes.T / temperature, dim=1)
    return max(0.0, (torch.xlogy(q, q) - q * log_p).sum(1).double().mean().item())


def report(
    x: Float[Tensor, "N D"],
    q: Float[Tensor, "N P"],
    own: Int[Tensor, " N"],
    text: Float[Tensor, "P D"],
    vision: Float[Tensor, "P D"],
    temperature: float,
) -> Report:
    """How far the regions lie from the text and from the vision prototypes (METHOD.md 3.5).

    Args:
        x: unit region embeddings.
        q: their soft labels.
        own: each region's class, from the tag that made it.
        text, vision: unit prototypes.
        temperature: τI, for both KL.

    Raises:
        DataError: there is no region.
    """
    if not len(x):
        raise DataError("there is no region to report on; lower prototypes.phi or use more images.")
    (own_t, other_t, right_t), (own_v, other_v, right_v) = (_nearness(x, own, rows) for rows in (text, vision))
    center = x.mean(0)
    return Report(
        regions=len(x),
        kl_text=mean_kl(x, q, text, temperature),
        kl_vision=mean_kl(x, q, vision, temperature),
        gap_text=(center - text.mean(0)).norm().item(),
        gap_vision=(center - vision.mean(0)).norm().item(),
        own_text=own_t,
        own_vision=own_v,
        other_text=other_t,
        other_vision=other_v,
        accuracy_text=right_t,
        accuracy_vision=right_v,
    )


def _nearness(x: Tensor, own: Tensor, prototypes: Tensor) -> tuple[float, float, float]:
    """Mean cosine with the own prototype, with the best other one, and the share where the own one is nearest."""
    cosine = x @ prototypes.T
    mine = cosine.gather(1, own[:, None])
    others = cosine.scatter(1, own[:, None], -math.inf).amax(1)
    return mine.mean().item(), others.mean().item(), (mine[:, 0] > others).double().mean().item()
