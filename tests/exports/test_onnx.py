"""The ONNX graph gives the labels of `vpl predict --fast` at any size, and says what it is."""

from __future__ import annotations

import contextlib
import json

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import vpl
from training_case import finished_run, photo
from vpl.cli import main
from vpl.errors import ModelError
from vpl.exports import export as exports
from vpl.exports import onnx as way
from vpl.network import predict

pytestmark = pytest.mark.slow

SIZES = ((40, 56), (33, 47), (1, 1), (3, 70), (72, 72), (71, 72), (200, 131), (59, 240))
"""Heights and widths in pixels; the trained network sees at most 72."""
EQUAL = 0.999


@contextlib.contextmanager
def unchecked():
    """Without jaxtyping's checks: torch.export calls with sizes that are symbols and not numbers."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def session(path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module", params=[1, 4], ids=["patches", "cells"])
def run(request, tiny_clip, tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("graph") / "run", tiny_clip, decoder__cells=request.param)


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    out = tmp_path_factory.mktemp("graph") / "out"
    with unchecked():
        assert main(["export", str(run), "--to", "onnx", "--out", str(out)]) == 0
    return out / way.NETWORK_FILE


def test_onnxruntime_gives_the_labels_of_predict_at_every_size(run, model):
    predictor, runtime = vpl.load(run, device="cpu"), session(model)
    seen = set()
    for number, size in enumerate(SIZES):
        wanted = predictor.predict(photo(size, number))
        (found,) = runtime.run(None, {"image": photo(size, number)})
        assert found.dtype == np.uint8 and found.shape == size
        assert (found == wanted).mean() >= EQUAL, size
        seen |= set(np.unique(wanted).tolist())
    assert seen == {0, 1, 2}


def test_the_model_says_what_it_is_and_nothing_of_this_machine(run, model):
    told = session(model).get_modelmeta()
    facts = told.custom_metadata_map
    assert json.loads(facts["classes"]) == ["background", "red", "green"]
    assert facts["clip_hash"] == vpl.load(run, device="cpu").card.clip_hash and len(facts["clip_hash"]) == 64
    assert told.producer_name == "vpl"
    data = model.read_bytes()
    for place in (str(run), "site-packages", "/vpl/onnx.py", facts["clip"] + "/"):
        assert place.encode() not in data


def test_onnx_finds_the_model_well_formed_with_sides_of_any_length(model):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
    checked = onnx.load(model)
    onnx.checker.check_model(checked, full_check=True)
    sides = [side.dim_param or side.dim_value for side in checked.graph.input[0].type.tensor_type.shape.dim]
    assert len(set(sides)) == 3 and sides[2] == 3 and all(isinstance(side, str) for side in sides[:2])


def test_a_larger_encoder_scale_is_in_the_graph(clips, tmp_path):
    """Another CLIP (patch 16, GELU) at scale 1.5; in torch, where it needs no export."""
    run = finished_run(tmp_path / "run", clips["wide"], clip__scale=1.5, train__steps=10)
    predictor = vpl.load(run, device="cpu")
    network = way.Graph(predictor.card, *predictor.parts).eval()
    for number, size in enumerate(SIZES):
        with torch.no_grad():
            found = network(torch.from_numpy(photo(size, number))).numpy()
        assert (found == predictor.predict(photo(size, number))).mean() >= EQUAL, size


def test_a_student_is_exported_without_clip(tiny_clip, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
    from transformers import SegformerConfig

    SegformerConfig(
        num_encoder_blocks=1, depths=[1], sr_ratios=[2], hidden_sizes=[8], patch_sizes=[7], strides=[4],
        num_attention_heads=[1], mlp_ratios=[2], decoder_hidden_size=16,
    ).save_pretrained(tmp_path / "segformer")  # fmt: skip
    network = f"hf:{tmp_path / 'segformer'}"
    run = finished_run(tmp_path / "run", tiny_clip, decoder__network=network, train__steps=3)
    predictor = predict.load(run, device="cpu")
    with unchecked():
        made = exports.export(run, "onnx", tmp_path / "out")
    runtime = session(made.folder / way.NETWORK_FILE)
    for number, size in enumerate(SIZES[:5]):
        (found,) = runtime.run(None, {"image": photo(size, number)})
        assert (found == predictor.predict(photo(size, number))).mean() >= EQUAL, size


@pytest.mark.parametrize("size", [(40, 56), (41, 60), (120, 64), (48, 112)])
@pytest.mark.parametrize("kernel", ["cubic", "lanczos"])
def test_growing_is_pillows_resize(size, kernel):
    image = photo((40, 56), 7)
    ours, support, theirs = {
        "cubic": (way._cubic, 2, Image.Resampling.BICUBIC),
        "lanczos": (way._lanczos, 3, Image.Resampling.LANCZOS),
    }[kernel]
    found = way.resize(torch.from_numpy(image).permute(2, 0, 1).float(), size, ours, support)
    wanted = np.asarray(Image.fromarray(image).resize(size[::-1], theirs))
    assert (found.permute(1, 2, 0).numpy() == wanted).mean() > 0.999


@pytest.mark.parametrize("size", [(20, 28), (7, 9), (40, 9), (1, 1)])
def test_shrinking_is_pillows_resize_but_for_rounding(size):
    image = photo((40, 56), 7)
    found = way.resize(torch.from_numpy(image).permute(2, 0, 1).float(), size, way._lanczos, 3)
    wanted = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)).astype(float)
    assert np.abs(found.permute(1, 2, 0).numpy() - wanted).max() <= 1


def test_without_onnxscript_the_error_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ModelError, match=r"pip install \"vpl-seg\[onnx\]\""):
        exports.export(run, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
