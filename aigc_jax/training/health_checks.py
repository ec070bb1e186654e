"""Watches the records of training for what an objective calls a bad sign."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aigc_jax.core.capabilities import SupportsHealthChecks
from aigc_jax.core.objective import HealthCheck, Objective


class TriggeredCheck(NamedTuple):
    """An alarm that went off.

    Attributes:
      step: of the record that set it off.
      metric: as it is called in the records of training.
      message: what that means and what to do.
    """

    step: int
    metric: str
    message: str


def health_checks_of(objective: Objective) -> tuple[HealthCheck, ...]:
    """The health checks of an objective, if it has any."""
    return objective.health_checks if isinstance(objective, SupportsHealthChecks) else ()


def triggered_checks(
    alarms: Sequence[HealthCheck], records: Iterable[Mapping[str, Any]]
) -> list[TriggeredCheck]:
    """The alarms that went off in a run, as its records say.

    Args:
      alarms: the objective's, which have the messages.
      records: of metrics.jsonl.
    """
    found = []
    for record in records:
        for metric in record["alarm"].split(", ") if "alarm" in record else ():
            # One metric may have an alarm on either side.
            messages = [a.message for a in alarms if a.metric == metric and _outside(a, record)]
            for message in messages or ["it was not as it should be"]:
                found.append(TriggeredCheck(record["step"], metric, message))
    return found


def _outside(alarm: HealthCheck, record: Mapping[str, Any]) -> bool:
    return not alarm.low <= record[alarm.metric] <= alarm.high


class HealthMonitor:
    """Which alarms go off, record by record.

    An alarm goes off once, in the record that makes it enough in a row; after the metric has been
    well again it can go off again. A record without the metric, or with one that is not finite,
    changes nothing.

    Args:
      alarms: what to watch.
      records: those of training so far, for a run that goes on.
    """

    def __init__(
        self, alarms: Iterable[HealthCheck] = (), records: Iterable[Mapping[str, Any]] = ()
    ):
        self._alarms = tuple(alarms)
        self.replay(records)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begins again, with these records seen."""
        self._rows = [0] * len(self._alarms)  # records outside, in a row
        for record in records:
            if record["kind"] == "train":
                self.check(record)

    def check(self, record: Mapping[str, Any]) -> list[HealthCheck]:
        """The alarms that this record sets off."""
        fired = []
        for i, alarm in enumerate(self._alarms):
            value = record.get(alarm.metric)
            if value is None or value != value:
                continue
            self._rows[i] = self._rows[i] + 1 if _outside(alarm, record) else 0
            if self._rows[i] == alarm.records:
                fired.append(alarm)
        return fired
