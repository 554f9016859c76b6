"""Training of the segmentation network on pseudo-masks, as a generator of step records (METHOD.md 5).

    θ ← SGD( CE + λ · RSC ),   learning rate of step t = lr · (1 − t / steps)^power

Every random choice is a function of (seed, step, place in the batch) alone, and sums over a batch are divided by the
whole batch's counts. So the numbers depend neither on how many processes share a batch, nor on a kill and a second
start: a checkpoint needs the weights, the optimiser's state and the step. Augmentation moves image and pseudo-mask
together; truth masks are never opened here. Letters: N images of a batch · C foreground classes · h w patch grid.

Several processes: `accelerate launch --multi_gpu -m vpl train RUN`, or `torchrun --nproc_per_node 2 -m vpl train RUN`
on CPUs. Each computes its share of every batch; the first one writes. All of them need to see the run folder.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor, nn

from vpl.classes import IGNORE, ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import ClipConfig, Config, TrainConfig
from vpl.edges import images, storage
from vpl.errors import ConfigError, DataError, ModelError, RunError
from vpl.network import losses
from vpl.network.head import CARD_FILE, PROTOTYPES_FILE, WEIGHTS_FILE, Card, Decoder, Student, is_student, to_pixels

NETWORK_FOLDER, CHECKPOINT_FILE, CURVE_FILE, FEATURES_FOLDER = "network", "checkpoint.pt", "curve.csv", "features"
STEPS_AHEAD = 2
"""Batches that the reading threads may have ready."""
ADAMW_SECOND_BETA = 0.999
MOST_MASKED_NEGATIVES = 2
"""With `masked` regions every absent class costs a pass of CLIP: only the largest masks of an image are taken."""


@dataclass(frozen=True)
class Item:
    """One training image: what the network learns from. `mask` is a pseudo-mask, never the truth."""

    id: str
    image: Path | str
    mask: Path
    tags: tuple[str, ...]


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step. Losses are the batch's means; loss = cross_entropy + λ (pull + complement + negatives)."""

    step: int
    loss: float
    cross_entropy: float
    pull: float
    complement: float
    negatives: float
    learning_rate: float
    images_per_second: float


@dataclass(frozen=True)
class Crop:
    """One augmented sample.

    Attributes:
        pixels: normalised; padding has the mean colour, 0.
        target: label values; padding is 255.
        inside: share of each patch that lies on the image.
        visible: tags that the crop may show: those in its pseudo-mask, or all when the whole image is in it.
        absent: classes that the image does not carry.
        repeatable: True when no random choice was made, so that its features may be kept.
    """

    pixels: Float[Tensor, "3 side side"]
    target: UInt8[Tensor, "side side"]
    inside: Float[Tensor, "h w"]
    visible: Bool[Tensor, " C"]
    absent: Bool[Tensor, " C"]
    repeatable: bool


@dataclass(frozen=True)
class Frozen:
    """What the head and RSC read from the frozen encoder: tokens of every block, and projected ones of the last."""

    blocks: tuple[Float[Tensor, "N hw width"], ...]
    patches: Float[Tensor, "N hw D"]


