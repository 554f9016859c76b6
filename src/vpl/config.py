"""Every number that shapes a result, with its default, its bounds and its source.

One frozen dataclass per stage, checked when it is made. A field's metadata say where its default comes from: "paper"
(arXiv 2412.19650), "reference" (CLIP-ES, arXiv 2212.09506; InMaP, arXiv 2310.19752; DenseCRF, NIPS 2011; WeCLIP, arXiv
2406.11189; TCL, arXiv 2212.00785) or "ours" (the paper's summary is silent; see docs/explanation/decisions.md).
Another value has a source of its own: published, of
a preset, or the user's (`Config.source`). VOC, COCO and scenes are three rows of values: `PRESETS`, which has those of
published methods too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from vpl.errors import ConfigError
from vpl.presets import PUBLISHED, QUALITY

PAPER, REFERENCE, OURS, YOURS = "paper", "reference", "ours", "yours"

INMAP_TEMPLATES = (
    "itap of a {}.",
    "a origami {}.",
    "a bad photo of the {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEMPLATE_STRATEGIES: dict[str, tuple[str, ...]] = {
    "clip-es": ("a clean origami {}.",),
    "inmap": INMAP_TEMPLATES,
    "photo": ("a photo of a {}.",),
}


PROBABILITY_FLOOR = 1e-5  # reference: DenseCRF's Python binding clips here before the logarithm
FAST_CELL = 2  # ours: side of the cells of mode "fast", pixels
FAST_PIXELS = 256 * 256  # ours: mode "fast" is exact on smaller images, where it is quick anyway
FAST_COLOUR = 1.3  # ours: widens σ_rgb of mode "fast", whose averaged colours make fewer, larger groups
FAST_SMOOTH = 1.2  # ours: widens the smoothness kernel of mode "fast"; both chosen for labels equal to exact ones
GONE = frozenset({"train.cache_gb"})
"""Values of earlier versions that shaped no result: files that still hold them are read."""
CPU_STEPS = (250, 500, 1000, 2000)  # ours: steps of a new run on a CPU where nobody has chosen: the fewest that see
CPU_PASSES = 20  # ours: each photograph so often, else the most; benchmarks/steps.py
TUNE_IMAGES = 60  # ours: images that thresholds are chosen on
ABLATION_SETS, ABLATION_IMAGES = 3, 60  # ours: sets of images that a setting is measured on, and images in each
ABLATION_STYLE, SCENE_SIDE = "demo", 96  # ours: drawn scenes where nothing else is said; the side in pixels
MOST_WORKERS = 1024  # threads of a kind
MOST_TOML_BYTES = 2**20  # longer configuration files are refused
REGIONS_AT_ONCE = 4096  # ours: more regions are learned from in parts, a core each, added up in order
PATCH_FEATURES = ("plain", "sclip", "clearclip", "naclip", "maskclip")  # as method/selfself.py has them
AFFINITIES = ("attention", "classes", "features")  # as method/affinities.py has them
NACLIP_STD = 5.0  # reference: std of NACLIP's neighbourhood, patches
PAR_DILATIONS = (1, 2, 4, 8, 12, 24)  # reference: PAR's steps to its neighbours, pixels
PAR_COLOUR = 0.3  # reference: w1, the width of PAR's kernels
PAR_PLACE = 0.01  # reference: w2, the weight of distances in PAR
GUIDE_DILATIONS = (1, 2, 4, 8)  # ours: the same where PAR leads a head's answers to edges, cells
PAR_ROUNDS = 20  # reference: PAR's iterations in WeCLIP


def value(
    default: object,
    source: str,
    help: str,
    *,
    low: float | int | None = None,
    high: float | int | None = None,
    choices: Iterable[str] = (),
    published: Mapping[Any, str] = types.MappingProxyType({}),
) -> Any:
    """A field with its source, its bounds (both ends allowed), and other values that were published, with theirs."""
    return field(
        default=default,
        metadata={
            "source": source, "help": help, "low": low, "high": high, "choices": tuple(choices), "published": published
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Section:
    """Checks every field of a section against its annotation's type and its bounds when the section is made."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        kinds = _kinds(type(self))
        for item in fields(self):
            name = f"{type(self).name}.{item.name}"
            object.__setattr__(
                self, item.name, _checked(name, getattr(self, item.name), kinds[item.name], item.metadata)
            )


_KINDS: dict[type, dict[str, Any]] = {}


