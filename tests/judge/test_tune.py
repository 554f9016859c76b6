"""Label-free choice: scores that are right where the answer is known, a search that keeps to chance, and no mask."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from vpl.classes import scenes as scene_classes
from vpl.cli import main
from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.judge import tune
from vpl.judge.bench import Bench
from vpl.method.views import View
from vpl.runs.stages import Run
from vpl.scenes.draw import draw
from vpl.scenes.tree import write_tree


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("pocket", "cpu")


@pytest.fixture(scope="module")
def bench(clip):
    classes, views = scene_classes(), []
    for place in range(4):
        scene = draw(4, place, "demo", 48, with_mask=False)
        views.append(View(scene.image, tuple(classes.index(tag) for tag in scene.tags), (48, 48)))
    return Bench(clip, classes, views)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 4}, seed=4, style="demo", size=48)


def config_of(tree) -> Config:
    paths = {"images": tree / "images" / "train", "tags": tree / "train.csv", "masks": tree / "masks" / "train"}
    return preset("scenes").with_values({f"data.{key}": str(path) for key, path in paths.items()})


def test_grids_hold_the_configured_values():
    config = Config().with_values({"prototypes.phi": 0.42, "prototypes.image_temperature": 0.06})
    made = tune.grids(config)
    assert 0.42 in made["prototypes.phi"] and list(made["prototypes.phi"]) == sorted(made["prototypes.phi"])
    assert 0.06 in made["prototypes.image_temperature"] and 0.03 in made["prototypes.image_temperature"]
    for key, values in made.items():
        for one in values:
            config.with_values({key: one})


@pytest.fixture
def few_looks(monkeypatch):
    """A committee of two makers at one scale."""
    few = {"looks.makers": ("gradcam", "similarity"), "looks.scales": (1.0,), "looks.flip": False}
    monkeypatch.setattr(tune.committee, "VALUES", tune.committee.VALUES | few)


def choose_phi(bench, score):
    """What is chosen for Φ alone, without a CRF."""
    return tune.choose(bench, Config().with_values({"crf.enabled": False}), ["prototypes.phi"], score)


def test_the_best_score_decides_and_tells_its_error(bench):
    def score(bench, config):
        noise = np.random.default_rng(int(1000 * config.prototypes.phi)).normal(size=40)
        return 0.1 * config.prototypes.phi + noise - noise.mean()

    found = choose_phi(bench, score)
    assert found.config.prototypes.phi == max(tune.GRIDS["prototypes.phi"])
    assert "instead of 0.5: score +0.0300 ± 0.2" in found.choices[0].reason


def test_the_configured_value_wins_ties(bench):
    found = choose_phi(bench, lambda *_: np.ones(40))
    assert (
        found.config.prototypes == Config().prototypes
        and "the configured value has the best" in found.choices[0].reason
    )


def test_the_committee_scores_the_miou_with_its_opinion(bench, monkeypatch):
    """The mean of the score is that of all images; a setting whose masks are the opinion has 1, an empty one less."""
    config = preset("scenes")
    masks = bench.masks(config.with_values({"crf.mode": "fast"}), ("crf",))["crf"]
    monkeypatch.setattr(tune.committee, "opinion", lambda *_: masks)
    assert np.allclose(tune.consent(bench, config), 1)
    worse = tune.consent(bench, config.with_values({"labels.background_exponent": 0.1}))
    assert worse.mean() < 0.7


def test_values_that_change_nothing_are_left_alone(bench):
    values = {"prototypes.kind": "text", "refine.box": False, "crf.enabled": False}
    made = tune.choose(bench, preset("scenes").with_values(values), score=lambda *_: np.ones(4))
    assert [one.key for one in made.choices] == ["labels.background_exponent"]


def test_confidence_is_the_lowest_that_agrees(bench, monkeypatch):
    kept, same = tune.agreement_by_confidence(bench, preset("scenes"), (0.5, 0.9))
    assert kept[0.9] <= kept[0.5] and all(0 <= one <= 1 for one in same.values())
    for answer, value in (({0.5: 0.9, 0.9: 0.96, 0.95: 0.97}, 0.9), ({0.5: 0.1, 0.9: 0.2}, 0.9)):
        monkeypatch.setattr(tune, "agreement_by_confidence", lambda *_, found=answer: (found, found))
        assert tune._choose_confidence(bench, preset("scenes")).value == value


@pytest.mark.slow
@pytest.mark.parametrize("values", [{}, {"looks.makers": ("gradcam", "sclip"), "par.rounds": 2}], ids=str)
def test_what_is_kept_is_what_the_pseudo_masks_keep(bench, values):
    config = preset("scenes").with_values(values | {"labels.confidence": 0.8})
    kept, _ = tune.agreement_by_confidence(bench, config, (0.8,))
    masks = np.stack(bench.masks(config, ("labels",))["labels"])
    assert kept[0.8] == pytest.approx((masks != 255).mean())


def test_votes_have_exponents_of_their_own(bench):
    values = {"prototypes.kind": "text", "refine.box": False, "crf.enabled": False, "looks.makers": ("sclip",)}
    assert not tune.choose(bench, preset("scenes").with_values(values), score=lambda *_: np.ones(4)).choices


@pytest.mark.slow
def test_a_run_is_tuned_with_masks_that_can_not_be_read(tree, tmp_path, monkeypatch, few_looks):
    """Tuning and everything else but evaluation runs where no mask can be read."""
    import vpl.edges.images

    monkeypatch.setattr(vpl.edges.images, "read_mask", None)
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    for path in (data / "masks" / "train").iterdir():
        path.write_bytes(b"no mask")
    monkeypatch.setattr(tune, "GRIDS", {key: values[:2] for key, values in tune.GRIDS.items()})
    run = tmp_path / "run"
    made = tune.tune(run, config_of(data), device="cpu")
    stored = Config.from_toml(run / "config.toml")
    assert stored == made.config
    lines = (run / "config.toml").read_text().splitlines()
    assert {line.split(" = ")[0] for line in lines if "| vpl tune: " in line} == {
        one.key.partition(".")[2] for one in made.choices
    }
    written = json.loads((run / "tune.json").read_text())
    assert [one["key"] for one in written["choices"]] == [*tune.GRIDS, "labels.confidence"]
    assert all(one["reason"].endswith(".") for one in written["choices"])
    with Run(run, made.config, device="cpu") as found:
        found.labels()
    assert len(list((run / "labels").iterdir())) == 4
    again = tune.tune(run, stored, device="cpu")
    assert again == made, "a tuned run keeps its choice"


@pytest.mark.slow
def test_a_run_that_has_begun_takes_the_choice(tree, tmp_path, monkeypatch):
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        run.labels()
    monkeypatch.setattr(tune, "choose", lambda bench, config, **_: tune.Tuned(
        config.with_values({"prototypes.phi": 0.2}), (), 4))  # fmt: skip
    made = tune.tune(tmp_path / "run", config_of(tree), device="cpu")
    assert (tmp_path / "run" / "tune.json").exists() and "phi = 0.2" in (tmp_path / "run" / "config.toml").read_text()
    with Run(tmp_path / "run", made.config, device="cpu") as run:
        assert run.plan(["masks"]).work[0].reasons[0].endswith("prototypes.phi was 0.5, is now 0.2")


@pytest.mark.slow
def test_what_is_left_out_of_the_list_is_told(tree, tmp_path, monkeypatch, caplog):
    shutil.copy(tree / "train.csv", tmp_path / "tags.csv")
    with (tmp_path / "tags.csv").open("a") as file:
        file.write("none.png,cup\n")
    monkeypatch.setattr(tune, "choose", lambda bench, config, **_: tune.Tuned(config, (), len(bench.views)))
    tune.tune(tmp_path / "run", config_of(tree).with_values({"data.tags": str(tmp_path / "tags.csv")}), device="cpu")
    assert "left out: tags.csv:6: there is no image file" in caplog.text


def test_the_commands(tree, tmp_path, capsys, monkeypatch, few_looks):
    monkeypatch.setattr(tune, "GRIDS", {"labels.background_exponent": (1.0, 2.0)})
    given = ["--preset", "scenes", "--images", str(tree / "images" / "train"), "--tags", str(tree / "train.csv")]
    assert main(["tune", str(tmp_path / "one"), *given, "--count", "2"]) == 0
    assert "chosen on 2 images" in capsys.readouterr().out
    small = ["--steps", "1", "--set", "train.crop=48", "--set", "decoder.width=16", "--set", "decoder.heads=2"]
    assert main(["run", str(tmp_path / "two"), *given, *small, "--tune"]) == 0
    assert "chosen on 4 images" in capsys.readouterr().out and (tmp_path / "two" / "tune.json").exists()
