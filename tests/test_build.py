"""A run is a build: after any changes its folder holds the bytes of a fresh run, and nothing else was computed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpl import build
from vpl.classes import scenes as scene_classes
from vpl.cli import main
from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.edges import images
from vpl.errors import ConfigError
from vpl.judge import check
from vpl.pages import gallery, report
from vpl.runs.folder import clean
from vpl.runs.planned import Planned, Unread
from vpl.scenes import tree as scene_tree

pytestmark = pytest.mark.slow

SIDE, IMAGES = 32, 6
SMALL: dict[str, object] = {
    "clip.batch": 2, "train.steps": 3, "train.crop": SIDE, "train.batch": 2, "train.checkpoint_every": 2,
    "decoder.width": 16, "decoder.heads": 2, "crf.rounds": 1, "predict.scales": [1.0], "data.split": "train",
    "validation.split": "val",
}  # fmt: skip


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "scenes"
    scene_tree.write_tree(folder, {"train": IMAGES + 2, "val": 2}, seed=3, style="demo", size=SIDE)
    return folder


@dataclass
class Case:
    """A data set that changes, and what is asked of a run on it."""

    data: Path
    values: dict[str, object] = field(default_factory=dict)
    truth: bool = False
    held_out: bool = True

    @classmethod
    def of(cls, drawn: Path, home: Path, count: int = IMAGES) -> Case:
        shutil.copytree(drawn, home / "data")
        case = cls(home / "data")
        case.list(case.rows()[:count])
        return case

    def rows(self) -> list[str]:
        return (self.data / "train.csv").read_text().splitlines()[1:]

    def list(self, rows: list[str]) -> None:
        (self.data / "train.csv").write_text("\n".join(["file_name,tags", *rows]) + "\n")

    def photograph(self, number: int) -> Path:
        return self.data / "images" / "train" / self.rows()[number].partition(",")[0]

    def config(self) -> Config:
        values = dict(SMALL) | {
            "data.images": str(self.data / "images/train"),
            "data.tags": str(self.data / "train.csv"),
        }
        if self.truth:
            values["data.masks"] = str(self.data / "masks/train")
        if self.held_out:
            for key, place in (("images", "images/val"), ("tags", "val.csv"), ("masks", "masks/val")):
                values[f"validation.{key}"] = str(self.data / place)
        return preset("scenes").with_values(values | self.values)

    def run(self, folder: Path, command: str = "run", relearn: bool = False) -> list[str]:
        """Bring the run; the stages that it worked on."""
        told = []
        with build.open_run(folder, self.config(), device="cpu", image_workers=1, relearn=relearn) as run:
            build.bring(run, command, lambda plan: told.extend(work.stage for work in plan.work))
        return told


def held(folder: Path) -> dict[str, object]:
    """Every file of a run, but times, the log, and what is there for the next run."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith(("replaced/", "state/")) or path.name.startswith("events."):
            continue
        if name not in ("log.txt", ".lock", "report.html", "run.json", "network/curve.csv"):
            found[name] = path.read_bytes()
    record = json.loads((folder / "run.json").read_text())
    found["run.json"] = {key: record[key] for key in ("data", "clip", "failures", "seed") if key in record}
    if (folder / "network/curve.csv").exists():
        found["curve"] = [row.rsplit(",", 1)[0] for row in (folder / "network/curve.csv").read_text().split("\n")]
    return found


def assert_same(found: Path, fresh: Path) -> None:
    one, other = held(found), held(fresh)
    assert one.keys() == other.keys()
    assert [name for name in other if one[name] != other[name]] == []


@contextlib.contextmanager
def counted(monkeypatch) -> list[int]:
    """Photographs that the encoder sees inside the block."""
    seen: list[int] = []
    with monkeypatch.context() as patch:
        real = FrozenClip.trunk
        patch.setattr(
            FrozenClip, "trunk", lambda clip, pixels, *rest: seen.append(len(pixels)) or real(clip, pixels, *rest)
        )
        yield seen


