"""vpl: from image tags to segmentation masks, with a frozen CLIP (Vision Prototype Learning, arXiv 2412.19650).

Names are loaded on first use, so that `import vpl` is quick.
"""

from __future__ import annotations

import importlib

from vpl import moved

__version__ = "0.1.0"

_HOMES = {
    "Config": "config",
    "preset": "config",
    "VplError": "errors",
    "ClassSet": "classes",
    "Sample": "edges.datasets",
    "FrozenClip": "clip.model",
    "dense_crf": "method.crf",
    "load": "network.predict",
    "export": "exports.export",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vpl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vpl.{_HOMES[name]}"), name)


moved.install()
