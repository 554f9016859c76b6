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
from vpl.pages.gallery import Gallery, gallery


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
    assert (colors[10, :, :3] == 255).all()  # the outline
    assert (colors[11:, :, :3] == ClassSet(NAMES).palette()[2]).all()


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
