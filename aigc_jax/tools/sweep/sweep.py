"""`aigc sweep`: hyperparameter search with Optuna.

Each trial is an ordinary `aigc train` in its own workdir, `trials/<number>`, which can be
evaluated, sampled from and trained further. Machines share Optuna's storage: the same command with
the same workdir on each of them is one search. An interrupted trial is queued again and continues
from its newest checkpoint on the machine that takes it.
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
    """Runs trials until the search has `trials` of them; returns their table.

    Args:
      search: its definition.
      workdir: folder of the search, shared by all machines.
      config_file: the recipe's file, as given to --config.
      trials: number of trials of all machines together.
      prune: whether to end trials early that are worse than the median at the same step.
      storage: URL of a database; "": a file in the workdir.
      seed: of the sampler; makes a search on one machine reproducible.
      flags: more flags for each run.
      stop: requests to stop.

    Raises:
      UserError: if the search cannot be started or a run fails.
      Stopped: on a request to stop; the same command continues the search.
    """
    workdir = os.path.abspath(os.path.expanduser(workdir))
    os.makedirs(workdir, exist_ok=True)
    stop = stop or PreemptionHandler()
    with stop.interruptible(lambda: None):
        worker = Worker(search, workdir, storage, prune, seed)
        worker.requeue_abandoned()
    base = [f"--config={config_file}", *overrides(config_file, search.config), *flags]
    while worker.num_started() < trials:
        worker.run_next(base, stop)
    return save_trials(worker.study, search, workdir)


def overrides(config_file: str, config: Mapping[str, Any]) -> list[str]:
    """Flags that turn the recipe of a file into this config."""
    before, now = flatten(load_recipe(config_file).to_dict()), flatten(config)
    return [f"--config.{k}={v}" for k, v in now.items() if before.get(k) != v]
