"""vpl.report: a run folder whose every number is known, the page that it becomes, and that page in Chromium."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from vpl import report
from vpl.classes import ClassSet
from vpl.config import Config
from vpl.errors import RunError
from vpl.images import write_mask

EVIL = "<script>window.broken=1</script>"
EVIL_FILE = "<img src=x onerror=window.broken=2>"
NAMES = ("cat", EVIL, "dog")
TRAIN = ("a10", "a9", EVIL_FILE, "a1")
VAL = ("v0", "v1")


def truth(number: int) -> np.ndarray:
    """(20, 30): background above, one class below."""
    mask = np.zeros((20, 30), np.uint8)
    mask[10:] = number % 3 + 1
    return mask


def cut(mask: np.ndarray, columns: int) -> np.ndarray:
    """The mask with its first columns made background: its class then has IoU (30 - columns) / 30."""
    made = mask.copy()
    made[:, :columns] = 0
    return made


def row(name: str, miou: float, classes: tuple[str, ...] = NAMES, confusion: list | None = None) -> dict:
    share = {"background": 0.9} | dict.fromkeys(classes, miou)
    return {"name": name, "folder": "x", "miou": miou, "pixel_accuracy": 0.75, "iou": share, "precision": share} | {
        "recall": share | {"dog": None},
        "confusion": confusion or [],
    }


def make_data(folder: Path, split: str, ids: tuple[str, ...]) -> None:
    """Images, masks and tags; image n carries class n % 3."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    lines = ["file_name,tags"]
    for number, name in enumerate(ids):
        pixels = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        write_mask(folder / "masks" / f"{name}.png", truth(number), [(0, 0, 0)])
        lines.append(f'"{name}.png","{NAMES[number % 3]}"')
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make_run(root: Path, masks: bool = True) -> Path:
    """A run folder with everything in it; `masks`: the data have truth."""
    run, palette = root / "run & co", ClassSet(NAMES).palette()
    run.mkdir(parents=True)
    classes = root / "classes.txt"
    classes.write_text("\n".join(NAMES), encoding="utf-8")
    values: dict[str, object] = {"prototypes.phi": 0.4, "seed": 3}
    for section, split, ids in (("data", "train", TRAIN), ("validation", "val", VAL)):
        folder = root / section
        make_data(folder, split, ids)
        values |= {
            f"{section}.images": str(folder / "images"),
            f"{section}.tags": str(folder / f"{split}.csv"),
            f"{section}.classes": str(classes),
        }
        if masks:
            values[f"{section}.masks"] = str(folder / "masks")
    (run / "config.toml").write_text(Config().with_values(values).to_toml(), encoding="utf-8")
    for folder, columns in (("seeds/text", 20), ("seeds/vision", 10), ("seeds/refined", 5), ("seeds/crf", 4)):
        (run / folder).mkdir(parents=True)
        for number, name in enumerate(TRAIN):
            write_mask(run / folder / f"{name}.png", cut(truth(number), columns), palette)
    (run / "labels").mkdir()
    for number, name in enumerate(TRAIN):
        made = cut(truth(number), 6 * number)
        made[0, :15] = 255
        write_mask(run / "labels" / f"{name}.png", made if name != "a1" else np.zeros((20, 30), np.uint8), palette)
    (run / "predictions").mkdir()
    for number, name in enumerate(VAL):
        write_mask(run / "predictions" / f"{name}.png", truth(number), palette)
    confusion = [[90, 10, 0, 0, 0], [20, 60, 0, 10, 10], [0, 0, 0, 0, 0], [0, 30, 0, 70, 0]]
    evaluations = [
        {
            "split": "train",
            "images": 4,
            "classes": list(NAMES),
            "rows": [row("text seeds", 0.3), row("vision seeds", 0.5), row("pseudo-masks", 0.6, confusion=confusion)],
        },
        {
            "split": "val",
            "images": 2,
            "classes": list(NAMES),
            "rows": [row("network, single scale", 0.61), row("network, multi-scale + flip + CRF", 0.634)],
        },
    ]
    label_free = {"agreement": {"value": 0.81, "meaning": "Seeds & flips agree.", "advice": "Raise <it>."}}
    metrics = {"evaluations": evaluations if masks else [], "label_free": label_free}
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    record = {
        "versions": {"vpl": "0.1.0", "torch": "2.13.0"},
        "device": "cpu",
        "precision": "float32",
        "clip": {"name": "pocket", "hash": "c" * 64},
        "data": {"hash": "d" * 64, "images": 4, "split": "train", "problems": ["line 7: unknown tag 'dgo'."]},
        "seed": 3,
        "tag_rank": 0.92,
        "stages": {"prototypes": {"seconds": 2.0, "images": 4}, "train": {"seconds": 192.4, "images": 40}},
        "failures": [{"id": EVIL_FILE, "reason": "the image is damaged; replace the file."}],
    }
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(size=(5, 8)).astype("f4") for name in ("text", "vision")}
    facts = {"classes": NAMES, "background": ["sky", "sea"]}
    save_file(tables, run / "prototypes.safetensors", metadata={"vpl": json.dumps(facts)})
    (run / "regions").mkdir()
    for turn in (1, 2):  # the second round replaces the first
        for batch in range(2):
            tensors = {"embeddings": rng.normal(size=(5, 8)).astype("f4"), "class": np.array([0, 1, 2, -1, 0])}
            save_file(tensors, run / "regions" / f"round{turn}-{batch:06d}.safetensors")
    learned = {"regions": 10, "kl_text": 1.5, "kl_vision": 0.25, "gap_text": 1.1, "gap_vision": 0.2}
    learned |= {"kl_before": 1.4, "kl_after": 0.3, "curve": [1.5, 0.5, 0.25], "steps": 50, "own_text": None}
    (run / "prototypes.json").write_text(json.dumps(learned), encoding="utf-8")
    (run / "network").mkdir()
    lines = ["step,loss,pull,note", "1,2.0,0.5,a", "2,1.0,nan,b", "3,0.5,0.25,c"]
    (run / "network" / "curve.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def data(run_folder) -> report.ReportData:
    return report.collect(run_folder)


@pytest.fixture(scope="module")
def page(data) -> str:
    return report.render(data)


@pytest.fixture
def own_run(tmp_path) -> Path:
    """A run folder that the test may break."""
    return make_run(tmp_path)


# ------------------------------------------------------------------------------------------------------------ collect
def test_what_was_run(data):
    assert data.title == "run & co"
    facts = dict(data.facts)
    assert facts["Images"] == "4"
    assert facts["CLIP"] == "pocket" and facts["CLIP weights hash"] == "c" * 16
    assert facts["Device"] == "cpu · float32" and facts["Seed"] == "3"
    assert ("torch", "2.13.0") in data.versions
    assert data.stages == (report.Stage("prototypes", 2.0, 4, 2.0), report.Stage("train", 192.4, 40, None))
    assert data.failures == (report.Failure(EVIL_FILE, "the image is damaged; replace the file."),)
    assert data.problems == ("line 7: unknown tag 'dgo'.",)


def test_settings_are_those_that_differ(data):
    by_key = {one.key: one for one in data.settings}
    assert by_key["prototypes.phi"] == report.Setting(
        "prototypes.phi", "0.4", "0.5", "ours", "Φ: a tag's region is where its text seed is above this"
    )
    assert by_key["seed"].value == "3" and by_key["seed"].default == "0"
    assert "train.steps" not in by_key


def test_evaluations_keep_split_images_and_order(data):
    assert [(one.split, one.images) for one in data.evaluations] == [("train", 4), ("val", 2)]
    train = data.evaluations[0]
    assert train.classes == ("background", *NAMES)
    assert [one.miou for one in train.rows] == [0.3, 0.5, 0.6]
    assert train.rows[0].iou == (0.9, 0.3, 0.3, 0.3)
    assert train.rows[0].recall == (0.9, 0.3, 0.3, None)
    expected = "Network, multi-scale + flip + CRF: 63.4\u00a0% mIoU on val, 2 images. "
    assert report.headline(data) == expected + "Pseudo-masks: 60.0\u00a0% mIoU on train, 4 images."


def test_curves_are_the_numeric_columns(data):
    assert data.curves == (
        report.Curve("loss", (1.0, 2.0, 3.0), (2.0, 1.0, 0.5)),
        report.Curve("pull", (1.0, 3.0), (0.5, 0.25)),
    )


def test_gap_pairs_before_and_after(data):
    numbers = {one.name: (one.before, one.after) for one in data.gap.numbers}
    assert numbers["KL divergence over the tags' regions, nats"] == (1.5, 0.25)
    assert numbers["KL divergence over all regions, nats"] == (1.4, 0.3)
    assert numbers["Distance of the mean region from the mean prototype"] == (1.1, 0.2)
    assert (data.gap.curve.steps, data.gap.curve.values) == ((0.0, 20.0, 50.0), (1.5, 0.5, 0.25))
    kinds = [point.kind for point in data.gap.points]
    assert {kind: kinds.count(kind) for kind in kinds} == {"region": 10, "text": 5, "vision": 5}
    texts = [point for point in data.gap.points if point.kind == "text"]
    assert [(point.label, point.name) for point in texts] == [*enumerate(NAMES), (-1, "sky"), (-1, "sea")]
    assert data.gap.regions == data.gap.shown == 10


def test_cards_hold_every_step_and_the_iou_of_the_last(data):
    cards = {card.id: card for card in data.cards}
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


def test_the_masks_in_the_page_are_the_masks_of_the_run(data):
    pane = next(card for card in data.cards if card.id == "a9").panes[-1]
    with Image.open(io.BytesIO(base64.b64decode(pane.uri.partition(",")[2]))) as picture:
        colors = np.array(picture.convert("RGBA"))
    assert colors.shape == (20, 30, 4)
    assert (colors[:10, :, 3] == 0).all() and (colors[10:, :, 3] == 255).all()
    assert (colors[10, :, :3] == 255).all()  # the outline
    assert (colors[11:, :, :3] == ClassSet(NAMES).palette()[2]).all()


def test_signs_need_no_truth(data):
    signs = {sign.name: sign.value for sign in data.signs}
    assert signs["Tag rank"] == 0.92 and signs["Agreement"] == 0.81
    assert signs["Images with a tag that got no pixel"] == pytest.approx(1 / 4)
    assert signs["Ignored pixels"] == pytest.approx(15 / 600 * 3 / 4)


def test_without_truth_the_page_says_what_can_be_judged(tmp_path):
    data = report.collect(make_run(tmp_path, masks=False))
    assert data.evaluations == () and all(card.iou is None for card in data.cards)
    assert "no IoU can be computed" in data.absent["evaluation"]
    page = report.render(data)
    assert data.absent["evaluation"] in page
    assert "judge this run by its pictures" in page
    assert "Most ignored first" in page and "Worst IoU first" not in page


def test_truth_that_was_not_used_yet_is_told(own_run):
    (own_run / "metrics.json").unlink()
    data = report.collect(own_run)
    assert "vpl evaluate" in data.absent["evaluation"]
    page = report.render(data)
    assert "Not evaluated yet." in page and "No truth masks were given" not in page


def test_what_is_absent_is_said_in_one_sentence(own_run):
    for name in ("seeds", "labels", "predictions", "regions", "network"):
        shutil.rmtree(own_run / name)
    for name in ("metrics.json", "prototypes.json", "prototypes.safetensors"):
        (own_run / name).unlink()
    data = report.collect(own_run)
    assert set(data.absent) == {"evaluation", "training", "gap", "gallery", "signs"} - {"signs"}
    page = report.render(data)
    assert "None" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL).replace("None:", "")
    for sentence in data.absent.values():
        assert page.count(sentence) == 1 and sentence.endswith(".")


