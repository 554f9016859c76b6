"""Dense CRF: masks that follow the edges of the photograph.

    Q <- softmax over labels of ( log P + Σ_m w_m n_m K_m (n_m Q) ),    n_m = 1 / sqrt(K_m 1)

METHOD.md 4, after Krähenbühl and Koltun, NIPS 2011. K_m are Gaussian kernels between all pairs of pixels: one
over position alone (smoothness), one over position and colour (appearance). Labels that differ cost the same whichever
they are (Potts). K_m is applied on the permutohedral lattice (Adams, Baek and Davis 2010): splat, blur, slice.
Where numba is installed, tensors on the CPU go through its compiled kernels (`vpl.lattice`), one core an image; all
others through torch, the images of a batch on one lattice, with the same labels.

Letters: C labels, H W pixels, N = H·W, d features of a pixel, D = d + 1 corners of a simplex and blur directions,
M lattice points that are a corner of some pixel's simplex, E entries of a sparse matrix.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vpl.config import FAST_CELL, FAST_COLOUR, FAST_PIXELS, FAST_SMOOTH, PROBABILITY_FLOOR
from vpl.errors import ConfigError, DataError

CACHED_KERNELS = 4  # batches' sizes whose smoothness kernel is kept, about 150 bytes a pixel each
APPEARANCE_CORNERS = 6  # of a pixel's simplex in the larger of the two lattices
VALUES_AT_ONCE = 2**26  # pixels times (corners + labels) of one lattice: about 5 GB, 32-bit numbers below 2^31 / 10
IMPOSSIBLE = -1e30  # the logarithm of a label that an image hasn't
MODES = ("exact", "fast")
Number = float | int


def dense_crf(
    image: UInt8[Tensor, "H W 3"] | UInt8[np.ndarray, "H W 3"],
    probabilities: Float[Tensor, "C H W"] | Float[np.ndarray, "C H W"],
    **settings: Number | str,
) -> Float[Tensor, "C H W"]:
    """Mean-field label probabilities of a fully connected CRF over `image`: `dense_crfs` of one."""
    return dense_crfs([image], [probabilities], **settings)[0]


def dense_crfs(
    images: Sequence[UInt8[Tensor, "_ _ 3"] | UInt8[np.ndarray, "_ _ 3"]],
    probabilities: Sequence[Float[Tensor, "_ _ _"] | Float[np.ndarray, "_ _ _"]],
    *,
    rounds: int = 10,
    gaussian_sigma: Number = 1.0,
    gaussian_weight: Number = 3.0,
    bilateral_sigma: Number = 67.0,
    bilateral_color: Number = 3.0,
    bilateral_weight: Number = 4.0,
    mode: str = "exact",
) -> list[Float[Tensor, "_ _ _"]]:
    """Mean-field label probabilities of a fully connected CRF over each image.

    Through torch, the images share one lattice and their rounds run together; nothing in the rounds waits for the
    device. A label or pixel of one image never acts on another image.

    Args:
        images: RGB (H, W, 3), uint8, 0 to 255; their sizes may differ.
        probabilities: each image's unary probabilities (C, H, W) per label and pixel, at least 0, all on one device;
            a pixel's sum doesn't matter, and C may differ.
        rounds: mean-field rounds; 0 returns the input, normalised.
        gaussian_sigma: σ of the smoothness kernel, pixels.
        gaussian_weight: its weight; 0 leaves the kernel out.
        bilateral_sigma: σ of the appearance kernel's position, pixels.
        bilateral_color: σ of the appearance kernel's colour, levels of 255.
        bilateral_weight: its weight; 0 leaves the kernel out.
        mode: "exact": every pixel on the lattice; "fast": cells of 2 x 2 pixels, nearly the same labels, but exact for
            images of fewer than 256 x 256 pixels.

    Returns:
        (C, H, W) each, float32 on the device of the probabilities; sums to 1 over C.

    Raises:
        DataError: an image or its probabilities have another shape, type or range, or lie on several devices.
        ConfigError: a parameter is out of its range.

    Source: DenseCRF (Krähenbühl and Koltun 2011), whose results "exact" reproduces; the defaults are those of CLIP-ES;
    "fast" is ours.
    """
    _check_parameters(
        {"gaussian_sigma": gaussian_sigma, "bilateral_sigma": bilateral_sigma, "bilateral_color": bilateral_color},
        {"gaussian_weight": gaussian_weight, "bilateral_weight": bilateral_weight},
        rounds,
        mode,
    )
    if len(images) != len(probabilities):
        raise DataError(
            f"there are {len(images)} images and {len(probabilities)} maps of probabilities; expected one map an image."
        )
    weights = float(gaussian_weight), float(bilateral_weight)
    with torch.no_grad():
        found, fields = [], []
        for pair in zip(images, probabilities, strict=True):
            image, one = _checked(*pair)
            log_p = one.clamp_min(PROBABILITY_FLOOR).log_()
            found.append(log_p)
            if mode == "exact" or log_p[0].numel() < FAST_PIXELS:
                sigmas = float(gaussian_sigma), float(bilateral_sigma), float(bilateral_color)
                fields.append(_Field(image, log_p, *sigmas))
            else:
                cells = F.avg_pool2d(torch.cat([image, log_p]), FAST_CELL, ceil_mode=True, count_include_pad=False)
                sigmas = gaussian_sigma * FAST_SMOOTH / FAST_CELL, bilateral_sigma / FAST_CELL
                fields.append(_Field(cells[:3], cells[3:], *sigmas, bilateral_color * FAST_COLOUR))
        if len({log_p.device for log_p in found}) > 1:
            raise DataError("the probabilities lie on several devices; expected one: move them.")
        if not rounds or not any(weights):
            return [log_p.softmax(0) for log_p in found]
        messages = chain.from_iterable(_mean_fields(part, rounds, weights) for part in _portions(fields))
        for number, message in enumerate(messages):
            log_p = found[number]
            if message.shape != log_p.shape:
                H, W = log_p.shape[1:]
                message = F.interpolate(message[None], scale_factor=FAST_CELL, mode="bilinear")[0, :, :H, :W]
            found[number] = message.add(log_p).softmax(0)
        return found


def _check_parameters(sigmas: dict[str, Number], weights: dict[str, Number], rounds: object, mode: str) -> None:
    for name, given in sigmas.items():
        if not (math.isfinite(given) and given > 0):
            raise ConfigError(f"{name} is {given!r}; expected a finite number above 0.")
    for name, given in weights.items():
        if not (math.isfinite(given) and given >= 0):
            raise ConfigError(f"{name} is {given!r}; expected a finite number of at least 0 (0 leaves the kernel out).")
    if not isinstance(rounds, int) or rounds < 0:
        raise ConfigError(f"rounds is {rounds!r}; expected a whole number of at least 0.")
    if mode not in MODES:
        raise ConfigError(f"mode is {mode!r}; expected one of {', '.join(MODES)}.")


def _checked(image, probabilities) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "C H W"]]:
    """Both as contiguous float32 planes on the device of the probabilities, or a DataError."""
    image, probabilities = _as_tensor("the image", image), _as_tensor("the probabilities", probabilities)
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"the image has shape {tuple(image.shape)}; expected (H, W, 3): convert it to RGB.")
    if image.dtype != torch.uint8:
        raise DataError(f"the image has dtype {_name(image)}; expected uint8, 0 to 255: scale, round and convert it.")
    if probabilities.ndim != 3:
        raise DataError(
            f"the probabilities have shape {tuple(probabilities.shape)}; expected (C, H, W): one map a label."
        )
    if not probabilities.is_floating_point():
        raise DataError(f"the probabilities have dtype {_name(probabilities)}; expected floating point: convert them.")
    H, W, _ = image.shape
    C, *size = probabilities.shape
    if size != [H, W]:
        raise DataError(
            f"the probabilities are {size[0]} x {size[1]} pixels and the image is {H} x {W}; "
            "expected the same height x width: resize the probabilities."
        )
    if not C or not H * W:
        raise DataError(f"there are no {'pixels' if C else 'labels'}; expected at least one: leave this image out.")
    low, high = (limit.item() for limit in probabilities.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("some probabilities are not finite; expected numbers of at least 0: look where they come from.")
    if low < 0:
        raise DataError(
            f"the smallest probability is {low:.3g}, negative; expected at least 0: apply softmax to logits."
        )
    image = image.to(probabilities.device).permute(2, 0, 1).float().contiguous()
    return image, probabilities.detach().float().contiguous()


def _as_tensor(name: str, given) -> Tensor:
    if isinstance(given, Tensor):
        return given
    if not isinstance(given, np.ndarray) or given.dtype.kind not in "biuf":
        kind = f"an array of {given.dtype}" if isinstance(given, np.ndarray) else f"a {type(given).__name__}"
        raise DataError(f"{name} came as {kind}; expected an array or tensor of numbers: convert it.")
    return torch.tensor(np.ascontiguousarray(given))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class _Field:
    """One image as the rounds see it: pixels, or cells of them.

    Attributes:
        image: colours, levels of 255.
        log_p: unary logarithms.
        smooth: σ of the smoothness kernel.
        place: σ of the appearance kernel's position.
        colour: σ of its colour.
    """

    image: Float[Tensor, "3 H W"]
    log_p: Float[Tensor, "C H W"]
    smooth: float
    place: float
    colour: float


def _portions(fields: Sequence[_Field]) -> Iterator[list[_Field]]:
    """The fields in order, so many at once that the lattice's memory and its 32-bit numbers are no concern."""
    part, pixels, labels = [], 0, 0
    for field in fields:
        C, N = field.log_p.flatten(1).shape
        pixels, labels = pixels + N, max(labels, C)
        if part and pixels * (APPEARANCE_CORNERS + labels) > VALUES_AT_ONCE:
            yield part
            part, pixels, labels = [], N, C
        part.append(field)
    if part:
        yield part


