"""vpl.pages.gallery: the cards of a run folder whose masks are known."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from report_case import EVIL, NAMES, TRAIN, VAL, make_run
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.network import predict
from vpl.pages.gallery import Gallery, gallery
from vpl.runs.review import Review


def gallery_of(run: Path, most: int = 200) -> Gallery:
    return gallery(run, Config.from_toml(run / "config.toml"), most)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def made(run_folder) -> Gallery:
    return gallery_of(run_folder)


@pytest.fixture
def own_run(tmp_path) -> Path:
    """A run folder that the test may break."""
    return make_run(tmp_path)


def test_cards_hold_every_step_and_the_iou_of_the_last(made):
    cards = {one.id: one for one in made.exhibits}
    assert list(cards) == [*TRAIN, *VAL]
    assert [pane.title for pane in cards["a9"].panes] == [
        "Text seeds",
        "Vision seeds",
        "Refined seeds",
        "Refined + CRF",
        "Pseudo-masks",
        "Truth",
    ]
    assert [pane.title for pane in cards["v0"].panes] == ["Prediction", "Truth"]
    # image 1: class right on 24 of 30 columns; background 300 pixels true, 15 of them ignored, and 60 wrongly called so
    assert cards["a9"].iou == pytest.approx((24 / 30 + (300 - 15) / (300 + 60)) / 2)
    assert cards["v0"].iou == 1.0 and cards["v0"].scored == "prediction"
    assert cards["a9"].ignored == pytest.approx(15 / 600)
    assert cards["a9"].missing == () and cards["a1"].missing == ("cat",)
    assert cards["a9"].photo_alt == f"Photograph a9, tagged {EVIL}"
    assert cards["a9"].panes[0].alt == f"Text seeds of a9: background 83\u00a0%, {EVIL} 17\u00a0%."
    assert cards["v0"].split == "val" and cards["a9"].split == "train"


def test_the_masks_in_the_page_are_the_masks_of_the_run(made):
    pane = next(card for card in made.exhibits if card.id == "a9").panes[-1]
    with Image.open(io.BytesIO(base64.b64decode(pane.uri.partition(",")[2]))) as picture:
        colors = np.array(picture.convert("RGBA"))
    assert colors.shape == (20, 30, 4)
    assert (colors[:10, :, 3] == 0).all() and (colors[10:, :, 3] == 255).all()
    outline, inside = colors[10, :, :3], colors[11:, :, :3]
    assert set(outline.flatten().tolist()) == {0, 255}, "black and white, so that it is seen on any photograph"
    own = ClassSet(NAMES).palette()[2]
    plain = (inside == own).all(axis=2)
    assert 0.8 < plain.mean() < 1, "the class's colour, hatched"
    assert (inside[~plain] == (np.array(own).astype(int) + 255) // 2).all()


def test_moved_images_leave_their_masks_in_the_gallery(own_run):
    (own_run.parent / "data" / "images" / "a9.png").write_bytes(b"no image")
    card = next(card for card in gallery_of(own_run).exhibits if card.id == "a9")
    assert card.photo == "" and "a9.png" in card.problem and len(card.panes) == 6
    shutil.rmtree(own_run.parent / "data" / "images")
    made = gallery_of(own_run)
    assert [one.id for one in made.exhibits] == list(VAL)
    assert "The training images can't be listed" in made.note


def test_a_large_run_is_bounded_and_keeps_the_worst(run_folder):
    made = gallery_of(run_folder, most=4)
    assert [one.id for one in made.exhibits] == [TRAIN[0], "a1", *VAL]  # a1 has no object at all: the lowest IoU
    assert "2 of the 4 images of train are here" in made.note


def test_the_pseudo_masks_are_counted(made):
    found = {name: one["value"] for name, one in made.signs.items()}
    # the top left half line of three masks is ignored, the fourth mask is empty; masks lose 0, 6 and 12 of 30 columns
    assert found["ignored pixels"] == pytest.approx(3 * 15 / 600 / 4)
    assert found["foreground pixels"] == pytest.approx((30 + 24 + 18) * 10 / 600 / 4)
    assert found["tags without a pixel"] == pytest.approx(1 / 4)


def test_classes_are_counted_and_decisions_told(own_run):
    review = Review(own_run)
    review.decide("a9", "reject", None, review.of("a9").revision)
    made = gallery_of(own_run)
    assert {one.id: one.decision for one in made.exhibits if one.decision} == {"a9": "rejected"}
    counts = {one.name: (one.tagged, one.unseen) for one in made.counts}
    assert counts == {"cat": (3, 1), EVIL: (2, 0), "dog": (1, 0)} and made.counts[0].name == "cat"
    assert made.exhibits[0].tags == ("cat",)


def test_the_network_is_asked_where_there_is_no_truth(tmp_path, monkeypatch):
    run = make_run(tmp_path, masks=False)
    shutil.rmtree(run / "predictions")
    assert [one.id for one in gallery_of(run).exhibits] == list(TRAIN)
    (run / "network").mkdir(exist_ok=True)
    (run / "network" / "network.json").write_text("{}")

    class Net:
        def predict(self, image):
            return np.full((20, 30), 1, np.uint8)

    monkeypatch.setattr(predict, "load", lambda folder: Net())
    made = gallery_of(run)
    assert [one.id for one in made.exhibits] == [*TRAIN, *VAL], "held-out photographs have nothing else to show"
    assert all([pane.title for pane in one.panes][-1] == "Network" for one in made.exhibits)
    assert "cat 100" in made.exhibits[-1].panes[0].alt
    monkeypatch.undo()
    assert "The network can't be asked" in gallery_of(run).note
