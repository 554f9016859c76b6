"""The head over frozen features, the student, and the card that builds either again."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vpl.classes import ClassSet
from vpl.config import CrfConfig, DecoderConfig, PredictConfig
from vpl.errors import ConfigError, ModelError
from vpl.network.card import Card
from vpl.network.grids import guided, to_pixels
from vpl.network.head import Decoder, Sight
from vpl.network.student import Student, is_student

SMALL = DecoderConfig(width=16, blocks=2, heads=4)


def features(blocks=3, count=2, tokens=12, width=10):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, tokens, width, generator=generator) for _ in range(blocks))


class Given(Sight):
    """Features as they are given, without an encoder."""

    def __init__(self, blocks, grid):
        super().__init__(torch.zeros(len(blocks[0]), 3, 8, 8), None)
        self.given, self.shape = blocks, grid

    blocks = property(lambda self: self.given)
    grid = property(lambda self: self.shape)


def answer(head, blocks, grid=(3, 4)):
    return head(Given(blocks, grid)).logits


def decoder(classes=4, config=SMALL) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Decoder(3, 10, classes, config).eval()


def test_one_cell_a_patch_leaves_the_answer_as_it_is():
    logits = torch.randn(1, 3, 2, 2)
    assert guided(logits, torch.zeros(1, 3, 8, 8), SMALL) is logits


def test_cells_follow_the_photographs_edge():
    # 4 x 4 patches of 8 pixels; an edge in the middle of the third column of patches, of which the head is not sure.
    pixels = torch.full((1, 3, 32, 32), -1.0)
    pixels[..., 20:] = 1.0
    shares = torch.tensor([0.95, 0.95, 0.7, 0.05]).expand(4, 4)
    logits = torch.stack([shares, 1 - shares])[None].log()
    fine = guided(logits, pixels, DecoderConfig(cells=4, guide_rounds=20))
    assert fine.shape == (1, 2, 16, 16)
    assert (fine.argmax(dim=1)[0] == (torch.arange(16) >= 10).long()).all()
    assert (to_pixels(logits, (16, 16)).argmax(dim=1)[0] != (torch.arange(16) >= 10).long()).any()
    learning = logits.requires_grad_()
    assert guided(learning, pixels, DecoderConfig(cells=4)) is learning


def slow_logits(head: Decoder, blocks, grid):
    """The head's equation with every sum written out, one image, one head of attention and one query at a time."""

    def norm(x, module=None):
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit if module is None else unit * module.weight + module.bias

    def linear(module, x):
        return x @ module.weight.T + module.bias

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    images = []
    for n in range(len(blocks[0])):
        parts = [gelu(linear(project, norm(z[n]))) for project, z in zip(head.projections, blocks, strict=True)]
        g = linear(head.fuse, torch.cat(parts, -1))
        for block in head.blocks:
            q, k, v = linear(block.qkv, norm(g, block.norm_attention)).chunk(3, -1)
            side = g.shape[1] // block.heads
            mixed = torch.zeros_like(g)
            for one in range(block.heads):
                own = slice(one * side, (one + 1) * side)
                for place in range(len(g)):
                    shares = torch.softmax(k[:, own] @ q[place, own] / math.sqrt(side), 0)
                    mixed[place, own] = shares @ v[:, own]
            g = g + linear(block.out, mixed)
            g = g + linear(block.mlp[2], gelu(linear(block.mlp[0], norm(g, block.norm_mlp))))
        images.append(linear(head.classify, norm(g, head.norm)).T.reshape(-1, *grid))
    return torch.stack(images)


def test_agrees_with_the_equation_written_out():
    head, blocks = decoder(), features()
    torch.testing.assert_close(answer(head, blocks), slow_logits(head, blocks, (3, 4)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 3), (6, 6)])
def test_any_grid(grid):
    head = decoder()
    assert answer(head, features(tokens=grid[0] * grid[1]), grid).shape == (2, 5, *grid)


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    head, blocks = decoder(), features()
    alone = answer(head, tuple(block[1:] for block in blocks))
    torch.testing.assert_close(answer(head, blocks)[1:], alone, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_features():
    head, blocks = decoder(), tuple(block.requires_grad_() for block in features())
    answer(head, blocks).square().sum().backward()
    assert all(block.grad is None for block in blocks)
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in head.parameters())


def test_every_block_of_the_encoder_counts():
    head, blocks = decoder(), features()
    before = answer(head, blocks)
    for number in range(3):
        changed = [block.flip(1) if place == number else block for place, block in enumerate(blocks)]
        assert not torch.allclose(answer(head, changed), before, atol=1e-3)


def test_bilinear_with_half_pixel_centres():
    grid = torch.tensor([[[[0.0, 4.0]]]])
    assert to_pixels(grid, (1, 4)).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


def test_errors_say_what_to_do():
    with pytest.raises(ConfigError, match=r"decoder.width is 18 and decoder.heads is 4; .* --set decoder.width=20"):
        Decoder(3, 10, 4, DecoderConfig(width=18, heads=4))
    with pytest.raises(ModelError, match=r"features of 2 blocks; expected 3. Use the CLIP that it was trained with"):
        answer(decoder(), features(blocks=2))
    with pytest.raises(ModelError, match=r"reads the features of a CLIP, and none was given"):
        decoder()(Sight(torch.zeros(1, 3, 8, 8), None))
    assert is_student(DecoderConfig(network="hf:some/name")) and not is_student(SMALL)


@pytest.fixture(scope="module")
def segformer_folder(tmp_path_factory):
    """A SegFormer's configuration without weights, small enough for a test."""
    from transformers import SegformerConfig

    folder = tmp_path_factory.mktemp("segformer")
    SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    ).save_pretrained(folder)
    return folder


def test_student_from_a_configuration_folder_and_from_its_description(segformer_folder):
    student = Student.pretrained(f"hf:{segformer_folder}", classes=4).eval()
    pixels = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    logits = student(Sight(pixels, None)).logits
    assert logits.shape == (2, 5, 10, 14)
    again = Student.from_description(json.loads(json.dumps(student.describe()))).eval()
    again.load_state_dict(student.state_dict())
    assert torch.equal(again(Sight(pixels, None)).logits, logits)


def test_student_errors(tmp_path):
    with pytest.raises(ModelError, match=r"the student network .*nothing.* can't be loaded .* hf:nvidia/mit-b0"):
        Student.pretrained(f"hf:{tmp_path / 'nothing'}", classes=2)
    with pytest.raises(ModelError, match="student network of type 'no-such' can't be built"):
        Student.from_description({"model_type": "no-such"})


def card(**changed) -> Card:
    values = {
        "classes": ClassSet(("cat", "dog"), colors=((1, 2, 3), (4, 5, 6))),
        "decoder": SMALL, "clip_name": "pocket", "clip_hash": "ab", "clip_blocks": 3, "clip_width": 10, "patch": 8,
        "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "scale": 1.5, "max_side": 512,
        "predict": PredictConfig(scales=(0.5, 1.0)), "crf": CrfConfig(rounds=3), "training": {"seed": 7},
    }  # fmt: skip
    return Card(**values | changed)


def test_card_comes_back_the_same():
    assert Card.from_json(card().to_json()) == card()
    assert isinstance(card().empty_head(), Decoder)


def test_a_broken_card_is_one_sentence():
    for text in ("", "[]", "{}", card().to_json().replace('"patch"', '"patches"'), card().to_json()[:200]):
        with pytest.raises(ModelError, match=r"network.json can't be used .* Train the network again"):
            Card.from_json(text)
