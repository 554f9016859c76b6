"""A student: a segmentation model of transformers that learns from the same masks and needs no CLIP when it predicts.

It reads pixels normalised with CLIP's mean and std, which differ from ImageNet's by less than a fine-tuning step.
Letters: C foreground classes · N images of a batch · H W pixels · gh gw the model's own output grid · P = C + 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpl.clip.weights import hub_answers
from vpl.config import DecoderConfig
from vpl.errors import ModelError
from vpl.network.head import Answer, Network, Sight

STUDENT_PREFIX = "hf:"
TRIED_SIDE = 64
"""Side of the empty picture that a new student is tried on, in pixels."""


class Student(Network):
    """A semantic-segmentation model of transformers (SegFormer, ...) with C+1 classes."""

    reads_clip = False

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @classmethod
    def pretrained(cls, network: str, classes: int) -> Student:
        """The model `hf:<name or folder>` with a new last layer; a folder without weights gives a random start.

        Raises:
            ModelError: no such model, or not one for semantic segmentation.
        """
        from transformers import AutoConfig, AutoModelForSemanticSegmentation

        name = network.removeprefix(STUDENT_PREFIX)
        folder = Path(name)
        here = folder.is_dir() or not hub_answers(name)  # transformers would wait for minutes
        try:
            config = AutoConfig.from_pretrained(name, num_labels=classes + 1, local_files_only=here)
            if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
                return cls(AutoModelForSemanticSegmentation.from_config(config))
            model = AutoModelForSemanticSegmentation.from_pretrained(
                name, config=config, ignore_mismatched_sizes=True, local_files_only=here
            )
            with torch.no_grad():  # sizes that can't be computed with show themselves here
                model.eval()(pixel_values=torch.zeros(1, 3, TRIED_SIDE, TRIED_SIDE))
            return cls(model)
        except MemoryError:
            raise
        except Exception as error:  # a damaged folder raises a dozen kinds, of transformers', safetensors' and torch's
            raise ModelError(
                f"the student network {name!r} can't be loaded ({_words(error)}); expected a "
                "semantic-segmentation model of transformers, by name or folder, for example hf:nvidia/mit-b0; where "
                "the hub can't be reached, a folder, or one that was fetched before."
            ) from error

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Student:
        """The architecture that `describe` wrote, with random weights.

        Raises:
            ModelError: this version of transformers does not know it.
        """
        from transformers import AutoConfig, AutoModelForSemanticSegmentation

        try:
            rest = {key: given for key, given in description.items() if key != "model_type"}
            config = AutoConfig.for_model(description["model_type"], **rest)
            return cls(AutoModelForSemanticSegmentation.from_config(config))
        except MemoryError:
            raise
        except Exception as error:  # as above
            raise ModelError(
                f"the student network of type {description.get('model_type')!r} can't be built ({_words(error)}); "
                "use the version of transformers that trained it."
            ) from error

    def describe(self) -> dict[str, Any]:
        """The architecture as plain values, enough to build it again without a download."""
        config: Any = self.model.config  # transformers' own
        return config.to_dict()

    def forward(self, seen: Sight) -> Answer:
        """Logits on the model's own output grid (SegFormer: a quarter of the pixels)."""
        return Answer(self.model(pixel_values=seen.pixels).logits)


def _words(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_student(config: DecoderConfig) -> bool:
    """Whether `decoder.network` asks for a student: `hf:<name or folder>`."""
    return config.network.startswith(STUDENT_PREFIX) and len(config.network) > len(STUDENT_PREFIX)
