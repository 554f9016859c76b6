"""records.py: what is in a run's JSON files is what vpl could have written, or one sentence says that it is not."""

from __future__ import annotations

import json
import math

import pytest

from vpl.config import Config
from vpl.errors import RunError
from vpl.runs import records
from vpl.runs.folder import RunFolder

RUN = {
    "data": {"hash": "a", "images": 3, "split": "train", "problems": ["one"]},
    "clip": {"name": "pocket", "hash": "b"},
    "stages": {"train": {"seconds": 1.5, "images": 3, "parts": {"read": 0.1}, "busy": {"read": 0.5}}},
    "failures": [{"id": "a", "reason": "b", "stage": ""}],
    "versions": {"vpl": "0.2"},
}
ROW = {"name": "pseudo-masks", "miou": 0.5, "pixel_accuracy": None, "iou": {"dog": None}, "confusion": [[1, 2, 3]]}
METRICS = {
    "evaluations": [{"split": "train", "images": 3, "classes": ["dog"], "rows": [ROW], "tags": {"dog": [1, 2]}}],
    "label_free": {"mirror agreement": {"value": 0.5, "meaning": "a", "advice": ""}},
}
CHOICE = {"key": "prototypes.phi", "default": 0.5, "value": 0.2, "tried": {"0.2": 1.0, "0.5": None}, "reason": "a"}
TUNE = {"images": 3, "choices": [CHOICE]}
LEARNING = {"curve": [2.0, 1.0], "steps": 40, "kl_before": 2.0, "modality": {
    kind: {"separability": 1.0, "classes": {"dog": {"regions": 2, "distance": 0.1, "own": 0.2, "other": None}}}
    for kind in ("text", "vision")
}}  # fmt: skip
FILES = {
    "run.json": (RUN, records.read_record),
    "metrics.json": (METRICS, records.read_metrics),
    "tune.json": (TUNE, records.read_choices),
    "prototypes.json": (LEARNING, records.read_learning),
}
WRONG = [None, True, 3, -1e300, 10**400, "text", [], [1], [[]], {}, {"a": 1}]


def places(tree, path=()):
    """The path of every value in a tree."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, one in items:
        yield from places(one, (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_what_vpl_writes_is_read_and_nothing_else_is_more_than_a_sentence(tmp_path, name):
    good, read = FILES[name]
    path, refused = tmp_path / name, 0
    empty = read(tmp_path)
    assert not empty or empty == (0, ()), "absent is empty"
    path.write_text(json.dumps(good))
    assert read(tmp_path)
    for place in places(good):
        for value in WRONG:
            tree = json.loads(json.dumps(good))
            if place:
                above = tree
                for key in place[:-1]:
                    above = above[key]
                above[place[-1]] = value
            path.write_text(json.dumps(tree if place else value))
            try:
                read(tmp_path)
            except RunError as error:
                refused += 1
                assert str(path) in str(error) and "is damaged" in str(error) and "delete it" in str(error)
    assert refused > len(WRONG), "it can refuse"
    for bytes_ in (b"", b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(bytes_)
        with pytest.raises(RunError, match="is damaged"):
            read(tmp_path)


def test_choices_are_numbers_of_the_configuration(tmp_path):
    (tmp_path / "tune.json").write_text(json.dumps(TUNE))
    images, (choice,) = records.read_choices(tmp_path)
    assert (images, choice.key, choice.value) == (3, "prototypes.phi", 0.2) and math.isnan(choice.tried["0.5"])
    for key in ("prototypes.nothing", "prototypes.kind", "crf.enabled"):
        (tmp_path / "tune.json").write_text(json.dumps(TUNE | {"choices": [CHOICE | {"key": key}]}))
        with pytest.raises(RunError, match="no number"):
            records.read_choices(tmp_path)


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e300, 10**400, True, "1", None])
def test_numbers_are_finite_and_of_a_size_that_a_run_can_have(value):
    assert not records.is_number(value)
    assert records.is_number(-1.5) and records.is_number(10**12)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_of_a_configuration_is_one_of_a_record(tmp_path, seed):
    config = Config().with_values({"seed": seed})
    with RunFolder(tmp_path / "run", config) as run:
        run.settle()
        run.note(seed=config.seed)
    with RunFolder(tmp_path / "run", config) as run:
        assert run.record()["seed"] == seed
