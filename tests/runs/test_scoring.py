"""scoring.py: scores are of masks that belong to the tags, say what they scored, and are never missing in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpl.cli import main
from vpl.edges.images import read_mask
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": 8, "val": 2}, seed=3, style="demo", size=48)
    return folder


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made"
    assert main(["run", str(folder), *flags(tree, tree / "masks" / "train")]) == 0
    return folder


def flags(tree, masks):
    given = ["--images", str(tree / "images" / "train"), "--tags", str(tree / "train.csv"), "--masks", str(masks)]
    return ["--preset", "scenes", "--steps", "0", "--set", "crf.rounds=1", *given]


def changed(tree, folder, change):
    """The truth masks with other numbers."""
    folder.mkdir()
    for path in sorted((tree / "masks" / "train").iterdir()):
        Image.fromarray(change(read_mask(path))).save(folder / path.name)
    return folder


def turned(mask):
    return np.where(mask == 0, 0, mask % 16 + 1).astype(np.uint8)


WRONG = {
    "0 and 255 alone": lambda mask: np.where(mask == 0, 0, 255).astype(np.uint8),
    "another order": turned,
    "hold the number 2": lambda mask: np.where(mask == 0, 0, mask + 200).astype(np.uint8),
    "pixels of kind RGB": lambda mask: np.stack([mask] * 3, axis=2),
}


@pytest.mark.parametrize("words", WRONG)
def test_masks_that_can_t_be_the_tags_give_no_scores_and_everything_else_is_made(tree, made, tmp_path, capsys, words):
    run, masks = Path(shutil.copytree(made, tmp_path / "run")), changed(tree, tmp_path / "masks", WRONG[words])
    assert main(["run", str(run), *flags(tree, masks)]) == 1
    told = capsys.readouterr().err
    assert words in told.strip().splitlines()[-1] and "there are no scores" in told.strip().splitlines()[-1]
    assert "there will be no scores" in told.splitlines()[0] or "there will be no scores" in told
    found = json.loads((run / "metrics.json").read_text())
    assert "evaluations" not in found and "with_truth" not in found, "what other masks gave is gone"
    assert "There are no scores" in (run / "report.html").read_text()


def test_masks_that_can_t_be_the_tags_are_refused_by_evaluate_and_the_right_ones_give_scores(
    tree, made, tmp_path, capsys
):
    run, masks = Path(shutil.copytree(made, tmp_path / "run")), changed(tree, tmp_path / "masks", turned)
    assert main(["run", str(run), *flags(tree, masks)]) == 1
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 2, "scores were all that was asked for"
    assert "another order" in capsys.readouterr().err
    assert main(["run", str(run), *flags(tree, tree / "masks" / "train")]) == 0
    assert json.loads((run / "metrics.json").read_text())["evaluations"][0]["rows"]


def test_masks_that_are_nowhere_are_never_status_0(tree, tmp_path, capsys):
    (tmp_path / "masks").mkdir()
    assert main(["run", str(tmp_path / "run"), *flags(tree, tmp_path / "masks")]) == 2
    assert "data.masks" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_an_evaluation_without_any_truth_is_never_status_0(tree, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    assert main(["evaluate", str(run), "--masks", ""]) == 2
    assert "the data have no truth masks; evaluation needs data.masks" in capsys.readouterr().err
    assert main(["run", str(run), *flags(tree, "")]) == 0, "a run needs none"


def held_out(tree, tags=None, part="val"):
    given = ["--val-images", str(tree / "images" / part), "--val-tags", str(tags or tree / f"{part}.csv")]
    return [*given, "--val-masks", str(tree / "masks" / part)]


def test_what_is_left_out_of_the_held_out_list_is_told(tree, made, tmp_path, capsys):
    """Two of three held-out photographs were not there, and the score of the third was called the network's."""
    text = (tree / "val.csv").read_text().splitlines()
    (tmp_path / "val.csv").write_text("\n".join([*text, "missing.png,cup"]))
    for command in ("run", "evaluate"):
        folder = Path(shutil.copytree(made, tmp_path / command))
        given = [command, str(folder), *flags(tree, tree / "masks" / "train"), *held_out(tree, tmp_path / "val.csv")]
        assert main(given) == 1, command
        told = capsys.readouterr().err
        assert "held-out list: left out: val.csv:4: there is no image file" in told and "1 photograph of the" in told


def test_held_out_photographs_without_masks_or_that_were_learned_from_are_told(tree, made, tmp_path, capsys):
    given = [*flags(tree, tree / "masks" / "train")]
    assert main(["plan", str(made), *given, *held_out(tree)[:4]]) == 0
    assert "held-out photographs have no truth masks, so nothing is evaluated on them" in capsys.readouterr().err
    assert main(["plan", str(made), *given, *held_out(tree, part="train")]) == 0
    assert "the network learns from 8 of 8 photographs that are held out" in capsys.readouterr().err
    assert main(["plan", str(made), *given, *held_out(tree)]) == 0
    assert "held-out" not in capsys.readouterr().err
    for alone in (held_out(tree)[2:4], held_out(tree)[4:]):
        assert main(["plan", str(made), *given, *alone]) == 2
        assert "validation.images is empty; say where the held-out images are" in capsys.readouterr().err


