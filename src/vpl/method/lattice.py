"""The dense CRF's rounds on one core: METHOD.md 4's kernels, compiled by numba; the same sums as in `crf`.

A filter is splat, blur, slice on the permutohedral lattice (Adams, Baek and Davis 2010). What makes it quick here:
four labels are one vector; pixels are kept tile by tile and by colour, so that neighbours in memory touch the same
lattice points; the points are sorted, so that blurring along any direction reads memory forwards. Compiled code is kept
on disk where that is possible, and every function lets other threads run.

Letters: C labels, B blocks of four labels, N pixels, d features of a pixel, D = d + 1 corners of its simplex, M lattice
points; point 0 stands for all that don't exist and is always zero.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, UInt32
from llvmlite import ir
from numba import njit, types
from numba.core.errors import NumbaError
from numba.extending import intrinsic, models, register_model
from numba.np.arrayobj import make_array

from vpl.errors import ConfigError

CACHED_KERNELS = 4  # image sizes whose smoothness kernel is kept, about 60 bytes a pixel each
TILE = 32  # side of a tile, pixels
BLOCK = 128  # pixels whose simplices are found together
CHUNK = 64  # pixels whose softmax is taken together
FOUR, ONE = (0.0,) * 4, (0.0,)  # how many numbers of a pixel are handled together; the length is all that counts


def mean_field(
    image: Float32[np.ndarray, "3 H W"],
    log_p: Float32[np.ndarray, "C H W"],
    rounds: int,
    gaussian: tuple[float, float],
    bilateral: tuple[float, float, float],
) -> Float32[np.ndarray, "C H W"]:
    """Σ_m w_m n_m K_m (n_m Q) of the last round: see `crf`.

    Args:
        image: colours, levels of 255.
        log_p: unary logarithms.
        rounds: at least 1.
        gaussian: σ and weight of the smoothness kernel.
        bilateral: σ of position, σ of colour and weight of the appearance kernel.

    Raises:
        ConfigError: a kernel is so narrow that its lattice can't be numbered.
    """
    C, H, W = log_p.shape
    N, B = H * W, -(-C // 4)
    kernels = []
    place = _grid(H, W)
    if bilateral[-1]:
        shape = _Shape.of(
            np.concatenate([place / np.float32(bilateral[0]), image.reshape(3, N) / np.float32(bilateral[1])])
        )
        pixels = _tiles(H, W, shape.codes, shape.bits)
        kernels.append((bilateral[-1], shape.lattice(pixels)))
    else:
        pixels = _tiles(H, W, np.zeros(N, np.int64), 1)
    if gaussian[-1]:
        kernels.append((gaussian[-1], _smoothness(H, W, gaussian[0]).ordered(pixels)))

    start = np.full((B, 4 * N), -1e30, np.float32)  # labels that only fill the last four are impossible
    _into_order(log_p.reshape(C, N), pixels, start)
    Q = start.copy()
    _softmax(Q, FOUR)
    zero = np.zeros(4 * N, np.float32)
    buffers = [np.empty((2, 4 * kernel.neighbours.shape[1]), np.float32) for _, kernel in kernels]
    for left in range(rounds - 1, -1, -1):
        for block in range(B):
            sums = start[block] if left else zero
            filtered = [
                kernel.gather(Q[block], buffer, FOUR) for (_, kernel), buffer in zip(kernels, buffers, strict=True)
            ]
            for (weight, kernel), values in zip(kernels, filtered, strict=True):
                kernel.spread(sums, np.float32(weight), values, Q[block], FOUR)
                sums = Q[block]
        if left:
            _softmax(Q, FOUR)
    message = np.empty((C, N), np.float32)
    _out_of_order(Q, pixels, message)
    return message.reshape(C, H, W)


def _grid(H: int, W: int) -> Float32[np.ndarray, "2 N"]:
    """x and y of every pixel."""
    y, x = np.divmod(np.arange(H * W), W)
    return np.stack([x, y]).astype(np.float32)


@functools.lru_cache(maxsize=CACHED_KERNELS)
def _smoothness(H: int, W: int, sigma: float) -> _Lattice:
    """The kernel over position alone, pixels row by row: it depends on the size of the image and on nothing in it."""
    return _Shape.of(_grid(H, W) / np.float32(sigma)).lattice(np.arange(H * W, dtype=np.uint32))


@dataclass(frozen=True)
class _Lattice:
    """n K n of one kernel.

    Attributes:
        corners: the points of the pixels' simplices.
        weights: their barycentric weights.
        norm: n.
        neighbours: for each direction the point ahead and the point behind.
    """

    corners: UInt32[np.ndarray, "N D"]
    weights: Float32[np.ndarray, "N D"]
    norm: Float32[np.ndarray, " N"]
    neighbours: UInt32[np.ndarray, "D M_and_1 2"]

    def ordered(self, pixels: UInt32[np.ndarray, " N"]) -> _Lattice:
        """The same for pixels in another order."""
        return _Lattice(self.corners[pixels], self.weights[pixels], self.norm[pixels], self.neighbours)

    def gather(
        self, Q: Float32[np.ndarray, " n"], buffer: Float32[np.ndarray, "2 m"], lanes: tuple[float, ...]
    ) -> Float32[np.ndarray, " m"]:
        """Splat of n Q and blur; the result lies in `buffer`."""
        values, spare = buffer
        values[:] = 0
        spare[: len(lanes)] = 0
        D = len(self.neighbours)
        _splat(Q, self.norm, self.corners, self.weights, values, lanes, (0,) * D)
        for neighbours in self.neighbours:
            _blur(values, spare, neighbours, lanes)
            values, spare = spare, values
        return values

    def spread(
        self,
        start: Float32[np.ndarray, " n"],
        weight: np.float32,
        values: Float32[np.ndarray, " m"],
        out: Float32[np.ndarray, " n"],
        lanes: tuple[float, ...],
    ) -> None:
        """out <- start + weight n slice(values)."""
        D = len(self.neighbours)
        _slice(start, weight, self.norm, self.corners, self.weights, values, out, lanes, (0,) * D)


@dataclass(frozen=True)
class _Shape:
    """Where the pixels lie in the lattice.

    A lattice point is numbered by its integer coordinates along d of the D blur directions (all but the middle one:
    together they add up to nothing), packed into one integer: a step along a direction is one addition, and each corner
    of a simplex is such a step away from the corner before. Positions are its high digits, colours its low ones.

    Attributes:
        codes: the number of each pixel's first corner.
        ranks: the directions to its other corners, three bits each.
        weights: the barycentric weights of its corners.
        directions: what a step adds to a number.
        bits: how many bits the numbers have.
    """

    codes: Int[np.ndarray, " N"]
    ranks: Int[np.ndarray, " N"]
    weights: Float32[np.ndarray, "N D"]
    directions: Int[np.ndarray, " D"]
    bits: int

    @classmethod
    def of(cls, features: Float32[np.ndarray, "d N"]) -> _Shape:
        """The simplices around `features`, in units of their σ."""
        d, N = features.shape
        D, middle = d + 1, d // 2
        scale = np.array([math.sqrt(2 / 3 / (j * (j + 1))) for j in range(1, D)], np.float32)
        low, high = _bounds(features, scale, middle)
        directions, size = [0] * D, 1
        for i in reversed(range(D)):
            if i != middle:
                directions[i] = size
                size *= high[i] - low[i] + 1
        if size >= 2**62:
            raise ConfigError(
                f"the lattice needs {size:.1e} cells, more than 2^62, for kernels this narrow; expected a larger σ "
                "of position or colour: raise gaussian_sigma, bilateral_sigma or bilateral_color."
            )
        strides = np.array(directions)
        directions[middle] = -sum(directions)
        codes, ranks = np.empty(N, np.int64), np.empty(N, np.int32)
        weights = np.empty((N, D), np.float32)
        _simplices(features, scale, strides, np.array(low), middle, codes, ranks, weights)
        return cls(codes, ranks, weights, np.array(directions), size.bit_length())

    def lattice(self, pixels: UInt32[np.ndarray, " N"]) -> _Lattice:
        """The kernel, for pixels in this order."""
        N, D = self.weights.shape
        weights = self.weights[pixels]
        corners = np.empty((N, D), np.uint32)
        points, first = np.empty(N * D, np.int64), np.zeros(D + 1, np.int64)
        _number(self.codes[pixels], self.ranks[pixels], self.directions, self.bits, corners, points, first)
        neighbours = np.zeros((D, first[D] + 1, 2), np.uint32)
        _neighbours(points, first, self.directions, neighbours)
        norm = np.ones(N, np.float32)
        kernel = _Lattice(corners, weights, norm, neighbours)
        buffer = np.empty((2, len(neighbours[0])), np.float32)
        touched = np.empty(N, np.float32)
        kernel.spread(np.zeros(N, np.float32), np.float32(1), kernel.gather(norm, buffer, ONE), touched, ONE)
        np.divide(1, np.sqrt(touched + np.float32(1e-20)), out=norm)
        return kernel


def _bounds(
    features: Float32[np.ndarray, "d N"], scale: Float[np.ndarray, " d"], middle: int
) -> tuple[list[int], list[int]]:
    """Limits of the lattice points' coordinates, with room for rounding and for one step either way."""
    d = len(features)
    elevation = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        elevation[:j, j - 1] = scale[j - 1]
        elevation[j, j - 1] = -j * scale[j - 1]
    slopes = elevation[middle] - elevation
    ends = slopes[..., None] * np.stack([features.min(1), features.max(1)], axis=1).astype(float)
    low, high = np.floor(ends.min(2).sum(1)) - 4, np.ceil(ends.max(2).sum(1)) + 4
    return [int(limit) for limit in low], [int(limit) for limit in high]


