"""The result of an ablation: its table, what the numbers support, and its picture.

claim: paired over the sets, difference = mIoU(setting) - mIoU(default), told as mean ± standard deviation
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpl.edges.templates import markdown_table
from vpl.judge.ablations import ROW_NAMES, Ablation, Setting, short
from vpl.pages import figures

SMALLEST = 0.05
"""Differences in mIoU, in percent points, below which nothing is claimed. [ours]"""

LEARNED = {
    "KL before": "KL(q ‖ p) of T",
    "KL after": "of V",
    "highest KL": "the highest on the way",
    "steps": "steps taken",
    "gap T": "distance of the mean region from the mean text prototype",
    "gap V": "from the mean vision prototype",
    "own T": "cosine of a region with its own text prototype",
    "own V": "with its own vision prototype",
    "right T": "share of the regions whose nearest text prototype is their own",
    "right V": "whose nearest vision prototype is",
}
"""Numbers about learned prototypes, and what they are."""


@dataclass(frozen=True)
class Cell:
    """mIoU in percent of one setting and stage, one number per set (nan: not there)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation over the sets, with n - 1; nan for one set."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.std:.1f}" if len(self.values) > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Claim:
    """A setting against the default, paired over all sets: differences in mIoU, in percent points."""

    setting: str
    default: str
    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def std(self) -> float:
        return float(np.std(self.differences, ddof=1)) if len(self.differences) > 1 else math.nan

    @property
    def supported(self) -> bool:
        """Whether the mean difference is larger than the spread of the differences. One set supports nothing.

        Nor does a difference that the tables round to 0.
        """
        return len(self.differences) > 1 and abs(self.mean) > max(self.std, SMALLEST)


