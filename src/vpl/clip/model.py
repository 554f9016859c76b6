"""FrozenClip: texts and images -> unit embeddings, projected patch tokens, attention, the inside of the last block.

METHOD.md 0 to 2.

    patches = LN-post(x) · projection
    attention = mean over the last n blocks and all heads of softmax(q kᵀ / √d)

with x the residual stream that leaves the last block (block.py has a block's equations). Tests hold both towers to
transformers' own forward. `bfloat16` is the format of the image blocks' matrix products. Files are read by weights.py.

Letters: N images, h w patch grid, D joint embedding width. `width` is the image tower's own width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vpl.clip.block import LastBlock, plainly, through
from vpl.clip.facts import CLIP_MEAN, CLIP_STD, Architecture, Said, openai_architecture
from vpl.clip.spelling import canonical
from vpl.clip.towers import towers
from vpl.clip.weights import read
from vpl.config import ClipConfig
from vpl.errors import ModelError
from vpl.machine import device_of, precision_of

TEXTS_AT_ONCE = 256
MOST_LISTS = 16
"""Lists of texts whose embeddings are remembered; the oldest goes first."""
LOGIT_SCALES = (2, 1000)
"""Training begins with 14.3 and holds the scale at 100 and less; others are a logarithm that was not taken."""


@dataclass(frozen=True)
class Features:
    """What the frozen image tower says about N images of one size.

    Attributes:
        grid: (h, w) patches.
        patches: (N, hw, D) float32, projected patch tokens of the last block, row-major, not normalised.
        attention: (N, hw, hw) float32, from patch (row) to patch (column), mean over heads and the last blocks. The
            class token's share is cut out, so rows sum to a little less than 1. None if not asked for.
        blocks: patch tokens (N, hw, width) float32 that leave each block, first block first; None if not asked for.
        last: the inside of the last block; None if not asked for.
        apart: (N, hw, hw) as `attention` of each of the last blocks alone, first block first; None if not asked for.
        guide: (N, hw, E) float32, the same patches by another encoder (`views.guided`); None if not asked for.
    """

    grid: tuple[int, int]
    patches: Float[Tensor, "N hw D"]
    attention: Float[Tensor, "N hw hw"] | None
    blocks: tuple[Float[Tensor, "N hw width"], ...] | None
    last: LastBlock | None
    apart: tuple[Float[Tensor, "N hw hw"], ...] | None = None
    guide: Float[Tensor, "N hw E"] | None = None


ALIGNMENT = 64
"""Bytes; what torch itself aligns its memory to."""


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, at an address from which every kernel reads it alike.

    A file that is mapped into memory, or an object that another process sent, begins anywhere; products of float32
    that does not begin at a multiple of `ALIGNMENT` bytes differ in their last bits.
    """
    made = tensor.contiguous()
    return made if made.data_ptr() % ALIGNMENT == 0 else made.clone()


@dataclass(frozen=True)
class Trunk:
    """N images of T tokens where they enter the last block: from here the rest of an encoding is a twelfth of it.

    Attributes:
        grid: (h, w), the patch grid.
        residual: the stream that enters the last block.
        sums: attention of the blocks before it, mean over heads, summed over the blocks that are averaged, or one for
            each of them where they are wanted apart; none where none is.
        averaged: how many blocks' attention is averaged, the last one's with them.
        apart: whether `sums` has one for each block.
        blocks: patch tokens that leave the blocks before the last one, if asked.
    """

    grid: tuple[int, int]
    residual: Float[Tensor, "N T width"]
    sums: tuple[Float[Tensor, "N T T"], ...]
    averaged: int
    apart: bool = False
    blocks: tuple[Float[Tensor, "N hw width"], ...] | None = None


