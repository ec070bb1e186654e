"""As many samples as asked for, in batches of one size."""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from aigc_jax.core.errors import UserError
from aigc_jax.core.objective import Objective, Request
from aigc_jax.inference.engine import Watch
from aigc_jax.ops.random import numbered_keys


def generate(
    objective: Objective,
    params: Any,
    mutables: Any,
    options: Any,
    num: int,
    seed: int = 0,
    *,
    label_N: np.ndarray | None = None,
    prompts: Sequence[np.ndarray] | None = None,
    watch: Watch | None = None,
    image_NHWC: np.ndarray | None = None,
    mask_NHW: np.ndarray | None = None,
    guide: Any = None,
    batch_size: int = 256,
) -> np.ndarray:
    """N samples: uint8 images (N, H, W, C) or tokens (N, T).

    Sample n depends on the seed and on n only, not on how many are drawn. (Matrix products may
    round differently in batches of different size: equal up to that.)

    Args:
      objective: the family.
      params: `{player: parameters}`.
      mutables: `{player: mutables}`.
      options: the family's sampling options.
      num: N.
      seed: of the random keys.
      label_N: a class for each sample; none: `options.label`, or all classes in turn.
      prompts: tokens for each sample to continue; none: those of the options.
      watch: looks at what is drawn while it is drawn; a copy of it at each of several batches.
      image_NHWC: an image for each sample to begin with.
      mask_NHW: where each of them is to be drawn anew.
      guide: another model that guides this one.
      batch_size: samples drawn at once.

    Raises:
      UserError: for a class that the model does not know.
    """
    label_N = _labels(objective.num_classes, options, num, label_N)
    size = min(num, batch_size)
    parts = []
    few = num <= size
    bar = tqdm(range(0, num, size), desc="sampling", unit="batch", leave=False, disable=few)
    for first in bar:
        index = np.arange(first, first + size)  # the last batch is filled up and cut
        key_N = numbered_keys(jax.random.key(seed), index)
        label = None if label_N is None else jnp.asarray(label_N[index % num], jnp.int32)
        # Each batch has a watch of its own, which knows nothing of the rows before.
        own = watch if few else copy.copy(watch)
        image, mask = (a if a is None else a[index % num] for a in (image_NHWC, mask_NHW))
        request = Request(options, label, index % num, prompts, own, image, mask, guide)
        samples = objective.sample(params, mutables, key_N, request)
        parts.append(np.asarray(samples))
    return np.concatenate(parts)[:num]


def check_sampling(objective: Objective, params: Any, mutables: Any, options: Any) -> None:
    """Traces one sample, so that options that cannot be met are known before hours of training.

    Raises:
      UserError: for such options.
    """
    label_N = _labels(objective.num_classes, options, 1, None)
    label_N = None if label_N is None else jnp.asarray(label_N, jnp.int32)
    key_N = numbered_keys(jax.random.key(0), np.arange(1))
    request = Request(options, label_N)
    jax.eval_shape(lambda p, m: objective.sample(p, m, key_N, request), params, mutables)


def _labels(
    num_classes: int, options: Any, num: int, label_N: np.ndarray | None
) -> np.ndarray | None:
    label = getattr(options, "label", -1)
    if label >= num_classes and label >= 0:
        known = f"its classes are 0 to {num_classes - 1}" if num_classes else "it has no classes"
        raise UserError(f"this model cannot draw class {label}: {known}")
    if not num_classes:
        return None
    if label_N is not None:
        return label_N
    return np.full(num, label) if label >= 0 else np.arange(num) % num_classes
