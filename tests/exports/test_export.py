"""Exports of pseudo-masks: each format is read back by the tool that it is made for, to exactly the same masks.

pycocotools and faster-coco-eval come with the extra `test`. Datumaro, which CVAT reads its imports with, and
Ultralytics need other versions of our packages: give a Python that has them in VPL_DATUMARO_PYTHON and
VPL_ULTRALYTICS_PYTHON (.ci/run makes both).
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.numpy import save_file

import vpl
from other_python import in_other_python
from vpl.classes import ClassSet, voc_palette
from vpl.cli import main
from vpl.config import Config
from vpl.edges.datasets import open_dataset
from vpl.edges.images import read_image, read_mask, write_mask
from vpl.edges.outputs import Made
from vpl.errors import ConfigError, DataError, RunError
from vpl.exports import WAYS, coco, voc
from vpl.exports import export as exports
from vpl.exports.labelled import Labelled, distinct_palette, label_map

CLASSES = ("dog", "red car", "sofa")
NAMES = ("plain.jpg", "with  two spaces.png", "sub/garten_ä 犬.png", "deep/er/turned.jpg", "clear.png", "grey.bmp")
"""Photographs of the run, in the order of the list; all have pseudo-masks."""
TAGS = ("dog", "dog;sofa", "red car", "dog;red car;sofa", "sofa", "red car;sofa")
SIZES = ((40, 56), (33, 47), (1, 9), (24, 36), (20, 20), (17, 5))
UNSEEN = 3
"""Number of the image in whose mask its tag "sofa" has no pixel."""
FORMATS = ("voc", "coco", "cvat", "yolo")


def identity(name: str) -> str:
    """A photograph's id: its place below the folder of images, without suffix."""
    return PurePosixPath(name).with_suffix("").as_posix()


