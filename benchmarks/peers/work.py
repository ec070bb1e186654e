"""Work of both sides: sizes, optimizer settings and random data.

Imports only NumPy, so that a process of one side does not load the other's libraries.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Text:
    """A language model and its batch."""

    layers: int
    width: int
    heads: int
    context: int
    batch: int = 1
    vocab: int = 257  # bytes, and one separator


NANOGPT = Text(layers=4, width=128, heads=4, context=64, batch=12)  # nanoGPT on a CPU
MEDIUM = Text(layers=6, width=384, heads=6, context=256, batch=8)  # on a GPU, but for the batch
WRITER = Text(layers=4, width=128, heads=4, context=256)
GPT2 = Text(layers=12, width=768, heads=12, context=1024, vocab=50_257)
# nanoGPT's; embeddings decay too.
LM_ADAMW = dict(lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.1, clip_norm=1.0)

UNET_SHAPE, UNET_BATCH, DRAWN, DDIM_STEPS = (32, 32, 3), 32, 16, 50
UNET_CHANNELS, UNET_BLOCKS, UNET_ATTENTION = (64, 128, 128), 2, 1  # attention at this level
# Of diffusers' example unconditional_image_generation.
UNET_ADAMW = dict(lr=1e-4, b1=0.95, b2=0.999, weight_decay=1e-6, clip_norm=1.0)

SMALL_SHAPE = (28, 28, 1)
GAN_BATCH, GAN_LATENT, GAN_CHANNELS = 64, 100, (256, 128, 64)  # of the generator
GAN_ADAM = dict(lr=2e-4, b1=0.5, b2=0.999)  # of both players
VAE_BATCH, VAE_LATENT, VAE_HIDDEN, VAE_RATE = 128, 20, 400, 1e-3

BATCHES = 4  # used in turn


def texts(size: Text) -> list[np.ndarray]:
    """Batches of random bytes, int32 (B, context + 1)."""
    rng, shape = np.random.default_rng(0), (size.batch, size.context + 1)
    return [rng.integers(0, 256, shape).astype(np.int32) for _ in range(BATCHES)]


def images(batch: int, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Batches of random images, uint8 (B, H, W, C)."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (batch, *shape)).astype(np.uint8) for _ in range(BATCHES)]
