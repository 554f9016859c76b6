"""The command line: one clear sentence and a status for whatever goes wrong, the same run by flags, file or stored."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vpl.cli import commands, main, show
from vpl.cli.parser import GROUPS, parser
from vpl.config import Config, preset, quality
from vpl.judge.ablations import ABLATIONS
from vpl.presets import QUALITY
from vpl.scenes.tree import write_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": 4, "val": 3}, seed=2, style="demo", size=48)
    return folder


BEFORE: dict[str, object] = {"decoder.cells": 1, "train.scale_low": 0.5, "train.scale_high": 2.0}
"""What the network of quality standard was taught with before qualities set it."""


def flags(tree: Path) -> list[str]:
    given = ["--preset", "scenes"]
    for name, place in (("", "train"), ("val-", "val")):
        given += [f"--{name}images", str(tree / "images" / place), f"--{name}tags", str(tree / f"{place}.csv")]
        given += [f"--{name}masks", str(tree / "masks" / place)]
    return [*given, "--steps", "3", "--set", "train.crop=48", "--set", "decoder.width=16", "--set", "decoder.heads=2"]


@pytest.mark.slow
def test_from_tags_to_report_and_new_photographs(tree, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "masks"
    assert main(["run", str(run), *flags(tree)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train, 4 images +mIoU", printed) and re.search(r"val, 3 images +mIoU", printed)
    assert "network, single scale" in printed and "network, multi-scale + flip + CRF" in printed
    assert (run / "report.html").exists()

    assert main(["run", str(run)]) == 0, "the stored configuration is enough to continue"

    wanted = ["predict", "--model", str(run), "--images", str(tree / "images" / "val"), "--out", str(out)]
    assert main([*wanted, "--fast", "--probabilities", "--overlays"]) == 0
    names = sorted(path.stem for path in (tree / "images" / "val").iterdir())
    assert sorted(path.stem for path in out.glob("*.png")) == names
    assert sorted(path.stem for path in out.glob("*.npz")) == names
    assert sorted(path.stem for path in (out / "overlays").glob("*.png")) == names


@pytest.mark.slow
def test_images_that_fail_are_told_and_the_status_says_so(tree, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (tree / "images" / "train").iterdir():
        (photos / path.name).write_bytes(path.read_bytes())
    broken = sorted(photos.iterdir())[0]
    broken.write_bytes(b"no image")
    given = [
        "labels",
        str(tmp_path / "run"),
        "--images",
        str(photos),
        "--tags",
        str(tree / "train.csv"),
        "--classes",
        "scenes",
    ]
    assert main(given) == 1
    told = capsys.readouterr()
    assert f"skipped {broken.stem}" in told.err and "1 image skipped" in told.err
    assert "3 pseudo-masks" in told.out


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, words",
    [
        (
            ["--set", "prototypes.fi=0.3"],
            "unknown configuration key 'prototypes.fi'; the closest one is 'prototypes.phi'",
        ),
        (["--set", "prototypes.phi=2"], "prototypes.phi is 2.0; expected a number from 0.0 to 1.0"),
        (["--set", "prototypes.phi"], "has no value; write --set KEY=VALUE"),
        (["--images", "nowhere"], "nowhere"),
        (["--max-side", "many"], "clip.max_side is 'many'; expected a whole number"),
        (["--image-workers", "0"], "--image-workers is 0; expected a whole number from 1 to 1024"),
        (["--clip", "no/such-clip-anywhere"], "no/such-clip-anywhere"),
        (["--config", "absent.toml"], "absent.toml can't be read"),
    ],
)
def test_one_clear_sentence(tree, tmp_path, capsys, given, words):
    assert main(["labels", str(tmp_path / "run"), *flags(tree), *given]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("vpl: ") and words in told[-1], told


@pytest.mark.slow
def test_another_configuration_redoes_what_it_changes_and_says_so(tree, tmp_path, capsys):
    assert main(["labels", str(tmp_path / "run"), *flags(tree)]) == 0
    capsys.readouterr()
    assert main(["plan", str(tmp_path / "run"), "--set", "crf.rounds=3", "--steps", "0"]) == 0
    told = capsys.readouterr().out
    assert "pseudo-masks of 4 photographs: crf.rounds was 10, is now 3" in told
    assert "rounds = 10" in (tmp_path / "run" / "config.toml").read_text(), "a plan changes nothing"
    assert main(["labels", str(tmp_path / "run"), "--set", "crf.rounds=3"]) == 0
    assert told.split("\n")[0] in capsys.readouterr().err
    assert main(["labels", str(tmp_path / "run")]) == 0
    assert "plan: nothing to do" in capsys.readouterr().err


def test_help_is_quick_to_import():
    code = "import sys; from vpl.cli.parser import parser; parser(); print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_scenes_tree(tmp_path, capsys):
    assert main(["scenes", str(tmp_path / "tree"), "--train", "2", "--val", "1", "--size", "32"]) == 0
    assert "2 + 1 scenes in" in capsys.readouterr().out
    assert len(list((tmp_path / "tree" / "images" / "train").iterdir())) == 2


@pytest.mark.slow
def test_without_steps_no_network_is_trained(tree, tmp_path, capsys):
    assert main(["run", str(tmp_path / "run"), *flags(tree), "--steps", "0"]) == 0
    assert "4 pseudo-masks" in capsys.readouterr().out
    assert not (tmp_path / "run" / "network").exists() and (tmp_path / "run" / "report.html").exists()


# Help


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for group in GROUPS.values() for name in group])
def test_every_command_has_help_with_an_example_that_parses(name, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([name, "--help"])
    told = capsys.readouterr().out
    example = told.rpartition("example:\n  vpl ")[2]
    assert ended.value.code == 0 and "None" not in told and "True" not in told
    assert parser().parse_args(shlex.split(example)).name == name


def test_every_default_is_told(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["ablate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for words in ("(default: 3)", "(default: 60)", "(default: 96)", "(default: 8)", "(default: 30000)", "of web-flat,"):
        assert words in told
    assert all(name in told for name in ABLATIONS)


def test_config_prints_every_value_with_source_and_meaning(tmp_path, capsys):
    assert main(["config", "--preset", "scenes", "--set", "prototypes.phi=0.4"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "config.toml").write_text(printed, encoding="utf-8")
    assert Config.from_toml(tmp_path / "config.toml") == preset("scenes").with_values({"prototypes.phi": 0.4})
    assert re.search(r"^prototypes.phi = 0.4 +# yours \(default 0.5, ours\): Φ", printed, re.MULTILINE)
    assert main(["config", str(tmp_path)]) == 0 and "prototypes.phi = 0.4 " in capsys.readouterr().out
    assert main(["config", str(tmp_path / "absent")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, makers, mode, cells",
    [
        ([], QUALITY["standard"]["looks.makers"], "exact", 4),
        (["--quality", "draft"], ("gradcam",), "fast", 1),
        (["--preset", "paper"], ("gradcam",), "exact", 1),
        (["--preset", "voc", "--preset", "weclip"], ("gradcam",), "exact", 1),
        (["--preset", "paper", "--quality", "best"], QUALITY["best"]["looks.makers"], "exact", 4),
        (["--set", "looks.makers=['sclip']", "--set", "crf.mode=fast"], ("sclip",), "fast", 4),
        (["--set", "decoder.cells=2"], QUALITY["standard"]["looks.makers"], "exact", 2),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_a_new_run_is_of_quality_standard_unless_somebody_chose(tmp_path, given, makers, mode, cells):
    run = tmp_path / "run"
    command = parser().parse_args(["run", str(run), "--device", "cpu", *given])
    config = commands._fitting(command, commands._config(command))
    assert (config.looks.makers, config.crf.mode, config.decoder.cells) == (makers, mode, cells)
    run.mkdir()
    (run / "config.toml").write_text(Config().to_toml(), encoding="utf-8")
    command = parser().parse_args(["run", str(run)])
    assert commands._fitting(command, commands._config(command)) == Config(), "a run that has begun keeps its looks"


@pytest.mark.parametrize("chosen", ["scale_low=1.8", "scale_high=0.6"])
def test_the_two_ends_of_a_range_are_one_choice(tmp_path, chosen):
    command = parser().parse_args(["run", str(tmp_path / "run"), "--device", "cpu", "--set", f"train.{chosen}"])
    config = commands._fitting(command, commands._config(command))
    assert config.train.scale_low < config.train.scale_high and config.decoder.cells == 4
    assert config == config.with_values({"train.scale_low": 0.5} if "high" in chosen else {"train.scale_high": 2.0})


def test_a_run_of_before_keeps_its_network_until_a_quality_is_named(tmp_path):
    """Networks of quality standard had the paper's grid and scales once; config.toml says so."""
    before = Config().with_values(quality("standard") | BEFORE)
    (tmp_path / "config.toml").write_text(before.to_toml(), encoding="utf-8")

    def asked(*given: str) -> Config:
        command = parser().parse_args(["run", str(tmp_path), *given])
        return commands._fitting(command, commands._config(command))

    assert asked() == asked("--set", "par.rounds=5") == before
    assert asked("--quality", "standard").differences(before).keys() == BEFORE.keys()