def test_moved_images_leave_their_masks_in_the_gallery(own_run):
    (own_run.parent / "data" / "images" / "a9.png").write_bytes(b"no image")
    card = next(card for card in report.collect(own_run).cards if card.id == "a9")
    assert card.photo == "" and "a9.png" in card.problem and len(card.panes) == 6
    shutil.rmtree(own_run.parent / "data" / "images")
    data = report.collect(own_run)
    assert [card.id for card in data.cards] == list(VAL)
    assert "The training images can't be listed" in data.gallery_note


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", None),
        ("config.toml", "seed = ["),
        ("run.json", None),
        ("run.json", "{"),
        ("run.json", "[1]"),
        ("run.json", '{"stages": {"train": 3}}'),
        ("run.json", '{"stages": {"train": {"seconds": "long"}}}'),
        ("run.json", '{"failures": ["a"]}'),
        ("metrics.json", '{"evaluations": {}, "label_free": [1]}'),
        ("metrics.json", '{"evaluations": [{"rows": []}]}'),
        ("metrics.json", '{"evaluations": [{"split": "val", "classes": ["a"], "rows": [{"name": "x", "iou": [1]}]}]}'),
        ("metrics.json", '{"evaluations": [{"split": "v", "classes": ["a"], "rows": [{"name": "x", "miou": "0"}]}]}'),
        (
            "metrics.json",
            '{"evaluations": [{"split": "v", "classes": [], "rows": [{"name": "x", "confusion": [[1, 2, 3]]}]}]}',
        ),
        ("metrics.json", '{"evaluations": [{"split": "v", "classes": [], "rows": [{"name": "x", "confusion": 7}]}]}'),
        ("metrics.json", b"\xff\xfe"),
        ("prototypes.json", '{"curve": 3}'),
        ("prototypes.json", '{"curve": ["a"]}'),
        ("prototypes.safetensors", b"nothing"),
        ("regions/round2-000001.safetensors", b"\x00" * 30),
        ("network/curve.csv", b"\xff\xfe\x00"),
        ("labels/a9.png", b"\x89PNG broken"),
    ],
)
def test_a_broken_run_folder_is_one_clear_error(own_run, name, content):
    path = own_run / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Exception) as caught:
        report.collect(own_run)
    assert type(caught.value).__name__ in ("RunError", "ConfigError")
    assert Path(name).name in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_folder_that_is_no_run_says_what_to_give(tmp_path):
    with pytest.raises(RunError, match=r"no run folder.*vpl run"):
        report.collect(tmp_path / "nothing")


