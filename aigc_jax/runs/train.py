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
      data: examples instead of those of `data.source`: a dict of arrays, a list, a generator, a
        Hugging Face data set or a data frame; or (training, held-out) of these.
      network: a Flax module instead of that of `model.name`, called in the same way; a GAN takes
        (generator, critic). The rest of the section `model` stays in force.
      optimizer: an Optax transformation instead of the section `optim`, or `{player: …}`.
      callbacks: observers of the run.
      name: label of the progress bar.
      progress: whether to show one.
      stop: requests to stop; `aigc train` turns signals into such requests.

    Returns:
      The last evaluation, or the last training record if the recipe never evaluates.

    Raises:
      UserError: for a wrong config, missing data, or a workdir of another config or in use; its
        subclasses in `core/errors.py` for a run that cannot continue.
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
