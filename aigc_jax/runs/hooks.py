"""Periodic callbacks of a run: evaluation, sampling and EMA snapshots."""

import os
from collections.abc import Callable

from aigc_jax.core.modality import MODALITIES
from aigc_jax.core.state import TrainState
from aigc_jax.distributed.gather import gather_to_host, sampling_state
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.processes import broadcast_from_main
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.runs.report.samples import save_samples
from aigc_jax.runs.session import Session
from aigc_jax.training import posthoc_ema
from aigc_jax.training.callbacks import Periodic


class Evaluation(Periodic):
    """Evaluates the state and records the metrics.

    Args:
      session: the run; its `eval.every` is the period.
      evaluator: returns the metrics of a state.
    """

    def __init__(self, session: Session, evaluator: Callable[[TrainState], dict]):
        every = session.run.config.eval.every
        super().__init__(every, at_end=every > 0)
        self._session, self._evaluator = session, evaluator

    def done(self, step: int) -> bool:
        return bool(broadcast_from_main(self._session.records.has(step, "eval")))

    def run(self, step: int, state: TrainState) -> None:
        self._session.heartbeat(f"the evaluation after step {step}")
        self._session.log_evaluation(step, self._evaluator(state))


class Sampling(Periodic):
    """Writes samples into the workdir.

    Args:
      session: the run; its `sample.every` is the period.
    """

    def __init__(self, session: Session):
        every = session.run.config.sample.every
        super().__init__(every, at_end=every > 0)
        self._session = session

    def _path(self, step: int) -> str:
        suffix = MODALITIES[self._session.run.spec.modality].suffix
        return os.path.join(self._session.workdir, "samples", f"step_{step:07d}{suffix}")

    def done(self, step: int) -> bool:
        return bool(broadcast_from_main(os.path.exists(self._path(step))))

    def run(self, step: int, state: TrainState) -> None:
        self._session.heartbeat(f"sampling after step {step}")
        state = sampling_state(state)
        if is_main_process():
            with self._session.storage():
                save_samples(self._session.run, state, self._path(step))


class EmaSnapshot(Periodic):
    """Writes snapshots of the power-function averages, for post-hoc EMA.

    Args:
      session: the run; its `ema.snapshot_every` is the period.
    """

    def __init__(self, session: Session):
        ema = session.run.config.ema
        super().__init__(ema.snapshot_every if ema.sigma_rels else 0)
        self._session = session

    def done(self, step: int) -> bool:
        path = posthoc_ema.snapshot_path(self._session.workdir, step)
        return bool(broadcast_from_main(os.path.exists(path)))

    def run(self, step: int, state: TrainState) -> None:
        power_ema = gather_to_host(state.power_ema)
        if is_main_process():
            with self._session.storage():
                posthoc_ema.save_snapshot(self._session.workdir, step, power_ema)


def recipe_callbacks(session: Session, evaluator: Evaluator) -> tuple[Periodic, ...]:
    """Returns the evaluation, sampling and EMA-snapshot callbacks of a recipe, in call order."""
    return EmaSnapshot(session), Evaluation(session, evaluator), Sampling(session)
