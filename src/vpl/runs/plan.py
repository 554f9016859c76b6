"""What a run has to do: what is asked, what is there, and the work between them. Data and pure functions; no file is
opened here.

    fingerprint of a photograph's product = content - tags - settings
    fingerprint of the run's one product  = digest of the photographs' contents and tags - settings
    settings of a stage  = the values that it and the stages before it read, CLIP, classes, whole products before it
    work                 = the products whose recorded fingerprint is not the one that is asked for

`STAGES` is the table: what each stage is made from. A product without a record is made again, never trusted. Where
nothing but photographs or tags have changed, vision prototypes and network are kept: to learn again is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from vpl.config import Config

WHOLE = ""
"""In the place of a photograph's id: the one product of a stage."""
NO_PHOTOGRAPHS = "whole"
"""In a fingerprint, in the place of the photographs' digest: the product is made from none."""
SHOWN = 3
"""Changed values that a reason names; more are counted."""


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Attributes:
        words: what it makes, for people.
        each: one product for each photograph, not one for the run.
        values: the configuration values (or whole sections) that are read here first. Each value has one such row.
        also: values of other rows that are read here too, though those rows don't stand before this one.
        inputs: what of the data it reads itself; see `Asked` and `Photograph`.
        after: the stages that it is made from.
        keeps: its product outlives a change of photographs or tags alone, until it is asked to learn again.
    """

    name: str
    words: str
    each: bool = False
    values: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    keeps: bool = False


_TOWERS = ("clip.precision", "clip.heads", "clip.activation")
_PROTOTYPES = (
    "tags", "text_temperature", "image_temperature", "step", "steps", "tolerance", "sinkhorn_rounds", "one_hot",
    "rounds",
)  # fmt: skip
_TRAIN = (
    "steps", "batch", "accumulate", "crop", "scale_low", "scale_high", "flip", "optimizer", "learning_rate",
    "momentum", "weight_decay", "power", "online", "online_from", "online_temperature", "precision",
    "loss", "affinity", "affinity_radius", "warmup", "online_labels", "online_layers",
)  # fmt: skip
_REFINE = tuple(
    f"refine.{name}"
    for name in (
        "enabled", "rounds", "box", "box_threshold", "affinity", "patches", "class_width", "feature_width",
    )
)  # fmt: skip
_WHERE_ASKED = ("review", "guide")
"""Inputs that few runs have: where there is none, the settings don't name them."""

MASK_EXPORTS = ("voc", "coco", "coco-parts", "cvat", "yolo", "yolo-seg", "labelstudio", "labelstudio-parts")

STAGES: dict[str, Stage] = {
    one.name: one
    for one in (
        Stage(
            "encoding",
            "features of the encoder",
            each=True,
            values=(*_TOWERS, "clip.mean", "clip.std", "clip.max_side", "clip.scale", "clip.max_patches"),
            inputs=("clip",),
        ),
        Stage("text", "text prototypes", values=("prompts",), also=_TOWERS, inputs=("clip", "classes")),
        Stage(
            "regions",
            "region embeddings",
            each=True,
            values=(
                "seeds",
                *(f"prototypes.{name}" for name in ("phi", "background_phi", "region", "features", "refined")),
            ),
            after=("encoding", "text"),
        ),
        Stage(
            "prototypes",
            "vision prototypes",
            values=tuple(f"prototypes.{name}" for name in _PROTOTYPES),
            after=("text", "regions"),
            keeps=True,
        ),
        Stage(
            "maps",
            "label maps of the seeds",
            each=True,
            values=("prototypes.kind", "clip.attention_blocks", *_REFINE, "labels.background_exponent"),
            also=("seeds",),
            inputs=("colors", "guide"),
            after=("encoding", "text", "prototypes"),
        ),
        Stage(
            "masks",
            "pseudo-masks",
            each=True,
            values=("looks", "refine.votes", "par", "crf", "labels.confidence"),
            after=("maps",),
        ),
        Stage(
            "network",
            "network",
            values=("seed", "decoder", "rsc", *(f"train.{name}" for name in _TRAIN)),
            inputs=("review",),
            after=("masks", "prototypes"),
            keeps=True,
        ),
        Stage("scores", "scores of seeds and pseudo-masks", inputs=("truth", "split"), after=("masks",)),
        Stage("network scores", "scores of the network", values=("predict",), inputs=("held_out",), after=("network",)),
        Stage(
            "signs",
            "signs of failure",
            inputs=("truth",),
            after=("prototypes", "masks", "scores", "network scores"),
        ),
        Stage(
            "report",
            "report",
            inputs=("truth", "left_out"),
            after=("prototypes", "masks", "network", "scores", "network scores", "signs"),
        ),
        *(Stage(name, f"export to {name}", inputs=("review",), after=("masks",)) for name in MASK_EXPORTS),
        Stage("onnx", "export to onnx", after=("network",)),
        Stage("hf", "export to hf", after=("network", "network scores")),
    )
}
"""In the order of the work."""

