"""DCGAN on 28×28 in PyTorch: as its example builds one, and as ours is built.

`example` is in the style of `examples/dcgan`: batch norm, no biases beside it, nothing but
(transposed) convolutions, of 5×5. `same` computes what ours does: group norm in the generator and
no norm in the critic. Our transposed convolutions are in sub-pixel form, whose kernels of 3×3 for
each of four places are here one of 6×6.
"""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.theirs.images import last, signed
from benchmarks.peers.work import (
    GAN_ADAM,
    GAN_BATCH,
    GAN_CHANNELS,
    GAN_LATENT,
    SMALL_SHAPE,
    images,
)

COARSE = 7  # the sides that are doubled twice
Players = tuple[nn.Sequential, nn.Sequential]  # generator and critic


def leaky() -> nn.Module:
    return nn.LeakyReLU(0.2, inplace=True)


def example() -> Players:
    """Players in the style of PyTorch's example."""
    wide, middle, fine = GAN_CHANNELS
    generator = nn.Sequential(
        nn.Unflatten(1, (GAN_LATENT, 1, 1)),
        nn.ConvTranspose2d(GAN_LATENT, wide, COARSE, 1, 0, bias=False),
        nn.BatchNorm2d(wide), nn.ReLU(True),
        nn.ConvTranspose2d(wide, middle, 5, 1, 2, bias=False),
        nn.BatchNorm2d(middle), nn.ReLU(True),
        nn.ConvTranspose2d(middle, fine, 5, 2, 2, 1, bias=False),
        nn.BatchNorm2d(fine), nn.ReLU(True),
        nn.ConvTranspose2d(fine, 1, 5, 2, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(
        nn.Conv2d(1, fine, 5, 2, 2, bias=False), leaky(),
        nn.Conv2d(fine, middle, 5, 2, 2, bias=False), nn.BatchNorm2d(middle), leaky(),
        nn.Conv2d(middle, 1, COARSE, 1, 0, bias=False), nn.Flatten(0),
    )  # fmt: skip
    return generator, critic


def same() -> Players:
    """Players that compute the same function as ours."""
    wide, middle, fine = GAN_CHANNELS
    pad = nn.ZeroPad2d((1, 2, 1, 2))  # as "SAME" pads for a stride of 2
    generator = nn.Sequential(
        nn.Linear(GAN_LATENT, wide * COARSE * COARSE),
        nn.Unflatten(1, (wide, COARSE, COARSE)),
        nn.GroupNorm(32, wide), leaky(), nn.Conv2d(wide, middle, 5, padding=2),
        nn.GroupNorm(32, middle), leaky(), nn.ConvTranspose2d(middle, fine, 6, 2, 2),
        nn.GroupNorm(16, fine), leaky(), nn.ConvTranspose2d(fine, 1, 6, 2, 2),
        nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(
        pad, nn.Conv2d(1, fine, 5, 2), leaky(),
        pad, nn.Conv2d(fine, middle, 5, 2), leaky(),
        nn.Flatten(), nn.Linear(middle * COARSE * COARSE, 1), nn.Flatten(0),
    )  # fmt: skip
    return generator, critic


class Training:
    """The example's loop, in its faster layout `channels_last`.

    A turn of the critic on real and on generated images, then one of the generator through the
    images that there are. The losses are of logits, which is the example's sigmoid and its loss.
    """

    def __init__(self, players: Players):
        self.generator, self.critic = (
            player.train().to(memory_format=torch.channels_last) for player in players
        )
        options = dict(lr=GAN_ADAM["lr"], betas=(GAN_ADAM["b1"], GAN_ADAM["b2"]))
        self.moves = [
            torch.optim.Adam(player.parameters(), **options)
            for player in (self.generator, self.critic)
        ]
        self.batches = [last(signed(x)) for x in images(GAN_BATCH, SMALL_SHAPE)]
        self.steps = 0

    def __call__(self, times: int) -> None:
        ones, zeros = torch.ones(GAN_BATCH), torch.zeros(GAN_BATCH)
        loss = functional.binary_cross_entropy_with_logits
        generator_moves, critic_moves = self.moves
        for _ in range(times):
            real = self.batches[self.steps % len(self.batches)]
            self.critic.zero_grad()
            loss(self.critic(real), ones).backward()
            fake = last(self.generator(torch.randn(GAN_BATCH, GAN_LATENT)))
            loss(self.critic(fake.detach()), zeros).backward()
            critic_moves.step()
            self.generator.zero_grad()
            loss(self.critic(fake), ones).backward()
            generator_moves.step()
            self.steps += 1
