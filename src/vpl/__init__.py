"""vpl: from image tags to segmentation masks, with a frozen CLIP (Vision Prototype Learning, arXiv 2412.19650).

    import vpl

    vpl.segment("garden.jpg", ["dog", "chair"]).overlay()   # one image, from its tags, with text prototypes
    model = vpl.VPL(classes=["dog", "chair", "bus"])
    model.fit(images, tags)                                 # vision prototypes
    found = model.segment("garden.jpg", ["dog", "chair"])   # found.labels: (H, W) uint8, 0 background, c + 1 class c

    made = vpl.run("runs/mine", "photos", "tags.csv")       # a folder: masks, a network, a report
    vpl.predict("runs/mine", "more-photos")                 # the network needs no tags

Images at hand: `VPL`, `segment`, `predict`. A folder: `run`, `check`, `Run` (stage by stage), `load`, `tune`, `report`,
`compare`, `export`, `open_dataset`. What is a value: `Config`, `preset`, `ClassSet`, `Sample`. What is a tensor:
`FrozenClip`, `dense_crf`. Every error that is meant for you X

Names are loaded on first use, so that `import vpl` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vpl import moved

if TYPE_CHECKING:
    from vpl.classes import ClassSet
    from vpl.clip.model import FrozenClip
    from vpl.config import Config, preset
    from vpl.edges.datasets import Sample, open_dataset
    from vpl.errors import VplError
    from vpl.exports.dataset import MaskDataset
    from vpl.exports.export import export
    from vpl.exports.hf import push_to_hub
    from vpl.judge.tune import tune
    from vpl.method.crf import dense_crf
    from vpl.network.predict import load
    from vpl.notebook.model import VPL, segment
    from vpl.notebook.runs import check, predict, run
    from vpl.pages.compare import compare
    from vpl.pages.report import report
    from vpl.runs.stages import Run

__version__ = "0.1.0"

__all__ = [
    "VPL",
    "ClassSet",
    "Config",
    "FrozenClip",
    "MaskDataset",
    "Run",
    "Sample",
    "VplError",
    "check",
    "compare",
    "dense_crf",
    "export",
    "load",
    "open_dataset",
    "predict",
    "preset",
    "push_to_hub",
    "report",
    "run",
    "segment",
    "tune",
]

_HOMES = {
    "VPL": "notebook.model",
    "ClassSet": "classes",
    "Config": "config",
    "FrozenClip": "clip.model",
    "MaskDataset": "exports.dataset",
    "Run": "runs.stages",
    "Sample": "edges.datasets",
    "VplError": "errors",
    "check": "notebook.runs",
    "compare": "pages.compare",
    "dense_crf": "method.crf",
    "export": "exports.export",
    "load": "network.predict",
    "open_dataset": "edges.datasets",
    "predict": "notebook.runs",
    "preset": "config",
    "push_to_hub": "exports.hf",
    "report": "pages.report",
    "run": "notebook.runs",
    "segment": "notebook.model",
    "tune": "judge.tune",
}
"""Name -> the module that it stands in; the block above says the same to type checkers, and a test holds them equal."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vpl' has no attribute {name!r}; it has {', '.join(__all__)}")
    found = getattr(importlib.import_module(f"vpl.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__all__", "__doc__", "__file__", "__name__", "__path__", "__spec__", "__version__"]


moved.install()
