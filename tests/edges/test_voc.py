"""docs/how-to/voc-and-coco.md is true: its command, on a miniature VOC tree, ends with masks, network and report."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpl.classes import scenes, voc
from vpl.cli import main
from vpl.scenes.tree import write_tree

PAGE = (Path(__file__).parent.parent.parent / "docs" / "how-to" / "voc-and-coco.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_voc_in_one_command(tmp_path, monkeypatch, capsys):
    tree = tmp_path / "VOCdevkit" / "VOC2012"
    tree.parent.mkdir()
    write_tree(tree, {"train": 4, "val": 3}, seed=1, style="demo", size=48, layout="voc")
    kept = {"car", "boat", "dog", "cat", "bird", "chair"}
    for path in tree.glob("Annotations/*.xml"):
        text = path.read_text(encoding="utf-8")
        path.write_text(
            re.sub(
                r"<name>(.*?)</name>", lambda found: f"<name>{found[1] if found[1] in kept else 'person'}</name>", text
            ),
            encoding="utf-8",
        )
    own, known = scenes().names, voc().names
    labels = [known.index(name if name in kept else "person") + 1 for name in own]
    numbers = np.array([0, *labels, *[255] * (255 - len(own))])
    for path in tree.glob("SegmentationClass/*.png"):
        with Image.open(path) as mask:
            Image.fromarray(numbers[np.asarray(mask)].astype(np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    command = shlex.split(re.search(r"^\$ vpl (run .*)$", PAGE, re.MULTILINE)[1])
    command[command.index("openai/clip-vit-base-patch16")] = "pocket"
    small = ["--steps", "2", "--set", "train.crop=48", "--set", "decoder.width=16", "--set", "decoder.heads=2"]
    assert main([*command, *small]) == 0
    run = tmp_path / "runs" / "voc"
    evaluations = {one["split"]: one for one in json.loads((run / "metrics.json").read_text())["evaluations"]}
    assert evaluations["train"]["images"] == 4 and evaluations["val"]["images"] == 3
    assert len(evaluations["val"]["rows"]) == 2
    assert len(list((run / "labels").glob("*.png"))) == 4 and (run / "report.html").exists()
    assert "report in" in capsys.readouterr().out