class FrozenClip(nn.Module):
    """A CLIP or SigLIP with a vision transformer whose weights never change.

    Make one with `FrozenClip.load`. No parameter asks for a gradient, and `train()` leaves it in evaluation mode.

    Attributes:
        name: what it was loaded from.
        patch: side of a patch in pixels; width, heads, layers: of the image tower; dim: D.
        logit_scale: exp of the learned scale (100 for OpenAI's weights).
        logit_bias: what a SigLIP adds to scaled cosines before its sigmoid; 0 for a CLIP. A softmax does not see it.
        mean, std: per channel (R, G, B), for images in [0, 1].
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        architecture: Architecture,
        name: str,
        tokenizer: Callable[[Sequence[str]], Tensor] | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        said: Said | None = None,
    ):
        super().__init__()
        self._hashed: tuple[object, str] | None = None
        self._texts: tuple[object, dict[tuple[str, ...], Tensor]] | None = None
        with torch.device("meta"):
            self.image, self.text = towers(weights, architecture, name)
        self.log_scale = nn.Parameter(torch.empty((), device="meta"))
        if "bias" in weights:
            self.bias = nn.Parameter(torch.empty((), device="meta"))
        expected = self.state_dict()
        for key, blank in expected.items():
            if key not in weights:
                raise ModelError(f"{name} is no complete CLIP ViT: {key} is missing. Give the original weights.")
            if weights[key].shape != blank.shape:
                raise ModelError(
                    f"{name}: {key} has shape {tuple(weights[key].shape)}, expected {tuple(blank.shape)}. "
                    "Give the original weights with their own config.json."
                )
            if not weights[key].is_floating_point():
                raise ModelError(
                    f"{name}: {key} holds {weights[key].dtype}, expected floats. Give weights that are not quantized."
                )
        if other := weights.keys() - expected.keys():
            raise ModelError(
                f"{name} is no plain CLIP ViT: its towers hold {min(other)}, which a plain one lacks, so its features "
                "are others. Give another CLIP."
            )
        self.load_state_dict({key: aligned(weights[key].detach().float()) for key in expected}, assign=True)
        for key, tensor in self.state_dict().items():
            if not bool(torch.isfinite(tensor.sum())):  # a sum is quicker than a look at each, and as sure
                raise ModelError(f"{name}: {key} holds values that are not finite or far too large. Download it again.")
            weighs = tensor.ndim > 1 or key.endswith(".weight")  # a bias may be zero
            if weighs and not bool(tensor.any()):  # as an interrupted download leaves the rest of its file
                raise ModelError(f"{name}: {key} holds zeros alone, which no trained CLIP does. Download it again.")
        self.requires_grad_(False)
        self.name = name
        self.patch = self.image.patch.shape[-1]
        self.width, self.dim = self.image.patch.shape[0], self.text.projection.shape[1]
        self.heads, self.layers = self.image.heads, len(self.image.blocks)
        self.logit_scale = float(self.log_scale.exp())
        self.logit_bias = float(self.bias) if "bias" in weights else 0.0
        if not LOGIT_SCALES[0] <= self.logit_scale <= LOGIT_SCALES[1]:
            raise ModelError(
                f"{name}: logit_scale is {float(self.log_scale)}; expected the logarithm of a scale from "
                f"{LOGIT_SCALES[0]} to {LOGIT_SCALES[1]}, such as OpenAI's 4.6052. Store its logarithm, not the scale "
                "or a temperature."
            )
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.architecture, self.said = architecture, said or Said()
        self._tokenizer = tokenizer
        super().train(False)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        device: str = "auto",
        precision: str = "float32",
        *,
        heads: Sequence[int] = (),
        activation: str = "",
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> FrozenClip:
        """Load a CLIP ViT.

        Args:
            name_or_path: "pocket" (carried by this package), a hub name ("openai/clip-vit-base-patch16"), a folder in
                transformers' or open_clip's format, OpenAI's .pt, or a checkpoint in OpenAI's keys.
            device: "auto" (cuda, else mps, else cpu) or a torch device.
            precision: "float32", "bfloat16" or "auto" for the image blocks' matrix products, auto being bfloat16 where
                the device multiplies it itself; the text tower stays float32.
            heads: attention heads of the image tower and of the text tower, where no file beside the weights says it.
            activation: "quick_gelu" or "gelu", likewise.
            mean: per channel (R, G, B), for images in [0, 1], likewise.
            std: likewise.

        Raises:
            ModelError: nothing is there, it can't be read, it is no CLIP with a vision transformer, or heads or
                activation are not known.
        """
        said = Said(heads, activation, mean, std)
        found = read(str(name_or_path), said)
        clip = cls(found.tensors, found.architecture, str(name_or_path), found.tokenizer, found.mean, found.std, said)
        return clip.prepare(device, precision)

    @classmethod
    def of(cls, config: ClipConfig, device: str = "auto") -> FrozenClip:
        """The CLIP of a configuration.

        Raises:
            ModelError: as for `load`.
        """
        said = {key: getattr(config, key) for key in ("heads", "activation", "mean", "std")}
        return cls.load(config.model, device, config.precision, **said)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], architecture: Architecture | None = None, name: str = "weights in memory"
    ) -> FrozenClip:
        """A copy of tensors under transformers' or OpenAI's keys as a FrozenClip on their device, without a tokenizer.

        Args:
            architecture: what their shapes do not tell; None: they are OpenAI's own, or made as those.

        Raises:
            ModelError: the tensors are no CLIP ViT's.
        """
        copied = {key: tensor.clone() for key, tensor in canonical(state, name).items()}
        return cls(copied, architecture or openai_architecture(copied), name)

    def prepare(self, device: str = "auto", precision: str = "float32") -> FrozenClip:
        """Move to a device and set the precision of the image blocks; returns self.

        Raises:
            ModelError: the device is not there, or the precision is neither "float32" nor "bfloat16" nor "auto".
        """
        if precision not in ("float32", "bfloat16", "auto"):
            raise ModelError(f"precision is {precision!r}; expected float32, bfloat16 or auto.")
        precision = precision_of(precision, device)
        digest = self.weights_hash if precision == "bfloat16" else ""
        self.to(device_of(device))
        for weights in self.parameters():
            weights.data = aligned(weights.data)
        for block in self.image.blocks:
            block.to(getattr(torch, precision))
            for norm in block.modules():
                if isinstance(norm, nn.LayerNorm):
                    norm.float()
        if digest:  # rounding makes no other CLIP of the weights that came
            self._hashed = self._now(), digest
        return self

    def train(self, mode: bool = True) -> FrozenClip:
        """Stays in evaluation mode, whatever is asked."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image.positions.device

    @property
    def dtype(self) -> torch.dtype:
        """The format of the image blocks' matrix products."""
        return self.image.blocks[0].qkv.weight.dtype

    @property
    def context(self) -> int:
        """Most tokens of a text, start and end included."""
        return self.text.positions.shape[0]

    @property
    def weights_hash(self) -> str:
        """SHA-256 (hexadecimal) of the weights as they are now, the same for every file format that they came in.

        What the user said of them (heads, activation, mean, std) is part of it: it makes another CLIP of them; the
        precision that they are computed in is not. All weights are read (about half a second for ViT-B/16), and again
        only when one of them has changed.
        """
        now = self._now()
        if self._hashed is None or self._hashed[0] != now:
            digest = hashlib.sha256(now[0].encode() if self.said.facts() else b"")
            for key, tensor in sorted(self.state_dict().items()):
                digest.update(f"{key} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy())
            self._hashed = (now, digest.hexdigest())
        return self._hashed[1]

    def _now(self) -> tuple[str, tuple]:
        """What the user said of the weights, and where and which they are."""
        weights = sorted(self.state_dict().items())
        told = tuple((key, one.data_ptr(), one._version) for key, one in weights)
        return repr(sorted(self.said.facts().items())), told

    # texts

    @property
    def known_texts(self) -> dict[tuple[str, ...], Float[Tensor, "n D"]]:
        """Lists of texts -> their embeddings, which `encode_texts` makes once; forgotten when a weight changes."""
        now = self._now()
        if self._texts is None or self._texts[0] != now:
            self._texts = now, {}
        return self._texts[1]

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Unit embeddings, float32, of n texts; once for each list of them. A text that is too long is cut, its end
        token kept.

        Raises:
            ModelError: these weights came without a tokenizer and none is installed.
        """
        if self._tokenizer is None:
            raise ModelError(f"{self.name} has no tokenizer; give the folder that holds its tokenizer.json.")
        known, asked = self.known_texts, tuple(texts)
        if asked not in known:
            while len(known) >= MOST_LISTS:
                known.pop(next(iter(known)))
            known[asked] = self.encode_tokens(self._tokenizer(texts))
        return known[asked].clone()

    @torch.no_grad()
    def encode_tokens(self, ids: Int[Tensor, "n t"]) -> Float[Tensor, "n D"]:
        """Unit embeddings, float32, of n rows of token ids (start token first, end token, then any padding).

        Raises:
            ModelError: a row is longer than the context, an id is outside the vocabulary, or a row has no end token.
        """
        if not ids.numel():
            return torch.zeros((0, self.dim), device=self.device)
        words, pad = self.text.words.shape[0], self.architecture.pad_token
        if ids.shape[1] > self.context:
            raise ModelError(f"a text has {ids.shape[1]} tokens; expected at most {self.context}. Cut it.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < words:
            raise ModelError(
                f"token ids go from {int(ids.min())} to {int(ids.max())}; {self.name} knows 0 to {words - 1}. "
                "Use the tokenizer that belongs to these weights."
            )
        ids = ids.to(self.device)
        if pad is not None:
            ids = F.pad(ids, (0, self.context - ids.shape[1]), value=pad)
            last = torch.full((len(ids),), self.context - 1, device=self.device)
            batches = zip(ids.split(TEXTS_AT_ONCE), last.split(TEXTS_AT_ONCE), strict=True)
            return torch.cat([self._encode_tokens(*batch) for batch in batches])
        end_token = self.architecture.end_token
        if end_token is None:
            ends = ids.argmax(1)
        else:
            is_end = ids == end_token
            if not bool(is_end.any(1).all()):
                raise ModelError(f"a text has no end token (id {end_token}). Use the weights' own tokenizer.")
            ends = is_end.int().argmax(1)
        batches = zip(ids.split(TEXTS_AT_ONCE), ends.split(TEXTS_AT_ONCE), strict=True)
        parts = [self._encode_tokens(*batch) for batch in batches]
        return torch.cat(parts)

    def _encode_tokens(self, ids: Tensor, ends: Tensor) -> Tensor:
        ids = ids[:, : int(ends.max()) + 1]
        x = self.text.words[ids] + self.text.positions[: ids.shape[1]]
        for block in self.text.blocks:
            x, _ = through(block, x, causal=self.architecture.pad_token is None, keep=False)
        last = self.text.ln_final(x[torch.arange(len(x), device=x.device), ends]) @ self.text.projection
        return F.normalize(last if self.text.bias is None else last + self.text.bias, dim=1)

    # images

    @torch.no_grad()
    def encode(
        self,
        pixels: Float[Tensor, "N 3 H W"],
        attention_blocks: int = 8,
        keep_blocks: bool = False,
        keep_last: bool = True,
        apart: bool = False,
    ) -> Features:
        """Features of N images of one size.

        Args:
            pixels: RGB, normalised with `mean` and `std`; H and W are multiples of `patch`.
            attention_blocks: how many of the last blocks' attention to average; more than there are means all of them,
                0 means none (`attention` is then None).
            keep_blocks: also give the patch tokens that leave each block.
            keep_last: also give the inside of the last block, which the seeds need.
            apart: give the attention of these blocks each for itself rather than their mean.

        Raises:
            ModelError: H or W is not a multiple of the patch.
        """
        return self.resume(self.trunk(pixels, attention_blocks, keep_blocks, apart), keep_last)

    @torch.no_grad()
    def trunk(
        self,
        pixels: Float[Tensor, "N 3 H W"],
        attention_blocks: int = 8,
        keep_blocks: bool = False,
        apart: bool = False,
    ) -> Trunk:
        """`encode` up to the last block; see there."""
        x, grid = self._embed_patches(pixels)
        tokens = x.shape[1]
        turn = self.image.turn(grid)
        first_averaged = max(0, self.layers - attention_blocks)
        averaged = self.layers - first_averaged
        held = averaged if apart else min(averaged, 1)
        sums = [x.new_zeros((len(x), tokens, tokens)) for _ in range(held)]
        outputs: list[Tensor] = []
        for number, block in enumerate(self.image.blocks[:-1]):
            attention = sums[(number - first_averaged) % held] if number >= first_averaged else None
            x, _ = through(block, x, attention=attention, keep=False, turn=turn)
            if keep_blocks:
                outputs.append(x[:, self.image.first :])
        return Trunk(grid, x, tuple(sums), averaged, apart, tuple(outputs) if keep_blocks else None)

    @torch.no_grad()
    def resume(self, trunk: Trunk, keep_last: bool = True) -> Features:
        """`encode` from the last block on: the same bytes whether the trunk was kept meanwhile or not. The trunk's sums
        are used up."""
        sums, averaged, first = trunk.sums, trunk.averaged, self.image.first
        attention = sums[-1] if sums else None
        turn = self.image.turn(trunk.grid)
        x, inside = through(self.image.blocks[-1], trunk.residual, attention=attention, keep=keep_last, turn=turn)
        return Features(
            grid=trunk.grid,
            patches=self.project(x[:, first:]),
            attention=sums[0][:, first:, first:] / averaged if averaged and not trunk.apart else None,
            blocks=None if trunk.blocks is None else (*trunk.blocks, x[:, first:]),
            last=inside,
            apart=tuple(one[:, first:, first:] for one in sums) if trunk.apart else None,
        )

    def embed_images(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """The encoder's own image embeddings, unit length, float32: of the class token, or of SigLIP's pooling head.

        Gradients pass to `pixels` where they ask for one (`masked` regions of RSC), and to no weight.

        Raises:
            ModelError: H or W is not a multiple of the patch.
        """
        x, grid = self._embed_patches(pixels)
        turn = self.image.turn(grid)
        for block in self.image.blocks:
            x = plainly(block, x, turn=turn) if x.requires_grad else through(block, x, keep=False, turn=turn)[0]
        return F.normalize(self.image.whole(x), dim=-1)

    def project(self, tokens: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows D"]:
        """LN-post, then the projection into the joint space, or SigLIP's head on each token alone; float32, not
        normalised."""
        return self.image.project(tokens)

    def _embed_patches(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (N, T, width) that enter the first block, and the grid (h, w)."""
        count, _, height, width = pixels.shape
        side = self.patch
        if height % side or width % side or not height or not width:
            raise ModelError(
                f"Images are {height}×{width} pixels (height × width); expected multiples of the patch, {side}. "
                "Resize them with vpl.edges.images.to_pixels."
            )
        grid = (height // side, width // side)
        cut = pixels.to(self.device, torch.float32).reshape(count, 3, grid[0], side, grid[1], side)
        rows = cut.permute(0, 2, 4, 1, 3, 5).reshape(count, grid[0] * grid[1], 3 * side * side)
        patches = rows @ self.image.patch.flatten(1).T
        return self.image.begin(patches, self._positions(grid)), grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (T, width) on a new grid: bilinear, half-pixel centres; antialiased for NaFlex."""
        first = self.image.first
        known = round((self.image.positions.shape[0] - first) ** 0.5)
        if grid == (known, known):
            return self.image.positions
        square = self.image.positions[first:].T.reshape(1, self.width, known, known)
        moved = F.interpolate(square, size=grid, mode="bilinear", antialias=self.architecture.antialias)
        return torch.cat([self.image.positions[:first], moved[0].flatten(1).T])
