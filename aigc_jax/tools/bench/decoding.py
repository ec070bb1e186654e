"""How fast a language model writes, and how much memory it reads for that."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsTextGeneration
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.experiment.build import Run
from aigc_jax.inference.engine import decode
from aigc_jax.ops.random import numbered_keys
from aigc_jax.tools.bench.timing import Times, repeated

BATCHES = (1, 8)
NEW_TOKENS = 128


def can_decode(run: Run) -> bool:
    """Whether samples are drawn token by token through a cache."""
    return isinstance(run.objective, SupportsTextGeneration)


def decoding(run: Run, state: TrainState, batch: int, times: int = 5) -> dict[str, Any]:
    """Tokens per second of a batch of texts, and the bytes that each step of them has to read.

    Args:
      run: a language model's.
      state: its parameters; what they are does not matter, as no token ends a text.
      batch: texts at once.
      times: how often.
    """
    model = run.objective.network
    new = min(NEW_TOKENS, max(model.context - 1, 1))
    variables = run.objective.variables(state.sampling_params)
    key_N = numbered_keys(jax.random.key(0), np.arange(batch))
    prompts = np.zeros((batch, 1), np.int32), np.ones(batch, np.int32)
    taken: Times = repeated(
        lambda: decode(model, variables, key_N, *prompts, max_new_tokens=new), times=times
    )
    step = taken.median / new
    read = step_bytes(run, variables, batch, new)
    return {
        "batch": batch,
        "new_tokens": new,
        "tokens_per_second": batch / step,
        "seconds_per_step": step,
        "spread": taken.spread,
        "bytes_per_step": read,
        "bytes_per_second": read / step,
    }


def step_bytes(run: Run, variables: Any, batch: int, new: int) -> float:
    """The least that a step for one token of each text reads.

    Every parameter once, in the type that is computed in, and of the cache what has been written on
    average. Of a table that is looked up only, rows are read: it does not count, unless the logits
    are made with it.
    """
    model, config = run.objective.network, run.config.model
    size = jnp.dtype(run.config.train.compute_dtype).itemsize
    looked_up = {"position_embedding", "type_embedding"}
    if not getattr(config, "tie_embeddings", False):
        looked_up.add("token_embedding")
    weights = sum(
        x.size for name, x in named_leaves(variables) if not looked_up & {*name.split("/")}
    )
    cache = jax.eval_shape(lambda: model.init_cache(batch, new))
    held = {k: x for k, x in cache.items() if k in ("k", "v")} if isinstance(cache, dict) else {}
    half = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held)) / 2
    whole = 0 if held else sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    return weights * size + half + whole
