"""The catalogue of ablations: each a question about one decision, and the settings of the configuration that answer it.

METHOD.md 7 and 8. Knows configurations alone: what is measured, on which images, is `ablate`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vpl.config import PATCH_FEATURES, Config, quality
from vpl.errors import ConfigError
from vpl.presets import STANDARD

ROW_NAMES = {
    "text": "text seeds",
    "vision": "vision seeds",
    "refined": "refined seeds",
    "crf": "refined + CRF",
    "labels": "pseudo-masks",
    "single": "network, single scale",
    "full": "network, multi-scale + flip + CRF",
}
NETWORK = ("single", "full")

DECIDED_BY = {"decoder": "single", "rsc": "single", "train": "single", "predict": "full"}
"""Sections that shape no mask -> the stage that a value of theirs is judged by; all others: masks after the CRF."""


@dataclass(frozen=True)
class Setting:
    """Values of the configuration that belong together, and what they are called in tables."""

    name: str
    values: tuple[tuple[str, object], ...]

    @classmethod
    def of(cls, name: str, **values: object) -> Setting:
        """Dots in keys are written as two underscores."""
        return cls(name, tuple((key.replace("__", "."), one) for key, one in values.items()))


@dataclass(frozen=True)
class Ablation:
    """One question.

    Attributes:
        name: as on the command line.
        question: one sentence.
        settings: what is compared.
        row: the stage whose mIoU decides (`ROW_NAMES`).
        marked: name of the setting that the paper states; "": none.
    """

    name: str
    question: str
    settings: tuple[Setting, ...]
    row: str = "crf"
    marked: str = ""

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The settings' names as numbers, when all of them are."""
        try:
            return tuple(float(one.name) for one in self.settings)
        except ValueError:
            return None

    @property
    def trained(self) -> bool:
        """Whether a network is trained for every setting."""
        return self.row in NETWORK


def sweep(name: str, question: str, key: str, values: Sequence[object], row: str = "crf", marked: str = "") -> Ablation:
    """An ablation of one value of the configuration."""
    return Ablation(name, question, tuple(Setting(short(one), ((key, one),)) for one in values), row, marked)


def short(value: object) -> str:
    """A value of the configuration as the name of its setting."""
    return f"{value:g}" if isinstance(value, float | int) and not isinstance(value, bool) else str(value).lower()


_STANDARD: Any = quality(STANDARD)["looks.makers"]
_INMAP = {"prototypes__sinkhorn_rounds": 20, "prototypes__one_hot": 0.6}

