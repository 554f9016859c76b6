"""A run's photographs and pseudo-masks as a torch data set, for trainings of your own; torchvision is not needed.

Rejected photographs are left out and painted masks stand in the place of the method's, as in every export.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from vpl.edges import storage
from vpl.errors import ModelError, RunError
from vpl.exports.export import of_run
from vpl.exports.labelled import local, place_of, read_labelled

Pair = tuple[UInt8[Tensor, "3 H W"], Int64[Tensor, "H W"]]


class MaskDataset(Dataset):
    """(photograph, labels) by number: RGB uint8 in [0, 255], upright, and 0 background, c + 1 class c, 255 ignore.

        data = vpl.MaskDataset("runs/mine")
        image, labels = data[0]

    Args:
        run: a run folder with pseudo-masks.
        transform: given both, returns what the data set gives; None: both as they are.

    Raises:
        RunError: no run, or no pseudo-masks in it.
    """

    def __init__(self, run: str | Path, transform: Callable[[Tensor, Tensor], Any] | None = None):
        if not (Path(run) / "config.toml").is_file():
            raise RunError(f"{run} is no run folder (there is no config.toml); expected one that vpl run made.")
        self._material, self._transform = of_run(Path(run)), transform
        self._pictures = [one for one in self._material.pictures if self._material.mask(one[0]).is_file()]
        self.classes = self._material.classes
        if not self._pictures:
            raise RunError(f"{run} holds no pseudo-masks yet; run vpl labels first.")

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the photographs, in order."""
        return tuple(id for id, _, _ in self._pictures)

    def to_datasets(self) -> Any:
        """The same as a `datasets.Dataset` of id, image, label and tags.

        Images and masks are read from their files where they are asked for: upright PIL images, and masks whose pixels
        are label values. `transform` is not part of it.

        Raises:
            RunError: the photographs lie behind a URL.
            ModelError: datasets is not installed.
        """
        try:
            import datasets
        except ImportError as error:
            raise ModelError('datasets is not installed; pip install "vpl-seg[datasets]".') from error
        if any(storage.is_url(image) for _, image, _ in self._pictures):
            raise RunError("the photographs lie behind a URL, and datasets reads files; copy them here first.")
        columns = {
            "id": list(self.ids),
            "image": [str(image) for _, image, _ in self._pictures],
            "label": [str(self._material.mask(id)) for id in self.ids],
            "tags": [list(tags or ()) for _, _, tags in self._pictures],
        }
        kinds = {"id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()}
        features = datasets.Features(kinds | {"tags": datasets.List(datasets.Value("string"))})
        return datasets.Dataset.from_dict(columns, features=features)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, number: int) -> Any:
        id, image, tags = self._pictures[number]
        with local(image) as source:
            place = place_of(image, self._material.above)
            one = read_labelled(id, source, place, tags, self._material.mask(id), self.classes)
        pair = torch.from_numpy(one.image).permute(2, 0, 1), torch.from_numpy(one.mask).long()
        return self._transform(*pair) if self._transform else pair