PLACES = ("data", "validation", "clip.model", "refine.features")
"""Values that say where inputs lie. What is found there counts, not the place."""
FREE = ("clip.batch", "clip.keep_gb", "train.checkpoint_every")
"""Values that change how the work is done and no result, but for rounding on a GPU; so do --device and --workers."""
VIRTUAL = ("encoding", "text")
"""Rows without a product on disk: what they read is read by all that stands after them."""
NEED_ALL = ("network scores", "onnx", "hf")
"""Stages that have nothing to tell of when a stage before them is left out; signs and report tell of the rest."""
EXPORTS = (*MASK_EXPORTS, "onnx", "hf")


def digest(*parts: object) -> str:
    """64 bits of a hash of plain values, as 16 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph that is asked for.

    Attributes:
        content: digest of its bytes.
        tags: digest of its tags, in their order.
        truth: digest of its truth mask's bytes; "" where there is none.
        bare: it has no tags, so that there is nothing to be learned from it but that it is background.
    """

    id: str
    content: str
    tags: str
    truth: str = ""
    bare: bool = False


@dataclass(frozen=True)
class Asked:
    """What a run shall hold.

    Attributes:
        clip: digest of the weights and the tokenizer.
        classes: digest of names, prompt words and background words; `colors`: of their colours.
        photographs: in the order of the list.
        held_out: digest of the validation split, its photographs and masks; "" where there is none to evaluate on.
        split: what the data's split is called in tables.
        left_out: digest of the lines of the list that could not be used.
        exports: those of `EXPORTS` that the run folder holds.
        review: digest of what people rejected and painted (review.py); "" where nothing is.
        guide: digest of the weights that `refine.features` names; "" where they are not asked for.
        relearn: learn prototypes and network again, also where only photographs or tags have changed.
    """

    config: Config
    clip: str
    classes: str
    colors: str
    photographs: tuple[Photograph, ...]
    held_out: str = ""
    split: str = ""
    left_out: str = ""
    exports: tuple[str, ...] = ()
    relearn: bool = False
    review: str = ""
    guide: str = ""

    @cached_property
    def has_truth(self) -> bool:
        """Whether a photograph has a truth mask."""
        return any(one.truth for one in self.photographs)

    @cached_property
    def truth(self) -> str:
        """Digest of all truth masks."""
        return digest_of(one.truth for one in self.photographs) if self.has_truth else ""


Records = Mapping[str, Mapping[str, str]]
"""Stage -> photograph's id, or `WHOLE` -> fingerprint."""


@dataclass(frozen=True)
class There:
    """What a run folder holds.

    Attributes:
        records: of products whose files are there.
        aside: of products that were set aside, and can be put back: stage -> fingerprints or id -> fingerprint.
        settings: digest of settings -> what they were, so that a reason can name what has changed.
        failed: id -> fingerprint of a photograph that could not be used.
    """

    records: Records = field(default_factory=dict)
    aside: Records = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One stage's part of a plan.

    Attributes:
        wanted: photograph's id, or `WHOLE` -> the fingerprint that the product will carry; in the order of the list.
        reasons: why.
        put_back: of `wanted`, those that were set aside and need no work.
        replaces: fingerprint of the network that is set aside for this one; "" where there is none.
    """

    stage: str
    wanted: Mapping[str, str]
    reasons: tuple[str, ...]
    put_back: frozenset[str] = frozenset()
    replaces: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be done, in the order of the stages.

    Attributes:
        kept: stages whose product is kept although photographs or tags have changed.
        dropped: stages whose product is there but no longer asked for.
        gone: ids that are no longer listed and have products in the folder.
        photographs: how many are listed.
        failed: ids that could not be used before and have not changed: they are left out.
        stages: those that lead to the targets, in their order.
        regions: photograph's id -> fingerprint of its regions, where they are learned from now.
        settings: digest -> settings, to be recorded with the products.
        fingerprints: stage -> fingerprint of its whole product, or of all products of photographs, whether work or not.
    """

    work: tuple[Work, ...]
    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    gone: tuple[str, ...]
    photographs: int
    failed: tuple[str, ...]
    stages: tuple[str, ...]
    regions: Mapping[str, str]
    settings: Mapping[str, Mapping[str, object]]
    fingerprints: Mapping[str, str]

    def of(self, stage: str) -> Work | None:
        """The work of a stage; None where all is there."""
        return next((one for one in self.work if one.stage == stage), None)

    def __bool__(self) -> bool:
        return bool(self.work or self.dropped or self.gone)

    @property
    def learns(self) -> bool:
        """Whether vision prototypes are learned; otherwise, where prototypes are work, those of texts are all."""
        work = self.of("prototypes")
        return work is not None and not _of_texts(work.wanted[WHOLE])


