"""A network that knows its answer, whatever the photograph: the first class in two pieces, the second with a hole."""

from __future__ import annotations

import numpy as np
import torch

from vpl.classes import IGNORE, ClassSet
from vpl.edges import images
from vpl.network.predict import SINGLE, Answer, Predictor

CLASSES = ClassSet(("dog", "red car", "sofa"))


def truth(height: int, width: int) -> np.ndarray:
    """Label values of its answer: two pieces of dog, a red car with a hole, no sofa."""
    labels = np.zeros((height, width), np.uint8)
    labels[1:4, 1:4] = 1
    labels[height - 3 : height - 1, 0:3] = 1
    labels[2 : height - 2, width // 2 : width - 1] = 2
    labels[4, width // 2 + 2] = 0
    return labels


class Knowing(Predictor):
    """Ninety percent sure of dogs, sixty of cars."""

    def __init__(self):
        self.classes, self.full = CLASSES, SINGLE

    fingerprint = "0123456789abcdef"

    def answer(self, image: images.Picture, protocol=SINGLE) -> Answer:
        height, width = images.read_image(image).shape[:2]
        labels = torch.from_numpy(truth(height, width)).long()
        sure = torch.tensor([0.97, 0.9, 0.6, 0.5])[labels]
        shares = (((1 - sure) / 3).expand(4, -1, -1)).clone()
        return Answer(shares.scatter(0, labels[None], sure[None]), (height, width))


__all__ = ["CLASSES", "IGNORE", "Knowing", "truth"]
