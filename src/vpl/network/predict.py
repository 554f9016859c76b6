"""Image -> mask with a trained network; no tags (METHOD.md 6).

    p = mean over scales and mirror images of softmax( bilinear( logits ) ),   p ← CRF(image, p),   label = argmax p

The encoder sees the image scaled down to `max_side`; where it is still longer than `window`, it sees overlapping
windows whose logits are averaged on the patch grid. Results always have the image's own size. Letters: C foreground
classes · h w patch grid · H W pixels. Labels: 0 background, c + 1 class c. Truth masks are opened in `evaluate` alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vpl.classes import IGNORE
from vpl.clip.model import FrozenClip
from vpl.config import PredictConfig
from vpl.edges import images
from vpl.edges.datasets import Sample
from vpl.edges.truth import read_truth
from vpl.errors import DataError, ModelError
from vpl.machine import device_of, out_of_memory
from vpl.method import crf, looks
from vpl.method.belonging import Belonging, Counting
from vpl.method.metrics import Confusion
from vpl.network import hub
from vpl.network.card import CARD_FILE, NETWORK_FOLDER, WEIGHTS_FILE, Card
from vpl.network.grids import to_pixels
from vpl.network.head import Network, Sight

OVERLAP = 4
"""Neighbouring windows share at least one part in this many. [ours]"""


@dataclass(frozen=True)
class Protocol:
    """How an image is looked at: image sizes over the training's, whether mirrored too, whether a CRF follows."""

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    crf: bool = False


log = logging.getLogger("vpl")

_AGAIN = "delete the folder network, then train the network again."

SINGLE = Protocol()
"""The first protocol of METHOD.md 6: one scale, no flip, no CRF."""


@dataclass(frozen=True)
class Evaluation:
    """Both protocols of METHOD.md 6 over the same images, and how their truth agrees with their tags."""

    single: Confusion
    full: Confusion
    images: int
    belonging: Belonging


@dataclass(frozen=True)
class Answer:
    """Probabilities of background and each class, at the size (h, w) that an image was looked at, not its own (H, W).

    What is made from them has the image's own size; C+1 values per pixel are held there only where they are asked for.
    """

    shares: Float[Tensor, "P h w"]
    size: tuple[int, int]

    def labels(self, confidence: float = 0.0) -> UInt8[np.ndarray, "H W"]:
        """The most probable label of each pixel; 255 where its probability is below `confidence`."""
        return _labels(self.shares, self.size, confidence)

    def probabilities(self) -> Float[np.ndarray, "P H W"]:
        """Of background and each class."""
        same = self.shares.shape[1:] == self.size
        return (self.shares if same else to_pixels(self.shares[None], self.size)[0]).float().cpu().numpy()


