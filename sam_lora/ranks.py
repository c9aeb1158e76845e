"""Which of several processes this is: torchrun's environment. Free of torch, for `--help`.

torchrun starts the same script once for each GPU, with its number in RANK, WORLD_SIZE and LOCAL_RANK.
"""

import os
from dataclasses import dataclass

from sam_lora.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is; `local_rank` counts the processes of this machine only."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """The process that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.first:
            print(text)


ALONE = Ranks()


def ranks_of_environment() -> Ranks:
    """Which process torchrun made this; the only one without torchrun. UserError if the variables are no numbers."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        ranks = Ranks(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0))))
    except ValueError as error:
        raise UserError(f"environment variables {', '.join(names)}: expected numbers as torchrun sets them; "
                        "unset them, or start with torchrun") from error
    if not 0 <= ranks.rank < ranks.world_size:
        raise UserError(f"environment variables RANK {ranks.rank} and WORLD_SIZE {ranks.world_size}: expected RANK "
                        "below WORLD_SIZE; unset them, or start with torchrun")
    return ranks
