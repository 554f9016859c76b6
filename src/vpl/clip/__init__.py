"""The frozen encoders: any file of CLIP weights to features, without a gradient.

weights   files of CLIP weights, any format, nothing unpickled freely
model     FrozenClip: texts and images to features

file ──weights──> tensors + architecture ──model──> (D) embeddings of texts, (hw, D) of patches, attention
"""

import importlib


def __getattr__(name: str):
    if name == "FrozenClip":  # on first use: a room's name alone loads no torch
        return importlib.import_module("vpl.clip.model").FrozenClip
    raise AttributeError(f"module 'vpl.clip' has no attribute {name!r}")
