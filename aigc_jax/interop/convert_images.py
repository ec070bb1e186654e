"""diffusers' models of images as runs, and runs' models as theirs.

A network beside the autoencoder of its pipeline (`../vae`) becomes a model of latents behind that
autoencoder, as `data.first_stage` makes one; any other models images.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from aigc_jax.core.errors import UserError, shorten
from aigc_jax.distributed.processes import log_main
from aigc_jax.experiment import build
from aigc_jax.families.diffusion.diffusion_config import DiffusionConfig
from aigc_jax.families.latent.first_stage import PLAYER
from aigc_jax.interop.diffusers.folder import ImportedImages, read_image_folder, write_image_folder
from aigc_jax.interop.diffusers.models import BY_CONFIG
from aigc_jax.interop.diffusers.scheduler import CONFIG, read_schedule, write_schedule
from aigc_jax.interop.transformers.export import appearing, write_json
from aigc_jax.modalities.spec import ImageSpec, Spec

VAE = "vae"
FOLDERS = {"unet": "unet", "dit": "transformer"}  # of a pipeline
DIT_PIPELINE = {  # model_index.json
    "_class_name": "DiTPipeline",
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}


@dataclasses.dataclass(frozen=True)
class Made:
    """A model from elsewhere as a run that was never trained.

    Attributes:
      recipe: its config.
      spec: what its data would look like.
      params: `{player: parameters}`.
      origin: what its own library says of it.
      notes: what the person should know, a sentence each.
    """

    recipe: dict[str, Any]
    spec: Spec
    params: dict[str, Any]
    origin: dict[str, Any]
    notes: tuple[str, ...]


# Reading ------------------------------------------------------------------------------------------


def read(folder: str) -> Made:
    """The model in a folder of diffusers as a run.

    Raises:
      UserError: if there is none that can be held.
    """
    found = read_image_folder(folder)
    if not found.kind.denoises:
        return _made(found, _recipe(found, {}), _spec(found), {"model": found.params}, ())
    noise, notes = read_schedule(folder)
    recipe, vae = _recipe(found, noise), _beside(folder)
    if not vae:
        if found.shape[2] not in (1, 3):
            notes.append(
                f"it models images of {found.shape[2]} channels: if they are latents, put the"
                f" pipeline's autoencoder beside it as ../{VAE} and convert again"
            )
        return _made(found, recipe, _spec(found), {"model": found.params}, notes)
    stage = read_image_folder(vae)
    config = stage.kind.config(**stage.model)
    height, width, colours = found.shape
    if stage.kind.denoises or config.latent != colours:
        raise UserError(
            f"{shorten(vae)} does not make the latents of {colours} channels that"
            f" {shorten(folder)} is"
            " for: put the right autoencoder there, or none"
        )
    pixels = (height * config.factor, width * config.factor, stage.shape[2])
    spec = dataclasses.replace(
        _spec(found), shape=pixels, stage=build.parse_config(_recipe(stage, {})).raw
    )
    frozen = {
        "params": {"model": stage.params},
        "mutables": {},
        # The autoencoder's own factors are all that is done to latents.
        "shift": np.zeros(colours, np.float32),
        "scale": np.ones(colours, np.float32),
    }
    notes.append(f"it is a model of latents: the autoencoder in {shorten(vae)} comes with it")
    return _made(found, recipe, spec, {"model": found.params, PLAYER: frozen}, notes)


def _made(found: ImportedImages, recipe: Any, spec: Spec, params: Any, notes: Any) -> Made:
    origin = {"architecture": found.kind.theirs, "dtype": found.dtype}
    return Made(recipe, spec, params, origin, (*found.notes, *notes))


def _spec(found: ImportedImages) -> ImageSpec:
    return ImageSpec(found.shape, tuple(str(i) for i in range(found.classes)))


def _beside(folder: str) -> str:
    """The autoencoder of the folder's pipeline; "" if there is none."""
    above = os.path.dirname(os.path.abspath(os.path.expanduser(folder)))
    path = os.path.join(above, VAE)
    return path if os.path.isfile(os.path.join(path, "config.json")) else ""


