"""Metric log of a run: metrics.jsonl, TensorBoard events and the progress bar."""

import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from tqdm import tqdm

from aigc_jax.core.files import open_file
from aigc_jax.core.workdir import write_text_atomically

METRICS = "metrics.jsonl"
_files = itertools.count(1)


class MetricsFile:
    """JSON-lines file of metric records; resuming drops records later than the checkpoint.

    A record that cannot be written is kept, and written before the next one.

    Args:
      workdir: the run's folder.
      step: the step at which the run resumes.

    Every method raises OSError if a write fails, such as on a full disk.
    """

    def __init__(self, workdir: str, step: int):
        self._path = os.path.join(workdir, METRICS)
        self.kept = [r for r in read_metrics(workdir) if r["step"] <= step]
        write_text_atomically(self._path, "".join(json.dumps(r) + "\n" for r in self.kept))
        self._end = os.path.getsize(self._path)
        self._fd = os.open(self._path, os.O_WRONLY)
        self._waiting = b""
        self._board = TensorBoardWriter(workdir, step)

    def write(self, record: dict[str, Any]) -> None:
        """Writes a record: `step`, `kind` ("train", "eval") and numbers."""
        clean = finite_json(record)
        self._waiting += (json.dumps(clean) + "\n").encode()
        self._write_waiting()
        self._board.write(clean)

    def _write_waiting(self) -> None:
        # A line that a full disk has truncated is overwritten by the next attempt.
        while self._waiting:
            written = os.pwrite(self._fd, self._waiting, self._end)
            self._end, self._waiting = self._end + written, self._waiting[written:]

    def flush(self) -> None:
        """Syncs the file to the disk."""
        self._write_waiting()
        os.fsync(self._fd)
        self._board.flush()

    def close(self) -> None:
        os.close(self._fd)
        self._board.close()


class TensorBoardWriter:
    """Writes records as TensorBoard events, in the calling thread.

    (The writers of TensorBoard's packages use a background thread; on a full disk it dies, and the
    run deadlocks.)
    """

    def __init__(self, workdir: str, step: int):
        self._workdir, self._step = workdir, step
        self._writer: Any = None

    def write(self, record: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        step, kind = record["step"], record["kind"]
        for key, value in record.items():
            if isinstance(value, (int, float)) and key != "step":
                event = Event(wall_time=time.time(), step=step)
                event.summary.CopyFrom(scalar(f"{kind}/{key}", value))
                self._add(event)

    def _add(self, event: Any) -> None:
        self._open()
        try:
            self._writer.write_event(event)
        except OSError:
            self.close()  # nothing after a truncated event can be read: start a new file
            raise

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            # The default name has a resolution of 1 s, within which a run can start twice.
            suffix = f".{os.getpid()}.{next(_files)}"
            self._writer = EventsWriter(os.path.join(self._workdir, "events"), suffix)
            if self._step:  # makes TensorBoard drop events after the checkpoint
                log = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=self._step + 1, session_log=log))

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None


def finite_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces values that are not finite, which JSON cannot represent, by None."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }


class MetricLogger:
    """Writes the records of a run, with learning rates in training records.

    Attributes:
      last: the newest record.
    """

    def __init__(self, workdir: str, step: int, schedules: Mapping[str, Callable[[Any], Any]]):
        self._workdir, self._schedules = workdir, schedules
        self._open(step)

    def rewind(self, step: int) -> None:
        """Drops records later than `step`."""
        self._file.close()
        self._open(step)

    def _open(self, step: int) -> None:
        self._file = MetricsFile(self._workdir, step)
        self.last: dict[str, Any] = self._file.kept[-1] if self._file.kept else {}
        self._kept = {(r["step"], r.get("kind")) for r in self._file.kept}

    @property
    def kept(self) -> list[dict[str, Any]]:
        """Returns the records from before the run was resumed."""
        return self._file.kept

    def has(self, step: int, kind: str) -> bool:
        """Returns whether there was such a record when the run was resumed."""
        return (step, kind) in self._kept

    def write(self, record: dict[str, Any]) -> None:
        self.last = record
        self._file.write(record)

    def write_train(self, record: dict[str, Any]) -> None:
        """Writes a record with the learning rate of its last step, per player if several."""
        rates = {
            f"{player}/lr" if len(self._schedules) > 1 else "lr": float(rate(record["step"] - 1))
            for player, rate in self._schedules.items()
        }
        self.write(record | rates)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class NullLogger:
    """Discards records: for all processes but the first."""

    def __init__(self):
        self.last: dict[str, Any] = {}
        self.kept: list[dict[str, Any]] = []

    def rewind(self, step: int) -> None:
        pass

    def has(self, step: int, kind: str) -> bool:
        return False

    def write(self, record: dict[str, Any]) -> None:
        self.last = record

    write_train = write

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """Reads the records of a run, skipping truncated or damaged lines."""
    path = os.path.join(workdir, METRICS)
    if not os.path.exists(path):
        return []
    records = []
    with open_file(path) as f:
        for line in f:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
                continue
            if isinstance(record.get("step"), int):
                records.append(record)
    return records


def progress_bar(total: int, start: int, name: str, file: TextIO | None = None) -> tqdm:
    """Returns a progress bar with an ETA; in a log file it writes a line now and then."""
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
