"""Draws samples in batches of a fixed size."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from aigc_jax.core.capabilities import HasPrompts, SupportsText
from aigc_jax.core.conditions import LABEL, Condition
from aigc_jax.core.config import Sample
from aigc_jax.core.errors import UserError
from aigc_jax.core.objective import Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest, TokenCallback
from aigc_jax.data.fixed_batches import padded_indices
from aigc_jax.ops.random import numbered_keys


def make_request(
    objective: Objective,
    options: Sample,
    num: int,
    *,
    conditions: Mapping[str, np.ndarray] | None = None,
    init: Mapping[str, np.ndarray] | None = None,
    token_callback: TokenCallback | None = None,
    guidance_model: Any = None,
) -> SampleRequest:
    """Builds the request for `num` samples.

    Args:
      objective: the family's objective.
      options: its sampling options.
      num: number of samples, N.
      conditions: values (N, …) by name. Other conditions follow the options, or the condition's
        default, such as all classes in turn.
      init: initial values by name, with any number of rows, which are repeated in turn; defaults
        to the prompts of the options for text families.
      token_callback: receives tokens while they are generated.
      guidance_model: weaker model for autoguidance.

    Raises:
      UserError: for a class that the model does not have.
    """
    asked, given = dataclasses.asdict(options), dict(conditions or {})
    if options.label >= 0 and LABEL not in objective.conditions:
        raise UserError(f"sample.label={options.label}: this model has no classes; set it to -1")
    for name, spec in objective.conditions.items():
        if name not in given:
            given[name] = spec.values(asked.get(name), num)
    if init is None:
        init = {}
        if isinstance(objective, SupportsText) and isinstance(options, HasPrompts):
            init = objective.encode_prompts(options.prompts, options)
    index_N = np.arange(num)
    return SampleRequest(
        options=options,
        index_N=index_N,
        conditions={name: Condition.of(value) for name, value in given.items()},
        init={name: rows[index_N % len(rows)] for name, rows in init.items()},
        token_callback=token_callback,
        guidance_model=guidance_model,
    )


def generate(
    objective: Objective,
    params: Params,
    mutables: Mutables,
    request: SampleRequest,
    seed: int = 0,
    batch_size: int = 256,
) -> np.ndarray:
    """Draws N samples: uint8 images (N, H, W, C) or tokens (N, T).

    Sample n depends on the seed and on n only, not on N, up to the rounding of matrix products in
    batches of different sizes.

    Args:
      objective: the family's objective.
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      request: from `make_request`. Its token callback is copied for each of several batches.
      seed: random seed.
      batch_size: samples per batch.
    """
    num = len(request)
    size = min(num, batch_size)
    single = num <= size
    parts = []
    looks = dict(desc="sampling", unit="batch", leave=False, disable=single)
    for row_R, real_R in tqdm(padded_indices(num, size), total=-(-num // size), **looks):
        own = request.rows(row_R)
        if not single:  # each batch needs a callback with a fresh state
            own = dataclasses.replace(own, token_callback=copy.copy(request.token_callback))
        key_N = numbered_keys(jax.random.key(seed), row_R)
        parts.append(np.asarray(objective.sample(params, mutables, key_N, own))[real_R])
    return np.concatenate(parts)


def check_sampling(
    objective: Objective, params: Params, mutables: Mutables, options: Sample
) -> None:
    """Traces sampling abstractly, so that invalid options are reported before training.

    Raises:
      UserError: if the options are invalid.
    """
    request = make_request(objective, options, 1)
    key_N = numbered_keys(jax.random.key(0), jnp.arange(1))
    jax.eval_shape(lambda p, m: objective.sample(p, m, key_N, request), params, mutables)
