"""cls_labels_onehot.npy, as the field's repositories bring it: a pickled dict from image names to vectors of 0 and 1.

A pickle is a program. This one is read with words of its own: dicts, texts, numbers and arrays of numbers are built by
the stand-ins below; every other name in it is refused before it is looked up, so nothing of the file is run.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path

import numpy as np

from vpl.errors import DataError

MOST_BYTES = 2**29
"""Larger files are refused unread."""


class _Kind:
    """Stands for numpy.dtype: one number of at most 8 bytes, or objects."""

    def __init__(self, code: object, *_: object):
        self.dtype: np.dtype | None = None
        if code not in ("O8", "O"):
            if not isinstance(code, str) or code[:1] not in "biuf" or len(code) > 3:
                raise pickle.UnpicklingError(f"the number format {code!r}")
            self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if self.dtype is not None and state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray, made by `_reconstruct` and filled by its state."""

    values: np.ndarray | None = None
    items: list | None = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, _, data = state
        if kind.dtype is None:
            self.items = data
        else:
            vector = np.frombuffer(data, kind.dtype)
            if not isinstance(shape, tuple) or math.prod(shape) != len(vector):
                raise pickle.UnpicklingError(f"an array of shape {shape}")
            self.values = vector.reshape(shape)


def _array(*_: object) -> _Array:
    return _Array()


def _scalar(kind: _Kind, data: bytes) -> int | float:
    return np.frombuffer(data, kind.dtype)[0].item()


def _bytes(text: str, coding: str) -> bytes:
    if coding != "latin1":
        raise pickle.UnpicklingError(f"the coding {coding!r}")
    return text.encode("latin1")


_WORDS = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


class _Reader(pickle.Unpickler):
    """Builds with the stand-ins alone."""

    def find_class(self, module: str, name: str) -> object:
        """A stand-in.

        Raises:
            pickle.UnpicklingError: the pickle names anything else.
        """
        try:
            return _WORDS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def read(path: Path) -> dict[str, np.ndarray]:
    """Image names -> (C,) vectors of numbers. Names that are whole numbers come as their digits.

    Raises:
        DataError: the file can't be read, is no such dict, or names anything that is not part of one.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES} bytes; expected one vector an image.")
        file = io.BytesIO(path.read_bytes())
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        if shape != () or dtype != np.dtype(object):
            raise DataError(f"{path} is an array of shape {shape} without names; expected a dict of names to vectors.")
        found = _Reader(file, encoding="latin1").load()
        if not isinstance(found, _Array) or not isinstance(found.items, list) or len(found.items) != 1:
            raise pickle.UnpicklingError("it holds no dict")
        tree = found.items[0]
        if not isinstance(tree, dict) or not all(
            isinstance(name, (str, int)) and isinstance(one, _Array) and one.values is not None
            for name, one in tree.items()
        ):
            raise pickle.UnpicklingError("it holds no dict of names to vectors")
        return {str(name): one.values for name, one in tree.items()}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror}); check the file.") from error
    except Exception as error:  # a damaged pickle answers with any kind of error
        raise DataError(
            f"{path} can't be used ({error or type(error).__name__}); expected a dict of image names to vectors of 0 "
            "and 1, saved by numpy, and nothing else."
        ) from error