# ---------------------------------------------------------------------- compiled


def _compiled(function):
    """Machine code of `function`, kept on disk where numba finds a folder for it."""
    options = {"nogil": True, "error_model": "numpy"}
    function = inspect.unwrap(function)  # tests wrap every function of vpl to check shapes
    try:
        return njit(cache=True, **options)(function)
    except (RuntimeError, NumbaError):
        return njit(**options)(function)


class _Lanes(types.Type):
    """Some float32 numbers in one register."""

    def __init__(self, count: int):
        self.count = count
        super().__init__(f"Lanes({count})")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, _vector(kind.count))


def _vector(count: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), count)


def _pointer(context, builder, kind, array, index, count: int):
    start = builder.mul(index, ir.Constant(index.type, count))
    data = builder.gep(make_array(kind)(context, builder, array).data, [start])
    return builder.bitcast(data, _vector(count).as_pointer())


def _everywhere(builder, scalar, count: int):
    none, first = ir.Constant(_vector(count), ir.Undefined), ir.Constant(ir.IntType(32), 0)
    same = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(builder.insert_element(none, scalar, first), none, same)


def _instruction(function):
    return intrinsic(inspect.unwrap(function))


@_instruction
def load(typing, array, index, lanes):
    """The numbers at [index · lanes, (index + 1) · lanes) of a flat array."""

    def code(context, builder, signature, args):
        return builder.load(_pointer(context, builder, signature.args[0], args[0], args[1], lanes.count), align=4)

    return _Lanes(lanes.count)(array, types.uint64, lanes), code


