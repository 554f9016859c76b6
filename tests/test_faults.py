"""What goes wrong around vpl: the disk, other processes, the clock, file names, images that change or can't be used.

Every fault ends in a result or in one sentence that starts with "vpl: ", never in a traceback; nothing is written
outside the folders that were named; and once the fault is mended the same command gives the bytes of a quiet run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from vpl.config import Config
from vpl.edges import images, storage
from vpl.edges.datasets import open_dataset
from vpl.errors import RunError
from vpl.runs.folder import RunFolder
from warm import command, held

pytestmark = pytest.mark.slow


def one_sentence(told, *words: str) -> None:
    """The command failed with one clear line at the end of what it told, and no traceback before it."""
    assert told.status == 2, told
    lines = [line for line in told.err.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("vpl: ") and sum(line.startswith("vpl: ") for line in lines) == 1, told.err
    no_traceback(told)
    for word in words:
        assert word in lines[-1], told.err


def no_traceback(told) -> None:
    for bad in ("Traceback", "Logging error", "Exception", "Warning:"):
        assert bad not in told.err, told.err


def finished(quiet) -> Path:
    """The run folder that went through all stages but prediction, undisturbed."""
    return quiet["evaluate"][1]


def predicting(model: Path, photos: Path, out: Path) -> list:
    return ["vpl", "predict", "--model", model, "--images", photos, "--out", out, "--device", "cpu", "--fast"]


def same_run(folder: Path, wanted: Path) -> None:
    one, other = held(folder), held(wanted)
    one.pop("report.html", None)
    for record in (one["run.json"], other["run.json"]):
        record.pop("stages")  # one command has others than many
    assert one.keys() == other.keys()
    assert [name for name in other if one[name] != other[name]] == []


# The disk


@pytest.mark.parametrize("size", [4_096, 32_768, 90_112, 163_840])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(warm, small_tree, quiet, tmp_path, size):
    folder, kept = tmp_path / "run", tmp_path / "kept"
    run = command("run", folder, small_tree)
    first, second = warm.run(
        ["small_disk", folder, size], run, ["small_disk", folder, 2**26], run, ["copy", folder, kept]
    )
    one_sentence(first, "No space left on device")
    assert second.status == 0, second.err
    same_run(kept, finished(quiet))


def test_a_full_disk_under_predictions(warm, small_tree, quiet, tmp_path):
    out, kept = tmp_path / "out", tmp_path / "kept"
    given = [*predicting(finished(quiet), small_tree / "images" / "train", out), "--overlays", "--probabilities"]
    first, second = warm.run(["small_disk", out, 8_192], given, ["small_disk", out, 2**26], given, ["copy", out, kept])
    one_sentence(first, "No space left on device")
    assert second.status == 0, second.err
    assert held(kept) == held(quiet["predict"][1] / "out")


@pytest.mark.parametrize("size", [0, 5_000])
def test_files_that_may_not_grow_are_told(warm, small_tree, quiet, tmp_path, size):
    folder = tmp_path / "run"
    run = command("run", folder, small_tree)
    first, second = warm.run(["largest_file", size], run, ["largest_file", -1], run)
    one_sentence(first, "File too large")
    assert second.status == 0, second.err
    same_run(folder, finished(quiet))


@pytest.mark.parametrize("stage", ["prototypes", "labels", "train", "evaluate", "report", "tune"])
def test_a_read_only_run_folder_is_told(warm, small_tree, quiet, tmp_path, stage):
    folder = shutil.copytree(finished(quiet), tmp_path / "run")
    given = ["vpl", "report", folder] if stage == "report" else command(stage, folder, small_tree)
    (told,) = warm.run(["read_only", folder], given)
    one_sentence(told, "Read-only file system")


def test_a_network_is_used_from_a_read_only_run_folder(warm, small_tree, quiet, tmp_path):
    folder, out = shutil.copytree(finished(quiet), tmp_path / "run"), tmp_path / "out"
    given = predicting(folder, small_tree / "images" / "train", out)
    (told,) = warm.run(["read_only", folder], given)
    assert told.status == 0 and len(list(out.glob("*.png"))) == 5


def test_a_read_only_output_folder_is_told(warm, small_tree, quiet, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    given = predicting(finished(quiet), small_tree / "images" / "train", out)
    (told,) = warm.run(["read_only", out], given)
    one_sentence(told, "Read-only file system")


@pytest.mark.parametrize("kind", ["a file", "a dangling link", "below a file", "a pipe"])
def test_an_output_path_that_is(warm, small_tree, quiet, tmp_path, kind):
    place = tmp_path / "out"
    if kind == "a dangling link":
        place.symlink_to(tmp_path / "nowhere" / "at all")
    elif kind == "a pipe":
        os.mkfifo(place)
    else:
        place.write_text("years of work")
    if kind == "below a file":
        place = place / "deeper"
    commands = [
        command("labels", place, small_tree), predicting(finished(quiet), small_tree / "images" / "train", place),
        ["vpl", "scenes", place, "--train", "1", "--val", "1", "--size", "32"],
        ["vpl", "report", place], command("tune", place, small_tree),
    ]  # fmt: skip
    for told in warm.run(*commands):
        one_sentence(told)
    if kind == "a file":
        assert place.read_text() == "years of work"


def test_masks_do_not_go_into_the_folder_of_the_images(warm, small_tree, quiet, tmp_path):
    photos = shutil.copytree(small_tree / "images" / "train", tmp_path / "photos")
    before = held(photos)
    told = warm.vpl("predict", "--model", finished(quiet), "--images", photos, "--out", photos, "--device", "cpu")
    one_sentence(told, "is a folder that is read from")
    assert held(photos) == before


@pytest.mark.parametrize("code", ["ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO", "ENAMETOOLONG"])
@pytest.mark.parametrize("call", ["replace", "open"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call, code):
    import errno

    (tmp_path / "a.txt").write_text("old")

    def fail(self, *_, **__):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(Path, call, fail)
    with pytest.raises(RunError, match=r"a\.txt can't be written \(.+\); check the folder"):
        storage.write_text_atomic(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


# Other processes


def test_a_second_process_is_refused_and_a_kill_frees_the_folder(warm, small_tree, quiet, tmp_path):
    folder = shutil.copytree(quiet["labels"][1], tmp_path / "run")
    long = [*command("train", folder, small_tree), "--set", "train.steps=1000000"]
    first = warm.start(long)
    while not (folder / "network" / "checkpoint.pt").exists():
        time.sleep(0.01)
    for stage in ("labels", "train", "evaluate", "tune"):
        one_sentence(
            warm.vpl(*command(stage, folder, small_tree)[1:]), "another process works in", "wait until it ends"
        )
    assert first.told() == []
    first.kill()
    assert first.wait() == -9
    shutil.rmtree(folder / "network")
    assert warm.vpl(*command("train", folder, small_tree)[1:]).status == 0


def test_two_processes_predict_into_one_folder(warm, small_tree, quiet, tmp_path):
    """Both may write; a file that the one is writing is not removed by the other."""
    out = tmp_path / "out"
    given = predicting(finished(quiet), small_tree / "images" / "train", out)
    jobs = [warm.start(given) for _ in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    assert [told.status for job in jobs for told in job.told()] == [0, 0, 0]
    wanted = held(quiet["predict"][1] / "out")
    assert held(out) == {
        name: data for name, data in wanted.items() if name.endswith((".png", "vpl-masks.json")) and "/" not in name
    }


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    import errno
    import fcntl

    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunError, match=r"gives no locks .No locks available.; name a folder on another disk"):
        RunFolder(tmp_path / "run", Config())


@pytest.mark.parametrize("name", [".lock", "log.txt"])
@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_nothing_is_written_through_what_stands_in_the_place_of_our_files(tmp_path, name, kind):
    thesis, folder = tmp_path / "thesis.doc", tmp_path / "run"
    with RunFolder(folder, Config()) as run:
        run.settle()
    thesis.write_text("years of work")
    (folder / name).unlink()
    if kind == "a link":
        (folder / name).symlink_to(thesis)
    elif kind == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    if (name, kind) == (".lock", "a pipe"):
        RunFolder(folder, Config()).close()
    else:
        with pytest.raises(RunError, match="can't be written"), RunFolder(folder, Config()) as run:
            run.settle()
    assert thesis.read_text() == "years of work"


# The clock


@pytest.mark.parametrize(("start", "step"), [(0.0, 0.0), (2e9, -1000.0), (4e9, 1e6)])
def test_a_clock_that_stands_jumps_or_runs_back_changes_nothing(warm, small_tree, quiet, tmp_path, start, step):
    folder = tmp_path / "run"
    run, new = command("run", folder, small_tree), command("predict", folder, small_tree)
    for told in warm.run(["clock", start, step], run, new):
        assert told.status == 0, told.err
        no_traceback(told)
    same_run(folder, quiet["predict"][1])


# Names


NAMES = {
    "spaces": "  a  b .png",
    "a leading dash": "-rf.png",
    "a leading dot and a suffix of ours": ".0.vpl-partial.png",
    "an emoji": "🦊🛋️.png",
    "composed letters": unicodedata.normalize("NFC", "é-ü-ñ.png"),
    "decomposed letters": unicodedata.normalize("NFD", "é-ü-ñ.png"),
    "letters from right to left": "كلب-\u202etxt.png",
    "255 bytes": "x" * 251 + ".png",
    "255 bytes of two each": "é" * 125 + "x.png",
    "quotes and semicolons": "a\"b';c,d.png",
    "shell characters": "$(reboot) `x` %s {0} *?[!].png",
    "HTML": "<script>alert(1)</script>.png".replace("/", "∕"),
    "capitals": "DOG.PNG",
    "small letters": "dog.png",
    "two suffixes": "a.png.png",
    "a name of ours": "config.toml.png",
    "a device of another system": "NUL.png",
    "a backslash": "a\\b.png",
}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A folder with an image for each of NAMES, and its tags."""
    folder = tmp_path_factory.mktemp("named") / "images with spaces, ünïcode and 🦊"
    folder.mkdir()
    rows = []
    for number, name in enumerate(NAMES.values()):
        image = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        images.write_image(folder / name, image)
        rows.append(json.dumps({"file_name": name, "tags": ["dog"]}))
    (folder.parent / "tags.jsonl").write_text("\n".join(rows))
    return folder


