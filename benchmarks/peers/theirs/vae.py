"""The VAE of PyTorch's examples (`examples/vae`), 784-400-20."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.peers.work import (
    SMALL_SHAPE,
    VAE_BATCH,
    VAE_HIDDEN,
    VAE_LATENT,
    VAE_RATE,
    images,
)


class VAE(nn.Module):
    """The example's network.

    Args:
      activation: of both hidden layers.
    """

    def __init__(self, activation: Callable[[torch.Tensor], torch.Tensor] = functional.relu):
        super().__init__()
        pixels, self.activation = int(np.prod(SMALL_SHAPE)), activation
        self.hidden_in = nn.Linear(pixels, VAE_HIDDEN)
        self.hidden_out = nn.Linear(VAE_LATENT, VAE_HIDDEN)
        self.mean, self.log_var = (nn.Linear(VAE_HIDDEN, VAE_LATENT) for _ in range(2))
        self.image = nn.Linear(VAE_HIDDEN, pixels)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.activation(self.hidden_in(x))
        return self.mean(hidden), self.log_var(hidden)

    def decode(self, u: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.image(self.activation(self.hidden_out(u))))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_var = self.encode(x)
        std = torch.exp(0.5 * log_var)
        return self.decode(mean + torch.randn_like(std) * std), mean, log_var


class Training:
    """The example's loop."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.steps = VAE().train(), 0
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=VAE_RATE)
        made = images(VAE_BATCH, SMALL_SHAPE)
        self.batches = [torch.from_numpy(x.astype(np.float32) / 255).flatten(1) for x in made]

    def __call__(self, times: int) -> None:
        for _ in range(times):
            x = self.batches[self.steps % len(self.batches)]
            self.optimizer.zero_grad()
            shown, mean, log_var = self.model(x)
            error = functional.binary_cross_entropy(shown, x, reduction="sum")
            kl = -0.5 * torch.sum(1 + log_var - mean.pow(2) - log_var.exp())
            (error + kl).backward()
            self.optimizer.step()
            self.steps += 1
