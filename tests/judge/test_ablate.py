"""Ablations: what is measured, that nothing is measured twice, what the numbers are allowed to claim."""

from __future__ import annotations

import csv
import json
import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

from vpl.cli import main
from vpl.cli.show import bar
from vpl.config import preset
from vpl.edges import images
from vpl.errors import DataError
from vpl.judge import ablate
from vpl.judge.ablated import Ablated, Cell, Claim
from vpl.judge.ablations import ABLATIONS, NETWORK, Ablation, Setting, crossed, sweep
from vpl.judge.material import OwnData, Scenes
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

TINY = Scenes("demo", count=3, side=40)
PAIR = sweep("phi", "Which Φ?", "prototypes.phi", (0.3, 0.5), marked="0.3")


def made(folder, ablations=(PAIR,), base=None, sources=(TINY,), **more) -> list[Ablated]:
    return list(ablate.ablate(folder, ablations, base or preset("scenes"), sources, sets=2, device="cpu", **more))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return folder, made(folder)[0]


def test_table_csv_and_markdown(done):
    folder, result = done
    assert [path.name for path in result.files] == ["phi.csv", "phi.md", "phi.svg", "phi.json"]
    with (folder / "phi.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(result.stages), "settings, sets, stages"
    assert {row["images"] for row in rows} == {"3"} and {row["split"] for row in rows} == {"train"}
    text = (folder / "phi.md").read_text()
    assert "mean ± std over 2 sets of 3 images" in text and "0.5 (default)" in text and "0.3 (paper)" in text
    assert result.sentence in text and result.sentence in str(result)
    picture = ElementTree.parse(folder / "phi.svg").getroot()
    assert picture.get("aria-label") == "phi: refined + CRF"


def test_the_result_as_data_says_the_same(done):
    folder, result = done
    again = Ablated.from_dict(json.loads((folder / "phi.json").read_text()))
    assert again.markdown() == result.markdown() and "| KL before | KL after |" in result.markdown()


def test_raw_results_say_what_they_are(done):
    folder, result = done
    files = sorted(folder.glob("raw/demo-0/*.json"))
    assert len(files) == 2
    raw = [json.loads(path.read_text()) for path in files]
    assert sorted(one["changed"].get("prototypes.phi", 0.5) for one in raw) == [0.3, 0.5]
    for one in raw:
        assert one["images"] == 3 and set(one["rows"]) == set(result.stages)
        learned = one["prototypes"]
        assert learned["kl_after"] <= learned["kl_before"] and len(learned["curve"]) > 1
        assert set(learned["modality"]) == {"text", "vision"}


def test_a_second_start_measures_nothing_and_says_the_same(done, monkeypatch):
    folder, result = done
    monkeypatch.setattr(ablate, "measure", None)
    again = made(folder)[0]
    assert again == result


def test_a_killed_one_goes_on_to_the_same_numbers(done, tmp_path):
    _, result = done
    made(tmp_path)
    gone = sorted(tmp_path.glob("raw/*/*.json"))[1]
    gone.unlink()
    assert made(tmp_path)[0].cells == result.cells


def test_other_images_or_values_are_other_results(done):
    folder, _ = done
    before = len(list(folder.glob("raw/*/*.json")))
    made(folder, base=preset("scenes").with_values({"refine.rounds": 1}))
    assert len(list(folder.glob("raw/*/*.json"))) == 2 * before


def test_unusual_values_are_part_of_the_title(tmp_path):
    result = made(tmp_path, base=preset("scenes").with_values({"refine.rounds": 1}))[0]
    assert result.title == "phi, refine.rounds = 1" and f"### {result.title}" in result.markdown()


def test_a_default_of_ones_own_joins_the_table(tmp_path):
    result = made(tmp_path, base=preset("scenes").with_values({"prototypes.phi": 0.4}))[0]
    assert [one.name for one in result.ablation.settings] == ["0.3", "0.4", "0.5"] and result.default == "0.4"


def table(values: dict[str, tuple[float, ...]], default: str) -> Ablated:
    own = Ablation("x", "X?", tuple(Setting(name, ()) for name in values), row="crf")
    cells = {("demo", name, "crf"): Cell(one) for name, one in values.items()}
    sets = len(next(iter(values.values())))
    return Ablated(own, ("demo",), "train", sets, 9, ("crf",), default, cells)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"a": (10.0, 11.0, 12.0), "b": (15.0, 16.0, 17.5)}, r"b is better in 3 of 3 sets: \+5\.2 ± 0\.3"),
        ({"a": (10.0, 11.0, 12.0), "b": (15.0, 8.0, 13.0)}, "No difference beyond the spread"),
        ({"a": (10.0, 11.0, 12.0), "b": (5.0, 6.0, 7.0)}, r"The default a is best: the next, b, has -5\.0 ± 0\.0"),
        ({"a": (10.0, 11.0), "b": (11.0, 10.0), "c": (5.0, 6.2)}, r"Worse beyond the spread: c -4\.9 ± 0\.1\.$"),
        ({"a": (10.0,), "b": (20.0,)}, "One set supports no claim"),
    ],
)
def test_the_sentence_is_paired_over_sets(values, words):
    assert re.search(words, table(values, "a").sentence)


