"""Train, evaluate and sample: what the command line and a notebook both call."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from aigc_jax.core.capabilities import SupportsInitImage, SupportsTextGeneration
from aigc_jax.core.config import Eval
from aigc_jax.core.errors import UserError
from aigc_jax.core.fields import check_value, parse
from aigc_jax.core.modality import check_spec
from aigc_jax.distributed.gather import sampling_state
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.experiment import build
from aigc_jax.experiment.generate import generate, make_request
from aigc_jax.experiment.restore import guidance_model_of, restore
from aigc_jax.inference.stop_strings import StopStringStreamer
from aigc_jax.modalities import sources
from aigc_jax.modalities.image.init_images import Picture, load_init_images
from aigc_jax.modalities.text.spec import text_tokenizer
from aigc_jax.runs.evaluate_images import judge_images
from aigc_jax.runs.report.samples import decode, save
from aigc_jax.runs.trainer import Trainer
from aigc_jax.training.posthoc_ema import reconstruct_ema

__all__ = ["evaluate", "judge_images", "restore", "sample", "save", "train"]

Recipe = Mapping[str, Any] | ml_collections.ConfigDict


def train(
    config: Recipe,
    workdir: str,
    *,
    name: str = "train",
    progress: bool = True,
    stop: PreemptionHandler | None = None,
) -> dict[str, float]:
    """Trains, or goes on where the workdir's newest checkpoint stands.

    Args:
      config: a recipe, such as `configs/lm/quickstart.py` returns.
      workdir: the folder for everything that the run writes.
      name: what the progress bar says.
      progress: whether there is one.
      stop: requests to stop; `aigc train` makes signals into such requests.

    Returns:
      The last evaluation, or the last training record if the recipe evaluates never.

    Raises:
      UserError: for a wrong config, missing data, or a workdir of another config or in use; its
        subclasses in `errors.py` for a run that cannot go on.
    """
    return Trainer(build.parse_config(config), workdir, stop or PreemptionHandler()).run(
        name, progress
    )


def evaluate(
    workdir: str,
    data_dir: str = "",
    source: str = "",
    *,
    sigma_rel: float | None = None,
    mesh: str = "",
    **options: Any,
) -> dict[str, Any]:
    """The held-out metrics of a workdir's newest checkpoint, `loss` among them.

    For classes and tags, `report` holds the scores of each. Samples of images are shown beside
    their nearest training images in `samples/neighbours.png`.

    Args:
      workdir: a trained run's folder.
      data_dir: where its prepared data set lies now; where it lay in training if left out.
      source: other data to evaluate on, as in `data.source`.
      sigma_rel: of the average of parameters to use; it needs the snapshots of `ema.sigma_rels`.
      mesh: over which devices, as in a config; one if left out.
      **options: fields of the section `eval`, such as `generations`.

    Raises:
      UserError: if there is no checkpoint, or its data cannot be found.
    """
    run, state, step = restore(workdir, mesh)
    if sigma_rel is not None:
        state = reconstruct_ema(workdir, state, sigma_rel)
    section = parse(Eval, {**dataclasses.asdict(run.config.eval), **options}, "eval")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, eval=section))
    data = run.config.data
    given = {"data_dir": data_dir, "source": source}
    data = dataclasses.replace(data, **{k: v for k, v in given.items() if v})
    dataset = sources.load(data, text_tokenizer(run.spec), run.spec if source else None)
    check_spec(workdir, run.spec.to_json(), dataset.spec, data.source)
    judge = Evaluator(run, dataset, source=data.source, folder=os.path.expanduser(workdir))
    return {"step": step, **judge(state)}


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
    **options: Any,
) -> np.ndarray | list[str]:
    """Samples from a workdir's newest checkpoint: uint8 images (N, H, W, C), or texts.

    Args:
      workdir: a trained run's folder.
      num: how many; if left out, one for each of several prompts or images, or the recipe's
        `sample.num`.
      seed: of the samples.
      prompt: a text to continue, or several.
      show: is given the pieces of a (single) text as they are drawn.
      image: a file or array to begin with; `strength` (0…1) says how much of it is drawn anew.
      mask: a file or array, white where the image is drawn anew; see `data.given`.
      sigma_rel: of the average of parameters to use; it needs the snapshots of `ema.sigma_rels`.
      mesh: over which devices, as in a config; one if left out.
      **options: fields of the family's `sample` section, such as `temperature` or `guidance`.

    Raises:
      UserError: if there is no checkpoint, or the family has no such option.
    """
    check_value(int, seed, "seed")
    run, state, _ = restore(workdir, mesh)
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
