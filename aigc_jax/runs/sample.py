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
from aigc_jax.runs.report.samples import decode_samples
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
    """Draws samples from a workdir's newest checkpoint: uint8 images (N, H, W, C), or texts.

    Args:
      workdir: a trained run's folder.
      num: number of samples. Defaults to one per prompt or image if several are given, else
        `sample.num`.
      seed: random seed of the samples.
      prompt: a text to continue, or several.
      show: called with the pieces of a (single) text while it is generated.
      image: initial image, a file or array; the option `strength` (0…1) sets how far samples may
        depart from it.
      mask: inpainting mask, a file or array, white where to inpaint; see `load_init_images`.
      sigma_rel: relative width of the power-function average to use; needs `ema.sigma_rels`.
      mesh: mesh, as in a config; one device by default.
      network: the network of the run, if it was passed from Python and cannot be imported.
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
    return decode_samples(run.objective, samples, chosen)


def init_images(
    run: build.Run, image: Picture | None, mask: Picture | None
) -> dict[str, np.ndarray]:
    """Returns `SampleRequest.init` for an initial image and an optional mask.

    Raises:
      UserError: if the family does not support initial images, or their shape is wrong.
    """
    if not isinstance(run.objective, SupportsInitImage):
        name = run.config.raw["objective"]["name"]
        raise UserError(f"'{name}' does not sample from an initial image: omit image and mask")
    image_NHWC, mask_NHW = load_init_images(image, mask, run.objective.init_shape)
    return {"image": image_NHWC} | ({} if mask_NHW is None else {"inpaint_mask": mask_NHW})


def samples_of(count: int, num: int | None) -> int:
    """Returns the number of samples for `count` initial images: `num`, or one per image.

    Raises:
      UserError: if `num` is not a multiple of `count`.
    """
    num = count if num is None else num
    if num % count:
        raise UserError(f"{num} samples cannot be drawn from {count} images: set num to a multiple")
    return num


def stop_string_streamer(
    run: build.Run, options: Any, show: Callable[[str], None] | None
) -> StopStringStreamer | None:
    """Returns a streamer for `show` and stop strings; None if there are neither.

    Raises:
      UserError: if the family does not support streaming.
    """
    if not isinstance(run.objective, SupportsTextGeneration):
        if show is not None:
            name = run.config.raw["objective"]["name"]
            raise UserError(f"'{name}' does not support streaming: omit --stream")
        return None
    stops = options.stop
    return StopStringStreamer(run.objective.tokenizer, stops, show) if stops or show else None
