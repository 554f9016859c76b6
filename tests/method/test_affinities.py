"""Affinities by classes and by another encoder against slow twins, and how maps go along them."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import AFFINITIES, Config, RefineConfig, preset
from vpl.errors import ConfigError, VplError
from vpl.method import affinities, prototypes, refine
from vpl.method.affinities import by_classes, by_features, divergences, followed
from vpl.method.labeller import Labeller
from vpl.method.looks import votes
from vpl.method.views import View, encode, guided
from vpl.scenes.draw import draw


def rows(count: int, kinds: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, kinds, generator=random, dtype=torch.float64)).softmax(dim=1)


def slow_divergence(p: list[float], q: list[float]) -> float:
    """Mean of both divergences from the mean, in bits, as the textbook has it."""

    def divergence(a, b):
        return sum(x * math.log2(x / y) for x, y in zip(a, b, strict=True) if x > 0)

    mean = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return (divergence(p, mean) + divergence(q, mean)) / 2


@pytest.mark.parametrize(("count", "kinds"), [(1, 2), (7, 3), (13, 30)])
def test_divergences_are_their_slow_twin(monkeypatch, count, kinds):
    p = rows(count, kinds)
    expected = torch.tensor([[slow_divergence(a, b) for b in p.tolist()] for a in p.tolist()], dtype=torch.float64)
    whole = divergences(p)
    torch.testing.assert_close(whole, expected, atol=1e-12, rtol=0)
    monkeypatch.setattr(affinities, "CELLS_AT_ONCE", 1)
    torch.testing.assert_close(divergences(p), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(divergences(p.float()).double(), expected, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 12), kinds=st.integers(2, 9), seed=st.integers(0, 10**6))
def test_divergence_properties(count, kinds, seed):
    p = rows(count, kinds, seed)
    d = divergences(p)
    assert torch.equal(d, d.T) and torch.equal(d.diagonal(), torch.zeros(count, dtype=torch.float64))
    assert (d >= 0).all() and (d <= 1 + 1e-12).all()
    order = torch.randperm(kinds, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(divergences(p[:, order]), d, atol=1e-12, rtol=0)


def test_divergences_by_hand():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    d = divergences(p)
    assert d[0].tolist() == pytest.approx([0, 1, 0, 1.5 - 0.75 * math.log2(3)], abs=1e-6)
    assert by_classes(p, 0.5)[0].tolist() == pytest.approx([1, math.exp(-2), 1, math.exp(-2 * d[0, 3])], abs=1e-6)


def test_features_are_their_slow_twin_and_lengths_do_not_count():
    f = torch.randn(9, 5, generator=torch.Generator().manual_seed(1))
    found = by_features(f, 0.3)
    for i, one in enumerate(f.double().tolist()):
        for j, other in enumerate(f.double().tolist()):
            cosine = (
                sum(a * b for a, b in zip(one, other, strict=True))
                / math.dist(one, [0] * 5)
                / math.dist(other, [0] * 5)
            )
            assert found[i, j].item() == pytest.approx(math.exp(-(1 - cosine) / 0.3), abs=1e-5)
    torch.testing.assert_close(by_features(f * torch.rand(9, 1).add(0.1), 0.3), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, found.T)
    torch.testing.assert_close(by_features(f[[0, 0, 0]], 0.01), torch.ones(3, 3), atol=1e-4, rtol=0)


def test_identical_patches_share_evenly_and_a_narrow_width_moves_nothing():
    maps = torch.rand(2, 12, generator=torch.Generator().manual_seed(2))
    same = refine.affinity(by_classes(rows(1, 4).float().expand(12, 4), 0.1)[None])[0]
    torch.testing.assert_close(same.spread(maps), maps.mean(dim=1, keepdim=True).expand(2, 12), atol=1e-5, rtol=0)
    apart = refine.affinity(by_classes(rows(12, 4).float(), 1e-4)[None])[0]
    torch.testing.assert_close(apart.spread(maps), maps, atol=1e-5, rtol=0)


def test_rows_sum_to_one_and_shares_stay_shares():
    p = rows(20, 6).float()
    near = refine.affinity(by_classes(p, 0.2)[None], 20)[0]
    torch.testing.assert_close(near.spread(torch.ones(1, 20)), torch.ones(1, 20), atol=1e-3, rtol=0)
    shares = rows(20, 3, 5).float().T.unflatten(1, (4, 5))
    torch.testing.assert_close(followed(shares, near, 2).sum(dim=0), torch.ones(4, 5), atol=1e-5, rtol=0)
    seeds = followed(shares, near, 3)
    assert seeds.amin() == 0 and seeds.amax() == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------ in the method

SIDE = 64
BASE = preset("scenes")


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("pocket", "cpu")


@pytest.fixture(scope="module")
def text(clip):
    return prototypes.text_prototypes(clip, scene_classes(), BASE.prompts).all


@pytest.fixture(scope="module")
def views():
    classes, scenes = scene_classes(), (draw(5, place, "web-flat", SIDE) for place in range(9))
    tagged = [scene for scene in scenes if scene.tags][:2]
    return [View(one.image, tuple(classes.index(tag) for tag in one.tags), (SIDE, SIDE)) for one in tagged]


def labeller(clip, text, guide=None, **values) -> Labeller:
    config = BASE.with_values({key.replace("__", "."): one for key, one in values.items()})
    return Labeller(clip, text, None, len(scene_classes()), config, guide)


def test_the_attention_alone_is_the_method_as_it_was(clip, text, views):
    features, config = encode(clip, views, BASE.clip), BASE.refine
    cams = [torch.rand(len(view.tags), 8, 8, generator=torch.Generator().manual_seed(3)) for view in views]
    tags = [view.tags for view in views]
    found = affinities.refined(clip, features, tags, cams, text, len(scene_classes()), config)
    for number, near in enumerate(refine.affinity(features.attention, config.rounds)):
        expected = refine.minmax(refine.refine(near, cams[number], config.box_threshold))
        assert torch.equal(found[number], expected)
    off = BASE.with_values({"refine.enabled": False}).refine
    assert affinities.refined(clip, features, tags, cams, text, len(scene_classes()), off) == cams


def test_each_affinity_changes_the_seeds_and_their_order_counts(clip, text, views, dinov2):
    def seeds(guide=None, **values):
        return labeller(clip, text, guide, **values).drafts(views[:1], pseudo=False)[0].seeds["refined"]

    found = {kind: seeds(refine__affinity=(kind,)) for kind in AFFINITIES[:2]}
    found["both"] = seeds(refine__affinity=("attention", "classes"))
    found["turned"] = seeds(refine__affinity=("classes", "attention"))
    found["plain"] = seeds(refine__affinity=("classes",), refine__patches="plain")
    found["features"] = seeds(dinov2, refine__features="one")
    assert labeller(clip, text, refine__features="one").config.refine.affinity == ("attention", "features")
    kept = list(found.values())
    assert not any(torch.allclose(one, other, atol=1e-3) for n, one in enumerate(kept) for other in kept[:n])


def test_votes_go_along_affinities_where_they_are_asked_to(clip, text, views, dinov2):
    makers = ("gradcam", "sclip", "maskclip-words", "similarity")
    bare = labeller(clip, text, looks__makers=makers).drafts(views[:1], pseudo=True)[0].said
    values = {"looks__makers": makers, "refine__votes": ("classes", "features"), "refine__features": "one"}
    said = labeller(clip, text, dinov2, **values).drafts(views[:1], pseudo=True)[0].said
    same = [torch.equal(one, other) for one, other in zip(bare, said, strict=True)]
    assert same == [True, False, False, True], "gradcam and similarity have refine.affinity"
    shares = votes(said, len(views[0].tags), (SIDE, SIDE), BASE.looks)
    torch.testing.assert_close(shares.sum(dim=0), torch.ones(SIDE, SIDE), atol=1e-4, rtol=0)


def test_looks_at_other_scales_have_the_other_encoder_s_answer_for_them(clip, text, views, dinov2):
    values = {"looks__makers": ("sclip",), "looks__scales": (1.0, 1.5), "looks__flip": True, "refine__features": "one"}
    said = labeller(clip, text, dinov2, refine__votes=("features",), **values).drafts(views[:1], pseudo=True)[0].said
    assert [one.shape[1:] for one in said] == [(8, 8), (8, 8), (12, 12), (12, 12)]


def test_the_other_encoder_sees_clip_s_grid(clip, views, dinov2):
    features = encode(clip, views, BASE.clip)
    seen = guided(features, views, dinov2)
    assert seen.guide.shape == (2, 64, dinov2.width) and seen.guide.dtype == torch.float32
    assert guided(seen, views, dinov2) is seen and guided(features, views, None) is features


def test_what_does_not_fit_is_told(clip, views):
    with pytest.raises(ConfigError, match=r"refine\.features names no encoder"):
        Config().with_values({"refine.affinity": ("features",)})
    with pytest.raises(ConfigError, match=r"refine\.votes holds 'colour'; expected some of attention, classes, f"):
        Config().with_values({"refine.votes": ("colour",)})
    with pytest.raises(ConfigError, match=r"refine\.affinity is \[\]"):
        Config().with_values({"refine.affinity": ()})
    with pytest.raises(ConfigError, match="there is one class and no background word"):
        affinities.check(1, 0)
    of, features = inspect.unwrap(affinities.of), encode(clip, views, BASE.clip)
    with pytest.raises(VplError, match=r"the features lack what refine\.features says"):
        of("features", clip, features, [view.tags for view in views], torch.zeros(3, clip.dim), 3, RefineConfig())
    assert not Config().refine.guided and Config().with_values({"refine.features": "x"}).refine.guided
    off = Config().with_values({"refine.features": "x", "refine.enabled": False})
    assert not off.refine.guided


def test_without_background_words_all_classes_are_compared(text):
    own = affinities._rows(text[:16], (3,), 16)
    assert torch.equal(own, text[:16]) and len(affinities._rows(text, (3, 5), 16)) == len(text) - 14
