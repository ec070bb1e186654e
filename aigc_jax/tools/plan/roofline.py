"""Roofline model of a step (Williams et al. 2009): compute, memory and network bounds.

The three are assumed to overlap perfectly, so the slowest bounds the step time from below.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from aigc_jax.tools.plan.costs import Collective, Costs
from aigc_jax.tools.plan.interconnect import Interconnect
from aigc_jax.tools.plan.target import Target

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """Training budget.

    Attributes:
      unit: "tokens", "images", ….
      step: units per step.
      total: units of the whole run.
    """

    unit: str
    step: float
    total: float


def roofline(
    costs: Costs, target: Target, mesh: Mesh, flops: Mapping[str, float], budget: Budget
) -> dict[str, Any]:
    """Lower bounds of the times of a step, the limiting resource, and the cost of the run.

    Args:
      costs: of the compiled step on one device.
      target: devices of the plan.
      mesh: of these devices.
      flops: of a step on all devices, by the model's definition (`model`) and traced (`computed`).
      budget: of the run.
    """
    sheet, devices = target.sheet, mesh.size
    network = Interconnect.of(list(mesh.devices.flat), sheet)
    # FLOPs of kernels and libraries are not in the program; the traced step counts them.
    each = max(costs.flops, flops["computed"] / devices)
    collectives = [_collective(c, network) for c in costs.collectives]
    times = {
        "compute": each / sheet.flops,
        "memory": costs.bytes / sheet.bandwidth,
        "network": sum(c["seconds"] for c in collectives),
    }
    bound = max(times, key=times.__getitem__)
    step = times[bound]
    steps = budget.total / budget.step
    used = mesh.size / len(target.devices) * target.chips
    return {
        "device": {
            "flops": each,
            "compiled_flops": costs.flops,
            "bytes": costs.bytes,
            "intensity": each / costs.bytes if costs.bytes else 0.0,
            "ridge": sheet.flops / sheet.bandwidth,
            "kernels": costs.kernels,
            "unbounded_loops": costs.unbounded_loops,
        },
        "collectives": collectives,
        "roofline": {
            **times,
            "step": step,
            "bound": bound,
            "serial": sum(times.values()),
        },
        "rate": {
            "unit": budget.unit,
            "per_step": budget.step,
            "per_second": budget.step / step,
            "per_second_per_chip": budget.step / step / used,
        },
        "mfu": flops["model"] / step / (sheet.flops * devices),
        "budget": {
            "unit": budget.unit,
            "total": budget.total,
            "steps": steps,
            "days": steps * step / DAY,
            "chip_hours": steps * step / 3600 * target.chips,
        },
    }


def _collective(c: Collective, network: Interconnect) -> dict[str, Any]:
    return {
        "kind": c.kind,
        "axes": list(c.axes),
        "devices": len(c.group),
        "bytes": c.bytes,
        "count": c.count,
        "seconds": network.seconds(c),
    }
