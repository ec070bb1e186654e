"""Detects failing training: consecutive non-finite steps and loss spikes."""

import statistics
from collections import deque
from typing import Any

from aigc_jax.core.config import AnomalyConfig
from aigc_jax.core.metrics import Metrics

MAD_TO_STD = 1.4826  # σ / MAD of a Gaussian


class TrainingAnomaly(Exception):
    """Training has failed at a step.

    Attributes:
      step: the step.
      reason: the cause, as a clause.
    """

    def __init__(self, step: int, reason: str):
        super().__init__(f"step {step}: {reason}")
        self.step, self.reason = step, reason


class AnomalyDetector:
    """Checks each step's metrics, in order.

    A loss *spikes* if it is more than `spike_threshold` robust standard deviations above the median
    of the last `spike_history` steps. The robust standard deviation is 1.4826 times the median
    absolute deviation, which outliers do not move.

    Attributes:
      rollbacks: number of rollbacks to a checkpoint so far.
    """

    def __init__(self, config: AnomalyConfig):
        self.config, self.rollbacks = config, 0
        self._skipped = 0  # in a row
        self._losses: dict[str, deque[float]] = {}

    @property
    def needs_sync(self) -> bool:
        """Returns whether one more skipped step is one too many: fetch its metrics at once."""
        return 0 < self.config.max_skipped <= self._skipped + 1

    def check(self, step: int, metrics: Metrics) -> None:
        """Checks the metrics of `step`, fetched from the devices.

        Raises:
          TrainingAnomaly: if too many steps in a row were skipped, or a loss spikes.
        """
        if float(metrics["skipped"].total) > 0:
            self._skipped += 1
            if 0 < self.config.max_skipped <= self._skipped:
                raise TrainingAnomaly(step, f"{self._skipped} steps in a row were not finite")
            return
        self._skipped = 0
        if self.config.spike_threshold:
            for name, mean in metrics.items():
                if name.split("/")[-1] == "loss":
                    self._check_loss(step, name, float(mean.total) / (float(mean.weight) or 1.0))

    def _check_loss(self, step: int, name: str, loss: float) -> None:
        size = self.config.spike_history
        past = self._losses.setdefault(name, deque(maxlen=size))
        if len(past) >= max(size // 2, 2):
            median = statistics.median(past)
            deviation = MAD_TO_STD * statistics.median(abs(x - median) for x in past)
            # A lower bound: if losses hardly vary, every fluctuation would count as a spike.
            deviation = max(deviation, 1e-3 * abs(median), 1e-12)
            if loss > median + self.config.spike_threshold * deviation:
                spike = (loss - median) / deviation
                raise TrainingAnomaly(
                    step, f"{name} spiked to {loss:.4g}, {spike:.0f} standard deviations up"
                )
        past.append(loss)

    def position(self) -> dict[str, Any]:
        """Returns the detector's state as plain values."""
        losses = {name: list(past) for name, past in self._losses.items()}
        return {"skipped": self._skipped, "rollbacks": self.rollbacks, "losses": losses}

    def seek(self, position: dict[str, Any]) -> None:
        """Restores a state returned by `position`."""
        self._skipped, self.rollbacks = position["skipped"], position["rollbacks"]
        size = self.config.spike_history
        self._losses = {k: deque(v, maxlen=size) for k, v in position["losses"].items()}
