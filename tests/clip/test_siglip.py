"""SigLIP: both towers are transformers' own, texts are filled, GradCAM is autograd's; what is not read is named."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from clip_files import joined
from conftest import WORDS, pixels_of
from vpl.clip.model import FrozenClip
from vpl.clip.tokens import siglip_tokenizer
from vpl.errors import ModelError
from vpl.method.seeds import seeds
from vpl.method.selfself import LIKENESS, dense

WIDTH, PAD = 36, len(WORDS) + 1


def made(text=None, **vision):
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": WIDTH, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 80}
    config = SiglipConfig(
        vision_config=sizes | {"image_size": 40, "patch_size": 8} | vision,
        text_config={"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48,
                     "vocab_size": PAD + 2, "max_position_embeddings": 12, "projection_size": WIDTH,
                     "pad_token_id": PAD} | (text or {}),
    )  # fmt: skip
    config._attn_implementation = "eager"
    torch.manual_seed(11)
    model = SiglipModel(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.startswith("logit"):
                weights.fill_(4.0 if name == "logit_scale" else -9.0)
            elif weights.ndim < 2 or "embedding" in name or "probe" in name:
                weights.normal_(float("norm" in name and name.endswith("weight")), 0.3)
            else:
                weights.normal_(0, 1.5 * weights[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def theirs():
    return made()


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("siglip")
    theirs.save_pretrained(place)
    words = {word: number for number, word in enumerate(["<unk>", *WORDS, "<pad>"])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>").save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def clip(folder):
    return FrozenClip.load(folder, device="cpu")


def test_image_tower_is_transformers_own(theirs, clip):
    pixels = pixels_of(clip)
    with torch.no_grad():
        answer = theirs.vision_model(pixels, output_hidden_states=True, output_attentions=True)
    ours = clip.encode(pixels, attention_blocks=2, keep_blocks=True)
    assert (clip.embed_images(pixels) - F.normalize(answer.pooler_output, dim=1)).abs().max() < 1e-5
    for own, hidden in zip(ours.blocks, answer.hidden_states[1:], strict=True):
        assert (own - hidden).abs().max() < 1e-5 * hidden.abs().max()
    assert (ours.attention - torch.stack(answer.attentions[-2:]).mean((0, 2))).abs().max() < 1e-6
    assert (clip.width, clip.dim, clip.heads, clip.layers, clip.patch) == (WIDTH, WIDTH, 3, 3, 8)
    assert clip.mean == clip.std == (0.5, 0.5, 0.5)
    assert clip.logit_scale == pytest.approx(54.598, abs=1e-3) and clip.logit_bias == -9.0


def test_a_patch_in_the_joint_space_is_an_image_of_that_patch_alone(theirs, clip):
    pixels = pixels_of(clip)
    with torch.no_grad():
        tokens = theirs.vision_model(pixels).last_hidden_state
        alone = torch.stack([theirs.vision_model.head(tokens[:, n : n + 1]) for n in range(tokens.shape[1])], 1)
    assert (clip.encode(pixels).patches - alone).abs().max() < 1e-5


def test_text_tower_is_transformers_own_and_short_texts_are_filled(theirs, clip):
    texts = ["a photo of the Dog", "cat", " ".join(["tree"] * 30)]
    rows = [[1, 2, 3, 4, 9], [10], [13] * 12]
    ids = torch.tensor([[*row, *[PAD] * (12 - len(row))] for row in rows])
    with torch.no_grad():
        wanted = F.normalize(theirs.text_model(ids).pooler_output, dim=1)
    assert (clip.encode_texts(texts) - wanted).abs().max() < 1e-5
    assert (clip.encode_tokens(ids[:2, :5]) - wanted[:2]).abs().max() < 1e-5


def test_texts_are_cut_into_siglip_s_own_pieces(theirs, tmp_path):
    import sentencepiece
    from transformers import SiglipTokenizer

    (tmp_path / "words.txt").write_text("\n".join(f"a photo of the {word} and the {word}s" for word in WORDS * 3))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "words.txt"), model_prefix=str(tmp_path / "spiece"), vocab_size=38, minloglevel=2,
        hard_vocab_limit=False, pad_id=-1, bos_id=-1, eos_id=1, unk_id=2,
    )  # fmt: skip
    place = tmp_path / "siglip"
    theirs.save_pretrained(place)
    own = SiglipTokenizer(str(tmp_path / "spiece.model"))
    own.save_pretrained(place)
    texts = ["A photo of the Dog!", "cat & trees", "horse " * 20]
    wanted = own([" ".join(text.split()) for text in texts], padding="max_length", truncation=True, max_length=12)
    found = siglip_tokenizer(place, "x", 12, len(own))
    assert found(texts).tolist() == wanted["input_ids"] and found(["DOG"]).tolist() == found(["dog."]).tolist()
    with pytest.raises(ModelError, match="its weights know 9; fetch both anew"):
        siglip_tokenizer(place, "x", 12, 9)


def test_the_sigmoid_s_temperature_and_bias_give_transformers_logits(theirs, clip):
    pixels, ids = pixels_of(clip), torch.full((3, 12), PAD)
    ids[:, 0] = torch.tensor([9, 10, 11])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, pixel_values=pixels).logits_per_image
    cosines = clip.embed_images(pixels) @ clip.encode_tokens(ids).T
    assert (clip.logit_scale * cosines + clip.logit_bias - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("grid", [(5, 5), (3, 4)])
def test_gradcam_is_plain_autograd_s(theirs, clip, grid):
    pixels = pixels_of(clip, 3, grid, seed=4)
    generator = torch.Generator().manual_seed(2)
    prototypes = F.normalize(torch.randn(3, 6, WIDTH, generator=generator), dim=2)
    ours = seeds(clip, clip.encode(pixels), list(prototypes), [3, 1, 0], 9.0)
    layer, model = copy.deepcopy(theirs.vision_model.encoder.layers[-1]), theirs.vision_model
    for number, tags in enumerate((3, 1)):
        x = clip.encode(pixels[number : number + 1], keep_blocks=True).blocks[-2]
        a = layer.layer_norm1(x).detach().requires_grad_()
        keep, layer.layer_norm1 = layer.layer_norm1, nn.Identity()
        middle = x + layer.self_attn(a)[0]
        layer.layer_norm1 = keep
        output = middle + layer.mlp(layer.layer_norm2(middle))
        tokens = model.post_layernorm(output)[0]
        e = model.head(tokens[:, None]).mean(0)
        s = torch.softmax(9.0 * F.normalize(e, dim=0) @ prototypes[number].T, 0)
        assert (ours.scores[number] - s).abs().max() < 1e-5
        for tag in range(tags):
            (gradient,) = torch.autograd.grad(s[tag], a, retain_graph=True)
            cam = torch.relu(a[0] @ gradient[0].mean(0)).detach().view(grid)
            for _ in range(2):
                cam = (cam - cam.min()) / (1e-7 + (cam - cam.min()).max())
            assert (ours.cam[number][tag] - cam).abs().max() < 1e-4
    assert any(bool((one > 0.5).any()) for one in ours.cam) and len(ours.cam[2]) == 0


def test_every_likeness_of_patches_is_there_and_the_plain_one_is_the_encoder_s(clip):
    features = clip.encode(pixels_of(clip, 2, (3, 5)))
    for name in LIKENESS:
        found = dense(clip.image, features.last, features.grid, name)
        assert found.shape == (2, 15, WIDTH) and bool(torch.isfinite(found).all())
    assert (dense(clip.image, features.last, features.grid, "plain") - features.patches).abs().max() < 1e-5


def test_it_is_frozen_and_its_hash_knows_the_head(clip, folder, tmp_path, theirs):
    assert not any(one.requires_grad for one in clip.parameters())
    assert clip.weights_hash == FrozenClip.load(folder, device="cpu").weights_hash
    other = copy.deepcopy(theirs)
    with torch.no_grad():
        other.vision_model.head.probe += 0.01
    other.save_pretrained(tmp_path / "other")
    assert FrozenClip.load(tmp_path / "other", device="cpu").weights_hash != clip.weights_hash
    with pytest.raises(ModelError, match="has no tokenizer"):
        FrozenClip.load(tmp_path / "other", device="cpu").encode_texts(["dog"])


def test_a_processor_that_is_missing_is_said(folder, tmp_path, caplog):
    place = changed(folder, tmp_path / "x")
    assert FrozenClip.load(place, device="cpu").std == (0.5, 0.5, 0.5)
    assert "has neither preprocessor_config.json nor processor_config.json: its images" in caplog.text
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.3] * 3}))
    caplog.clear()
    assert FrozenClip.load(place, device="cpu").std == (0.3, 0.3, 0.3) and not caplog.text


def test_bfloat16_is_close(clip, folder):
    pixels = pixels_of(clip)
    near = FrozenClip.load(folder, device="cpu", precision="bfloat16")
    assert (near.encode(pixels).patches - clip.encode(pixels).patches).abs().mean() < 0.05
    assert (near.embed_images(pixels) * clip.embed_images(pixels)).sum(1).min() > 0.99


def changed(folder, place, **config):
    import shutil

    shutil.copytree(folder, place)
    tree = json.loads((place / "config.json").read_text())
    for key, one in config.items():
        tree[key] = {**tree[key], **one} if isinstance(one, dict) else one
    (place / "config.json").write_text(json.dumps(tree))
    return place


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "siglip2"}, "says siglip2, and its weights are another model's"),
        ({"model_type": "clip"}, "says clip, and its weights are another model's"),
        ({"vision_config": {"vision_use_head": False}}, "without its pooling head"),
        ({"vision_config": {"hidden_act": "swish"}}, "the activation 'swish' is unknown"),
        ({"vision_config": {"patch_size": 16}}, "its patch is 16, that of the weights is 8"),
        ({"text_config": {"max_position_embeddings": 64}}, "its context is 64, that of the weights is 12"),
        ({"text_config": {"pad_token_id": "x"}}, "a value of the wrong kind"),
    ],
)
def test_what_is_not_read_is_named(folder, tmp_path, config, words):
    with pytest.raises(ModelError, match=words):
        FrozenClip.load(changed(folder, tmp_path / "x", **config), device="cpu")


def to_open_clip(state):
    """transformers' keys of a SigLIP respelled as open_clip's, whose image tower is timm's, by plain replacement."""
    result = {}
    for key, tensor in joined(state):
        if "head.attention.in_proj_" in key:
            kind = key.rpartition("_")[2]
            result[f"visual.trunk.attn_pool.q.{kind}"], result[f"visual.trunk.attn_pool.kv.{kind}"] = (
                tensor[:WIDTH].clone(), tensor[WIDTH:].clone(),
            )  # fmt: skip
            continue
        if "vision_model.embeddings.position" in key:
            tensor = tensor[None]
        side = "image" if key.startswith("vision_model") else "text"
        for old, new in (
            ("vision_model.embeddings.patch_embedding", "visual.trunk.patch_embed.proj"),
            ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
            ("vision_model.encoder.layers", "visual.trunk.blocks"),
            ("vision_model.post_layernorm", "visual.trunk.norm"),
            ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
            ("vision_model.head.attention.out_proj", "visual.trunk.attn_pool.proj"),
            ("vision_model.head.layernorm", "visual.trunk.attn_pool.norm"),
            ("vision_model.head.mlp", "visual.trunk.attn_pool.mlp"),
            ("text_model.embeddings.token_embedding", "text.token_embedding"),
            ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
            ("text_model.final_layer_norm", "text.ln_final"),
            ("text_model.head", "text.text_projection"),
            ("text_model.encoder.layers", "text.transformer.resblocks"),
            ("self_attn.q_proj.", "attn.qkv." if side == "image" else "attn.in_proj_"),
            ("self_attn.out_proj", "attn.proj" if side == "image" else "attn.out_proj"),
            ("layer_norm", "norm" if side == "image" else "ln_"),
            *([] if side == "image" else [("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]),
        ):
            key = key.replace(old, new)
        result[key] = tensor.clone()
    return result


def open_clip_config(**image):
    return {
        "model_cfg": {
            "embed_dim": WIDTH, "init_logit_bias": -10, "custom_text": True,
            "vision_cfg": {"image_size": 80, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
                           "timm_model_pretrained": False, "timm_proj": "none"} | image,
            "text_cfg": {"context_length": 12, "vocab_size": PAD + 2, "width": 24, "heads": 2, "layers": 2,
                         "hf_tokenizer_name": "timm/ViT-B-16-SigLIP", "no_causal_mask": True, "proj_bias": True,
                         "tokenizer_kwargs": {"clean": "canonicalize"}, "pool_type": "last", "pad_id": PAD,
                         "norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}},
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.4, 0.5, 0.6]},
    }  # fmt: skip


def open_clip_folder(place, model, words, config):
    import shutil

    place.mkdir()
    save_file(to_open_clip(model.state_dict()), place / "open_clip_model.safetensors")
    (place / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(words / name, place / name)
    return place


@pytest.mark.parametrize(
    ("timm", "patch", "act"),
    [("vit_base_patch16_siglip_224", 16, "gelu"), ("vit_base_patch32_siglip_256", 32, "gelu_pytorch_tanh")],
)
def test_open_clip_s_file_of_it_is_transformers_own(folder, tmp_path, timm, patch, act):
    model = made(
        {"hidden_act": "gelu_pytorch_tanh"}, num_attention_heads=12, image_size=5 * patch, patch_size=patch,
        hidden_act=act,
    )  # fmt: skip
    place = open_clip_folder(tmp_path / "x", model, folder, open_clip_config(timm_model_name=timm))
    for given in (place, place / "open_clip_model.safetensors"):
        clip = FrozenClip.load(given, device="cpu")
        pixels = pixels_of(clip)
        with torch.no_grad():
            image = F.normalize(model.vision_model(pixels).pooler_output, dim=1)
            ids = torch.tensor([[1, 2, 3, 4, 9, *[PAD] * 7], [10, 9, *[PAD] * 10]])
            text = F.normalize(model.text_model(ids).pooler_output, dim=1)
        assert (clip.embed_images(pixels) - image).abs().max() < 1e-5
        assert (clip.encode_tokens(ids) - text).abs().max() < 1e-5
        assert (clip.encode_texts(["A photo: of the_dog!", "cat, dog"]) - text).abs().max() < 1e-5
        assert clip.logit_bias == -9.0 and clip.std == (0.4, 0.5, 0.6) and clip.heads == 12


def test_what_open_clip_s_file_does_not_say_is_asked_for(folder, tmp_path):
    model = made(num_attention_heads=4, image_size=80, patch_size=16, hidden_act="gelu")
    config = open_clip_config(timm_model_name="vit_little_patch16_siglip_80")
    place = open_clip_folder(tmp_path / "x", model, folder, config)
    with pytest.raises(ModelError, match="does not say how many attention heads its towers have or which GELU"):
        FrozenClip.load(place, device="cpu")
    clip = FrozenClip.load(place, device="cpu", heads=[4, 2], activation="gelu")
    with torch.no_grad():
        image = F.normalize(model.vision_model(pixels_of(clip)).pooler_output, dim=1)
    assert (clip.embed_images(pixels_of(clip)) - image).abs().max() < 1e-5
    (place / "open_clip_config.json").unlink()
    with pytest.raises(ModelError, match=r"put its open_clip_config\.json beside it"):
        FrozenClip.load(place, device="cpu", heads=[4, 2], activation="gelu")


@pytest.mark.parametrize(
    ("part", "key", "value", "words"),
    [
        ("vision_cfg", "timm_pool", "avg", "sets vision_cfg.timm_pool to avg"),
        ("vision_cfg", "timm_model_name", "vit_base_patch32_siglip_256", "its patch is 32, that of the weights is 16"),
        ("text_cfg", "no_causal_mask", False, "words see those before them alone"),
        ("text_cfg", "pool_type", "argmax", "sets text_cfg.pool_type to argmax"),
        ("text_cfg", "tokenizer_kwargs", {"clean": "lower"}, "sets text_cfg.tokenizer_kwargs"),
        ("text_cfg", "width", 32, "its text width is 32, that of the weights is 24"),
        ("text_cfg", "heads", "x", "a value or holds one of the wrong kind"),
    ],
)
def test_what_open_clip_s_file_says_of_another_is_refused(folder, tmp_path, part, key, value, words):
    config = open_clip_config()
    config["model_cfg"][part][key] = value
    model = made(num_attention_heads=12, image_size=80, patch_size=16)
    place = open_clip_folder(tmp_path / "x", model, folder, config)
    with pytest.raises(ModelError, match=words):
        FrozenClip.load(place, device="cpu")


def test_other_files_of_timm_s_towers_are_named(tmp_path):
    save_file(
        {"visual.trunk.pos_embed": torch.zeros(1), "text.text_projection": torch.zeros(1)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ModelError, match=r"neither a SigLIP's with its pooling head nor an EVA-02's with gates"):
        FrozenClip.load(tmp_path / "x.safetensors", device="cpu")