def test_a_large_run_is_bounded_and_keeps_the_worst(run_folder):
    data = report.collect(run_folder, most_pictured=4)
    assert [card.id for card in data.cards] == [TRAIN[0], "a1", *VAL]  # a1 has no object at all: the lowest IoU
    assert "2 of the 4 images of train are here" in data.gallery_note


def test_writing_is_repeatable_and_whole(own_run):
    before = {path.relative_to(own_run) for path in own_run.rglob("*")}
    path = report.write(own_run)
    first = path.read_bytes()
    assert report.write(own_run).read_bytes() == first
    assert path == own_run / "report.html"
    assert {item.relative_to(own_run) for item in own_run.rglob("*")} - before == {Path("report.html")}


# ----------------------------------------------------------------------------------------------------------- geometry
def test_projection_weighs_groups_not_rows():
    rng = np.random.default_rng(1)
    many, few = rng.normal(size=(40, 6)), rng.normal(size=(4, 6)) + 5
    planes, share = report.project([many, few])
    again, same = report.project([np.repeat(many, 7, axis=0), few])
    assert np.allclose(planes[0], again[0][::7]) and np.allclose(planes[1], again[1]) and share == pytest.approx(same)
    assert abs(planes[0][:, 0].mean() - planes[1][:, 0].mean()) > 8  # the gap is what the first axis shows


