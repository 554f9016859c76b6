"""Whatever bytes stand in a file, its reader gives a result or one sentence: a few inputs here, many by `make fuzz`.

Inputs are damaged copies of good files by a seeded generator: `VPL_FUZZ_SECONDS` says how long each reader is tried
(none: `EXAMPLES` inputs), `VPL_FUZZ_SEED` from where. A failure names reader, seed and number, and leaves its input in
the test's folder. How many were tried is printed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import time
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from plain import plain_config
from vpl import classes as class_sets
from vpl.classes import ClassSet
from vpl.clip.archives import read_tensors
from vpl.config import Config, CrfConfig, DataConfig, DecoderConfig, PredictConfig
from vpl.edges import images
from vpl.edges.datasets import open_dataset
from vpl.edges.outputs import NAME, Made
from vpl.edges.truth import Drawings, Meaning, Values, read_truth
from vpl.errors import ModelError, VplError
from vpl.exports.coco import rle
from vpl.network.card import Card
from vpl.runs import files, learning, records
from vpl.runs.state import State

SECONDS, SEED = float(os.environ.get("VPL_FUZZ_SECONDS", 0)), int(os.environ.get("VPL_FUZZ_SEED", 0))
EXAMPLES, SLOWEST = 40, 5.0
WORDS = [b"\x00", b"\xff" * 4, b"-1", b"1e999", b"9" * 30, b"NaN", b"null", b"[", b"{", b'"', b"..", b"/", b"\n", b","]


def damaged(good: bytes, rng: np.random.Generator) -> bytes:
    """A copy with one to six wounds: bits, bytes, cuts, doubles, words that readers trip over."""
    data = bytearray(good)
    for _ in range(rng.integers(1, 7)):
        place = int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 1 + max(1, min(64, len(data)))))
        kind = rng.integers(6)
        if kind == 0 and data:
            data[min(place, len(data) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place : place + length] = rng.bytes(length)
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place:place] = WORDS[int(rng.integers(len(WORDS)))]
        else:
            del data[place:]
    return bytes(data)


# ------------------------------------------------------------------------------------------------------- good files
def picture(kind: str, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (13, 9, 3), dtype=np.uint8)
    packed = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(packed, kind)
    return packed.getvalue()


def card() -> bytes:
    return (
        Card(
            ClassSet(("dog", "cat")), DecoderConfig(width=8, heads=2, blocks=1), "pocket", "0" * 64, 2, 16, 8,
            (0.5,) * 3, (0.5,) * 3, 1.0, 64, PredictConfig(), CrfConfig(), {"train.steps": 2},
        ).to_json().encode()
    )  # fmt: skip


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 3}],
    "categories": [{"id": 3, "name": "dog"}],
}
TRUTH = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 7}],
    "annotations": [
        {"image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[1, 1, 6, 1, 6, 5, 1, 5]]},
        {"image_id": 1, "category_id": 4, "iscrowd": 1, "segmentation": {"size": [7, 9], "counts": [60, 3]}},
        {"image_id": 1, "category_id": 4, "iscrowd": 0, "segmentation": rle(np.eye(7, 9, dtype=bool))},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}],
}
RUN = {"data": {"hash": "a", "images": 1, "problems": []}, "clip": {"name": "p", "hash": "b"},
       "stages": {"train": {"seconds": 1.0, "images": 1}}, "failures": [{"id": "a", "reason": "b", "stage": ""}],
       "versions": {"vpl": "1"}}  # fmt: skip
ROW = {"name": "pseudo-masks", "miou": 0.5, "pixel_accuracy": 0.5, "iou": {"dog": 0.5}, "confusion": [[1, 2, 3]]}
METRICS = {"evaluations": [{"split": "a", "images": 1, "classes": ["dog"], "rows": [ROW]}],
           "label_free": {"a": {"value": 0.5, "meaning": "", "advice": ""}}}  # fmt: skip
CHOICE = {"key": "prototypes.phi", "default": 0.5, "value": 0.2, "tried": {"0.2": 1.0}, "reason": "a"}
LEARNING = {"curve": [1.0, 2.0], "steps": 3, "kl_before": 1.0}


def dataset(name: str, format: str, **values: str) -> Callable[[Path], object]:
    def read(path: Path) -> object:
        (path.parent / "images").mkdir(exist_ok=True)
        (path.parent / "images" / "a.jpg").touch()
        return open_dataset(
            DataConfig(format=format, images=str(path.parent / "images"), tags=str(path), **values),
            class_sets.voc() if name == "one-hot" else None,
        )

    return read


def drawn(path: Path) -> object:
    values = Drawings(path, Meaning("labels", "data.mask_values", ClassSet(("dog", "cat")))).of("a")
    return values and read_truth(path, values)


def label_map(path: Path) -> object:
    return Meaning(str(path), "data.mask_values", ClassSet(("dog", "cat"))).of(())


def state(path: Path) -> object:
    return State(path.parent.parent)


def from_card(path: Path) -> object:
    found = Card.from_json(path.read_bytes().decode("utf-8", "replace"))
    with contextlib.suppress(ModelError):  # a card that is good has none of these weights
        found.head_of({"a": torch.zeros(1)}, "weights", "train again.")
    return found


def one_hot() -> bytes:
    packed = io.BytesIO()
    np.save(packed, {"a": np.eye(20, dtype=np.float32)[3]}, allow_pickle=True)
    return packed.getvalue()


def torch_file() -> bytes:
    packed = io.BytesIO()
    torch.save({"state_dict": {"visual.proj": torch.ones(3, 2)}}, packed)
    return packed.getvalue()


EVERY = Values(tuple((number, number % 3) for number in range(256)))
TENSORS = {"text": torch.ones(2, 4), "vision": torch.ones(2, 4)}
REGIONS = {"embeddings": torch.ones(2, 4), "class": torch.tensor([0, -1]), "sample": torch.zeros(2, dtype=torch.long),
           "tag_ranks": torch.ones(1)}  # fmt: skip
READERS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    **{
        f"photograph {kind}": (f"a.{kind.lower()}", picture(kind), lambda path: images.read_image(path, 8))
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
    },
    "photograph in 16 bits": ("a.png", picture("PNG", "I;16"), images.read_image),
    "mask": ("a.png", picture("PNG", "P"), images.read_mask),
    "truth mask": ("a.png", picture("PNG", "L"), lambda path: read_truth(path, EVERY)),
    "truth JSON": ("t.json", json.dumps(TRUTH).encode(), drawn),
    "label map": ("labelmap.txt", b"# label:color_rgb:parts:actions\ndog:1,2,3::\ncat:4,5,6::\n", label_map),
    "label map CSV": ("map.csv", b"value,name\n1,dog\n7,cat\n", label_map),
    "label map TOML": ("map.toml", b'[[class]]\nname = "dog"\nvalue = 3\n', label_map),
    "tags CSV": ("t.csv", b"file_name,tags\na.jpg,dog;cat\n", dataset("csv", "folder")),
    "tags JSONL": ("t.jsonl", b'{"file_name": "a.jpg", "tags": ["dog"]}\n', dataset("jsonl", "folder")),
    "tags JSON": ("t.json", b'{"a.jpg": ["dog", "cat"]}', dataset("json", "folder")),
    "tags npy": ("t.npy", one_hot(), dataset("one-hot", "folder")),
    "COCO": ("t.json", json.dumps(COCO).encode(), dataset("coco", "coco")),
    "classes": ("c.toml", class_sets.scenes().to_toml().encode(), class_sets.from_file),
    "configuration": ("config.toml", Config().to_toml().encode(), Config.from_toml),
    "safetensors": ("w.safetensors", save(TENSORS), lambda path: read_tensors(path, path.name)),
    "torch file": ("w.pt", torch_file(), lambda path: read_tensors(path, path.name)),
    "prototypes": ("p.safetensors", save(TENSORS), lambda path: files.read_prototypes(path, 4)),
    "regions": ("r.st", save(REGIONS), lambda path: learning.read_regions(path, 4, 2, 1)),
    "network's card": ("network.json", card(), from_card),
    "run.json": ("run.json", json.dumps(RUN).encode(), lambda path: records.read_record(path.parent)),
    "metrics.json": ("metrics.json", json.dumps(METRICS).encode(), lambda path: records.read_metrics(path.parent)),
    "tune.json": (
        "tune.json",
        json.dumps({"images": 1, "choices": [CHOICE]}).encode(),
        lambda path: records.read_choices(path.parent),
    ),
    "prototypes.json": (
        "prototypes.json", json.dumps(LEARNING).encode(), lambda path: records.read_learning(path.parent)
    ),
    "journal": (NAME, b'\n["a.png", "x"]\n', lambda path: Made(path.parent).is_fresh(["a.png"], "x")),
    "state": ("state/made.tsv", b"maps\ta\tx-y-z\t\nfailed\tb\tx\t\"why\"\n", state),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_a_reader_gives_a_result_or_a_sentence(tmp_path, name, capsys):
    file, good, read = READERS[name]
    path = tmp_path / "tried" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(good)
    read(path)  # what is not damaged is read
    end, number, refused = time.monotonic() + SECONDS, 0, 0
    while number < EXAMPLES or time.monotonic() < end:
        data = damaged(good, np.random.default_rng([SEED, number]))
        path.write_bytes(data)
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
        except VplError as error:
            refused += 1
            assert str(error).strip() and "Traceback" not in str(error)
        except Exception as error:
            (tmp_path / "input").write_bytes(data)
            raise AssertionError(f"{name}, seed {SEED}, input {number}: {type(error).__name__}: {error}") from error
        assert time.process_time() - start < SLOWEST, f"{name}, seed {SEED}, input {number} is slow"
        number += 1
    assert refused or name == "state", "its reader can refuse; lines of a state that can't be read don't count"
    with capsys.disabled():
        if SECONDS:
            print(f"{name}: {number} inputs, {refused} refused")


# ------------------------------------------------------------------------------------------------------ extreme values
EXTREMES = [0, -1, 1, 10**30, -(10**30), 2**63, 0.0, -0.0, 1e-300, 1e300, -1e300, math.inf, -math.inf, math.nan, True,
            "", "x", "{", "\ud800", "9" * 5000, [], [0], [""], ["{}"], [[]], [1e300], {}, None]  # fmt: skip


def fields_of_config():
    config = plain_config()
    for section in dataclasses.fields(config.Config):
        kind = typing.get_type_hints(config.Config)[section.name]
        if dataclasses.is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            yield from (
                (f"{section.name}.{one.name}", hints[one.name], one.metadata) for one in dataclasses.fields(kind)
            )


@pytest.mark.parametrize(
    "setting", ["9" * 5000 + "=dog", "\u0663=dog", "=", "*=", "#=dog", "a=b", "254", "labels,ids", "\ud800=dog"]
)
def test_a_meaning_of_masks_is_one_or_a_sentence(setting):
    with contextlib.suppress(VplError):
        Meaning(setting, "data.mask_values", ClassSet(("dog", "cat"))).of(("dog",))


def test_every_number_has_both_bounds():
    open_ended = [
        key
        for key, kind, told in fields_of_config()
        if kind in (int, float, tuple[int, ...], tuple[float, ...]) and (told["low"] is None or told["high"] is None)
    ]
    assert not open_ended, "a count without a bound is a wish for all of the memory"


def test_extreme_values_are_a_configuration_or_a_sentence():
    config = plain_config()
    refused = 0
    for key, _, told in fields_of_config():
        for value in EXTREMES:
            try:
                made = config.Config().with_values({key: value}).flat()[key]
            except config.ConfigError as error:
                refused += 1
                assert key in str(error) and len(str(error)) < 12_000
                continue
            numbers = made if isinstance(made, tuple) else (made,)
            for one in numbers:
                if type(one) in (int, float):
                    assert told["low"] <= one <= told["high"] and math.isfinite(one), key
    assert refused > 500
