"""TrainedModel: objective and parameters of a trained run, as pure functions."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from aigc_jax.core.config import Config
from aigc_jax.core.modality import Spec
from aigc_jax.core.objective import Mutables, Objective, Params
from aigc_jax.distributed.gather import sampling_state
from aigc_jax.experiment.python_parts import Network
from aigc_jax.experiment.restore import restore
from aigc_jax.training.posthoc_ema import reconstruct_ema


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model; unpacks as `objective, params = load(workdir)`.

    Attributes:
      objective: the objective; its methods are pure functions of parameters, mutables and a batch.
      params: `{player: parameters}` for evaluation and sampling: averages if the run keeps them.
      mutables: `{player: mutables}`.
      config: config of the run.
      spec: spec of its data.
      step: steps trained.
    """

    objective: Objective
    params: Params
    mutables: Mutables
    config: Config
    spec: Spec
    step: int

    def apply(self, params: Params, *arguments: Any, method: str = "evaluate") -> Any:
        """Calls a method of the objective; pure, so that it can be jitted, mapped, differentiated.

        Args:
          params: `{player: parameters}`, such as `self.params`.
          *arguments: arguments after parameters and mutables, such as a batch and a key per
            example.
          method: name of the method: "evaluate", "sample", or a method of one of its capabilities,
            such as "reconstruct", "encode", "decode" or "predict" (see `core/capabilities.py`).
        """
        return getattr(self.objective, method)(params, self.mutables, *arguments)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.objective, self.params))


def load(
    workdir: str,
    mesh: str = "",
    *,
    sigma_rel: float | None = None,
    network: Network | None = None,
) -> TrainedModel:
    """Loads the newest checkpoint of a workdir for inference; needs only the workdir.

    Args:
      workdir: a trained run's folder.
      mesh: mesh, as in a config; this process's first device by default.
      sigma_rel: relative width of the power-function average to use; needs `ema.sigma_rels`.
      network: the network of the run, if it was passed from Python and cannot be imported.

    Raises:
      UserError: if it holds no checkpoint.
    """
    run, state, step = restore(workdir, mesh, network=network, optimizer=False)
    if sigma_rel is not None:
        state = reconstruct_ema(workdir, state, sigma_rel)
    state = sampling_state(state)
    params = state.sampling_params
    return TrainedModel(run.objective, params, state.mutables, run.config, run.spec, step)
