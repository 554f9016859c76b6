"""The folder that goes to a model hub: complete, without this machine's paths, and the same network when loaded."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import training_case as case
import vpl
from training_case import finished_run, photo
from vpl.cli import main
from vpl.edges import images
from vpl.errors import ModelError
from vpl.exports import export as exports
from vpl.network import hub, predict

SIZES = ((40, 56), (33, 47), (150, 90), (1, 1))
EVALUATION = {
    "split": "val",
    "images": 4,
    "classes": ["red", "green"],
    "rows": [
        {"name": "pseudo-masks", "images": 4, "miou": 0.1, "pixel_accuracy": 0.2},
        {"name": "network, single scale", "images": 4, "miou": 0.51239, "pixel_accuracy": 0.75},
    ],
}


def with_metrics(run):
    (run / "metrics.json").write_text(json.dumps({"evaluations": [EVALUATION]}))
    return run


@pytest.fixture(scope="module")
def run(tiny_clip, tmp_path_factory):
    return with_metrics(finished_run(tmp_path_factory.mktemp("hub") / "run", tiny_clip))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "out"
    assert main(["export", str(run), "--to", "hf", "--out", str(out)]) == 0
    return out


def segformer(folder):
    from transformers import SegformerConfig

    SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    ).save_pretrained(folder)
    return f"hf:{folder}"


def same_maps(mine, theirs, sizes=SIZES):
    for number, size in enumerate(sizes):
        for protocol in (predict.SINGLE, mine.full):
            labels, shares = mine.predict(photo(size, number), True, protocol)
            again, shares_again = theirs.predict(photo(size, number), True, protocol)
            assert np.array_equal(labels, again)
            np.testing.assert_allclose(shares, shares_again, atol=1e-6)


@pytest.mark.slow
def test_a_loaded_folder_gives_identical_maps_wherever_it_lies(run, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    mine, theirs = vpl.load(run, device="cpu"), vpl.load(moved, device="cpu")
    assert theirs.classes == mine.classes
    same_maps(mine, theirs)


@pytest.mark.slow
def test_vpl_predict_takes_the_folder(run, folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    images.write_image(photos / "a.png", photo((40, 56)))
    for name, model in (("mine", run), ("theirs", folder)):
        given = ["--model", str(model), "--images", str(photos), "--out", str(tmp_path / name), "--device", "cpu"]
        assert main(["predict", *given, "--fast"]) == 0
    assert (tmp_path / "mine" / "a.png").read_bytes() == (tmp_path / "theirs" / "a.png").read_bytes()


def test_the_folder_names_classes_pixels_and_no_place_of_this_machine(run, folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        ".vpl-made.jsonl", "README.md", "config.json", "model.safetensors", "preprocessor_config.json", exports.MARK
    ]  # fmt: skip
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "background", "1": "red", "2": "green"}
    assert config["label2id"] == {"background": 0, "red": 1, "green": 2}
    pixels = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert pixels["size_divisor"] == 8 and pixels["longest_edge"] == 72
    assert pixels["image_mean"] == list(vpl.load(run, device="cpu").card.mean)
    its_clip = vpl.load(run, device="cpu").card.clip_name
    assert its_clip.startswith("/"), "the run itself knows where its CLIP lies"
    for path in folder.iterdir():
        for place in (its_clip, str(run.parent), case.__file__.rpartition("/")[0]):
            assert place.encode() not in path.read_bytes(), path.name


def test_the_same_run_gives_the_same_bytes(run, folder, tmp_path):
    again = exports.export(run, "hf", tmp_path / "again").folder
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_hubs_read_the_model_card(folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-segmentation" and card.data.license == "unknown"
    found = {one.metric_type: one for one in card.data.eval_results}
    assert found["mean_iou"].metric_value == 0.5124 and found["mean_iou"].dataset_split == "val"
    assert "4 images" in found["mean_iou"].metric_name and "single scale" in found["mean_iou"].metric_name
    assert "| val | 4 | 3 | network, single scale | 51.2 | 75.0 |" in card.text
    assert "pseudo-masks |" not in card.text


def test_a_card_without_evaluation_says_so(run):
    text = hub.model_card(vpl.load(run, device="cpu").card, [])
    assert "model-index" not in text and "Nothing was" in text


@pytest.mark.slow
def test_a_student_is_transformers_own_folder(tiny_clip, tmp_path):
    network = segformer(tmp_path / "segformer")
    run = finished_run(tmp_path / "run", tiny_clip, decoder__network=network, train__steps=2)
    made = exports.export(run, "hf", tmp_path / "out").folder
    shutil.rmtree(tmp_path / "segformer")
    same_maps(vpl.load(run, device="cpu"), vpl.load(made, device="cpu"), SIZES[:3])  # SegFormer takes no single pixel
    from transformers import AutoModelForSemanticSegmentation

    model = AutoModelForSemanticSegmentation.from_pretrained(made)
    assert model.config.id2label == {0: "background", 1: "red", 2: "green"}
    assert str(tmp_path).encode() not in (made / "config.json").read_bytes()
    weights = load_file(made / "model.safetensors")
    name = next(key for key in weights if key.endswith(".weight"))
    for broken in ({key: one for key, one in weights.items() if key != name}, weights | {name: weights[name] * np.nan}):
        save_file(broken, made / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match=r"is missing, of another size or not finite"):
            vpl.load(made, device="cpu")


def test_damage_is_told(folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    key = "clip.image.blocks.0.up.bias"
    save_file(weights | {key: weights[key] + 1}, broken / "model.safetensors")
    with pytest.raises(ModelError, match="is not the one that its network was trained with"):
        vpl.load(broken)
    save_file({key: one for key, one in weights.items() if key != "head.fuse.bias"}, broken / "model.safetensors")
    with pytest.raises(ModelError, match="don't fit"):
        vpl.load(broken)
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is damaged"):
        vpl.load(broken)
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text(re.sub(r'"vpl_clip": \{', '"vpl_clip": {"eyes": 2,', config))
    with pytest.raises(ModelError, match="is damaged"):
        vpl.load(broken)
