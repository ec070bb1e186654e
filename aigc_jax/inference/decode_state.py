"""State of the decoding engine: prompts that have been read, and slots that are being written.

Shapes: N slots, R requests to insert, T new tokens that a slot holds, V vocabulary.
"""

import flax.struct
import jax

from aigc_jax.inference.decoder_network import Cache
from aigc_jax.inference.sampling_params import SamplingParams


@flax.struct.dataclass
class Prefix:
    """Prompts that the network has read, for `Engine.insert`.

    Attributes:
      cache: of R rows and P tokens.
      logits_RV: of the first new token.
      seen_RV: tokens that are in a prompt.
      length_R: int32 tokens of each prompt.
    """

    cache: Cache
    logits_RV: jax.Array
    seen_RV: jax.Array
    length_R: jax.Array


@flax.struct.dataclass
class DecodeState:
    """N slots while they are being written.

    Attributes:
      position_N: int32 position of the next token.
      count_N: int32 new tokens so far.
      limit_N: int32 new tokens at which a row ends.
      done_N: rows that have ended, and free slots.
      key_N: random key of each row; its token t is drawn with t folded in.
      sampling: parameters of each row.
      token_NT: int32 new tokens; behind them the first stop token.
      logits_NV: of the next token.
      seen_NV: tokens that are in a row's prompt or its new text.
      cache: the network's.
    """

    position_N: jax.Array
    count_N: jax.Array
    limit_N: jax.Array
    done_N: jax.Array
    key_N: jax.Array
    sampling: SamplingParams
    token_NT: jax.Array
    logits_NV: jax.Array
    seen_NV: jax.Array
    cache: Cache


@flax.struct.dataclass
class Requests:
    """Requests whose prompts are inserted.

    Attributes:
      key_R: random keys.
      limit_R: int32 new tokens at which each ends.
      sampling: parameters of each, arrays (R,).
    """

    key_R: jax.Array
    limit_R: jax.Array
    sampling: SamplingParams