def test_every_name_that_a_disk_takes_gets_its_own_mask(warm, quiet, named, tmp_path):
    """Of two names that other disks would take for one, the second is refused."""
    run, out = tmp_path / "-a run 🏃", tmp_path / "-out é"
    for told in warm.run(
        [
            "vpl",
            "run",
            run,
            "--images",
            named,
            "--tags",
            named.parent / "tags.jsonl",
            "--steps",
            "0",
            "--device",
            "cpu",
        ],
        ["vpl", "predict", "--model", finished(quiet), "--images", named, "--out", out, "--fast", "--overlays"],
    ):
        no_traceback(told)
        alike = re.findall("on disks that fold case|which not every disk tells apart", told.err)
        assert told.status == 1 and len(alike) == 2, told.err
    wanted = sorted(name.rpartition(".")[0] + ".png" for name in NAMES.values())
    refused = {NAMES[kind].rpartition(".")[0] + ".png" for kind in ("decomposed letters", "small letters")}
    assert sorted(path.name for path in (run / "labels").iterdir()) == [name for name in wanted if name not in refused]
    predicted = {path.name for path in out.glob("*.png")}
    twins = {NAMES[kind].rpartition(".")[0] + ".png" for kind in ("composed letters", "capitals")} | refused
    assert predicted - twins == {name for name in wanted if not name.startswith(".")} - twins
    assert len(predicted & twins) == len(refused)
    assert "<script>alert" not in (run / "report.html").read_text()


