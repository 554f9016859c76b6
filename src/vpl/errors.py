"""The errors that vpl raises for what a user can mend.

Each message says what came, what was expected and what to do now. The command line catches `VplError` alone;
anything else is our own mistake and keeps its traceback.
"""


class VplError(Exception):
    """Base of every error that is meant for the user."""


class ConfigError(VplError):
    """A configuration value, key or file that can't be used."""


class DataError(VplError):
    """An image, tag file, mask or class file that can't be used."""


class ModelError(VplError):
    """CLIP weights, a tokenizer or a trained network that can't be used."""


class RunError(VplError):
    """A run folder that can't be started, continued or read."""
