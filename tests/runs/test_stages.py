"""The run folder: streams, resumes to the same bytes, refuses what does not fit, survives bad images and kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vpl.clip.model import FrozenClip
from vpl.config import preset
from vpl.edges.images import read_mask
from vpl.errors import ConfigError, RunError
from vpl.method import crf, labeller, masks
from vpl.runs import stream
from vpl.runs.planned import dataset_of
from vpl.runs.scoring import MAP_ROWS
from vpl.runs.stages import Run
from vpl.runs.stream import AHEAD
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

IMAGES = 10


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """A folder of ten scenes, two of them cut to another shape."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": IMAGES}, seed=5, style="demo", size=64)
    for path in sorted((folder / "images" / "train").iterdir())[3:5]:
        mask = folder / "masks" / "train" / f"{path.stem}.png"
        for one in (path, mask):
            with Image.open(one) as image:
                image.crop((0, 8, 64, 56)).save(one)
    return folder


def config_of(tree: Path, **values):
    paths = {
        "data.images": str(tree / "images" / "train"),
        "data.tags": str(tree / "train.csv"),
        "data.masks": str(tree / "masks" / "train"),
        "clip.batch": 3,
    }
    return preset("scenes").with_values(paths | values)


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that a run is for: its bytes must not depend on interruptions."""
    kept = [
        *folder.glob("seeds/*/*.png"),
        *folder.glob("labels/*.png"),
        *folder.glob("regions/*/*"),
        folder / "prototypes.safetensors",
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(kept)}


@pytest.fixture(scope="session")
def finished(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with Run(folder, config_of(tree)) as run:
        run.labels()
        run.evaluate()
    return folder


def test_a_mask_for_each_image_at_its_size(tree, finished):
    for path in sorted((tree / "images" / "train").iterdir()):
        for place in MAP_ROWS:
            with Image.open(path) as image:
                assert read_mask(finished / place / f"{path.stem}.png").shape == (image.height, image.width)


def test_the_learning_report_tells_the_gap_class_by_class(finished):
    found = json.loads((finished / "prototypes.json").read_text())["modality"]
    for kind in ("text", "vision"):
        assert 0.5 <= found[kind]["separability"] <= 1
        assert sum(row["regions"] for row in found[kind]["classes"].values()) > 0
    assert found["text"]["classes"].keys() == found["vision"]["classes"].keys()


def test_labels_are_the_images_own_tags(tree, finished):
    dataset = dataset_of(config_of(tree).data)
    for sample in dataset.samples:
        allowed = {0, 255} | {dataset.classes.index(tag) + 1 for tag in sample.tags}
        assert set(np.unique(read_mask(finished / "labels" / f"{sample.id}.png"))) <= allowed


def test_metrics_name_split_images_and_rows(finished):
    evaluation = json.loads((finished / "metrics.json").read_text())["evaluations"][0]
    assert (evaluation["split"], evaluation["images"]) == ("train", IMAGES)
    assert [row["name"] for row in evaluation["rows"]] == [
        "text seeds",
        "vision seeds",
        "refined seeds",
        "refined + CRF",
        "pseudo-masks",
    ]
    assert all(0 <= row["miou"] <= 1 for row in evaluation["rows"])


def test_a_second_start_does_nothing(tree, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("labels/*.png")}
    with Run(finished, config_of(tree)) as run:
        run.labels()
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("labels/*.png")}


def test_a_continued_run_writes_the_same_bytes(tree, finished, tmp_path):
    wanted = files_of(finished)
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for gone in [
        "prototypes.safetensors",
        *[name for name in wanted if "000001" in name or name.startswith("labels")][::2],
    ]:
        (folder / gone).unlink()
    with Run(folder, config_of(tree)) as run:
        run.labels()
    assert files_of(folder) == wanted and not list(folder.rglob("*.vpl-partial"))


def test_kill_and_start_again(tree, finished, tmp_path):
    """kill -9 at growing distances from the start, until the run ends by itself: the same files."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "vpl", "labels", str(folder), "--preset", "scenes", "--preset", "paper"]
    command += ["--batch-size", "3"]
    for key in ("images", "tags", "masks"):
        command += [f"--{key}", str(config_of(tree).flat()[f"data.{key}"])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    wanted, killed = files_of(finished), 0
    for count in (1, 3, 4 * IMAGES):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(files_of_any(folder)) < count:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert killed >= 1
    assert files_of(folder) == wanted


def files_of_any(folder: Path) -> list[Path]:
    return [*folder.glob("seeds/*/*.png"), *folder.glob("labels/*.png"), *folder.glob("regions/*/*.st")]


def test_bytes_depend_on_neither_workers_nor_cores(tree, finished, tmp_path, monkeypatch):
    """Every thread of a stage computes on one core, for torch's results may depend on how many there are."""
    seen = []
    for home, name in ((labeller, "seed_maps"), (masks, "label_map"), (masks, "pseudo_mask")):
        real = getattr(home, name)
        spied = lambda *given, real=real: seen.append(torch.get_num_threads()) or real(*given)  # noqa: E731
        monkeypatch.setattr(home, name, spied)
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("seeds", "labels"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Run(tmp_path / "run", config_of(tree), image_workers=3) as run:
            run.labels()
        assert torch.get_num_threads() == 2 and set(seen) == {1}
    finally:
        torch.set_num_threads(before)
    assert files_of(tmp_path / "run") == files_of(finished)


def test_the_record_tells_the_time_of_each_part(finished):
    stages = json.loads((finished / "run.json").read_text())["stages"]
    assert set(stages["prototypes"]["parts"]) == {"read", "encode", "seeds", "regions", "write", "learn"}
    assert set(stages["pseudo-masks"]["parts"]) == {"read", "encode", "seeds", "refine", "upsample", "crf", "write"}
    for stage in (stages["prototypes"], stages["pseudo-masks"]):
        assert all(seconds >= 0 for seconds in stage["parts"].values())
        assert set(stage["busy"]) == {"reading", "encoding", "finishing", "cores", "steady"}
        assert all(0 <= stage["busy"][kind] <= 1 for kind in ("reading", "encoding", "finishing"))


def test_reading_waits_for_a_slow_encoder(tree, tmp_path, monkeypatch):
    """So memory does not grow with the data set."""
    began, go_on = [], threading.Event()
    monkeypatch.setattr(Run, "view", lambda run, sample, real=Run.view: began.append(sample) or real(run, sample))
    monkeypatch.setattr(
        FrozenClip, "trunk", lambda *given, real=FrozenClip.trunk, **named: go_on.wait(60) and real(*given, **named)
    )
    with (
        Run(tmp_path / "run", config_of(tree, **{"clip.batch": 1}), image_workers=1) as run,
        ThreadPoolExecutor(1) as pool,
    ):
        ended = pool.submit(run.labels)
        count = -1
        while len(began) != count or not began:
            count = len(began)
            time.sleep(0.3)
        go_on.set()
        ended.result()
    assert 1 <= count <= 2 + AHEAD < IMAGES
    assert len(list((tmp_path / "run" / "labels").iterdir())) == IMAGES


def short_of_memory(monkeypatch, fits) -> None:
    """An encoder that has memory for inputs (N, 3, H, W) that `fits` alone."""

    def trunk(clip, pixels, *given, real=FrozenClip.trunk, **named):
        if not fits(pixels):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(clip, pixels, *given, **named)

    monkeypatch.setattr(FrozenClip, "trunk", trunk)


def test_out_of_memory_makes_the_results_of_a_smaller_batch(tree, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stream, "most_of", lambda _, config: config.batch)  # as on a GPU
    with Run(tmp_path / "small", config_of(tree, **{"clip.batch": 2})) as run:
        run.labels()
    short_of_memory(monkeypatch, lambda pixels: len(pixels) <= 2)
    with Run(tmp_path / "large", config_of(tree, **{"clip.batch": 4})) as run:
        run.labels()
        assert not run.failures
    small, large = (
        {n: b for n, b in files_of(tmp_path / one).items() if "regions" not in n} for one in ("small", "large")
    )
    assert len(small) > IMAGES and small == large
    told = [record.getMessage() for record in caplog.records if "memory is too small" in record.getMessage()]
    assert len(told) == 1 and "going on with 2" in told[0]


@pytest.fixture
def gpu_crf(monkeypatch):
    """Runs go the way of a GPU: the encoder's device, here the CPU, computes the CRFs. How many at once is returned."""
    monkeypatch.setattr(stream, "most_of", lambda _, config: config.batch)
    counts, real = [], crf._together
    monkeypatch.setattr(labeller, "_crf_goes_to", lambda device: True)
    monkeypatch.setattr(crf, "_together", lambda fields, *rest: counts.append(len(fields)) or real(fields, *rest))
    return counts


def labelled(finished: Path, folder: Path, config) -> tuple[dict[str, bytes], set[str]]:
    """The files of a run that goes on after the prototypes, and the parts of its work."""
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("seeds", "labels", "run.json"))
    with Run(folder, config) as run:
        run.labels()
        assert len(run.failures) == 0
        return files_of(folder), set(run.record()["stages"]["pseudo-masks"]["parts"])


def test_crfs_on_the_device_make_the_same_masks(tree, finished, tmp_path, gpu_crf, monkeypatch):
    config = config_of(tree)
    together, parts = labelled(finished, tmp_path / "together", config)
    assert together == files_of(finished) and "crf on device" in parts and "crf" not in parts
    assert sorted(gpu_crf) == [2, 2, 3, 3], "one lattice a batch"
    gpu_crf.clear()
    monkeypatch.setattr(labeller, "_crf_goes_to", lambda device: False)
    alone, parts = labelled(finished, tmp_path / "alone", config)
    assert together == alone and "crf" in parts and gpu_crf == [1] * IMAGES


def test_seeds_without_masks_and_a_crf_that_is_off_ask_the_device_for_no_crf(
    tree, finished, tmp_path, gpu_crf, monkeypatch
):
    monkeypatch.setattr(labeller.Labeller, "_pseudo", lambda *_: pytest.fail("a CRF was computed on the device"))
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("seeds", "labels"))
    with Run(tmp_path / "run", config_of(tree)) as run:
        run.seeds()
    with Run(tmp_path / "off", config_of(tree, **{"crf.enabled": False})) as run:
        run.labels()