def test_names_without_their_kind_of_accent_are_found(tmp_path):
    """A tag file may write é in another way than the disk does."""
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form
        folder.mkdir()
        (folder / unicodedata.normalize(form, "café.jpg")).touch()
        (folder / "tags.csv").write_text(f"file_name,tags\n{unicodedata.normalize(other, 'café.jpg')},dog\n")
        found = open_dataset(Config().with_values({"data.images": str(folder), "data.tags": f"{folder}/tags.csv"}).data)
        assert [sample.image.name for sample in found.samples] == [unicodedata.normalize(form, "café.jpg")]


UNUSABLE = {
    "a line break": "a\nb.png",
    "a bell": "a\ab.png",
    "bytes that are no text": os.fsdecode(b"a\xff.png"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_a_name_with_is_told_and_skipped(warm, small_tree, quiet, tmp_path, name):
    photos = shutil.copytree(small_tree / "images" / "train", tmp_path / "photos")
    one = next(photos.iterdir())
    shutil.copy(one, photos / UNUSABLE[name])
    (told,) = warm.run(predicting(finished(quiet), photos, tmp_path / "out"))
    assert told.status == 1 and told.err.count("skipped") == 1, told.err
    no_traceback(told)
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


@pytest.mark.parametrize("flag", ["--images", "--tags", "--classes", "--clip"])
def test_a_path_of_bytes_that_are_no_text_is_told(warm, small_tree, tmp_path, flag):
    place = tmp_path / os.fsdecode(b"\xff\xfe")
    shutil.copytree(small_tree, place)
    end = {"--images": "images/train", "--tags": "train.csv", "--classes": "classes.txt", "--clip": "clip.pt"}[flag]
    given = command("labels", tmp_path / "run", small_tree)
    one_sentence(warm.vpl(*given[1:], flag, place / end))


def test_a_run_folder_of_bytes_that_are_no_text_is_told(warm, small_tree, tmp_path):
    told = warm.vpl(*command("run", tmp_path / os.fsdecode(b"run \xff\xfe"), small_tree)[1:])
    one_sentence(told, "bytes that are no UTF-8")


def test_images_that_differ_in_their_suffix_alone_are_told(warm, small_tree, quiet, tmp_path):
    photos = shutil.copytree(small_tree / "images" / "train", tmp_path / "photos")
    first = sorted(photos.iterdir())[0]
    shutil.copy(first, first.with_suffix(".bmp"))
    tags = tmp_path / "tags.csv"
    tags.write_text((small_tree / "train.csv").read_text() + f"{first.stem}.bmp,cat\n")
    given = command("labels", tmp_path / "run", small_tree)
    told = warm.vpl(*given[1:], "--images", photos, "--tags", tags)
    assert (told.status == 1 and "rename one of the two images" in told.err) or "unknown tag" in told.err
    told = warm.vpl("predict", "--model", finished(quiet), "--images", photos, "--out", tmp_path / "out", "--fast")
    assert told.status == 1 and "has the same name but for its suffix; rename one" in told.err
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


# Images that can't be used


def _link_out(path, good):
    path.symlink_to(good)


def _fifo(path, good):
    os.mkfifo(path)


BAD = {
    "an empty file": lambda path, good: path.touch(),
    "half a file": lambda path, good: path.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
    "a text": lambda path, good: path.write_text("no image"),
    "a header without pixels": lambda path, good: path.write_bytes(good.read_bytes()[:40]),
    "a folder": lambda path, good: path.mkdir(),
    "a pipe": _fifo,
    "a link out of the folder": _link_out,
    "a link that dangles": lambda path, good: path.symlink_to(path.with_name("nothing.png")),
    "a link in a loop": lambda path, good: path.symlink_to(path),
    "a link to a device": lambda path, good: path.symlink_to("/dev/zero"),
}


@pytest.fixture(scope="module")
def mixed(warm, small_tree, quiet, tmp_path_factory):
    """What was told of a folder with two good images and a bad one of each kind, by labels and by predict, and where
    the masks are."""
    home = tmp_path_factory.mktemp("mixed")
    photos, rows = home / "photos", ["file_name,tags"]
    photos.mkdir()
    good = sorted((small_tree / "images" / "train").iterdir())[:2]
    for path in good:
        shutil.copy(path, photos)
        rows.append(f"{path.name},dog")
    for kind, spoil in BAD.items():
        spoil(photos / f"{kind}.png", good[0])
        rows.append(f"{kind}.png,cat")
    (home / "tags.csv").write_text("\n".join(rows))
    given = ["vpl", "labels", home / "run", "--images", photos, "--tags", home / "tags.csv", "--device", "cpu"]
    told = warm.run(given, predicting(finished(quiet), photos, home / "out"))
    return list(zip(told, (home / "run" / "labels", home / "out"), strict=True)), {path.stem for path in good}


@pytest.mark.parametrize("kind", BAD)
def test_one_image_among_good_ones_that_is(mixed, kind):
    answers, good = mixed
    for told, folder in answers:
        assert told.status == 1
        no_traceback(told)
        assert any(kind in line and ("skipped" in line or "left out" in line) for line in told.err.splitlines()), told
        assert {path.stem for path in folder.glob("*.png")} == good


@pytest.mark.parametrize("kind", ["an empty file", "a text", "a pipe", "a link out of the folder"])
def test_nothing_but_images_each_of_which_is(warm, small_tree, quiet, tmp_path, kind):
    photos = shutil.copytree(small_tree / "images" / "train", tmp_path / "photos")
    for path in photos.iterdir():
        path.unlink()
        BAD[kind](path, small_tree / "images" / "train" / path.name)
    for told in warm.run(
        [*command("labels", tmp_path / "run", small_tree), "--images", photos],
        predicting(finished(quiet), photos, tmp_path / "out"),
    ):
        one_sentence(told)


def moved(run: Path, old: Path, new: Path) -> None:
    """The run reads its data from another place."""
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace(str(old), str(new)))


@pytest.mark.parametrize("kind", ["an empty file", "half a file", "a text", "a folder"])
def test_one_truth_mask_among_good_ones_that_is(warm, small_tree, quiet, tmp_path, kind):
    data = shutil.copytree(small_tree, tmp_path / "data")
    for place in ("train", "val"):
        path = sorted((data / "masks" / place).iterdir())[0]
        path.unlink()
        BAD[kind](path, small_tree / "masks" / place / path.name)
    folder = shutil.copytree(finished(quiet), tmp_path / "run")
    moved(folder, small_tree, data)
    told = warm.vpl(*command("evaluate", folder, data)[1:])
    no_traceback(told)
    assert told.status == (0 if kind == "a folder" else 1), told.err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [one["images"] for one in metrics["evaluations"]] == [4, 1]


def test_truth_masks_that_say_nothing_are_one_sentence(warm, small_tree, quiet, tmp_path):
    data = shutil.copytree(small_tree, tmp_path / "data")
    for path in (data / "masks" / "train").iterdir():
        images.write_mask(path, np.full_like(images.read_mask(path), 255), [])
    folder = shutil.copytree(finished(quiet), tmp_path / "run")
    moved(folder, small_tree, data)
    one_sentence(warm.vpl(*command("evaluate", folder, data)[1:]), "255 (ignore) alone")


@pytest.mark.parametrize("action", ["replace", "remove"])
def test_an_image_that_changes_between_plan_and_reading_is_told_and_skipped(warm, small_tree, tmp_path, action):
    """Its batch was planned from its header; when it is read it has another size, or is gone."""
    photos = shutil.copytree(small_tree / "images" / "train", tmp_path / "photos")
    path = sorted(photos.iterdir())[0]
    images.write_image(tmp_path / "other.png", np.zeros((80, 16, 3), np.uint8))
    given = [*command("labels", tmp_path / "run", small_tree), "--images", photos]
    (told,) = warm.run(["on_open", path, action, tmp_path / "other.png"], given)
    assert told.status == 1 and f"skipped {path.stem}" in told.err, told.err
    no_traceback(told)
    assert len(list((tmp_path / "run" / "labels").iterdir())) >= 4


def test_an_image_that_vanished_after_its_mask_stops_the_training_with_a_sentence(warm, small_tree, quiet, tmp_path):
    data = shutil.copytree(small_tree, tmp_path / "data")
    folder = tmp_path / "run"
    assert warm.vpl(*command("labels", folder, data)[1:]).status == 0
    path = sorted((data / "images" / "train").iterdir())[0]
    path.rename(tmp_path / "away.png")
    (data / "images" / "train" / path.name).symlink_to(path.name)
    told = warm.vpl(*command("train", folder, data)[1:])
    no_traceback(told)
    assert told.status in (1, 2)
    path.unlink()
    (tmp_path / "away.png").rename(path)
    assert warm.vpl(*command("train", folder, data)[1:]).status == 0


# A run folder that was damaged

DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "random": lambda path: path.write_bytes(np.random.default_rng(0).bytes(300)),
    "another kind": lambda path: path.write_text("[[[1]]]"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}
KINDS = len(DAMAGE) if "VPL_ALL_FAULTS" in os.environ else 2
"""Kinds of damage that each file is put to, in turn."""
READ = {
    "config.toml": ["labels", "train", "evaluate", "report", "predict"],
    "run.json": ["labels", "train", "evaluate", "report"],
    "metrics.json": ["evaluate", "report"],
    "prototypes.json": ["evaluate", "report"],
    "prototypes.safetensors": ["labels", "train", "evaluate", "report"],
    "regions/round1/*": ["prototypes", "report"],
    "seeds/refined/*": ["evaluate", "report"],
    "labels/*": ["train", "evaluate", "report"],
    "network/network.json": ["train", "evaluate", "predict", "report"],
    "network/decoder.safetensors": ["train", "evaluate", "predict", "report"],
    "network/checkpoint.pt": ["train"],
    "network/curve.csv": ["train", "report"],
    "tune.json": ["tune", "report"],
}


@pytest.fixture(scope="module")
def halfway(warm, small_tree, quiet, tmp_path_factory):
    """A run that was killed in its training, after a checkpoint."""
    folder = tmp_path_factory.mktemp("halfway") / "run"
    before, _, changes = quiet["train"]
    shutil.copytree(before, folder)
    assert warm.start(["die_at", folder, changes - 10], command("train", folder, small_tree)).wait() == -9
    assert (folder / "network" / "checkpoint.pt").exists()
    return folder


@pytest.mark.parametrize("name", READ)
def test_a_run_whose_file_is_damaged(warm, small_tree, quiet, halfway, tmp_path, name):
    """Each stage that reads it goes on without it or says its name in one sentence; what was finished stays."""
    first = list(READ).index(name)
    for kind in [*DAMAGE, *DAMAGE][first % len(DAMAGE) :][:KINDS]:
        training = name in ("network/checkpoint.pt", "network/curve.csv")
        folder = Path(shutil.copytree(halfway if training else finished(quiet), tmp_path / kind))
        (folder / "tune.json").write_text(json.dumps({"images": 3, "choices": []}))
        if name.startswith("regions"):
            (folder / "prototypes.safetensors").unlink()
        path = sorted(folder.glob(name))[0]
        DAMAGE[kind](path)
        steps = []
        for stage in READ[name]:
            own = ["--out", folder / f"out-{stage}"] if stage == "predict" else []
            steps.append(
                ["vpl", "report", folder] if stage == "report" else [*command(stage, folder, small_tree), *own]
            )
        before = held(folder / "labels")
        for told in warm.run(*steps):
            no_traceback(told)
            assert told.status in (0, 1, 2)
            if told.status == 2:
                one_sentence(told, "configuration" if name == "config.toml" else path.name)
        assert held(folder / "labels") == before


def _edited(change):
    def edit(path):
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))

    return edit


