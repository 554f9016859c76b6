"""Files of CLIP weights -> tensors under clip.py's names, with the tokenizer that belongs to them. METHOD.md 0.

Formats: transformers' folders and hub names; OpenAI's keys in safetensors, a plain `.pt` or a TorchScript archive.

No file is ever unpickled freely: safetensors are plain data, `.bin` and plain `.pt` are read with `weights_only`, and
of a TorchScript archive (OpenAI's `ViT-B-16.pt`) only the tensors are read; the program inside it never runs.
transformers itself is imported for one case alone, a tokenizer without tokenizer.json, because it is slow to import.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vpl.errors import ModelError

CONTEXT_LENGTH = 77
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MOST_TEXT_BYTES = 2**28
"""Larger JSON files beside weights are refused unread."""
MOST_OTHER_BYTES = 2**26
"""What an archive or its tensors may claim above what the file holds; more is a trap for memory."""

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (n, longest) int64: start token, words, end token, zeros."""


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
        tensors: by clip.py's names, in the file's number format.
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
        raise ModelError(f"{name[:120]!r} is no path that can be read ({_reason(error)}); check it.") from error
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
        _folder_tokenizer(folder, name, _context(weights)),
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
    _check_text(path, name)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{name}: {path.name} can't be read ({_reason(error)}); fetch it anew.") from error
    if not isinstance(tree, dict):
        raise ModelError(f"{name}: {path.name} holds no JSON object; fetch it anew.")
    return tree


def _check_text(path: Path, name: str) -> None:
    """A text beside the weights is a regular file of a size that can be read whole."""
    if not path.is_file() or path.stat().st_size > MOST_TEXT_BYTES:
        raise ModelError(
            f"{name}: {path.name} is no regular file of at most {MOST_TEXT_BYTES} bytes; fetch the model anew."
        )


def _folder_weights(folder: Path, name: str) -> dict[str, Tensor]:
    single, index, pickled = (
        folder / file for file in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    )
    if single.is_file():
        return _safetensors(single, name)
    if index.is_file():
        parts = _read_json(index, name).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(file, str) for file in parts.values()):
            raise ModelError(f"{name}: {index.name} has no weight_map of file names; fetch it anew.")
        files = sorted({Path(file).name for file in parts.values()})
        return {key: tensor for file in files for key, tensor in _safetensors(folder / file, name).items()}
    if pickled.is_file():
        return _plain_pickle(pickled, name)
    raise ModelError(f"{name} holds neither model.safetensors nor pytorch_model.bin; give the complete folder.")


def _read_file(path: Path, name: str) -> Found:
    """OpenAI's keys: safetensors, a TorchScript archive, or a plain state dict."""
    if path.suffix == ".safetensors":
        state = _safetensors(path, name)
    elif _is_torchscript(path):
        state = _torchscript_tensors(path, name)
    else:
        state = _plain_pickle(path, name)
    if any(key.startswith("vision_model.") for key in state):
        raise ModelError(f"{name} has transformers' keys; give the folder that holds it together with its config.json.")
    weights = canonical(state, name)
    return Found(weights, Architecture(), _openai_tokenizer(_context(weights)))


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _broken(name: str, error: Exception) -> ModelError:
    return ModelError(f"{name} can't be read: it is truncated or damaged ({_reason(error)}). Download it again.")


def _safetensors(path: Path, name: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, and what torch says of a type that it does not know
        raise _broken(name, error) from error


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
        raise _broken(name, error) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping):
        raise ModelError(f"{name} holds a {type(state).__name__}, expected a state dict of CLIP's tensors.")
    return _own_tensors(state.items(), path, name)


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

    def find_class(self, module: str, name: str):
        if module.startswith("__torch__"):
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

    def persistent_load(self, pid):
        _, dtype, key, _, count = pid
        if not count:
            return torch.empty(0, dtype=dtype)
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=torch.uint8)
        return self._storages[key].view(dtype)[:count]


