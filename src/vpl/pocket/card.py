"""The model card of a pre-trained CLIP: what was measured, by whom it can be measured again, and what it can't do.

Reads the folder that `pretrain` wrote (weights, training.json) and writes README.md and maps.png into it. The masks
of scenes are read here, after training, to say how text seeds depend on the image size; nothing learns from them.

Letters: N images, K tags of an image, h w patch grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from vpl.classes import SCENE_GROUNDS
from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.edges import images, sheet, storage, templates
from vpl.errors import RunError
from vpl.method.masks import label_map
from vpl.method.metrics import Confusion
from vpl.method.prototypes import text_prototypes
from vpl.method.seeds import seed_maps
from vpl.method.views import View, encode
from vpl.pocket.captions import Chunk
from vpl.pocket.zeroshot import ZeroShot, mean_of, zero_shot
from vpl.sampling import evenly
from vpl.scenes.draw import draw
from vpl.scenes.styles import PRETRAIN_STYLES, STYLES

TRAINING = "training.json"
MAPS = "maps.png"
SEED = 1_000_003
"""Of the scenes that the card measures; no training and no demo has it."""
SIZES = (64, 96, 128, 160)
LOGGED = 16
"""Most rows of the training's log."""
HEAT = np.array([(20, 20, 60), (60, 40, 140), (200, 60, 90), (250, 160, 50), (255, 250, 190)], dtype=np.float64)


@dataclass(frozen=True)
class Training:
    """What `pretrain` says about a finished training; `log` holds its records as plain rows by name."""

    data: str
    command: str
    machine: str
    device: str
    precision: str
    threads: int
    seconds: float
    step: int
    seed: int
    parameters: int
    batch: int
    note: str
    log: list[dict[str, int | float]]
    recipe: dict[str, object]


