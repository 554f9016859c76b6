"""What a saved network says of itself: `network.json`, and the weights that belong to it.

A saved network is a folder of `WEIGHTS_FILE`, `CARD_FILE` and, where it learned from them, `PROTOTYPES_FILE`. Sizes are
compared before anything of the card's size is made, so that a damaged card costs no memory.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import CrfConfig, DecoderConfig, PredictConfig
from vpl.errors import ConfigError, DataError, ModelError
from vpl.network.head import Decoder, Network
from vpl.network.student import Student, is_student
from vpl.network.weclip import Weclip

NETWORK_FOLDER = "network"
"""Of a run folder."""
WEIGHTS_FILE, CARD_FILE, PROTOTYPES_FILE = "decoder.safetensors", "network.json", "prototypes.safetensors"
MOST_OF_A_SIZE = 2**20
"""Larger sizes in a card are damage."""


HEADS: Mapping[str, type[Decoder] | type[Weclip]] = {"decoder": Decoder, "weclip": Weclip}
"""Heads over frozen features by the name that `decoder.network` has for them."""


def untrained(config: DecoderConfig, clip: FrozenClip, classes: int) -> Network:
    """The network that the configuration asks for, before its first step; `classes`: foreground ones.

    Raises:
        ConfigError: `decoder` asks for no network that there is.
        ModelError: the student can't be loaded.
    """
    if is_student(config):
        return Student.pretrained(config.network, classes)
    return _head(config)(clip.layers, clip.width, classes, config)


def _head(config: DecoderConfig) -> type[Decoder] | type[Weclip]:
    if config.network not in HEADS:
        raise ConfigError(
            f"decoder.network is {config.network!r}; expected {', '.join(HEADS)}, or hf:<name or folder> of a "
            "semantic-segmentation model of transformers."
        )
    return HEADS[config.network]


@dataclass(frozen=True)
class Card:
    """What `network.json` holds: all that is needed to build the network again, and which CLIP it reads.

    Attributes:
        classes: names and colours; the network answers background and then these.
        decoder: how the head was made. A student's architecture is in `student`, and it needs no CLIP to predict.
        clip_name, clip_hash: the CLIP whose features the network reads, and the hash of its weights.
        clip_blocks, clip_width: number of blocks and width of that CLIP's image encoder.
        patch: image sides at the network are multiples of it, pixels.
        mean, std: of each channel, for values in [0, 1].
        scale: image size at the network over its size on disk, after `max_side`.
        max_side: longer images are scaled down to this side, pixels.
        predict, crf: the second protocol of METHOD.md 6.
        training: what shaped the weights, as plain values.
        clip_said: what the user said of that CLIP (heads, activation, mean, std), which its files don't.
    """

    classes: ClassSet
    decoder: DecoderConfig
    clip_name: str
    clip_hash: str
    clip_blocks: int
    clip_width: int
    patch: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    max_side: int
    predict: PredictConfig
    crf: CrfConfig
    training: dict[str, Any]
    student: dict[str, Any] | None = None
    clip_said: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Raises:
        ModelError: the text is no card, or one of another version.
        """
        try:
            tree = json.loads(text)
            words = tree["classes"]
            colors = tuple(tuple(color) for color in words["colors"])
            classes = ClassSet(tuple(words["names"]), tuple(words["words"]), tuple(words["background"]), colors)
            predict = tree["predict"] | {"scales": tuple(tree["predict"]["scales"])}
            tree |= {
                "classes": classes,
                "decoder": DecoderConfig(**tree["decoder"]),
                "predict": PredictConfig(**predict),
                "crf": CrfConfig(**tree["crf"]),
                "mean": tuple(tree["mean"]),
                "std": tuple(tree["std"]),
            }
            return cls(**tree)._checked()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError, DataError) as error:
            raise ModelError(
                f"the network's {CARD_FILE} can't be used ({error}); it is damaged or of another version of vpl. "
                "Train the network again, or use the version that wrote it."
            ) from error

    def empty_head(self) -> Network:
        """The network with random weights, ready for the saved ones."""
        if self.student is not None:
            return Student.from_description(self.student)
        return _head(self.decoder)(self.clip_blocks, self.clip_width, len(self.classes), self.decoder)

    def _checked(self) -> Card:
        """Itself, if its values are ones that a network can have."""
        whole = {"clip_blocks": self.clip_blocks, "clip_width": self.clip_width, "patch": self.patch,
                 "max_side": self.max_side}  # fmt: skip
        wrong = [key for key, one in whole.items() if type(one) is not int or not 0 < one < MOST_OF_A_SIZE]
        texts = {"clip_name": self.clip_name, "clip_hash": self.clip_hash}
        wrong += [key for key, one in texts.items() if not isinstance(one, str)]
        for key, one in (("mean", self.mean), ("std", self.std), ("scale", (self.scale,) * 3)):
            numbers = [value for value in one if type(value) in (int, float) and abs(value) < MOST_OF_A_SIZE]
            if len(numbers) != 3 or len(one) != 3 or (key != "mean" and min(numbers) <= 0):
                wrong.append(key)
        tables = {"training": self.training, "student": self.student or {}, "clip_said": self.clip_said}
        wrong += [key for key, one in tables.items() if not isinstance(one, dict)]
        if wrong:
            raise ValueError(f"{wrong[0]} is no value that vpl writes")
        if self.student is None:
            _head(self.decoder)
        return self

    def head_of(self, weights: Mapping[str, Tensor], name: str, remedy: str) -> Network:
        """The network with its saved weights. Sizes are compared before anything of the card's size is made.

        Raises:
            ModelError: the weights are not this network's, or hold values that are not finite.
        """
        if self.student is None and self.clip_blocks + self.decoder.blocks > len(weights):
            raise ModelError(f"{name} don't fit its {CARD_FILE} (fewer tensors than blocks); {remedy}")
        try:
            with torch.device("meta"):
                expected = {key: one.shape for key, one in self.empty_head().state_dict().items()}
        except (RuntimeError, TypeError, ValueError, OverflowError, AttributeError, ModelError) as error:
            raise ModelError(f"{name} don't fit its {CARD_FILE} ({str(error).splitlines()[0]}); {remedy}") from error
        found = {key: one.shape for key, one in weights.items()}
        wrong = [key for key in {**expected, **found} if found.get(key) != expected.get(key)]
        if wrong:
            raise ModelError(f"{name} don't fit its {CARD_FILE} ({sorted(wrong)[0]} is of another size); {remedy}")
        broken = [key for key, one in weights.items() if one.is_floating_point() and not bool(one.isfinite().all())]
        if broken:
            raise ModelError(f"{name} are damaged ({broken[0]} holds values that are not finite); {remedy}")
        head = self.empty_head()
        head.load_state_dict(weights)
        return head
