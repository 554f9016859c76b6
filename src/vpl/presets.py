"""Values that belong together: published methods, and qualities of masks and networks. Plain rows for `vpl.config`.

`PUBLISHED` are what others have published, as far as it concerns values of ours; data sets' own values stand in
`vpl.config` and go together with one of these: `--preset voc --preset weclip`. `QUALITY` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_ONE_LOOK: dict[str, object] = {
    "looks.makers": ("gradcam",),
    "looks.scales": (1.0,),
    "looks.flip": False,
    "par.rounds": 0,
    "decoder.cells": 1,
    "train.scale_low": 0.5,
    "train.scale_high": 2.0,
    "train.loss": "ce",
}

PUBLISHED: Mapping[str, dict[str, object]] = MappingProxyType(
    {
        "paper": {
            **_ONE_LOOK,
            "clip.precision": "float32",
            "crf.mode": "exact",
            "seeds.kind": "gradcam",
            "prototypes.kind": "vision",
            "refine.enabled": True,
            "refine.box": True,
            "train.affinity": 0.0,
            "train.online": False,
        },
        "clip-es": {
            **_ONE_LOOK,
            "clip.precision": "float32",
            "crf.mode": "exact",
            "seeds.kind": "gradcam",
            "prototypes.kind": "text",
            "prompts.templates": ("a clean origami {}.",),
            "prompts.class_words": True,
            "refine.enabled": True,
            "refine.box": True,
            "labels.background_exponent": 1.0,
            "labels.confidence": 0.95,
            "crf.rounds": 10,
            "crf.gaussian_sigma": 1.0,
            "crf.gaussian_weight": 3.0,
            "crf.bilateral_sigma": 67.0,
            "crf.bilateral_color": 3.0,
            "crf.bilateral_weight": 4.0,
        },
        "weclip": {
            **_ONE_LOOK,
            "clip.precision": "float32",
            "crf.mode": "exact",
            "seeds.kind": "gradcam",
            "prototypes.kind": "text",
            "crf.gaussian_sigma": 3.0,
            "crf.gaussian_weight": 3.0,
            "crf.bilateral_sigma": 64.0,
            "crf.bilateral_color": 5.0,
            "crf.bilateral_weight": 4.0,
            "decoder.network": "weclip",
            "decoder.width": 256,
            "decoder.blocks": 3,
            "decoder.heads": 8,
            "decoder.dropout": 0.1,
            "rsc.weight": 0.0,
            "train.batch": 4,
            "train.crop": 320,
            "train.loss": "balanced",
            "train.affinity": 0.1,
            "train.affinity_radius": 8,
            "train.optimizer": "adamw",
            "train.learning_rate": 0.002,
            "train.weight_decay": 0.01,
            "train.power": 1.0,
            "train.warmup": 50,
            "train.online": True,
            "train.online_from": 0.5,
            "train.online_labels": "seeds",
            "predict.scales": (1.0, 0.75),
            "predict.flip": True,
            "predict.crf": True,
        },
    }
)
"""Name -> values: the paper's masks, one GradCAM and its CRF; CLIP-ES's seeds (arXiv 2212.09506); WeCLIP's seeds, head,
schedule, scales and CRF (arXiv 2406.11189). WeCLIP refines by PAR where we have the CRF, and looks at a long side of
512 pixels; those are not values of ours."""

_COMMITTEE: dict[str, object] = {
    "looks.makers": ("gradcam", "sclip", "naclip", "maskclip-words"),
    "looks.scales": (1.0,),
    "looks.flip": False,
    "par.rounds": 5,
    "decoder.cells": 4,
    "train.scale_low": 0.75,
    "train.scale_high": 1.5,
    "train.loss": "balanced",
}

QUALITY: Mapping[str, dict[str, object]] = MappingProxyType(
    {
        "draft": {**_ONE_LOOK, "crf.mode": "fast"},
        "standard": {**_COMMITTEE, "crf.mode": "exact"},
        "best": {**_COMMITTEE, "looks.scales": (0.75, 1.0), "looks.flip": True, "crf.mode": "exact"},
    }
)
"""Name -> looks, PAR and CRF, and what a new network is taught with, together; encodings for each photograph: draft and
standard 1, best 3.1. Makers, scales and rounds were chosen on the styles of pre-training (benchmarks/looks.py); all
makers are of published, training-free methods. The network's values are from benchmarks/network.py."""
STANDARD = "standard"
"""What a new run begins with where nobody has chosen."""
