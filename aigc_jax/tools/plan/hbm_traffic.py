"""HBM traffic of the instructions of a compiled program."""

from aigc_jax.tools.plan.hlo import Array, Computation, Instruction, Program

# Instructions without traffic of their own.
NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "call-start", "after-all", "partition-id", "replica-id", "iota", "async-start"),
    *("async-update", "async-done", "copy-done", "opt-barrier", "domain"),
}
SLICES = ("dynamic-slice", "gather", "slice")
UPDATE = "dynamic-update-slice"


def traffic(program: Program, computation: Computation, one: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it.

    Intermediate results of a fusion do not count. Of an array that is only sliced or updated in
    place, the slice counts; of a kernel, its operands and results.
    """
    if one.opcode in NO_TRAFFIC or one.opcode.endswith("-done"):
        return 0.0
    if one.opcode == "custom-call" and not one.operands:  # allocates a buffer
        return 0.0
    if one.opcode == "copy-start":  # the result includes the source
        return _hbm_bytes(one.arrays)
    if one.opcode.removesuffix("-start") in (*SLICES, UPDATE):
        return _slice_traffic(computation, one)
    written = _hbm_bytes(one.arrays)
    read = {
        name: _hbm_bytes(computation[name].arrays) for name in one.operands if name in computation
    }
    body = program.computations.get(one.called.get("calls", ""))
    if one.opcode != "fusion" or body is None:
        return written + sum(read.values())
    for number, name in enumerate(one.operands):
        parameter = _parameter(body, number)
        if parameter is None or name not in read:
            continue
        access = _partial_access(program, body, parameter.name)
        if access is None:
            continue
        read[name] = min(read[name], access[0])
        if access[1] and written:  # the array is updated in place
            written = max(written - parameter.bytes, 0.0) + access[1]
    return written + sum(read.values())


def _slice_traffic(computation: Computation, one: Instruction) -> float:
    """Traffic of a slice or update outside fusions: the slice, at each end that is in HBM.

    The result of an asynchronous start includes its operands.
    """
    inputs = [computation[name].arrays[0] for name in one.operands if name in computation]
    result = one.arrays[len(one.operands) if one.opcode.endswith("-start") else 0]
    if one.opcode.startswith(UPDATE):
        slice_, ends = inputs[1], (inputs[1], result)
    else:
        slice_, ends = result, (inputs[0], result)
    return slice_.bytes * sum(end.in_hbm for end in ends)


def _partial_access(program: Program, body: Computation, name: str) -> tuple[float, float] | None:
    """Bytes of an array that a fusion reads by slices and writes in place; nested ones included.

    Returns:
      (read, written), or None if the fusion needs the whole array.
    """
    read, written = 0.0, 0.0
    users = [i for i in body.values() if name in i.operands]
    for user in users:
        found: tuple[float, float] | None = None
        first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode == "bitcast":
            found = _partial_access(program, body, user.name)
        elif user.opcode in SLICES and first:
            found = user.bytes, 0.0
        elif user.opcode == UPDATE and first:
            found = 0.0, body[user.operands[1]].bytes
        elif user.opcode == "fusion":
            inner = program.computations[user.called["calls"]]
            made = _parameter(inner, user.operands.index(name))
            found = None if made is None else _partial_access(program, inner, made.name)
        if not found or (found[1] and not _is_output(body, user)):
            return None
        read, written = read + found[0], written + found[1]
    return (read, written) if users else None


def _is_output(body: Computation, one: Instruction) -> bool:
    """True if an instruction is a result of its fusion and has no other user in it."""
    users = [i for i in body.values() if one.name in i.operands]
    return all(i.opcode in ("bitcast", "tuple") and _is_output(body, i) for i in users)


def _parameter(body: Computation, number: int) -> Instruction | None:
    written = f"parameter({number})"
    return next((i for i in body.values() if i.opcode == "parameter" and written in i.text), None)


def _hbm_bytes(made: tuple[Array, ...]) -> float:
    return sum(a.bytes for a in made if a.in_hbm)
