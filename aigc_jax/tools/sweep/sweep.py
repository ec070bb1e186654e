"""`aigc sweep`: hyperparameters by trial, drawn by Optuna.

Each trial is an ordinary `aigc train` in a folder of its own, `trials/<number>`, which can be
looked at, sampled from and trained on. Optuna's storage is what the machines of a search share: the
same command on each of them, with the same workdir, makes one search. A trial that was interrupted
is put into Optuna's queue again, and goes on from its newest checkpoint on whichever machine takes
it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.core.config import flatten
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.tools.sweep.report import save_trials
from aigc_jax.tools.sweep.search_space import Search
from aigc_jax.tools.sweep.trials import Worker


def sweep(
    search: Search,
    workdir: str,
    *,
    config_file: str,
    trials: int = 20,
    prune: bool = False,
    storage: str = "",
    seed: int | None = None,
    flags: Sequence[str] = (),
    stop: PreemptionHandler | None = None,
) -> str:
    """Trains until the search has so many trials; returns their table.

    Args:
      search: what to try.
      workdir: the folder of the search; that of all machines that take part.
      config_file: the recipe's file, as given to --config.
      trials: how many, by all machines together.
      prune: whether to end trials early that evaluate worse than half of the others at that step.
      storage: a URL of a database instead of a file in the workdir.
      seed: of the draws; one machine alone then draws the same again.
      flags: more flags for each run.
      stop: requests to stop.

    Raises:
      UserError: if the search cannot begin or go on.
      Stopped: if it was asked to stop; the same command goes on with it.
    """
    workdir = os.path.abspath(os.path.expanduser(workdir))
    os.makedirs(workdir, exist_ok=True)
    stop = stop or PreemptionHandler()
    with stop.interruptible(lambda: None):
        worker = Worker(search, workdir, storage, prune, seed)
        worker.take_up_lost()
    base = [f"--config={config_file}", *overrides(config_file, search.config), *flags]
    while worker.taken() < trials:
        worker.run_one(base, stop)
    return save_trials(worker.study, search, workdir)


def overrides(config_file: str, config: Mapping[str, Any]) -> list[str]:
    """The flags that make the recipe of a file into this config."""
    before, now = flatten(load_recipe(config_file).to_dict()), flatten(config)
    return [f"--config.{k}={v}" for k, v in now.items() if before.get(k) != v]
