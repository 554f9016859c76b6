"""opened.py: a run that goes on knows under what it was begun."""

from __future__ import annotations

import errno
import json

import pytest
import torch

from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.errors import RunError
from vpl.judge import check, tune
from vpl.runs import texts
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow


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


def test_a_run_keeps_the_number_format_that_it_began_with(tmp_path, monkeypatch, caplog):
    tree = write_tree(tmp_path / "scenes", {"train": 3}, size=32)
    places = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "crf.rounds": 1}
    config = preset("scenes").with_values(places | {"clip.precision": "auto"})
    for native, wanted in ((True, "bfloat16"), (False, "float32")):
        for place in ("vpl.machine", "vpl.runs.opened"):
            monkeypatch.setattr(f"{place}.native_bfloat16", lambda device, native=native: native)
        with Run(tmp_path / wanted, config) as run:
            run.labels()
            assert (run.config.clip.precision, run.record()["precision"]) == (wanted, wanted)
            assert run.clip.dtype == getattr(torch, wanted)
        assert f'precision = "{wanted}"' in (tmp_path / wanted / "config.toml").read_text()
    assert "does not multiply itself" not in caplog.text
    with Run(tmp_path / "bfloat16", config) as run:
        assert run.config.clip.precision == "bfloat16" and not run.plan(["masks"])
        run.settle()
    assert "bfloat16 computes in bfloat16, which this device does not multiply itself" in caplog.text


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for kind in ("regions", "seeds", "labels")
        for path in sorted((folder / kind).rglob("*"))
        if path.is_file()
    } | {"prototypes": (folder / "prototypes.safetensors").read_bytes()}


@pytest.mark.parametrize("words", ["regions", "pseudo-masks"])
def test_a_share_that_vanishes_stops_the_run_which_goes_on_to_the_same_bytes(tmp_path, words):
    tree = write_tree(tmp_path / "scenes", {"train": 12}, size=32)
    images, away = tree / "images" / "train", tmp_path / "away"
    places = {"data.images": str(images), "data.tags": str(tree / "train.csv"), "crf.rounds": 1, "clip.batch": 1}
    config = preset("scenes").with_values(places)
    with Run(tmp_path / "quiet", config) as run:
        run.labels()

    def unmounted(items, total, now):
        for number, item in enumerate(items):
            if now == words and number == 2:
                images.rename(away)
            yield item

    with Run(tmp_path / "run", config, progress=unmounted) as run, pytest.raises(RunError, match="has vanished"):
        run.labels()
    away.rename(images)
    with Run(tmp_path / "run", config) as run:
        run.labels()
        assert not run.failures
    assert files_of(tmp_path / "run") == files_of(tmp_path / "quiet")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["failures"] == []


def test_a_machine_at_its_end_is_no_bad_photograph(tmp_path, monkeypatch):
    """No memory, or a disk that answers with an error: the run stops, and no photograph is skipped for it."""
    from vpl.edges import images

    tree = write_tree(tmp_path / "scenes", {"train": 3}, size=32)
    places = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "crf.rounds": 1}
    faults = {"not enough memory": MemoryError(), "can't be read now": OSError(errno.EIO, "Input/output error")}
    for words, error in faults.items():

        def failing(*given, error=error):
            raise error

        monkeypatch.setattr(images, "_decoded", failing)
        with Run(tmp_path / "run", preset("scenes").with_values(places)) as run:
            with pytest.raises(RunError, match=words):
                run.labels()
            assert not run.failures
        monkeypatch.undo()
    with Run(tmp_path / "run", preset("scenes").with_values(places)) as run:
        run.labels()
        assert not run.failures and len(list((tmp_path / "run" / "labels").iterdir())) == 3


def test_texts_are_encoded_once(tmp_path, monkeypatch):
    """By all commands on a run folder together; and again where the file is torn or another CLIP asks."""
    tree = write_tree(tmp_path / "scenes", {"train": 3}, size=32)
    places = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "crf.rounds": 1}
    config, folder = preset("scenes").with_values(places), tmp_path / "run"
    encoded = []

    def counted(self, ids, real=FrozenClip.encode_tokens):
        encoded.append(len(ids))
        return real(self, ids)

    monkeypatch.setattr(FrozenClip, "encode_tokens", counted)

    def make():
        encoded.clear()
        with Run(folder, config) as run:
            check.look(run, ranked=2, looked=1)
            run.labels()
        return len(encoded)

    assert make() == 1
    monkeypatch.setattr(tune, "GRIDS", {"labels.background_exponent": (1.0,)})
    assert tune.tune(folder, config, count=2).images == 2 and len(encoded) == 1
    kept = (folder / "prototypes.safetensors").read_bytes()
    (folder / "prototypes.safetensors").unlink()
    assert make() == 0 and (folder / "prototypes.safetensors").read_bytes() == kept
    path = folder / texts.FILE
    path.write_bytes(path.read_bytes()[:-9])
    (folder / "prototypes.safetensors").unlink()
    assert make() == 1 and (folder / "prototypes.safetensors").read_bytes() == kept

    other = FrozenClip.load("pocket", "cpu")
    other.text.projection += 1e-3
    texts.recall(folder, other)
    assert not other.known_texts


def test_texts_are_forgotten_when_a_weight_changes():
    clip = FrozenClip.load("pocket", "cpu")
    before = clip.encode_texts(["a dog"])
    before += 1  # the caller's own
    again = clip.encode_texts(["a dog"])
    assert not torch.equal(before, again)
    clip.text.projection += 1e-3
    assert not torch.equal(clip.encode_texts(["a dog"]), again)
