"""Where the time goes: run.json adds up to the wall clock, log.txt holds all that was said, bars are for people."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpl.cli import main, show
from vpl.progress import silent
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

GIVEN = [
    "--preset",
    "scenes",
    "--steps",
    "30",
    "--set",
    "train.crop=48",
    "--set",
    "decoder.width=16",
    "--device",
    "cpu",
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_tree(folder, {"train": 12, "val": 3}, seed=2, style="demo", size=64)


def data(tree: Path) -> list[str]:
    given = []
    for name, place in (("", "train"), ("val-", "val")):
        given += [f"--{name}images", str(tree / "images" / place), f"--{name}tags", str(tree / f"{place}.csv")]
        given += [f"--{name}masks", str(tree / "masks" / place)]
    return given


def timed(run: Path) -> float:
    return sum(one["seconds"] for one in json.loads((run / "run.json").read_text())["stages"].values())


@pytest.fixture(scope="module")
def program(tree, tmp_path_factory):
    """A run by the program, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vpl", "run", str(folder), *data(tree), *GIVEN], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, time.perf_counter() - start, done


def test_the_times_of_a_run_add_up_to_the_wall_clock(program):
    folder, wall, _ = program
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert 0.95 * wall < timed(folder) <= wall + 0.01
    assert stages["other"]["seconds"] < 0.1 * wall, "what no stage counts is little"
    assert {"start", "prototypes", "pseudo-masks", "train", "evaluate masks", "evaluate network", "signs", "report"} < {
        *stages
    }


def test_the_times_of_two_commands_add_up(tree, tmp_path):
    run, walls = tmp_path / "run", []
    for command in ("prototypes", "labels", "labels"):
        start = time.perf_counter()
        assert main([command, str(run), *data(tree), *GIVEN]) == 0
        walls.append(time.perf_counter() - start)
    assert timed(run) == pytest.approx(walls[0] + walls[1], rel=0.05), "nothing to do is no work"


def test_the_log_holds_command_versions_plan_times_and_all_messages(program):
    folder, _, done = program
    log = (folder / "log.txt").read_text()
    for words in (f"command: vpl run {folder} --images", "versions: vpl 0", ", torch ", "; device cpu; CLIP pocket ("):
        assert words in log
    assert (
        re.search(r"INFO pseudo-masks: \d+\.\d s", log) and "plan: pseudo-masks of 12 photographs: not there yet" in log
    )
    for line in [*done.stdout.splitlines(), *done.stderr.splitlines()]:
        assert line.removeprefix("warning: ") in log, line


def test_the_log_tells_how_a_command_ended(tree, tmp_path, monkeypatch):
    def full(*given, **kept):
        raise OSError(28, "No space left on device")

    assert main(["prototypes", str(tmp_path / "run"), *data(tree), *GIVEN]) == 0
    monkeypatch.setattr("vpl.runs.labelling.make", full)
    assert main(["labels", str(tmp_path / "run")]) == 2
    assert "ERROR ended by OSError: [Errno 28] No space left on device" in (tmp_path / "run/log.txt").read_text()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, drawn", [(Terminal, True), (io.StringIO, False)])
def test_bars_with_rate_and_time_left_are_for_terminals(monkeypatch, stream, drawn):
    seen = stream()
    monkeypatch.setattr(sys, "stderr", seen)
    for _ in show.bar(range(4), 4, "pseudo-masks"):
        time.sleep(0.3)
    told = seen.getvalue()
    assert bool(told) == drawn
    if drawn:
        assert re.search(r"pseudo-masks: +\d+%.*\d/4 \[\d+:\d+<\d+:\d+, +[\d.]+ ?(s/image|image/s)", told), told


def test_every_stage_has_a_bar(tree, tmp_path):
    from vpl import build
    from vpl.config import preset

    seen: list[str] = []

    def progress(items, total, words):
        seen.append(words)
        return silent(items, total, words)

    places = dict(
        zip([word[2:].replace("val-", "validation.") for word in data(tree)[::2]], data(tree)[1::2], strict=True)
    )
    values = {(key if "." in key else f"data.{key}"): one for key, one in places.items()} | {"train.steps": 2}
    with build.open_run(tmp_path / "run", preset("scenes").with_values(values), device="cpu", progress=progress) as run:
        build.bring(run, "run")
    for words in (
        "look at photographs",
        "regions",
        "learn",
        "pseudo-masks",
        "train",
        "evaluate network",
        "signs",
        "look again",
    ):
        assert words in seen


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_a_sentence(tree, tmp_path, monkeypatch, capsys, error):
    def starved(self):
        raise error

    monkeypatch.setattr(Run, "dataset", property(starved))
    assert main(["run", str(tmp_path / "run"), *data(tree)]) == 2
    told = capsys.readouterr().err
    assert "the machine's memory is too small" in told and "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_nothing_to_do_is_said_at_once(program, tree):
    """In about the time that torch needs to be imported, which is most of it: half as long again at most."""
    folder, _, _ = program

    def cpu(*words: str) -> float:
        code = (
            "import os, subprocess, sys; subprocess.run(sys.argv[1:], check=True); t = os.times(); print(t[2] + t[3])"
        )
        done = subprocess.run([sys.executable, "-c", code, sys.executable, *words], capture_output=True, text=True)
        return float(done.stdout.splitlines()[-1])

    torch = min(cpu("-c", "import torch") for _ in range(2))
    assert min(cpu("-m", "vpl", "run", str(folder)) for _ in range(2)) < 1.5 * torch + 0.2
