"""What a person waits for: a folder of photographs and tags -> masks on disk, by the command line, by the field's way.

    python benchmarks/endtoend.py [--count 8 64] [--ways field float32 bfloat16 defaults draft] [--repeats 1]
    python benchmarks/endtoend.py --scenes 60 --ways field float32 bfloat16

Every way is a process of its own, its start included: wall clock, cores busy (processor time over wall clock), peak
memory, encodings for each photograph.

    field      CLIP-ES's way, written here: photograph by photograph the per-class loop (stages.py: plain modules, every
               block's attention kept, one autograd call and one dense affinity a tag) on all cores; then the CRF in one
               process a core, by the C++ library where its binding is found (--library FOLDER), else by our exact one
    float32    vpl labels --preset clip-es --steps 0 --precision float32: the same seeds and settings, like for like
    bfloat16   the same with --precision bfloat16
    defaults   vpl labels, as a new run begins: vision prototypes, four makers, PAR, exact CRF
    draft      vpl labels --quality draft: vision prototypes, one maker, fast CRF

All have the same photographs (--images with its list of tags, else drawn ones), text prototypes and CLIP: ViT-B/16 with
random weights, which are worth nothing but cost what trained ones do. Such maps are nearly even, so that masks turn on
their rounding; maps are compared too: the largest difference from the field's. --scenes takes drawn scenes and
the embedded CLIP, whose masks mean something, and adds each way's mIoU. Raw: endtoend.json in the results folder.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from crf import synthetic
from PIL import Image
from scale import draw, vit_b16
from stages import per_class_loop

from vpl.clip.model import FrozenClip
from vpl.config import Config, preset
from vpl.machine import cores, one_core_each, threads
from vpl.method import refine
from vpl.method.labeller import Labeller
from vpl.method.metrics import Confusion
from vpl.method.prototypes import text_prototypes
from vpl.method.views import pixels_of
from vpl.runs.planned import dataset_of
from vpl.runs.stream import read_view

SIZE = (640, 480)
SCENE_SIDE = 320
WAYS = {
    "field": None,
    "float32": ["--preset", "clip-es", "--steps", "0", "--precision", "float32"],
    "bfloat16": ["--preset", "clip-es", "--steps", "0", "--precision", "bfloat16"],
    "defaults": [],
    "draft": ["--quality", "draft"],
}
DRAWN_TAGS = ("dog", "chair", "car", "bird", "boat", "person")
MAPS_COMPARED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", nargs="+", type=int, default=[8, 64], help="photographs")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["field", "float32", "bfloat16", "defaults"])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each way in turn; the quickest is told")
    parser.add_argument("--images", type=Path, help="a folder of photographs, resized to 640x480")
    parser.add_argument("--tags", type=Path, help="their list: file_name,tags")
    parser.add_argument("--scenes", type=int, help="so many drawn scenes of 320 px instead, and the embedded CLIP")
    parser.add_argument("--library", type=Path, help="a folder that holds the C++ library's binding, pydensecrf")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--field", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.library:
        sys.path.insert(0, str(given.library))
    if given.field:
        field(Task.read(given.field))
        return
    path = given.results / "endtoend.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "vit-b16"
        if not given.scenes:
            vit_b16(clip)
        for count in [given.scenes] if given.scenes else given.count:
            place = Path(folder) / str(count)
            if given.scenes:
                task = scenes(place, count)
            else:
                task = photographs(place, count, str(clip), given.images, given.tags)
            made = measure(task, given.ways, given.repeats, given.library)
            names = {(one["what"], one["count"], one["way"]) for one in made}
            known = [one for one in known if (one["what"], one["count"], one["way"]) not in names] + made
            given.results.mkdir(exist_ok=True)
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            print(table(made), flush=True)


@dataclass(frozen=True)
class Task:
    """Photographs, their tags and the CLIP that looks at them.

    Attributes:
        folder: where it lies, and where every way puts its masks.
        what: in words.
        truth: folder of truth masks, or "".
    """

    folder: str
    what: str
    images: str
    tags: str
    classes: str
    clip: str
    truth: str = ""

    @classmethod
    def read(cls, folder: Path) -> Task:
        """As `write` left it."""
        return cls(**json.loads((folder / "task.json").read_text(encoding="utf-8")))

    def write(self) -> Task:
        """For the process of a way."""
        (Path(self.folder) / "task.json").write_text(json.dumps(self.__dict__), encoding="utf-8")
        return self

    @property
    def config(self) -> Config:
        """The settings of ways field, float32 and bfloat16."""
        places = {"images": self.images, "tags": self.tags, "classes": self.classes}
        values = {f"data.{key}": one for key, one in places.items()} | {"clip.model": self.clip}
        return preset("clip-es").with_values(values)


def photographs(folder: Path, count: int, clip: str, images: Path | None, tags: Path | None) -> Task:
    """So many photographs of 640x480: the first of a list, each time round without another row and column of pixels
    (equal files share their encoding), or drawn."""
    (folder / "images").mkdir(parents=True)
    rows, listed = [], ["file_name,tags"]
    if images and tags:
        with tags.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["tags"]]
    for number in range(count):
        if rows:
            turn, place = divmod(number, len(rows))
            image, own = Image.open(images / rows[place]["file_name"]).convert("RGB"), rows[place]["tags"]
            image = image.resize(SIZE, box=(turn, turn, *image.size))
        else:
            image = Image.fromarray(synthetic(*SIZE, number))
            own = ";".join(DRAWN_TAGS[(number + step) % len(DRAWN_TAGS)] for step in range(1 + number % 5))
        image.save(folder / "images" / f"{number:04}.jpg", quality=90)
        listed.append(f"{number:04}.jpg,{own}")
    (folder / "tags.csv").write_text("\n".join([*listed, ""]), encoding="utf-8")
    what = "photographs of 640x480, ViT-B/16 with random weights"
    return Task(str(folder), what, str(folder / "images"), str(folder / "tags.csv"), "", clip).write()


def scenes(folder: Path, count: int) -> Task:
    """Drawn scenes with truth."""
    draw(folder, count, SCENE_SIDE)
    images, truth = (str(folder / kind / "train") for kind in ("images", "masks"))
    what = "scenes of 320 px, pocket"
    return Task(str(folder), what, images, str(folder / "train.csv"), "scenes", "pocket", truth).write()


def measure(task: Task, ways: list[str], repeats: int, library: Path | None) -> list[dict]:
    """A row for each way: the quickest of its runs, and how its masks and maps agree with the field's."""
    count, found = len(list(Path(task.images).iterdir())), {}
    for one in Path(task.clip).glob("*"):
        one.read_bytes()  # into the system's cache
    for _ in range(repeats):
        for way in ways:
            one = run(task, way, library)
            if way not in found or one["seconds"] < found[way]["seconds"]:
                found[way] = one
            print(f"{task.what}, {count}, {way}: {one['seconds']:.1f} s, {one['cores']:.2f} cores", flush=True)
    facts = {
        "what": task.what,
        "count": count,
        "tags": tags_of(task) / count,
        "date": date.today().isoformat(),
        "machine": processor(),
        "cores_there": cores(),
        "torch": torch.__version__,
        "repeats": repeats,
    }
    return [facts | {"way": way} | one | compared(task, way) for way, one in found.items()]