@dataclass(frozen=True)
class Ablated:
    """The table of an ablation.

    Attributes:
        groups: styles, or the data set's name.
        cells: (group, setting name, stage) -> values over the sets.
        learned: (group, setting name) -> `LEARNED` numbers of the prototypes, means over the sets; where V was learned.
        default: name of the setting that is the configuration's own.
        images: images in each set.
        side: of the scenes in pixels; 0 for photographs.
        base: values of the configuration that are neither varied nor the data's usual ones.
        files: what was written.
    """

    ablation: Ablation
    groups: tuple[str, ...]
    split: str
    sets: int
    images: int
    stages: tuple[str, ...]
    default: str
    cells: dict[tuple[str, str, str], Cell]
    learned: dict[tuple[str, str], dict[str, float]] = dataclasses.field(default_factory=dict)
    side: int = 0
    base: dict[str, object] = dataclasses.field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def claim(self, setting: str, group: str | None = None) -> Claim:
        """`setting` against the default in the deciding stage, in one group or in all."""
        differences = [
            a - b
            for one in ([group] if group else self.groups)
            for a, b in zip(
                self.cells[one, setting, self.ablation.row].values,
                self.cells[one, self.default, self.ablation.row].values,
                strict=True,
            )
        ]
        return Claim(setting, self.default, tuple(differences))

    @property
    def best(self) -> str:
        """The setting, other than the default, with the highest mean in the deciding stage."""
        others = [one.name for one in self.ablation.settings if one.name != self.default]
        return max(others, key=lambda name: self.claim(name).mean)

    @property
    def sentence(self) -> str:
        """What the numbers support: the best other setting against the default, and what is worse beyond the spread."""
        return self._best_words() + self._worse_words()

    def _worse_words(self) -> str:
        names = [one.name for one in self.ablation.settings if one.name != self.default]
        claims = [self.claim(name) for name in names if len(names) > 1 and name != self.best]
        worse = [f"{one.setting} {one.mean:+.1f} ± {one.std:.1f}" for one in claims if one.supported and one.mean < 0]
        return f" Worse beyond the spread: {'; '.join(worse)}." if worse else ""

    def _best_words(self) -> str:
        if len(self.ablation.settings) < 2:
            return "One setting alone supports no comparison."
        claim, count = self.claim(self.best), self.sets * len(self.groups)
        where = f"{ROW_NAMES[self.ablation.row]}, {count} sets of {self.images} images"
        numbers = f"{claim.mean:+.1f} ± {claim.std:.1f} mIoU against the default {self.default} ({where})"
        if count < 2:
            return f"One set supports no claim; here {claim.setting} has {claim.mean:+.1f} mIoU against {self.default}."
        if not claim.supported:
            return (
                f"No difference beyond the spread of the sets: the best other setting, {claim.setting}, has {numbers}."
            )
        wins = sum(one > 0 for one in claim.differences)
        if claim.mean > 0:
            return f"{claim.setting} is better in {wins} of {count} sets: {numbers}, chosen on these very images."
        return f"The default {self.default} is best: the next, {claim.setting}, has {numbers}."

    def __str__(self) -> str:
        lines = [self.ablation.question]
        width = max(len(one.name) for one in self.ablation.settings) + 12
        columns = [max(len(ROW_NAMES[stage]), 12) for stage in self.stages]
        for group in self.groups:
            lines += [
                "",
                f"{group}, {self.split}: mIoU in percent, mean ± std over {self.sets} sets of {self.images} images",
            ]
            names = "  ".join(f"{ROW_NAMES[stage]:>{w}}" for stage, w in zip(self.stages, columns, strict=True))
            lines.append(f"  {'':<{width}}{names}")
            for setting in self.ablation.settings:
                row = (self.cells[group, setting.name, stage] for stage in self.stages)
                values = "  ".join(f"{cell!s:>{w}}" for cell, w in zip(row, columns, strict=True))
                lines.append(f"  {setting.name + self._mark(setting.name):<{width}}{values}")
        lines += ["", self.sentence]
        return "\n".join([*lines, *(f"{path}" for path in self.files)])

    def _mark(self, name: str) -> str:
        marks = ["default"] * (name == self.default) + ["paper"] * (name == self.ablation.marked)
        return f" ({', '.join(marks)})" if marks else ""

    @property
    def title(self) -> str:
        """The ablation's name, with the values that are not the usual ones."""
        return ", ".join([self.ablation.name, *(f"{key} = {short(one)}" for key, one in self.base.items())])

    def markdown(self) -> str:
        """The table as Markdown, with the sentence."""
        lines = [f"### {self.title}", "", self.ablation.question, ""]
        for group in self.groups:
            rows = [
                (one.name + self._mark(one.name), *(self.cells[group, one.name, stage] for stage in self.stages))
                for one in self.ablation.settings
            ]
            lines += [
                f"{group}, split {self.split}: mIoU in percent, mean ± std over {self.sets} sets of {self.images} "
                "images.",
                "",
                markdown_table(rows, ("", *(ROW_NAMES[stage] for stage in self.stages)), right=True),
                "",
            ]
        return "\n".join([*lines, self.sentence, "", *self._learned_lines()])

    def _learned_lines(self) -> list[str]:
        """What the prototypes learned, as Markdown: means over the sets of all groups."""
        names = [one.name for one in self.ablation.settings if (self.groups[0], one.name) in self.learned]
        rows = []
        for name in names:
            known = [self.learned[group, name] for group in self.groups]
            rows.append((name, *(f"{np.mean([one[key] for one in known]):.3g}" for key in LEARNED)))
        words = "What the prototypes learned, means over all sets: " + "; ".join(LEARNED.values()) + "."
        return [words, "", markdown_table(rows, ("", *LEARNED), right=True), ""] if rows else []

    def to_dict(self) -> dict[str, Any]:
        """All of it but the files, as plain data."""
        return {
            "name": self.ablation.name,
            "question": self.ablation.question,
            "row": self.ablation.row,
            "marked": self.ablation.marked,
            "settings": [{"name": one.name, "values": dict(one.values)} for one in self.ablation.settings],
            "groups": list(self.groups),
            "split": self.split,
            "sets": self.sets,
            "images": self.images,
            "stages": list(self.stages),
            "default": self.default,
            "side": self.side,
            "base": self.base,
            "cells": [
                {"group": group, "setting": setting, "stage": stage, "miou": [round(one, 4) for one in cell.values]}
                for (group, setting, stage), cell in self.cells.items()
            ],
            "learned": [
                {"group": group, "setting": setting, "values": {key: round(one, 6) for key, one in values.items()}}
                for (group, setting), values in self.learned.items()
            ],
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> Ablated:
        """What `to_dict` wrote."""
        settings = tuple(Setting(one["name"], tuple(one["values"].items())) for one in tree["settings"])
        return cls(
            ablation=Ablation(tree["name"], tree["question"], settings, tree["row"], tree["marked"]),
            groups=tuple(tree["groups"]),
            split=tree["split"],
            sets=tree["sets"],
            images=tree["images"],
            stages=tuple(tree["stages"]),
            default=tree["default"],
            cells={(one["group"], one["setting"], one["stage"]): Cell(tuple(one["miou"])) for one in tree["cells"]},
            learned={(one["group"], one["setting"]): one["values"] for one in tree["learned"]},
            side=tree["side"],
            base=tree["base"],
        )

    def table(self) -> str:
        """One line for each group, setting, stage and set, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("ablation", "group", "split", "images", "setting", "stage", "set", "miou"))
        for (group, setting, stage), cell in self.cells.items():
            for number, one in enumerate(cell.values):
                writer.writerow(
                    (self.ablation.name, group, self.split, self.images, setting, stage, number, f"{one / 100:.6f}")
                )
        return text.getvalue()

    def draw(self) -> str:
        """The picture as SVG: lines with error bars over numbers, bars over names, a map over two ablations."""
        row, own = self.ablation.row, self.ablation
        title = f"{own.name}: {ROW_NAMES[row]}"
        names = [one.name for one in own.settings]
        if all(" | " in name for name in names):
            pairs = [name.split(" | ") for name in names]
            rows, columns = (list(dict.fromkeys(pair[place] for pair in pairs)) for place in (0, 1))
            values = [
                [float(np.mean([self.cells[group, f"{a} | {b}", row].mean for group in self.groups])) for b in columns]
                for a in rows
            ]
            first, _, second = own.name.partition("-by-")
            title = f"{first} (rows) by {second}: {ROW_NAMES[row]}"
            return figures.heat_map(values, rows, columns, title, "mIoU, percent")
        lines = {group: [self.cells[group, name, row] for name in names] for group in self.groups}
        means = {group: [cell.mean for cell in cells] for group, cells in lines.items()}
        spreads = {
            group: [0.0 if math.isnan(cell.std) else cell.std for cell in cells] for group, cells in lines.items()
        }
        under = f"mean ± std over {self.sets} sets of {self.images} images, split {self.split}"
        if own.numbers:
            marks = {"default": float(self.default)} | ({"paper": float(own.marked)} if own.marked else {})
            return figures.lines(own.numbers, means, spreads, marks, title, under, "mIoU, percent")
        return figures.bars([name + self._mark(name) for name in names], means, spreads, title, under, "mIoU, percent")
