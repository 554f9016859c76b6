"""Files behind URLs: read and written whole, never chained, without keys; images and data sets take such places."""

from __future__ import annotations

import errno
import io
import os
import stat
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpl.config import DataConfig
from vpl.edges import images, storage
from vpl.edges.datasets import open_dataset
from vpl.errors import ConfigError, DataError, RunError


@pytest.fixture
def store() -> str:
    """An empty place in memory."""
    return f"memory://{uuid.uuid4().hex}"


def png(height: int, width: int) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)).save(packed, "PNG")
    return packed.getvalue()


def test_a_url_is_told_from_a_path(tmp_path):
    assert storage.is_url("s3://bucket/a") and not storage.is_url("a/b") and not storage.is_url(tmp_path)
    assert storage.place_of("s3://bucket/a") == "s3://bucket/a" and storage.place_of("a") == Path("a")
    assert storage.below("s3://bucket/a/", "b.png") == "s3://bucket/a/b.png"
    assert storage.below(tmp_path, "b.png") == tmp_path / "b.png"


@pytest.mark.parametrize("root", ["memory://{}", "local://{}", "file://{}"])
def test_what_is_written_is_read_and_nothing_else_is_left(root, tmp_path):
    root = root.format(tmp_path / "out")
    storage.make_folder(root)
    storage.write_bytes_atomic(f"{root}/a b#é.bin", b"one")
    storage.write_bytes_atomic(f"{root}/a b#é.bin", b"two")
    assert storage.read(f"{root}/a b#é.bin", 10) == b"two"
    assert storage.exists(f"{root}/a b#é.bin") and not storage.exists(f"{root}/b")
    if not root.startswith("memory"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a b#é.bin"]


def test_a_store_of_files_never_shows_half_a_file(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    seen = []

    def interrupted(self, path, data, **_):
        Path(path).write_bytes(data[:1])
        seen.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "pipe_file", interrupted)
    with pytest.raises(RunError, match=r"local://.*/mask\.png can't be written \(No space left on device\)"):
        storage.write_bytes_atomic(f"local://{tmp_path}/mask.png", b"many")
    assert len(seen) == 1 and not seen[0].endswith("mask.png") and not list(tmp_path.iterdir())


def test_faults_say_what_to_do(store):
    with pytest.raises(DataError, match="there is no file memory://"):
        storage.read(f"{store}/none", 10)
    storage.write(f"{store}/long", b"0123456789A", "part")
    with pytest.raises(DataError, match="has more than 10 bytes"):
        storage.read(f"{store}/long", 10)
    with pytest.raises(RunError, match="the store of what://a can't be used"):
        storage.read("what://a", 10)


@pytest.mark.parametrize("url", ["s3://key:secret@bucket/a", "https://host/a?X-Amz-Signature=1", "ftp://user@host/a"])
def test_keys_in_a_url_are_refused_before_anything_is_stored(url):
    with pytest.raises(ConfigError, match=r"data\.images is a URL with a user, a password or a query") as caught:
        open_dataset(DataConfig(images=url))
    assert "secret" not in str(caught.value)


def test_urls_are_never_chained(store, tmp_path):
    """fsspec would take what follows "::" for another file system."""
    (tmp_path / "private").write_bytes(b"private")
    with pytest.raises(DataError, match="there is no file"):
        storage.read(f"{store}/x::file://{tmp_path}/private", 10)
    storage.write(f"{store}/x::y", b"own", "part")
    assert storage.read(f"{store}/x::y", 10) == b"own"


def test_images_and_masks_behind_urls(store, tmp_path):
    (tmp_path / "a.png").write_bytes(png(5, 7))
    storage.write(f"{store}/a.png", png(5, 7), "part")
    storage.write(f"{store}/bad.png", png(5, 7)[:40], "part")
    assert images.image_size(f"{store}/a.png") == (5, 7)
    assert (images.read_image(f"{store}/a.png") == images.read_image(tmp_path / "a.png")).all()
    with pytest.raises(DataError, match=rf"{store}/bad\.png"):
        images.read_image(f"{store}/bad.png")
    mask = np.ones((5, 7), np.uint8)
    images.write_mask(f"{store}/mask.png", mask, [(0, 0, 0), (9, 9, 9)])
    images.write_mask(tmp_path / "mask.png", mask, [(0, 0, 0), (9, 9, 9)])
    assert storage.read(f"{store}/mask.png", 10**6) == (tmp_path / "mask.png").read_bytes()


def test_a_list_of_images_behind_a_url(store, tmp_path):
    tags = tmp_path / "tags.csv"
    tags.write_text("file_name,tags\na/one.jpg,dog\n../two.jpg,dog\n/three.jpg,dog\n")
    found = open_dataset(DataConfig(images=f"{store}/photos", tags=str(tags)))
    assert [(one.id, one.image) for one in found.samples] == [("a/one", f"{store}/photos/a/one.jpg")]
    assert len(found.problems) == 2
    with pytest.raises(DataError, match="format is class-folders, which lists folders"):
        open_dataset(DataConfig(images=store, format="class-folders"))


# Atomic writing


def test_atomic_writing_replaces_and_leaves_nothing_else(tmp_path):
    storage.write_text_atomic(tmp_path / "a.txt", "old\n")
    storage.write_text_atomic(tmp_path / "a.txt", "grün\r\n")
    assert (tmp_path / "a.txt").read_bytes() == "grün\r\n".encode()
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    storage.write_bytes_atomic(tmp_path / ("é" * 127 + "a"), b"x")
    assert len(list(tmp_path.iterdir())) == 1


def test_new_files_have_the_usual_permissions(tmp_path):
    storage.write_bytes_atomic(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_removes_the_partial(tmp_path, monkeypatch, error):
    storage.write_bytes_atomic(tmp_path / "a", b"old")

    def fail(self, target):
        assert self.name.endswith(storage.PARTIAL)
        raise error

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(RunError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        storage.write_bytes_atomic(tmp_path / "a", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"
    if isinstance(error, OSError):
        assert "can't be written (No space left on device); check the folder" in str(raised.value)


def test_writing_where_nothing_can_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "a", tmp_path / "folder"):
        with pytest.raises(RunError, match="can't be written"):
            storage.write_bytes_atomic(path, b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """What a power cut must not empty: the file is synced before its rename, the folder after it."""
    told = []
    real = {"fsync": os.fsync, "replace": Path.replace}
    monkeypatch.setattr(os, "fsync", lambda number: told.append(kind_of(number)) or real["fsync"](number))
    monkeypatch.setattr(Path, "replace", lambda self, goal: told.append("name") or real["replace"](self, goal))
    storage.write_bytes_atomic(tmp_path / "a", b"x")
    assert told == ["file", "name", "folder"]


def kind_of(number: int) -> str:
    return "folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file"


def test_a_file_that_someone_reads_is_replaced_once_it_is_free(tmp_path, monkeypatch):
    """Windows refuses to rename over an open file; a virus scanner's look takes a moment."""
    (tmp_path / "a").write_bytes(b"old")
    real, busy = Path.replace, [5, 32]

    def replace(self, goal):
        if busy:
            error = PermissionError(13, "Access is denied")
            error.winerror = busy.pop()
            raise error
        return real(self, goal)

    monkeypatch.setattr(Path, "replace", replace)
    storage.write_bytes_atomic(tmp_path / "a", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"new"


def test_a_file_swept_by_another_process_is_written_again(tmp_path, monkeypatch):
    real, swept = Path.replace, []

    def replace(self, goal):
        if not swept:
            swept.append(self.unlink())
        return real(self, goal)

    monkeypatch.setattr(Path, "replace", replace)
    storage.write_bytes_atomic(tmp_path / "a", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"new"


def test_a_folder_that_can_not_be_opened_is_no_reason_not_to_write(tmp_path, monkeypatch):
    """On Windows a folder can't be opened, so its names can't be synced."""
    real = os.open

    def refused(path, flags, *more):
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refused)
    storage.write_bytes_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_whole_folder_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    partial = tmp_path / "partial"
    (partial / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (partial / name).write_bytes(b"x")
    (partial / "link").symlink_to("a")
    told, real = [], {"fsync": os.fsync, "rename": Path.rename}
    monkeypatch.setattr(os, "fsync", lambda number: told.append(kind_of(number)) or real["fsync"](number))
    monkeypatch.setattr(Path, "rename", lambda self, goal: told.append("name") or real["rename"](self, goal))
    storage.take_name(partial, tmp_path / "whole")
    assert sorted(told[: told.index("name")]) == ["file", "file", "folder", "folder"]
    assert told[told.index("name") :] == ["name", "folder"] and (tmp_path / "whole" / "deep" / "b").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "there is not enough memory to read"),
        (OSError(errno.EIO, "Input/output error"), "can't be read now .Input/output error.; mend that"),
        (OSError(errno.EMFILE, "Too many open files"), "can't be read now"),
        (FileNotFoundError(errno.ENOENT, "No such file"), "the folder .*gone has vanished"),
        (PermissionError(errno.EACCES, "Permission denied"), "the folder .*gone has vanished, or can't be entered"),
    ],
)
def test_the_machine_is_no_bad_file(tmp_path, error, words):
    with pytest.raises(RunError, match=words):
        storage.check_machine(tmp_path / "gone" / "a.png", error)


def test_a_bad_file_is_not_the_machine(tmp_path):
    for error in (FileNotFoundError(errno.ENOENT, "No such file"), PermissionError(errno.EACCES, "Permission denied")):
        storage.check_machine(tmp_path / "a.png", error)
    storage.check_machine(tmp_path / "a.png", ValueError("damaged"))
    (tmp_path / "file").touch()
    storage.check_machine(tmp_path / "file" / "a.png", NotADirectoryError(errno.ENOTDIR, "Not a directory"))
