"""What people give as images: every form, and what is left out with its reason."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vpl.edges import images, outputs, sources, storage
from vpl.errors import DataError


def write(path, side=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "b.PNG", "day1/a.jpg", "day1/deep/c.webp"):
        write(folder / name)
    return folder


def names(found):
    return [one.name for one in found.found]


def test_a_folder_with_its_sub_folders(photos):
    found = sources.read(photos)
    assert names(found) == ["a", "b", "day1/a", "day1/deep/c"] and found.left_out == ()
    assert found.folders == (photos, photos / "day1", photos / "day1" / "deep"), "nothing is written into any of them"
    assert found.found[2].image == photos / "day1" / "a.jpg"


def test_a_pattern_goes_round_no_loop_of_links(photos):
    before = names(sources.read(str(photos / "**" / "*.jpg")))
    (photos / "loop").symlink_to(photos)
    (photos / "here").symlink_to(".")
    (photos / "day1" / "up").symlink_to("..")
    found = sources.read(str(photos / "**" / "*.jpg"))
    assert names(found) == before == ["a", "day1/a"] and len(found.left_out) == 3
    assert all("is not followed" in why for _, why in found.left_out)
    assert names(sources.read(str(photos / "**"))) == names(sources.read(photos))
    assert names(sources.read(str(photos / "**" / "day1" / "**" / "*.webp"))) == ["day1/deep/c"]
    assert names(sources.read(str(photos / "loop" / "*.jpg"))) == ["a"], "a link that is named is followed"


def test_a_file_a_pattern_and_a_list(photos):
    assert names(sources.read(photos / "a.jpg")) == ["a"]
    assert names(sources.read(str(photos / "**" / "*.jpg"))) == ["a", "day1/a"]
    assert names(sources.read(f"{photos}/*")) == ["a", "b"]
    assert names(sources.read([photos / "b.PNG", photos / "day1"])) == ["b", "a", "deep/c"]


def test_a_list_names_files_from_its_folder(photos, monkeypatch):
    (photos / "list.txt").write_text(
        f"\ufeff# mine\nday1/a.jpg\n\nb.PNG\r\n{photos / 'a.jpg'}\n../{photos.name}/day1/deep/c.webp\ngone.jpg\n",
        encoding="utf-8",
    )
    found = sources.read(photos / "list.txt")
    assert names(found) == ["day1/a", "b", "a", "c"]
    assert [name for name, _ in found.left_out] == ["'gone.jpg'"] and "no such file" in found.left_out[0][1]
    assert photos / "day1" in found.folders, "nothing is written there"
    monkeypatch.chdir(photos.parent)
    (photos / "day1" / "other.txt").write_text("photos/b.PNG\n")
    assert names(sources.read("photos/day1/other.txt")) == ["photos/b"]
    (photos / "other.txt").write_bytes(b"\xff\xfe")
    for text, words in (("other.txt", "one path a line"), ("day1/none.txt", "no file or folder")):
        with pytest.raises(DataError, match=words):
            sources.read(photos / text)


def test_names_that_meet_are_told_apart_by_their_folders(photos):
    found = sources.read([photos / "a.jpg", photos / "day1" / "a.jpg"])
    assert names(found) == ["a", "day1/a"] and found.left_out == ()
    assert names(sources.read([photos / "a.jpg", photos])) == ["a", "b", "day1/a", "day1/deep/c"], (
        "one file twice is one"
    )


def test_pictures_in_memory_are_named_by_their_place(photos):
    array = np.zeros((4, 5, 3), np.uint8)
    found = sources.read([array, photos / "a.jpg", Image.fromarray(array)])
    assert names(found) == ["0", "a", "2"] and found.found[0].image is array
    assert names(sources.read(array)) == ["0"]


def test_what_is_left_out_is_named(photos):
    (photos / "notes.txt").write_text("no image")
    (photos / ".hidden.jpg").write_bytes(b"")
    write(photos / "a.png")
    (photos / "empty.png").mkdir()
    (photos / "linked").symlink_to(photos / "day1")
    (photos / "out.jpg").symlink_to("/etc/passwd")
    found = sources.read(photos)
    told = {name.strip("'"): why for name, why in found.left_out}
    assert (
        set(told) == {"notes.txt", "a.png", "linked", "out.jpg", "empty.png"} and "is a link out of" in told["out.jpg"]
    )
    assert "damaged or no image" in told["notes.txt"] and "not followed" in told["linked"]
    assert "a.jpg, has the same name but for its suffix" in told["a.png"]


def test_names_that_a_disk_may_not_tell_apart_are_one(tmp_path):
    for name in ("a.png", "A.png", "day1/b.png", "day2/B.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    found = sources.read([tmp_path / name for name in ("A.png", "a.png", "day1/b.png", "day2/B.png")])
    assert [one.name for one in found.found] == ["A", "day1/b", "day2/B"]
    assert "but for capitals or Unicode forms, which not every disk tells apart" in found.left_out[0][1]


def test_what_vpl_has_made_below_is_no_photograph(photos):
    made = outputs.Made(photos / "day1" / "deep")
    made.begin(["x.png"])
    (photos / "out").mkdir()
    outputs.Made(photos / "out").begin(["a.png"])
    write(photos / "out" / "a.png")
    assert names(sources.read(photos)) == names(sources.read(f"{photos}/**/[ab].*")) == ["a", "b", "day1/a"]
    outputs.Made(photos).begin(["c.png", "overlays/c.png"])
    write(photos / "c.png")
    (photos / "overlays").mkdir()
    write(photos / "overlays" / "c.png")
    assert names(sources.read(photos)) == ["a", "b", "day1/a"], "masks beside photographs are no photographs"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("missing.jpg", "there is no file or folder missing.jpg"),
        ("nothing/*.jpg", r"the pattern nothing/\*.jpg finds no file"),
        ([], "no image was given"),
        ([3], "image 0 is a int"),
        (7, "the images are a int"),
        ("a\0b", "can't be used as a path|there is no file"),
    ],
)
def test_what_finds_nothing_is_one_sentence(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=words):
        sources.read(given)


def test_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no images"):
        sources.read(tmp_path / "empty")


def test_a_name_with_brackets_is_a_file_first(tmp_path):
    assert names(sources.read(str(write(tmp_path / "a[1].jpg")))) == ["a[1]"]


def test_films_are_known_by_their_suffix(tmp_path):
    (tmp_path / "walk.MP4").write_bytes(b"")
    write(tmp_path / "a.v2.jpg")
    first, second = sources.read(tmp_path).found
    assert (first.name, first.is_film) == ("a.v2", False) and (second.name, second.is_film) == ("walk", True)
    assert images.read_image(first.image).shape == (8, 8, 3)


def test_kinds_are_counted_so_that_none_is_passed_over_without_a_word(tmp_path):
    for name in ("a.jpg", "b.JPG", "day/c.jfif", "d"):
        storage.ready(tmp_path, name)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "jpeg")
    assert sources.read(tmp_path).kinds() == "2 .jpg, 1 without suffix, 1 .jfif"
    assert sources.read(np.zeros((4, 4, 3), np.uint8)).kinds() == ""
