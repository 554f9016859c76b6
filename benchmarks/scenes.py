"""How many scenes of the pre-training styles does one core draw in a second, by image side? One number per line."""

from __future__ import annotations

import time

from vpl.scenes import scenes

COUNT = 300


def main() -> None:
    for size in (64, 96, 192):
        # The first calls draw the sprites and textures of this size, which later ones share.
        for pass_ in range(2):
            start = time.perf_counter()
            for index in range(COUNT):
                style = scenes.PRETRAIN_STYLES[index % len(scenes.PRETRAIN_STYLES)]
                scenes.draw(pass_, index, style, size, with_mask=False)
            seconds = time.perf_counter() - start
        print(f"scenes/s at {size} px: {COUNT / seconds:.0f}")


if __name__ == "__main__":
    main()
