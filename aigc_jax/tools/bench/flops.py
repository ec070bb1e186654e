"""FLOPs by formula: matrix products and convolutions, counted from a jaxpr.

XLA's `cost_analysis` takes the body of a loop once, however often it runs, and does not see into
kernels; here a scan counts as often as it turns. Two FLOPs are a multiplication and an addition.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from aigc_jax.core.capabilities import UsesFirstStage
from aigc_jax.core.config import Config
from aigc_jax.core.modality import MODALITIES, Spec
from aigc_jax.experiment import build
from aigc_jax.ops import dispatch
from aigc_jax.training.step import example_keys, gradients, prepare


@dataclasses.dataclass(frozen=True)
class Count:
    """FLOPs of a function.

    Attributes:
      products: of matrix products with weights, and of convolutions.
      pairs: of matrix products between activations, as in attention. They are told by their batch
        dimensions: each example has matrices of its own.
      endless: loops whose number of turns is not known; each counts once.
    """

    products: float = 0.0
    pairs: float = 0.0
    endless: int = 0

    @property
    def total(self) -> float:
        return self.products + self.pairs

    def __add__(self, other: "Count") -> "Count":
        return Count(
            self.products + other.products, self.pairs + other.pairs, self.endless + other.endless
        )

    def __mul__(self, times: float) -> "Count":
        return Count(self.products * times, self.pairs * times, self.endless)


def count(function: Callable[..., Any], *args: Any) -> Count:
    """What a call costs; the arguments may be shapes. Nothing is computed."""
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> Count:
    """The FLOPs of a jaxpr and of all within it."""
    total = Count()
    for eqn in jaxpr.eqns:
        total += _of_equation(eqn)
    return total


def _of_equation(eqn: core.JaxprEqn) -> Count:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return dot(eqn)
    if name == "conv_general_dilated":
        return Count(convolution(eqn))
    if name.startswith("dot_product_attention"):
        return flash(eqn)
    inner = [count_jaxpr(jaxpr) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner, key=lambda c: c.total)
    total = sum(inner, Count())
    if name == "while":
        return total + Count(endless=1) if total.total else total
    return total * _turns(name, params)


def _turns(name: str, params: dict[str, Any]) -> int:
    """How often what is inside an equation runs."""
    if name == "scan":
        return params["length"]
    if name == "xla_pmap":
        return params["axis_size"]
    if name == "shard_map":  # inside stands one device's share
        return params["mesh"].size
    if name == "pallas_call":  # … one place's of the grid
        return math.prod(n for n in params["grid_mapping"].grid if isinstance(n, int))
    return 1


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def dot(eqn: core.JaxprEqn) -> Count:
    """2 · (batch) · (rows) · (columns) · (terms of each sum)."""
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    terms = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
    flops = 2.0 * math.prod(eqn.outvars[0].aval.shape) * terms
    return Count(pairs=flops) if batch else Count(products=flops)


def convolution(eqn: core.JaxprEqn) -> float:
    """2 · (outputs) · (input channels of each) · (taps of each that meet an input).

    Taps that meet padding, or the zeros between the inputs of a strided transposed convolution,
    are no work.
    """
    x, kernel = (v.aval.shape for v in eqn.invars)
    out, p = eqn.outvars[0].aval.shape, eqn.params
    lhs, rhs, result = p["dimension_numbers"]
    taps = 1
    for i, (xd, kd, od) in enumerate(zip(lhs[2:], rhs[2:], result[2:], strict=True)):
        at = np.arange(out[od])[:, None] * p["window_strides"][i] - p["padding"][i][0]
        at = at + np.arange(kernel[kd]) * p["rhs_dilation"][i]
        holes = p["lhs_dilation"][i]
        taps *= int(((at >= 0) & (at <= (x[xd] - 1) * holes) & (at % holes == 0)).sum())
    return 2.0 * out[result[0]] * out[result[1]] * kernel[rhs[1]] * taps


def flash(eqn: core.JaxprEqn) -> Count:
    """cuDNN's attention: two products forwards; backwards four, and one that is done again."""
    b, t, h, d = eqn.invars[0].aval.shape
    s = eqn.invars[1].aval.shape[1]
    products = 5 if "bwd" in eqn.primitive.name else 2
    return Count(pairs=2.0 * products * b * t * s * h * d)


def model_flops(config: Config, spec: Spec) -> float:
    """What one step needs by the definition of the model, however it is computed.

    Losses and gradients of all turns: without the optimizer, without what remat computes again, and
    of attention only the pairs of tokens that see each other. This is what MFU counts.
    """
    if hasattr(config.model, "remat"):
        plain = dataclasses.replace(config.model, remat="none")
        config = dataclasses.replace(config, model=plain)
    objective = build.make_objective(config, spec)
    batch = spec.example_batch(config.data.batch_size)
    made = jax.eval_shape(objective.init, jax.random.key(0), spec.example_batch(2))
    params, mutables = nn.unbox(made)
    model_spec = objective.latent_spec if isinstance(objective, UsesFirstStage) else spec
    seen = getattr(config.model, "attended_share", lambda length: 1.0)
    length = MODALITIES[model_spec.modality].units_per_example(model_spec)

    def prepared(params: Any, mutables: Any, batch: Any) -> Any:
        return prepare(objective, params, mutables, batch, jax.random.key(0), jnp.int32(0))

    with dispatch.all_reference():  # other forms may compute more, or in kernels
        frozen = count(prepared, params, mutables, batch)
    batch = jax.eval_shape(prepared, params, mutables, batch)
    total = frozen.products + frozen.pairs
    for player in objective.turns:

        def turn(params: Any, mutables: Any, batch: Any, player: str = player) -> Any:
            key_B = example_keys(jax.random.key(0), config.data.batch_size, None)
            return gradients(
                objective, player, params, mutables, batch, key_B, jnp.int32(0), 1, None
            )

        with dispatch.all_reference():
            found = count(turn, params, mutables, batch)
        total += found.products + found.pairs * seen(length)
    return total
