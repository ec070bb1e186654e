"""Draws as many samples as asked for, in batches of one size."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax.core.capabilities import SupportsText
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
    """The request for `num` samples.

    Args:
      objective: the family.
      options: its sampling options.
      num: N.
      conditions: by name, a value for each sample; the others are those that the options ask for,
        or the default of the condition, such as all classes in turn.
      init: what to begin with, by name, with any number of rows, which are taken in turn; text
        families begin with the prompts of the options if it is left out.
      token_callback: sees tokens while they are drawn.
      guidance_model: another model that guides this one.

    Raises:
      UserError: for a class that the model does not know.
    """
    asked, given = dataclasses.asdict(options), dict(conditions or {})
    if options.label >= 0 and LABEL not in objective.conditions:
        raise UserError(f"this model cannot draw class {options.label}: it has no classes")
    for name, spec in objective.conditions.items():
        if name not in given:
            given[name] = spec.values(asked.get(name), num)
    if init is None:
        prompts = isinstance(objective, SupportsText)
        init = objective.encode_prompts(options.prompts, options) if prompts else {}
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
    """N samples: uint8 images (N, H, W, C) or tokens (N, T).

    Sample n depends on the seed and on n only, not on how many are drawn. (Matrix products may
    round differently in batches of different size: equal up to that.)

    Args:
      objective: the family.
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      request: what to draw, from `make_request`. Its token callback is copied for each of several
        batches.
      seed: of the random keys.
      batch_size: samples drawn at once.
    """
    num = len(request)
    size = min(num, batch_size)
    single = num <= size
    parts = []
    looks = dict(desc="sampling", unit="batch", leave=False, disable=single)
    for row_R, real_R in tqdm(padded_indices(num, size), total=-(-num // size), **looks):
        own = request.rows(row_R)
        if not single:  # each batch has a callback that knows nothing of the rows before
            own = dataclasses.replace(own, token_callback=copy.copy(request.token_callback))
        key_N = numbered_keys(jax.random.key(seed), row_R)
        parts.append(np.asarray(objective.sample(params, mutables, key_N, own))[real_R])
    return np.concatenate(parts)


def check_sampling(objective: Objective, params: Any, mutables: Any, options: Sample) -> None:
    """Traces one sample, so that impossible options are reported before hours of training.

    Raises:
      UserError: for such options.
    """
    request = make_request(objective, options, 1)
    key_N = numbered_keys(jax.random.key(0), np.arange(1))
    jax.eval_shape(lambda p, m: objective.sample(p, m, key_N, request), params, mutables)
