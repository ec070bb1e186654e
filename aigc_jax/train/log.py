"""What a run writes down: metrics.jsonl, TensorBoard events and the progress bar."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

METRICS = "metrics.jsonl"


class MetricsFile:
    """One JSON object per record; resuming drops records later than the checkpoint.

    Args:
      workdir: the run's folder.
      step: the step from which the run goes on.
    """

    def __init__(self, workdir: str, step: int):
        from tensorboardX import SummaryWriter

        path = os.path.join(workdir, METRICS)
        kept = [r for r in read_metrics(workdir) if r["step"] <= step]
        temporary = path + ".tmp"
        with open(temporary, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(r) + "\n" for r in kept)
        os.replace(temporary, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(workdir, purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """`record` has `step`, `kind` ("train", "eval") and numbers."""
        clean = finite_json(record)
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        for key, value in clean.items():
            if isinstance(value, (int, float)) and key != "step":
                self._board.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def flush(self) -> None:
        """On the disk, not only in the operating system's memory."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self._file.close()
        self._board.close()


def finite_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a value that is not finite is null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }


class Records:
    """A run's records: learning rates are added to those of training.

    Attributes:
      last: the newest record.
    """

    def __init__(self, workdir: str, step: int, schedules: Mapping[str, Callable[[int], Any]]):
        self._file = MetricsFile(workdir, step)
        self._schedules = schedules
        self.last: dict[str, Any] = {}

    def write(self, record: dict[str, Any]) -> None:
        self.last = record
        self._file.write(record)

    def write_train(self, record: dict[str, Any]) -> None:
        """Adds the rate of the record's last step, per player if there are several."""
        rates = {
            f"{player}/lr" if len(self._schedules) > 1 else "lr": float(rate(record["step"] - 1))
            for player, rate in self._schedules.items()
        }
        self.write(record | rates)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class NoRecords:
    """For processes that leave the writing to the first."""

    def __init__(self):
        self.last: dict[str, Any] = {}

    def write(self, record: dict[str, Any]) -> None:
        self.last = record

    write_train = write

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The records of a run; a last line cut off by a kill is left out."""
    path = os.path.join(workdir, METRICS)
    if not os.path.exists(path):
        return []
    records = []
    with open(path, encoding="utf-8") as f:
        for line in f:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if isinstance(record, dict) and "step" in record:
                records.append(record)
    return records


def progress(total: int, start: int, name: str, file: TextIO | None = None) -> tqdm:
    """A bar with an ETA; on a terminal it moves, in a log file it writes a line now and then."""
    file = file or sys.stderr
    return tqdm(
        total=total,
        initial=start,
        desc=name,
        unit="step",
        file=file,
        mininterval=0.2 if file.isatty() else 30,
        dynamic_ncols=True,
    )
