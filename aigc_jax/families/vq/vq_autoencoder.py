"""Autoencoders whose latents are codes (van den Oord et al. 2017); with a critic, the VQGAN.

Shapes: B batch, N samples; examples (B, …, C) of any rank; … spatial axes of the latents, c codes
at each position, Z the size of a code's vector.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.conditions import Conditions, ConditionSpec, conditions_of
from aigc_jax.core.metrics import Mean, Metrics
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.vae.latent_groups import as_places, covered_size, latent_shape
from aigc_jax.families.vq.adversary import Adversary
from aigc_jax.families.vq.config import RECONSTRUCTION_ERRORS, VQConfig
from aigc_jax.families.vq.quantizers import (
    QUANTIZERS,
    Quantizer,
    State,
    perplexity,
    usage_metrics,
)
from aigc_jax.nn.layers import Linear
from aigc_jax.ops.image import psnr, to_bytes, to_signed
from aigc_jax.ops.per_example import expand_like, mean_per_example
from aigc_jax.ops.random import fold, uniform


class VQAutoencoder(Objective):
    """The player `model`: encoder, quantizer, decoder; with a critic, which moves before it.

    It can be the first stage of another model. It has no prior of its own: `sample` draws codes
    independently with the frequencies of training, which shows what the codes are, not examples.

    Args:
      config: its constants.
      encoder: examples in [0, 1] to (mean, …), of which the mean is quantised.
      decoder: latents like it to (B, *shape); it knows the `shape` of an example.
      conditions: what encoder and decoder are given.
      field: of a batch, which is modelled: uint8 (B, *shape).

    Attributes:
      latent_shape: (*spatial, c) of its codes; a flat latent is a single position.
      num_codes: K.
      covered: spatial sizes that its codes cover, of which an example is the middle.
    """

    def __init__(
        self,
        config: VQConfig,
        encoder: Any,
        decoder: Any,
        conditions: dict[str, ConditionSpec] | None = None,
        field: str = "image",
    ):
        c = self.config = config
        self.encoder, self.decoder = encoder, decoder
        self.conditions, self.field = conditions or {}, field
        self.quantizer: Quantizer = QUANTIZERS[c.quantizer](c)
        self.adversary = Adversary(c, encoder.dtype) if c.critic_weight else None
        self.turns = ("critic", "model") if self.adversary else ("model",)
        self._encoded_shape = latent_shape(encoder, decoder.shape)
        self._places = as_places(self._encoded_shape, decoder.shape)
        self.latent_shape = (*self._places[:-1], c.codes_per_position)
        self.num_codes = self.quantizer.num_codes
        self.covered = covered_size(encoder, decoder.shape)
        # Codes have few numbers, and networks many channels.
        axes = ("latent", "latent")
        code_size = c.codes_per_position * self.quantizer.size
        self._quant_proj = Linear(code_size, use_bias=True, kernel_axes=axes)
        self._post_quant_proj = Linear(self._places[-1], use_bias=True, kernel_axes=axes)
        self._sample = jax.jit(self._generate)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Params, Mutables]:
        x, given = to_signed(batch[self.field]), conditions_of(batch, self.conditions)
        keys = jax.random.split(rng, 5)
        z = jnp.zeros((len(x), *self._encoded_shape))
        places = z.reshape(len(x), *self._places)
        codes = jnp.zeros((*places.shape[:-1], self._quant_proj.features))
        params = {
            "model": {
                "encoder": self.encoder.init(keys[0], x, given)["params"],
                "quant_proj": self._quant_proj.init(keys[1], places)["params"],
                "post_quant_proj": self._post_quant_proj.init(keys[2], codes)["params"],
                "decoder": self.decoder.init(keys[3], z, given)["params"],
            }
        }
        if self.adversary:
            params["critic"] = self.adversary.init(keys[4], x)
        return params, {"model": self.quantizer.init()}

    def _encode(self, params: Any, batch: Batch) -> jax.Array:
        """The vectors to be quantised, (B, *latent_shape, Z)."""
        x, given = (
            batch[self.field].astype(jnp.float32) / 255,
            conditions_of(batch, self.conditions),
        )
        z = self.encoder.apply({"params": params["encoder"]}, x, given)[0]
        z = z.reshape(len(x), *self._places)
        z = project(self._quant_proj, params["quant_proj"], z)
        return z.reshape(len(x), *self.latent_shape, self.quantizer.size)

    def _decode(self, params: Any, vectors: jax.Array, given: Conditions) -> jax.Array:
        """Examples (B, *shape) in [−1, 1] of vectors (B, *latent_shape, Z)."""
        z = vectors.reshape(*vectors.shape[:-2], -1)
        z = project(self._post_quant_proj, params["post_quant_proj"], z)
        z = z.reshape(-1, *self._encoded_shape)
        return jnp.tanh(self.decoder.apply({"params": params["decoder"]}, z, given) / 2)

    def _autoencode(
        self, params: Any, state: State, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Decoded examples in [−1, 1], the vectors, their codes, and commitment costs (B,)."""
        z = self._encode(params, batch)
        vectors, code, commitment = self.quantizer.quantize(state, z)
        decoded = self._decode(params, vectors, conditions_of(batch, self.conditions))
        return decoded, z, code, mean_per_example(commitment)

    def _errors(
        self, x: jax.Array, decoded: jax.Array, commitment_B: jax.Array, weight_B: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """The loss without a critic (B,), and its parts."""
        error = RECONSTRUCTION_ERRORS[self.config.reconstruction_error]
        error_B = mean_per_example(error(decoded, x))
        return error_B + self.config.commitment * commitment_B, {
            "reconstruction": Mean.of(error_B, weight_B),
            "commitment": Mean.of(commitment_B, weight_B),
            "psnr": Mean.of(psnr((decoded + 1) / 2, (x + 1) / 2), weight_B),
        }

    def loss(
        self,
        player: str,
        params: Params,
        mutables: Mutables,
        batch: Batch,
        key_B: jax.Array,
        step: jax.Array,
    ) -> tuple[Mean, tuple[Metrics, Mutables]]:
        """The model's: reconstruction error, commitment, and what the critic adds."""
        state = self.quantizer.begin_step(mutables["model"], step)
        x, weight_B = to_signed(batch[self.field]), batch["weight"]
        decoded, z, code, commitment_B = self._autoencode(params["model"], state, batch)
        if player == "critic" and self.adversary:
            # It sees the codebook that the model will see; the codes are counted in its turn.
            own = self.adversary.critic_loss(params, x, decoded, weight_B, step)
            return own, ({}, mutables)
        loss_B, errors = self._errors(x, decoded, commitment_B, weight_B)
        metrics = {**errors, **usage_metrics(state["uses"])}
        if self.adversary:
            added_B, more = self.adversary.model_loss(params, x, decoded, weight_B)
            loss_B += jnp.where(step >= self.config.critic_start, added_B, 0.0)
            metrics |= more
        state = self._accumulate(state, z, code, weight_B, key_B)
        return Mean.of(loss_B, weight_B), (metrics, {**mutables, "model": state})

    def _accumulate(
        self, state: State, z: jax.Array, code: jax.Array, weight_B: jax.Array, key_B: jax.Array
    ) -> State:
        """The quantizer's state with the batch in it; each code has its example's weight."""
        places = math.prod(self.latent_shape)
        weight_N = jnp.repeat(weight_B, places)
        draw_N2 = uniform(fold(key_B, 0), (places, 2)).reshape(-1, 2)
        z_NZ = z.reshape(-1, self.quantizer.size)
        return self.quantizer.accumulate(state, z_NZ, code.reshape(-1), weight_N, draw_N2)

    # After training -------------------------------------------------------------------------------

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """`loss`: reconstruction error and commitment, without a critic; `psnr` in dB."""
        state, weight_B = self.quantizer.finalize(mutables["model"]), batch["weight"]
        decoded, _, _, commitment_B = self._autoencode(params["model"], state, batch)
        x = to_signed(batch[self.field])
        loss_B, metrics = self._errors(x, decoded, commitment_B, weight_B)
        return {"loss": Mean.of(loss_B, weight_B), **metrics}

    def predict(self, params: Params, mutables: Mutables, batch: Batch) -> dict[str, jax.Array]:
        """`codes` (B, *latent_shape); −1 for examples without weight."""
        code = self._codes(params, mutables, batch)
        return {"codes": jnp.where(expand_like(batch["weight"], code) > 0, code, -1)}

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """`codes_used`: the share of codes used at all; `code_perplexity`: see `usage_metrics`."""
        codes = predictions["codes"][predictions["codes"] >= 0]
        counts_K = np.bincount(codes, minlength=self.num_codes)
        return {
            "codes_used": float((counts_K > 0).mean()),
            "code_perplexity": float(perplexity(counts_K / max(counts_K.sum(), 1))),
        }

    def reconstruct(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """uint8 examples (B, *shape), encoded and decoded."""
        state = self.quantizer.finalize(mutables["model"])
        return to_bytes(self._autoencode(params["model"], state, batch)[0])

    def encode(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """int32 codes (B, *latent_shape); they are not random."""
        return self._codes(params, mutables, batch)

    def _codes(self, params: Params, mutables: Mutables, batch: Batch) -> jax.Array:
        state = self.quantizer.finalize(mutables["model"])
        return self.quantizer.quantize(state, self._encode(params["model"], batch))[1]

    def decode(self, params: Params, mutables: Mutables, latent_N: jax.Array) -> jax.Array:
        """uint8 examples (N, *shape) of codes (N, *latent_shape), without conditions."""
        state = self.quantizer.finalize(mutables["model"])
        vectors = self.quantizer.vectors(state, latent_N)
        return to_bytes(self._decode(params["model"], vectors, {}))

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """uint8 examples (N, *shape) of codes drawn independently with their frequencies."""
        return self._sample(params["model"], mutables["model"], key_N, request.conditions)

    def _generate(
        self, params: Any, state: State, key_N: jax.Array, conditions: Conditions
    ) -> jax.Array:
        state = self.quantizer.finalize(state)
        uses_K = state["uses"]
        log_p_K = jnp.where(uses_K.sum() > 0, jnp.log(uses_K), 0.0)  # untrained: all alike

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.categorical(key, log_p_K, shape=self.latent_shape)

        vectors = self.quantizer.vectors(state, jax.vmap(draw)(key_N))
        return to_bytes(self._decode(params, vectors, conditions))


def project(layer: Linear, params: Any, x: jax.Array) -> jax.Array:
    """The layer at every position, (…, I) → (…, O)."""
    return jnp.asarray(layer.apply({"params": params}, x))
