"""The frozen first stage of a run: its config, and its parameters from a trained workdir."""

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
from aigc_jax.data.source import Source
from aigc_jax.experiment.build import parse_config
from aigc_jax.experiment.restore import restore
from aigc_jax.families.latent.first_stage import PLAYER
from aigc_jax.training.checkpoint import restore_latest

LATENT_STATS_IMAGES = 512  # training images whose latents give the normalisation of latents


def resolve_first_stage(
    config: Config, spec: Spec | None = None, saved: Mapping[str, Any] | None = None
) -> Config:
    """The config with that of its first stage filled in, if it names one.

    Args:
      config: of a run.
      spec: of its data, to be compared with what the first stage was trained on; None: unknown.
      saved: the config of the run's own workdir, if there is one: its first stage is already known.

    Raises:
      UserError: if the workdir holds no checkpoint, or one of other data.
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
    """The config of a model that reads its data directly, such as synthetic latents."""
    return parse_config({**config.raw, "first_stage": {}})


def load_first_stage(
    workdir: str, objective: UsesFirstStage, params: Params, source: Source
) -> Params:
    """Fresh parameters with a trained autoencoder as their frozen first stage.

    Args:
      workdir: of the autoencoder's run.
      objective: works in its latents or codes.
      params: `{player: parameters}`.
      source: of the training examples; the mean and standard deviation of some examples' latents,
        drawn evenly, normalise all latents.

    Raises:
      UserError: if the workdir holds no checkpoint, or one of other sizes than the config says.
    """
    _, state, _ = restore(workdir, optimizer=False)
    examples = draw_examples(source, LATENT_STATS_IMAGES)
    batch = {k: jnp.asarray(np.stack([e[k] for e in examples])) for k in examples[0]}
    frozen = objective.init_frozen(state.sampling_params, state.mutables, batch)
    shapes = [jax.tree.map(np.shape, tree) for tree in (frozen, params[PLAYER])]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"first_stage.workdir={workdir} now holds another autoencoder than when this run was"
            " first started: use a new --workdir"
        )
    return {**params, PLAYER: jax.device_get(frozen)}