class Processes:
    """This process among those that share each batch; alone unless a launcher such as accelerate's says otherwise.

    Raises:
        ConfigError: there is a launcher, but accelerate is not installed.
    """

    def __init__(self, device: torch.device):
        self.rank, self.count, self._accelerator = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise ConfigError(
                    "several processes were launched, but accelerate is not installed; pip install accelerate."
                ) from error
            self._accelerator = Accelerator(cpu=device.type == "cpu")
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, the same on each."""
        return values if self._accelerator is None else self._accelerator.reduce(values, reduction="sum")

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def own_device(device: str) -> str:
    """`device` for this process: "auto" becomes its own GPU when a launcher started several processes on GPUs."""
    launched = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "auto" and launched and torch.cuda.is_available() else device


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


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
    if not config.train.steps:
        raise ConfigError("train.steps is 0; expected at least 1 to train a network.")
    if config.train.scale_low > config.train.scale_high:
        raise ConfigError(
            f"train.scale_low is {config.train.scale_low} and train.scale_high {config.train.scale_high}; "
            "expected low to be at most high."
        )
    if config.train.online and is_student(config.decoder):
        raise ConfigError("train.online needs vpl's own decoder; set decoder.network=decoder, or train.online=false.")
    if config.rsc.weight > 0 and prototypes is None:
        raise ConfigError("rsc.weight is above 0 but there are no prototypes; make them, or set rsc.weight=0.")
    if prototypes is not None and (prototypes.shape[1] != clip.dim or len(prototypes) < len(classes)):
        raise ConfigError(
            f"the prototypes have shape {tuple(prototypes.shape)}; expected at least {len(classes)} rows of "
            f"{clip.dim}. Make them with this CLIP and these classes."
        )
    for item in items:
        for tag in item.tags:
            classes.index(tag)
    return _steps(tuple(items), clip, classes, prototypes, config, Path(folder) / NETWORK_FOLDER, workers)


def _steps(items, clip, classes, prototypes, config, folder, workers) -> Iterator[StepRecord]:
    team = Processes(clip.device)
    settings = _settings(items, clip, classes, prototypes, config)
    if (folder / CARD_FILE).exists():
        _same_settings(_card(folder / CARD_FILE).training, settings, folder)
        if team.rank == 0:
            _tidy(folder)  # a kill may come between the network and this
        return
    train = config.train
    if team.count * train.accumulate > train.batch:
        raise ConfigError(
            f"train.batch is {train.batch} for {team.count} processes with train.accumulate {train.accumulate}; "
            f"expected at least {team.count * train.accumulate}."
        )
    folder.mkdir(parents=True, exist_ok=True)
    head = _new_head(clip, classes, config).to(clip.device).train()
    optimizer = _new_optimizer(head, train)
    start = _resume(folder / CHECKPOINT_FILE, head, optimizer, settings, clip.device)
    side = crop_side(train.crop, clip.patch)
    if team.rank == 0:
        for left_by_a_kill in folder.glob(f".*{storage.PARTIAL}"):
            left_by_a_kill.unlink()
        if start == 0:
            shutil.rmtree(folder / FEATURES_FOLDER, ignore_errors=True)
    team.wait()
    cache = _FeatureCache(folder / FEATURES_FOLDER, train.cache_gb / team.count)
    team.wait()
    own = np.array_split(np.arange(train.batch), team.count)[team.rank]

    def read(step: int, slot: int) -> tuple[int, Crop]:
        number = item_number(config.seed, step * train.batch + slot, len(items))
        generator = np.random.default_rng((config.seed, step, slot))
        return number, load_crop(items[number], classes, clip, config.clip, train, side, generator)

    with (
        _Curve(folder, start) if team.rank == 0 else contextlib.nullcontext() as curve,
        _Reader(read, own.tolist(), start, train.steps, workers) as reader,
    ):
        for step, crops in enumerate(reader, start):
            began = time.perf_counter()
            rate = train.learning_rate * (1 - step / train.steps) ** train.power
            numbers = (item_number(config.seed, step * train.batch + slot, len(items)) for slot in range(train.batch))
            ids = [items[number].id for number in numbers]
            with _seeded(config.seed, step, team.rank, clip.device):
                refining = train.online and step >= train.online_from * train.steps
                parts = _one_step(crops, clip, head, optimizer, rate, prototypes, config, cache, team, ids, refining)
            record = StepRecord(step, *parts, rate, train.batch / (time.perf_counter() - began))
            if curve is not None:
                curve.add(record)
                if (step + 1) % train.checkpoint_every == 0 and step + 1 < train.steps:
                    _write_checkpoint(folder / CHECKPOINT_FILE, head, optimizer, settings, step + 1)
            yield record
    if team.rank == 0:
        _write_network(folder, head, clip, classes, prototypes, config, settings)
        _tidy(folder)
    team.wait()


def _one_step(crops, clip, head, optimizer, rate, prototypes, config, cache, team, ids, refining) -> list[float]:
    """One optimiser step; answers [loss, cross-entropy, pull, complement, negatives] of the whole batch."""
    labelled = sum(int((crop.target != IGNORE).sum()) for _, crop in crops)
    labelled = int(team.sum(torch.tensor(float(labelled), dtype=torch.float64, device=_float64_device(clip.device))))
    optimizer.zero_grad(set_to_none=True)
    parts = torch.zeros(4, device=clip.device)
    for chosen in np.array_split(np.arange(len(crops)), config.train.accumulate):
        part = [crops[number] for number in chosen]
        if not part:
            continue
        losses_of_part = _losses(part, labelled, clip, head, prototypes, config, cache, refining)
        loss = losses_of_part[0] + config.rsc.weight * losses_of_part[1:].sum()
        loss.backward()
        parts += losses_of_part.detach()
    cross_entropy, *contrast = team.sum(parts).tolist()
    loss = cross_entropy + config.rsc.weight * sum(contrast)
    weights = [weight for weight in head.parameters() if weight.grad is not None]
    if team.count > 1:
        total = team.sum(torch.cat([weight.grad.flatten() for weight in weights]))
        for weight, gradient in zip(weights, total.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = gradient.view_as(weight)
    length = float(nn.utils.get_total_norm([weight.grad for weight in weights]))
    if not (np.isfinite(loss) and np.isfinite(length)):
        raise RunError(
            f"training stopped: the loss is {loss} and its gradient {length} on the images {', '.join(ids)}. "
            "Look at these images and their pseudo-masks, or lower train.learning_rate; then start again."
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return [loss, cross_entropy, *contrast]


def _losses(part, labelled, clip, head, prototypes, config, cache, refining) -> Float[Tensor, " 4"]:
    """[cross-entropy, pull, complement, negatives] of a part of the batch, as shares of the batch's means."""
    device, rsc = clip.device, config.rsc
    pixels = torch.stack([crop.pixels for _, crop in part]).to(device)
    target = torch.stack([crop.target for _, crop in part]).to(device)
    grid = tuple(part[0][1].inside.shape)
    student = isinstance(head, Student)
    contrasting = rsc.weight > 0 and (rsc.pull or rsc.suppress)
    frozen = cache.features(clip, part, pixels) if not student or (contrasting and rsc.region == "pooled") else None
    with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bfloat16"):
        tokens = None if student else head.tokens(frozen.blocks)
        logits = head(pixels) if student else head.logits(tokens, grid)
    logits = logits.float()
    if refining:
        train = config.train
        target = losses.filled_target(target, tokens, grid, train.online_temperature, config.labels.confidence)
    cross_entropy = losses.masked_cross_entropy(to_pixels(logits, target.shape[1:]), target, labelled)
    if not contrasting:
        return torch.cat([cross_entropy[None], cross_entropy.new_zeros(3)])
    coarse = logits if logits.shape[2:] == grid else nn.functional.adaptive_avg_pool2d(logits, grid)
    contrast = losses.regional_contrast(
        coarse.softmax(dim=1)[:, 1:],
        torch.stack([crop.visible for _, crop in part]).to(device),
        torch.stack([crop.absent for _, crop in part]).to(device),
        losses.pooled(frozen.patches) if rsc.region == "pooled" else losses.masked(pixels, clip.embed_images),
        prototypes.to(device),
        config.prototypes.image_temperature,
        pull=rsc.pull,
        suppress=rsc.suppress,
        most_negatives=None if rsc.region == "pooled" else MOST_MASKED_NEGATIVES,
        inside=torch.stack([crop.inside for _, crop in part]).to(device),
    )
    share = len(part) / config.train.batch
    terms = torch.stack([contrast.pull, contrast.complement, contrast.negatives])
    return torch.cat([cross_entropy[None], share * terms])


