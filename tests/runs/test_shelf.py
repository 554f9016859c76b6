"""The shelf: a photograph is encoded once, and what comes from it is what the encoder would give, bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.edges.images import read_mask
from vpl.method import labeller, seeds
from vpl.method.views import View, guide_of
from vpl.runs import learning, opened
from vpl.runs.folder import ENCODINGS, clean
from vpl.runs.plan import told
from vpl.runs.shelf import Shelf
from vpl.runs.stages import Run
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

COUNT = 12


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, {"train": COUNT}, size=48)
    return folder


def config_of(tree, **values):
    given = {"data.images": str(tree / "images/train"), "data.tags": str(tree / "train.csv"), "crf.rounds": 1}
    return preset("scenes").with_values(given | values)


def maps_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def encoded(folder):
    stages = json.loads((folder / "run.json").read_text())["stages"]
    return sum(one.get("encoded", 0) for one in stages.values())


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("pocket")


def view(clip, seed, grid=(4, 5)):
    image = np.random.default_rng(seed).integers(0, 256, (*(side * clip.patch for side in grid), 3), dtype=np.uint8)
    return View(image, (0,), image.shape[:2])


def same(one, other):
    pairs = [(one.patches, other.patches), (one.attention, other.attention)]
    pairs += [(getattr(one.last, name), getattr(other.last, name)) for name in vars(one.last)]
    return one.grid == other.grid and all(torch.equal(*pair) for pair in pairs)


def test_features_come_back_bit_for_bit(clip, tmp_path):
    config = config_of(tmp_path).clip
    views, keys = [view(clip, seed) for seed in range(3)], ["a", "b", "c"]
    shelf = Shelf(tmp_path / "kept", config)
    first = shelf.features(clip, views, keys, [True, True, True])
    assert shelf.encoded == 3 and same(shelf.features(clip, views, keys), first) and shelf.encoded == 3
    assert same(Shelf(tmp_path / "kept", config).features(clip, views, keys), first), "in another process"
    shelf.clear()
    assert same(shelf.features(clip, views, keys), first) and shelf.encoded == 6


@pytest.mark.parametrize("harm", ["gone", "short", "other"])
def test_a_torn_file_is_an_absent_one(clip, tmp_path, harm):
    shelf, views = Shelf(tmp_path / "kept", config_of(tmp_path).clip), [view(clip, 1)]
    first = shelf.features(clip, views, ["a"], [True])
    path = tmp_path / "kept/a"
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if harm == "short" else data[:999] + bytes([data[999] ^ 1]) + data[1000:])
    assert same(shelf.features(clip, views, ["a"]), first) and shelf.encoded == 2


def test_no_more_than_the_budget_is_kept(clip, tmp_path):
    views, keys = [view(clip, seed) for seed in range(3)], ["a", "b", "c"]
    shelf = Shelf(tmp_path / "all", config_of(tmp_path).clip)
    shelf.features(clip, views, keys, [True] * 3)
    size = (tmp_path / "all/a").stat().st_size
    config = replace(config_of(tmp_path).clip, keep_gb=2.5 * size / 1e9)
    Shelf(tmp_path / "some", config).features(clip, views, keys, [True] * 3)
    assert sorted(one.name for one in (tmp_path / "some").iterdir()) == ["a", "b"]
    Shelf(tmp_path / "none", replace(config, keep_gb=0.0)).features(clip, views, keys, [True] * 3)
    assert not (tmp_path / "none").exists()


def test_a_disk_without_room_costs_encodings_and_nothing_else(clip, tmp_path):
    shelf, views = Shelf(tmp_path / "kept", config_of(tmp_path).clip), [view(clip, 1)]
    (tmp_path / "kept").write_text("in the way")
    first = shelf.features(clip, views, ["a"], [True])
    assert same(shelf.features(clip, views, ["a"], [True]), first) and shelf.encoded == 2


def test_a_run_encodes_each_photograph_once(tree, tmp_path):
    with Run(tmp_path / "kept", config_of(tree)) as run:
        run.labels()
    with Run(tmp_path / "again", config_of(tree, **{"clip.keep_gb": 0.0})) as run:
        run.labels()
    assert (encoded(tmp_path / "kept"), encoded(tmp_path / "again")) == (COUNT, 2 * COUNT)
    assert maps_of(tmp_path / "kept") == maps_of(tmp_path / "again")
    assert not (tmp_path / "kept" / ENCODINGS).exists()


def test_text_prototypes_need_one_pass(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree, **{"prototypes.kind": "text", "train.steps": 0})) as run:
        run.labels()
    assert encoded(tmp_path / "run") == COUNT and not list((tmp_path / "run").rglob("*.st"))


def test_labels_of_text_prototypes_learn_none_although_a_training_would_need_them(tree, tmp_path):
    """They come where training is asked for, and stay; nothing that was there is made again."""
    folder, config = tmp_path / "run", config_of(tree, **{"prototypes.kind": "text", "rsc.weight": 1.0})
    with Run(folder, config) as run:
        run.labels()
    assert encoded(folder) == COUNT and not (folder / "regions").exists() and not (folder / "prototypes.json").exists()
    masks = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    with Run(folder, config) as run:
        assert not run.plan(["masks"])
        plan = run.plan(["network"])
        assert plan.learns and [work.stage for work in plan.work] == ["regions", "prototypes", "network"]
        assert told(plan)[:2] == [
            f"region embeddings of {COUNT} photographs: not there yet", "vision prototypes: not learned yet"
        ]  # fmt: skip
        run.prototypes()
    assert len(list(folder.glob("regions/*/*"))) == COUNT and (folder / "prototypes.json").exists()
    learned = (folder / "prototypes.safetensors").read_bytes()
    for relearn in (False, True):
        with Run(folder, config, relearn=relearn) as run:
            run.labels()
            assert [work.stage for work in run.plan(["network"]).work] == ["network"]
    assert (folder / "prototypes.safetensors").read_bytes() == learned
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == masks


def test_rounds_share_one_encoding(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree, **{"prototypes.rounds": 2})) as run:
        run.labels()
    assert encoded(tmp_path / "run") == COUNT


def test_what_a_kill_leaves_is_used_and_cleaned(tree, tmp_path):
    """A run that ended between its passes keeps its encodings for the next one; `vpl clean` takes them away."""
    folder = tmp_path / "run"

    def stop(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vpl.runs.labelling.make", stop)
        with Run(folder, config_of(tree)) as run, pytest.raises(KeyboardInterrupt):
            run.labels()
    assert len(list((folder / ENCODINGS).iterdir())) == 2 * COUNT, "an encoding and text seeds of each"
    with Run(folder, config_of(tree)) as run:
        run.labels()
        assert run.shelf.encoded == 0
    (folder / ENCODINGS).mkdir()
    (folder / ENCODINGS / "old").write_bytes(b"1234")
    assert clean(folder) == 4 and not (folder / ENCODINGS).exists()


def test_the_other_encoder_s_answers_are_encodings_of_their_own(clip, dinov2, tmp_path):
    shelf, views = Shelf(tmp_path / "kept", config_of(tmp_path).clip), [view(clip, seed) for seed in range(2)]
    shelf.features(clip, views, ["a", "b"], [True, True])
    made = []

    def guide(keys, keep):
        def make():
            made.append(keys)
            return guide_of(dinov2, views, (4, 5))

        return shelf.once("guide", keys, keep, make, dinov2.device)

    first = guide(["a-dino", "b-dino"], [True, True])
    assert len(made) == 1 and first[0].shape == (20, dinov2.width)
    assert all(map(torch.equal, guide(["a-dino", "b-dino"], [True, True]), first)) and len(made) == 1
    guide(["a-dino", "c-dino"], [False, False])
    assert len(made) == 2 and not (tmp_path / "kept/c-dino").exists()


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_text_seeds_are_made_once(tree, tmp_path, monkeypatch, kind):
    """Pass two shows the text seeds of pass one, as it would make them."""
    made = []

    def counted(*given, real=seeds.seed_maps):
        made.append(len(given[2]))
        return real(*given)

    for module in (opened, learning, labeller):
        monkeypatch.setattr(module, "seed_maps", counted)
    config = config_of(tree, **{"prototypes.kind": kind, "rsc.weight": 1.0})
    counts = []
    for folder, keep in (("kept", 20.0), ("again", 0.0)):
        with Run(tmp_path / folder, config.with_values({"clip.keep_gb": keep})) as run:
            run.bring("masks", "prototypes")
        counts.append(sum(made))
        made.clear()
    assert (tmp_path / "kept/regions").exists()
    assert counts == ([2 * COUNT, 3 * COUNT] if kind == "vision" else [COUNT, 2 * COUNT])
    assert maps_of(tmp_path / "kept") == maps_of(tmp_path / "again")


@pytest.mark.slow
def test_a_run_with_another_encoder_has_the_bytes_of_a_notebook_and_counts_its_encodings(tree, dinov2_folder, tmp_path):
    import vpl

    guide = {"refine.features": str(dinov2_folder), "refine.votes": ["features"], "looks.makers": ["gradcam", "sclip"]}
    config = config_of(tree, **guide)
    with Run(tmp_path / "run", config) as run:
        run.labels()
    assert encoded(tmp_path / "run") == 2 * COUNT and not (tmp_path / "run" / ENCODINGS).exists()
    with Run(tmp_path / "twice", config.with_values({"prototypes.refined": True})) as run:
        run.labels()
    assert encoded(tmp_path / "twice") == 2 * COUNT, "both passes read what was encoded once"
    with Run(tmp_path / "bare", config_of(tree)) as run:
        run.labels()
    assert maps_of(tmp_path / "bare") != maps_of(tmp_path / "run")
    model = vpl.VPL.of_run(tmp_path / "run")
    lines = (tree / "train.csv").read_text().splitlines()[1:4]
    for line in lines:
        name, tags = line.split(",", 1)
        made = model.segment(tree / "images/train" / name, tags.strip('"'))
        stored = tmp_path / "run/labels" / f"{name.rpartition('.')[0]}.png"
        assert np.array_equal(made.labels, read_mask(stored)), name
    with Run(tmp_path / "run", config) as run:
        assert not run.plan(["masks"])
