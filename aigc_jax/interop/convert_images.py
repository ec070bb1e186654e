"""Image models of diffusers as runs, and runs in the form of diffusers.

A network beside the autoencoder of its pipeline (`../vae`) becomes a model of latents with that
autoencoder as its frozen first stage.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from aigc_jax.core.conditions import LABEL, ClassLabel
from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError, shorten
from aigc_jax.distributed.main_process import log_main
from aigc_jax.experiment import build
from aigc_jax.families.latent.first_stage import PLAYER
from aigc_jax.interop.converted_run import ConvertedRun, read_origin, untrained_recipe
from aigc_jax.interop.diffusers.classes import BY_MODEL
from aigc_jax.interop.diffusers.read_folder import ImportedImages, read_diffusers_folder
from aigc_jax.interop.diffusers.scheduler import SCHEDULER, read_scheduler, scheduler_config
from aigc_jax.interop.diffusers.write_folder import write_diffusers_folder
from aigc_jax.interop.folder_writer import new_folder, write_json
from aigc_jax.modalities.image.spec import ImageSpec

MODELS = tuple(BY_MODEL)
VAE = "vae"
FOLDERS = {"unet": "unet", "dit": "transformer"}  # of a pipeline, by our `model.name`
DIT_PIPELINE = {  # model_index.json
    "_class_name": "DiTPipeline",
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}

# Importing ----------------------------------------------------------------------------------------


def import_diffusers(folder: str, base: str = "") -> ConvertedRun:
    """Reads the model in a folder of diffusers as a run."""
    found = read_diffusers_folder(folder)
    params: dict[str, Any] = {"model": found.params}
    if not found.table.has_scheduler:
        return _converted(found, _recipe(found, {}), _spec(found), params, ())
    noise, notes = read_scheduler(folder)
    recipe, vae = _recipe(found, noise), _find_autoencoder(folder)
    if not vae:
        if found.shape[2] not in (1, 3):
            notes.append(
                f"it models images of {found.shape[2]} channels: if they are latents, put the"
                f" pipeline's autoencoder beside it as ../{VAE} and convert again"
            )
        return _converted(found, recipe, _spec(found), params, notes)
    stage = read_diffusers_folder(vae)
    config = stage.table.config(**stage.model)
    height, width, channels = found.shape
    if stage.table.has_scheduler or config.latent != channels:
        raise UserError(
            f"{shorten(vae)} does not have the latents of {channels} channels that"
            f" {shorten(folder)} is for: put the right autoencoder there, or none"
        )
    pixels = (height * config.factor, width * config.factor, stage.shape[2])
    spec = dataclasses.replace(_spec(found), shape=pixels)
    recipe["first_stage"] = dict(config=build.parse_config(_recipe(stage, {})).raw)
    params[PLAYER] = {
        "params": {"model": stage.params},
        "mutables": {},
        # The autoencoder's own factors are all the normalisation that latents get.
        "shift": np.zeros(channels, np.float32),
        "scale": np.ones(channels, np.float32),
    }
    notes.append(f"it is a model of latents: the autoencoder in {shorten(vae)} is its first stage")
    return _converted(found, recipe, spec, params, notes)


def _converted(
    found: ImportedImages,
    recipe: dict[str, Any],
    spec: ImageSpec,
    params: dict[str, Any],
    notes: Sequence[str],
) -> ConvertedRun:
    origin = {"architecture": found.table.hf, "dtype": found.dtype}
    return ConvertedRun(recipe, spec, params, origin, (*found.notes, *notes))


def _spec(found: ImportedImages) -> ImageSpec:
    return ImageSpec(found.shape, tuple(str(i) for i in range(found.classes)))


def _find_autoencoder(folder: str) -> str:
    """Returns the folder of the pipeline's autoencoder; "" if there is none."""
    above = os.path.dirname(os.path.abspath(os.path.expanduser(folder)))
    path = os.path.join(above, VAE)
    return path if os.path.isfile(os.path.join(path, "config.json")) else ""


def _recipe(found: ImportedImages, noise: Mapping[str, Any]) -> dict[str, Any]:
    return untrained_recipe(
        data=dict(source="digits", batch_size=1),
        model=dict(name=found.table.aigc, **found.model),
        objective={**found.table.objective, **noise},
        sample=dict(num=4),
    )


# Exporting ----------------------------------------------------------------------------------------


def export_diffusers(
    path: str, run: build.Run, params: Mapping[str, Any], *, workdir: str, dtype: str | None
) -> None:
    """Writes a run's model as a folder of diffusers; a model of latents as a pipeline's folder."""
    dtype = dtype or read_origin(workdir).get("dtype", "float32")
    label = cast(ClassLabel | None, run.objective.conditions.get(LABEL))
    classes = label.num_classes if label else 0
    spec = cast(ImageSpec, run.spec)
    shape = spec.shape
    if PLAYER not in params:
        _write(path, run.config, run.config.model, params["model"], shape, classes, dtype)
        return
    stage = build.parse_config(run.config.first_stage.config)
    autoencoder = _with_latent_scale(stage, params[PLAYER])
    sides = (side // autoencoder.factor for side in autoencoder.filled(shape[:2]))
    latent_shape = (*sides, autoencoder.latent)
    name = FOLDERS[run.config.raw["model"]["name"]]
    with new_folder(path) as place:
        network, vae = os.path.join(place, name), os.path.join(place, VAE)
        _write(network, run.config, run.config.model, params["model"], latent_shape, classes, dtype)
        if os.path.exists(os.path.join(network, SCHEDULER)):  # a pipeline has it elsewhere
            os.mkdir(os.path.join(place, "scheduler"))
            os.rename(os.path.join(network, SCHEDULER), os.path.join(place, "scheduler", SCHEDULER))
        _write(vae, stage, autoencoder, params[PLAYER]["params"]["model"], shape, 0, dtype)
        if name == "transformer":
            write_json(place, "model_index.json", DIT_PIPELINE)


def _write(
    folder: str,
    config: Config,
    model: Any,
    params: Mapping[str, Any],
    shape: tuple[int, int, int],
    classes: int,
    dtype: str,
) -> None:
    """Writes one network and, if it denoises, its scheduler."""
    scheduler = None
    if BY_MODEL[config.raw["model"]["name"]].has_scheduler:
        scheduler = scheduler_config(config.objective)
        if scheduler is None:
            log_main(f"diffusers has no scheduler for this noise schedule: {SCHEDULER} is left out")
    params = {name: tree for name, tree in params.items() if name != "log_scale"}
    write_diffusers_folder(folder, model, params, shape, classes, dtype=dtype, scheduler=scheduler)


def _with_latent_scale(stage: Config, frozen: Mapping[str, Any]) -> Any:
    """Returns the autoencoder's config with the factors that normalise its latents."""
    name = stage.raw["model"]["name"]
    if name not in BY_MODEL or BY_MODEL[name].has_scheduler:
        raise UserError(
            f"its first stage has model.name={name}, which diffusers does not have: only kl can be"
            " exported"
        )
    shift, scale = (np.unique(np.asarray(frozen[name], float)) for name in ("shift", "scale"))
    if shift.size > 1 or scale.size > 1:
        raise UserError(
            "its latents are normalised per channel, which diffusers does not support: only models"
            " that were converted from there can be exported with their autoencoder"
        )
    return dataclasses.replace(
        stage.model,
        shift_factor=stage.model.shift_factor + float(shift[0]) / stage.model.scaling_factor,
        scaling_factor=stage.model.scaling_factor * float(scale[0]),
    )