# --------------------------------------------------------------------------------------------------------- dependencies
def learns(config: Config) -> bool:
    """Whether anything needs vision prototypes: seeds, or a training that contrasts regions with them."""
    return config.prototypes.kind == "vision" or (config.train.steps > 0 and contrasts(config))


def contrasts(config: Config) -> bool:
    """Whether training pulls and pushes regions by vision prototypes."""
    rsc = config.rsc
    return rsc.texts > 0 or (rsc.weight > 0 and (rsc.pull or rsc.suppress))


def before(stage: str, config: Config) -> tuple[str, ...]:
    """The stages that a stage is made from under a configuration."""
    learned = {"maps": config.prototypes.kind == "vision", "network": contrasts(config)}.get(stage, learns(config))
    return tuple(one for one in STAGES[stage].after if learned or one not in ("prototypes", "regions"))


def reads(stage: str, config: Config) -> tuple[str, ...]:
    """The values, or sections, that a stage itself reads under a configuration."""
    rows = STAGES[stage].values + STAGES[stage].also
    if stage == "prototypes" and not learns(config):  # a file of text prototypes alone
        return ()
    return (*rows, *_REFINE, "clip.attention_blocks") if stage == "regions" and config.prototypes.refined else rows


def named(keys: Iterable[str], rows: Container[str]) -> list[str]:
    """The configuration keys that are among the rows, or whose section is."""
    return [key for key in keys if key in rows or key.partition(".")[0] in rows]


def asked_for(targets: Iterable[str], asked: Asked) -> tuple[str, ...]:
    """The stages that lead to the targets, in the order of the work; those that have nothing to work on left out."""
    wanted: set[str] = set()
    waiting = list(targets)
    while waiting:
        stage = waiting.pop()
        if stage not in wanted and _has_input(stage, asked):
            wanted.add(stage)
            waiting += before(stage, asked.config)
            waiting += ["prototypes"] if stage == "maps" else []  # the file of text prototypes, at least
    return tuple(name for name in STAGES if name in wanted and name not in VIRTUAL)


def _has_input(stage: str, asked: Asked) -> bool:
    if stage == "scores":
        return asked.has_truth
    trained = asked.config.train.steps > 0
    if stage == "network scores":
        return trained and bool(asked.held_out)
    return trained or stage not in ("network", "onnx", "hf")


def settings_of(stage: str, asked: Asked, made: Mapping[str, str]) -> dict[str, object]:
    """What besides photographs and tags shapes a stage's products, by name.

    Args:
        made: stage -> fingerprint of the whole products before it.
    """
    flat, found = asked.config.flat(), {}
    rows = tuple(flat) if stage == "report" else reads(stage, asked.config)  # the page lists every value
    for key in named(flat, rows):
        value = flat[key]
        found[key] = list(value) if isinstance(value, tuple) else value
    inputs = STAGES[stage].inputs + (("guide",) if stage == "regions" and asked.config.prototypes.refined else ())
    found |= {name: getattr(asked, name) for name in inputs if name not in _WHERE_ASKED or getattr(asked, name)}
    for earlier in before(stage, asked.config):
        if STAGES[earlier].each or earlier in VIRTUAL:
            found |= settings_of(earlier, asked, made)
        elif earlier in made:
            found[earlier] = made[earlier]
    return found


# ----------------------------------------------------------------------------------------------------------- comparison
def compare(asked: Asked, there: There, targets: Iterable[str], never: Iterable[str] = ()) -> Plan:
    """The work between what is there and what is asked for.

    Args:
        targets: stages that shall be there in the end, with all that they are made from. Where training alone needs
            vision prototypes, they are learned if it is among them, or if they are a target themselves.
        never: stages that are not made now; what can't be told of without them is left out too.
    """
    targets, never = frozenset(targets), frozenset(never)
    stages = asked_for(targets, asked)
    learned = "network" in {*stages} - never or "prototypes" in targets or asked.config.prototypes.kind == "vision"
    return _Comparison(asked, there, never, learned).plan(stages)


