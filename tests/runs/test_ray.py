"""Labels on Ray: the local engine's bytes, from any store to any store, whatever is killed in the middle."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from vpl.classes import scenes as scene_classes
from vpl.cli import main
from vpl.config import preset
from vpl.edges import storage
from vpl.errors import ConfigError, RunError
from vpl.method import labeller, masks
from vpl.runs import ray as scaleout
from vpl.runs.folder import versions
from vpl.runs.stages import Run
from vpl.runs.stream import grid_of, grouped
from vpl.scenes.tree import write_tree

pytestmark = pytest.mark.slow

IMAGES = 30
CORRUPT, HEADLESS = 7, 12
"""Of these scenes, one's pixels and one's header can't be read."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Thirty scenes, two of them damaged."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": IMAGES}, seed=5, style="demo", size=64)
    files = sorted((folder / "images" / "train").iterdir())
    whole = files[CORRUPT].read_bytes()
    files[CORRUPT].write_bytes(whole[: len(whole) // 2])
    files[HEADLESS].write_bytes(b"no image")
    return folder


def config_of(tree: Path, **values):
    paths = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "clip.batch": 2}
    return preset("scenes").with_values(paths | values)


def maps_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


@pytest.fixture(scope="module")
def learned(tree, tmp_path_factory) -> Path:
    """A run with prototypes and nothing else."""
    folder = tmp_path_factory.mktemp("runs") / "learned"
    with Run(folder, config_of(tree)) as run:
        run.prototypes()
    return folder


@pytest.fixture(scope="module")
def local(tree, learned) -> Path:
    """The same run after the local engine."""
    folder = learned.parent / "local"
    shutil.copytree(learned, folder)
    with Run(folder, config_of(tree)) as run:
        run.labels()
    assert len(maps_of(folder)) == 5 * (IMAGES - 2)
    return folder


@pytest.fixture
def fresh(learned, tmp_path) -> Path:
    """A copy of the run with prototypes."""
    return Path(shutil.copytree(learned, tmp_path / "run"))


def bundle(tree: Path, folder: Path, root: str | Path, images: str | None = None, parts: int = 3, **values):
    """The job and the rows of a run as its workers get them, with label maps below `root`."""
    with Run(folder, config_of(tree, **values)) as run:
        own = run.map_folders(pseudo=True)
        places = {name: str(storage.below(root, path.relative_to(folder).as_posix())) for name, path in own.items()}
        labeller = scaleout._portable(run.labeller())
        job = scaleout.Job(labeller, places, run.classes.palette(), "cpu", 1, versions(), lambda number: 1)
        rows = scaleout._rows(run, run.dataset.samples, workers=2 * parts)[:1]
        window = json.loads(rows[0]["window"])
        if images:
            window = [[name, f"{images}/{Path(place).name}", tags] for name, place, tags in window]
        return job, [rows[0] | {"window": json.dumps(window), "part": part, "parts": parts} for part in range(parts)]


# ------------------------------------------------------------------ without Ray: a worker is plain Python


def test_a_worker_makes_the_local_engines_bytes_in_memory(tree, learned, local, fresh):
    store = f"memory://{uuid.uuid4().hex}"
    for path in (tree / "images" / "train").iterdir():
        storage.write(f"{store}/photos/{path.name}", path.read_bytes(), "part")
    job, rows = bundle(tree, fresh, f"{store}/maps", f"{store}/photos")
    told = [row for one in rows for row in scaleout.Worker(job)(one)]
    for name, data in maps_of(local).items():
        assert storage.read(f"{store}/maps/{name}", 10**6) == data, name
    assert sum(row["images"] for row in told) == IMAGES and not any(row["stop"] for row in told)
    with Run(local, config_of(tree)) as run:
        wanted = {one["id"]: one["reason"] for one in run.record()["failures"]}
    found = dict(failure for row in told for failure in json.loads(row["failed"]))
    folder = str(tree / "images" / "train")
    assert found == {name: reason.replace(folder, f"{store}/photos") for name, reason in wanted.items()}
    assert len(found) == 2


def test_a_worker_with_another_encoder_makes_the_local_engines_bytes(tree, learned, dinov2_folder, tmp_path):
    values = {"refine.features": str(dinov2_folder), "refine.votes": ("classes",), "looks.makers": ("gradcam", "sclip")}
    local, fresh = (Path(shutil.copytree(learned, tmp_path / name)) for name in ("local", "fresh"))
    with Run(local, config_of(tree, **values)) as run:
        run.labels()
    job, rows = bundle(tree, fresh, tmp_path / "maps", **values)
    for place in job.folders.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    sent = replace(job, labeller=pickle.loads(pickle.dumps(job.labeller)))
    for one in rows:
        list(scaleout.Worker(sent)(one))
    assert maps_of(tmp_path / "maps") == maps_of(local)


def test_a_worker_whose_device_computes_the_crfs_makes_the_same_bytes(tree, local, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(labeller, "_crf_goes_to", lambda device: True)
    monkeypatch.setattr(masks, "pseudo_mask", lambda *_: pytest.fail("a finishing thread computed a CRF"))
    for name in ("labels", "seeds/crf", "seeds/text", "seeds/vision", "seeds/refined"):
        (tmp_path / "out" / name).mkdir(parents=True)
    job, rows = bundle(tree, fresh, tmp_path / "out")
    assert not any(row["stop"] for one in rows for row in scaleout.Worker(job)(one))
    assert maps_of(tmp_path / "out") == maps_of(local)


def test_a_worker_counts_votes_as_the_local_engine_does(tree, learned, fresh, tmp_path):
    values = {"looks.makers": ("gradcam", "sclip"), "looks.scales": (1.0, 1.25), "looks.flip": True}
    own = Path(shutil.copytree(learned, tmp_path / "own"))
    with Run(own, config_of(tree, **values)) as run:
        run.labels()
    for name in ("labels", "seeds/crf", "seeds/text", "seeds/vision", "seeds/refined"):
        (tmp_path / "out" / name).mkdir(parents=True)
    job, rows = bundle(tree, fresh, tmp_path / "out", **values)
    assert not any(row["stop"] for one in rows for row in scaleout.Worker(job)(one))
    assert maps_of(tmp_path / "out") == maps_of(own)


def test_photographs_without_tags_need_no_worker(tree, tmp_path):
    rows = (tree / "train.csv").read_text().splitlines()
    bare = rows[3].partition(",")[0]
    (tmp_path / "tags.csv").write_text("\n".join([*rows[:3], f"{bare},", *rows[4:6]]) + "\n")
    values = {"data.tags": str(tmp_path / "tags.csv"), "data.untagged": "background"}
    with Run(tmp_path / "local", config_of(tree, **values)) as run:
        run.labels()
    with Run(tmp_path / "run", config_of(tree, **values)) as run:
        with run.handed_out() as samples:
            assert len(samples) == 5
            scaleout._make(None, run, [one for one in samples if not one.tags], scaleout._folders(run, None))
        assert [len(maps_of(tmp_path / "run")), len(run.state.records["masks"])] == [5, 1]
    name = f"{Path(bare).stem}.png"
    for path in (tmp_path / "run").rglob("*.png"):
        assert path.name == name
        assert path.read_bytes() == (tmp_path / "local" / path.relative_to(tmp_path / "run")).read_bytes()


def test_every_attempt_reports_as_many_rows(tree, fresh, tmp_path):
    """Ray matches the rows of a second attempt to those of the first by their number."""
    for folder in ("labels", "seeds/crf", "seeds/text", "seeds/vision", "seeds/refined"):
        (tmp_path / "out" / folder).mkdir(parents=True)
    job, rows = bundle(tree, fresh, tmp_path / "out")
    first = [len(list(scaleout.Worker(job)(row))) for row in rows]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    gone = next(iter(before))
    gone.unlink()
    assert [len(list(scaleout.Worker(job)(row))) for row in rows] == first
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    redone = {path.stem for path in before if path.exists() and before[path] != after[path]}
    assert gone.exists() and gone.stem in redone and len(redone) <= 4, "done batches are skipped"


def planned(run):
    """The local engine's batches."""
    samples = run.dataset.samples
    return run.stream.plan(
        len(samples), lambda member: grid_of(samples[member].image, run.clip.patch, run.config.clip), lambda *_: None
    )


def test_parts_share_out_the_plan(tree, fresh):
    with Run(fresh, config_of(tree)) as run:
        plan = [batch.members for batch in planned(run)]
        rows = scaleout._rows(run, run.dataset.samples, workers=2)
    assert [row["number"] for row in rows] == [0, 1, 2, 3] and {row["parts"] for row in rows} == {4}
    grids = dict.fromkeys((number for number in range(IMAGES) if number != HEADLESS), (8, 8))
    shared = [batch for row in rows for batch in list(grouped(grids, 1))[row["part"] :: row["parts"]]]
    assert sorted(shared) == sorted(plan)


def stop_of(job, row) -> str:
    return list(scaleout.Worker(job)(row))[-1]["stop"]


def test_a_worker_says_why_it_can_not_go_on(tree, fresh, tmp_path):
    job, (row, *_) = bundle(tree, fresh, tmp_path / "out")
    assert "does not see the folder" in stop_of(job, row) and "--out s3://" in stop_of(job, row)
    for folder in job.folders.values():
        Path(folder).mkdir(parents=True)
    other = replace(job, versions=job.versions | {"numpy": "0.1"})
    assert "other versions than the driver: numpy" in stop_of(other, row)
    assert "6 workers died at the images" in stop_of(replace(job, begin=lambda number: 7), row)
    full = replace(job, folders=job.folders | {"labels": "/dev/null"})
    assert "does not see the folder /dev/null" in stop_of(full, row)


def test_stores_and_prototypes_of_others_are_refused(tree, learned, fresh):
    store = f"memory://{uuid.uuid4().hex}"
    with Run(fresh, config_of(tree)) as run:
        scaleout._folders(run, store)
        scaleout._folders(run, store)
        assert run.record()["label_maps"] == store
        with pytest.raises(ConfigError, match="user, a password or a query"):
            scaleout.labels(run, "s3://key:secret@bucket/out")
    shutil.rmtree(fresh)
    shutil.copytree(learned, fresh)
    with Run(fresh, config_of(tree, **{"crf.rounds": 3})) as run, pytest.raises(RunError, match="another run"):
        scaleout._folders(run, store)
    classes = tree / "classes.toml"
    classes.write_text("".join(f'[[class]]\nname = "{name}"\n' for name in reversed(scene_classes().names)))
    small = fresh.parent / "small"
    small.mkdir()
    for name in ("config.toml", "prototypes.safetensors"):
        shutil.copy(learned / name, small / name)
    with (
        Run(small, config_of(tree, **{"data.classes": str(classes)})) as run,
        pytest.raises(RunError, match="of other classes"),
    ):
        run.labeller()


def test_without_ray_one_sentence_says_so(tree, fresh, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["labels", str(fresh), "--engine", "ray"]) == 2
    assert capsys.readouterr().err.endswith(
        "--engine ray needs the package ray; install it: pip install 'vpl-seg[ray]'.\n"
    )


def test_out_needs_ray(fresh, capsys):
    assert main(["labels", str(fresh), "--out", "s3://bucket/maps"]) == 2
    assert "--out needs --engine ray" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ray = SimpleNamespace(is_initialized=lambda: False)
    with pytest.raises(RunError, match=r"no Ray answers at 127\.0\.0\.1:1"), scaleout._cluster(ray):
        pass


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("AF_UNIX path length cannot exceed 107 bytes: x/plasma_store", "has too long a name for Ray; set TMPDIR"),
        ("no port is free", r"can't be started on this machine \(no port is free\)"),
    ],
)
def test_a_ray_of_this_machine_that_does_not_start_says_what_to_do(monkeypatch, fault, words):
    def init(*_, **__):
        raise OSError(fault)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ours = SimpleNamespace(is_initialized=lambda: False, init=init)
    with pytest.raises(RunError, match=words), scaleout._cluster(ours):
        pass


