"""Two tiny CLIPs with seeded random weights, made once per session; small enough for every test that needs a model."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

KNOWN_SKIPS = (
    "this user may not mount a file system here",
    "this file system takes Unicode names only",
    "this Pillow was built without AVIF",
    "set VPL_COCO128",
)
"""Parts of the reasons for which a test may be skipped where everything is installed: what lies with the
machine, and photographs that never enter the project."""


def pytest_addoption(parser):
    parser.addoption("--known-skips", action="store_true", help="fail on a skip whose reason is not in KNOWN_SKIPS")


def pytest_configure(config):
    """Of tests side by side each worker, and what it starts, has one thread: threads of all of them on all cores, above
    all BLAS's, wait for one another."""
    if config.getoption("numprocesses", None):
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--known-skips"):
        return
    reasons = {str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])}
    unknown = sorted(reason for reason in reasons if not any(known in reason for known in KNOWN_SKIPS))
    if unknown:
        reporter.write_line("skipped for reasons that are not known: " + "; ".join(unknown), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def no_bfloat16():
    """New runs of this process compute in float32, whatever its processor multiplies itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpl.machine.native_bfloat16", lambda device: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """This process's files are not made safe from a power cut, which no test brings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", os.fstat)  # which also refuses what is no open file
        yield


WORDS = (
    "a", "photo", "of", "the", "clean", "origami", "large", "small", "dog", "cat", "boat", "car", "tree", "person",
    "sofa", "bird", "horse", "sheep", "house", "ball", "sign", "grass", "sky", "water", "ground", "road", "wall", ".",
    ",", "in", "on", "with", "and", "two", "red", "green", "blue",
)  # fmt: skip
START, END = len(WORDS) + 1, len(WORDS) + 2

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]

SIZES = {
    # quick GELU, OpenAI's first, wrong end token 2 in the config: the largest id closes a text
    "narrow": {
        "vision": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 96,
                   "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu"},
        "text": {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 48,
                 "max_position_embeddings": 16, "eos_token_id": 2, "hidden_act": "quick_gelu"},
        "dim": 20,
    },
    "wide": {
        "vision": {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4, "intermediate_size": 192,
                   "image_size": 80, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
        "text": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 64,
                 "max_position_embeddings": 77, "eos_token_id": END, "hidden_act": "gelu"},
        "dim": 28,
    },
}  # fmt: skip


def hf_clip(size: str):
    """A transformers CLIPModel of one of SIZES, its weights so large that attention and activations are not flat."""
    from transformers import CLIPConfig, CLIPModel

    sizes = SIZES[size]
    tokens = {"vocab_size": END + 1, "bos_token_id": START, "pad_token_id": 0}
    config = CLIPConfig(text_config=sizes["text"] | tokens, vision_config=sizes["vision"], projection_dim=sizes["dim"])
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name == "logit_scale":
                weights.fill_(3.0)
            elif weights.ndim < 2 or "embedding" in name:
                weights.normal_(float(re.search(r"norm\d?\.weight|layrnorm\.weight", name) is not None), 0.3)
            else:
                weights.normal_(0, 1.5 * weights[0].numel() ** -0.5)
    return model


def pixels_of(clip, count: int = 2, grid: tuple[int, int] | None = None, seed: int = 0):
    """Smooth random images on a patch grid (default: the grid that the positions were trained on)."""
    side = round((clip.image.positions.shape[0] - 1) ** 0.5)
    h, w = grid or (side, side)
    rough = torch.randn(count, 3, h, w, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(rough, size=(h * clip.patch, w * clip.patch), mode="bilinear") * 2


def save_tokenizer(folder) -> None:
    """A tokenizer.json of whole words, lower case, that adds the start and the end token as CLIP's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["<unk>", *WORDS, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def hf_models():
    """transformers' CLIPModel by size name."""
    return {size: hf_clip(size) for size in SIZES}


@pytest.fixture(scope="session")
def clip_folders(hf_models, tmp_path_factory):
    """Folders in transformers' format by size name."""
    folders = {}
    for size, model in hf_models.items():
        folders[size] = tmp_path_factory.mktemp("clip") / size
        model.save_pretrained(folders[size])
        save_tokenizer(folders[size])
        look = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
        (folders[size] / "preprocessor_config.json").write_text(json.dumps(look))
    return folders


@pytest.fixture(scope="session")
def clips(clip_folders):
    """FrozenClips by size name, on the CPU in float32."""
    from vpl.clip.model import FrozenClip

    return {size: FrozenClip.load(folder, device="cpu") for size, folder in clip_folders.items()}


@pytest.fixture(scope="session")
def openai_state():
    """OpenAI's keys for a CLIP whose heads are 64 wide, as theirs are."""
    from transformers import CLIPConfig, CLIPModel

    from clip_files import to_openai

    torch.manual_seed(1)
    config = CLIPConfig(
        vision_config={"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 256,
                       "image_size": 32, "patch_size": 16},
        text_config={"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 128,
                     "vocab_size": 49408},
        projection_dim=32,
    )  # fmt: skip
    return to_openai(CLIPModel(config).state_dict())


@pytest.fixture(scope="session")
def tiny_folder(clip_folders):
    """The smaller CLIP's folder: patch 8, grid 4 × 4, D 20, 3 blocks."""
    return clip_folders["narrow"]


@pytest.fixture(scope="session")
def tiny_clip(clips):
    """The smaller CLIP."""
    return clips["narrow"]


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The command line in forked children of a warm process."""
    from warm import Warm

    with Warm(tmp_path_factory.mktemp("warm")) as process:
        yield process


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """Five scenes, one of them of another shape, and two held-out ones."""
    from vpl.edges import images
    from vpl.scenes.tree import write_tree
    from warm import SIDE

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": 5, "val": 2}, seed=5, style="demo", size=SIDE)
    path = sorted((folder / "images" / "train").iterdir())[2]
    mask = folder / "masks" / "train" / f"{path.stem}.png"
    images.write_image(path, images.read_image(path)[:24])
    images.write_mask(mask, images.read_mask(mask)[:24], [])
    return folder


@pytest.fixture(scope="session")
def quiet(warm, small_tree, tmp_path_factory):
    """Stage -> the run folder before it, the one after it, and the number of changes to files between them."""
    from warm import STAGES, command

    home, found = tmp_path_factory.mktemp("quiet"), {}
    before = home / "absent"
    for stage in STAGES:
        folder, counter = home / stage, home / f"{stage}.count"
        if before.exists():
            shutil.copytree(before, folder)
        (told,) = warm.run(["count_into", folder, counter], command(stage, folder, small_tree))
        assert told.status == 0, told.err
        found[stage] = before, folder, int(counter.read_text())
        before = folder
    return found


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    """A DINOv2 of random weights in transformers' format: patch 14, two blocks, 24 wide."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(11)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.3)
    folder = tmp_path_factory.mktemp("dinov2") / "small"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2(dinov2_folder):
    """The same, frozen."""
    from vpl.clip.dinov2 import FrozenDinov2

    return FrozenDinov2.load(str(dinov2_folder), "cpu")
