"""Models of other libraries as workdirs, and workdirs' models in the form of other libraries.

Forms are registered by the name before the colon of `--from` and `--to`. An importer reads a model
as a `ConvertedRun`; an exporter says which models it can write, and writes one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from aigc_jax.core.errors import UserError, did_you_mean, shorten
from aigc_jax.core.registry import Registry
from aigc_jax.core.workdir import create_workdir, has_run, storage_errors, write_config
from aigc_jax.distributed.main_process import log_main
from aigc_jax.experiment import build
from aigc_jax.experiment.restore import restore
from aigc_jax.interop import convert_images, convert_text
from aigc_jax.interop.converted_run import ConvertedRun, write_origin
from aigc_jax.training.checkpoint import CheckpointWriter


class Exporter(Protocol):
    """Writes a run's model in the form of another library."""

    def __call__(
        self,
        path: str,
        run: build.Run,
        params: Mapping[str, Any],
        *,
        workdir: str,
        dtype: str | None,
    ) -> None:
        """Writes the model to `path`.

        Args:
          path: must not exist, or be an empty folder.
          run: of the workdir.
          params: `{player: parameters}` on the host.
          workdir: of the run.
          dtype: of the weights; None: that of the model which was converted, or float32.

        Raises:
          UserError: if the library has no such model.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ImportForm:
    """A form in which models are read.

    Attributes:
      what: of the path: DIR or FILE.
      read: (path, base) → the model as a run; `base` is the value of `--base`, "" if not given.
    """

    what: str
    read: Callable[[str, str], ConvertedRun]


@dataclasses.dataclass(frozen=True)
class ExportForm:
    """A form in which models are written.

    Attributes:
      models: values of `model.name` that it can hold.
      capability: protocol that the objective must have.
      write: writes one.
    """

    models: tuple[str, ...]
    capability: type
    write: Exporter


IMPORTERS: Registry[ImportForm] = Registry(
    "importer",
    "--from",
    {
        "hf": ImportForm("DIR", convert_text.import_hf),
        "gguf": ImportForm("FILE", convert_text.import_gguf),
        "peft": ImportForm("DIR", convert_text.import_peft),
        "diffusers": ImportForm("DIR", convert_images.import_diffusers),
    },
)
EXPORTERS: Registry[ExportForm] = Registry(
    "exporter",
    "--to",
    {
        "hf": ExportForm(convert_text.MODELS, convert_text.CAPABILITY, convert_text.export_hf),
        "peft": ExportForm(convert_text.MODELS, convert_text.CAPABILITY, convert_text.export_peft),
        "diffusers": ExportForm(convert_images.MODELS, object, convert_images.export_diffusers),
    },
)


def import_model(source: str, workdir: str, base: str = "") -> None:
    """Writes a workdir with the model of `source`, as if trained for 0 steps.

    Args:
      source: hf:DIR, gguf:FILE, diffusers:DIR or peft:DIR.
      workdir: must not have a run.
      base: hf:DIR or gguf:FILE, the model that the adapters of peft:DIR are for; "": the local
        folder that they name.

    Raises:
      UserError: if there is no such model, it is not supported, or the workdir is in use.
    """
    kind, _, path = source.partition(":")
    if not path or kind not in IMPORTERS:
        forms = " or ".join(f"{name}:{IMPORTERS[name].what}" for name in IMPORTERS.names())
        raise UserError(
            f"--from={shorten(source)} is not of the form {forms}:"
            f" {did_you_mean(kind, IMPORTERS.names())}"
        )
    if base and kind != "peft":
        raise UserError(f"--base is for the adapters of --from=peft:DIR, not for {kind}:")
    if has_run(workdir):
        raise UserError(f"{workdir} has a run already: choose another --workdir")
    converted = IMPORTERS[kind].read(path, base)
    config = build.parse_config(converted.recipe)
    run = build.build(config, converted.spec)
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), run.state_shapes())
    state = jax.device_put(state.replace(params=converted.params))
    create_workdir(workdir)
    writer = CheckpointWriter(workdir, keep=1)
    contents = {"config": config.raw, "spec": converted.spec.to_json()}
    writer.save(0, state, {"asked": False}, contents)
    writer.wait()
    writer.close()
    write_config(workdir, config.raw)
    with storage_errors(workdir):
        write_origin(workdir, converted.origin)
    for note in converted.notes:
        log_main(note)


def export_model(workdir: str, target: str, dtype: str | None = None) -> str:
    """Writes the workdir's model in the form of another library.

    Args:
      workdir: of a run.
      target: hf:DIR, adapters merged; peft:DIR, the adapters alone; diffusers:DIR.
      dtype: of the weights; None: that of the model which was converted, or float32.

    Returns:
      The folder.

    Raises:
      UserError: if the library has no such model, or the folder is in use.
    """
    kind, _, path = target.partition(":")
    if not path or kind not in EXPORTERS:
        forms = " or ".join(f"{name}:DIR" for name in EXPORTERS.names())
        raise UserError(
            f"--to={shorten(target)} is not of the form {forms}:"
            f" {did_you_mean(kind, EXPORTERS.names())}"
        )
    form = EXPORTERS[kind]
    run, state, _ = restore(workdir)
    name = run.config.raw["model"]["name"]
    if name not in form.models or not isinstance(run.objective, form.capability):
        raise UserError(
            f"cannot export {workdir} to {kind}: its model.name is {name}, and only"
            f" {', '.join(form.models)} has an equivalent there"
        )
    params = jax.device_get(state.sampling_params)
    form.write(path, run, params, workdir=workdir, dtype=dtype)
    return path
