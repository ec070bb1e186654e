"""What a run writes down: metrics.jsonl, TensorBoard events and the progress bar."""

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
    """One JSON object per record; resuming drops records later than the checkpoint.

    A record that cannot be written is kept, and written before the next one.

    Args:
      workdir: the run's folder.
      step: the step from which the run goes on.

    Raises (every method): OSError, if the disk is full, say.
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
        """`record` has `step`, `kind` ("train", "eval") and numbers."""
        clean = finite_json(record)
        self._waiting += (json.dumps(clean) + "\n").encode()
        self._write_waiting()
        self._board.write(clean)

    def _write_waiting(self) -> None:
        # A line that a full disk cut off is written over: the file never holds half a record for
        # longer than it takes to write the other half.
        while self._waiting:
            written = os.pwrite(self._fd, self._waiting, self._end)
            self._end, self._waiting = self._end + written, self._waiting[written:]

    def flush(self) -> None:
        """On the disk, not only in the operating system's memory."""
        self._write_waiting()
        os.fsync(self._fd)
        self._board.flush()

    def close(self) -> None:
        os.close(self._fd)
        self._board.close()


class TensorBoardWriter:
    """TensorBoard events of the same records, written by the calling thread.

    (The writers that come with TensorBoard's packages write in a thread, which dies of a full disk
    and leaves the run waiting for it.)
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
            self.close()  # whatever follows half an event cannot be read: a new file
            raise

    def _open(self) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        if self._writer is None:
            # Its own name holds only seconds, in which a run can start twice.
            suffix = f".{os.getpid()}.{next(_files)}"
            self._writer = EventsWriter(os.path.join(self._workdir, "events"), suffix)
            if self._step:  # TensorBoard forgets what came after the checkpoint
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
    """JSON has no NaN: a value that is not finite is null."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }


class MetricLogger:
    """A run's records: learning rates are added to those of training.

    Attributes:
      last: the newest record.
    """

    def __init__(self, workdir: str, step: int, schedules: Mapping[str, Callable[[Any], Any]]):
        self._workdir, self._schedules = workdir, schedules
        self._open(step)

    def rewind(self, step: int) -> None:
        """Goes on after `step`: later records are dropped."""
        self._file.close()
        self._open(step)

    def _open(self, step: int) -> None:
        self._file = MetricsFile(self._workdir, step)
        self.last: dict[str, Any] = self._file.kept[-1] if self._file.kept else {}
        self._kept = {(r["step"], r.get("kind")) for r in self._file.kept}

    @property
    def kept(self) -> list[dict[str, Any]]:
        """The records from before the run went on."""
        return self._file.kept

    def has(self, step: int, kind: str) -> bool:
        """Whether there was such a record when the run went on."""
        return (step, kind) in self._kept

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


class NullLogger:
    """For processes that leave the writing to the first."""

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
    """The records of a run; lines that a kill has cut off, or that are damaged, are left out."""
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
