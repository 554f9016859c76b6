"""FrozenClip: agrees with transformers' own forward, reads every format, stays frozen, and says what is wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from clip_files import to_openai, torchscript
from conftest import END, SIZES, START, pixels_of
from vpl.clip import block as block_module
from vpl.clip.facts import Architecture
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError

BOTH = pytest.mark.parametrize("size", list(SIZES))


# the forward


@BOTH
def test_image_tower_is_transformers_own(size, hf_models, clips):
    clip, hf = clips[size], hf_models[size]
    pixels = pixels_of(clip)
    with torch.no_grad():
        theirs = hf.vision_model(pixels, output_hidden_states=True, output_attentions=True)
        embeds = F.normalize(hf.visual_projection(theirs.pooler_output), dim=1)
        patches = hf.visual_projection(hf.vision_model.post_layernorm(theirs.last_hidden_state[:, 1:]))
    ours = clip.encode(pixels, attention_blocks=2, keep_blocks=True)
    assert (clip.embed_images(pixels) - embeds).abs().max() < 1e-5
    assert (ours.patches - patches).abs().max() < 1e-5
    attention = torch.stack(theirs.attentions[-2:]).mean((0, 2))[:, 1:, 1:]
    assert (ours.attention - attention).abs().max() < 1e-6
    apart = clip.encode(pixels, attention_blocks=2, apart=True)
    assert apart.attention is None and len(apart.apart) == 2
    for own, layer in zip(apart.apart, theirs.attentions[-2:], strict=True):
        assert (own - layer.mean(1)[:, 1:, 1:]).abs().max() < 1e-6
    assert len(ours.blocks) == clip.layers
    for block, hidden in zip(ours.blocks, theirs.hidden_states[1:], strict=True):
        assert (block - hidden[:, 1:]).abs().max() < 3e-6 * hidden.abs().max(), "float32 of values far from 1"
    assert (clip.width, clip.heads, clip.layers) == tuple(
        SIZES[size]["vision"][key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    assert clip.logit_scale == pytest.approx(hf.logit_scale.exp().item())


@BOTH
def test_text_tower_is_transformers_own(size, hf_models, clips):
    clip, hf = clips[size], hf_models[size]
    ids = torch.randint(1, START, (5, 9), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = START
    for row, end in enumerate((8, 3, 5, 1, 8)):
        ids[row, end] = END
        ids[row, end + 1 :] = 0
    with torch.no_grad():
        output = hf.text_model(ids).pooler_output
        theirs = F.normalize(hf.text_projection(output), dim=1)
    assert (clip.encode_tokens(ids) - theirs).abs().max() < 1e-5
    assert (clip.encode_tokens(F.pad(ids, (0, 4))) - theirs).abs().max() < 1e-5, "padding counts"


def test_last_block_holds_what_its_names_say(clips):
    clip = clips["wide"]
    last = clip.encode(pixels_of(clip, grid=(2, 3))).last
    block = clip.image.blocks[-1]
    assert torch.allclose(block.ln1(last.residual), last.a)
    assert torch.allclose(block.qkv(last.a), last.qkv.flatten(2), atol=1e-5)
    assert torch.allclose(last.residual + block.out(last.attended), last.middle, atol=1e-5)
    assert torch.allclose(last.middle + block.down(F.gelu(last.hidden)), last.output, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 2), (5, 4)])
def test_any_grid_and_batch(grid, tiny_clip):
    batch = pixels_of(tiny_clip, 3, grid)
    together = tiny_clip.encode(batch)
    assert together.grid == grid
    for number in range(3):
        alone = tiny_clip.encode(batch[number : number + 1])
        assert torch.allclose(together.patches[number], alone.patches[0], atol=1e-5)
        assert torch.allclose(together.attention[number], alone.attention[0], atol=1e-6)


def test_positions_move_bilinearly(tiny_clip):
    same = tiny_clip._positions((4, 4))
    assert same is tiny_clip.image.positions
    half = tiny_clip._positions((2, 2))[1:].reshape(2, 2, -1)
    square = tiny_clip.image.positions[1:].reshape(4, 4, -1)
    means = square.reshape(2, 2, 2, 2, -1).mean((1, 3))
    assert torch.allclose(half, means, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 40, 300, 2**20])
def test_attention_in_parts_is_attention_at_once(at_once, tiny_clip, monkeypatch):
    pixels = pixels_of(tiny_clip, 2, (4, 9))
    whole = tiny_clip.encode(pixels)
    monkeypatch.setattr(block_module, "CPU_SCORES_AT_ONCE", at_once)
    parts = tiny_clip.encode(pixels)
    assert torch.allclose(whole.attention, parts.attention, atol=1e-6)
    assert torch.allclose(whole.patches, parts.patches, atol=1e-5)


def test_attention_is_optional_and_capped(tiny_clip):
    pixels = pixels_of(tiny_clip)
    none = tiny_clip.encode(pixels, attention_blocks=0, keep_last=False)
    assert none.attention is None and none.blocks is None and none.last is None
    every, more = tiny_clip.encode(pixels, attention_blocks=3), tiny_clip.encode(pixels, attention_blocks=99)
    assert torch.equal(every.attention, more.attention)
    assert torch.allclose(none.patches, every.patches, atol=1e-5)


@pytest.mark.parametrize("scores, rows", [(1, 1), (700, 16), (2**20, 16)])
def test_many_patches_go_in_parts_and_head_by_head(clips, monkeypatch, scores, rows):
    """The ways of large photographs against that of small ones, with attention and without."""
    for clip in clips.values():
        pixels = pixels_of(clip, 1, (5, 7))
        plain = clip.encode(pixels, attention_blocks=2)
        with monkeypatch.context() as patch:
            patch.setattr("vpl.clip.block.CPU_SCORES_AT_ONCE", scores)
            patch.setattr("vpl.clip.block.MANY_ROWS", rows)
            patch.setattr("vpl.clip.block.MLP_ROWS_AT_ONCE", 16)
            parts = clip.encode(pixels, attention_blocks=2)
        torch.testing.assert_close(parts.patches, plain.patches, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(parts.attention, plain.attention, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(parts.last.hidden, plain.last.hidden, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("tiles", [False, True])
def test_bfloat16_is_close(clip_folders, clips, tiles, monkeypatch):
    monkeypatch.setattr("vpl.clip.block.has_tiles", lambda: tiles)
    for size, folder in clip_folders.items():
        half = FrozenClip.load(folder, device="cpu", precision="bfloat16")
        assert half.dtype == torch.bfloat16 and half.image.blocks[0].ln1.weight.dtype == torch.float32
        pixels = pixels_of(half)
        ours, exact = half.encode(pixels), clips[size].encode(pixels)
        assert ours.patches.dtype == ours.attention.dtype == torch.float32
        assert F.cosine_similarity(ours.patches, exact.patches, dim=2).min() > 0.999
        assert (ours.attention - exact.attention).abs().max() < 0.01
        without = half.encode(pixels, attention_blocks=0).patches
        assert F.cosine_similarity(without, exact.patches, dim=2).min() > 0.999
        assert torch.equal(half.encode_texts(["a dog"]), clips[size].encode_texts(["a dog"]))
        assert half.weights_hash == clips[size].weights_hash, "it is the same CLIP"
        half.image.blocks[0].qkv.weight.data.mul_(2)
        half.image.blocks[0].qkv.weight.data = half.image.blocks[0].qkv.weight.data.clone()
        assert half.weights_hash != clips[size].weights_hash, "until a weight changes"


def test_precision_auto_is_the_device_s(clip_folders, monkeypatch):
    for native, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("vpl.machine.native_bfloat16", lambda device, native=native: native)
        assert FrozenClip.load(clip_folders["narrow"], device="cpu", precision="auto").dtype == wanted


# formats


def test_both_spellings_of_the_same_weights_agree(hf_models, clips, tmp_path):
    hf, clip = hf_models["narrow"], clips["narrow"]
    ours = FrozenClip.from_state_dict(to_openai(hf.state_dict()), Architecture(2, 3, "quick_gelu", "quick_gelu"))
    assert ours.weights_hash == clip.weights_hash
    pixels = pixels_of(clip)
    assert torch.equal(ours.encode(pixels).patches, clip.encode(pixels).patches)


@pytest.mark.slow
@pytest.mark.parametrize("halves", [False, True], ids=["float32", "float16"])
def test_every_openai_file_gives_the_same_model(halves, openai_state, tmp_path):
    state = {key: tensor.half() if halves else tensor for key, tensor in openai_state.items()}
    save_file(state, tmp_path / "openai.safetensors")
    torch.save(state, tmp_path / "b.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "c.pt")
    torchscript(openai_state, tmp_path / "d.pt", halves)
    models = [FrozenClip.load(tmp_path / file, device="cpu") for file in ("openai.safetensors", "b.pt", "c.pt", "d.pt")]
    assert len({model.weights_hash for model in models}) == 1
    assert models[0].heads == 2 and models[0].dtype == torch.float32
    assert models[3].image.patch.dtype == torch.float32


def test_transformers_files_give_the_same_model(clip_folders, hf_models, clips, tmp_path):
    folder = shutil.copytree(clip_folders["wide"], tmp_path / "bin")
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "pytorch_model.bin")
    assert FrozenClip.load(folder, device="cpu").weights_hash == clips["wide"].weights_hash

    (folder / "pytorch_model.bin").unlink()
    keys = sorted(state)
    parts = {"model-1.safetensors": keys[::2], "model-2.safetensors": keys[1::2]}
    for file, own in parts.items():
        save_file({key: state[key] for key in own}, folder / file)
    index = {"weight_map": {key: file for file, own in parts.items() for key in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    clip = FrozenClip.load(str(folder), device="cpu")
    assert clip.weights_hash == clips["wide"].weights_hash
    assert clip.mean == (0.5, 0.5, 0.5) and clip.std == (0.25, 0.25, 0.25)


def test_hub_name_becomes_its_folder(clip_folders, clips, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, **kw: asked.append(name) or str(clip_folders["wide"])
    )
    assert FrozenClip.load("some/clip", device="cpu").weights_hash == clips["wide"].weights_hash
    assert asked == ["some/clip"]


# texts


def test_texts_are_unit_rows_and_order_is_kept(tiny_clip):
    texts = ["a photo of a dog.", "cat", "a clean origami boat on the water."]
    rows = tiny_clip.encode_texts(texts)
    assert rows.shape == (3, tiny_clip.dim) and rows.dtype == torch.float32
    assert torch.allclose(rows.norm(dim=1), torch.ones(3))
    assert torch.allclose(tiny_clip.encode_texts(texts[::-1]), rows.flip(0), atol=1e-6)
    assert tiny_clip.encode_texts([]).shape == (0, tiny_clip.dim)


@BOTH
def test_long_text_is_cut_and_keeps_its_end(size, clips):
    clip = clips[size]
    words = ["dog", "cat"] * clip.context
    kept = clip.encode_texts([" ".join(words)])
    exact = clip.encode_texts([" ".join(words[: clip.context - 2])])
    assert torch.allclose(kept, exact, atol=1e-6)
    assert not torch.allclose(kept, clip.encode_texts([" ".join(words[: clip.context - 3])]), atol=1e-3)


def test_openai_texts_use_clips_own_vocabulary(openai_state, tmp_path):
    save_file(openai_state, tmp_path / "openai.safetensors")
    clip = FrozenClip.load(tmp_path / "openai.safetensors", device="cpu")
    known = torch.tensor([[49406, 320, 1125, 539, 320, 2368, 49407]])
    assert torch.allclose(clip.encode_texts(["a photo of a cat"]), clip.encode_tokens(known), atol=1e-6)
    long = torch.tensor([[49406, *[2368] * 75, 49407]])
    assert torch.allclose(clip.encode_texts(["cat " * 200]), clip.encode_tokens(long), atol=1e-6)


def test_absent_tokenizer_says_what_to_install(openai_state, tmp_path, monkeypatch):
    save_file(openai_state, tmp_path / "openai.safetensors")
    clip = FrozenClip.load(tmp_path / "openai.safetensors", device="cpu")
    monkeypatch.setitem(sys.modules, "instant_clip_tokenizer", None)
    with pytest.raises(ModelError, match=r"pip install 'vpl-seg\[openai\]'"):
        clip.encode_texts(["a cat"])


def test_bad_token_rows(clips, openai_state):
    with pytest.raises(ModelError, match="no end token"):
        clips["wide"].encode_tokens(torch.tensor([[START, 3, 4]]))
    with pytest.raises(ModelError, match=rf"knows 0 to {END}"):
        clips["narrow"].encode_tokens(torch.tensor([[START, 3, END + 1]]))
    with pytest.raises(ModelError, match="17 tokens; expected at most 16"):
        clips["narrow"].encode_tokens(torch.ones((1, 17), dtype=torch.int64))
    with pytest.raises(ModelError, match="no tokenizer"):
        FrozenClip.from_state_dict(openai_state).encode_texts(["a"])


# frozen


def test_frozen_is_proved(clip_folders, hf_models):
    clip = FrozenClip.load(clip_folders["narrow"], device="cpu")
    before = clip.weights_hash
    assert list(clip.parameters()) and not any(weights.requires_grad for weights in clip.parameters())
    assert not clip.train().training and not any(module.training for module in clip.modules())
    pixels = pixels_of(clip).requires_grad_()
    features = clip.encode(pixels)
    assert not features.patches.requires_grad
    head = nn.Linear(clip.dim, 2)
    (head(features.patches).square().sum()).backward()
    assert head.weight.grad is not None and all(weights.grad is None for weights in clip.parameters())
    assert clip.weights_hash == before
    with torch.no_grad():
        clip.image.blocks[1].up.bias[0] += 1
    assert clip.weights_hash != before


@BOTH
def test_image_embeddings_pass_gradients_to_pixels_alone(size, clips):
    clip = clips[size]
    pixels = pixels_of(clip, 2, (3, 2)).requires_grad_()
    embedded = clip.embed_images(pixels)
    assert torch.allclose(embedded, clip.embed_images(pixels.detach()), atol=1e-5)
    embedded[:, 0].sum().backward()
    assert pixels.grad.abs().max() > 0 and all(weights.grad is None for weights in clip.parameters())


def test_weights_in_memory_are_copied(hf_models):
    state = {key: tensor.clone() for key, tensor in hf_models["narrow"].state_dict().items()}
    clip = FrozenClip.from_state_dict(state, Architecture(2, 3, "quick_gelu", "quick_gelu"))
    before = clip.weights_hash
    for tensor in state.values():
        tensor.zero_()
    assert clip.weights_hash == before


# errors


def test_wrong_sizes_name_the_patch(tiny_clip):
    with pytest.raises(ModelError, match=r"30×32 pixels.*multiples of the patch, 8.*to_pixels"):
        tiny_clip.encode(torch.zeros(1, 3, 30, 32))


def test_unknown_device_and_precision(tiny_folder):
    with pytest.raises(ModelError, match="'cuda:77' is not there; use cpu"):
        FrozenClip.load(tiny_folder, device="cuda:77")
    with pytest.raises(ModelError, match="expected float32, bfloat16 or auto"):
        FrozenClip.load(tiny_folder, device="cpu", precision="float8")


class Evil:
    def __reduce__(self):
        return (eval, ("1/0",))


def _resnet(folder, state):
    save_file(
        {"visual.layer1.0.conv1.weight": torch.zeros(1), "logit_scale": torch.zeros(())}, folder / "openai.safetensors"
    )
    return "openai.safetensors"


def _truncated_safetensors(folder, state):
    save_file(state, folder / "openai.safetensors")
    data = (folder / "openai.safetensors").read_bytes()
    (folder / "openai.safetensors").write_bytes(data[: len(data) // 2])
    return "openai.safetensors"


def _truncated_pt(folder, state):
    torch.save(state, folder / "x.pt")
    data = (folder / "x.pt").read_bytes()
    (folder / "x.pt").write_bytes(data[: len(data) // 2])
    return "x.pt"


def _broken_script(folder, state):
    import zipfile

    torchscript(state, folder / "whole.pt")
    with zipfile.ZipFile(folder / "whole.pt") as source, zipfile.ZipFile(folder / "x.pt", "w") as target:
        for item in source.infolist():
            data = source.read(item)
            target.writestr(item.filename, data[:7] if item.filename.endswith("data/3") else data)
    return "x.pt"


def _evil_script(folder, state):
    import zipfile

    with zipfile.ZipFile(folder / "x.pt", "w") as target:
        target.writestr("x/data.pkl", pickle.dumps(Evil()))
        target.writestr("x/constants.pkl", b"")
    return "x.pt"


def _evil_pickle(folder, state):
    torch.save({"visual.class_embedding": Evil()}, folder / "x.pt")
    return "x.pt"


def _old_evil_pickle(folder, state):
    (folder / "x.bin").write_bytes(pickle.dumps(Evil()))
    return "x.bin"


def _noise(folder, state):
    (folder / "x.pt").write_bytes(bytes(range(256)) * 40)
    return "x.pt"


def _empty(folder, state):
    (folder / "x.pt").write_bytes(b"")
    return "x.pt"


def _not_weights(folder, state):
    torch.save([1, 2], folder / "x.pt")
    return "x.pt"


def _other_keys(folder, state):
    save_file({"conv.weight": torch.zeros(2)}, folder / "openai.safetensors")
    return "openai.safetensors"


def _missing_key(folder, state):
    save_file({k: v for k, v in state.items() if k != "visual.ln_post.bias"}, folder / "openai.safetensors")
    return "openai.safetensors"


def _zeros_to_the_end(folder, state):
    """As a download leaves a file that it had made room for."""
    path = folder / "openai.safetensors"
    save_file(state, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    return path.name


def _image_tower_alone(folder, state):
    save_file({k: v for k, v in state.items() if k.startswith("visual.")}, folder / "openai.safetensors")
    return "openai.safetensors"


def _wrong_shape(folder, state):
    state = state | {"visual.transformer.resblocks.1.mlp.c_fc.bias": torch.zeros(3)}
    save_file(state, folder / "openai.safetensors")
    return "openai.safetensors"


def _grid_not_square(folder, state):
    save_file(state | {"visual.positional_embedding": torch.zeros(8, 128)}, folder / "openai.safetensors")
    return "openai.safetensors"


def _transformers_keys(folder, state):
    save_file({"vision_model.embeddings.class_embedding": torch.zeros(2)}, folder / "openai.safetensors")
    return "openai.safetensors"


def _empty_folder(folder, state):
    return "."


def _other_model(folder, state):
    (folder / "config.json").write_text('{"model_type": "blip"}')
    return "."


def _broken_config(folder, state):
    (folder / "config.json").write_text('{"model_type": ')
    return "."


def _config_alone(folder, state):
    (folder / "config.json").write_text('{"model_type": "clip"}')
    return "."


def _nothing(folder, state):
    return "absent.pt"


def _no_path(folder, state):
    return "no/such/folder"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_resnet, "ResNet image encoder; expected a vision transformer"),
        (_truncated_safetensors, "truncated or damaged .* Download it again"),
        (_truncated_pt, "truncated or damaged .* Download it again"),
        (_broken_script, "truncated or damaged .* Download it again"),
        (_evil_script, "truncated or damaged .*not allowed"),
        (_evil_pickle, "pickled objects other than tensors.*refused"),
        (_old_evil_pickle, "pickled objects other than tensors, which are refused"),
        (_noise, "truncated or damaged"),
        (_empty, "truncated or damaged"),
        (_not_weights, "holds a list, expected a state dict"),
        (_other_keys, r"neither OpenAI's nor transformers' keys.*conv\.weight"),
        (_missing_key, r"image\.ln_post\.bias is missing"),
        (_zeros_to_the_end, "holds zeros alone, which no trained CLIP does. Download it again"),
        (_image_tower_alone, "holds the image tower alone; expected both towers"),
        (_wrong_shape, r"blocks\.1\.up\.bias has shape \(3,\), expected \(256,\)"),
        (_grid_not_square, "7 patch positions.*expected a square grid"),
        (_transformers_keys, r"give the folder that holds it together with its config\.json"),
        (_empty_folder, r"has no config\.json"),
        (_other_model, "'blip' model; expected a CLIP or SigLIP"),
        (_broken_config, r"config\.json can't be read"),
        (_config_alone, r"neither model\.safetensors nor pytorch_model\.bin"),
        (_nothing, "no file or folder .*openai/clip-vit-base-patch16"),
        (_no_path, "no file or folder"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(make, words, openai_state, tmp_path):
    name = make(tmp_path, dict(openai_state))
    with pytest.raises(ModelError, match=words) as caught:
        FrozenClip.load(tmp_path / name, device="cpu")
    assert "\n" not in str(caught.value)


def test_config_that_does_not_fit_the_weights(clip_folders, tmp_path):
    folder = shutil.copytree(clip_folders["narrow"], tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"num_attention_heads": 5}, "5 attention heads do not divide 32"),
        ({"hidden_act": "tanh"}, "activation 'tanh' is unknown; expected quick_gelu or gelu"),
        ({"num_attention_heads": "many"}, "config.json holds a value of the wrong kind"),
    ):
        changed = config | {"vision_config": config["vision_config"] | change}
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=words):
            FrozenClip.load(folder, device="cpu")


@pytest.mark.slow
def test_unreachable_hub_and_quick_start(tiny_folder):
    """In one fresh process: no transformers at load, no output, and one sentence when the hub can't be reached."""
    code = f"""
import os, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError
FrozenClip.load({str(tiny_folder)!r}, device="cpu").encode_texts(["a dog"])
assert "transformers" not in sys.modules and "huggingface_hub" not in sys.modules
try:
    FrozenClip.load("nobody/no-such-clip")
except ModelError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.startswith("nobody/no-such-clip is no local path and can't be fetched from the hub")
    assert "give its folder" in done.stdout and len(done.stdout.splitlines()) == 1


def test_weights_lie_where_every_kernel_reads_them_alike(tiny_folder, tmp_path):
    """Of a file whose tensors begin at odd places in memory, and of what another process sent."""
    import shutil

    from safetensors.torch import load_file

    from vpl.clip.model import ALIGNMENT

    folder = tmp_path / "odd"
    shutil.copytree(tiny_folder, folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for blanks in (8, 16, 24, 40):  # a longer header moves every tensor
        path.write_bytes(
            (length + blanks).to_bytes(8, "little") + data[8 : 8 + length] + b" " * blanks + data[8 + length :]
        )
        if any(one.data_ptr() % ALIGNMENT for one in load_file(path).values()):
            break
    clip, plain = FrozenClip.load(folder, device="cpu"), FrozenClip.load(tiny_folder, device="cpu")
    assert all(one.data_ptr() % ALIGNMENT == 0 for one in clip.parameters())
    pixels = pixels_of(clip)
    assert torch.equal(clip.embed_images(pixels), plain.embed_images(pixels))
    block = clip.image.blocks[0].ln1
    raw = torch.empty(block.weight.numel() + 1)
    raw[1:] = block.weight
    block.weight.data = raw[1:]
    assert block.weight.data_ptr() % ALIGNMENT
    assert all(one.data_ptr() % ALIGNMENT == 0 for one in clip.prepare("cpu").parameters())


def test_the_hash_is_of_the_weights_as_they_are_and_read_once(clip_folders, monkeypatch):
    clip, made = FrozenClip.load(clip_folders["narrow"], device="cpu"), []
    real = hashlib.sha256
    monkeypatch.setattr(hashlib, "sha256", lambda *given: made.append(1) or real(*given))
    first = clip.weights_hash
    assert clip.weights_hash == first and len(made) == 1
    with torch.no_grad():
        clip.image.positions[0, 0] += 1
    assert clip.weights_hash != first and len(made) == 2
