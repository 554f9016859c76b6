"""Training of the segmentation network on pseudo-masks, as a generator of step records (METHOD.md 5).

    θ ← SGD( CE + λ · RSC + … ),   learning rate of step t = lr · (1 − t / steps)^power

Every random choice is a function of (seed, step, place in the batch) alone, and sums over a batch are divided by the
whole batch's counts. So the numbers depend neither on how many processes share a batch, nor on a kill and a second
start: a checkpoint needs the weights, the optimiser's state and the step. Augmentation moves image and pseudo-mask
together (crops); truth masks are never opened here. Letters: N images of a batch · C foreground classes · P prototypes
· D joint width · h w patch grid.

Several processes: `accelerate launch --multi_gpu -m vpl train RUN`, or `torchrun --nproc_per_node 2 -m vpl train RUN`
on CPUs. Each computes its share of every batch; the first one writes. All of them need to see the run folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config, TrainConfig
from vpl.edges import storage
from vpl.errors import ConfigError, DataError, RunError
from vpl.network import affinity, card, checkpoint, losses, online, tcl
from vpl.network.crops import Crop, Item, Reader, crop_side, item_number, load_crop
from vpl.network.curve import CurveFile, StepRecord
from vpl.network.grids import to_pixels
from vpl.network.head import Network, Sight
from vpl.network.student import is_student
from vpl.network.team import Team

TERMS = ("cross_entropy", "pull", "complement", "negatives", "affinity", "texts", "area")
"""Of the loss, as `StepRecord` has them."""
ADAMW_SECOND_BETA = 0.999
MOST_MASKED_NEGATIVES = 2
"""With `masked` regions every absent class costs a pass of CLIP: only the largest masks of an image are taken."""


@dataclass(frozen=True)
class Course:
    """What stays the same over all steps of a training.

    Attributes:
        prototypes: V, unit rows, the C foreground classes first; None only where nothing is contrasted.
    """

    items: tuple[Item, ...]
    clip: FrozenClip
    classes: ClassSet
    prototypes: Float[Tensor, "P D"] | None
    config: Config
    network: Network
    optimizer: torch.optim.Optimizer
    team: Team

    def batch(self, step: int) -> list[Item]:
        """The items of a step's whole batch, by their slots."""
        size, seed = self.config.train.batch, self.config.seed
        return [self.items[item_number(seed, step * size + slot, len(self.items))] for slot in range(size)]

    @property
    def contrasts(self) -> bool:
        """Whether any term reads the masks of classes on the patch grid."""
        rsc = self.config.rsc
        return (rsc.weight > 0 and (rsc.pull or rsc.suppress)) or rsc.texts > 0 or rsc.area > 0

    def refines(self, step: int) -> bool:
        """Whether the network's own affinities label pixels in this step."""
        train = self.config.train
        return train.online and step >= train.online_from * train.steps

    @property
    def table(self) -> Float[Tensor, "P D"]:
        """The prototypes, where the encoder is.

        Raises:
            ConfigError: there are none.
        """
        if self.prototypes is None:
            raise ConfigError("this training needs prototypes and there are none; make them with vpl prototypes.")
        return self.prototypes.to(self.clip.device)


def check(config: Config) -> None:
    """Settings of a training that don't fit together.

    Raises:
        ConfigError: what they are, and what to do.
    """
    if not config.train.steps:
        raise ConfigError("train.steps is 0; expected at least 1 to train a network.")
    if config.train.scale_low > config.train.scale_high:
        raise ConfigError(
            f"train.scale_low is {config.train.scale_low} and train.scale_high {config.train.scale_high}; "
            "expected low to be at most high."
        )
    if config.train.online and is_student(config.decoder):
        raise ConfigError("train.online needs vpl's own decoder; set decoder.network=decoder, or train.online=false.")
    if config.train.online and config.train.online_labels == "seeds" and not config.train.affinity:
        raise ConfigError(
            "train.online_labels is seeds, which spread by the affinity that train.affinity teaches, and that is 0; "
            "set train.affinity=0.1, or train.online_labels=ignored."
        )
    if config.train.affinity > 0 and is_student(config.decoder):
        raise ConfigError("train.affinity needs a head over CLIP's features; set it to 0, or decoder.network=weclip.")


