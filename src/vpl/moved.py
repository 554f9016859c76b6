"""Modules under the names that they had before the rooms: `import vpl.datasets` goes on to work, with a warning.

Installed by `vpl` itself; the names go with version 0.3.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import warnings
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from types import ModuleType

HOMES = {
    "storage": "edges.storage",
    "images": "edges.images",
    "datasets": "edges.datasets",
    "prototypes": "method.prototypes",
    "seeds": "method.seeds",
    "refine": "method.refine",
    "crf": "method.crf",
    "metrics": "method.metrics",
    "predict": "network.predict",
    "train": "network.train",
}
"""Module of version 0.1 -> its room and name now; those that a user's script may name."""


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `vpl.NAME` of `HOMES` as the module that it has become: one module under two names."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of `HOMES`; None for every other name."""
        package, _, name = fullname.rpartition(".")
        if package != "vpl" or name not in HOMES:
            return None
        return importlib.util.spec_from_loader(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module itself, imported under its name of today."""
        home = f"vpl.{HOMES[spec.name.rpartition('.')[2]]}"
        warnings.warn(f"{spec.name} is now {home}; the old name goes with vpl 0.3.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(home)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the module has run. Its own spec is put back, which the import has just replaced."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


def install() -> None:
    """Let the import system ask for the names of `HOMES` after all others."""
    sys.meta_path.append(_Moved())
