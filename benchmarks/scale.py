"""Does memory stay flat over many images, do n times the images take n times as long, how quickly does vpl start?

    python benchmarks/scale.py [start] [growth] [pipeline] [memory] [--quick] [--images 10000] [--results FOLDER]

start    seconds of `vpl --help`, and of `vpl run` until its first batch is on disk: the embedded CLIP, and ViT-B/16
         (random weights, a local folder). Median of the repeats.
growth   seconds and processor seconds of the stages `prototypes` and `labels` over n, 2n and 4n drawn scenes.
pipeline seconds by part of both stages and how busy their threads are, with ViT-B/16 on scenes of 320 px.
memory   resident memory (RSS) of one process over the same two stages, every 500 images.

Every measurement runs in a process of its own, but for `pipeline` on scenes of 64 px with the embedded CLIP. One number
a line; the raw numbers go to scale.json in the results folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

SIDE = 64
SCENES = 200
LARGE_SIDE = 320
LARGE_SCENES = 48
EVERY = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help="those above (default: all)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, one repeat")
    parser.add_argument("--images", type=int, default=10_000, help="images of the question of memory")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--stages", nargs=3, metavar=("TREE", "RUN", "CLIP"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stages:
        tree, run, clip = given.stages
        print(json.dumps(stages(Path(tree), Path(run), clip)))
        return
    shrink, repeats = (10, 1) if given.quick else (1, 5)
    questions = {
        "start": lambda folder: start(folder, repeats),
        "growth": lambda folder: growth(folder, SCENES // shrink),
        "pipeline": lambda folder: pipeline(folder, LARGE_SCENES // shrink),
        "memory": lambda folder: memory(folder, given.images // shrink),
    }
    for name in given.questions or questions:
        if name not in questions:
            parser.error(f"{name} is no question; choose from {', '.join(questions)}")
        with tempfile.TemporaryDirectory() as folder:
            found = questions[name](Path(folder))
        keep(given.results / "scale.json", name, found)


def keep(path: Path, name: str, found: dict) -> None:
    """Put one question's raw numbers into the file of all."""
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known[name] = {"date": date.today().isoformat(), "cores": len(os.sched_getaffinity(0))} | found
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def start(folder: Path, repeats: int) -> dict:
    """Seconds until the help is printed and until a first batch is done."""
    draw(folder / "tree", 8)
    vit_b16(folder / "vit-b16")
    found = {"vpl --help": [seconds_of([sys.executable, "-m", "vpl", "--help"]) for _ in range(repeats)]}
    for name, clip in (("pocket", "pocket"), ("ViT-B/16", str(folder / "vit-b16"))):
        taken = [first_batch(folder / "tree", folder / "run", clip) for _ in range(repeats)]
        found[f"vpl run, {name}, to the first batch"] = taken
    for name, taken in found.items():
        print(f"{name}: {statistics.median(taken):.2f} s")
    return {"seconds": found}


def seconds_of(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def first_batch(tree: Path, run: Path, clip: str) -> float:
    """Seconds from the command to its first file of regions; the process is ended then."""
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "vpl", "run", str(run), "--preset", "scenes", "--clip", clip, "--device", "cpu"]
    command += ["--images", str(tree / "images" / "train"), "--tags", str(tree / "train.csv"), "--steps", "0"]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not any(run.glob("regions/*.safetensors")):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
            time.sleep(0.005)
        taken = time.perf_counter() - begun
        process.kill()
    return taken


def vit_b16(folder: Path) -> None:
    """A ViT-B/16 with random weights in transformers' format, with the embedded CLIP's tokenizer."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    import vpl

    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config={"patch_size": 16}, text_config={"eos_token_id": 2})).save_pretrained(folder)
    shutil.copy(Path(vpl.__file__).parent / "pocket" / "tokenizer.json", folder)


def draw(tree: Path, count: int, side: int = SIDE) -> None:
    """Scenes on disk, drawn in a process of their own."""
    command = [sys.executable, "-m", "vpl", "scenes", str(tree), "--train", str(count), "--val", "1"]
    subprocess.run([*command, "--size", str(side)], check=True, stdout=subprocess.DEVNULL)


def measured(tree: Path, run: Path, clip: str = "pocket") -> dict:
    """What `stages` finds, in a process of its own."""
    command = [sys.executable, __file__, "--stages", str(tree), str(run), clip]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def growth(folder: Path, count: int) -> dict:
    """Seconds over n, 2n and 4n images."""
    found = []
    for times in (1, 2, 4):
        draw(folder / f"tree-{times}", times * count)
        made = measured(folder / f"tree-{times}", folder / f"run-{times}")
        row = {"images": times * count} | {key: made[key] for key in ("seconds", "processor_seconds")}
        found.append(row)
        first = found[0]
        print(
            f"{row['images']} images: {row['seconds']:.1f} s ({row['seconds'] / first['seconds']:.2f} times), "
            f"{row['processor_seconds']:.1f} processor s ({row['processor_seconds'] / first['processor_seconds']:.2f})"
        )
    return {"rows": found}


def memory(folder: Path, count: int) -> dict:
    """RSS on the way through `count` images."""
    draw(folder / "tree", count)
    made = measured(folder / "tree", folder / "run")
    for stage, samples in made["rss"].items():
        for number, megabytes in samples:
            print(f"{stage}, after {number} images: {megabytes:.0f} MB")
        later = [megabytes for number, megabytes in samples if number > count / 10]
        print(f"{stage}, from a tenth of the images on: {min(later):.0f} to {max(later):.0f} MB")
    show_parts(made["record"])
    return {"images": count} | made


def pipeline(folder: Path, count: int) -> dict:
    """Seconds by part, and how busy the threads are."""
    vit_b16(folder / "vit-b16")
    draw(folder / "tree", count, LARGE_SIDE)
    made = measured(folder / "tree", folder / "run", str(folder / "vit-b16"))
    show_parts(made["record"])
    return {"images": count, "side": LARGE_SIDE, "clip": "ViT-B/16, random weights"} | made


def show_parts(record: dict) -> None:
    """A run's note of its stages, one number a line."""
    for stage, note in record.items():
        print(f"{stage}: {note['images'] / note['seconds']:.1f} images/s")
        for part, seconds in note["parts"].items():
            print(f"{stage}, {part}: {seconds:.1f} s, all threads together")
        for kind, share in note["busy"].items():
            print(f"{stage}, {kind} busy: {100 * share:.0f} % of the time")


def stages(tree: Path, folder: Path, clip: str) -> dict:
    """Prototypes and pseudo-masks of a tree of scenes: time, and RSS by stage as (images, MB)."""
    from vpl.config import preset
    from vpl.runs.stages import Run

    rss: dict[str, list[tuple[int, float]]] = {}

    def watched(items: Iterable, total: int, words: str) -> Iterator:
        for number, item in enumerate(items):
            if number % EVERY == 0:
                rss.setdefault(words, []).append((number, resident()))
            yield item
        rss[words].append((total, resident()))

    values = {"data.images": str(tree / "images" / "train"), "data.tags": str(tree / "train.csv"), "clip.model": clip}
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with Run(folder, preset("scenes").with_values(values), device="cpu", progress=watched) as run:
        run.labels()
        record = run.record()["stages"]
    return {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - begun_cpu,
        "rss": rss,
        "record": record,
    }


def resident() -> float:
    """This process's resident memory, MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system tells no VmRSS in /proc/self/status")


if __name__ == "__main__":
    main()