def test_projection_keeps_a_plane_whole():
    rng = np.random.default_rng(2)
    flat = [rng.normal(size=(n, 2)) @ rng.normal(size=(2, 9)) for n in (5,)]
    planes, share = report.project(flat)
    assert share == pytest.approx(1.0)
    spans = np.linalg.norm(flat[0][:, None] - flat[0][None], axis=-1)
    assert np.allclose(np.linalg.norm(planes[0][:, None] - planes[0][None], axis=-1), spans)
    assert report.project([np.ones((1, 3)), np.ones((2, 3))])[0][1].tolist() == [[0, 0], [0, 0]]


@given(low=st.floats(-1e6, 1e6), span=st.floats(0, 1e6))
@settings(max_examples=200, deadline=None)
def test_ticks_enclose_and_are_few(low, span):
    marks = report.ticks(low, low + span)
    assert 2 <= len(marks) <= 8
    slack = 1e-6 * max(1.0, abs(low), span)
    assert marks[0] <= low + slack and marks[-1] >= low + span - slack
    steps = np.diff(marks)
    assert (steps > 0).all() and np.allclose(steps, steps[0], rtol=1e-3)


def test_ticks_are_round():
    assert report.ticks(0.0, 3.4) == [0, 1, 2, 3, 4]
    assert report.ticks(0.0, 0.0099) == [0, 0.002, 0.004, 0.006, 0.008, 0.01]