def short_of_memory_for_crfs(monkeypatch, fits: int) -> list[int]:
    """A device with memory for `fits` CRFs at once; the CPU beside it, asked after the device, has enough."""
    real, tried, refused = masks.pseudo_masks, [], set()

    def pseudo_masks(scores, views, *rest):
        names = {view.image.tobytes() for view in views}
        if len(views) > fits and not (len(views) == 1 and names <= refused):
            refused.update(names if len(views) == 1 else ())
            tried.append(len(views))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return real(scores, views, *rest)

    monkeypatch.setattr(masks, "pseudo_masks", pseudo_masks)
    return tried


@pytest.mark.parametrize("fits", [1, 0])
def test_crfs_that_do_not_fit_into_the_device_halve_the_batch_and_go_to_the_cpu_at_last(
    tree, finished, tmp_path, gpu_crf, monkeypatch, caplog, fits
):
    tried = short_of_memory_for_crfs(monkeypatch, fits)
    files, parts = labelled(finished, tmp_path / "run", config_of(tree, **{"clip.batch": 3}))
    assert files == files_of(finished)
    assert any(count > 1 for count in tried) and tried.count(1) == (0 if fits else IMAGES)
    assert ("crf" in parts) == (fits == 0)
    assert any("going on with 1" in record.getMessage() for record in caplog.records)


