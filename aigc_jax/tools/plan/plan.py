"""One config on one topology: compiled for it, and what the compiled step says of a run there."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES, Spec
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.distributed.sharding import per_device
from aigc_jax.experiment import build
from aigc_jax.experiment.first_stage import resolve_first_stage, without_first_stage
from aigc_jax.families.registry import FAMILIES
from aigc_jax.modalities import sources
from aigc_jax.modalities.synthetic_spec import spec_from_config, synthetic_spec
from aigc_jax.tools.bench import flops
from aigc_jax.tools.plan import topology
from aigc_jax.tools.plan.costs import costs
from aigc_jax.tools.plan.hlo import parse
from aigc_jax.tools.plan.oom_messages import parse_oom_message
from aigc_jax.tools.plan.roofline import Budget, roofline
from aigc_jax.training.oom import tree_bytes

Report = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is planned for.

    Attributes:
      name: of the topology.
      devices: of it.
      sheet: of each device.
      source: "data sheet" or "measured".
      chips: that are paid for.
    """

    name: str
    devices: Sequence[Any]
    sheet: Any
    source: str
    chips: int

    @classmethod
    def of(cls, name: str, slices: int = 1) -> "Target":
        """Raises UserError for a topology that cannot be compiled for here."""
        devices = topology.devices_of(name, slices)
        sheet, source = topology.sheet_of(devices)
        label = name if slices == 1 else f"{slices} × {name}"
        return cls(label, devices, sheet, source, topology.chips_of(devices))


def planned(config: Config, shape: str = "") -> tuple[Config, Spec]:
    """The config and what its data look like, without reading them.

    Text needs nothing but the config. Images are described by `shape`, or by their source if it is
    here.

    Args:
      config: of a run.
      shape: as `modalities.synthetic_spec` takes it; "": the config's own.

    Raises:
      UserError: if neither tells.
    """
    tasks = FAMILIES[config.raw["objective"]["name"]].tasks
    if shape:
        config = without_first_stage(config)
        spec: Spec | None = synthetic_spec(shape, config)
    else:
        spec = None if config.first_stage.given else spec_from_config(config, tasks)
    if spec is not None:
        return resolve(config), spec
    try:
        spec = sources.load(config.data).spec
        config = resolve_first_stage(config, spec)
    except UserError as e:
        raise UserError(
            f"{e} (a plan needs only the shape of the data: --synthetic=32x32x3:10, or text:9)"
        ) from e
    return config, spec


def resolve(config: Config) -> Config:
    """The config with all sizes written out that its data would determine."""
    for modality in MODALITIES.values():
        config = modality.resolve(config)
    return config


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """The config with some fields replaced, such as `{"model.remat": "full"}`."""
    raw = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.raw.items()}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if field:
            raw[section][field] = value
        else:
            raw[section] = value
    return build.parse_config(raw)


def state_of(config: Config, spec: Spec, target: Target) -> int:
    """Bytes of the train state on one device; nothing is compiled.

    Raises:
      UserError: if the config does not go with the data or the mesh.
    """
    run = build.build(config, spec, make_mesh(config.mesh, target.devices))
    return tree_bytes(per_device(run.state_shapes(), run.shardings))


def make_plan(config: Config, spec: Spec, target: Target, budget: float = 0.0) -> Report:
    """The plan of a config on a target, as plain values; bytes, seconds, FLOP/s.

    Args:
      config: of the run.
      spec: what its data look like.
      target: the devices.
      budget: tokens or images of the whole training; 0: what the config trains on.

    Raises:
      UserError: if the config does not go with the data or the mesh.
    """
    mesh = make_mesh(config.mesh, target.devices)
    with topology.tracing_for(target.devices):
        run = build.build(config, spec, mesh)
        shapes, batch = run.state_shapes(), spec.example_batch(config.data.batch_size)
        report = {
            "config": described(config, spec),
            "topology": _topology(target, mesh),
            "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
            "state": tree_bytes(per_device(shapes, run.shardings)),
        }
        began = time.perf_counter()
        lowered = run.step.lower(shapes, batch)
        compiled, report["memory"] = fitted(lowered, target.sheet.memory, report["state"])
        report["compile_seconds"] = time.perf_counter() - began
        report["flops"] = {
            "model": flops.model_flops(config, spec),
            "computed": flops.count(run.step, shapes, batch).total,
        }
    if compiled is not None:
        slices = [getattr(d, "slice_index", 0) for d in mesh.devices.flat]
        found = costs(parse(compiled.as_text()), dict(mesh.shape), slices)
        unit, size = rate(config, spec)
        each = Budget(unit, size, budget or size * config.train.steps)
        report |= roofline(found, target, mesh, report["flops"], each)
    return report


def fitted(
    lowered: jax.stages.Lowered, memory: float, state: float
) -> tuple[jax.stages.Compiled | None, Report]:
    """The compiled step, or none if it does not fit; and what it needs of a device's memory.

    Args:
      lowered: the step.
      memory: bytes of a device.
      state: bytes of the train state on it.
    """
    try:
        compiled = lowered.compile()
    except Exception as e:
        needs = parse_oom_message(str(e), state, memory)
        if needs is None:
            raise
        peak, has = needs
        return None, {"peak": peak, "has": has, "fits": False, "over": max(peak - has, 1.0)}
    stats = compiled.memory_analysis()
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    peak = sum(found.values())
    over = max(peak - memory, 0.0)
    fits = {"peak": peak, "has": memory, "fits": not over, "over": over}
    return (compiled if not over else None), found | fits


def described(config: Config, spec: Spec) -> Report:
    """What was planned, for the table's head."""
    found = {
        "objective": config.raw["objective"]["name"],
        "model": config.raw["model"]["name"],
        "dtype": config.train.compute_dtype,
        "optimizer": {p or "all": o.name for p, o in config.optim.items()},
        "batch_size": config.data.batch_size,
        "accumulate": config.train.accumulate,
        "remat": getattr(config.model, "remat", None),
    }
    found |= MODALITIES[spec.modality].describe(spec)
    vocab_size = getattr(config.model, "vocab_size", 0)
    return found | ({"vocab_size": vocab_size} if vocab_size else {})


def rate(config: Config, spec: Spec) -> tuple[str, float]:
    """What a step is counted in, and how many of it there are in one."""
    modality = MODALITIES[spec.modality]
    return modality.unit, float(config.data.batch_size * modality.units_per_example(spec))


def _topology(target: Target, mesh: jax.sharding.Mesh) -> Report:
    return {
        "name": target.name,
        "device": target.devices[0].device_kind,
        "devices": len(target.devices),
        "chips": target.chips,
        "slices": len({getattr(d, "slice_index", 0) for d in target.devices}),
        "mesh": dict(mesh.shape),
        "peak_flops": target.sheet.flops,
        "bandwidth": target.sheet.bandwidth,
        "memory": target.sheet.memory,
        "figures": target.source,
    }
