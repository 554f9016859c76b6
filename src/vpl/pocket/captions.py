"""Images with what is written about them, chunk by chunk: what `pretrain` reads. No mask is made or read.

A chunk depends on (seed, its number) alone, so that training can go on anywhere after a kill. Held-out images never
occur in a chunk: for scenes they are drawn from far-off indices, for a folder they are a fixed share of its rows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from vpl.classes import SCENE_GROUNDS, SCENE_NAMES
from vpl.edges.images import read_image
from vpl.errors import DataError
from vpl.scenes.draw import draw
from vpl.scenes.styles import PRETRAIN_STYLES
from vpl.scenes.words import vocabulary

HELD_OUT_INDEX = 1_000_000_000
"""First index of the held-out scenes; training never gets so far."""
HELD_OUT_SHARE = 0.05
"""Of a folder's rows; at least one."""
PROMPTS = (
    "{}", "{}", "a photo of a {}", "a photo of a {}.", "a clean origami {}.", "a {}", "the {}", "itap of a {}.",
    "a origami {}.", "a bad photo of the {}.", "a photo of the large {}.", "a {} in a video game.", "art of the {}.",
    "a photo of the small {}.",
)  # fmt: skip
"""A word's forms: alone, and in the prompts of CLIP-ES and InMaP."""


@dataclass(frozen=True)
class Chunk:
    """Images (N, S, S, 3) uint8 RGB; N captions; for each image the words that are right for it, which may be none."""

    images: UInt8[ndarray, "N S S 3"]
    captions: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class SceneSource:
    """Endless fresh scenes of the pre-training styles, `count` to a chunk, `size` pixels a side.

    A scene's words are its tags and its ground.
    """

    seed: int
    size: int
    count: int

    def chunk(self, number: int) -> Chunk:
        return self._draw(number * self.count, self.count)

    def held_out(self, count: int) -> Chunk:
        return self._draw(HELD_OUT_INDEX, count)

    def corpus(self) -> list[str]:
        """Texts for the tokenizer: the first chunk's captions and every word that a caption may hold."""
        words = [*SCENE_NAMES, *SCENE_GROUNDS, *vocabulary(), "tags"]
        return [*self.chunk(0).captions, *(prompt.format(word) for prompt in PROMPTS for word in words)]

    def name(self) -> str:
        return f"scenes of the styles {', '.join(PRETRAIN_STYLES)}, drawn afresh, {self.size} px, seed {self.seed}"

    def _draw(self, first: int, count: int) -> Chunk:
        styles = PRETRAIN_STYLES
        drawn = [
            draw(self.seed, i, styles[i % len(styles)], self.size, with_mask=False) for i in range(first, first + count)
        ]
        return Chunk(
            np.stack([scene.image for scene in drawn]),
            tuple(scene.caption for scene in drawn),
            tuple((*scene.tags, scene.ground) for scene in drawn),
        )


@dataclass(frozen=True)
class FolderSource:
    """A folder of captioned images. Rows: (file, caption, words); the first `held` rows are held out."""

    folder: str
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    held: int
    seed: int
    size: int
    count: int

    @classmethod
    def from_csv(cls, folder: str | Path, table: str | Path, seed: int, size: int, count: int) -> FolderSource:
        """Rows of a CSV with the columns file_name, caption, and optionally tags (`;` between tags).

        Raises:
            DataError: the folder, the table or an image is missing, a column lacks, a caption is empty, or fewer than
                two rows are left.
        """
        folder, table = Path(folder), Path(table)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; give the folder that holds the images.")
        try:
            with table.open(encoding="utf-8-sig", newline="") as lines:
                reader = csv.DictReader(lines)
                lacking = {"file_name", "caption"} - set(reader.fieldnames or ())
                if lacking:
                    raise DataError(f"{table} has no column {min(lacking)}; its first line must be file_name,caption.")
                rows = [
                    (
                        row["file_name"] or "",
                        (row["caption"] or "").strip(),
                        tuple(tag.strip() for tag in (row.get("tags") or "").split(";") if tag.strip()),
                    )
                    for row in reader
                ]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"the captions {table} can't be read ({error}); give a UTF-8 CSV file.") from error
        for number, (file, caption, _) in enumerate(rows, 2):
            if not file or not (folder / file).is_file():
                raise DataError(f"{table}, line {number}: there is no image {folder / file}; mend or remove the line.")
            if not caption:
                raise DataError(f"{table}, line {number}: the caption is empty; write one or remove the line.")
        if len(rows) < 2:
            raise DataError(f"{table} names {len(rows)} images; expected at least 2, one of them is held out.")
        order = np.random.default_rng(seed).permutation(len(rows))
        held = max(1, round(HELD_OUT_SHARE * len(rows)))
        return cls(str(folder), tuple(rows[i] for i in order), held, seed, size, count)

    def chunk(self, number: int) -> Chunk:
        """`count` rows, in an order that is shuffled anew for each pass over the rows."""
        training = len(self.rows) - self.held
        places = range(number * self.count, (number + 1) * self.count)
        orders = {
            turn: np.random.default_rng([self.seed, turn]).permutation(training)
            for turn in range(places.start // training, (places.stop - 1) // training + 1)
        }
        return self._read([self.rows[self.held + orders[i // training][i % training]] for i in places])

    def held_out(self, count: int) -> Chunk:
        return self._read(self.rows[: min(self.held, count)])

    def corpus(self) -> list[str]:
        """Texts for the tokenizer: the captions and words of the training rows."""
        return [text for _, caption, words in self.rows[self.held :] for text in (caption, *words)]

    def name(self) -> str:
        return f"{len(self.rows) - self.held} captioned images of a folder, {self.size} px"

    def _read(self, rows: Sequence[tuple[str, str, tuple[str, ...]]]) -> Chunk:
        from PIL import Image, ImageOps

        side = (self.size, self.size)
        read = (Image.fromarray(read_image(Path(self.folder) / row[0])) for row in rows)
        fitted = [np.asarray(ImageOps.fit(image, side, Image.Resampling.BICUBIC)) for image in read]
        return Chunk(np.stack(fitted), tuple(row[1] for row in rows), tuple(row[2] for row in rows))


Source = SceneSource | FolderSource
