"""DCGAN on 28×28, beside PyTorch: as its example builds one, and the same function as ours."""

from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from benchmarks.peers import ours
from benchmarks.peers.sides import Sides, check_close, size_of
from benchmarks.peers.theirs import gan as theirs
from benchmarks.peers.theirs.images import nchw
from benchmarks.peers.work import GAN_BATCH, GAN_CHANNELS, GAN_LATENT, SMALL_SHAPE

GENERATOR = ("stem", "norm_0", "up_1", "norm_1", "up_2", "norm_2", "image")
CRITIC = ("down_0", "down_1", "score")


def training(as_in_example: bool) -> Sides:
    """Sides of a train step: a turn of each player.

    Args:
      as_in_example: theirs is built as in PyTorch's example; otherwise as ours is.
    """
    torch.manual_seed(0)
    players = theirs.example() if as_in_example else theirs.same()
    mine = ours.Training(ours.gan(), ours.image_batches(GAN_BATCH, SMALL_SHAPE))
    note = f"{mine.parameters:,} parameters, theirs {size_of(*players):,}"
    if not as_in_example:
        # In sub-pixel form each of the four positions has its own bias.
        extra = 3 * (GAN_CHANNELS[-1] + 1)
        if mine.parameters != size_of(*players) + extra:
            raise ValueError(note)
        note = f"{note}; {check_outputs(mine, *players)}"
    peer = theirs.Training(players)
    mine(1)
    peer(1)
    return Sides(mine, peer, note)


def check_outputs(mine: ours.Training, generator: nn.Module, critic: nn.Module) -> str:
    """Compares the outputs of both sides with our weights; ValueError if they differ."""
    params, objective = jax.device_get(mine.state.params), mine.run.objective
    put(generator, params["generator"], GENERATOR)
    put(critic, params["critic"], CRITIC)
    z = np.random.default_rng(0).normal(size=(4, GAN_LATENT)).astype(np.float32)
    made = np.asarray(objective.generator.apply({"params": params["generator"]}, z, {}))
    scores = objective.critic.apply({"params": params["critic"]}, made, {})
    with torch.no_grad():
        wanted, judged = generator(torch.from_numpy(z)), critic(nchw(made))
    check_close("images", np.moveaxis(made, -1, 1), wanted.numpy(), 1e-3)
    return check_close("images and scores", scores, judged.numpy(), 1e-3)


def put(network: nn.Sequential, params: Any, names: tuple[str, ...]) -> None:
    """Copies our weights into their network.

    Args:
      network: one of `theirs.same`.
      params: of ours.
      names: of our layers, in the order of their layers that have parameters.
    """
    layers = [m for m in network if next(m.parameters(), None) is not None]
    for name, layer in zip(names, layers, strict=True):
        own = params[name]
        own = own.get("conv", own)  # of a convolution in sub-pixel form
        weight, bias = own["kernel"] if "kernel" in own else own["scale"], own["bias"]
        if isinstance(layer, nn.ConvTranspose2d):
            weight, bias = transposed(weight), bias[: bias.size // 4]
        elif isinstance(layer, nn.Conv2d):
            weight = weight.transpose(3, 2, 0, 1)
        elif isinstance(layer, nn.Linear):
            weight, bias = channels_first(weight, bias)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(weight)))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))


def transposed(kernel: np.ndarray) -> np.ndarray:
    """Converts a sub-pixel kernel (3, 3, I, 4·O) to one of a transposed convolution (I, O, 6, 6).

    Output 2 j + p reads input j + k − 1 by tap k; a transposed convolution of padding 2 does so by
    its tap 2 j + p + 2 − 2 (j + k − 1) = p + 4 − 2 k.
    """
    i, o = kernel.shape[2], kernel.shape[3] // 4
    places = kernel.reshape(3, 3, i, 2, 2, o)
    made = np.zeros((i, o, 6, 6), kernel.dtype)
    for p in range(2):
        for q in range(2):
            made[:, :, 4 + p :: -2, 4 + q :: -2] = places[:, :, :, p, q].transpose(2, 3, 0, 1)
    return made


def channels_first(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts a dense layer from or to 7×7 positions to channels first."""
    side, inputs = theirs.COARSE, kernel.shape[0]
    if kernel.shape[1] == 1:
        return kernel.reshape(side, side, -1).transpose(2, 0, 1).reshape(1, inputs), bias
    weight = kernel.T.reshape(side, side, -1, inputs).transpose(2, 0, 1, 3)
    return weight.reshape(-1, inputs), bias.reshape(side, side, -1).transpose(2, 0, 1).ravel()