@pytest.mark.parametrize(
    "given, wanted",
    [([], "auto"), (["--preset", "paper"], "float32"), (["--quality", "best"], "auto"),
     (["--precision", "bfloat16"], "bfloat16"), (["--preset", "voc", "--preset", "weclip"], "float32")],
    ids=" ".join,
)  # fmt: skip
def test_a_new_run_takes_the_quickest_format_unless_somebody_chose(tmp_path, given, wanted):
    command = parser().parse_args(["run", str(tmp_path / "run"), "--device", "cpu", *given])
    assert commands._fitting(command, commands._config(command)).clip.precision == wanted


def test_a_run_folder_is_named_once(tmp_path, capsys):
    given = ["--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["predict", *given]) == main(["predict", "a", "--model", "b", *given]) == 2
    assert capsys.readouterr().err.count("expected one run folder") == 2


def test_columns_of_a_table_stand_below_each_other():
    row = {"miou": 0.5, "pixel_accuracy": 1.0}
    rows = [
        row | {"name": "text seeds"},
        row | {"name": "network, multi-scale + flip + CRF, a long name", "miou": None},
    ]
    lines = show.table({"split": "train", "images": 1, "rows": rows}).splitlines()
    assert lines[0].startswith("train, 1 image ") and len({len(line) for line in lines}) == 1
    assert lines[1].endswith(" 50.0            100.0") and "  –  " in lines[2]


# The program's edge


def program(*arguments: str, **kept) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vpl", *arguments], text=True, **kept)


def drawn(folder: Path) -> list[str]:
    return ["scenes", str(folder), "--train", "2", "--val", "1", "--size", "32"]


def test_a_closed_error_stream_changes_nothing(tmp_path):
    command = " ".join([sys.executable, "-m", "vpl", *drawn(tmp_path / "tree")])
    done = subprocess.run(["sh", "-c", f"{command} 2>&-"], capture_output=True, text=True)
    assert done.returncode == 0 and "2 + 1 scenes in" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_error_stream_changes_no_status(tmp_path):
    with Path("/dev/full").open("w") as full:
        assert program("run", str(tmp_path / "run"), "--set", "crf.rounds=many", stderr=full).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_output_that_can_not_be_written_is_told(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = program(*drawn(tmp_path / "tree"), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and "can't be written" in done.stderr and "the work is done" in done.stderr
    assert (tmp_path / "tree" / "train.csv").exists()


def test_a_reader_that_has_gone_stops_nothing(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = program(*drawn(tmp_path / "tree"), stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "") and (tmp_path / "tree" / "train.csv").exists()


def test_a_mistake_of_our_own_keeps_its_traceback_and_has_a_status_of_its_own(monkeypatch, capsys):
    def broken(*given):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(commands, "run", broken)
    assert main(["report", "run"]) == 70
    told = capsys.readouterr().err
    assert "Traceback" in told and "a mistake of vpl's own (ZeroDivisionError)" in told


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interruption_is_told_however_it_arrives(monkeypatch, capsys, wrapped):
    def stopped(*given):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if wrapped:
                raise ImportError("numpy could not be imported") from error
            raise

    monkeypatch.setattr(commands, "run", stopped)
    assert main(["report", "run"]) == 130
    assert capsys.readouterr().err == "vpl: interrupted; the same command goes on from here.\n"


@pytest.mark.slow
def test_interrupted_in_the_first_second(tmp_path):
    for wait in (0.1, 0.3, 0.8):
        one = subprocess.Popen(
            [sys.executable, "-m", "vpl", "run", str(tmp_path / "run"), "--images", str(tmp_path), "--tags", "t.csv"],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(wait)
        one.send_signal(signal.SIGINT)
        told = one.communicate(timeout=60)[1]
        assert not re.search(r"vpl/(cli|runs|config|edges)", told), told  # Python itself may still be starting


@pytest.mark.slow
def test_names_are_utf8_whatever_the_locale(tree, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    source = sorted((tree / "images" / "train").iterdir())[0]
    (photos / "é.png").write_bytes(source.read_bytes())
    (tmp_path / "tags.csv").write_text("file_name,tags\né.png,cup\n", encoding="utf-8")
    given = ["labels", str(tmp_path / "run"), "--images", str(photos), "--tags", str(tmp_path / "tags.csv")]
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = program(*given, "--set", "crf.rounds=1", env=plain, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "run" / "labels").iterdir()] == ["é.png"]


@pytest.mark.parametrize(("words", "status"), [("PyObject pointer is null", 2), ("index out of bounds", 70)])
def test_a_library_in_rust_that_panics_is_told(monkeypatch, capsys, words, status):
    """Its panics are no Exceptions; without memory it has none of Python's errors to give."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def panicked(*given):
        raise panic(words)

    monkeypatch.setattr(commands, "run", panicked)
    assert main(["report", "run"]) == status
    told = capsys.readouterr().err
    assert ("memory is too small" in told) == (status == 2) and ("Traceback" in told) == (status == 70)
