"""Prediction: sizes, protocols, windows, inputs of every kind, and the refusal of a wrong CLIP."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import training_case as case
from clip_files import to_openai
from vpl.clip.model import FrozenClip
from vpl.config import PredictConfig
from vpl.edges import images
from vpl.edges.datasets import Sample
from vpl.errors import ConfigError, DataError, ModelError, VplError
from vpl.method import crf
from vpl.network import hub, predict, train
from vpl.network.head import Sight
from vpl.network.predict import SINGLE, Protocol

FULL = Protocol((0.75, 1.0), flip=True, crf=True)


def slow_shares(predictor, image: np.ndarray, scales, flip: bool) -> np.ndarray:
    """One view at a time, each through the encoder, the head, bilinear and softmax; then the mean."""
    card, clip = predictor.card, predictor._clip
    votes = []
    for scale in scales:
        for mirrored in (False, True) if flip else (False,):
            seen = image[:, ::-1].copy() if mirrored else image
            pixels = images.to_pixels(seen, card.patch, card.mean, card.std, scale * card.scale)[None]
            features = clip.encode(pixels, keep_blocks=True)
            with torch.no_grad():
                logits = predictor._head.logits(predictor._head.tokens(features.blocks), features.grid)
            full = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0].softmax(0)
            votes.append(full.flip(-1) if mirrored else full)
    return torch.stack(votes).mean(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1), (1, 30), (7, 5), (41, 58), (64, 64)])
@pytest.mark.parametrize("protocol", [SINGLE, FULL], ids=["single", "full"])
def test_results_have_the_image_size(predictor, size, protocol):
    labels, shares = predictor.predict(case.picture(*size), probabilities=True, protocol=protocol)
    assert labels.shape == size and labels.dtype == np.uint8 and labels.max() <= 2
    assert shares.shape == (3, *size) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    assert np.array_equal(shares.argmax(0), labels)
    assert np.array_equal(predictor.predict(case.picture(*size), protocol=protocol), labels)


@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((1.0,), True), ((0.5, 1.0, 1.3), True)])
def test_agrees_with_one_view_at_a_time(predictor, scales, flip):
    _, shares = predictor.predict(case.picture(), probabilities=True, protocol=Protocol(scales, flip))
    np.testing.assert_allclose(shares, slow_shares(predictor, case.picture(), scales, flip), atol=2e-5)


@pytest.mark.parametrize("protocol", [SINGLE, Protocol((0.75, 1.0, 1.25), flip=True)], ids=["single", "full"])
def test_the_one_piece_that_looks_has_the_bytes_of_a_loop_over_scales(predictor, protocol):
    """As `predict` looked before votes and predictions had one piece: both images of a scale, one sum, one division."""
    image, card, size = case.picture(), predictor.card, (41, 58)
    total = torch.zeros(3, *size)
    with torch.no_grad():
        for scale in protocol.scales:
            pixels = images.to_pixels(image, card.patch, card.mean, card.std, card.scale * scale)
            views = torch.stack([pixels, pixels.flip(-1)] if protocol.flip else [pixels])
            for number, one in enumerate(predictor._logits(views)):
                own = one.flip(-1) if number else one
                total += F.interpolate(own[None], size, mode="bilinear", align_corners=False)[0].softmax(dim=0)
    expected = total / (len(protocol.scales) * (1 + protocol.flip))
    assert torch.equal(predictor._shares(image, protocol), expected)


def test_the_crf_follows_the_mean(predictor):
    image = case.picture(24, 31)
    _, before = predictor.predict(image, probabilities=True, protocol=Protocol(FULL.scales, True))
    _, after = predictor.predict(image, probabilities=True, protocol=FULL)
    expected = crf.dense_crf(image, before, rounds=2)
    np.testing.assert_allclose(after, expected.numpy(), atol=1e-4)


def test_the_card_says_the_second_protocol(predictor):
    assert predictor.full == Protocol((0.75, 1.0), flip=True, crf=True)
    with pytest.raises(ConfigError, match=r"predict.scales is empty"):
        PredictConfig(scales=())


def test_it_learned_from_the_pseudo_masks(predictor, items):
    for item in items[:2]:
        labels, truth = predictor.predict(item.image), images.read_mask(item.mask)
        assert (labels == truth)[truth != 255].mean() > 0.8
        label = case.CLASSES.index(item.tags[0]) + 1
        assert (labels[truth == label] == label).mean() > 0.6


# ----------------------------------------------------------------------------------------------------------- windows
@pytest.mark.parametrize(("length", "window"), [(1, 4), (4, 4), (5, 4), (9, 4), (100, 7), (3, 1), (65, 64)])
def test_windows_cover_and_overlap(length, window):
    starts = predict.window_starts(length, window)
    covered = {place for start in starts for place in range(start, min(start + window, length))}
    assert covered == set(range(length)) and starts[0] == 0
    assert starts[-1] == max(0, length - window) and starts == sorted(set(starts))
    overlaps = [first + window - second for first, second in itertools.pairwise(starts)]
    assert all(overlap * predict.OVERLAP >= window - predict.OVERLAP for overlap in overlaps)


def test_windows_average_what_each_sees(predictor):
    small = case.with_settings(predictor, predict=PredictConfig(scales=(1.0,), window=32))
    pixels = torch.randn(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    total, counts = torch.zeros(3, 5, 8), torch.zeros(5, 8)
    with torch.no_grad():
        for row in predict.window_starts(5, 4):
            for column in predict.window_starts(8, 4):
                part = pixels[:, :, 8 * row : 8 * row + 32, 8 * column : 8 * column + 32]
                total[:, row : row + 4, column : column + 4] += small._look(part)[0]
                counts[row : row + 4, column : column + 4] += 1
        torch.testing.assert_close(small._logits(pixels)[0], total / counts, rtol=1e-4, atol=1e-5)
    assert counts.min() == 1 and counts.max() > 1


def test_a_window_as_large_as_the_image_changes_nothing(predictor):
    large = case.with_settings(predictor, predict=PredictConfig(scales=(1.0,), window=64))
    assert np.array_equal(large.predict(case.picture(64, 64)), predictor.predict(case.picture(64, 64)))
    small = case.with_settings(predictor, predict=PredictConfig(scales=(1.0,), window=32))
    assert small.predict(case.picture(200, 33)).shape == (200, 33)


def test_large_images_are_seen_smaller_but_answered_at_their_size(predictor, tmp_path):
    small = case.with_settings(predictor, max_side=40)
    image = case.picture(120, 75)
    Image.fromarray(image).save(tmp_path / "large.png")
    labels, shares = small.predict(tmp_path / "large.png", probabilities=True)
    assert labels.shape == (120, 75) and shares.shape == (3, 120, 75)
    assert np.array_equal(shares.argmax(0), labels)
    assert np.array_equal(small.predict(tmp_path / "large.png"), labels)
    assert np.array_equal(small.predict(image), labels)


# ------------------------------------------------------------------------------------------------------------ inputs
def test_path_pil_and_array_are_the_same(predictor, tmp_path):
    image = case.picture()
    expected = predictor.predict(image)
    Image.fromarray(image).save(tmp_path / "image.png")
    for given in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image), image[:, ::-1][:, ::-1]):
        assert np.array_equal(predictor.predict(given), expected)


def test_grey_clear_and_turned_pictures(predictor):
    grey = case.picture()[..., 0]
    expected = predictor.predict(np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(predictor.predict(grey), expected)
    assert np.array_equal(predictor.predict(Image.fromarray(grey)), expected)
    clear = np.full((41, 58, 4), (9, 90, 200, 0), np.uint8)
    white = np.full((41, 58, 3), 255, np.uint8)
    assert np.array_equal(predictor.predict(Image.fromarray(clear, "RGBA")), predictor.predict(white))
    turned = Image.fromarray(case.picture())
    turned.getexif()[0x0112] = 6
    assert np.array_equal(predictor.predict(turned), predictor.predict(np.rot90(case.picture(), -1).copy()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), r"array of float32 and shape \(4, 4, 3\); expected uint8"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\); expected uint8 of shape \(H, W, 3\)"),
        (np.zeros((0, 4), np.uint8), "expected at least 1 x 1"),
        ("nothing/here.png", "the folder nothing has vanished, .* or was never there"),
    ],
)
def test_unusable_images_are_one_sentence(predictor, given, words):
    with pytest.raises(VplError, match=words):
        predictor.predict(given)


# ---------------------------------------------------------------------------------------------------- saved networks
def test_load_from_run_or_network_folder_by_the_saved_name(run, predictor):
    for folder in (run, run / "network"):
        again = predict.load(folder, device="cpu")
        assert again.classes == case.CLASSES
        assert np.array_equal(again.predict(case.picture()), predictor.predict(case.picture()))


def test_another_clip_is_refused(run, clips):
    with pytest.raises(ModelError, match=r"has other weights .* Give the CLIP that it was trained with"):
        predict.load(run, clips["wide"])


def test_a_network_remembers_what_was_said_of_its_clip(hf_models, tmp_path):
    save_file(to_openai(hf_models["narrow"].state_dict()), tmp_path / "vit.safetensors")
    said = {"heads": (2, 3), "activation": "quick_gelu", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2)}
    clip = FrozenClip.load(tmp_path / "vit.safetensors", device="cpu", **said)
    made = case.finished_run(tmp_path / "run", clip, train__steps=1)
    assert predict.load(made, device="cpu").parts[1].said == clip.said
    with pytest.raises(ModelError, match="has other weights"):
        predict.load(made, FrozenClip.load(tmp_path / "vit.safetensors", device="cpu", **said | {"activation": "gelu"}))
    card, head = predict.load(made, device="cpu").card, predict.load(made, device="cpu").parts[0]
    (tmp_path / "hf").mkdir()
    hub.write(tmp_path / "hf", card, head, clip, [])
    assert hub.read(tmp_path / "hf", "cpu")[2].weights_hash == clip.weights_hash


@pytest.mark.parametrize("damage", ["empty", "no weights", "half weights", "other weights", "other card"])
def test_damaged_networks_are_one_sentence(run, tiny_clip, tmp_path, damage):
    folder = tmp_path / "run"
    words = "no trained network"
    if damage != "empty":
        shutil.copytree(run, folder)
        weights, card = folder / "network" / "decoder.safetensors", folder / "network" / "network.json"
        if damage == "no weights":
            weights.unlink()
        elif damage == "half weights":
            weights.write_bytes(weights.read_bytes()[:-50])
            words = "are damaged .* train the network again"
        elif damage == "other weights":
            tree = json.loads(card.read_text())
            tree["clip_blocks"] += 1
            card.write_text(json.dumps(tree))
            words = "don't fit its network.json"
        else:
            card.write_text("{}")
            words = "network.json can't be used"
    with pytest.raises(ModelError, match=words):
        predict.load(folder, tiny_clip)


def test_a_student_needs_no_clip(tiny_clip, items, tmp_path):
    from transformers import SegformerConfig

    SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    ).save_pretrained(tmp_path / "segformer")
    changes = {"decoder__network": f"hf:{tmp_path / 'segformer'}", "train__steps": 2, "rsc__weight": 0.0}
    list(train.fit(items, tiny_clip, case.CLASSES, None, case.config(**changes), tmp_path / "run"))
    shutil.rmtree(tmp_path / "segformer")
    student = predict.load(tmp_path / "run", device="cpu")
    assert student._clip is None
    image = case.picture(50, 70)
    assert student.predict(image, protocol=FULL).shape == (50, 70)
    windowed = case.with_settings(student, predict=PredictConfig(scales=(1.0,), window=32))
    assert windowed.predict(image).shape == (50, 70)
    with torch.no_grad():
        pixels = images.to_pixels(image, 8, student.card.mean, student.card.std)[None]
        expected = F.interpolate(student._head(Sight(pixels, None)).logits, (50, 70), mode="bilinear")[0].argmax(0)
    assert np.array_equal(student.predict(image), expected.numpy())


# -------------------------------------------------------------------------------------------------------- evaluation
@pytest.mark.slow
def test_evaluation_gives_both_protocols(predictor, items):
    samples = [Sample(item.id, item.image, (), item.mask) for item in items]
    found = predict.evaluate(predictor, iter([*samples, Sample("untold", items[0].image, (), None)]))
    assert found.images == found.single.images == found.full.images == 4
    for confusion, protocol in ((found.single, SINGLE), (found.full, predictor.full)):
        expected = np.zeros((3, 3), np.int64)
        for item in items:
            truth, labels = images.read_mask(item.mask), predictor.predict(item.image, protocol=protocol)
            np.add.at(expected, (truth[truth != 255], labels[truth != 255]), 1)
        assert np.array_equal(confusion.matrix[:, :3], expected)
    assert found.single.miou() > 0.4


def test_evaluation_errors(predictor, items):
    with pytest.raises(DataError, match="none of the images has a truth mask"):
        predict.evaluate(predictor, [Sample("untold", items[0].image, (), None)])
    with pytest.raises(DataError, match=r"_mask.png has shape \(33, 47\), the image .* \(40, 56\); expected the same"):
        predict.evaluate(predictor, [Sample("odd", items[0].image, (), items[1].mask)])


def test_evaluation_hands_on_the_maps_of_the_second_protocol(predictor, items):
    kept = {}
    predict.evaluate(
        predictor, [Sample(items[3].id, items[3].image, (), items[3].mask)], lambda s, m: kept.update({s.id: m})
    )
    assert np.array_equal(kept[items[3].id], predictor.predict(items[3].image, protocol=predictor.full))


def test_labels_at_another_size_are_the_argmax_of_the_resized_shares():
    shares = torch.rand(6, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(shares[None], (23, 17), mode="bilinear", align_corners=False)[0].argmax(0)
    assert np.array_equal(predict.Answer(shares, (23, 17)).labels(), expected.numpy())


def test_out_of_memory_looks_at_the_mirror_image_by_itself(predictor, monkeypatch, caplog):
    protocol = Protocol(flip=True)
    together = predictor.predict(case.picture(), True, protocol)[1]

    def encode(clip, pixels, *given, real=FrozenClip.encode, **named):
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(clip, pixels, *given, **named)

    monkeypatch.setattr(FrozenClip, "encode", encode)
    monkeypatch.setattr(predictor, "_views_at_once", 2)
    labels, apart = predictor.predict(case.picture(), True, protocol)
    np.testing.assert_allclose(apart, together, atol=1e-5)
    assert (predictor.predict(case.picture(), protocol=protocol) == labels).all()
    assert len([record for record in caplog.records if "mirror image" in record.getMessage()]) == 1