def _kinds(section: type) -> dict[str, Any]:
    """The types of a section's fields by their names, found once."""
    if section not in _KINDS:
        _KINDS[section] = typing.get_type_hints(section)
    return _KINDS[section]


def _checked(name: str, given: Any, kind: Any, metadata: Mapping[Any, Any]) -> Any:
    """`given` as `kind`, or a ConfigError that names the field, what came and what was expected."""
    if typing.get_origin(kind) is tuple:
        if isinstance(given, str) and kind == tuple[str, ...]:
            given = (given,)
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise ConfigError(f"{name} is {_told(given)}; expected a list. Write it as [a, b].")
        member = typing.get_args(kind)[0]
        return tuple(_checked(name, item, member, metadata) for item in given)
    if kind is float and type(given) is int:
        given = float(given) if abs(given) < 2**1000 else math.inf
    if type(given) is not kind:
        raise ConfigError(f"{name} is {_told(given)}; expected {_kind_words(kind)}.")
    if kind is str and not given.isascii() and any("\ud800" <= letter <= "\udfff" for letter in given):
        raise ConfigError(f"{name} is {_told(given)}, which is no valid UTF-8; rename the file or folder.")
    if kind is float and not math.isfinite(given):
        raise ConfigError(f"{name} is {_told(given)}; expected a finite number.")
    low, high, choices = metadata["low"], metadata["high"], metadata["choices"]
    if choices and given not in choices:
        raise ConfigError(f"{name} is {_told(given)}; expected one of {', '.join(map(str, choices))}.")
    if low is not None and not low <= given <= high:
        raise ConfigError(f"{name} is {_told(given)}; expected {_kind_words(kind)} from {low} to {high}.")
    return given


def _told(given: object) -> str:
    """A value as it is written in TOML, where that is another word than Python's."""
    return str(given).lower() if isinstance(given, bool) else repr(given)


def _kind_words(kind: type) -> str:
    return {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}[kind]


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the photographs and their tags are. Masks are read by evaluation alone."""

    name: ClassVar[str] = "data"
    format: str = value("folder", OURS, "how the data lie on disk", choices=("folder", "class-folders", "voc", "coco"))
    images: str = value("", OURS, "folder of images, or its URL (voc: the VOC2012 folder)")
    tags: str = value("", OURS, "folder: table, JSONL, JSON or npy of tags; coco: instances JSON")
    columns: tuple[str, ...] = value((), OURS, "image=NAME, tags=NAME of a table's columns; empty: found by name")
    separator: str = value("", OURS, "what stands between a photograph's tags; empty: found")
    aliases: tuple[str, ...] = value((), OURS, "TAG=CLASS: how a tag is to be read")
    untagged: str = value(
        "leave-out",
        OURS,
        "photographs without tags: leave-out; background, they hold nothing else and teach the network that",
        choices=("leave-out", "background"),
    )
    masks: str = value("", OURS, "folder of truth masks, or COCO's instances JSON, for evaluation only; empty: none")
    mask_values: str = value(
        "labels",
        OURS,
        "what the masks hold: labels, ids (of the list's categories), binary (0 and the photograph's one tag), colors "
        "(the class set's), a label map's file, or NUMBER=CLASS, #rrggbb=CLASS, NAME=ignore, *=background, by commas",
    )
    split: str = value("", OURS, "voc: train, val, trainval or train_aug")
    classes: str = value("", OURS, "voc, coco, scenes or a classes file; empty: every tag that occurs")


@dataclass(frozen=True)
class ValidationConfig(DataConfig):
    """The held-out split that the network is evaluated on; no images: none."""

    name: ClassVar[str] = "validation"


@dataclass(frozen=True)
class ClipConfig(Section):
    """The frozen CLIP."""

    name: ClassVar[str] = "clip"
    model: str = value("pocket", OURS, "pocket, a hub name, a folder in transformers' format, or OpenAI's .pt")
    heads: tuple[int, ...] = value(
        (), OURS, "attention heads of the image and text tower; empty: as its files say", low=1, high=256
    )
    activation: str = value(
        "", OURS, "activation of its blocks; empty: as its files say", choices=("", "quick_gelu", "gelu")
    )
    mean: tuple[float, ...] = value(
        (),
        OURS,
        "mean of R, G, B in [0, 1] that images are freed of; empty: as its files say",
        low=0.0,
        high=1.0,
    )
    std: tuple[float, ...] = value(
        (), OURS, "deviation of R, G, B that images are divided by; empty: as its files say", low=1e-3, high=1.0
    )
    precision: str = value(
        "float32",
        OURS,
        "number format of the encoders; auto: bfloat16 where the device multiplies it itself, which a run settles when "
        "it begins",
        choices=("float32", "bfloat16", "auto"),
        published={"bfloat16": f"{OURS}, as the device computes or as asked for"},
    )
    max_side: int = value(1024, OURS, "longer images are scaled down to this side, in pixels", low=16, high=16384)
    scale: float = value(1.0, OURS, "image size at the encoder over its size on disk", low=0.05, high=16.0)
    max_patches: int = value(4096, OURS, "images of more patches are scaled down for the encoder", low=1, high=65536)
    batch: int = value(8, OURS, "most images in one pass of the encoder", low=1, high=4096)
    attention_blocks: int = value(8, REFERENCE, "last blocks whose attention is averaged", low=1, high=256)
    keep_gb: float = value(
        20.0, OURS, "disk for encodings that the next stage needs, in 10^9 bytes; 0: encode again", low=0.0, high=1e6
    )


@dataclass(frozen=True)
class PromptConfig(Section):
    """METHOD.md 0: text prototypes."""

    name: ClassVar[str] = "prompts"
    templates: tuple[str, ...] = value(
        TEMPLATE_STRATEGIES["clip-es"],
        REFERENCE,
        "prompt templates with {}, or one of clip-es, inmap, photo",
        published=dict.fromkeys(TEMPLATE_STRATEGIES.values(), REFERENCE),
    )
    class_words: bool = value(True, REFERENCE, "use the class set's better prompt words")
    background_words: bool = value(True, REFERENCE, "use the class set's background words")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.templates) == 1 and self.templates[0] in TEMPLATE_STRATEGIES:
            object.__setattr__(self, "templates", TEMPLATE_STRATEGIES[self.templates[0]])
        bad = [one for one in self.templates if one.count("{}") != 1 or re.search("[{}]", one.replace("{}", ""))]
        if bad or not self.templates:
            raise ConfigError(
                f"prompts.templates is {list(self.templates)}; expected texts with one {{}} each and no other braces, "
                f"or one of {', '.join(TEMPLATE_STRATEGIES)}."
            )


@dataclass(frozen=True)
class SeedConfig(Section):
    """METHOD.md 1: what makes a tag's map."""

    name: ClassVar[str] = "seeds"
    kind: str = value(
        "gradcam",
        PAPER,
        "gradcam; similarity: cosines of patches and prototypes, no gradient (a baseline)",
        choices=("gradcam", "similarity"),
    )