class Predictor:
    """A trained network, and the frozen CLIP that it reads (None: a student needs none).

    Make one with `load`. `classes` are its foreground classes, `full` is the second protocol of METHOD.md 6.
    """

    def __init__(self, card: Card, head: Network, clip: FrozenClip | None, device: torch.device):
        self.card, self.classes = card, card.classes
        self.full = full_protocol(card.predict)
        self._head, self._clip, self._device = head.to(device).eval(), clip, device
        self._views_at_once = 2

    @property
    def parts(self) -> tuple[Network, FrozenClip | None]:
        """The network, and the CLIP that it reads (None: a student needs none)."""
        return self._head, self._clip

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._device

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what its answers depend on but the protocol: the card (classes, CLIP, settings) and the weights."""
        digest = hashlib.sha256(self.card.to_json().encode())
        for name, weight in sorted(self._head.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @overload
    def predict(
        self, image: images.Picture, probabilities: Literal[False] = ..., protocol: Protocol = ...
    ) -> UInt8[np.ndarray, "H W"]: ...

    @overload
    def predict(
        self, image: images.Picture, probabilities: Literal[True], protocol: Protocol = ...
    ) -> tuple[UInt8[np.ndarray, "H W"], Float[np.ndarray, "P H W"]]: ...

    def predict(
        self, image: images.Picture, probabilities: bool = False, protocol: Protocol = SINGLE
    ) -> UInt8[np.ndarray, "H W"] | tuple[UInt8[np.ndarray, "H W"], Float[np.ndarray, "P H W"]]:
        """The label map of one image at its own size; with `probabilities`, also those of background and each class.

        Without `probabilities`, no array of C+1 values per pixel is held at the image's own size.

        Where the device's memory runs out, an image and its mirror image are looked at one after the other from then
        on, and one warning says so.

        Raises:
            DataError: the image can't be read, is an array of another kind, or is too large for the device's memory.
        """
        answer = self.answer(image, protocol)
        return (answer.labels(), answer.probabilities()) if probabilities else answer.labels()

    def answer(self, image: images.Picture, protocol: Protocol = SINGLE) -> Answer:
        """What the network says of one image, before it is a label map.

        Raises:
            DataError: as `predict`.
        """
        pixels, size = images.read_with_size(image, self.card.max_side)
        while True:
            try:
                return Answer(self._answered(pixels, protocol), size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                alone = self._views_at_once == 1 or not protocol.flip
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if alone:
                raise DataError(
                    f"the memory of {self._device} is too small for this image at {pixels.shape[0]} x "
                    f"{pixels.shape[1]} pixels; give it smaller, or take another --device."
                )
            log.warning("the device's memory is too small for an image and its mirror image; going on one by one.")
            self._views_at_once = 1

    def _answered(self, pixels: UInt8[np.ndarray, "h w 3"], protocol: Protocol) -> Float[Tensor, "P h w"]:
        shares = self._shares(pixels, protocol)
        if protocol.crf:
            there = torch.from_numpy(pixels).to(self._device)
            shares = crf.dense_crfs([there], [shares], self.card.crf)[0]
        return shares

    @torch.no_grad()
    def _shares(self, image: UInt8[np.ndarray, "H W 3"], protocol: Protocol) -> Float[Tensor, "P H W"]:
        """Probabilities at the size of `image`, the mean over the protocol's views."""
        return looks.mean(self._said(image, protocol))

    def _said(self, image: UInt8[np.ndarray, "H W 3"], protocol: Protocol) -> Iterator[Float[Tensor, "P H W"]]:
        """Probabilities of one look after the other, turned back, at the size of `image`."""
        card, size = self.card, image.shape[:2]
        for scale, group in itertools.groupby(looks.looks_of(protocol.scales, protocol.flip), lambda look: look.scale):
            pixels, both = images.to_pixels(image, card.patch, card.mean, card.std, card.scale * scale), tuple(group)
            views = torch.stack([look.turned(pixels) for look in both]).to(self._device)
            logits = torch.cat([self._logits(part) for part in views.split(self._views_at_once)])
            for look, one in zip(both, logits, strict=True):
                yield to_pixels(look.turned(one)[None], size)[0].softmax(dim=0)
            del logits

    def _logits(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P gh gw"]:
        """Logits of a whole view; in windows where it is longer than `predict.window`."""
        patch, window = self.card.patch, self.card.predict.window
        rows, columns = (window_starts(side // patch, max(1, window // patch)) for side in pixels.shape[2:])
        if len(rows) == len(columns) == 1:
            return self._look(pixels)
        h, w = (min(side // patch, max(1, window // patch)) for side in pixels.shape[2:])

        def look(row: int, column: int) -> Float[Tensor, "N P gh gw"]:
            return self._look(pixels[:, :, row * patch : (row + h) * patch, column * patch : (column + w) * patch])

        first = look(rows[0], columns[0])
        fine = max(1, round(first.shape[2] / h))
        total = first.new_zeros((*first.shape[:2], *(side // patch * fine for side in pixels.shape[2:])))
        counts = first.new_zeros(total.shape[2:])
        for row in rows:
            for column in columns:
                logits = first if (row, column) == (rows[0], columns[0]) else look(row, column)
                if logits.shape[2:] != (h * fine, w * fine):
                    logits = to_pixels(logits, (h * fine, w * fine))
                here = slice(row * fine, (row + h) * fine), slice(column * fine, (column + w) * fine)
                total[:, :, *here] += logits
                counts[here] += 1
        return total / counts

    def _look(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P gh gw"]:
        return self._head(Sight(pixels, self._clip)).logits.float()


def load(path: str | Path, clip: FrozenClip | str | Path | None = None, device: str = "auto") -> Predictor:
    """A trained network from a run folder, the network folder inside it, or a folder that `vpl export --to hf` made.

    Args:
        clip: the CLIP that the network was trained with, or where it lies now; default: the name that was saved. An
            exported folder carries its own, and `clip` is not read.
        device: as for `FrozenClip.load`; a `FrozenClip` that is given stays where it is.

    Raises:
        ModelError: there is no network, it is damaged, or `clip` holds other weights than it was trained with.
    """
    folder = Path(path)
    if hub.is_folder(folder):
        card, head, own = hub.read(folder, device)
        return Predictor(card, head, own, device_of(device) if own is None else own.device)
    if not (folder / CARD_FILE).exists():
        folder = folder / NETWORK_FOLDER
    try:
        card = Card.from_json((folder / CARD_FILE).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS_FILE)
    except OSError as error:
        raise ModelError(
            f"{path} holds no trained network ({error.strerror or error}); expected a run folder in which "
            "vpl train has finished."
        ) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{folder / CARD_FILE} is damaged ({error}); {_AGAIN}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"the weights {folder / WEIGHTS_FILE} are damaged ({error}); {_AGAIN}") from error
    head = card.head_of(weights, f"the weights {folder / WEIGHTS_FILE}", _AGAIN)
    if not head.reads_clip:
        return Predictor(card, head, None, device_of(device))
    if not isinstance(clip, FrozenClip):
        clip = FrozenClip.load(clip or card.clip_name, device=device, **card.clip_said)
    found = clip.weights_hash
    if found != card.clip_hash:
        raise ModelError(
            f"the network in {folder} reads the CLIP {card.clip_name!r} (weights {card.clip_hash[:12]}…), but "
            f"{clip.name!r} has other weights ({found[:12]}…). Give the CLIP that it was trained with."
        )
    return Predictor(card, head, clip, clip.device)


def evaluate(
    predictor: Predictor,
    samples: Iterable[Sample],
    keep: Callable[[Sample, np.ndarray], None] | None = None,
    skip: Callable[[Sample, DataError], None] | None = None,
) -> Evaluation:
    """Both protocols over the samples that have a truth mask, one image in memory at a time.

    Args:
        keep: is given each sample with its label map of the second protocol.
        skip: is given each sample that can't be used, and why; None: the first one ends the evaluation.

    Raises:
        DataError: no sample has a mask, or masks and tags can't belong together; without `skip`, an image or mask
            can't be read, or their sizes differ.
    """
    single, full = Confusion(len(predictor.classes) + 1), Confusion(len(predictor.classes) + 1)
    count, skipped, counting = 0, None, Counting(predictor.classes.names)
    for sample in samples:
        if sample.mask is None:
            continue
        try:
            truth = read_truth(sample.mask, sample.values)
            counting.add(truth, predictor.classes.numbers(sample.tags))
            first = predictor.predict(sample.image)
            if truth.shape != first.shape:
                raise DataError(
                    f"the mask {sample.mask} has shape {truth.shape}, the image {sample.image} {first.shape}; "
                    "expected the same. Make the mask at the image's size."
                )
            second = predictor.predict(sample.image, protocol=predictor.full)
            single.update(truth, first)
        except DataError as error:
            if skip is None:
                raise
            skip(sample, error)
            skipped = skipped or error
            continue
        full.update(truth, second)
        if keep is not None:
            keep(sample, second)
        count += 1
    if skipped and not count:
        raise DataError(f"no image with a truth mask could be used; the first: {skipped}")
    if count == 0:
        raise DataError("none of the images has a truth mask; expected at least one. Give data.masks.")
    belonging = counting.result()
    if not belonging.together:
        raise DataError(belonging.refusal("the held-out photographs"))
    return Evaluation(single, full, count, belonging)


def full_protocol(config: PredictConfig) -> Protocol:
    """The second protocol of METHOD.md 6, as `predict` of the configuration says."""
    return Protocol(config.scales, config.flip, config.crf)


def window_starts(length: int, window: int) -> list[int]:
    """Where windows of `window` patches begin so that they cover `length` patches, evenly spread and overlapping."""
    if length <= window:
        return [0]
    stride = max(1, window - math.ceil(window / OVERLAP))
    count = math.ceil((length - window) / stride) + 1
    return [round(number * (length - window) / (count - 1)) for number in range(count)]


def _labels(shares: Float[Tensor, "P h w"], size: tuple[int, int], confidence: float) -> UInt8[np.ndarray, "H W"]:
    """argmax at another size, one class at a time so that memory does not grow with the classes."""
    same = shares.shape[1:] == size
    best = shares[0].clone() if same else to_pixels(shares[None, :1], size)[0, 0]
    labels = torch.zeros(size, dtype=torch.uint8, device=shares.device)
    for number in range(1, len(shares)):
        one = shares[number] if same else to_pixels(shares[None, number : number + 1], size)[0, 0]
        higher = one > best
        best = torch.where(higher, one, best)
        labels.masked_fill_(higher, number)
    labels.masked_fill_(best < confidence, IGNORE)
    return labels.cpu().numpy()