def _float64_device(device: torch.device) -> torch.device:
    """Counts travel in float64; mps has none."""
    return torch.device("cpu") if device.type == "mps" else device


def _new_head(clip, classes, config) -> Decoder | Student:
    """The network before its first step, a function of the seed."""
    student = is_student(config.decoder)
    with _seeded(config.seed, config.train.steps, 0, torch.device("cpu")):
        if student:
            return Student.pretrained(config.decoder.network, len(classes))
        return Decoder(clip.layers, clip.width, len(classes), config.decoder)


def _new_optimizer(head: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """SGD as the paper has it, or AdamW."""
    shared = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(head.parameters(), betas=(train.momentum, ADAMW_SECOND_BETA), **shared)
    return torch.optim.SGD(head.parameters(), momentum=train.momentum, **shared)


@contextlib.contextmanager
def _seeded(seed: int, step: int, rank: int, device: torch.device):
    """torch's random state from (seed, step, rank) inside, and the caller's again outside: a student's dropout."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))
        yield


# ------------------------------------------------------------------------------------------------ samples and crops
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
    augmented = train.flip or train.scale_low != 1.0 or train.scale_high != 1.0
    zoom = sizes.scale * generator.uniform(train.scale_low, train.scale_high)
    fill = tuple(round(255 * channel) for channel in clip.mean)
    image, mask, placed, whole = cut(image, mask, zoom, side, fill, generator, scatter=augmented)
    inside = np.zeros((side, side), np.float32)
    inside[placed] = 1.0
    if train.flip and generator.random() < 0.5:
        image, mask, inside = image[:, ::-1], mask[:, ::-1], inside[:, ::-1]
    tags = torch.zeros(len(classes), dtype=torch.bool)
    tags[[classes.index(tag) for tag in item.tags]] = True
    shown = torch.zeros(256, dtype=torch.bool)
    shown[np.unique(mask).tolist()] = True
    pixels = images.to_pixels(np.ascontiguousarray(image), clip.patch, clip.mean, clip.std)
    inside = torch.from_numpy(np.ascontiguousarray(inside))
    return Crop(
        pixels=torch.where(inside > 0, pixels, 0.0),
        target=torch.from_numpy(np.ascontiguousarray(mask)),
        inside=nn.functional.avg_pool2d(inside[None], clip.patch)[0],
        visible=tags if whole else tags & shown[1 : len(classes) + 1],
        absent=~tags,
        repeatable=whole and not augmented,
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
    canvas[rows, columns] = Image.fromarray(image).resize(goal, Image.Resampling.BICUBIC, region)
    labels = np.full((side, side), IGNORE, np.uint8)
    labels[rows, columns] = Image.fromarray(mask).resize(goal, Image.Resampling.NEAREST, region)
    return canvas, labels, (rows, columns), whole


class _Reader:
    """Iterates over steps: each is the list of (item number, crop) of this process's slots, read ahead by threads."""

    def __init__(self, read, slots: list[int], start: int, steps: int, workers: int):
        self._read, self._slots, self._coming = read, slots, iter(range(start, steps))
        self._pool = ThreadPoolExecutor(max(1, workers), thread_name_prefix="vpl-read")
        self._queue: deque[list[Future]] = deque()

    def __enter__(self):
        for _ in range(STEPS_AHEAD):
            self._ask()
        return self

    def __exit__(self, *_):
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self):
        while self._queue:
            self._ask()
            yield [future.result() for future in self._queue.popleft()]

    def _ask(self) -> None:
        for step in self._coming:
            self._queue.append([self._pool.submit(self._read, step, slot) for slot in self._slots])
            return