@_instruction
def store(typing, array, index, value):
    """Writes numbers where `load` reads them."""

    def code(context, builder, signature, args):
        place = _pointer(context, builder, signature.args[0], args[0], args[1], value.count)
        builder.store(args[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.uint64, value), code


@_instruction
def spread(typing, scalar, lanes):
    """One number, everywhere."""

    def code(context, builder, signature, args):
        return _everywhere(builder, args[0], lanes.count)

    return _Lanes(lanes.count)(types.float32, lanes), code


@_instruction
def add(typing, value, other):
    def code(context, builder, signature, args):
        return builder.fadd(args[0], args[1])

    return value(value, other), code


@_instruction
def scaled(typing, scalar, value, rest):
    """scalar · value + rest, in one operation where the machine has one."""

    def code(context, builder, signature, args):
        product = builder.fmul(_everywhere(builder, args[0], value.count), args[1], flags=("contract",))
        return builder.fadd(product, args[2], flags=("contract",))

    return rest(types.float32, value, rest), code


@_instruction
def as_float(typing, bits):
    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@_compiled
def _simplices(features, scale, strides, low, middle, codes, ranks, weights):
    """Fills codes, ranks and weights: see `_Shape`."""
    d, N = features.shape
    D = d + 1
    rest = np.empty((D, BLOCK), np.float32)
    nearest = np.empty((D, BLOCK), np.float32)
    rank = np.empty((D, BLOCK), np.int32)
    descending = np.empty(D * BLOCK, np.float32)
    below = np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.int32)
    directions = np.empty(BLOCK, np.int32)
    code = np.empty(BLOCK, np.int64)
    for begin in range(0, N, BLOCK):
        n = min(BLOCK, N - begin)
        below[:] = 0
        for j in range(d, 0, -1):
            row, given, factor, times = rest[j], features[j - 1, begin : begin + n], scale[j - 1], np.float32(j)
            for b in range(n):
                step = given[b] * factor
                row[b] = below[b] - times * step
                below[b] += step
        rest[0] = below
        total[:] = 0
        rank[:] = 0
        for i in range(D):
            row, whole = rest[i], nearest[i]
            for b in range(n):
                whole[b] = np.rint(row[b])
                row[b] -= whole[b]
                total[b] += np.int32(whole[b])
        for i in range(D):
            for j in range(i + 1, D):
                one, other, rank_one, rank_other = rest[i], rest[j], rank[i], rank[j]
                for b in range(n):
                    smaller = np.int32(one[b] < other[b])
                    rank_one[b] += smaller
                    rank_other[b] += np.int32(1) - smaller
        directions[:] = 0
        for i in range(D):
            row, whole, places = rest[i], nearest[i], rank[i]
            for b in range(n):
                place = places[b] + total[b]
                wrapped = np.int32(place < 0) - np.int32(place > d)
                place += np.int32(D) * wrapped
                whole[b] += np.float32(wrapped)
                row[b] -= np.float32(wrapped)
                places[b] = place
                directions[b] |= np.int32(i) << (np.int32(3) * place)
            for b in range(n):
                descending[np.uint64(places[b]) * np.uint64(BLOCK) + np.uint64(b)] = row[b]
        code[:] = 0
        centre = nearest[middle]
        for i in range(D):
            if i != middle:
                whole, stride, least = nearest[i], strides[i], low[i]
                for b in range(n):
                    code[b] += (np.int64(centre[b] - whole[b]) - least) * stride
        for b in range(n):
            codes[begin + b] = code[b]
            ranks[begin + b] = directions[b]
            weights[begin + b, 0] = np.float32(1) + descending[d * BLOCK + b] - descending[b]
        for corner in range(1, D):
            upper, lower = (d - corner) * BLOCK, (D - corner) * BLOCK
            for b in range(n):
                weights[begin + b, corner] = descending[upper + b] - descending[lower + b]


