"""Masks of many pictures into a folder: photographs, sub-folders, films; what is fresh, not ours, or left out."""

from __future__ import annotations

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import training_case as case
from vpl.cli import main
from vpl.clip.model import FrozenClip
from vpl.edges import film, images
from vpl.edges.outputs import NAME
from vpl.errors import ConfigError, DataError, RunError
from vpl.network import delivery
from vpl.network.delivery import Outputs, deliver
from vpl.network.predict import SINGLE, Protocol

pytestmark = pytest.mark.slow

FULL = Protocol((0.75, 1.0), flip=True, crf=True)


def test_a_folder_becomes_masks_probabilities_and_overlays(predictor, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(2):
        Image.fromarray(case.picture(20 + number, 30, number)).save(source / f"{number}.png")
    Image.fromarray(case.picture()).save(source / "1.jpg")
    (source / "broken.png").write_bytes(b"no image")
    failures = list(deliver(predictor, source, out, SINGLE, Outputs(True, True)))
    assert sorted(name for name, _ in failures) == ["1.png", "broken.png"]
    labels, shares = predictor.predict(source / "0.png", probabilities=True)
    assert np.array_equal(images.read_mask(out / "0.png"), labels)
    np.testing.assert_allclose(np.load(out / "0.npz")["probabilities"], shares, atol=1e-3)
    assert images.read_image(out / "overlays" / "0.png").shape == (20, 30, 3)
    before = (out / "0.png").stat().st_mtime_ns
    list(deliver(predictor, source, out, SINGLE))
    assert (out / "0.png").stat().st_mtime_ns == before


def test_an_image_that_fits_in_no_memory_is_skipped_and_told(predictor, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, width in (("large", 96), ("small", 40)):
        Image.fromarray(case.picture(40, width)).save(folder / f"{name}.png")

    def encode(clip, pixels, *given, real=FrozenClip.encode, **named):
        if pixels.shape[3] > 48:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(clip, pixels, *given, **named)

    monkeypatch.setattr(FrozenClip, "encode", encode)
    monkeypatch.setattr(predictor, "_views_at_once", 2)
    failures = list(deliver(predictor, folder, tmp_path / "out", Protocol(flip=True)))
    assert [name for name, _ in failures] == ["large.png"] and "too small for this image at 40 x 96" in failures[0][1]
    assert [path.name for path in (tmp_path / "out").glob("*.png")] == ["small.png"]


def test_a_core_for_each_photograph_gives_the_same_bytes_in_the_same_order(predictor, tmp_path, monkeypatch):
    source = photographs(tmp_path / "in", tuple(f"{number:02}.png" for number in range(9)))
    (source / "04.png").write_bytes(b"no image")
    found = {}
    for count in (1, 2, 3):
        monkeypatch.setattr(delivery, "cores", lambda count=count: count)
        out = tmp_path / f"out{count}"
        told = list(deliver(predictor, source, out, FULL, Outputs(True, True, True)))
        assert [name for name, _ in told] == ["04.png"]
        found[count] = {name: (out / name).read_bytes() for name in files(out) if name not in (delivery.NOTE, NAME)}
    assert found[1] == found[2] == found[3] and len(found[1]) > 30
    before = torch.get_num_threads()
    (source / "04.png").unlink()
    monkeypatch.setattr(predictor, "answer", lambda *_: pytest.fail("it is there"))
    list(deliver(predictor, source, tmp_path / "out3", FULL, Outputs(True, True, True)))
    assert torch.get_num_threads() == before


def test_a_folder_never_keeps_another_networks_masks(predictor, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    images.write_image(photos / "a.png", case.picture(40, 56))

    def made(network, protocol=SINGLE):
        assert list(deliver(network, photos, out, protocol)) == []
        return (out / "a.png").stat().st_mtime_ns

    first = made(predictor)
    assert made(predictor) == first, "a second time nothing is done"
    other = case.with_settings(predictor, clip_hash="another")
    second = made(other)
    assert second != first and made(other) == second
    third = made(other, FULL)
    assert third != second, "another protocol"
    images.write_image(photos / "a.png", case.picture(40, 57))
    assert made(other, FULL) != third and images.read_mask(out / "a.png").shape == (40, 57), "another photograph"


def test_no_file_of_the_user_is_written_over(predictor, tmp_path):
    out = tmp_path / "out"
    (out / "overlays").mkdir(parents=True)
    images.write_image(out / "overlays" / "a.png", case.picture(40, 56))
    before = (out / "overlays" / "a.png").read_bytes()
    overlays = Outputs(overlays=True)
    with pytest.raises(RunError, match="is a folder that is read from"):
        list(deliver(predictor, out / "overlays", out, outputs=overlays))
    photos = tmp_path / "photos"
    photos.mkdir()
    images.write_image(photos / "a.png", case.picture(40, 56))
    with pytest.raises(DataError, match="was not made by vpl"):
        list(deliver(predictor, photos, out, outputs=overlays))
    assert (out / "overlays" / "a.png").read_bytes() == before and not (out / "a.png").exists()


def photographs(folder, names=("a.png", "day1/a.png", "day1/b.jpg")):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(case.picture(20 + number, 30, number)).save(folder / name)
    return folder


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sub_folders_are_kept_and_results_below_are_no_photographs(predictor, tmp_path):
    photos = photographs(tmp_path / "photos")
    out = photos / "masks"
    for _ in range(2):
        assert list(deliver(predictor, photos, out, SINGLE, Outputs(overlays=True))) == []
    assert [name for name in files(out) if name.endswith("png")] == [
        "a.png", "day1/a.png", "day1/b.png", "overlays/a.png", "overlays/day1/a.png", "overlays/day1/b.png",
    ]  # fmt: skip


def test_a_list_with_a_picture_in_memory(predictor, tmp_path):
    photos = photographs(tmp_path / "photos")
    assert list(deliver(predictor, [photos / "day1", case.picture()], tmp_path / "out")) == []
    assert np.array_equal(images.read_mask(tmp_path / "out" / "1.png"), predictor.predict(case.picture()))


def test_below_the_confidence_a_pixel_is_ignored(predictor, tmp_path):
    photos = photographs(tmp_path / "photos", ["a.png"])
    labels, shares = predictor.predict(photos / "a.png", probabilities=True)
    bound = float(np.median(shares.max(0)))
    assert list(deliver(predictor, photos, tmp_path / "out", outputs=Outputs(confidence=bound))) == []
    expected = np.where(shares.max(0) < bound, 255, labels)
    assert np.array_equal(images.read_mask(tmp_path / "out" / "a.png"), expected) and (expected == 255).any()
    assert list(deliver(predictor, photos, tmp_path / "out")) == []
    assert np.array_equal(images.read_mask(tmp_path / "out" / "a.png"), labels), "another confidence is another mask"
    with pytest.raises(ConfigError, match=r"the confidence is 1.5; expected a number from 0 to 1"):
        Outputs(confidence=1.5)


def test_scores_tell_what_was_found_and_how_sure(predictor, tmp_path):
    photos, out = photographs(tmp_path / "photos"), tmp_path / "out"
    assert list(deliver(predictor, photos, out, outputs=Outputs(scores=True))) == []
    labels, shares = predictor.predict(photos / "day1" / "b.jpg", probabilities=True)
    told = json.loads((out / "scores" / "day1" / "b.json").read_text())
    assert told["confidence"] == pytest.approx(shares.max(0).mean(), abs=1e-5)
    for number, one in enumerate(told["labels"].values()):
        assert one["share"] == pytest.approx((labels == number).mean(), abs=1e-5)
        assert one["highest"] == pytest.approx(shares[number].max(), abs=1e-5)
    table = (out / "scores.csv").read_bytes()
    rows = list(csv.DictReader(table.decode().splitlines()))
    assert {row["name"] for row in rows} == {"a", "day1/a", "day1/b"} and all(float(row["share"]) > 0 for row in rows)
    sure = [float(row["confidence"]) for row in rows]
    assert sure == sorted(sure)
    assert list(deliver(predictor, photos, out, outputs=Outputs(scores=True))) == []
    assert (out / "scores.csv").read_bytes() == table


def test_overwrite_replaces_what_is_not_ours(predictor, tmp_path):
    photos, out = photographs(tmp_path / "photos", ["a.png"]), tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"was not made by vpl here; .* --overwrite"):
        list(deliver(predictor, photos, out))
    assert list(deliver(predictor, photos, out, outputs=Outputs(overwrite=True))) == []
    first = (out / "a.png").stat().st_mtime_ns
    assert list(deliver(predictor, photos, out)) == [] and (out / "a.png").stat().st_mtime_ns == first
    assert list(deliver(predictor, photos, out, outputs=Outputs(overwrite=True))) == []
    assert (out / "a.png").stat().st_mtime_ns != first


def test_a_film_becomes_masks_of_its_frames_and_a_film(predictor, tmp_path):
    path, out = tmp_path / "films" / "walk.mp4", tmp_path / "out"
    path.parent.mkdir()
    film.write(path, (case.picture(32, 48, number) for number in range(5)), Fraction(10))
    outputs = Outputs(overlays=True, every=2)
    assert list(deliver(predictor, path.parent, out, outputs=outputs)) == []
    assert [name for name in files(out) if not name.startswith(".")] == [
        "overlays/walk.mp4", "vpl-masks.json", "walk/000000.png", "walk/000002.png", "walk/000004.png",
    ]  # fmt: skip
    for number, frame in film.frames(path, 2):
        assert np.array_equal(images.read_mask(out / "walk" / f"{number:06}.png"), predictor.predict(frame))
    assert film.rate(out / "overlays" / "walk.mp4") == 5
    before = {name: (out / name).stat().st_mtime_ns for name in files(out) if not name.endswith(("json", "jsonl"))}
    assert list(deliver(predictor, path.parent, out, outputs=outputs)) == []
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}
    (path.parent / "cut.mp4").write_bytes(path.read_bytes()[:100])
    ((name, reason),) = deliver(predictor, path.parent, out, outputs=outputs)
    assert name == "cut.mp4" and "damaged" in reason


def test_the_command_line_takes_files_patterns_and_folders(run, tmp_path, monkeypatch, capsys):
    photos = photographs(tmp_path / "photos")
    (photos / "letter.pdf").write_bytes(b"%PDF")
    monkeypatch.chdir(tmp_path)
    given = ["--images", "photos/a.png", "photos/day1/*.jpg", "--out", "some", "--device", "cpu"]
    assert main(["predict", str(run), *given, "--protocol", "single", "--scores", "--confidence", "0.2"]) == 0
    assert [name for name in files(tmp_path / "some") if name.endswith("png")] == ["a.png", "b.png"]
    assert main(["predict", str(run), "--images", "photos", "--out", "all", "--fast", "--device", "cpu"]) == 1
    assert "skipped 'letter.pdf': photos/letter.pdf is damaged or no image" in capsys.readouterr().err
    assert main(["predict", str(run), "--images", "photos", "--out", "all", "--confidence", "2"]) == 2


@pytest.mark.parametrize("count", [1, 2], ids=["one core", "two cores"])
@pytest.mark.parametrize("kind", ["a share that vanishes", "no memory", "a disk that answers with an error"])
def test_a_machine_at_its_end_stops_predictions_which_go_on_later(predictor, tmp_path, monkeypatch, kind, count):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    monkeypatch.setattr(delivery, "cores", lambda: count)
    for number in range(12):
        images.write_image(photos / f"{number}.png", case.picture(20, 30, number))

    def failing(*given):
        raise MemoryError if kind == "no memory" else OSError(5, "Input/output error")

    def spoiled(items, total, words):
        for number, item in enumerate(items):
            yield item
            if number == 0 and kind == "a share that vanishes":
                photos.rename(tmp_path / "away")
            elif number == 0:
                monkeypatch.setattr(images, "_as_rgb", failing)

    with pytest.raises(RunError, match=r"has vanished|not enough memory|can't be read now"):
        list(deliver(predictor, photos, out, SINGLE, progress=spoiled))
    made = {one.name for one in out.glob("*.png")}
    assert "0.png" in made and len(made) <= (1 if count == 1 else 6), "what is begun is ended, nothing is skipped"
    monkeypatch.undo()
    if (tmp_path / "away").exists():
        (tmp_path / "away").rename(photos)
    assert list(deliver(predictor, photos, out, SINGLE)) == []
    assert sorted(one.name for one in out.glob("*.png")) == sorted(f"{number}.png" for number in range(12))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"confidence": "x", "labels": {}}', '{"confidence": 1, "labels": {"a": 1}}']
)
def test_damaged_scores_are_one_sentence(predictor, tmp_path, text):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    images.write_image(photos / "a.png", case.picture(20, 30))
    assert list(deliver(predictor, photos, out, SINGLE, Outputs(scores=True))) == []
    (out / "scores" / "a.json").write_text(text)
    if text:
        with pytest.raises(RunError, match=r"a\.json is damaged \(.*\); delete it"):
            list(deliver(predictor, photos, out, SINGLE, Outputs(scores=True)))
    else:
        assert list(deliver(predictor, photos, out, SINGLE, Outputs(scores=True))) == [], "an empty one is made again"