@dataclass(frozen=True)
class RefineConfig(Section):
    """METHOD.md 2: attention as affinity."""

    name: ClassVar[str] = "refine"
    enabled: bool = value(True, REFERENCE, "spread seeds along the attention")
    rounds: int = value(3, REFERENCE, "column and row normalisations of the attention", low=1, high=100)
    box: bool = value(True, REFERENCE, "keep the affinity inside the seed's boxes")
    box_threshold: float = value(
        0.4,
        REFERENCE,
        "seed share that opens a box: larger, smaller boxes (0.4 VOC, 0.7 COCO)",
        low=0.0,
        high=1.0,
        published={0.7: REFERENCE},
    )
    affinity: tuple[str, ...] = value(
        ("attention",), REFERENCE, "what seeds are spread along, one after the other: attention; classes, patches of "
        "one class; features, patches that the encoder of refine.features finds alike",
    )  # fmt: skip
    votes: tuple[str, ...] = value(
        (), OURS, "the same for what makers other than gradcam and similarity say; empty: as they say it"
    )
    patches: str = value(
        "maskclip", OURS, "classes: CLIP's patch features whose classes are compared", choices=PATCH_FEATURES
    )
    class_width: float = value(
        0.1, OURS, "classes: divergence at which two patches' affinity has fallen to 1/e, bits", low=1e-4, high=100.0
    )
    features: str = value(
        "", OURS, "another frozen encoder, hf:facebook/dinov2-small or a folder of a DINOv2; alone: after the attention"
    )
    feature_width: float = value(
        0.1, OURS, "features: 1 - cosine at which two patches' affinity has fallen to 1/e", low=1e-4, high=100.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("affinity", "votes"):
            if unknown := [one for one in getattr(self, name) if one not in AFFINITIES]:
                raise ConfigError(f"refine.{name} holds {unknown[0]!r}; expected some of {', '.join(AFFINITIES)}.")
        if not self.affinity:
            raise ConfigError("refine.affinity is []; expected at least one, or refine.enabled = false.")
        named = "features" in (*self.affinity, *self.votes)
        if self.features and not named:
            object.__setattr__(self, "affinity", (*self.affinity, "features"))
        if named and not self.features:
            raise ConfigError(
                "refine.affinity or refine.votes holds features, and refine.features names no encoder; give "
                "hf:facebook/dinov2-small or the folder of a DINOv2, or take features out."
            )

    @property
    def guided(self) -> bool:
        """Whether the encoder of `features` is read."""
        return "features" in self.votes or (self.enabled and "features" in self.affinity)


@dataclass(frozen=True)
class PrototypeConfig(Section):
    """METHOD.md 3: vision prototypes."""

    name: ClassVar[str] = "prototypes"
    kind: str = value("vision", PAPER, "which prototypes make the seeds", choices=("vision", "text"))
    phi: float = value(0.5, OURS, "Φ: a tag's region is where its text seed is above this", low=0.0, high=1.0)
    background_phi: float = value(0.2, OURS, "the background region: all seeds below this", low=0.0, high=1.0)
    region: str = value("pooled", OURS, "region embedding", choices=("pooled", "masked", "image"))
    features: str = value(
        "plain", OURS, "patch features that a region's embedding is pooled from", choices=PATCH_FEATURES
    )
    refined: bool = value(False, OURS, "cut regions out of refined seeds rather than of bare ones")
    tags: str = value(
        "restrict",
        OURS,
        "labels over the image's tags, over all classes, or its own tag",
        choices=("restrict", "all", "own"),
    )
    text_temperature: float = value(0.01, PAPER, "τT", low=1e-4, high=10.0)
    image_temperature: float = value(0.03, PAPER, "τI: smaller makes vision seeds sharper", low=1e-4, high=10.0)
    step: float = value(10.0, REFERENCE, "step of the projected gradient descent, over N τI", low=0.0, high=1e6)
    steps: int = value(2000, REFERENCE, "most steps", low=0, high=1_000_000)
    tolerance: float = value(
        1e-4, OURS, "end when 20 steps change the KL by no more than this share of it", low=0.0, high=1.0
    )
    sinkhorn_rounds: int = value(
        0,
        REFERENCE,
        "Sinkhorn balancing of the labels (InMaP: 20); 0: off",
        low=0,
        high=10_000,
        published={20: REFERENCE},
    )
    one_hot: float = value(
        1.0,
        REFERENCE,
        "labels above this become one-hot (InMaP: 0.6); 1: off",
        low=0.0,
        high=1.0,
        published={0.6: REFERENCE},
    )
    rounds: int = value(1, OURS, "times that regions and prototypes are made", low=1, high=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.region == "masked" and self.features != "plain":
            raise ConfigError(
                f"prototypes.features is {self.features!r}, and prototypes.region = masked pools no patches; take "
                "region = pooled, or features = plain."
            )


@dataclass(frozen=True)
class LookConfig(Section):
    """METHOD.md 5b: several looks at a photograph, whose votes make the pseudo-mask."""

    name: ClassVar[str] = "looks"
    makers: tuple[str, ...] = value(
        ("gradcam",), PAPER, "what says where a tag is (method/looks.py has all); one named twice has two votes"
    )
    scales: tuple[float, ...] = value(
        (1.0,), PAPER, "encoder scales that each maker looks at, times clip.scale; an encoding each", low=0.05, high=8.0
    )
    flip: bool = value(False, PAPER, "each maker looks at the mirror image, too; twice the encodings")
    exponents: tuple[float, ...] = value(
        (1.0, 1.5, 2.0, 3.0), OURS, "background exponents that the shares of seeds are averaged over",
        low=0.01, high=20.0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("makers", "scales", "exponents"):
            if not getattr(self, name):
                raise ConfigError(f"looks.{name} is []; expected at least one.")

    @property
    def vote(self) -> bool:
        """Whether there is more than the one look that the paper takes."""
        return (self.makers, self.scales, self.flip) != (("gradcam",), (1.0,), False)

    @property
    def encodings(self) -> float:
        """What a photograph costs: passes of the encoder, in those of the photograph at its own scale.

        A pass grows with the number of patches. One at scale 1 is always made: seeds and prototypes need it.
        """
        looks = sum(scale**2 for scale in self.scales) * (2 if self.flip else 1)
        return looks if 1.0 in self.scales else looks + 1


@dataclass(frozen=True)
class ParConfig(Section):
    """METHOD.md 5b: PAR, which lets scores follow the photograph's colours before the CRF."""

    name: ClassVar[str] = "par"
    rounds: int = value(
        0, PAPER, "iterations; 0: off (WeCLIP: 20, instead of a CRF)", low=0, high=1000,
        published={PAR_ROUNDS: REFERENCE},
    )  # fmt: skip


@dataclass(frozen=True)
class CrfConfig(Section):
    """METHOD.md 4: dense CRF."""

    name: ClassVar[str] = "crf"
    enabled: bool = value(True, REFERENCE, "mean-field CRF over the refined seeds")
    rounds: int = value(10, REFERENCE, "mean-field rounds", low=0, high=1000)
    gaussian_sigma: float = value(1.0, REFERENCE, "σ of the smoothness kernel, pixels", low=1e-3, high=1e4)
    gaussian_weight: float = value(3.0, REFERENCE, "weight of the smoothness kernel", low=0.0, high=1e4)
    bilateral_sigma: float = value(67.0, REFERENCE, "σ_xy of the appearance kernel, pixels", low=1e-3, high=1e4)
    bilateral_color: float = value(3.0, REFERENCE, "σ_rgb of the appearance kernel, of 255", low=1e-3, high=1e4)
    bilateral_weight: float = value(4.0, REFERENCE, "weight of the appearance kernel", low=0.0, high=1e4)
    mode: str = value("exact", OURS, "exact: full resolution; fast: half resolution", choices=("exact", "fast"))


@dataclass(frozen=True)
class LabelConfig(Section):
    """METHOD.md 4: pseudo-masks."""

    name: ClassVar[str] = "labels"
    background_exponent: float = value(
        1.0, REFERENCE, "a of background score (1 - max seed)^a: larger, less background", low=0.01, high=20.0
    )
    confidence: float = value(0.95, REFERENCE, "less probable pixels become 255, ignore", low=0.0, high=1.0)


@dataclass(frozen=True)
class DecoderConfig(Section):
    """METHOD.md 5: the segmentation head over frozen features."""

    name: ClassVar[str] = "decoder"
    network: str = value(
        "decoder", OURS, "decoder; weclip; or hf:<name or config folder> of a transformers student",
        published={"weclip": REFERENCE},
    )  # fmt: skip
    width: int = value(256, OURS, "channels of each block's projection and of the head", low=8, high=8192)
    blocks: int = value(3, OURS, "transformer blocks of the head", low=0, high=64)
    heads: int = value(8, OURS, "attention heads of the head", low=1, high=256)
    dropout: float = value(0.1, REFERENCE, "weclip: share of its fused channels dropped in training", low=0.0, high=0.9)
    skip_last: int = value(1, REFERENCE, "weclip: last blocks of the encoder that it does not read", low=0, high=64)
    cells: int = value(
        1, OURS, "cells of its answer a patch side; above 1 they follow the photograph's edges (PAR)", low=1, high=16
    )
    guide_rounds: int = value(5, OURS, "cells: rounds of PAR", low=0, high=100)


@dataclass(frozen=True)
class RscConfig(Section):
    """METHOD.md 5: regional semantic contrast."""

    name: ClassVar[str] = "rsc"
    weight: float = value(0.1, OURS, "λ; 0: off", low=0.0, high=1e4)
    pull: bool = value(True, PAPER, "pull a tag's region to its vision prototype")
    suppress: bool = value(True, PAPER, "push the complement and absent classes' masks away")
    region: str = value("pooled", OURS, "region embedding", choices=("pooled", "masked"))
    texts: float = value(
        0.0, OURS, "weight of TCL's contrast over texts and images (TCL: 0.1)", low=0.0, high=1e4,
        published={0.1: REFERENCE},
    )  # fmt: skip
    area: float = value(
        0.0, OURS, "weight of TCL's area term (TCL: 0.4)", low=0.0, high=1e4, published={0.4: REFERENCE}
    )
    area_present: float = value(0.4, REFERENCE, "area that a tag's mask should have, of the image", low=0.0, high=1.0)
    area_absent: float = value(0.0, REFERENCE, "area that the mask of any other class should have", low=0.0, high=1.0)


@dataclass(frozen=True)
class TrainConfig(Section):
    """METHOD.md 5: optimisation."""

    name: ClassVar[str] = "train"
    steps: int = value(
        30000, OURS, f"optimiser steps (WeCLIP: 30,000 on VOC, 80,000 on COCO; a new run on a CPU: {CPU_STEPS[0]} to "
        f"{CPU_STEPS[-1]:,}, by its photographs); 0: vpl run trains no network",
        low=0, high=1_000_000_000, published=dict.fromkeys(CPU_STEPS, "ours, on a CPU by the photographs"),
    )  # fmt: skip
    batch: int = value(4, OURS, "images per optimiser step, over all processes", low=1, high=4096)
    accumulate: int = value(1, OURS, "parts in which a batch is computed", low=1, high=4096)
    crop: int = value(320, OURS, "side of the training crop, pixels", low=16, high=4096)
    scale_low: float = value(0.5, OURS, "smallest random scale", low=0.05, high=16.0)
    scale_high: float = value(2.0, OURS, "largest random scale", low=0.05, high=16.0)
    flip: bool = value(True, OURS, "random horizontal flip")
    loss: str = value(
        "ce", PAPER, "ce; balanced: half by background, half by foreground (WeCLIP)", choices=("ce", "balanced"),
        published={"balanced": REFERENCE},
    )  # fmt: skip
    affinity: float = value(
        0.0, OURS, "weight of the loss on pairs of patches (WeCLIP: 0.1); 0: off", low=0.0, high=1e4,
        published={0.1: REFERENCE},
    )  # fmt: skip
    affinity_radius: int = value(
        8, REFERENCE, "pairs further apart in y or x are not asked, patches", low=1, high=65536
    )
    optimizer: str = value("sgd", PAPER, "sgd, or adamw, which needs fewer steps (ours)", choices=("sgd", "adamw"))
    learning_rate: float = value(
        0.01,
        OURS,
        "highest learning rate; adamw: about 0.002 (WeCLIP)",
        low=0.0,
        high=100.0,
        published={0.002: REFERENCE},
    )
    momentum: float = value(0.9, OURS, "momentum, adamw's first beta", low=0.0, high=0.999)
    weight_decay: float = value(
        1e-4, OURS, "weight decay (WeCLIP: 0.01)", low=0.0, high=100.0, published={0.01: REFERENCE}
    )
    power: float = value(
        0.9, OURS, "exponent of the poly schedule (WeCLIP: 1)", low=0.0, high=100.0, published={1.0: REFERENCE}
    )
    warmup: int = value(
        0, OURS, "first steps in which the learning rate rises from 0 (WeCLIP: 50)", low=0, high=1_000_000_000,
        published={50: REFERENCE},
    )  # fmt: skip
    online: bool = value(False, OURS, "the head's own affinities label pixels during training")
    online_labels: str = value(
        "ignored", OURS, "which ones: ignored, those that the pseudo-mask leaves open; seeds: all, by seeds made anew "
        "(WeCLIP)", choices=("ignored", "seeds"), published={"seeds": REFERENCE},
    )  # fmt: skip
    online_layers: int = value(
        6, REFERENCE, "seeds: last blocks whose attention is joined (6 VOC, 10 COCO)", low=1, high=256,
        published={10: REFERENCE},
    )  # fmt: skip
    online_from: float = value(0.5, OURS, "share of the steps after which they do", low=0.0, high=1.0)
    online_temperature: float = value(0.1, OURS, "ignored: temperature of these affinities", low=1e-3, high=10.0)
    precision: str = value("float32", OURS, "number format of the network's passes", choices=("float32", "bfloat16"))
    checkpoint_every: int = value(500, OURS, "steps between checkpoints", low=1, high=1_000_000_000)


@dataclass(frozen=True)
class PredictConfig(Section):
    """METHOD.md 6: prediction without tags."""

    name: ClassVar[str] = "predict"
    scales: tuple[float, ...] = value((0.75, 1.0, 1.25), OURS, "scales of the second protocol", low=0.05, high=8.0)
    flip: bool = value(True, OURS, "average with the flipped image in the second protocol")
    crf: bool = value(True, PAPER, "CRF in the second protocol")
    window: int = value(
        1024, OURS, "longer images are cut into overlapping windows of this side, pixels", low=32, high=16384
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales:
            raise ConfigError("predict.scales is empty; expected at least one scale, such as [1.0].")


@dataclass(frozen=True)
class Config:
    """Every value of a run, section by section; nothing of it changes: `with_values` gives another one.

    config = vpl.preset("voc").with_values({"prototypes.phi": 0.4, "train.steps": 2000})
    config.prototypes.phi, config.source("prototypes.phi")    # (0.4, "yours")
    print(config.to_toml())                                   # every value with its source and meaning
    """

    seed: int = value(0, OURS, "starts every random state", low=0, high=2**63 - 1)
    data: DataConfig = DataConfig()
    validation: ValidationConfig = ValidationConfig()
    clip: ClipConfig = ClipConfig()
    prompts: PromptConfig = PromptConfig()
    seeds: SeedConfig = SeedConfig()
    prototypes: PrototypeConfig = PrototypeConfig()
    refine: RefineConfig = RefineConfig()
    looks: LookConfig = LookConfig()
    par: ParConfig = ParConfig()
    crf: CrfConfig = CrfConfig()
    labels: LabelConfig = LabelConfig()
    decoder: DecoderConfig = DecoderConfig()
    rsc: RscConfig = RscConfig()
    train: TrainConfig = TrainConfig()
    predict: PredictConfig = PredictConfig()

    def __post_init__(self) -> None:
        kind = fields(self)[0]
        object.__setattr__(self, "seed", _checked("seed", self.seed, int, kind.metadata))

    def with_values(self, values: Mapping[str, object]) -> Config:
        """A copy with `values`: dotted keys ("prototypes.phi") to values of the field's type, or their text.

        Raises:
            ConfigError: a key is unknown (the message names the closest one) or a value is out of its bounds.
        """
        known = self.flat()
        changes: dict[str, dict[str, Any]] = {}
        for key, given in values.items():
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
                raise ConfigError(f"unknown configuration key {key!r}; the closest one is {close[0]!r}.")
            section, _, name = key.rpartition(".")
            kind = _kinds(type(getattr(self, section) if section else self))[name]
            changes.setdefault(section, {})[name] = _checked(key, _parsed(given, kind), kind, self.field(key).metadata)
        top = changes.pop("", {})
        sections: dict[str, Any] = {
            name: dataclasses.replace(getattr(self, name), **new) for name, new in changes.items()
        }
        return dataclasses.replace(self, **top, **sections)

    def flat(self) -> dict[str, object]:
        """Every value by its dotted key, in reading order."""
        return dict(self._flat)

    @functools.cached_property
    def _flat(self) -> dict[str, object]:
        rows: dict[str, object] = {"seed": self.seed}
        for item in fields(self)[1:]:
            section = getattr(self, item.name)
            rows |= {f"{item.name}.{one.name}": getattr(section, one.name) for one in fields(section)}
        return rows

    def field(self, key: str) -> dataclasses.Field[Any]:
        """The field of a dotted key; its metadata hold source, meaning and bounds."""
        section, _, name = key.rpartition(".")
        return type(getattr(self, section) if section else self).__dataclass_fields__[name]

    def source(self, key: str) -> str:
        """Whose value it is: paper, reference or ours; that of a preset or quality, with its name; or yours."""
        given, item = self.flat()[key], self.field(key)
        if given == item.default:
            return item.metadata["source"]
        if given in item.metadata["published"]:
            return item.metadata["published"][given]
        for kind, rows in (("quality", QUALITY), ("preset", PRESETS)):
            names = [name for name, row in rows.items() if row.get(key) == given]
            if names:
                published = kind == "preset" and set(names) <= PUBLISHED.keys()
                return f"{REFERENCE if published else OURS}, {kind} {' and '.join(names)}"
        return YOURS

    def comment(self, key: str) -> str:
        """Source and meaning of a value in one line; where it is no default, the default with its own source."""
        given, item = self.flat()[key], self.field(key)
        source, default = self.source(key), item.default
        if given != default and default != "":
            written = list(default) if isinstance(default, tuple) else default
            source += f" (default {written}, {item.metadata['source']})"
        return f"{source}: {item.metadata['help']}"

    def differences(self, other: Config) -> dict[str, tuple[object, object]]:
        """Dotted key -> (ours, theirs) for every value that differs."""
        theirs = other.flat()
        return {key: (own, theirs[key]) for key, own in self.flat().items() if own != theirs[key]}

    def to_toml(self, reasons: Mapping[str, str] | None = None) -> str:
        """The configuration as TOML, each value with its source and meaning as a comment.

        Args:
            reasons: why some values are what they are, by their keys ("prototypes.phi").
        """
        import tomlkit

        document = tomlkit.document()
        document.add("seed", tomlkit.item(self.seed))
        for item in fields(self)[1:]:
            section, table = getattr(self, item.name), tomlkit.table()
            for one in fields(section):
                given, key = getattr(section, one.name), f"{item.name}.{one.name}"
                written = tomlkit.item(list(given) if isinstance(given, tuple) else given)
                why = (reasons or {}).get(key)
                table.add(one.name, written.comment(self.comment(key) + (f" | vpl tune: {why}" if why else "")))
            document.add(item.name, table)
        return tomlkit.dumps(document)

    @classmethod
    def from_toml(cls, path: str | Path, base: Config | None = None) -> Config:
        """`base` (default: the defaults) changed by the values of a TOML file.

        Raises:
            ConfigError: the file can't be read, is no TOML, or holds an unknown key or a value out of bounds.
        """
        try:
            with Path(path).open("rb") as file:  # it may be a pipe, so its size is known when it is read
                text = file.read(MOST_TOML_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"the configuration {path} can't be read ({error.strerror}); check the path.") from error
        return cls.from_text(text, path, base)

    @classmethod
    def from_text(cls, text: bytes, path: str | Path, base: Config | None = None) -> Config:
        """`from_toml` of what a file holds; `path` is what messages call it.

        Raises:
            ConfigError: as `from_toml`.
        """
        if len(text) > MOST_TOML_BYTES:
            raise ConfigError(f"the configuration {path} has more than {MOST_TOML_BYTES} bytes; check the path.")
        if not text.strip(b"\0 \t\r\n"):  # torn: going on with the defaults would make another run of it
            raise ConfigError(
                f"the configuration {path} is empty, so what was run can't be known; write the values into it, or "
                "name a new folder."
            )
        try:
            tree = tomllib.loads(text.decode("utf-8").replace("\r\n", "\n"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the configuration {path} is no valid TOML ({error}); mend that line.") from error
        return (base or cls()).with_values({key: one for key, one in values_of(tree).items() if key not in GONE})


def values_of(tree: Mapping[str, object]) -> dict[str, object]:
    """The values of a TOML tree by their dotted keys."""
    values: dict[str, object] = {}
    for key, given in tree.items():
        values |= {f"{key}.{name}": one for name, one in given.items()} if isinstance(given, dict) else {key: given}
    return values


def _parsed(given: Any, kind: Any) -> Any:
    """A value that is given as text ("0.3", "true", "[0.5, 1.0]", "inmap") in the field's type, where it can be."""
    if isinstance(given, str) and kind is not str:
        with contextlib.suppress(ValueError, RecursionError):
            given = tomllib.loads(f"value = {given}")["value"]
    return given


_VOC: dict[str, object] = {"data.format": "voc", "data.classes": "voc", "data.split": "train"}
_COCO: dict[str, object] = {
    "data.format": "coco",
    "data.classes": "coco",
    "refine.box_threshold": 0.7,
    "train.online_layers": 10,
    "train.steps": 80000,
}
# Temperatures are ours: pocket's own (1 / its logit scale, 0.054), and three times that, the paper's ratio of 0.03 to
# CLIP's own 0.01. The exponent was chosen on pre-training styles. The network's values fit a demo on two cores.
_SCENES: dict[str, object] = {
    "data.format": "folder",
    "data.classes": "scenes",
    "prototypes.text_temperature": 0.054,
    "prototypes.image_temperature": 0.16,
    "labels.background_exponent": 2.0,
    "decoder.width": 96,
    "decoder.blocks": 1,
    "decoder.heads": 4,
    "train.steps": 300,
    "train.batch": 8,
    "train.crop": 128,
    "train.optimizer": "adamw",
    "train.learning_rate": 0.004,
}
PRESETS: types.MappingProxyType[str, dict[str, object]] = types.MappingProxyType(
    {"voc": _VOC, "coco": _COCO, "scenes": _SCENES, **PUBLISHED}
)


def preset(*names: str) -> Config:
    """The defaults with rows of `PRESETS`, in this order: a data set's, a method's, or one after the other.

    Raises:
        ConfigError: there is no such preset.
    """
    return Config().with_values(of_presets(names))


def of_presets(names: Iterable[str]) -> dict[str, object]:
    """The values of these rows of `PRESETS`, later ones over earlier ones.

    Raises:
        ConfigError: there is no such preset.
    """
    values: dict[str, object] = {}
    for name in names:
        if name not in PRESETS:
            raise ConfigError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}.")
        values |= PRESETS[name]
    return values


def quality(name: str) -> dict[str, object]:
    """Looks, CRF and the network's recipe by what a photograph may cost, for `with_values`: draft, standard or best.

    Raises:
        ConfigError: there is no such quality.
    """
    if name not in QUALITY:
        raise ConfigError(f"unknown quality {name!r}; expected one of {', '.join(QUALITY)}.")
    return dict(QUALITY[name])
