"""Files of CLIP weights -> tensors under model.py's names, with the tokenizer that belongs to them. METHOD.md 0.

Formats: transformers' folders and hub names; OpenAI's keys in safetensors, a plain `.pt` or a TorchScript archive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vpl.clip.archives import check_text, read_tensors, reason
from vpl.clip.spelling import canonical
from vpl.clip.tokens import Tokenize, folder_tokenizer, openai_tokenizer
from vpl.errors import ModelError

CONTEXT_LENGTH = 77
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Architecture:
    """What the weights' shapes do not tell.

    Attributes:
        image_heads, text_heads: attention heads of each tower; None: one per 64 columns, as OpenAI's weights have it.
        image_activation, text_activation: "quick_gelu" or "gelu".
        image_eps, text_eps: LayerNorm's epsilon.
        end_token: id that closes a text; None: the largest id of a row closes it.
    """

    image_heads: int | None = None
    text_heads: int | None = None
    image_activation: str = "quick_gelu"
    text_activation: str = "quick_gelu"
    image_eps: float = 1e-5
    text_eps: float = 1e-5
    end_token: int | None = None


@dataclass(frozen=True)
class Found:
    """What a file or folder holds.

    Attributes:
        tensors: by model.py's names, in the file's number format.
        architecture: what their shapes do not tell.
        tokenizer: None where the folder has none.
        mean, std: per channel (R, G, B), for images in [0, 1].
    """

    tensors: dict[str, Tensor]
    architecture: Architecture
    tokenizer: Tokenize | None
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD


def read(name: str) -> Found:
    """What `name` stands for: pocket, a folder, a file, or a model of the hub.

    Raises:
        ModelError: nothing is there, or it can't be read, or it is no CLIP with a vision transformer.
    """
    if name == "pocket":
        folder = Path(__file__).parent.parent / "pocket"
        if not (folder / "config.json").is_file():
            raise ModelError("this installation lacks the embedded model pocket; install vpl-seg anew.")
        return _read_folder(folder, name)
    path = Path(name)
    try:
        path = path.expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{name[:120]!r} is no path that can be read ({reason(error)}); check it.") from error
    if is_folder:
        return _read_folder(path, name)
    if is_file:
        return _read_file(path, name)
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(
            f"there is no file or folder {name}. Give pocket, a hub name such as openai/clip-vit-base-patch16, "
            "or the path of CLIP weights."
        )
    return _read_folder(_from_hub(name), name)


def _from_hub(name: str) -> Path:
    """The local folder of a model of the Hugging Face hub, with the needed files alone."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    words = ["config.json", "preprocessor_config.json", "tokenizer.json", "vocab.json", "merges.txt"]
    disable_progress_bars()
    try:
        wanted = ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"]
        folder = Path(snapshot_download(name, allow_patterns=words + wanted))
        if not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*words, "pytorch_model.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"{name} is no local path and can't be fetched from the hub ({type(error).__name__}). Check the name and "
            "the connection, or download the model elsewhere and give its folder."
        ) from error
    finally:
        enable_progress_bars()
    return folder


def _read_folder(folder: Path, name: str) -> Found:
    """transformers' format: config.json, weights, tokenizer, and optionally preprocessor_config.json."""
    config = _read_json(folder / "config.json", name)
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise ModelError(f"{name} is a {kind!r} model; expected a CLIP with a vision transformer (model_type clip).")
    try:
        image, text = ({**(config.get(f"{part}_config") or {}), **(config.get(f"{part}_config_dict") or {})}
                       for part in ("vision", "text"))  # fmt: skip
        end_token = text.get("eos_token_id", 49407)
        end_token = end_token[0] if isinstance(end_token, list) else end_token
        architecture = Architecture(
            image_heads=int(image.get("num_attention_heads", 12)),
            text_heads=int(text.get("num_attention_heads", 8)),
            image_activation=str(image.get("hidden_act", "quick_gelu")),
            text_activation=str(text.get("hidden_act", "quick_gelu")),
            image_eps=float(image.get("layer_norm_eps", 1e-5)),
            text_eps=float(text.get("layer_norm_eps", 1e-5)),
            # OpenAI's models were first published with a wrong 2 here; transformers then takes the largest id, as we do
            end_token=None if end_token in (2, None) else int(end_token),
        )
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise ModelError(f"{name}: config.json holds a value of the wrong kind ({error}); fetch it anew.") from error
    weights = canonical(_folder_weights(folder, name), name)
    looks = folder / "preprocessor_config.json"
    look = _read_json(looks, name) if looks.is_file() else {}
    return Found(
        weights,
        architecture,
        folder_tokenizer(folder, name, _context(weights)),
        _channels(look.get("image_mean", CLIP_MEAN), "image_mean", name),
        _channels(look.get("image_std", CLIP_STD), "image_std", name),
    )


def _context(weights: Mapping[str, Tensor]) -> int:
    """Most tokens of a text: the rows of its positions."""
    return next(iter(weights["text.positions"].shape), 0) if "text.positions" in weights else CONTEXT_LENGTH


def _channels(given: object, key: str, name: str) -> tuple[float, ...]:
    """Three finite numbers, above 0 where images are divided by them."""
    numbers = given if isinstance(given, (list, tuple)) else ()
    fit = [type(one) in (int, float) and abs(one) < 1e6 and (one > 0 or key == "image_mean") for one in numbers]
    if len(fit) != 3 or not all(fit):
        raise ModelError(
            f"{name}: {key} of preprocessor_config.json is {str(given)[:60]}; expected three numbers, such as "
            f"{list(CLIP_MEAN if key == 'image_mean' else CLIP_STD)}."
        )
    return tuple(map(float, numbers))


def _read_json(path: Path, name: str) -> dict:
    if not path.exists():
        raise ModelError(f"{name} has no {path.name}; give a folder in transformers' format, complete.")
    check_text(path, name)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} can't be read ({reason(error)}); fetch it anew.") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{name}: {path.name} holds no JSON object; fetch it anew.")
    return tree


def _folder_weights(folder: Path, name: str) -> dict[str, Tensor]:
    single, index, pickled = (
        folder / file for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.is_file():
        return read_tensors(single, name)
    if index.is_file():
        parts = _read_json(index, name).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(file, str) for file in parts.values()):
            raise ModelError(f"{name}: {index.name} has no weight_map of file names; fetch it anew.")
        files = sorted({Path(file).name for file in parts.values()})
        return {key: tensor for file in files for key, tensor in read_tensors(folder / file, name).items()}
    if pickled.is_file():
        return read_tensors(pickled, name)
    raise ModelError(f"{name} holds neither model.safetensors nor pytorch_model.bin; give the complete folder.")


def _read_file(path: Path, name: str) -> Found:
    """OpenAI's keys: safetensors, a TorchScript archive, or a plain state dict."""
    state = read_tensors(path, name)
    if any(key.startswith("vision_model.") for key in state):
        raise ModelError(f"{name} has transformers' keys; give the folder that holds it together with its config.json.")
    weights = canonical(state, name)
    return Found(weights, Architecture(), openai_tokenizer(_context(weights)))
