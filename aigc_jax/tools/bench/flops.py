"""FLOPs of matrix products and convolutions, counted in a jaxpr.

XLA's `cost_analysis` counts the body of a loop once and does not see into kernels; here a scan
counts once per iteration. A multiplication and an addition are two FLOPs.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from aigc_jax.core.capabilities import SupportsAttendedShare, SupportsRemat, UsesFirstStage
from aigc_jax.core.config import Config
from aigc_jax.core.modality import MODALITIES, Spec
from aigc_jax.experiment import build
from aigc_jax.ops import dispatch
from aigc_jax.training.step import example_keys, gradients, prepare_batch


@dataclasses.dataclass(frozen=True)
class FlopCount:
    """FLOPs of a function.

    Attributes:
      dense: of matrix products with weights, and of convolutions.
      attention: of matrix products between activations, recognised by their batch dimensions.
      unbounded_loops: number of loops of unknown length; their body counts once.
    """

    dense: float = 0.0
    attention: float = 0.0
    unbounded_loops: int = 0

    @property
    def total(self) -> float:
        return self.dense + self.attention

    def __add__(self, other: "FlopCount") -> "FlopCount":
        return FlopCount(
            self.dense + other.dense,
            self.attention + other.attention,
            self.unbounded_loops + other.unbounded_loops,
        )

    def __mul__(self, times: float) -> "FlopCount":
        return FlopCount(self.dense * times, self.attention * times, self.unbounded_loops)


def count(function: Callable[..., Any], *args: Any) -> FlopCount:
    """Counts the FLOPs of a call without running it; the arguments may be shapes."""
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> FlopCount:
    """Counts the FLOPs of a jaxpr and of the jaxprs in its equations."""
    total = FlopCount()
    for eqn in jaxpr.eqns:
        total += _of_equation(eqn)
    return total


def _of_equation(eqn: core.JaxprEqn) -> FlopCount:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return dot(eqn)
    if name == "conv_general_dilated":
        return FlopCount(convolution(eqn))
    if name.startswith("dot_product_attention"):
        return flash(eqn)
    inner = [count_jaxpr(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, key=lambda c: c.total)
    total = sum(inner, FlopCount())
    if name == "while":
        return total + FlopCount(unbounded_loops=1) if total.total else total
    return total * _repetitions(name, params)


def _repetitions(name: str, params: dict[str, Any]) -> int:
    """Number of times that the jaxpr inside an equation runs."""
    if name == "scan":
        return params["length"]
    if name == "xla_pmap":
        return params["axis_size"]
    if name == "shard_map":  # the inner jaxpr is one device's share
        return params["mesh"].size
    if name == "pallas_call":  # the inner jaxpr is one cell of the grid
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return 1


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _shape(atom: core.Var | core.Literal) -> tuple[int, ...]:
    return cast(jax.ShapeDtypeStruct, atom.aval).shape


def dot(eqn: core.JaxprEqn) -> FlopCount:
    """Returns 2 · (batch) · (rows) · (columns) · (terms of each sum)."""
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    terms = math.prod(_shape(eqn.invars[0])[i] for i in contracted)
    flops = 2.0 * math.prod(_shape(eqn.outvars[0])) * terms
    return FlopCount(attention=flops) if batch else FlopCount(dense=flops)


def convolution(eqn: core.JaxprEqn) -> float:
    """Returns 2 · (outputs) · (input channels of each) · (kernel taps of each that meet an input).

    Taps on padding, or on the zeros between the inputs of a transposed convolution, do not count.
    """
    x, kernel = (_shape(v) for v in eqn.invars)
    out, p = _shape(eqn.outvars[0]), eqn.params
    lhs, rhs, result = p["dimension_numbers"]
    taps = 1
    for i, (xd, kd, od) in enumerate(zip(lhs[2:], rhs[2:], result[2:], strict=True)):
        at = np.arange(out[od])[:, None] * p["window_strides"][i] - p["padding"][i][0]
        at = at + np.arange(kernel[kd]) * p["rhs_dilation"][i]
        holes = p["lhs_dilation"][i]
        taps *= int(((at >= 0) & (at <= (x[xd] - 1) * holes) & (at % holes == 0)).sum())
    return 2.0 * out[result[0]] * out[result[1]] * kernel[rhs[1]] * taps


def flash(eqn: core.JaxprEqn) -> FlopCount:
    """FLOPs of cuDNN's attention: two products forwards; four backwards, and one recomputed."""
    b, t, h, d = _shape(eqn.invars[0])
    s = _shape(eqn.invars[1])[1]
    products = 5 if "bwd" in eqn.primitive.name else 2
    return FlopCount(attention=2.0 * products * b * t * s * h * d)


def model_flops(config: Config, spec: Spec) -> float:
    """FLOPs of a step by the definition of the model, as MFU counts them.

    Losses and gradients of all turns, without the optimizer, without recomputation (remat), and of
    attention only the pairs of tokens that are not masked.
    """
    if isinstance(config.model, SupportsRemat):
        model: Any = config.model
        plain = dataclasses.replace(model, remat="none")
        config = dataclasses.replace(config, model=plain)
    objective = build.make_objective(config, spec)
    batch = spec.example_batch(config.data.batch_size)
    made = jax.eval_shape(objective.init, jax.random.key(0), spec.example_batch(2))
    params, mutables = nn.unbox(made)
    model_spec = objective.latent_spec if isinstance(objective, UsesFirstStage) else spec
    length = MODALITIES[model_spec.modality].units_per_example(model_spec)
    masked = isinstance(config.model, SupportsAttendedShare)
    attended = config.model.attended_share(length) if masked else 1.0

    def prepared(params: Any, mutables: Any, batch: Any) -> Any:
        return prepare_batch(objective, params, mutables, batch, jax.random.key(0), jnp.int32(0))

    with dispatch.all_reference():  # other implementations may compute more, or in kernels
        frozen = count(prepared, params, mutables, batch)
    batch = jax.eval_shape(prepared, params, mutables, batch)
    total = frozen.dense + frozen.attention
    for player in objective.turns:

        def turn(params: Any, mutables: Any, batch: Any, player: str = player) -> Any:
            key_B = example_keys(jax.random.key(0), config.data.batch_size, None)
            return gradients(
                objective, player, params, mutables, batch, key_B, jnp.int32(0), 1, None
            )

        with dispatch.all_reference():
            found = count(turn, params, mutables, batch)
        total += found.dense + found.attention * attended
    return total
