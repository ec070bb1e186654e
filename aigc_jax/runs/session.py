"""A training session: state, feed position and metric records, saved and restored together."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from aigc_jax.core.config import Config
from aigc_jax.core.errors import StorageError, UserError
from aigc_jax.core.feed import Feed
from aigc_jax.core.modality import check_spec
from aigc_jax.core.state import TrainState
from aigc_jax.core.workdir import (
    WorkdirLock,
    check_same_run,
    checkpoint_steps,
    has_run,
    storage_errors,
)
from aigc_jax.data.dataset import Dataset
from aigc_jax.distributed.main_process import is_main_process, log_main
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.distributed.processes import broadcast_from_main
from aigc_jax.experiment import build
from aigc_jax.experiment.python_parts import check_same_parts
from aigc_jax.modalities.in_memory import check_fingerprint
from aigc_jax.runs.diagnose import report_and_raise
from aigc_jax.training import checkpoint, health_checks, metric_log, posthoc_ema
from aigc_jax.training.anomaly import AnomalyDetector, TrainingAnomaly
from aigc_jax.training.callbacks import Callback, Record, RunCallbacks
from aigc_jax.training.health_checks import HealthMonitor
from aigc_jax.training.metric_window import MetricAccumulator

Logger = metric_log.MetricLogger | metric_log.NullLogger


class Session(RunCallbacks):
    """Saves and restores state, feed position, metrics and records of a run.

    Args:
      run: the run.
      dataset: its data.
      workdir: its folder.
      feed: source of its batches.
      fresh: returns the initial state of a run without a checkpoint.
      lock: lock of the workdir, in the process that holds it; else None.
      heartbeat: called with the name of each phase of the main thread.
      preemption: handler of requests to stop.
      callbacks: observers of the records.

    Attributes:
      metrics: accumulator of the metrics between two records.
      records: logger of the records.
    """

    records: Logger
    writer: checkpoint.CheckpointWriter

    def __init__(
        self,
        run: build.Run,
        dataset: Dataset,
        workdir: str,
        feed: Feed,
        fresh: Callable[[], TrainState],
        *,
        lock: WorkdirLock | None,
        heartbeat: Callable[[str], None],
        preemption: PreemptionHandler,
        callbacks: Sequence[Callback] = (),
    ):
        super().__init__(preemption)
        self.run, self.workdir, self.feed = run, workdir, feed
        self._fresh, self._lock, self._heartbeat = fresh, lock, heartbeat
        self._callbacks = callbacks
        config = run.config
        detector = AnomalyDetector(config.anomaly)
        self.metrics = MetricAccumulator(0, config.data.batch_size, detector)
        self._shapes = run.state_shapes()
        self._dataset = dataset
        self._python = {**run.parts.record(), "data": dataset.fingerprint}

    # Beginning and end -----------------------------------------------------------------------

    def begin(self, writes: bool) -> tuple[int, TrainState]:
        """Restores the newest checkpoint, or makes an initial state; opens the metric log.

        Args:
          writes: whether this process writes records.

        Returns:
          Steps taken, and the state.
        """
        start, state = self._newest_or_fresh()
        if start:
            log_main(f"resuming after step {start}")
        self._open_writer(start)
        self.records = metric_log.NullLogger()
        if writes:
            with storage_errors(self.workdir):
                self.records = metric_log.MetricLogger(self.workdir, start, self.run.schedules)
        checks = health_checks.health_checks_of(self.run.objective)
        self.health = HealthMonitor(checks, self.records.kept)
        return start, state

    def close(self) -> None:
        """Waits for pending writes and closes the files."""
        self.writer.close()
        self.records.close()

    def _open_writer(self, start: int, discard: Sequence[int] = ()) -> None:
        keep = self.run.config.checkpoint.keep
        self.writer = checkpoint.CheckpointWriter(self.workdir, keep, start, discard)

    def _newest_or_fresh(
        self, skip: Callable[[checkpoint.Contents], bool] = lambda contents: False
    ) -> tuple[int, TrainState]:
        """Returns step and state of the newest checkpoint; without one, 0 and an initial state.

        Args:
          skip: returns True for checkpoints to use only if there is no other.
        """
        if not broadcast_from_main(has_run(self.workdir)):
            self.feed.skip_to(0)
            self.metrics.reset()
            return 0, self._fresh()

        def load(
            reader: checkpoint.CheckpointReader, step: int, contents: checkpoint.Contents
        ) -> tuple[TrainState, dict[str, Any]]:
            saved, config = contents["config"], self.run.config
            check_config(self.workdir, saved["config"], config)
            check_spec(self.workdir, saved["spec"], self.run.spec, config.data.source)
            python = saved.get("python", {})
            check_same_parts(self.workdir, python, self._python)
            check_fingerprint(python.get("data", ""), self._dataset)
            state = reader.state(step, self._shapes, self.run.shardings, contents)
            return state, contents["data"]

        step, (state, position) = checkpoint.restore_latest(self.workdir, load, skip)
        self.feed.seek(position["feed"])
        self.metrics.seek(step, position["metrics"])
        return step, state

    # What the loop calls ---------------------------------------------------------------------

    def should_log(self, step: int) -> bool:
        return step % self.run.config.train.log_every == 0

    def should_save(self, step: int, end: int) -> bool:
        every = self.run.config.checkpoint.every
        return step == end or (every > 0 and step % every == 0)

    def heartbeat(self, phase: str) -> None:
        self._heartbeat(phase)

    def log(self, record: Record) -> None:
        failed = self.health.check(record)
        for check in failed:
            log_main(f"warning: {check.message}")
        if failed:
            record[health_checks.FIELD] = ", ".join(check.metric for check in failed)
        with self.storage():
            self.records.write_train(record)
        self._notify(record)

    def log_evaluation(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the record of an evaluation."""
        record = {"step": step, "kind": "eval", **metrics}
        with self.storage():
            self.records.write(record)
        self._notify(record)

    def _notify(self, record: Record) -> None:
        for callback in self._callbacks:
            callback.on_record(record)

    def save(self, step: int, state: TrainState, preempted: bool) -> None:
        self.heartbeat(f"the checkpoint of step {step}")
        position = {"feed": self.feed.position(), "metrics": self.metrics.position()}
        contents = {
            "config": self.run.config.raw,
            "spec": self.run.spec.to_json(),
            "python": self._python,
        }
        if self._lock:
            self._lock.check()
        with self.storage(retry=True):
            self.writer.wait()  # for the previous save; if it failed, this one is still tried
        with self.storage(retry=True):
            self.records.flush()  # metrics.jsonl must not be behind a checkpoint
            self.writer.save(step, state, {**position, "preempted": preempted}, contents)

    def flush(self, step: int) -> None:
        """Waits until everything up to a step is on the disk.

        Raises:
          StorageError: if that step could not be saved, whatever `checkpoint.on_error`.
        """
        self._wait()
        if step and step not in checkpoint_steps(self.workdir):
            raise StorageError(
                f"step {step} of {self.workdir} could not be saved: free some space, then run the"
                " same command again"
            )

    def _wait(self) -> None:
        """Waits until checkpoints and records are on the disk."""
        with self.storage():
            self.records.flush()
        with self.storage(retry=True):
            self.writer.wait()

    @contextlib.contextmanager
    def storage(self, retry: bool = False) -> Iterator[None]:
        """Re-raises a StorageError of the block, or logs it, by `checkpoint.on_error`.

        Args:
          retry: prepares the checkpoint writer for another attempt.
        """
        try:
            with storage_errors(self.workdir):
                yield
        except StorageError as e:
            # One process cannot know of another's full disk, so several cannot continue together.
            if self.run.config.checkpoint.on_error == "stop" or jax.process_count() > 1:
                raise
            log_main(f"warning: {e}; training continues (checkpoint.on_error=continue)")
            if retry:
                self.writer.recover()

    def rollback(self, anomaly: TrainingAnomaly, since: int, state: Any) -> tuple[int, Any]:
        """Rolls back to the newest checkpoint and continues with the data after the anomaly.

        Raises:
          NotFinite: if the config allows no (further) rollback.
        """
        self.feed.skip_to(self.feed.taken - since)
        detector = self.metrics.detector
        rollbacks = detector.rollbacks
        if rollbacks >= detector.config.max_rollbacks:
            report_and_raise(self.run, self.feed, anomaly, self.workdir, state)
        self._wait()
        after, preempted = self.feed.taken, []

        def skip(contents: checkpoint.Contents) -> bool:
            # An uninterrupted run would not have a checkpoint where this one was preempted.
            if contents["data"]["preempted"]:
                preempted.append(contents["config"]["step"])
            return contents["data"]["preempted"]

        step, state = self._newest_or_fresh(skip)
        self.feed.skip_to(after)
        self.metrics.detector.rollbacks = rollbacks + 1
        log_main(f"{anomaly}: rolling back to step {step} and skipping the data since")
        with storage_errors(self.workdir):
            self.records.rewind(step)
            self.health.replay(self.records.kept)
            if is_main_process():
                posthoc_ema.remove_snapshots(self.workdir, step)
        self.writer.close()
        self._open_writer(step, preempted)
        return step, self.run.step.put_state(state)


def check_config(workdir: str, old: dict[str, Any], config: Config) -> None:
    """Raises UserError if `old`, a config as JSON, belongs to another run than `config`."""
    with contextlib.suppress(UserError):  # a config that is no longer valid is compared unchanged
        old = build.parse_config(old).raw  # adds the defaults of new fields
    check_same_run(workdir, old, config)
