"""Draws samples from a trained workdir."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from aigc_jax.core.capabilities import SupportsInitImage, SupportsTextGeneration
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import check_value
from aigc_jax.distributed.gather import sampling_state
from aigc_jax.experiment import build
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.python_parts import Network
from aigc_jax.experiment.restore import guidance_model_of, restore
from aigc_jax.inference.stop_strings import StopStringStreamer
from aigc_jax.modalities.image.init_images import Picture, load_init_images
from aigc_jax.runs.report.samples import decode
from aigc_jax.training.posthoc_ema import reconstruct_ema


def sample(
    workdir: str,
    num: int | None = None,
    seed: int = 0,
    *,
    prompt: str | Sequence[str] | None = None,
    show: Callable[[str], None] | None = None,
    image: Picture | None = None,
    mask: Picture | None = None,
    sigma_rel: float | None = None,
    mesh: str = "",
    network: Network | None = None,
    **options: Any,
) -> np.ndarray | list[str]:
    """Samples from a workdir's newest checkpoint: uint8 images (N, H, W, C), or texts.

    Args:
      workdir: a trained run's folder.
      num: number of samples. Defaults to one per prompt or image if several are given, else
        `sample.num`.
      seed: of the samples.
      prompt: a text to continue, or several.
      show: receives the pieces of a (single) text while it is drawn.
      image: a file or array to begin with; `strength` (0…1) is how much of it is replaced.
      mask: a file or array, white where the image is drawn again; see `load_init_images`.
      sigma_rel: relative width of the power-function average to use; needs `ema.sigma_rels`.
      mesh: over which devices, as in a config; one if left out.
      network: that with which the run was trained, if it was given from Python and cannot be
        imported.
      **options: fields of the family's `sample` section, such as `temperature` or `guidance`.

    Raises:
      UserError: if there is no checkpoint, or the family has no such option.
    """
    check_value(int, seed, "seed")
    run, state, _ = restore(workdir, mesh, network=network, optimizer=False)
    if sigma_rel is not None:
        state = reconstruct_ema(workdir, state, sigma_rel)
    if prompt is not None:
        options["prompts"] = (prompt,) if isinstance(prompt, str) else tuple(prompt)
        if num is None and not isinstance(prompt, str):
            num = len(options["prompts"])
    if show is not None:
        num = 1
    init = None
    if image is not None or mask is not None:
        init = init_images(run, image, mask)
        num = samples_of(len(init["image"]), num)
    if num is not None:
        options["num"] = num
    chosen = build.sample_options(run.config, options)
    streamer = stop_string_streamer(run, chosen, show)
    request = make_request(
        run.objective,
        chosen,
        chosen.num,
        init=init,
        token_callback=streamer,
        guidance_model=guidance_model_of(run, chosen),
    )
    state = sampling_state(state)
    samples = generate(run.objective, state.sampling_params, state.mutables, request, seed)
    if streamer is not None:
        streamer.close()
    return decode(run.objective, samples, chosen)


def init_images(
    run: build.Run, image: Picture | None, mask: Picture | None
) -> dict[str, np.ndarray]:
    """`SampleRequest.init` of given images, with a mask if there is one.

    Raises:
      UserError: if the family's samples do not begin with images, or the images do not fit.
    """
    if not isinstance(run.objective, SupportsInitImage):
        name = run.config.raw["objective"]["name"]
        raise UserError(f"samples of '{name}' do not begin with an image: leave out image and mask")
    image_NHWC, mask_NHW = load_init_images(image, mask, run.objective.init_shape)
    return {"image": image_NHWC} | ({} if mask_NHW is None else {"inpaint_mask": mask_NHW})


def samples_of(count: int, num: int | None) -> int:
    """The number of samples that begin with `count` images: `num`, or one for each.

    Raises:
      UserError: if it is no multiple of `count`.
    """
    num = count if num is None else num
    if num % count:
        raise UserError(f"{num} samples cannot begin with {count} images: ask for a multiple")
    return num


def stop_string_streamer(
    run: build.Run, options: Any, show: Callable[[str], None] | None
) -> StopStringStreamer | None:
    """Shows a text while it is drawn, or ends it at a stop string; None if neither is asked for.

    Raises:
      UserError: if the family's samples cannot be streamed.
    """
    if not isinstance(run.objective, SupportsTextGeneration):
        if show is not None:
            name = run.config.raw["objective"]["name"]
            raise UserError(f"samples of '{name}' cannot be streamed: leave out --stream")
        return None
    stops = options.stop
    return StopStringStreamer(run.objective.tokenizer, stops, show) if stops or show else None