# ------------------------------------------------------------------------------------------------------ what can change
def one_more(case: Case, rng: random.Random) -> None:
    known = (case.data / "all.csv").read_text().splitlines() if (case.data / "all.csv").exists() else None
    if known is None:
        names = sorted(path.name for path in (case.data / "images/train").iterdir())
        listed = {row.partition(",")[0]: row for row in case.rows()}
        spare = [name for name in names if name not in listed]
        if spare:
            case.list([*case.rows(), f"{spare[0]},{case.rows()[0].partition(',')[2]}"])


def one_less(case: Case, rng: random.Random) -> None:
    rows = case.rows()
    if len(rows) > 2:
        rows.pop(rng.randrange(len(rows)))
        case.list(rows)


def other_tag(case: Case, rng: random.Random) -> None:
    rows = case.rows()
    place = rng.randrange(len(rows))
    rows[place] = f"{rows[place].partition(',')[0]},{rng.choice(scene_classes().names)}"
    case.list(rows)


def no_tag(case: Case, rng: random.Random) -> None:
    case.values["data.untagged"] = "background"
    rows = case.rows()
    tagged = [place for place, row in enumerate(rows) if row.partition(",")[2]]
    if len(tagged) > 3:
        place = rng.choice(tagged)
        rows[place] = f"{rows[place].partition(',')[0]},"
        case.list(rows)


def other_photograph(case: Case, rng: random.Random) -> None:
    path = case.photograph(rng.randrange(len(case.rows())))
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    images.write_image(path, 255 - pixels)


def damaged_or_mended(case: Case, rng: random.Random) -> None:
    path = case.photograph(rng.randrange(len(case.rows())))
    path.write_bytes(path.read_bytes()[:10] if rng.random() < 0.7 else (path.read_bytes() + b"\0"))


def other_value(case: Case, rng: random.Random) -> None:
    key, choices = rng.choice([
        ("labels.confidence", (0.8, 0.95)), ("refine.rounds", (1, 3)), ("prototypes.phi", (0.4, 0.5)),
        ("prototypes.kind", ("text", "vision")), ("train.steps", (2, 3)), ("crf.enabled", (True, False)),
        ("predict.flip", (True, False)), ("clip.max_side", (24, 1024)), ("prototypes.rounds", (1, 2)),
        ("rsc.weight", (0.0, 0.1)), ("seed", (0, 1)),
    ])  # fmt: skip
    case.values[key] = rng.choice(choices)


def truth_comes_or_goes(case: Case, rng: random.Random) -> None:
    case.truth = not case.truth


def held_out_comes_or_goes(case: Case, rng: random.Random) -> None:
    case.held_out = not case.held_out


CHANGES: tuple[Callable[[Case, random.Random], None], ...] = (
    one_more, one_less, other_tag, no_tag, other_photograph, damaged_or_mended, other_value, other_value,
    truth_comes_or_goes, held_out_comes_or_goes,
)  # fmt: skip


@pytest.mark.parametrize("draw", range(4))
def test_after_any_changes_the_folder_holds_the_bytes_of_a_fresh_run(drawn, tmp_path, draw):
    rng, case = random.Random(draw), Case.of(drawn, tmp_path)
    case.run(tmp_path / "run")
    for _ in range(3):
        for change in rng.sample(CHANGES, 2):
            change(case, rng)
        case.run(tmp_path / "run")
    case.run(tmp_path / "run", relearn=True)
    case.run(tmp_path / "fresh")
    assert_same(tmp_path / "run", tmp_path / "fresh")
    assert case.run(tmp_path / "run") == []


def test_a_value_and_back_computes_nothing_the_second_time_but_what_lies_between(drawn, tmp_path):
    case = Case.of(drawn, tmp_path)
    first = case.run(tmp_path / "run")
    assert first[0] == "regions" and first[-1] == "report"
    before = held(tmp_path / "run")
    case.values["train.steps"] = 2
    assert case.run(tmp_path / "run") == ["network", "network scores", "signs", "report"]
    assert len(list((tmp_path / "run" / "replaced").glob("network-*"))) == 1
    del case.values["train.steps"]
    case.run(tmp_path / "run")
    assert held(tmp_path / "run") == before, "the network of before was put back"
    assert clean(tmp_path / "run") > 0 and not (tmp_path / "run" / "replaced").exists()
    assert case.run(tmp_path / "run") == []


