"""Accumulates metrics between two records."""

import time
from typing import Any, cast

import jax
import numpy as np

from aigc_jax.core.config import AnomalyConfig
from aigc_jax.core.metrics import Mean, Metrics, merge, to_floats
from aigc_jax.training.anomaly import AnomalyDetector


class MetricAccumulator:
    """Sums metrics since the last record, fetching them from the device one step late.

    The sums are saved in checkpoints, so that a run resumed between two records writes the same
    records as an uninterrupted one.

    Args:
      step: steps already taken.
      batch_size: examples per step, for the throughput.
      detector: checks each step's metrics as they arrive.
    """

    def __init__(self, step: int, batch_size: int = 0, detector: AnomalyDetector | None = None):
        self.batch_size = batch_size
        self.detector = detector or AnomalyDetector(AnomalyConfig())
        self.data_wait = 0.0  # seconds
        self._first = self._counted = step
        self._began = time.perf_counter()
        self._sums: dict[str, Mean] = {}
        self._pending: Metrics | None = None

    def add(self, metrics: Metrics) -> None:
        """Adds a step's metrics, still being computed, and fetches those of the previous step.

        Raises:
          TrainingAnomaly: if the detector finds one.
        """
        self.collect()
        self._pending = metrics
        if self.detector.needs_sync:
            self.collect()

    def add_data_wait(self, seconds: float) -> None:
        """Adds a data stall: time waiting for a batch while no step was running."""
        arrays: list[Any] = [x for x in jax.tree.leaves(self._pending) if isinstance(x, jax.Array)]
        if all(x.is_ready() for x in arrays):
            self.data_wait += seconds

    def collect(self) -> None:
        """Fetches the metrics of the newest step.

        Raises:
          TrainingAnomaly: if the detector finds one.
        """
        if self._pending is not None:
            metrics, self._pending = jax.device_get(dict(self._pending)), None
            self._sums = merge(self._sums, metrics)
            self._counted += 1
            self.detector.check(self._counted, metrics)

    def close(self, step: int) -> dict[str, Any]:
        """Returns the record of the collected steps and starts the next record."""
        elapsed = time.perf_counter() - self._began
        steps = step - self._first
        record = {
            "step": step,
            "kind": "train",
            **to_floats(self._sums),
            "steps_per_second": steps / elapsed,
            "examples_per_second": steps * self.batch_size / elapsed,
            "data_wait": min(self.data_wait / elapsed, 1.0),
            "time": time.time(),
        }
        if self.detector.rollbacks:
            record["rollbacks"] = self.detector.rollbacks
        self._first, self._sums, self.data_wait = step, {}, 0.0
        self._began = time.perf_counter()
        return record

    def exclude_time(self, seconds: float) -> None:
        """Excludes time that was not spent on steps from the throughput."""
        self._began += seconds

    def position(self) -> dict[str, Any]:
        """Returns sums and the detector's state as plain values; call `collect` first."""
        sums = {k: [float(m.total), float(m.weight)] for k, m in self._sums.items()}
        return {"first": self._first, "sums": sums, "anomaly": self.detector.position()}

    def reset(self) -> None:
        """Returns to the state before the first step."""
        detector = AnomalyDetector(self.detector.config)
        self.seek(0, MetricAccumulator(0, detector=detector).position())

    def seek(self, step: int, position: dict[str, Any]) -> None:
        """Continues after `step` from a `position`."""
        self._first, self._counted, self._pending = position["first"], step, None
        sums: dict[str, Any] = position["sums"]
        self._sums = {
            k: Mean(*(cast(Any, np.float32(x)) for x in pair)) for k, pair in sums.items()
        }
        self.detector.seek(position["anomaly"])
        self._began, self.data_wait = time.perf_counter(), 0.0
