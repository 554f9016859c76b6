"""Signs of failure of a whole run: what is measured with truth and without, and that they change when a run is bad."""

from __future__ import annotations

import json

import numpy as np
import pytest

from test_build import counted
from vpl.config import preset
from vpl.edges.images import read_mask, write_mask
from vpl.judge import checkup as checkups
from vpl.judge.checkup import checkup, looked_again
from vpl.method import signs
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 4}, seed=8, style="demo", size=48)


def config_of(tree, **values):
    paths = {"images": tree / "images" / "train", "tags": tree / "train.csv", "masks": tree / "masks" / "train"}
    return preset("scenes").with_values({f"data.{key}": str(path) for key, path in paths.items()} | values)


def test_with_truth(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        run.labels()
        run.evaluate()
        found = checkup(run)
        stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
        assert stored["evaluations"] and stored["label_free"] == found["label_free"]
        assert set(found["label_free"]) == set(signs.LABEL_FREE)
        assert set(found["with_truth"]) == set(signs.WITH_TRUTH) - {"train/val gap"}
        assert all(0 <= one["value"] <= 1 for one in found["label_free"].values())

        for path in (tmp_path / "run" / "labels").iterdir():
            write_mask(path, np.full_like(read_mask(path), 255), run.classes.palette())
        worse = checkup(run)["label_free"]["ignored pixels"]
        assert worse["value"] == 1 and "labels.confidence" in worse["advice"]


@pytest.mark.parametrize("masks", [True, False])
def test_photographs_are_asked_once(tree, tmp_path, monkeypatch, masks):
    monkeypatch.setattr(checkups, "FEWEST", 4)
    with Run(tmp_path / "run", config_of(tree, **({} if masks else {"data.masks": ""})), device="cpu") as run:
        run.labels()
        with counted(monkeypatch) as seen:
            found = checkup(run)
        assert len(seen) == (3 if masks else 2) * 4, "mirrored, larger, and against the truth as it is"
        assert found["label_free"]["mirror agreement"]["images"] == found["label_free"]["CRF change"]["images"] == 4
        assert found["label_free"]["tag consistency"]["images"] == 0, "of regions, not of photographs"
        with counted(monkeypatch) as seen:
            assert checkup(run) == found and not seen
        changed = run.dataset.samples[1].id
        with run.state.making("maps", "0-1-2", changed):
            pass
        with counted(monkeypatch) as seen:
            assert checkup(run) == found
        assert len(seen) == (3 if masks else 2), "the one that was made anew"
        memory = tmp_path / "run/state/signs.json"
        for damaged in ("{", '{"maps": 3, "again": {"x": []}}', memory.read_text().replace("[", "{").replace("]", "}")):
            memory.write_text(damaged)
            assert checkup(run) == found


def test_a_tenth_is_looked_at_again():
    assert [looked_again(count) for count in (3, 12, 49, 200, 240, 10**6)] == [2, 2, 4, 20, 24, 24]
    assert checkups.FEWEST == 2 and checkups.AGAIN == 24


def test_agreement_is_that_of_a_fresh_look(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(checkups, "FEWEST", 4)
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        run.labels()
        found = checkup(run)["label_free"]
        views = [run.view(sample) for sample in run.dataset.samples]
        bench = checkups.Bench(run.clip, run.classes, views, 1, checkups.Shelf(0))
        stored = checkups.read_prototypes(tmp_path / "run/prototypes.safetensors", run.clip.dim)
        slow = checkups.mirror_agreements(bench, stored, run.config)
    assert found["mirror agreement"]["value"] == pytest.approx(np.mean(slow), abs=1e-12)


@pytest.mark.parametrize("values", [{}, {"prototypes.kind": "text"}], ids=str)
def test_without_truth(tree, tmp_path, values):
    with Run(tmp_path / "run", config_of(tree, **{"data.masks": ""} | values), device="cpu") as run:
        run.labels()
        found = checkup(run)
    assert found["with_truth"] == {} and "mirror agreement" in found["label_free"]


def test_the_gap_between_the_splits(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        run.seeds()
        scores = {"refined + CRF": 0.5, "network, single scale": 0.3}
        rows = [{"name": name, "miou": miou, "pixel_accuracy": None} for name, miou in scores.items()]
        (tmp_path / "run" / "metrics.json").write_text(
            json.dumps({"evaluations": [{"split": "x", "images": 4, "classes": [], "rows": rows}]})
        )
        gap = checkup(run)["with_truth"]["train/val gap"]
    assert gap["value"] == pytest.approx(0.2) and gap["advice"]
