"""Two spellings of the same weights, OpenAI's and transformers' -> the names of model.py."""

from __future__ import annotations

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
    """Tensors of either spelling under model.py's names.

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
            f"{name} is no complete CLIP ViT: its tensors don't fit together ({reason(error)}). Give the original "
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
            keys = [key.replace("q_proj", f"{part}_proj") for part in "qkv"]
            if all(one in state for one in keys):
                side = "image" if tower == "vision_model" else "text"
                result[f"{side}.blocks.{number}.qkv.{leaf}"] = torch.cat([state[one] for one in keys])
    return result