def test_truth_without_background_and_labels_without_tags_are_told(tree, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    no_ground = changed(tree, tmp_path / "no_ground", lambda mask: np.where(mask == 0, 255, mask).astype(np.uint8))
    assert main(["evaluate", str(run), "--masks", str(no_ground)]) == 0
    assert "no truth mask holds 0, so no background is scored" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--masks", str(no_ground), "--mask-values", "labels,255=background"]) == 0
    assert "no truth mask holds 0" not in capsys.readouterr().err

    def smooth(mask):
        """Resized as a picture is, which makes labels between two labels."""
        small = Image.fromarray(mask).resize((24, 24), Image.Resampling.BILINEAR)
        return np.asarray(small.resize((48, 48), Image.Resampling.BILINEAR))

    assert main(["evaluate", str(run), "--masks", str(changed(tree, tmp_path / "smooth", smooth)),
                 "--mask-values", "labels"]) == 0  # fmt: skip
    assert "labels more stand in it without their tag" in capsys.readouterr().out


def test_a_score_says_what_it_scored_and_what_it_was_compared_with(tree, made, tmp_path, capsys):
    (before,) = json.loads((made / "metrics.json").read_text())["evaluations"]
    held, carried = map(sum, zip(*before["tags"].values(), strict=True))
    assert 0 < held <= carried
    run = Path(shutil.copytree(made, tmp_path / "run"))
    assert main(["evaluate", str(run), "--set", "labels.confidence=0.6"]) == 0
    assert "tags occur in the truth of their photographs" in capsys.readouterr().out
    (after,) = json.loads((run / "metrics.json").read_text())["evaluations"]
    of = [{row["folder"]: row["of"] for row in one["rows"]} for one in (before, after)]
    assert of[0]["labels"] != of[1]["labels"] and of[0]["seeds/text"] == of[1]["seeds/text"]
    assert before["fingerprint"] != after["fingerprint"]


def test_the_numbering_is_printed(tree, tmp_path, capsys):
    assert main(["run", str(tmp_path / "run"), *flags(tree, tree / "masks" / "train")]) == 0
    assert "truth masks are read as 0 background, 1 " in capsys.readouterr().out


def test_scores_go_with_what_they_scored(tree, made, tmp_path):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    assert main(["labels", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["evaluations"], "nothing has changed"
    assert main(["labels", str(run), "--set", "labels.confidence=0.6"]) == 0
    assert "evaluations" not in json.loads((run / "metrics.json").read_text()), "they are of other masks"
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "metrics.json").read_text())["evaluations"]


def test_a_new_network_is_not_shown_with_the_score_of_the_old_one(tree, tmp_path):
    run, net = tmp_path / "run", ["--set", "train.crop=32", "--set", "train.batch=2", "--set", "decoder.width=16"]
    net += ["--set", "decoder.heads=2", "--set", "predict.scales=[1.0]", "--set", "predict.flip=false"]
    held = [f"--val-{kind}" for kind in ("images", "tags", "masks")]
    places = [tree / "images" / "val", tree / "val.csv", tree / "masks" / "val"]
    given = [word for pair in zip(held, map(str, places), strict=True) for word in pair]
    command = ["run", str(run), *flags(tree, tree / "masks" / "train"), *net, *given]
    assert main([*command, "--steps", "2"]) == 0

    def splits():
        return [one["split"] for one in json.loads((run / "metrics.json").read_text())["evaluations"]]

    assert splits() == ["train", "val"]
    assert main(["train", str(run), "--steps", "3"]) == 0
    assert splits() == ["train"], "the score was the old network's"


def test_masks_that_look_right_at_first_and_are_not_end_no_run(tree, made, tmp_path, capsys, monkeypatch):
    """What a look at a few masks did not show, all of them do: everything else is made all the same."""
    from vpl.runs import checks

    monkeypatch.setattr(checks, "LOOKED_AT", 1)
    masks = changed(tree, tmp_path / "masks", turned)
    first = sorted(masks.iterdir())[0]
    shutil.copy(tree / "masks" / "train" / first.name, first)
    run = Path(shutil.copytree(made, tmp_path / "run"))
    assert main(["run", str(run), *flags(tree, masks)]) == 1
    assert "can't belong together" in capsys.readouterr().err.strip().splitlines()[-1]
    assert "evaluations" not in json.loads((run / "metrics.json").read_text()) and (run / "report.html").exists()


def test_masks_with_another_number_for_ignored_pixels_are_not_called_empty(tree, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    masks = changed(tree, tmp_path / "masks", lambda mask: np.where(mask == 0, 254, mask).astype(np.uint8))
    assert main(["evaluate", str(run), *flags(tree, masks)[4:]]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "8 of 8 truth masks can't be used; the first, of demo_" in told and "label 254" in told
