"""A label map for supervision, a run for datasets, a network for the hub: each read by the package itself."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import supervision

import training_case as case
import vpl
from exports.test_export import NAMES, TAGS, identity, make_run, masks_of, photos_of
from integrations.answering import CLASSES, Knowing, truth
from vpl.errors import ModelError
from vpl.exports.hf import FILES
from vpl.notebook.shown import LabelMap, Prediction


def test_supervision_has_a_mask_for_each_class():
    labels = truth(14, 20)
    labels[0, 0] = 255
    found = LabelMap("a", "a.jpg", labels, CLASSES).to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 2 and found.confidence is None
    assert found.class_id.tolist() == [1, 2] and found.data["class_name"].tolist() == ["dog", "red car"]
    for label, mask, box in zip((1, 2), found.mask, found.xyxy, strict=True):
        assert np.array_equal(mask, labels == label)
        rows, columns = np.nonzero(labels == label)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    drawn = supervision.MaskAnnotator().annotate(np.zeros((14, 20, 3), np.uint8), found)
    assert np.array_equal(drawn.any(2), np.isin(labels, (1, 2)))


def test_parts_confidences_and_nothing_at_all():
    labels = truth(14, 20)
    answer = Knowing().answer(np.zeros((14, 20, 3), np.uint8))
    found = Prediction("a", "a.jpg", labels, CLASSES, probabilities=answer.probabilities()).to_supervision(parts=True)
    assert found.class_id.tolist() == [1, 1, 2] and np.array_equal(found.mask.any(0), labels > 0)
    assert found.confidence == pytest.approx([0.9, 0.9, 0.6])
    assert len(LabelMap("a", "a.jpg", np.full((3, 4), 255, np.uint8), CLASSES).to_supervision()) == 0


@pytest.mark.slow
def test_datasets_reads_the_run(tmp_path):
    run = make_run(tmp_path)
    found = vpl.MaskDataset(run).to_datasets()
    assert found["id"][:] == [identity(name) for name in NAMES] and found["tags"][:] == [one.split(";") for one in TAGS]
    for row, mask, photo in zip(found, masks_of(run).values(), photos_of(run).values(), strict=True):
        assert np.array_equal(np.array(row["label"]), mask)
        pixels = np.array(row["image"].convert("RGB"))
        assert pixels.shape == photo.shape and (row["id"] == "clear" or np.array_equal(pixels, photo))


class Api:
    """A hub that takes down what is asked of it."""

    def __init__(self):
        self.asked, self.sent = [], {}

    def create_repo(self, **given):
        self.asked.append(("create_repo", given))
        return f"https://hub/{given['repo_id']}"

    def upload_folder(self, **given):
        self.asked.append(("upload_folder", given))
        folder = Path(given["folder_path"])
        self.sent = {name: (folder / name).read_bytes() for name in given["allow_patterns"]}


@pytest.mark.slow
def test_the_hub_gets_four_files_and_a_private_place(tiny_clip, tmp_path):
    case.finished_run(tmp_path / "run", tiny_clip)
    api = Api()
    assert vpl.push_to_hub(tmp_path / "run", "me/dogs", clip=tiny_clip.name, api=api) == "https://hub/me/dogs"
    assert [name for name, _ in api.asked] == ["create_repo", "upload_folder"]
    assert api.asked[0][1] == {"repo_id": "me/dogs", "repo_type": "model", "private": True, "exist_ok": True}
    assert sorted(api.sent) == sorted(FILES)
    card = api.sent["README.md"].decode()
    assert card.startswith("---\n") and "vpl" in card and str(tmp_path) not in card
    assert all(str(tmp_path).encode() not in one for one in api.sent.values())
    for name, data in api.sent.items():
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / name).write_bytes(data)
    picture = np.random.default_rng(0).integers(0, 255, (40, 56, 3)).astype(np.uint8)
    own, there = vpl.load(tmp_path / "run", tiny_clip), vpl.load(tmp_path / "again", device="cpu")
    assert np.array_equal(own.predict(picture), there.predict(picture))
    again = Api()
    vpl.push_to_hub(tmp_path / "again", "me/dogs", private=False, api=again)
    assert again.sent == api.sent and again.asked[0][1]["private"] is False
    refusing = SimpleNamespace(create_repo=lambda **_: (_ for _ in ()).throw(OSError("401 for me/dogs\nmore")))
    with pytest.raises(ModelError, match=r"the hub does not take me/dogs \(401 for me/dogs\); check the name"):
        vpl.push_to_hub(tmp_path / "again", "me/dogs", api=refusing)


@pytest.mark.parametrize("package", ["supervision", "datasets"])
def test_a_package_that_is_missing_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf'pip install "vpl-seg\[{package}\]"'):
        if package == "supervision":
            LabelMap("a", "a.jpg", truth(14, 20), CLASSES).to_supervision()
        else:
            vpl.MaskDataset(make_run(tmp_path)).to_datasets()
