"""One step of pre-training after another: batches, the loss over them, weights and optimisers. Used by `pretrain`.

    loss = Σ over embeddings e of [ L(e, captions) + L(e, words) ],   e: class token, patch mean, best patches

with L of `contrast`; words are single-word captions (an image's tags) in one prompt or another. A step depends on
the weights and on (seed, step) alone: a training that goes on from a checkpoint gives the numbers of one that never
stopped.

Letters: h w patch grid · D joint embedding width; B images and M texts of a batch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vpl.pocket.captions import PROMPTS, Chunk
from vpl.pocket.contrast import augment, best_patches, contrast, encode_images, encode_texts, mosaic, mosaic_spans
from vpl.pocket.recipe import PATCH, Recipe, build, rng_of
from vpl.pocket.zeroshot import marked, mean_of, token_ids, zero_shot

MOST_SCALE = math.log(100)
"""CLIP's bound on logit_scale."""
SPEED_STEPS = 12


def step_loss(recipe: Recipe, model: Any, scale: Tensor, tokenizer: Any, chunk: Chunk, step: int) -> Float[Tensor, ""]:
    """The loss of one step's batch: whole images or mosaics of four, as the step's own random numbers say."""
    rng, picks, device = rng_of(recipe.seed, 1, step), recipe.picks(step), scale.device
    u = torch.rand(8, generator=rng).tolist()
    cells = 4 if u[0] < recipe.mosaic and len(picks) >= 8 else 1
    grids = recipe.mosaic_grids if cells > 1 else recipe.grids
    grid = grids[int(u[1] * len(grids))]
    images = torch.from_numpy(chunk.images[picks.numpy()]).to(device).permute(0, 3, 1, 2).float() / 255
    part = len(picks) // cells
    if cells > 1:
        row, column = (grid // 2 + int(5 * u[i]) - 2 for i in (2, 3))
        pixels, cell_of = mosaic(images, grid, mosaic_spans(grid, row, column), PATCH, rng)
        picks = picks[: cells * part]
    else:
        pixels, cell_of = augment(images, PATCH * grid, PATCH * grid, rng), torch.zeros(grid, grid, dtype=torch.long)
    kept = torch.arange(grid * grid)
    if (most := recipe.patches(step, len(kept))) < len(kept):
        kept = torch.randperm(len(kept), generator=rng)[:most].sort().values
    first, patches = encode_images(model, pixels, kept.to(device))
    cell_of = cell_of.flatten()[kept]
    by_cell = [patches[:, cell_of == number] for number in range(cells)]
    means = F.normalize(torch.cat([one.float().mean(1) for one in by_cell]), dim=-1)
    first = F.normalize(first.float(), dim=-1)

    captions, caption_right = marked([(chunk.captions[i],) for i in picks.tolist()])
    words, word_right = marked([chunk.words[i] for i in picks.tolist()])
    prompts = torch.randint(len(PROMPTS), (len(words),), generator=rng).tolist()
    texts = [*captions, *(PROMPTS[prompt].format(word) for prompt, word in zip(prompts, words, strict=True))]
    t = encode_texts(model, token_ids(tokenizer, texts, recipe.context).to(device))
    t, w = t[: len(captions)], t[len(captions) :]
    caption_right, word_right = caption_right.to(device), word_right.to(device)
    loss = recipe.patch_weight * contrast(scale * means @ t.T, caption_right)
    if cells == 1:
        loss = loss + contrast(scale * first @ t.T, caption_right)
    if words:
        whole = word_right.view(cells, part, -1).amax(0)
        loss = loss + recipe.word_weight * contrast(scale * first @ w.T, whole)
        loss = loss + recipe.patch_weight * recipe.word_weight * contrast(scale * means @ w.T, word_right)
        if recipe.local_weight:
            best = torch.cat([best_patches(one, w) for one in by_cell])
            loss = loss + recipe.local_weight * contrast(scale * best, word_right)
    return loss


@dataclass(frozen=True)
class Record:
    """One line of the log. `seconds`: training time so far, over all starts. NaN where there is nothing to measure."""

    step: int
    loss: float
    temperature: float
    tag_map: float
    class_token_map: float
    retrieval: float
    gap: float
    rate: float
    images_per_second: float
    seconds: float


class Trainer:
    """Weights, optimisers and place of one pre-training; everything else follows from the recipe and the step.

    Master weights are float32; `precision` is the format of the copy that computes.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any, device: torch.device, precision: torch.dtype):
        self.recipe, self.tokenizer, self.precision = recipe, tokenizer, precision
        self.model = build(recipe, tokenizer, "sdpa" if device.type == "cuda" else "eager").to(device)
        self._working = copy.deepcopy(self.model).to(precision)
        self._masters = [p for name, p in self.model.named_parameters() if name != "logit_scale"]
        self._copies = [p for name, p in self._working.named_parameters() if name != "logit_scale"]
        inner = [p for name, p in self.model.named_parameters() if ".layers." in name and p.ndim == 2]
        outer = [p for name, p in self.model.named_parameters() if not (".layers." in name and p.ndim == 2)]
        groups = [
            {"params": [p for p in outer if p.ndim > 1], "weight_decay": recipe.decay},
            {"params": [p for p in outer if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimisers = (
            torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98)),
            torch.optim.Muon(inner, lr=recipe.rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
        )
        self._averages = [p.detach().clone() for p in self._masters]
        self.step, self.seconds = 0, 0.0
        self.log: list[tuple[float, ...]] = []
        self.best: dict = {}

    def advance(self, chunk: Chunk) -> float:
        """One optimiser step. Returns the loss."""
        recipe = self.recipe
        for optimiser, factor in zip(self._optimisers, (1.0, recipe.inner_rate), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = factor * recipe.learning_rate(self.step)
        loss = step_loss(recipe, self._working, self.model.logit_scale.exp(), self.tokenizer, chunk, self.step)
        loss.backward()
        for master, work in zip(self._masters, self._copies, strict=True):
            master.grad = None if work.grad is None else work.grad.float()
            work.grad = None
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MOST_SCALE)
            torch._foreach_copy_(self._copies, self._masters)
            weight = 1 - min(recipe.average, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(self._averages, self._masters, weight)
        self.step += 1
        return float(loss.detach())

    def averaged(self):
        """The float32 model with the running mean of its weights."""
        model = copy.deepcopy(self.model).eval()
        rows = [p for name, p in model.named_parameters() if name != "logit_scale"]
        with torch.no_grad():
            torch._foreach_copy_(rows, self._averages)
        return model

    def measure(self, held: Chunk, losses: Sequence[float], seconds: float) -> Record:
        """Measures the averaged model on held-out captions, keeps it if it is the best so far, and logs the record."""
        model = self.averaged()
        figures = zero_shot(model, self.tokenizer, held, self.recipe.size)
        self.seconds += seconds
        record = Record(
            step=self.step,
            loss=float(np.mean(losses)),
            temperature=math.exp(-float(model.logit_scale.detach())),
            tag_map=mean_of(figures.ap),
            class_token_map=mean_of(figures.class_token_ap),
            retrieval=figures.retrieval,
            gap=figures.gap,
            rate=self.recipe.learning_rate(self.step),
            images_per_second=self.recipe.batch * len(losses) / seconds,
            seconds=self.seconds,
        )
        self.log.append(dataclasses.astuple(record))
        score = record.tag_map if figures.ap else record.retrieval
        if not self.best or score >= self.best["score"]:
            self.best = {"score": score, "step": self.step, "model": model.state_dict()}
        return record

    def state(self) -> dict:
        return {
            "recipe": dataclasses.asdict(self.recipe),
            "model": self.model.state_dict(),
            "averages": self._averages,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "step": self.step,
            "seconds": self.seconds,
            "log": self.log,
            "best": self.best,
        }

    def load(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        with torch.no_grad():
            torch._foreach_copy_(self._averages, [a.to(self.model.device) for a in state["averages"]])
            torch._foreach_copy_(self._copies, self._masters)
        self.step, self.seconds, self.log, self.best = (state[key] for key in ("step", "seconds", "log", "best"))


@runtime_checkable
class Chunks(Protocol):
    """What a training reads."""

    def chunk(self, number: int) -> Chunk:
        """Chunk `number`, from 0, the same at every call."""
        ...


def chunks(source: Chunks, first: int, workers: int) -> Generator[Chunk]:
    """The source's chunks from number `first` on; with a worker, the next one is drawn while this one trains."""
    if not workers:
        while True:
            yield source.chunk(first)
            first += 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        ahead = pool.submit(source.chunk, first)
        try:
            while True:
                ready, first = ahead.result(), first + 1
                ahead = pool.submit(source.chunk, first)
                yield ready
        finally:
            ahead.cancel()


def train(trainer: Trainer, source: Chunks, held: Chunk, every: int, workers: int) -> Iterator[Record]:
    """Train to the recipe's last step; measure and yield every `every` steps and at the end."""
    recipe = trainer.recipe
    if trainer.step >= recipe.steps:
        return
    number = trainer.step // recipe.steps_per_chunk
    drawn = chunks(source, number, workers)
    try:
        chunk, started, losses = next(drawn), time.monotonic(), []
        while trainer.step < recipe.steps:
            if trainer.step // recipe.steps_per_chunk != number:
                number, chunk = number + 1, next(drawn)
            losses.append(trainer.advance(chunk))
            if trainer.step % every == 0 or trainer.step == recipe.steps:
                yield trainer.measure(held, losses, time.monotonic() - started)
                started, losses = time.monotonic(), []
    finally:
        drawn.close()


def steps_in(minutes: float, trial: Trainer, chunk: Chunk) -> int:
    """Steps that fit into `minutes`, by the speed of a few steps of a trainer that is then thrown away."""
    trial.advance(chunk)
    started = time.monotonic()
    for _ in range(SPEED_STEPS):
        trial.advance(chunk)
    return max(1, round(60 * minutes * SPEED_STEPS / (time.monotonic() - started)))