def write(folder: Path, held: Chunk | None, count: int = 384) -> str:
    """Measure the model in `folder`, write its card and picture, and return the card's text.

    Args:
        held: held-out images of the user's own data; None: scenes of every style are drawn.
        count: scenes of each style for tags and retrieval; a fourth of them for seeds, at each size.

    Raises:
        RunError: the folder holds no finished training.
    """
    try:
        training = Training(**json.loads((folder / TRAINING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{folder} holds no finished training ({error}); run the training to its end first.") from error
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    side = model.config.vision_config.image_size
    if held is None:
        drawn = {style: _drawn(style, count, side) for style in STYLES}
        sets = {style: zero_shot(model, tokenizer, chunk, side) for style, chunk in drawn.items()}
        clip = FrozenClip.load(folder, device="cpu")
        sizes = {
            style: text_seed_miou(clip, style, max(1, count // 4), SIZES) for style in (PRETRAIN_STYLES[1], "demo")
        }
        images.write_image(folder / MAPS, maps_picture(clip))
    else:
        sets, sizes = {"held-out": zero_shot(model, tokenizer, held, side)}, {}
    temperature = math.exp(-float(model.logit_scale.detach()))
    text = card_text(training, sets, sizes, temperature, (folder / "model.safetensors").stat().st_size)
    storage.write_text_atomic(folder / "README.md", text)
    return text


def _drawn(style: str, count: int, side: int) -> Chunk:
    drawn = [draw(SEED, i, style, side, with_mask=False) for i in range(count)]
    words = tuple((*scene.tags, scene.ground) for scene in drawn)
    return Chunk(np.stack([scene.image for scene in drawn]), tuple(scene.caption for scene in drawn), words)


def text_seed_miou(clip: FrozenClip, style: str, count: int, sizes: Sequence[int]) -> dict[int, float]:
    """Image size -> mIoU of text seeds on scenes with tags, background score 1 - max seed (METHOD.md 1 and 4)."""
    config, classes = Config(), scene_classes()
    table, found = text_prototypes(clip, classes, config.prompts).all, {}
    for size in sizes:
        confusion = Confusion(len(classes.names) + 1)
        for index in range(count):
            scene = draw(SEED, index, style, size)
            if not scene.tags:
                continue
            view = View(scene.image, tuple(classes.names.index(tag) for tag in scene.tags), (size, size))
            features = encode(clip, [view], config.clip)
            (cam,) = seed_maps(clip, features, [view.tags], table, len(classes.names), clip.logit_scale)
            confusion.update(np.asarray(scene.mask), label_map(cam, view, config.labels.background_exponent)[0])
        found[size] = confusion.miou()
    return found


def maps_picture(clip: FrozenClip, size: int = 128, rows: int = 8) -> UInt8[ndarray, "H W 3"]:
    """How patches of the last block meet texts: scene, cosines with two tags and the ground, the first tag's seed."""
    config, classes = Config(), scene_classes()
    table = text_prototypes(clip, classes, config.prompts).all
    words = [*classes.names, *classes.background]
    cells: list[list[UInt8[ndarray, "H W 3"]]] = []
    captions, index = [], 0
    while len(cells) < rows:
        scene = draw(SEED + 1, index, "demo", size, with_mask=False)
        index += 1
        if len(scene.tags) < 2:
            continue
        view = View(scene.image, tuple(words.index(tag) for tag in scene.tags), (size, size))
        features = encode(clip, [view], config.clip)
        patches = torch.nn.functional.normalize(features.patches[0], dim=1)
        (cam,) = seed_maps(clip, features, [view.tags], table, len(classes.names), clip.logit_scale)
        shown = [*scene.tags[:2], scene.ground]
        cosines = [(patches @ table[words.index(word)]).view(features.grid) for word in shown]
        cells.append([scene.image, *(_heat(one.numpy(), size) for one in (*cosines, cam[0]))])
        captions.append(" | ".join(shown))
    columns = ("scene", "patch · tag 1", "patch · tag 2", "patch · ground", "seed of tag 1")
    return np.asarray(sheet.contact_sheet(columns, cells, captions, side=size))


def _heat(values: ndarray, size: int) -> UInt8[ndarray, "H W 3"]:
    """A map, stretched to its own range, in colours from dark to light."""
    low, high = values.min(), values.max()
    place = (values - low) / max(high - low, 1e-7) * (len(HEAT) - 1)
    colours = np.stack([np.interp(place, range(len(HEAT)), HEAT[:, channel]) for channel in range(3)], axis=-1)
    return np.asarray(Image.fromarray(colours.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST))


def card_text(
    training: Training, sets: dict[str, ZeroShot], sizes: dict[str, dict[int, float]], temperature: float, size: int
) -> str:
    """The card, from figures alone."""
    words = dict.fromkeys(word for one in sets.values() for word in one.ap)
    return templates.render(
        "pocket",
        "model-card.md",
        training=training,
        kind=training.data.partition(" of ")[0],
        temperature=temperature,
        size=size,
        maps=MAPS,
        curve=[
            (
                f"{row['step']:.0f}",
                f"{row['loss']:.2f}",
                f"{row['temperature']:.4f}",
                f"{row['tag_map']:.3f}",
                f"{row['class_token_map']:.3f}",
                f"{row['retrieval']:.3f}",
                f"{row['images_per_second']:.0f}",
            )
            for row in evenly(training.log, LOGGED)
        ],
        zero_shot=[
            (
                name,
                one.images,
                f"{mean_of(_objects(one.ap)):.3f}",
                f"{mean_of(_objects(one.class_token_ap)):.3f}",
                f"{one.retrieval:.3f}",
                f"{one.text_retrieval:.3f}",
                f"{one.gap:.2f}",
            )
            for name, one in sets.items()
        ],
        sets=list(sets),
        by_word=[(word, *(f"{one.ap[word]:.2f}" if word in one.ap else "" for one in sets.values())) for word in words],
        sizes=[f"{one} px" for one in SIZES],
        seeds=[(name, *(f"{100 * row[one]:.1f}" for one in SIZES)) for name, row in sizes.items()],
    )


def _objects(ap: dict[str, float]) -> dict[str, float]:
    """Without the grounds, where there is anything else."""
    return {word: one for word, one in ap.items() if word not in SCENE_GROUNDS} or ap