def _mean_fields(fields: Sequence[_Field], rounds: int, weights: tuple[float, float]) -> list[Float[Tensor, "_ _ _"]]:
    """Σ_m w_m n_m K_m (n_m Q) of the last round of each field: by numba one by one, or by torch together.

    Args:
        rounds: at least 1.
        weights: of the smoothness and the appearance kernel.
    """
    compiled = _compiled() if fields[0].log_p.device.type == "cpu" else None
    if compiled:
        found = []
        for one in fields:
            planes = one.image.contiguous().numpy(), one.log_p.contiguous().numpy()
            kernels = (one.smooth, weights[0]), (one.place, one.colour, weights[1])
            found.append(torch.from_numpy(compiled.mean_field(*planes, rounds, *kernels)))
        return found
    try:
        return _together(fields, rounds, weights)
    except ConfigError:  # kernels so narrow that the points of all images can't be numbered
        if len(fields) == 1:
            raise
    return [_together([one], rounds, weights)[0] for one in fields]


def _together(fields: Sequence[_Field], rounds: int, weights: tuple[float, float]) -> list[Float[Tensor, "_ _ _"]]:
    """The same through torch, on one lattice a kernel."""
    kernels = []
    if weights[0]:
        sizes = tuple((*one.log_p.shape[1:], one.smooth) for one in fields)
        kernels.append((weights[0], _smoothness(sizes, fields[0].log_p.device)))
    if weights[1]:
        kernels.append((weights[1], _appearance(fields)))
    most = max(len(one.log_p) for one in fields)
    log_p = torch.cat(
        [F.pad(one.log_p.flatten(1), (0, 0, 0, most - len(one.log_p)), value=IMPOSSIBLE) for one in fields], dim=1
    )
    message = torch.zeros_like(log_p)
    for _ in range(rounds):
        Q = message.add(log_p).softmax(0)
        message.zero_()
        for weight, kernel in kernels:
            message.add_(kernel(Q), alpha=weight)
    parts = message.split([one.log_p[0].numel() for one in fields], dim=1)
    return [part[: len(one.log_p)].view_as(one.log_p) for part, one in zip(parts, fields, strict=True)]


