"""Two runs beside each other: numbers, differences, images, and a page with nothing outside itself."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import pytest

from vpl.classes import scenes as scene_classes
from vpl.cli import main
from vpl.config import preset
from vpl.edges.images import read_mask, write_mask
from vpl.errors import RunError
from vpl.pages import compare
from vpl.runs.review import Review
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 4}, seed=8, style="demo", size=40)


def config_of(tree, **values):
    paths = {"images": tree / "images" / "train", "tags": tree / "train.csv", "masks": tree / "masks" / "train"}
    return preset("scenes").with_values({f"data.{key}": str(path) for key, path in paths.items()} | values)


@pytest.fixture(scope="module")
def runs(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, values in (("text", {"prototypes.kind": "text"}), ("vision", {}), ("blind", {"data.masks": ""})):
        with Run(folder / name, config_of(tree, **{"crf.rounds": 2} | values), device="cpu") as run:
            run.labels()
            if name != "blind":
                run.evaluate()
    return folder


@pytest.mark.slow
def test_numbers_differences_and_images(runs):
    data = compare.collect([runs / "text", runs / "vision"])
    assert data.names == ("text", "vision") and data.compared == "labels" and data.measure == "mIoU"
    assert [(one.key, one.values) for one in data.differences] == [("prototypes.kind", ("text", "vision"))]
    lines = {one.name: one.values for one in data.lines}
    assert lines["vision seeds"][0] is None and lines["vision seeds"][1] is not None
    assert lines["text seeds"][0] == lines["text seeds"][1]
    assert data.by_class_of == "train: pseudo-masks" and len(data.by_class) == 17
    apart = [one.apart for one in data.pictures]
    assert apart == sorted(apart, reverse=True) and len(apart) == 4
    assert all(len(one.cells) == 4 for one in data.pictures), "image, truth, two runs"


@pytest.mark.slow
def test_scores_of_an_image_by_hand(runs, tree, tmp_path):
    """A run whose masks are the truth scores 1 everywhere, one with nothing but background scores little."""
    folders = []
    for name in ("right", "empty"):
        folder = tmp_path / name
        shutil.copytree(runs / "vision", folder)
        folders.append(folder)
        for path in (folder / "labels").iterdir():
            truth = read_mask(tree / "masks" / "train" / path.name)
            mask = truth if name == "right" else np.zeros_like(truth)
            write_mask(path, mask, scene_classes().palette())
    data = compare.collect(folders)
    assert all(one.scores[0] == 1 and one.scores[1] <= 0.5 for one in data.pictures)


def test_without_truth_runs_are_compared_with_each_other(runs, tree):
    data = compare.collect([runs / "blind", runs / "vision"])
    assert data.measure == "agreement with the first run"
    assert all(one.apart == 0 for one in data.pictures), "the same masks: truth has changed nothing"
    assert "There is no truth" in compare.render(data)


def test_the_page_is_whole_and_alone(runs, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["compare", str(runs / "text"), str(runs / "vision"), "--out", str(target)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train: pseudo-masks +\d+\.\d +\d+\.\d", printed) and "prototypes.kind: text | vision" in printed
    page = target.read_text()
    assert page.count("<circle") == 4 and "http:" not in page and "https:" not in page and "<script" not in page


def test_names_are_escaped_and_told_apart(runs, tmp_path):
    folder = tmp_path / "<b>x"
    shutil.copytree(runs / "vision", folder)
    page = compare.render(compare.collect([folder, runs / "vision"]))
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    twin = tmp_path / "vision"
    shutil.copytree(runs / "vision", twin)
    assert len(set(compare.collect([twin, runs / "vision"]).names)) == 2


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda runs, folder: [runs / "vision"], "one run was named"),
        (lambda runs, folder: [runs / "vision", folder], "is no run folder"),
    ],
)
def test_one_clear_sentence(runs, tmp_path, change, words):
    with pytest.raises(RunError, match=words):
        compare.collect(change(runs, tmp_path))


def test_runs_without_a_common_image_are_refused(runs, tmp_path):
    shutil.copytree(runs / "vision", tmp_path / "other")
    for path in (tmp_path / "other" / "labels").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(RunError, match="no image in common"):
        compare.collect([runs / "vision", tmp_path / "other"])


@pytest.fixture
def others(tree, runs, tmp_path):
    """The run "vision" and a copy of it over data of its own."""
    data = shutil.copytree(tree, tmp_path / "data")
    shutil.copytree(runs / "vision", tmp_path / "vision")
    config = tmp_path / "vision" / "config.toml"
    config.write_text(config.read_text().replace(str(tree), str(data)))
    return data, [runs / "vision", tmp_path / "vision"]


def test_truth_that_can_t_be_the_tags_scores_no_image(tree, runs, others):
    data, _ = others
    for path in (data / "masks" / "train").iterdir():
        write_mask(path, np.where(read_mask(path), 255, 0).astype(np.uint8), [])
    made = compare.collect([others[1][1], others[1][0]])
    assert made.measure == "agreement with the first run"


def test_other_photographs_of_the_same_names_are_not_compared(others):
    data, pair = others
    assert len(compare.collect(pair).pictures) == 4, "a copy is the same"
    first, second = sorted((data / "images" / "train").iterdir())[:2]
    shutil.copy(second, first)
    with pytest.raises(RunError, match=rf"{first.stem} is another photograph in .*vision than in"):
        compare.collect(pair)


def test_other_truth_and_other_counts_are_told(others):
    data, pair = others
    told = str(compare.collect(pair))
    assert f"data.masks: {others[1][0].parent}" not in told and "data.masks: " in told and str(data) in told
    metrics = pair[1] / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"images": 4', '"images": 2'))
    assert "(images: 4 | 2)" in str(compare.collect(pair))


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ((0.5, 0.6), 1),
        ((0.6, 0.6), None),
        ((0.6001, 0.6004), None),
        ((None, 0.6), None),
        ((0.7, None, 0.6), 0),
        ((None, None), None),
    ],
)
def test_only_one_is_the_best(values, place):
    assert compare.best(values) == place


def test_rows_without_values_are_hidden_and_axes_named():
    lines = (
        compare.Line("train", "text seeds", (0.5, 0.5), (4, 4)),
        compare.Line("val", "network", (None, None), (2, 2)),
    )
    pictures = (compare.Compared("a", ("dog",), (0.4, 0.6), 0.2),)
    names = ("first", "a-run-with-a-very-long-name")
    classes = {"dog": (0.5, 0.4), "boat": (None, None)}
    data = compare.Comparison(
        names, (), lines, classes, "train: text seeds", "labels", "mIoU", pictures, {"dog": "red"}
    )
    page = compare.render(data)
    assert "text seeds" in page and "val: network" not in page and "1 row without any value is left out" in page
    assert ">boat<" not in page and "1 of the classes have no value" in page
    assert page.count('class="best"') == 1, "of the class dog; the row is a tie"
    assert ">first, mIoU %<" in page and ">…with-a-very-long-name, mIoU %<" in page
    assert "No run is ahead: the best have 50.0 % mIoU in text seeds on train." in page
    assert "compared by its pseudo-masks" in page
    ahead = dataclasses.replace(data, lines=(compare.Line("train", "text seeds", (0.5, 0.53), (4, 4)),))
    assert compare.verdict(ahead) == (
        "a-run-with-a-very-long-name is ahead: 53.0 % mIoU in text seeds on train, 3.0 more than the next."
    )
    none = dataclasses.replace(data, lines=(), by_class_of="", measure="agreement with the first run")
    assert compare.verdict(none).endswith("say the same as those of first on 60 % of the pixels.")


def test_images_that_do_not_differ_are_not_said_to():
    pictures = tuple(
        compare.Compared(name, ("dog",), (0.4, 0.4 + apart), apart, ("data:image/png;base64,",) * 4)
        for name, apart in (("changed", 0.2), ("unchanged", 0.0))
    )
    data = compare.Comparison(("a", "b"), (), (), {}, "", "labels", "mIoU", pictures, {"dog": "red"})
    page = compare.render(data)
    assert "<h3>changed" in page and "<h3>unchanged" not in page and "background:red" in page
    assert "has the same mIoU in every run" in compare.render(dataclasses.replace(data, pictures=pictures[1:]))


@pytest.mark.slow
def test_what_people_decided_is_a_difference(runs, tmp_path):
    folders = [shutil.copytree(runs / "vision", tmp_path / name) for name in ("one", "two", "three")]
    assert "review" not in render_of(folders)[0]
    first, second, _ = (Review(folder) for folder in folders)
    names = sorted(path.stem for path in (folders[0] / "labels").glob("*.png"))
    mask = read_mask(folders[0] / "labels" / f"{names[1]}.png")
    first.decide(names[0], "reject", None, first.of(names[0]).revision)
    first.paint(names[1], mask, scene_classes(), first.of(names[1]).revision)
    second.decide(names[2], "reject", None, second.of(names[2]).revision)
    told, page = render_of(folders)
    assert told["review"] == ("1 rejected, 1 with a painted mask", "1 rejected", "no decision")
    assert "<td>1 rejected</td>" in page and "painted masks are not among those compared" in page
    first.paint(names[1], None, scene_classes(), first.of(names[1]).revision)
    assert render_of(folders[:2])[0]["review"] == ("1 rejected", "1 rejected, not the same")
    assert str(compare.collect(folders[:2])).endswith("review: 1 rejected | 1 rejected, not the same")


def render_of(folders):
    data = compare.collect(folders)
    return {one.key: one.values for one in data.differences}, compare.render(data)