def test_one_more_photograph_costs_one_encoding(drawn, tmp_path, monkeypatch):
    case = Case.of(drawn, tmp_path)
    case.values |= {"train.steps": 0}
    case.run(tmp_path / "run", "labels")
    before = {path: path.read_bytes() for path in (tmp_path / "run/labels").iterdir()}
    one_more(case, random.Random(0))
    with counted(monkeypatch) as seen:
        assert case.run(tmp_path / "run", "labels") == ["maps", "masks"]
    assert sum(seen) == 1
    after = {path: path.read_bytes() for path in (tmp_path / "run/labels").iterdir()}
    assert len(after) == IMAGES + 1 and before.items() <= after.items()


def test_photographs_without_tags_are_background_where_asked(drawn, tmp_path, monkeypatch):
    case, run = Case.of(drawn, tmp_path), tmp_path / "run"
    case.truth = True
    rows = case.rows()
    bare, id = f"{rows[1].partition(',')[0]},", rows[1].partition(".")[0]
    case.list([rows[0], bare, *rows[2:]])
    case.run(run)
    maps = [f"seeds/{name}" for name in ("text", "vision", "refined", "crf")] + ["labels"]
    assert not any((run / name / f"{id}.png").exists() for name in maps), "left out"
    signs = json.loads((run / "metrics.json").read_text())["label_free"]
    case.values["data.untagged"] = "background"
    with counted(monkeypatch) as seen:
        told = case.run(run, "labels")
    assert told == ["maps", "masks"] and not seen, "nothing is encoded for it, and nothing learned from it"
    assert all(not images.read_mask(run / name / f"{id}.png").any() for name in maps)
    assert case.run(run) == ["scores", "signs", "report"], "the network is kept until it is asked to learn again"
    assert case.run(run, relearn=True) == ["network", "network scores", "signs", "report"], "nothing else reads it"
    record = json.loads((run / "run.json").read_text())
    assert record["stages"]["train"]["images"] == IMAGES and record["data"]["problems"] == []
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["label_free"] == signs, "of photographs with tags"
    assert metrics["evaluations"][0]["images"] == IMAGES, "in the scores"
    case.run(tmp_path / "fresh")
    assert_same(run, tmp_path / "fresh")
    with build.open_run(run, case.config(), device="cpu") as opened:
        found = check.of_list(opened)
        assert (found.photographs, found.background) == (IMAGES - 1, 1)
        told = "\n".join(found.lines(short=True))
        assert "1 photograph without tags is background" in told and told.count("background\n") == 1
        assert "note: 1 photograph without tags is background" in str(found)
        assert check.rank_of(opened)[1] == IMAGES - 1
    path = case.data / "images/train" / bare[:-1]
    path.write_bytes(path.read_bytes()[:20])
    case.run(run)
    assert id in [one["id"] for one in json.loads((run / "run.json").read_text())["failures"]]
    assert not (run / "labels" / f"{id}.png").exists(), "a photograph that can't be used teaches nothing"


def test_one_more_photograph_is_looked_at_and_pictured_alone(drawn, tmp_path, monkeypatch):
    case, run = Case.of(drawn, tmp_path), tmp_path / "run"
    case.values |= {"train.steps": 0}
    case.run(run)
    one_more(case, random.Random(0))
    made = []
    monkeypatch.setattr(gallery, "_exhibit", lambda *given, real=gallery._exhibit: made.append(given) or real(*given))
    with counted(monkeypatch) as seen:
        assert case.run(run) == ["maps", "masks", "signs", "report"]
    assert len(made) == 1 and sum(seen) in (1, 3), "once for its masks; mirrored and larger if it is one of the four"
    report.report(run)
    assert len(made) == 1
    page = (run / "report.html").read_bytes()
    (run / "state/pictures.json").unlink()
    made.clear()
    report.report(run)
    assert len(made) == IMAGES + 1 and (run / "report.html").read_bytes() == page
    memory = run / "state/pictures.json"
    for damaged in ("[", '{"scans": 1, "exhibits": {"x": [3]}}', memory.read_text().replace('"panes"', '"pains"')):
        memory.write_text(damaged)
        report.report(run)
        assert (run / "report.html").read_bytes() == page
    case.photograph(0).touch()
    made.clear()
    report.report(run)
    assert len(made) == 1, "the file was written, whatever into it"


