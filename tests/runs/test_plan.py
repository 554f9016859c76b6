"""The plan as a table: for every value and every kind of input, exactly the stages that must be redone."""

from __future__ import annotations

import dataclasses
import random

import pytest

from vpl.config import Config, quality
from vpl.runs.plan import (
    EXPORTS,
    FREE,
    MASK_EXPORTS,
    PLACES,
    STAGES,
    VIRTUAL,
    WHOLE,
    Asked,
    Photograph,
    Plan,
    There,
    compare,
    encoding_of,
    named,
    told,
)

KEYS = tuple(Config().flat())
TARGETS = ("report", *EXPORTS)
IDS = ("a", "b", "c")


def asked(config: Config | None = None, ids=IDS, **changes) -> Asked:
    """Three photographs with truth masks, a held-out split, and every export."""
    photographs = tuple(Photograph(one, f"bytes of {one}", f"tags of {one}", f"truth of {one}") for one in ids)
    whole = {"held_out": "held out", "split": "train", "left_out": "", "exports": EXPORTS}
    return Asked(config or Config(), "clip", "classes", "colors", photographs, **whole | changes)


def done(plan: Plan, there: There) -> There:
    """The folder after the plan: what a run records."""
    records = {stage: dict(ids) for stage, ids in there.records.items()}
    for id in plan.gone:
        for ids in records.values():
            ids.pop(id, None)
    for stage in plan.dropped:
        records.pop(stage)
    for work in plan.work:
        records.setdefault(work.stage, {}).update(work.wanted)
    return dataclasses.replace(there, records=records, settings={**there.settings, **plan.settings})


def built(wanted: Asked, there: There | None = None) -> There:
    there = there or There()
    return done(compare(wanted, there, TARGETS), there)


def redone(before: Asked, after: Asked) -> dict[str, set[str]]:
    """Stage -> ids (or `WHOLE`) that a run makes again when `before` was there."""
    return {work.stage: set(work.wanted) for work in compare(after, built(before), TARGETS).work}


def another(key: str) -> object:
    """A value that differs from the default and is allowed."""
    if key == "refine.votes":
        return ("attention",)
    if key in ("clip.heads", "clip.mean", "clip.std"):
        return (2, 2) if key == "clip.heads" else (0.5, 0.5, 0.5)
    value, section, name = Config().flat()[key], *key.rpartition(".")[::2]
    holder = getattr(Config(), section) if section else Config()
    metadata = {one.name: one for one in dataclasses.fields(holder)}[name].metadata
    if metadata["choices"]:
        return next(one for one in metadata["choices"] if one != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, *(value[:1] or ("a=b",)))
    if isinstance(value, str):
        return f"{value}x"
    step = 1 if isinstance(value, int) else 0.25 * (value or 1.0)
    return value + step if metadata["high"] is None or value + step <= metadata["high"] else value - step


# Which stages a value redoes, written down by hand: the oracle of the table.
SHOWN = {"report"}
AFTER_NETWORK = {"network", "network scores", "signs", "onnx", "hf"} | SHOWN
AFTER_MASKS = {"masks", "scores", *MASK_EXPORTS} | AFTER_NETWORK
AFTER_MAPS = {"maps"} | AFTER_MASKS
ALL = {"regions", "prototypes"} | AFTER_MAPS
REDONE = {
    "data": SHOWN, "validation": SHOWN, "clip.model": SHOWN, "clip.batch": SHOWN,
    "clip.keep_gb": SHOWN, "train.checkpoint_every": SHOWN,
    "seed": AFTER_NETWORK, "clip.precision": ALL,
    "clip.heads": ALL, "clip.activation": ALL, "clip.mean": ALL, "clip.std": ALL, "clip.max_side": ALL,
    "clip.scale": ALL,
    "clip.max_patches": ALL, "clip.attention_blocks": AFTER_MAPS, "prompts": ALL, "seeds": ALL,
    "prototypes.phi": ALL, "prototypes.background_phi": ALL, "prototypes.region": ALL, "prototypes.refined": ALL,
    "prototypes.features": ALL, "refine.votes": AFTER_MASKS,
    "prototypes.kind": AFTER_MAPS, "prototypes": ALL - {"regions"}, "refine": AFTER_MAPS, "crf": AFTER_MASKS,
    "looks": AFTER_MASKS, "par": AFTER_MASKS,
    "labels.background_exponent": AFTER_MAPS, "labels.confidence": AFTER_MASKS, "decoder": AFTER_NETWORK,
    "rsc": AFTER_NETWORK, "train": AFTER_NETWORK, "predict": {"network scores", "signs", "hf"} | SHOWN,
}  # fmt: skip