@_compiled
def _sorted(keys, items, bits):
    """Keys of so many bits in ascending order, and their items in that order; overwrites the arrays given."""
    passes = (bits + 10) // 11
    digit = (bits + passes - 1) // passes
    size = 1 << digit
    count = np.zeros((passes, size), np.uint32)
    for n in range(keys.size):
        for p in range(passes):
            count[p, (keys[n] >> (p * digit)) & (size - 1)] += np.uint32(1)
    other_keys, other_items = np.empty_like(keys), np.empty_like(items)
    for p in range(passes):
        place = count[p]
        before = np.uint32(0)
        for value in range(size):
            here = place[value]
            place[value] = before
            before += here
        for n in range(keys.size):
            value = (keys[n] >> (p * digit)) & (size - 1)
            to = np.uint64(place[value])
            place[value] += np.uint32(1)
            other_keys[to] = keys[n]
            other_items[to] = items[n]
        keys, other_keys = other_keys, keys
        items, other_items = other_items, items
    return keys, items


@_compiled
def _tiles(H, W, codes, bits):
    """Numbers of all pixels, tile by tile, within a tile by code."""
    pixels = np.empty(H * W, np.uint32)
    done = 0
    for top in range(0, H, TILE):
        for left in range(0, W, TILE):
            height, width = min(TILE, H - top), min(TILE, W - left)
            keys, items = np.empty(height * width, np.int64), np.empty(height * width, np.uint32)
            for y in range(height):
                for x in range(width):
                    pixel = (top + y) * W + left + x
                    keys[y * width + x] = codes[pixel]
                    items[y * width + x] = pixel
            pixels[done : done + items.size] = _sorted(keys, items, bits)[1]
            done += items.size
    return pixels


@_compiled
def _number(codes, ranks, directions, bits, corners, points, first):
    """Fills the corners, and the codes of the points.

    The k-th corners of all pixels share no point with the others, as their coordinates add up to another remainder. So
    each k is sorted by itself; its points are first[k] up to first[k + 1] of `points`, and are numbered from 1 on.
    """
    N, D = corners.shape
    points_so_far = 0
    for k in range(D):
        if k:
            shift = np.int32(3 * (D - k))
            for n in range(N):
                codes[n] += directions[(ranks[n] >> shift) & np.int32(7)]
        keys, pixels = _sorted(codes.copy(), np.arange(N).astype(np.uint32), bits)
        point, before = points_so_far - 1, np.int64(-1)
        for n in range(N):
            point += np.int64(keys[n] != before)
            before = keys[n]
            points[point] = before
            corners[np.uint64(pixels[n]), k] = np.uint32(point + 1)
        points_so_far = point + 1
        first[k + 1] = points_so_far


@_compiled
def _neighbours(points, first, directions, neighbours):
    """Fills the neighbours: a step leads from k-th corners to k+1-st ones, both of them sorted."""
    D = directions.size
    for t in range(D):
        ahead = neighbours[t]
        for k in range(D):
            one, one_end = first[k], first[k + 1]
            other, other_end = first[(k + 1) % D], first[(k + 1) % D + 1]
            while one < one_end and other < other_end:
                wanted, found = points[one] + directions[t], points[other]
                # written before it is known, as a jump that can't be foreseen costs more
                same = np.uint32(wanted == found)
                ahead[one + 1, 0] = same * np.uint32(other + 1)
                ahead[other + 1, 1] = same * np.uint32(one + 1)
                one += np.int64(wanted <= found)
                other += np.int64(found <= wanted)


