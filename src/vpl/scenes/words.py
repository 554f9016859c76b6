"""What a scene is called: captions of many kinds, which name only what is there, and the words for colours and places.

Letters: none; a caption is drawn with the scene's own random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vpl.classes import SCENE_GROUNDS, SCENE_NAMES

_OPENINGS: tuple[str, ...] = (
    "a photo of {}", "a photo of {}", "a picture of {}", "an image of {}", "{}", "{}", "itap of {}", "a origami {}",
    "a clean origami {}", "a bad photo of {}", "a photo of the large {}", "a photo of the small {}",
    "{} in a video game", "art of {}", "a good photo of {}", "a drawing of {}", "there is {}", "we see {}",
    "my favourite photo of {}", "a scene with {}",
)  # fmt: skip
_ALONE: tuple[str, ...] = (
    "{}", "a photo of {}", "{} with nothing on it", "a photo of {} with nothing on it", "empty {}", "only {}",
    "just {}", "a photo of {} alone", "nothing but {}", "{} background", "a photo of the {}", "a clean origami {}",
    "itap of {}", "{} in a video game", "art of the {}", "a bad photo of the {}",
)  # fmt: skip
_CONNECT: tuple[str, ...] = (
    "on {}", "on {}", "in front of {}", "with {}", "and {}", "against {}", "with {} in the background",
)  # fmt: skip
_PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
_COLOUR_WORDS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "white", "grey", "dark")
_HUE_WORDS = (
    (0.04, "red"), (0.11, "orange"), (0.19, "yellow"), (0.45, "green"), (0.54, "teal"), (0.72, "blue"),
    (0.82, "purple"), (0.94, "pink"), (1.01, "red"),
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What a caption may say of an object."""

    name: str
    colour: str
    size: float  # of the image's side
    centre: tuple[float, float]  # x, y in [0, 1]


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption may hold, sorted."""
    words = set(SCENE_NAMES) | set(SCENE_GROUNDS) | set(_COLOUR_WORDS)
    words |= {"a", "an", "the", "and", "big", "little", "two", "next", "to"} | {_plural(name) for name in SCENE_NAMES}
    for text in (*_OPENINGS, *_ALONE, *_CONNECT, *(place for row in _PLACES for place in row)):
        words.update(text.replace("{}", " ").split())
    return tuple(sorted(words))


def _plural(name: str) -> str:
    return {"fish": "fish", "butterfly": "butterflies"}.get(name, name + "s")


def _place_words(centre: tuple[float, float]) -> str:
    column, row = (0 if v < 0.38 else 2 if v > 0.62 else 1 for v in centre)
    return _PLACES[row][column]


def hue_word(hue: float, saturation: float, value: float) -> str:
    if saturation < 0.16:
        return "white" if value > 0.75 else "grey"
    if value < 0.3:
        return "dark"
    if 0.03 < hue < 0.12 and value < 0.62:
        return "brown"
    return next(word for limit, word in _HUE_WORDS if hue < limit)


def caption(rng: np.random.Generator, objects: Sequence[Seen], ground: str) -> str:
    u = rng.random(12).tolist()
    if not objects:
        return _ALONE[int(u[0] * len(_ALONE))].format(ground)
    order = list(objects)
    if u[1] < 0.5:
        order.reverse()
    kind = u[2]
    if kind < 0.12:  # a tag list
        words = list(dict.fromkeys(thing.name for thing in order)) + ([ground] if u[3] < 0.7 else [])
        if u[4] < 0.3:
            words = [words[i] for i in rng.permutation(len(words))]
        return (", " if u[5] < 0.8 else " ").join(words)
    if kind < 0.18:
        return order[0].name
    partial = kind < 0.28 and len(order) > 1
    if partial:
        order = order[: 1 + int(u[3] * (len(order) - 1))]
    where = u[4] < 0.35
    coloured, sized = u[5] < 0.22, u[6] < 0.15
    article = ("a", "a", "a", "the", "")[int(u[7] * 5)]
    counts: dict[str, list[Seen]] = {}
    for thing in order:
        counts.setdefault(thing.name, []).append(thing)
    phrases = []
    for name, things in counts.items():
        if len(things) > 1:
            phrases.append(f"two {_plural(name)}")
            continue
        thing = things[0]
        adjectives = []
        if sized and (thing.size > 0.45 or thing.size < 0.27):
            adjectives.append("big" if thing.size > 0.45 else "little")
        if coloured:
            adjectives.append(thing.colour)
        first = adjectives[0] if adjectives else name
        lead = "an" if article == "a" and first[0] in "aeiou" else article
        phrase = " ".join(word for word in (lead, *adjectives, name) if word)
        phrases.append(f"{phrase} {_place_words(thing.centre)}" if where else phrase)
    if len(phrases) == 1:
        body = phrases[0]
    elif u[8] < 0.7:
        body = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    else:
        body = (" and " if u[8] < 0.85 else " next to ").join(phrases)
    opening = _OPENINGS[int(u[9] * len(_OPENINGS))]
    if opening.split("{}")[0].rstrip().split(" ")[-1] in ("origami", "large", "small"):
        body = body.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    if u[10] < 0.6 and not (partial and u[11] < 0.5):
        body = body + " " + _CONNECT[int(u[11] * len(_CONNECT))].format(ground)
    return opening.format(body)
