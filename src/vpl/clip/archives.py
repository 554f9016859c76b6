"""Files of tensors -> tensors by key, nested ones by dotted keys. Nothing is ever unpickled freely.

safetensors are plain data, `.bin` and plain `.pt` are read with `weights_only`, and of a TorchScript archive (OpenAI's
`ViT-B-16.pt`) only the tensors are read; the program inside it never runs.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpl.errors import ModelError

MOST_TEXT_BYTES = 2**28
"""Larger JSON files beside weights are refused unread."""
MOST_OTHER_BYTES = 2**26
"""What an archive or its tensors may claim above what the file holds; more is a trap for memory."""
MOST_NESTED = 4
"""How deep a checkpoint may bury its state dict."""


@dataclass(frozen=True)
class Stored:
    """The tensors of one file by key, and the names of the classes of a TorchScript program; None: no program."""

    tensors: dict[str, Tensor]
    program: frozenset[str] | None = None


def read_tensors(path: Path, name: str) -> Stored:
    """What one file holds; `name` is what messages call it.

    Raises:
        ModelError: the file is damaged, claims more than it holds, or holds pickled objects other than tensors.
    """
    if path.suffix == ".safetensors":
        return Stored(_safetensors(path, name))
    return _torchscript(path, name) if _is_torchscript(path) else Stored(_plain_pickle(path, name))


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def broken(name: str, error: Exception) -> ModelError:
    return ModelError(f"{name} can't be read: it is truncated or damaged ({reason(error)}). Download it again.")


def check_text(path: Path, name: str) -> None:
    """A text beside the weights is a regular file of a size that can be read whole."""
    if not path.is_file() or path.stat().st_size > MOST_TEXT_BYTES:
        raise ModelError(
            f"{name}: {path.name} is no regular file of at most {MOST_TEXT_BYTES} bytes; fetch the model anew."
        )


def _safetensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, and what torch says of a type that it does not know
        raise broken(name, error) from error


def _plain_pickle(path: Path, name: str) -> dict[str, Tensor]:
    """A state dict that torch's restricted unpickler accepts; any other pickled object is refused."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise ModelError(
                f"{name} holds pickled objects other than tensors, which could run a program; it is refused. "
                "Give a state dict or, better, safetensors."
            ) from error
        raise ModelError(
            f"{name} can't be read as plain tensors: it is truncated or damaged, or holds pickled objects other than "
            "tensors, which are refused. Download it again, or give safetensors."
        ) from error
    except Exception as error:  # a damaged archive raises a dozen kinds
        raise broken(name, error) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"{name} holds a {type(state).__name__}, expected a state dict of CLIP's tensors.")
    return _own_tensors(_leaves(state), path, name)


def _leaves(tree: Mapping, before: str = "", depth: int = 1) -> Iterator[tuple[object, object]]:
    """What nested mappings hold, by dotted keys."""
    for key, one in tree.items():
        if isinstance(one, Mapping) and depth < MOST_NESTED:
            yield from _leaves(one, f"{before}{key}.", depth + 1)
        elif isinstance(key, str):
            yield before + key, one


def _own_tensors(items: Iterable[tuple[object, object]], path: Path, name: str) -> dict[str, Tensor]:
    """The dense tensors among `items`, which together may not claim more than twice what the file holds.

    Views let a small file claim tensors of any size: copies of one row, the same storage a thousand times.
    """
    tensors, claimed, most = {}, 0, 2 * path.stat().st_size + MOST_OTHER_BYTES
    for key, tensor in items:
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            continue
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ModelError(f"{name}: {key[:80]} is no plain tensor in memory. Give a plain state dict.")
        claimed += tensor.numel() * tensor.element_size()
        if claimed > most:
            raise ModelError(
                f"{name} claims tensors of more bytes than the file has; it is refused. Download it again."
            )
        tensors[key] = tensor
    return tensors


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """torch stores its records as they are: one that claims to unpack to more than the file is a trap for memory."""
    claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > path.stat().st_size + MOST_OTHER_BYTES:
        raise ValueError(f"its records claim {claimed} bytes, the file has {path.stat().st_size}")


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in entry or entry.endswith("/constants.pkl") for entry in archive.namelist())
    except Exception:  # no archive, or a damaged one: the reader of plain files says what is wrong
        return False


class _Script:
    """Stands for any object of a TorchScript archive: it only keeps the attributes."""

    def __setstate__(self, state):
        self.__dict__.update(state if isinstance(state, dict) else {})


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _TensorsOnly(pickle._Unpickler):
    """Reads a TorchScript archive's data.pkl: tensors, containers and empty stand-ins; nothing else can be made.

    It is pickle's reader in Python, because the one in C takes memory for whatever length or place a file names.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(archive.open(f"{root}/data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}
        self.classes: set[str] = set()

    def find_class(self, module: str, name: str) -> object:
        if module.startswith("__torch__"):
            self.classes.add(f"{module}.{name}")
            return type("Script", (_Script,), {})
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor_view
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle":
            return lambda values, *_: values
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if not count:
            return torch.empty(0, dtype=dtype)
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=torch.uint8)
        return self._storages[key].view(dtype)[:count]


def _tensor_view(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _torchscript(path: Path, name: str) -> Stored:
    """The parameters of a TorchScript archive by their dotted names. Its program is not run."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
            root = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl")).rpartition("/")[0]
            reader = _TensorsOnly(archive, root)
            tensors = _own_tensors(_named_tensors(reader.load(), "", set()), path, name)
            return Stored(tensors, frozenset(reader.classes))
    except ModelError:
        raise
    except Exception as error:  # damaged archives and pickles raise a dozen kinds
        raise broken(name, error) from error


def _named_tensors(module: object, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their dotted names; a module that is met again, which no CLIP has, is left out."""
    seen.add(id(module))
    for key, child in vars(module).items():
        if isinstance(child, Tensor):
            yield f"{prefix}{key}", child
        elif isinstance(child, _Script) and id(child) not in seen:
            yield from _named_tensors(child, f"{prefix}{key}.", seen)
