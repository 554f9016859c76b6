"""A trained network with its CLIP as a folder for model hubs (network/hub.py)."""

from __future__ import annotations

from vpl.network.hub import write

__all__ = ["write"]