def run(task: Task, way: str, library: Path | None) -> dict:
    """One way in a process of its own."""
    out = Path(task.folder) / way
    shutil.rmtree(out, ignore_errors=True)
    if way == "field":
        command = [sys.executable, __file__, "--field", task.folder]
        command += ["--library", str(library)] if library else []
    else:
        command = [sys.executable, "-m", "vpl", "labels", str(out), "--images", task.images, "--tags", task.tags]
        command += ["--clip", task.clip, "--device", "cpu", *WAYS[way]]
        command += ["--classes", task.classes] if task.classes else []
    log = Path(task.folder) / f"{way}.log"
    begun = time.perf_counter()
    with log.open("w") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begun
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {status}:\n{log.read_text()}")
    spent = used.ru_utime + used.ru_stime
    found = {"seconds": seconds, "processor_seconds": spent, "cores": spent / seconds, "peak_mb": used.ru_maxrss / 1024}
    if way == "field":
        return found | json.loads((out / "notes.json").read_text(encoding="utf-8"))
    stages = json.loads((out / "run.json").read_text(encoding="utf-8"))["stages"]
    count = len(list((out / "labels").glob("*.png")))
    encoded = sum(one.get("encoded", 0) for one in stages.values())
    return found | {"encodings": encoded / count, "stages": stages}


