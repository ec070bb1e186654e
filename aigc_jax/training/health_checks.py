"""Checks the records of training against the ranges that an objective calls healthy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax.core.capabilities import SupportsHealthChecks
from aigc_jax.core.objective import HealthCheck, Objective

FIELD = "health_check"  # of a record: the metrics whose checks failed in it, separated by commas


class TriggeredCheck(NamedTuple):
    """A health check that failed in a run.

    Attributes:
      step: of the record in which it failed.
      metric: its name in the records of training.
      message: what that means and what to do.
    """

    step: int
    metric: str
    message: str


def health_checks_of(objective: Objective) -> tuple[HealthCheck, ...]:
    """The health checks of an objective, if it has any."""
    return objective.health_checks if isinstance(objective, SupportsHealthChecks) else ()


def triggered_checks(
    checks: Sequence[HealthCheck], records: Iterable[Mapping[str, Any]]
) -> list[TriggeredCheck]:
    """The checks that failed in a run, as its records say.

    Args:
      checks: the objective's, which have the messages.
      records: of metrics.jsonl.
    """
    found = []
    for record in records:
        for metric in record[FIELD].split(", ") if FIELD in record else ():
            # A metric may have one check for each side.
            messages = [c.message for c in checks if c.metric == metric and _outside(c, record)]
            for message in messages or ["it left its healthy range"]:
                found.append(TriggeredCheck(record["step"], metric, message))
    return found


def _outside(check: HealthCheck, record: Mapping[str, Any]) -> bool:
    return not check.low <= record[check.metric] <= check.high


class HealthMonitor:
    """Finds the checks that fail, record by record.

    A check fails once, in the record that completes its number of consecutive records outside the
    range; after the metric has been back inside it can fail again. A record without the metric, or
    with one that is NaN, changes nothing.

    Args:
      checks: what to watch.
      records: those of training so far, for a run that is resumed.
    """

    def __init__(
        self, checks: Iterable[HealthCheck] = (), records: Iterable[Mapping[str, Any]] = ()
    ):
        self._checks = tuple(checks)
        self.replay(records)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Starts again, with these records seen."""
        self._outside = [0] * len(self._checks)  # consecutive records
        for record in records:
            if record["kind"] == "train":
                self.check(record)

    def check(self, record: Mapping[str, Any]) -> list[HealthCheck]:
        """The checks that fail with this record."""
        failed = []
        for i, check in enumerate(self._checks):
            value = record.get(check.metric)
            if value is None or value != value:
                continue
            self._outside[i] = self._outside[i] + 1 if _outside(check, record) else 0
            if self._outside[i] == check.records:
                failed.append(check)
        return failed
