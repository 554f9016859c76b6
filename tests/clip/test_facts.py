"""What shapes don't tell: found beside the weights, said by the user, asked for, or taken with a warning."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from clip_files import to_openai, torchscript
from conftest import CLIP_MEAN, CLIP_STD, pixels_of
from vpl.clip import facts
from vpl.clip.model import FrozenClip
from vpl.errors import ModelError

load = partial(FrozenClip.load, device="cpu")


@pytest.fixture
def wide(hf_models):
    """OpenAI's keys for the wide CLIP, whose heads are 16 columns wide and whose activation is GELU."""
    return to_openai(hf_models["wide"].state_dict())


def open_clip_config(**vision) -> dict:
    """open_clip's words for the wide CLIP."""
    return {
        "model_cfg": {
            "embed_dim": 28,
            "vision_cfg": {"image_size": 80, "layers": 4, "width": 48, "head_width": 16, "patch_size": 16,
                           "norm_kwargs": {"eps": 1e-6}} | vision,
            "text_cfg": {"context_length": 77, "vocab_size": 40, "width": 32, "heads": 2, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }  # fmt: skip


def write(folder: Path, name: str, tree: object) -> None:
    (folder / name).write_text(json.dumps(tree))


# checkpoints: what stands before each key


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "state_dict": {f"module.{key}": one for key, one in state.items()}},
        lambda state: {"model": state},
        lambda state: {"epoch": 1, "model_state_dict": state, "optimizer": {"state": {0: {"step": torch.ones(())}}}},
        lambda state: {"state_dict": {f"model.{key}": one for key, one in state.items()} | {"loss.w": torch.ones(2)}},
        lambda state: {f"_orig_mod.{key}": one for key, one in state.items()},
        lambda state: {f"module.{key.replace('visual.', 'visual._orig_mod.')}": one for key, one in state.items()},
        lambda state: {key if key.startswith("visual.") or key == "logit_scale" else f"text.{key}": one
                       for key, one in state.items()},
        lambda state: {key: one.to(torch.bfloat16) for key, one in state.items()},
    ],
    ids=["open_clip", "model", "model_state_dict", "lightning", "compile", "inner wrappers", "text module", "bfloat16"],
)  # fmt: skip
def test_a_checkpoint_is_its_weights_whatever_stands_before_each_key(wrap, openai_state, tmp_path, caplog):
    torch.save(wrap(openai_state), tmp_path / "x.pt")
    found = load(tmp_path / "x.pt")
    assert (found.heads, found.layers, found.image.activation) == (2, 2, "quick_gelu")
    plain = {key: one.to(torch.bfloat16) if "bfloat16" in str(wrap(openai_state).get(key, one).dtype) else one
             for key, one in openai_state.items()}  # fmt: skip
    save_file(plain, tmp_path / "openai.safetensors")
    told = caplog.text
    assert found.weights_hash == load(tmp_path / "openai.safetensors").weights_hash
    assert "x.pt does not say how many attention heads its towers have or which GELU" in told
    assert caplog.text == told, "a file of OpenAI's name is taken as OpenAI's without a word"


@pytest.mark.slow
def test_two_models_in_one_checkpoint_are_told_apart_by_the_user(openai_state, tmp_path):
    torch.save({"state_dict": openai_state, "ema": openai_state}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match=r"holds 2 CLIPs \(ema\., state_dict\.\); save the one that is meant"):
        load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "key", ["visual.transformer.resblocks.0.ls_1.gamma", "transformer.resblocks.0.attn.lora_A", "visual.head.bias",
            "text_projection.bias"]
)  # fmt: skip
def test_tensors_that_a_plain_clip_lacks_are_not_passed_over(key, openai_state, tmp_path):
    save_file(openai_state | {key: torch.ones(3)}, tmp_path / "openai.safetensors")
    with pytest.raises(ModelError, match=r"is no plain CLIP ViT: its towers hold .*which a plain one lacks"):
        load(tmp_path / "openai.safetensors")


@pytest.mark.parametrize("scale", [100.0, 14.3, 0.01, -4.6])
def test_a_scale_that_is_no_logarithm_is_refused(scale, openai_state, tmp_path):
    save_file(openai_state | {"logit_scale": torch.tensor(scale)}, tmp_path / "openai.safetensors")
    with pytest.raises(ModelError, match=r"logit_scale is .*expected the logarithm of a scale from 2 to 1000"):
        load(tmp_path / "openai.safetensors")


