"""What training reads: images with their pseudo-masks, shuffled anew each epoch, cut and turned together (METHOD.md 5).

Every random choice is a function of (seed, step, place in the batch) alone. Letters: C foreground classes · h w patch
grid · H W pixels · S side of a crop in pixels.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from vpl.classes import IGNORE, ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import ClipConfig, TrainConfig
from vpl.edges import images
from vpl.errors import DataError

STEPS_AHEAD = 2
"""Batches that the reading threads may have ready."""


@dataclass(frozen=True)
class Item:
    """One training image: what the network learns from. `mask` is a pseudo-mask, never the truth."""

    id: str
    image: Path | str
    mask: Path
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Crop:
    """One augmented sample.

    Attributes:
        pixels: normalised; padding has the mean colour, 0.
        target: label values; padding is 255.
        inside: share of each patch that lies on the image.
        visible: tags that the crop may show: those in its pseudo-mask, or all when the whole image is in it.
        absent: classes that the image does not carry.
    """

    pixels: Float[Tensor, "3 side side"]
    target: UInt8[Tensor, "side side"]
    inside: Float[Tensor, "h w"]
    visible: Bool[Tensor, " C"]
    absent: Bool[Tensor, " C"]

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) patches."""
        h, w = self.inside.shape
        return h, w


def item_number(seed: int, place: int, count: int) -> int:
    """Which of `count` items is read at a place of the endless stream: every epoch is a shuffle of its own."""
    epoch, rest = divmod(place, count)
    return int(_order(seed, epoch, count)[rest])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The shuffle of an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def crop_side(crop: int, patch: int) -> int:
    """The crop's side in pixels: `crop` rounded up to a multiple of the patch."""
    return -(-crop // patch) * patch


def load_crop(
    item: Item,
    classes: ClassSet,
    clip: FrozenClip,
    sizes: ClipConfig,
    train: TrainConfig,
    side: int,
    generator: np.random.Generator,
) -> Crop:
    """Read an image and its pseudo-mask, and cut one augmented crop from them.

    Raises:
        DataError: a file can't be read, the mask is of another shape, or holds a label that is no class.
    """
    image = images.read_image(item.image, sizes.max_side)
    mask = images.read_mask(item.mask)
    wrong = np.setdiff1d(mask, [*range(len(classes) + 1), IGNORE])
    if len(wrong):
        raise DataError(
            f"the pseudo-mask {item.mask} holds the label {wrong[0]}; expected 0 to {len(classes)} or {IGNORE}. "
            "Make it again with this class set."
        )
    if abs(mask.shape[0] * image.shape[1] - mask.shape[1] * image.shape[0]) > sum(mask.shape) + sum(image.shape):
        raise DataError(
            f"the pseudo-mask {item.mask} has shape {mask.shape}, the image {item.image} {image.shape[:2]}; "
            "expected the same proportions. Make the mask again."
        )
    if mask.shape != image.shape[:2]:
        mask = np.asarray(Image.fromarray(mask).resize(image.shape[1::-1], Image.Resampling.NEAREST))
    scatter = train.flip or train.scale_low != 1.0 or train.scale_high != 1.0
    zoom = sizes.scale * generator.uniform(train.scale_low, train.scale_high)
    red, green, blue = (round(255 * channel) for channel in clip.mean)
    image, mask, placed, whole = cut(image, mask, zoom, side, (red, green, blue), generator, scatter=scatter)
    covered = np.zeros((side, side), np.float32)
    covered[placed] = 1.0
    if train.flip and generator.random() < 0.5:
        image, mask, covered = image[:, ::-1], mask[:, ::-1], covered[:, ::-1]
    tags = torch.zeros(len(classes), dtype=torch.bool)
    tags[[classes.index(tag) for tag in item.tags]] = True
    shown = torch.zeros(256, dtype=torch.bool)
    shown[np.unique(mask).tolist()] = True
    pixels = images.to_pixels(np.ascontiguousarray(image), clip.patch, clip.mean, clip.std)
    inside = torch.from_numpy(np.ascontiguousarray(covered))
    return Crop(
        pixels=torch.where(inside > 0, pixels, 0.0),
        target=torch.from_numpy(np.ascontiguousarray(mask)),
        inside=nn.functional.avg_pool2d(inside[None], clip.patch)[0],
        visible=tags if whole else tags & shown[1 : len(classes) + 1],
        absent=~tags,
    )


def cut(
    image: UInt8[np.ndarray, "H W 3"],
    mask: UInt8[np.ndarray, "H W"],
    zoom: float,
    side: int,
    fill: tuple[int, int, int],
    generator: np.random.Generator,
    *,
    scatter: bool,
) -> tuple[UInt8[np.ndarray, "S S 3"], UInt8[np.ndarray, "S S"], tuple[slice, slice], bool]:
    """A square crop of the image scaled by `zoom`, and the same crop of its mask.

    Along a side where the scaled image is longer than the crop, the crop's place is random; where it is shorter, the
    rest is padding (`fill` and 255) and the image's place is random if `scatter`, else at the start. Only the cropped
    part is resized: bicubic for the image, nearest for the mask, with half-pixel centres both.

    Returns:
        image, mask, the rows and columns of the crop that lie on the image, whether the whole image is in the crop.
    """
    box, place, size, whole = [], [], [], True
    for length in mask.shape:
        scaled = max(1, round(length * zoom))
        if scaled > side:
            start = int(generator.integers(scaled - side + 1))
            box.append((start * length / scaled, (start + side) * length / scaled))
            place.append(0)
            size.append(side)
            whole = False
        else:
            box.append((0, length))
            place.append(int(generator.integers(side - scaled + 1)) if scatter else 0)
            size.append(scaled)
    (top, bottom), (left, right) = box
    region, goal = (left, top, right, bottom), (size[1], size[0])
    rows, columns = (slice(place[axis], place[axis] + size[axis]) for axis in (0, 1))
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = fill
    canvas[rows, columns] = np.asarray(Image.fromarray(image).resize(goal, Image.Resampling.BICUBIC, region))
    labels = np.full((side, side), IGNORE, np.uint8)
    labels[rows, columns] = np.asarray(Image.fromarray(mask).resize(goal, Image.Resampling.NEAREST, region))
    return canvas, labels, (rows, columns), whole


class Reader:
    """Iterates over steps: each is the crops of this process's slots, read ahead by threads.

    Args:
        read: makes the crop of (step, slot).
    """

    def __init__(self, read: Callable[[int, int], Crop], slots: Sequence[int], steps: range, workers: int):
        self._read, self._slots, self._coming = read, slots, iter(steps)
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="vpl-read")
        self._queue: deque[list[Future[Crop]]] = deque()

    def __enter__(self) -> Reader:
        for _ in range(STEPS_AHEAD):
            self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[list[Crop]]:
        while self._queue:
            self._ask()
            yield [future.result() for future in self._queue.popleft()]

    def _ask(self) -> None:
        for step in self._coming:
            self._queue.append([self._pool.submit(self._read, step, slot) for slot in self._slots])
            return