def _recipe(found: ImportedImages, noise: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run that does not train: what a person fine-tunes has one of its own."""
    return dict(
        mesh="data=1",  # batches of one do not divide by many devices
        data=dict(source="digits", batch_size=1),
        model=dict(name=found.kind.ours, **found.model),
        objective={**found.kind.objective, **noise},
        optim=dict(name="none"),
        train=dict(steps=0),
        eval=dict(batch_size=4),
        sample=dict(num=4),
    )


# Writing ------------------------------------------------------------------------------------------


def write(folder: str, run: Any, params: Mapping[str, Any], workdir: str, dtype: str) -> None:
    """The model of a run as a folder of diffusers; one of latents as that of a pipeline.

    Args:
      folder: may exist if it is empty.
      run: `build.Run`.
      params: `{player: parameters}`.
      workdir: of the run, for messages.
      dtype: of the weights.

    Raises:
      UserError: if diffusers has no such model, or the folder is in use.
      StorageError: if it cannot be written.
    """
    config, objective = run.config.model, run.objective
    if type(config) not in BY_CONFIG:
        raise UserError(
            f"{workdir} holds a model that diffusers does not have: only model.name of"
            f" {', '.join(kind.ours for kind in BY_CONFIG.values())} can be written"
        )
    if PLAYER not in params:
        shape, classes = run.spec.shape, objective.num_classes
        _write(folder, run.config, config, params["model"], shape, classes, dtype)
        return
    stage = build.parse_config(run.spec.stage)
    autoencoder, inner = _with_scale(stage.model, params[PLAYER]), objective.objective
    name, shape = FOLDERS[run.config.raw["model"]["name"]], objective.stage.latent_shape
    with appearing(folder) as place:
        network = os.path.join(place, name)
        _write(network, run.config, config, params["model"], shape, inner.num_classes, dtype)
        if os.path.exists(os.path.join(network, CONFIG)):  # a pipeline has it elsewhere
            os.mkdir(os.path.join(place, "scheduler"))
            os.rename(os.path.join(network, CONFIG), os.path.join(place, "scheduler", CONFIG))
        frozen = params[PLAYER]["params"]["model"]
        _write(os.path.join(place, VAE), stage, autoencoder, frozen, run.spec.shape, 0, dtype)
        if name == "transformer":
            write_json(place, "model_index.json", DIT_PIPELINE)


def _write(
    folder: str,
    config: Any,
    model: Any,
    params: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    dtype: str,
) -> None:
    scheduler = None
    if isinstance(config.objective, DiffusionConfig):
        scheduler = write_schedule(config.objective)
        if scheduler is None:
            log_main(f"diffusers has no scheduler for this kind of noise: there is no {CONFIG}")
    params = {name: tree for name, tree in params.items() if name != "log_scale"}
    write_image_folder(folder, model, params, shape, classes, dtype=dtype, scheduler=scheduler)


def _with_scale(model: Any, frozen: Mapping[str, Any]) -> Any:
    """The autoencoder's config with the factors by which its latents are normalised."""
    if type(model) not in BY_CONFIG:
        raise UserError(
            "its first stage is an autoencoder that diffusers does not have: only model.name=kl can"
            " be written"
        )
    shift, scale = (np.unique(np.asarray(frozen[name], float)) for name in ("shift", "scale"))
    if shift.size > 1 or scale.size > 1:
        raise UserError(
            "its latents are normalised channel by channel, which diffusers cannot say: only models"
            " that came from there can be written with their autoencoder"
        )
    return dataclasses.replace(
        model,
        shift_factor=model.shift_factor + float(shift[0]) / model.scaling_factor,
        scaling_factor=model.scaling_factor * float(scale[0]),
    )
