"""SigLIP 2 of any grid (NaFlex): both towers are transformers' own on square and other grids, GradCAM is autograd's."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from conftest import pixels_of
from vpl.clip.facts import Architecture
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError
from vpl.method.seeds import Slopes, seeds

WIDTH, CONTEXT, SIDE, PATCH = 36, 12, 5, 8
GRIDS = [(5, 5), (3, 4), (7, 2), (6, 9)]


@pytest.fixture(scope="module")
def theirs():
    from transformers import Siglip2Config, Siglip2Model

    sizes = {"hidden_size": WIDTH, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 80}
    text = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48,
            "vocab_size": 40, "max_position_embeddings": CONTEXT, "projection_size": WIDTH, "bos_token_id": None,
            "eos_token_id": None}  # fmt: skip
    config = Siglip2Config(vision_config=sizes | {"num_patches": SIDE**2, "patch_size": PATCH}, text_config=text)
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = Siglip2Model(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.startswith("logit"):
                weights.fill_(4.0 if name == "logit_scale" else -9.0)
            elif weights.ndim < 2 or "position_embedding" in name or "token_embedding" in name or "probe" in name:
                weights.normal_(float("norm" in name and name.endswith("weight")), 0.3)
            else:
                weights.normal_(0, 1.5 * weights[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    place = tmp_path_factory.mktemp("naflex")
    theirs.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def clip(folder):
    return FrozenClip.load(folder, device="cpu")


def answer(model, pixels, grid, beyond=0):
    """transformers' forward of patches cut as its own processor cuts them, `beyond` empty ones behind them."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    rows = torch.stack([torch.from_numpy(convert_image_to_patches(one.numpy(), PATCH)) for one in pixels])
    seen = F.pad(torch.ones(rows.shape[:2], dtype=torch.int64), (0, beyond))
    shapes = torch.tensor([grid] * len(pixels))
    with torch.no_grad():
        return model.vision_model(
            F.pad(rows, (0, 0, 0, beyond)), pixel_attention_mask=seen, spatial_shapes=shapes, output_hidden_states=True,
            output_attentions=True,
        )  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("beyond", [0, 7])
def test_image_tower_is_transformers_own_on_any_grid(theirs, clip, grid, beyond):
    pixels, cells = pixels_of(clip, grid=grid), grid[0] * grid[1]
    wanted = answer(theirs, pixels, grid, beyond)
    ours = clip.encode(pixels, attention_blocks=2, keep_blocks=True)
    for own, hidden in zip(ours.blocks, wanted.hidden_states[1:], strict=True):
        assert (own - hidden[:, :cells]).abs().max() < 1e-5 * hidden.abs().max()
    post = clip.image.ln_post(ours.last.output)
    assert (post - wanted.last_hidden_state[:, :cells]).abs().max() < 1e-5
    assert (clip.embed_images(pixels) - F.normalize(wanted.pooler_output, dim=1)).abs().max() < 1e-5
    attention = torch.stack(wanted.attentions[-2:]).mean((0, 2))[:, :cells, :cells]
    assert (ours.attention - attention).abs().max() < 1e-6
    alone = torch.stack([theirs.vision_model.head(post[:, n : n + 1]) for n in range(cells)], 1)
    assert (ours.patches - alone).abs().max() < 1e-5


def test_text_tower_and_logits_are_transformers_own(theirs, clip):
    pixels, ids = pixels_of(clip), torch.randint(2, 40, (5, CONTEXT), generator=torch.Generator().manual_seed(1))
    ids[0, 4:] = 1
    with torch.no_grad():
        wanted = F.normalize(theirs.text_model(ids).pooler_output, dim=1)
        images = F.normalize(answer(theirs, pixels, (SIDE, SIDE)).pooler_output, dim=1)
        logits = theirs.logit_scale.exp() * images @ wanted.T + theirs.logit_bias
    assert (clip.encode_tokens(ids) - wanted).abs().max() < 1e-5
    assert (clip.encode_tokens(ids[:1, :4]) - wanted[:1]).abs().max() < 1e-5
    cosines = clip.embed_images(pixels) @ clip.encode_tokens(ids).T
    assert (clip.logit_scale * cosines + clip.logit_bias - logits).abs().max() < 1e-3