def compared(task: Task, way: str) -> dict:
    """Shares of pixels equal to the field's, before and after the confidence; maps; mIoU where there is truth."""
    out, theirs, found = Path(task.folder) / way, Path(task.folder) / "field", {}
    names = sorted(one.name for one in (out / "labels").glob("*.png"))
    if (theirs / "labels").is_dir() and way != "field":
        for folder, name in (("labels", "labels_equal"), ("seeds/crf", "crf_equal")):
            equal = [(_mask(out / folder / one) == _mask(theirs / folder / one)).mean() for one in names]
            found |= {name: float(np.mean(equal)), f"{name}_worst": float(min(equal))}
        if way in ("float32", "bfloat16"):
            found["maps_differ"] = maps_differ(task, way, names)
    if task.truth:
        table = Confusion(len(dataset_of(task.config.data).classes) + 1)
        for one in names:
            table.update(_mask(Path(task.truth) / one), _mask(out / "seeds" / "crf" / one))
        found["miou"] = 100 * table.miou()
    return found


def maps_differ(task: Task, way: str, names: list[str]) -> float:
    """Largest difference between refined maps, in [0, 1], of the first photographs and the field's."""
    config = task.config.with_values({"clip.precision": way})
    clip = FrozenClip.of(config.clip, "cpu")
    text, classes = _prototypes(task, clip, config)
    maker = Labeller(clip, text, None, classes, config)
    worst = 0.0
    for view, name in zip(_views(task, config), names[:MAPS_COMPARED], strict=False):
        own = maker.drafts([view], pseudo=False)[0].seeds["refined"].numpy()
        worst = max(
            worst, float(np.abs(own - np.load(Path(task.folder) / "field" / "maps" / f"{name[:-4]}.npy")).max())
        )
    return worst