def _tensor_view(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _torchscript_tensors(path: Path, name: str) -> dict[str, Tensor]:
    """The parameters of a TorchScript archive by their dotted names. Its program is not run."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
            root = next(entry for entry in archive.namelist() if entry.endswith("/data.pkl")).rpartition("/")[0]
            return _own_tensors(_named_tensors(_TensorsOnly(archive, root).load(), "", set()), path, name)
    except ModelError:
        raise
    except Exception as error:  # damaged archives and pickles raise a dozen kinds
        raise _broken(name, error) from error


def _named_tensors(module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their dotted names; a module that is met again, which no CLIP has, is left out."""
    seen.add(id(module))
    for key, child in vars(module).items():
        if isinstance(child, Tensor):
            yield f"{prefix}{key}", child
        elif isinstance(child, _Script) and id(child) not in seen:
            yield from _named_tensors(child, f"{prefix}{key}.", seen)


# two spellings of the same weights


_OPENAI_BLOCK = {
    "ln_1": "ln1", "attn.in_proj_": "qkv.", "attn.out_proj": "out", "ln_2": "ln2", "mlp.c_fc": "up",
    "mlp.c_proj": "down",
}  # fmt: skip
_OPENAI = {
    "visual.conv1.weight": "image.patch",
    "visual.class_embedding": "image.start",
    "visual.positional_embedding": "image.positions",
    "visual.ln_pre": "image.ln_pre",
    "visual.ln_post": "image.ln_post",
    "visual.proj": "image.projection",
    "visual.transformer.resblocks": "image.blocks",
    "token_embedding.weight": "text.words",
    "positional_embedding": "text.positions",
    "ln_final": "text.ln_final",
    "text_projection": "text.projection",
    "transformer.resblocks": "text.blocks",
    "logit_scale": "log_scale",
}
_HF_BLOCK = {
    "layer_norm1": "ln1", "self_attn.out_proj": "out", "layer_norm2": "ln2", "mlp.fc1": "up", "mlp.fc2": "down",
}  # fmt: skip
_HF = {
    "vision_model.embeddings.patch_embedding.weight": "image.patch",
    "vision_model.embeddings.class_embedding": "image.start",
    "vision_model.embeddings.position_embedding.weight": "image.positions",
    "vision_model.pre_layrnorm": "image.ln_pre",
    "vision_model.post_layernorm": "image.ln_post",
    "visual_projection.weight": "image.projection",
    "vision_model.encoder.layers": "image.blocks",
    "text_model.embeddings.token_embedding.weight": "text.words",
    "text_model.embeddings.position_embedding.weight": "text.positions",
    "text_model.final_layer_norm": "text.ln_final",
    "text_projection.weight": "text.projection",
    "text_model.encoder.layers": "text.blocks",
    "logit_scale": "log_scale",
}


def canonical(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of either spelling under clip.py's names.

    Raises:
        ModelError: they are no CLIP ViT's.
    """
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in state):
        raise ModelError(
            f"{name} is a CLIP with a ResNet image encoder; expected a vision transformer. Use ViT-B-16 or another ViT."
        )
    try:
        if "vision_model.embeddings.class_embedding" in state:
            return _from_transformers(state)
        if "visual.class_embedding" in state:
            return _renamed(state, _OPENAI, _OPENAI_BLOCK)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name} is no complete CLIP ViT: its tensors don't fit together ({_reason(error)}). Give the original "
            "weights."
        ) from error
    raise ModelError(
        f"{name} holds no CLIP ViT: neither OpenAI's nor transformers' keys are there "
        f"(first key: {next(iter(state), 'none')}). Give CLIP weights with both towers."
    )


def _renamed(state: Mapping[str, Tensor], names: dict[str, str], inside: dict[str, str]) -> dict[str, Tensor]:
    """Keys translated by their longest known beginning; a block's keys by `inside` after its number."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        start = next((known for known in names if key == known or key.startswith(f"{known}.")), None)
        if start is None:
            continue
        rest = key[len(start) :]
        if names[start].endswith(".blocks"):
            _, number, rest = [*rest.split(".", 2), "", ""][:3]
            part = next((known for known in inside if rest.startswith(known)), None)
            if part is None:
                continue
            rest = f".{number}.{inside[part]}{rest[len(part) :]}"
        result[names[start] + rest] = tensor
    return result


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = _renamed(state, _HF, _HF_BLOCK)
    for key in ("image.projection", "text.projection"):
        if key in result:
            result[key] = result[key].transpose(0, -1)
    for key in state:
        if ".self_attn.q_proj." in key:
            tower, _, tail = key.partition(".encoder.layers.")
            number, _, leaf = tail.replace("self_attn.q_proj.", "").partition(".")
            parts = [state.get(key.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            if all(part is not None for part in parts):
                side = "image" if tower == "vision_model" else "text"
                result[f"{side}.blocks.{number}.qkv.{leaf}"] = torch.cat(parts)
    return result


# tokenizers


def _folder_tokenizer(folder: Path, name: str, context: int) -> Tokenize | None:
    """Token ids from tokenizer.json or, where there is none, from vocab.json and merges.txt; read on first use."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        _check_text(folder / "tokenizer.json", name)
        try:
            reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise _broken(f"{name}: tokenizer.json", error) from error
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from transformers import CLIPTokenizerFast
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            reader = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True).backend_tokenizer
        except Exception as error:  # the tokenizers library raises bare Exception
            raise _broken(f"{name}: vocab.json or merges.txt", error) from error
        finally:
            logging.set_verbosity(before)
    else:
        return None

    def tokenize(texts: Sequence[str]) -> Tensor:
        try:
            reader.enable_truncation(context)
            reader.no_padding()
            rows = [encoding.ids for encoding in reader.encode_batch(list(texts))]
        except Exception as error:  # as above
            raise _broken(f"{name}: its tokenizer", error) from error
        if not all(rows):
            raise ModelError(f"the tokenizer of {name} makes no token of a text; give the weights' own tokenizer.")
        return _padded(rows)

    return tokenize


def _openai_tokenizer(context: int) -> Tokenize:
    """Token ids with CLIP's own vocabulary, from the extra package that carries it; imported on first use."""

    def tokenize(texts: Sequence[str]) -> Tensor:
        try:
            from instant_clip_tokenizer import Tokenizer
        except ImportError as error:
            raise ModelError(
                "OpenAI's weights bring no tokenizer, and the package that carries it is not installed: "
                "pip install 'vpl-seg[openai]'."
            ) from error
        reader = Tokenizer()
        start, end = reader.start_of_text(), reader.end_of_text()
        return _padded([[start, *reader.encode(text)[: context - 2], end] for text in texts])

    return tokenize


def _padded(rows: list[list[int]]) -> Tensor:
    """Rows of unequal length as (n, longest) int64, zeros after the end."""
    ids = torch.zeros((len(rows), max(map(len, rows), default=0)), dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return ids
