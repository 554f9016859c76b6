"""Training: crops that stay aligned, records that do not depend on kills, processes or accumulation, a frozen CLIP."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import training_case as case
from vpl.edges import images, storage
from vpl.errors import ConfigError, DataError, RunError
from vpl.network import checkpoint, crops, online, predict, train
from vpl.network.card import Card
from vpl.network.team import Place, place
from vpl.network.weclip import Weclip

CASE = Path(case.__file__)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in the order of the processes that these tests start, so that weights are equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tiny_clip, items, tmp_path_factory):
    """The run folder and records of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, list(case.fit(tiny_clip, items, folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "network" / "decoder.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ------------------------------------------------------------------------------------------------------ augmentation
def painted(height: int, width: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, and a mask that can be told from the image's pixels: 1 where red is above one half."""
    rows, columns = np.mgrid[:height, :width]
    wave = np.sin(rows / 9 + generator.uniform(0, 6)) + np.sin(columns / 7 + generator.uniform(0, 6))
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.clip(127.5 + 60 * wave, 0, 255)
    return image, (image[..., 0] > 127).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    zoom=st.floats(0.5, 2.0),
    scatter=st.booleans(),
)
def test_image_and_mask_are_cut_alike(seed, height, width, zoom, scatter):
    generator = np.random.default_rng(seed)
    image, mask = painted(height, width, generator)
    crop, labels, (rows, columns), whole = crops.cut(image, mask, zoom, 48, (9, 8, 7), generator, scatter=scatter)
    assert crop.shape == (48, 48, 3) and labels.shape == (48, 48)
    inside = np.zeros((48, 48), bool)
    inside[rows, columns] = True
    assert (labels[~inside] == 255).all() and (crop[~inside] == (9, 8, 7)).all()
    assert (labels[inside] != 255).all()
    assert whole == (round(height * zoom) <= 48 and round(width * zoom) <= 48)
    red = crop[..., 0].astype(int)
    sure = inside & (abs(red - 127) > 40)
    assert ((red > 127) == (labels == 1))[sure].all()


def test_a_crop_at_scale_one_is_a_window_of_the_image():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (60, 70, 3)).astype(np.uint8)
    mask = generator.integers(0, 3, (60, 70)).astype(np.uint8)
    crop, labels, _, whole = crops.cut(image, mask, 1.0, 32, (0, 0, 0), generator, scatter=True)
    places = [
        (row, column)
        for row in range(29)
        for column in range(39)
        if np.array_equal(image[row : row + 32, column : column + 32], crop)
    ]
    assert len(places) == 1 and not whole
    row, column = places[0]
    assert np.array_equal(mask[row : row + 32, column : column + 32], labels)


def load(item, clip, generator=0, side=32, **changes):
    chosen = case.config(**changes)
    rng = np.random.default_rng(generator)
    return crops.load_crop(item, case.CLASSES, clip, chosen.clip, chosen.train, side, rng)


def test_flip_moves_image_mask_and_padding_together(tiny_clip, items):
    plain = {"train__scale_low": 1.0, "train__scale_high": 1.0}
    straight = load(items[3], tiny_clip, train__flip=False, **plain)
    seen = set()
    for seed in range(12):
        crop = load(items[3], tiny_clip, seed, side=24, train__flip=True, **plain)
        own = straight.pixels[:, :24, :24], straight.target[:24, :24]
        for turned in (False, True):
            pixels, target = (part.flip(-1) if turned else part for part in own)
            if torch.equal(crop.pixels, pixels):
                assert torch.equal(crop.target, target)
                seen.add(turned)
    assert seen == {False, True}


def test_a_crop_says_what_it_shows(tiny_clip, items):
    whole = load(items[3], tiny_clip, train__flip=False, train__scale_low=1.0, train__scale_high=1.0)
    assert whole.visible.tolist() == [False, True] and whole.absent.tolist() == [True, False]
    assert whole.inside[:3, :3].min() == 1.0 and whole.inside[3:].max() == 0.0
    assert whole.pixels[:, 24:].abs().max() == 0.0 and (whole.target[24:] == 255).all()
    for seed in range(30):
        crop = load(items[2], tiny_clip, seed, train__scale_low=1.5)
        assert not crop.absent.any()
        assert crop.visible.tolist() == [bool((crop.target == label).any()) for label in (1, 2)]


def test_masks_that_do_not_fit_are_refused(tiny_clip, items, tmp_path):
    wide = tmp_path / "wide.png"
    images.write_mask(wide, np.zeros((10, 90), np.uint8), case.CLASSES.palette())
    with pytest.raises(DataError, match=r"wide.png has shape \(10, 90\), the image .* expected the same proportions"):
        load(dataclasses.replace(items[0], mask=wide), tiny_clip)
    odd = tmp_path / "odd.png"
    images.write_mask(odd, np.full((40, 56), 3, np.uint8), case.CLASSES.palette())
    with pytest.raises(DataError, match=r"odd.png holds the label 3; expected 0 to 2 or 255"):
        load(dataclasses.replace(items[0], mask=odd), tiny_clip)
    half = tmp_path / "half.png"
    images.write_mask(half, np.ones((20, 28), np.uint8), case.CLASSES.palette())
    plain = {"train__scale_low": 1.0, "train__scale_high": 1.0, "train__flip": False}
    assert (load(dataclasses.replace(items[0], mask=half), tiny_clip, side=56, **plain).target[:40] == 1).all()


def test_every_epoch_reads_every_item_once():
    for epoch in range(3):
        assert sorted(crops.item_number(5, epoch * 7 + place, 7) for place in range(7)) == list(range(7))
    orders = [[crops.item_number(seed, place, 50) for place in range(50)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_crop_side_is_a_multiple_of_the_patch():
    assert [crops.crop_side(crop, 16) for crop in (16, 17, 320)] == [16, 32, 320]


# ---------------------------------------------------------------------------------------------------------- training
@pytest.mark.slow
def test_records_schedule_and_files(finished, tiny_clip):
    folder, records = finished
    assert [record.step for record in records] == list(range(6))
    for record in records:
        assert record.learning_rate == pytest.approx(0.1 * (1 - record.step / 6) ** 0.9)
        contrast = record.pull + record.complement + record.negatives
        assert record.loss == pytest.approx(record.cross_entropy + 0.1 * contrast)
        assert record.images_per_second > 0 and record.pull > 0 and record.complement > 0
    network = folder / "network"
    names = {path.name for path in network.iterdir() if not path.name.startswith("events.")}
    assert names == {"decoder.safetensors", "network.json", "prototypes.safetensors", "curve.csv"}
    rows = list(csv.DictReader((network / "curve.csv").open()))
    assert [float(row["loss"]) for row in rows] == pytest.approx([record.loss for record in records], rel=1e-5)
    card = Card.from_json((network / "network.json").read_text())
    assert card.classes == case.CLASSES and card.clip_hash == tiny_clip.weights_hash
    assert torch.equal(load_file(network / "prototypes.safetensors")["vision"], case.prototypes(tiny_clip.dim))
    assert not any("clip" in name or "image." in name for name in weights(folder))


@pytest.mark.slow
def test_it_learns(tiny_clip, items, tmp_path):
    records = list(case.fit(tiny_clip, items, tmp_path, train__steps=60))
    assert np.mean([record.loss for record in records[-5:]]) < 0.6 * records[0].loss


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(finished, tiny_clip, items, tmp_path):
    folder, records = finished
    torch.manual_seed(99)
    again = list(case.fit(tiny_clip, items, tmp_path / "again"))
    assert case.numbers(again) == case.numbers(records) and same_weights(folder, tmp_path / "again")
    other = list(case.fit(tiny_clip, items, tmp_path / "other", seed=1, train__steps=2))
    assert case.numbers(other)[0] != case.numbers(records)[0]


def test_random_states_outside_are_left_alone(tiny_clip, items, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(case.fit(tiny_clip, items, tmp_path, train__steps=2))
    assert torch.equal(torch.rand(3), expected)


def test_clip_stays_frozen(tiny_clip, items, tmp_path):
    before = tiny_clip.weights_hash
    list(case.fit(tiny_clip, items, tmp_path, train__steps=2))
    assert tiny_clip.weights_hash == before and not tiny_clip.training
    assert all(weight.grad is None and not weight.requires_grad for weight in tiny_clip.parameters())


@pytest.mark.slow
def test_adamw_learns_and_resumes(tiny_clip, items, tmp_path):
    chosen = {"train__optimizer": "adamw", "train__learning_rate": 0.003, "train__steps": 30, "rsc__weight": 0.0}
    records = list(case.fit(tiny_clip, items, tmp_path / "one", **chosen))
    assert np.mean([record.loss for record in records[-5:]]) < 0.6 * records[0].loss
    stopped = case.fit(tiny_clip, items, tmp_path / "two", **chosen)
    for _ in range(15):
        next(stopped)
    stopped.close()
    assert case.numbers(case.fit(tiny_clip, items, tmp_path / "two", **chosen)) == case.numbers(records)[14:]
    assert same_weights(tmp_path / "one", tmp_path / "two")


WECLIP = {
    "decoder__network": "weclip", "train__optimizer": "adamw", "train__learning_rate": 0.002,
    "train__weight_decay": 0.01,
    "train__power": 1.0, "train__warmup": 4, "train__loss": "balanced", "train__affinity": 0.1, "rsc__weight": 0.0,
}  # fmt: skip
"""WeCLIP's recipe, but for the number of steps."""


@pytest.mark.slow
def test_weclips_recipe_learns_resumes_and_comes_back(tiny_clip, items, tmp_path):
    chosen = WECLIP | {"train__steps": 30}
    records = list(case.fit(tiny_clip, items, tmp_path / "one", **chosen))
    assert np.mean([record.loss for record in records[-5:]]) < 0.7 * records[0].loss
    assert all(record.loss == pytest.approx(record.cross_entropy + 0.1 * record.affinity) for record in records)
    rates = [record.learning_rate for record in records]
    assert rates[:5] == pytest.approx([0.0, 5e-4, 1e-3, 1.5e-3, 2e-3 * 26 / 30]) and rates[-1] == pytest.approx(
        2e-3 / 30
    )
    stopped = case.fit(tiny_clip, items, tmp_path / "two", **chosen)
    for _ in range(15):
        next(stopped)
    stopped.close()
    assert case.numbers(case.fit(tiny_clip, items, tmp_path / "two", **chosen)) == case.numbers(records)[14:]
    assert same_weights(tmp_path / "one", tmp_path / "two")
    read = predict.load(tmp_path / "one", tiny_clip).parts[0]
    assert isinstance(read, Weclip) and len(read.projections) == tiny_clip.layers - 1
    assert not read.training and read.drop.p == 0.1


@pytest.mark.slow
def test_parts_of_a_balanced_batch_add_up(tiny_clip, items, tmp_path):
    chosen = WECLIP | {"decoder__network": "decoder", "train__steps": 3}
    whole = list(case.fit(tiny_clip, items, tmp_path / "one", **chosen))
    parts = list(case.fit(tiny_clip, items, tmp_path / "two", train__accumulate=4, **chosen))
    np.testing.assert_allclose(case.numbers(parts), case.numbers(whole), rtol=1e-3, atol=1e-5)


def test_relatives_of_rsc(tiny_clip, items, tmp_path):
    chosen = {"rsc__weight": 0.0, "rsc__texts": 0.1, "rsc__area": 0.4}
    for record in case.fit(tiny_clip, items, tmp_path, **chosen):
        assert record.texts > 0 and record.area > 0 and record.pull == 0
        assert record.loss == pytest.approx(record.cross_entropy + 0.1 * record.texts + 0.4 * record.area)


@pytest.mark.parametrize("bare", [2, 4], ids=["some", "all"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"rsc__texts": 0.1, "rsc__area": 0.4, "train__affinity": 0.1, "train__loss": "balanced"},
        {"train__online": True, "train__online_from": 0.0},
        {"train__online": True, "train__online_from": 0.0, "train__online_labels": "seeds", "train__affinity": 0.1},
    ],
    ids=["ce", "relatives", "ignored", "seeds"],
)
def test_photographs_without_tags_teach_background(tiny_clip, items, tmp_path, bare, chosen):
    images.write_mask(tmp_path / "blank.png", np.zeros((40, 40), np.uint8), case.CLASSES.palette())
    images.write_image(tmp_path / "grey.png", np.full((40, 40, 3), 120, np.uint8))
    blank = [
        dataclasses.replace(one, image=tmp_path / "grey.png", mask=tmp_path / "blank.png", tags=())
        for one in items[:bare]
    ]
    records = list(case.fit(tiny_clip, [*blank, *items[bare:]], tmp_path / "run", train__steps=3, **chosen))
    assert np.isfinite(np.array(case.numbers(records), float)).all() and records[0].cross_entropy > 0
    if bare == len(items):
        assert records[-1].cross_entropy < records[0].cross_entropy and records[0].pull == 0


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [1, 2, 3, 5])
def test_resume_gives_the_uninterrupted_numbers(finished, tiny_clip, items, tmp_path, stopped_after):
    folder, records = finished
    stopped = case.fit(tiny_clip, items, tmp_path)
    for _ in range(stopped_after):
        next(stopped)
    stopped.close()
    assert not (tmp_path / "network" / "network.json").exists()
    (tmp_path / "network" / f".0123{storage.PARTIAL}").write_bytes(b"half")
    rest = list(case.fit(tiny_clip, items, tmp_path))
    first = stopped_after // 2 * 2
    assert case.numbers(rest) == case.numbers(records[first:])
    assert same_weights(folder, tmp_path)
    rows = list(csv.DictReader((tmp_path / "network" / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert not (tmp_path / "network" / "checkpoint.pt").exists()
    assert not list((tmp_path / "network").glob(f".*{storage.PARTIAL}"))


def test_a_finished_network_is_left_as_it_is(finished, tiny_clip, items):
    folder, _ = finished
    before = (folder / "network" / "decoder.safetensors").stat().st_mtime_ns
    assert list(case.fit(tiny_clip, items, folder)) == []
    assert (folder / "network" / "decoder.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_not_continued(finished, tiny_clip, items, tmp_path):
    folder, _ = finished
    with pytest.raises(RunError, match=r"other settings \(rsc.weight: 0.1 there, 0.5 now\)"):
        list(case.fit(tiny_clip, items, folder, rsc__weight=0.5))
    stopped = case.fit(tiny_clip, items, tmp_path)
    for _ in range(3):
        next(stopped)
    stopped.close()
    with pytest.raises(
        RunError, match=r"train.warmup: 0 there, 3 now"
    ):  # also where the folder is older than the value
        checkpoint.check_same({}, {"train.warmup": 3}, tmp_path)
    checkpoint.check_same({}, {"train.warmup": 0}, tmp_path)
    with pytest.raises(RunError, match=r"train.crop: 32 there, 40 now"):
        list(case.fit(tiny_clip, items, tmp_path, train__crop=40))
    (tmp_path / "network" / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(RunError, match=r"checkpoint.pt can't be read .* remove it"):
        list(case.fit(tiny_clip, items, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulation_gives_the_same_curve(finished, tiny_clip, items, tmp_path, parts):
    records = list(case.fit(tiny_clip, items, tmp_path, train__accumulate=parts))
    np.testing.assert_allclose(case.numbers(records), case.numbers(finished[1]), rtol=2e-4, atol=1e-5)


def test_without_rsc_no_prototypes_are_needed(tiny_clip, items, tmp_path):
    chosen = case.config(rsc__weight=0.0, train__steps=2)
    records = list(train.fit(items, tiny_clip, case.CLASSES, None, chosen, tmp_path))
    assert all(record.loss == record.cross_entropy and record.pull == 0 for record in records)
    assert not (tmp_path / "network" / "prototypes.safetensors").exists()


def test_masked_regions(tiny_clip, items, tmp_path):
    chosen = {"rsc__region": "masked", "rsc__suppress": False, "rsc__weight": 1.0, "train__steps": 3}
    records = list(case.fit(tiny_clip, items, tmp_path / "pull", **chosen))
    assert all(record.pull > 0 and record.complement == record.negatives == 0 for record in records)
    both = list(case.fit(tiny_clip, items, tmp_path / "both", **chosen | {"rsc__suppress": True}))
    assert all(record.complement > 0 for record in both) and any(record.negatives > 0 for record in both)
    list(case.fit(tiny_clip, items, tmp_path / "off", **chosen | {"rsc__pull": False}))
    assert not same_weights(tmp_path / "pull", tmp_path / "off")
    assert all(weight.grad is None for weight in tiny_clip.parameters())


def test_bfloat16_is_close(finished, tiny_clip, items, tmp_path):
    records = list(case.fit(tiny_clip, items, tmp_path, train__precision="bfloat16"))
    ours, theirs = ([record.loss for record in run] for run in (records, finished[1]))
    assert ours != theirs
    np.testing.assert_allclose(ours, theirs, rtol=0.05)


def test_online_refinement_starts_where_it_is_told(finished, tiny_clip, items, tmp_path):
    chosen = {"train__online": True, "train__online_temperature": 0.02, "labels__confidence": 0.6}
    records = list(case.fit(tiny_clip, items, tmp_path, **chosen))
    ours, theirs = ([record.cross_entropy for record in run] for run in (records, finished[1]))
    assert ours[:3] == theirs[:3] and ours[3] != theirs[3]


SEEDS = {
    "train__online": True, "train__online_labels": "seeds", "train__online_layers": 2, "train__affinity": 0.1,
    "decoder__network": "weclip",
}  # fmt: skip


@pytest.mark.slow
def test_seeds_made_anew_teach_from_half_of_the_training_on_and_resume(tiny_clip, items, tmp_path):
    plain = case.numbers(case.fit(tiny_clip, items, tmp_path / "plain", **SEEDS | {"train__online": False}))
    records = case.numbers(case.fit(tiny_clip, items, tmp_path / "one", **SEEDS))
    assert records[:3] == plain[:3] and records[3] != plain[3]
    parts = case.numbers(case.fit(tiny_clip, items, tmp_path / "parts", **SEEDS | {"train__accumulate": 2}))
    assert parts[3][0] == pytest.approx(records[3][0], rel=0.2)  # dropout draws again
    stopped = case.fit(tiny_clip, items, tmp_path / "two", **SEEDS)
    for _ in range(5):
        next(stopped)
    stopped.close()
    assert case.numbers(case.fit(tiny_clip, items, tmp_path / "two", **SEEDS)) == records[4:]
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert all(weight.grad is None for weight in tiny_clip.parameters())


def test_targets_made_anew_hold_the_tags_that_show_and_leave_padding_out(tiny_clip):
    generator, patch = torch.Generator().manual_seed(0), tiny_clip.patch
    pixels = torch.randn(3, 3, 4 * patch, 5 * patch, generator=generator)
    pixels[0, :, :patch] = 0  # padding
    features = tiny_clip.encode(pixels, attention_blocks=2, keep_blocks=True, apart=True)
    target = torch.full((3, 4 * patch, 5 * patch), 2, dtype=torch.uint8)
    visible = torch.tensor([[True, False], [True, True], [False, False]])
    tokens = torch.randn(3, 20, 8, generator=generator)
    table = case.prototypes(tiny_clip.dim)
    found = online.targets(tiny_clip, features, tokens, pixels, target, visible, table, case.config())
    assert (found[0, :patch] == 255).all() and set(found[0, patch:].unique().tolist()) <= {0, 1}
    assert set(found[1].unique().tolist()) <= {0, 1, 2} and (found[2] == 2).all()
    assert (target == 2).all()


def test_nan_names_the_images_of_its_batch(tiny_clip, items, tmp_path):
    broken = case.prototypes(tiny_clip.dim)
    broken[0] = float("nan")
    chosen = case.config(train__batch=2)
    ids = [items[crops.item_number(0, place, 4)].id for place in range(2)]
    with pytest.raises(RunError, match=rf"the loss is nan .* on the images {ids[0]}, {ids[1]}\. Look at these images"):
        list(train.fit(items, tiny_clip, case.CLASSES, broken, chosen, tmp_path))
    assert not (tmp_path / "network" / "network.json").exists()


@pytest.mark.slow
def test_a_student_learns_and_resumes(tiny_clip, items, tmp_path):
    from transformers import SegformerConfig

    SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    ).save_pretrained(tmp_path / "segformer")
    changes = {"decoder__network": f"hf:{tmp_path / 'segformer'}", "train__steps": 4}
    records = list(case.fit(tiny_clip, items, tmp_path / "one", **changes))
    assert all(record.pull > 0 for record in records)
    stopped = case.fit(tiny_clip, items, tmp_path / "two", **changes)
    for _ in range(3):
        next(stopped)
    stopped.close()
    assert case.numbers(case.fit(tiny_clip, items, tmp_path / "two", **changes)) == case.numbers(records)[2:]
    assert same_weights(tmp_path / "one", tmp_path / "two")


def test_what_does_not_fit_together_is_said_at_once(tiny_clip, items, tmp_path):
    table = case.prototypes(tiny_clip.dim)

    def start(given=items, prototypes=table, **changes):
        return list(train.fit(given, tiny_clip, case.CLASSES, prototypes, case.config(**changes), tmp_path))

    with pytest.raises(DataError, match="no pseudo-masks to train on"):
        start([])
    with pytest.raises(DataError, match="unknown tag 'blue'"):
        start([dataclasses.replace(items[0], tags=("blue",))])
    with pytest.raises(ConfigError, match=r"rsc.weight is above 0 but there are no prototypes"):
        start(prototypes=None)
    with pytest.raises(ConfigError, match=r"the prototypes have shape \(3, 7\); expected at least 2 rows of 20"):
        start(prototypes=torch.ones(3, 7))
    with pytest.raises(ConfigError, match=r"train.batch is 4 .* train.accumulate 5; expected at least 5"):
        start(train__accumulate=5)
    with pytest.raises(ConfigError, match=r"train.online needs vpl's own decoder"):
        start(train__online=True, decoder__network="hf:some/name")
    with pytest.raises(ConfigError, match=r"train.affinity needs a head over CLIP's features"):
        start(train__affinity=0.1, decoder__network="hf:some/name")
    with pytest.raises(ConfigError, match=r"train.online_labels is seeds, which spread by the affinity"):
        start(train__online=True, train__online_labels="seeds")
    with pytest.raises(ConfigError, match=r"train.online_labels is seeds but there are no prototypes"):
        start(prototypes=None, rsc__weight=0.0, train__online=True, train__online_labels="seeds", train__affinity=0.1)
    with pytest.raises(ConfigError, match=r"rsc.texts is above 0 but there are no prototypes"):
        start(prototypes=None, rsc__weight=0.0, rsc__texts=0.1)
    with pytest.raises(ConfigError, match=r"decoder.network is 'unet'; expected decoder, weclip, or hf:<name"):
        start(decoder__network="unet")
    with pytest.raises(ConfigError, match=r"train.scale_low is 3.0 and train.scale_high 2.0"):
        start(train__scale_low=3.0)
    with pytest.raises(DataError, match=r"there is no file .*gone.png"):
        start([dataclasses.replace(items[0], image=tmp_path / "gone.png")])
    assert list(tmp_path.glob("**/*.safetensors")) == []


# ----------------------------------------------------------------------------------------------- processes and kills
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_draw_the_same_curve(finished, tiny_folder, tmp_path):
    """Two CPU processes over gloo, in the environment that accelerate's and torch's launchers give."""
    pytest.importorskip("accelerate")
    arguments = [str(tiny_folder), str(tmp_path / "data"), str(tmp_path / "run"), str(tmp_path / "records.json")]
    (tmp_path / "data").mkdir()
    case.make_items(tmp_path / "data")
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(CASE), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    folder, records = finished
    np.testing.assert_allclose(
        json.loads((tmp_path / "records.json").read_text()), case.numbers(records), rtol=2e-4, atol=1e-5
    )
    for name, one in weights(folder).items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], one, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_kill_and_restart_give_the_same_weights(finished, tiny_folder, tiny_clip, items, tmp_path):
    arguments = [str(tiny_folder), str(tmp_path / "data"), str(tmp_path / "run"), str(tmp_path / "records.json")]
    checkpoint = tmp_path / "run" / "network" / "checkpoint.pt"
    process = subprocess.Popen([sys.executable, str(CASE), *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(3000):
            if checkpoint.exists() or process.poll() is not None:
                break
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and checkpoint.exists()
    list(case.fit(tiny_clip, items, tmp_path / "run"))
    assert same_weights(finished[0], tmp_path / "run")


def launched(monkeypatch, **variables):
    for name, text in ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"} | variables).items():
        monkeypatch.setenv(name, text)


def test_a_process_knows_its_place(monkeypatch):
    assert place() == Place() and place().device("auto") == "auto" and place().leads
    launched(monkeypatch, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert place() == Place(1, 2, 1) and not place().leads
    assert place().device("auto") == "cuda:1" and place().device("cpu") == "cpu"


def test_stray_variables_are_no_launch(monkeypatch):
    for name, text in (("RANK", "1"), ("RANK", "x"), ("WORLD_SIZE", "2"), ("WORLD_SIZE", "")):
        monkeypatch.setenv(name, text)
        assert place() == Place()
        monkeypatch.delenv(name)


@pytest.mark.parametrize("rank, count", [("x", "2"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_launch_without_sense_is_one_sentence(monkeypatch, rank, count):
    launched(monkeypatch, RANK=rank, WORLD_SIZE=count)
    with pytest.raises(ConfigError, match=rf"its place is RANK={rank}, WORLD_SIZE={count}.*unset these variables"):
        place()


def test_one_pixel_images_train(tiny_clip, tmp_path):
    item = crops.Item("dot", tmp_path / "dot.png", tmp_path / "dot_mask.png", ("red",))
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(item.image)
    images.write_mask(item.mask, np.ones((1, 1), np.uint8), case.CLASSES.palette())
    records = list(case.fit(tiny_clip, [item], tmp_path, train__steps=2, train__batch=3))
    assert all(np.isfinite(record.loss) for record in records)


def test_gradients_of_masked_regions_agree_with_differences(clips):
    for clip in clips.values():
        side = 2 * clip.patch
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        mask = torch.full((1, 1, side, side), 0.6, requires_grad=True)
        embedding = clip.embed_images(pixels * mask)
        torch.testing.assert_close(embedding, clip.embed_images((pixels * mask).detach()), rtol=1e-4, atol=1e-5)
        row = torch.randn(clip.dim, generator=torch.Generator().manual_seed(1))
        (embedding @ row).sum().backward()
        step = torch.zeros_like(mask)
        step[..., : clip.patch, :] = 1e-2
        more, less = (clip.embed_images(pixels * (mask.detach() + sign * step)) @ row for sign in (1, -1))
        assert (mask.grad * step).sum().item() == pytest.approx((more - less).item() / 2, rel=0.05, abs=1e-4)
        assert all(weight.grad is None for weight in clip.parameters())
