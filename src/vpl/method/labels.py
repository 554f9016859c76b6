"""From a batch of photographs and their tags to regions, seeds and pseudo-masks (METHOD.md 1 to 4).

Pass one (`regions`): image -> features -> text seeds -> region embeddings, from which `prototypes.learn` makes V.
Pass two (`seed_maps`, `refine_maps`, `pseudo_mask`): features -> seeds from V -> refined seeds -> CRF -> labels.

Letters: K tags of one image · S = K + 1 · C classes · B background words · D joint width · h w patch grid · H W pixels
of the view. A list of maps holds an image's (K, h, w) each.
Tensors and arrays in, tensors and arrays out: this module opens no file and never sees a truth mask.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vpl.classes import IGNORE
from vpl.clip.model import Features, FrozenClip, out_of_memory
from vpl.config import ClipConfig, Config, CrfConfig, LabelConfig, PrototypeConfig, RefineConfig
from vpl.edges import images
from vpl.errors import DataError
from vpl.machine import Clock
from vpl.method import crf, prototypes, refine
from vpl.method.seeds import seeds

log = logging.getLogger("vpl")
T = TypeVar("T")

BACKGROUND_REGION = -1
"""The class number of a background region's embedding."""


@dataclass(frozen=True)
class View:
    """One photograph as encoder and CRF see it.

    Attributes:
        image: RGB, 0 to 255, at most `max_side` pixels long.
        tags: K different class numbers, from 0.
        size: height and width of the photograph on disk, in pixels: the size of its masks.
        pixels: the encoder's input, where `prepared` has made it.
    """

    image: UInt8[np.ndarray, "H W 3"]
    tags: tuple[int, ...]
    size: tuple[int, int]
    pixels: Float[Tensor, "3 height width"] | None = None


@dataclass(frozen=True)
class Regions:
    """The region embeddings of a batch.

    Attributes:
        embeddings: unit rows.
        classes: class number of the tag that the region belongs to, or `BACKGROUND_REGION`.
        views: number of the region's image in the batch.
        tag_ranks: for each image, the share of (own tag, other class) pairs that the bare text scores order rightly;
            chance is 0.5, nan when every class is a tag.
    """

    embeddings: Float[Tensor, "N D"]
    classes: Int[Tensor, " N"]
    views: Int[Tensor, " N"]
    tag_ranks: Float[Tensor, " views"]


def prepared(clip: FrozenClip, view: View, config: ClipConfig) -> View:
    """The view with its `pixels`, so that they are made in the thread that reads."""
    scale = images.encoder_scale(*view.image.shape[:2], clip.patch, config.scale, config.max_patches)
    return replace(view, pixels=images.to_pixels(view.image, clip.patch, clip.mean, clip.std, scale))


def encode(clip: FrozenClip, views: Sequence[View], config: Config) -> Features:
    """One pass of the frozen encoder over views whose patch grids are equal."""
    ready = [view if view.pixels is not None else prepared(clip, view, config.clip) for view in views]
    return clip.encode(torch.stack([view.pixels for view in ready]), attention_blocks=config.clip.attention_blocks)


class Portions:
    """Batches in portions that fit into the device's memory.

    A batch for which it runs out is halved, and so are later ones of that image size from the start. One warning says
    so. The results are those of a smaller batch.
    """

    def __init__(self):
        self._most: dict[tuple[int, int], int] = {}
        self._lock = threading.Lock()

    def each(self, views: Sequence[View], work: Callable[[Sequence[View]], T]) -> Iterator[tuple[slice, T | None]]:
        """Portions of the views, in order, with their results; None for one view that does not fit even alone."""
        first = 0
        while first < len(views):
            size = views[first].image.shape[:2]
            part = slice(first, min(len(views), first + self._most.get(size, len(views))))
            result = _unless_out_of_memory(work, views[part])
            alone = part.stop - part.start == 1
            if result is None and not alone:
                self._halve(size, part.stop - part.start)
                continue
            yield part, result
            first = part.stop

    def _halve(self, size: tuple[int, int], count: int) -> None:
        with self._lock:
            if not self._most:
                log.warning(
                    "the device's memory is too small for %d images of %d x %d pixels at once; going on with %d. "
                    "A smaller clip.batch avoids the detour.", count, *size, count // 2
                )  # fmt: skip
            self._most[size] = count // 2


