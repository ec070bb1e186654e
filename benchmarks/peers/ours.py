"""Our side: recipes, and the train step that `aigc train` compiles, with its donated state."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.metrics import to_floats
from aigc_jax.core.modality import Spec
from aigc_jax.experiment import build
from aigc_jax.families.lm.presets import GPT2
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer
from benchmarks.peers import work
from benchmarks.peers.work import Text

Batches = Sequence[Mapping[str, np.ndarray]]


class Training:
    """Trains a run.

    Args:
      run: its parts.
      batches: host batches, used cyclically.
      params: initial `{player: parameters}`; None: from the run's seed.
    """

    def __init__(self, run: build.Run, batches: Batches, params: Mapping[str, Any] | None = None):
        self.run = run
        state = run.fresh_state()
        if params is not None:
            check_same_shapes(state.params, params)
            state = state.replace(params=jax.tree.map(jnp.array, dict(params)))
        self.state = run.step.put_state(state)
        self.batches: Iterator[Any] = itertools.cycle(batches)

    def __call__(self, times: int) -> None:
        """Runs steps; as in training, they are dispatched before the previous one has finished."""
        for _ in range(times):
            batch = self.run.step.put_batch(next(self.batches))
            self.state, self.metrics = self.run.step(self.state, batch)
        jax.block_until_ready((self.state, self.metrics))

    @property
    def loss(self) -> float:
        """Loss of the last step."""
        return to_floats(self.metrics)["loss"]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return count(self.state.params)


def check_same_shapes(a: Any, b: Any) -> None:
    """Raises ValueError if two trees of parameters differ in names or shapes."""
    shapes = [jax.tree.map(np.shape, tree) for tree in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"parameters differ: {shapes[0]} and {shapes[1]}")


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def make(spec: Spec, **sections: Any) -> build.Run:
    """Builds a run on one device."""
    return build.build(build.parse_config({**sections, "mesh": "data=1"}), spec)


def lm(size: Text, **sample: Any) -> build.Run:
    """GPT-2 of the given size in nanoGPT's settings.

    Args:
      size: of the model.
      **sample: fields of the section `sample`.
    """
    model = dict(
        GPT2,
        activation="gelu_exact",
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        context=size.context,
        vocab_size=size.vocab,
    )
    return make(
        TextSpec(ByteTokenizer(), size.context),
        data=dict(source="python_docs", seq_len=size.context, batch_size=size.batch),
        model=model,
        objective=dict(name="lm"),
        optim=dict(work.LM_ADAMW, schedule="constant", decay_embeddings=True),
        sample=sample,
    )


def lm_batches(size: Text) -> Batches:
    weight = np.ones((size.batch, size.context), np.float32)
    return [{"tokens": tokens, "weight": weight} for tokens in work.texts(size)]


def unet() -> build.Run:
    """DDPM's ε-prediction with the U-Net of diffusers, and DDIM with its time steps."""
    channels = work.UNET_CHANNELS
    return make(
        ImageSpec(work.UNET_SHAPE),
        data=dict(source="digits", batch_size=work.UNET_BATCH),
        model=dict(
            name="unet",
            channels=channels,
            blocks=work.UNET_BLOCKS,
            attention_levels=(work.UNET_ATTENTION,),
            heads=1,
            head_size=8,
            embedding=4 * channels[0],
            frequencies=channels[0],
            middle_blocks=2,
            middle_attention="always",
            resample="conv",
            condition="shift",
            residual_scale=1.0,
            norm_groups=32,
        ),
        objective=dict(name="diffusion", prediction="epsilon", schedule="linear"),
        optim=dict(work.UNET_ADAMW, schedule="constant"),
        sample=dict(sampler="ddim", sigma_schedule="leading", steps=work.DDIM_STEPS),
    )


def gan() -> build.Run:
    """The DCGAN of configs/gan/dcgan28.py with DCGAN's loss and optimizer."""
    wide, middle, fine = work.GAN_CHANNELS
    player = dict(work.GAN_ADAM, name="adam", schedule="constant")
    return make(
        ImageSpec(work.SMALL_SHAPE),
        data=dict(source="digits", batch_size=work.GAN_BATCH),
        model=dict(
            name="dcgan",
            plain=True,
            latent=work.GAN_LATENT,
            generator_channels=(wide, middle, fine),
            strides=(1, 2, 2),
            critic_channels=(fine, middle),
            kernel=5,
        ),
        objective=dict(name="gan", loss="non_saturating"),
        optim=dict(critic=player, generator=player),
    )


def vae() -> build.Run:
    """The fully connected VAE of PyTorch's example."""
    return make(
        ImageSpec(work.SMALL_SHAPE),
        data=dict(source="digits", batch_size=work.VAE_BATCH),
        model=dict(name="mlp", latent=work.VAE_LATENT, hidden=(work.VAE_HIDDEN,)),
        objective=dict(name="vae", likelihood="bernoulli", binarize="none"),
        optim=dict(name="adam", lr=work.VAE_RATE, schedule="constant"),
    )


def image_batches(batch: int, shape: tuple[int, int, int]) -> Batches:
    weight = np.ones(batch, np.float32)
    return [{"image": x, "weight": weight} for x in work.images(batch, shape)]
