"""A training session: what a run saves, restores and records together."""

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
    """State, feed, metrics and records of a run: saved together, restored together.

    Args:
      run: its parts.
      dataset: its data.
      workdir: its folder.
      feed: where its batches come from.
      fresh: makes the state of a run that has no checkpoint yet.
      lock: of the workdir, in the process that holds it.
      heartbeat: is given the name of each phase of the main thread.
      preemption: requests to stop.
      callbacks: observers of the records.

    Attributes:
      metrics: accumulates them between two records.
      records: those written so far.
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
        """Restores the newest checkpoint, or makes a fresh state; opens the records.

        Args:
          writes: whether this process writes the records.

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
        """Closes the files; waits for what is being written."""
        self.writer.close()
        self.records.close()

    def _open_writer(self, start: int, discard: Sequence[int] = ()) -> None:
        keep = self.run.config.checkpoint.keep
        self.writer = checkpoint.CheckpointWriter(self.workdir, keep, start, discard)

    def _newest_or_fresh(
        self, skip: Callable[[checkpoint.Contents], bool] = lambda contents: False
    ) -> tuple[int, TrainState]:
        """The newest checkpoint's step and state; if there is none, step 0 and a fresh state.

        Args:
          skip: which checkpoints to use only if there is no other.
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
            self.writer.wait()  # for the save before, whose failure is no reason not to try again
        with self.storage(retry=True):
            self.records.flush()  # no checkpoint runs ahead of metrics.jsonl
            self.writer.save(step, state, {**position, "preempted": preempted}, contents)

    def flush(self, step: int) -> None:
        """Returns when everything up to a step is on the disk.

        Raises:
          StorageError: if that step is not, whatever checkpoint.on_error says.
        """
        self._wait()
        if step and step not in checkpoint_steps(self.workdir):
            raise StorageError(
                f"step {step} of {self.workdir} could not be saved: free some space, then give the"
                " same command again"
            )

    def _wait(self) -> None:
        """Returns when all that was saved and recorded is on the disk."""
        with self.storage():
            self.records.flush()
        with self.storage(retry=True):
            self.writer.wait()

    @contextlib.contextmanager
    def storage(self, retry: bool = False) -> Iterator[None]:
        """Ends the run if the workdir cannot be written, or continues if the config says so.

        Args:
          retry: make the writer of checkpoints ready for another try.
        """
        try:
            with storage_errors(self.workdir):
                yield
        except StorageError as e:
            # Processes that cannot know of each other's full disks cannot continue together.
            if self.run.config.checkpoint.on_error == "stop" or jax.process_count() > 1:
                raise
            log_main(f"warning: {e}; training continues, as checkpoint.on_error=continue says")
            if retry:
                self.writer.recover()

    def rollback(self, anomaly: TrainingAnomaly, since: int, state: Any) -> tuple[int, Any]:
        """Goes back to the newest checkpoint and continues with the data after the anomaly.

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
            # An undisturbed run would not have saved where this one was asked to stop.
            if contents["data"]["preempted"]:
                preempted.append(contents["config"]["step"])
            return contents["data"]["preempted"]

        step, state = self._newest_or_fresh(skip)
        self.feed.skip_to(after)
        self.metrics.detector.rollbacks = rollbacks + 1
        log_main(f"{anomaly}: rolling back to step {step} and continuing with other data")
        with storage_errors(self.workdir):
            self.records.rewind(step)
            self.health.replay(self.records.kept)
            if is_main_process():
                posthoc_ema.remove_snapshots(self.workdir, step)
        self.writer.close()
        self._open_writer(step, preempted)
        return step, self.run.step.put_state(state)


def check_config(workdir: str, old: dict[str, Any], config: Config) -> None:
    """Raises UserError if `old`, a config as JSON, is not that of the same run as `config`."""
    with contextlib.suppress(UserError):  # one that is no longer valid is compared as it is
        old = build.parse_config(old).raw  # with the defaults of fields that it does not know yet
    check_same_run(workdir, old, config)
