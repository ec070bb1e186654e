"""The plan of one config on one topology: compiles its step and estimates memory and time."""

import time
from collections.abc import Mapping
from typing import Any

import jax

from aigc_jax.core.capabilities import HasVocabulary, SupportsRemat
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
from aigc_jax.tools.chips import slice_index
from aigc_jax.tools.plan import topology
from aigc_jax.tools.plan.costs import costs
from aigc_jax.tools.plan.hlo import parse_hlo
from aigc_jax.tools.plan.oom_messages import parse_oom_message
from aigc_jax.tools.plan.roofline import Budget, roofline
from aigc_jax.tools.plan.target import Target
from aigc_jax.training.oom import tree_bytes

Plan = dict[str, Any]


def resolve_inputs(config: Config, shape: str = "") -> tuple[Config, Spec]:
    """Resolves the sizes of a config, and the spec of its data.

    The spec comes from `shape`, from the config alone if that is enough (text), or from the data.

    Args:
      config: of a run.
      shape: as `modalities.synthetic_spec` takes it; "": the config's own data.

    Raises:
      UserError: if nothing determines the spec.
    """
    tasks = FAMILIES[config.raw["objective"]["name"]].tasks
    if shape:
        config = without_first_stage(config)
        spec: Spec | None = synthetic_spec(shape, config)
    else:
        spec = None if config.first_stage.given else spec_from_config(config, tasks)
    if spec is not None:
        return resolve_sizes(config), spec
    try:
        spec = sources.load_source(config.data).spec
        config = resolve_first_stage(config, spec)
    except UserError as e:
        raise UserError(
            f"{e} (a plan needs only the shape of the data: --synthetic=32x32x3:10, or text:9)"
        ) from e
    return config, spec


def resolve_sizes(config: Config) -> Config:
    """Fills in all sizes of the config that are otherwise taken from the data."""
    for modality in MODALITIES.values():
        config = modality.resolve(config)
    return config


def with_changes(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns the config with some fields replaced, such as `{"model.remat": "full"}`."""
    raw = {k: dict(v) if isinstance(v, Mapping) else v for k, v in config.raw.items()}
    for name, value in changes.items():
        section, _, field = name.partition(".")
        if field:
            raw[section][field] = value
        else:
            raw[section] = value
    return build.parse_config(raw)


def state_bytes(config: Config, spec: Spec, target: Target) -> int:
    """Bytes of the train state on one device, computed without compiling.

    Raises:
      UserError: if the config does not fit the data or the mesh.
    """
    run = build.build(config, spec, make_mesh(config.mesh, target.devices))
    return tree_bytes(per_device(run.state_shapes(), run.shardings))


def make_plan(config: Config, spec: Spec, target: Target, budget: float = 0.0) -> Plan:
    """Plans a config on a target; returns plain values in bytes, seconds and FLOP/s.

    Args:
      config: of the run.
      spec: of its data.
      target: devices to plan for.
      budget: tokens or images of the whole training; 0: those of the config.

    Raises:
      UserError: if the config does not fit the data or the mesh.
    """
    mesh = make_mesh(config.mesh, target.devices)
    with topology.tracing_for(target.devices):
        run = build.build(config, spec, mesh)
        shapes, batch = run.state_shapes(), spec.example_batch(config.data.batch_size)
        report = {
            "config": describe_config(config, spec),
            "topology": _topology(target, mesh),
            "parameters": sum(x.size for x in jax.tree.leaves(shapes.params)),
            "state": tree_bytes(per_device(shapes, run.shardings)),
        }
        began = time.perf_counter()
        lowered = run.step.lower(shapes, batch)
        compiled, report["memory"] = compile_step(lowered, target.sheet.memory, report["state"])
        report["compile_seconds"] = time.perf_counter() - began
        report["flops"] = {
            "model": flops.model_flops(config, spec),
            "computed": flops.count(run.step, shapes, batch).total,
        }
    if compiled is not None:
        slices = [slice_index(d) for d in mesh.devices.flat]
        found = costs(parse_hlo(compiled.as_text() or ""), dict(mesh.shape), slices)
        unit, size = units_per_step(config, spec)
        each = Budget(unit, size, budget or size * config.train.steps)
        report |= roofline(found, target, mesh, report["flops"], each)
    return report


def compile_step(
    lowered: jax.stages.Lowered, memory: float, state: float
) -> tuple[jax.stages.Compiled | None, Plan]:
    """Compiles a step and returns it with its memory on a device; None if it does not fit.

    Args:
      lowered: the lowered step.
      memory: bytes of a device.
      state: bytes of the train state on a device.
    """
    try:
        compiled = lowered.compile()
    except Exception as e:
        needs = parse_oom_message(str(e), state, memory)
        if needs is None:
            raise
        peak, has = needs
        return None, {"peak": peak, "capacity": has, "fits": False, "excess": max(peak - has, 1.0)}
    stats = compiled.memory_analysis()
    assert stats is not None  # only runtimes of plugins lack it
    found = {
        "arguments": stats.argument_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    peak = sum(found.values())
    over = max(peak - memory, 0.0)
    fits = {"peak": peak, "capacity": memory, "fits": not over, "excess": over}
    return (compiled if not over else None), found | fits


def describe_config(config: Config, spec: Spec) -> Plan:
    """The planned config, for the head of the table."""
    found = {
        "objective": config.raw["objective"]["name"],
        "model": config.raw["model"]["name"],
        "dtype": config.train.compute_dtype,
        "optimizer": {p or "all": o.name for p, o in config.optim.items()},
        "batch_size": config.data.batch_size,
        "accumulate": config.train.accumulate,
        "remat": config.model.remat if isinstance(config.model, SupportsRemat) else None,
    }
    found |= MODALITIES[spec.modality].describe(spec)
    if isinstance(config.model, HasVocabulary) and config.model.vocab_size:
        found["vocab_size"] = config.model.vocab_size
    return found


def units_per_step(config: Config, spec: Spec) -> tuple[str, float]:
    """Unit of the data's modality, and the number of units in a step."""
    modality = MODALITIES[spec.modality]
    return modality.unit, float(config.data.batch_size * modality.units_per_example(spec))


def _topology(target: Target, mesh: jax.sharding.Mesh) -> Plan:
    return {
        "name": target.name,
        "device": target.devices[0].device_kind,
        "devices": len(target.devices),
        "chips": target.chips,
        "slices": len({slice_index(d) for d in target.devices}),
        "mesh": dict(mesh.shape),
        "peak_flops": target.sheet.flops,
        "bandwidth": target.sheet.bandwidth,
        "memory": target.sheet.memory,
        "figures": target.source,
    }
