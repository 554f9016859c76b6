"""What a name stands for: pocket, a folder, a file, a model of the hub -> tensors, facts, tokenizer. METHOD.md 0.

Formats: transformers' folders, open_clip's folders, and single files in OpenAI's keys.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vpl.clip.archives import read_tensors, reason
from vpl.clip.facts import (
    CLIP,
    CONFIG,
    LOOKS,
    OPEN_CLIP_CONFIG,
    SIGLIP,
    SIGLIP2,
    Architecture,
    Said,
    of_file,
    of_open_clip,
    of_siglip,
    of_timm_eva,
    of_timm_siglip,
    of_transformers,
    read_json,
    settled,
    sizes,
)
from vpl.clip.places import POCKET, place_of
from vpl.clip.spelling import canonical, flattened
from vpl.clip.tokens import OPENAI_WORDS, Tokenize, folder_tokenizer, openai_tokenizer, siglip_tokenizer
from vpl.errors import ModelError

HUB_SECONDS = 20
"""How long the hub may take to answer at all."""
TRANSFORMERS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""Files of weights, the first that is there is read."""
TEXTS = (
    CONFIG, OPEN_CLIP_CONFIG, *LOOKS, "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json",
    "special_tokens_map.json", "spiece.model",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a file or folder holds.

    Attributes:
        tensors: by model.py's names, in the file's number format.
        architecture: what their shapes do not tell.
        tokenizer: None where there is none.
        mean, std: per channel (R, G, B), for images in [0, 1].
    """

    tensors: dict[str, Tensor]
    architecture: Architecture
    tokenizer: Tokenize | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read(name: str, said: Said | None = None) -> Found:
    """What `name` stands for: pocket, a folder, a file, or a model of the hub.

    Raises:
        ModelError: nothing is there, it can't be read, it is no CLIP with a vision transformer, or a fact that its
            features depend on is neither beside it nor said.
    """
    said = said or Said()
    if name == POCKET:
        folder = place_of(name)
        if not (folder / CONFIG).is_file():
            raise ModelError("this installation lacks the embedded model pocket; install vpl-seg anew.")
        return _read_folder(folder, name, said)
    path = Path(name)
    try:
        path = place_of(name)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{name[:120]!r} is no path that can be read ({reason(error)}); check it.") from error
    if is_folder:
        return _read_folder(path, name, said)
    if is_file:
        return _read_file(path, name, said)
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"there is no file or folder {name}. Give pocket, a hub name such as openai/clip-vit-base-patch16, "
            "or the path of CLIP weights."
        )
    return _read_folder(from_hub(name), name, said)


def _chosen(files: Collection[str], config: Mapping) -> str | None:
    """The file of weights that is read: transformers', or open_clip's where its configuration alone is a CLIP's."""
    own, theirs = (next((file for file in known if file in files), None) for known in (TRANSFORMERS, OPEN_CLIP))
    return theirs if theirs and (own is None or config.get("model_type") not in (CLIP, SIGLIP, SIGLIP2)) else own


def from_hub(name: str) -> Path:
    """The local folder of a model of the Hugging Face hub with the needed files alone; where the hub does not answer,
    the folder of an earlier download."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file, etag_timeout=HUB_SECONDS))

    disable_progress_bars()
    try:
        try:
            info = HfApi().model_info(name, timeout=HUB_SECONDS)
        except Exception as error:  # of the client, of its transport, OSError, ValueError
            try:
                return Path(snapshot_download(name, local_files_only=True))
            except Exception:
                raise error from None
        files = {one.rfilename for one in info.siblings or ()}
        places = {file: fetch(file) for file in TEXTS if file in files}
        config = read_json(places[CONFIG], name) if CONFIG in places else {}
        chosen = _chosen(files, config)
        if chosen is None:
            raise ModelError(f"{name} holds no weights that are read here ({', '.join(TRANSFORMERS + OPEN_CLIP)}).")
        place = fetch(chosen)
        for file in _shards(place, name):
            fetch(file)
        return place.parent
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} is no local path and can't be fetched from the hub ({type(error).__name__}). Check the name and "
            "the connection, or download the model elsewhere and give its folder."
        ) from error
    finally:
        enable_progress_bars()


def hub_answers(name: str) -> bool:
    """Whether the hub tells of a model of this name, within `HUB_SECONDS`."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception:  # of the client, of its transport, OSError, ValueError
        return False
    return True


def _read_folder(folder: Path, name: str, said: Said) -> Found:
    """transformers' format (config.json, weights, tokenizer, processor) or open_clip's."""
    files = {path.name for path in folder.iterdir()}
    chosen = _chosen(files, read_json(folder / CONFIG, name) if CONFIG in files else {})
    if chosen in OPEN_CLIP:
        return _read_file(folder / chosen, name, said)
    config = read_json(folder / CONFIG, name)
    kind = config.get("model_type", "clip")
    if kind not in (CLIP, SIGLIP, SIGLIP2):
        raise ModelError(
            f"{name} is a {kind!r} model; expected a CLIP or SigLIP with a vision transformer (model_type clip, "
            "siglip or siglip2)."
        )
    if chosen is None:
        raise ModelError(f"{name} holds neither model.safetensors nor pytorch_model.bin; give the complete folder.")
    state: dict[str, Tensor] = {}
    for file in _shards(folder / chosen, name) or [chosen]:
        if not (folder / file).is_file():
            raise ModelError(f"{name} lacks {file}, one of the files of its weights; fetch it anew.")
        state |= read_tensors(folder / file, name).tensors
    weights = canonical(state, name)
    if kind != (CLIP if "image.pool.probe" not in weights else SIGLIP2 if flattened(state) else SIGLIP):
        raise ModelError(f"{name}: {CONFIG} says {kind}, and its weights are another model's; fetch both anew.")
    facts = (of_transformers if kind == CLIP else of_siglip)(folder, config, weights, name)
    reader = folder_tokenizer if kind == CLIP else siglip_tokenizer
    tokenizer = reader(folder, name, sizes(weights)["context"], sizes(weights)["words"])
    architecture, mean, std = settled(facts, said, name)
    return Found(weights, architecture, tokenizer, mean, std)


def _shards(path: Path, name: str) -> list[str]:
    """The files that an index of weights names; none where the path is no index."""
    if path.suffix != ".json":
        return []
    parts = read_json(path, name).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(isinstance(file, str) for file in parts.values()):
        raise ModelError(f"{name}: {path.name} has no weight_map of file names; fetch it anew.")
    return sorted({Path(file).name for file in parts.values()})


def _read_file(path: Path, name: str, said: Said) -> Found:
    """OpenAI's keys, with open_clip's configuration beside the file or with none; or open_clip's of a SigLIP."""
    stored = read_tensors(path, name)
    if any(
        key.endswith(("vision_model.embeddings.class_embedding", "vision_model.head.probe")) for key in stored.tensors
    ):
        raise ModelError(f"{name} has transformers' keys; give the folder that holds it together with its config.json.")
    weights = canonical(stored.tensors, name)
    context, words = sizes(weights)["context"], sizes(weights)["words"]
    beside, tokenizer = path.with_name(OPEN_CLIP_CONFIG), None
    if "image.pool.probe" in weights:
        facts = of_timm_siglip(beside, weights, name)
        tokenizer = siglip_tokenizer(path.parent, name, context, words, bare=True)
    elif "image.blocks.0.gate.weight" in weights:
        facts = of_timm_eva(beside, weights, name)
        tokenizer = folder_tokenizer(path.parent, name, context, words)
    elif beside.is_file() and stored.program is None:
        facts = of_open_clip(beside, weights, name)
        tokenizer = folder_tokenizer(path.parent, name, context, words)
    else:
        facts = of_file(path, stored, weights, name, said)
    if tokenizer is None and facts["openai_words"] and words == OPENAI_WORDS:
        tokenizer = openai_tokenizer(context)
    architecture, mean, std = settled(facts, said, name)
    return Found(weights, architecture, tokenizer, mean, std)