@functools.cache
def _compiled() -> ModuleType | None:
    """`vpl.lattice`, or None without numba."""
    try:
        from vpl.method import lattice
    except ImportError:
        return None
    return lattice


def _appearance(fields: Sequence[_Field]) -> _Lattice:
    """The kernel over position and colour."""
    grids = (_grid(*one.log_p.shape[1:], one.log_p.device) / one.place for one in fields)
    colours = (one.image.flatten(1) / one.colour for one in fields)
    return _Lattice.of([torch.cat(pair) for pair in zip(grids, colours, strict=True)])


@functools.lru_cache(maxsize=CACHED_KERNELS)
def _smoothness(sizes: tuple[tuple[int, int, float], ...], device: torch.device) -> _Lattice:
    """The kernel over position alone: it depends on each image's height, width and σ, and on nothing in it."""
    return _Lattice.of([_grid(H, W, device) / sigma for H, W, sigma in sizes])


def _grid(H: int, W: int, device: torch.device) -> Float[Tensor, "2 N"]:
    """x and y of every pixel."""
    x = torch.arange(W, dtype=torch.float32, device=device)
    y = torch.arange(H, dtype=torch.float32, device=device)
    return torch.stack([x.expand(H, W), y[:, None].expand(H, W)]).flatten(1)


@dataclass(frozen=True)
class _Bags:
    """A sparse matrix by rows: row i has the entries start[i] up to start[i + 1] of columns and weights."""

    columns: Int[Tensor, " E"]
    start: Int[Tensor, " rows_and_1"]
    weights: Float[Tensor, " E"]

    def __matmul__(self, dense: Float[Tensor, "columns C"]) -> Float[Tensor, "rows C"]:
        return F.embedding_bag(
            self.columns, dense, self.start, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )


