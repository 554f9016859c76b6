"""Pre-training of a small CLIP from captions alone: the embedded model `pocket`, or one for your captioned images.

    loss = Σ over embeddings e of [ L(e, captions) + L(e, words) ],   e: class token, patch mean, best patches

with L of `contrast`; words are single-word captions (an image's tags) in one prompt or another. No mask is read or
made here: what is measured with masks is measured after training, by `card`, on the finished folder.

    python -m vpl.pocket.pretrain pocket
    python -m vpl.pocket.pretrain own --data FOLDER --captions FILE.csv --steps 50000

Letters: h w patch grid · D joint embedding width; B images and M texts of a batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vpl.edges.storage import write_bytes_atomic, write_text_atomic
from vpl.errors import ConfigError, RunError, VplError
from vpl.machine import device_of
from vpl.pocket import card
from vpl.pocket.captions import FolderSource, SceneSource, Source
from vpl.pocket.learner import Record, Trainer, steps_in, train
from vpl.pocket.recipe import Recipe, export, train_tokenizer

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"


def open_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Go on from the folder's checkpoint, where there is one.

    Raises:
        RunError: the checkpoint can't be read, or belongs to another recipe.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs = Recipe(**state["recipe"])
    except Exception as error:
        raise RunError(f"{path} can't be read ({error}); delete it to start anew.") from error
    differing = [
        f"{item.name} {getattr(theirs, item.name)} (now {getattr(trainer.recipe, item.name)})"
        for item in dataclasses.fields(Recipe)
        if getattr(theirs, item.name) != getattr(trainer.recipe, item.name)
    ]
    settled = state["step"] >= trainer.recipe.settle * min(theirs.steps, trainer.recipe.steps)
    if differing and (settled or theirs.steps == trainer.recipe.steps or len(differing) > 1):
        raise RunError(
            f"{folder} holds a training with {', '.join(differing)}; give the same values or another folder. "
            "(Only steps may change, and only while the learning rate has not begun to fall.)"
        )
    trainer.load(state)


def write_training(trainer: Trainer, data: str, args: argparse.Namespace) -> None:
    """log.csv, and training.json for the card."""
    names = [item.name for item in dataclasses.fields(Record)]
    lines = [names, *([f"{number:.6g}" for number in row] for row in trainer.log)]
    write_text_atomic(args.out / LOG, "".join(",".join(line) + "\n" for line in lines))
    recipe = dataclasses.asdict(trainer.recipe)
    changed = {item.name for item in dataclasses.fields(Recipe) if recipe[item.name] != item.default}
    options = [f"--{name.replace('_', '-')} {_written(recipe[name])}" for name in sorted(changed)]
    data_options = [] if args.data == "scenes" else ["--data FOLDER --captions FILE.csv"]
    training = card.Training(
        data=data,
        command=" ".join(["python -m vpl.pocket.pretrain OUT", *data_options, *options]),
        machine=machine_words(trainer.model.device),
        device=trainer.model.device.type,
        precision=str(trainer.precision).removeprefix("torch."),
        threads=torch.get_num_threads(),
        seconds=trainer.seconds,
        step=trainer.best["step"],
        seed=trainer.recipe.seed,
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        batch=trainer.recipe.batch,
        note=args.note,
        log=[dict(zip(names, row, strict=True)) for row in trainer.log],
        recipe=recipe,
    )
    write_text_atomic(args.out / card.TRAINING, json.dumps(dataclasses.asdict(training), indent=1) + "\n")


def machine_words(device: torch.device) -> str:
    """The kind of machine, for the card: the GPU's name, or the processor's, and the cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def _written(given: object) -> str:
    return " ".join(map(str, given)) if isinstance(given, tuple) else str(given)


# the command


