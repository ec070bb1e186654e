"""The metrics between two records."""

import time
from typing import Any

import jax
import numpy as np

from aigc_jax.core.config import Guard as GuardConfig
from aigc_jax.core.metrics import Mean, Metrics, merge, to_floats
from aigc_jax.training.anomaly import AnomalyDetector


class MetricAccumulator:
    """The metrics since the last record, summed; fetched one step late.

    Its sums are kept in checkpoints, so that a run stopped between two records writes the same ones
    as a run that was not.

    Args:
      step: steps already taken.
      batch_size: examples per step, for the speed.
      guard: looks at each step's metrics as they arrive.
    """

    def __init__(self, step: int, batch_size: int = 0, guard: AnomalyDetector | None = None):
        self.batch_size, self.guard = batch_size, guard or AnomalyDetector(GuardConfig())
        self.waited = 0.0
        self._first = self._counted = step
        self._began = time.perf_counter()
        self._sums: dict[str, Mean] = {}
        self._pending: Metrics | None = None

    def add(self, metrics: Metrics) -> None:
        """Takes a step's metrics, still on their way, and fetches those of the step before.

        Raises:
          Trouble: if the guard finds them wrong.
        """
        self.collect()
        self._pending = metrics
        if self.guard.needs_sync:
            self.collect()

    def add_data_wait(self, seconds: float) -> None:
        """Counts what getting a batch has taken, unless a step was under way all the while."""
        leaves = jax.tree.leaves(self._pending)
        if all(x.is_ready() for x in leaves if isinstance(x, jax.Array)):
            self.waited += seconds

    def collect(self) -> None:
        """Fetches what is on its way.

        Raises:
          Trouble: if the guard finds it wrong.
        """
        if self._pending is not None:
            metrics, self._pending = jax.device_get(dict(self._pending)), None
            self._sums = merge(self._sums, metrics)
            self._counted += 1
            self.guard.check(self._counted, metrics)

    def close(self, step: int) -> dict[str, Any]:
        """The record of the steps so far, all collected; a new window begins."""
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
        if self.guard.rollbacks:
            record["rollbacks"] = self.guard.rollbacks
        self._first, self._sums, self.waited = step, {}, 0.0
        self._began = time.perf_counter()
        return record

    def exclude_time(self, seconds: float) -> None:
        """Leaves out time that was not spent on steps."""
        self._began += seconds

    def position(self) -> dict[str, Any]:
        """The sums so far and the guard's memory, as plain values; all must be collected."""
        sums = {k: [float(m.total), float(m.weight)] for k, m in self._sums.items()}
        return {"first": self._first, "sums": sums, "guard": self.guard.position()}

    def reset(self) -> None:
        """Goes back to before the first step."""
        self.seek(0, MetricAccumulator(0, guard=AnomalyDetector(self.guard.config)).position())

    def seek(self, step: int, position: dict[str, Any]) -> None:
        """Goes on after `step` from what `position` has returned."""
        self._first, self._counted, self._pending = position["first"], step, None
        self._sums = {
            k: Mean(np.float32(total), np.float32(weight))
            for k, (total, weight) in position["sums"].items()
        }
        self.guard.seek(position["guard"])
        self._began, self.waited = time.perf_counter(), 0.0
