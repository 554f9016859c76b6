"""What the shapes of CLIP's weights don't tell: heads, activation, the end token, how images are normalised.

Each fact comes from what lies beside the weights (transformers' config.json and processor, open_clip_config.json, the
program of OpenAI's archive) or from the user, who goes first. One that is in neither is asked for. A single file in
OpenAI's keys is taken as OpenAI's own where it may be that, and then a warning says so: nothing is assumed in silence.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vpl.clip.archives import Stored, check_text, reason
from vpl.errors import ModelError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LEAST_STD = 1e-3
"""Less no image has in [0, 1]; 1 / 255 is that of a CLIP that looks at [0, 255]."""
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
"""The default of SigLIP's image processor in transformers."""
QUICK, GELU, GELU_TANH, SWIGLU = "quick_gelu", "gelu", "gelu_tanh", "swiglu"
CLIP, SIGLIP, SIGLIP2 = "clip", "siglip", "siglip2"
"""Kinds of model in transformers' format that are read, by config.json's model_type; the last is NaFlex."""
CONFIG, OPEN_CLIP_CONFIG = "config.json", "open_clip_config.json"
LOOKS = ("preprocessor_config.json", "processor_config.json")

OPENAI_HEAD_WIDTH = 64
OPENAI_WIDEST = 1024
OPENAI_VITS = ((768, 12, 32, 512), (768, 12, 16, 512), (1024, 24, 14, 768))
"""Width, blocks and patch of the image tower and width of the text tower of the ViTs that OpenAI published."""
OPENAI_PROGRAM = "__torch__.multimodal.model.multimodal_transformer."
"""How the classes in OpenAI's archives are called."""
OTHERS = re.compile(r"open_?clip|laion|datacomp|commonpool|metaclip|dfn|cc12m|yfcc", re.IGNORECASE)
"""Words in the names of files that others than OpenAI publish in OpenAI's keys."""

_PLAIN = {
    "vision_cfg": {
        "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "output_tokens",
        "attn_pooler_queries", "attn_pooler_heads", "norm_kwargs", "timm_model_pretrained", "timm_pool", "timm_proj",
        "timm_proj_bias", "timm_drop", "timm_drop_path",
    },
    "text_cfg": {
        "layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "output_tokens", "norm_kwargs",
        "pad_id", "eos_id", "hf_tokenizer_name", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
    },
}  # fmt: skip
"""Keys of open_clip's configurations that leave a plain CLIP ViT a plain one; any other that is set makes another."""
_TIMM = {
    "vit_base_patch16_siglip_": (12, GELU), "vit_base_patch32_siglip_": (12, GELU_TANH),
    "vit_large_patch16_siglip_256": (16, GELU), "vit_large_patch16_siglip_384": (16, GELU),
    "vit_large_patch16_siglip_512": (16, GELU_TANH), "vit_so400m_patch14_siglip_": (16, GELU),
    "vit_so400m_patch16_siglip_": (16, GELU_TANH), "vit_giantopt_patch16_siglip_": (16, GELU_TANH),
}  # fmt: skip
"""Heads and activation of timm's image towers of SigLIP, by the beginning of their names (timm 1.0.31)."""
_TIMM_EVA = {"eva02_base_patch16_clip_": 12, "eva02_large_patch14_clip_": 16}
"""Heads of timm's image towers of EVA-02-CLIP, by the beginning of their names (timm 1.0.31)."""
_EVA_GRID = 16
"""Side of the grid that their rotary frequencies were made for."""
_TIMM_EPS = 1e-6
"""LayerNorm's epsilon in all of them."""
_TIMM_SIGLIP: dict[str, dict[str, tuple]] = {
    "vision_cfg": {"timm_pool": ("map",), "timm_proj": ("none",)},
    "text_cfg": {
        "no_causal_mask": (True,), "proj_bias": (True,), "pool_type": ("last",),
        "tokenizer_kwargs": ({"clean": "canonicalize"},), "act_kwargs": ({"approximate": "tanh"},),
    },
}  # fmt: skip
"""What open_clip's configurations of SigLIP set, and no plain CLIP's does."""
_PLAIN_VALUES = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",)}

