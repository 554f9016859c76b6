"""A trained network as one ONNX graph: a photograph in, its label map out, CLIP included (METHOD.md 6, first protocol).

    labels = argmax resize( softmax( bilinear( logits( resize(image) ) ) ) )

The same steps as `predict` with one scale: the photograph is scaled down to `max_side` (Lanczos), then to whole patches
(bicubic), both rounded to 8 bits between the axes as Pillow does; position embeddings are interpolated to the patch
grid; probabilities come back to the photograph's size. All of it lies in the graph, for any height and width.

What the graph leaves out: windows (images longer than `predict.window` after `max_side` are seen whole), mirror images,
further scales and the CRF. Letters: H W pixels, h w patch grid, L blocks, P = C + 1 labels.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from vpl import __version__
from vpl.clip.block import plainly
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError
from vpl.network.card import Card
from vpl.network.grids import to_pixels
from vpl.network.head import Network, Sight

NETWORK_FILE = "network.onnx"
OPSET = 18
"""The first with all that is needed; runtimes of 2023 know it."""
_CUBIC = -0.5
_FINEST_SCALE = 1000


class Graph(nn.Module):
    """(H, W, 3) RGB uint8 to (H, W) uint8 label values: 0 background, c + 1 class c.

    Args:
        clip: the frozen CLIP on the CPU in float32; None for a student.
    """

    def __init__(self, card: Card, head: Network, clip: FrozenClip | None):
        super().__init__()
        self.head, self.clip = head, clip
        self.patch, self.longest = card.patch, card.max_side
        self.scale = Fraction(card.scale).limit_denominator(_FINEST_SCALE)
        self.labels = len(card.classes) + 1
        self.register_buffer("mean", torch.tensor(card.mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(card.std)[:, None, None], persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, image: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H W"]:
        height, width, _ = image.shape
        longest = torch.sym_max(torch.sym_max(height, width), self.longest)
        shown = tuple(
            torch.sym_max(1, (2 * side * self.longest + longest) // (2 * longest)) for side in (height, width)
        )
        pixels = resize(image.permute(2, 0, 1).float(), shown, _lanczos, 3)
        up, down = self.scale.numerator, self.scale.denominator * self.patch
        grid = tuple((side * up + down - 1) // down for side in shown)
        pixels = resize(pixels, tuple(side * self.patch for side in grid), _cubic, 2)
        pixels = ((pixels / 255 - self.mean) / self.std)[None]
        logits = self.head(_Traced(pixels, grid, self.clip)).logits
        shares = to_pixels(logits, shown).softmax(dim=1)
        best = to_pixels(shares[:, :1], (height, width))
        labels = torch.zeros_like(best, dtype=torch.uint8)
        for label in range(1, self.labels):  # one at a time, as predict does: a large photograph has room for few
            one = to_pixels(shares[:, label : label + 1], (height, width))
            labels = torch.where(one > best, torch.full_like(labels, label), labels)
            best = torch.maximum(one, best)
        return labels[0, 0]


class _Traced(Sight):
    """One image whose features come from the encoder's steps without a branch on the size."""

    def __init__(self, pixels: Float[Tensor, "1 3 H W"], grid: tuple[int, int], clip: FrozenClip | None):
        super().__init__(pixels, clip)
        self._grid = grid

    @property
    def grid(self) -> tuple[int, int]:
        return self._grid

    @property
    def blocks(self) -> list[Float[Tensor, "1 hw width"]]:
        """Patch tokens that leave each block of CLIP, as `FrozenClip.encode` has them."""
        clip: Any = self._clip  # a head that asks for blocks has one
        (h, w), side, tower = self._grid, clip.patch, clip.image
        rows = self.pixels[0].reshape(3, h, side, w, side).permute(1, 3, 0, 2, 4).reshape(1, h * w, 3 * side * side)
        known = round((tower.positions.shape[0] - tower.first) ** 0.5)
        square = tower.positions[tower.first :].T.reshape(1, -1, known, known)
        if clip.architecture.antialias:
            down, across = (_weights(known, new, _linear, 1) for new in self._grid)
            moved = (down @ square[0] @ across.T).flatten(1).T
        else:
            moved = to_pixels(square, self._grid)[0].flatten(1).T
        x = tower.begin(rows @ tower.patch.flatten(1).T, torch.cat([tower.positions[: tower.first], moved]))
        tokens = []
        for block in tower.blocks:
            x = plainly(block, x)
            tokens.append(x[:, tower.first :])
        return tokens