QUIET = "import sys; from vpl.cli import main; status = main(sys.argv[1:]); print(status, 'torch' in sys.modules)"


def test_nothing_to_do_is_said_without_torch(drawn, tmp_path, capsys):
    case, run = Case.of(drawn, tmp_path), tmp_path / "run"
    case.values |= {"train.steps": 0, "data.untagged": "background"}
    case.run(run)

    def said(*words: str) -> list[str]:
        given = [sys.executable, "-c", QUIET, *words]
        done = subprocess.run(given, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
        return (done.stdout + done.stderr).splitlines()

    before = held(run)
    assert said("plan", str(run)) == ["nothing to do", "0 False"]
    told = said("run", str(run))
    assert "0 False" in told and "plan: nothing to do" in told and f"report in {run / 'report.html'}" in told
    assert held(run) == before and "command: vpl run" in (run / "log.txt").read_text()
    one_more(case, random.Random(0))
    told = said("plan", str(run))
    assert told[-1] == "0 False" and told[0] == "label maps of the seeds of 1 of 7 photographs: not there yet"
    assert "0 True" in said("run", str(run))
    assert said("plan", str(run))[::2] == ["nothing to do", "0 False"], "and that the prototypes are kept"
    memory = run / "state/clip.json"
    whole = memory.read_text()
    for other in ("{", "{}", whole.replace('"hash"', '"hsah"'), whole.replace("pocket", "socket")):
        memory.write_text(other)
        with Planned(run, case.config()) as planned, pytest.raises(Unread):
            planned.plan(("report",))
        capsys.readouterr()
        assert main(["plan", str(run)]) == 0 and capsys.readouterr().out.startswith("nothing to do\n"), "it is read"
    memory.write_text("{")
    assert said("plan", str(run))[::2] == ["nothing to do", "0 True"]
    memory.write_text(whole)
    assert said("plan", str(run), "--set", "clip.mean=[0.4,0.4,0.4]")[-1] == "0 True"


def test_a_clip_is_another_where_its_files_are(drawn, tmp_path):
    case, run, weights = Case.of(drawn, tmp_path), tmp_path / "run", tmp_path / "clip"
    shutil.copytree(Path(build.__file__).parent / "pocket", weights, ignore=shutil.ignore_patterns("*.py", "__*"))
    case.values |= {"train.steps": 0, "clip.model": str(weights)}
    case.run(run)

    def known() -> bool:
        with Planned(run, case.config()) as planned:
            try:
                return bool(planned.clip_hash())
            except Unread:
                return False

    assert known()
    file = weights / "model.safetensors"
    data, times = file.read_bytes(), file.stat()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not known(), "of the same size and time of writing"
    assert next(work.stage for work in planned_by(case, run)) == "regions"
    file.write_bytes(data)
    case.run(run)
    assert known()
    (weights / "preprocessor_config.json").write_text("{}")
    assert not known()


def planned_by(case: Case, run: Path) -> tuple:
    with build.open_run(run, case.config(), device="cpu") as opened:
        return build.planned(opened, "run").work


@pytest.mark.parametrize("command", ["run", "labels", "prototypes", "evaluate", "report"])
def test_a_launcher_shares_training_alone(drawn, tmp_path, monkeypatch, command):
    places = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, text in places.items():
        monkeypatch.setenv(name, text)
    config = preset("scenes").with_values(
        {"data.images": str(drawn / "images/train"), "data.tags": str(drawn / "train.csv")}
    )
    with build.open_run(tmp_path / "run", config) as run, pytest.raises(ConfigError, match="training alone is shared"):
        build.bring(run, command)
    assert not (tmp_path / "run").exists()
