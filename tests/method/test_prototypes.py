"""Prototypes against the reference's answers, autograd, float64 twins and cases with a known end."""

import math
import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vpl.classes import ClassSet
from vpl.config import PromptConfig, PrototypeConfig
from vpl.errors import ConfigError, DataError
from vpl.machine import one_core_each
from vpl.method import prototypes
from vpl.method.gap import report
from vpl.method.prototypes import CHECK_EVERY, learn, mean_kl, region_embeddings, soft_labels, text_prototypes

GOLDEN = Path(os.environ.get("VPL_GOLDEN", Path(__file__).parent.parent / "golden"))
CONFIG = PrototypeConfig(image_temperature=0.04, steps=60)


def unit(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def problem(count=37, classes=5, width=12, seed=0, dtype=torch.float64):
    """Regions around hidden centres that lie apart from the text prototypes, with their soft labels."""
    text, centres = unit(classes, width, seed=seed, dtype=dtype), unit(classes, width, seed=seed + 1, dtype=dtype)
    own = torch.arange(count) % classes
    x = F.normalize(text[own] + centres[own] + 0.8 * unit(count, width, seed=seed + 2, dtype=dtype), dim=-1)
    return x, soft_labels(x, text, None, 0.1), text, own


@pytest.fixture(params=[4096, 16])
def path(request, monkeypatch):
    """All regions at once, and in parts of a few rows that no count here is a multiple of."""
    monkeypatch.setattr(prototypes, "REGIONS_AT_ONCE", request.param)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "prototypes.npz") as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else float(file[key]) for key in file}


def slow_learn(x, q, start, rate, steps, temperature):
    """InMaP's own loop."""
    columns, last = start.T.clone(), math.inf
    for _ in range(steps):
        gradient = x.T @ torch.softmax(x @ columns / temperature, dim=1) - x.T @ q
        norm = gradient.norm().item()
        rate, last = (rate / 2 if norm > last else rate), norm
        columns = F.normalize(columns - rate / (len(x) * temperature) * gradient, dim=0)
    return columns.T


@pytest.mark.parametrize(("steps", "sinkhorn"), [(1, 0), (10, 0), (200, 0), (200, 20)])
def test_learning_agrees_with_the_reference(golden, steps, sinkhorn):
    """As near to the pinned answer as its own rounding is to the exact one: after 200 steps, where the KL is nearly
    flat, another processor's float32 moves the reference's own loop by 6e-4, and float64 by 9e-4."""
    key = f"vision_prototypes{'_sinkhorn' if sinkhorn else ''}_iter{steps}"
    x, text = golden["features"], golden["text_prototypes"]
    q = soft_labels(x, text, None, golden["tau_text"], sinkhorn_rounds=sinkhorn, one_hot=golden["alpha"])
    config = PrototypeConfig(image_temperature=golden["tau_vision"], step=golden["lr"], steps=steps)
    learned = learn(x, q, text, config)
    assert learned.steps == steps
    rule = golden["lr"], steps, golden["tau_vision"]
    torch.testing.assert_close(learned.prototypes, slow_learn(x, q, text, *rule), atol=1e-5, rtol=0)
    rounding = (slow_learn(x.double(), q.double(), text.double(), *rule) - golden[key]).abs().max().item()
    assert rounding < 1.5e-3
    torch.testing.assert_close(learned.prototypes, golden[key], atol=max(1e-4, rounding), rtol=0)


def test_sinkhorn_agrees_with_the_reference(golden):
    q = soft_labels(
        golden["features"], golden["text_prototypes"], None, golden["tau_text"], sinkhorn_rounds=20, one_hot=1.0
    )
    torch.testing.assert_close(q, golden["sinkhorn_labels"], atol=1e-4, rtol=0)


class FakeClip:
    """Encodes a text as what its letters say, so that the right answer is known."""

    def encode_texts(self, texts):
        self.asked = list(texts)
        return torch.stack([torch.tensor([float(len(text)), text.count("a"), 1.0]) for text in texts])


