"""Reads a compiled program's text: its loops, what it sends between devices, its hand-written kernels.

A collective inside a loop counts as often as the loop runs. Loops over layers or chunks carry their count in the text;
one whose count is an argument of the program (the micro-batches of a step) gets it from the caller.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8,
          "u64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_CALLS = re.compile(r"(?:calls|to_apply|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)")
_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton")
"""What Pallas makes of its kernels; XLA's own Triton kernels are fusions."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. shape: of its result, as written. rest: operands and attributes."""

    name: str
    shape: str
    opcode: str
    rest: str

    @cached_property
    def arrays(self) -> list[tuple[str, int]]:
        """(dtype, elements) of each array of the result."""
        return [(dtype, math.prod(dims)) for dtype, dims in self.dimensions]

    @cached_property
    def dimensions(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, dimensions) of each array of the result."""
        return [(dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in _ARRAY.findall(self.shape)]

    @property
    def sizes(self) -> list[int]:
        return [_BYTES.get(dtype, 1) * count for dtype, count in self.arrays]

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split(")")[0])

    @property
    def constant(self) -> int | None:
        """The value of an integer constant."""
        found = re.match(r"(-?\d+)\)", self.rest) if self.opcode == "constant" else None
        return int(found[1]) if found else None

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions; the root, which gives the result, is the last."""

    name: str
    instructions: tuple[Instruction, ...]

    @property
    def root(self) -> Instruction:
        return self.instructions[-1]

    @cached_property
    def named(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of the program.

    Attributes:
      kind: of KINDS. dtype: of the largest array that is sent. result_bytes: of the whole result on one device (an
        all-gather's output, a reduce-scatter's input), several arrays that are sent as one together. group: devices
        that take part. across: whether they are of several slices or hosts.
      count: how often it runs. in_layers: inside a loop over the layers. op: the JAX operation it came from.
      weights: it makes the weights of all layers at once whole (see `Module`).
    """

    kind: str
    dtype: str
    result_bytes: int
    group: int
    across: bool
    count: int
    in_layers: bool
    op: str
    weights: bool = False

    @property
    def received(self) -> float:
        """Bytes that one device receives over all runs, by the best known algorithm on a ring or torus."""
        share = (self.group - 1) / self.group if self.group > 1 else 0.0
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return factor * self.result_bytes * self.count


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the entry's name."""
    found: dict[str, Computation] = {}
    entry, name, lines = "", "", list[Instruction]()
    for line in text.splitlines():
        if head := _HEAD.match(line):
            name, lines = head[2], []
            entry = name if head[1] else entry
        elif line.rstrip() == "}" and name:  # attributes of kernels span lines, some of which begin with a brace
            found[name] = Computation(name, tuple(lines))
            name = ""
        elif name and (instruction := _instruction(line)):
            lines.append(instruction)
    return found, entry


def _instruction(line: str) -> Instruction | None:
    found = _NAME.match(line)
    if not found:
        return None
    rest = line[found.end():]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opcode, _, rest = rest.partition("(")
    return Instruction(found[1], shape, opcode, rest)


def _closing(text: str) -> int:
    """One past the parenthesis that closes the first one."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """Iterations of a while loop: as annotated, or from a condition `counter < constant` and what the body adds to the
    counter (loops over a ring of devices are unrolled by two); None if the bound is an argument."""
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition, body = (computations.get(loop.attribute(f"{part}=%?([\\w.\\-]+)") or "")
                       for part in ("condition", "body"))
    if condition is None or body is None:
        return None
    root = condition.root
    if root.opcode != "compare" or "direction=LT" not in root.rest or len(root.operands) != 2:
        return None
    counter, bound = (condition.named.get(name) for name in root.operands)
    if counter is None or bound is None or bound.constant is None:
        return None
    place = counter.attribute(r"index=(\d+)")
    added = body.named.get(body.root.operands[int(place)]) if place and body.root.opcode == "tuple" else None
    steps = [body.named[name].constant for name in added.operands if name in body.named] if added else []
    step = next((step for step in steps if step), 1)
    return -(-bound.constant // step)


class Module:
    """A compiled program.

    Args:
      text: `compiled.as_text()`. trips: iterations of loops without a count of their own.
      layers: of the model; a loop of so many iterations is a loop over layers.
      groups: for each device of the program, in order, its slice (or host).
      weights: elements of each weight of all layers together, as one device holds them when nothing but `tensor` cuts
        them; by these a gather of weights is told from one of activations.
    """

    def __init__(self, text: str, *, trips: int = 1, layers: int = 0, groups: Sequence[int] = (),
                 weights: Collection[int] = ()):
        self.computations, self.entry = parse(text)
        self._trips, self._layers, self._groups, self._weights = trips, layers, groups, weights
        self.kernels = sum(text.count(f'custom_call_target="{target}"') for target in KERNELS)

    def _walk(self) -> Iterator[tuple[Computation, int, bool]]:
        """Every (computation, times it runs, inside a loop over layers) that the entry reaches."""
        stack = [(self.entry, 1, False)]
        while stack:
            name, times, in_layers = stack.pop()
            computation = self.computations.get(name)
            if computation is None:
                continue
            yield computation, times, in_layers
            for instruction in computation.instructions:
                if instruction.opcode == "while":
                    count = trip_count(instruction, self.computations)
                    inner = in_layers or (count is not None and count == self._layers)
                    body = instruction.attribute(r"body=%?([\w.\-]+)") or ""
                    stack.append((body, times * (self._trips if count is None else count), inner))
                    continue
                for called in _CALLS.findall(instruction.rest):
                    stack += [(one.strip().lstrip("%"), times, in_layers) for one in called.split(",") if one.strip()]

    @cached_property
    def collectives(self) -> list[Collective]:
        """All of them; the parts of one that is spread over several fusions count once."""
        found: dict[object, Collective] = {}
        for computation, times, in_layers in self._walk():
            for instruction in computation.instructions:
                one = self._collective(computation, instruction, times, in_layers)
                if one is None:
                    continue
                channel = instruction.attribute(r"channel_id=(\d+)")
                key = channel if channel and instruction.opcode != "recv" else (computation.name, instruction.name)
                if key not in found or found[key].count < one.count:
                    found[key] = one
        return list(found.values())

    def _collective(self, computation: Computation, instruction: Instruction, times: int, in_layers: bool
                    ) -> Collective | None:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode == "recv":
            return self._between_slices(instruction, times, in_layers)
        if opcode not in KINDS:
            return None
        started = instruction.opcode.endswith("-start")
        sizes, given = instruction.sizes, len(instruction.operands)
        if started and opcode != "all-reduce":  # (operands, results, ...), the larger of which are the whole
            result = max(sum(sizes[:given]), sum(sizes[given : 2 * given]))
        else:
            result = sum(sizes)
        members = self._members(instruction.rest)
        size = max(map(len, members), default=1)
        if opcode == "reduce-scatter" and not started:
            result *= size
        if opcode == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            opcode = "reduce-scatter"  # XLA for TPUs writes it as a fusion of an all-reduce and a slice
        dtype = instruction.arrays[sizes.index(max(sizes))][0] if sizes else ""
        op = instruction.attribute(r'op_name="([^"]*)"') or instruction.name
        stacked = any(dims[:1] == (self._layers,) and math.prod(dims) in self._weights
                      for _, dims in instruction.dimensions)
        return Collective(opcode, dtype, result, size, self._crosses(members), times, in_layers, op, stacked)

    def _between_slices(self, instruction: Instruction, times: int, in_layers: bool) -> Collective | None:
        """TPUs send between slices through their hosts: what a collective over slices becomes in the program."""
        kind = (instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"') or "").lower().replace("_", "-")
        if kind not in KINDS:
            return None
        op = instruction.attribute(r'_xla_host_transfer_rendezvous="([^"]*)"') or instruction.name
        return Collective(kind, instruction.arrays[0][0], instruction.sizes[0], len(set(self._groups)), True, times,
                          in_layers, op)

    def _crosses(self, members: list[list[int]]) -> bool:
        place = self._groups
        return any(len({place[i] for i in group if i < len(place)}) > 1 for group in members) if place else False

    def _members(self, rest: str) -> list[list[int]]:
        if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest):
            return [[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])]
        return replica_groups(rest, len(self._groups))

    def summary(self) -> dict[str, tuple[int, float]]:
        """kind -> (runs, bytes one device receives)."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for one in self.collectives:
            totals[one.kind][0] += one.count
            totals[one.kind][1] += one.received
        return {kind: (int(totals[kind][0]), totals[kind][1]) for kind in KINDS if kind in totals}


def replica_groups(rest: str, devices: int) -> list[list[int]]:
    """The groups of devices of a collective, in any of XLA's three notations; all devices where it names none."""
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", rest):
        return [[int(i) for i in group.split(",") if i] for group in re.findall(r"\{([\d,]*)\}", found[1])]
    if found := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_ORDER}", rest):
        flat = _ordered(found[3], found[4])
        return [flat[i : i + int(found[2])] for i in range(0, len(flat), int(found[2]))]
    if found := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))? \{{([^}}]*)\}}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        names = re.findall(r"'([^']+)'", found[4])
        first = [name for name in sizes if name not in names]
        order = [list(sizes).index(name) for name in (*first, *names)]
        flat = _transposed(list(sizes.values()), order)
        if found[2]:  # the mesh is laid over the devices in an order of its own
            ids = _ordered(found[2], found[3])
            flat = [ids[place] for place in flat]
        size = math.prod(sizes[name] for name in names)
        return [flat[i : i + size] for i in range(0, len(flat), size)]
    return [list(range(devices))] if devices else []


def _ordered(shape: str, axes: str | None) -> list[int]:
    """Devices as `_ORDER` writes them: the sizes of an array of all of them, and the order of axes to read it in."""
    sizes = [int(n) for n in shape.split(",")]
    return _transposed(sizes, [int(n) for n in axes.split(",")] if axes else list(range(len(sizes))))


def _transposed(shape: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... in an array of this shape, read with its axes in another order."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    out = [0]
    for axis in order:
        out = [base + step * strides[axis] for base in out for step in range(shape[axis])]
    return out
