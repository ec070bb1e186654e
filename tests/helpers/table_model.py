"""A model that is a table, so that losses over text can be worked out by hand; and text for it."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.families.lm.masked_lm import MaskedLanguageModel, MaskedLMConfig
from aigc_jax.modalities.text.tokenizers import ByteTokenizer

BYTE = ByteTokenizer()
V, B, T = 258, 6, 7
RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), B)
STEP = jnp.int32(0)


class Table:
    """Logits that are a row of a table: that of the token itself, or of one some places on."""

    context, vocab_size = 64, V

    def __init__(self, ahead=0, causal=True, bounded=False):
        self.config = types.SimpleNamespace(causal=causal, bounded=bounded, lora_rank=0)
        self._ahead = ahead

    def encode(self, variables, token_BT, segments_BT=None, key_B=None, conditions=None):
        return jax.nn.one_hot(jnp.roll(token_BT, -self._ahead, axis=1), V)

    def vocab_logits(self, variables, x_BTW):
        return x_BTW @ variables["params"]["logits"]

    def task_logits(self, variables, x_BTW):
        return x_BTW @ variables["params"]["task_logits"]


PARAMS = {"model": {
    "logits": RNG.normal(size=(V, V)).astype(np.float32),
    "task_logits": RNG.normal(size=(V, 3)).astype(np.float32),
}}  # fmt: skip
LOG_P = np.asarray(jax.nn.log_softmax(PARAMS["model"]["logits"]), np.float64)
LOG_Z = np.log(np.exp(PARAMS["model"]["logits"].astype(np.float64)).sum(-1))
TOKENS = RNG.integers(0, 257, (B, T + 1)).astype(np.int32)
WEIGHT = (RNG.uniform(0.2, 2, (B, T)) * (RNG.uniform(size=(B, T)) < 0.6)).astype(np.float32)


def loss_of(objective, batch):
    loss, (metrics, _) = objective.loss("model", PARAMS, {}, batch, KEYS, STEP)
    return loss, metrics


HIDDEN = 257  # the byte tokenizer has no mask: one is put behind its tokens


def masked(model=None, **config):
    model = model or Table(causal=False)
    return MaskedLanguageModel(MaskedLMConfig(**config), model, BYTE, HIDDEN)