class _Comparison:
    """One comparison at work: the fingerprints that are wanted, stage after stage."""

    def __init__(self, asked: Asked, there: There, never: frozenset[str], learned: bool):
        self.asked, self.there, self.never, self.learned = asked, there, never, learned
        self.blocked: set[str] = set()
        self.regions: dict[str, str] = {}
        self.made: dict[str, str] = {}
        self.settings: dict[str, dict[str, object]] = {}
        self.work: list[Work] = []
        self.kept: list[str] = []
        encoding = encoding_of(asked)
        self.failed = tuple(
            one.id for one in asked.photographs if there.failed.get(one.id) == f"{one.content}-{encoding}"
        )
        bad = set(self.failed)
        self.usable = [one for one in asked.photographs if one.id not in bad]
        self.tagged = [one for one in self.usable if not one.bare]
        self.parts, self.tagged_parts = (
            digest_of(f"{one.id}-{one.content}-{one.tags}" for one in some) for some in (self.usable, self.tagged)
        )

    def plan(self, stages: Sequence[str]) -> Plan:
        for stage in stages:
            if not STAGES[stage].each:
                self._add_whole(stage)
            elif stage != "regions" and stage not in self.never:  # regions are made where prototypes are learned
                self._add_each(stage)
        listed = {one.id for one in self.asked.photographs}
        held = {id for name, ids in self.there.records.items() if name in STAGES and STAGES[name].each for id in ids}
        dropped: tuple[str, ...] = ()
        if "report" in stages:
            results = ("network", "scores", "network scores")
            dropped = tuple(one for one in results if one not in stages and self.there.records.get(one))
        return Plan(
            tuple(self.work), tuple(self.kept), dropped, tuple(sorted(held - listed)), len(self.asked.photographs),
            self.failed, tuple(stages), self.regions, self.settings, dict(self.made),
        )  # fmt: skip

    def _end(self, stage: str) -> str:
        """Digest of a stage's settings, which are remembered."""
        settings = settings_of(stage, self.asked, self.made)
        end = digest(settings)
        self.settings[end] = settings
        return end

    def _add_each(self, stage: str) -> None:
        records, aside = self.there.records.get(stage, {}), self.there.aside.get(stage, {})
        end = self._end(stage)
        some = self.tagged if stage == "regions" else self.usable
        wanted = {one.id: f"{one.content}-{one.tags}-{end}" for one in some}
        if stage == "regions":
            self.regions = wanted
        self.made[stage] = f"{self.parts}-{end}"
        missing = {id: one for id, one in wanted.items() if records.get(id) != one}
        if missing:
            back = frozenset(id for id, one in missing.items() if id not in records and aside.get(id) == one)
            self.work.append(Work(stage, missing, self._reasons(missing, records, back), back))

    def _reasons(self, missing: Mapping[str, str], records: Mapping[str, str], back: frozenset[str]) -> tuple[str, ...]:
        """Why products of photographs are missing, most frequent first."""
        counts: Counter[str] = Counter()
        for id, fingerprint in missing.items():
            if id in back:
                counts["put back from replaced/"] += 1
            elif id not in records:
                counts["not there yet"] += 1
            else:
                (before_, _, old), (content, _, end) = records[id].split("-"), fingerprint.split("-")
                if old != end:
                    counts[self._change(old, end)] += 1
                elif before_ != content:
                    counts["the photograph has changed"] += 1
                else:
                    counts["other tags"] += 1
        if len(counts) == 1:
            return tuple(counts)
        return tuple(f"{count} of them: {words}" for words, count in counts.most_common())

    def _change(self, old: str, new: str) -> str:
        return described(self.there.settings.get(old), self.settings[new])

    def _add_whole(self, stage: str) -> None:
        of_photographs = any(STAGES[earlier].each for earlier in before(stage, self.asked.config))
        parts = self.tagged_parts if stage == "prototypes" else self.parts
        fingerprint = f"{parts if of_photographs else NO_PHOTOGRAPHS}-{self._end(stage)}"
        record = self.there.records.get(stage, {}).get(WHOLE, "")
        same_settings = record.partition("-")[2] == fingerprint.partition("-")[2]
        relearn = self.asked.relearn
        if stage == "prototypes" and not self.learned:
            relearn = False
            fingerprint = fingerprint if same_settings else f"{NO_PHOTOGRAPHS}-{self._end('text')}"
        if record == fingerprint or (record and STAGES[stage].keeps and same_settings and not relearn):
            self.made[stage] = record
            if record != fingerprint:
                self.kept.append(stage)
            return
        if stage in self.never or (stage in NEED_ALL and self.blocked.intersection(before(stage, self.asked.config))):
            self.blocked.add(stage)
            return
        if stage == "prototypes" and not _of_texts(fingerprint):
            self._add_each("regions")
        self.made[stage] = fingerprint
        back = frozenset({WHOLE} if fingerprint in self.there.aside.get(stage, {}).values() else ())
        reasons = ("put back from replaced/",) if back else self._whole_reasons(fingerprint, record)
        self.work.append(Work(stage, {WHOLE: fingerprint}, reasons, back, record if stage == "network" else ""))

    def _whole_reasons(self, fingerprint: str, record: str) -> tuple[str, ...]:
        if not record:
            return ("not there yet",)
        if _of_texts(record) != _of_texts(fingerprint):
            return ("not learned yet" if _of_texts(record) else "those that were learned have other settings",)
        (old_parts, _, old), (parts, _, new) = record.partition("-"), fingerprint.partition("-")
        changes = [self._change(old, new)] if old != new else []
        return (*changes, "other photographs or tags") if old_parts != parts else tuple(changes)


