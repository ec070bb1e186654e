"""Models of continuous latents: latent diffusion (Rombach et al. 2022).

Shapes: B batch, N samples, h × w × … places of an example, c latent channels.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsAutoguidance, SupportsFirstStage, SupportsInitImage
from aigc_jax.core.conditions import label_of
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import ArraySpec, modelled_field
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.latent.first_stage import PLAYER, LatentSpaceObjective
from aigc_jax.families.latent.latent_spec import LatentSpec
from aigc_jax.nn.padding import fill
from aigc_jax.ops.random import fold

ENCODE = 0x5AFE  # folded into an example's key, so that no draw of the inner objective is repeated


class ContinuousLatentObjective(LatentSpaceObjective):
    """An objective such as diffusion over normalised continuous latents."""

    def __init__(self, objective: Objective, stage: SupportsFirstStage, spec: ArraySpec):
        super().__init__(objective, stage, spec)
        if isinstance(objective, SupportsInitImage):
            self.init_shape = spec.shape

    @staticmethod
    def latent_spec_of(stage: SupportsFirstStage, spec: ArraySpec) -> LatentSpec:
        """Latents in the place of the examples, with the classes of `spec`."""
        field = modelled_field(spec)
        return LatentSpec(stage.latent_shape, field, spec.modality, spec.class_names)

    def encode_batch(self, params: Params, batch: Batch, key_B: jax.Array) -> Batch:
        """The batch with normalised latents (B, *latent_shape) in the place of its examples."""
        latent = self._stage(self.stage.encode, params, batch, fold(key_B, ENCODE))
        frozen = params[PLAYER]
        return {**batch, self.field: (latent - frozen["shift"]) * frozen["scale"]}

    def encode_request(
        self, params: Params, key_N: jax.Array, request: SampleRequest
    ) -> SampleRequest:
        """The request with its initial images in latents; unchanged if there are none.

        A place is drawn again if any pixel that it covers is.
        """
        if "image" not in request.init:
            return request
        batch = {self.field: jnp.asarray(request.init["image"]), "weight": jnp.ones(len(key_N))}
        label_N = label_of(request.conditions)
        if label_N is not None:
            batch["label"] = label_N
        init: dict[str, Any] = {"image": self.encode_batch(params, batch, key_N)[self.field]}
        if "inpaint_mask" in request.init:
            mask = jnp.asarray(request.init["inpaint_mask"])[..., None]
            filled = np.asarray(fill(mask, self.stage.covered))[..., 0]
            init["inpaint_mask"] = any_in_blocks(filled, self.stage.latent_shape[:-1])
        return dataclasses.replace(request, init=init)

    def autoguidance(self, other: Any, params: Params) -> Any:
        """`SampleRequest.guidance_model` from another run over the same latents.

        Raises:
          UserError: if the inner objective cannot be guided by it.
        """
        if not isinstance(self.objective, SupportsAutoguidance):
            raise UserError("sample.guide: this objective cannot be guided by another model")
        inner = other.objective if isinstance(other, ContinuousLatentObjective) else other
        return self.objective.autoguidance(inner, params)

    def sample(
        self, params: Params, mutables: Mutables, key_N: jax.Array, request: SampleRequest
    ) -> jax.Array:
        """Decoded examples (N, …); elements outside an inpainting mask are those given."""
        inner = self.encode_request(params, key_N, request)
        latent = self.objective.sample(params, mutables, key_N, inner)
        frozen = params[PLAYER]
        drawn = self._decode(params, latent / frozen["scale"] + frozen["shift"])
        mask = request.init.get("inpaint_mask")
        if mask is None:
            return drawn
        return jnp.where(jnp.asarray(mask)[..., None], drawn, request.init["image"])


def any_in_blocks(mask: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
    """Whether any element of each block is True: (N, H, …) → (N, *places), H a multiple of h."""
    split = [n for side, h in zip(mask.shape[1:], places, strict=True) for n in (h, side // h)]
    blocks = mask.reshape(len(mask), *split)
    return np.any(blocks, axis=tuple(range(2, blocks.ndim, 2)))