# ------------------------------------------------------------------------------------------------- frozen features
class _FeatureCache:
    """Frozen features on disk for crops that are the same each time, at most `gigabytes`; the rest is encoded.

    Cached images are encoded one by one, so that a feature does not depend on who else was in the batch.
    """

    def __init__(self, folder: Path, gigabytes: float):
        self.folder, self.left = folder, int(gigabytes * 1e9)
        if self.left:
            folder.mkdir(parents=True, exist_ok=True)
            self.left -= sum(path.stat().st_size for path in folder.iterdir())

    def features(self, clip: FrozenClip, part: list[tuple[int, Crop]], pixels: Float[Tensor, "N 3 H W"]) -> Frozen:
        if not self.folder.exists() or not all(crop.repeatable for _, crop in part):
            return _encode(clip, pixels)
        rows = [self._one(clip, number, pixels[place : place + 1]) for place, (number, _) in enumerate(part)]
        blocks = tuple(torch.cat(block) for block in zip(*(row.blocks for row in rows), strict=True))
        return Frozen(blocks, torch.cat([row.patches for row in rows]))

    def _one(self, clip: FrozenClip, number: int, pixels: Float[Tensor, "1 3 H W"]) -> Frozen:
        path = self.folder / f"{number:08d}.safetensors"
        if path.exists():
            with contextlib.suppress(OSError, ValueError, KeyError, safetensors.SafetensorError):  # damaged: made anew
                held = safetensors.torch.load_file(path, device=str(pixels.device))
                return Frozen(tuple(held[f"block{place}"] for place in range(len(held) - 1)), held["patches"])
        found = _encode(clip, pixels)
        tensors = {f"block{place}": block.contiguous() for place, block in enumerate(found.blocks)}
        data = safetensors.torch.save(tensors | {"patches": found.patches.contiguous()})
        if len(data) <= self.left:
            storage.write_bytes_atomic(path, data)
            self.left -= len(data)
        return found


