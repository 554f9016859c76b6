"""Looks: makers share an encoding, votes are shares, one look is the method as it was, and mirrored looks turn back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from vpl.classes import scenes as scene_classes
from vpl.clip.model import FrozenClip
from vpl.config import Config, LookConfig, preset
from vpl.errors import ConfigError
from vpl.method import looks, prototypes
from vpl.method.labeller import Labeller
from vpl.method.looks import MAKERS, Seen, gathered, makers_of, votes
from vpl.method.views import View, encode
from vpl.scenes.draw import draw

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
    classes, found, place = scene_classes(), [], 0
    while len(found) < 4:
        scene = draw(5, place, "web-flat", SIDE)
        place += 1
        if scene.tags:
            found.append(View(scene.image, tuple(classes.index(tag) for tag in scene.tags), (SIDE, SIDE)))
    return found


def labeller(clip, text, **values) -> Labeller:
    config = BASE.with_values({f"looks.{key}": one for key, one in values.items()})
    return Labeller(clip, text, None, len(scene_classes()), config)


def seen_of(made: Labeller, views) -> Seen:
    features = encode(made.clip, views, made.config.clip)
    return Seen(made.clip, features, [view.tags for view in views], made.text, None, made.classes, made.config)


def test_one_look_is_no_vote(clip, text, views):
    made = labeller(clip, text)
    drafts = made.drafts(views, pseudo=True)
    assert not any(draft.said for draft in drafts)
    assert not LookConfig().vote and LookConfig(makers=("words",)).vote and LookConfig(flip=True).vote


@pytest.mark.parametrize("name", MAKERS)
def test_what_a_maker_says_becomes_shares(clip, text, views, name):
    said = MAKERS[name](seen_of(labeller(clip, text), views))
    for one, view in zip(said, views, strict=True):
        assert len(one) - len(view.tags) == (name in looks.OF_WORDS) and one.shape[1:] == (8, 8)
        shares = votes([one], len(view.tags), (SIDE, SIDE), LookConfig())
        assert (shares >= 0).all() and torch.allclose(shares.sum(dim=0), torch.ones(SIDE, SIDE), atol=1e-4)


def test_the_vote_is_the_mean_of_the_looks(clip, text, views):
    made = labeller(clip, text, makers=("gradcam", "sclip", "words"), scales=(1.0, 1.5))
    draft, view = made.drafts(views, pseudo=True)[0], views[0]
    assert len(draft.said) == 6
    size, own = (SIDE, SIDE), made.config.looks
    alone = [votes([one], len(view.tags), size, own) for one in draft.said]
    torch.testing.assert_close(votes(draft.said, len(view.tags), size, own), torch.stack(alone).mean(dim=0))


def test_shares_of_a_seed_by_hand():
    seeds, size = torch.tensor([[[0.5]], [[0.25]]]), (1, 1)
    assert votes([seeds], 2, size, LookConfig(exponents=(1.0,)))[:, 0, 0].tolist() == pytest.approx([0.4, 0.4, 0.2])
    two = votes([seeds], 2, size, LookConfig(exponents=(1.0, 2.0)))[0, 0, 0].item()
    assert two == pytest.approx((0.5 / 1.25 + 0.25 / 1.0) / 2)


def test_a_mirrored_look_comes_back_upright(clip, text, views):
    made = labeller(clip, text, makers=("sclip",), flip=True)
    said = made.drafts(views[:1], pseudo=True)[0].said
    mirrored = dataclasses.replace(views[0], image=np.ascontiguousarray(views[0].image[:, ::-1]))
    other = made.drafts([mirrored], pseudo=True)[0].said
    torch.testing.assert_close(said[1], other[0].flip(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(said[0], other[1].flip(2), atol=1e-5, rtol=0)
    assert not torch.allclose(said[0], other[0], atol=1e-2)


def test_makers_share_the_encoding_and_other_looks_have_one_each(clip, text, views):
    counted = []

    def count(views, config):
        counted.append((len(views), config.scale))
        return encode(clip, views, config)

    made = labeller(clip, text, makers=("gradcam", "sclip", "words"), scales=(1.0, 1.5), flip=True)
    made = dataclasses.replace(made, encoder=count)
    made.drafts(views, pseudo=True)
    assert counted == [(4, 1.0), (4, 1.5), (4, 1.5)]  # the first look is the encoding that is there
    assert made.config.looks.encodings == 2 * (1 + 1.5**2)
    assert LookConfig(scales=(2.0,)).encodings == 5 and LookConfig(makers=("words", "sclip")).encodings == 1


def test_what_has_been_said_of_the_first_look_is_not_made_again(clip, text, views, monkeypatch):
    made = labeller(clip, text, makers=("gradcam", "words"))
    monkeypatch.setitem(MAKERS, "gradcam", lambda _: pytest.fail("asked again"))
    draft = made.drafts(views, pseudo=True)[0]
    assert torch.equal(draft.said[0], draft.seeds["refined"])


def test_views_of_other_sizes_at_another_scale_are_strangers(clip, text, views):
    """Equal patch grids at scale 1 and others at scale 1.5."""
    rng = np.random.default_rng(0)
    odd = [View(rng.integers(0, 256, (64, side, 3), dtype=np.uint8), (0, 1), (64, side)) for side in (57, 64, 58)]
    made = labeller(clip, text, makers=("sclip",), scales=(1.5,))
    together = gathered(seen_of(made, odd), odd)
    assert {tuple(one[0].shape) for one in together} == {(2, 12, 11), (2, 12, 12)}
    for view, one in zip(odd, together, strict=True):
        alone = gathered(seen_of(made, [view]), [view])[0]
        torch.testing.assert_close(one[0], alone[0], atol=1e-4, rtol=0)


def test_masks_of_a_vote_hold_tags_and_background_alone(clip, text, views):
    made = labeller(clip, text, makers=("gradcam", "sclip"))
    view = dataclasses.replace(views[0], size=(50, 70))
    found = made.masks(view, made.drafts([view], pseudo=True)[0], pseudo=True)
    assert {one.shape for one in found.values()} == {(50, 70)}
    assert set(np.unique(found["labels"])) <= {0, 255, *(tag + 1 for tag in view.tags)}
    one = labeller(clip, text)
    same = one.masks(view, one.drafts([view], pseudo=True)[0], pseudo=True)
    assert (same["refined"] == found["refined"]).all() and not (same["crf"] == found["crf"]).all()


def test_makers_that_are_not_there():
    with pytest.raises(ConfigError, match=r"looks\.makers holds 'sclop'; expected some of gradcam, similarity, sclip"):
        makers_of(LookConfig(makers=("gradcam", "sclop")), 3)
    assert list(makers_of(LookConfig(makers=("gradcam", "words")), 0)) == ["gradcam"]
    with pytest.raises(ConfigError, match="there are none; give the classes file some"):
        makers_of(LookConfig(makers=("words",)), 0)
    for key in ("makers", "scales", "exponents"):
        with pytest.raises(ConfigError, match=rf"looks\.{key} is \[\]; expected at least one"):
            Config().with_values({f"looks.{key}": ()})


def test_looks_come_scale_by_scale_and_a_mirror_turns_back():
    found = looks.looks_of((0.75, 1.0), flip=True)
    assert [(one.scale, one.mirrored) for one in found] == [(0.75, False), (0.75, True), (1.0, False), (1.0, True)]
    assert looks.looks_of((2.0,), flip=False) == [looks.Look(2.0)]
    x = torch.arange(6.0).view(1, 2, 3)
    assert torch.equal(found[1].turned(found[1].turned(x)), x) and found[1].turned(x)[0, 0].tolist() == [2, 1, 0]


def test_a_mean_takes_one_look_at_a_time_and_changes_none():
    given = [torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(n)) for n in range(4)]
    kept = [one.clone() for one in given]
    torch.testing.assert_close(looks.mean(iter(given)), torch.stack(kept).mean(dim=0))
    assert all(torch.equal(one, other) for one, other in zip(given, kept, strict=True))
    assert torch.equal(looks.mean(given[:1]), given[0])