def parser() -> argparse.ArgumentParser:
    """The command's options; those of the recipe are made from its fields."""
    line = argparse.ArgumentParser(
        prog="python -m vpl.pocket.pretrain",
        description="Pre-train a small CLIP from captions alone, on drawn scenes or on a folder of captioned images. "
        "A killed run goes on where its last checkpoint is.",
    )
    line.add_argument("out", type=Path, help="folder for the model, its card, its log and the checkpoint")
    line.add_argument("--data", default="scenes", help="scenes, or a folder of images")
    line.add_argument("--captions", type=Path, help="CSV with file_name,caption and optionally tags (; between tags)")
    line.add_argument("--minutes", type=float, help="choose the steps by the speed that is measured first")
    line.add_argument("--device", default="auto", help="auto, cpu, cuda")
    line.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    line.add_argument("--threads", type=int, help="threads on the CPU")
    line.add_argument("--workers", type=int, default=1, choices=(0, 1), help="processes that prepare images")
    line.add_argument("--every", type=int, default=100, help="steps between measurements and checkpoints")
    line.add_argument("--measured", type=int, default=384, help="held-out images that are measured")
    line.add_argument("--note", default="", help="sentences of your own for the card")
    line.add_argument("--card-only", action="store_true", help="measure the finished model again and rewrite its card")
    for item in dataclasses.fields(Recipe):
        many = isinstance(item.default, tuple)
        line.add_argument(
            "--" + item.name.replace("_", "-"),
            type=int if many else type(item.default),
            nargs="+" if many else None,
            default=item.default,
            help=f"{item.metadata['help']} (default: {item.default})",
        )
    return line


def source_of(args: argparse.Namespace, recipe: Recipe) -> Source:
    """What the command's options name as data."""
    if args.data == "scenes":
        if args.captions:
            raise ConfigError("--captions is given without --data FOLDER; name the folder that holds the images.")
        return SceneSource(recipe.seed, recipe.drawn_size, recipe.chunk)
    if not args.captions:
        raise ConfigError(f"--data {args.data} is given without --captions FILE.csv; name the file of captions.")
    return FolderSource.from_csv(args.data, args.captions, recipe.seed, recipe.drawn_size, recipe.chunk)


def run(args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Pre-train, export and describe, as the options say.

    Raises:
        VplError: an option, the data, the device or the folder can't be used.
    """
    from transformers import CLIPModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    values: dict[str, Any] = {item.name: getattr(args, item.name) for item in dataclasses.fields(Recipe)}
    values |= {name: tuple(one) for name, one in values.items() if isinstance(one, list)}
    recipe = Recipe(**values)
    source = source_of(args, recipe)
    device = device_of(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.card_only:
        tokenizer = train_tokenizer(source.corpus(), recipe.vocabulary, recipe.context)
        precision = precision_of(args.precision, device)
        if args.minutes:
            trial = Trainer(recipe, tokenizer, device, precision)
            recipe = dataclasses.replace(recipe, steps=steps_in(args.minutes, trial, source.chunk(0)))
        trainer = Trainer(recipe, tokenizer, device, precision)
        open_checkpoint(trainer, args.out)
        count = sum(p.numel() for p in trainer.model.parameters())
        say(f"{count / 1e6:.2f} M parameters, {device}, {precision}; step {trainer.step} of {recipe.steps}")
        held = source.held_out(args.measured)
        for record in train(trainer, source, held, args.every, args.workers):
            args.out.mkdir(parents=True, exist_ok=True)
            state = io.BytesIO()
            torch.save(trainer.state(), state)
            write_bytes_atomic(args.out / CHECKPOINT, state.getvalue())
            left = (recipe.steps - record.step) * recipe.batch / record.images_per_second / 60
            say(
                f"step {record.step}/{recipe.steps}  loss {record.loss:.3f}  temperature {record.temperature:.4f}  "
                f"tag mAP {record.tag_map:.3f}  retrieval {record.retrieval:.3f}  "
                f"{record.images_per_second:.0f} images/s  {left:.0f} min left"
            )
        model = CLIPModel(trainer.model.config)
        model.load_state_dict(trainer.best["model"])
        export(model, tokenizer, args.out)
        write_training(trainer, source.name(), args)
    card.write(args.out, None if args.data == "scenes" else source.held_out(args.measured), args.measured)
    say(f"model and card: {args.out}")


def precision_of(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 where the processor multiplies it, else float32."""
    if name == "auto":
        fast = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, name)


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 with one sentence on the error stream."""
    args = parser().parse_args(argv)
    try:
        run(args, lambda text: print(text, flush=True))
    except VplError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
