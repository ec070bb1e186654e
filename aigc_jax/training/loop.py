"""The training loop: next batch, step, and what is due afterwards."""

import contextlib
import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from aigc_jax.core.errors import Stopped
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.training.anomaly import TrainingAnomaly
from aigc_jax.training.compile import CompiledStep
from aigc_jax.training.metric_window import MetricAccumulator

Hook = Callable[[int, Any], None]  # (step, state) after the step


@dataclasses.dataclass(frozen=True)
class Periodic:
    """A hook and when it is due: after every `steps` steps, and at the end if `last`.

    Attributes:
      done: whether a step's result is there already, from before the run was interrupted.
    """

    steps: int
    hook: Hook
    last: bool = False
    done: Callable[[int], bool] = lambda step: False

    def due(self, step: int, end: int) -> bool:
        return (self.steps > 0 and step % self.steps == 0) or (self.last and step == end)


@dataclasses.dataclass(frozen=True)
class RunCallbacks:
    """What keeps a run safe; the default keeps nothing.

    Attributes:
      every: how often to save, in steps; 0: only at the end and before hooks.
      save: (step, state, asked) → starts to save them; asked: only because of a request to stop.
      finish: (step) → returns when all up to that step is on the disk.
      recover: (trouble, steps taken since, state) → the step and state to go on from, or raises.
      tick: told where the main thread is.
      stop: requests to stop.
    """

    every: int = 0
    save: Callable[[int, Any, bool], None] = lambda step, state, asked: None
    finish: Callable[[int], None] = lambda step: None
    recover: Callable[[TrainingAnomaly, int, Any], tuple[int, Any]] | None = None
    tick: Callable[[str], None] = lambda where: None
    stop: PreemptionHandler = dataclasses.field(default_factory=PreemptionHandler)

    def due(self, step: int, end: int) -> bool:
        return step == end or (self.every > 0 and step % self.every == 0)


class Progress(Protocol):
    def update(self, n: int = 1) -> Any: ...

    def set_postfix_str(self, s: str, refresh: bool = True) -> Any: ...


def fit(
    step_fn: CompiledStep,
    state: Any,
    batches: Iterator[Any],
    *,
    start: int,
    end: int,
    hooks: tuple[Periodic, ...] = (),
    flush_at: Callable[[int], bool] = lambda step: False,
    write: Callable[[dict[str, Any]], None] = lambda record: None,
    window: MetricAccumulator | None = None,
    care: RunCallbacks | None = None,
    progress: Progress | None = None,
) -> Any:
    """Steps `start` … `end`; returns the last state, in the form that is saved.

    The host runs one step ahead: it reads the metrics of a step after it has handed the next one to
    the device, so the device never waits for it. The state is saved *before* the hooks of a step:
    whatever ends the run while it evaluates, the steps before are safe, and the hooks of that step
    are made up for when the run goes on.

    Args:
      step_fn: the compiled step.
      state: from `step_fn.put_state`.
      batches: this process's host batches.
      start: steps already taken.
      end: steps to have taken in the end.
      hooks: called with the step and the state, in order.
      flush_at: whether a metrics record is due after a step.
      write: takes each metrics record.
      window: gathers the metrics.
      care: what keeps the run safe.
      progress: shows each step.

    Raises:
      Stopped: if the run was asked to stop; its state is saved.
    """
    window, care = window or MetricAccumulator(start), care or RunCallbacks()
    stop, step, compiles = care.stop, start, 0

    def leave() -> None:
        care.finish(step)

    with stop.free(leave):
        due = [hook for hook in hooks if start and hook.due(start, end) and not hook.done(start)]
        run_due(due, start, step_fn, state, window)
    while step < end:
        began = time.perf_counter()
        care.tick(f"reading the data of step {step + 1}")
        batch = step_fn.put_batch(next(batches))
        window.add_data_wait(time.perf_counter() - began)
        care.tick(f"step {step + 1}")
        # The first call compiles, and nothing has been done yet that could be lost.
        with contextlib.nullcontext() if compiles else stop.free(leave):
            state, metrics = step_fn(state, batch)
        step, compiles = step + 1, compiles or 1
        due = [hook for hook in hooks if hook.due(step, end)]
        try:
            window.add(metrics)
            stopping = stop.agreed()
            saving = bool(due) or stopping or care.due(step, end)
            record_due = bool(due) or flush_at(step) or care.due(step, end)
            if saving or record_due:
                window.collect()
        except TrainingAnomaly as trouble:
            if care.recover is None:
                raise
            back, state = care.recover(trouble, step - trouble.step, state)
            if progress:
                progress.update(back - step + 1)
            step = back
            continue
        # A checkpoint never runs ahead of metrics.jsonl: a record is written before it.
        if record_due:
            record = window.close(step) | {"compiles": step_fn.compiles}
            write(record)
            if step_fn.compiles > compiles and kv_store.joined()[0] == 0:
                warnings.warn(
                    "the train step was compiled again: two batches differ in shape or type",
                    stacklevel=2,
                )
            compiles = step_fn.compiles
            if progress:
                progress.set_postfix_str(progress_postfix(record), refresh=False)
        if progress:
            progress.update()
        if saving:
            began = time.perf_counter()
            care.save(step, step_fn.get_state(state), not (due or care.due(step, end)))
            window.exclude_time(time.perf_counter() - began)
        if stopping and step < end:
            leave()
            stop.leave_together()
            raise Stopped(f"stopped after step {step}, which is saved")
        with stop.free(leave) if due else contextlib.nullcontext():
            run_due(due, step, step_fn, state, window)
    return step_fn.get_state(state)


def run_due(
    due: list[Periodic], step: int, step_fn: CompiledStep, state: Any, window: MetricAccumulator
) -> None:
    """The hooks of a step, in time that does not count as training."""
    began = time.perf_counter()
    for hook in due:
        hook.hook(step, step_fn.get_state(state))
    window.exclude_time(time.perf_counter() - began)


def progress_postfix(record: dict[str, Any]) -> str:
    """The losses of a record, for the end of a progress bar."""
    losses = [f"{k}={v:.4g}" for k, v in record.items() if k.split("/")[-1] == "loss"]
    skipped = record.get("skipped", 0.0)
    return " ".join(losses + ([f"skipped={skipped:.0%}"] if skipped else []))
