"""Signs of failure: what they measure, when they speak, and the gap of two modalities by class."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from vpl.method import signs


def grid(*rows):
    return np.array(rows, dtype=np.uint8)


def test_agreement_counts_pixels_that_carry_a_class():
    assert signs.agreement(grid([0, 1, 2, 0]), grid([0, 1, 1, 3])) == pytest.approx(1 / 3)
    assert signs.agreement(grid([0, 0]), grid([0, 0])) == 1
    assert signs.agreement(grid([1, 255]), grid([1, 2])) == 1, "255 is left out"


def test_advice_only_when_it_is_bad():
    good, bad = (signs.label_free({"mirror agreement": one})["mirror agreement"] for one in (0.95, [0.5, 0.7]))
    assert good["advice"] == "" and good["value"] == 0.95
    assert bad["value"] == pytest.approx(0.6) and "clip.scale" in bad["advice"]


def test_unknown_values_stay_unknown_and_are_json():
    found = signs.label_free({"CRF change": [math.nan], "tag consistency": [math.nan, 0.9]})
    assert found["CRF change"]["value"] is None and found["CRF change"]["advice"] == ""
    assert found["tag consistency"]["value"] == 0.9
    json.dumps(found, allow_nan=False)


def test_every_sign_says_one_sentence_and_one_thing_to_do():
    for name, rule in {**signs.LABEL_FREE, **signs.WITH_TRUTH}.items():
        assert rule.meaning.endswith(".") and rule.advice.endswith("."), name
        assert not math.isinf(rule.low) or not math.isinf(rule.high), name


def test_configuration_values_in_the_advice_exist():
    import re

    from vpl.config import Config

    known = Config().flat()
    for rule in {**signs.LABEL_FREE, **signs.WITH_TRUTH}.values():
        for key in re.findall(r"\b[a-z]+\.[a-z_]+\b", rule.advice):
            assert key in known, key
        for name in re.findall(r"train\.\w+", rule.advice):
            assert name in known


def test_of_maps():
    mask = {"ignored pixels": 0.5, "foreground pixels": 0.25, "tags without a pixel": 0.0}
    found = signs.of_maps(grid([0, 1, 1, 0]), grid([0, 1, 0, 0]), grid([0, 1, 255, 255]), [1])
    assert found == {"CRF change": 0.25} | mask
    assert signs.of_maps(grid([0]), None, None, [1]) == {}
    assert signs.of_mask(grid([0, 1, 255, 255]), [1, 2]) == mask | {"tags without a pixel": 1.0}


def test_against_truth_by_hand():
    truth = grid([1, 1, 0, 0], [1, 1, 0, 2], [0, 0, 0, 2])
    seeds = grid([1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 2])
    found = signs.against_truth(seeds, truth, truth)
    assert found["completeness"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert found["seed precision"] == pytest.approx((2 / 4 + 1) / 2)
    assert found["co-occurrence"] == pytest.approx((1 / 4 + 0) / 2), "class 1's seed on class 2"
    assert found["components per object"] == 1 and found["boundary F"] == 1
