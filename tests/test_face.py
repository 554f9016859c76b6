"""The face: the names that a notebook sees, loaded on first use, typed, told by `help`, and with these signatures."""

from __future__ import annotations

import ast
import importlib
import inspect
import pydoc
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import vpl

SIGNATURES = {
    "check": "(images, tags='', *, clip='', values=None, config=None, device='auto')",
    "compare": "(runs, out='compare.html')",
    "dense_crf": "(image, probabilities, *, rounds=10, gaussian_sigma=1.0, gaussian_weight=3.0, bilateral_sigma=67.0, "
    "bilateral_color=3.0, bilateral_weight=4.0, mode='exact')",
    "export": "(run, to, out=None, *, what=None, clip=None, progress=...)",
    "load": "(path, clip=None, device='auto')",
    "open_dataset": "(data, classes=None)",
    "predict": "(model, images, *, out=None, protocol=None, probabilities=..., clip=None, device='auto', progress=...)",
    "preset": "(*names)",
    "push_to_hub": "(run, name, *, private=..., clip=None, api=None)",
    "report": "(run)",
    "run": "(folder, images='', tags='', *, clip='', values=None, config=None, device='auto', workers=None, train=..., "
    "relearn=..., progress=...)",
    "segment": "(image, tags, *, clip='', classes=None, config=None, device='auto')",
    "tune": "(folder, config, *, device='auto', workers=2, count=60, progress=...)",
    "ClassSet": "(names, words=..., background=..., colors=..., dropped=...)",
    "Config": "(seed=0, data=..., validation=..., clip=..., prompts=..., seeds=..., prototypes=..., refine=..., "
    "looks=..., par=..., crf=..., labels=..., decoder=..., rsc=..., train=..., predict=...)",
    "FrozenClip": "(weights, architecture, name, tokenizer=None, mean=..., std=..., said=None)",
    "MaskDataset": "(run, transform=None)",
    "Run": "(folder, config, *, device='auto', image_workers=None, progress=..., relearn=..., makers=None)",
    "VPL": "(clip='', classes=None, *, config=None, device='auto', workers=None)",
    "Sample": "(id, image, tags, mask, values=None)",
}
"""What a user may call; a change here is a change of the public face and belongs into CHANGELOG.md."""


def shown(name: str) -> str:
    """The parameters of a name, without annotations; defaults that are no plain value as three dots."""
    signature = inspect.signature(getattr(vpl, name))
    plain = (str, int, float, type(None), inspect.Parameter.empty)
    given = []
    for one in signature.parameters.values():
        told = one.default is one.empty or type(one.default) in plain
        given.append(one.replace(annotation=one.empty, default=one.default if told else ...))
    return str(signature.replace(parameters=given, return_annotation=signature.empty)).replace("Ellipsis", "...")


def test_the_names_are_these():
    assert sorted([*SIGNATURES, "VplError"]) == sorted(vpl.__all__) == sorted(vpl._HOMES)
    assert set(vpl.__all__) <= set(dir(vpl))


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_signatures_are_these(name):
    assert shown(name) == SIGNATURES[name]


@pytest.mark.parametrize("name", vpl.__all__)
def test_every_name_has_a_docstring_for_a_notebook(name):
    words = inspect.getdoc(getattr(vpl, name))
    assert words and words.splitlines()[0].endswith((".", ":")) and len(words.splitlines()[0]) <= 120, name
    if inspect.isfunction(getattr(vpl, name)):
        given = inspect.signature(getattr(vpl, name)).parameters
        assert all(parameter.annotation is not parameter.empty for parameter in given.values())


def test_type_checkers_see_what_is_loaded():
    tree = ast.parse(Path(vpl.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module.removeprefix("vpl.") for node in block.body for alias in node.names}
    assert seen == vpl._HOMES
    assert all(
        getattr(vpl, name) is getattr(importlib.import_module(f"vpl.{home}"), name) for name, home in seen.items()
    )
    assert resources.files("vpl").joinpath("py.typed").is_file()


def test_help_tells_the_names():
    words = pydoc.plain(pydoc.render_doc(vpl))
    assert all(f"    {name}" in words for name in ("compare(", "class Run(", "class VplError(", "dense_crf("))


def test_an_unknown_name_is_told():
    with pytest.raises(AttributeError, match="module 'vpl' has no attribute 'segmnt'; it has VPL, ClassSet"):
        vpl.segmnt  # noqa: B018


def test_dir_loads_nothing():
    code = "import sys, vpl; print('Run' in dir(vpl), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True False"
