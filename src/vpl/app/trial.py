"""One photograph under a CLIP, encoded once: label maps of each stage under any values, quickly and as a run has them.

    quick   text seeds · vision seeds (`seeds.Slopes`) · refined · makers, each kept while what it reads is the same ·
            votes · a few rounds of the CRF of mode "fast" on a lattice that is kept. PAR, mirror images and further
            scales are left out
    whole   a run's own way (`labeller`), to the byte, for a photograph within `clip.max_side`

Letters: P prototypes · D joint width · K tags · H W pixels of the view.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vpl.clip.model import FrozenClip
from vpl.config import Config
from vpl.method import crf, looks, masks
from vpl.method.affinities import refined
from vpl.method.labeller import Labeller
from vpl.method.seeds import Slopes, rows_of, seed_maps
from vpl.method.views import View, encode

STAGES = ("text", "vision", "refined", "labels")
"""Label maps in the order of the work; without vision prototypes the second is left out."""
QUICK_ROUNDS = 4
"""Mean-field rounds of the quick answer at most: the rounds are most of what a slider waits for. [ours]"""
Maps = dict[str, UInt8[np.ndarray, "H W"]]
_T = TypeVar("_T")


class Trial:
    """One photograph and its tags, ready for any values; several threads may ask.

    Args:
        clip: the frozen encoders.
        classes: number of classes.
        view: the photograph; its masks have the view's own size.
        text: text prototypes, the classes' rows first, then the background words'.
        vision: vision prototypes in this order; None: seeds are the text's.
        config: under which it is encoded; of other configurations `clip` and `prompts` are not read.

    Attributes:
        prepared: whether somebody has begun to `prepare` it.
    """

    def __init__(
        self,
        clip: FrozenClip,
        classes: int,
        view: View,
        text: Float[Tensor, "P D"],
        vision: Float[Tensor, "P D"] | None,
        config: Config,
    ):
        self.clip, self.classes, self.text, self.vision = clip, classes, text.to(clip.device), vision
        self.view = dataclasses.replace(view, size=view.image.shape[:2])
        self._config, self._kept, self.prepared = config, crf.Kept(), False
        self._lock, self._whole_lock = threading.Lock(), threading.Lock()
        self._made: dict[str, tuple[object, Any]] = {}
        self._slopes: Slopes | None = None
        with torch.no_grad():
            self._features = encode(clip, [self.view], config.clip)
            if vision is not None:
                self.vision = vision.to(clip.device)
                rows = rows_of(view.tags, classes, len(text))
                self._slopes = Slopes(clip, self._features, self.vision[rows])

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of `STAGES` that there are."""
        return tuple(one for one in STAGES if one != "vision" or self.vision is not None)

    @torch.no_grad()
    def quick(self, config: Config) -> Maps:
        """A preview, fast enough to follow a slider."""
        with self._lock:
            cams = self._seeds(config)
            exponent = config.labels.background_exponent
            found = {stage: self._map(stage, key, cam, exponent) for stage, (key, cam) in cams.items()}
            key, refined = cams["refined"]
            if config.looks.vote:
                known = looks.makers_of(config.looks, len(self.text) - self.classes)
                named = tuple(name for name in config.looks.makers if name in known)
                key = (named, config.looks.exponents, config.seeds, config.refine, key)
                scores = self._once("votes", key, lambda: self._votes(named, refined, config))
            else:
                key, scores = (key, exponent), found["refined"][1]
            shares = self._once("shares", (key, config.crf), lambda: self._shares(scores, config))
            sure = masks.sure_labels(shares, self.view, config.labels.confidence)[1]
            return {stage: one[0] for stage, one in found.items()} | {"labels": sure}

    @torch.no_grad()
    def prepare(self, config: Config) -> None:
        """Ask the makers that nobody has chosen yet, so that choosing one answers at once; `quick` waits for none."""
        every = dataclasses.replace(config.looks, makers=tuple(looks.MAKERS))
        for name in looks.makers_of(every, len(self.text) - self.classes):
            if name != looks.PAPER:
                self._said(name, config)

    def whole(self, config: Config) -> Maps:
        """What a run makes under this configuration."""
        config = dataclasses.replace(config, clip=self._config.clip, prompts=self._config.prompts)
        if self.vision is None:
            config = config.with_values({"prototypes.kind": "text"})
        labeller = Labeller(self.clip, self.text, self.vision, self.classes, config)
        with self._whole_lock, torch.no_grad():
            (draft,) = labeller.drafts_of(self._features, [self.view], True)
            made = labeller.masks(self.view, draft, True)
        return {stage: made[stage] for stage in self.stages}

    # ------------------------------------------------------------------ inside

    def _once(self, name: str, key: object, make: Callable[[], _T]) -> _T:
        """What was made under this key, or made now; of each name the last one is kept."""
        known = self._made.get(name)
        if known is None or known[0] != key:
            known = self._made[name] = key, make()
        return known[1]

    def _map(self, stage: str, key: object, cam: Tensor, exponent: float) -> tuple[UInt8[np.ndarray, "H W"], Tensor]:
        return self._once(
            f"map {stage}", (key, exponent), lambda: masks.label_map(cam.cpu(), self.view, exponent)
        )  # fmt: skip

    def _seeds(self, config: Config) -> dict[str, tuple[object, Float[Tensor, "K h w"]]]:
        """Seeds by stage, with what they depend on."""
        kind, tau = config.seeds.kind, config.prototypes.image_temperature
        text = self._once("text", kind, lambda: self._mapped(self.text, self.clip.logit_scale, kind))
        cams: dict[str, tuple[object, Tensor]] = {"text": (kind, text)}
        last: tuple[object, Tensor] = cams["text"]
        if self.vision is not None:
            table = self.vision

            def make() -> Tensor:
                if self._slopes is not None and kind == "gradcam":
                    return self._slopes.seeds(len(self.view.tags), 1 / tau)
                return self._mapped(table, 1 / tau, kind)

            last = cams["vision"] = (kind, tau), self._once("vision", (kind, tau), make)
        key = (last[0], config.refine)
        cams["refined"] = (
            key,
            self._once("refined", key, lambda: self._refined(last[1], config)),
        )
        return cams

    def _mapped(self, table: Float[Tensor, "P D"], scale: float, kind: str) -> Float[Tensor, "K h w"]:
        return seed_maps(self.clip, self._features, [self.view.tags], table, self.classes, scale, kind)[0]

    def _refined(self, seeds: Float[Tensor, "K h w"], config: Config) -> Float[Tensor, "K h w"]:
        tags = [self.view.tags]
        return refined(self.clip, self._features, tags, [seeds], self.text, self.classes, config.refine)[0]

    def _votes(self, named: tuple[str, ...], refined: Tensor, config: Config) -> Float[Tensor, "S H W"]:
        """What the makers say of the photograph at its own scale, counted."""
        said = [refined.cpu() if name == looks.PAPER else self._said(name, config) for name in named]
        return looks.votes(said, len(self.view.tags), self.view.image.shape[:2], config.looks)

    def _said(self, name: str, config: Config) -> Float[Tensor, "_ h w"]:
        tags, key = [self.view.tags], config.refine if name in looks.SPREAD else None
        seen = looks.Seen(self.clip, self._features, tags, self.text, self.vision, self.classes, config)
        return self._once(f"maker {name}", key, lambda: looks.MAKERS[name](seen)[0].cpu())

    def _shares(self, scores: Float[Tensor, "S H W"], config: Config) -> Float[Tensor, "S H W"]:
        if not config.crf.enabled:
            return scores / scores.sum(dim=0, keepdim=True).clamp(min=1e-12)
        fast = dataclasses.replace(config.crf, mode="fast", rounds=min(QUICK_ROUNDS, config.crf.rounds))
        return crf.dense_crfs([self.view.image], [scores], fast, self._kept)[0]
