"""The room "Try": a photograph and its tags under a CLIP, what values do to them, and values that go into a run.

A CLIP is one that the run has, that was named at the command line, or that the person at the page types; a photograph
is sent, or is one of the run's list. No other file is opened. Pictures are sent as rows of label values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import secrets
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vpl.app.trial import Trial
from vpl.classes import ClassSet
from vpl.clip.model import FrozenClip
from vpl.config import Config, quality
from vpl.edges import images
from vpl.edges.datasets import Sample
from vpl.edges.tags import Speller
from vpl.errors import DataError
from vpl.method.looks import MAKERS
from vpl.method.prototypes import text_prototypes
from vpl.method.views import View
from vpl.presets import STANDARD
from vpl.runs import stored
from vpl.runs.files import read_facts, read_prototypes
from vpl.runs.folder import RunFolder, log
from vpl.runs.planned import dataset_of
from vpl.runs.review import Changed

DIALS: dict[str, tuple[float, float]] = {
    "prototypes.image_temperature": (0.005, 0.5),
    "labels.background_exponent": (0.2, 5.0),
    "refine.box_threshold": (0.0, 1.0),
    "labels.confidence": (0.3, 1.0),
    "looks.makers": (0, 0),
    "looks.flip": (0, 1),
    "par.rounds": (0, 20),
    "crf.enabled": (0, 1),
}
"""The values that can be moved, and how far their sliders go. [ours]"""
KEPT = 3
"""Photographs whose encodings are kept, the latest ones: of several windows, or of several tries."""
MOST_TAGS = 20
SEPARATORS = ",;\n"


class Tryout:
    """Photographs under trial, with a run beside them or without.

    Args:
        folder: the run whose values, classes, prototypes and photographs are used; None: quality standard of a new run.
        clips: CLIPs that were named at the command line, offered beside the run's own.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        VplError: the run's configuration or list can't be read.
    """

    def __init__(self, folder: Path | None = None, clips: Sequence[str] = (), device: str = "auto"):
        self.folder, self._device = folder, device
        self.config = self._stored()
        self.clips = tuple(dict.fromkeys((*clips, self.config.clip.model)))
        self.classes: ClassSet | None = None
        self._samples: dict[str, Sample] = {}
        if folder is not None:
            dataset = dataset_of(self.config.data)
            self.classes, self._samples = dataset.classes, {one.id: one for one in dataset.samples}
        self._trials: OrderedDict[str, Trial] = OrderedDict()
        self._clip: tuple[str, FrozenClip] | None = None
        self._lock, self._encoding = threading.Lock(), threading.Lock()

    def _stored(self) -> Config:
        if self.folder is None:
            return Config().with_values(quality(STANDARD))
        return stored.read(self.folder)

    def values(self) -> dict[str, Any]:
        """All that the page shows before a photograph is there: the dials with their values, and the revision of the
        configuration that they are of."""
        config = self._stored()
        flat, standard = config.flat(), Config()
        dials = []
        for key, (low, high) in DIALS.items():
            about = config.field(key).metadata
            dial = {"key": key, "value": flat[key], "low": low, "high": high, "help": about["help"]}
            dials.append(dial | {"source": config.source(key), "default": standard.flat()[key]})
        return {
            "run": self.folder.name if self.folder else "",
            "clips": list(self.clips),
            "classes": list(self.classes.names) if self.classes else [],
            "makers": list(MAKERS),
            "photographs": list(self._samples)[:1000],
            "dials": dials,
            "revision": _revision(config),
        }

    def look(self, photograph: bytes, id: str, tags: str, clip: str) -> dict[str, Any]:
        """Encode a photograph; what the page needs to ask for its maps.

        Args:
            photograph: what its file holds; empty: the run's photograph `id`.
            tags: words, separated by comma, semicolon or line.
            clip: a model as `clip.model` names it.

        Raises:
            VplError: the photograph, a tag or the CLIP can't be used.
        """
        start, config = time.perf_counter(), self._stored()
        config = config.with_values({"clip.model": clip or self.clips[0]})
        if photograph:
            pixels, size = images.read_bytes(photograph, config.clip.max_side)
        else:
            if not id:
                raise DataError("the file that was sent is empty; choose another photograph.")
            sample = self._sample(id)
            pixels, size = images.read_with_size(sample.image, config.clip.max_side)
            tags = tags or ",".join(sample.tags)
        classes, named = self._named(tags)
        with self._encoding:
            encoder = self._encoder(config)
            text, vision, why = self._prototypes(encoder, classes, config)
            trial = Trial(encoder, len(classes), View(pixels, classes.numbers(named), size), text, vision, config)
        with self._lock:
            key = secrets.token_urlsafe(9)
            self._trials[key] = trial
            while len(self._trials) > KEPT:
                self._trials.popitem(last=False)
        palette, (height, width) = classes.palette(), trial.view.size
        return {
            "look": key,
            "height": height,
            "width": width,
            "size": list(size),
            "tags": list(named),
            "colors": {str(classes.index(tag) + 1): list(palette[classes.index(tag) + 1]) for tag in named},
            "stages": list(trial.stages),
            "clip": encoder.name,
            "without_vision": why,
            "seconds": round(time.perf_counter() - start, 3),
        }

    def photograph(self, look: str) -> bytes:
        """The photograph as it is looked at, a JPEG."""
        packed = io.BytesIO()
        Image.fromarray(self._trial(look).view.image).save(packed, "JPEG", quality=92)
        return packed.getvalue()

    def maps(self, asked: dict[str, Any]) -> bytes:
        """Label maps under values: a line of JSON, then the rows of each stage, a byte a pixel.

        Raises:
            VplError: the photograph is no longer kept, or a value is out of its bounds.
        """
        start, trial = time.perf_counter(), self._trial(str(asked.get("look")))
        config = self._stored().with_values(_checked(asked.get("values", {})))
        made = trial.whole(config) if asked.get("whole") is True else trial.quick(config)
        if not trial.prepared:
            trial.prepared = True
            threading.Thread(target=trial.prepare, args=(config,), name="makers", daemon=True).start()
        stages = [one for one in trial.stages if one in made]
        head = {"stages": stages, "seconds": round(time.perf_counter() - start, 4), "whole": asked.get("whole") is True}
        return json.dumps(head).encode() + b"\n" + b"".join(np.ascontiguousarray(made[one]).tobytes() for one in stages)

    def use(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write values into the run's configuration, as `vpl run RUN --set` would; without a run, only the line.

        Raises:
            Changed: the configuration was written since it was looked at.
            RunError: another process works in the run.
            ConfigError: a value is out of its bounds.
        """
        values = _checked(asked.get("values", {}))
        before = self._stored()
        config = before.with_values(values)
        changed = {key: theirs for key, (_, theirs) in before.differences(config).items()}
        line = " ".join(f"--set {shlex.quote(f'{key}={_written(one)}')}" for key, one in changed.items())
        if self.folder is None:
            return {"written": False, "line": f"vpl run RUN {line}".strip(), "changed": list(changed)}
        with RunFolder(self.folder, before) as opened:  # which holds its lock
            now = self._stored()
            if _revision(now) != asked.get("revision"):
                raise Changed("the run's configuration was changed in the meantime; its values are shown again.")
            opened.config = now.with_values(values)
            if changed:
                opened.settle()
                log.info("values set by vpl app: %s", line)
        return {
            "written": bool(changed),
            "line": f"vpl run {shlex.quote(str(self.folder))}",
            "changed": list(changed),
            "revision": _revision(opened.config),
        }

    # ------------------------------------------------------------------ inside

    def _sample(self, id: str) -> Sample:
        if id not in self._samples:
            raise DataError("there is no such photograph in the run; drop one, or choose one of its list.")
        return self._samples[id]

    def _trial(self, look: str) -> Trial:
        with self._lock:
            if look not in self._trials:
                raise DataError("this photograph is no longer kept; look at it again.")
            self._trials.move_to_end(look)
            return self._trials[look]

    def _named(self, tags: str) -> tuple[ClassSet, tuple[str, ...]]:
        """The classes, and the photograph's among them: without a run its tags are all that there are."""
        for one in SEPARATORS:
            tags = tags.replace(one, ",")
        words = tuple(dict.fromkeys(" ".join(one.split()) for one in tags.split(",") if one.strip()))
        if not 0 < len(words) <= MOST_TAGS:
            raise DataError(f"there are {len(words)} tags; expected 1 to {MOST_TAGS}: type what is in the photograph.")
        classes = self.classes or ClassSet(tuple(sorted(words)))
        speller = Speller(classes, {})
        named = speller.read(words, "the photograph")
        if wrong := speller.problems():
            raise DataError(wrong[0])
        return classes, named

    def _encoder(self, config: Config) -> FrozenClip:
        """The CLIP; the last one stays in memory."""
        if self._clip is None or self._clip[0] != config.clip.model:
            self._clip = None
            own = config.clip if config.clip.model == self.config.clip.model else _plain(config).clip
            self._clip = config.clip.model, FrozenClip.of(own, self._device)
        return self._clip[1]

    def _prototypes(
        self, clip: FrozenClip, classes: ClassSet, config: Config
    ) -> tuple[Tensor, Tensor | None, str]:  # fmt: skip
        """Text prototypes, the run's vision prototypes if they are of this CLIP, and why not otherwise."""
        text = text_prototypes(clip, classes, config.prompts).all
        if self.folder is None:
            return text, None, "vision prototypes are learned by a run: open the page with vpl app RUN."
        path = self.folder / "prototypes.safetensors"
        if config.prototypes.kind == "text" or not path.is_file():
            return text, None, "this run has no vision prototypes."
        facts = read_facts(path)
        if facts.get("clip_hash") != clip.weights_hash or tuple(facts.get("classes") or ()) != classes.names:
            return text, None, "the run's vision prototypes are of another CLIP or other classes."
        return text, read_prototypes(path, clip.dim)["vision"], ""


def _plain(config: Config) -> Config:
    """Without what was said about the run's own CLIP alone."""
    none = {f"clip.{name}": Config().flat()[f"clip.{name}"] for name in ("heads", "activation", "mean", "std")}
    return config.with_values(none)


def _checked(values: Any) -> dict[str, object]:
    """The values of dials, by their keys.

    Raises:
        DataError: another value is among them.
    """
    if not isinstance(values, dict) or set(values) - DIALS.keys():
        raise DataError(f"the values are of other keys; expected some of {', '.join(DIALS)}.")
    return {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}


def _written(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _revision(config: Config) -> str:
    """Changes whenever a value does."""
    return hashlib.sha256(repr(dataclasses.astuple(config)).encode()).hexdigest()[:12]