def _tensors(change):
    def edit(path):
        from safetensors.torch import load_file, save_file

        found = load_file(path)
        change(found)
        save_file({key: one.contiguous() for key, one in found.items()}, f"{path}.new")
        Path(f"{path}.new").replace(path)

    return edit


def _fill(key, value):
    return _tensors(lambda found: found[key].fill_(value))


def _cut(key):
    return _tensors(lambda found: found.update({key: found[key][:-1]}))


VALUES = {
    ("run.json", "clip is a number"): _edited(lambda tree: tree.update(clip=3)),
    ("run.json", "data is a list"): _edited(lambda tree: tree.update(data=[1])),
    ("run.json", "stages is a text"): _edited(lambda tree: tree.update(stages="all")),
    ("run.json", "a hash is a number"): _edited(lambda tree: tree["clip"].update(hash=7)),
    ("run.json", "seconds are a text"): _edited(lambda tree: tree["stages"]["prototypes"].update(seconds="long")),
    ("metrics.json", "evaluations is a number"): _edited(lambda tree: tree.update(evaluations=3)),
    ("metrics.json", "an evaluation is a list"): _edited(lambda tree: tree["evaluations"].append([])),
    ("metrics.json", "an evaluation without split"): _edited(lambda tree: tree["evaluations"][0].pop("split")),
    ("metrics.json", "rows of numbers"): _edited(lambda tree: tree["evaluations"][0].update(rows=[1, 2])),
    ("metrics.json", "a score is a text"): _edited(lambda tree: tree["evaluations"][0]["rows"][0].update(miou="high")),
    ("prototypes.json", "accuracy is a text"): _edited(lambda tree: tree.update(accuracy_vision="good")),
    ("prototypes.safetensors", "no vision"): _tensors(lambda found: found.pop("vision")),
    ("prototypes.safetensors", "vision of fewer rows"): _cut("vision"),
    ("prototypes.safetensors", "not a number"): _fill("text", float("nan")),
    ("prototypes.safetensors", "another width"): _tensors(
        lambda found: found.update({key: one[:, :-1] for key, one in found.items()})
    ),
    ("regions/round1/*", "a class that is not there"): _fill("class", 200),
    ("regions/round1/*", "an image that is not there"): _fill("sample", 999),
    ("regions/round1/*", "not a number"): _fill("embeddings", float("nan")),
    ("regions/round1/*", "unequal lengths"): _cut("class"),
    ("regions/round1/*", "no embeddings"): _tensors(lambda found: found.pop("embeddings")),
    ("network/network.json", "a billion blocks"): _edited(lambda tree: tree.update(clip_blocks=10**9)),
    ("network/network.json", "a width of a billion"): _edited(lambda tree: tree["decoder"].update(width=10**9)),
    ("network/network.json", "no patch"): _edited(lambda tree: tree.update(patch=0)),
    ("network/network.json", "a scale that is a text"): _edited(lambda tree: tree.update(scale="large")),
    ("network/network.json", "two means"): _edited(lambda tree: tree.update(mean=[0.5, 0.5])),
    ("network/network.json", "training is a list"): _edited(lambda tree: tree.update(training=[])),
    ("network/network.json", "another CLIP"): _edited(lambda tree: tree.update(clip_hash="0" * 64)),
    ("network/network.json", "a CLIP that is not there"): _edited(lambda tree: tree.update(clip_name="nothing.pt")),
    ("network/network.json", "a student without a type"): _edited(lambda tree: tree.update(student={"a": 1})),
    ("network/decoder.safetensors", "not a number"): _fill("fuse.weight", float("nan")),
    ("network/decoder.safetensors", "a missing tensor"): _tensors(lambda found: found.pop("fuse.weight")),
    ("network/decoder.safetensors", "a tensor of another size"): _cut("fuse.weight"),
    ("network/checkpoint.pt", "a step that is a text"): lambda path: _checkpoint(path, step="two"),
    ("network/checkpoint.pt", "a step behind the end"): lambda path: _checkpoint(path, step=10**9),
    ("network/checkpoint.pt", "no head"): lambda path: _checkpoint(path, head={}),
    ("network/checkpoint.pt", "an optimizer that is a list"): lambda path: _checkpoint(path, optimizer=[1]),
    ("network/checkpoint.pt", "settings that are a number"): lambda path: _checkpoint(path, settings=1),
    ("tune.json", "choices of numbers"): _edited(lambda tree: tree.update(choices=[1])),
    ("tune.json", "choices of other keys"): _edited(lambda tree: tree.update(choices=[{"a": 1}])),
    ("tune.json", "images is a list"): _edited(lambda tree: tree.update(images=[])),
}  # fmt: skip