def test_an_image_that_fits_in_no_memory_is_skipped_and_told(tree, tmp_path, monkeypatch):
    short_of_memory(monkeypatch, lambda pixels: pixels.shape[2] < 64)
    with Run(tmp_path / "run", config_of(tree)) as run:
        run.labels()
        reasons = [failure.reason for failure in run.failures.values()]
    assert len(reasons) == IMAGES - 2 and len(list((tmp_path / "run" / "labels").iterdir())) == 2
    assert all("64 x 64 pixels, even alone; lower clip.max_side" in reason for reason in reasons)


def test_two_processes_in_one_folder(tree, finished):
    with Run(finished, config_of(tree)), pytest.raises(RunError, match="another process works in"):
        Run(finished, config_of(tree))


def test_a_strangers_folder_is_refused(tree, tmp_path):
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(RunError, match=r"thesis\.doc.*no config\.toml"):
        Run(tmp_path, config_of(tree))


def test_a_bad_image_is_skipped_and_told(tree, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tree, data)
    broken, empty = sorted((data / "images" / "train").iterdir())[1:3]
    broken.write_bytes(broken.read_bytes()[:300])
    empty.write_bytes(b"")
    with Run(tmp_path / "run", config_of(data)) as run:
        run.labels()
        assert {failure.id for failure in run.failures.values()} == {broken.stem, empty.stem}
    masks = {path.stem for path in (tmp_path / "run" / "labels").iterdir()}
    assert len(masks) == IMAGES - 2 and not masks & {broken.stem, empty.stem}
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert {failure["id"] for failure in record["failures"]} == {broken.stem, empty.stem}


def test_truth_is_not_needed_and_not_opened(tree, tmp_path, monkeypatch):
    """Everything but evaluation runs where no mask can be read."""
    import vpl.edges.images

    def refuse(path):
        raise AssertionError(f"a mask was opened: {path}")

    monkeypatch.setattr(vpl.edges.images, "read_mask", refuse)
    with Run(tmp_path / "run", config_of(tree)) as run:
        run.labels()
    assert len(list((tmp_path / "run" / "labels").iterdir())) == IMAGES


def test_no_truth_is_said(tree, tmp_path):
    with Run(tmp_path / "run", config_of(tree, **{"data.masks": ""})) as run, pytest.raises(RunError, match="no truth"):
        run.evaluate()


def test_images_are_asked_for():
    with pytest.raises(ConfigError, match="--images"):
        dataset_of(preset("scenes").data)


@pytest.mark.parametrize(
    "values",
    [
        {"prototypes.kind": "text"},
        {"prototypes.region": "masked"},
        {"prototypes.region": "image"},
        {"prototypes.rounds": 2},
        {"prototypes.refined": True, "refine.box": False},
        {"refine.enabled": False, "crf.enabled": False},
        {"prompts.background_words": False, "prototypes.tags": "own"},
        {"clip.precision": "bfloat16", "clip.scale": 1.5},
    ],
    ids=lambda values: " ".join(f"{key}={value}" for key, value in values.items()),
)
def test_every_choice_runs(tree, tmp_path, values):
    with Run(tmp_path / "run", config_of(tree, **values)) as run:
        run.labels()
        rows = [row["name"] for row in run.evaluate()["evaluations"][0]["rows"]]
    assert ("vision seeds" in rows) == (values.get("prototypes.kind") != "text")