def test_pairs_not_means_decide():
    claim = Claim("b", "a", (1.0, 1.1, 0.9))
    assert claim.supported and claim.mean == pytest.approx(1.0)
    assert not Claim("b", "a", (3.0, -3.0, 3.0)).supported
    assert not Claim("b", "a", (0.01, 0.01)).supported, "the tables show 0.0"
    assert not Claim("b", "a", (9.0,)).supported


def test_a_grid_gives_a_heat_map(tmp_path):
    two = sweep("exponent", "Which?", "labels.background_exponent", (1.0, 2.0))
    result = made(tmp_path, [crossed(PAIR, two)])[0]
    assert result.default == "0.5 | 2" and len(result.ablation.settings) == 4
    assert (tmp_path / "phi-by-exponent.svg").exists()


def test_own_data_in_parts_that_share_no_image(tmp_path, caplog):
    tree = write_tree(tmp_path / "tree", {"train": 7}, seed=1, size=40)
    paths = {"images": tree / "images" / "train", "tags": tree / "train.csv", "masks": tree / "masks" / "train"}
    config = preset("scenes").with_values({f"data.{key}": str(path) for key, path in paths.items()})
    parts = [OwnData(config, 2, 3).load(number) for number in (0, 1)]
    seen = [{view.image.tobytes() for view in part.views} for part in parts]
    assert len(seen[0]) == len(seen[1]) == 3 and not seen[0] & seen[1]
    assert len(OwnData(config, 3, 5).load(2).views) == 5, "too few images: parts may share some"
    assert not caplog.text
    with (tree / "train.csv").open("a") as file:
        file.write("none.png,cup\n")
    OwnData(config, 2, 3).load(0)
    assert "train.csv:9: there is no image file" in caplog.text, "what is left out of the list is told"
    without = config.with_values({"data.masks": ""})
    with pytest.raises(DataError, match="--masks"):
        OwnData(without, 2, 3).load(0)
    for path in (tree / "masks" / "train").iterdir():
        images.write_mask(path, np.where(images.read_mask(path), 255, 0).astype(np.uint8), [])
    with pytest.raises(DataError, match=r"can't belong together.*data\.mask_values=binary"):
        OwnData(config, 2, 3).load(0)


def test_the_network_ablation(tmp_path):
    small = {"train.steps": 2, "train.crop": 40, "decoder.width": 16, "decoder.heads": 2, "predict.crf": False}
    pair = Ablation("rsc", "RSC?", ABLATIONS["rsc"].settings[:1], row="single")
    base = preset("scenes").with_values(small | {"rsc.weight": 0.0})
    result = made(tmp_path, [pair], base)[0]
    assert result.split == "val" and result.stages == NETWORK and result.default == "off"
    assert not list(tmp_path.glob("networks/*/*/network"))


@pytest.mark.parametrize(
    "given, words",
    [
        (["nonsense"], "there is no ablation 'nonsense'; expected one of temperature"),
        (["prototypes.fi=1,2"], "the closest one is 'prototypes.phi'"),
        (["phi", "crf", "--by", "box"], "--by crosses one ablation"),
        (["phi", "--sets", "0"], "--sets is 0"),
        (["phi", "--styles", "cubist"], "cubist"),
    ],
)
def test_one_clear_sentence(tmp_path, capsys, given, words):
    assert main(["ablate", *given, "--out", str(tmp_path), "--count", "2", "--side", "40"]) == 2
    assert words in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    given = ["ablate", "labels.background_exponent=1,2", "--out", str(tmp_path), "--count", "2", "--side", "40"]
    assert main([*given, "--sets", "2", "--set", "crf.enabled=false"]) == 0
    printed = capsys.readouterr().out
    assert "2 sets of 2 images" in printed and "labels-background_exponent.csv" in printed


def test_the_bar_counts_settings(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    units = {words: bar([], 0, words).unit for words in ("ablate", "train", "pseudo-masks")}
    assert units == {"ablate": "setting", "train": "step", "pseudo-masks": "image"}
