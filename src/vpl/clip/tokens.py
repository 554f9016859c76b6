"""Texts -> token ids, by the tokenizer that belongs to the weights. METHOD.md 0.

Before any tokenizer, a text is cleaned as OpenAI's own code cleans it, and as CLIP's training texts were: mended by
ftfy (ligatures, curly quotes, full-width letters, wrong decodings), freed of HTML's entities, white space to one blank.
"""

from __future__ import annotations

import html
import re
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vpl.clip.archives import broken, check_text, reason
from vpl.errors import ModelError

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (n, longest) int64: start token, words, end token, zeros."""
OPENAI_WORDS = 49408
"""Tokens of CLIP's own vocabulary."""
_PLAIN = re.compile(r"[ -%'-~]*")
"""Texts that cleaning leaves as they are, but for their blanks: printable ASCII without an ampersand."""

_BARE = str.maketrans("_", " ", string.punctuation.replace("_", ""))
"""The underscore is a blank, other punctuation is nothing."""


def cleaned(text: str) -> str:
    """A text as OpenAI's tokenizer reads it, before it is made lower case."""
    if not _PLAIN.fullmatch(text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def folder_tokenizer(folder: Path, name: str, context: int, words: int) -> Tokenize | None:
    """Token ids from tokenizer.json or, where there is none, from vocab.json and merges.txt; None where neither is.

    Args:
        context: most tokens of a text. words: rows of the weights' table of words.

    Raises:
        ModelError: a file is damaged, or has more tokens than the weights know.
    """
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        check_text(folder / "tokenizer.json", name)
        try:
            reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise broken(f"{name}: tokenizer.json", error) from error
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import CLIPTokenizerFast  # type: ignore[attr-defined]  # a lazy name
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            reader = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True).backend_tokenizer
        except Exception as error:  # the tokenizers library raises bare Exception
            raise broken(f"{name}: vocab.json or merges.txt", error) from error
        finally:
            logging.set_verbosity(before)
    else:
        return None
    if reader.get_vocab_size() > words > 0:
        raise ModelError(
            f"{name}: its tokenizer has {reader.get_vocab_size()} tokens, its weights know {words}; give the weights' "
            "own tokenizer."
        )

    def tokenize(texts: Sequence[str]) -> Tensor:
        try:
            reader.enable_truncation(context)
            reader.no_padding()
            rows = [encoding.ids for encoding in reader.encode_batch([cleaned(text) for text in texts])]
        except Exception as error:  # as above
            raise broken(f"{name}: its tokenizer", error) from error
        if not all(rows):
            raise ModelError(f"the tokenizer of {name} makes no token of a text; give the weights' own tokenizer.")
        if len({row[-1] for row in rows}) > 1:
            raise ModelError(
                f"the tokenizer of {name} closes no text with an end token; give the weights' own tokenizer."
            )
        return _padded(rows)

    return tokenize


def siglip_tokenizer(folder: Path, name: str, context: int, words: int, bare: bool = False) -> Tokenize | None:
    """Token ids as transformers' own tokenizer of the folder gives them, filled up to the context: SigLIP's (T5's
    pieces, in small letters, without punctuation) or SigLIP 2's (Gemma's, in small letters). None where there is none.

    Args:
        context: most tokens of a text.
        words: rows of the weights' table of words.
        bare: punctuation is taken out before, as open_clip does it for both; its folders' own tokenizer keeps it.

    Raises:
        ModelError: a file is damaged, a package that it needs is missing, or it has more tokens than the weights know.
    """
    files = [folder / file for file in ("tokenizer.json", "spiece.model") if (folder / file).is_file()]
    if not files:
        return None
    for file in files:
        check_text(file, name)
    from transformers import AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        reader = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise ModelError(f'{name}: its tokenizer needs sentencepiece; pip install "vpl-seg[siglip]".') from error
    except Exception as error:  # of the tokenizers, OSError, ValueError
        raise ModelError(f"{name}: its tokenizer can't be read ({reason(error)}).") from error
    finally:
        logging.set_verbosity(before)
    if len(reader) > words > 0:
        raise ModelError(f"{name}: its tokenizer has {len(reader)} tokens, its weights know {words}; fetch both anew.")

    def tokenize(texts: Sequence[str]) -> Tensor:
        given = [cleaned(text).lower() for text in texts]
        if bare:
            given = [" ".join(text.translate(_BARE).split()) for text in given]
        try:
            rows = reader(given, truncation=True, padding="max_length",
                          max_length=context, return_attention_mask=False)["input_ids"]  # fmt: skip
        except Exception as error:  # as above
            raise broken(f"{name}: its tokenizer", error) from error
        return torch.tensor(rows, dtype=torch.int64).reshape(len(texts), -1)

    return tokenize


def openai_tokenizer(context: int) -> Tokenize:
    """Token ids with CLIP's own vocabulary, from the extra package that carries it; imported on first use."""

    def tokenize(texts: Sequence[str]) -> Tensor:
        try:
            from instant_clip_tokenizer import Tokenizer
        except ImportError as error:
            raise ModelError(
                "OpenAI's weights bring no tokenizer, and the package that carries it is not installed: "
                "pip install 'vpl-seg[openai]'."
            ) from error
        reader = Tokenizer()
        start, end = reader.start_of_text(), reader.end_of_text()
        return _padded([[start, *reader.encode(cleaned(text))[: context - 2], end] for text in texts])

    return tokenize


def _padded(rows: list[list[int]]) -> Tensor:
    """Rows of unequal length as (n, longest) int64, zeros after the end."""
    ids = torch.zeros((len(rows), max(map(len, rows), default=0)), dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids
