"""Hooks of the training loop: services of a run (`RunCallbacks`), and observers (`Callback`)."""

from collections.abc import Callable
from typing import Any

from aigc_jax.core.state import TrainState
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.training.anomaly import TrainingAnomaly

Record = dict[str, Any]  # a row of metrics.jsonl: `step`, `kind` and numbers


class Callback:
    """Observer of a run; every method is a no-op by default.

    A state is valid only during the call, since the next step donates its buffers: copy what is to
    be kept. In a run of several processes every process calls every hook, in the same order.
    """

    def on_train_begin(self, step: int, state: TrainState) -> None:
        """Called once before the first step, after `step` steps of an earlier session."""

    def on_step_end(self, step: int) -> None:
        """Called after each step is dispatched; the device may still be computing it."""

    def on_record(self, record: Record) -> None:
        """Called with each metric record, of training or of an evaluation."""

    def on_train_end(self, step: int, state: TrainState) -> None:
        """Called after the last step has been saved; not after an error."""

    def due(self, step: int, end: int) -> bool:
        """Returns whether `run` is due after a step.

        Args:
          step: steps taken.
          end: total steps of the run.
        """
        return False

    def done(self, step: int) -> bool:
        """Returns whether `run` was completed for a step before the run was interrupted."""
        return False

    def run(self, step: int, state: TrainState) -> None:
        """Performs the periodic action; the state has been saved, so that a failure loses nothing.

        If the run is interrupted in it, it is called again after the restart unless `done`.
        """


class Periodic(Callback):
    """Calls a function periodically.

    Args:
      every: period in steps; 0 disables.
      function: called with the step and the state; a subclass may override `run` instead.
      at_end: whether to call it after the last step too.
      done: returns whether it was completed for a step before a restart; by default False.
    """

    def __init__(
        self,
        every: int,
        function: Callable[[int, TrainState], None] | None = None,
        *,
        at_end: bool = False,
        done: Callable[[int], bool] | None = None,
    ):
        self.every, self.at_end = every, at_end
        self._function, self._done = function, done

    def due(self, step: int, end: int) -> bool:
        return (self.every > 0 and step % self.every == 0) or (self.at_end and step == end)

    def done(self, step: int) -> bool:
        return self._done is not None and self._done(step)

    def run(self, step: int, state: TrainState) -> None:
        if self._function is not None:
            self._function(step, state)


class RunCallbacks:
    """Services of a run to its loop: metric records, checkpoints, rollback, liveness, preemption.

    The defaults are no-ops.

    Attributes:
      preemption: handler of requests to stop.
    """

    def __init__(self, preemption: PreemptionHandler | None = None):
        self.preemption = preemption or PreemptionHandler()

    def should_log(self, step: int) -> bool:
        """Returns whether a metric record is due after a step."""
        return False

    def should_save(self, step: int, end: int) -> bool:
        """Returns whether a checkpoint is due after a step."""
        return step == end

    def log(self, record: Record) -> None:
        """Writes a metric record of training."""

    def save(self, step: int, state: TrainState, preempted: bool) -> None:
        """Starts saving a state.

        Args:
          step: steps taken.
          state: in the form that is saved.
          preempted: whether it is saved only because of a request to stop.
        """

    def flush(self, step: int) -> None:
        """Waits until everything up to a step is on the disk."""

    def rollback(self, anomaly: TrainingAnomaly, since: int, state: Any) -> tuple[int, Any]:
        """Rolls back; returns the step and the state to continue from, or raises `anomaly`.

        Args:
          anomaly: the cause, with its step.
          since: steps taken after it.
          state: the newest, in the form of `CompiledStep`.
        """
        raise anomaly

    def heartbeat(self, phase: str) -> None:
        """Called when the main thread enters `phase`, a name for messages."""
