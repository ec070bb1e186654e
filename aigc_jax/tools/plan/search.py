"""Which mesh is fastest, and what makes a config fit: plans of other configs than the one given."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import Spec
from aigc_jax.distributed.mesh import AXES, parse_mesh
from aigc_jax.tools.plan.plan import Report, Target, changed, described, make_plan, state_of

ROOM = 0.9  # of a device's memory that the state may take, so that a step has some too
MOST_TENSOR = 16
REMATS = ("none", "dots", "full")  # each keeps less and computes more again than the one before

Try = Callable[[Config], Report]


def meshes(devices: int) -> Iterator[str]:
    """All products of data, fsdp, sequence and tensor, the likeliest to be fast first.

    Those with one axis of rows come first, then mixtures: splitting the state or the batch costs
    less than splitting layers (tensor), which waits for every product, or texts (sequence), which
    gathers keys and values in every layer.
    """
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    found = []
    for tensor, sequence in itertools.product(divisors, divisors):
        if tensor > MOST_TENSOR or devices % (tensor * sequence):
            continue
        rows = devices // (tensor * sequence)
        for fsdp in divisors:
            if rows % fsdp == 0:
                found.append((rows // fsdp, fsdp, sequence, tensor))
    found.sort(key=lambda m: (min(m[0], m[1]) * m[3] * m[2] ** 2, -m[1]))
    for sizes in found:
        yield written(dict(zip(AXES, sizes, strict=True)))


def written(sizes: Mapping[str, int]) -> str:
    """A mesh as configs have it, without axes of one."""
    return ",".join(f"{a}={sizes[a]}" for a in AXES if sizes.get(a, 1) > 1) or "data=1"


def sweep(
    config: Config,
    spec: Spec,
    target: Target,
    budget: float = 0.0,
    tries: int = 6,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Plans of the meshes that fit, the fastest first.

    What cannot be is left out before anything is compiled: rows that do not divide, parameters that
    cannot be split, states that are too large. Of the rest the first `tries` are compiled.

    Args:
      config: of the run; its own mesh is not used.
      spec: what its data look like.
      target: the devices.
      budget: tokens or images of the run.
      tries: how many meshes to compile.
      say: is told of every mesh as it comes.

    Raises:
      UserError: if there is none.
    """
    plans, left_out, waiting = [], [], []
    for mesh in meshes(len(target.devices)):
        if len(plans) >= tries:
            waiting.append(mesh)
            continue
        candidate = changed(config, {"mesh": mesh})
        try:
            state = state_of(candidate, spec, target)
        except UserError as e:
            left_out.append({"mesh": mesh, "why": str(e)})
            continue
        if state > ROOM * target.sheet.memory:
            left_out.append({"mesh": mesh, "why": "the state alone does not fit"})
            continue
        say(f"compiling mesh={mesh}")
        plans.append(make_plan(candidate, spec, target, budget))
    if not plans:
        why = left_out[0]["why"] if left_out else "there are no devices"
        raise UserError(f"no mesh of {target.name} can be used: {why}")
    plans.sort(key=lambda p: p["roofline"]["step"] if p["memory"]["fits"] else float("inf"))
    return {"plans": plans, "left_out": left_out, "not_compiled": waiting}


def knobs(config: Config, spec: Spec, target: Target) -> Iterator[dict[str, Any]]:
    """Changes that make a step need less memory, the cheapest first.

    First the state must fit: more of it is shared out by fsdp. Then less is kept for the backward
    pass (remat), then a step is made of smaller microbatches (accumulate), and at last still more
    of the state is shared out, beside all of these.
    """
    base: dict[str, Any] = {}
    if state_of(config, spec, target) > ROOM * target.sheet.memory:
        base = _shared_out(config, spec, target)
        yield base
    now = getattr(config.model, "remat", None)
    later = REMATS[REMATS.index(now) + 1 :] if now in REMATS else ()
    for remat in later:
        try:
            changed(config, {"model.remat": remat})
        except UserError:  # this model does not have it
            continue
        base = {**base, "model.remat": remat}
        yield base
    accumulate = config.train.accumulate
    while config.data.batch_size % (2 * accumulate) == 0:
        accumulate *= 2
        candidate = {**base, "train.accumulate": accumulate}
        if not _can_be(changed(config, candidate), spec, target):  # some devices have no row left
            break
        base = candidate
        yield base
    for mesh in _more_fsdp(changed(config, base).mesh, len(target.devices)):
        if _can_be(changed(config, {**base, "mesh": mesh}), spec, target):
            yield {**base, "mesh": mesh}