def _unless_out_of_memory(work: Callable[[Sequence[View]], T], views: Sequence[View]) -> T | None:
    """The result, or None; by the time this returns, what the failed attempt held is free again."""
    try:
        return work(views)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def seed_maps(
    clip: FrozenClip,
    features: Features,
    views: Sequence[View],
    table: Float[Tensor, "P D"],
    classes: int,
    scale: float,
    kind: str = "gradcam",
) -> list[Float[Tensor, "_ h w"]]:
    """One class-specific map per tag of each view, in [0, 1] (METHOD.md 1).

    Args:
        table: prototypes, the `classes` foreground rows first, then the background rows. Without background rows the
            classes that the image does not carry stand in for them: a softmax over one tag alone has no gradient.
        scale: what multiplies the cosines: CLIP's own for text prototypes, 1/τI for vision prototypes.
        kind: "gradcam", or the baseline "similarity": each patch's cosine with the tag's prototype, min-max normalised.
    """
    if kind == "similarity":
        patches = torch.nn.functional.normalize(features.patches, dim=2)
        maps = [(table[list(view.tags)].to(one) @ one.T) for one, view in zip(patches, views, strict=True)]
        return [refine.minmax(one.unflatten(1, features.grid)) for one in maps]
    rows = []
    for view in views:
        others = list(range(classes, len(table))) or [number for number in range(classes) if number not in view.tags]
        rows.append(table[[*view.tags, *others]])
    return seeds(clip, features, rows, [len(view.tags) for view in views], scale).cam


def refine_maps(
    features: Features, cams: Sequence[Float[Tensor, "_ h w"]], config: RefineConfig
) -> list[Float[Tensor, "_ h w"]]:
    """Seeds spread along the attention and stretched to [0, 1] (METHOD.md 2); the seeds themselves when it is off."""
    if not config.enabled:
        return list(cams)
    affinities = refine.affinity(features.attention, config.rounds)
    threshold = config.box_threshold if config.box else None
    return [
        refine.minmax(refine.refine(affinity, cam, threshold)) for affinity, cam in zip(affinities, cams, strict=True)
    ]


