"""EVA-02-CLIP of open_clip's files: its image tower answers as timm's own (a golden file) and as a slow twin that is
written from the published equations (arXiv 2303.11331, 2303.15389), for timm needs torchvision, which is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from eva_case import DIM, GRIDS, HEADS, LAYERS, PATCH, WIDTH, drawn, moved, pixels, shapes
from vpl.clip import block as block_module
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError
from vpl.method.seeds import Slopes, seeds
from vpl.method.selfself import LIKENESS, dense

TEXT = 32
CONFIG = {
    "model_cfg": {
        "embed_dim": DIM, "custom_text": True,
        "vision_cfg": {"image_size": 64, "timm_model_name": "eva02_base_patch16_clip_224",
                       "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": None},
        "text_cfg": {"context_length": 10, "vocab_size": 40, "width": TEXT, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
}  # fmt: skip


def text_shapes():
    wide = {"attn.in_proj_weight": (3 * TEXT, TEXT), "attn.in_proj_bias": (3 * TEXT,),
            "attn.out_proj.weight": (TEXT, TEXT), "attn.out_proj.bias": (TEXT,),
            "mlp.c_fc.weight": (4 * TEXT, TEXT), "mlp.c_fc.bias": (4 * TEXT,),
            "mlp.c_proj.weight": (TEXT, 4 * TEXT), "mlp.c_proj.bias": (TEXT,)}  # fmt: skip
    wide |= {f"{norm}.{kind}": (TEXT,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return {
        "text.token_embedding.weight": (40, TEXT), "text.positional_embedding": (10, TEXT),
        "text.ln_final.weight": (TEXT,), "text.ln_final.bias": (TEXT,), "text.text_projection": (TEXT, DIM),
    } | {f"text.transformer.resblocks.{n}.{key}": shape for n in range(2) for key, shape in wide.items()}  # fmt: skip


@pytest.fixture(scope="module")
def state():
    image = {f"visual.trunk.{key}": tensor for key, tensor in drawn(shapes()).items()}
    return image | drawn(text_shapes()) | {"logit_scale": torch.tensor(4.0)}


def written(folder, state, change=None, **model):
    folder.mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "open_clip_model.safetensors")
    tree = json.loads(json.dumps(CONFIG))
    for part, own in (change or {}).items():
        tree["model_cfg"][part] |= own
    tree["model_cfg"] |= model
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture(scope="module")
def clip(state, tmp_path_factory):
    return FrozenClip.load(written(tmp_path_factory.mktemp("eva") / "x", state), device="cpu")


def angle(row, column, plane, grid):
    """By how much a plane of two columns is turned at a patch: d / 4 planes for the row, then as many for columns."""
    bands = WIDTH // HEADS // 4
    place = row * 16 / grid[0] if plane < bands else column * 16 / grid[1]
    return place * 10000 ** (-(plane % bands) / bands)


def twin_block(w, number, x, grid, a=None):
    """One block over the tokens x (T, WIDTH) of one image, patch by patch and head by head; and its attention."""
    own = {key.removeprefix(f"blocks.{number}."): one for key, one in w.items() if key.startswith(f"blocks.{number}.")}

    def norm(y, name):
        return F.layer_norm(y, y.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"], 1e-6)

    def line(y, name):
        return y @ own[f"{name}.weight"].T + own.get(f"{name}.bias", 0)

    def turn(rows):
        made = [rows[0]]
        for token in range(1, len(rows)):
            row, column = divmod(token - 1, grid[1])
            pairs = []
            for plane in range(rows.shape[1] // 2):
                by = torch.tensor(angle(row, column, plane, grid))
                u, v = rows[token, 2 * plane], rows[token, 2 * plane + 1]
                pairs += [u * by.cos() - v * by.sin(), v * by.cos() + u * by.sin()]
            made.append(torch.stack(pairs))
        return torch.stack(made)

    a = norm(x, "norm1") if a is None else a
    depth, heard, seen = WIDTH // HEADS, [], 0
    for head in range(HEADS):
        q, k, v = (line(a, f"attn.{one}_proj")[:, head * depth : (head + 1) * depth] for one in "qkv")
        p = torch.softmax(turn(q) @ turn(k).T / depth**0.5, 1)
        heard.append(p @ v)
        seen = seen + p / HEADS
    x = x + line(norm(torch.cat(heard, 1), "attn.norm"), "attn.proj")
    z = norm(x, "norm2")
    return x + line(norm(F.silu(line(z, "mlp.fc1_g")) * line(z, "mlp.fc1_x"), "mlp.norm"), "mlp.fc2"), seen


def twin(w, image, grid):
    """What enters the first block and leaves each, and each attention, of one image (3, H, W)."""
    patches = F.conv2d(image[None], w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w["cls_token"][0], patches[0].flatten(1).T]) + moved(w["pos_embed"], grid)[0]
    streams, attention = [x], []
    for number in range(LAYERS):
        x, seen = twin_block(w, number, x, grid)
        streams.append(x)
        attention.append(seen)
    return streams, attention


def joint(w, x):
    return F.layer_norm(x, (WIDTH,), w["norm.weight"], w["norm.bias"], 1e-6) @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("grid", GRIDS)
def test_image_tower_is_timm_s_own_and_the_twin_s(clip, grid):
    golden = load_file(Path(__file__).parents[1] / "golden" / "eva_tower.safetensors")
    w, name = drawn(shapes()), "x".join(map(str, grid))
    ours = clip.encode(pixels(grid), attention_blocks=2, keep_blocks=True)
    assert (ours.patches - golden[f"patches_{name}"]).abs().max() < 1e-5
    assert (clip.embed_images(pixels(grid)) - F.normalize(golden[f"embedding_{name}"], dim=1)).abs().max() < 1e-5
    for number, image in enumerate(pixels(grid)):
        streams, attention = twin(w, image, grid)
        for own, stream in zip(ours.blocks, streams[1:], strict=True):
            assert (own[number] - stream[1:]).abs().max() < 1e-5 * stream.abs().max()
        assert (ours.patches[number] - joint(w, streams[-1])[1:]).abs().max() < 1e-5 * streams[-1].abs().max()
        assert (ours.attention[number] - torch.stack(attention[-2:]).mean(0)[1:, 1:]).abs().max() < 1e-6
    assert (clip.heads, clip.layers, clip.patch, clip.dim, clip.std) == (HEADS, LAYERS, PATCH, DIM, (0.2, 0.3, 0.4))


def test_every_way_through_a_block_is_the_same(clip, monkeypatch):
    x = pixels((3, 5))
    plain, asked = clip.encode(x), x.clone().requires_grad_()
    embedded = clip.embed_images(asked)
    assert torch.allclose(embedded, clip.embed_images(x), atol=1e-5)
    embedded[:, 0].sum().backward()
    assert asked.grad.abs().max() > 0 and all(one.grad is None for one in clip.parameters())
    assert (dense(clip.image, plain.last, (3, 5), "plain") - plain.patches).abs().max() < 1e-5
    for name in LIKENESS:
        assert bool(torch.isfinite(dense(clip.image, plain.last, (3, 5), name)).all())
    for limit in ("CPU_SCORES_AT_ONCE", "MANY_ROWS", "MLP_ROWS_AT_ONCE"):
        monkeypatch.setattr(block_module, limit, 4)
    parts = clip.encode(x)
    assert (parts.patches - plain.patches).abs().max() < 2e-5 and (parts.attention - plain.attention).abs().max() < 1e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_gradcam_is_plain_autograd_s_over_the_twin(clip, grid):
    w, image = drawn(shapes()), pixels(grid)[:1]
    rows = F.normalize(torch.randn(5, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    features = clip.encode(image)
    ours = seeds(clip, features, [rows], [3], 9.0)
    x = twin(w, image[0], grid)[0][-2]
    a = F.layer_norm(x, (WIDTH,), w[f"blocks.{LAYERS - 1}.norm1.weight"], w[f"blocks.{LAYERS - 1}.norm1.bias"], 1e-6)
    a = a.detach().requires_grad_()
    patches = joint(w, twin_block(w, LAYERS - 1, x, grid, a)[0])[1:]
    s = torch.softmax(9.0 * F.normalize(patches.mean(0), dim=0) @ rows.T, 0)
    for tag in range(3):
        (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
        cam = torch.relu(a[1:] @ gradient[1:].mean(0)).detach().view(grid)
        for _ in range(2):
            cam = (cam - cam.min()) / (1e-7 + (cam - cam.min()).max())
        assert (ours.cam[0][tag] - cam).abs().max() < 1e-4
    assert bool((ours.cam[0] > 0.5).any())
    assert (Slopes(clip, features, rows).seeds(3, 9.0) - ours.cam[0]).abs().max() < 1e-4


def test_halves_and_bfloat16_are_close(clip, state, tmp_path):
    folder = written(tmp_path / "x", {key: tensor.half() for key, tensor in state.items()})
    for precision in ("float32", "bfloat16"):
        near = FrozenClip.load(folder, device="cpu", precision=precision)
        assert (near.embed_images(pixels((4, 4))) * clip.embed_images(pixels((4, 4)))).sum(1).min() > 0.99
        assert near.image.blocks[0].ln_in.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_cfg": {"timm_model_name": "eva02_enormous_patch14_clip_224"}}, "names eva02_enormous_patch14_clip"),
        ({"vision_cfg": {"timm_model_name": "eva02_large_patch14_clip_336"}}, "its patch is 14, that of the weights"),
        ({"vision_cfg": {"timm_model_name": None}}, "names None"),
        ({"vision_cfg": {"timm_pool": "avg"}}, "with pool avg"),
        ({"vision_cfg": {"timm_proj": "linear"}}, "projection linear"),
        ({"text_cfg": {"heads": 5}}, "5 attention heads do not divide 32"),
        ({"text_cfg": {"width": 64}}, "its text width is 64, that of the weights is 32"),
        ({"vision_cfg": {"dynamic_img_size": True}}, "sets vision_cfg.dynamic_img_size"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(state, tmp_path, change, words):
    with pytest.raises(ModelError, match=words) as caught:
        FrozenClip.load(written(tmp_path / "x", state, change), device="cpu")
    assert "\n" not in str(caught.value)


def test_what_the_file_lacks_is_said(state, tmp_path):
    folder = written(tmp_path / "x", state)
    with pytest.raises(ModelError, match="the activation 'gelu' does not fit its image tower's blocks"):
        FrozenClip.load(folder, device="cpu", activation="gelu")
    with pytest.raises(ModelError, match="7 attention heads do not divide 96"):
        FrozenClip.load(folder, device="cpu", heads=[7, 2])
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ModelError, match=r"put its open_clip_config\.json beside it"):
        FrozenClip.load(folder, device="cpu")
    for key, words in (
        ("blocks.1.attn.k_proj.weight", r"blocks\.1\.qkv\.weight is missing"),
        ("blocks.0.attn.norm.weight", r"blocks\.0\.ln_out\.weight is missing"),
        ("blocks.0.mlp.fc1_g.weight", "nor an EVA-02's with gates"),
    ):
        less = {one: tensor for one, tensor in state.items() if not one.endswith(f"trunk.{key}")}
        with pytest.raises(ModelError, match=words):
            FrozenClip.load(written(tmp_path / "y", less), device="cpu")
    with pytest.raises(ModelError, match=r"hold visual\.trunk\.blocks\.0\.gamma_1, which a plain one lacks"):
        FrozenClip.load(
            written(tmp_path / "y", state | {"visual.trunk.blocks.0.gamma_1": torch.ones(WIDTH)}), device="cpu"
        )


def test_its_export_to_onnx_is_refused(clip, tmp_path):
    from vpl.exports.onnx import write
    from vpl.network.card import Card
    from vpl.network.head import Network

    with pytest.raises(ModelError, match=r"turns patches by their place \(EVA\), which vpl does not export to ONNX"):
        write(tmp_path, object.__new__(Card), Network(), clip)
