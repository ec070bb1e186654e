"""Models of what a frozen autoencoder makes of images: latent diffusion, transformers over codes.

The autoencoder is a player without turns, `first_stage`: it lies in the run's state and its
checkpoints, and nothing moves it. Batches go through its encoder before the loss, and samples
through its decoder (Rombach et al. 2022; van den Oord et al. 2017), so the objective behind it
knows nothing of images.

Shapes: B batch, N samples, h × w places, c latent channels or codes per place, T = h·w·c.
"""

import abc
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import SupportsInitImage
from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import Spec
from aigc_jax.core.objective import Batch, Objective
from aigc_jax.core.request import SampleRequest
from aigc_jax.distributed.logical_axes import unsharded
from aigc_jax.families.latent.image_codec import ImageCodec
from aigc_jax.inference.engine import pad_prompts
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.nn import padding
from aigc_jax.ops.random import fold

PLAYER = "first_stage"
ENCODING = 0x5AFE  # folded into an example's key, so that no draw of the objective's is repeated
SCALE = 0.5  # of normalised latents: about that of pixels in [−1, 1], for which defaults are made

Variables = dict[str, Any]


class Autoencoder(Protocol):
    """What an objective must have beside `Objective` to be a first stage.

    Attributes:
      latent_shape: (h, w, c) of an image's latents or codes.
      num_codes: entries of the codebook; 0: latents are continuous.
      covered: (H, W) that h × w places cover, of which the images are the middle.
    """

    latent_shape: tuple[int, int, int]
    num_codes: int
    covered: tuple[int, int]

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Variables, Variables]: ...

    def encode(
        self, params: Variables, mutables: Variables, batch: Batch, key_B: jax.Array
    ) -> jax.Array:
        """float32 latents or int32 codes (B, h, w, c)."""
        ...

    def decode(self, params: Variables, mutables: Variables, latent_N: jax.Array) -> jax.Array:
        """uint8 images (N, H, W, C)."""
        ...


def latent_spec(stage: Autoencoder, spec: ImageSpec) -> Spec:
    """What the objective behind the autoencoder sees."""
    if stage.num_codes:
        length = int(np.prod(stage.latent_shape))
        return TextSpec(ImageCodec(stage.num_codes, spec.num_classes), length)
    return ImageSpec(stage.latent_shape, spec.class_names, continuous=True)


class LatentSpaceObjective(abc.ABC):
    """An objective behind an autoencoder; `Latents` and `CodeSequences` say what goes between.

    Args:
      objective: of latents or codes.
      stage: the autoencoder.
      spec: of the images.
    """

    def __init__(self, objective: Objective, stage: Autoencoder, spec: ImageSpec):
        self.objective, self.stage, self.spec = objective, stage, spec
        self.turns, self.conditions = objective.turns, objective.conditions
        if isinstance(objective, SupportsInitImage):
            self.init_shape = spec.shape
        self._decode = jax.jit(lambda p, latent_N: self._stage(stage.decode, p, latent_N))

    def init(self, rng: jax.Array, batch: Batch) -> tuple[Variables, Variables]:
        """The autoencoder's arrays are empty; `fill` makes those to begin with."""
        size = batch["weight"].shape[0]
        example = jax.tree.map(jnp.asarray, latent_spec(self.stage, self.spec).example_batch(size))
        params, mutables = self.objective.init(rng, example)
        stage_params, stage_mutables = jax.eval_shape(self.stage.init, rng, batch)
        channels = self.stage.latent_shape[-1]
        empty = {
            "params": stage_params,
            "mutables": unsharded(stage_mutables),
            "shift": jax.ShapeDtypeStruct((channels,), jnp.float32),
            "scale": jax.ShapeDtypeStruct((channels,), jnp.float32),
        }
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), empty)
        return {**params, PLAYER: zeros}, mutables

    def fill(self, params: Variables, mutables: Variables, batch: Batch) -> Variables:
        """The frozen player, from the variables of a trained autoencoder.

        Args:
          params: its parameters, `{player: …}`.
          mutables: its mutables.
          batch: images; the latents of all of them have mean 0 and deviation `SCALE` per channel.
        """
        filled = {"params": params, "mutables": mutables}
        channels = self.stage.latent_shape[-1]
        shift, scale = jnp.zeros(channels), jnp.ones(channels)
        if not self.stage.num_codes:
            key_B = jax.random.split(jax.random.key(0), batch["weight"].shape[0])
            latent = jax.jit(self.stage.encode)(params, mutables, batch, key_B)
            shift, scale = latent.mean((0, 1, 2)), SCALE / (latent.std((0, 1, 2)) + 1e-6)
        return {**filled, "shift": shift, "scale": scale}

    def _stage(self, method: Any, params: Variables, *args: Any) -> jax.Array:
        frozen = params[PLAYER]
        return method(frozen["params"], frozen["mutables"], *args)

    @abc.abstractmethod
    def _inward(self, params: Variables, batch: Batch, key_B: jax.Array) -> Batch:
        """The batch of images as the objective knows it."""

    def loss(self, player, params, mutables, batch, key_B, step):
        """The objective's own, of the batch in latents or codes."""
        batch = self._inward(params, batch, key_B)
        return self.objective.loss(player, params, mutables, batch, key_B, step)

    def evaluate(self, params, mutables, batch, key_B):
        """The objective's own, of the batch in latents or codes."""
        batch = self._inward(params, batch, key_B)
        return self.objective.evaluate(params, mutables, batch, key_B)


