"""Cross-entropy over a vocabulary without materialising all logits of a batch.

Shapes: B batch, T tokens, W width, V vocabulary.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from aigc_jax.distributed.logical_axes import num_shards
from aigc_jax.ops import dispatch

# Most float32 logits in a device's memory at once. 64 MiB are fastest on a CPU. Elsewhere 512 MiB:
# where the vocabulary's matrix is sharded, every chunk gathers it again.
LOGITS = {"small_chunks": 1 << 24, "reference": 1 << 27}


@flax.struct.dataclass
class TokenLosses:
    """Per-token losses and accuracy; each (B, T) float32.

    Attributes:
      nats: −log p(target).
      log_z: log Σ exp(logits), for the z-loss.
      smooth: the mean of −log p over the vocabulary, for label smoothing.
      correct: 1 where the target is the most likely token, else 0.
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
    """Computes exact losses of the targets, a chunk of the sequence at a time.

    The logits of a chunk are recomputed in the backward pass. The batch is not split, and a chunk
    has tokens from all over the sequence, so that the sharding of both is kept.

    Args:
      head: (B, t, W) → logits (B, t, V).
      x_BTW: input of the head.
      target_BT: int32 tokens.
      vocab_size: V.
      limit: most logits in a device's memory at once; 0: by platform.
    """
    limit = limit or LOGITS[dispatch.implementation("cross_entropy")]
    b, t = target_BT.shape
    chunks = min(-(-b * t * vocab_size // (limit * num_shards("batch", "length", "vocab"))), t)

    def losses(x: jax.Array, target: jax.Array) -> TokenLosses:
        logits = head(x).astype(jnp.float32)
        log_z = jax.nn.logsumexp(logits, -1)
        picked = jnp.take_along_axis(logits, target[..., None], -1)[..., 0]
        correct = (logits.argmax(-1) == target).astype(jnp.float32)
        return TokenLosses(log_z - picked, log_z, log_z - logits.mean(-1), correct)

    if chunks <= 1:
        return losses(x_BTW, target_BT)
    size = -(-t // chunks)
    padding = size * chunks - t

    def split(x: jax.Array) -> jax.Array:  # (B, T, …) → (chunks, B, size, …)
        x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, size, chunks, *x.shape[2:]), 2, 0)

    def body(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, TokenLosses]:
        return None, jax.checkpoint(losses)(*chunk)

    _, out = jax.lax.scan(body, None, (split(x_BTW), split(target_BT)))
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, 2).reshape(b, -1)[:, :t], out)