def fit(
    items: Sequence[Item],
    clip: FrozenClip,
    classes: ClassSet,
    prototypes: Float[Tensor, "P D"] | None,
    config: Config,
    folder: str | Path,
    workers: int = 2,
) -> Iterator[StepRecord]:
    """Train, one record per optimiser step, and write `folder/network` at the end.

    A folder with a checkpoint is continued: the records go on after it, and the weights at the end are those of an
    uninterrupted run. A folder whose network is finished yields nothing.

    Args:
        items: images, pseudo-masks and tags.
        prototypes: V, unit rows, the C foreground classes first; None only when `rsc.weight` is 0.
        config: `seed`, `clip`, `decoder`, `rsc`, `train` and τI shape the weights; `predict` and `crf` are saved too.
        workers: threads that read and augment.

    Raises:
        ConfigError: values that don't fit together.
        DataError: no items, a tag that is no class, an image or mask that can't be read.
        RunError: `folder` holds a network of other settings, or a loss was not finite; the message names the images.
    """
    if not items:
        raise DataError("there are no pseudo-masks to train on; expected at least one. Make them with vpl labels.")
    check(config)
    for name in ("weight", "texts"):
        if getattr(config.rsc, name) > 0 and prototypes is None:
            raise ConfigError(f"rsc.{name} is above 0 but there are no prototypes; make them, or set rsc.{name}=0.")
    if config.train.online and config.train.online_labels == "seeds" and prototypes is None:
        raise ConfigError("train.online_labels is seeds but there are no prototypes; make them with vpl prototypes.")
    if prototypes is not None and (prototypes.shape[1] != clip.dim or len(prototypes) < len(classes)):
        raise ConfigError(
            f"the prototypes have shape {tuple(prototypes.shape)}; expected at least {len(classes)} rows of "
            f"{clip.dim}. Make them with this CLIP and these classes."
        )
    for item in items:
        for tag in item.tags:
            classes.index(tag)
    return _steps(tuple(items), clip, classes, prototypes, config, Path(folder) / card.NETWORK_FOLDER, workers)