def test_every_value_stands_in_exactly_one_row():
    rows = [row for stage in STAGES.values() for row in stage.values] + [*PLACES, *FREE]
    for key in KEYS:
        assert [row for row in rows if named([key], [row])].__len__() == 1, key
    for row in [*rows, *(row for stage in STAGES.values() for row in stage.also)]:
        assert named(KEYS, [row]), f"{row} is no configuration value"


def test_stages_stand_after_what_they_are_made_from():
    names = list(STAGES)
    for stage in STAGES.values():
        assert all(names.index(earlier) < names.index(stage.name) for earlier in stage.after), stage.name


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_a_changed_value_redoes_exactly(key):
    exact = REDONE.get(key, REDONE.get(key.rpartition(".")[0]))
    found = redone(asked(), asked(Config().with_values({key: another(key)})))
    assert found.keys() == exact
    assert all(ids == ({WHOLE} if not STAGES[stage].each else set(IDS)) for stage, ids in found.items())


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in KEYS if REDONE.get(key) != SHOWN])
def test_a_changed_value_is_named_in_the_reasons(key):
    if key.partition(".")[0] in PLACES or key == "refine.features":
        return
    after = asked(Config().with_values({key: another(key)}))
    first = compare(after, built(asked()), TARGETS).work[0]
    assert key in first.reasons[0] and "is now" in first.reasons[0]


def test_another_network_of_a_quality_leaves_its_masks():
    new = Config().with_values(quality("standard"))
    old = new.with_values({"decoder.cells": 1, "train.scale_low": 0.5, "train.scale_high": 2.0})
    assert redone(asked(old), asked(new)).keys() == AFTER_NETWORK
    (network, *_) = compare(asked(new), built(asked(old)), TARGETS).work
    assert (
        network.reasons
        == (
            "decoder.cells was 1, is now 4; train.scale_low was 0.5, is now 0.75; train.scale_high was 2.0, is now 1.5",
        )
        and network.replaces
    )


@pytest.mark.slow
def test_refined_regions_depend_on_the_refinement():
    config = Config().with_values({"prototypes.refined": True})
    for key in ("refine.rounds", "clip.attention_blocks"):
        assert redone(asked(config), asked(config.with_values({key: another(key)}))).keys() == ALL


def test_the_other_encoder_s_weights_count_where_they_are_read():
    plain = Config().with_values({"refine.features": "a folder"})
    moved = plain.with_values({"refine.features": "elsewhere"})
    assert redone(asked(plain, guide="one"), asked(moved, guide="one")).keys() == SHOWN, "the place does not count"
    assert redone(asked(plain, guide="one"), asked(plain, guide="two")).keys() == AFTER_MAPS
    refined = plain.with_values({"prototypes.refined": True})
    assert redone(asked(refined, guide="one"), asked(refined, guide="two")).keys() == ALL
    (maps, *_) = compare(asked(plain, guide="two"), built(asked(plain, guide="one")), TARGETS).work
    assert maps.reasons == ("another encoder in refine.features",)
    bare = compare(asked(), There(), TARGETS).settings
    assert not any("guide" in one for one in bare.values()), "settings of runs without one don't name it"


def test_a_first_run_makes_everything_that_has_an_input():
    everything = set(STAGES) - set(VIRTUAL)
    assert {work.stage for work in compare(asked(), There(), TARGETS).work} == everything
    bare = Asked(Config(), "clip", "classes", "colors", (Photograph("a", "bytes", "tags"),))
    found = {work.stage for work in compare(bare, There(), ["report"]).work}
    assert found == {"regions", "prototypes", "maps", "masks", "network", "signs", "report"}


def test_text_prototypes_alone_need_no_regions():
    config = Config().with_values({"prototypes.kind": "text", "train.steps": 0})
    found = [work.stage for work in compare(asked(config), There(), ["report"]).work]
    assert found == ["prototypes", "maps", "masks", "scores", "signs", "report"]
    contrasting = config.with_values({"train.steps": 5})
    assert compare(asked(contrasting), There(), ["report"]).of("regions")
    plain = contrasting.with_values({"rsc.weight": 0.0})
    assert compare(asked(plain), There(), ["report"]).of("regions") is None
    assert "prototypes" not in redone(asked(config), asked(config.with_values({"prototypes.image_temperature": 0.5})))