log = logging.getLogger("vpl")


@dataclass(frozen=True)
class Architecture:
    """What the weights' shapes do not tell of the two towers.

    Attributes:
        image_heads, text_heads: attention heads of each tower.
        image_activation, text_activation: "quick_gelu" or "gelu".
        image_eps, text_eps: LayerNorm's epsilon.
        end_token: id that closes a text; None: the largest id of a row closes it.
        pad_token: SigLIP's: a text is filled with it up to the context, every word sees every word, and the last place
            stands for the text. None: a text ends at its end token, and a word sees those before it.
        antialias: positions are brought to a smaller grid as an image is, each a mean of those it covers (NaFlex).
        image_turned: EVA-02's: side of the grid that its rotary frequencies were made for; None: nothing is turned.
    """

    image_heads: int
    text_heads: int
    image_activation: str
    text_activation: str
    image_eps: float = 1e-5
    text_eps: float = 1e-5
    end_token: int | None = None
    pad_token: int | None = None
    antialias: bool = False
    image_turned: int | None = None


@dataclass(frozen=True)
class Said:
    """What the user says of weights; empty: nothing.

    Attributes:
        heads: attention heads of the image tower and of the text tower.
        activation: "quick_gelu" or "gelu", of both towers.
        mean, std: per channel (R, G, B), for images in [0, 1].

    Raises:
        ModelError: a number of heads, means or deviations that no CLIP has.
    """

    heads: Sequence[int] = ()
    activation: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()

    def __post_init__(self):
        if self.heads and (len(self.heads) != 2 or min(self.heads) < 1):
            raise ModelError(f"clip.heads is {list(self.heads)}; expected two numbers, [IMAGE TOWER, TEXT TOWER].")
        for key in ("mean", "std"):
            if given := getattr(self, key):
                _channels(given, f"clip.{key}", of_std=key == "std")
        for key, kind in (("heads", int), ("mean", float), ("std", float)):
            object.__setattr__(self, key, tuple(map(kind, getattr(self, key))))

    def facts(self) -> dict:
        """What is said, by the names of Architecture and Found."""
        facts: dict = dict(zip(("image_heads", "text_heads"), self.heads, strict=False))
        facts |= {f"{side}_activation": self.activation for side in ("image", "text") if self.activation}
        return facts | {key: getattr(self, key) for key in ("mean", "std") if getattr(self, key)}


