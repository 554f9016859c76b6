"""One block of either tower, and which of its five uses: the same equations, each use for its own reason.

With x the residual stream of T tokens, class token first in the image tower:

    A = LN1(x)      [q k v] = A Wqkv + b      O = softmax(q kᵀ / √d) v      x ← x + O Wout + b
    z = LN2(x)      x ← x + act(z Wup + b) Wdown + b                        act: GELU or quick GELU

    through(…, causal)      a text's block: a word sees the words before it; torch's fused attention
    through(…)              an image's block whose attention nobody asks for: fused as well, no T × T matrix
    through(…, attention)   a block whose attention the refinement averages: a few query rows at a time
    through(…, keep)        the last block: its inside is kept, because the seeds' backward is written out over it
    plainly(…)              plain operations, for a gradient to the pixels and for the exported graph

EVA-02's block says some of this otherwise (`gated`; arXiv 2303.11331, 2303.15389):

    q, k of patches are turned by their place (`rotation`)      O ← LNo(O)
    x ← x + LNi( silu(z Wgate + b) ⊙ (z Wup + b) ) Wdown + b

The blocks are written here, not taken from transformers, because the seeds need the inside of the last one and the
refinement needs averaged attention that is never held for all heads of all blocks. LayerNorm, sums of attention and
the residual stream are float32 in either precision. Letters: N images or texts, T tokens, d columns of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vpl.clip.facts import SWIGLU
from vpl.machine import has_tiles, shared

QUICK_GELU_SLOPE = 1.702
ROTARY_BASE = 10000.0
"""Of the frequencies by which EVA-02 turns q and k. [ref]"""
MLP_ROWS_AT_ONCE = 256
MANY_ROWS = 1024
"""From so many on all rows of a product go in these parts, whoever computes them. [ours]"""
CPU_SCORES_AT_ONCE = 2**20
"""Attention scores computed at a time on the CPU: they, and the rows of the MLP, stay in its cache."""
GPU_SCORES_AT_ONCE = 2**28
HEAD_SHARE = 4
"""Of these scores, one head alone takes as many as fit four times. [ours]"""
ORDINARY = ((0, 1),)
"""Of q, k, v: queries ask keys."""


@dataclass(frozen=True)
class LastBlock:
    """The inside of the last block for N images of T tokens (class token first): all that the seeds need.

    Attributes:
        residual: (N, T, width) float32, the stream that enters the block.
        a: (N, T, width) float32, A = LN1(residual).
        qkv: (N, T, 3, heads, d) in the encoder's precision; q is not scaled; q and k are turned where EVA turns them.
        attended: (N, T, width) in the encoder's precision, O: attention's output before its out-projection.
        middle: (N, T, width) float32, the stream after the attention.
        hidden: (N, T, inner) in the encoder's precision, the MLP before its activation; EVA's before Wdown.
        output: (N, T, width) float32, the stream that leaves the block.
    """

    residual: Float[Tensor, "N T width"]
    a: Float[Tensor, "N T width"]
    qkv: Float[Tensor, "N T 3 heads d"]
    attended: Float[Tensor, "N T width"]
    middle: Float[Tensor, "N T width"]
    hidden: Float[Tensor, "N T inner"]
    output: Float[Tensor, "N T width"]


class Pool(nn.Module):
    """SigLIP's pooling head, in the place of a class token: a learned probe asks the patches, an MLP follows.

        v_i = LN-post(x_i) Wv + b      h = Σ_i softmax(probe Wq · LN-post(x_i) Wk / √d)_i v_i Wout + b
        e = h + act( LN2(h) Wup + b ) Wdown + b

    A patch on its own is heard alone: the same with the one v_i in the sum's place.
    """

    def __init__(self, width: int, inner: int, heads: int, activation: str, eps: float):
        super().__init__()
        self.heads, self.activation = heads, activation
        self.probe = nn.Parameter(torch.empty(width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def together(self, tokens: Float[Tensor, "N hw width"]) -> Float[Tensor, "N width"]:
        """What the probe hears from all patches after LN-post: SigLIP's image embedding."""
        width = len(self.probe)
        asked, keys, values = zip(self.qkv.weight.split(width), self.qkv.bias.split(width), strict=True)
        query = F.linear(self.probe, *asked).expand(len(tokens), 1, -1)
        parts = (query, F.linear(tokens, *keys), F.linear(tokens, *values))
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in parts)
        heard = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self._after(heard)[:, 0]

    def alone(self, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """What the probe would hear of each patch after LN-post, were it the only one."""
        width = len(self.probe)
        return self._after(F.linear(tokens, self.qkv.weight[2 * width :], self.qkv.bias[2 * width :]))

    def _after(self, heard: Tensor) -> Tensor:
        h = self.out(heard)
        return h + self.down(_act(self.up(self.ln2(h)), self.activation))


class Block(nn.Module):
    """The weights of one block, with its head count and activation; an EVA-02's where that is SwiGLU."""

    def __init__(self, width: int, inner: int, heads: int, activation: str, eps: float):
        super().__init__()
        self.heads, self.activation = heads, activation
        self.ln1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ln2 = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.gated = activation == SWIGLU
        if self.gated:
            self.ln_out = nn.LayerNorm(width, eps=eps)
            self.gate = nn.Linear(width, inner)
            self.ln_in = nn.LayerNorm(inner, eps=eps)

    def said(self, attended: Float[Tensor, "N T heads d"]) -> Float[Tensor, "N T width"]:
        """O, which the out-projection reads, of what the heads heard."""
        flat = attended.flatten(2)
        return self.ln_out(flat.float()).to(flat.dtype) if self.gated else flat

    def thought(self, z: Tensor, times: Callable[[nn.Linear, Tensor], Tensor]) -> Tensor:
        """The MLP before its activation, of LN2's output in the encoder's precision; EVA's before Wdown."""
        hidden = times(self.up, z)
        if not self.gated:
            return hidden
        return self.ln_in((F.silu(times(self.gate, z)) * hidden).float()).to(hidden.dtype)


def rotation(
    grid: tuple[int, int], depth: int, side: int, device: torch.device
) -> tuple[Float[Tensor, "hw 1 d"], Float[Tensor, "hw 1 d"]]:
    """cos and sin by which EVA turns q and k of patches: row · side / h by the first half of the columns' frequencies,
    column · side / w by the other, neighbouring columns being one plane.

    Args:
        depth: d, columns of a head; side: of the grid that the frequencies were made for.
    """
    bands = ROTARY_BASE ** -(torch.arange(depth // 4, device=device) / (depth // 4))
    rows, columns = (torch.arange(many, device=device) * (side / many) for many in grid)
    angles = torch.cat(
        [rows.repeat_interleave(grid[1])[:, None] * bands, columns.repeat(grid[0])[:, None] * bands], 1
    ).repeat_interleave(2, 1)[:, None]
    return angles.cos(), angles.sin()


def turned(qkv: Float[Tensor, "N T 3 heads d"], turn: tuple[Tensor, Tensor] | None) -> Float[Tensor, "N T 3 heads d"]:
    """q and k turned by their patch's place; the tokens before the patches, and v, as they are."""
    if turn is None:
        return qkv
    cos, sin = (one[:, None] for one in turn)
    first = qkv.shape[1] - len(cos)
    asked = qkv[:, first:, :2].float()
    across = torch.stack([-asked[..., 1::2], asked[..., ::2]], -1).flatten(-2)
    moved = torch.cat([(asked * cos + across * sin).to(qkv.dtype), qkv[:, first:, 2:]], 2)
    return torch.cat([qkv[:, :first], moved], 1)


def through(
    block: Block, x: Tensor, attention: Tensor | None = None, causal: bool = False, keep: bool = True,
    turn: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, LastBlock | None]:  # fmt: skip
    """One block over x (N, T, width) float32: what leaves it and, to keep, its inside.

    Its attention, averaged over heads, is added to `attention` (N, T, T). `turn` is a `rotation`.
    """
    dtype = block.qkv.weight.dtype
    a = block.ln1(x)
    qkv = turned(_by_rows(block.qkv, a.to(dtype)).unflatten(-1, (3, block.heads, -1)), turn)
    on_cpu = x.device.type == "cpu"
    # torch's fused attention is slow in bfloat16 on a CPU without tiles
    if attention is None and (causal or not on_cpu or dtype == torch.float32 or has_tiles()):
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)
    else:
        attended = attend(qkv, attention)
    attended = block.said(attended)
    middle = x + _by_rows(block.out, attended)
    if keep:
        hidden = block.thought(block.ln2(middle).to(dtype), _by_rows)
        output = middle + _by_rows(block.down, activate(hidden, block.activation))
        return output, LastBlock(x, a, qkv, attended, middle, hidden, output)
    rows = MLP_ROWS_AT_ONCE if on_cpu else middle.shape[1]
    output = middle.clone()

    def think(part: Tensor) -> None:
        hidden = block.thought(block.ln2(part).to(dtype), linear)
        part += linear(block.down, activate(hidden, block.activation, in_place=True))

    shared(think, output.split(rows, 1))
    return output, None


def plainly(block: Block, x: Tensor, a: Tensor | None = None, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """What leaves the block, by operations that carry a gradient to x, and to A where it is given; `through` has none
    of these."""
    dtype = block.qkv.weight.dtype
    a = block.ln1(x) if a is None else a
    qkv = turned(block.qkv(a.to(dtype)).unflatten(-1, (3, block.heads, -1)), turn)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    attended = block.said(F.scaled_dot_product_attention(query, key, value).transpose(1, 2))
    middle = x + block.out(attended)
    hidden = block.thought(block.ln2(middle).to(dtype), lambda layer, z: layer(z))
    return middle + block.down(_act(hidden, block.activation))


def _act(hidden: Tensor, activation: str) -> Tensor:
    """`activate`, by operations that an exported graph and a gradient know."""
    if activation == SWIGLU:
        return hidden
    if activation == "quick_gelu":
        return hidden * torch.sigmoid(QUICK_GELU_SLOPE * hidden)
    return F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """x Wᵀ + b, in float32 on the CPU by oneDNN, which is faster than torch's default there on many machines."""
    if _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32:
        return _ONEDNN(x, layer.weight, layer.bias, "none", [], "")
    return F.linear(x, layer.weight, layer.bias)


def _by_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """`linear`; on the CPU many rows a few at a time, so that idle cores can share them."""
    if x.device.type != "cpu" or x.shape[1] < MANY_ROWS:
        return linear(layer, x)
    made = x.new_empty((*x.shape[:2], layer.out_features))

    def some(part: slice) -> None:
        made[:, part] = linear(layer, x[:, part])

    shared(some, [slice(row, row + MLP_ROWS_AT_ONCE) for row in range(0, x.shape[1], MLP_ROWS_AT_ONCE)])
    return made


_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def activate(hidden: Tensor, activation: str, in_place: bool = False) -> Tensor:
    """GELU, by its tanh formula in SigLIP, or quick GELU x · sigmoid(1.702 x); EVA's is done before."""
    if activation == SWIGLU:
        return hidden
    if activation != "quick_gelu":
        return F.gelu(hidden, approximate="tanh" if activation == "gelu_tanh" else "none")
    scaled = hidden.mul_(QUICK_GELU_SLOPE) if in_place else hidden * QUICK_GELU_SLOPE
    return F.silu(scaled, inplace=True).div_(QUICK_GELU_SLOPE)


def slope(hidden: Tensor, activation: str) -> Tensor:
    """Derivative of GELU or of quick GELU."""
    if activation == "gelu":
        bell = torch.exp(hidden.square() / -2) * (0.5 / torch.pi) ** 0.5
        return 0.5 * (1 + torch.erf(hidden / 2**0.5)) + hidden * bell
    gate = torch.sigmoid(QUICK_GELU_SLOPE * hidden)
    return gate * (1 + QUICK_GELU_SLOPE * hidden * (1 - gate))


def attend(
    qkv: Float[Tensor, "N T 3 heads d"],
    attention: Float[Tensor, "N T T"] | None = None,
    pairs: Sequence[tuple[int, int]] = ORDINARY,
    near: Float[Tensor, "T T"] | None = None,
) -> Float[Tensor, "N T heads d"]:
    """Attention output Σ softmax(s a bᵀ + near) v over the pairs; the mean over heads of the probabilities is added to
    `attention`.

    Probabilities live for a few query rows at a time, so memory does not grow with T² · heads. In float32 on the CPU,
    where they are many, oneDNN multiplies head by head, as `linear` does and for the same reason.

    Args:
        pairs: places in q, k, v of each a and b.
        near: added to the scores of every head; not scaled by s = 1/√d.
    """
    count, tokens, _, heads, depth = qkv.shape
    on_cpu = qkv.device.type == "cpu"
    at_once = CPU_SCORES_AT_ONCE if on_cpu else GPU_SCORES_AT_ONCE
    many = on_cpu and qkv.dtype == torch.float32 and heads * tokens * tokens > at_once
    times = _ONEDNN if many else None
    images = min(count, max(1, at_once // (heads * tokens * tokens)))
    rows = min(tokens, max(16, at_once // (HEAD_SHARE * tokens if times else images * heads * tokens)))
    result = qkv.new_empty((count, tokens, heads, depth))

    def likely(asked: Sequence[tuple[Tensor, Tensor]], part: slice, head: int | slice) -> Tensor:
        total = None
        for query, key in asked:
            one, other = query[head, part], key[head]
            scores = torch.bmm(one, other.transpose(1, 2)) if times is None else times(one, other, None, "none", [], "")
            probabilities = torch.softmax(scores if near is None else scores.add_(near[part]), -1)
            total = probabilities if total is None else total.add_(probabilities)
        assert total is not None
        return total

    for n in range(0, count, images):
        these = qkv[n : n + images]
        parts = these.permute(2, 0, 3, 1, 4).flatten(1, 2).contiguous()  # 3, images · heads, T, d
        asked = [(parts[one] * depth**-0.5, parts[other]) for one, other in pairs]
        value = parts[2].transpose(1, 2).contiguous() if times else parts[2]
        here, seen = result[n : n + images], None if attention is None else attention[n : n + images]

        def hear(
            part: slice, asked: Sequence[tuple[Tensor, Tensor]] = asked, value: Tensor = value, here: Tensor = here,
            seen: Tensor | None = seen,
        ) -> None:  # fmt: skip
            if times is None:
                probabilities = likely(asked, part, slice(None))
                given = torch.bmm(probabilities, value).unflatten(0, (-1, heads))
                here[:, part] = given.transpose(1, 2)
                if seen is not None:
                    sums = probabilities.unflatten(0, (-1, heads)).sum(1)  # in float32, rounded once
                    seen[:, part].add_(sums, alpha=1 / heads)
                return
            for head in range(heads):
                probabilities = likely(asked, part, head)
                here[0, part, head] = times(probabilities, value[head], None, "none", [], "")
                if seen is not None:
                    seen[0, part].add_(probabilities, alpha=1 / heads)

        shared(hear, [slice(row, row + rows) for row in range(0, tokens, rows)])
    return result
