"""Watches the records of training for what an objective calls a bad sign."""

from collections.abc import Iterable, Mapping
from typing import Any

from aigc_jax.objectives.base import Alarm


class Alarms:
    """Which alarms go off, record by record.

    An alarm goes off once, in the record that makes it enough in a row; after the metric has been
    well again it can go off again. A record without the metric, or with one that is not finite,
    changes nothing.

    Args:
      alarms: what to watch.
      records: those of training so far, for a run that goes on.
    """

    def __init__(self, alarms: Iterable[Alarm] = (), records: Iterable[Mapping[str, Any]] = ()):
        self._alarms = tuple(alarms)
        self.replay(records)

    def replay(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Begins again, with these records seen."""
        self._rows = [0] * len(self._alarms)  # records outside, in a row
        for record in records:
            if record["kind"] == "train":
                self.check(record)

    def check(self, record: Mapping[str, Any]) -> list[Alarm]:
        """The alarms that this record sets off."""
        fired = []
        for i, alarm in enumerate(self._alarms):
            value = record.get(alarm.metric)
            if value is None or value != value:
                continue
            outside = not alarm.low <= value <= alarm.high
            self._rows[i] = self._rows[i] + 1 if outside else 0
            if self._rows[i] == alarm.records:
                fired.append(alarm)
        return fired
