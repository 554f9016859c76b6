"""A training on disk: the checkpoint it goes on from, the settings that shape its weights, and the finished network."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.edges import storage
from vpl.errors import ModelError, RunError
from vpl.network.card import CARD_FILE, PROTOTYPES_FILE, WEIGHTS_FILE, Card
from vpl.network.crops import Item
from vpl.network.head import Network

CHECKPOINT_FILE = "checkpoint.pt"
NOT_SHAPING = ("train.checkpoint_every",)
"""Values of `train` that the weights don't depend on."""

Settings = dict[str, Any]
"""What shapes a network's weights, as plain values by name."""


def settings_of(
    items: Sequence[Item],
    clip: FrozenClip,
    classes: ClassSet,
    prototypes: Float[Tensor, "P D"] | None,
    config: Config,
) -> Settings:
    """What shapes the weights: a checkpoint or network of other settings is not continued."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.id}\t{';'.join(item.tags)}\n".encode())
    shaping = (
        "decoder.", "rsc.", "train.", "clip.scale", "clip.max_side", "clip.precision", "labels.confidence", "seeds.",
        "refine.", "prototypes.kind",
    )  # fmt: skip
    flat = {key: list(one) if isinstance(one, tuple) else one for key, one in config.flat().items()}  # as JSON reads it
    chosen = {key: one for key, one in flat.items() if key.startswith(shaping) and key not in NOT_SHAPING}
    table = None if prototypes is None else prototypes.detach().float().cpu().contiguous().numpy().tobytes()
    return chosen | {
        "seed": config.seed,
        "prototypes.image_temperature": config.prototypes.image_temperature,
        "classes": list(classes.names),
        "clip hash": clip.weights_hash,
        "items": f"{len(items)}, {digest.hexdigest()}",
        "prototypes hash": None if table is None else hashlib.sha256(table).hexdigest(),
    }


def check_same(found: Mapping[str, Any], wanted: Settings, folder: Path) -> None:
    """Refuse to go on in a folder whose network was made with other settings.

    A value that the folder does not name is younger than the folder, which was made as the default has it.

    Raises:
        RunError: a setting differs; the message names it.
    """
    there: dict[str, Any] = Config().flat() | dict(found)
    there = {key: list(one) if isinstance(one, tuple) else one for key, one in there.items()}
    different = [key for key in wanted if there.get(key) != wanted[key]]
    if different:
        shown = "; ".join(f"{key}: {there.get(key)!r} there, {wanted[key]!r} now" for key in different)
        raise RunError(
            f"{folder} holds a network of other settings ({shown}). Use the same settings, another run folder, or "
            "remove that folder to train anew."
        )


def finished(folder: Path) -> Card:
    """The card of the finished network in a folder.

    Raises:
        RunError: it is damaged.
    """
    path = folder / CARD_FILE
    try:
        return Card.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ModelError) as error:
        raise RunError(f"{path} is damaged ({error}); delete the folder {folder} to train anew.") from error


def remove(folder: Path) -> None:
    """Remove the checkpoint: a finished network needs none."""
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)


def write(folder: Path, network: Network, optimizer: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    """Weights, optimiser, schedule and data position (the step); random states follow from seed and step."""
    state = {"head": network.state_dict(), "optimizer": optimizer.state_dict(), "settings": settings, "step": step}
    data = io.BytesIO()
    torch.save(state, data)
    storage.write_bytes_atomic(folder / CHECKPOINT_FILE, data.getvalue())


def resume(
    folder: Path, network: Network, optimizer: torch.optim.Optimizer, settings: Settings, device: torch.device
) -> int:
    """The step to go on with; network and optimizer take the checkpoint's state if there is one.

    Raises:
        RunError: the checkpoint is damaged or of other settings.
    """
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        found, step = dict(state["settings"]), state["step"]
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise _damaged(path, error) from error
    check_same(found, settings, folder)
    try:
        if type(step) is not int or not 0 < step < settings["train.steps"]:
            raise ValueError(f"step {step} of {settings['train.steps']}")
        network.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:
        raise _damaged(path, error) from error
    return step


def _damaged(path: Path, error: Exception) -> RunError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RunError(f"the checkpoint {path} can't be read ({reason}); remove it to train from the start.")


def write_network(
    folder: Path,
    network: Network,
    clip: FrozenClip,
    classes: ClassSet,
    prototypes: Float[Tensor, "P D"] | None,
    config: Config,
    settings: Settings,
) -> None:
    """The saved network, its card last: a folder with a card is complete. CLIP's weights are not in it."""
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    storage.write_bytes_atomic(folder / WEIGHTS_FILE, safetensors.torch.save(weights))
    if prototypes is not None:
        table = {"vision": prototypes.detach().float().cpu().contiguous()}
        storage.write_bytes_atomic(folder / PROTOTYPES_FILE, safetensors.torch.save(table))
    card = Card(
        classes=classes,
        decoder=config.decoder,
        clip_name=clip.name,
        clip_hash=settings["clip hash"],
        clip_said=dataclasses.asdict(clip.said),
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
        student=network.describe(),
    )
    storage.write_text_atomic(folder / CARD_FILE, card.to_json())
