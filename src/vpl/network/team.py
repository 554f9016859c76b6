"""The processes of a launched training: which one this is, what it may compute on, and sums over all of them.

Launchers (accelerate's, torch's) tell each process its place by the variables of `LAUNCHED`. All of them together are a
launch; a RANK or WORLD_SIZE alone, as batch schedulers leave them behind, is none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpl.errors import ConfigError

if TYPE_CHECKING:
    import torch

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This process among `count`; `local` is its place among those of its machine. The first one prints and writes."""

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def device(self, wish: str) -> str:
        """`wish`, but "auto" becomes a process's own GPU where several were launched on GPUs."""
        if wish != "auto" or self.count == 1:
            return wish
        import torch

        return f"cuda:{self.local}" if torch.cuda.is_available() else wish


def place() -> Place:
    """What the environment says of this process.

    Raises:
        ConfigError: there is a launch, but its numbers are none.
    """
    if not all(os.environ.get(name) for name in LAUNCHED):
        return Place()
    texts = {name: os.environ.get(name, "0") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        rank, count, local = (int(text) for text in texts.values())
    except ValueError:
        count = 0
    if count < 1 or not 0 <= rank < count or local < 0:
        shown = ", ".join(f"{name}={text}" for name, text in texts.items())
        raise ConfigError(
            f"this process seems to be launched with others, but its place is {shown}; expected whole numbers, RANK "
            "below WORLD_SIZE. Start it by accelerate launch or torchrun, or unset these variables."
        )
    return Place(rank, count, local)


class Team:
    """The processes that share each batch; one alone unless a launcher such as accelerate's started more.

    Raises:
        ConfigError: there is a launcher, but accelerate is not installed.
    """

    def __init__(self, device: torch.device):
        own, self._accelerator = place(), None
        self.rank, self.count, self.device = own.rank, own.count, device
        if self.count > 1:
            try:
                from accelerate import Accelerator
            except ImportError as error:
                raise ConfigError(
                    "several processes were launched, but accelerate is not installed; pip install accelerate."
                ) from error
            self._accelerator = Accelerator(cpu=device.type == "cpu")
            self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over the processes, the same on each."""
        return values if self._accelerator is None else self._accelerator.reduce(values, reduction="sum")

    def count_all(self, count: int) -> int:
        """Sum of a count over the processes. It travels in float64, which mps has not."""
        import torch

        there = torch.device("cpu") if self.device.type == "mps" else self.device
        return int(self.sum(torch.tensor(float(count), dtype=torch.float64, device=there)))

    def wait(self) -> None:
        """Until every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
