"""The catalogue of ablations: its settings are configurations, and what is not in it is refused."""

from __future__ import annotations

import pytest

from vpl.config import preset
from vpl.errors import ConfigError
from vpl.judge.ablations import ABLATIONS, ROW_NAMES, chosen, named


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_setting_is_a_configuration(name):
    found = ABLATIONS[name]
    configs = [preset("scenes").with_values(dict(one.values)) for one in found.settings]
    assert len({one.name for one in found.settings}) == len(configs)
    assert found.marked == "" or found.marked in {one.name for one in found.settings}
    assert found.row in ROW_NAMES


def test_the_issues_ablations_are_there():
    assert {"temperature", "rsc", "prompts", "phi", "regions", "labels", "rounds", "refine", "crf"} <= set(ABLATIONS)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError):
        named("phi2")


def test_any_value_of_the_configuration_can_be_swept():
    found = named("crf.mode=exact,fast")
    assert [one.name for one in found.settings] == ["exact", "fast"] and found.settings[1].values == (
        ("crf.mode", "fast"),
    )
    assert [one.name for one in chosen(["all"])] == list(ABLATIONS)


@pytest.mark.parametrize(
    ("asked", "row"),
    [("crf.mode=exact,fast", "crf"), ("rsc.weight=0,1", "single"), ("predict.flip=true,false", "full")],
)
def test_a_value_is_judged_by_what_it_changes(asked, row):
    assert named(asked).row == row


def test_a_grid_crosses_every_setting_with_every_other():
    (grid,) = chosen(["crf"], by="rsc")
    assert grid.name == "crf-by-rsc" and grid.trained
    assert len(grid.settings) == len(ABLATIONS["crf"].settings) * len(ABLATIONS["rsc"].settings)
    assert "off | both, λ = 0.3" in {one.name for one in grid.settings}
