"""A network of sixty steps on the case's four images, made once for each process."""

from __future__ import annotations

import pytest

import training_case as case
from vpl.network import predict


@pytest.fixture(scope="session")
def items(tmp_path_factory):
    return case.make_items(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="session")
def run(tiny_clip, items, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    changes = {"train__steps": 60, "rsc__weight": 0.0, "predict__scales": (0.75, 1.0), "crf__rounds": 2}
    list(case.fit(tiny_clip, items, folder, **changes))
    return folder


@pytest.fixture(scope="session")
def predictor(run, tiny_clip):
    return predict.load(run, tiny_clip)
