"""Launches and bytes of an optimized XLA program, from its text and without running it.

XLA's own figures count the body of a loop once. Here a loop counts by its trips, a branch of SLTT-K by its
share of the steps, and a fusion that takes a slice of an array for the slice alone. What stays on the chip
(on a TPU arrays of memory spaces other than the main one) is not moved.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from sltt_jax.rules import K_STEP_SCOPE

# Instructions that nothing is run for. What ends something asynchronous was counted at its start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id",
}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")


class Instruction(NamedTuple):
    """One line of a computation; `arguments` is what stands in the brackets, `attributes` what follows."""

    name: str
    type: str
    op: str
    arguments: str
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return _NAME.findall(self.arguments)

    def called(self, role: str) -> str | None:
        """The computation that it calls as its `role`: "calls", "body", "condition", "to_apply"."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.attributes)
        return found and found[1]


class Program(NamedTuple):
    """A program: its computations by name, of each its instructions by name, and which one is run first."""

    computations: dict[str, dict[str, Instruction]]
    entry: str


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one call of a program does.

    Attributes:
      launches: instructions that run, on a GPU kernels and copies. A TPU is sent the program as a whole, so
        that there they are no launches but steps.
      moved_bytes: read from and written to the device's main memory.
      all_reduces: sums over several devices.
      all_reduce_bytes: what each device gives into them.
      looped_all_reduces: those of them that are in a loop.
    """

    launches: float = 0.0
    moved_bytes: float = 0.0
    all_reduces: float = 0.0
    all_reduce_bytes: float = 0.0
    looped_all_reduces: float = 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            *(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )

    def times(self, n: float) -> "Counts":
        """Counts of the same, done n times."""
        return Counts(*(n * value for value in dataclasses.astuple(self)))


def count(text: str, *, backward_share: float = 1.0) -> Counts:
    """Counts what a compiled program does.

    Args:
      text: of the optimized program, `compiled.as_text()`.
      backward_share: the share of time steps at which `sltt_k` goes backward, k/T. Of any other conditional
        the branch counts that moves most.

    Raises:
      ValueError: it is no such text, or a loop's length is not in it.
    """
    program = read(text)
    return _count(program, program.entry, backward_share)


def read(text: str) -> Program:
    """Reads the text of a program.

    Raises:
      ValueError: it has no entry computation.
    """
    computations, entry, current = {}, None, {}
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif found := _INSTRUCTION.match(line):
            current[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry is None:
        raise ValueError(f"this is not the text of a compiled program: {text[:60]!r}")
    return Program(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    of, text = text[:end], text[end:].strip()
    start = text.index("(")
    end = _closing(text, start)
    return Instruction(name, of, text[:start], text[start + 1 : end], text[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return start + found.start()
    raise ValueError(f"a bracket is not closed in {text[:60]!r}")


class _Array(NamedTuple):
    bytes: int
    on_chip: bool


def _arrays(of: str) -> Iterator[_Array]:
    """The arrays of a type, as large as they lie in memory: a TPU fills the last axes up to whole tiles."""
    for kind, bits, shape, layout in _ARRAY.findall(of):
        dims = [int(n) for n in shape.split(",") if n]
        order, _, rest = layout.partition(":")
        if tile := re.match(r"T\(([\d,]+)\)", rest):
            tile = [int(n) for n in tile[1].split(",")]
            physical = [dims[int(axis)] for axis in reversed(order.split(",")) if axis] or [1]
            split = max(len(physical) - len(tile), 0)
            tile = tile[-len(physical) :]
            dims = physical[:split] + [-(-n // t) * t for n, t in zip(physical[split:], tile, strict=True)]
        space = re.search(r"S\((\d+)\)", rest)
        of_one = 1 if kind == "pred" else 2 if kind == "bf16" else int(bits) / 8
        yield _Array(math.ceil(math.prod(dims) * of_one), bool(space and int(space[1])))


def _size(of: str) -> int:
    return sum(array.bytes for array in _arrays(of))


def _in_memory(of: str) -> int:
    """Bytes of a type that lie in main memory."""
    return sum(array.bytes for array in _arrays(of) if not array.on_chip)


def _count(program: Program, name: str, share: float) -> Counts:
    computation = program.computations[name]
    return sum((_count_one(program, computation, i, share) for i in computation.values()), Counts())


def _count_one(program: Program, computation: dict[str, Instruction], i: Instruction, share: float) -> Counts:
    if i.op in _FREE or i.op.endswith(("-done", "-update")):
        return Counts()
    if i.op == "while":
        body = _count(program, _named(i, "body"), share)
        body = dataclasses.replace(body, looped_all_reduces=body.all_reduces)
        return body.times(_trips(program, i))
    if i.op == "conditional":
        return _count_branches(program, i, share)
    if i.op == "call":
        return _count(program, _named(i, "to_apply"), share)
    called = i.called("calls")
    if i.op.endswith("-start") and called and _runs_something(program.computations[called]):
        return _count(program, called, share)
    if called and i.op != "custom-call":
        return Counts(launches=1, moved_bytes=_fusion_bytes(program, called))
    moved = _moved(computation, i)
    if i.op in ("all-reduce", "all-reduce-start"):
        given = sum(_size(computation[name].type) for name in i.operands)
        return Counts(1, moved, all_reduces=1, all_reduce_bytes=given)
    return Counts(launches=1, moved_bytes=moved)


def _named(i: Instruction, role: str) -> str:
    name = i.called(role)
    if name is None:
        raise ValueError(f"{i.op} {i.name} does not name its {role}")
    return name


def _runs_something(computation: dict[str, Instruction]) -> bool:
    """True of what only wraps an instruction to run it asynchronously, rather than being one fused kernel."""
    return any(i.op in ("fusion", "custom-call", "all-reduce") for i in computation.values())


def _trips(program: Program, loop: Instruction) -> int:
    """How often a loop runs: as XLA says, or by its condition, which counts from 0 in what JAX makes."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = program.computations[_named(loop, "condition")]
    root = next(i for i in condition.values() if i.root)
    if root.op == "compare" and "direction=LT" in root.attributes:
        bound = condition[root.operands[1]]
        if bound.op == "constant":
            return int(bound.arguments)
    raise ValueError(f"the length of loop {loop.name} is not in the program; its bytes cannot be counted")