def regions(
    clip: FrozenClip,
    features: Features,
    views: Sequence[View],
    cams: Sequence[Float[Tensor, "_ h w"]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: PrototypeConfig,
) -> Regions:
    """The region embeddings that vision prototypes are learned from (METHOD.md 3.1).

    A tag's region is where its seed is above Φ, the background region where every seed is below `background_phi`.
    Empty regions give no row. `image` regions are whole images, as InMaP has them, one row for each tag.
    """
    embeddings, numbers, owners = [], [], []
    for number, (view, cam) in enumerate(zip(views, cams, strict=True)):
        masks = _region_masks(cam, config)
        labels = torch.tensor([*view.tags, BACKGROUND_REGION])
        if config.region == "pooled":
            rows, valid = prototypes.region_embeddings(features.patches[number], masks.flatten(1))
        elif config.region == "masked":
            rows, valid = _masked_embeddings(clip, view, masks)
        else:
            whole = torch.ones_like(masks.flatten(1))
            rows, valid = prototypes.region_embeddings(features.patches[number], whole)
            valid = valid & (labels != BACKGROUND_REGION)
        embeddings.append(rows[valid].float().cpu())
        numbers.append(labels[valid.cpu()])
        owners.append(torch.full((int(valid.sum()),), number))
    return Regions(
        torch.cat(embeddings), torch.cat(numbers), torch.cat(owners), _tag_ranks(features, views, text[:classes])
    )


def _region_masks(cam: Float[Tensor, "K h w"], config: PrototypeConfig) -> Bool[Tensor, "K+1 h w"]:
    """The K tags' regions, then the background's."""
    return torch.cat([cam > config.phi, (cam < config.background_phi).all(dim=0, keepdim=True)])


def _masked_embeddings(
    clip: FrozenClip, view: View, masks: Bool[Tensor, "R h w"]
) -> tuple[Float[Tensor, "R D"], Bool[Tensor, " R"]]:
    """The class-token embedding of the image with everything outside each region set to CLIP's mean colour."""
    pixels = images.to_pixels(view.image, clip.patch, clip.mean, clip.std)
    full = torch.nn.functional.interpolate(masks[None].float(), pixels.shape[1:], mode="nearest")[0]
    valid = masks.flatten(1).any(dim=1)
    return clip.embed_images(pixels[None] * full[:, None].to(pixels)), valid


def _tag_ranks(features: Features, views: Sequence[View], text: Float[Tensor, "C D"]) -> Float[Tensor, " views"]:
    """How well the mean patch embedding of each image ranks its tags above the other classes, 0 to 1."""
    embedding = torch.nn.functional.normalize(features.patches.float().mean(dim=1), dim=1)
    scores = (embedding @ text.T.to(embedding)).cpu()
    ranks = []
    for row, view in zip(scores, views, strict=True):
        own = torch.zeros(len(row), dtype=torch.bool)
        own[list(view.tags)] = True
        above = row[own][:, None] - row[~own][None, :]
        ranks.append(((above > 0).float() + 0.5 * (above == 0).float()).mean())
    return torch.stack(ranks)


def allowed_labels(
    found: Int[Tensor, " N"],
    tags: Sequence[tuple[int, ...]],
    classes: int,
    prototypes_count: int,
    config: PrototypeConfig,
) -> Bool[Tensor, "N P"]:
    """Which prototypes each region may be labelled with (METHOD.md 3.2, `tags`).

    A background region may carry background prototypes alone. A tag's region may carry its own tag (`own`), the
    tags of its image and the background (`restrict`), or anything (`all`).

    Args:
        found: the region's class number, or `BACKGROUND_REGION`.
        tags: for each region, the tags of its image.
    """
    allowed = torch.zeros(len(found), prototypes_count, dtype=torch.bool)
    for row, (number, carried) in enumerate(zip(found.tolist(), tags, strict=True)):
        if config.tags == "all":
            allowed[row] = True
        elif number == BACKGROUND_REGION:
            allowed[row, classes:] = True
        elif config.tags == "own":
            allowed[row, number] = True
        else:
            allowed[row, classes:] = True
            allowed[row, list(carried)] = True
    return allowed


@dataclass(frozen=True)
class Lesson:
    """What vision prototypes were learned from, and the result.

    Attributes:
        x: unit embeddings of the regions that may carry some label.
        q: their soft labels.
        classes: their class numbers, or `BACKGROUND_REGION`.
        learned: the vision prototypes.
    """

    x: Float[Tensor, "N D"]
    q: Float[Tensor, "N P"]
    classes: Int[Tensor, " N"]
    learned: prototypes.Learned


def learn(
    embeddings: Float[Tensor, "N D"],
    found: Int[Tensor, " N"],
    tags: Sequence[tuple[int, ...]],
    text: Float[Tensor, "P D"],
    classes: int,
    config: PrototypeConfig,
) -> Lesson:
    """Vision prototypes from the regions of all images (METHOD.md 3.2 to 3.4).

    Args:
        embeddings: unit rows.
        found: the region's class number, or `BACKGROUND_REGION`.
        tags: for each region, the tags of its image.
        text: T, the `classes` foreground rows first.

    Raises:
        DataError: no region may carry a label.
    """
    allowed = allowed_labels(found, tags, classes, len(text), config)
    usable = allowed.any(dim=1)
    if not usable.any():
        raise DataError(
            f"no region of any image has a text seed above prototypes.phi = {config.phi}; choose a lower one."
        )
    x, allowed, found = embeddings[usable], allowed[usable], found[usable]
    q = prototypes.soft_labels(
        x, text, allowed, config.text_temperature, sinkhorn_rounds=config.sinkhorn_rounds, one_hot=config.one_hot
    )
    return Lesson(x, q, found, prototypes.learn(x, q, text, config))


def label_map(
    maps: Float[Tensor, "K h w"], view: View, exponent: float
) -> tuple[UInt8[np.ndarray, "height width"], Float[Tensor, "K+1 H W"]]:
    """Labels of seeds without CRF, and the scores [background; tags] they come from, at the view's size.

    Background score = (1 - max seed)^exponent (METHOD.md 4); label = argmax. The labels come at `view.size`.
    """
    scores = _scores(maps, view, exponent)
    return _at_size(_values(view)[scores.argmax(dim=0).cpu().numpy()], view.size), scores


def _scores(maps: Float[Tensor, "K h w"], view: View, exponent: float) -> Float[Tensor, "S H W"]:
    """[background; tags] at the view's size."""
    full = refine.upsample(maps.float(), view.image.shape[:2])
    background = (1 - full.amax(dim=0, keepdim=True)).clamp(min=0) ** exponent
    return torch.cat([background, full])


def pseudo_mask(
    scores: Float[Tensor, "S H W"], view: View, labels: LabelConfig, config: CrfConfig
) -> tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]]:
    """The most probable labels after the CRF, and the pseudo-mask: the same with 255 where the CRF is unsure.

    Both come at `view.size` and hold the image's tags and background alone, besides 255 (METHOD.md 4).

    Args:
        scores: [background; tags] of the refined seeds at the view's size, as `label_map` gives them.
    """
    return pseudo_masks([scores], [view], labels, config)[0]


def pseudo_masks(
    scores: Sequence[Float[Tensor, "_ _ _"]], views: Sequence[View], labels: LabelConfig, config: CrfConfig
) -> list[tuple[UInt8[np.ndarray, "_ _"], UInt8[np.ndarray, "_ _"]]]:
    """`pseudo_mask` of each view; on a GPU, the CRFs of all are computed together."""
    if config.enabled:
        found = crf.dense_crfs([view.image for view in views], scores, **config.keywords())
    else:
        found = [one / one.sum(dim=0, keepdim=True).clamp(min=1e-12) for one in scores]
    masks = []
    for probabilities, view in zip(found, views, strict=True):
        confidence, best = probabilities.max(dim=0)
        likely = _values(view)[best.cpu().numpy()]
        sure = (confidence >= labels.confidence).cpu().numpy()
        masks.append((_at_size(likely, view.size), _at_size(np.where(sure, likely, np.uint8(IGNORE)), view.size)))
    return masks


