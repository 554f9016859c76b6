"""PAR: masks that follow the photograph by its own colours, pixel by pixel, without a lattice. [ref]

    kernel_n = softmax_n( − mean over channels of ( |x_n − x| / (std_c + 1e-8) / w1 )² )
             + w2 · softmax_n( − ( dist_n / (std + 1e-8) / w1 )² )
    masks <- Σ_n kernel_n · masks_n,   again and again

n runs over eight directions times the dilations, edges repeated, the pixel itself left out; std_c is the deviation of
the neighbours' colours at that pixel, std that of their distances. AFA's and WeCLIP's refiner (arXiv 2203.02664,
2406.11189); METHOD.md 5b; tests/golden/README-2.md B. The weights of a pixel sum to 1 + w2, so masks grow by that
factor each time, as the reference's do: compare them, but take no threshold. An affine change of the colours changes
nothing.

Letters: N images, K masks of an image, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.config import PAR_COLOUR, PAR_DILATIONS, PAR_PLACE, PAR_ROUNDS
from vpl.errors import DataError
from vpl.machine import shared

PIXELS_AT_ONCE = 2**16
"""Pixels of a band of rows that a CPU computes together: what is read again and again stays in its cache. [ours]"""
ROWS = 16
"""A band has a multiple of so many rows, so that exponentials are taken of the same numbers together as without it."""
_EPS = 1e-8
_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@torch.no_grad()
def par(
    images: Float[Tensor, "N 3 _ _"],
    masks: Float[Tensor, "N K H W"],
    rounds: int = PAR_ROUNDS,
    dilations: Sequence[int] = PAR_DILATIONS,
    colour: float = PAR_COLOUR,
    place: float = PAR_PLACE,
) -> Float[Tensor, "N K H W"]:
    """Masks of N images after so many rounds, on the device of the masks.

    Args:
        images: RGB of any range; of another size than the masks, they are resized to it (bilinear, aligned corners).
        masks: any scores; rows need not sum to 1.
        rounds: 0 gives the masks back.
        dilations: steps to the neighbours, pixels.
        colour: w1, the width of both kernels.
        place: w2, the weight of the distances.

    Raises:
        DataError: there are not as many images as sets of masks.
    """
    if len(images) != len(masks):
        raise DataError(f"there are {len(images)} images and {len(masks)} sets of masks; expected one set an image.")
    if not rounds or not masks.numel():
        return masks
    images = images.to(masks)
    if images.shape[2:] != masks.shape[2:]:
        images = F.interpolate(images, size=masks.shape[2:], mode="bilinear", align_corners=True)
    H, W = masks.shape[2:]
    step = ROWS * max(1, PIXELS_AT_ONCE // (ROWS * W)) if masks.device.type == "cpu" else H
    bands = [slice(top, min(top + step, H)) for top in range(0, H, step)]
    padded = _padded(images, dilations)
    moments = _moments(padded)
    kernels: dict[int, Tensor] = {}

    def weigh(rows: slice) -> None:
        kernels[rows.start] = _kernel(padded, moments, rows, W, dilations, colour, place)

    def follow(rows: slice) -> None:
        spread = masks[:, :, rows]
        for weights, neighbour in zip(kernels[rows.start], _neighbours(padded, rows, W, dilations), strict=True):
            spread.addcmul_(weights, neighbour)

    shared(weigh, bands)
    del moments
    for _ in range(rounds):
        padded, masks = _padded(masks, dilations), torch.zeros_like(masks)
        shared(follow, bands)
    return masks


def par_at_once(
    images: Float[Tensor, "N 3 H W"],
    masks: Float[Tensor, "N K H W"],
    rounds: int,
    dilations: Sequence[int],
    colour: float = PAR_COLOUR,
    place: float = PAR_PLACE,
) -> Float[Tensor, "N K H W"]:
    """`par` with all neighbours in memory: few operations, as an exported graph wants them."""
    apart = _shifted(images, dilations) - images
    square = (apart - apart.mean(dim=0)).square().sum(dim=0)
    deviation = (square / (len(apart) - 1)).sqrt().clamp(min=_EPS)  # exporters take x + 1e-8 for x
    scale = 1 / deviation / colour
    weights = (-(apart * scale).square().mean(2, keepdim=True)).softmax(0)
    kernel = weights + place * _nearness(dilations, colour).to(weights)[:, None, None, None, None]
    for _ in range(rounds):
        masks = (kernel * _shifted(masks, dilations)).sum(dim=0)
    return masks


def _padded(planes: Float[Tensor, "N C H W"], dilations: Sequence[int]) -> Float[Tensor, "N C _ _"]:
    """The planes with their edges repeated as far as the farthest neighbour."""
    return F.pad(planes, (max(dilations),) * 4, mode="replicate")


def _neighbours(
    padded: Float[Tensor, "N C _ _"], rows: slice, W: int, dilations: Sequence[int]
) -> Iterator[Float[Tensor, "N C h W"]]:
    """A band of rows of the planes as each neighbour has them: dilation by dilation, eight directions each."""
    most = max(dilations)
    for step in dilations:
        for down, across in _DIRECTIONS:
            by, left = most + down * step, most + across * step
            yield padded[:, :, rows.start + by : rows.stop + by, left : left + W]


def _shifted(planes: Float[Tensor, "N C H W"], dilations: Sequence[int]) -> Float[Tensor, "n N C H W"]:
    """The same all at once, by convolutions with one 1."""
    rows = [3 * (1 + down) + 1 + across for down, across in _DIRECTIONS]
    shifts = torch.eye(9)[rows].reshape(-1, 1, 3, 3).to(planes)
    found = []
    for step in dilations:
        padded = F.pad(planes, (step,) * 4, mode="replicate").flatten(0, 1)[:, None]
        found.append(F.conv2d(padded, shifts, dilation=step).unflatten(0, planes.shape[:2]).movedim(2, 0))
    return torch.cat(found)


def _kernel(
    padded: Float[Tensor, "N 3 _ _"],
    moments: Float[Tensor, "N 6 _ _"],
    rows: slice,
    W: int,
    dilations: Sequence[int],
    colour: float,
    place: float,
) -> Float[Tensor, "n N 1 h W"]:
    """The weights of a band of rows. How far two pixels' colours are apart serves both of them."""
    top, h = rows.start + max(dilations), rows.stop - rows.start
    scale = (1 / ((_deviation(moments, rows, W, dilations) + _EPS) * colour)).to(padded)
    near = scale.square_().div_(-scale.shape[1])
    apart = padded.new_empty((len(dilations), len(_DIRECTIONS), len(padded), h, W))
    for step, own in zip(dilations, apart, strict=True):
        for number, (down, across) in enumerate(_DIRECTIONS[: len(_DIRECTIONS) // 2]):
            down, across = down * step, across * step
            tall, left = slice(top, top + h - down), max(dilations) - max(across, 0)
            wide = slice(left, left + W + abs(across))
            there = padded[:, :, tall.start + down : tall.stop + down, wide.start + across : wide.stop + across]
            square = (padded[:, :, tall, wide] - there).square_()
            ahead = square[:, :, :h, max(across, 0) :][..., :W]
            behind = square[:, :, -down:][..., max(-across, 0) :][..., :W]
            for one, found in ((ahead, own[number]), (behind, own[-1 - number])):
                torch.mul(one[:, 0], near[:, 0], out=found)
                for channel in range(1, one.shape[1]):
                    found.addcmul_(one[:, channel], near[:, channel])
    weights = apart.flatten(0, 1)[:, :, None].softmax(0)
    return weights.add_(_nearness(dilations, colour).mul_(place).to(weights)[:, None, None, None, None])


def _moments(padded: Float[Tensor, "N 3 _ _"]) -> Float[Tensor, "N 6 _ _"]:
    """Colours and their squares, in float64, so that a difference of sums of them loses nothing."""
    exact = padded.cpu().double() if padded.device.type == "mps" else padded.double()  # Apple's GPUs have no float64
    return torch.cat([exact, exact.square()], 1)


def _deviation(
    moments: Float[Tensor, "N 6 _ _"], rows: slice, W: int, dilations: Sequence[int]
) -> Float[Tensor, "N 3 h W"]:
    """Of the neighbours' colours in a band of rows: sums over squares of nine, by rows and then by columns."""
    most, h, count = max(dilations), rows.stop - rows.start, len(dilations) * len(_DIRECTIONS)
    middle = moments[:, :, rows.start + most : rows.stop + most, most : most + W]
    sums = middle * -len(dilations)
    for step in dilations:
        tall = moments[:, :, rows.start + most - step : rows.stop + most + step]
        wide = tall[..., most - step :][..., :W] + tall[..., most : most + W]
        wide += tall[..., most + step :][..., :W]
        for top in (0, step, 2 * step):
            sums += wide[:, :, top : top + h]
    total, squares = sums.chunk(2, 1)
    return squares.sub_(total.square() / count).div_(count - 1).clamp_(min=0).sqrt_()


def _nearness(dilations: Sequence[int], colour: float) -> Float[Tensor, " n"]:
    """The softmax over the neighbours' distances."""
    lengths = torch.tensor([step * math.hypot(*direction) for step in dilations for direction in _DIRECTIONS])
    return (-(lengths / (lengths.std() + _EPS) / colour).square()).softmax(0)
