"""Parser of compiled HLO text: computations, instructions, trip counts of loops.

Text is the only form of a compiled program that all of XLA's compilers return.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

BYTES = {
    "pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2,
    "s32": 4, "u32": 4, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8,
    "c128": 16,
}  # fmt: skip
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
NAME = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
ARRAY = re.compile(r"(pred|bf16|c64|c128|[suf]\d+\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
OPERAND = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(\w+)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# Memory spaces in layouts other than HBM: on the chip (1, 2, 6) or on the host (5).
NOT_IN_HBM = re.compile(r"S\([1256]\)")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: in XLA's notation, such as "bf16".
      shape: sizes.
      in_hbm: whether it is in the chip's HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> float:
        return math.prod(self.shape) * BYTES.get(self.dtype, 1)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the %.
      opcode: such as "dot".
      arrays: of its result; several for a tuple.
      operands: names of its operands.
      text: the rest of the line, with its attributes.
      root: whether it is the computation's result.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    root: bool

    @property
    def bytes(self) -> float:
        return sum(a.bytes for a in self.arrays)

    @property
    def called(self) -> dict[str, str]:
        """Names of the computations that it runs, by role: `body`, `calls`, …"""
        return dict(CALLED.findall(self.text))

    def attribute(self, name: str, pattern: str = r"\{([^}]*)\}") -> str:
        """The value after `name=`; empty without this attribute."""
        found = re.search(rf"\b{name}={pattern}", self.text)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
      entry: name of the entry computation.
      computations: all computations by name.
    """

    entry: str
    computations: Mapping[str, Computation]

    def walk(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields (computation, instruction, number of runs) of instructions outside fusions.

        `inside` yields those of a fusion.
        """
        yield from self._walk(self.entry, 1.0)

    def _walk(self, name: str, times: float) -> Iterator[tuple[Computation, Instruction, float]]:
        computation = self.computations[name]
        for instruction in computation.values():
            yield computation, instruction, times
            if instruction.opcode == "while":
                trips = self.trip_count(computation, instruction) or 1
                yield from self._walk(instruction.called["body"], times * trips)
            elif instruction.opcode == "conditional":
                branches = OPERAND.findall(instruction.attribute("branch_computations"))
                called = instruction.called
                branches += [called[k] for k in called if k.endswith("_computation")]
                if branches:  # one branch runs; the largest is an upper bound
                    most = max(branches, key=lambda b: len(self.computations[b]))
                    yield from self._walk(most, times)
            elif instruction.opcode in ("call", "call-start", "async-start"):
                for inner in instruction.called.values():
                    yield from self._walk(inner, times)

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
        """Yields the instructions of a fusion, nested fusions included."""
        name = instruction.called.get("calls", "")
        if instruction.opcode != "fusion" or name not in self.computations:
            return
        computation = self.computations[name]
        for inner in computation.values():
            yield computation, inner
            yield from self.inside(inner)

    def trip_count(self, computation: Computation, loop: Instruction) -> int:
        """Number of iterations of a `while`; 0 if the program does not determine it."""
        known = TRIPS.search(loop.text)
        if known:
            return int(known[1])
        called = loop.called
        condition = self.computations[called["condition"]]
        root = next(i for i in condition.values() if i.root)
        if root.opcode == "fusion":  # the comparison alone
            inner = self.computations[root.called["calls"]]
            return self._count_trips(inner, condition, root, computation, loop)
        return self._count_trips(condition, condition, None, computation, loop)

    def _count_trips(
        self,
        compared: Computation,
        condition: Computation,
        fusion: Instruction | None,
        computation: Computation,
        loop: Instruction,
    ) -> int:
        """Trip count of `i < N`: N minus the initial i, divided by the increment."""
        root = next(i for i in compared.values() if i.root)
        if root.opcode != "compare" or "direction=LT" not in root.text:
            return 0

        def outside(name: str) -> Instruction:
            found = compared[name]
            if fusion is not None and found.opcode == "parameter":
                found = condition[fusion.operands[int(_argument(found))]]
            return found

        counter, limit = (outside(name) for name in root.operands)
        end = _constant(condition if limit.name in condition else compared, limit)
        if end is None or counter.opcode != "get-tuple-element":
            return 0
        index = int(counter.attribute("index", r"(\d+)"))
        start = _element(computation, loop.operands[0], index)
        body = self.computations[loop.called["body"]]
        step = _growth(body, index)
        return max(math.ceil((end - (start or 0)) / (step or 1)), 0)


def _argument(instruction: Instruction) -> str:
    """The text in the parentheses of a constant or a parameter."""
    found = re.search(rf"{instruction.opcode}\(([^)]*)\)", instruction.text)
    return found[1] if found else ""


def _constant(computation: Computation, instruction: Instruction | None) -> int | None:
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    text = _argument(instruction)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _element(computation: Computation, name: str, index: int) -> int | None:
    """The constant at an index of a tuple; None if it is no constant."""
    made = computation.get(name)
    if made is None or made.opcode != "tuple" or index >= len(made.operands):
        return None
    return _constant(computation, computation.get(made.operands[index]))


def _growth(body: Computation, index: int) -> int | None:
    """The constant that a loop body adds to its counter; None if it is not of this form."""
    root = next((i for i in body.values() if i.root), None)
    if root is None or root.opcode != "tuple" or index >= len(root.operands):
        return None
    made = body.get(root.operands[index])
    while made is not None and made.opcode in ("copy", "bitcast"):
        made = body.get(made.operands[0])
    if made is None or made.opcode != "add":
        return None
    found = [_constant(body, body.get(name)) for name in made.operands]
    return next((n for n in found if n), None)


def parse_hlo(text: str) -> Program:
    """Parses `compiled.as_text()`."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif current is not None:  # an attribute may hold lines of its own, even a lone "}"
            found = _instruction(line)
            if found is not None:
                current[found.name] = found
    return Program(entry, computations)


def _instruction(line: str) -> Instruction | None:
    name = NAME.match(line)
    if name is None:
        return None
    rest = " " + line[name.end() :]
    depth_end = _end_of_type(rest)
    opcode = OPCODE.match(rest, depth_end)
    if opcode is None:
        return None
    inputs = rest[opcode.end() : _close(rest, opcode.end())]
    return Instruction(
        name=name[2],
        opcode=opcode[1],
        arrays=arrays(rest[:depth_end]),
        operands=tuple(OPERAND.findall(inputs)),
        text=rest[opcode.start() :],
        root=bool(name[1]),
    )


def _end_of_type(rest: str) -> int:
    """Index of the end of the type before an opcode: a space outside of all brackets."""
    depth = 0
    for i, c in enumerate(rest[1:], 1):
        depth += c in "([{"
        depth -= c in ")]}"
        if c == " " and not depth:
            return i
    return len(rest)


def _close(rest: str, start: int) -> int:
    depth = 1
    for i in range(start, len(rest)):
        depth += rest[i] == "("
        depth -= rest[i] == ")"
        if not depth:
            return i
    return len(rest)


@functools.lru_cache(maxsize=1 << 14)
def arrays(text: str) -> tuple[Array, ...]:
    """Parses the arrays of a type."""
    return tuple(
        Array(
            kind,
            tuple(int(n) for n in sizes.split(",") if n),
            not NOT_IN_HBM.search(layout),
        )
        for kind, sizes, layout in ARRAY.findall(text)
    )
