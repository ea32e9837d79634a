"""TPU slices by name: chips, topology, and what a chip can do.

Peaks are those of Google's pages of each generation (cloud.google.com/tpu/docs/v5e and its neighbours, 2026-11-24).
Bandwidths of the network between slices are a slice's share of its pod's, or of its hosts' cards.
"""

import math
import re
from typing import NamedTuple

from maskvlm_jax.runtime.errors import UserError

GIB = 2**30


class Generation(NamedTuple):
    """One chip: peak bfloat16 FLOP/s, bytes of memory, bytes a second of memory, of links to the neighbours (one way,
    all links) and to other slices; cores that the name of a slice counts; dollars a chip-hour on demand."""

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    network_rate: float
    cores: int
    price: float  # as remembered, United States, 2025: give --price for yours


GENERATIONS = {
    "v4": Generation(275e12, 32 * GIB, 1228e9, 150e9, 6e9, 2, 3.22),
    "v5e": Generation(197e12, 16 * GIB, 819e9, 200e9, 3e9, 1, 1.20),
    "v5p": Generation(459e12, 95 * GIB, 2765e9, 300e9, 6e9, 2, 4.20),
    "v6e": Generation(918e12, 32 * GIB, 1638e9, 400e9, 12e9, 1, 2.70),
}
# Chips of a slice -> its shape; of v4 and v5p, cubes as the pages list them.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8"}
_CUBES |= {1024: "8x8x16", 2048: "8x16x16"}


class Slice(NamedTuple):
    """`count` slices of `chips` chips each, joined by the data centre's network where there are several."""

    generation: str
    chips: int
    count: int

    @property
    def chip(self) -> Generation:
        return GENERATIONS[self.generation]

    @property
    def all_chips(self) -> int:
        return self.chips * self.count

    @property
    def topology(self) -> str:
        """Its name for libtpu: v5e:16x16."""
        return f"{self.generation}:{(_FLAT if self.chip.cores == 1 else _CUBES)[self.chips]}"

    @property
    def hosts(self) -> int:
        """Machines with a share of the chips each: four, or all of a slice of eight or fewer flat ones."""
        of_one = 1 if self.chip.cores == 1 and self.chips <= 8 else math.ceil(self.chips / 4)
        return self.count * of_one

    def __str__(self) -> str:
        return f"{self.count}x " * (self.count > 1) + f"{self.generation}-{self.chips * self.chip.cores}"


def parse(name: str) -> Slice:
    """A slice by the name that Google gives it, several by a number in front: v5e-256, v4-32 (16 chips), 4xv5e-256.

    Raises:
        UserError: there is no such slice.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(v\w+)-(\d+)", name)
    if not found or found[2] not in GENERATIONS:
        raise UserError(f"--slice={name}: give a slice of {', '.join(GENERATIONS)}, such as v5e-256 or 2xv5e-256")
    cores = GENERATIONS[found[2]].cores
    sizes = [chips * cores for chips in (_FLAT if cores == 1 else _CUBES)]
    if int(found[3]) not in sizes:
        raise UserError(f"--slice={name}: {found[2]} comes in sizes {', '.join(map(str, sizes))}")
    if found[1] and int(found[1]) < 1:
        raise UserError(f"--slice={name}: give one slice or more")
    return Slice(found[2], int(found[3]) // cores, int(found[1] or 1))
