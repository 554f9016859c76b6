"""Spellings of weights -> the names of model.py: OpenAI's and transformers' of CLIP, transformers' and open_clip's of
SigLIP, whose image tower is timm's there, and open_clip's of EVA-02, whose is too."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vpl.clip.archives import reason
from vpl.errors import ModelError

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
    "layer_norm1": "ln1", "self_attn.qkv.": "qkv.", "self_attn.out_proj": "out", "layer_norm2": "ln2", "mlp.fc1": "up",
    "mlp.fc2": "down",
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


_SIGLIP = _HF | {
    "vision_model.embeddings.patch_embedding.bias": "image.patch_bias",
    "vision_model.head.probe": "image.pool.probe",
    "vision_model.head.attention.qkv": "image.pool.qkv",
    "vision_model.head.attention.out_proj": "image.pool.out",
    "vision_model.head.layernorm": "image.pool.ln2",
    "vision_model.head.mlp.fc1": "image.pool.up",
    "vision_model.head.mlp.fc2": "image.pool.down",
    "text_model.head.weight": "text.projection",
    "text_model.head.bias": "text.bias",
    "logit_bias": "bias",
}
_TRUNK = "visual.trunk."
_TIMM_BLOCK = _OPENAI_BLOCK | {
    "norm1": "ln1", "attn.qkv.": "qkv.", "attn.proj": "out", "norm2": "ln2", "mlp.fc1": "up", "mlp.fc2": "down",
}  # fmt: skip
_TIMM_SIGLIP = {key: one for key, one in _OPENAI.items() if not key.startswith(("visual.", "text_projection"))} | {
    f"{_TRUNK}patch_embed.proj.weight": "image.patch",
    f"{_TRUNK}patch_embed.proj.bias": "image.patch_bias",
    f"{_TRUNK}pos_embed": "image.positions",
    f"{_TRUNK}norm": "image.ln_post",
    f"{_TRUNK}blocks": "image.blocks",
    f"{_TRUNK}attn_pool.latent": "image.pool.probe",
    f"{_TRUNK}attn_pool.qkv": "image.pool.qkv",
    f"{_TRUNK}attn_pool.proj": "image.pool.out",
    f"{_TRUNK}attn_pool.norm": "image.pool.ln2",
    f"{_TRUNK}attn_pool.mlp.fc1": "image.pool.up",
    f"{_TRUNK}attn_pool.mlp.fc2": "image.pool.down",
    "text_projection.weight": "text.projection",
    "text_projection.bias": "text.bias",
    "logit_bias": "bias",
}
_TIMM_EVA_BLOCK = {
    "attn.norm": "ln_out", "mlp.fc1_g": "gate", "mlp.fc1_x": "up", "mlp.norm": "ln_in", **_TIMM_BLOCK
}  # fmt: skip
_TIMM_EVA = {key: one for key, one in _OPENAI.items() if not key.startswith("visual.")} | {
    f"{_TRUNK}cls_token": "image.start",
    f"{_TRUNK}pos_embed": "image.positions",
    f"{_TRUNK}patch_embed.proj.weight": "image.patch",
    f"{_TRUNK}patch_embed.proj.bias": "image.patch_bias",
    f"{_TRUNK}norm": "image.ln_post",
    f"{_TRUNK}head.weight": "image.projection",
    f"{_TRUNK}head.bias": "image.bias",
    f"{_TRUNK}blocks": "image.blocks",
}
_ANCHORS = (
    "visual.class_embedding", "vision_model.embeddings.class_embedding", "vision_model.head.probe",
    f"{_TRUNK}attn_pool.latent", f"{_TRUNK}blocks.0.mlp.fc1_g.weight",
)  # fmt: skip
_EMBEDDING = "vision_model.embeddings.patch_embedding.weight"
_TURNED = ("visual_projection.weight", "text_projection.weight", "text_model.head.weight")
"""transformers' projections, which multiply from the left."""
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What torch.compile and FSDP write into a key, wherever the module was wrapped."""
_BUFFERS = ("position_ids", "attn_mask")
"""Tensors inside the towers that are no weights."""


def canonical(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of either spelling under model.py's names, whatever a checkpoint wrote before each key.

    Raises:
        ModelError: they are no CLIP ViT's, or those of several, or of one with tensors that a plain one lacks.
    """
    state = _unwrapped(state, name)
    if any(key.startswith(("visual.layer1.", "visual.attnpool.")) for key in state):
        raise ModelError(
            f"{name} is a CLIP with a ResNet image encoder; expected a vision transformer. Use ViT-B-16 or another ViT."
        )
    if not {_ANCHORS[3], _ANCHORS[4]} & state.keys() and any(key.startswith(_TRUNK) for key in state):
        raise ModelError(
            f"{name} has an image tower of timm's that is neither a SigLIP's with its pooling head nor an EVA-02's "
            "with gates, as open_clip's files of EVA-01 and EVA02-E have; it is not read here. Give another CLIP."
        )
    if not any(anchor in state for anchor in _ANCHORS):
        raise ModelError(
            f"{name} holds no CLIP ViT: neither OpenAI's nor transformers' keys are there "
            f"(first key: {next(iter(state), 'none')}). Give CLIP weights with both towers."
        )
    try:
        if _ANCHORS[0] in state:
            found = _renamed(state, _OPENAI, _OPENAI_BLOCK)
        elif _ANCHORS[3] in state:
            found = _renamed(_of_timm(state), _TIMM_SIGLIP, _TIMM_BLOCK)
        elif _ANCHORS[4] in state:
            found = _renamed(_of_eva(state), _TIMM_EVA, _TIMM_EVA_BLOCK)
        else:
            names = _SIGLIP if _ANCHORS[2] in state else _HF
            found = _renamed(_like_openais(state), names, _HF_BLOCK)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{name} is no complete CLIP ViT: its tensors don't fit together ({reason(error)}). Give the original "
            "weights."
        ) from error
    if not any(key.startswith("text.") for key in found):
        raise ModelError(f"{name} holds the image tower alone; expected both towers. Give the original weights.")
    return found