def test_text_prototypes_are_unit_means_of_unit_embeddings():
    clip = FakeClip()
    classes = ClassSet(("cat", "tv"), words=("cat", "tv screen"), background=("sea", "grass", "sky"))
    prompts = PromptConfig(templates=("a {}.", "itap of a {}."))
    made = text_prototypes(clip, classes, prompts)
    assert clip.asked[:4] == ["a cat.", "itap of a cat.", "a tv screen.", "itap of a tv screen."]
    assert made.foreground.shape == (2, 3) and made.background.shape == (3, 3)
    assert torch.equal(made.all, torch.cat([made.foreground, made.background]))
    rows = [clip.encode_texts([text])[0] for text in ("a tv screen.", "itap of a tv screen.")]
    mean = sum(row / row.norm() for row in rows) / 2
    torch.testing.assert_close(made.foreground[1], mean / mean.norm())


def test_class_and_background_words_can_be_left_out():
    clip = FakeClip()
    classes = ClassSet(("cat", "tv"), words=("cat", "tv screen"))
    made = text_prototypes(clip, classes, PromptConfig(class_words=False, background_words=False))
    assert clip.asked == ["a clean origami cat.", "a clean origami tv."]
    assert made.background.shape == (0, 3) and made.all.shape == (2, 3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 10**6))
def test_region_embeddings_are_unit_means(count, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(tokens, 6, generator=generator)
    regions = torch.rand(count, tokens, generator=generator) > 0.5
    x, valid = region_embeddings(patches, regions)
    assert valid.tolist() == regions.any(1).tolist()
    for row, region in zip(x, regions, strict=True):
        mean = torch.stack([patches[place] for place in region.nonzero()[:, 0]] or [torch.zeros(1, 6)[0]]).mean(0)
        torch.testing.assert_close(row, mean / mean.norm().clamp(min=1e-12), atol=1e-5, rtol=1e-4)


def test_a_region_whose_tokens_cancel_is_not_valid():
    x, valid = region_embeddings(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[True, True], [True, False]]))
    assert valid.tolist() == [False, True] and x[0].tolist() == [0, 0]


def soft_twin(x, text, allowed, temperature):
    """The slow twin: plain Python floats, row by row."""
    rows = []
    for n in range(len(x)):
        logits = [sum(a * b for a, b in zip(x[n].tolist(), t.tolist(), strict=True)) / temperature for t in text]
        usable = [value for value, use in zip(logits, allowed[n].tolist(), strict=True) if use]
        exps = [math.exp(v - max(usable)) if use else 0.0 for v, use in zip(logits, allowed[n].tolist(), strict=True)]
        rows.append([value / sum(exps) for value in exps])
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 1.0]))
def test_soft_labels_restrict_and_renormalise(count, classes, seed, temperature):
    x, text = unit(count, 4, seed=seed), unit(classes, 4, seed=seed + 1)
    allowed = torch.rand(count, classes, generator=torch.Generator().manual_seed(seed)) > 0.5
    allowed[:, seed % classes] = True
    q = soft_labels(x, text, allowed, temperature)
    torch.testing.assert_close(
        q.double(), soft_twin(x.double(), text.double(), allowed, temperature), atol=1e-4, rtol=0
    )
    assert (q[~allowed] == 0).all()
    torch.testing.assert_close(
        soft_labels(x, text, torch.ones_like(allowed), temperature), soft_labels(x, text, None, temperature)
    )


def test_confident_rows_become_one_hot_and_others_stay():
    x, text = unit(50, 6), unit(4, 6, seed=1)
    soft, hard = soft_labels(x, text, None, 0.3), soft_labels(x, text, None, 0.3, one_hot=0.6)
    confident = soft.amax(1) > 0.6
    assert 0 < confident.sum() < 50
    assert torch.equal(hard[~confident], soft[~confident])
    assert torch.equal(hard[confident], F.one_hot(soft[confident].argmax(1), 4).float())


@pytest.mark.parametrize("temperature", [0.2, 0.001])
def test_sinkhorn_balances_classes(temperature):
    x, text = unit(60, 6), unit(4, 6, seed=1)
    q = soft_labels(x, text, None, temperature, sinkhorn_rounds=500 if temperature > 0.1 else 20)
    torch.testing.assert_close(q.sum(1), torch.ones(60))
    assert q.isfinite().all()
    if temperature > 0.1:
        torch.testing.assert_close(q.sum(0), torch.full((4,), 15.0), atol=1e-2, rtol=0)