def test_what_training_alone_needs_is_learned_where_a_network_is_made():
    config = Config().with_values({"prototypes.kind": "text"})
    masks = compare(asked(config), There(), ["masks"])
    assert [work.stage for work in masks.work] == ["prototypes", "maps", "masks"] and not masks.learns
    assert told(masks)[0] == "text prototypes: not there yet"
    there = done(masks, There())
    plan = compare(asked(config), there, ["report"])
    assert plan.learns and {work.stage for work in plan.work}.isdisjoint({"maps", "masks"})
    assert plan.of("prototypes").reasons == ("not learned yet",)
    assert not compare(asked(config), there, ["report"], never=["network"]).learns
    assert compare(asked(config), there, ["masks", "prototypes"]).learns
    there = done(plan, there)
    for photographs in (IDS, "abcd"):
        for relearn in (False, True):
            again = compare(asked(config, photographs, relearn=relearn), there, ["masks"])
            assert again.of("prototypes") is None, "they are kept"
    other = asked(config.with_values({"prototypes.steps": 7}))
    assert told(compare(other, there, ["masks"])) == ["text prototypes: those that were learned have other settings"]
    assert compare(other, there, ["report"]).learns


def test_nothing_changed_is_nothing_to_do():
    assert not compare(asked(), built(asked()), TARGETS)


# ----------------------------------------------------------------------------------------------------------- the inputs
WITH_ONE = {"maps": {"d"}, "masks": {"d"}}
OF_ALL = {"scores", "signs", "report", *MASK_EXPORTS}


def changed(**fields) -> Asked:
    first, *rest = asked().photographs
    return dataclasses.replace(asked(), photographs=(dataclasses.replace(first, **fields), *rest))


def test_a_new_photograph_alone_is_computed_and_what_was_learned_is_kept():
    plan = compare(asked(ids="abcd"), built(asked()), TARGETS)
    assert {work.stage: set(work.wanted) for work in plan.work if STAGES[work.stage].each} == WITH_ONE
    assert {work.stage for work in plan.work if not STAGES[work.stage].each} == OF_ALL
    assert plan.kept == ("prototypes", "network") and not plan.gone


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"content": "other bytes"}, {"tags": "other tags"}])
def test_a_changed_photograph_or_tag_alone_is_computed(fields):
    plan = compare(changed(**fields), built(asked()), TARGETS)
    assert {work.stage: set(work.wanted) for work in plan.work if STAGES[work.stage].each} == {
        "maps": {"a"},
        "masks": {"a"},
    }
    assert plan.kept == ("prototypes", "network")
    assert plan.of("masks").reasons == (("other tags",) if "tags" in fields else ("the photograph has changed",))


def test_a_removed_photograph_is_gone_and_nothing_is_computed_for_the_others():
    plan = compare(asked(ids="ab"), built(asked()), TARGETS)
    assert plan.gone == ("c",) and {work.stage for work in plan.work} == OF_ALL


@pytest.mark.slow
@pytest.mark.parametrize("after", [asked(ids="abcd"), asked(ids="ab"), changed(tags="other")])
def test_relearning_makes_what_follows_anew(after):
    plan = compare(dataclasses.replace(after, relearn=True), built(asked()), TARGETS)
    usable = {one.id for one in after.photographs}
    assert {work.stage for work in plan.work} >= ALL - {"regions"} and not plan.kept
    assert set(plan.of("masks").wanted) == usable
    if len(usable) == 4:
        assert set(plan.of("regions").wanted) == {"d"}, "regions that are there are not made again"
    assert not compare(dataclasses.replace(after, relearn=True), done(plan, built(asked())), TARGETS)


def test_relearning_from_the_same_photographs_is_nothing_to_do():
    assert not compare(dataclasses.replace(asked(), relearn=True), built(asked()), TARGETS)


@pytest.mark.slow
def test_late_truth_touches_evaluation_alone():
    bare = dataclasses.replace(
        asked(held_out=""), photographs=tuple(dataclasses.replace(one, truth="") for one in asked().photographs)
    )
    assert redone(bare, asked()).keys() == {"scores", "network scores", "signs", "report", "hf"}
    assert compare(bare, built(asked()), TARGETS).dropped == ("scores", "network scores")
    assert redone(asked(), changed(truth="another")).keys() == {"scores", "signs", "report"}
    assert redone(asked(), asked(held_out="more")).keys() == {"network scores", "signs", "report", "hf"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, stages", [("clip", ALL), ("classes", ALL), ("colors", AFTER_MAPS), ("split", {"scores", "signs", "report"})]
)
def test_another_input_redoes_exactly(name, stages):
    assert redone(asked(), dataclasses.replace(asked(), **{name: "other"})).keys() == stages


