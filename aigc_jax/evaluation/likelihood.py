"""Exact likelihoods of held-out examples, of objectives that compute them."""

import dataclasses

from tqdm import tqdm

from aigc_jax.core.capabilities import SupportsLikelihood
from aigc_jax.core.errors import UserError
from aigc_jax.core.state import TrainState
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.fixed_batches import eval_batches, num_batches
from aigc_jax.data.source import Example, Source
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.mesh import BATCH, axis_size, process_shard
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.experiment.build import Run
from aigc_jax.modalities.metric import EvaluationContext


def check_likelihood(context: EvaluationContext) -> None:
    """Raises UserError if `eval.likelihood_examples` is set for an objective without likelihoods.

    Args:
      context: of the run.
    """
    exact = isinstance(context.objective, SupportsLikelihood)
    if context.config.likelihood_examples and not exact:
        raise UserError(
            f"objective '{context.objective_name}' has no exact likelihood: set"
            " eval.likelihood_examples=0"
        )


class LikelihoodMetric:
    """Exact likelihoods of the first held-out examples; all processes call it together.

    Args:
      run: its parts; the objective supports likelihoods.
      dataset: the data.
    """

    def __init__(self, run: Run, dataset: Dataset):
        assert isinstance(run.objective, SupportsLikelihood)
        config = run.config.eval
        count = min(config.likelihood_examples, len(dataset.validation))
        devices = axis_size(run.mesh, *BATCH)
        self._examples = First(dataset.validation, count)
        self._batch_size = min(config.batch_size, -(-count // devices) * devices)
        self._shard = process_shard(run.mesh)
        self._held_out = HeldOut(run.objective, run.mesh, run.objective.exact_likelihood)

    def __call__(self, state: TrainState) -> dict[str, float]:
        """`bits_per_dim` among other metrics, with their intervals."""
        which = self._examples, self._batch_size
        looks = dict(leave=False, disable=not is_main_process())
        batches = eval_batches(*which, shard=self._shard)
        shown = tqdm(batches, "likelihoods", num_batches(*which), **looks)
        found, _ = self._held_out(state.sampling_params, state.mutables, shown)
        return found


@dataclasses.dataclass(frozen=True)
class First:
    """The first examples of a source."""

    source: Source
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        return self.source[index]