def _encode(clip: FrozenClip, pixels: Float[Tensor, "N 3 H W"]) -> Frozen:
    features = clip.encode(pixels, attention_blocks=0, keep_blocks=True, keep_last=False)
    return Frozen(features.blocks, features.patches)


# --------------------------------------------------------------------------------------- checkpoints and the network
def _settings(items, clip, classes, prototypes, config) -> dict:
    """What shapes the weights, as plain values: a checkpoint or network of other settings is not continued."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.id}\t{';'.join(item.tags)}\n".encode())
    not_shaping = ("train.checkpoint_every", "train.cache_gb")
    shaping = ("decoder.", "rsc.", "train.", "clip.scale", "clip.max_side", "clip.precision", "labels.confidence")
    chosen = {key: one for key, one in config.flat().items() if key.startswith(shaping) and key not in not_shaping}
    table = None if prototypes is None else prototypes.detach().float().cpu().contiguous().numpy().tobytes()
    return chosen | {
        "seed": config.seed,
        "prototypes.image_temperature": config.prototypes.image_temperature,
        "classes": list(classes.names),
        "clip hash": clip.weights_hash,
        "items": f"{len(items)}, {digest.hexdigest()}",
        "prototypes hash": None if table is None else hashlib.sha256(table).hexdigest(),
    }


def _same_settings(found: dict, wanted: dict, folder: Path) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        shown = "; ".join(f"{key}: {found.get(key)!r} there, {wanted[key]!r} now" for key in different)
        raise RunError(
            f"{folder} holds a network of other settings ({shown}). Use the same settings, another run folder, or "
            "remove that folder to train anew."
        )


def _card(path: Path) -> Card:
    """The card of a finished network."""
    try:
        return Card.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelError) as error:
        raise RunError(f"{path} is damaged ({error}); delete the folder {path.parent} to train anew.") from error


def _tidy(folder: Path) -> None:
    """Remove what a finished network does not need."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / FEATURES_FOLDER, ignore_errors=True)


def _write_checkpoint(path: Path, head, optimizer, settings: dict, step: int) -> None:
    """Weights, optimiser, schedule and data position (the step), and the random states (seed and step; see above)."""
    state = {"head": head.state_dict(), "optimizer": optimizer.state_dict(), "settings": settings, "step": step}
    data = io.BytesIO()
    torch.save(state, data)
    storage.write_bytes_atomic(path, data.getvalue())


