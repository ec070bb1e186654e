"""Checks training records against the healthy ranges that an objective declares."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax.core.capabilities import SupportsHealthChecks
from aigc_jax.core.objective import HealthCheck, Objective

FIELD = "health_check"  # record field: metrics whose checks failed, separated by commas


class TriggeredCheck(NamedTuple):
    """A health check that failed in a run.

    Attributes:
      step: step of the record in which it failed.
      metric: name of the metric in training records.
      message: the likely cause and what to do.
    """

    step: int
    metric: str
    message: str


def health_checks_of(objective: Objective) -> tuple[HealthCheck, ...]:
    """Returns the health checks of an objective; () if it has none."""
    return objective.health_checks if isinstance(objective, SupportsHealthChecks) else ()


def triggered_checks(
    checks: Sequence[HealthCheck], records: Iterable[Mapping[str, Any]]
) -> list[TriggeredCheck]:
    """Returns the checks that failed in a run according to its records.

    Args:
      checks: the objective's checks.
      records: records of metrics.jsonl.
    """
    found = []
    for record in records:
        for metric in record[FIELD].split(", ") if FIELD in record else ():
            # A metric may have two checks: one for each side of its range.
            messages = [c.message for c in checks if c.metric == metric and _outside(c, record)]
            for message in messages or ["it left its healthy range"]:
                found.append(TriggeredCheck(record["step"], metric, message))
    return found


def _outside(check: HealthCheck, record: Mapping[str, Any]) -> bool:
    return not check.low <= record[check.metric] <= check.high


class HealthMonitor:
    """Runs health checks on successive records.

    A check fails in the record that completes its number of consecutive records outside the range;
    it can fail again once the metric has been inside. Records where the metric is missing or NaN
    are ignored.

    Args:
      checks: checks to run.
      records: training records so far, for a resumed run.
    """

    def __init__(
        self, checks: Iterable[HealthCheck] = (), records: Iterable[Mapping[str, Any]] = ()
    ):
        self._checks = tuple(checks)
        self.replay(records)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Resets the monitor and replays records."""
        self._outside = [0] * len(self._checks)  # consecutive records
        for record in records:
            if record["kind"] == "train":
                self.check(record)

    def check(self, record: Mapping[str, Any]) -> list[HealthCheck]:
        """Returns the checks that fail with this record."""
        failed = []
        for i, check in enumerate(self._checks):
            value = record.get(check.metric)
            if value is None or value != value:
                continue
            self._outside[i] = self._outside[i] + 1 if _outside(check, record) else 0
            if self._outside[i] == check.records:
                failed.append(check)
        return failed
