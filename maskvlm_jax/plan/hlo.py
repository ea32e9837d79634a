"""Reads a compiled program's text: bytes it moves and collectives it runs, with every loop counted as often as it runs.

XLA's own cost analysis counts the body of a loop once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*)$")
# Moves nothing itself: names, or what is counted in the computation that it calls.
_FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all"}
_FREE |= {"opt-barrier", "partition-id", "replica-id", "call-start"}
_READERS = {"dynamic-slice", "slice", "gather"}


class Array(NamedTuple):
    """An array of an instruction's result: its bytes, and whether it lies in the device's main memory."""

    size: int
    main: bool


class Instruction(NamedTuple):
    """One line: results, what it does, the names that it reads, and its attributes."""

    name: str
    arrays: tuple[Array, ...]
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    @property
    def size(self) -> int:
        """Bytes of its results that lie in main memory."""
        return sum(array.size for array in self.arrays if array.main)


class Collective(NamedTuple):
    """A collective: `size` bytes of its result in each device, `times` that it runs, and who takes part, (G, N)."""

    kind: str
    size: int
    times: int
    groups: np.ndarray

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends, by rings."""
        n = self.groups.shape[1]
        factor = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
        return self.times * self.size * factor.get(self.kind, (n - 1) / n)


class Program:
    """The computations of a compiled program by name, and how often each runs."""

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        entry = ""
        for line in text.splitlines():
            head = re.match(r"^(ENTRY )?%(\S+) \(", line)
            if head:
                current = self._computations[head[2]] = {}
                entry = head[2] if head[1] else entry
            elif (found := _INSTRUCTION.match(line)) is not None:
                instruction = _instruction(found)
                current[instruction.name] = instruction
        self._times: dict[str, int] = {}
        self._fused: set[str] = set()
        self._count(entry, 1)

    def _count(self, name: str, times: int) -> None:
        """Adds `times` to a computation and to all that it calls."""
        self._times[name] = self._times.get(name, 0) + times
        for instruction in self._computations[name].values():
            inner = times * self._trips(instruction) if instruction.kind == "while" else times
            for called in re.findall(r"(?:calls|body|to_apply|async_execution)=%?([\w.\-]+)", instruction.rest):
                if instruction.kind == "fusion":
                    self._fused.add(called)
                if called in self._computations:
                    self._count(called, inner)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as XLA tells, or the largest constant of its condition."""
        trips = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest)
        if trips:
            return int(trips[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
        constants = [i.operands[0] for i in self._computations[condition].values() if i.kind == "constant"]
        return max((int(value) for value in constants if value.isdigit()), default=1)

    def moved_bytes(self) -> int:
        """Bytes of main memory that one device reads and writes: operands and results of every kernel."""
        return sum(
            times * self._bytes(instruction, self._computations[name])
            for name, times in self._times.items()
            if name not in self._fused
            for instruction in self._computations[name].values()
        )

    def _bytes(self, instruction: Instruction, around: Mapping[str, Instruction]) -> int:
        kind = instruction.kind
        if kind in _FREE or kind.endswith("-done"):
            return 0
        operands = [around[name].size if name in around else 0 for name in instruction.operands]
        written = instruction.size
        if kind == "dynamic-update-slice":  # in place
            return 2 * operands[1]
        if kind in _READERS:
            return 2 * written
        copies = kind.endswith("-start") and kind.removesuffix("-start") not in COLLECTIVES
        if copies and len(instruction.arrays) > 1:
            # Its results name the operand again: a copy's behind what it makes, others' in front.
            made = instruction.arrays[0 if kind == "copy-start" else 1]
            return made.size * (made.main + any(operands))
        if kind == "fusion" and (body := self._called(instruction)) is not None:
            operands = [min(all_of_it, read) for all_of_it, read in zip(operands, self._read(body), strict=False)]
            written -= _not_written(body)
            if any(inner.kind in COLLECTIVES for inner in body.values()):
                # A part of a collective that runs beside other work: its buffers pass through.
                aliases = re.findall(r"\{(\d+)\}: \((\d+),", instruction.rest.split("calls=")[0])
                for result, operand in ((int(result), int(operand)) for result, operand in aliases):
                    passing = instruction.arrays[result]
                    written -= passing.size * passing.main
                    operands[operand] = 0
        return sum(operands) + written

    def _called(self, fusion: Instruction) -> Mapping[str, Instruction] | None:
        called = re.search(r"calls=%?([\w.\-]+)", fusion.rest)
        return self._computations.get(called[1]) if called else None

    def _read(self, body: Mapping[str, Instruction]) -> list[float]:
        """Bytes that a fusion reads of each operand: of one that it only slices the slices."""

        def by(user: Instruction, parameter: str) -> float:
            places = [i for i, name in enumerate(user.operands) if _origin(body, name) == parameter]
            if user.kind in _READERS and places == [0]:
                return sum(array.size for array in user.arrays)
            if user.kind == "dynamic-update-slice" and places == [0]:
                return 0
            if user.kind == "fusion" and (inner := self._called(user)) is not None:
                read = self._read(inner)
                return sum(read[place] for place in places)
            return math.inf

        parameters = sorted((i for i in body.values() if i.kind == "parameter"), key=_number)
        users = [i for i in body.values() if i.kind not in ("bitcast", "parameter")]
        return [
            sum(by(user, p.name) for user in users if p.name in {_origin(body, name) for name in user.operands})
            for p in parameters
        ]

    def collectives(self) -> list[Collective]:
        """Every collective once; parts of one that the compiler spread over several kernels share a channel."""
        found: dict[str, Collective] = {}
        for name, times in self._times.items():
            for instruction in self._computations[name].values():
                kind = instruction.kind.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                arrays = instruction.arrays
                if instruction.kind.endswith("-start") and len(arrays) > 1:
                    arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[:1]
                size, groups = sum(array.size for array in arrays), replica_groups(instruction.rest)
                if kind == "all-reduce" and "all-reduce-scatter" in name:  # a fusion that keeps a part of the result
                    kind, size = "reduce-scatter", size // groups.shape[1]
                channel = re.search(r"channel_id=(\d+)", instruction.rest)
                found.setdefault(channel[1] if channel else instruction.name, Collective(kind, size, times, groups))
        return list(found.values())

    def largest(self, count: int) -> list[tuple[int, str]]:
        """The largest arrays that kernels write to main memory: bytes, shape and the operation that made them."""
        sizes: dict[str, int] = {}
        for name, body in self._computations.items():
            if name in self._times and name not in self._fused:
                for instruction in body.values():
                    if instruction.kind not in _FREE and not instruction.kind.endswith(("-start", "-done")):
                        made = re.search(r'op_name="([^"]*)"', instruction.rest)
                        for text, array in zip(_shapes(instruction.rest), instruction.arrays, strict=False):
                            if array.main:
                                label = f"{text}  {made[1] if made else instruction.kind}"
                                sizes[label] = max(sizes.get(label, 0), array.size)
        return sorted(((size, label) for label, size in sizes.items()), reverse=True)[:count]


def _instruction(found: re.Match) -> Instruction:
    """`%name = type kind(operands), attributes`; the type may be a tuple."""
    text = found[3]
    end = 2 + _closing(text[1:]) if text.startswith("(") else re.match(r"\S+", text).end()
    types, call = text[:end], text[end:].lstrip()
    kind, _, rest = call.partition("(")
    inside = rest.split(")", 1)[0] if kind == "constant" else rest[: _closing(rest)]
    names = (inside,) if kind == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(found[2], tuple(_arrays(types)), kind, names, types + " " + rest, bool(found[1]))


def _closing(text: str) -> int:
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    return len(text)


def _arrays(types: str) -> Iterator[Array]:
    for kind, shape, layout in _ARRAY.findall(types):
        size = math.prod(int(n) for n in shape.split(",") if n) * _BYTES.get(kind, 4)
        yield Array(size, not re.search(r"S\([1-9]", layout))


def _shapes(types: str) -> list[str]:
    return [f"{kind}[{shape}]" for kind, shape, _ in _ARRAY.findall(types)]


def _number(parameter: Instruction) -> int:
    """Which operand a parameter of a fusion is."""
    return int(re.match(r"\S+ (\d+)", parameter.rest)[1])


def _origin(body: Mapping[str, Instruction], name: str) -> str:
    """What a name stands for behind changes of shape alone."""
    while name in body and body[name].kind == "bitcast":
        name = body[name].operands[0]
    return name


def _not_written(body: Mapping[str, Instruction]) -> int:
    """Bytes of a fusion's results that stay as they are: those around an update in place."""
    root = next((i for i in body.values() if i.root), None)
    if root is None:
        return 0
    kept = 0
    for name in root.operands if root.kind == "tuple" else [root.name]:
        made = body.get(_origin(body, name))
        if made is not None and made.kind == "dynamic-update-slice" and made.size and made.operands[1] in body:
            kept += made.size - sum(array.size for array in body[made.operands[1]].arrays)
    return kept


def replica_groups(text: str) -> np.ndarray:
    """(groups, members) of a collective's attributes, in each of the forms that XLA writes."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        shape, chosen = [int(size) for size in axes.values()], re.findall(r"'(\w+)'", found[2])
        order = [i for i, axis in enumerate(axes) if axis not in chosen]
        order += [list(axes).index(axis) for axis in chosen]
        members = math.prod(int(axes[axis]) for axis in chosen)
        return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1, members)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape = [int(n) for n in found[3].split(",")]
        order = [int(n) for n in found[4].split(",")] if found[4] else range(len(shape))
        return np.arange(math.prod(shape)).reshape(shape).transpose(*order).reshape(int(found[1]), int(found[2]))
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", text):
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(groups)
    return np.zeros((1, 1), int)
