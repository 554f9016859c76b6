"""FrozenDinov2: another frozen encoder, whose patches tell what belongs together; it knows no words (METHOD.md 5b).

    patches = final layer norm of the last block's patch tokens          transformers' Dinov2Model, arXiv 2304.07193

An image is resized so that its patches lie on CLIP's grid, whatever side a patch has here. Everything is float32. The
class is loaded when a configuration names an encoder (`refine.features`), never before.

Letters: N images, h w patch grid, E width.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vpl.clip.archives import broken
from vpl.clip.facts import CONFIG, LOOKS, read_json
from vpl.clip.model import aligned
from vpl.clip.weights import TRANSFORMERS, from_hub
from vpl.errors import ModelError
from vpl.machine import device_of

HUB = "hf:"
"""Before the name of a model of the Hugging Face hub."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of R, G, B in [0, 1]; DINOv2's own, where no file beside the weights says others. [ref]"""


class FrozenDinov2(nn.Module):
    """A DINOv2 whose weights never change. Make one with `load`.

    Attributes:
        name: what it was loaded from.
        patch: side of a patch in pixels.
        width: E.
        mean: per channel (R, G, B), for images in [0, 1].
        std: likewise.
    """

    def __init__(self, model: Any, name: str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD):
        super().__init__()
        self.model: nn.Module = model
        self.name = name
        self._facts: dict[str, Any] = model.config.to_dict()
        self.patch, self.width = int(self._facts["patch_size"]), int(self._facts["hidden_size"])
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.requires_grad_(False)
        super().train(False)

    @classmethod
    def load(cls, name: str, device: str = "auto") -> FrozenDinov2:
        """Load a DINOv2 in transformers' format.

        Args:
            name: "hf:" and a hub name ("hf:facebook/dinov2-small"), or a folder with config.json and weights.
            device: "auto" (cuda, else mps, else cpu) or a torch device.

        Raises:
            ModelError: nothing is there, it can't be read, or it is no DINOv2.
        """
        folder = from_hub(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name).expanduser()
        if not (folder / CONFIG).is_file():
            raise ModelError(
                f"refine.features is {name!r}, and {folder} holds no {CONFIG}; give hf:facebook/dinov2-small, or a "
                "folder with a DINOv2 in transformers' format."
            )
        return cls._of_folder(folder, name).prepare(device)

    @classmethod
    def _of_folder(cls, folder: Path, name: str) -> FrozenDinov2:
        from transformers import Dinov2Model

        facts = read_json(folder / CONFIG, name)
        if facts.get("model_type") != "dinov2":
            raise ModelError(
                f"{name} holds a model of type {facts.get('model_type')!r}; expected dinov2, such as "
                "hf:facebook/dinov2-small."
            )
        if not any((folder / one).is_file() for one in TRANSFORMERS):
            raise ModelError(f"{name} holds no weights that are read here ({', '.join(TRANSFORMERS)}).")
        try:
            with _unheard():
                loaded: Any = Dinov2Model.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        except Exception as error:  # of transformers, safetensors, torch, OSError
            raise broken(name, error) from error
        model, told = loaded
        if missing := sorted(map(str, told["missing_keys"])):
            raise ModelError(
                f"{name} is no complete DINOv2: {missing[0]} is missing. Give the original weights with their own "
                "config.json."
            )
        model = model.float()
        for key, weights in model.state_dict().items():
            if not bool(torch.isfinite(weights.sum())):
                raise ModelError(f"{name}: {key} holds values that are not finite. Download it again.")
        look = next((read_json(folder / one, name) for one in LOOKS if (folder / one).is_file()), {})
        return cls(model, name, look.get("image_mean") or MEAN, look.get("image_std") or STD)

    def prepare(self, device: str = "auto") -> FrozenDinov2:
        """Move to a device; returns self.

        Raises:
            ModelError: the device is not there.
        """
        self.to(device_of(device))
        for weights in self.parameters():
            weights.data = aligned(weights.data)
        return self

    def train(self, mode: bool = True) -> FrozenDinov2:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hexadecimal) of what its answers depend on: configuration, normalisation and weights."""
        facts = {key: one for key, one in self._facts.items() if key != "transformers_version"}
        told = json.dumps([facts, self.mean, self.std], sort_keys=True, default=str)
        digest = hashlib.sha256(told.encode())
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def patches(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N hw E"]:
        """Patch features, row-major, not normalised, on the device of the weights.

        Args:
            pixels: RGB, normalised with `mean` and `std`; H and W are multiples of `patch`.
        """
        tokens = self.model(pixel_values=pixels.to(self.device, torch.float32)).last_hidden_state
        return tokens[:, -(pixels.shape[2] // self.patch) * (pixels.shape[3] // self.patch) :]


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without transformers' own bars and warnings: what is wrong is told here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
