"""A trained network with its CLIP as a folder for model hubs (network/hub.py), and that folder to a hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from vpl.errors import ModelError
from vpl.network import hub
from vpl.network.hub import CONFIG_FILE, PIXELS_FILE, README_FILE, WEIGHTS_FILE, write

__all__ = ["push_to_hub", "write"]

FILES = (README_FILE, CONFIG_FILE, PIXELS_FILE, WEIGHTS_FILE)
"""What is sent; nothing else is."""


def push_to_hub(
    run: str | Path, name: str, *, private: bool = True, clip: str | Path | None = None, api: Any = None
) -> str:
    """Send a trained network with its CLIP and its model card to the Hugging Face hub; returns its address there.

    Four files are sent: README.md, config.json, preprocessor_config.json, model.safetensors. No photograph, no mask and
    no path of this machine is in them. The card names no licence: choose one there before you make it public.

    Args:
        run: a run folder, or a folder that `vpl export --to hf` made.
        name: USER/NAME on the hub; made where it is not there.
        private: whether a new one is private.
        clip: where the CLIP of the network lies now, if elsewhere.
        api: huggingface_hub's HfApi; None: one that reads the token as `hf auth login` left it.

    Raises:
        RunError: there is no run. ModelError: there is no network in it, or the hub does not take it.
    """
    if hub.is_folder(Path(run)):
        return _sent(Path(run), name, private, api)
    from vpl.exports.export import export

    with tempfile.TemporaryDirectory(prefix="vpl-") as above:
        return _sent(export(run, "hf", Path(above) / "hf", clip=clip).folder, name, private, api)


def _sent(folder: Path, name: str, private: bool, api: Any) -> str:
    if lacking := [file for file in FILES if not (folder / file).is_file()]:
        raise ModelError(f"{folder} lacks {', '.join(lacking)}; export the network again.")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    try:
        place = api.create_repo(repo_id=name, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message="A segmentation network trained with vpl",
        )
    except Exception as error:  # of the client, of its transport, OSError, ValueError
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the hub does not take {name} ({reason}); check the name, the token and the connection."
        ) from error
    return str(place)