def test_workers_fit_the_machines():
    def on(device, *machines):
        nodes = [{"Alive": alive, "Resources": one} for alive, one in machines]
        return scaleout._resources(SimpleNamespace(nodes=lambda: nodes), device)

    cores, gpus = (True, {"CPU": 4.0}), (True, {"CPU": 8.0, "GPU": 2.0})
    assert on("auto", cores, (False, {"CPU": 64.0})) == ("cpu", 4, {"num_cpus": 1})
    assert on("auto", cores, gpus) == on("cuda", cores, gpus) == ("cuda", 2, {"num_gpus": 1})
    assert on("cpu", cores, gpus) == ("cpu", 12, {"num_cpus": 1})
    with pytest.raises(RunError, match="the Ray cluster has 0 GPUs"):
        on("cuda", cores)
    with pytest.raises(RunError, match="neither a GPU nor a CPU"):
        on("auto", (True, {}))


def test_the_costs_in_the_docs_are_what_the_script_prints():
    root = Path(__file__).parent.parent.parent
    printed = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "cost.py")], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() in (root / "docs" / "how-to" / "many-machines.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------ two workers


@pytest.fixture(scope="module")
def ray():
    """Ray with two workers, started once."""
    pytest.importorskip("ray", reason="ray is not installed (extra ray)")
    ray = scaleout._ray()
    with scaleout._silence():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


def workers() -> set[int]:
    """Process ids of the workers below this process's Ray."""
    psutil = pytest.importorskip("psutil")
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::MapWorker") and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (psutil.Error, IndexError):
            continue
    return found


def wait_for(what, seconds: float = 180):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
    return found


def command(tree: Path, folder: Path, out: Path) -> list[str]:
    photos = f"local://{tree}/images/train"
    return ["labels", str(folder), "--engine", "ray", "--images", photos, "--out", f"local://{out}"]


@dataclass(frozen=True)
class Stopped:
    """A run whose driver was killed: its folder, its label maps and their times."""

    folder: Path
    out: Path
    times: dict[Path, int]


@pytest.fixture(scope="module")
def stopped(ray, tree, learned, tmp_path_factory) -> Stopped:
    """A driver in a process of its own, on the same cluster, from store to store, killed after the first mask.

    Its run folder has the prototypes of another run, as one on a sample of the images would give them.
    """
    base = tmp_path_factory.mktemp("stopped")
    folder, out = base / "run", base / "maps"
    folder.mkdir()
    for name in ("config.toml", "prototypes.safetensors"):
        shutil.copy(learned / name, folder / name)
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = subprocess.Popen(
        [sys.executable, "-m", "vpl", *command(tree, folder, out)],
        env=environment,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: list(out.glob("labels/*.png")))
    driver.kill()
    driver.wait()
    wait_for(lambda: not workers())
    return Stopped(folder, out, {path: path.stat().st_mtime_ns for path in out.rglob("*.png")})


def test_a_killed_driver_leaves_whole_files(stopped, local):
    wanted = maps_of(local)
    assert 0 < len(stopped.times) < len(wanted), "it was killed in the middle"
    assert maps_of(stopped.out).items() <= wanted.items()


def test_the_next_driver_goes_on_though_workers_are_killed(stopped, tree, local, capfd):
    """Also: bad images are told and skipped with status 1, with the local engine's words."""
    killed = []

    def kill():
        wait_for(lambda: len(list(stopped.out.rglob("*.png"))) > len(stopped.times))
        killed.extend(workers())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        killed.append(len(list(stopped.out.glob("labels/*.png"))))

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    status = main(command(tree, stopped.folder, stopped.out))
    said = capfd.readouterr()
    thread.join(60)
    *pids, there = killed
    assert pids and there < IMAGES - 2, "workers were killed in the middle"
    assert status == 1, said.err
    assert maps_of(stopped.out) == maps_of(local) and not maps_of(stopped.folder)
    kept = [path for path, time in stopped.times.items() if path.stat().st_mtime_ns == time]
    assert len(kept) >= len(stopped.times) - 5 * 2 * 3 * 2, "at most the batches that were at work are made again"
    failed = {one["id"]: one["reason"] for one in json.loads((stopped.folder / "run.json").read_text())["failures"]}
    wanted = {one["id"]: one["reason"] for one in json.loads((local / "run.json").read_text())["failures"]}
    assert failed == {name: reason.replace(str(tree), f"local://{tree}") for name, reason in wanted.items()}
    assert f"pseudo-masks in local://{stopped.out}/labels" in said.out and "2 images skipped" in said.err
    assert "image/s" not in said.err, "no bar where nobody looks"
    assert "Traceback" not in said.err and "Running Dataset" not in said.err


def test_a_clip_whose_tensors_lie_at_odd_addresses_gives_the_local_bytes(ray, tree, local, tmp_path):
    """float32 weights in a file that begins them where no kernel expects it, through Ray's own memory."""
    from safetensors.torch import load_file, save_file

    import vpl
    from vpl.clip.model import ALIGNMENT

    clip = Path(shutil.copytree(Path(vpl.__file__).parent / "pocket", tmp_path / "clip"))
    path = clip / "model.safetensors"
    save_file({name: one.float().contiguous() for name, one in load_file(path).items()}, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    for blanks in (8, 16, 24, 40):  # a longer header moves every tensor
        moved = (length + blanks).to_bytes(8, "little") + data[8 : 8 + length] + b" " * blanks + data[8 + length :]
        path.write_bytes(moved)
        if any(one.data_ptr() % ALIGNMENT for one in load_file(path).values()):
            break
    config = config_of(tree, **{"clip.model": str(clip)})
    with Run(tmp_path / "learned", config) as run:
        run.prototypes()
    shutil.copytree(tmp_path / "learned", tmp_path / "here")
    with Run(tmp_path / "here", config) as run:
        run.labels()
    with Run(tmp_path / "learned", config) as run:
        scaleout.labels(run)
    assert maps_of(tmp_path / "learned") == maps_of(tmp_path / "here") == maps_of(local)
