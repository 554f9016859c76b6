"""The files of a run folder: how each is read and written. What is damaged is said, with what to do.

Files of ours are written to a temporary name and renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open

from vpl.classes import ClassSet
from vpl.edges import images, storage
from vpl.edges import truth as truth_masks
from vpl.edges.datasets import Sample
from vpl.errors import DataError, RunError
from vpl.method.metrics import Confusion

if TYPE_CHECKING:
    import torch


def read_json(path: Path) -> dict:
    """The object in a JSON file of ours; empty when the file is absent."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(tree, dict):
        raise damaged(path, "no JSON object")
    return tree


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file of ours, atomically."""
    storage.write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file of ours."""
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise damaged(path, error) from error


def read_facts(path: Path) -> dict:
    """What `write_tensors` noted beside the tensors of a file; empty where it noted nothing."""
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {}).get("vpl", "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(facts, dict):
        raise damaged(path, "its facts are no object")
    return facts


def read_prototypes(path: Path, dim: int) -> dict[str, torch.Tensor]:
    """`text` and `vision` prototypes of a run, (P, `dim`) float each."""
    found = read_tensors(path)
    text, vision = (found.get(key) for key in ("text", "vision"))
    if text is None or vision is None or text.shape != vision.shape or text.ndim != 2 or text.shape[1] != dim:
        raise damaged(path, f"expected text and vision of one shape (P, {dim})")
    if not all(one.is_floating_point() and bool(one.isfinite().all()) for one in (text, vision)):
        raise damaged(path, "it holds values that are no finite floats")
    return found


def read_map(path: Path) -> UInt8[np.ndarray, "H W"]:
    """A label map of ours."""
    try:
        return images.read_mask(path)
    except DataError as error:
        raise RunError(f"{error} It is made anew when you delete it and run vpl labels again.") from error


def read_truth(sample: Sample) -> UInt8[np.ndarray, "H W"] | None:
    """The user's mask; None where there is none, or where it can't be read: evaluation has said so."""
    try:
        return None if sample.mask is None else truth_masks.read_truth(sample.mask, sample.values)
    except DataError:
        return None


def damaged(path: Path, reason: object) -> RunError:
    """A file of the run folder that can't be used."""
    words = (str(reason).strip() or type(reason).__name__).splitlines()[0]
    return RunError(f"{path} is damaged ({words}); delete it and run the stage again.")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], facts: Mapping[str, object] | None = None) -> None:
    """Write a safetensors file atomically; `facts` go as JSON under its one metadata key, so that bytes repeat."""
    from safetensors.torch import save

    metadata = {"vpl": json.dumps(facts, sort_keys=True)} if facts else None
    storage.write_bytes_atomic(path, save({name: one.contiguous() for name, one in tensors.items()}, metadata))


def scores_of(confusion: Confusion, classes: ClassSet) -> dict:
    """A confusion matrix and what follows from it, as plain data for metrics.json (fractions, null where undefined).

    Raises:
        DataError: no pixel was counted.
    """
    if not confusion.matrix.any():
        raise DataError("nothing could be evaluated: the truth masks hold 255 (ignore) alone; check data.masks.")
    names = ("background", *classes.names)

    def by_name(values: Float[np.ndarray, " names"]) -> dict[str, float | None]:
        return {name: None if np.isnan(one) else float(one) for name, one in zip(names, values, strict=True)}

    return {
        "images": confusion.images,
        "miou": float(confusion.miou()),
        "pixel_accuracy": float(confusion.pixel_accuracy()),
        "iou": by_name(confusion.iou()),
        "precision": by_name(confusion.precision()),
        "recall": by_name(confusion.recall()),
        "confusion": confusion.matrix.tolist(),
    }
