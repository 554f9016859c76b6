"""The permutohedral lattice: a Gaussian between all pixels as three small sparse products.

    n K n Q = slice( blur_D ... blur_1 ( splat Q ) ),    n = 1 / sqrt(K 1)

After Adams, Baek and Davis 2010; METHOD.md 4. Each pixel spreads over the D corners of the simplex around its
features (splat), each lattice point takes in its two neighbours along each of D directions (blur), each pixel reads its
corners (slice). The points of all images of a batch lie on one lattice, where those of different images never meet.
All steps are sums over lists of rows, each in a fixed order: the same numbers on any number of threads.

Letters: C labels, N pixels, d features of a pixel, D = d + 1 corners of its simplex and directions, M lattice points
that are a corner of some pixel's simplex, E entries of a sparse matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vpl.errors import ConfigError

MOST_CODES = 2**62
"""Numbers that a point may have, with room for a step to either side below 2^63."""


@dataclass(frozen=True)
class _Bags:
    """A sparse matrix by rows: row i has the entries start[i] up to start[i + 1] of columns and weights."""

    columns: Int[Tensor, " E"]
    start: Int[Tensor, " rows_and_1"]
    weights: Float[Tensor, " E"] | None = None

    def __matmul__(self, dense: Float[Tensor, "columns C"]) -> Float[Tensor, "rows C"]:
        return F.embedding_bag(
            self.columns, dense, self.start, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )


@dataclass(frozen=True)
class Lattice:
    """n K n. Row 0 of the points stands for all that don't exist: it holds zeros.

    Attributes:
        splat: pixels to points, n folded in.
        neighbours: for each direction the sum of the points ahead and behind.
        slice: points to pixels, n and the halves of the blur folded in.
    """

    splat: _Bags
    neighbours: tuple[_Bags, ...]
    slice: _Bags

    @classmethod
    def of(cls, features: Sequence[Float[Tensor, "d _"]]) -> Lattice:
        """The kernel of the pixels of several images, in units of their σ; those of different images are strangers.

        Raises:
            ConfigError: the features reach so far that the points can't be numbered.
        """
        corners, weights, strides = _simplices(torch.cat(list(features), dim=1), [one.shape[1] for one in features])
        D, N = corners.shape
        codes, order = corners.view(-1).sort(stable=True)
        points, number, count = torch.unique_consecutive(codes, return_inverse=True, return_counts=True)
        start = F.pad(count.cumsum(0), (2, 0)).int()
        owners, spread = order.remainder(N).int(), weights.view(-1).index_select(0, order)
        place = torch.empty_like(number, dtype=torch.int32).scatter_(0, order, number.int().add_(1))
        gathered = weights.t().mul(2.0**-D).contiguous()
        ends = torch.arange(0, D * N + 1, D, dtype=torch.int32, device=weights.device)
        kernel = cls(
            _Bags(owners, start, spread),
            _neighbours(points, strides),
            _Bags(place.view(D, N).t().reshape(-1), ends, gathered.view(-1)),
        )
        norm = kernel(weights.new_ones(N, 1))[:, 0].add_(1e-20).rsqrt_()
        spread.mul_(norm.index_select(0, owners))
        gathered.mul_(norm[:, None])
        return kernel

    def __call__(self, Q: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """n K n Q."""
        values = self.splat @ Q
        for both in self.neighbours:
            values = _of_pairs(both, values).add_(values, alpha=2)
        return self.slice @ values


def _of_pairs(both: _Bags, values: Float[Tensor, "points C"]) -> Float[Tensor, "points C"]:
    """`both @ values`. On a CPU two labels are fetched as one complex number: the same sums in half of the time."""
    if values.shape[1] != 2 or values.device.type != "cpu":
        return both @ values
    behind, ahead = values.view(torch.complex64)[:, 0].index_select(0, both.columns).view(-1, 2).unbind(1)
    return torch.view_as_real(behind + ahead)


@dataclass(frozen=True)
class _Strides:
    """How lattice points are numbered.

    A point has integer coordinates along d of the D directions (all but the middle one: together they add up to
    nothing), the digits of its number. So a step along a direction is one addition, and each corner of a simplex is
    such a step away from the corner before. The image is the highest digit.

    Attributes:
        digits: what one step along each of the d directions adds, and how many values that coordinate has.
        steps: what a step along each of the D directions adds.
    """

    digits: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]


def _simplices(
    features: Float[Tensor, "d N"], pixels: Sequence[int]
) -> tuple[Int[Tensor, "D N"], Float[Tensor, "D N"], _Strides]:
    """The numbers of the lattice points around each pixel, its barycentric weights, and how points are numbered.

    Args:
        pixels: of each image, which lie one after the other in `features`.
    """
    d, N = features.shape
    D = d + 1
    elevated = features.new_empty(D, N)
    below = features.new_zeros(N)
    for j in range(d, 0, -1):
        scaled = features[j - 1] * math.sqrt(2 / 3 / (j * (j + 1)))
        torch.sub(below, scaled * j, out=elevated[j])  # rounded twice, as every other implementation does
        below += scaled
    elevated[0] = below

    nearest = elevated.round()
    rest = elevated.sub_(nearest)
    rank = torch.zeros(D, N, dtype=torch.int8, device=features.device)
    for i in range(D):
        for j in range(i + 1, D):
            smaller = rest[i] < rest[j]
            rank[i] += smaller
            rank[j] += ~smaller
    rank += nearest.sum(0).to(torch.int8)
    wrapped = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    rank += D * wrapped
    nearest += wrapped
    rest -= wrapped
    rank = rank.long()

    descending = torch.empty_like(rest).scatter_(0, rank, rest)
    weights = torch.empty_like(rest)
    weights[0] = 1 + descending[d] - descending[0]
    for corner in range(1, D):
        torch.sub(descending[d - corner], descending[D - corner], out=weights[corner])

    middle = d // 2
    place = nearest[middle] - nearest
    strides, low, size = _numbering(place, middle, len(pixels))
    kind = torch.int32 if size * len(pixels) < 2**31 else torch.int64
    corners = torch.empty(D, N, dtype=kind, device=features.device)
    corners[0] = sum((place[i].to(kind) - low[i]) * strides.steps[i] for i in range(D) if i != middle)
    for image, own in enumerate(corners[0].split(list(pixels))):
        own += image * size
    step = torch.tensor(strides.steps, dtype=kind, device=features.device)[:, None].expand(D, N)
    step = torch.empty_like(corners).scatter_(0, rank, step)
    for corner in range(1, D):
        torch.add(corners[corner - 1], step[D - corner], out=corners[corner])
    return corners, weights, strides


def _numbering(place: Float[Tensor, "D N"], middle: int, images: int) -> tuple[_Strides, list[int], int]:
    """How to number points with these first corners, the lowest value of each coordinate, and the numbers an image has.

    Every coordinate has room for one step of a corner and one of the blur to either side.
    """
    low, high = torch.stack(place.aminmax(dim=1)).long().tolist()
    steps, digits, size = [0] * len(low), [], 1
    for i in reversed(range(len(low))):
        if i != middle:
            steps[i], values = size, high[i] - low[i] + 5
            digits.append((size, values))
            size *= values
    steps[middle] = -sum(steps)
    if size * images >= MOST_CODES:
        raise ConfigError(
            f"the lattice needs {size:.1e} cells, more than 2^62, for kernels this narrow; expected a larger σ "
            "of position or colour: raise gaussian_sigma, bilateral_sigma or bilateral_color."
        )
    return _Strides(tuple(digits), tuple(steps)), [one - 2 for one in low], size


def _neighbours(points: Int[Tensor, " M"], strides: _Strides) -> tuple[_Bags, ...]:
    """For each direction the points behind and ahead of every point, numbered from 1; 0: there is none."""
    start = torch.arange(0, 2 * len(points) + 3, 2, dtype=torch.int32, device=points.device)
    last = min(strides.steps)
    found = {last: _searched(points, last)} | dict(_along_digits(points, strides.digits))
    return tuple(_Bags(F.pad(found[step], (0, 0, 1, 0)).view(-1), start) for step in strides.steps)


def _searched(points: Int[Tensor, " M"], step: int) -> Int[Tensor, "M 2"]:
    """Who is `step` behind and ahead: every point looks for the one ahead."""
    numbers = torch.arange(1, len(points) + 1, dtype=torch.int32, device=points.device)
    wanted = points + step
    place = torch.searchsorted(points, wanted).clamp_(max=len(points) - 1)
    ahead = (points.index_select(0, place) == wanted) * (place + 1)
    pairs = torch.zeros(len(points) + 1, 2, dtype=torch.int32, device=points.device)
    pairs[1:, 1] = ahead
    pairs[:, 0].scatter_(0, ahead, numbers)  # those that found nobody write to row 0
    return pairs[1:]


def _along_digits(
    points: Int[Tensor, " M"], digits: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Int[Tensor, "M 2"]]]:
    """(stride, who is a stride behind and ahead) of every digit.

    Where a coordinate is the last digit, neighbours along it follow one another. Sorting by the last digit alone makes
    it the first one, so that the next coordinate has its turn. That is a third of the time of searches.
    """
    numbers = torch.arange(1, len(points) + 1, dtype=torch.int32, device=points.device)
    order = torch.arange(len(points), device=points.device)
    for turn, (stride, values) in enumerate(digits, start=1):
        near = points[1:] - points[:-1] == stride
        sorted_pairs = torch.zeros(len(points), 2, dtype=torch.int32, device=points.device)
        torch.mul(numbers[:-1], near, out=sorted_pairs[1:, 0])
        torch.mul(numbers[1:], near, out=sorted_pairs[:-1, 1])
        pairs = torch.empty_like(sorted_pairs)  # both numbers move as one of 64 bits
        pairs.view(torch.int64)[:, 0].scatter_(0, order, sorted_pairs.view(torch.int64)[:, 0])
        yield stride, pairs
        if turn < len(digits):
            digit = points.div(stride, rounding_mode="floor").remainder_(values)
            turned = digit.to(torch.uint8 if values <= 256 else torch.int32).sort(stable=True).indices
            points, order, numbers = (one.index_select(0, turned) for one in (points, order, numbers))
