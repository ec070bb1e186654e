"""Searches for the fastest mesh, or for changes with which a config fits."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aigc_jax.core.capabilities import SupportsRemat
from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import Spec
from aigc_jax.distributed.mesh import AXES, parse_mesh
from aigc_jax.tools.plan.plan import (
    Plan,
    describe_config,
    make_plan,
    state_bytes,
    with_changes,
)
from aigc_jax.tools.plan.target import Target

STATE_SHARE = 0.9  # of a device's memory; the rest is for activations
MAX_TENSOR = 16
REMATS = ("none", "dots", "full")  # in the order of decreasing memory


def candidate_meshes(devices: int) -> Iterator[str]:
    """Yields all products of data, fsdp, sequence and tensor, probably fast ones first.

    Meshes of only data or fsdp come first: sharding the state or the batch costs less than sharding
    layers (tensor), which waits for every matrix product, or sequences, which gathers keys and
    values in every layer.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for tensor, sequence in itertools.product(divisors, divisors):
        if tensor > MAX_TENSOR or devices % (tensor * sequence):
            continue
        rows = devices // (tensor * sequence)
        for fsdp in divisors:
            if rows % fsdp == 0:
                found.append((rows // fsdp, fsdp, sequence, tensor))
    found.sort(key=lambda m: (min(m[0], m[1]) * m[3] * m[2] ** 2, -m[1]))
    for sizes in found:
        yield format_mesh(dict(zip(AXES, sizes, strict=True)))


def format_mesh(sizes: Mapping[str, int]) -> str:
    """Formats a mesh for `config.mesh`, without axes of size one."""
    return ",".join(f"{a}={sizes[a]}" for a in AXES if sizes.get(a, 1) > 1) or "data=1"


def sweep(
    config: Config,
    spec: Spec,
    target: Target,
    budget: float = 0.0,
    tries: int = 6,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Plans the meshes that fit, the fastest first.

    Invalid meshes (batch or parameters that do not divide, states that are too large) are skipped
    without compiling. Of the rest the first `tries` are compiled.

    Args:
      config: of the run; its own mesh is not used.
      spec: of its data.
      target: devices to plan for.
      budget: tokens or images of the run.
      tries: number of meshes to compile.
      log: called with a line for each mesh that is compiled.

    Raises:
      UserError: if no mesh can be used.
    """
    plans: list[Plan] = []
    left_out: list[dict[str, str]] = []
    waiting: list[str] = []
    for mesh in candidate_meshes(len(target.devices)):
        if len(plans) >= tries:
            waiting.append(mesh)
            continue
        candidate = with_changes(config, {"mesh": mesh})
        try:
            state = state_bytes(candidate, spec, target)
        except UserError as e:
            left_out.append({"mesh": mesh, "why": str(e)})
            continue
        if state > STATE_SHARE * target.sheet.memory:
            left_out.append({"mesh": mesh, "why": "the state alone does not fit"})
            continue
        log(f"compiling mesh={mesh}")
        plans.append(make_plan(candidate, spec, target, budget))
    if not plans:
        why = left_out[0]["why"] if left_out else "there are no devices"
        raise UserError(f"no mesh of {target.name} can be used: {why}")
    plans.sort(key=lambda p: p["roofline"]["step"] if p["memory"]["fits"] else float("inf"))
    return {"plans": plans, "left_out": left_out, "not_compiled": waiting}


def memory_levers(config: Config, spec: Spec, target: Target) -> Iterator[dict[str, Any]]:
    """Yields cumulative changes that reduce the memory of a step, the cheapest first.

    Shards the state (fsdp) until it fits, stores less for the backward pass (remat), uses smaller
    microbatches (accumulate), and finally shards the state further.
    """
    base: dict[str, Any] = {}
    if state_bytes(config, spec, target) > STATE_SHARE * target.sheet.memory:
        base = _shard_state(config, spec, target)
        yield base
    model = config.model
    known = isinstance(model, SupportsRemat) and model.remat in REMATS
    later = REMATS[REMATS.index(model.remat) + 1 :] if known else ()
    for remat in later:
        try:
            with_changes(config, {"model.remat": remat})
        except UserError:  # the model does not support it
            continue
        base = {**base, "model.remat": remat}
        yield base
    accumulate = config.train.accumulate
    while config.data.batch_size % (2 * accumulate) == 0:
        accumulate *= 2
        candidate = {**base, "train.accumulate": accumulate}
        if not _is_valid(
            with_changes(config, candidate), spec, target
        ):  # some devices have no row left
            break
        base = candidate
        yield base
    for mesh in _more_fsdp(with_changes(config, base).mesh, len(target.devices)):
        if _is_valid(with_changes(config, {**base, "mesh": mesh}), spec, target):
            yield {**base, "mesh": mesh}


def _is_valid(config: Config, spec: Spec, target: Target) -> bool:
    """True if a config can be built on its mesh."""
    try:
        state_bytes(config, spec, target)
    except UserError:
        return False
    return True


def _more_fsdp(mesh: str, devices: int) -> Iterator[str]:
    """Yields meshes that move devices from data to fsdp; rows per device stay the same."""
    sizes = parse_mesh(mesh, devices)
    now = sizes.get("fsdp", 1)
    rows = sizes.get("data", 1) * now
    for fsdp in range(now + 1, rows + 1):
        if rows % fsdp == 0 and fsdp % now == 0:
            yield format_mesh({**sizes, "data": rows // fsdp, "fsdp": fsdp})


def _shard_state(config: Config, spec: Spec, target: Target) -> dict[str, Any]:
    """The first mesh on which the state fits, without tensor and sequence axes if possible."""
    count = len(target.devices)
    for mesh in sorted(candidate_meshes(count), key=lambda m: ("tensor" in m) + ("sequence" in m)):
        try:
            state = state_bytes(with_changes(config, {"mesh": mesh}), spec, target)
        except UserError:
            continue
        if state <= STATE_SHARE * target.sheet.memory:
            return {"mesh": mesh}
    raise UserError(
        f"the train state does not fit {target.name} with any sharding: use more devices, or"
        " optim.name=lion or sgd, which have a smaller state"
    )


def fit(
    config: Config,
    spec: Spec,
    target: Target,
    budget: float = 0.0,
    log: Callable[[str], None] = print,
) -> Plan:
    """Plans the config, or the first change of it that fits, which is in `changes`.

    Args:
      config: of the run.
      spec: of its data.
      target: devices to plan for.
      budget: tokens or images of the run.
      log: called with a line for each try.

    Raises:
      UserError: if no change makes it fit.
    """
    tried: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    if state_bytes(config, spec, target) <= STATE_SHARE * target.sheet.memory:
        first = [{}]
    for changes in itertools.chain(first, memory_levers(config, spec, target)):
        log(f"compiling {as_flags(changes) or 'as it is'}")
        plan = make_plan(with_changes(config, changes), spec, target, budget)
        tried.append({"changes": changes, "excess": plan["memory"]["excess"]})
        if plan["memory"]["fits"]:
            return plan | {"changes": changes, "tried": tried}
    least = min((t["excess"] for t in tried), default=0.0)
    raise UserError(
        f"{describe_config(config, spec)['model']} does not fit {target.name}, by"
        f" {least / 2**30:.1f} GiB"
        f" at best, {_describe_tried(tried)}: use more devices, lower data.batch_size, or shard"
        " layers or sequences in mesh (tensor=…, sequence=…; see --sweep_mesh)"
    )


def _describe_tried(tried: Sequence[Mapping[str, Any]]) -> str:
    """Formats the changes that were tried, each field with its values."""
    values: dict[str, list[str]] = {}
    for changes in (t["changes"] for t in tried):
        for name, value in changes.items():
            if str(value) not in values.setdefault(name, []):
                values[name].append(str(value))
    text = "; ".join(f"{name}={' or '.join(each)}" for name, each in values.items())
    return f"also with {text}" if text else "and no remat, accumulation or fsdp is left to try"


def as_flags(changes: dict[str, Any]) -> str:
    """Changes as they are written on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())