@dataclass(frozen=True)
class _Lattice:
    """n K n of the module's equation as a product of sparse matrices, all of them small gathers and sums."""

    splat: _Bags
    blur: tuple[_Bags, ...]
    slice: _Bags

    @classmethod
    def of(cls, features: Sequence[Float[Tensor, "d _"]]) -> _Lattice:
        """The kernel of the pixels of several images, in units of their σ; those of different images are strangers."""
        corners, weights, directions = _simplices(torch.cat(features, dim=1), [one.shape[1] for one in features])
        D, N = corners.shape
        codes, order = corners.view(-1).sort(stable=True)
        new = torch.ones_like(codes, dtype=torch.bool)
        torch.ne(codes[1:], codes[:-1], out=new[1:])
        first = new.nonzero()[:, 0]
        points = codes.index_select(0, first)
        start = torch.cat([first, first.new_tensor([D * N])]).int()
        splat = _Bags(order.int().remainder_(N), start, weights.view(-1).index_select(0, order))
        number = new.cumsum(0, dtype=torch.int32).sub_(1)
        number = torch.empty_like(number).scatter_(0, order, number)
        slice_ = _Bags(
            number.view(D, N).t().reshape(-1),
            torch.arange(0, D * N + 1, D, dtype=torch.int32, device=weights.device),
            weights.t().reshape(-1),
        )
        kernel = cls(splat, tuple(_blur(points, step) for step in directions), slice_)
        norm = kernel._filter(weights.new_ones(N, 1))[:, 0].add_(1e-20).rsqrt_()
        splat.weights.mul_(norm.index_select(0, splat.columns))
        slice_.weights.view(N, D).mul_(norm[:, None])
        return kernel

    def __call__(self, Q: Float[Tensor, "C N"]) -> Float[Tensor, "C N"]:
        return self._filter(Q.t().contiguous()).t()

    def _filter(self, rows: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        values = self.splat @ rows
        for blur in self.blur:
            values = blur @ values
        return self.slice @ values


def _simplices(
    features: Float[Tensor, "d N"], pixels: Sequence[int]
) -> tuple[Int[Tensor, "D N"], Float[Tensor, "D N"], list[int]]:
    """The lattice points around each pixel, its barycentric weights, and what the blur directions add to a point.

    A lattice point is numbered by its integer coordinates along d of the D blur directions (all but the middle one:
    together they add up to nothing), packed into one integer. So a step along a direction is one addition, and each
    corner of a simplex is such a step away from the corner before. The image is the highest digit.

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
    low, high = torch.stack(place.aminmax(dim=1)).long().tolist()
    strides, size = [], 1
    for i in range(D):
        strides.append(0 if i == middle else size)
        size *= 1 if i == middle else high[i] - low[i] + 5
    directions = [-sum(strides) if i == middle else stride for i, stride in enumerate(strides)]
    if size * len(pixels) >= 2**62:
        raise ConfigError(
            f"the lattice needs {size:.1e} cells, more than 2^62, for kernels this narrow; expected a larger σ "
            "of position or colour: raise gaussian_sigma, bilateral_sigma or bilateral_color."
        )
    kind = torch.int32 if size * len(pixels) < 2**31 else torch.int64
    corners = torch.empty(D, N, dtype=kind, device=features.device)
    corners[0] = sum((place[i].to(kind) - (low[i] - 2)) * strides[i] for i in range(D) if i != middle)
    for image, own in enumerate(corners[0].split(list(pixels))):
        own += image * size
    step = torch.tensor(directions, dtype=kind, device=features.device)[:, None].expand(D, N)
    step = torch.empty_like(corners).scatter_(0, rank, step)
    for corner in range(1, D):
        torch.add(corners[corner - 1], step[D - corner], out=corners[corner])
    return corners, weights, directions


def _blur(points: Int[Tensor, " M"], step: int) -> _Bags:
    """Each point plus half of its two neighbours along one direction, as far as they are among the points."""
    M = len(points)
    wanted = points + step
    found = torch.searchsorted(points, wanted).clamp_(max=M - 1)
    here = (points.index_select(0, found) == wanted).nonzero()[:, 0]
    there = found.index_select(0, here)
    one = torch.ones((), dtype=torch.int32, device=points.device).expand(len(here))
    ahead = torch.zeros(M, dtype=torch.int32, device=points.device).scatter_(0, here, one)
    behind = torch.zeros_like(ahead).scatter_(0, there, one)
    start = torch.zeros(M + 1, dtype=torch.int32, device=points.device)
    torch.cumsum(ahead.add_(behind).add_(1), 0, dtype=torch.int32, out=start[1:])
    own = start[:-1].long()
    columns = torch.empty(M + 2 * len(here), dtype=torch.int32, device=points.device)
    columns.scatter_(0, own, torch.arange(M, dtype=torch.int32, device=points.device))
    columns.scatter_(0, own.index_select(0, here) + 1, there.int())
    columns.scatter_(0, start[1:].index_select(0, there).long() - 1, here.int())
    weights = torch.full(columns.shape, 0.5, device=points.device)
    weights.scatter_(0, own, torch.ones((), device=points.device).expand(M))
    return _Bags(columns, start, weights)
