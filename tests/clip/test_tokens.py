"""Tokens are OpenAI's: pinned to what its code makes of texts that it cleans first; wrong tokenizers are refused."""

from __future__ import annotations

import json
import re
import shutil

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from vpl.clip.model import FrozenClip
from vpl.clip.tokens import cleaned, openai_tokenizer
from vpl.errors import ModelError

OPENAI = {
    "black &amp; white": [1449, 261, 1579],
    "“quoted” don’t": [257, 27706, 257, 847, 713],
    "ﬁsh ﬂag": [2759, 4859],
    "ｆｕｌｌ ｗｉｄｔｈ": [1476, 23571],
    "cafÃ© cafe\u0301": [15304, 15304],
    "&amp;amp; a&nbsp;b\tc": [261, 320, 321, 322],
    "x<y>&lt;z&gt;": [343, 283, 344, 28015, 345, 285],
    "a _b-c 3rd 2024 ½": [320, 318, 321, 268, 322, 274, 1973, 273, 271, 273, 275, 33613],
    "it's we'll I'D": [585, 568, 649, 1342, 328, 1896],
    "traffic light": [3399, 1395],
    "日本語 İ 😀!!": [39121, 44353, 34002, 508, 328, 16384, 12832, 748],
}
"""Texts, and the ids between start and end that the tokenizer of openai/CLIP makes of them."""


@pytest.mark.parametrize("text", OPENAI)
def test_tokens_are_openais(text):
    row = openai_tokenizer(77)([text])[0].tolist()
    assert row == [49406, *OPENAI[text], 49407]


def test_a_long_text_keeps_its_end():
    assert openai_tokenizer(5)(["a b c d e f"]).tolist() == [[49406, 320, 321, 322, 49407]]


@given(st.text(st.characters(max_codepoint=126, exclude_characters="&"), max_size=30))
def test_plain_ascii_is_what_ftfy_leaves_alone(text):
    """The quick way past ftfy is right: of printable ASCII, only the blanks change."""
    assert cleaned(text) == " ".join(ftfy.fix_text(text).split())


@pytest.mark.parametrize("text", ["a  b", " a\n", "it's 5 o'clock!", "a ~ b {}", ""])
def test_cleaning_ascii_moves_blanks_alone(text):
    assert cleaned(text) == re.sub(r"\s+", " ", text).strip()


def test_a_folders_tokenizer_gets_clean_texts(clips):
    clip = clips["wide"]
    assert (clip.encode_texts(["dog &amp;amp; cat ”"]) == clip.encode_texts(['dog & cat "'])).all()


def test_a_tokenizer_of_other_weights_is_refused(clip_folders, tmp_path):
    folder = shutil.copytree(clip_folders["wide"], tmp_path / "clip")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["vocab"] |= {f"more{n}": 40 + n for n in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"its tokenizer has 43 tokens, its weights know 40; give the weights' own"):
        FrozenClip.load(folder, device="cpu")
    Tokenizer(models.WordLevel({"<unk>": 0, "dog": 1, "cat": 2}, unk_token="<unk>")).save(
        str(folder / "tokenizer.json")
    )
    with pytest.raises(ModelError, match="no text with an end token; give the weights' own tokenizer"):
        FrozenClip.load(folder, device="cpu").encode_texts(["dog", "cat"])
