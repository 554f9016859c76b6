"""The demo, small: what it prints, what it leaves, and that it goes on after an interruption."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from vpl import demo

SHARED = ("text seeds", "refined + CRF")


@pytest.mark.slow
def test_demo(tmp_path, monkeypatch):
    for name, value in {"TRAIN_IMAGES": 4, "HELD_OUT_IMAGES": 2, "SIDE": 48, "SHEET_ROWS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    whole = demo.config_for
    monkeypatch.setattr(demo, "config_for", lambda data: whole(data).with_values({"train.steps": 2, "train.crop": 48}))
    made = demo.demo(tmp_path / "demo", seeds=(0, 1))
    text = str(made)
    assert re.search(r"^ +as in the paper +vpl$", text, re.MULTILINE)
    same, other = (next(line.split() for line in text.splitlines() if line.startswith(f"  {name}")) for name in SHARED)
    assert same[2:5] == same[5:8] and other[3:6] != other[6:9], "seeds are the paper's in both, masks are not"
    assert "2 sets of 4 scenes" in text and "vision seeds" in text and "network, single scale" in text
    assert [line.split(":")[0] for line in text.splitlines()[-3:]] == ["made", "where", "next"]
    with Image.open(made.sheet) as sheet:
        assert sheet.width == 6 * 166 + 6
    page = made.report.read_text(encoding="utf-8")
    assert page.startswith("<!") and "Seed precision" in page and "Mirror agreement" in page
    assert str(demo.demo(tmp_path / "demo", seeds=(0, 1))) == text
