"""The numbers of a pre-training, and the small CLIP that they describe: tokenizer, fresh weights, files.

    rate(step) = rate · min( 1, (step + 1) / warmup ) · ½ ( 1 + cos( π · max(0, step − a) / (steps − a) ) )
    a = settle · steps

All numbers are ours, chosen by tag mAP on held-out captions in short trials (see the model card of pocket).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vpl.clip.facts import CLIP_MEAN, CLIP_STD
from vpl.edges.storage import write_text_atomic
from vpl.errors import ConfigError

PATCH = 8
FEWEST_PATCHES = 48


def value(default: object, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """Every number that shapes the weights. All are ours."""

    steps: int = value(3400, "optimiser steps; the learning rate reaches zero at the last one")
    batch: int = value(128, "images per step")
    seed: int = value(0, "starts every random state")
    size: int = value(96, "image size of the model, pixels")
    drawn_size: int = value(96, "side at which training images are drawn or read, pixels")
    grids: tuple[int, ...] = value((8, 8, 10, 12), "patch grids of whole images, one per step")
    mosaic_grids: tuple[int, ...] = value((14, 16), "patch grids of mosaics")
    mosaic: float = value(0.5, "share of steps whose images are mosaics of four")
    keep: float = value(0.6, "share of patch tokens that a step keeps")
    settle: float = value(0.7, "share of the steps after which the learning rate falls and all tokens are kept")
    width: int = value(192, "width of the image tower")
    blocks: int = value(4, "blocks of the image tower")
    heads: int = value(3, "attention heads of the image tower")
    text_width: int = value(128, "width of the text tower")
    text_blocks: int = value(2, "blocks of the text tower")
    text_heads: int = value(2, "attention heads of the text tower")
    embedding: int = value(128, "D, width of the joint space")
    context: int = value(48, "longest text, tokens")
    vocabulary: int = value(1024, "most tokens of the tokenizer")
    rate: float = value(1e-3, "learning rate of AdamW on the plateau")
    inner_rate: float = value(3.0, "learning rate of Muon, for the blocks' matrices, over AdamW's, for the rest")
    warmup: int = value(200, "steps with rising learning rate")
    decay: float = value(0.1, "weight decay of matrices")
    patch_weight: float = value(1.0, "weight of the patch mean's losses beside the class token's")
    word_weight: float = value(1.0, "weight of the losses on words beside those on captions")
    local_weight: float = value(0.5, "weight of the loss of words on the best patches")
    average: float = value(0.998, "decay of the running mean of weights, which is what is exported")
    chunk: int = value(4096, "images drawn at a time")
    reuse: int = value(3, "times that a drawn image is used, each time shifted, scaled and coloured anew")

    def __post_init__(self):
        for name in ("steps", "batch", "blocks", "text_blocks", "reuse", "warmup", "embedding"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.size % PATCH or self.size < PATCH:
            raise ConfigError(f"size is {self.size}; expected a multiple of the patch, {PATCH} pixels.")
        if self.chunk < self.batch:
            raise ConfigError(f"chunk is {self.chunk}; expected at least a batch, {self.batch}.")
        if min((*self.grids, *self.mosaic_grids)) < 1 or (self.mosaic and min(self.mosaic_grids) < 6):
            raise ConfigError("grids must be at least 1 patch, mosaic_grids at least 6; give larger ones.")
        for width, heads in ((self.width, self.heads), (self.text_width, self.text_heads)):
            if heads < 1 or width % heads:
                raise ConfigError(f"a tower has width {width} and {heads} heads; expected a multiple of the heads.")

    @property
    def steps_per_chunk(self) -> int:
        return self.chunk * self.reuse // self.batch

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, a plateau, and half a cosine to zero over the steps from `settle` on.

        Until `settle`, nothing depends on `steps`: a run may be given more or fewer steps before that.
        """
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        settle = self.settle * self.steps
        return self.rate * 0.5 * (1 + math.cos(math.pi * max(0.0, step - settle) / max(1.0, self.steps - settle)))

    def patches(self, step: int, count: int) -> int:
        """How many of an image's `count` patches a step keeps."""
        if step >= self.settle * self.steps:
            return count
        return min(count, max(FEWEST_PATCHES, round(self.keep * count)))

    def picks(self, step: int) -> Int[Tensor, " B"]:
        """Places of a step's batch in its chunk: every image comes `reuse` times, in shuffled order."""
        number, place = divmod(step, self.steps_per_chunk)
        rng = rng_of(self.seed, 2, number)
        order = torch.cat([torch.randperm(self.chunk, generator=rng) for _ in range(self.reuse)])
        return order[place * self.batch : (place + 1) * self.batch]


def rng_of(*numbers: int) -> torch.Generator:
    """A generator that depends on the numbers alone, so that a step needs no state of earlier steps."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def train_tokenizer(corpus: Sequence[str], vocabulary: int, context: int) -> Any:
    """A byte-level BPE tokenizer of CLIP's kind (lower case, any text encodes) trained on `corpus`."""
    from tokenizers import pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import CLIPTokenizer

    pipeline = CLIPTokenizer().backend_tokenizer
    pipeline.model = BPE(end_of_word_suffix="</w>")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
        min_frequency=3,
    )
    pipeline.train_from_iterator(corpus, trainer)
    merges = [tuple(pair) for pair in json.loads(pipeline.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab: dict = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, merges, model_max_length=context)  # type: ignore[arg-type]  # pairs, as its files hold


def build(recipe: Recipe, tokenizer: Any, attention: str) -> Any:
    """A CLIPModel with fresh weights from the recipe's seed."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_act": "gelu", "projection_dim": recipe.embedding}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "num_hidden_layers": recipe.text_blocks,
        "num_attention_heads": recipe.text_heads,
        "max_position_embeddings": recipe.context,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_hidden_layers": recipe.blocks,
        "num_attention_heads": recipe.heads,
        "image_size": recipe.size,
        "patch_size": PATCH,
    }
    config = CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=recipe.embedding)
    config._attn_implementation = attention
    torch.manual_seed(recipe.seed)
    return CLIPModel(config)


def export(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights as float16 in transformers' format, with the tokenizer and how images are prepared."""
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    side = model.config.vision_config.image_size
    look = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "do_convert_rgb": True,
    }
    write_text_atomic(folder / "preprocessor_config.json", json.dumps(look, indent=2) + "\n")
