"""Where golden files are, and how they are read.

The folder is `VPL_GOLDEN` when that is set (any folder with files of these names and keys), else tests/golden/.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(os.environ.get("VPL_GOLDEN") or Path(__file__).parent / "golden")


def cases(pattern: str) -> list[Path]:
    """Files of a kind; a folder without any is a fault, never a skip."""
    found = sorted(FOLDER.glob(pattern))
    return found or [FOLDER / pattern]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    assert path.is_file(), f"{path.parent} holds no {path.name}"
    with np.load(path) as archive:
        return {key: torch.as_tensor(archive[key]) for key in archive.files}


def furthest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach().double() - theirs.double()).abs().max())
