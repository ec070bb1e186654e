"""Resolves the config of a frozen first stage and loads its parameters from a workdir."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core.capabilities import UsesFirstStage
from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import Spec, check_spec
from aigc_jax.core.objective import Params
from aigc_jax.data.dataset import draw_examples
from aigc_jax.data.source import SupportsRowStreams, TrainSource
from aigc_jax.experiment.build import parse_config
from aigc_jax.experiment.restore import restore
from aigc_jax.families.latent.first_stage import PLAYER
from aigc_jax.training.checkpoint import restore_latest

LATENT_STATS_IMAGES = 512  # training images used for the latents' mean and standard deviation


def resolve_first_stage(
    config: Config, spec: Spec | None = None, saved: Mapping[str, Any] | None = None
) -> Config:
    """Returns the config with that of its first stage filled in, if there is one.

    Args:
      config: config of a run.
      spec: spec of its data, compared with that of the first stage; None skips the check.
      saved: config in the run's own workdir, which has the first stage's, if it exists.

    Raises:
      UserError: if the workdir holds no checkpoint, or one trained on other data.
    """
    workdir = config.first_stage.workdir
    if not workdir or config.first_stage.config:
        return config
    own = (saved or {}).get("first_stage", {})
    if own.get("workdir") == workdir:
        stage = own["config"]
    else:
        _, contents = restore_latest(workdir, lambda _, __, contents: contents["config"])
        stage = contents["config"]
        if spec is not None:
            check_spec(workdir, contents["spec"], spec, config.data.source)
    return parse_config({**config.raw, "first_stage": {"workdir": workdir, "config": stage}})


def without_first_stage(config: Config) -> Config:
    """Returns the config without its first stage, for data that are latents themselves."""
    return parse_config({**config.raw, "first_stage": {}})


def load_first_stage(
    workdir: str, objective: UsesFirstStage, params: Params, source: TrainSource
) -> Params:
    """Returns initial parameters with those of a trained autoencoder as frozen first stage.

    Args:
      workdir: workdir of the autoencoder.
      objective: objective on its latents or codes.
      params: initial `{player: parameters}`.
      source: training examples; the latents of a random subset give the mean and standard deviation
        for normalisation.

    Raises:
      UserError: if the workdir holds no checkpoint, or one whose sizes differ from the config, or
        the examples are streamed.
    """
    if isinstance(source, SupportsRowStreams):
        raise UserError("first_stage cannot encode streamed text: raise data.in_memory")
    _, state, _ = restore(workdir, optimizer=False)
    examples = draw_examples(source, LATENT_STATS_IMAGES)
    batch = {k: jnp.asarray(np.stack([e[k] for e in examples])) for k in examples[0]}
    frozen = objective.init_frozen(state.sampling_params, state.mutables, batch)
    shapes = [jax.tree.map(np.shape, tree) for tree in (frozen, params[PLAYER])]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"first_stage.workdir={workdir} holds another autoencoder than at the start of this"
            " run: use a new --workdir"
        )
    return {**params, PLAYER: jax.device_get(frozen)}