def _of_texts(fingerprint: str) -> bool:
    """Whether the prototypes of this fingerprint are those of texts alone."""
    return fingerprint.startswith(f"{NO_PHOTOGRAPHS}-")


def digest_of(lines: Iterable[str]) -> str:
    """One digest of many lines, in their order."""
    found = hashlib.blake2b(digest_size=8)
    for line in lines:
        found.update(f"{line}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def encoding_of(asked: Asked) -> str:
    """What shows a photograph to the encoder: the same bytes under the same of it fail again."""
    return digest(settings_of("encoding", asked, {}))


def described(old: Mapping[str, object] | None, new: Mapping[str, object]) -> str:
    """What differs between two settings, in words; `old` is None where it was not recorded."""
    if old is None:
        return "other settings"
    changed = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    named = [_change_of(key, old.get(key), new.get(key)) for key in changed[:SHOWN]]
    return "; ".join(named) + (f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


_CHANGES = {
    "clip": "another CLIP", "classes": "other classes", "colors": "other colours", "truth": "other truth masks",
    "guide": "another encoder in refine.features", "held_out": "other held-out photographs or masks",
    "split": "another split", "left_out": "other lines left out",
}  # fmt: skip


def _change_of(key: str, old: object, new: object) -> str:
    if key in _CHANGES:
        return _CHANGES[key]
    if key in STAGES:
        return f"{STAGES[key].words} " + ("made anew" if new else "no longer there")
    shown = [json.dumps(one, ensure_ascii=False) if one is not None else "not read" for one in (old, new)]
    return f"{key} was {shown[0]}, is now {shown[1]}"


# ---------------------------------------------------------------------------------------------------------- for people
def told(plan: Plan) -> list[str]:
    """The plan in short lines: what is done and why, what is kept, what is set aside."""
    lines = []
    for work in plan.work:
        every = count_of(plan.photographs, "photograph")
        some = f" of {every}" if len(work.wanted) == plan.photographs else f" of {len(work.wanted)} of {every}"
        of = some if STAGES[work.stage].each else ""
        row = "text" if work.stage == "prototypes" and not plan.learns else work.stage
        lines.append(f"{STAGES[row].words}{of}: {'; '.join(work.reasons)}")
        if work.replaces and WHOLE not in work.put_back:
            lines.append(f"  the {work.stage} that was there is kept in replaced/ until vpl clean")
        if work.stage == "network" and any("train.steps" in reason for reason in work.reasons):
            lines.append("  it is trained from the first step: the learning rate of each depends on train.steps")
    for stage in plan.kept:
        lines.append(
            f"{STAGES[stage].words}: kept as learned from other photographs or tags; --relearn learns again and makes "
            "what follows anew"
        )
    for stage in plan.dropped:
        where = ", and kept in replaced/ until vpl clean" if stage == "network" else ""
        lines.append(f"{STAGES[stage].words}: no longer asked for{where}")
    if plan.gone:
        lines.append(f"{count_of(len(plan.gone), 'photograph')} no longer listed: what was made is kept in replaced/")
    if plan.failed:
        lines.append(
            f"{count_of(len(plan.failed), 'photograph')} that could not be used and have not changed: left out"
        )
    return lines if plan else ["nothing to do", *lines]


def count_of(count: int, noun: str) -> str:
    """A count with its noun: 1 photograph, 2 photographs."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
