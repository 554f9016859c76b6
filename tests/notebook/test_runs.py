"""vpl.run, vpl.check and vpl.predict: what the command line does, on folders, patterns and images at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vpl
from test_build import assert_same
from vpl.cli import main
from vpl.edges.images import read_mask
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

SMALL = {
    "train.steps": 2, "train.crop": 32, "train.batch": 2, "decoder.width": 16, "decoder.heads": 2, "crf.rounds": 1,
    "predict.scales": [1.0],
}  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 4}, seed=6, style="demo", size=40)


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return vpl.run(folder, tree / "images/train", tree / "train.csv", values=SMALL, device="cpu")


def test_the_command_line_gives_the_same_bytes(made, tree, tmp_path):
    given = [word for key, one in SMALL.items() for word in ("--set", f"{key}={one}")]
    data = ["--images", str(tree / "images/train"), "--tags", str(tree / "train.csv")]
    assert main(["run", str(tmp_path / "run"), *data, *given, "--device", "cpu"]) == 0
    assert_same(tmp_path / "run", made.folder)


def test_a_run_shows_itself(made):
    assert made._repr_png_().startswith(b"\x89PNG") and made.report.exists() and made.has_network
    assert repr(made) == f"<run {made.folder}: 4 pseudo-masks, a network>"
    assert repr(made.masks) == f"<4 pseudo-masks in {made.folder / 'labels'}>"
    name = next(iter(made.masks))
    assert (made.masks[name].labels == read_mask(made.folder / "labels" / f"{name}.png")).all()
    assert any("network: not there yet" in line for line in made.plan)
    assert vpl.run(made.folder, device="cpu").plan == ("nothing to do",)


def test_a_photograph_that_can_not_be_used_is_told(tree, tmp_path):
    shutil.copytree(tree / "images/train", tmp_path / "photos")
    broken = sorted((tmp_path / "photos").iterdir())[0]
    broken.write_bytes(b"no image")
    found = vpl.run(tmp_path / "run", tmp_path / "photos", tree / "train.csv", values={"train.steps": 0}, device="cpu")
    assert [one.id for one in found.failures] == [broken.stem] and len(found.masks) == 3
    assert "1 photograph that can't be used" in repr(found)


def test_what_is_left_out_of_a_list_is_told(made, tree, tmp_path, caplog):
    rows = (tree / "train.csv").read_text() + "none.png,cup\n"
    (tmp_path / "tags.csv").write_text(rows)
    vpl.run(shutil.copytree(made.folder, tmp_path / "run"), tags=tmp_path / "tags.csv", device="cpu")
    assert "left out: tags.csv:6: there is no image file" in caplog.text


def test_predictions_of_one_and_of_many(made, tree, tmp_path):
    path = sorted((tree / "images/train").iterdir())[0]
    (tmp_path / "deep/er").mkdir(parents=True)
    shutil.copy(path, tmp_path / "deep/er/one.PNG")
    shutil.copy(path, tmp_path / "deep/two.png")
    (tmp_path / "deep/notes.txt").write_text("no image")
    network = vpl.load(made.folder, device="cpu")
    one = vpl.predict(network, path)
    assert repr(one).startswith(f"<Prediction of {path.stem}, 40 x 40: ") and one._repr_png_().startswith(b"\x89PNG")
    assert (one.labels == network.predict(path, protocol=network.full)).all()
    assert [found.name for found in vpl.predict(network, tmp_path / "deep")] == ["er/one", "two"]
    assert [found.name for found in vpl.predict(network, str(tmp_path / "**/*.png"))] == ["two"]
    with Image.open(path) as picture:
        many = vpl.predict(made.folder, [path, picture, np.array(picture)], device="cpu", probabilities=True)
    assert all((found.labels == one.labels).all() for found in many)
    assert many[0].probabilities.shape == (len(one.classes) + 1, 40, 40)


def test_the_command_line_predicts_the_same(made, tree, tmp_path):
    given = ["predict", str(made.folder), "--images", str(tree / "images/train"), "--out", str(tmp_path / "out")]
    assert main([*given, "--device", "cpu"]) == 0
    for one in vpl.predict(made.folder, tree / "images/train", device="cpu"):
        one.save(tmp_path / "mask.png")
        assert (tmp_path / "mask.png").read_bytes() == (tmp_path / "out" / f"{one.name}.png").read_bytes()


def test_predictions_go_to_a_folder_as_from_the_command_line(made, tree, tmp_path, caplog):
    shutil.copytree(tree / "images/train", tmp_path / "photos/deep")
    (tmp_path / "photos/broken.jpg").write_bytes(b"no image")
    found = vpl.predict(made.folder, tmp_path / "photos", out=tmp_path / "face", device="cpu")
    assert "broken.jpg skipped: " in caplog.text
    given = ["predict", str(made.folder), "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "line")]
    assert main([*given, "--device", "cpu"]) == 1
    files = sorted(path.relative_to(tmp_path / "line") for path in (tmp_path / "line").rglob("*") if path.is_file())
    assert len(files) > 4 and repr(found) == f"<4 masks in {tmp_path / 'face'}>"
    assert (
        sorted(one.relative_to(tmp_path / "face") for one in (tmp_path / "face").rglob("*") if one.is_file()) == files
    )
    for file in files:
        assert (tmp_path / "face" / file).read_bytes() == (tmp_path / "line" / file).read_bytes(), file
    name = next(iter(found))
    assert (found[name].labels == read_mask(tmp_path / "face" / f"{name}.png")).all() and found[name].overlay().size


def test_a_check_keeps_nothing(tree):
    found = vpl.check(tree / "images/train", tree / "train.csv", values={"train.steps": 0}, device="cpu")
    assert found.photographs == 4 and found.forecast.step is None and "tag rank of pocket" in str(found)


def test_an_empty_folder_is_told(made, tmp_path):
    with pytest.raises(vpl.VplError, match="holds no images; expected files that end with"):
        vpl.predict(made.folder, tmp_path)
