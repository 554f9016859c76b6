"""The segmentation head over frozen features, or a student network that needs no CLIP when it predicts.

g = fuse( concat_l( gelu( P_l · norm(z_l) ) ) ),   logits = W · norm( transformer(g) ) on the patch grid   (METHOD.md 5)

z_l are the patch tokens of block l of the frozen encoder; they already carry CLIP's interpolated position embeddings,
so the head adds none and works on any grid. Letters: L blocks of the encoder · C foreground classes · N images of a
batch · h w patch grid · H W pixels. Both heads answer P = C+1 logits on a coarse grid, background first; `to_pixels`
brings them to pixels. The head is ours, in WeCLIP's spirit; the student is a segmentation model of transformers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpl.classes import ClassSet
from vpl.config import CrfConfig, DecoderConfig, PredictConfig
from vpl.errors import ConfigError, DataError, ModelError

STUDENT_PREFIX = "hf:"
WEIGHTS_FILE, CARD_FILE, PROTOTYPES_FILE = "decoder.safetensors", "network.json", "prototypes.safetensors"
"""A saved network is a folder of these three."""
MOST_OF_A_SIZE = 2**20
"""Larger sizes in a card are damage."""


class Decoder(nn.Module):
    """Logits on the patch grid from the patch tokens of every block.

    Args:
        encoder_blocks: L, blocks of the frozen encoder.
        encoder_width: channels of its tokens.
        classes: C; background comes on top.

    Raises:
        ConfigError: `decoder.width` is no multiple of `decoder.heads`.
    """

    def __init__(self, encoder_blocks: int, encoder_width: int, classes: int, config: DecoderConfig):
        super().__init__()
        if config.width % config.heads:
            raise ConfigError(
                f"decoder.width is {config.width} and decoder.heads is {config.heads}; expected a width that is a "
                f"multiple of the heads. Try --set decoder.width={-(-config.width // config.heads) * config.heads}."
            )
        self.projections = nn.ModuleList(nn.Linear(encoder_width, config.width) for _ in range(encoder_blocks))
        self.fuse = nn.Linear(encoder_blocks * config.width, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.classify = nn.Linear(config.width, classes + 1)

    def forward(self, blocks: Sequence[Float[Tensor, "N hw width"]], grid: tuple[int, int]) -> Float[Tensor, "N P h w"]:
        """Logits, background first: `logits` of `tokens`."""
        return self.logits(self.tokens(blocks), grid)

    def tokens(self, blocks: Sequence[Float[Tensor, "N hw width"]]) -> Float[Tensor, "N hw inner"]:
        """The head's own features. `blocks` are treated as constants: no gradient ever reaches them.

        Raises:
            ModelError: the encoder has another number of blocks than the head was made for.
        """
        if len(blocks) != len(self.projections):
            raise ModelError(
                f"the decoder got the features of {len(blocks)} blocks; expected {len(self.projections)}. "
                "Use the CLIP that it was trained with."
            )
        parts = [
            F.gelu(project(F.layer_norm(tokens.detach(), tokens.shape[-1:])))
            for project, tokens in zip(self.projections, blocks, strict=True)
        ]
        tokens = self.fuse(torch.cat(parts, dim=-1))
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def logits(self, tokens: Float[Tensor, "N hw inner"], grid: tuple[int, int]) -> Float[Tensor, "N P h w"]:
        """Logits of the head's features on the patch grid, background first."""
        logits = self.classify(tokens)
        return logits.transpose(1, 2).reshape(logits.shape[0], logits.shape[2], *grid)


class _Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Float[Tensor, "N n width"]) -> Float[Tensor, "N n width"]:
        count, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm_mlp(x))


class Student(nn.Module):
    """A semantic-segmentation model of transformers (SegFormer, ...) with C+1 classes.

    It reads pixels normalised with CLIP's mean and std, which differ from ImageNet's by less than a fine-tuning step.
    """

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
        try:
            config = AutoConfig.from_pretrained(name, num_labels=classes + 1)
            folder = Path(name)
            if folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
                return cls(AutoModelForSemanticSegmentation.from_config(config))
            return cls(
                AutoModelForSemanticSegmentation.from_pretrained(name, config=config, ignore_mismatched_sizes=True)
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"the student network {name!r} can't be loaded ({str(error).splitlines()[0]}); expected a "
                "semantic-segmentation model of transformers, by name or folder, for example hf:nvidia/mit-b0."
            ) from error

    @classmethod
    def from_description(cls, description: dict) -> Student:
        """The architecture that `describe` wrote, with random weights.

        Raises:
            ModelError: this version of transformers does not know it.
        """
        from transformers import AutoConfig, AutoModelForSemanticSegmentation

        try:
            rest = {key: given for key, given in description.items() if key != "model_type"}
            config = AutoConfig.for_model(description["model_type"], **rest)
            return cls(AutoModelForSemanticSegmentation.from_config(config))
        except (KeyError, ValueError, TypeError) as error:
            raise ModelError(
                f"the student network of type {description.get('model_type')!r} can't be built ({error}); "
                "use the version of transformers that trained it."
            ) from error

    def describe(self) -> dict:
        """The architecture as plain values, enough to build it again without a download."""
        return self.model.config.to_dict()

    def forward(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N P gh gw"]:
        """Logits, background first, on the model's own output grid (SegFormer: a quarter of the pixels)."""
        return self.model(pixel_values=pixels).logits


def is_student(config: DecoderConfig) -> bool:
    """Whether `decoder.network` asks for a student.

    Raises:
        ConfigError: it is neither `decoder` nor `hf:<name or folder>`.
    """
    if config.network.startswith(STUDENT_PREFIX) and len(config.network) > len(STUDENT_PREFIX):
        return True
    if config.network != "decoder":
        raise ConfigError(
            f"decoder.network is {config.network!r}; expected decoder, or hf:<name or folder> of a "
            "semantic-segmentation model of transformers."
        )
    return False


def to_pixels(logits: Float[Tensor, "N P gh gw"], size: tuple[int, int]) -> Float[Tensor, "N P H W"]:
    """Bilinear resize with half-pixel centres, from a coarse grid to (H, W)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


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
    training: dict
    student: dict | None = None

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

    def empty_head(self) -> Decoder | Student:
        """The network with random weights, ready for the saved ones."""
        if self.student is not None:
            return Student.from_description(self.student)
        return Decoder(self.clip_blocks, self.clip_width, len(self.classes), self.decoder)

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
        tables = {"training": self.training, "student": self.student or {}}
        wrong += [key for key, one in tables.items() if not isinstance(one, dict)]
        if wrong:
            raise ValueError(f"{wrong[0]} is no value that vpl writes")
        return self

    def head_of(self, weights: Mapping[str, Tensor], name: str, remedy: str) -> Decoder | Student:
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
