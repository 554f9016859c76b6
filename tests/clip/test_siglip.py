"""SigLIP: both towers are transformers' own, texts are filled, GradCAM is autograd's; what is not read is named."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from conftest import WORDS, pixels_of
from vpl.clip.model import FrozenClip
from vpl.clip.tokens import siglip_tokenizer
from vpl.errors import ModelError
from vpl.method.seeds import seeds
from vpl.method.selfself import LIKENESS, dense

WIDTH, PAD = 36, len(WORDS) + 1


def made(**vision):
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": WIDTH, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 80}
    config = SiglipConfig(
        vision_config=sizes | {"image_size": 40, "patch_size": 8} | vision,
        text_config={"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48,
                     "vocab_size": PAD + 2, "max_position_embeddings": 12, "projection_size": WIDTH,
                     "pad_token_id": PAD},
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
        ({"model_type": "siglip2"}, "is a 'siglip2' model; expected a CLIP or SigLIP .* those of a fixed size"),
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


def test_files_of_timm_s_towers_are_named(tmp_path):
    save_file(
        {"visual.trunk.pos_embed": torch.zeros(1), "text.text_projection": torch.zeros(1)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ModelError, match=r"an image tower of timm's, as open_clip's files of SigLIP and EVA have"):
        FrozenClip.load(tmp_path / "x.safetensors", device="cpu")
