"""UNet2DModel of diffusers, trained as its example `unconditional_image_generation` does.

The network is that of the diffusers course's second chapter, twice as wide, with attention at 16×16
as DDPM has it: 6.5 million parameters.
"""

import warnings
from typing import Any

import torch
from torch.nn import functional

from benchmarks.peers.theirs.images import signed
from benchmarks.peers.work import (
    UNET_ADAMW,
    UNET_ATTENTION,
    UNET_BATCH,
    UNET_BLOCKS,
    UNET_CHANNELS,
    UNET_SHAPE,
    images,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers


def network() -> Any:
    """UNet2DModel with random weights."""
    torch.manual_seed(0)
    height, _, colours = UNET_SHAPE
    attends = ["Attn" * (level == UNET_ATTENTION) for level in range(len(UNET_CHANNELS))]
    return diffusers.UNet2DModel(
        sample_size=height,
        in_channels=colours,
        out_channels=colours,
        layers_per_block=UNET_BLOCKS,
        block_out_channels=UNET_CHANNELS,
        down_block_types=[f"{kind}DownBlock2D" for kind in attends],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attends)],
    )


class Training:
    """The example's loop, without its average of parameters."""

    def __init__(self) -> None:
        self.model, self.steps = network().train(), 0
        self.scheduler = diffusers.DDPMScheduler()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=UNET_ADAMW["lr"],
            betas=(UNET_ADAMW["b1"], UNET_ADAMW["b2"]),
            weight_decay=UNET_ADAMW["weight_decay"],
        )
        self.batches = [signed(x) for x in images(UNET_BATCH, UNET_SHAPE)]

    def __call__(self, times: int) -> None:
        for _ in range(times):
            clean = self.batches[self.steps % len(self.batches)]
            noise, time = torch.randn_like(clean), torch.randint(0, 1000, (len(clean),))
            noisy = self.scheduler.add_noise(clean, noise, time)
            loss = functional.mse_loss(self.model(noisy, time).sample, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), UNET_ADAMW["clip_norm"])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1


def ddim(model: Any) -> Any:
    """The DDIM pipeline of a network."""
    pipeline = diffusers.DDIMPipeline(model.eval(), diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