def _can_be(config: Config, spec: Spec, target: Target) -> bool:
    """Whether a config goes with its mesh."""
    try:
        state_of(config, spec, target)
    except UserError:
        return False
    return True


def _more_fsdp(mesh: str, devices: int) -> Iterator[str]:
    """The mesh with more and more of its copies sharing one state; each keeps its rows."""
    sizes = parse_mesh(mesh, devices)
    now = sizes.get("fsdp", 1)
    rows = sizes.get("data", 1) * now
    for fsdp in range(now + 1, rows + 1):
        if rows % fsdp == 0 and fsdp % now == 0:
            yield written({**sizes, "data": rows // fsdp, "fsdp": fsdp})


def _shared_out(config: Config, spec: Spec, target: Target) -> dict[str, Any]:
    """The first mesh whose share of the state fits, with whole layers and texts if possible."""
    count = len(target.devices)
    for mesh in sorted(meshes(count), key=lambda m: ("tensor" in m) + ("sequence" in m)):
        try:
            state = state_of(changed(config, {"mesh": mesh}), spec, target)
        except UserError:
            continue
        if state <= ROOM * target.sheet.memory:
            return {"mesh": mesh}
    raise UserError(
        f"the state does not fit {target.name}, however it is shared out: take more devices, or"
        " optim.name=lion or sgd, which keep less of it"
    )


def fit(
    config: Config,
    spec: Spec,
    target: Target,
    budget: float = 0.0,
    say: Callable[[str], None] = print,
) -> Report:
    """The plan of the config, or of the first change of it that fits; `changes` says which.

    Args:
      config: of the run.
      spec: what its data look like.
      target: the devices.
      budget: tokens or images of the run.
      say: is told of every try.

    Raises:
      UserError: if nothing helps.
    """
    tried: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    if state_of(config, spec, target) <= ROOM * target.sheet.memory:
        first = [{}]
    for changes in itertools.chain(first, knobs(config, spec, target)):
        say(f"compiling {flags(changes) or 'as it is'}")
        plan = make_plan(changed(config, changes), spec, target, budget)
        tried.append({"changes": changes, "over": plan["memory"]["over"]})
        if plan["memory"]["fits"]:
            return plan | {"changes": changes, "tried": tried}
    least = min((t["over"] for t in tried), default=0.0)
    raise UserError(
        f"{described(config, spec)['model']} does not fit {target.name}, by {least / 2**30:.1f} GiB"
        f" at best, {_turned(tried)}: take more devices, lower data.batch_size, or split layers or"
        " texts in mesh (tensor=…, sequence=…; see --sweep_mesh)"
    )


def _turned(tried: Sequence[Mapping[str, Any]]) -> str:
    """The changes that were tried, each field with its values."""
    values: dict[str, list[str]] = {}
    for changes in (t["changes"] for t in tried):
        for name, value in changes.items():
            if str(value) not in values.setdefault(name, []):
                values[name].append(str(value))
    told = "; ".join(f"{name}={' or '.join(each)}" for name, each in values.items())
    return f"also with {told}" if told else "and nothing of remat, accumulation and fsdp is left"


def flags(changes: dict[str, Any]) -> str:
    """Changes as they are written on the command line."""
    return " ".join(f"--config.{name}={value}" for name, value in changes.items())