@pytest.mark.parametrize("grid", [(5, 5), (3, 7)])
def test_gradcam_is_plain_autograd_s_and_that_of_slopes(theirs, clip, grid):
    pixels = pixels_of(clip, 1, grid, seed=4)
    rows = F.normalize(torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)
    features = clip.encode(pixels, keep_blocks=True)
    ours = seeds(clip, features, [rows], [3], 9.0)
    layer, x = theirs.vision_model.encoder.layers[-1], features.blocks[-2]
    a = layer.layer_norm1(x).detach().requires_grad_()
    middle = x + layer.self_attn(a)[0]
    tokens = theirs.vision_model.post_layernorm(middle + layer.mlp(layer.layer_norm2(middle)))[0]
    s = torch.softmax(9.0 * F.normalize(theirs.vision_model.head(tokens[:, None]).mean(0), dim=0) @ rows.T, 0)
    for tag in range(3):
        (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
        cam = torch.relu(a[0] @ gradient[0].mean(0)).detach().view(grid)
        for _ in range(2):
            cam = (cam - cam.min()) / (1e-7 + (cam - cam.min()).max())
        assert (ours.cam[0][tag] - cam).abs().max() < 1e-4
    assert bool((ours.cam[0] > 0.5).any())
    assert (Slopes(clip, features, rows).seeds(3, 9.0) - ours.cam[0]).abs().max() < 1e-4


def test_weights_in_halves_and_in_several_files_are_the_same(folder, clip, tmp_path):
    place = tmp_path / "x"
    shutil.copytree(folder, place)
    state = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    keys = sorted(state)
    parts = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for file, own in parts.items():
        save_file({key: state[key] for key in own}, place / file)
    index = {"weight_map": {key: file for file, own in parts.items() for key in own}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    assert FrozenClip.load(place, device="cpu").weights_hash == clip.weights_hash
    save_file({key: tensor.half() for key, tensor in state.items()}, place / "model.safetensors")
    pixels = pixels_of(clip, grid=(3, 4))
    near = FrozenClip.load(place, device="cpu").embed_images(pixels)
    assert (near * clip.embed_images(pixels)).sum(1).min() > 0.999
    (place / "model.safetensors").unlink()
    (place / "model-2.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors, one of the files of its weights"):
        FrozenClip.load(place, device="cpu")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "siglip"}, "says siglip, and its weights are another model's"),
        ({"vision_config": {"num_patches": 36}}, "its positions is 36, that of the weights is 25"),
        ({"vision_config": {"patch_size": 16}}, "its patch is 16, that of the weights is 8"),
        ({"vision_config": {"patch_size": [8, 4]}}, r"its patch is \[8, 4\], that of the weights is 8"),
        ({"vision_config": {"num_attention_heads": 5}}, "5 attention heads do not divide 36"),
        ({"vision_config": {"hidden_act": "swish"}}, "the activation 'swish' is unknown"),
        ({"vision_config": {"vision_use_head": False}}, "without its pooling head"),
        ({"text_config": {"vocab_size": "many"}}, "its words is many, that of the weights is 40"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(folder, tmp_path, config, words):
    place = tmp_path / "x"
    shutil.copytree(folder, place)
    tree = json.loads((place / "config.json").read_text())
    for key, one in config.items():
        tree[key] = {**tree[key], **one} if isinstance(one, dict) else one
    (place / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=words) as caught:
        FrozenClip.load(place, device="cpu")
    assert "\n" not in str(caught.value)


def test_the_exported_graph_moves_positions_alike(theirs, clip):
    from vpl.exports.onnx import _Traced

    for grid in GRIDS[1:]:
        pixels = pixels_of(clip, 1, grid)
        with torch.no_grad():
            traced = _Traced(pixels, grid, clip).blocks
        for own, plain in zip(traced, clip.encode(pixels, keep_blocks=True).blocks, strict=True):
            assert (own - plain).abs().max() < 1e-5 * plain.abs().max()


def test_tensors_in_memory_take_the_same_architecture(theirs, clip):
    architecture = Architecture(3, 2, "gelu_tanh", "gelu_tanh", 1e-6, 1e-6, pad_token=1, antialias=True)
    ours = FrozenClip.from_state_dict(theirs.state_dict(), architecture)
    pixels = pixels_of(clip, grid=(7, 2))
    assert torch.equal(ours.embed_images(pixels), clip.embed_images(pixels))
    assert isinstance(ours.image.pool, nn.Module) and ours.weights_hash == clip.weights_hash
