"""The dense CRF against brute force on small images, and the properties that any CRF has."""

import dataclasses
import inspect
import math
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vpl.config import CrfConfig
from vpl.errors import ConfigError, DataError
from vpl.method import crf, lattice
from vpl.method.crf import dense_crf, dense_crfs

SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (11, 13), (24, 17)]


@pytest.fixture
def small_cells(monkeypatch):
    """Mode "fast" uses cells on images of every size."""
    monkeypatch.setattr(crf, "FAST_PIXELS", 0)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Two smooth regions with noise, (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    left = (x + 0.3 * y < 0.6 * width)[..., None]
    base = np.where(left, (200, 90, 60), (60, 120, 180)) + 10 * np.sin(y / 5)[..., None]
    return (base + random.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)


def guesses(labels: int, height: int, width: int, seed: int = 0, strength: float = 1.5) -> torch.Tensor:
    """Random probabilities, (C, H, W), that sum to 1 over C."""
    random = torch.Generator().manual_seed(seed)
    return (strength * torch.randn(labels, height, width, generator=random)).softmax(0)


def features_of(image: np.ndarray, position: float, colour: float | None) -> np.ndarray:
    """(N, d) features of the pixels in row order: x, y and, with a colour σ, red, green, blue."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    columns = [x.reshape(-1, 1) / position, y.reshape(-1, 1) / position]
    if colour is not None:
        columns.append(image.reshape(-1, 3) / colour)
    return np.concatenate(columns, axis=1).astype(np.float64)


def lattice_kernel(features: np.ndarray) -> np.ndarray:
    """The (N, N) matrix of splat, blur and slice, one pixel and one lattice point at a time, with dictionaries."""
    pixels, d = features.shape
    corners = [_simplex(row) for row in features]
    points = {point: index for index, point in enumerate(sorted({point for simplex in corners for point in simplex}))}
    splat = np.zeros((len(points), pixels))
    for pixel, simplex in enumerate(corners):
        for point, weight in simplex.items():
            splat[points[point], pixel] += weight
    values = splat
    for direction in range(d + 1):
        moved = np.zeros_like(values)
        for point, index in points.items():
            moved[index] = values[index]
            for sign in (1, -1):
                step = tuple(k + sign * (1 - (d + 1) * (i == direction)) for i, k in enumerate(point))
                if step in points:
                    moved[index] += 0.5 * values[points[step]]
        values = moved
    return splat.T @ values / (1 + 2.0**-d)


def _simplex(feature: np.ndarray) -> dict[tuple[int, ...], float]:
    """The d + 1 lattice points around one feature and its barycentric weights."""
    d = len(feature)
    basis = np.zeros((d + 1, d))
    for j in range(1, d + 1):
        basis[:j, j - 1] = 1 / math.sqrt(j * (j + 1))
        basis[j, j - 1] = -j / math.sqrt(j * (j + 1))
    elevated = basis @ feature * math.sqrt(2 / 3) * (d + 1)
    elevated = elevated.round(9)  # coordinates that are equal stay so: their order decides a tie
    nearest = np.rint(elevated / (d + 1)).astype(int)
    order = np.argsort((d + 1) * nearest - elevated, kind="stable")
    excess = nearest.sum()
    nearest[order[len(order) - max(excess, 0) :]] -= 1
    nearest[order[: max(-excess, 0)]] += 1
    origin = (d + 1) * nearest
    rest = elevated - origin
    order = np.roll(order, excess)
    simplex = {tuple(origin): 1 - np.ptp(rest) / (d + 1)}
    for corner in range(1, d + 1):
        point = origin + corner
        point[order[d + 1 - corner :]] -= d + 1
        simplex[tuple(point)] = (rest[order[d - corner]] - rest[order[d + 1 - corner]]) / (d + 1)
    return simplex


def gaussian_kernel(features: np.ndarray) -> np.ndarray:
    """The (N, N) matrix exp(-|f_i - f_j|² / 2) that the lattice stands for."""
    return np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))


def brute_force(kernel_of, image, probabilities, rounds=10, gaussian=(1.1, 3), bilateral=(67, 3, 4)) -> np.ndarray:
    """Mean field with dense (N, N) kernels in float64.

    With σ = 1 pixel some pixels lie on lattice points, where the last bit of a float decides which neighbours count as
    touched; hence 1.1. The golden files pin σ = 1.
    """
    labels = probabilities.shape[0]
    log_p = np.log(np.clip(probabilities.double().numpy(), 1e-5, None)).reshape(labels, -1)
    kernels = []
    for weight, features in (
        (gaussian[1], features_of(image, gaussian[0], None)),
        (bilateral[2], features_of(image, bilateral[0], bilateral[1])),
    ):
        kernel = kernel_of(features)
        norm = 1 / np.sqrt(kernel.sum(1) + 1e-20)
        kernels.append(weight * norm[:, None] * kernel * norm[None])
    q = _softmax(log_p)
    for _ in range(rounds):
        q = _softmax(log_p + sum(q @ kernel.T for kernel in kernels))
    return q.reshape(probabilities.shape)


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(0))
    return powers / powers.sum(0)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_agrees_with_a_lattice_of_dictionaries(size, labels):
    image, probabilities = photograph(*size), guesses(labels, *size)
    for rounds in (1, 5):
        expected = brute_force(lattice_kernel, image, probabilities, rounds)
        found = dense_crf(image, probabilities, rounds=rounds, gaussian_sigma=1.1)
        assert found.shape == probabilities.shape and found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sigmas", [(1.7, 3, 20, 13), (3.1, 1, 5, 41), (0.6, 2, 300, 8), (1.7, 3, 0.03, 0.3)])
def test_other_kernel_widths_agree_with_a_lattice_of_dictionaries(sigmas):
    gaussian_sigma, gaussian_weight, position, colour = sigmas
    image, probabilities = photograph(13, 19, seed=3), guesses(3, 13, 19, seed=3)
    expected = brute_force(
        lattice_kernel, image, probabilities, 3, (gaussian_sigma, gaussian_weight), (position, colour, 5)
    )
    found = dense_crf(
        image,
        probabilities,
        rounds=3,
        gaussian_sigma=gaussian_sigma,
        gaussian_weight=gaussian_weight,
        bilateral_sigma=position,
        bilateral_color=colour,
        bilateral_weight=5,
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)


def test_is_close_to_true_gaussian_kernels():
    image, probabilities = photograph(24, 32), guesses(3, 24, 32)
    expected = brute_force(gaussian_kernel, image, probabilities, 3, bilateral=(20, 13, 4))
    found = dense_crf(image, probabilities, rounds=3, bilateral_sigma=20, bilateral_color=13).numpy()
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.97
    assert np.abs(found - expected).mean() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("size", [*SIZES, (45, 62)])
@pytest.mark.parametrize("labels", [1, 2, 5])
def test_rows_sum_to_one_in_both_modes(small_cells, mode, size, labels):
    found = dense_crf(photograph(*size), guesses(labels, *size), mode=mode)
    assert found.shape == (labels, *size)
    assert found.min() >= 0
    torch.testing.assert_close(found.sum(0), torch.ones(size))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nothing_moves_with_no_rounds_or_no_kernels(small_cells, mode):
    image, probabilities = photograph(9, 14), guesses(3, 9, 14)
    for found in (
        dense_crf(image, 2.5 * probabilities, rounds=0, mode=mode),
        dense_crf(image, 2.5 * probabilities, gaussian_weight=0, bilateral_weight=0, mode=mode),
    ):
        torch.testing.assert_close(found, probabilities)


def test_a_weight_of_zero_leaves_its_kernel_out():
    image, probabilities = photograph(11, 12), guesses(2, 11, 12)
    for gaussian, bilateral in ((0, 4), (3, 0)):
        expected = brute_force(lattice_kernel, image, probabilities, 4, (1.1, gaussian), (67, 3, bilateral))
        found = dense_crf(
            image, probabilities, rounds=4, gaussian_sigma=1.1, gaussian_weight=gaussian, bilateral_weight=bilateral
        )
        np.testing.assert_allclose(found.numpy(), expected, atol=5e-4)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_labels_can_change_places(small_cells, mode):
    image, probabilities = photograph(20, 31), guesses(4, 20, 31)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        dense_crf(image, probabilities[order], mode=mode), dense_crf(image, probabilities, mode=mode)[order]
    )


def test_two_labels_that_are_fetched_as_one_number_have_the_same_bits():
    image = torch.from_numpy(photograph(40, 50)).permute(2, 0, 1).flatten(1).float()
    kernel = lattice.Lattice.of([image / 3])
    values = torch.rand(len(kernel.neighbours[0].start) - 1, 2, generator=torch.Generator().manual_seed(0))
    for both in kernel.neighbours:
        assert torch.equal(lattice._of_pairs(both, values), both @ values)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_same_guess_everywhere_on_a_constant_image_stays_uniform_over_labels(small_cells, mode):
    image = np.full((12, 15, 3), 77, np.uint8)
    found = dense_crf(image, torch.full((3, 12, 15), 1 / 3), mode=mode)
    torch.testing.assert_close(found, torch.full((3, 12, 15), 1 / 3))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_an_edge_of_the_photograph_becomes_the_edge_of_the_labels(small_cells, mode):
    image = np.zeros((36, 48, 3), np.uint8)
    image[:, 27:] = 255
    p = torch.full((36, 48), 0.8)
    p[:, 24:] = 0.2
    found = dense_crf(image, torch.stack([p, 1 - p]), bilateral_weight=10, bilateral_sigma=15, mode=mode)
    assert (found.argmax(0)[:, :26] == 0).all() and (found.argmax(0)[:, 28:] == 1).all()


def test_fast_gives_nearly_the_labels_of_exact(small_cells):
    image = photograph(160, 213)
    coarse = guesses(3, 10, 14, strength=2.0)
    probabilities = torch.nn.functional.interpolate(coarse[None], size=(160, 213), mode="bilinear")[0]
    exact, fast = (dense_crf(image, probabilities, mode=mode).argmax(0) for mode in ("exact", "fast"))
    assert (exact == fast).float().mean() > 0.96
    assert (exact == fast).float().mean() > (exact == probabilities.argmax(0)).float().mean()


def test_fast_is_exact_on_small_images():
    image, probabilities = photograph(96, 128), guesses(3, 96, 128)
    assert torch.equal(dense_crf(image, probabilities, mode="fast"), dense_crf(image, probabilities))


BATCH = [((1, 1), 3), ((24, 17), 2), ((37, 41), 5), ((70, 101), 2), ((9, 14), 1), ((37, 41), 4)]
"""Sizes and label counts."""


def batch_of(shapes=BATCH) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """An image and its guesses for each size and label count."""
    images = [photograph(*size, seed=seed) for seed, (size, _) in enumerate(shapes)]
    return images, [guesses(labels, *size, seed=seed) for seed, (size, labels) in enumerate(shapes)]


def assert_same(together: list[torch.Tensor], alone: list[torch.Tensor]) -> None:
    """Equal labels and, up to rounding, probabilities."""
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.argmax(0), other.argmax(0))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.fixture
def lattices(monkeypatch):
    """How many images each lattice was made for."""
    counts, real = [], crf.Lattice.of
    monkeypatch.setattr(crf.Lattice, "of", lambda features: counts.append(len(features)) or real(features))
    crf._smoothness.cache_clear()
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("least", [0, 1000])
def test_a_batch_gives_what_its_images_give_alone(lattices, monkeypatch, mode, least):
    """With least = 1000, mode "fast" puts exact images and images in cells on the same lattice."""
    monkeypatch.setattr(crf, "FAST_PIXELS", least)
    images, maps = batch_of()
    together = dense_crfs(images, maps, CrfConfig(mode=mode))
    assert lattices == [len(BATCH)] * 2
    assert_same(together, [dense_crf(*pair, mode=mode) for pair in zip(images, maps, strict=True)])


def test_images_of_a_batch_are_strangers(monkeypatch):
    """Images alike in place and colour, whose lattices would be one and the same, keep their own guesses."""
    image, p = np.full((12, 15, 3), 77, np.uint8), torch.full((12, 15), 0.9)
    for best, found in enumerate(
        dense_crfs([image] * 2, [torch.stack([p, 1 - p]), torch.stack([1 - p, p])], CrfConfig())
    ):
        assert (found.argmax(0) == best).all() and found[best].min() > 0.95


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait for a GPU: it must know a value, or how many there are."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        waiting = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave", "equal")
        self.count += any(name in operation.name() for name in waiting)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_nothing_in_the_rounds_waits_for_the_device(monkeypatch, small_cells, mode):
    images, maps = batch_of()
    counts = []
    for rounds in (1, 6):
        crf._smoothness.cache_clear()
        with Waits() as waits:
            dense_crfs(images, maps, CrfConfig(rounds=rounds, mode=mode))
        counts.append(waits.count)
    assert counts[0] == counts[1] > len(BATCH)


def test_a_large_batch_is_computed_in_portions(monkeypatch, lattices):
    images, maps = batch_of([((10, 10), 2), ((10, 10), 4), ((10, 10), 2), ((30, 30), 2), ((5, 5), 2)])
    alone = [dense_crf(*pair) for pair in zip(images, maps, strict=True)]
    monkeypatch.setattr(crf, "VALUES_AT_ONCE", 200 * 10)
    crf._smoothness.cache_clear()
    lattices.clear()
    assert_same(dense_crfs(images, maps, CrfConfig()), alone)
    assert lattices == [2, 2, 1, 1, 1, 1, 1, 1], "two of 100 pixels; then one a time, for 900 pixels are too many"


def test_images_whose_points_cannot_be_numbered_together_are_computed_one_by_one(monkeypatch, lattices):
    images, maps = [photograph(9, 12)] * 5, [guesses(2, 9, 12, seed) for seed in range(5)]
    narrow = {"bilateral_sigma": 0.01, "bilateral_color": 0.0075, "rounds": 2}
    alone = [dense_crf(*pair, **narrow) for pair in zip(images, maps, strict=True)]
    lattices.clear()
    assert_same(dense_crfs(images, maps, CrfConfig(**narrow)), alone)
    assert lattices == [5, 5, *[1] * 5], "smoothness together, appearance refused together and made five times"


@pytest.mark.parametrize("settings", [{"rounds": 0}, {"gaussian_weight": 0.0, "bilateral_weight": 0.0}, {"rounds": 3}])
def test_a_batch_may_be_empty_and_have_no_rounds(settings):
    assert dense_crfs([], [], CrfConfig(**settings)) == []
    images, maps = batch_of()
    assert_same(
        dense_crfs(images, maps, CrfConfig(**settings)),
        [dense_crf(*pair, **settings) for pair in zip(images, maps, strict=True)],
    )


def test_a_batch_needs_a_good_map_for_every_image():
    images, maps = batch_of()
    with pytest.raises(DataError, match="6 images and 5 maps"):
        dense_crfs(images, maps[:5], CrfConfig())
    with pytest.raises(DataError, match="the smallest probability"):
        dense_crfs(images, [*maps[:5], -maps[5]], CrfConfig())


def test_threads_at_once_give_what_one_gives():
    images = [photograph(40, 50 + seed % 3, seed) for seed in range(12)]
    maps = [guesses(3, *image.shape[:2], seed) for seed, image in enumerate(images)]
    alone = [dense_crf(*pair) for pair in zip(images, maps, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dense_crf, images, maps))
    assert all(torch.equal(*pair) for pair in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_the_number_of_threads_does_not_show(small_cells, mode):
    image, probabilities = photograph(120, 150), guesses(3, 120, 150)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            crf._smoothness.cache_clear()
            found.append(dense_crf(image, probabilities, mode=mode))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.slow
def test_the_default_install_has_nothing_to_compile():
    """numba and llvmlite made the CRF 2.1 times as fast by hand-written LLVM and 1.3 times by plain kernels."""
    program = (
        "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
        "import numpy as np, torch; from vpl.method import crf\n"
        "print(crf.dense_crf(np.zeros((4, 5, 3), np.uint8), torch.full((2, 4, 5), 0.5)).sum().item())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(found.stdout) == pytest.approx(20)
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    pinned = (root / "constraints.txt").read_text("utf-8").splitlines()
    assert not [line for line in (*asked, *pinned) if line.startswith(("numba", "llvmlite"))]


def test_fast_treats_odd_sizes_like_the_next_even_one_with_its_last_pixels_repeated(small_cells):
    image, probabilities = photograph(13, 15), guesses(3, 13, 15)
    padded = torch.nn.functional.pad(probabilities, (0, 1, 0, 1), mode="replicate")
    expected = dense_crf(np.pad(image, ((0, 1), (0, 1), (0, 0)), mode="edge"), padded, mode="fast")
    torch.testing.assert_close(dense_crf(image, probabilities, mode="fast"), expected[:, :13, :15])


def test_gives_the_same_bits_twice_and_with_a_cold_cache():
    image, probabilities = photograph(33, 27), guesses(3, 33, 27)
    first = dense_crf(image, probabilities)
    assert torch.equal(first, dense_crf(image, probabilities))
    crf._smoothness.cache_clear()
    assert torch.equal(first, dense_crf(image, probabilities))


def test_its_arguments_stay_as_they_were(small_cells):
    image, probabilities = torch.from_numpy(photograph(8, 9)), guesses(2, 8, 9)
    before = image.clone(), probabilities.clone()
    for mode in ("exact", "fast"):
        dense_crf(image, probabilities, mode=mode)
        dense_crf(image, probabilities, mode=mode, rounds=0)
    assert torch.equal(image, before[0]) and torch.equal(probabilities, before[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_formats_are_computed_in_float32(dtype):
    image, probabilities = photograph(10, 16), guesses(3, 10, 16).to(dtype)
    found = dense_crf(image, probabilities)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense_crf(image, probabilities.float()))


def test_tensors_and_arrays_in_any_memory_layout_give_the_same():
    image, probabilities = photograph(10, 16), guesses(3, 10, 16)
    expected = dense_crf(image, probabilities)
    assert torch.equal(expected, dense_crf(torch.from_numpy(image), probabilities.numpy()))
    image_t = np.ascontiguousarray(image.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert torch.equal(expected, dense_crf(image_t, probabilities.mT.contiguous().mT))
    flipped = dense_crf(image[:, ::-1], probabilities.numpy()[:, :, ::-1])
    assert torch.equal(flipped, dense_crf(image[:, ::-1].copy(), probabilities.flip(2)))
    read_only = image.copy()
    read_only.flags.writeable = False
    assert torch.equal(expected, dense_crf(read_only, probabilities))


def test_impossible_labels_and_pixels_without_a_guess_are_no_failure():
    image, probabilities = photograph(10, 16), guesses(3, 10, 16)
    probabilities[0] = 0
    probabilities[:, 2:4] = 0
    unmoved = dense_crf(image, probabilities, rounds=0)
    torch.testing.assert_close(unmoved[0, 6:], 1e-5 / (1e-5 + probabilities[:, 6:].sum(0)))
    found = dense_crf(image, probabilities)
    assert torch.isfinite(found).all()
    assert (found[0, 6:] < 0.01).all()


def test_its_settings_have_the_names_and_defaults_of_the_configuration():
    found = {one.name: one.default for one in inspect.signature(dense_crf).parameters.values()}
    assert {key: found.pop(key) for key in ("image", "probabilities")} == dict.fromkeys(
        ("image", "probabilities"), inspect.Parameter.empty
    )
    section = dataclasses.asdict(CrfConfig())
    assert section.pop("enabled") and found == section


def test_gradients_are_neither_asked_for_nor_kept():
    probabilities = guesses(2, 6, 7).requires_grad_()
    assert not dense_crf(photograph(6, 7), probabilities).requires_grad


GOOD = {"image": photograph(6, 8), "probabilities": guesses(2, 6, 8)}
WITH_NAN = GOOD["probabilities"].clone()
WITH_NAN[1, 2, 3] = math.nan


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"image": photograph(6, 8)[..., 0]}, DataError, r"\(6, 8\).*\(H, W, 3\)"),
        ({"image": photograph(6, 8) / 255}, DataError, "float64.*uint8"),
        ({"image": [[1, 2]]}, DataError, "list"),
        ({"image": np.zeros((0, 8, 3), np.uint8), "probabilities": torch.ones(2, 0, 8)}, DataError, "no pixels"),
        ({"image": photograph(8, 6)}, DataError, r"6 x 8.*8 x 6"),
        ({"probabilities": guesses(2, 6, 8)[0]}, DataError, r"\(6, 8\).*\(C, H, W\)"),
        ({"probabilities": guesses(2, 6, 8)[:0]}, DataError, "no labels"),
        ({"probabilities": torch.zeros(2, 6, 8, dtype=torch.int64)}, DataError, "int64"),
        ({"probabilities": WITH_NAN}, DataError, "not finite"),
        ({"probabilities": guesses(2, 6, 8) / 0}, DataError, "not finite"),
        ({"probabilities": guesses(2, 6, 8).log()}, DataError, "negative.*softmax"),
        ({"rounds": -1}, ConfigError, "rounds is -1"),
        ({"rounds": 2.5}, ConfigError, "rounds is 2.5"),
        ({"gaussian_sigma": 0}, ConfigError, "gaussian_sigma is 0"),
        ({"bilateral_sigma": math.nan}, ConfigError, "bilateral_sigma is nan"),
        ({"bilateral_color": -3.0}, ConfigError, "bilateral_color is -3"),
        ({"gaussian_weight": -1}, ConfigError, "gaussian_weight is -1"),
        ({"bilateral_weight": math.inf}, ConfigError, "bilateral_weight is inf"),
        ({"bilateral_color": 1e-9}, ConfigError, "bilateral_color is 1e-09"),
        ({"bilateral_color": 1e-3, "bilateral_sigma": 1e-3}, ConfigError, "larger"),
        ({"mode": "slow"}, ConfigError, "'slow'.*exact, fast"),
    ],
)
def test_says_what_came_what_was_expected_and_what_to_do(monkeypatch, change, error, words):
    without_shape_checks = inspect.unwrap(dense_crf)
    monkeypatch.setattr(crf, "dense_crfs", inspect.unwrap(dense_crfs))
    with pytest.raises(error, match=words) as caught:
        without_shape_checks(**(GOOD | change))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