def test_a_photograph_that_failed_is_left_out_until_it_changes():
    bad = There(failed={"a": f"bytes of a-{encoding_of(asked())}"})
    plan = compare(asked(), bad, TARGETS)
    assert plan.failed == ("a",) and set(plan.of("masks").wanted) == {"b", "c"}
    mended = compare(changed(content="mended"), done(plan, bad), TARGETS)
    assert mended.failed == () and set(mended.of("masks").wanted) == {"a"} and "prototypes" in mended.kept
    larger = asked(Config().with_values({"clip.max_side": 512}))
    assert compare(larger, done(plan, bad), TARGETS).failed == ()


def test_a_product_without_a_record_is_never_trusted():
    there = built(asked())
    del there.records["masks"]["b"]
    assert {work.stage: set(work.wanted) for work in compare(asked(), there, TARGETS).work} == {"masks": {"b"}}


def test_what_was_set_aside_is_put_back():
    first, other = asked(), asked(Config().with_values({"train.steps": 7}))
    there = built(first)
    plan = compare(other, there, TARGETS)
    replaced = plan.of("network").replaces
    assert replaced == there.records["network"][WHOLE]
    back = compare(first, dataclasses.replace(done(plan, there), aside={"network": {replaced: replaced}}), TARGETS)
    assert back.of("network").put_back == {WHOLE} and back.of("network").wanted == {WHOLE: replaced}


def test_no_steps_drop_the_network():
    plan = compare(asked(Config().with_values({"train.steps": 0})), built(asked()), ["report"])
    assert plan.dropped == ("network", "network scores")
    assert compare(asked(Config().with_values({"train.steps": 0})), built(asked()), ["masks"]).dropped == ()


def test_what_a_command_never_makes_is_left_with_all_that_needs_it():
    plan = compare(asked(), There(), ["signs"], never=["network"])
    assert [work.stage for work in plan.work] == ["regions", "prototypes", "maps", "masks", "scores", "signs"]
    assert not compare(asked(), built(asked()), ["signs"], never=["network"])


# --------------------------------------------------------------------------------------------------------- any sequence
@pytest.mark.slow
@pytest.mark.parametrize("draw", range(12))
def test_after_any_changes_the_records_are_those_of_a_fresh_run(draw):
    """The work of any sequence, relearned at the end, leaves what a fresh run of the final inputs records."""
    rng = random.Random(draw)
    wanted, there = asked(), built(asked())
    for _ in range(rng.randint(1, 6)):
        kind = rng.choice(["value", "value", "photographs", "content", "tags", "truth", "classes", "kill"])
        if kind == "value":
            key = rng.choice([key for key in KEYS if key != "train.steps"])
            value = rng.choice([another(key), Config().flat()[key]])
            wanted = dataclasses.replace(wanted, config=wanted.config.with_values({key: value}))
        elif kind == "photographs":
            ids = rng.sample("abcdef", rng.randint(1, 6))
            wanted = dataclasses.replace(wanted, photographs=asked(ids=ids).photographs)
        elif kind == "classes":
            wanted = dataclasses.replace(wanted, classes=rng.choice(["classes", "other"]))
        elif kind in ("content", "tags", "truth"):
            some = list(wanted.photographs)
            place = rng.randrange(len(some))
            some[place] = dataclasses.replace(some[place], **{kind: rng.choice("xyz")})
            wanted = dataclasses.replace(wanted, photographs=tuple(some))
        plan = compare(wanted, there, TARGETS)
        if kind == "kill":  # a part of the work
            plan = dataclasses.replace(plan, work=plan.work[: rng.randint(0, len(plan.work))])
        there = done(plan, there)
    wanted = dataclasses.replace(wanted, relearn=True)
    there = built(wanted, there)
    assert not compare(wanted, there, TARGETS)
    fresh = built(wanted)
    listed = {one.id for one in wanted.photographs}
    for stage, ids in fresh.records.items():
        assert {id: one for id, one in there.records[stage].items() if id in listed | {WHOLE}} == ids, stage
