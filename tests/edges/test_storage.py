"""Files behind URLs: read and written whole, never chained, without keys; images and data sets take such places."""

from __future__ import annotations

import io
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
    images.write_bytes_atomic(f"{root}/a b#é.bin", b"one")
    images.write_bytes_atomic(f"{root}/a b#é.bin", b"two")
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
        images.write_bytes_atomic(f"local://{tmp_path}/mask.png", b"many")
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
    assert [(one.id, one.image) for one in found.samples] == [("one", f"{store}/photos/a/one.jpg")]
    assert len(found.problems) == 2
    with pytest.raises(DataError, match="format is class-folders, which lists folders"):
        open_dataset(DataConfig(images=store, format="class-folders"))