def _mask(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def tags_of(task: Task) -> int:
    return sum(len(one.tags) for one in dataset_of(task.config.data).samples)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")


def table(rows: list[dict]) -> str:
    """Markdown."""
    field_seconds = next((one["seconds"] for one in rows if one["way"] == "field"), None)
    lines = ["| photographs | way | s | s a photograph | × the field's rate | cores busy | peak MB | encodings each "
             "| masks equal to the field's, mean (worst) | maps differ by | mIoU |", "|---" * 11 + "|"]  # fmt: skip
    for one in rows:
        times = f"{field_seconds / one['seconds']:.2f}" if field_seconds else ""
        equal = (
            f"{100 * one['labels_equal']:.2f} ({100 * one['labels_equal_worst']:.2f})" if "labels_equal" in one else ""
        )
        cells = [one["count"], one["way"], f"{one['seconds']:.1f}", f"{one['seconds'] / one['count']:.2f}", times]
        cells += [f"{one['cores']:.2f}", f"{one['peak_mb']:.0f}", f"{one['encodings']:.2f}", equal]
        cells += [
            f"{one['maps_differ']:.1e}" if "maps_differ" in one else "",
            f"{one['miou']:.2f}" if "miou" in one else "",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------ the field's way
def field(task: Task) -> None:
    """Masks of a task as CLIP-ES makes them, into its folder `field`."""
    out, config, begun = Path(task.folder) / "field", task.config, time.perf_counter()
    for one in ("maps", "seeds/crf", "labels"):
        (out / one).mkdir(parents=True)
    clip = FrozenClip.of(config.clip, "cpu")
    text, classes = _prototypes(task, clip, config)
    started = time.perf_counter() - begun
    samples, jobs = dataset_of(config.data).samples, []
    for sample, view in zip(samples, _views(task, config), strict=True):
        rows = text[[*view.tags, *range(classes, len(text))]]
        maps = per_class_loop(clip, pixels_of(clip, view, config.clip)[None], rows, len(view.tags))
        np.save(out / "maps" / f"{sample.id}.npy", maps.numpy())
        np.save(out / f"{sample.id}.npy", refine.upsample(maps, view.image.shape[:2]).numpy())
        jobs.append((out, sample.id, str(sample.image), view.tags, config.labels.background_exponent))
    encoded = time.perf_counter() - begun - started
    if importlib.util.find_spec("pydensecrf"):
        crf, by = "C++ library", library_crf
        with multiprocessing.get_context("fork").Pool(cores()) as pool:
            pool.starmap(finished, [(*job, config.crf, config.labels.confidence, by) for job in jobs], chunksize=1)
    else:
        crf = "ours, exact"
        with one_core_each(), threads(cores()) as pool:
            works = [pool.submit(finished, *job, config.crf, config.labels.confidence, our_crf) for job in jobs]
            [one.result() for one in works]
    parts = {"start": started, "maps": encoded, "crf": time.perf_counter() - begun - started - encoded}
    notes = {"encodings": 1.0, "crf": crf, "parts": parts}
    (out / "notes.json").write_text(json.dumps(notes), encoding="utf-8")


def finished(out, id, image, tags, exponent, config, confidence, crf) -> None:
    """Maps on disk to the CRF's labels and the pseudo-mask."""
    maps, photo = np.load(out / f"{id}.npy"), np.array(Image.open(image).convert("RGB"))
    scores = np.concatenate([np.clip(1 - maps.max(0, keepdims=True), 0, None) ** exponent, maps])
    likely = crf(photo, scores, config)
    best, values = likely.argmax(0), np.array([0, *(tag + 1 for tag in tags)], np.uint8)
    Image.fromarray(values[best]).save(out / "seeds" / "crf" / f"{id}.png")
    Image.fromarray(np.where(likely.max(0) >= confidence, values[best], np.uint8(255))).save(
        out / "labels" / f"{id}.png"
    )
    (out / f"{id}.npy").unlink()


def library_crf(photo: np.ndarray, scores: np.ndarray, config) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    count, height, width = scores.shape
    net = DenseCRF2D(width, height, count)
    net.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(scores, 1e-5)).reshape(count, -1), np.float32))
    net.addPairwiseGaussian(sxy=config.gaussian_sigma, compat=config.gaussian_weight)
    net.addPairwiseBilateral(
        sxy=config.bilateral_sigma, srgb=config.bilateral_color, rgbim=photo, compat=config.bilateral_weight
    )
    return np.array(net.inference(config.rounds)).reshape(scores.shape)


def our_crf(photo: np.ndarray, scores: np.ndarray, config) -> np.ndarray:
    from vpl.method.crf import dense_crfs

    return dense_crfs([photo], [torch.from_numpy(scores)], config)[0].numpy()


def _prototypes(task: Task, clip: FrozenClip, config: Config) -> tuple[torch.Tensor, int]:
    classes = dataset_of(config.data).classes
    return text_prototypes(clip, classes, config.prompts).all, len(classes)


def _views(task: Task, config: Config):
    data = dataset_of(config.data)
    for sample in data.samples:
        yield read_view(sample.image, data.classes.numbers(sample.tags), config.clip)


if __name__ == "__main__":
    main()