# open_clip


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "laion2b.pt", "vit.safetensors", "b.bin"])
def test_a_file_that_may_be_anybodys_is_asked_about(name, wide, tmp_path):
    save_file(wide, tmp_path / name) if name.endswith("s") else torch.save(wide, tmp_path / name)
    with pytest.raises(ModelError, match=r"attention heads .* or which GELU .*open_clip_config\.json.*clip\.heads"):
        load(tmp_path / name)
    with pytest.raises(ModelError, match=r"does not say which GELU its blocks have"):
        load(tmp_path / name, heads=(3, 2))


def test_what_the_user_says_is_a_fact_and_makes_another_clip(wide, clips, tmp_path):
    save_file(wide, tmp_path / "vit.safetensors")
    pixels = pixels_of(clips["wide"])
    said = load(tmp_path / "vit.safetensors", heads=[3, 2], activation="gelu", mean=[0.5] * 3, std=[0.25] * 3)
    assert torch.allclose(said.embed_images(pixels), clips["wide"].embed_images(pixels), atol=1e-5)
    assert (said.mean, said.std) == ((0.5,) * 3, (0.25,) * 3)
    assert said.weights_hash != clips["wide"].weights_hash, "what was said is part of what it is"
    other = load(tmp_path / "vit.safetensors", heads=[3, 2], activation="quick_gelu")
    assert len({said.weights_hash, other.weights_hash, clips["wide"].weights_hash}) == 3
    with pytest.raises(ModelError, match=r"expected two numbers, \[IMAGE TOWER, TEXT TOWER\]"):
        load(tmp_path / "vit.safetensors", heads=[3])
    with pytest.raises(ModelError, match=r"clip\.std is \(0\.5, 0\.0, 1\.0\); expected three numbers"):
        load(tmp_path / "vit.safetensors", std=(0.5, 0.0, 1.0))


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clips_configuration_is_read_beside_its_weights(name, wide, clips, hf_models, tmp_path):
    save_file(wide, tmp_path / name) if name.endswith("s") else torch.save(wide, tmp_path / name)
    write(tmp_path, "open_clip_config.json", open_clip_config())
    with torch.no_grad():
        pixels = pixels_of(clips["wide"])
        right = F.normalize(hf_models["wide"].get_image_features(pixels).pooler_output, dim=1)
    for place in (tmp_path, tmp_path / name):
        clip = load(place)
        assert clip.weights_hash == clips["wide"].weights_hash and clip.architecture.image_heads == 3
        assert torch.allclose(clip.embed_images(pixels), right, atol=1e-5)
        assert clip.mean == (0.5,) * 3 and clip.std == (0.25,) * 3
    with pytest.raises(ModelError, match="has no tokenizer"):  # of 40 words, so not OpenAI's
        clip.encode_texts(["a dog"])


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"timm_model_name": "vit_so400m"}, r"sets vision_cfg\.timm_model_name to vit_so400m"),
        ({"attentional_pool": True}, r"sets vision_cfg\.attentional_pool"),
        ({"ls_init_value": 0.1}, r"sets vision_cfg\.ls_init_value"),
        ({"pool_type": "avg"}, r"sets vision_cfg\.pool_type to avg"),
        ({"width": 64}, "describes another model: its image width is 64, that of the weights is 48"),
        ({"layers": 12}, "its image blocks is 12, that of the weights is 4"),
        ({"head_width": 0}, "lacks a value or holds one of the wrong kind"),
    ],
)
def test_a_configuration_of_another_model_is_refused(vision, words, wide, tmp_path):
    save_file(wide, tmp_path / "open_clip_model.safetensors")
    write(tmp_path, "open_clip_config.json", open_clip_config(**vision))
    with pytest.raises(ModelError, match=words):
        load(tmp_path)