def test_sinkhorn_keeps_barred_classes_at_zero():
    x, text = unit(30, 6), unit(4, 6, seed=1)
    allowed = torch.ones(30, 4, dtype=torch.bool)
    allowed[:, 2] = False  # a class of no image
    allowed[:10, 0] = False
    q = soft_labels(x, text, allowed, 0.01, sinkhorn_rounds=20)
    assert q.isfinite().all() and (q[~allowed] == 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(30))


def test_soft_label_errors_say_what_to_do():
    x, text = unit(2, 4), unit(3, 4)
    with pytest.raises(DataError, match="region 1 has no allowed class; give each region at least one tag"):
        soft_labels(x, text, torch.tensor([[True] * 3, [False] * 3]), 0.01)
    with pytest.raises(ConfigError, match="expected a number above 0"):
        soft_labels(x, text, None, 0.0)


def test_the_gradient_in_closed_form_is_autograds(path):
    x, q, text, _ = problem()
    rows = text.clone().requires_grad_()
    loss = (q * (q.log() - torch.log_softmax(x @ rows.T / 0.04, dim=1))).sum(1).mean()
    (expected,) = torch.autograd.grad(loss, rows)
    assert mean_kl(x, q, text, 0.04) == pytest.approx(loss.item(), rel=1e-12)
    # one step from the start, before it is halved: V = unit(T - step · gradient)
    learned = learn(x, q, text, replace(CONFIG, steps=1, step=1e-3))
    assert learned.kl_after < learned.kl_before
    torch.testing.assert_close(learned.prototypes, F.normalize(text - 1e-3 * expected, dim=1), atol=1e-14, rtol=0)


def twin(x, q, start, config):
    """The slow twin: the reference's iteration with autograd's gradient, without an early end."""
    rows, rate, last = start.clone(), config.step, math.inf
    for _ in range(config.steps):
        leaf = rows.clone().requires_grad_()
        loss = -(q * torch.log_softmax(x @ leaf.T / config.image_temperature, dim=1)).sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        norm = float(gradient.norm())
        rate = rate / 2 if norm > last else rate
        last, rows = norm, F.normalize(leaf.detach() - rate * gradient, dim=1)
    return rows


@pytest.mark.parametrize(("step", "steps"), [(1.0, 13), (10.0, 19), (1.0, 200), (10.0, 200)])
@pytest.mark.parametrize(("count", "classes", "width"), [(7, 3, 5), (37, 5, 12), (101, 11, 17)])
def test_learning_agrees_with_its_slow_twin(count, classes, width, step, steps):
    x, q, text, _ = problem(count, classes, width)
    config = replace(CONFIG, steps=steps, step=step, tolerance=0.0)
    learned = learn(x, q, text, config)
    torch.testing.assert_close(learned.prototypes, twin(x, q, text, config), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("count", "classes", "width"), [(7, 3, 5), (37, 5, 12), (101, 11, 17)])
def test_parts_of_the_regions_add_up_to_all(monkeypatch, count, classes, width):
    x, q, text, _ = problem(count, classes, width)
    config = replace(CONFIG, steps=100, tolerance=0.0)
    whole = learn(x, q, text, config)
    monkeypatch.setattr(prototypes, "REGIONS_AT_ONCE", 4)
    parts = learn(x, q, text, config)
    torch.testing.assert_close(parts.prototypes, whole.prototypes, atol=1e-9, rtol=0)
    assert parts.curve == pytest.approx(whole.curve, abs=1e-12)


def test_the_number_of_cores_does_not_show(monkeypatch):
    x, q, text, _ = problem(101, 5, 12, dtype=torch.float32)
    monkeypatch.setattr(prototypes, "REGIONS_AT_ONCE", 16)
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(prototypes, "cores", lambda count=count: count)
        with one_core_each():
            found.append(learn(x, q, text, CONFIG).prototypes)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rows_that_are_kept_stay_to_the_last_bit_and_the_others_learn_beside_them(path):
    x, _, text, own = problem(60, 6, 16, dtype=torch.float32)
    present, kept = own < 4, torch.arange(6) >= 4
    q = soft_labels(x[present], text, (own[present, None] == torch.arange(6)), 0.1)
    free, held = (learn(x[present], q, text, CONFIG, rows) for rows in (None, kept))
    assert torch.equal(held.prototypes[4:], text[4:])
    assert not torch.equal(free.prototypes[4:], text[4:]), "the KL pushes an absent class away"
    assert held.kl_after < held.kl_before


