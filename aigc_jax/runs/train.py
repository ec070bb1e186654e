"""Trains a recipe in a workdir."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import ml_collections

from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.experiment import build
from aigc_jax.experiment.python_parts import Network, Optimizer, PythonParts
from aigc_jax.modalities.in_memory import IN_MEMORY
from aigc_jax.runs.trainer import Trainer
from aigc_jax.training.callbacks import Callback

Recipe: TypeAlias = Mapping[str, Any] | ml_collections.ConfigDict


def train(
    config: Recipe,
    workdir: str,
    *,
    data: Any = None,
    network: Network | None = None,
    optimizer: Optimizer | None = None,
    callbacks: Sequence[Callback] = (),
    name: str = "train",
    progress: bool = True,
    stop: PreemptionHandler | None = None,
) -> dict[str, float]:
    """Trains a recipe, or resumes from the newest checkpoint of the workdir.

    Args:
      config: a recipe, such as `configs/lm/quickstart.py` returns.
      workdir: the folder for everything that the run writes.
      data: examples that replace those of `data.source`: a dict of arrays, a list, a generator, a
        Hugging Face data set or a data frame; or a pair (training, held-out) of these.
      network: a Flax module that replaces the network of `model.name`, with the same call
        signature; a pair (generator, critic) for a GAN. The section `model` still applies
        otherwise.
      optimizer: an Optax transformation that replaces the section `optim`, or `{player: …}`.
      callbacks: observers of the run.
      name: label of the progress bar.
      progress: whether to show a progress bar.
      stop: handler of requests to stop; `aigc train` turns signals into such requests.

    Returns:
      The last evaluation record, or the last training record if the recipe does not evaluate.

    Raises:
      UserError: if the config is invalid, data are missing, or the workdir belongs to another
        config or is in use; its subclasses in `core/errors.py` if the run cannot continue.
    """
    if data is not None:
        plain = ml_collections.ConfigDict(config).to_dict()
        config = {**plain, "data": {**plain.get("data", {}), "source": IN_MEMORY}}
    trainer = Trainer(
        build.parse_config(config),
        workdir,
        stop,
        callbacks=callbacks,
        data=data,
        parts=PythonParts(network, optimizer),
    )
    return trainer.run(name, progress)