def _count_branches(program: Program, i: Instruction, share: float) -> Counts:
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    if listed:
        names = _NAME.findall(listed[1])
    else:
        names = [_named(i, "true_computation"), _named(i, "false_computation")]
    branches = sorted((_count(program, name, share) for name in names), key=lambda found: found.moved_bytes)
    if f"{K_STEP_SCOPE}/cond" in i.attributes:
        forward_only, backward = branches
        return backward.times(share) + forward_only.times(1 - share)
    return branches[-1]


def _moved(computation: dict[str, Instruction], i: Instruction) -> int:
    """Bytes that an instruction of its own reads and writes."""
    op = i.op.removesuffix("-start")
    given = [computation[name].type for name in i.operands]
    result = i.type
    if op == "copy" and op != i.op:  # its result holds where from and where to
        return _in_memory(result)
    if op in ("slice", "dynamic-slice", "dynamic-update-slice") and op != i.op:
        # What is started holds its operands, then its result.
        result = _top_level(i.type)[1]
    if op in ("slice", "dynamic-slice"):
        return min(_size(result), _in_memory(given[0])) + _in_memory(result)
    if op == "dynamic-update-slice":
        return _in_memory(given[1]) + min(_size(given[1]), _in_memory(result))
    return sum(map(_in_memory, given)) + _in_memory(result)


def _top_level(of: str) -> list[str]:
    """The parts of the type of a tuple."""
    parts, depth, begun = [], 0, 1
    for place, letter in enumerate(of):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(of[begun:place])
            begun = place + 1
    return parts


def _fusion_bytes(program: Program, name: str) -> int:
    body = program.computations[name]
    root = next(i for i in body.values() if i.root)
    return sum(_read(program, body, i) for i in body.values() if i.op == "parameter") + _written(body, root)


def _read(program: Program, body: dict[str, Instruction], value: Instruction) -> int:
    """Bytes that a fusion reads of one of its parameters: slices where it takes nothing but slices."""
    whole = _in_memory(value.type)
    if not whole or value.root:
        return whole
    total = 0
    for user in body.values():
        places = [place for place, name in enumerate(user.operands) if name == value.name]
        if not places:
            continue
        if user.op in ("slice", "dynamic-slice") and places == [0]:
            total += _size(user.type)
        elif user.op == "dynamic-update-slice" and places == [0]:
            pass  # written in place
        elif user.op == "bitcast":
            total += _read(program, body, user)
        elif user.op == "fusion":
            inner = program.computations[_named(user, "calls")]
            taken = [i for i in inner.values() if i.op == "parameter" and int(i.arguments) in places]
            total += sum(_read(program, inner, i) for i in taken)
        else:
            return whole
    return min(total, whole)


def _written(body: dict[str, Instruction], result: Instruction) -> int:
    """Bytes that a fusion writes: of an array that is updated in place the new part."""
    if result.op == "tuple":
        return sum(_written(body, body[name]) for name in result.operands)
    if result.op == "bitcast" and _in_memory(result.type):
        return _written(body, body[result.operands[0]])
    if result.op == "dynamic-update-slice":
        return min(_size(body[result.operands[1]].type), _in_memory(result.type))
    return _in_memory(result.type)