def test_a_long_curve_becomes_a_band():
    steps = tuple(map(float, range(1, 10001)))
    made = report.chart(report.Curve("loss", steps, tuple(1.0 + (n % 2) for n in range(10000))))
    assert made.line.count("L") == report.CURVE_BINS - 1
    assert made.band and made.summary == "1 at step 1, 2 at step 10,000; lowest 1 at step 1."


def test_one_step_is_a_curve_too():
    made = report.chart(report.Curve("loss", (5.0,), (2.0,)))
    assert made.line.startswith("M") and not made.band and "nan" not in made.line


def test_confusions_are_shares_of_the_truth(data):
    evaluation = data.evaluations[0]
    table = report.matrix(evaluation, evaluation.rows[-1])
    assert table.names == ("background", "cat", "dog")  # the class that never occurs has no line
    assert table.columns == ("background", "cat", "dog", "no label")
    assert table.shares[1] == (0.2, 0.6, 0.1, 0.1)
    assert table.largest[:2] == (("dog", "cat", 0.3), ("cat", "background", 0.2))


def test_a_wide_matrix_keeps_the_most_confused():
    names = tuple(f"c{n}" for n in range(40))
    counts = np.diag(np.full(41, 1000))
    for right in (3, 7, 9, 40):
        counts[right, right] = 10  # few pixels in all, but the wrong ones count
    counts[7, 9] = counts[3, 40] = 500
    row = report.Row("x", 0.5, 0.5, (), (), (), tuple(map(tuple, counts.tolist())))
    table = report.matrix(report.Evaluation("val", 1, ("background", *names), (row,)), row)
    assert len(table.names) == report.MOST_CONFUSED and table.left_out == 41 - report.MOST_CONFUSED
    assert {"c2", "c6", "c8", "c39"} <= set(table.names)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (41.2, "41 s"), (192.4, "3 min 12 s"), (7440.0, "2 h 04 min")],
)
def test_durations_in_words(seconds, words):
    assert report.duration(seconds) == words


# --------------------------------------------------------------------------------------------------------------- page
class Tags(HTMLParser):
    """Every start tag with its attributes, and whether tags close in the right order."""

    VOID = frozenset(["meta", "link", "input", "br", "img", "line", "circle", "rect", "path"])

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_page_is_well_formed_and_stands_alone(page):
    tags = Tags(page)
    assert not tags.wrong and not tags.open
    for tag, attributes in tags.found:
        for name in ("src", "href"):
            if attributes.get(name):
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert [tag for tag, _ in tags.found].count("script") == 1


def test_texts_of_the_user_are_escaped(page):
    assert EVIL not in page and EVIL_FILE not in page
    assert "&lt;script&gt;window.broken=1&lt;/script&gt;" in page
    assert "Raise &lt;it&gt;." in page and "run &amp; co" in page


def test_page_can_be_read_without_eyes(page):
    tags = Tags(page)
    for tag, attributes in tags.found:
        if tag == "img":
            assert attributes.get("alt"), attributes
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "svg":
            assert attributes.get("aria-hidden") or attributes.get("aria-label") or attributes.get("aria-labelledby")
        if tag == "a":
            assert attributes.get("href")
    names = [tag for tag, _ in tags.found]
    assert names.count("caption") == names.count("table") > 4
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags.found:
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert "prefers-reduced-motion" in page and "prefers-color-scheme: dark" in page


def test_every_section_shows_its_numbers(page):
    for text in ("63.4", "network, multi-scale + flip + CRF", "text seeds", "3 min 12 s", "prototypes.phi", "dgo"):
        assert text in page, text
    assert page.count('class="card"') == 6


def test_the_data_are_plain(data):
    assert json.dumps(dataclasses.asdict(data))


# ----------------------------------------------------------------------------------------------------------- Chromium
class Browser:
    """A headless Chromium, driven by WebDriver over plain HTTP."""

    def __init__(self, driver: str, chromium: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._process = subprocess.Popen(
            [driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        options = {
            "binary": chromium,
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--window-size=1280,900",
            ],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            self._await()
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self._process.kill()
            raise
        self._base += f"/session/{session['sessionId']}"

    def _await(self) -> None:
        for _ in range(150):
            with contextlib.suppress(OSError):
                self._call("GET", "/status")
                return
            time.sleep(0.1)
        raise RuntimeError("chromedriver doesn't answer")

    def _call(self, method: str, path: str, body: dict | None = None):
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._base + path, content, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:500]) from None

    def open(self, path: Path) -> None:
        self._call("POST", "/url", {"url": path.resolve().as_uri()})

    def run(self, script: str, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def devtools(self, command: str, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def press(self, key: str, times: int = 1) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}] * times
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    def click(self, query: str) -> None:
        found = self._call("POST", "/element", {"using": "css selector", "value": query})
        (element,) = found.values()
        self._call("POST", f"/element/{element}/click", {})

    def console(self) -> list[str]:
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._call("DELETE", "")
        self._process.terminate()
        self._process.wait()


ENTER, TAB = "\ue007", "\ue004"


@pytest.fixture(scope="module")
def browser():
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.skip("no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)")
    made = Browser(driver, chromium)
    yield made
    made.close()


@pytest.fixture(scope="module")
def opened(browser, run_folder):
    path = report.write(run_folder)

    def again(width: int = 1280, dark: bool = False) -> Browser:
        browser.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
        )
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        browser.devtools(
            "Emulation.setEmulatedMedia", features=[{"name": name, "value": one} for name, one in features.items()]
        )
        browser.open(path)
        return browser

    return again


def shown(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('.card:not([hidden]) h3')].map(one => one.textContent)")


def test_chromium_has_nothing_to_complain_about(opened):
    browser = opened()
    assert browser.run("return document.title") == "run & co – vpl report"
    assert browser.console() == []
    assert browser.run("return window.broken") is None
    assert browser.run("return document.querySelectorAll('script').length") == 1
    assert (
        browser.run("return performance.getEntriesByType('resource').filter(one => /^http/.test(one.name)).length") == 0
    )
    broken = "return [...document.images].filter(one => !one.complete || !one.naturalWidth || !one.alt).length"
    assert browser.run(broken) == 0