def test_a_file_of_openais_sizes_is_openais_with_a_warning(openai_state, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(facts, "OPENAI_VITS", ((128, 2, 16, 64),))
    save_file(openai_state, tmp_path / "b16.safetensors")
    assert load(tmp_path / "b16.safetensors").heads == 2
    assert "is taken as OpenAI's own: heads of 64 columns and quick GELU" in caplog.text
    caplog.clear()
    assert load(tmp_path / "b16.safetensors", heads=[2, 1], activation="gelu").image.activation == "gelu"
    assert not caplog.text, "what the user said needs no warning"


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize(("act", "name"), [(QuickGELU(), "quick_gelu"), (nn.GELU(), "gelu")])
def test_the_program_of_an_archive_tells_its_activation(act, name, openai_state, tmp_path, caplog):
    torchscript(openai_state, tmp_path / "x.pt", act=act)
    assert load(tmp_path / "x.pt").image.activation == name
    assert "how many attention heads" in caplog.text and "GELU its blocks" not in caplog.text


# transformers' folders


@pytest.fixture
def folder(clip_folders, tmp_path):
    return shutil.copytree(clip_folders["wide"], tmp_path / "clip")


def test_processor_config_tells_how_images_are_normalised(folder):
    (folder / "preprocessor_config.json").unlink()
    write(folder, "processor_config.json", {"image_processor": {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}})
    assert load(folder).mean == (0.5,) * 3 and load(folder).std == (0.25,) * 3
    write(folder, "preprocessor_config.json", {"image_mean": CLIP_MEAN, "image_std": CLIP_STD})
    with pytest.raises(ModelError, match="normalise images differently; remove the wrong one"):
        load(folder)


@pytest.mark.parametrize("change", [{"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}])
def test_a_processor_that_normalises_otherwise_is_refused(change, folder):
    write(folder, "preprocessor_config.json", {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} | change)
    with pytest.raises(ModelError, match="does not bring images to"):
        load(folder)


def test_a_folder_without_a_processor_says_what_is_taken(folder, caplog):
    (folder / "preprocessor_config.json").unlink()
    assert load(folder).mean == tuple(CLIP_MEAN)
    assert (
        "has neither preprocessor_config.json nor processor_config.json: its images are normalised as OpenAI"
        in caplog.text
    )
    caplog.clear()
    assert load(folder, mean=[0.5] * 3, std=[0.5] * 3).mean == (0.5,) * 3 and not caplog.text


def test_weights_in_several_bin_files(folder, clips):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(state)
    parts = {"pytorch_model-1.bin": keys[::2], "pytorch_model-2.bin": keys[1::2]}
    for file, own in parts.items():
        torch.save({key: state[key] for key in own}, folder / file)
    index = {"weight_map": {key: file for file, own in parts.items() for key in own}}
    write(folder, "pytorch_model.bin.index.json", index)
    assert load(folder).weights_hash == clips["wide"].weights_hash
    (folder / "pytorch_model-2.bin").unlink()
    with pytest.raises(ModelError, match=r"lacks pytorch_model-2\.bin, one of the files of its weights"):
        load(folder)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("vision_config", {"hidden_size": 96}, "its image width is 96, that of the weights is 48"),
        ("vision_config", {"num_hidden_layers": 3}, "its image blocks is 3, that of the weights is 4"),
        ("vision_config", {"patch_size": 8}, "its patch is 8, that of the weights is 16"),
        ("text_config", {"vocab_size": 49408}, "its words is 49408, that of the weights is 40"),
    ],
)
def test_a_config_of_other_weights_is_refused(part, change, words, folder):
    config = json.loads((folder / "config.json").read_text())
    write(folder, "config.json", config | {part: config[part] | change})
    with pytest.raises(ModelError, match=f"describes another model: {words}"):
        load(folder)


def test_weights_that_lack_their_last_block_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    save_file({key: one for key, one in state.items() if ".layers.3." not in key}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="its image blocks is 4, that of the weights is 3"):
        load(folder)


# the hub


class Hub(BaseHTTPRequestHandler):
    """A hub with one model, the folder of the server's attribute."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/models/some/clip"):
            files = [{"rfilename": path.name} for path in self.server.folder.iterdir()]
            self._answer(json.dumps({"id": "some/clip", "sha": "0" * 40, "siblings": files}).encode())
        elif (path := self.server.folder / self.path.rpartition("/")[2]).is_file():
            self.server.asked.add(path.name)
            self._answer(path.read_bytes(), ETag=f'"{path.name}"', **{"X-Repo-Commit": "0" * 40})
        else:
            self.send_error(404)

    def _answer(self, data: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, one in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, one)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def through_hub(port: int, home: Path, code: str) -> str:
    """What a fresh process prints that knows the hub at a port of this machine."""
    start = (
        f"import os; os.environ |= dict(HF_ENDPOINT='http://127.0.0.1:{port}', HF_HOME={str(home)!r})\n"
        "from vpl.clip import weights; from vpl.clip.model import FrozenClip; from vpl.errors import ModelError\n"
    )
    done = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_hub_gives_the_needed_files_once(folder, clips, tmp_path):
    (folder / "flax_model.msgpack").write_bytes(b"not needed")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.asked = folder, set()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "print(FrozenClip.load('some/clip', device='cpu').weights_hash)"
    try:
        assert through_hub(server.server_port, tmp_path / "hf", code) == clips["wide"].weights_hash
        assert server.asked == {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"}
    finally:
        server.shutdown()
        server.server_close()
    assert through_hub(server.server_port, tmp_path / "hf", code) == clips["wide"].weights_hash, "kept for later"


@pytest.mark.slow
def test_a_hub_that_never_answers_is_given_up(tmp_path):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code = (
            "assert weights.HUB_SECONDS == 20\nweights.HUB_SECONDS = 0.5\n"
            "try: FrozenClip.load('some/clip', device='cpu')\nexcept ModelError as error: print(error)"
        )
        told = through_hub(silent.getsockname()[1], tmp_path / "hf", code)
    assert told.startswith("some/clip is no local path and can't be fetched from the hub (ReadTimeout). Check the name")


@pytest.mark.slow
def test_a_student_waits_no_longer_for_the_hub(tmp_path):
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        code = (
            "from vpl.network.student import Student\nweights.HUB_SECONDS = 0.5\n"
            "try: Student.pretrained('hf:some/student', 2)\nexcept ModelError as error: print(error)"
        )
        told = through_hub(silent.getsockname()[1], tmp_path / "hf", code)
    assert told.startswith("the student network 'some/student' can't be loaded (") and "or one that was fetched" in told


@pytest.mark.parametrize("key", ["image_mean", "image_std"])
@pytest.mark.parametrize(
    "value", [[122.8, 116.7, 104.1], [-0.5, 0.5, 0.5], [0.5, 0.5], ["a"] * 3, [float("nan")] * 3, 0.5]
)
def test_numbers_of_other_images_than_those_in_0_to_1_are_refused(key, value, folder):
    write(folder, "preprocessor_config.json", {"image_mean": CLIP_MEAN, "image_std": CLIP_STD} | {key: value})
    with pytest.raises(ModelError, match=rf"{key} .*expected three numbers from .* of images in \[0, 1\]"):
        load(folder)


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_without_a_tower_is_not_taken_as_any(part, folder):
    """What it leaves out has the format's default, and that is not what these weights have."""
    config = json.loads((folder / "config.json").read_text())
    del config[part]
    write(folder, "config.json", config)
    with pytest.raises(ModelError, match=r"config\.json describes another model"):
        load(folder)


def test_norms_of_zeros_are_no_clip(openai_state, tmp_path):
    state = {key: one.clone() for key, one in openai_state.items()}
    state["visual.ln_post.weight"].zero_()
    torch.save(state, tmp_path / "openai.pt")
    with pytest.raises(ModelError, match=r"image\.ln_post\.weight holds zeros alone"):
        load(tmp_path / "openai.pt")


# the encoders of others, as they publish them

METACLIP = {
    "embed_dim": 20, "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 40, "width": 24, "heads": 3, "layers": 2},
}  # fmt: skip
"""How MetaCLIP and DFN write their open_clip_config.json: quick GELU in words of its own, the rest open_clip's."""
DFN_LOOK = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_metaclip_and_dfn_are_transformers_own_forward(name, hf_models, tmp_path):
    """Their quick GELU is read from the configuration, never assumed: without the word it is another model."""
    hf = hf_models["narrow"]
    state = to_openai(hf.state_dict())
    if name.endswith("safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    write(tmp_path, "open_clip_config.json", {"model_cfg": METACLIP, "preprocess_cfg": DFN_LOOK})
    found = load(tmp_path)
    assert (found.image.activation, found.text.activation, found.heads) == ("quick_gelu", "quick_gelu", 2)
    pixels = pixels_of(found)
    ids = torch.tensor([[37, 9, 3, 38], [37, 4, 38, 0]])
    with torch.no_grad():
        image = F.normalize(hf.visual_projection(hf.vision_model(pixels).pooler_output), dim=1)
        text = F.normalize(hf.text_projection(hf.text_model(ids).pooler_output), dim=1)
    assert (found.embed_images(pixels) - image).abs().max() < 1e-5 and (
        found.encode_tokens(ids) - text
    ).abs().max() < 1e-5
    plain = {key: one for key, one in METACLIP.items() if key != "quick_gelu"}
    write(tmp_path, "open_clip_config.json", {"model_cfg": plain, "preprocess_cfg": DFN_LOOK})
    assert load(tmp_path).image.activation == "gelu"
    assert (load(tmp_path).embed_images(pixels) - image).abs().max() > 1e-3