def sizes(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes tell: width, blocks and patch of the image tower, width, blocks, words and context of the text
    tower, D, and the image tower's positions; 0 where a tensor is missing. `weights` are under model.py's names."""

    def size(key: str, place: int) -> int:
        return weights[key].shape[place] if key in weights and weights[key].ndim > place else 0

    def blocks(side: str) -> int:
        return len({key.split(".")[2] for key in weights if key.startswith(f"{side}.blocks.")})

    return {
        "image width": size("image.ln_post.weight", 0), "image blocks": blocks("image"),
        "patch": size("image.patch", 2), "text width": size("text.projection", 0), "text blocks": blocks("text"),
        "words": size("text.words", 0), "context": size("text.positions", 0), "embedding": size("text.projection", 1),
        "positions": size("image.positions", 0),
    }  # fmt: skip


def openai_architecture(weights: Mapping[str, Tensor]) -> Architecture:
    """What OpenAI's own ViTs have: heads of 64 columns, quick GELU. `weights` are under model.py's names."""
    shapes = sizes(weights)
    image, text = (max(1, shapes[f"{side} width"] // OPENAI_HEAD_WIDTH) for side in ("image", "text"))
    return Architecture(image, text, QUICK, QUICK)


def of_transformers(folder: Path, config: Mapping, weights: Mapping[str, Tensor], name: str) -> dict:
    """Facts of a folder in transformers' format. What `config`, its config.json, leaves out has the format's default.

    Raises:
        ModelError: a file holds a value of the wrong kind, or describes other weights.
    """
    try:
        image, text = ({**(config.get(f"{part}_config") or {}), **(config.get(f"{part}_config_dict") or {})}
                       for part in ("vision", "text"))  # fmt: skip
        end_token = text.get("eos_token_id", 49407)
        end_token = end_token[0] if isinstance(end_token, list) else end_token
        facts = {
            "image_heads": int(image.get("num_attention_heads", 12)),
            "text_heads": int(text.get("num_attention_heads", 8)),
            "image_activation": str(image.get("hidden_act", QUICK)),
            "text_activation": str(text.get("hidden_act", QUICK)),
            "image_eps": float(image.get("layer_norm_eps", 1e-5)),
            "text_eps": float(text.get("layer_norm_eps", 1e-5)),
            # OpenAI's models were first published with a wrong 2 here; transformers then takes the largest id, as we do
            "end_token": None if end_token in (2, None) else int(end_token),
        }
        told = {
            "image width": image.get("hidden_size", 768), "image blocks": image.get("num_hidden_layers", 12),
            "patch": image.get("patch_size", 32), "text width": text.get("hidden_size", 512),
            "text blocks": text.get("num_hidden_layers", 12), "words": text.get("vocab_size", 49408),
            "context": text.get("max_position_embeddings", 77), "embedding": config.get("projection_dim", 512),
        }  # fmt: skip
    except (TypeError, ValueError, OverflowError, IndexError, AttributeError) as error:
        raise ModelError(f"{name}: {CONFIG} holds a value of the wrong kind ({error}); fetch it anew.") from error
    _check_sizes(told, weights, CONFIG, name)
    return facts | _look(folder, name)


def of_siglip(folder: Path, config: Mapping, weights: Mapping[str, Tensor], name: str) -> dict:
    """Facts of a SigLIP in transformers' format, NaFlex or not; what `config` leaves out has the format's default.

    Raises:
        ModelError: a file holds a value of the wrong kind, or describes other weights or a tower without its head.
    """
    try:
        image, text = (config.get(f"{part}_config") or {} for part in ("vision", "text"))
        naflex = config.get("model_type") == SIGLIP2
        if not image.get("vision_use_head", True):
            raise ModelError(f"{name} has an image tower without its pooling head; give the original weights.")
        acts = {
            side: str(one.get("hidden_act", "gelu_pytorch_tanh")) for side, one in (("image", image), ("text", text))
        }
        facts = {
            "image_heads": int(image.get("num_attention_heads", 12)),
            "text_heads": int(text.get("num_attention_heads", 12)),
            **{f"{side}_activation": GELU_TANH if act == "gelu_pytorch_tanh" else act for side, act in acts.items()},
            "image_eps": float(image.get("layer_norm_eps", 1e-6)),
            "text_eps": float(text.get("layer_norm_eps", 1e-6)),
            "pad_token": int(text.get("pad_token_id", 1)),
            "antialias": naflex,
        }
        patch = image.get("patch_size", 16)
        told = {
            "image width": image.get("hidden_size", 768), "image blocks": image.get("num_hidden_layers", 12),
            "patch": patch[0] if isinstance(patch, list) and len(set(patch)) == 1 else patch,
            "text width": text.get("hidden_size", 768),
            "text blocks": text.get("num_hidden_layers", 12), "words": text.get("vocab_size", 32000),
            "context": text.get("max_position_embeddings", 64),
            "positions": image.get("num_patches", 256) if naflex else None,
            "embedding": text.get("projection_size") or text.get("hidden_size", 768),
        }  # fmt: skip
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ModelError(f"{name}: {CONFIG} holds a value of the wrong kind ({error}); fetch it anew.") from error
    _check_sizes(told, weights, CONFIG, name)
    look = _look(folder, name)
    if not look:
        log.warning(
            "%s has neither %s nor %s: its images are normalised as SigLIP's processor has it (0.5, 0.5). If it was "
            "trained otherwise, say clip.mean and clip.std.", name, *LOOKS
        )  # fmt: skip
    return {"mean": SIGLIP_MEAN, "std": SIGLIP_STD} | facts | look


def _look(folder: Path, name: str) -> dict:
    """mean and std of the folder's processor; empty where it has none."""
    found = {}
    for file in LOOKS:
        if not (folder / file).is_file():
            continue
        tree = read_json(folder / file, name)
        tree = tree if file == LOOKS[0] else tree.get("image_processor") or {}
        if not isinstance(tree, dict) or not ("image_mean" in tree or "image_std" in tree):
            continue
        factor = tree.get("rescale_factor", 1 / 255)
        steps = [tree.get(step, True) for step in ("do_rescale", "do_normalize")]
        if not all(steps) or not isinstance(factor, (int, float)) or not 0.999 < factor * 255 < 1.001:
            raise ModelError(f"{name}: {file} does not bring images to [0, 1] and normalise them; give another CLIP.")
        found[file] = {
            key: _channels(tree.get(f"image_{key}", default), f"{name}: image_{key} of {file}", of_std=key == "std")
            for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
        }
    if len(found) == 2 and found[LOOKS[0]] != found[LOOKS[1]]:
        raise ModelError(f"{name}: {LOOKS[0]} and {LOOKS[1]} normalise images differently; remove the wrong one.")
    return next(iter(found.values()), {})


def of_open_clip(file: Path, weights: Mapping[str, Tensor], name: str, also: Collection[str] = ()) -> dict:
    """Facts of an open_clip_config.json. What it leaves out has open_clip's own default. `also` are keys that its image
    tower may have, which is then timm's: nothing is said of it.

    Raises:
        ModelError: it holds a value of the wrong kind, or describes other weights or no plain CLIP ViT.
    """
    tree = read_json(file, name)
    try:
        model = tree.get("model_cfg", tree)
        image, text = (model[part] for part in _PLAIN)
        for part, plain in _PLAIN.items():
            for key, one in model[part].items():
                if one and key not in plain and key not in also and one not in _PLAIN_VALUES.get(key, ()):
                    raise ModelError(
                        f"{name} is no plain CLIP ViT: {file.name} sets {part}.{key} to {str(one)[:60]}. Give another "
                        "CLIP."
                    )
        patch = image.get("patch_size", 16)
        activation = QUICK if model.get("quick_gelu", False) else GELU
        facts = {
            "image_heads": int(image.get("width", 768)) // int(image.get("head_width", 64)),
            "text_heads": int(text.get("heads", 8)),
            "image_activation": activation,
            "text_activation": activation,
            "image_eps": float((image.get("norm_kwargs") or {}).get("eps", 1e-5)),
            "text_eps": float((text.get("norm_kwargs") or {}).get("eps", 1e-5)),
            "openai_words": not text.get("hf_tokenizer_name"),
        }
        told = {
            "image width": image.get("width", 768), "image blocks": image.get("layers", 12),
            "patch": patch[0] if isinstance(patch, list) else patch, "text width": text.get("width", 512),
            "text blocks": text.get("layers", 12), "words": text.get("vocab_size", 49408),
            "context": text.get("context_length", 77), "embedding": model.get("embed_dim"),
        }  # fmt: skip
        if also:
            told = {key: one for key, one in told.items() if key not in ("image width", "image blocks", "patch")}
        look = tree.get("preprocess_cfg") or {}
        channels = {key: look.get(key, default) for key, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))}
    except (TypeError, ValueError, KeyError, OverflowError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(
            f"{name}: {file.name} lacks a value or holds one of the wrong kind ({reason(error)}); fetch it anew."
        ) from error
    _check_sizes(told, weights, file.name, name)
    return facts | {
        key: _channels(one, f"{name}: {key} of {file.name}", of_std=key == "std") for key, one in channels.items()
    }


def of_timm_siglip(file: Path, weights: Mapping[str, Tensor], name: str) -> dict:
    """Facts of a SigLIP whose image tower is timm's, by its open_clip_config.json. Heads and activation of that tower
    are its name's; what the file leaves out of the text tower has open_clip's own default.

    Raises:
        ModelError: it is not there, holds a value of the wrong kind, or describes other weights or another tower.
    """
    if not file.is_file():
        raise ModelError(
            f"{name} is a SigLIP of open_clip's, of which the weights don't say all; put its {file.name} beside it."
        )
    tree = read_json(file, name)
    try:
        model = tree.get("model_cfg", tree)
        image, text = model["vision_cfg"], model["text_cfg"]
        for part, known in _TIMM_SIGLIP.items():
            plain = _PLAIN[part] | {"timm_model_name"}
            for key, one in model[part].items():
                if one and (one not in known[key] if key in known else key not in plain):
                    raise ModelError(
                        f"{name} is no plain SigLIP: {file.name} sets {part}.{key} to {str(one)[:60]}. Give another."
                    )
        if not text.get("no_causal_mask") or text.get("pool_type") != "last":
            raise ModelError(
                f"{name} is no plain SigLIP: in {file.name} words see those before them alone, or the last place does "
                "not stand for the text. Give another."
            )
        timm = str(image["timm_model_name"])
        tower = next((one for start, one in _TIMM.items() if timm.startswith(start)), None)
        patch = re.search(r"_patch(\d+)_", timm)
        tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
        facts = {
            **({} if tower is None else {"image_heads": tower[0], "image_activation": tower[1]}),
            "image_eps": _TIMM_EPS,
            "text_heads": int(text.get("heads", 8)),
            "text_activation": QUICK if model.get("quick_gelu", False) else GELU_TANH if tanh else GELU,
            "text_eps": float((text.get("norm_kwargs") or {}).get("eps", 1e-5)),
            "pad_token": int(text.get("pad_id") or 0),
            "openai_words": False,
        }
        told = {
            "patch": patch and int(patch[1]), "text width": text.get("width", 512),
            "text blocks": text.get("layers", 12), "words": text.get("vocab_size", 49408),
            "context": text.get("context_length", 77), "embedding": model.get("embed_dim"),
        }  # fmt: skip
        look = tree.get("preprocess_cfg") or {}
        channels = {
            key: _channels(look.get(key, default), f"{name}: {key} of {file.name}", of_std=key == "std")
            for key, default in (("mean", SIGLIP_MEAN), ("std", SIGLIP_STD))
        }
    except (TypeError, ValueError, KeyError, OverflowError, AttributeError) as error:
        raise ModelError(
            f"{name}: {file.name} lacks a value or holds one of the wrong kind ({reason(error)}); fetch it anew."
        ) from error
    _check_sizes(told, weights, file.name, name)
    return facts | channels


def of_timm_eva(file: Path, weights: Mapping[str, Tensor], name: str) -> dict:
    """Facts of an EVA-02-CLIP whose image tower is timm's, by its open_clip_config.json; the rest of it is open_clip's.

    Raises:
        ModelError: as for `of_open_clip`; or it is not there, or names another tower of timm's.
    """
    if not file.is_file():
        raise ModelError(
            f"{name} is an EVA of open_clip's, of which the weights don't say all; put its {file.name} beside it."
        )
    tree = read_json(file, name)
    try:
        image = (tree.get("model_cfg") or tree)["vision_cfg"]
        timm, pool, proj = str(image["timm_model_name"]), image.get("timm_pool"), image.get("timm_proj")
        patch = re.search(r"_patch(\d+)_", timm)
    except (TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{name}: {file.name} lacks a value or holds one of the wrong kind ({reason(error)}); fetch it anew."
        ) from error
    heads = next((one for start, one in _TIMM_EVA.items() if timm.startswith(start)), None)
    if heads is None or patch is None or pool != "token" or proj:
        raise ModelError(
            f"{name}: its {file.name} names {timm[:60]} with pool {str(pool)[:20]} and projection {str(proj)[:20]}, "
            f"expected one of {', '.join(_TIMM_EVA)}… with pool token and none. Give another."
        )
    facts = of_open_clip(file, weights, name, {"timm_model_name"})
    _check_sizes({"patch": int(patch[1])}, weights, file.name, name)
    return facts | {
        "image_heads": heads, "image_activation": SWIGLU, "image_eps": _TIMM_EPS, "image_turned": _EVA_GRID
    }  # fmt: skip


def of_file(path: Path, stored: Stored, weights: Mapping[str, Tensor], name: str, said: Said) -> dict:
    """Facts of a single file in OpenAI's keys with nothing beside it: of its program, or OpenAI's where it may be
    OpenAI's. The second is said in a warning, unless the name or the program is OpenAI's own."""
    program, shapes = stored.program or frozenset(), sizes(weights)
    facts: dict = {"mean": CLIP_MEAN, "std": CLIP_STD, "openai_words": True}
    for word, activation in ((".GELU", GELU), ("QuickGELU", QUICK)):
        if any(one.endswith(word) for one in program):
            facts |= {"image_activation": activation, "text_activation": activation}
    openais = dataclasses.asdict(openai_architecture(weights)) | facts
    if any(one.startswith(OPENAI_PROGRAM) for one in program) or "openai" in path.name.lower():
        return openais
    shape = tuple(shapes[key] for key in ("image width", "image blocks", "patch", "text width"))
    by_openais_code = path.suffix in (".pt", ".pth") and 0 < shapes["image width"] <= OPENAI_WIDEST
    if OTHERS.search(path.name) or not (shape in OPENAI_VITS or by_openais_code):
        return facts
    if lacking := _lacking(facts | said.facts()):
        log.warning(
            "%s does not say %s; it is taken as OpenAI's own: heads of %d columns and quick GELU. If another made it, "
            "say clip.heads and clip.activation.", name, " or ".join(lacking), OPENAI_HEAD_WIDTH
        )  # fmt: skip
    return openais


def settled(facts: Mapping, said: Said, name: str) -> tuple[Architecture, tuple[float, ...], tuple[float, ...]]:
    """The architecture, mean and std, of what was found and what is said.

    Raises:
        ModelError: heads or activation were neither found nor said.
    """
    known = {**facts, **said.facts()}
    if lacking := _lacking(known):
        raise ModelError(
            f"{name} does not say {' or '.join(lacking)}. Put its {OPEN_CLIP_CONFIG} beside it, or say it: "
            "clip.heads = [IMAGE TOWER, TEXT TOWER] (OpenAI's have one for 64 columns), clip.activation = quick_gelu "
            "(OpenAI's) or gelu (LAION's)."
        )
    if not {"mean", "std"} <= set(known):
        log.warning(
            "%s has neither %s nor %s: its images are normalised as OpenAI's CLIP has it. If it was trained "
            "otherwise, say clip.mean and clip.std.", name, *LOOKS
        )  # fmt: skip
    names = {field.name for field in dataclasses.fields(Architecture)}
    architecture = Architecture(**{key: one for key, one in known.items() if key in names})
    return architecture, known.get("mean", CLIP_MEAN), known.get("std", CLIP_STD)


def _lacking(known: Mapping) -> list[str]:
    """In words, what of heads and activations is not known."""
    words = {"heads": "how many attention heads its towers have", "activation": "which GELU its blocks have"}
    return [told for kind, told in words.items() if not {f"image_{kind}", f"text_{kind}"} <= set(known)]


def _check_sizes(told: Mapping[str, object], weights: Mapping[str, Tensor], file: str, name: str) -> None:
    """A file that describes other weights than those beside it is refused."""
    found = sizes(weights)
    wrong = [key for key, one in told.items() if one is not None and found[key] and one != found[key]]
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{name}: {file} describes another model: its {key} is {str(told[key])[:20]}, that of the weights is "
            f"{found[key]}. Fetch both anew, from one place."
        )


def _channels(given: object, what: str, of_std: bool) -> tuple[float, ...]:
    """Three numbers that images in [0, 1] can have."""
    numbers = given if isinstance(given, (list, tuple)) else ()
    low, high = LEAST_STD if of_std else 0.0, 1.0
    if len(numbers) != 3 or not all(type(one) in (int, float) and low <= one <= high for one in numbers):
        raise ModelError(
            f"{what} is {str(given)[:60]}; expected three numbers from {low:g} to 1, of images in [0, 1], such as "
            f"{list(CLIP_STD if of_std else CLIP_MEAN)}."
        )
    return tuple(map(float, numbers))


def read_json(path: Path, name: str) -> dict:
    """The JSON object of a file beside weights.

    Raises:
        ModelError: it is not there, too large, or no JSON object.
    """
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
