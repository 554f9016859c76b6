"""Where the files of a CLIP lie on this machine: they tell, without being read, whether it is still the same."""

from __future__ import annotations

from pathlib import Path

POCKET = "pocket"
BESIDE = (".json", ".txt", ".model")
"""Suffixes of what may lie beside a file of weights and be read with it."""


def place_of(name: str) -> Path:
    """The file or folder that a name stands for; absent where it is a model of the hub.

    Raises:
        OSError, RuntimeError, ValueError: it can be no path.
    """
    return Path(__file__).parent.parent / POCKET if name == POCKET else Path(name).expanduser()


def files_of(name: str) -> tuple[Path, ...]:
    """Every file that a CLIP of this name may be read from; none of a hub's model: the hub alone can tell."""
    try:
        place = place_of(name)
        if place.is_dir():
            return tuple(sorted(one for one in place.iterdir() if one.is_file()))
        if place.is_file():
            texts = (one for one in place.parent.iterdir() if one.suffix in BESIDE and one.is_file())
            return (place, *sorted(one for one in texts if one != place))
    except (OSError, RuntimeError, ValueError):  # told where it is read
        pass
    return ()
