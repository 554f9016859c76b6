"""What is said before the work: the list, tags that look alike, the CLIP's opinion, time and disk; and when to stop."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vpl import build
from vpl.cli import commands, main
from vpl.cli.parser import parser
from vpl.config import CPU_PASSES, CPU_STEPS, PRESETS, Config, preset
from vpl.edges.images import write_image
from vpl.judge import check, forecast
from vpl.judge.forecast import Forecast, duration, size
from vpl.presets import QUALITY
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

SMALL = {"train.crop": 32, "train.batch": 2, "decoder.width": 16, "decoder.heads": 2, "crf.rounds": 1}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 6}, seed=8, style="demo", size=48)


def config_of(tree: Path, **values: object) -> Config:
    paths = {"images": tree / "images/train", "tags": tree / "train.csv"}
    return preset("scenes").with_values({f"data.{key}": str(one) for key, one in paths.items()} | SMALL | values)


def flags(tree: Path, *more: str) -> list[str]:
    small = [word for key, one in SMALL.items() for word in ("--set", f"{key}={one}")]
    return ["--images", str(tree / "images/train"), "--tags", str(tree / "train.csv"), *small, *more]


@pytest.fixture
def photographs(tmp_path) -> Path:
    """Noise, of which nothing is known."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        write_image(tmp_path / "photos" / f"p{number}.png", rng.integers(0, 255, (40, 48, 3), dtype=np.uint8))
    return tmp_path


def listed(folder: Path, tags: list[str]) -> list[str]:
    rows = [f'p{number}.png,"{one}"' for number, one in enumerate(tags)]
    (folder / "tags.csv").write_text("\n".join(["file_name,tags", *rows]) + "\n", encoding="utf-8")
    return ["--images", str(folder / "photos"), "--tags", str(folder / "tags.csv")]


def test_the_list_is_told_and_nothing_is_written(photographs, capsys):
    given = listed(
        photographs, ["dog;chair", "dogs", "Dog", "traffic light", "traffic_light", "tabel;table", "", "dog"]
    )
    (photographs / "photos" / "p7.png").unlink()
    assert main(["check", str(photographs / "run"), *given, "--steps", "0"]) == 1
    told = capsys.readouterr().out
    assert not (photographs / "run").exists()
    assert "6 photographs with tags" in told and "dog 2" in told
    assert "photographs of the list that can't be used: 2" in told and "there is no image file" in told
    for pair in ("'dog' (2 photographs) and 'dogs'", "'traffic light' (1 photograph) and 'traffic_light'", "'tabel'"):
        assert pair in told and "look alike" in told
    assert "the tag 'Dog' (1 photograph) is read as 'dog'" in told
    assert "labels in the masks: 0 background, 1 chair, 2 dog, " in told and "255 ignored" in told
    assert "tag rank of pocket: " in told and "time: about prototypes" in told and "MB on disk" in told
    assert "B of memory (measured on 1 photograph of these)" in told or not Path("/proc/self/status").exists()
    assert "network" not in told.partition("time:")[2]


def test_what_is_measured_is_one_core_s_work(photographs, monkeypatch):
    """Where idle cores helped, the seconds of a photograph would be a fraction of their core-seconds."""
    given = listed(photographs, ["dog", "chair", "dog", "car"])
    config = Config().with_values({"data.images": given[1], "data.tags": given[3], "train.steps": 0})
    monkeypatch.setattr("vpl.runs.stream.Crew", lambda *_: pytest.fail("cores shared a photograph"))
    with Run(photographs / "run", config, device="cpu", image_workers=3) as run:
        found = forecast.measured(run)
    assert found is not None and found.looked == 1 and found.seconds["pseudo-masks"] > 0


@pytest.mark.parametrize("spelled", ["do\u200bg", " dog  ", "dog\u00a0", "DOG"])
def test_what_is_surely_one_tag_is_one(photographs, spelled):
    given = listed(photographs, ["dog", spelled])
    config = Config().with_values({"data.images": given[1], "data.tags": given[3]})
    with Run(photographs / "run", config, device="cpu") as run:
        assert str(check.of_list(run)).startswith("2 photographs with tags, 1 class: dog 2\n")


def test_the_tag_rank_is_that_of_the_run(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree), device="cpu") as run:
        found = check.look(run)
        assert found.ranked == 6 and list(found.counts) == list(run.classes.names) and not found.alike
        assert found.forecast is not None and found.forecast.step is not None and found.forecast.looked == 1
        assert found.forecast.training == pytest.approx(300 * found.forecast.step)
        assert ", network (300 steps) " in str(found.forecast)
        assert list(found.qualities) == list(QUALITY) and all(one > 0 for one in found.qualities.values())
        assert "masks by --quality: draft " in str(found) and "quality" not in "".join(check.of_list(run).lines())
        run.prototypes()
        assert run.record()["tag_rank"] == pytest.approx(found.tag_rank)


