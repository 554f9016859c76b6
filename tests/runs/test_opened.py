"""opened.py: a run that goes on knows under what it was begun."""

from __future__ import annotations

import json

from vpl.config import preset
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree


def test_a_run_that_goes_on_under_other_versions_says_so(tmp_path, caplog):
    tree = write_tree(tmp_path / "scenes", {"train": 3}, size=32)
    places = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "crf.rounds": 1}
    config = preset("scenes").with_values(places)
    for _ in range(2):
        with Run(tmp_path / "run", config) as run:
            run.labels()
    assert "other versions" not in caplog.text
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    record["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(record))
    with Run(tmp_path / "run", config) as run:
        run.labels()
    assert "was begun under other versions (torch 1.0, now 2" in caplog.text
    assert json.loads(path.read_text())["versions"]["torch"] != "1.0"
