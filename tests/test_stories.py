"""What a user does to a run, story by story, at the command line: nothing is refused that can be done, or done twice.

Scenes are small. The last story is told ten times with a kill -9 in it.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from vpl.cli import main
from vpl.clip.model import FrozenClip
from vpl.edges.images import read_image, write_image
from vpl.scenes.tree import write_tree
from warm import command, held

pytestmark = pytest.mark.slow

SIDE, KILLS = 40, 10
VALUES = (
    "crf.rounds=1", "train.crop=40", "train.batch=2", "decoder.width=16", "decoder.heads=2", "predict.scales=[1.0]",
)  # fmt: skip
SMALL = (
    *(word for value in VALUES for word in ("--set", value)),
    "--quality",
    "draft",
    "--classes",
    "scenes",
    "--device",
    "cpu",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 6}, seed=12, style="demo", size=SIDE)


class Story:
    """A data set that changes, a run folder, and what the program says."""

    def __init__(self, home: Path, drawn: Path, capsys):
        shutil.copytree(drawn, home / "data")
        self.home, self.data, self.run, self._capsys = home, home / "data", home / "run", capsys
        self.images, self.list = self.data / "images/train", self.data / "train.csv"

    def rows(self) -> list[str]:
        return self.list.read_text().splitlines()[1:]

    def write(self, rows: list[str]) -> None:
        self.list.write_text("\n".join(["file_name,tags", *rows]) + "\n")

    def vpl(self, name: str, *given: str, status: int = 0) -> str:
        """What a command on the run says, on both streams."""
        self._capsys.readouterr()
        assert main([name, str(self.run), *given]) == status
        told = self._capsys.readouterr()
        return told.out + told.err

    def begin(self, name: str = "run", *given: str) -> str:
        return self.vpl(name, "--images", str(self.images), "--tags", str(self.list), *SMALL, *given)

    def bytes_of(self, folder: str = "labels") -> dict[str, bytes]:
        return {path.stem: path.read_bytes() for path in sorted((self.run / folder).glob("*.png"))}


@pytest.fixture
def story(tmp_path, drawn, capsys) -> Story:
    return Story(tmp_path, drawn, capsys)


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """How many views each call of the encoder got."""
    seen: list[int] = []
    real = FrozenClip.trunk
    monkeypatch.setattr(FrozenClip, "trunk", lambda self, *given: seen.append(len(given[0])) or real(self, *given))
    return seen


@pytest.mark.parametrize(
    "wrong",
    [
        ("--clip", "no/where.pt"), ("--set", "decoder.width=100"), ("--set", "crf.rounds=many"),
        ("--val-images", "nowhere"), ("--masks", "no-masks"), ("--set", "train.scale_low=3"),
    ],
)  # fmt: skip
def test_a_wrong_first_command_poisons_nothing(story, wrong):
    given = ("--images", str(story.images), "--tags", str(story.list), *SMALL, "--set", "decoder.heads=8")
    told = story.vpl("run", *given, "--steps", "2", *wrong, status=2)
    assert told.splitlines()[-1].startswith("vpl: ") and not story.run.exists()
    if wrong[0] == "--val-images":
        assert "validation.images is " in told
    story.begin("labels")
    assert len(story.bytes_of()) == 6


def test_truth_masks_come_late(story):
    story.begin("run", "--steps", "0")
    before = story.bytes_of()
    told = story.vpl("plan", "--masks", str(story.data / "masks/train"))
    assert [line.partition(":")[0] for line in told.splitlines() if line[0] != " "] == [
        "scores of seeds and pseudo-masks", "signs of failure", "report",
    ]  # fmt: skip
    assert "pseudo-masks  " in story.vpl("run", "--masks", str(story.data / "masks/train"))
    assert story.bytes_of() == before and json.loads((story.run / "metrics.json").read_text())["evaluations"]


def test_tuning_after_a_run(story):
    story.begin("run", "--steps", "0")
    story.vpl("tune", "--count", "4")
    assert (story.run / "tune.json").exists()
    story.vpl("run")
    assert "plan: nothing to do" in story.vpl("run")


def test_one_more_photograph_is_the_only_one_that_is_encoded(story, encoded):
    rows = story.rows()
    story.write(rows[:5])
    story.begin("labels")
    before = story.bytes_of()
    story.write(rows)
    encoded.clear()
    told = story.vpl("labels")
    assert "plan: pseudo-masks of 1 of 6 photographs: not there yet" in told
    assert "kept as learned from other photographs or tags; --relearn" in told
    assert sum(encoded) == 1 and before.items() <= story.bytes_of().items() and len(story.bytes_of()) == 6


def test_one_corrected_tag(story, encoded):
    story.begin("labels")
    before, rows = story.bytes_of(), story.rows()
    name = rows[2].partition(",")[0]
    other = next(tag for row in rows for tag in row.partition(",")[2].split(";") if tag not in rows[2])
    story.write([*rows[:2], f"{name},{other}", *rows[3:]])
    encoded.clear()
    assert "plan: pseudo-masks of 1 of 6 photographs: other tags" in story.vpl("labels")
    after = story.bytes_of()
    assert sum(encoded) == 1
    assert {one for one in after if after[one] != before[one]} <= {Path(name).stem}


def test_a_replaced_photograph_has_a_mask_of_its_own(story):
    story.begin("labels")
    before, path = story.bytes_of(), sorted(story.images.iterdir())[3]
    write_image(path, np.ascontiguousarray(255 - read_image(path)[:, ::-1]))
    assert "1 of 6 photographs: the photograph has changed" in story.vpl("labels")
    after = story.bytes_of()
    assert [one for one in after if after[one] != before[one]] == [path.stem]


def test_more_steps(story):
    story.begin("run", "--steps", "2")
    told = story.vpl("run", "--steps", "3")
    assert "plan: network: train.steps was 2, is now 3" in told
    assert "it is trained from the first step: the learning rate of each depends on train.steps" in told
    assert "kept in replaced/ until vpl clean" in told and len(list((story.run / "replaced").iterdir())) == 1
    assert "put back from replaced/" in story.vpl("run", "--steps", "2")
    assert "MB freed" in story.vpl("clean") and not (story.run / "replaced").exists()


def test_a_stale_report_is_made_again(story):
    story.begin("run", "--steps", "0")
    page = story.run / "report.html"
    before = page.read_bytes()
    told = story.vpl("labels", "--set", "labels.confidence=0.5")
    assert page.read_bytes() == before, "the stage alone was asked for"
    assert "report.html (made before what has changed; vpl run makes it anew)" in told
    assert "report: pseudo-masks made anew" in story.vpl("plan") or "report: " in story.vpl("plan")
    assert "plan: report: " in story.vpl("run") and page.read_bytes() != before
    assert "nothing to do" in (told := story.vpl("run")) and "made before" not in told
    story.vpl("run", "--steps", "2")
    assert "made before" not in story.vpl("labels")
    told = story.vpl("labels", "--set", "labels.confidence=0.6")
    assert "network (made before what has changed; vpl train makes it anew): vpl predict" in told


def test_predictions_of_another_network_are_made_again(story):
    out = story.home / "out"
    given = ("--images", str(story.images), "--out", str(out), "--device", "cpu")
    story.begin("run", "--steps", "2")
    story.vpl("predict", *given)
    first = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}
    story.vpl("predict", *given)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")} == first, "the same network: kept"
    story.vpl("run", "--steps", "3")
    story.vpl("predict", *given)
    assert all(path.stat().st_mtime_ns > first[path.name] for path in out.glob("*.png"))


# ------------------------------------------------------------------------------------------------------ and ten kills
def change(data: Path) -> None:
    """One photograph more, one corrected tag, one other photograph."""
    more = (data / "more.csv").read_text().splitlines()[1:]
    name, _, tags = more[1].partition(",")
    more[1] = f"{name},{tags.split(';')[0]};{next(one for one in ('cup', 'ball') if one not in tags)}"
    (data / "train.csv").write_text("\n".join(["file_name,tags", *more]) + "\n")
    path = data / "images/train" / more[2].partition(",")[0]
    write_image(path, np.ascontiguousarray(255 - read_image(path)))


def test_ten_kills_during_incremental_work_leave_the_bytes_of_a_fresh_run(warm, small_tree, tmp_path):
    tree, base = tmp_path / "tree", tmp_path / "base"
    shutil.copytree(small_tree, tree)
    listed = (tree / "train.csv").read_text().splitlines()
    (tree / "more.csv").write_text("\n".join(listed) + "\n")
    (tree / "train.csv").write_text("\n".join(listed[:-1]) + "\n")
    told = warm.vpl(*command("labels", base, tree)[1:])
    assert told.status == 0, told.err
    change(tree)
    fresh, counted, number = tmp_path / "fresh", tmp_path / "counted", tmp_path / "count"
    assert warm.vpl(*command("labels", fresh, tree)[1:]).status == 0
    shutil.copytree(base, counted)
    again = [*command("labels", counted, tree), "--relearn"]
    assert warm.run(["count_into", counted, number], again)[0].status == 0
    wanted, changes = held(fresh), int(number.read_text())
    assert held(counted) == wanted
    for event in sorted(random.Random(0).sample(range(1, changes), KILLS)):
        folder = tmp_path / f"{event}"
        shutil.copytree(base, folder)
        again = [*command("labels", folder, tree), "--relearn"]
        assert warm.start(["die_at", folder, event], again).wait() == -9, event
        told = warm.vpl(*again[1:])
        assert told.status == 0, (event, told.err)
        found = held(folder)
        assert found.keys() == wanted.keys(), (event, found.keys() ^ wanted.keys())
        assert [name for name in wanted if found[name] != wanted[name]] == [], event
        shutil.rmtree(folder)