def test_a_damaged_photograph_spoils_no_forecast(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    for path in sorted((tmp_path / "tree/images/train").iterdir())[:-1]:
        path.write_bytes(path.read_bytes()[:20])
    with Run(tmp_path / "run", config_of(tmp_path / "tree"), device="cpu") as run:
        found = check.look(run)
        assert found.ranked == 1 and found.forecast is not None and found.forecast.looked == 1
        assert forecast.measured(run, 1) is None or forecast.measured(run, 1).looked == 1


@pytest.mark.slow
def test_where_tags_rank_by_chance_the_run_stops_after_the_masks(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "CHANCE_RANK", 1.1)
    run = tmp_path / "run"
    assert main(["run", str(run), *flags(tree, "--preset", "scenes")]) == 0
    told = capsys.readouterr().err
    assert "the masks are guesses" in told and "--train" in told and not (run / "network").exists()
    assert len(list((run / "labels").iterdir())) == 6 and (run / "report.html").exists()
    assert "no network was trained" in (run / "log.txt").read_text()
    assert "check: 6 photographs with tags" in told and "check: time: about" in told and "network" in told
    assert main(["run", str(run), "--steps", "2"]) == 0
    assert (run / "network").exists() and "no network was trained" not in capsys.readouterr().err
    assert main(["run", str(run)]) == 0, "the user's own steps stay wanted"
    assert capsys.readouterr().err.endswith("plan: nothing to do\n")


def test_train_goes_on(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "CHANCE_RANK", 1.1)
    given = flags(tree, "--preset", "scenes", "--train")
    monkeypatch.setattr("vpl.config.PRESETS", {"scenes": {**PRESETS["scenes"], "train.steps": 2}})
    assert main(["run", str(tmp_path / "run"), *given]) == 0 and (tmp_path / "run/network").exists()


def test_a_cpu_does_not_train_for_hours_unasked(tree, tmp_path):
    config = config_of(tree)
    with build.open_run(tmp_path / "run", config, device="cpu") as run:
        run.labels()
        slow = Forecast(1, {"network": 300 * 60.0}, 60.0, 0)
        assert check.doubt(run, slow) == (
            "no network was trained: 300 steps would take this CPU about 5.0 h. Go on with fewer (--steps 60, about "
            "60 min), with --train for all of them, or on a machine with a GPU."
        )
        assert check.doubt(run, Forecast(1, {"network": 600.0}, 2.0, 0)) == ""


def test_steps_of_a_new_run_fit_its_photographs(tree, tmp_path):
    plain = flags(tree, "--set", "crf.enabled=false", "--device", "cpu")
    assert main(["labels", str(tmp_path / "new"), *plain]) == 0
    stored = (tmp_path / "new/config.toml").read_text()
    assert f"steps = {CPU_STEPS[0]} # ours, on a CPU by the photographs (default 30000, ours)" in stored
    assert main(["labels", str(tmp_path / "own"), *plain, "--steps", "30000"]) == 0
    assert "steps = 30000 # ours" in (tmp_path / "own/config.toml").read_text()
    assert build.fitting(preset("voc"), "cpu").train.steps == 30000
    command = parser().parse_args(["run", str(tmp_path / "paper"), *plain, "--preset", "paper"])
    assert commands._fitting(command, commands._config(command)).train.steps == 30000


def test_steps_grow_with_the_photographs_between_two_bounds():
    most = [rung * 4 // CPU_PASSES for rung in CPU_STEPS]  # photographs that a rung sees often enough, in batches of 4
    assert [build.cpu_steps(count, 4) for count in (1, *most)] == [CPU_STEPS[0], *CPU_STEPS]
    assert [build.cpu_steps(count + 1, 4) for count in most] == [*CPU_STEPS[1:], CPU_STEPS[-1]]
    assert build.cpu_steps(most[1], 8) == CPU_STEPS[0], "a larger batch sees more"


def test_a_photograph_more_leaves_the_network_that_is_there(tree, tmp_path, monkeypatch, capsys):
    """The number of steps is settled when the run begins."""
    monkeypatch.setattr(build, "CPU_STEPS", (2, 3))
    monkeypatch.setattr(build, "CPU_PASSES", 2 * 2 / 5)  # so that five photographs take 2 steps of batch 2, and six 3
    lines = (tree / "train.csv").read_text().splitlines()
    given = flags(tree, "--set", "crf.enabled=false", "--set", "data.classes=scenes", "--device", "cpu")
    given[given.index("--tags") + 1] = str(tmp_path / "tags.csv")
    (tmp_path / "tags.csv").write_text("\n".join(lines[:-1]) + "\n")
    assert main(["train", str(tmp_path / "run"), *given]) == 0
    (tmp_path / "tags.csv").write_text("\n".join(lines) + "\n")
    assert main(["train", str(tmp_path / "run"), *given]) == 0
    told = capsys.readouterr().err
    assert "network: kept as learned" in told and "replaced/" not in told
    assert Config.from_toml(tmp_path / "run/config.toml").train.steps == 2
    command = parser().parse_args(["run", str(tmp_path / "new"), *given])
    assert commands._fitting(command, commands._config(command)).train.steps == 3


@pytest.mark.parametrize(
    "seconds, words", [(0.2, "under a second"), (40.4, "40 s"), (750.0, "12 min"), (12600.0, "3.5 h"), (9e5, "10 days")]
)
def test_times_in_words(seconds, words):
    assert duration(seconds) == words


def test_bytes_in_words():
    assert (size(12), size(3_400_000), size(1_240_000_000)) == ("1 MB", "3 MB", "1.2 GB")


@pytest.mark.parametrize("command", ["labels", "check"])
def test_one_class_without_background_words_is_refused_before_anything_is_encoded(tree, tmp_path, capsys, command):
    name = (tree / "train.csv").read_text().splitlines()[1].partition(",")[0]
    (tmp_path / "t.csv").write_text(f"file_name,tags\n{name},cup\n")
    given = ["--images", str(tree / "images/train"), "--tags", str(tmp_path / "t.csv"), "--set", "crf.rounds=1"]
    status = main([command, str(tmp_path / "run"), *given, "--set", "prompts.background_words=false"])
    assert status == 2 and "there is one class and no background word" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "no folder is left"
