"""How fast a step can be at most: by its FLOPs, its memory, its network (Williams et al. 2009).

The three are taken to overlap perfectly, so that the slowest of them is the step. No run is faster.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from aigc_jax.tools.plan.costs import Collective, Costs
from aigc_jax.tools.plan.interconnect import Network

DAY = 86_400.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a run is to learn from.

    Attributes:
      unit: "tokens" or "images".
      step: of a step.
      total: of the run.
    """

    unit: str
    step: float
    total: float


def roofline(
    costs: Costs, target: Any, mesh: Mesh, flops: Mapping[str, float], budget: Budget
) -> dict[str, Any]:
    """Times, what bounds them, and what follows for a run.

    Args:
      costs: of the compiled step on one device.
      target: a `plan.Target`.
      mesh: the devices, arranged.
      flops: of a step by the model's definition (`model`) and as traced (`computed`), all devices.
      budget: of the run.
    """
    sheet, devices = target.sheet, mesh.size
    network = Network.of(list(mesh.devices.flat), sheet)
    # Kernels and libraries hide their FLOPs; the traced step has at least its even share of them.
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
            "endless_loops": costs.endless,
        },
        "collectives": collectives,
        "roofline": {
            **times,
            "step": step,
            "bound": bound,
            "one_after_the_other": sum(times.values()),
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


def _collective(c: Collective, network: Network) -> dict[str, Any]:
    return {
        "kind": c.kind,
        "axes": list(c.axes),
        "devices": len(c.group),
        "bytes": c.bytes,
        "count": c.count,
        "seconds": network.seconds(c),
    }
