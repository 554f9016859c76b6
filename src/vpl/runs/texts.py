"""What a CLIP says of a class set's texts, kept in the run folder, so that no command encodes them again.

    state/texts.safetensors    the embeddings of each list of texts, and the CLIP and kind of device that made them

A file that is damaged, or another CLIP's, counts as absent.
"""

from __future__ import annotations

from pathlib import Path

from vpl.clip.model import FrozenClip
from vpl.errors import RunError
from vpl.runs.files import read_facts, read_tensors, write_tensors

FILE = "state/texts.safetensors"


def recall(folder: Path, clip: FrozenClip) -> None:
    """Tell a CLIP which texts it has encoded for a run before."""
    path = folder / FILE
    if not path.is_file():
        return
    try:
        facts, stored = read_facts(path), read_tensors(path)
    except RunError:
        return
    lists = facts.get("texts")
    if facts.get("by") != _by(clip) or not isinstance(lists, list) or len(lists) != len(stored):
        return
    for number, texts in enumerate(lists):
        rows = stored.get(str(number))
        if rows is not None and rows.shape == (len(texts), clip.dim) and bool(rows.isfinite().all()):
            clip.known_texts.setdefault(tuple(texts), rows.to(clip.device))


def remember(folder: Path, clip: FrozenClip) -> None:
    """Write down what a CLIP has encoded, where it is not written down yet.

    Raises:
        OSError: it can't be written.
    """
    path, known = folder / FILE, clip.known_texts
    facts = {"by": _by(clip), "texts": [list(texts) for texts in known]}
    try:
        there = read_facts(path) if path.is_file() else {}
    except RunError:
        there = {}
    if known and there != facts:
        write_tensors(path, {str(number): rows.cpu() for number, rows in enumerate(known.values())}, facts)


def _by(clip: FrozenClip) -> str:
    return f"{clip.weights_hash} {clip.device.type}"