class ContinuousLatentObjective(LatentSpaceObjective):
    """An objective of images, such as diffusion, over continuous latents."""

    def _inward(self, params: Variables, batch: Batch, key_B: jax.Array) -> Batch:
        latent = self._stage(self.stage.encode, params, batch, fold(key_B, ENCODING))
        frozen = params[PLAYER]
        return {**batch, "image": (latent - frozen["shift"]) * frozen["scale"]}

    def autoguidance(self, other: Any, params: Variables) -> Any:
        """`SampleRequest.guidance_model` from another run over the same latents."""
        inner = other.objective if isinstance(other, ContinuousLatentObjective) else other
        return self.objective.autoguidance(inner, params)

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C); what a given image keeps stays as it is."""
        frozen, image = params[PLAYER], request.init.get("image")
        inner = request if image is None else self._begin(params, key_N, request)
        latent = self.objective.sample(params, mutables, key_N, inner)
        drawn = self._decode(params, latent / frozen["scale"] + frozen["shift"])
        mask_NHW = request.init.get("inpaint_mask")
        if mask_NHW is None:
            return drawn
        return jnp.where(jnp.asarray(mask_NHW)[..., None], drawn, image)

    def _begin(self, params: Variables, key_N: jax.Array, request: SampleRequest) -> SampleRequest:
        """The request in latents: a place is drawn anew if any of its pixels is."""
        batch = {"image": jnp.asarray(request.init["image"]), "weight": jnp.ones(len(key_N))}
        label_N = label_of(request.conditions)
        if label_N is not None:
            batch["label"] = label_N
        latent, mask = self._inward(params, batch, key_N)["image"], request.init.get("inpaint_mask")
        if mask is not None:
            (h, w, _), (height, width) = self.stage.latent_shape, self.stage.covered
            mask = np.asarray(padding.fill(jnp.asarray(mask)[..., None], (height, width)))
            mask = mask.reshape(-1, h, height // h, w, width // w).any((2, 4))
        init = {"image": latent} | ({} if mask is None else {"inpaint_mask": mask})
        return dataclasses.replace(request, init=init)


class TokenSequenceObjective(LatentSpaceObjective):
    """An objective of tokens, such as a language model, over codes row by row."""

    def __init__(self, objective: Objective, stage: Autoencoder, spec: ImageSpec):
        super().__init__(objective, stage, spec)
        self.num_classes = spec.num_classes
        self.conditions = class_conditions(self.num_classes)

    def _inward(self, params: Variables, batch: Batch, key_B: jax.Array) -> Batch:
        codes = self._stage(self.stage.encode, params, batch, fold(key_B, ENCODING))
        code_BT = codes.reshape(codes.shape[0], -1)
        label_B = batch["label"] if self.num_classes else jnp.zeros(len(code_BT), jnp.int32)
        token_BT = jnp.concatenate([self.stage.num_codes + label_B[:, None], code_BT], 1)
        weight_BT = jnp.broadcast_to(batch["weight"][:, None], code_BT.shape)
        return {"tokens": token_BT.astype(jnp.int32), "weight": weight_BT}

    def evaluate(self, params, mutables, batch, key_B):
        """The objective's own, per code; codes are no bytes."""
        metrics = super().evaluate(params, mutables, batch, key_B)
        return {name: mean for name, mean in metrics.items() if name != "bits_per_byte"}

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C).

        Raises:
          UserError: if the objective does not write tokens one after the other.
        """
        if not hasattr(request.options, "max_new_tokens"):
            raise UserError(
                "images are written code by code, which this objective does not do: set"
                " objective.name='lm'"
            )
        h, w, c = self.stage.latent_shape
        n, start = key_N.shape[0], self.stage.num_codes
        label_N = label_of(request.conditions)
        label_N = np.zeros(n, int) if label_N is None else np.asarray(label_N)
        init = pad_prompts([np.array([start + label]) for label in label_N])
        options = dataclasses.replace(request.options, max_new_tokens=h * w * c, stop=())
        inner = SampleRequest(options, request.index_N, init=init)
        token_NT = self.objective.sample(params, mutables, key_N, inner)
        # An untrained model may draw a class's token in the middle: any code will do.
        return self._decode(params, jnp.minimum(token_NT, start - 1).reshape(n, h, w, c))
