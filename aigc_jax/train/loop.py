"""The training loop: next batch, step, and what is due afterwards."""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax

from aigc_jax.train.compile import CompiledStep
from aigc_jax.train.metrics import Mean, Metrics, merge, to_floats

Hook = Callable[[int, Any], None]  # (step, state) after the step


@dataclasses.dataclass(frozen=True)
class Every:
    """A hook and when it is due: after every `steps` steps, and at the end if `last`."""

    steps: int
    hook: Hook
    last: bool = False

    def due(self, step: int, end: int) -> bool:
        return (self.steps > 0 and step % self.steps == 0) or (self.last and step == end)


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
    hooks: tuple[Every, ...] = (),
    flush_at: Callable[[int], bool] = lambda step: False,
    write: Callable[[dict[str, Any]], None] = lambda record: None,
    batch_size: int = 0,
    progress: Progress | None = None,
) -> Any:
    """Steps `start` … `end`; returns the last state, in the form that is saved.

    The host runs one step ahead: it reads the metrics of a step after it has handed the next one to
    the device, so the device never waits for it.

    Args:
      step_fn: the compiled step.
      state: from `step_fn.put_state`.
      batches: this process's host batches.
      start: steps already taken.
      end: steps to have taken in the end.
      hooks: called with the step and the state, in order.
      flush_at: whether a metrics record is due after a step.
      write: takes each metrics record.
      batch_size: examples per step, for the speed.
      progress: shows each step.
    """
    window, compiles = Window(start, batch_size), 0
    for step in range(start + 1, end + 1):
        began = time.perf_counter()
        batch = step_fn.put_batch(next(batches))
        window.waited += time.perf_counter() - began
        state, metrics = step_fn(state, batch)
        window.add(metrics)
        due = [hook for hook in hooks if hook.due(step, end)]
        # A hook sees the metrics of its own step already written: a checkpoint never runs ahead of
        # metrics.jsonl.
        if due or flush_at(step) or step == end:
            record = window.close(step) | {"compiles": step_fn.compiles}
            write(record)
            if step_fn.compiles > max(compiles, 1):
                warnings.warn(
                    "the train step was compiled again: two batches differ in shape or type",
                    stacklevel=2,
                )
            compiles = step_fn.compiles
            if progress:
                progress.set_postfix_str(postfix(record), refresh=False)
            began = time.perf_counter()
            for hook in due:
                hook.hook(step, step_fn.get_state(state))
            window.paused(time.perf_counter() - began)
        if progress:
            progress.update()
    return step_fn.get_state(state)


class Window:
    """The metrics since the last record, summed; fetched one step late."""

    def __init__(self, step: int, batch_size: int):
        self.batch_size, self.waited = batch_size, 0.0
        self._first, self._began = step, time.perf_counter()
        self._sums: dict[str, Mean] = {}
        self._pending: Metrics | None = None

    def add(self, metrics: Metrics) -> None:
        """Takes a step's metrics, still on their way, and fetches those of the step before."""
        self._collect()
        self._pending = metrics

    def _collect(self) -> None:
        if self._pending is not None:
            self._sums = merge(self._sums, jax.device_get(dict(self._pending)))
            self._pending = None

    def close(self, step: int) -> dict[str, Any]:
        """The record of the steps so far; a new window begins."""
        self._collect()
        elapsed = time.perf_counter() - self._began
        steps = step - self._first
        record = {
            "step": step,
            "kind": "train",
            **to_floats(self._sums),
            "steps_per_second": steps / elapsed,
            "examples_per_second": steps * self.batch_size / elapsed,
            "data_wait": min(self.waited / elapsed, 1.0),
            "time": time.time(),
        }
        self._first, self._sums, self.waited = step, {}, 0.0
        self._began = time.perf_counter()
        return record

    def paused(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._began += seconds


def postfix(record: dict[str, Any]) -> str:
    """The losses of a record, for the end of a progress bar."""
    losses = [f"{k}={v:.4g}" for k, v in record.items() if k.split("/")[-1] == "loss"]
    skipped = record.get("skipped", 0.0)
    return " ".join(losses + ([f"skipped={skipped:.0%}"] if skipped else []))
