"""vpl.report: a run folder whose every number is known, and the page that it becomes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_case import EVIL, EVIL_FILE, NAMES, make_run
from vpl.errors import RunError
from vpl.pages import report
from vpl.pages.charts import Curve
from vpl.runs.review import Review


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


def test_what_was_run(data):
    assert data.title == "run & co"
    facts = dict(data.facts)
    assert facts["Images"] == "4"
    assert facts["CLIP"] == "pocket" and facts["CLIP weights hash"] == "c" * 16
    assert facts["Device"] == "cpu · float32" and facts["Seed"] == "3"
    assert ("torch", "2.13.0") in data.versions
    assert data.stages == (report.StageTime("prototypes", 2.0, 4, 2.0), report.StageTime("train", 192.4, 40, None))
    assert data.failures == (report.Failure(EVIL_FILE, "the image is damaged; replace the file."),)
    assert data.problems == ("line 7: unknown tag 'dgo'.",)


def test_settings_are_those_that_differ(data):
    by_key = {one.key: one for one in data.settings}
    assert by_key["prototypes.phi"] == report.Changed(
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
        Curve("loss", (1.0, 2.0, 3.0), (2.0, 1.0, 0.5)),
        Curve("pull", (1.0, 3.0), (0.5, 0.25)),
    )


def test_signs_need_no_truth(data):
    signs = {name: sign.value for name, sign in data.signs}
    assert signs["Tag rank"] == 0.92 and signs["Agreement"] == 0.81 and "CRF change" not in signs
    assert signs["Tags without a pixel"] == pytest.approx(1 / 4)
    assert signs["Ignored pixels"] == pytest.approx(15 / 600 * 3 / 4)


def test_what_was_measured_over_the_whole_run_replaces_what_the_gallery_counted(own_run):
    metrics = json.loads((own_run / "metrics.json").read_text())
    metrics["label_free"]["ignored pixels"] = {"value": 0.5, "meaning": "Measured.", "advice": ""}
    (own_run / "metrics.json").write_text(json.dumps(metrics))
    assert [(one.value, one.meaning) for name, one in report.collect(own_run).signs if name == "Ignored pixels"] == [
        (0.5, "Measured.")
    ]


def test_signs_that_ask_for_something_come_first(data, page):
    assert [(name, one.value, one.advice) for name, one in data.with_truth] == [
        ("Co-occurrence", 0.375, "Add <words>."),
        ("Completeness", 0.625, ""),
    ]
    asking = [bool(one.advice) for _, one in data.signs]
    assert asking == sorted(asking, reverse=True) and asking.count(True) == 2  # agreement, tags without a pixel
    assert page.count('class="bad"') == 3 and page.count('class="todo"') == 3
    assert "1 of 2 asks for something to be done and comes first." in page
    assert (
        page.index("How the masks fail</h2>")
        < page.index("Add &lt;words&gt;.")
        < page.index("Without ground truth</h2>")
    )


def test_a_clip_that_does_not_know_the_photographs_is_told(own_run):
    record = json.loads((own_run / "run.json").read_text())
    (own_run / "run.json").write_text(json.dumps(record | {"tag_rank": 0.55}))
    rank = dict(report.collect(own_run).signs)["Tag rank"]
    assert rank.value == 0.55 and "clip.model" in rank.advice


def test_failures_that_were_not_measured_yet_are_told(own_run):
    metrics = json.loads((own_run / "metrics.json").read_text())
    (own_run / "metrics.json").write_text(json.dumps({"evaluations": metrics["evaluations"]}))
    data = report.collect(own_run)
    assert "vpl evaluate" in data.absent["with truth"] and data.absent["with truth"] in report.render(data)


def test_without_truth_the_page_says_what_can_be_judged(tmp_path):
    data = report.collect(make_run(tmp_path, masks=False))
    assert data.evaluations == () and all(one.iou is None for one in data.exhibits)
    assert "no IoU can be computed" in data.absent["evaluation"]
    page = report.render(data)
    assert data.absent["evaluation"] in page
    assert "No truth masks were given, so there is no score." in page
    assert "Most ignored first" in page and "Worst IoU first" not in page
    assert "How the masks fail" not in page


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


@pytest.mark.slow
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
        ("metrics.json", '{"with_truth": [1]}'),
        ("metrics.json", '{"with_truth": {"completeness": 1}}'),
        ("metrics.json", '{"label_free": {"agreement": {"value": "high"}}}'),
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
        ("prototypes.json", '{"modality": 3}'),
        ("prototypes.json", '{"modality": {"text": {"separability": 1, "classes": {"cat": {}}}, "vision": {}}}'),
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


def test_writing_is_repeatable_and_whole(own_run):
    before = {path.relative_to(own_run) for path in own_run.rglob("*")}
    path = report.report(own_run)
    first = path.read_bytes()
    assert report.report(own_run).read_bytes() == first
    assert path == own_run / "report.html"
    assert {item.relative_to(own_run) for item in own_run.rglob("*")} - before == {Path("report.html")}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (41.2, "41 s"), (192.4, "3 min 12 s"), (7440.0, "2 h 04 min")],
)
def test_durations_in_words(seconds, words):
    assert report.duration(seconds) == words


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


def test_the_page_looks_first_and_says_what_to_do_next(data, page, own_run):
    assert page.index('id="gallery"') < page.index('id="results"') and page.index('<ol class="steps"') < page.index(
        'id="gallery"'
    )
    steps = report.next_steps(data)
    assert len(steps) == 3 and steps[0].startswith("Tags without a pixel: ") and "(2 more below.)" in steps[0]
    assert "<code>vpl app RUN</code>" in page
    assert "vpl app RUN" in steps[1] and "vpl run RUN --train" in steps[2]
    review = Review(own_run)
    review.decide("a9", "reject", None, review.of("a9").revision)
    review.decide("a1", "", ("dog",), review.of("a1").revision)
    made = report.collect(own_run)
    assert made.reviewed == (("rejected", 1), ("with corrected tags", 1))
    assert "Reviewed so far: 1 rejected, 1 with corrected tags." in report.next_steps(made)[1]
    assert 'class="decided">rejected' in report.render(made)


def test_classes_that_occur_nowhere_are_left_out(data):
    one = data.evaluations[0]
    last = dataclasses.replace(one.rows[-1], iou=(*one.rows[-1].iou[:-1], None))
    shown = dataclasses.replace(data, evaluations=(dataclasses.replace(one, rows=(last,)),))
    assert "1 class occurs neither in the truth nor in these masks and is left out." in report.render(shown)
    for made, count in ((shown, 0), (data, 1)):
        section = report.render(made).partition('id="classes"')[2].partition("</section>")[0]
        tables = section.split("<table")[1:]
        assert tables[-1].count(f'<th scope="row">{one.classes[-1]}</th>') == count
