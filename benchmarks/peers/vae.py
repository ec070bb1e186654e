"""The VAE 784-400-20, compared with that of PyTorch's examples.

The two heads of their encoder are one layer of twice the width in ours. Theirs has ReLU and pixels
from 0 to 1, ours GELU and pixels from −1 to 1: outputs are compared with a modified copy of theirs,
the original is timed.
"""

from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers import ours
from benchmarks.peers.sides import Sides, check_close, check_count, size_of
from benchmarks.peers.theirs import vae as theirs
from benchmarks.peers.work import SMALL_SHAPE, VAE_BATCH


def training() -> Sides:
    """Sides of a train step."""
    batches = ours.image_batches(VAE_BATCH, SMALL_SHAPE)
    mine, peer = ours.Training(ours.vae(), batches), theirs.Training()
    notes = [
        check_count(mine.parameters, size_of(peer.model)),
        check_outputs(mine, batches[0]["image"] / np.float32(255)),
    ]
    mine(1)
    peer(1)
    return Sides(mine, peer, "; ".join(notes))


def check_outputs(mine: ours.Training, x: np.ndarray) -> str:
    """Compares outputs with our weights and activation; ValueError if they differ."""
    params, latents = mine.state.params["model"], mine.run.objective.latents
    model = theirs.VAE(lambda x: functional.gelu(x, approximate="tanh"))
    put(model, jax.device_get(params))
    mean, log_var = latents.encode(params, x, {})
    image = jax.nn.sigmoid(latents.generate(params, [mean], {}))
    with torch.no_grad():
        wanted = model.encode(torch.from_numpy(2 * x - 1).flatten(1))
        shown = model.decode(torch.from_numpy(np.array(mean))).reshape(image.shape)
    pairs = zip((mean, log_var, image), (*wanted, shown), strict=True)
    return [check_close("outputs", a, b.numpy(), 1e-3) for a, b in pairs][-1]


def put(model: theirs.VAE, params: Any) -> None:
    """Copies our weights into their model."""
    encoder, decoder = params["encoder"], params["decoder"]
    heads = {name: np.split(value, 2, -1) for name, value in encoder["latent"].items()}
    layers = {
        "hidden_in": encoder["hidden_0"],
        "mean": {name: halves[0] for name, halves in heads.items()},
        "log_var": {name: halves[1] for name, halves in heads.items()},
        "hidden_out": decoder["hidden_0"],
        "image": decoder["image"],
    }
    with torch.no_grad():
        for name, layer in layers.items():
            module = getattr(model, name)
            module.weight.copy_(torch.from_numpy(np.array(layer["kernel"].T)))
            module.bias.copy_(torch.from_numpy(np.array(layer["bias"])))
