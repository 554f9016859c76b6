"""Files of CLIP weights as others write them: OpenAI's keys, TorchScript archives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn


def joined(state: dict) -> Iterator[tuple[str, torch.Tensor]]:
    """transformers' keys and tensors, q, k and v of a layer as one, under q's key."""
    for key, tensor in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if ".q_proj." in key:
            tensor = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        yield key, tensor


def to_openai(state: dict) -> dict:
    """transformers' keys respelled as OpenAI's, by plain replacement."""
    result = {}
    for key, tensor in joined(state):
        if "visual_projection" in key or "text_projection" in key:
            tensor = tensor.T.contiguous()
        for old, new in (
            ("vision_model.encoder.layers", "visual.transformer.resblocks"),
            ("text_model.encoder.layers", "transformer.resblocks"),
            ("vision_model.embeddings.patch_embedding", "visual.conv1"),
            ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
            ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
            ("vision_model.pre_layrnorm", "visual.ln_pre"),
            ("vision_model.post_layernorm", "visual.ln_post"),
            ("visual_projection.weight", "visual.proj"),
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.final_layer_norm", "ln_final"),
            ("text_projection.weight", "text_projection"),
            ("self_attn.q_proj.", "attn.in_proj_"),
            ("self_attn.out_proj", "attn.out_proj"),
            ("layer_norm1", "ln_1"),
            ("layer_norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            key = key.replace(old, new)
        result[key] = tensor.clone()
    return result


def torchscript(state: dict, path: Path, halves: bool = False, act: nn.Module | None = None) -> None:
    """A TorchScript archive with these keys, and a program in it; with `act`, its activation."""

    class Node(nn.Module):
        def forward(self, x):
            return x + 1

    root = Node()
    for key, tensor in state.items():
        *parents, leaf = key.split(".")
        node = root
        for name in parents:
            if name not in node._modules:
                node.add_module(name, Node())
            node = node._modules[name]
        node.register_parameter(leaf, nn.Parameter(tensor.half() if halves else tensor, requires_grad=False))
    if act is not None:
        root.act = act
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), str(path))
