"""Bytes that a compiled program's instructions move between the chip and its main memory."""

from aigc_jax.tools.plan.hlo import Array, Computation, Instruction, Program

# What moves no bytes of its own.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "call-start", "after-all", "partition-id", "replica-id", "iota", "async-start"),
    *("async-update", "async-done", "copy-done", "opt-barrier", "domain"),
}
SLICES = ("dynamic-slice", "gather", "slice")
UPDATE = "dynamic-update-slice"


def traffic(program: Program, computation: Computation, one: Instruction) -> float:
    """Bytes between the chip and its main memory; intermediate results of a fusion are none.

    Of an array that is only sliced, or only written in a place, the slice counts; of a kernel, what
    it is given and what it makes.
    """
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0.0
    if one.opcode == "custom-call" and not one.operands:  # room is made
        return 0.0
    if one.opcode == "copy-start":  # its source stands beside its result
        return _near(one.arrays)
    if one.opcode.removesuffix("-start") in (*SLICES, UPDATE):
        return _moved(computation, one)
    written = _near(one.arrays)
    read = {name: _near(computation[name].arrays) for name in one.operands if name in computation}
    body = program.computations.get(one.called.get("calls", ""))
    if one.opcode != "fusion" or body is None:
        return written + sum(read.values())
    for number, name in enumerate(one.operands):
        parameter = _parameter(body, number)
        places = parameter and _places(program, body, parameter.name)
        if name not in read or not places:
            continue
        read[name] = min(read[name], places[0])
        if places[1] and written:  # the same array goes out, written in places alone
            written = max(written - parameter.bytes, 0.0) + places[1]
    return written + sum(read.values())


def _moved(computation: Computation, one: Instruction) -> float:
    """Of a slice by itself, from or to another array: read where that lies, written where it goes.

    One that has only started makes its operands again beside its result.
    """
    inputs = [computation[name].arrays[0] for name in one.operands if name in computation]
    result = one.arrays[len(one.operands) if one.opcode.endswith("-start") else 0]
    if one.opcode.startswith(UPDATE):
        slice_, ends = inputs[1], (inputs[1], result)
    else:
        slice_, ends = result, (inputs[0], result)
    return slice_.bytes * sum(end.near for end in ends)


def _places(program: Program, body: Computation, name: str) -> tuple[float, float] | None:
    """Bytes read of an array in a fusion that needs only places of it, and written in place.

    None if it needs the whole. A fusion within the fusion may be what slices.
    """
    read, written = 0.0, 0.0
    users = [i for i in body.values() if name in i.operands]
    for user in users:
        found: tuple[float, float] | None = None
        first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode == "bitcast":
            found = _places(program, body, user.name)
        elif user.opcode in SLICES and first:
            found = user.bytes, 0.0
        elif user.opcode == UPDATE and first:
            found = 0.0, body[user.operands[1]].bytes
        elif user.opcode == "fusion":
            inner = program.computations[user.called["calls"]]
            made = _parameter(inner, user.operands.index(name))
            found = made and _places(program, inner, made.name)
        if not found or (found[1] and not _goes_out(body, user)):
            return None
        read, written = read + found[0], written + found[1]
    return (read, written) if users else None


def _goes_out(body: Computation, one: Instruction) -> bool:
    """Whether it is a result of a fusion, and nothing else in it needs it."""
    users = [i for i in body.values() if one.name in i.operands]
    return all(i.opcode in ("bitcast", "tuple") and _goes_out(body, i) for i in users)


def _parameter(body: Computation, number: int) -> Instruction | None:
    written = f"parameter({number})"
    return next((i for i in body.values() if i.opcode == "parameter" and written in i.text), None)


def _near(made: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in made if a.near)
