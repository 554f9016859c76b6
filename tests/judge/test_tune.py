"""Label-free choice: scores that are right where the answer is known, a search that keeps to chance, and no mask."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from vpl.classes import scenes as scene_classes
from vpl.cli import main
from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.errors import RunError
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
    assert set(tune.CHOSEN) <= set(made) and {name for names in tune.CHOSEN.values() for name in names} <= set(
        tune.SCORES
    )


def test_regions_of_by_hand():
    maps = torch.tensor([[[0.9, 0.6, 0.2]], [[0.1, 0.7, 0.3]]])
    assert tune.regions_of(maps, 1.0).int().tolist() == [[1, 0, 0], [0, 1, 0]]
    assert tune.regions_of(maps, 8.0).int().tolist() == [[1, 0, 0], [0, 1, 1]]


@pytest.mark.parametrize("name", tune.SCORES)
def test_every_score_gives_one_number_per_image(bench, name):
    found = tune.SCORES[name](bench, preset("scenes"))
    assert found.shape == (4,) and np.isfinite(found).all()
    text = tune.SCORES[name](bench, preset("scenes").with_values({"prototypes.kind": "text"}))
    assert np.isfinite(text).all()


class Drawn(Bench):
    """A bench of one image whose patches are two flat halves, and whose mask the test draws."""

    def __init__(self, mask):
        patches = torch.tensor([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 8)
        attention = (patches @ patches.T + 0.01) / 8
        self.features_ = type("F", (), {"grid": (4, 4), "patches": patches[None], "attention": attention[None]})
        image = np.zeros((4, 4, 3), np.uint8)
        image[2:] = 200
        self.views = (View(image, (0,), (4, 4)),)
        self.mask = torch.tensor(mask, dtype=torch.float32).reshape(1, 4, 4)
        self.clip = type("C", (), {"logit_scale": 10.0, "device": "cpu"})

    def passed(self, _, make):
        return [((0,), make((0,), self.features_))]

    def refined(self, _):
        return (self.mask,)

    def masks(self, _, stages):
        return {"refined": (self.mask[0].numpy().astype(np.uint8),)}

    def text(self, _):
        return torch.tensor([[1.0, 0.0], [0.0, 1.0]])


RIGHT, SHIFTED = [1] * 8 + [0] * 8, [1] * 4 + [0] * 12


@pytest.mark.parametrize("name", ["contrast", "separation", "cut", "edges", "evidence (text)"])
def test_the_right_mask_scores_best(name):
    """The object is the upper half; half of it, all of it with a quarter more, the wrong half, nothing, everything."""
    values = [
        float(tune.SCORES[name](Drawn(mask), Config())[0])
        for mask in (RIGHT, SHIFTED, [1] * 12 + [0] * 4, [0] * 16, [1] * 16)
    ]
    assert values[0] == max(values) and values[0] > values[1] and values[0] > values[2], values


def test_the_best_score_decides_and_tells_its_error(monkeypatch):
    def score(bench, config):
        noise = np.random.default_rng(int(1000 * config.prototypes.phi)).normal(size=40)
        return 0.1 * config.prototypes.phi + noise - noise.mean()

    monkeypatch.setitem(tune.SCORES, "separation", score)
    found = tune.choose(Drawn(RIGHT), Config(), {"prototypes.phi": ("separation",)})
    assert found.config.prototypes.phi == max(tune.GRIDS["prototypes.phi"])
    assert "instead of 0.5: separation score +0.0300 ± 0.2" in found.choices[0].reason


def test_the_configured_value_wins_ties(monkeypatch):
    monkeypatch.setitem(tune.SCORES, "separation", lambda *_: np.ones(40))
    found = tune.choose(Drawn(RIGHT), Config(), {"prototypes.phi": ("separation",)})
    assert found.config == Config() and "the configured value has the best" in found.choices[0].reason


def test_the_committee_scores_the_miou_with_its_opinion(bench, monkeypatch):
    """The mean of the score is that of all images; a setting whose masks are the opinion has 1, an empty one less."""
    config = preset("scenes")
    masks = bench.masks(config.with_values({"crf.mode": "fast"}), ("crf",))["crf"]
    monkeypatch.setattr(tune.committee, "opinion", lambda *_: masks)
    assert np.allclose(tune.SCORES["committee"](bench, config), 1)
    worse = tune.SCORES["committee"](bench, config.with_values({"labels.background_exponent": 0.1}))
    assert worse.mean() < 0.7


def test_scores_are_added_in_units_of_their_spread(monkeypatch):
    for name, factor in (("contrast", 100.0), ("cut", -0.01)):
        monkeypatch.setitem(tune.SCORES, name, lambda bench, config, by=factor: np.full(3, by * config.prototypes.phi))
    made = tune.combined(Drawn(RIGHT), Config(), "prototypes.phi", (0.2, 0.5, 0.8), ("contrast", "cut"))
    assert all(np.allclose(one, 0, atol=1e-6) for one in made.values()), "equal and opposite, whatever their units"


def test_values_that_change_nothing_are_left_alone(bench):
    config = preset("scenes").with_values({"prototypes.kind": "text", "refine.box": False})
    made = tune.choose(bench, config, dict.fromkeys(tune.GRIDS, ("separation",)))
    assert [one.key for one in made.choices] == ["labels.background_exponent"]


def test_confidence_is_the_lowest_that_agrees(bench, monkeypatch):
    kept, same = tune.agreement_by_confidence(bench, preset("scenes"), (0.5, 0.9))
    assert kept[0.9] <= kept[0.5] and all(0 <= one <= 1 for one in same.values())
    for answer, value in (({0.5: 0.9, 0.9: 0.96, 0.95: 0.97}, 0.9), ({0.5: 0.1, 0.9: 0.2}, 0.9)):
        monkeypatch.setattr(tune, "agreement_by_confidence", lambda *_, found=answer: (found, found))
        assert tune._choose_confidence(bench, preset("scenes")).value == value


def test_a_run_is_tuned_with_masks_that_can_not_be_read(tree, tmp_path, monkeypatch):
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


def test_a_run_that_has_begun_is_refused(tree, tmp_path, monkeypatch):
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        run.labels()
    monkeypatch.setattr(tune, "choose", lambda bench, config, **_: tune.Tuned(
        config.with_values({"prototypes.phi": 0.2}), (), 4))  # fmt: skip
    with pytest.raises(RunError, match=r"prototypes\.phi was 0\.\d+, is now 0\.2"):
        tune.tune(tmp_path / "run", config_of(tree), device="cpu")
    assert not (tmp_path / "run" / "tune.json").exists()


def test_the_commands(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tune, "CHOSEN", {"labels.background_exponent": ("separation",)})
    given = ["--preset", "scenes", "--images", str(tree / "images" / "train"), "--tags", str(tree / "train.csv")]
    assert main(["tune", str(tmp_path / "one"), *given, "--count", "2"]) == 0
    assert "chosen on 2 images" in capsys.readouterr().out
    small = ["--steps", "1", "--set", "train.crop=48", "--set", "decoder.width=16", "--set", "decoder.heads=2"]
    assert main(["run", str(tmp_path / "two"), *given, *small, "--tune"]) == 0
    assert "chosen on 4 images" in capsys.readouterr().out and (tmp_path / "two" / "tune.json").exists()