def _steps(
    items: tuple[Item, ...],
    clip: FrozenClip,
    classes: ClassSet,
    prototypes: Float[Tensor, "P D"] | None,
    config: Config,
    folder: Path,
    workers: int,
) -> Iterator[StepRecord]:
    team, train = Team(clip.device), config.train
    settings = checkpoint.settings_of(items, clip, classes, prototypes, config)
    if (folder / card.CARD_FILE).exists():
        checkpoint.check_same(checkpoint.finished(folder).training, settings, folder)
        if team.rank == 0:
            checkpoint.remove(folder)  # a kill may come between the network and this
        return
    if team.count * train.accumulate > train.batch:
        raise ConfigError(
            f"train.batch is {train.batch} for {team.count} processes with train.accumulate {train.accumulate}; "
            f"expected at least {team.count * train.accumulate}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with _seeded(config.seed, train.steps, 0, torch.device("cpu")):  # the network before its first step
        network = card.untrained(config.decoder, clip, len(classes))
    network = network.to(clip.device).train()
    course = Course(items, clip, classes, prototypes, config, network, _new_optimizer(network, train), team)
    start = checkpoint.resume(folder, network, course.optimizer, settings, clip.device)
    if team.rank == 0:
        for left_by_a_kill in folder.glob(f".*{storage.PARTIAL}"):
            left_by_a_kill.unlink()
    team.wait()
    side, own = crop_side(train.crop, clip.patch), np.array_split(np.arange(train.batch), team.count)[team.rank]

    def read(step: int, slot: int) -> Crop:
        generator = np.random.default_rng((config.seed, step, slot))
        return load_crop(course.batch(step)[slot], classes, clip, config.clip, train, side, generator)

    with (
        CurveFile(folder, start) if team.rank == 0 else contextlib.nullcontext() as curve,
        Reader(read, own.tolist(), range(start, train.steps), workers) as reader,
    ):
        for step, crops in enumerate(reader, start):
            began = time.perf_counter()
            with _seeded(config.seed, step, team.rank, clip.device):
                parts = _one_step(course, step, crops)
            seconds = time.perf_counter() - began
            values = (*parts, _learning_rate(train, step), train.batch / seconds)
            record = StepRecord(step, **dict(zip(StepRecord.__match_args__[1:], values, strict=True)))
            if curve is not None:
                curve.add(record)
                if (step + 1) % train.checkpoint_every == 0 and step + 1 < train.steps:
                    checkpoint.write(folder, network, course.optimizer, settings, step + 1)
            yield record
    if team.rank == 0:
        checkpoint.write_network(folder, network, clip, classes, prototypes, config, settings)
        checkpoint.remove(folder)
    team.wait()


def _one_step(course: Course, step: int, crops: Sequence[Crop]) -> list[float]:
    """One optimiser step; answers [loss, *TERMS] of the whole batch."""
    config, team, optimizer = course.config, course.team, course.optimizer
    weights = _weights(config)
    optimizer.zero_grad(set_to_none=True)
    terms = torch.zeros(len(weights), device=course.clip.device)
    split = np.array_split(np.arange(len(crops)), config.train.accumulate)
    parts = [_looked_at(course, step, [crops[number] for number in own]) for own in split if len(own)]
    counts = _counted(course, [crop for own, _ in parts for crop in own])
    for own, seen in parts:
        part = _losses(course, own, seen, counts)
        torch.dot(part, part.new_tensor(weights)).backward()
        terms += part.detach()
    found = team.sum(terms).tolist()
    total = sum(weight * term for weight, term in zip(weights, found, strict=True))
    length = _share_gradients(course.network, team)
    if not (np.isfinite(total) and np.isfinite(length)):
        raise RunError(
            f"training stopped: the loss is {total} and its gradient {length} on the images "
            f"{', '.join(item.id for item in course.batch(step))}. "
            "Look at these images and their pseudo-masks, or lower train.learning_rate; then start again."
        )
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(config.train, step)
    optimizer.step()
    return [total, *found]


def _share_gradients(network: Network, team: Team) -> float:
    """Every process gets the sum of all gradients; answers its length."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    if team.count > 1:
        total = team.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = total.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
    return float(nn.utils.get_total_norm(gradients))


def _looked_at(course: Course, step: int, crops: Sequence[Crop]) -> tuple[Sequence[Crop], Sight]:
    """A part of the batch at the encoder, and its crops with the targets that this step has."""
    train, device = course.config.train, course.clip.device
    pixels, again = torch.stack([crop.pixels for crop in crops]).to(device), course.refines(step)
    anew = again and train.online_labels == "seeds"
    seen = Sight(pixels, course.clip, train.online_layers if anew else 0)
    if not again:
        return crops, seen
    target = torch.stack([crop.target for crop in crops]).to(device)
    with torch.no_grad():
        tokens = course.network.tokens(seen.blocks)
    if anew:
        visible, table = torch.stack([crop.visible for crop in crops]), course.table
        target = online.targets(course.clip, seen.features, tokens, pixels, target, visible, table, course.config)
    else:
        confidence = course.config.labels.confidence
        target = losses.filled_target(target, tokens, seen.grid, train.online_temperature, confidence)
    return [dataclasses.replace(crop, target=one) for crop, one in zip(crops, target.cpu(), strict=True)], seen


@dataclass(frozen=True)
class Counts:
    """What the sums of a batch are divided by, over all processes: its pixels and its pairs of patches."""

    background: int
    foreground: int
    same: int = 0
    different: int = 0


def _counted(course: Course, crops: Sequence[Crop]) -> Counts:
    """The counts of a batch of which this process has `crops`."""
    target, train = torch.stack([crop.target for crop in crops]), course.config.train
    counts = list(losses.pixel_counts(target))
    if train.affinity > 0:
        counts += affinity.pair_counts(affinity.affinity_labels(target, crops[0].grid, train.affinity_radius))
    return Counts(*map(course.team.count_all, counts))


def _losses(course: Course, crops: Sequence[Crop], seen: Sight, counts: Counts) -> Float[Tensor, " terms"]:
    """The `TERMS` of a part of the batch, as shares of the batch's means; a term that is off is 0."""
    device, rsc, train = course.clip.device, course.config.rsc, course.config.train

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(crop, name) for crop in crops]).to(device)

    target, grid = stacked("target"), crops[0].grid
    with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
        answer = course.network(seen)
    logits = answer.logits.float()
    full = to_pixels(logits, (target.shape[1], target.shape[2]))
    if train.loss == "balanced":
        cross_entropy = losses.balanced_cross_entropy(full, target, (counts.background, counts.foreground))
    else:
        cross_entropy = losses.masked_cross_entropy(full, target, counts.background + counts.foreground)
    terms = {name: cross_entropy.new_zeros(()) for name in TERMS} | {"cross_entropy": cross_entropy}
    if train.affinity > 0:
        labels = affinity.affinity_labels(target, grid, train.affinity_radius)
        alike = affinity.affinity(answer.tokens.float())
        terms["affinity"] = affinity.affinity_loss(alike, labels, (counts.same, counts.different))
    if not course.contrasts:
        return torch.stack(list(terms.values()))
    share = len(crops) / train.batch
    prototypes = None if course.prototypes is None else course.table
    coarse = logits if logits.shape[2:] == grid else nn.functional.adaptive_avg_pool2d(logits, grid)
    masks = coarse.softmax(dim=1)[:, 1:]
    visible, absent, inside = stacked("visible"), stacked("absent"), stacked("inside")
    temperature = course.config.prototypes.image_temperature
    if prototypes is not None and rsc.weight > 0 and (rsc.pull or rsc.suppress):
        pooled = rsc.region == "pooled"
        contrast = losses.regional_contrast(
            masks,
            visible,
            absent,
            losses.pooled(seen.features.patches) if pooled else losses.masked(seen.pixels, course.clip.embed_images),
            prototypes,
            temperature,
            pull=rsc.pull,
            suppress=rsc.suppress,
            most_negatives=None if pooled else MOST_MASKED_NEGATIVES,
            inside=inside,
        )
        terms |= {name: share * getattr(contrast, name) for name in ("pull", "complement", "negatives")}
    if prototypes is not None and rsc.texts > 0:
        features = seen.features.patches.transpose(1, 2).unflatten(2, grid)
        regions = tcl.text_regions(features, masks * inside[:, None])
        texts = prototypes[: masks.shape[1]]
        terms["texts"] = share * tcl.text_contrast(regions, texts, visible, absent, temperature)
    if rsc.area > 0:
        present = tcl.area(masks, visible, rsc.area_present, inside)
        terms["area"] = share * (present + tcl.area(masks, absent, rsc.area_absent, inside))
    return torch.stack(list(terms.values()))


def _weights(config: Config) -> tuple[float, ...]:
    """What each of the `TERMS` counts for in the loss."""
    rsc = config.rsc
    return 1.0, rsc.weight, rsc.weight, rsc.weight, config.train.affinity, rsc.texts, rsc.area


def _learning_rate(train: TrainConfig, step: int) -> float:
    """From 0 in a line over the first `warmup` steps, then the poly schedule, which did not wait. [ref: WeCLIP]"""
    if step < train.warmup:
        return train.learning_rate * step / train.warmup
    return train.learning_rate * (1 - step / train.steps) ** train.power


def _new_optimizer(network: Network, train: TrainConfig) -> torch.optim.Optimizer:
    """SGD as the paper has it, or AdamW."""
    weights, rate, decay = network.parameters(), train.learning_rate, train.weight_decay
    if train.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=rate, betas=(train.momentum, ADAMW_SECOND_BETA), weight_decay=decay)
    return torch.optim.SGD(weights, lr=rate, momentum=train.momentum, weight_decay=decay)


@contextlib.contextmanager
def _seeded(seed: int, step: int, rank: int, device: torch.device) -> Iterator[None]:
    """torch's random state from (seed, step, rank) inside, and the caller's again outside: a student's dropout."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))
        yield
