"""Models of code sequences: a language model over the codes of a discrete autoencoder.

Shapes: B batch, N samples, c codes per place, T codes of an example.
"""

import dataclasses
import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsFirstStage, SupportsTextGeneration
from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.errors import UserError
from aigc_jax.core.metrics import Metrics
from aigc_jax.core.modality import ArraySpec
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.latent.first_stage import LatentSpaceObjective
from aigc_jax.families.latent.image_codec import ImageCodec
from aigc_jax.inference.prompts import pad_prompts
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import Tokenizer


class TokenSequenceObjective(LatentSpaceObjective):
    """An autoregressive objective of tokens over the codes of an image, row by row.

    A sequence is the token of the image's class, then its codes.

    Raises:
      UserError: if the inner objective does not generate tokens one after the other.
    """

    def __init__(self, objective: Objective, stage: SupportsFirstStage, spec: ArraySpec):
        super().__init__(objective, stage, spec)
        if not isinstance(objective, SupportsTextGeneration):
            raise UserError(
                "codes of a first stage are generated one after the other, which this objective"
                " does not do: set objective.name='lm'"
            )
        self.num_classes = spec.num_classes
        self.conditions = class_conditions(self.num_classes)

    @staticmethod
    def latent_spec_of(stage: SupportsFirstStage, spec: ArraySpec) -> TextSpec:
        """Text of T tokens whose tokenizer is an `ImageCodec`."""
        # It has those parts of a tokenizer that an objective of tokens uses.
        codec = cast(Tokenizer, ImageCodec(stage.num_codes, spec.num_classes))
        return TextSpec(codec, math.prod(stage.latent_shape))

    def encode_batch(self, params: Params, batch: Batch, key_B: jax.Array) -> Batch:
        """`tokens` (B, 1 + T), and the weight of an example for each of its codes (B, T)."""
        codes = self._stage(self.stage.encode, params, batch, key_B)
        code_BT = codes.reshape(codes.shape[0], -1)
        label_B = batch["label"] if self.num_classes else jnp.zeros(len(code_BT), jnp.int32)
        token_BT = jnp.concatenate([self.stage.num_codes + label_B[:, None], code_BT], 1)
        weight_BT = jnp.broadcast_to(batch["weight"][:, None], code_BT.shape)
        return {"tokens": token_BT.astype(jnp.int32), "weight": weight_BT}

    def evaluate(
        self, params: Params, mutables: Mutables, batch: Batch, key_B: jax.Array
    ) -> Metrics:
        """The inner objective's metrics per code; without `bits_per_byte`, codes are no bytes."""
        metrics = super().evaluate(params, mutables, batch, key_B)
        return {name: mean for name, mean in metrics.items() if name != "bits_per_byte"}

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        inner = self.encode_request(request)
        token_NT = self.objective.sample(params, mutables, key_N, inner)
        # An untrained model may draw the token of a class instead of a code.
        code_NT = jnp.minimum(token_NT, self.stage.num_codes - 1)
        return self._decode(params, code_NT.reshape(-1, *self.stage.latent_shape))

    def encode_request(self, request: SampleRequest) -> SampleRequest:
        """The request for T tokens after the token of each sample's class."""
        given = label_of(request.conditions)
        label_N = np.zeros(len(request), int) if given is None else np.asarray(given)
        init = pad_prompts([np.array([self.stage.num_codes + label]) for label in label_N])
        length = math.prod(self.stage.latent_shape)
        options = dataclasses.replace(request.options, max_new_tokens=length, stop=())
        return SampleRequest(options, request.index_N, init=init)
