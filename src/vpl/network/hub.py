"""A trained network with its CLIP as one folder in transformers' manner, to keep, to send or to put on a model hub.

    model.safetensors         CLIP's weights (`clip.` and their names in clip.py) and the head's (`head.`), float32
    config.json               classes (id2label), the network's card, what CLIP's weights do not tell
    preprocessor_config.json  how a photograph becomes the network's input
    README.md                 a model card: classes, measured numbers, the CLIP it was made from

`read` gives the same network back, so that `vpl.load(folder)` and `vpl predict folder` need nothing else. A
student is written by transformers itself: then AutoModelForSemanticSegmentation loads the folder too. CLIP's text tower
lies in the folder, so that the hash of the weights can be checked; its tokenizer does not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from vpl import __version__
from vpl.clip.facts import Architecture, Said
from vpl.clip.model import FrozenClip
from vpl.edges import storage, templates
from vpl.errors import ModelError
from vpl.network.card import Card
from vpl.network.head import Network
from vpl.network.student import Student

WEIGHTS_FILE, CONFIG_FILE, PIXELS_FILE, README_FILE = (
    "model.safetensors", "config.json", "preprocessor_config.json", "README.md",
)  # fmt: skip
CARD_KEY, CLIP_KEY = "vpl_card", "vpl_clip"
Evaluations = Sequence[Mapping[str, Any]]
"""Of metrics.json."""
MODEL_TYPE = "vpl"
"""Of a head over CLIP; transformers has no class for it, vpl.load has."""
METRICS = {"miou": "mean_iou", "pixel_accuracy": "pixel_accuracy"}
"""Scores of metrics.json -> what hubs call them."""
_BICUBIC = 3


def is_folder(folder: Path) -> bool:
    """Whether a folder is one that `write` made."""
    try:
        return CARD_KEY in json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write(folder: Path, card: Card, head: Network, clip: FrozenClip | None, evaluations: Evaluations) -> None:
    """Write the folder.

    Args:
        clip: the CLIP that the head reads; None for a student.
        evaluations: of metrics.json; rows of the network go into the model card.
    """
    names = ("background", *card.classes.names)
    config = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "semantic_loss_ignore_index": 255,
        "vpl_version": __version__,
        CARD_KEY: json.loads(card.to_json()),
    }
    if isinstance(head, Student):
        model: Any = head.model  # transformers' own
        model.save_pretrained(folder)
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")) | config
        config.pop("_name_or_path", None)
    elif clip is None:
        raise ModelError("a head over CLIP can't leave without its CLIP; load it with the CLIP that it reads.")
    else:
        parts = {"clip": clip, "head": head}
        tensors = {f"{part}.{key}": one for part, module in parts.items() for key, one in module.state_dict().items()}
        data = safetensors.torch.save(
            {key: one.detach().float().cpu().contiguous() for key, one in tensors.items()}, {"format": "pt"}
        )
        storage.write_bytes_atomic(folder / WEIGHTS_FILE, data)
        config |= {"model_type": MODEL_TYPE, CLIP_KEY: dataclasses.asdict(clip.architecture)}
    pixels = {
        "do_resize": True,
        "longest_edge": card.max_side,
        "scale": card.scale,
        "size_divisor": card.patch,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": card.mean,
        "image_std": card.std,
    }
    for name, tree in ((CONFIG_FILE, config), (PIXELS_FILE, pixels)):
        storage.write_text_atomic(folder / name, json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    storage.write_text_atomic(folder / README_FILE, model_card(card, evaluations))


def read(folder: Path, device: str = "auto") -> tuple[Card, Network, FrozenClip | None]:
    """The network of a folder that `write` made, and its CLIP (None: a student has none).

    Raises:
        ModelError: something is missing, damaged or of another version.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        card = Card.from_json(json.dumps(config[CARD_KEY]))
        if card.student is not None:
            return card, _student(folder), None
        tensors = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        architecture = Architecture(**config[CLIP_KEY])
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} is damaged ({error}); export or download it again.") from error
    weights = {part: {key.removeprefix(f"{part}."): one for key, one in tensors.items() if key.startswith(f"{part}.")}
               for part in ("clip", "head")}  # fmt: skip
    head = card.head_of(weights["head"], f"the weights in {folder}", "export or download it again.")
    said = Said(**card.clip_said)
    clip = FrozenClip(weights["clip"], architecture, card.clip_name, None, card.mean, card.std, said).prepare(device)
    if clip.weights_hash != card.clip_hash:
        raise ModelError(f"the CLIP in {folder} is not the one that its network was trained with; export it again.")
    return card, head, clip


def _student(folder: Path) -> Student:
    """The student of a folder, all of its weights found and finite.

    Raises:
        ModelError: some are not.
    """
    from transformers import AutoModelForSemanticSegmentation

    model, found = AutoModelForSemanticSegmentation.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    wrong = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    wrong += [key for key, one in model.state_dict().items() if one.is_floating_point() and not one.isfinite().all()]
    if wrong:
        raise ModelError(
            f"the weights in {folder} are not this network's ({wrong[0]} is missing, of another size or not finite); "
            "export or download it again."
        )
    return Student(model)


def model_card(card: Card, evaluations: Evaluations) -> str:
    """README.md, from figures alone; its head is the YAML that hubs read.

    Args:
        evaluations: of metrics.json.
    """
    rows = [
        (one["split"], len(one["classes"]) + 1, row)
        for one in evaluations
        for row in one["rows"]
        if row["name"].startswith("network")
    ]
    results = [
        {
            "task": {"type": "image-segmentation"},
            "dataset": {"type": "custom", "name": split, "split": split},
            "metrics": [
                {"type": kind, "name": f"{kind}, {row['name']}, {row['images']} images", "value": round(row[key], 4)}
                for key, kind in METRICS.items()
            ],
        }
        for split, _, row in rows
    ]
    head: dict[str, object] = {
        "license": "unknown",
        "library_name": "vpl",
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", "weakly-supervised", "clip", "vpl"],
    }
    if re.fullmatch(r"[\w.-]+/[\w.-]+", card.clip_name):
        head["base_model"] = card.clip_name
    if results:
        head["model-index"] = [{"name": "vpl", "results": results}]
    return templates.render(
        "network",
        "model-card.md",
        head=head,
        card=card,
        version=__version__,
        json=functools.partial(json.dumps, ensure_ascii=False),
        classes=list(enumerate(("background", *card.classes.names))),
        rows=[
            (split, row["images"], count, row["name"], *(templates.percent(row[key]) for key in METRICS))
            for split, count, row in rows
        ],
    )
