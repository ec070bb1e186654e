"""The training loop: next batch, step, then due records, checkpoints and callbacks."""

import contextlib
import time
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from aigc_jax.core.errors import Stopped
from aigc_jax.core.feed import Feed
from aigc_jax.core.state import TrainState
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.training.anomaly import TrainingAnomaly
from aigc_jax.training.callbacks import Callback, Record, RunCallbacks
from aigc_jax.training.compile import CompiledStep
from aigc_jax.training.metric_window import MetricAccumulator


class Progress(Protocol):
    """Progress-bar interface, as of tqdm."""

    def update(self, n: int = 1) -> Any: ...

    def set_postfix_str(self, s: str, refresh: bool = True) -> Any: ...


def fit(
    step_fn: CompiledStep,
    state: Any,
    feed: Feed,
    *,
    start: int,
    end: int,
    run: RunCallbacks | None = None,
    callbacks: Sequence[Callback] = (),
    metrics: MetricAccumulator | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Takes the steps from `start` to `end`; returns the final state, in the form for checkpoints.

    The host runs one step ahead: it reads the metrics of a step after it has dispatched the next
    one, so the device never waits for it. The state is saved *before* periodic callbacks: whatever
    ends the run during an evaluation, the steps before are safe, and the callbacks of that step run
    after the restart.

    Args:
      step_fn: the compiled step.
      state: from `step_fn.put_state`.
      feed: this process's host batches.
      start: steps already taken.
      end: total steps of the run.
      run: services of the run: metric records, checkpoints, rollback, liveness, preemption.
      callbacks: observers, called in order.
      metrics: accumulator of the metrics between two records.
      progress: progress bar, advanced by each step.

    Raises:
      Stopped: if the run was asked to stop; its state is saved.
      TrainingAnomaly: if training went wrong and `run` has no rollback.
    """
    metrics, run = metrics or MetricAccumulator(start), run or RunCallbacks()
    preemption, step, compiles = run.preemption, start, 0

    def leave() -> None:
        run.flush(step)

    with preemption.interruptible(leave):
        for callback in callbacks:
            callback.on_train_begin(start, step_fn.get_state(state))
        due = [c for c in callbacks if start and c.due(start, end) and not c.done(start)]
        run_due(due, start, step_fn, state, metrics)
    while step < end:
        began = time.perf_counter()
        run.heartbeat(f"reading the data of step {step + 1}")
        batch = step_fn.put_batch(feed.next(state))
        metrics.add_data_wait(time.perf_counter() - began)
        run.heartbeat(f"step {step + 1}")
        # The first call compiles; interrupting it loses no progress.
        with contextlib.nullcontext() if compiles else preemption.interruptible(leave):
            state, step_metrics = step_fn(state, batch)
        step, compiles = step + 1, compiles or 1
        due = [callback for callback in callbacks if callback.due(step, end)]
        try:
            metrics.add(step_metrics)
            stopping = preemption.agreed()
            save_due = bool(due) or run.should_save(step, end)
            record_due = save_due or run.should_log(step)
            if record_due or stopping:
                metrics.collect()
        except TrainingAnomaly as anomaly:
            restored, state = run.rollback(anomaly, step - anomaly.step, state)
            if progress:
                progress.update(restored - step + 1)
            step = restored
            continue
        # A checkpoint never runs ahead of metrics.jsonl: a record is written before it.
        if record_due:
            record = metrics.close(step) | {"compiles": step_fn.compiles}
            run.log(record)
            if step_fn.compiles > compiles and is_main_process():
                warnings.warn(
                    "the train step was compiled again: two batches differ in shape or type",
                    stacklevel=2,
                )
            compiles = step_fn.compiles
            if progress:
                progress.set_postfix_str(progress_postfix(record), refresh=False)
        if progress:
            progress.update()
        for callback in callbacks:
            callback.on_step_end(step)
        if save_due or stopping:
            began = time.perf_counter()
            run.save(step, step_fn.get_state(state), not save_due)
            metrics.exclude_time(time.perf_counter() - began)
        if stopping and step < end:
            leave()
            preemption.shutdown_barrier()
            raise Stopped(f"stopped after step {step}, which is saved")
        with preemption.interruptible(leave) if due else contextlib.nullcontext():
            run_due(due, step, step_fn, state, metrics)
    state = step_fn.get_state(state)
    for callback in callbacks:
        callback.on_train_end(step, state)
    return state


def run_due(
    due: Sequence[Callback],
    step: int,
    step_fn: CompiledStep,
    state: Any,
    metrics: MetricAccumulator,
) -> None:
    """Runs the callbacks that are due after a step, and excludes their time from the speed."""
    began = time.perf_counter()
    for callback in due:
        callback.run(step, step_fn.get_state(state))
    metrics.exclude_time(time.perf_counter() - began)


def progress_postfix(record: Record) -> str:
    """Formats the losses of a record for a progress bar."""
    losses = [f"{k}={v:.4g}" for k, v in record.items() if k.split("/")[-1] == "loss"]
    skipped = record.get("skipped", 0.0)
    return " ".join(losses + ([f"skipped={skipped:.0%}"] if skipped else []))
