"""What is asked and what is there, as the plan compares it: read from the data set and from the run folder.

    asked    photographs, tags and masks by the digests of their bytes, classes, CLIP, configuration
    there    the fingerprints that the folder noted, of those products whose files are all there

No photograph is decoded, and truth masks are read as bytes alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vpl.classes import ClassSet
from vpl.config import Config
from vpl.edges.datasets import Dataset, Sample
from vpl.progress import Progress
from vpl.runs.contents import Contents
from vpl.runs.files import read_facts
from vpl.runs.folder import REPLACED
from vpl.runs.plan import EXPORTS, WHOLE, Asked, Photograph, There, digest, digest_of
from vpl.runs.review import digest_of_teaching
from vpl.runs.state import State

SEED_MAPS = ("text", "vision", "refined")
"""Label maps of the stage `maps`, folders in seeds/; "vision" only where vision prototypes make the seeds."""
EXPORT_MARK = "vpl-export.json"
"""The file that makes a folder an export of ours."""


def map_places(folder: Path, config: Config, *, pseudo: bool) -> dict[str, Path]:
    """Name of each label map that a labeller makes -> the folder that holds it."""
    seeds = [name for name in SEED_MAPS if name != "vision" or config.prototypes.kind == "vision"]
    places = {name: folder / "seeds" / name for name in seeds}
    return places | ({"crf": folder / "seeds" / "crf", "labels": folder / "labels"} if pseudo else {})


def places_of(folder: Path, stage: str, config: Config) -> list[tuple[Path, str]]:
    """(folder, suffix) of each file that a photograph has at a stage."""
    if stage.startswith("regions"):  # "regions", "regions 2", ...
        return [(folder / "regions" / f"round{stage.removeprefix('regions').strip() or 1}", ".st")]
    if stage == "maps":
        return [(place, ".png") for place in map_places(folder, config, pseudo=False).values()]
    return [(folder / "seeds" / "crf", ".png"), (folder / "labels", ".png")]


def whole_place(folder: Path, stage: str) -> Path:
    """The file that shows that a stage's one product is there."""
    if stage in EXPORTS:
        return folder / "export" / stage / EXPORT_MARK
    names = {"prototypes": "prototypes.safetensors", "network": "network/network.json", "report": "report.html"}
    return folder / names.get(stage, "metrics.json")


def classes_digest(classes: ClassSet) -> str:
    """Digest of what CLIP reads of the classes, and of their order."""
    return digest(classes.names, classes.words, classes.background)


def asked_of(
    config: Config,
    dataset: Dataset,
    held_out: Sequence[Sample],
    clip: str,
    contents: Contents,
    folder: Path,
    *,
    split: str,
    relearn: bool,
    progress: Progress,
    guide: str = "",
) -> Asked:
    """What a run shall hold.

    Args:
        held_out: samples of the validation split that have a truth mask.
        clip: digest of the weights and the tokenizer.
        folder: the run folder, whose exports are kept up to date.
        guide: digest of the weights that `refine.features` names; "" where they are not asked for.
    """
    samples = dataset.samples
    bytes_of = contents.of([one.image for one in samples], progress, "look at photographs")
    masked = [one for one in samples if one.mask is not None]
    truth = _truth(masked, contents, progress, "look at truth masks")
    tags: dict[tuple[str, ...], str] = {}
    photographs = tuple(
        Photograph(
            one.id,
            content,
            tags.get(one.tags) or tags.setdefault(one.tags, digest(*one.tags)),
            truth.get(one.id, ""),
            not one.tags,
        )
        for one, content in zip(samples, bytes_of, strict=True)
    )
    unseen = ""
    if held_out:
        shown = contents.of([one.image for one in held_out], progress, "look at held-out photographs")
        masks = _truth(held_out, contents, progress, "look at held-out masks")
        unseen = digest_of(f"{one.id} {a} {masks[one.id]}" for one, a in zip(held_out, shown, strict=True))
    return Asked(
        config,
        clip,
        classes_digest(dataset.classes),
        digest(dataset.classes.colors),
        photographs,
        held_out=unseen,
        split=split,
        left_out=digest_of(dataset.problems),
        exports=tuple(one for one in EXPORTS if whole_place(folder, one).exists()),
        relearn=relearn,
        review=digest_of_teaching(folder),
        guide=guide,
    )


def _truth(samples: Sequence[Sample], contents: Contents, progress: Progress, words: str) -> dict[str, str]:
    """Digest of each sample's truth: its mask's bytes, or what is drawn, and what the numbers are said to be."""
    files = [one.mask for one in samples if one.mask is not None and not (one.values and one.values.shapes)]
    read = dict(zip(files, contents.of(files, progress, words), strict=True))
    return {
        one.id: (read.get(one.mask, "") if one.values is None else digest(read.get(one.mask, ""), one.values.told()))
        for one in samples
        if one.mask is not None
    }


def there_of(folder: Path, state: State, config: Config, passing: Mapping[str, str]) -> There:
    """What a run folder holds: what was noted, of that what is on the disk.

    Args:
        passing: id -> fingerprint of photographs that failed in this process for a reason that may pass.
    """
    records: dict[str, dict[str, str]] = {}
    for stage, noted in state.records.items():
        if WHOLE in noted:
            path = whole_place(folder, stage)
            records[stage] = dict(noted) if path.is_file() and path.stat().st_size else {}
        else:
            there = files_there(folder, stage, config)
            records[stage] = {id: one for id, one in noted.items() if id in there}
    if not state.records and (folder / "prototypes.safetensors").exists():  # brought from another run
        brought = read_facts(folder / "prototypes.safetensors").get("fingerprint")
        records["prototypes"] = {WHOLE: brought} if isinstance(brought, str) else {}
    aside = {stage: _still(folder, stage, noted, config) for stage, noted in state.aside.items()}
    failed = {id: fingerprint for id, (fingerprint, _) in state.failed.items()}
    return There(records, aside, state.settings, failed | dict(passing))


def _still(folder: Path, stage: str, noted: Mapping[str, str], config: Config) -> dict[str, str]:
    """What was set aside and still is."""
    above = folder / REPLACED
    if stage == "network":
        return {name: one for name, one in noted.items() if (above / name / "network.json").is_file()}
    there = files_there(above, stage, config)
    return {id: one for id, one in noted.items() if id in there}


def files_there(folder: Path, stage: str, config: Config) -> set[str]:
    """The photographs all of whose files of a stage are there."""
    return set.intersection(*(_names(place, suffix) for place, suffix in places_of(folder, stage, config)))


def _names(folder: Path, suffix: str) -> set[str]:
    """Names below a folder, without their suffix, of the files that are not empty."""
    return {name.removesuffix(suffix) for name in _walk(str(folder), "") if name.endswith(suffix)}


def _walk(folder: str, above: str) -> Iterator[str]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(entry.path, f"{above}{entry.name}/")
            elif entry.stat().st_size:
                yield above + entry.name


def files_of(samples: Iterable[Sample]) -> Iterator[Path | str]:
    """The files of samples whose contents are remembered."""
    for one in samples:
        yield one.image
        if one.mask is not None:
            yield one.mask