def test_worst_first_on_a_click(opened):
    browser = opened()
    assert shown(browser) == [EVIL_FILE, "a1", "a9", "a10", "v0", "v1"]
    browser.click("[data-order=worst]")
    worst = shown(browser)
    assert worst[0] == "a1" and set(worst[-2:]) == {"v0", "v1"}
    assert browser.run("return document.querySelector('[data-order=worst]').ariaPressed") == "true"
    assert "worst iou first" in browser.run("return document.getElementById('said').textContent")
    browser.click("button[data-split=train]")
    assert shown(browser) == worst[:-2]
    browser.click("[data-order=best]")
    assert shown(browser) == worst[:-2][::-1]
    assert browser.console() == []


def test_everything_works_by_keyboard(opened):
    browser = opened()
    browser.run("document.querySelector('table.sortable button').focus()")
    outline = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
    browser.press(ENTER)
    assert browser.run("return document.querySelector('table.sortable th').ariaSort") == "ascending"
    style, width = browser.run(outline)
    assert style == "solid" and width >= 2
    rows = "return [...document.querySelector('table.sortable').tBodies[0].rows].map(one => one.cells[0].textContent)"
    up = browser.run(rows)
    browser.press(ENTER)
    assert browser.run(rows) == up[::-1] and sorted(up) == sorted(["background", *NAMES])
    browser.run(
        "window.reached = []; document.activeElement.blur(); window.scrollTo(0, 0);"
        "document.addEventListener('focusin', ({target}) =>"
        " reached.push(target.id || target.dataset.order || target.textContent))"
    )
    browser.press(TAB, 80)
    reached = set(browser.run("return window.reached"))
    assert {"worst", "strength", "Gallery", "Skip to the results"} <= reached
    assert browser.run("return [...document.querySelectorAll('[onclick], div[tabindex]:not([role])')].length") == 0


def test_one_class_of_the_projection_can_be_picked(opened):
    browser = opened()
    browser.click("[data-pick='0']")
    on = "return [...document.querySelectorAll('#scatter .on')].map(one => one.dataset.c)"
    marks = browser.run(on)
    assert set(marks) == {"0"} and len(marks) == 4 + 3  # regions, link, text and vision prototype
    browser.click("[data-pick='0']")
    assert browser.run(on) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_screen_and_can_be_read(opened, width, dark):
    browser = opened(width, dark)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    contrast = """
    const light = text => {
      const parts = text.match(/[\\d.]+/g).slice(0, 3).map(one => one / 255);
      const line = parts.map(one => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4);
      return .2126 * line[0] + .7152 * line[1] + .0722 * line[2];
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    return [...document.querySelectorAll('p, th, td, h1, h2, h3, dt, dd, a, figcaption')].map(one => {
      const ink = light(getComputedStyle(one).color);
      return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    });
    """
    assert min(browser.run(contrast)) >= 4.5
    assert (browser.run("return getComputedStyle(document.body).backgroundColor") < "rgb(1") is False
    paper = [int(n) for n in re.findall(r"\d+", browser.run("return getComputedStyle(document.body).backgroundColor"))]
    assert (max(paper) < 60) if dark else (min(paper) > 230)


def test_motion_is_left_out_when_it_is_unwelcome(opened):
    browser = opened()
    smooth = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.run(smooth) == "auto"
    browser.devtools("Emulation.setEmulatedMedia", features=[])
    assert browser.run(smooth) == "smooth"


def test_a_smuggled_script_does_not_run(opened, run_folder):
    path = run_folder.parent / "smuggled.html"
    page = (run_folder / "report.html").read_text(encoding="utf-8")
    path.write_text(page.replace("<footer>", "<script>window.broken = 3</script><footer>"), encoding="utf-8")
    browser = opened()
    browser.open(path)
    assert browser.run("return window.broken") is None
    assert any("Content Security Policy" in message for message in browser.console())
