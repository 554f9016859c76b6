"""A trained network as CVAT's auto-annotation function: one mask for each class of a frame, or a polygon for each part.

    cvat-cli task auto-annotate 7 --function-module vpl.integrations.cvat -p model=str:runs/mine
    cvat-cli function create-native vpl --function-module vpl.integrations.cvat -p model=str:runs/mine

A class is matched with the task's label of the same name. A mask says which class a pixel has, not which object, so a
class is one shape, however many objects it has; polygons are drawn around connected parts (exports/outlines.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from vpl.classes import IGNORE
from vpl.errors import ConfigError, DataError, ModelError
from vpl.exports import outlines
from vpl.network import predict
from vpl.network.predict import SINGLE, Predictor

PROTOCOLS = ("single", "multi")
SHAPES = ("mask", "polygon")


def _sdk() -> Any:
    try:
        import cvat_sdk.auto_annotation as sdk
    except ImportError as error:
        raise ModelError('CVAT\'s SDK is not installed; pip install "vpl-seg[cvat]".') from error
    return sdk


def create(
    model: str, clip: str = "", device: str = "auto", protocol: str = "single", shapes: str = "mask"
) -> Function:
    """What CVAT's command line makes of `-p NAME=TYPE:VALUE`.

    Args:
        model: a run folder, or a folder that `vpl export --to hf` made.
        clip: where the network's CLIP lies now, if elsewhere.
        device: auto, cpu, cuda or mps.
        protocol: single, or multi (several scales, mirrored, CRF).
        shapes: mask or polygon.

    Raises:
        ConfigError: an unknown protocol or shape. ModelError: there is no network, or CVAT's SDK is not installed.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {protocol!r}; expected {' or '.join(PROTOCOLS)}.")
    return Function(predict.load(model, clip or None, device), protocol == "multi", shapes)


class Function:
    """CVAT's detection function.

    Args:
        predictor: the network (`vpl.load`).
        full: look at several scales, mirrored, and refine with the CRF.
        shapes: mask or polygon. A caller that wants polygons of masks gets them.

    Raises:
        ConfigError: an unknown shape. ModelError: CVAT's SDK is not installed.
    """

    def __init__(self, predictor: Predictor, full: bool = False, shapes: str = "mask"):
        if shapes not in SHAPES:
            raise ConfigError(f"shapes is {shapes!r}; expected {' or '.join(SHAPES)}.")
        self._predictor, self._protocol, self._shapes = predictor, predictor.full if full else SINGLE, shapes
        self._sdk = _sdk()

    @property
    def spec(self) -> Any:
        """CVAT's DetectionFunctionSpec: the classes by name; an id is the label value."""
        labels = [
            self._sdk.label_spec(name, label, type=self._shapes)
            for label, name in enumerate(self._predictor.classes.names, 1)
        ]
        return self._sdk.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Shapes of one frame.

        Args:
            context: CVAT's; below its `conf_threshold` a pixel has no class, and `conv_mask_to_poly` asks for polygons.
            image: the frame as CVAT gives it.

        Raises:
            DataError: the frame can't be read.
        """
        answer = self._predictor.answer(image, self._protocol)
        if answer.size != (image.height, image.width):
            raise DataError(
                f"the frame is turned by its EXIF: {image.height} x {image.width} pixels as CVAT counts them, "
                f"{answer.size[0]} x {answer.size[1]} as it is seen. Save it upright."
            )
        labels = answer.labels(context.conf_threshold or 0.0)
        found = []
        for label in np.unique(labels).tolist():
            if label in (0, IGNORE):
                continue
            where = labels == label
            if self._shapes == "mask" and not context.conv_mask_to_poly:
                from cvat_sdk.masks import encode_mask

                found.append(self._sdk.mask(label, encode_mask(where)))
                continue
            for part, top, left in outlines.parts(where):
                ring = outlines.outline(part, top, left)
                found.append(self._sdk.polygon(label, [float(one) for point in ring for one in point]))
        return found
