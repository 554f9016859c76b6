"""vpl.pages.modality: the gap of a run folder whose numbers are known, and the plane that shows it."""

from __future__ import annotations

import numpy as np
import pytest

from report_case import NAMES, make_run
from vpl.pages import modality


@pytest.fixture(scope="module")
def gap(tmp_path_factory) -> modality.Gap:
    return modality.gap(make_run(tmp_path_factory.mktemp("modality")))


def test_gap_pairs_before_and_after(gap):
    numbers = {one.name: (one.before, one.after) for one in gap.numbers}
    assert numbers["KL divergence over the tags' regions, nats"] == (1.5, 0.25)
    assert numbers["KL divergence over all regions, nats"] == (1.4, 0.3)
    assert numbers["Distance of the mean region from the mean prototype"] == (1.1, 0.2)
    assert (gap.curve.steps, gap.curve.values) == ((0.0, 20.0, 50.0), (1.5, 0.5, 0.25))
    kinds = [point.kind for point in gap.points]
    assert {kind: kinds.count(kind) for kind in kinds} == {"region": 10, "text": 5, "vision": 5}
    texts = [point for point in gap.points if point.kind == "text"]
    assert [(point.label, point.name) for point in texts] == [*enumerate(NAMES), (-1, "sky"), (-1, "sea")]
    assert gap.regions == gap.shown == 10


def test_each_class_has_its_distances_and_cosines(gap):
    assert gap.numbers[-1].name.startswith("Regions and classes' prototypes told apart")
    assert (gap.numbers[-1].before, gap.numbers[-1].after) == (0.97, None)
    (only,) = gap.by_class
    assert only == modality.ClassGap(NAMES[0], 4, (1.25, 1.25), (0.5, 0.75), (None, None))


def test_projection_weighs_groups_not_rows():
    rng = np.random.default_rng(1)
    many, few = rng.normal(size=(40, 6)), rng.normal(size=(4, 6)) + 5
    planes, share = modality.project([many, few])
    again, same = modality.project([np.repeat(many, 7, axis=0), few])
    assert np.allclose(planes[0], again[0][::7]) and np.allclose(planes[1], again[1]) and share == pytest.approx(same)
    assert abs(planes[0][:, 0].mean() - planes[1][:, 0].mean()) > 8  # the gap is what the first axis shows


def test_projection_keeps_a_plane_whole():
    rng = np.random.default_rng(2)
    flat = [rng.normal(size=(n, 2)) @ rng.normal(size=(2, 9)) for n in (5,)]
    planes, share = modality.project(flat)
    assert share == pytest.approx(1.0)
    spans = np.linalg.norm(flat[0][:, None] - flat[0][None], axis=-1)
    assert np.allclose(np.linalg.norm(planes[0][:, None] - planes[0][None], axis=-1), spans)
    assert modality.project([np.ones((1, 3)), np.ones((2, 3))])[0][1].tolist() == [[0, 0], [0, 0]]


def test_regions_lie_where_a_run_writes_them(tmp_path):
    """One file a photograph, of the last round alone."""
    run = make_run(tmp_path)
    old = modality.gap(run)
    for path in sorted((run / "regions").glob("round*.safetensors")):
        turn, batch = path.stem.split("-")
        place = run / "regions" / turn / "day1" / f"{batch}.st"
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)
    new = modality.gap(run)
    assert old is not None and new == old and new.points