def flattened(state: Mapping[str, Tensor]) -> bool:
    """Whether transformers' tensors are a SigLIP 2's that embeds flattened patches of any grid (NaFlex)."""
    return any(key.endswith(_EMBEDDING) and tensor.ndim == 2 for key, tensor in state.items())


def _unwrapped(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Keys without `module.`, `model.`, `state_dict.` and the like, which stand before every key of a checkpoint."""
    for wrapper in _WRAPPERS:
        state = {key.replace(wrapper, ""): tensor for key, tensor in state.items()}
    starts = {key.removesuffix(anchor) for key in state for anchor in _ANCHORS if f".{key}".endswith(f".{anchor}")}
    if len(starts) > 1:
        found = ", ".join(sorted(start or "no prefix" for start in starts))
        raise ModelError(
            f"{name} holds {len(starts)} CLIPs ({found}); save the one that is meant as a file of its own."
        )
    start = next(iter(starts), "")
    state = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
    if "text.token_embedding.weight" in state:  # open_clip's newer class keeps the text tower in a module of its own
        state = {key.removeprefix("text."): tensor for key, tensor in state.items()}
    return state


def _renamed(state: Mapping[str, Tensor], names: dict[str, str], inside: dict[str, str]) -> dict[str, Tensor]:
    """Keys translated by their known beginning; a block's keys by `inside` after its number.

    What the towers hold beside that keeps its key, so that FrozenClip sees it; what is outside of them is left out.
    """
    roots = tuple({f"{known.partition('.')[0]}." for known in names})
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        start = next((known for known in names if key == known or key.startswith(f"{known}.")), None)
        rest = key[len(start or "") :]
        if start is not None and names[start].endswith(".blocks"):
            _, number, leaf = [*rest.split(".", 2), "", ""][:3]
            part = next((known for known in inside if leaf.startswith(known)), None)
            start, rest = (None, "") if part is None else (start, f".{number}.{inside[part]}{leaf[len(part) :]}")
        if start is not None:
            result[names[start] + rest] = tensor
        elif key.startswith(roots) and not key.endswith(_BUFFERS):
            result[key] = tensor
    return result


def _of_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors of a SigLIP with numbers and rows as such, a projection that multiplies from the right, and
    the pooling head's query beside its keys and values."""
    shapes = {_ANCHORS[3]: (-1,), "logit_scale": (), "logit_bias": ()}
    result = {key: tensor.reshape(shapes[key]) if key in shapes else tensor for key, tensor in state.items()}
    if (positions := f"{_TRUNK}pos_embed") in result:
        result[positions] = result[positions].squeeze(0)
    if (projection := "text_projection.weight") in result:
        result[projection] = result[projection].transpose(0, -1)
    for kind in ("weight", "bias"):
        parts = [f"{_TRUNK}attn_pool.{one}.{kind}" for one in ("q", "kv")]
        if all(part in result for part in parts):
            result[f"{_TRUNK}attn_pool.qkv.{kind}"] = torch.cat([result.pop(part) for part in parts])
    return result


def _of_eva(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors of an EVA-02 with rows as such, a projection that multiplies from the right, and q, k and v
    in one; k has no bias there."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        block, _, leaf = key.partition(".attn.")
        asked = {one: state.get(f"{block}.attn.{one}_proj.{leaf.removeprefix('q_proj.')}") for one in "qkv"}
        if leaf == "q_proj.bias":
            asked["k"] = torch.zeros_like(tensor)
        if not leaf.startswith(("q_proj.", "k_proj.", "v_proj.")):
            result[key] = tensor
        elif leaf.startswith("q_proj.") and all(one is not None for one in asked.values()):
            result[f"{block}.attn.qkv.{leaf.removeprefix('q_proj.')}"] = torch.cat(
                [one for one in asked.values() if one is not None]
            )
    for key in (f"{_TRUNK}cls_token", f"{_TRUNK}pos_embed"):
        if key in result:
            result[key] = result[key].reshape(-1, result[key].shape[-1])
    if (start := f"{_TRUNK}cls_token") in result:
        result[start] = result[start].flatten()
    if (head := f"{_TRUNK}head.weight") in result:
        result[head] = result[head].T
    return result


def _like_openais(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' tensors with projections that multiply from the right, and q, k and v in one."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "vision_model.head.probe":
            tensor = tensor.reshape(-1)
        elif key in ("logit_scale", "logit_bias"):
            tensor = tensor.reshape(())
        elif key == _EMBEDDING and tensor.ndim == 2:  # a row of it goes over pixels first, then their colours
            side = math.isqrt(tensor.shape[1] // 3)
            tensor = tensor.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        key = key.replace("head.attention.in_proj_", "head.attention.qkv.")
        block, _, leaf = key.partition(".self_attn.")
        part, _, kind = leaf.partition("_proj.")
        if part not in ("q", "k", "v"):
            result[key] = tensor.transpose(0, -1) if key in _TURNED else tensor
        elif all(f"{block}.self_attn.{one}_proj.{kind}" in state for one in "qkv"):
            result[f"{block}.self_attn.qkv.{kind}"] = torch.cat(
                [state[f"{block}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            )
    return result
