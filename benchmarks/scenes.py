"""How many scenes of the pre-training styles does one core draw in a second, by image side? One number per line."""

from __future__ import annotations

import time

from vpl.scenes.draw import draw
from vpl.scenes.styles import PRETRAIN_STYLES

COUNT = 300


def main() -> None:
    for size in (64, 96, 192):
        # The first calls draw the sprites and textures of this size, which later ones share.
        for pass_ in range(2):
            start = time.perf_counter()
            for index in range(COUNT):
                style = PRETRAIN_STYLES[index % len(PRETRAIN_STYLES)]
                draw(pass_, index, style, size, with_mask=False)
            seconds = time.perf_counter() - start
        print(f"scenes/s at {size} px: {COUNT / seconds:.0f}")


if __name__ == "__main__":
    main()
