"""Decisions on photographs: written whole, never lost to another window, used by plan and training."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import numpy as np
import pytest

from vpl.classes import ClassSet
from vpl.edges import images, storage
from vpl.edges.datasets import Dataset, Sample
from vpl.errors import DataError, RunError
from vpl.runs import review
from vpl.runs.review import Changed, Decision, Review

CLASSES = ClassSet(("dog", "red car"))


def dataset() -> Dataset:
    return Dataset(tuple(Sample(id, Path(f"{id}.png"), ("dog",), None) for id in ("a", "b/c", "d")), CLASSES, ())


def test_decisions_are_read_back(tmp_path):
    first = Review(tmp_path)
    nothing = Decision().revision
    first.decide("a", "reject", None, nothing)
    first.decide("b/c", "", ("dog", "red car"), nothing)
    mask = np.array([[0, 1], [2, 255]], np.uint8)
    first.paint("d", mask, CLASSES, nothing)
    second = Review(tmp_path)
    assert second.decisions == first.decisions and second.of("b/c").tags == ("dog", "red car")
    assert [one.tags for one in review.reviewed(dataset(), tmp_path).samples] == [
        ("dog",),
        ("dog", "red car"),
        ("dog",),
    ]
    rejected, corrected = review.taught(tmp_path)
    assert rejected == {"a"} and np.array_equal(images.read_mask(corrected["d"]), mask)
    second.paint("d", None, CLASSES, second.of("d").revision)
    assert review.taught(tmp_path)[1] == {} and not (tmp_path / "corrected" / "d.png").exists()
    second.decide("a", "", None, second.of("a").revision)
    second.decide("b/c", "", None, second.of("b/c").revision)
    assert (tmp_path / "review.csv").read_text() == "id,decision,tags,corrected\n"


def test_the_digest_follows_what_is_taught_alone(tmp_path):
    made, nothing = Review(tmp_path), Decision().revision
    made.decide("a", "accept", None, nothing)
    made.decide("d", "", ("red car",), nothing)
    assert review.digest_of_teaching(tmp_path) == "", "tags are in the plan by themselves"
    made.decide("a", "reject", None, made.of("a").revision)
    first = review.digest_of_teaching(tmp_path)
    made.paint("d", np.zeros((2, 2), np.uint8), CLASSES, made.of("d").revision)
    second = review.digest_of_teaching(tmp_path)
    made.paint("d", np.ones((2, 2), np.uint8), CLASSES, made.of("d").revision)
    assert len({"", first, second, review.digest_of_teaching(tmp_path)}) == 4


def test_the_later_window_is_told(tmp_path):
    made, nothing = Review(tmp_path), Decision().revision
    made.decide("a", "accept", None, nothing)
    with pytest.raises(Changed, match="a was decided on in another window"):
        made.decide("a", "reject", None, nothing)
    assert made.of("a").decision == "accept"
    won = []

    def decide(decision: str) -> None:
        with contextlib.suppress(Changed):
            won.append(made.decide("d", decision, None, nothing).decision)

    threads = [threading.Thread(target=decide, args=(one,)) for one in ("accept", "reject") * 8]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(won) == 1 and Review(tmp_path).of("d").decision == won[0]


def test_a_kill_while_saving_leaves_the_decision_before(tmp_path, monkeypatch):
    made, nothing = Review(tmp_path), Decision().revision
    made.decide("a", "accept", None, nothing)
    before = (tmp_path / "review.csv").read_bytes()

    def killed(path, text):
        (tmp_path / f".half{storage.PARTIAL}").write_text(text[:20])
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_text_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        made.decide("d", "reject", None, nothing)
    assert (tmp_path / "review.csv").read_bytes() == before and Review(tmp_path).of("a").decision == "accept"
    assert made.of("d") == Decision(), "what is not on the disk was not decided"


def test_names_of_every_kind_are_read_back(tmp_path):
    made, nothing = Review(tmp_path), Decision().revision
    names = ["a\u2028b", "c\x85d", 'e"f', "g,h", "</script>", " i ", "ü\u0308", "=1+1", "#j"]
    for name in names:
        made.decide(name, "accept", None, nothing)
    assert set(Review(tmp_path).decisions) == set(names)
    text = (tmp_path / "review.csv").read_text(encoding="utf-8")
    (tmp_path / "review.csv").write_text(f"\ufeff{text}".replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert set(Review(tmp_path).decisions) == set(names), "as a spreadsheet saves it"


HEAD = "id,decision,tags,corrected\n"


@pytest.mark.parametrize(
    "text",
    [
        "id,decision\na,accept\n",
        f"{HEAD}a,perhaps,,\n",
        "\xff",
        "",
        f"{HEAD}a,accept,\n",
        f"{HEAD}a,accept,,,\n",
        f'{HEAD}a,accept,"[""do',
        f"{HEAD}a,accept,,\na,reject,,\n",
    ],
)
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / "review.csv").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"review\.csv is damaged"):
        Review(tmp_path)


def test_a_painted_mask_that_is_gone_is_told(tmp_path):
    Review(tmp_path).paint("d", np.zeros((2, 2), np.uint8), CLASSES, Decision().revision)
    (tmp_path / "corrected" / "d.png").unlink()
    with pytest.raises(RunError, match=r"the painted mask of d is gone from corrected/"):
        review.taught(tmp_path)


def test_what_is_no_decision_is_refused(tmp_path):
    made, nothing = Review(tmp_path), Decision().revision
    with pytest.raises(DataError, match="expected accept or reject"):
        made.decide("a", "perhaps", None, nothing)
    with pytest.raises(DataError, match="other labels than 0 to 2"):
        made.paint("a", np.full((2, 2), 3, np.uint8), CLASSES, nothing)
    made.decide("a", "", ("cat",), nothing)
    with pytest.raises(RunError, match="has the tag 'cat', which is none of the classes"):
        review.reviewed(dataset(), tmp_path)
