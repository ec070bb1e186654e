"""Speed of decoding: tokens per second, and the lower bound of their memory traffic."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsTextGeneration
from aigc_jax.core.state import TrainState
from aigc_jax.experiment.build import Run
from aigc_jax.ops.random import numbered_keys
from aigc_jax.tools.bench.timing import Times, repeated

BATCHES = (1, 8)
NEW_TOKENS = 128


def can_decode(run: Run) -> bool:
    """True if the objective generates text token by token."""
    return isinstance(run.objective, SupportsTextGeneration)


def decoding(run: Run, state: TrainState, batch: int, times: int = 5) -> dict[str, Any]:
    """Measures tokens per second, and the bytes that each step must read.

    Args:
      run: for which `can_decode` holds.
      state: its state; the parameters' values do not matter, because no token ends a text.
      batch: number of texts.
      times: repetitions.
    """
    objective, params = run.objective, state.sampling_params
    assert isinstance(objective, SupportsTextGeneration)
    new = min(NEW_TOKENS, max(objective.context - 1, 1))
    key_N = numbered_keys(jax.random.key(0), jnp.arange(batch))
    prompts = np.zeros((batch, 1), np.int32), np.ones(batch, np.int32)

    def write() -> jax.Array:
        engine = objective.engine(params, batch, 1 + new, new, stops=())
        prefix = engine.prefill(*prompts)
        state = engine.insert(prefix, None, np.arange(batch), key=key_N, max_new_tokens=new)
        return engine.advance(state, new).token_NT

    taken: Times = repeated(write, times=times)
    step = taken.median / new
    read = objective.decoding_bytes(params, batch, new)
    return {
        "batch": batch,
        "new_tokens": new,
        "tokens_per_second": batch / step,
        "seconds_per_step": step,
        "spread": taken.spread,
        "bytes_per_step": read,
        "bytes_per_second": read / step,
    }
