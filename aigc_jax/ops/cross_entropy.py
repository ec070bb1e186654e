"""Cross-entropy over a vocabulary, computed in chunks to bound the memory of logits.

Shapes: B batch, T tokens, W width, V vocabulary.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import num_shards
from aigc_jax.ops import dispatch

# Maximum float32 logits in a device's memory. 64 MiB are fastest on a CPU. Elsewhere 512 MiB: where
# the output matrix is sharded, each chunk gathers it again.
LOGITS = {"small_chunks": 1 << 24, "reference": 1 << 27}


@flax.struct.dataclass
class TokenLosses:
    """Losses and statistics per token, each (B, T) float32.

    Attributes:
      nats: −log p(target).
      log_z: log Σ exp(logits), for the z-loss.
      smooth: mean of −log p over the vocabulary, for label smoothing.
      correct: whether the target is the most likely token.
    """

    nats: jax.Array
    log_z: jax.Array
    smooth: jax.Array
    correct: jax.Array


def cross_entropy(
    head: Callable[[jax.Array], jax.Array],
    x_BTW: jax.Array,
    target_BT: jax.Array,
    vocab_size: int,
    limit: int = 0,
) -> TokenLosses:
    """Computes the exact losses of the targets, one chunk of the sequence at a time.

    The logits of a chunk are recomputed in the backward pass. Chunks span the batch and have tokens
    from all over the sequence, so that both axes stay sharded.

    Args:
      head: maps (B, t, W) to logits (B, t, V).
      x_BTW: inputs of the head.
      target_BT: int32 tokens.
      vocab_size: V.
      limit: maximum logits in a device's memory; 0 for the platform's default.
    """
    limit = limit or LOGITS[dispatch.implementation("cross_entropy")]
    b, t = target_BT.shape
    pieces = min(-(-b * t * vocab_size // (limit * num_shards("batch", "length", "vocab"))), t)

    def likelihood(x: jax.Array, target: jax.Array) -> TokenLosses:
        logits = head(x).astype(jnp.float32)
        log_z = jax.nn.logsumexp(logits, -1)
        picked = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        correct = (logits.argmax(-1) == target).astype(jnp.float32)
        return TokenLosses(log_z - picked, log_z, log_z - logits.mean(-1), correct)

    if pieces <= 1:
        return likelihood(x_BTW, target_BT)
    size = -(-t // pieces)
    padding = size * pieces - t

    def cut(x: jax.Array) -> jax.Array:  # (B, T, …) → (pieces, B, size, …)
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, size, pieces, *x.shape[2:]), 2, 0)

    def body(_, piece):
        return None, jax.checkpoint(likelihood)(*piece)

    _, out = jax.lax.scan(body, None, (cut(x_BTW), cut(target_BT)))
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2).reshape(b, -1)[:, :t], out)