def _resume(path: Path, head, optimizer, settings: dict, device: torch.device) -> int:
    """The step to go on with; head and optimizer take the checkpoint's state if there is one."""
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found, step = dict(state["settings"]), state["step"]
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise _no_checkpoint(path, error) from error
    _same_settings(found, settings, path.parent)
    try:
        if type(step) is not int or not 0 < step < settings["train.steps"]:
            raise ValueError(f"step {step} of {settings['train.steps']}")
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise _no_checkpoint(path, error) from error
    return step


def _no_checkpoint(path: Path, error: Exception) -> RunError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RunError(f"the checkpoint {path} can't be read ({reason}); remove it to train from the start.")


def _write_network(folder: Path, head, clip, classes, prototypes, config, settings) -> None:
    """The saved network, its card last: a folder with a card is complete. CLIP's weights are not in it."""
    weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    storage.write_bytes_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    if prototypes is not None:
        table = {"vision": prototypes.detach().float().cpu().contiguous()}
        storage.write_bytes_atomic(folder / PROTOTYPES_FILE, safetensors.torch.save(table))
    card = Card(
        classes=classes,
        decoder=config.decoder,
        clip_name=clip.name,
        clip_hash=settings["clip hash"],
        clip_blocks=clip.layers,
        clip_width=clip.width,
        patch=clip.patch,
        mean=tuple(map(float, clip.mean)),
        std=tuple(map(float, clip.std)),
        scale=config.clip.scale,
        max_side=config.clip.max_side,
        predict=config.predict,
        crf=config.crf,
        training=settings,
        student=head.describe() if isinstance(head, Student) else None,
    )
    storage.write_text_atomic(folder / CARD_FILE, card.to_json())


class _Curve:
    """curve.csv, one row a step, and TensorBoard events where tensorboard is installed; rows before `start` stay."""

    def __init__(self, folder: Path, start: int):
        self._path, self._start, self._folder = folder / CURVE_FILE, start, folder
        self._names = [field.name for field in fields(StepRecord)]

    def __enter__(self):
        kept = []
        if self._start and self._path.exists():
            try:
                with self._path.open(newline="", encoding="utf-8") as file:
                    kept = [row for row in csv.reader(file) if row and row[0].isdecimal() and int(row[0]) < self._start]
            except (OSError, ValueError, csv.Error) as error:
                raise RunError(f"{self._path} is damaged ({error}); delete it, then start again.") from error
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self._names, *kept])
        storage.write_text_atomic(self._path, text.getvalue())
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file, lineterminator="\n")
        try:
            self._events = _Events(self._folder, self._start)
        except ImportError:
            self._events = None
        return self

    def add(self, record: StepRecord) -> None:
        row = asdict(record)
        try:
            self._rows.writerow([row["step"], *(f"{row[name]:.7g}" for name in self._names[1:])])
            self._file.flush()
            if self._events is not None:
                self._events.add(record.step, {name: row[name] for name in self._names[1:]})
        except OSError as error:
            raise RunError(f"{self._path} can't be written ({error.strerror}); make room, then start again.") from error

    def __exit__(self, *_):
        with contextlib.suppress(OSError):  # a full disk: `add` has told
            self._file.close()
        if self._events is not None:
            self._events.close()


class _Events:
    """A TensorBoard event file, written as it goes: torch's own writer has a thread that a full disk ends in a
    traceback."""

    def __init__(self, folder: Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        place = folder / f"events.out.tfevents.{time.time_ns():020d}.{os.getpid()}"
        self._file = place.open("ab", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self._write(step=start, session_log=SessionLog(status=SessionLog.START))  # later steps of before are void

    def add(self, step: int, values: dict[str, float]) -> None:
        made = [self._summary.Value(tag=name, simple_value=one) for name, one in values.items()]
        self._write(step=step, summary=self._summary(value=made))

    def _write(self, **content) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        self._file.close()