def make_run(folder: Path) -> Path:
    """A run folder as vpl labels leaves it, without running it."""
    photos, run = folder / "photos", folder / "run"
    (run / "labels").mkdir(parents=True)
    generator = np.random.default_rng(4)
    rows = ["file_name,tags"]
    for number, (name, tags, size) in enumerate(zip(NAMES, TAGS, SIZES, strict=True)):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray(generator.integers(0, 256, (*size, 3)).astype(np.uint8))
        if path.stem == "turned":
            exif = Image.Exif()
            exif[0x0112] = 6
            pixels.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        elif path.stem == "clear":
            pixels.putalpha(100)
            pixels.save(path)
        else:
            (pixels.convert("L") if path.stem == "grey" else pixels).save(path)
        present = [CLASSES.index(tag) + 1 for tag in tags.split(";")][: 2 if number == UNSEEN else 3]
        mask = generator.choice([0, 0, 255, *present], size).astype(np.uint8)
        mask[:, : size[1] // 3] = 0
        place = run / "labels" / f"{identity(name)}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_mask(place, mask, voc_palette())
        rows.append(f"{name},{tags}")
    (folder / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = Config().with_values({"data.images": str(photos), "data.tags": str(folder / "tags.csv")})
    (run / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    facts = json.dumps({"classes": CLASSES})
    save_file({"text": np.zeros((3, 4), np.float32)}, run / "prototypes.safetensors", {"vpl": facts})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def made(run, tmp_path_factory) -> dict[str, Path]:
    """Each format's folder."""
    above = tmp_path_factory.mktemp("out")
    found = {}
    for to in FORMATS:
        done = vpl.export(run, to, above / f"an {to}")
        assert done.failures == () and done.images == len(NAMES)
        found[to] = done.folder
    return found


def masks_of(run: Path) -> dict[str, np.ndarray]:
    return {identity(name): read_mask(run / "labels" / f"{identity(name)}.png") for name in NAMES}


def photos_of(run: Path) -> dict[str, np.ndarray]:
    return {identity(name): read_image(run.parent / "photos" / name) for name in NAMES}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same_pixels(path: Path, wanted: np.ndarray) -> None:
    """Lossless files to the bit, JPEGs nearly; as a reader sees them that knows nothing of EXIF."""
    with Image.open(path) as image:
        found = np.array(image.convert("RGB"))
    assert found.shape == wanted.shape
    if path.suffix != ".jpg":
        assert np.array_equal(found, wanted)


# ---------------------------------------------------------------------------------------------------------------- voc
def test_our_own_reader_reads_the_voc_folder(run, made):
    data = Config().with_values({"data.format": "voc", "data.images": str(made["voc"]), "data.split": "train"}).data
    found = open_dataset(data, ClassSet(CLASSES))
    assert found.problems == ()
    assert [sample.tags for sample in found.samples] == [tuple(tags.split(";")) for tags in TAGS]
    for sample, mask, photo in zip(found.samples, masks_of(run).values(), photos_of(run).values(), strict=True):
        assert np.array_equal(read_mask(sample.mask), mask)
        same_pixels(sample.image, photo)


def test_voc_masks_are_indices_with_the_palette_and_names_have_no_spaces(run, made):
    names = (made["voc"] / "ImageSets/Segmentation/train.txt").read_text(encoding="utf-8").splitlines()
    assert names == ["plain", "with__two_spaces", "sub_garten_ä_犬", "deep_er_turned", "clear", "grey"]
    for name in names:
        with Image.open(made["voc"] / "SegmentationClass" / f"{name}.png") as image:
            assert image.mode == "P"
            assert image.getpalette() == [channel for color in voc_palette() for channel in color]
    lines = (made["voc"] / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert lines[1:] == ["background:0,0,0::", "dog:128,0,0::", "red car:0,128,0::", "sofa:128,128,0::",
                         "ignored:224,224,192::"]  # fmt: skip


def test_voc_boxes_are_tight_and_a_tag_without_pixels_has_none(run, made):
    import xml.etree.ElementTree as ET

    for name, mask in masks_of(run).items():
        tree = ET.parse(made["voc"] / "Annotations" / f"{re.sub('[ /]', '_', name)}.xml")
        for entry in tree.findall("object"):
            rows, columns = np.nonzero(mask == CLASSES.index(entry.findtext("name")) + 1)
            box = [entry.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
            if not len(rows):
                assert box == [None] * 4
            else:
                assert list(map(int, box)) == [
                    columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1
                ]  # fmt: skip


def test_two_names_that_differ_by_a_space_stay_two(tmp_path):
    writer = voc.Writer(tmp_path, ClassSet(("dog",)))
    source = tmp_path / "a.jpg"
    Image.new("RGB", (3, 2)).save(source)
    for id in ("a b", "a_b", "a\u3000b"):
        image, mask = np.zeros((2, 3, 3), np.uint8), np.ones((2, 3), np.uint8)
        writer.add(Labelled(id, PurePosixPath(id), source, ("dog",), image, mask))
    writer.close()
    assert (tmp_path / "ImageSets/Segmentation/train.txt").read_text().split() == ["a_b", "a_b_", "a_b__"]


# --------------------------------------------------------------------------------------------------------------- coco
@pytest.mark.parametrize("tool", ["pycocotools", "faster_coco_eval"])
def test_coco_readers_decode_exactly_the_masks(run, made, tool):
    if tool == "pycocotools":
        pytest.importorskip(tool, reason="pycocotools is not installed (extra test)")
        from pycocotools import mask as coding
        from pycocotools.coco import COCO
    else:
        pytest.importorskip(tool, reason="faster-coco-eval is not installed (extra test)")
        from faster_coco_eval import COCO
        from faster_coco_eval import mask as coding
    data = COCO(str(made["coco"] / "annotations" / "instances_train.json"))
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == list(CLASSES)
    for number, (mask, photo) in enumerate(zip(masks_of(run).values(), photos_of(run).values(), strict=True), 1):
        (entry,) = data.loadImgs([number])
        assert (entry["height"], entry["width"]) == mask.shape
        same_pixels(made["coco"] / "images" / entry["file_name"], photo)
        found = np.zeros_like(mask)
        annotations = data.loadAnns(data.getAnnIds(imgIds=[number]))
        for one in annotations:
            shape = data.annToMask(one).astype(bool)
            assert not found[shape].any() and one["iscrowd"] == 0
            found[shape] = one["category_id"]
            assert one["area"] == coding.area(one["segmentation"]) == shape.sum()
            assert one["bbox"] == list(coding.toBbox(one["segmentation"]))
        assert len(annotations) == len(np.setdiff1d(mask, [0, 255]))
        if "ignored" in entry:
            found[coding.decode(entry["ignored"]).astype(bool)] = 255
        assert np.array_equal(found, mask)


def test_our_own_reader_reads_the_coco_folder(made):
    data = Config().with_values({
        "data.format": "coco",
        "data.images": str(made["coco"] / "images"),
        "data.tags": str(made["coco"] / "annotations" / "instances_train.json"),
    }).data  # fmt: skip
    found = open_dataset(data, ClassSet(CLASSES))
    assert found.problems == ()
    wanted = [set(tags.split(";")) for tags in TAGS]
    wanted[UNSEEN] -= {"sofa"}
    assert [set(sample.tags) for sample in found.samples] == wanted


@settings(max_examples=80, deadline=None)
@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.booleans()), st.integers(1, 9)
)
def test_rle_is_pycocotools_own(mask, zoom):
    coding = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed (extra test)")
    mask = np.kron(mask, np.ones((zoom, zoom), bool))
    mine = coco.rle(mask)
    theirs = coding.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert mine["counts"] == theirs["counts"].decode() and mine["size"] == theirs["size"]


@pytest.mark.parametrize("side", [1, 33, 700])
@pytest.mark.parametrize("value", [False, True])
def test_rle_of_one_run(side, value):
    coding = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed (extra test)")
    mask = np.full((side, side + 1), value)
    assert np.array_equal(coding.decode(coco.rle(mask)).astype(bool), mask)


# --------------------------------------------------------------------------------------------------------------- cvat
def test_the_cvat_zip_holds_colour_masks_named_as_the_photographs(run, made):
    """As CVAT's manual tells the format: colours of labelmap.txt, one number for each object of SegmentationObject."""
    with zipfile.ZipFile(made["cvat"] / "annotations.zip") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
        assert names == [name.rpartition(".")[0] for name in NAMES]
        lines = [line.split(":") for line in archive.read("labelmap.txt").decode().splitlines()[1:]]
        labels = {tuple(map(int, line[1].split(","))): number for number, line in enumerate(lines)}
        for name, mask in zip(names, masks_of(run).values(), strict=True):
            colors, objects = (
                np.array(Image.open(io.BytesIO(archive.read(f"Segmentation{kind}/{name}.png"))))
                for kind in ("Class", "Object")
            )
            assert colors.ndim == 3 and colors.shape == objects.shape
            found = np.array([[labels[tuple(color)] for color in row] for row in colors.tolist()], np.uint8)
            assert np.array_equal(np.where(found == len(CLASSES) + 1, 255, found), mask)
            pairs = {(tuple(a), tuple(b)) for a, b in zip(colors.reshape(-1, 3), objects.reshape(-1, 3), strict=True)}
            assert len(pairs) == len({b for _, b in pairs}) == len(np.unique(mask))
    asked = json.loads((made["cvat"] / "labels.json").read_text(encoding="utf-8"))
    assert [label["name"] for label in asked] == ["background", *CLASSES, "ignored"]
    assert asked[1]["color"] == "#800000"


def test_labels_of_one_colour_get_colours_of_their_own():
    same = ClassSet(("a", "b"), colors=((9, 9, 9), (9, 9, 9)))
    assert distinct_palette(same) == voc_palette()
    own = ClassSet(("a", "b"), colors=((9, 9, 9), (8, 9, 9)))
    assert distinct_palette(own) == own.palette()


@pytest.mark.parametrize("name", ["a:b", "#a", "ignored", "a\nb"])
def test_names_that_a_label_map_cant_hold_are_refused(name):
    with pytest.raises(DataError, match=r"can't stand in labelmap\.txt"):
        label_map(ClassSet((name,)), voc_palette())


@pytest.mark.parametrize("name", ["#a.png", " a.png", "a .png"])
def test_names_that_cvats_list_cant_hold_are_told(tmp_path, name):
    run = make_run(tmp_path)
    (tmp_path / "photos" / "plain.jpg").rename(tmp_path / "photos" / name)
    (run / "labels" / "plain.png").rename(run / "labels" / f"{Path(name).stem}.png")
    (tmp_path / "tags.jsonl").write_text(json.dumps({"file_name": name, "tags": ["dog", "sofa", "red car"]}))
    config = Config.from_toml(run / "config.toml").with_values({"data.tags": str(tmp_path / "tags.jsonl")})
    (run / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    with pytest.raises(RunError, match="rename the photograph"):
        exports.export(run, "cvat")
    assert exports.export(run, "voc").images == 1


DATUMARO = """
import json, sys
import numpy as np
from datumaro.components.dataset import Dataset
import datumaro.components.annotation as kinds
data = Dataset.import_from(sys.argv[1], sys.argv[2])
names = [label.name for label in data.categories()[kinds.AnnotationType.label].items]
found = {}
for item in data:
    masks = [[names[one.label], one.image.astype(int).tolist()] for one in item.annotations if hasattr(one, "image")]
    found[item.id] = {"masks": masks, "photo": list(item.media.size) if item.media else None}
print(json.dumps(found))
"""


@pytest.mark.parametrize(("to", "kind"), [("voc", "voc_segmentation"), ("cvat", "voc_segmentation"), ("coco", "coco")])
def test_datumaro_reads_the_same_masks(run, made, to, kind, tmp_path):
    folder = made[to]
    if to == "cvat":
        folder = tmp_path
        with zipfile.ZipFile(made["cvat"] / "annotations.zip") as archive:
            archive.extractall(folder)
    found = in_other_python("VPL_DATUMARO_PYTHON", DATUMARO, folder, kind)
    assert len(found) == len(NAMES)
    items = {re.sub("[ /]", "_", id): one for id, one in found.items()}
    values = {"background": 0, "ignored": 255} | {name: number for number, name in enumerate(CLASSES, 1)}
    for name, mask in masks_of(run).items():
        item = items[re.sub("[ /]", "_", name)]
        seen = np.zeros_like(mask)
        for label, shape in item["masks"]:
            seen[np.array(shape, bool)] = values[label]
        wanted = np.where(mask == 255, 0, mask) if to == "coco" else mask
        assert np.array_equal(seen, wanted)
        assert item["photo"] == (None if to == "cvat" else list(mask.shape))


# --------------------------------------------------------------------------------------------------------------- yolo
ULTRALYTICS = """
import json, sys
from ultralytics.data.build import build_yolo_dataset
from ultralytics.data.dataset import SemanticDataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG
from types import SimpleNamespace
data = check_det_dataset(sys.argv[1], autodownload=False)
cfg = SimpleNamespace(**vars(DEFAULT_CFG)); cfg.task = "semantic"; cfg.imgsz = 64
assert data.get("masks_dir")
made = SemanticDataset(img_path=data["train"], data=data, imgsz=64, augment=False, hyp=cfg, task="semantic")
found = {label["im_file"]: [list(label["shape"]), made.load_mask(number).tolist()]
         for number, label in enumerate(made.labels)}
print(json.dumps({"names": data["names"], "found": found}))
"""


def test_ultralytics_reads_the_same_masks(run, made, tmp_path):
    moved = shutil.copytree(made["yolo"], tmp_path / "moved")  # Ultralytics leaves a cache in the folder
    told = in_other_python("VPL_ULTRALYTICS_PYTHON", ULTRALYTICS, moved / "data.yaml")
    assert told["names"] == {str(number): name for number, name in enumerate(("background", *CLASSES))}
    top = moved / "images" / "train"
    found = {identity(Path(path).relative_to(top).as_posix()): one for path, one in told["found"].items()}
    masks = masks_of(run)
    small = {name for name, mask in masks.items() if min(mask.shape) < 10}
    assert found.keys() == masks.keys() - small, "Ultralytics takes no image with a side below 10 pixels"
    for name, (shape, mask) in found.items():
        assert shape == list(masks[name].shape) and np.array_equal(mask, masks[name])


def test_the_yolo_folder_is_as_ultralytics_documents_it(run, made):
    """images/train and masks/train with equal stems; one channel of class numbers; names and masks_dir in the YAML."""
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((made["yolo"] / "data.yaml").read_text(encoding="utf-8"))
    assert told["names"] == dict(enumerate(("background", *CLASSES))) and told["nc"] == 4
    assert told["masks_dir"] == "masks" and "path" not in told
    top = made["yolo"] / told["train"]
    photos = {identity(path.relative_to(top).as_posix()): path for path in top.rglob("*") if path.is_file()}
    assert photos.keys() == set(map(identity, NAMES))
    for name, path in photos.items():
        with Image.open(made["yolo"] / "masks" / "train" / f"{name}.png") as image:
            assert image.mode == "L" and np.array_equal(np.array(image), masks_of(run)[name])
        same_pixels(path, photos_of(run)[name])


# ------------------------------------------------------------------------------------------------------- the folder
@pytest.mark.parametrize("to", FORMATS)
def test_the_same_run_gives_the_same_bytes_and_takes_the_old_place(run, made, to, tmp_path):
    again = exports.export(run, to, tmp_path / "again")
    first = files_of(again.folder)
    assert first == files_of(made[to])
    (again.folder / "masks-of-before.png").write_bytes(b"made before")
    Made(again.folder).finish(["masks-of-before.png"], to)
    assert files_of(exports.export(run, to, tmp_path / "again").folder) == first
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.parametrize("to", FORMATS)
def test_photographs_are_copies_and_plain_ones_are_copied_as_they_are(run, made, to):
    for path in made[to].rglob("*"):
        assert not path.is_symlink() and (path.is_dir() or path.stat().st_nlink == 1)
    if to != "cvat":
        kept = next(made[to].rglob("plain.jpg"))
        assert kept.read_bytes() == (run.parent / "photos" / "plain.jpg").read_bytes()


@pytest.mark.parametrize("to", FORMATS)
def test_images_that_cant_be_used_are_told_and_left_out(to, tmp_path, capsys):
    run = make_run(tmp_path)
    (tmp_path / "photos" / "plain.jpg").unlink()
    (tmp_path / "photos" / "clear.png").write_bytes((tmp_path / "photos" / "clear.png").read_bytes()[:200])
    (run / "labels" / "grey.png").unlink()
    Image.new("RGB", (7, 7)).save(tmp_path / "photos" / "deep" / "er" / "turned.jpg")
    write_mask(run / "labels" / f"{identity(NAMES[2])}.png", np.full((1, 9), 4, np.uint8), voc_palette())
    assert main(["export", str(run), "--to", to, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    for words in (
        "there is no image file",
        "clear.png can't be read",
        "no pseudo-mask",
        "changed after the run",
        "the label 4",
    ):
        assert words in told.err
    assert told.out == f"1 image with masks in {tmp_path / 'out'}\n"
    assert len(json.loads((tmp_path / "out" / exports.MARK).read_text(encoding="utf-8"))["skipped"]) == 5


def test_labels_keep_their_names_when_the_only_image_of_a_class_is_gone(tmp_path):
    run = make_run(tmp_path)
    for name in (NAMES[0], NAMES[1], NAMES[3]):
        (tmp_path / "photos" / name).unlink()
    exports.export(run, "voc", tmp_path / "out")
    lines = (tmp_path / "out" / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(":")[0] for line in lines[2:]] == [*CLASSES, "ignored"]


def test_the_default_place_is_in_the_run_and_a_run_goes_on_beside_it(tmp_path):
    run = make_run(tmp_path)
    assert exports.export(run, "yolo").folder == run / "export" / "yolo"


@pytest.mark.parametrize("to", FORMATS)
def test_photographs_behind_urls_are_exported(run, made, to, tmp_path):
    there = Path(shutil.copytree(run.parent, tmp_path / "there"))
    config = Config.from_toml(there / run.name / "config.toml")
    behind = config.with_values({"data.images": f"file://{there / 'photos'}", "data.tags": str(there / "tags.csv")})
    (there / run.name / "config.toml").write_text(behind.to_toml(), encoding="utf-8")
    done = vpl.export(there / run.name, to, tmp_path / "out")
    assert done.failures == () and files_of(done.folder) == files_of(made[to])


def test_other_folders_are_left_alone(run, made, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="did not write"):
        exports.export(run, "coco", full)
    assert (full / "thesis.txt").read_text() == "mine"
    with pytest.raises(RunError, match="holds an export to voc"):
        exports.export(run, "coco", made["voc"])
    with pytest.raises(RunError, match="is no folder"):
        exports.export(run, "coco", full / "thesis.txt")
    (tmp_path / "link").symlink_to(made["voc"])
    with pytest.raises(RunError, match="is no folder"):
        exports.export(run, "voc", tmp_path / "link")
    (tmp_path / "empty").mkdir()
    assert exports.export(run, "coco", tmp_path / "empty").images == len(NAMES)


def test_a_failed_export_leaves_the_old_one_and_nothing_else(run, tmp_path, monkeypatch):
    folder = exports.export(run, "coco", tmp_path / "out").folder
    before = files_of(folder)
    monkeypatch.setattr(coco.Writer, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exports.export(run, "coco", folder)
    assert files_of(folder) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_cant_be_exported_is_said_in_a_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", "voc"]) == 2
    assert "is no run folder" in capsys.readouterr().err
    run = make_run(tmp_path)
    with pytest.raises(vpl.VplError, match="expected one of voc, coco"):
        exports.export(run, "pdf")
    for mask in (run / "labels").rglob("*.png"):
        mask.unlink()
    with pytest.raises(RunError, match="none of the images"):
        exports.export(run, "voc", tmp_path / "out")
    shutil.rmtree(run / "labels")
    with pytest.raises(RunError, match="no pseudo-masks yet"):
        exports.export(run, "voc", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_way_is_a_module_and_every_plan_of_a_run_knows_it():
    from importlib import import_module

    from vpl.runs import plan

    for name, takes in WAYS.items():
        module = import_module(f"vpl.exports.{name.replace('-', '_')}")
        assert callable(getattr(module, "Writer" if takes == "masks" else "write"))
    assert set(plan.EXPORTS) == set(WAYS)


@pytest.mark.slow
def test_predictions_of_a_run_and_of_new_photographs_leave_too(tmp_path, tiny_clip):
    import training_case as case
    from vpl.network import delivery, predict

    (tmp_path / "items").mkdir()
    items = case.make_items(tmp_path / "items")
    list(case.fit(tiny_clip, items, tmp_path / "run", train__steps=2, rsc__weight=0.0))
    predictor = predict.load(tmp_path / "run", tiny_clip)
    photos = tmp_path / "photos"
    for name in ("a.png", "day/b.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8)).save(photos / name)
    assert list(delivery.deliver(predictor, photos, tmp_path / "masks")) == []
    done = vpl.export(tmp_path / "masks", "yolo", tmp_path / "yolo")
    assert done.images == 2 and done.failures == ()
    found = read_mask(tmp_path / "yolo" / "masks" / "train" / "day" / "b.png")
    assert np.array_equal(found, predictor.predict(photos / "day" / "b.png"))
    with pytest.raises(ConfigError, match="holds predictions; pseudo-masks are exported from a run folder"):
        vpl.export(tmp_path / "masks", "yolo", tmp_path / "other", what="masks")
    with pytest.raises(ConfigError, match="onnx takes a run's network"):
        vpl.export(tmp_path / "masks", "onnx", tmp_path / "other")
    rows = ["file_name,tags", *(f"{name},{predictor.classes.names[0]}" for name in ("a.png", "day/b.png"))]
    (tmp_path / "tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    config = Config().with_values({"data.images": str(photos), "data.tags": str(tmp_path / "tags.csv")})
    (tmp_path / "run" / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    clip = Path(tiny_clip.name) if Path(tiny_clip.name).exists() else None
    done = vpl.export(tmp_path / "run", "coco", what="predictions", clip=clip)
    assert done.images == 2 and done.failures == ()
    assert np.array_equal(
        read_mask(tmp_path / "run" / "predicted" / "a.png"),
        predictor.predict(photos / "a.png", protocol=predictor.full),
    )


def test_the_folder_of_photographs_here_and_behind_urls():
    from vpl.exports.export import _above

    assert _above([Path("/data/day1/a.png"), Path("/data/day2/a.png")]) == Path("/data")
    assert _above(["s3://b/data/day1/a.png", "s3://b/data/day2/a.png"]) == "s3://b/data"
    assert _above(["s3://b/data/a.png"]) == "s3://b/data"
    assert _above(["s3://b/data/day1/a.png", Path("/data/a.png")]) == Path("/data")