def resize(
    image: Float[Tensor, "3 H W"], size: tuple[int, int], kernel: Callable[[Tensor], Tensor], support: int
) -> Float[Tensor, "3 height width"]:
    """Pillow's resize of 8-bit values: columns, then rows, each rounded and cut to 0 to 255.

    Pillow 13 may begin with the rows where it shrinks both sides; a quarter of the values then differ by 1.

    Args:
        kernel: weight by distance in pixels of the coarser image; zero from `support` on.
    """
    columns, rows = (
        _weights(old, new, kernel, support) for old, new in zip(image.shape[:0:-1], size[::-1], strict=True)
    )
    return _eight_bits(rows @ _eight_bits(image @ columns.T))


def _weights(old: int, new: int, kernel: Callable[[Tensor], Tensor], support: int) -> Float[Tensor, "new old"]:
    """What each new pixel takes of each old one; rows sum to 1. The kernel ends where Pillow's does."""
    step = torch.full((), old, dtype=torch.float64) / new
    stretch = step.clamp(min=1.0)
    centers = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * step
    places = torch.arange(old, dtype=torch.float64)[None]
    first = (centers - support * stretch + 0.5).floor()
    last = (centers + support * stretch + 0.5).floor()
    weights = kernel((places + 0.5 - centers) / stretch).where((places >= first) & (places < last), 0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _eight_bits(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _cubic(x: Tensor) -> Tensor:
    """Pillow's bicubic: a = -1/2."""
    x = x.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _CUBIC
    return near.where(x < 1, far.where(x < 2, 0.0))


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _lanczos(x: Tensor) -> Tensor:
    """Pillow's Lanczos: sinc windowed by a sinc three times as wide."""
    return (torch.sinc(x) * torch.sinc(x / 3)).where(x.abs() < 3, 0.0)


def write(
    folder: Path, card: Card, head: Network, clip: FrozenClip | None, evaluations: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write network.onnx: input `image` (height, width, 3) uint8, output `labels` (height, width) uint8.

    The model's metadata tell the classes, the CLIP and its hash; they are texts, `classes` and `colors` JSON.

    Raises:
        ModelError: onnx or onnxscript is missing, or torch can't export this network.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError('onnx and onnxscript are not installed; pip install "vpl-seg[onnx]".') from error
    if head.reads_clip and clip is not None and clip.image.turned is not None:
        raise ModelError(f"{clip.name} turns patches by their place (EVA), which vpl does not export to ONNX.")
    network = Graph(card, head, clip).eval()
    any_size = torch.export.Dim.DYNAMIC
    example = torch.zeros((5 * card.patch + 3, 7 * card.patch + 1, 3), dtype=torch.uint8)
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                network, (example,), dynamo=True, dynamic_shapes=({0: any_size, 1: any_size},), input_names=["image"],
                output_names=["labels"], opset_version=OPSET, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter's kinds are many and not public
        reason = str(error.__cause__ or error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"torch could not export this network to ONNX ({reason}); try another torch.") from error
    finally:
        told.setLevel(level)
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # they tell where this machine keeps its files
    model.producer_name, model.producer_version = "vpl", __version__
    facts = {
        "classes": json.dumps(["background", *card.classes.names], ensure_ascii=False),
        "colors": json.dumps(card.classes.palette()[: len(card.classes) + 1]),
        "clip": card.clip_name,
        "clip_hash": card.clip_hash,
        "max_side": str(card.max_side),
        "reads": "one RGB image (height, width, 3), uint8, upright",
        "gives": "label values (height, width), uint8: places in classes",
    }
    model.metadata_props.update(facts)
    program.save(str(folder / NETWORK_FILE), external_data=False)
