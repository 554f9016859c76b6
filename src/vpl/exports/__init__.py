"""Ways out: a run's masks and network in the formats of other tools; a new one is a module, and its name in `WAYS`."""

WAYS = {
    "voc": "masks", "coco": "masks", "coco-parts": "masks", "cvat": "masks", "yolo": "masks", "yolo-seg": "masks",
    "labelstudio": "masks", "labelstudio-parts": "masks", "onnx": "network", "hf": "network",
}  # fmt: skip
"""A way's name, which is its module's too ("-" as "_") -> what of a run it takes.

A module for masks has a class `Writer` (labelled.py says what it does), one for a network a function `write`, as hf.
"""
