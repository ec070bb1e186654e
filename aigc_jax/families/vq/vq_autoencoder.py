"""Autoencoders whose latents are codes (van den Oord et al. 2017); with a critic, the VQGAN.

Shapes: B batch, H height, W width, C channels; h, w places of the latents, c codes at each, Z the
size of a code's vector, D the encoder's channels; N samples.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config
from aigc_jax.core.conditions import class_conditions, label_of
from aigc_jax.core.fields import option
from aigc_jax.core.metrics import Mean
from aigc_jax.core.objective import Batch, Objective
from aigc_jax.core.request import SampleRequest
from aigc_jax.families.gan.gan import LOSSES
from aigc_jax.families.vae.latent_groups import as_place, latent_shape
from aigc_jax.families.vq.quantizers import FSQ, VQ, Quantizer, State, perplexity, usage_metrics
from aigc_jax.nn.layers import Linear
from aigc_jax.nn.patch_critic import PatchCritic
from aigc_jax.ops.image import psnr, to_bytes, to_signed
from aigc_jax.ops.random import fold, uniform

PIXELS = (1, 2, 3)
ERRORS = {"squared": lambda x, y: (x - y) ** 2, "absolute": lambda x, y: jnp.abs(x - y)}


@dataclasses.dataclass(frozen=True)
class VQConfig:
    quantizer: str = option("fsq", choices=("fsq", "vq"))
    levels: tuple[int, ...] = option((8, 5, 5, 5), low=2, nonempty=True)  # fsq: their product is K
    codes: int = option(512, low=2)  # vq: K
    code_size: int = option(8, low=1)  # vq: numbers of a code's vector
    spherical: bool = True  # vq: vectors of length 1
    dead: float = option(0.1, low=0.0, high=1.0)  # vq: of an equal share; a code with less is moved
    commitment: float = option(0.25, low=0.0)  # vq: weight of keeping the encoder near its codes
    decay: float = option(0.99, low=0.0, high=1.0)  # of codes' sums and counts, per step
    codes_per_place: int = option(1, low=1)  # product quantisation with one codebook
    error: str = option("squared", choices=tuple(ERRORS))  # of pixels in [−1, 1]
    critic_weight: float = option(0.0, low=0.0)  # VQGAN: of the critic's opinion; 0: no critic
    critic_loss: str = option("hinge", choices=tuple(LOSSES))
    critic_channels: tuple[int, ...] = option((32, 64), low=1, nonempty=True)  # each ÷ 2
    critic_start: int = option(0, low=0)  # the step at which the critic joins in
    adaptive: bool = True  # let critic and pixels pull equally strongly, image by image
    feature_weight: float = option(1.0, low=0.0)  # of the difference in the critic's features


@dataclasses.dataclass(frozen=True)
class VQSample(config.Sample):
    """What every family has."""


class VQAutoencoder(Objective):
    """The player `model`: encoder, quantizer, decoder; and with a critic that moves before it.

    It can be the first stage of another model. It has no prior of its own: `sample` draws codes
    independently with the frequencies of training, which shows what the codes are, not images.

    Args:
      config: its constants.
      encoder: images in [0, 1] to (mean, …), of which the mean is quantised.
      decoder: latents like it to (B, H, W, C, 1); it knows the images' `shape`.

    Attributes:
      latent_shape: (h, w, c) of its codes; a flat latent is a single place.
      num_codes: K.
      covered: (H, W) that its codes cover, of which the images are the middle.
    """

    def __init__(self, config: VQConfig, encoder: Any, decoder: Any):
        c = self.config = config
        self.encoder, self.decoder, self.num_classes = encoder, decoder, encoder.num_classes
        self.conditions = class_conditions(self.num_classes)
        self.quantizer: Quantizer = FSQ(c.levels, c.decay)
        if c.quantizer == "vq":
            self.quantizer = VQ(c.codes, c.code_size, c.decay, c.dead, c.spherical)
        self.critic = PatchCritic(c.critic_channels, encoder.dtype) if c.critic_weight else None
        self.turns = ("critic", "model") if self.critic else ("model",)
        self._shape = latent_shape(encoder, decoder.shape)  # of the encoder's output, without B
        height, width, channels = as_place(self._shape)
        self.latent_shape = (height, width, c.codes_per_place)
        self.num_codes = self.quantizer.num_codes
        self.covered = encoder.config.filled(decoder.shape[:2])
        # Codes have few numbers, and networks many channels.
        axes = ("latent", "latent")
        sizes = c.codes_per_place * self.quantizer.size, channels
        self._into, self._out = (Linear(n, use_bias=True, kernel_axes=axes) for n in sizes)
        self._sample = jax.jit(self._generate)

    def init(self, rng: jax.Array, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
        x, label_B = to_signed(batch["image"]), self._label(batch)
        keys = jax.random.split(rng, 5)
        z = jnp.zeros((len(x), *self._shape))
        flat = z.reshape(len(x), *as_place(self._shape))
        codes = jnp.zeros((*flat.shape[:3], self._into.features))
        params = {
            "model": {
                "encoder": self.encoder.init(keys[0], x, label_B)["params"],
                "into": self._into.init(keys[1], flat)["params"],
                "out": self._out.init(keys[2], codes)["params"],
                "decoder": self.decoder.init(keys[3], z, label_B)["params"],
            }
        }
        if self.critic:
            params["critic"] = self.critic.init(keys[4], x)["params"]
        return params, {"model": self.quantizer.init()}

    def _label(self, batch: Batch) -> jax.Array | None:
        return batch["label"] if self.num_classes else None

    def _vectors(self, params, batch) -> jax.Array:
        """What is to be quantised, (B, h, w, c, Z)."""
        x = batch["image"].astype(jnp.float32) / 255
        encoder = {"params": params["encoder"]}
        z = self.encoder.apply(encoder, x, self._label(batch))[0]
        z = z.reshape(len(x), *as_place(self._shape))
        z = self._into.apply({"params": params["into"]}, z)
        return z.reshape(len(x), *self.latent_shape, self.quantizer.size)

    def _decode(self, params, vectors, label_B) -> jax.Array:
        """Images (B, H, W, C) in [−1, 1] of vectors (B, h, w, c, Z)."""
        z = vectors.reshape(*vectors.shape[:3], -1)
        z = self._out.apply({"params": params["out"]}, z).reshape(-1, *self._shape)
        out = self.decoder.apply({"params": params["decoder"]}, z, label_B)
        return jnp.tanh(out[..., 0] / 2)

    def _autoencode(self, params, state: State, batch: Batch):
        """The image (B, H, W, C) in [−1, 1], what was quantised, its codes, and costs (B,)."""
        z = self._vectors(params, batch)
        vectors, code, commitment = self.quantizer.quantize(state, z)
        image = self._decode(params, vectors, self._label(batch))
        return image, z, code, commitment.mean(PIXELS)

    def loss(self, player, params, mutables, batch, key_B, step):
        """The model's: error of the pixels and commitment, and what the critic says of it."""
        state = self.quantizer.at(mutables["model"], step)
        x, weight_B = to_signed(batch["image"]), batch["weight"]
        image, z, code, commitment_B = self._autoencode(params["model"], state, batch)
        if player == "critic":
            # It sees the codebook that the model will see; the codes are counted in its turn.
            return self._critic_loss(params, x, image, weight_B, step), ({}, mutables)
        error_B = ERRORS[self.config.error](image, x).mean(PIXELS)
        loss_B = error_B + self.config.commitment * commitment_B
        metrics = {
            "reconstruction": Mean.of(error_B, weight_B),
            "commitment": Mean.of(commitment_B, weight_B),
            "psnr": Mean.of(psnr((image + 1) / 2, (x + 1) / 2), weight_B),
            **usage_metrics(state["uses"]),
        }
        if self.critic:
            part_B, more = self._opinion(params, x, image, weight_B)
            loss_B += jnp.where(step >= self.config.critic_start, part_B, 0.0)
            metrics |= more
        state = self._note(state, z, code, weight_B, key_B)
        return Mean.of(loss_B, weight_B), (metrics, {**mutables, "model": state})

    def _note(self, state, z, code, weight_B, key_B) -> State:
        """The quantizer's state with the batch in it; an example's weight is that of its places."""
        places = int(np.prod(self.latent_shape))
        weight_N = jnp.repeat(weight_B, places)
        draw_N2 = uniform(fold(key_B, 0), (places, 2)).reshape(-1, 2)
        z_NZ = z.reshape(-1, self.quantizer.size)
        return self.quantizer.note(state, z_NZ, code.reshape(-1), weight_N, draw_N2)

    # The critic ---------------------------------------------------------------------------------

    def _score(self, params, x):
        return self.critic.apply({"params": params["critic"]}, x)

    def _critic_loss(self, params, x, image, weight_B, step) -> Mean:
        """Nothing before the step at which the critic joins in."""
        scores = self._score(params, x)[0], self._score(params, image)[0]
        loss_B = LOSSES[self.config.critic_loss][0](*scores).mean((1, 2))
        return Mean.of(jnp.where(step >= self.config.critic_start, loss_B, 0.0), weight_B)

    def _opinion(self, params, x, image, weight_B):
        """What the critic adds to the model's loss (B,), and metrics.

        Features of real and decoded images are compared layer by layer (Larsen et al. 2016). The
        adaptive weight is that of Esser et al. (2021, equation 7) at the decoded image instead of
        at the last layer, and of each image: so it does not depend on how a batch is cut.
        """
        c = self.config
        real_Bhw, real_features = self._score(params, x)

        def adversarial(image):
            fake_Bhw, features = self._score(params, image)
            return LOSSES[c.critic_loss][1](real_Bhw, fake_Bhw).mean((1, 2)), (fake_Bhw, features)

        adversarial_B, (fake_Bhw, features) = adversarial(image)
        pairs = zip(real_features, features, strict=True)
        feature_B = sum(jnp.abs(a - b).mean(PIXELS) for a, b in pairs) / len(features)
        strength_B = jnp.ones(len(x))
        if c.adaptive:
            still = jax.lax.stop_gradient(image)
            pixels = jax.grad(lambda y: ERRORS[c.error](y, x).mean(PIXELS).sum())(still)
            opinion = jax.grad(lambda y: adversarial(y)[0].sum())(still)
            # Both are of size 1 / number of pixels, which must not drown in the guard against 0.
            size = [jnp.sqrt((slope**2).mean(PIXELS)) * x[0].size for slope in (pixels, opinion)]
            ratio_B = size[0] / (size[1] + 1e-4)
            strength_B = jax.lax.stop_gradient(jnp.minimum(ratio_B, 1e4))
        metrics = {
            "adversarial": Mean.of(adversarial_B, weight_B),
            "features": Mean.of(feature_B, weight_B),
            "critic_strength": Mean.of(strength_B, weight_B),
            "score_real": Mean.of(real_Bhw.mean((1, 2)), weight_B),
            "score_fake": Mean.of(fake_Bhw.mean((1, 2)), weight_B),
        }
        return c.critic_weight * strength_B * adversarial_B + c.feature_weight * feature_B, metrics

    # After training -------------------------------------------------------------------------------

    def evaluate(self, params, mutables, batch, key_B):
        """`loss`: error of the pixels and commitment, without a critic; `psnr` in dB."""
        state, weight_B = self.quantizer.settled(mutables["model"]), batch["weight"]
        x = to_signed(batch["image"])
        image, _, _, commitment_B = self._autoencode(params["model"], state, batch)
        error_B = ERRORS[self.config.error](image, x).mean(PIXELS)
        return {
            "loss": Mean.of(error_B + self.config.commitment * commitment_B, weight_B),
            "reconstruction": Mean.of(error_B, weight_B),
            "commitment": Mean.of(commitment_B, weight_B),
            "psnr": Mean.of(psnr((image + 1) / 2, (x + 1) / 2), weight_B),
        }

    def predict(self, params, mutables, batch) -> dict[str, jax.Array]:
        """`codes` (B, h, w, c); −1 for what only fills up a batch."""
        code = self.encode(params, mutables, batch, None)
        return {"codes": jnp.where(batch["weight"][:, None, None, None] > 0, code, -1)}

    def summarize(self, predictions: dict[str, np.ndarray]) -> dict[str, float]:
        """`codes_used`: the share of codes used at all; `code_perplexity`: see `codebook.use`."""
        codes = predictions["codes"][predictions["codes"] >= 0]
        counts_K = np.bincount(codes, minlength=self.num_codes)
        return {
            "codes_used": float((counts_K > 0).mean()),
            "code_perplexity": float(perplexity(counts_K / max(counts_K.sum(), 1))),
        }

    def reconstruct(self, params, mutables, batch, key_B) -> jax.Array:
        """uint8 images (B, H, W, C), encoded and decoded."""
        state = self.quantizer.settled(mutables["model"])
        return to_bytes(self._autoencode(params["model"], state, batch)[0])

    def encode(self, params, mutables, batch, key_B) -> jax.Array:
        """int32 codes (B, h, w, c); there is nothing random about them."""
        state = self.quantizer.settled(mutables["model"])
        return self.quantizer.quantize(state, self._vectors(params["model"], batch))[1]

    def decode(self, params, mutables, latent_N) -> jax.Array:
        """uint8 images (N, H, W, C) of codes (N, h, w, c), without a class."""
        state = self.quantizer.settled(mutables["model"])
        vectors = self.quantizer.vectors(state, latent_N)
        return to_bytes(self._decode(params["model"], vectors, None))

    def sample(self, params, mutables, key_N, request: SampleRequest) -> jax.Array:
        """uint8 images (N, H, W, C) of codes drawn independently with their frequencies."""
        return self._sample(params["model"], mutables["model"], key_N, label_of(request.conditions))

    def _generate(self, params, state, key_N, label_N):
        state = self.quantizer.settled(state)
        uses_K = state["uses"]
        log_p_K = jnp.where(uses_K.sum() > 0, jnp.log(uses_K), 0.0)  # untrained: all alike

        def draw(key):
            return jax.random.categorical(key, log_p_K, shape=self.latent_shape)

        vectors = self.quantizer.vectors(state, jax.vmap(draw)(key_N))
        return to_bytes(self._decode(params, vectors, label_N))