def _values(view: View) -> UInt8[np.ndarray, " S"]:
    """Label value by place in [background; tags], S = K + 1 places."""
    return np.array([0, *(tag + 1 for tag in view.tags)], dtype=np.uint8)


def _at_size(labels: UInt8[np.ndarray, "H W"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Nearest-neighbour resize with half-pixel centres."""
    if labels.shape == size:
        return labels
    rows = ((np.arange(size[0]) + 0.5) * labels.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * labels.shape[1] / size[1]).astype(int)
    return labels[rows][:, columns]


@dataclass(frozen=True)
class Maps:
    """What the encoder's device has made of one view.

    Attributes:
        seeds: maps on the CPU by name: text, vision (if any) and refined.
        pseudo: the two results of `pseudo_mask`, where the device computed the CRF; otherwise None.
    """

    seeds: dict[str, Float[Tensor, "_ h w"]]
    pseudo: tuple[UInt8[np.ndarray, "height width"], UInt8[np.ndarray, "height width"]] | None = None


@dataclass(frozen=True)
class Labeller:
    """Pass two as one object: what turns photographs into label maps, the same on every engine.

    Attributes:
        text: text prototypes, the classes' rows first, on the device of `clip`.
        vision: vision prototypes, or None where `prototypes.kind` is text.
        classes: number of foreground classes.
        clock: counts the seconds of encode, seeds, refine, upsample and crf ("crf on device" where that computes it).
    """

    clip: FrozenClip
    text: Float[Tensor, "P D"]
    vision: Float[Tensor, "P D"] | None
    classes: int
    config: Config
    clock: Clock = field(default_factory=Clock, repr=False, compare=False)

    def maps(self, views: Sequence[View], pseudo: bool) -> list[Maps]:
        """What `masks` needs of each view; their patch grids are equal. With `pseudo`, on a GPU also the CRFs."""
        kind = self.config.seeds.kind
        with self.clock("encode"):
            features = encode(self.clip, views, self.config)
        with self.clock("seeds"):
            cams = {
                "text": seed_maps(self.clip, features, views, self.text, self.classes, self.clip.logit_scale, kind),
            }
            last = cams["text"]
            if self.vision is not None:
                scale = 1 / self.config.prototypes.image_temperature
                last = cams["vision"] = seed_maps(self.clip, features, views, self.vision, self.classes, scale, kind)
        with self.clock("refine"):
            cams["refined"] = refine_maps(features, last, self.config.refine)
            found = [Maps({name: cam[place].cpu() for name, cam in cams.items()}) for place in range(len(views))]
        del features
        if not (pseudo and self.config.crf.enabled and _crf_goes_to(self.clip.device)):
            return found
        with self.clock("crf on device"):
            made = self._pseudo(views, cams["refined"])
        return [replace(one, pseudo=masks) for one, masks in zip(found, made, strict=True)]

    def _pseudo(self, views: Sequence[View], cams: Sequence[Float[Tensor, "_ h w"]]) -> list:
        """`pseudo_masks` on the device; [None] for one view that doesn't fit even alone: the CPU does it then."""

        def work(views: Sequence[View]) -> list:
            exponent = self.config.labels.background_exponent
            scores = [_scores(cam, view, exponent) for cam, view in zip(cams, views, strict=True)]
            return pseudo_masks(scores, views, self.config.labels, self.config.crf)

        return work(views) if len(views) > 1 else _unless_out_of_memory(work, views) or [None]

    def masks(self, view: View, maps: Maps, pseudo: bool) -> dict[str, UInt8[np.ndarray, "height width"]]:
        """Label maps of `maps` at `view.size` by name; with `pseudo`, also "crf" and "labels" (the pseudo-mask)."""
        found = {}
        with self.clock("upsample"):
            for name, cam in maps.seeds.items():
                found[name], scores = label_map(cam, view, self.config.labels.background_exponent)
        if pseudo and maps.pseudo:
            found["crf"], found["labels"] = maps.pseudo
        elif pseudo:
            with self.clock("crf"):
                found["crf"], found["labels"] = pseudo_mask(scores, view, self.config.labels, self.config.crf)
        return found


def _crf_goes_to(device: torch.device) -> bool:
    """Whether the encoder's device computes the CRFs too, a batch together; otherwise the finishing threads do."""
    return device.type == "cuda"
