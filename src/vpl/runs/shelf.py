"""The shelf: encodings of photographs between the passes of a run, so that the encoder sees each photograph once.

    pass one (regions) ──trunk──> shelf ──> pass two (label maps)      METHOD.md 3, then 1, 2 and 4

What is kept of a photograph is `clip.model.Trunk`: the stream that enters the last block, and the sum of the attention
before it. The last block is computed again, so the features are those of a new encoding, bit for bit. Beside it lie
what another encoder says and the text seeds, which pass one makes and pass two shows. A file is kept
under what its content depends on, ends with a checksum of it, and counts as absent where that does not fit: the
photograph is then encoded again, as are those for which the budget or the disk has no room.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from vpl.clip.model import Features, FrozenClip, Trunk
from vpl.config import ClipConfig
from vpl.method.views import View, pixels_of

log = logging.getLogger("vpl")

FREE_SHARE = 0.5
"""Share of the free disk that the shelf takes at most, whatever its budget. [ours]"""


class Shelf:
    """Encodings in a folder, within a budget. Several threads may put and take.

    Args:
        folder: made with the first encoding.
        config: how the encoder sees photographs, and the budget.

    Attributes:
        encoded: images that have gone through the encoder.
    """

    def __init__(self, folder: Path, config: ClipConfig):
        self.folder, self.encoded = folder, 0
        self._config, self._lock = config, threading.Lock()
        there = sum(one.stat().st_size for one in folder.glob("*")) if folder.exists() else 0
        near = next(one for one in (folder, *folder.parents) if one.exists())
        self._room = min(config.keep_gb * 1e9 - there, FREE_SHARE * shutil.disk_usage(near).free)

    def features(
        self, clip: FrozenClip, views: Sequence[View], keys: Sequence[str], keep: Sequence[bool] | None = None
    ) -> Features:
        """Features of views whose patch grids are equal: from the shelf where all are there, else by the encoder.

        Args:
            keys: what each encoding depends on, letters that a file name may hold.
            keep: which ones to keep; None: none.
        """
        trunk = self._take(clip, keys)
        if trunk is None:
            pixels = [view.pixels if view.pixels is not None else pixels_of(clip, view, self._config) for view in views]
            trunk = clip.trunk(torch.stack(pixels), self._config.attention_blocks)
            self.count(len(views))
            for place, key in enumerate(keys):
                if keep is not None and keep[place]:
                    self._put(key, _tensors(trunk, place))
        return clip.resume(trunk)

    def once(
        self,
        name: str,
        keys: Sequence[str],
        keep: Sequence[bool],
        make: Callable[[], Sequence[Tensor]],
        device: torch.device,
    ) -> list[Tensor]:
        """A tensor for each image beside its encoding: from the shelf where all are there, else as `make` makes it.

        Args:
            name: of the tensors in their files.
            keys, keep: as for `features`.
            device: where they belong.
        """
        found = [_read(self.folder / key) for key in keys]
        there = [one[name] for one in found if one is not None and name in one]
        if len(there) == len(keys):
            return [one.to(device) for one in there]
        made = list(make())
        for key, one, kept in zip(keys, made, keep, strict=True):
            if kept:
                self._put(key, {name: one})
        return made

    def count(self, images: int) -> None:
        """Images have gone through an encoder."""
        with self._lock:
            self.encoded += images

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _put(self, key: str, tensors: dict[str, Tensor]) -> None:
        size = sum(one.numel() * one.element_size() for one in tensors.values())
        with self._lock:
            if size > self._room:
                return
            self._room -= size
        data = save({name: one.cpu().contiguous() for name, one in tensors.items()})
        partial = self.folder / f"{key}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:  # without fsync: a torn file is an absent one
                file.write(data)
                file.write(zlib.crc32(data).to_bytes(4, "little"))
            partial.replace(self.folder / key)
        except OSError as error:
            log.info("encodings are not kept any more (%s); photographs are encoded again where needed", error.strerror)
            self._room = 0
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _take(self, clip: FrozenClip, keys: Sequence[str]) -> Trunk | None:
        found = []
        for key in keys:
            one = _read(self.folder / key)
            if one is None:
                return None
            found.append(one)
        h, w, averaged = found[0]["grid"].tolist()
        stacked = {
            name: torch.stack([one[name] for one in found]).to(clip.device) for name in found[0] if name != "grid"
        }
        residual = stacked.pop("residual")
        return Trunk((h, w), residual, tuple(stacked.values()), averaged)


def _tensors(trunk: Trunk, place: int) -> dict[str, Tensor]:
    """One image of a trunk."""
    tensors = {"residual": trunk.residual[place], "grid": torch.tensor([*trunk.grid, trunk.averaged])}
    return tensors | {f"sum{number}": one[place] for number, one in enumerate(trunk.sums)}


def _read(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file; None where it is absent, torn or damaged."""
    try:
        data = path.read_bytes()
        if len(data) < 4 or zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            return None
        return load(data[:-4])
    except (OSError, SafetensorError):
        return None