ABLATIONS: dict[str, Ablation] = {
    one.name: one
    for one in (
        sweep("temperature", "Which τI do vision prototypes need?", "prototypes.image_temperature",
              (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3), marked="0.03"),
        sweep("phi", "Above which Φ of its text seed is a region cut?", "prototypes.phi",
              (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        sweep("background_phi", "Below which value of all seeds is the background's region?",
              "prototypes.background_phi", (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)),
        sweep("step", "How long may the steps of the prototypes' descent be?", "prototypes.step",
              (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)),
        sweep("steps", "How many steps of the prototypes' descent help?", "prototypes.steps",
              (0, 5, 20, 100, 500, 2000)),
        sweep("rounds", "Do regions from vision seeds make better prototypes?", "prototypes.rounds", (1, 2, 3)),
        sweep("scale", "How large should the encoder see the image?", "clip.scale", (0.75, 1.0, 1.5, 2.0)),
        sweep("exponent", "Which exponent of the background score?", "labels.background_exponent",
              (0.25, 0.5, 1.0, 2.0, 4.0)),
        sweep("box", "From which share of a seed on does a box open?", "refine.box_threshold",
              (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
        Ablation("prompts", "Which prompts make the best text prototypes?", (
            Setting.of("clip-es", prompts__templates="clip-es"),
            Setting.of("inmap", prompts__templates="inmap"),
            Setting.of("photo", prompts__templates="photo"),
            Setting.of("clip-es, no class words", prompts__templates="clip-es", prompts__class_words=False),
            Setting.of("clip-es, no background words", prompts__templates="clip-es", prompts__background_words=False),
        )),
        Ablation("regions", "Which embedding of a region?", (
            Setting.of("pooled", prototypes__region="pooled"),
            Setting.of("masked", prototypes__region="masked"),
            Setting.of("whole image", prototypes__region="image"),
            Setting.of("pooled, refined seeds", prototypes__region="pooled", prototypes__refined=True),
        )),
        Ablation("labels", "Which labels teach the prototypes?", (
            Setting.of("restrict", prototypes__tags="restrict"),
            Setting.of("own", prototypes__tags="own"),
            Setting.of("all", prototypes__tags="all"),
            Setting.of("restrict, Sinkhorn", prototypes__tags="restrict", prototypes__sinkhorn_rounds=20),
            Setting.of("restrict, one-hot", prototypes__tags="restrict", prototypes__one_hot=0.6),
            Setting.of("all, Sinkhorn", prototypes__tags="all", prototypes__sinkhorn_rounds=20),
            Setting.of("all, Sinkhorn, one-hot", prototypes__tags="all", **_INMAP),
        )),
        Ablation("refine", "What does spreading seeds along the attention bring?", (
            Setting.of("off", refine__enabled=False),
            Setting.of("without box", refine__enabled=True, refine__box=False),
            Setting.of("reference", refine__enabled=True, refine__box=True),
        )),
        Ablation("affinity", "What should seeds be spread along, and in which order?", (
            Setting.of("attention", refine__affinity=("attention",)),
            *(Setting.of(f"classes, {width:g} bits", refine__affinity=("classes",), refine__class_width=width)
              for width in (0.03, 0.1, 0.3)),
            Setting.of("classes of plain patches", refine__affinity=("classes",), refine__patches="plain"),
            Setting.of("attention, then classes", refine__affinity=("attention", "classes")),
            Setting.of("classes, then attention", refine__affinity=("classes", "attention")),
        ), marked="attention"),
        Ablation("votes", "Should what the makers of quality standard say be spread, too, and how far?", (
            Setting.of("as they say it", looks__makers=_STANDARD),
            Setting.of("attention", looks__makers=_STANDARD, refine__votes=("attention",)),
            *(Setting.of(f"classes, {width:g} bits", looks__makers=_STANDARD, refine__votes=("classes",),
                         refine__class_width=width) for width in (0.01, 0.03, 0.1, 0.3)),
            Setting.of("classes, 0.03 bits, seeds too", looks__makers=_STANDARD, refine__votes=("classes",),
                       refine__affinity=("attention", "classes"), refine__class_width=0.03),
        )),
        Ablation("features", "Which patch features should regions be pooled from?", (
            *(Setting.of(name, prototypes__features=name) for name in PATCH_FEATURES),
            *(Setting.of(f"{name}, its maker with them", prototypes__features=name,
                         looks__makers=("gradcam", f"{name}-vision")) for name in PATCH_FEATURES[1:]),
            Setting.of("sclip, its maker with texts", prototypes__features="sclip", looks__makers=("gradcam", "sclip")),
        )),
        Ablation("makers", "Which makers should vote, from one encoding?", (
            Setting.of("gradcam (one look)", looks__makers=("gradcam",)),
            *(Setting.of(name, looks__makers=(name,)) for name in ("similarity", "words", *_STANDARD[1:])),
            Setting.of("gradcam, similarity, words", looks__makers=("gradcam", "similarity", "words")),
            Setting.of("gradcam, sclip", looks__makers=_STANDARD[:2]),
            Setting.of("gradcam, sclip, naclip", looks__makers=_STANDARD[:3]),
            Setting.of("those of quality standard", looks__makers=_STANDARD),
        )),
        Ablation("looks", "At which scales should the makers of quality standard look, and at mirror images?", tuple(
            Setting.of(f"{name}{', mirrored' if flip else ''}", looks__makers=_STANDARD, looks__scales=scales,
                       looks__flip=flip)
            for name, scales in {"1": (1.0,), "0.75, 1": (0.75, 1.0), "1, 1.5": (1.0, 1.5),
                                 "0.75 to 1.5": (0.75, 1.0, 1.25, 1.5)}.items()
            for flip in (False, True)
        )),
        Ablation("par", "How many rounds of PAR before the CRF, with the makers of quality standard?", tuple(
            Setting.of(str(rounds), looks__makers=_STANDARD, par__rounds=rounds) for rounds in (0, 2, 5, 10, 20)
        )),
        Ablation("crf", "What does the CRF bring?", (
            Setting.of("off", crf__enabled=False),
            Setting.of("exact", crf__enabled=True, crf__mode="exact"),
            Setting.of("fast", crf__enabled=True, crf__mode="fast"),
        )),
        Ablation("baselines", "What does each peer reach in the same frame?", (
            Setting.of("VPL", prototypes__kind="vision", seeds__kind="gradcam"),
            Setting.of("CLIP-ES (text prototypes)", prototypes__kind="text", seeds__kind="gradcam"),
            Setting.of("InMaP prototypes (whole images)", prototypes__kind="vision", prototypes__region="image",
                       prototypes__tags="all", seeds__kind="gradcam", **_INMAP),
            Setting.of("similarity maps, text", prototypes__kind="text", seeds__kind="similarity"),
            Setting.of("similarity maps, vision", prototypes__kind="vision", seeds__kind="similarity"),
        )),
        Ablation("rsc", "What does the regional semantic contrast bring?", (
            Setting.of("off", rsc__weight=0.0),
            Setting.of("pull", rsc__weight=0.1, rsc__pull=True, rsc__suppress=False),
            Setting.of("suppress", rsc__weight=0.1, rsc__pull=False, rsc__suppress=True),
            Setting.of("both", rsc__weight=0.1, rsc__pull=True, rsc__suppress=True),
            Setting.of("both, λ = 0.03", rsc__weight=0.03, rsc__pull=True, rsc__suppress=True),
            Setting.of("both, λ = 0.3", rsc__weight=0.3, rsc__pull=True, rsc__suppress=True),
        ), row="single"),
    )
}  # fmt: skip


def named(name: str) -> Ablation:
    """An ablation by its name, or of any value of the configuration: "labels.background_exponent=0.5,1,2".

    Raises:
        ConfigError: there is no such ablation.
    """
    key, sign, values = name.partition("=")
    if sign:
        parsed = [Config().with_values({key: one.strip()}).flat()[key] for one in values.split(",")]
        return sweep(key, f"Which {key}?", key, parsed, row=DECIDED_BY.get(key.partition(".")[0], "crf"))
    if name not in ABLATIONS:
        raise ConfigError(
            f"there is no ablation {name!r}; expected one of {', '.join(ABLATIONS)}, all, or KEY=VALUE,VALUE such as "
            "prototypes.phi=0.3,0.5."
        )
    return ABLATIONS[name]


def chosen(names: Sequence[str], by: str | None = None) -> list[Ablation]:
    """The ablations of these names ("all": every one), or the grid of one of them with `by`.

    Raises:
        ConfigError: a name is unknown, or `by` is given with several names.
    """
    found = list(ABLATIONS.values()) if list(names) == ["all"] else [named(name) for name in names]
    if by is None:
        return found
    if len(found) != 1:
        raise ConfigError(f"--by crosses one ablation with another; {len(found)} were named. Name one.")
    return [crossed(found[0], named(by))]


def crossed(first: Ablation, second: Ablation) -> Ablation:
    """Every setting of one with every setting of the other; names are joined by a vertical bar."""
    settings = tuple(
        Setting(f"{one.name} | {two.name}", (*one.values, *two.values))
        for one in first.settings
        for two in second.settings
    )
    question = f"{first.question} And with it: {second.question}"
    row = second.row if second.trained else first.row
    return Ablation(f"{first.name}-by-{second.name}", question, settings, row)
