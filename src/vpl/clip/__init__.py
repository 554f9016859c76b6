"""The frozen encoders: any file of CLIP weights to features, without a gradient.

archives  files of tensors, nothing unpickled freely
spelling  OpenAI's keys and transformers', one set of names
tokens    texts to token ids, by the weights' own tokenizer
facts     what shapes don't tell: heads, activation, how images are normalised; found, said, or asked for
places    where a CLIP's files lie
weights   what a name stands for: a folder, a file, a model of the hub
block     one block, and which of its five uses
towers    the blocks between an embedding and a projection
model     FrozenClip: texts and images to features

file -> archives -> spelling ─┐
facts, tokenizer ────────────┴─ weights -> towers (blocks) -> model -> (D) of texts, (hw, D) of patches, attention
"""

import importlib


def __getattr__(name: str) -> object:
    if name == "FrozenClip":  # on first use: a room's name alone loads no torch
        return importlib.import_module("vpl.clip.model").FrozenClip
    raise AttributeError(f"module 'vpl.clip' has no attribute {name!r}")
