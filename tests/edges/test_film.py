"""Films are written, read back, and refused in one sentence."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vpl.edges import film
from vpl.errors import DataError


def pictures(count=5, height=33, width=48):
    for number in range(count):
        yield np.full((height, width, 3), (40 * number, 128, 255 - 40 * number), np.uint8)


def test_frames_come_back_in_their_order(tmp_path):
    path = tmp_path / "walk.mp4"
    film.write(path, pictures(), Fraction(10))
    back = dict(film.frames(path))
    assert list(back) == [0, 1, 2, 3, 4] and film.rate(path) == 10
    for number, picture in enumerate(pictures()):
        assert back[number].shape == (32, 48, 3), "odd sides lose a row"
        assert abs(back[number].mean((0, 1)) - picture[0, 0]).max() < 12
    assert [number for number, _ in film.frames(path, every=2)] == [0, 2, 4]
    assert [one.name for one in tmp_path.iterdir()] == ["walk.mp4"]


@pytest.mark.parametrize("content", [b"", b"no film at all" * 99])
def test_what_is_no_film(tmp_path, content):
    path = tmp_path / "walk.mp4"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"walk\.mp4 is damaged or no film|can't be read"):
        list(film.frames(path))
    with pytest.raises(DataError, match="can't be read"):
        list(film.frames(tmp_path / "missing.mp4"))


def test_without_the_extra_a_sentence_says_how(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r'pip install "vpl-seg\[video\]"'):
        list(film.frames(tmp_path / "walk.mp4"))