def _checkpoint(path, **change):
    import torch

    torch.save(torch.load(path, weights_only=True) | change, path)


@pytest.mark.parametrize(("name", "kind"), VALUES, ids=lambda part: part)
def test_a_value_in_a_run(warm, small_tree, quiet, halfway, tmp_path, name, kind):
    training = name == "network/checkpoint.pt"
    folder = Path(shutil.copytree(halfway if training else finished(quiet), tmp_path / "run"))
    (folder / "tune.json").write_text(json.dumps({"images": 3, "choices": []}))
    if name.startswith("regions"):
        (folder / "prototypes.safetensors").unlink()
    if name.startswith("prototypes.s"):
        sorted((folder / "labels").iterdir())[0].unlink()  # to be made again
    path = sorted(folder.glob(name))[0]
    VALUES[name, kind](path)
    own = {"prototypes.safetensors": "labels", "tune.json": "tune"}
    starts = {"regions/": "prototypes", "network/n": "predict", "network/d": "predict", "network/": "train"}
    stage = own.get(name) or next((one for start, one in starts.items() if name.startswith(start)), "evaluate")
    told = warm.vpl(*command(stage, folder, small_tree)[1:])
    no_traceback(told)
    if kind == "accuracy is a text":
        assert told.status == 0, told.err
    else:
        one_sentence(told, "CLIP" if "another CLIP" in kind else "nothing.pt" if "CLIP" in kind else path.name)
