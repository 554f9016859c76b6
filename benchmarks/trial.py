"""How quickly the page Try follows a slider: milliseconds by what is moved, at 640×480 with ViT-B/16 (random weights).

    python benchmarks/trial.py [--threads 2] [--repeats 5] [--photograph FILE]

A photograph's encoding is kept; what is timed is `Trial.quick` after each move, that is every stage that the move
changes, the CRF with it. The answer's way to the browser and its painting are not in it. Where no photograph is
given, smooth noise stands for it, which has more colours beside each other than most; random unit rows stand for the
prototypes of 20 classes and 25 background words; three tags.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from vpl.app.trial import Trial
from vpl.clip.model import FrozenClip
from vpl.config import Config, quality
from vpl.method.views import View

_T = TypeVar("_T")
MOVES: dict[str, tuple[object, ...]] = {
    "prototypes.image_temperature": (0.03, 0.05, 0.02),
    "labels.background_exponent": (1.0, 1.5, 2.0),
    "refine.box_threshold": (0.4, 0.5, 0.6),
    "labels.confidence": (0.95, 0.8, 0.7),
    "looks.makers": (("gradcam", "sclip", "naclip"), ("gradcam", "naclip"), ("gradcam",)),
    "looks.flip": (False, True, False),
    "par.rounds": (5, 0, 10),
    "crf.enabled": (False, True, False),
}


def timed(make: Callable[..., _T], *given: object) -> tuple[float, _T]:
    """Milliseconds, and what was made."""
    start = time.perf_counter()
    made = make(*given)
    return 1000 * (time.perf_counter() - start), made


def run(repeats: int, photograph: Path | None = None) -> None:
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "patch_size": 16, "image_size": 224,
    }, text_config={"num_hidden_layers": 1}))  # fmt: skip
    clip = FrozenClip.from_state_dict(model.state_dict()).prepare("cpu")
    rough = F.interpolate(torch.rand(1, 3, 30, 40), size=(480, 640), mode="bicubic")[0]
    image = (255 * (rough + 0.03 * torch.randn(3, 480, 640)).clamp(0, 1)).byte().permute(1, 2, 0).contiguous().numpy()
    if photograph is not None:
        image = np.array(Image.open(photograph).convert("RGB").resize((640, 480), Image.Resampling.LANCZOS))
    text = F.normalize(torch.randn(45, clip.dim), dim=1)
    vision = F.normalize(text + 0.02 * torch.randn(45, clip.dim), dim=1)
    view = View(image, (0, 1, 2), (480, 640))
    for name, config in {"standard": Config().with_values(quality("standard")), "one look": Config()}.items():
        took, made = timed(Trial, clip, 20, view, text, vision, config)
        print(f"{name}: encoding and slopes {took:.0f} ms, first quick answer {timed(made.quick, config)[0]:.0f} ms")
        print(f"  all makers, which the page asks beside what its person does: {timed(made.prepare, config)[0]:.0f} ms")
        for key, values in MOVES.items():
            moved = [config.with_values({key: value}) for value in values]
            times = [timed(made.quick, one)[0] for _ in range(repeats) for one in moved]
            print(f"  {key}: median {np.median(times):.0f} ms, worst {max(times):.0f} ms", flush=True)
        print(f"  the whole answer: {timed(made.whole, config)[0]:.0f} ms", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photograph", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run(given.repeats, given.photograph)