@_compiled
def _splat(Q, norm, corners, weights, values, lanes, D):
    """values += norm · Q, spread over the corners."""
    corners, weights = corners.reshape(-1), weights.reshape(-1)
    zero = spread(np.float32(0), lanes)
    entry = np.uint64(0)
    for n in range(norm.size):
        q = scaled(norm[n], load(Q, np.uint64(n), lanes), zero)
        for _ in range(len(D)):
            point = np.uint64(corners[entry])
            store(values, point, scaled(weights[entry], q, load(values, point, lanes)))
            entry += np.uint64(1)


@_compiled
def _blur(old, new, neighbours, lanes):
    """Each point plus half of its two neighbours."""
    for point in range(1, len(neighbours)):
        ahead = load(old, np.uint64(neighbours[point, 0]), lanes)
        behind = load(old, np.uint64(neighbours[point, 1]), lanes)
        own = load(old, np.uint64(point), lanes)
        store(new, np.uint64(point), scaled(np.float32(0.5), add(ahead, behind), own))


@_compiled
def _slice(start, weight, norm, corners, weights, values, out, lanes, D):
    """out <- start + weight · norm · (what the corners hold)."""
    corners, weights = corners.reshape(-1), weights.reshape(-1)
    entry = np.uint64(0)
    for n in range(norm.size):
        held = spread(np.float32(0), lanes)
        for _ in range(len(D)):
            held = scaled(weights[entry], load(values, np.uint64(corners[entry]), lanes), held)
            entry += np.uint64(1)
        store(out, np.uint64(n), scaled(weight * norm[n], held, load(start, np.uint64(n), lanes)))


@_compiled
def _exp(x):
    """e to the power x, for x of at most 0; a polynomial after Cephes' expf, so that it runs on whole registers."""
    near = max(x, np.float32(-87))
    whole = np.rint(near * np.float32(1.4426950408889634))
    rest = near - whole * np.float32(0.693359375) + whole * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * rest + np.float32(1.3981999507e-3)
    y = y * rest + np.float32(8.3334519073e-3)
    y = y * rest + np.float32(4.1665795894e-2)
    y = y * rest + np.float32(1.6666665459e-1)
    y = y * rest + np.float32(5.0000001201e-1)
    y = y * (rest * rest) + rest + np.float32(1)
    y *= as_float((np.int32(whole) + np.int32(127)) << np.int32(23))
    return y if x > np.float32(-87) else np.float32(0)


@_compiled
def _softmax(Q, lanes):
    """Q <- softmax over the labels, (B, 4 N)."""
    B, N = Q.shape[0], Q.shape[1] // 4
    top, total = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    zero = spread(np.float32(0), lanes)
    for begin in range(0, N, CHUNK):
        count = min(CHUNK, N - begin)
        for block in range(B):
            q = Q[block, 4 * begin : 4 * (begin + count)]
            for n in range(count):
                highest = max(max(q[4 * n], q[4 * n + 1]), max(q[4 * n + 2], q[4 * n + 3]))
                top[n] = max(top[n], highest) if block else highest
        total[:] = 0
        for block in range(B):
            q = Q[block, 4 * begin : 4 * (begin + count)]
            for n in range(count):
                store(q, np.uint64(n), add(load(q, np.uint64(n), lanes), spread(-top[n], lanes)))
            for i in range(q.size):
                q[i] = _exp(q[i])
            for n in range(count):
                total[n] += (q[4 * n] + q[4 * n + 1]) + (q[4 * n + 2] + q[4 * n + 3])
        for block in range(B):
            q = Q[block, 4 * begin : 4 * (begin + count)]
            for n in range(count):
                store(q, np.uint64(n), scaled(np.float32(1) / total[n], load(q, np.uint64(n), lanes), zero))


@_compiled
def _into_order(maps, pixels, out):
    """(C, N) maps as four labels after each other, pixel by pixel in this order."""
    for c in range(len(maps)):
        row, plane = out[c // 4], maps[c]
        for n in range(pixels.size):
            row[4 * n + c % 4] = plane[np.uint64(pixels[n])]


@_compiled
def _out_of_order(rows, pixels, out):
    """The way back."""
    C = len(out)
    for n in range(pixels.size):
        pixel = np.uint64(pixels[n])
        for c in range(C):
            out[c, pixel] = rows[c // 4, 4 * n + c % 4]
