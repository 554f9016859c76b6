"""config.py as users run it.

The suite checks the types in signatures of all of vpl, and so would stop a value of a wrong type before config.py can
tell what is wrong with it. The tests of those words use this unchecked copy.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path

import vpl


@cache
def plain_config():
    """The module vpl.config under another name, which the type checks leave alone."""
    name = "plain_config"
    spec = importlib.util.spec_from_file_location(name, Path(vpl.__file__).parent / "config.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
