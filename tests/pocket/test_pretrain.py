"""Pre-training: the loss, what a step sees, going on after a kill, no mask anywhere, the export and the command."""

from __future__ import annotations

import csv
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vpl.classes import SCENE_GROUNDS, SCENE_NAMES
from vpl.errors import ConfigError, DataError, RunError
from vpl.pocket import captions, card, contrast, learner, pretrain, recipe, zeroshot
from vpl.scenes import draw as scene_module
from vpl.scenes.draw import draw
from vpl.scenes.styles import STYLES

TINY = recipe.Recipe(
    steps=6, batch=8, size=32, drawn_size=32, grids=(4, 5), mosaic_grids=(6, 8), width=16, blocks=2, heads=2,
    text_width=16, text_blocks=1, text_heads=2, embedding=12, context=24, vocabulary=600, warmup=2, chunk=12, reuse=2,
)  # fmt: skip
OPTIONS = [
    part
    for item in dataclasses.fields(TINY)
    if getattr(TINY, item.name) != item.default
    for part in (f"--{item.name.replace('_', '-')}", *pretrain._written(getattr(TINY, item.name)).split())
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source():
    """Scenes of the smallest kind, drawn once."""
    drawn = captions.SceneSource(seed=3, size=32, count=12)
    ready = {number: drawn.chunk(number) for number in range(3)}

    class Ready:
        def chunk(self, number):
            return ready[number]

        def held_out(self, count):
            return drawn.held_out(count)

    return Ready()


@pytest.fixture(scope="module")
def tokenizer(source):
    words = [*SCENE_NAMES, *SCENE_GROUNDS]
    return recipe.train_tokenizer([*source.chunk(0).captions, *words], TINY.vocabulary, TINY.context)


def trainer_of(tokenizer, given=TINY):
    return learner.Trainer(given, tokenizer, CPU, torch.float32)


# the loss


def test_contrast_is_clips_loss_when_every_text_is_anothers():
    scores = torch.randn(7, 7, generator=torch.Generator().manual_seed(1))
    own = torch.arange(7)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    assert contrast.contrast(scores, torch.eye(7)) == pytest.approx(float(expected), rel=1e-6)


def slow_contrast(scores, right):
    total = 0.0
    for s, y in ((scores, right), (scores.T, right.T)):
        rows = []
        for row, marks in zip(s.tolist(), y.tolist(), strict=True):
            bottom = sum(math.exp(one) for one in row)
            good = [math.log(math.exp(one) / bottom) for one, mark in zip(row, marks, strict=True) if mark]
            if good:
                rows.append(-sum(good) / len(good))
        total += sum(rows) / len(rows) / 2
    return total


def test_contrast_with_several_right_texts_agrees_with_its_slow_twin():
    rng = torch.Generator().manual_seed(2)
    scores, right = torch.randn(5, 9, generator=rng), (torch.rand(5, 9, generator=rng) < 0.3).float()
    right[2], right[:, 4] = 0, 0
    assert float(contrast.contrast(scores, right)) == pytest.approx(slow_contrast(scores, right), rel=1e-5)


def test_equal_captions_are_never_negatives():
    texts, right = zeroshot.marked([("a dog",), ("a cat",), ("a dog",)])
    assert texts == ["a cat", "a dog"]
    assert right.tolist() == [[0, 1], [1, 0], [0, 1]]
    sure = torch.tensor([[-50.0, 50.0], [50.0, -50.0], [-50.0, 50.0]])
    assert contrast.contrast(sure, right) == pytest.approx(math.log(2) / 4, abs=1e-5)  # two images share one text


def test_best_patches_is_near_the_best_cosine():
    rng = torch.Generator().manual_seed(3)
    patches, texts = torch.randn(2, 6, 8, generator=rng), F.normalize(torch.randn(3, 8, generator=rng), dim=1)
    best = (F.normalize(patches, dim=-1) @ texts.T).amax(1)
    found = contrast.best_patches(patches, texts)
    assert (found >= best - 1e-6).all()
    assert (found <= best + contrast.POOLING_TEMPERATURE * math.log(6) + 1e-6).all()


# what a step sees


@pytest.mark.slow
def test_encode_images_is_the_models_own_answer(tokenizer):
    model = recipe.build(TINY, tokenizer, "eager").eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        first, patches = contrast.encode_images(model, pixels)
        inside = model.vision_model(pixels)
        tokens = model.visual_projection(model.vision_model.post_layernorm(inside.last_hidden_state))
        some = contrast.encode_images(model, pixels, torch.arange(16))[1]
    torch.testing.assert_close(first, tokens[:, 0])
    torch.testing.assert_close(patches, tokens[:, 1:])
    torch.testing.assert_close(some, patches)


def test_dropped_patches_are_not_seen(tokenizer):
    model = recipe.build(TINY, tokenizer, "eager").eval()
    pixels = torch.zeros(1, 3, 32, 40)
    other = pixels.clone()
    other[:, :, :8, :8] = 3.0
    kept = torch.tensor([1, 2, 7, 19])
    with torch.no_grad():
        assert torch.equal(*(contrast.encode_images(model, one, kept)[1] for one in (pixels, other)))
        assert contrast.encode_images(model, other, kept)[1].shape == (1, 4, 12)


def test_each_cell_of_a_mosaic_shows_its_own_quarter_of_the_batch():
    shade = torch.tensor([0.05, 0.05, 0.35, 0.35, 0.65, 0.65, 0.95, 0.95])
    images = shade.view(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous()
    spans = contrast.mosaic_spans(7, 3, 4)
    pixels, cells = contrast.mosaic(images, 7, spans, 8, torch.Generator().manual_seed(0))
    assert pixels.shape == (2, 3, 56, 56)
    assert cells.unique(return_counts=True)[1].tolist() == [12, 9, 16, 12]
    by_patch = F.avg_pool2d(pixels, 8).mean(1)
    for number in range(4):
        inside = by_patch[:, cells == number]
        assert (inside.amax(1) - inside.amin(1)).max() < 1e-4  # one flat image fills the cell
    means = torch.stack([by_patch[:, cells == number].mean(1) for number in range(4)])
    assert means[0].amax() < means[2:].amin() and (means[1] < means[3]).all()


def test_augment_keeps_range_size_and_seed():
    images = torch.rand(3, 3, 32, 32)
    one, two = (contrast.augment(images, 24, 40, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.shape == (3, 3, 24, 40) and torch.equal(one, two)
    low, high = (contrast.normalise(torch.full((1, 3, 1, 1), bound)) for bound in (0.0, 1.0))
    assert (one >= low - 1e-5).all() and (one <= high + 1e-5).all()


def test_a_chunk_is_used_evenly():
    seen = torch.cat([TINY.picks(step) for step in range(TINY.steps_per_chunk)])
    assert seen.bincount(minlength=TINY.chunk).tolist() == [TINY.reuse] * TINY.chunk
    assert not torch.equal(TINY.picks(0), TINY.picks(TINY.steps_per_chunk))


def test_learning_rate_rises_stays_and_falls_to_zero():
    given = dataclasses.replace(TINY, steps=100, warmup=10, settle=0.6)
    rates = [given.learning_rate(step) for step in range(101)]
    assert rates[0] == pytest.approx(given.rate / 10) and rates[9] == rates[60] == given.rate
    assert sorted(rates[60:], reverse=True) == rates[60:] and rates[100] < 1e-12
    longer = dataclasses.replace(given, steps=300)
    assert [longer.learning_rate(step) for step in range(60)] == rates[:60]


def test_the_share_of_kept_patches_follows_the_stages():
    given = dataclasses.replace(TINY, steps=100, settle=0.6, keep=0.5)
    assert [given.patches(step, 400) for step in (0, 59, 60, 99)] == [200, 200, 400, 400]
    assert [given.patches(step, 9) for step in (0, 60)] == [9, 9]


def test_the_best_tag_map_is_kept(source, tokenizer):
    trainer = trainer_of(tokenizer)
    trainer.best = {"score": 2.0, "step": 6, "model": {}}
    trainer.step = 7
    trainer.measure(source.held_out(8), [1.0], 1.0)
    assert trainer.best["step"] == 6
    trainer.best["score"] = 0.0
    trainer.measure(source.held_out(8), [1.0], 1.0)
    assert trainer.best["step"] == 7


@pytest.mark.slow
def test_training_lowers_the_loss(source, tokenizer):
    given = dataclasses.replace(TINY, steps=40, mosaic=0.25, rate=3e-3)
    trainer = trainer_of(tokenizer, given)
    chunk = source.chunk(0)
    losses = [trainer.advance(chunk) for _ in range(40)]
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.5


# going on


def test_a_resumed_training_gives_the_numbers_of_an_uninterrupted_one(source, tokenizer, tmp_path):
    held = source.held_out(8)
    whole = trainer_of(tokenizer)
    records = list(learner.train(whole, source, held, every=2, workers=0))
    assert [record.step for record in records] == [2, 4, 6]

    first = trainer_of(tokenizer)
    steps = learner.train(first, source, held, every=2, workers=0)
    next(steps)
    torch.save(first.state(), tmp_path / pretrain.CHECKPOINT)
    steps.close()
    second = trainer_of(tokenizer)
    pretrain.open_checkpoint(second, tmp_path)
    assert second.step == 2
    rest = list(learner.train(second, source, held, every=2, workers=0))
    for one, two in zip(records[1:], rest, strict=True):
        for name in ("loss", "temperature", "tag_map", "retrieval", "gap"):
            assert getattr(one, name) == getattr(two, name)
    for one, two in zip(whole.averaged().parameters(), second.averaged().parameters(), strict=True):
        assert torch.equal(one, two)
    assert [path.name for path in tmp_path.iterdir()] == [pretrain.CHECKPOINT]


def test_a_checkpoint_of_another_recipe_is_refused(tokenizer, tmp_path):
    trainer = trainer_of(tokenizer)
    torch.save(trainer.state(), tmp_path / pretrain.CHECKPOINT)
    with pytest.raises(RunError, match=r"a training with rate 0\.001 \(now 0\.5\); give the same values"):
        pretrain.open_checkpoint(trainer_of(tokenizer, dataclasses.replace(TINY, rate=0.5)), tmp_path)
    pretrain.open_checkpoint(trainer_of(tokenizer, dataclasses.replace(TINY, steps=9)), tmp_path)  # not settled yet
    (tmp_path / pretrain.CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(RunError, match="delete it to start anew"):
        pretrain.open_checkpoint(trainer_of(tokenizer), tmp_path)


# what is measured


def test_average_precision_agrees_with_its_definition():
    rng = np.random.default_rng(6)
    for n in (1, 2, 13, 40):
        scores, right = rng.normal(size=n), rng.random(n) < 0.4
        order = sorted(range(n), key=lambda i: -scores[i])
        precisions = [
            sum(right[j] for j in order[: place + 1]) / (place + 1) for place, i in enumerate(order) if right[i]
        ]
        found = zeroshot.average_precision(scores, right)
        assert math.isnan(found) if not precisions else found == pytest.approx(np.mean(precisions))


@pytest.mark.slow
def test_zero_shot_of_random_weights_is_near_chance(source, tokenizer):
    figures = zeroshot.zero_shot(recipe.build(TINY, tokenizer, "eager").eval(), tokenizer, source.held_out(12), 32)
    assert figures.images == 12 and set(figures.ap) <= {*SCENE_NAMES, *SCENE_GROUNDS}
    assert set(figures.ap) == set(figures.class_token_ap) and all(0 < one <= 1 for one in figures.ap.values())
    assert 0 <= figures.retrieval <= 0.5 and 0 <= figures.gap <= 2


# no mask


@pytest.mark.slow
def test_training_runs_with_masks_not_generated_at_all(monkeypatch, tmp_path):
    def no_mask(*_):
        raise AssertionError("a mask was made")

    monkeypatch.setattr(scene_module, "_compose_mask", no_mask)
    with pytest.raises(AssertionError, match="a mask was made"):
        draw(0, 0, "demo", 32)
    monkeypatch.setattr(card, "write", lambda *_: "")
    args = [str(tmp_path), *OPTIONS, "--workers", "0", "--every", "3", "--measured", "6", "--steps", "3"]
    assert pretrain.main(args) == 0
    assert (tmp_path / "model.safetensors").exists()


def test_held_out_scenes_are_never_trained_on():
    most = 10**4 * recipe.Recipe().chunk  # more chunks than anyone trains on
    assert most < captions.HELD_OUT_INDEX


# the command


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of captioned images, a training on it by the command, and what the command said."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(8)
    rows = []
    for number in range(24):
        colour = ("red", "green", "blue")[number % 3]
        pixels = rng.integers(0, 90, (20 + number, 30, 3), dtype=np.uint8)
        pixels[..., number % 3] = 220
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"a {colour} field, “seen” from {number % 2}", f"{colour};field"))
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("file_name", "caption", "tags"), *rows])
    out = folder / "model"
    args = [str(out), "--data", str(folder), "--captions", str(folder / "captions.csv"), *OPTIONS, "--steps", "4"]
    assert pretrain.main([*args, "--workers", "0", "--every", "2", "--measured", "8"]) == 0
    return folder, out, args


@pytest.mark.slow
def test_the_exported_folder_loads_with_transformers_and_with_vpl(own):
    from transformers import AutoTokenizer, CLIPModel

    from vpl.clip.model import FrozenClip

    _, out, _ = own
    texts = ["a photo of a red.", "Ünknown wörds, 日本 🙂", ""]
    model, tokenizer = CLIPModel.from_pretrained(out, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(out)
    ids = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert tokenizer.eos_token_id == model.config.text_config.eos_token_id != 2
    assert all((row == tokenizer.eos_token_id).any() for row in ids["input_ids"])
    assert tokenizer.unk_token_id not in ids["input_ids"][1][1 : int(ids["attention_mask"][1].sum()) - 1]
    with torch.no_grad():
        inside = model.text_model(**ids).pooler_output
    expected = F.normalize(model.text_projection(inside), dim=-1)
    clip = FrozenClip.load(out, device="cpu")
    torch.testing.assert_close(clip.encode_texts(texts), expected, atol=1e-5, rtol=1e-5)
    pixels = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        patches = contrast.encode_images(model, pixels)[1]
    torch.testing.assert_close(clip.encode(pixels).patches, patches, atol=1e-4, rtol=1e-4)
    from safetensors.torch import load_file

    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float16}
    look = json.loads((out / "preprocessor_config.json").read_text())
    assert look["size"] == {"height": 32, "width": 32} and look["image_mean"][0] == pytest.approx(0.481, abs=1e-3)


def test_the_card_says_what_was_measured(own):
    _, out, _ = own
    text = (out / "README.md").read_text()
    for words in ("23 captioned images", "| 4, 8, 32 |", "--width 16", "held-out", "| red |", "No mask was made"):
        assert words in text
    with (out / "log.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["step"] for row in rows] == ["2", "4"] and float(rows[1]["loss"]) > 0


def test_a_finished_training_is_not_trained_again_and_its_card_can_be_renewed(own, capsys):
    _, out, args = own
    before = (out / "model.safetensors").read_bytes()
    (out / "README.md").unlink()
    assert pretrain.main([*args, "--workers", "0", "--measured", "8"]) == 0
    assert (out / "model.safetensors").read_bytes() == before
    assert "step 4 of 4" in capsys.readouterr().out
    (out / "README.md").unlink()
    assert pretrain.main([*args, "--card-only", "--measured", "8"]) == 0
    assert (out / "README.md").exists()


def test_the_card_of_scenes_has_seeds_and_a_picture(tmp_path, tokenizer, monkeypatch):
    recipe.export(recipe.build(TINY, tokenizer, "eager"), tokenizer, tmp_path)
    monkeypatch.setattr(card, "SIZES", (32,))
    monkeypatch.setattr(card, "STYLES", {"demo": STYLES["demo"], "web-photo": STYLES["web-photo"]})
    log = {"step": 4, "loss": 9.0, "temperature": 0.07, "tag_map": 0.2, "class_token_map": 0.2, "retrieval": 0.1}
    training = card.Training(
        "scenes, small", "the command", "here", "cpu", "float32", 1, 60.0, 4, 0, 9, 8, "Said by its maker.",
        [log | {"images_per_second": 10.0}], {},
    )  # fmt: skip
    (tmp_path / card.TRAINING).write_text(json.dumps(dataclasses.asdict(training)))
    text = card.write(tmp_path, None, count=12)
    assert "Said by its maker." in text and "| style | 32 px |" in text and "| demo |" in text and "web-photo" in text
    with Image.open(tmp_path / card.MAPS) as picture:
        assert picture.width > 5 * 128


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--captions", "nowhere.csv"], "--captions is given without --data FOLDER"),
        (["--data", "nowhere"], "is given without --captions"),
        (["--data", "nowhere", "--captions", "no.csv"], "there is no folder nowhere"),
        (["--size", "33"], "size is 33; expected a multiple of the patch"),
        (["--steps", "0"], "steps is 0; expected at least 1"),
        (["--chunk", "4"], "chunk is 4; expected at least a batch, 8"),
        (["--heads", "5"], "expected a multiple of the heads"),
        (["--mosaic-grids", "4"], "mosaic_grids at least 6"),
        (["--device", "warp"], "the device 'warp' is not there"),
        (["--card-only"], "holds no finished training"),
    ],
)
def test_bad_options_give_one_sentence(change, words, tmp_path, capsys):
    assert pretrain.main([str(tmp_path / "out"), *OPTIONS, *change]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("file_name,text\na.png,x\n", "no column caption"),
        ("file_name,caption\na.png,x\nb.png,y\n", "line 3: there is no image"),
        ("file_name,caption\na.png,x\na.png, \n", "line 3: the caption is empty"),
        ("file_name,caption\na.png,x\n", "expected at least 2"),
    ],
)
def test_bad_captions_name_their_line(lines, words, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "c.csv").write_text(lines)
    with pytest.raises(DataError, match=words):
        captions.FolderSource.from_csv(tmp_path, tmp_path / "c.csv", 0, 32, 4)
    (tmp_path / "c.csv").write_bytes(b"file_name,caption\na.png,\xff\n")
    with pytest.raises(DataError, match="can't be read"):
        captions.FolderSource.from_csv(tmp_path, tmp_path / "c.csv", 0, 32, 4)


def test_a_folders_chunks_go_through_all_its_training_rows_and_never_the_held_out(tmp_path):
    for number in range(7):
        Image.new("RGB", (9, 5 + number)).save(tmp_path / f"{number}.png")
    (tmp_path / "c.csv").write_text("file_name,caption\n" + "".join(f"{n}.png,caption {n}\n" for n in range(7)))
    found = captions.FolderSource.from_csv(tmp_path, tmp_path / "c.csv", 0, 16, 4)
    held = found.held_out(9).captions
    assert len(held) == 1
    seen = [caption for number in range(3) for caption in found.chunk(number).captions]
    assert set(seen[:6]) == set(seen[6:]) == {f"caption {n}" for n in range(7)} - set(held)
    assert found.chunk(1).images.shape == (4, 16, 16, 3)


def test_minutes_choose_the_steps(source, tokenizer):
    steps = learner.steps_in(0.01, trainer_of(tokenizer), source.chunk(0))
    assert 1 <= steps <= 1000
    with pytest.raises(ConfigError, match="expected at least 1"):
        dataclasses.replace(TINY, batch=0)
