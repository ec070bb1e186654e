"""A diffusion U-Net, compared with UNet2DModel of diffusers: a train step, and DDIM."""

from typing import Any

import jax
import numpy as np
import torch

from aigc_jax.experiment import build
from aigc_jax.experiment.generate import make_request
from aigc_jax.interop.diffusers.read_folder import read_diffusers_folder
from aigc_jax.ops.random import fold, normal, numbered_keys
from benchmarks.peers import ours
from benchmarks.peers.sides import Sides, carried, check_close, check_count, repeated, size_of
from benchmarks.peers.theirs import unet as theirs
from benchmarks.peers.theirs.images import nchw
from benchmarks.peers.work import DDIM_STEPS, DRAWN, UNET_BATCH, UNET_SHAPE


def training() -> Sides:
    """Sides of a train step, after a comparison of outputs for the same noisy images."""
    peer = theirs.Training()
    params = {"model": carried(peer.model, read_diffusers_folder).params}
    mine = ours.Training(ours.unet(), ours.image_batches(UNET_BATCH, UNET_SHAPE), params)
    notes = [
        check_count(mine.parameters, size_of(peer.model)),
        check_outputs(mine.run, params["model"], peer.model),
    ]
    mine(1)
    peer(1)
    return Sides(mine, peer, "; ".join(notes))


def check_outputs(run: build.Run, params: Any, model: Any) -> str:
    """Compares the outputs of the networks; ValueError if they differ."""
    rng, time = np.random.default_rng(0), np.array([3, 500], np.float32)
    x = rng.normal(size=(len(time), *UNET_SHAPE)).astype(np.float32)
    answer = jax.jit(run.objective.model.apply)({"params": params}, x, time, {})
    with torch.no_grad():
        wanted = model(nchw(x), torch.from_numpy(time)).sample.numpy()
    return check_close("outputs", answer, np.moveaxis(wanted, 1, -1), 1e-3)


def sampling() -> Sides:
    """Sides of sampling with DDIM, with the same weights."""
    model, run = theirs.network(), ours.unet()
    params = {"model": jax.device_put(carried(model, read_diffusers_folder).params)}
    key_N = numbered_keys(jax.random.key(0), np.arange(DRAWN))
    request = make_request(run.objective, run.config.sample, DRAWN)
    pipeline = theirs.ddim(model)

    def mine() -> np.ndarray:
        return np.asarray(run.objective.sample(params, {}, key_N, request))

    def peer() -> np.ndarray:
        made = pipeline(
            batch_size=DRAWN, num_inference_steps=DDIM_STEPS, output_type="np",
            use_clipped_model_output=True,
        )  # fmt: skip
        return made.images

    note = check_images(mine(), peer, np.asarray(normal(fold(key_N, 0), UNET_SHAPE)))
    return Sides(repeated(mine), repeated(peer), note, DRAWN)


def check_images(images: np.ndarray, peer: Any, noise: np.ndarray) -> str:
    """Compares the images from the same noise; ValueError if they differ by more than a level.

    Ours are rounded to 256 levels.
    """
    from diffusers.pipelines.ddim import pipeline_ddim

    drawn, pipeline_ddim.randn_tensor = pipeline_ddim.randn_tensor, lambda *a, **k: nchw(noise)
    try:
        wanted = peer()
    finally:
        pipeline_ddim.randn_tensor = drawn
    return check_close("images", images / 255, wanted, 1.1 / 255)
