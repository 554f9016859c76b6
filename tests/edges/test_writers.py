"""Every writer keeps the rule of outputs.py: no input folder, no file of another's, no two at once."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from vpl.cli import main
from vpl.config import preset
from vpl.edges import locks, outputs
from vpl.errors import RunError
from vpl.scenes.tree import write_tree

NET = ["--set", "train.crop=32", "--set", "train.batch=2", "--set", "decoder.width=16", "--set", "decoder.heads=2"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_tree(folder, {"train": 5, "val": 3}, seed=4, style="demo", size=48)
    return folder


def given(tree, *more):
    data = ["--images", str(tree / "images" / "train"), "--tags", str(tree / "train.csv")]
    return ["--preset", "scenes", "--set", "crf.rounds=1", *data, *more]


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made"
    assert main(["run", str(folder), *given(tree, "--steps", "2", *NET, "--set", "predict.scales=[1.0]")]) == 0
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {one.relative_to(folder).as_posix(): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


def refused(capsys, status, *words):
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and told.startswith("vpl: ") and all(word in told for word in words), told


# ------------------------------------------------------------------------------------------------------- input folders
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["overlays", "scores", "itself", "link"])
def test_predict_does_not_write_where_it_reads(tree, made, tmp_path, capsys, kind):
    out = tmp_path / "out"
    photos = {"overlays": out / "overlays", "scores": out / "scores", "itself": out, "link": tmp_path / "real"}[kind]
    shutil.copytree(tree / "images" / "val", photos)
    if kind == "link":
        out.symlink_to(photos)
    before = files(photos)
    flags = ["--overlays", "--scores"] if kind in ("overlays", "scores") else []
    status = main(["predict", str(made), "--images", str(photos), "--out", str(out), "--fast", *flags])
    refused(capsys, status, "is a folder that is read from")
    assert files(photos) == before


def test_evaluation_does_not_write_over_held_out_photographs(tree, made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    shutil.copytree(tree / "images" / "val", run / "predictions")
    before = files(run / "predictions")
    held = ["--val-images", str(run / "predictions"), "--val-tags", str(tree / "val.csv")]
    status = main(["evaluate", str(run), *held, "--val-masks", str(tree / "masks" / "val")])
    refused(capsys, status, "is a folder that is read from")
    assert files(run / "predictions") == before


@pytest.mark.parametrize("name", ["labels", "network", "seeds/text", "predictions", "export", "replaced", "state"])
def test_a_link_in_a_run_leads_to_a_folder_that_was_empty(tmp_path, name):
    from vpl.runs.folder import RunFolder

    theirs, run = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    for folder in (run / name).parent, run / "state":
        if folder != run / name:
            folder.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text("")
    (run / name).symlink_to(theirs)
    (theirs / "mine.png").write_bytes(b"mine")
    with pytest.raises(RunError, match=r"is a link to a folder with files that vpl did not make \(mine.png\)"):
        RunFolder(run, preset("scenes"))
    assert files(theirs) == {"mine.png": b"mine"}
    (theirs / "mine.png").unlink()
    for _ in range(2):  # it is ours from then on
        RunFolder(run, preset("scenes")).close()
        (theirs / "made.png").write_bytes(b"made")


# -------------------------------------------------------------------------------------------------------- foreign files
def test_scenes_leave_a_folder_of_a_similar_name(tmp_path):
    for name in ("data.partial", ".data.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    assert main(["scenes", str(tmp_path / "data"), "--train", "2", "--val", "1", "--size", "32"]) == 0
    assert (tmp_path / "data.partial" / "mine.txt").exists() and (tmp_path / ".data.partial" / "mine.txt").exists()
    assert sorted(one.name for one in tmp_path.iterdir()) == [".data.partial", "data", "data.partial"]


def test_an_export_is_replaced_and_what_lies_beside_its_files_is_not_lost(made, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", str(made), "--to", "voc", "--out", str(out)]
    assert main(command) == 0
    first = files(out)
    assert main(command) == 0 and files(out) == first
    (out / "notes").mkdir()
    (out / "notes" / "mine.xml").write_text("mine")
    refused(capsys, main(command), "notes/mine.xml", "did not write")
    assert (out / "notes" / "mine.xml").read_text() == "mine"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["out"], "nothing is left beside it"


def test_two_exports_into_one_folder(made, tmp_path, capsys):
    busy = tmp_path / ".out.vpl-export"
    busy.mkdir()
    (busy / "half.png").write_bytes(b"half")
    lock = locks.claim(busy)
    try:
        refused(capsys, main(["export", str(made), "--to", "voc", "--out", str(tmp_path / "out")]), "another process")
        assert (busy / "half.png").exists()
    finally:
        lock.release()
    assert main(["export", str(made), "--to", "voc", "--out", str(tmp_path / "out")]) == 0
    assert not busy.exists() and "half.png" not in files(tmp_path / "out"), "what a kill left is swept"


@pytest.mark.parametrize("out", [".", "/", ".."])
def test_the_folder_that_one_stands_in_is_no_export(made, tmp_path, capsys, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    refused(capsys, main(["export", str(made), "--to", "voc", "--out", out]), "--out")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_page_replaces_pages_alone(made, tmp_path, capsys):
    page = tmp_path / "page.html"
    command = ["compare", str(made), str(made), "--out", str(page)]
    assert main(command) == 0 and main(command) == 0
    page.write_text("<p>mine</p>")
    refused(capsys, main(command), "was not made by vpl")
    assert page.read_text() == "<p>mine</p>"
    with pytest.raises(RunError, match="can't be replaced"):
        outputs.check_page(tmp_path)


def test_tables_of_an_ablation_and_the_sheet_of_a_demo_replace_nothing_else(tmp_path, capsys):
    (tmp_path / "phi.csv").write_text("mine")
    status = main(["ablate", "phi", "--out", str(tmp_path), "--sets", "1", "--count", "2"])
    refused(capsys, status, "phi.csv is there and was not made by vpl")
    (tmp_path / "contact-sheet.png").write_text("mine")
    refused(capsys, main(["demo", "--out", str(tmp_path)]), "holds files that vpl did not make there (contact-sheet")
    (tmp_path / outputs.NAME).touch()
    refused(capsys, main(["demo", "--out", str(tmp_path)]), "contact-sheet.png is there and was not made by vpl")
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("mine")
    refused(capsys, main(["demo", "--out", str(photos)]), "holds files that vpl did not make there (a.jpg)")
    assert sorted(one.name for one in photos.iterdir()) == ["a.jpg"]
    assert (tmp_path / "phi.csv").read_text() == (tmp_path / "contact-sheet.png").read_text() == "mine"


@pytest.mark.slow
def test_label_maps_of_many_workers_go_beside_nothing(tree, tmp_path, caplog):
    from vpl.runs import ray as scaleout
    from vpl.runs.stages import Run

    theirs = tmp_path / "theirs"
    shutil.copytree(tree / "masks" / "train", theirs / "labels")
    before = files(theirs)
    places = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv")}
    config = preset("scenes").with_values(places)
    with Run(tmp_path / "run", config) as run:
        run.prototypes()
        with pytest.raises(RunError, match="holds files that vpl did not make"):
            scaleout._folders(run, theirs)
        with pytest.raises(RunError, match="holds files that vpl did not make"):
            scaleout._folders(run, f"file://{theirs}")
        scaleout._folders(run, "memory://bucket/x")
        assert "nothing of it will remain" in caplog.text
        scaleout._folders(run, tmp_path / "new")
        scaleout._folders(run, tmp_path / "new")  # it is this run's
    with Run(tmp_path / "run", config.with_values({"data.masks": str(theirs / "labels")})) as run:
        (theirs / "vpl.json").write_text("{}")
        with pytest.raises(RunError, match="is a folder that is read from"):
            scaleout._folders(run, theirs)
    (theirs / "vpl.json").unlink()
    assert files(theirs) == before


# ---------------------------------------------------------------------------------------------- siblings of these kinds
@pytest.mark.parametrize("place", ["", "labels", "network", "state", "seeds/text", "labels/deeper"])
def test_masks_don_t_go_where_a_run_keeps_its_own(tree, made, tmp_path, capsys, place):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    before = files(run)
    status = main(["predict", str(run), "--images", str(tree / "images" / "val"), "--out", str(run / place), "--fast"])
    refused(capsys, status, "a run's own folder", "name another")
    assert files(run) == before
    outputs.check_no_run(run / "masks")
    outputs.check_no_run(tmp_path)


def test_photographs_in_the_output_folder_are_not_passed_over(tree, made, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(tree / "images" / "val", photos / "day1")
    before = files(photos)
    for given in (str(photos), str(photos / "day1" / "*.png"), str(photos / "**" / "*.png")):
        status = main(["predict", str(made), "--images", given, "--out", str(photos / "day1"), "--fast"])
        refused(capsys, status, "is a folder that is read from")
    assert files(photos) == before


def test_a_prediction_of_nothing_leaves_the_folder_as_it_was(tree, made, tmp_path, capsys):
    photos, mine = tree / "images" / "val", tmp_path / "mine"
    shutil.copytree(photos, mine)
    before = files(mine)
    status = main(["predict", str(made), "--images", str(photos), "--out", str(mine), "--fast"])
    refused(capsys, status, "none of the images could be used", "was not made by vpl here")
    assert files(mine) == before
    (tmp_path / "bad.jpg").write_text("no image")
    given = ["--images", str(tmp_path / "bad.jpg"), "--out", str(tmp_path / "new"), "--fast", "--overlays", "--scores"]
    refused(capsys, main(["predict", str(made), *given]), "none of the images could be used")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["vpl-masks.json", "scores.csv"])
def test_a_list_beside_the_masks_replaces_no_other_file(tree, made, tmp_path, capsys, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    command = ["predict", str(made), "--images", str(tree / "images" / "val"), "--out", str(out), "--fast", "--scores"]
    refused(capsys, main(command), f"{name} is there and was not made by vpl")
    assert (out / name).read_text() == "mine" and not list(out.rglob("*.png")), "it is said before the first photograph"
    assert main([*command, "--overwrite"]) == 0 and (out / name).read_text() != "mine"
    assert main(command) == 0


def test_an_ablation_on_photographs_leaves_their_folder_alone(tree, capsys):
    photos = tree / "images" / "train"
    before = files(photos)
    given_data = ["--images", str(photos), "--tags", str(tree / "train.csv"), "--masks", str(tree / "masks" / "train")]
    status = main(["ablate", "phi", "--out", str(photos), "--sets", "1", "--count", "2", *given_data])
    refused(capsys, status, "is a folder that is read from")
    assert files(photos) == before


def test_a_report_replaces_a_report_or_what_was_torn(made, tmp_path, capsys):
    run = Path(shutil.copytree(made, tmp_path / "run"))
    (run / "report.html").write_text("<p>mine</p>")
    refused(capsys, main(["report", str(run)]), "report.html is there and was not made by vpl")
    assert (run / "report.html").read_text() == "<p>mine</p>"
    (run / "report.html").write_bytes(bytes(100))
    assert main(["report", str(run)]) == 0 and outputs.PAGE_MARK in (run / "report.html").read_text()


def test_scenes_go_through_no_link_and_a_demo_into_no_other_folder(tmp_path, capsys):
    (tmp_path / "real").mkdir()
    for name, goal in (("link", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / goal)
        refused(capsys, main(["scenes", str(tmp_path / name), "--train", "1", "--val", "1"]), "is a link")
    (tmp_path / "demo" / "scenes-0").mkdir(parents=True)
    refused(
        capsys, main(["demo", "--out", str(tmp_path / "demo")]), "holds files that vpl did not make there (scenes-0)"
    )
    (tmp_path / "demo" / ".vpl-made.jsonl").touch()
    refused(capsys, main(["demo", "--out", str(tmp_path / "demo")]), "scenes-0 is there and holds no scenes")


def test_nothing_is_no_folder(tree, tmp_path, capsys):
    assert main(["plan", str(tmp_path / "run"), *given(tree, "--masks", "", "--set", "validation.masks=")]) == 0
    refused(capsys, main(["plan", str(tmp_path / "run"), *given(tree, "--images", "")]), "data.images is empty")


@pytest.mark.parametrize("to", ["voc", "coco", "yolo", "labelstudio", "cvat"])
def test_a_full_disk_names_what_is_written(made, tmp_path, capsys, monkeypatch, to):
    def full(*given, **named):
        raise OSError(errno.ENOSPC, "No space left on device", str(given[0]), None, str(given[1]))

    monkeypatch.setattr(shutil, "copyfile", full)
    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("zipfile.ZipFile.writestr", full)
    status = main(["export", str(made), "--to", to, "--out", str(tmp_path / "out")])
    refused(capsys, status, f"{tmp_path / 'out'} can't be written (No space left on device)")
    assert not list(tmp_path.iterdir()), "nothing is left beside it"
