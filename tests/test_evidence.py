"""The evidence page is what the raw results in the repository give."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def evidence():
    specification = importlib.util.spec_from_file_location("evidence", BENCHMARKS / "evidence.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_raw_results(evidence):
    assert evidence.page() == (BENCHMARKS / "evidence.md").read_text(encoding="utf-8")


def test_every_table_names_its_command_split_and_number_of_images(evidence):
    page = evidence.page()
    for made in evidence.loaded():
        assert f"`{evidence.command(made)}`" in page
        assert f"{made.sets} sets of {made.images} images" in page and f"split {made.split}" in page


def test_vision_against_text_is_measured_on_three_styles_and_sets(evidence):
    baselines = next(made for made in evidence.loaded() if made.ablation.name == "baselines")
    assert len(baselines.groups) >= 3 and baselines.sets >= 3
    assert not set(baselines.groups) & {"web-flat", "web-photo", "web-ink"}, "styles that chose nothing"
