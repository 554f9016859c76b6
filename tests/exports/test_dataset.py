"""A run as a torch data set: the same pixels as its files, reviewed as every export."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import vpl
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges import images
from vpl.errors import RunError
from vpl.runs.review import Decision, Review


@pytest.fixture
def run(tmp_path):
    photos, run = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    (run / "labels").mkdir(parents=True)
    rows = ["file_name,tags"]
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 256, (8 + number, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.png")
        mask = np.zeros((8 + number, 12), np.uint8)
        mask[2:5, 3:9], mask[7] = 1 + number % 2, 255
        images.write_mask(run / "labels" / f"{name}.png", mask, [])
        rows.append(f"{name}.png,{('dog', 'sofa')[number % 2]}")
    (tmp_path / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = Config().with_values({"data.images": str(photos), "data.tags": str(tmp_path / "tags.csv")})
    (run / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    save_file(
        {"text": np.zeros((2, 4), np.float32)}, run / "prototypes.safetensors", {"vpl": '{"classes": ["dog", "sofa"]}'}
    )
    return run


def test_it_gives_photographs_and_labels(run):
    data = vpl.MaskDataset(run)
    assert len(data) == 3 and data.ids == ("a", "b", "c") and data.classes.names == ("dog", "sofa")
    image, labels = data[1]
    assert image.dtype == torch.uint8 and image.shape == (3, 9, 12) and labels.dtype == torch.int64
    assert np.array_equal(labels.numpy(), images.read_mask(run / "labels" / "b.png"))
    assert np.array_equal(image.permute(1, 2, 0).numpy(), images.read_image(run.parent / "photos" / "b.png"))
    assert vpl.MaskDataset(run, lambda image, labels: labels.sum())[0] == data[0][1].sum()
    batches = torch.utils.data.DataLoader(torch.utils.data.Subset(data, [0]), batch_size=1)
    assert next(iter(batches))[0].shape == (1, 3, 8, 12)


def test_it_is_reviewed_as_every_export(run):
    review, nothing = Review(run), Decision().revision
    review.decide("a", "reject", None, nothing)
    review.paint("b", np.full((9, 12), 2, np.uint8), ClassSet(("dog", "sofa")), nothing)
    data = vpl.MaskDataset(run)
    assert data.ids == ("b", "c") and (data[0][1] == 2).all()
    done = vpl.export(run, "yolo", run.parent / "out")
    assert done.images == 2
    assert (images.read_mask(done.folder / "masks" / "train" / "b.png") == 2).all()


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        vpl.MaskDataset(tmp_path)
