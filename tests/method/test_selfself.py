"""Self-self attention against the answers of SCLIP, ClearCLIP, NACLIP and MaskCLIP, from the last block's input."""

import dataclasses
import inspect

import pytest
import torch

from golden_case import FOLDER, cases, furthest, tensors
from vpl.clip import block
from vpl.clip.block import through
from vpl.clip.model import FrozenClip
from vpl.errors import ConfigError
from vpl.method.selfself import LIKENESS, dense

NAMES = {
    "sclip": LIKENESS["sclip"],
    "clearclip": LIKENESS["clearclip"],
    "naclip": LIKENESS["naclip"],
    "maskclip": LIKENESS["maskclip"],
    "vanilla": LIKENESS["plain"],
    "clearclip_residual": dataclasses.replace(LIKENESS["clearclip"], whole=True),
    "naclip_std2": dataclasses.replace(LIKENESS["naclip"], std=2.0),
    "naclip_vanilla_arch": dataclasses.replace(LIKENESS["naclip"], whole=True),
    "kk": dataclasses.replace(LIKENESS["naclip"], std=None),
    "maskclip_residual": dataclasses.replace(LIKENESS["maskclip"], whole=True),
    "vanilla_no_residual": dataclasses.replace(LIKENESS["plain"], whole=False),
}
"""Key of the golden files -> how."""


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load(FOLDER / "openai_tiny.safetensors", device="cpu")


def inside(clip, x):
    with torch.no_grad():
        return through(clip.image.blocks[-1], x)[1]


@pytest.mark.parametrize("path", cases("selfself_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("key", NAMES)
def test_the_reference(clip, path, key):
    pinned = tensors(path)
    last = inside(clip, pinned["last_block_input"][None])
    grid = tuple(pinned["grid"].tolist())
    assert furthest(dense(clip.image, last, grid, NAMES[key])[0], pinned[key]) < 1e-4


@pytest.mark.parametrize("name", LIKENESS)
def test_images_of_a_batch_are_strangers_and_rows_at_a_time_change_nothing(clip, monkeypatch, name):
    random = torch.Generator().manual_seed(0)
    features = clip.encode(torch.randn(2, 3, 48, 80, generator=random))
    whole = dense(clip.image, features.last, features.grid, name)
    monkeypatch.setattr(block, "CPU_SCORES_AT_ONCE", 1)
    torch.testing.assert_close(dense(clip.image, features.last, features.grid, name), whole, atol=1e-5, rtol=0)
    alone = clip.encode(torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))[1:])
    torch.testing.assert_close(dense(clip.image, alone.last, alone.grid, name)[0], whole[1], atol=1e-4, rtol=0)
    assert whole.shape == (2, 15, clip.dim) and whole.dtype == torch.float32 and not whole.requires_grad


def test_plain_is_what_the_encoder_says(clip):
    features = clip.encode(torch.randn(1, 3, 48, 80, generator=torch.Generator().manual_seed(2)))
    found = dense(clip.image, features.last, features.grid, "plain")
    torch.testing.assert_close(found, features.patches, atol=1e-4, rtol=0)


def test_an_unknown_name_is_told():
    with pytest.raises(ConfigError, match="'dclip'; expected one of sclip, clearclip, naclip, maskclip, plain"):
        inspect.unwrap(dense)(None, None, (1, 1), "dclip")