@pytest.mark.parametrize(("count", "classes", "width"), [(7, 3, 5), (37, 5, 12), (101, 11, 17)])
def test_float32_agrees_with_float64(count, classes, width):
    x, q, text, _ = problem(count, classes, width)
    config = replace(CONFIG, steps=200, step=1.0, tolerance=0.0)
    double, single = learn(x, q, text, config), learn(x.float(), q.float(), text.float(), config)
    assert single.prototypes.dtype == torch.float32
    torch.testing.assert_close(single.prototypes.double(), double.prototypes, atol=1e-3, rtol=0)
    assert single.kl_after == pytest.approx(double.kl_after, rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from([0.1, 10.0, 1e4]),
    st.sampled_from([0, 20, 33, 40]),
    st.sampled_from([7, 4096]),
)
def test_the_loss_never_ends_above_the_start(count, classes, seed, step, steps, rows):
    x, q, text, _ = problem(count, classes, 6, seed)
    with mock.patch.object(prototypes, "REGIONS_AT_ONCE", rows):
        learned = learn(x, q, text, replace(CONFIG, step=step, steps=steps))
    assert learned.kl_after <= learned.kl_before == learned.curve[0]
    assert learned.kl_after == pytest.approx(mean_kl(x, q, learned.prototypes, 0.04), abs=1e-12)
    torch.testing.assert_close(learned.prototypes.norm(dim=1), torch.ones(classes, dtype=torch.float64))


def test_no_step_leaves_the_start(path):
    x, q, text, _ = problem()
    learned = learn(x, q, text, replace(CONFIG, steps=0))
    assert torch.equal(learned.prototypes, text)
    assert learned.steps == 0 and learned.curve == (learned.kl_before,) and learned.kl_after == learned.kl_before


def test_labels_that_are_met_already_stay(path):
    x, _, text, _ = problem()
    q = torch.softmax(x @ text.T / 0.04, dim=1)
    learned = learn(x, q, text, CONFIG)
    torch.testing.assert_close(learned.prototypes, text, atol=1e-12, rtol=0)
    assert learned.kl_after == pytest.approx(0, abs=1e-12)


def test_arguments_are_not_modified(path):
    x, q, text, _ = problem()
    copies = x.clone(), q.clone(), text.clone()
    learn(x, q, text, CONFIG)
    assert all(torch.equal(one, two) for one, two in zip((x, q, text), copies, strict=True))


def test_the_tolerance_ends_it_and_zero_does_not(path):
    x, _, text, _ = problem(200, 5, 8)
    q = torch.softmax(x @ unit(5, 8, seed=9, dtype=torch.float64).T, dim=1)  # soft: the KL cannot reach zero
    loose = learn(x, q, text, replace(CONFIG, steps=2000, tolerance=0.1))
    tight = learn(x, q, text, replace(CONFIG, steps=400, tolerance=0.0))
    assert loose.steps < 400 == tight.steps and loose.steps % CHECK_EVERY == 0
    assert len(loose.curve) == loose.steps // CHECK_EVERY + 1
    falls = [(a - b) / a for a, b in zip(loose.curve, loose.curve[1:], strict=False)]
    assert 0 <= falls[-1] <= 0.1 and all(abs(fall) > 0.1 for fall in falls[:-1])
    assert tight.kl_after < loose.kl_after < loose.kl_before


def test_learning_errors_say_what_to_do():
    x, q, text, _ = problem()
    with pytest.raises(DataError, match=r"no region to learn from; lower prototypes.phi"):
        learn(x[:0], q[:0], text, CONFIG)
    with pytest.raises(DataError, match="region embeddings hold numbers that are not finite"):
        learn(x * math.nan, q, text, CONFIG)


def test_learning_brings_regions_nearer_to_their_own_prototype(path):
    x, q, text, own = problem(400, 6, 16)
    learned = learn(x, q, text, replace(CONFIG, steps=400))
    made = report(x, q, own, text, learned.prototypes, 6, CONFIG.image_temperature)
    assert made.kl_vision == pytest.approx(learned.kl_after) and made.kl_text == pytest.approx(learned.kl_before)
    assert made.kl_vision < made.kl_text and made.gap_vision >= 0
