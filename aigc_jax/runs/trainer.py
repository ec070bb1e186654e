"""A training run: from a config and a workdir to a trained state, whatever happens meanwhile."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax

from aigc_jax.core.config import Config
from aigc_jax.core.errors import StorageError, UserError
from aigc_jax.core.state import TrainState, copy_buffers
from aigc_jax.core.workdir import (
    WorkdirLock,
    check_same_run,
    checkpoint_steps,
    create_workdir,
    has_config,
    has_run,
    read_config,
    storage_errors,
    write_config,
)
from aigc_jax.data.loader import DataLoader
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.mesh import share
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.distributed.processes import all_agree, from_first, log_main
from aigc_jax.distributed.sharding import per_device
from aigc_jax.distributed.watchdog import Watchdog
from aigc_jax.evaluation.evaluator import Evaluator, check_judging
from aigc_jax.experiment import build
from aigc_jax.experiment.generate import check_sampling
from aigc_jax.experiment.restore import load_first_stage, tokenizer_of, warm_start, with_first_stage
from aigc_jax.modalities import sources
from aigc_jax.modalities.spec import check_spec
from aigc_jax.runs.diagnose import report_and_raise
from aigc_jax.runs.hooks import hooks
from aigc_jax.training import checkpoint, metric_log, oom, posthoc_ema
from aigc_jax.training.anomaly import AnomalyDetector, TrainingAnomaly
from aigc_jax.training.health_checks import HealthMonitor, health_checks_of
from aigc_jax.training.loop import RunCallbacks, fit
from aigc_jax.training.metric_window import MetricAccumulator


class Trainer:
    """One run of a config in a workdir.

    Args:
      config: what to train.
      workdir: the folder for everything that the run writes.
      stop: requests to stop.

    Raises:
      UserError: if the run cannot begin or go on.
    """

    def __init__(self, config: Config, workdir: str, stop: PreemptionHandler):
        self.config, self.stop = config, stop
        self.workdir = os.path.abspath(os.path.expanduser(workdir))
        kv_store.attach()
        self.monitor = Watchdog(config.guard)  # before JAX looks for devices, for which it waits
        self.main = kv_store.joined()[0] == 0
        self.lock: WorkdirLock | None = None

    def run(self, name: str, progress: bool) -> dict[str, float]:
        """Trains to the end; returns the last record.

        Args:
          name: what the progress bar says.
          progress: whether there is one.
        """
        try:
            with self.stop.free(lambda: None):
                self._prepare()
            with oom.explain_oom(per_device(self.shapes, self.parts.shardings), self.example):
                with self.stop.free(lambda: None):
                    start, state = self._begin()
                state = self._train(start, state, name, progress)
            all_agree(True)  # a process that is done must not seem dead to one that is not
        except Exception as e:
            self.monitor.failed(e)
            raise
        finally:
            self.monitor.close()
            if self.lock:
                self.lock.release()
        if start >= self.config.train.steps:
            log_main(f"{self.workdir} already has all {self.config.train.steps} steps")
        skipped = int(jax.device_get(state.skipped))
        if skipped:
            log_main(f"{skipped} steps were skipped: not finite")
        return self.records.last

    def _prepare(self) -> None:
        """Everything that can be wrong is found before anything is written."""
        c = self.config
        if has_config(self.workdir):
            self._check_same(read_config(self.workdir))
        dataset = sources.load(c.data, tokenizer_of(c.data))
        self.dataset = with_first_stage(dataset, c.data)
        check_judging(self.dataset, c.eval)
        self.parts = build.build(c, self.dataset.spec)
        self.shapes = self.parts.state_shapes()
        self.example = self.dataset.spec.example_batch(c.data.batch_size)
        shapes = self.shapes
        oom.check_fits(per_device(shapes, self.parts.shardings), self.example)
        check_sampling(self.parts.objective, shapes.sampling_params, shapes.mutables, c.sample)
        if self.main:
            create_workdir(self.workdir)

    def _begin(self) -> tuple[int, TrainState]:
        """The step to go on from and its state: a checkpoint's, or fresh ones."""
        c = self.config
        if self.main:
            self.lock = WorkdirLock(self.workdir)
        self.batches = DataLoader(
            self.dataset.train, c.data.batch_size, c.seed, c.data.threads, share(self.parts.mesh)
        )
        self.window = MetricAccumulator(0, c.data.batch_size, AnomalyDetector(c.guard))
        start, state = self._newest_or_fresh()
        if start:
            log_main(f"going on after step {start}")
        self.writer = checkpoint.CheckpointWriter(self.workdir, c.checkpoint.keep, start)
        with storage_errors(self.workdir):
            records = (
                metric_log.MetricLogger(self.workdir, start, self.parts.schedules)
                if self.main
                else None
            )
        self.records = records or metric_log.NullLogger()
        self.alarms = HealthMonitor(health_checks_of(self.parts.objective), self.records.kept)
        if self.main:
            write_config(self.workdir, c.raw)
        return start, state

    def _check_same(self, old: dict[str, Any]) -> None:
        """Raises UserError if `old` is not the config of this run."""
        with contextlib.suppress(UserError):  # one that is no config any more differs as it stands
            old = build.parse_config(old).raw  # with the defaults of fields it does not know yet
        check_same_run(self.workdir, old, self.config.raw)

    def _newest_or_fresh(self, back: bool = False) -> tuple[int, TrainState]:
        """The newest checkpoint's step and state; if there is none, step 0 and a fresh state.

        Args:
          back: go back to where an undisturbed run would, not to where one was asked to stop.
        """
        if not from_first(has_run(self.workdir)):
            self.batches.skip_to(0)
            self.window.reset()
            return 0, self._given(self.parts.fresh_state())

        def load(
            reader: checkpoint.CheckpointReader, step: int, contents: checkpoint.Contents
        ) -> tuple[TrainState, dict[str, Any]]:
            saved = contents["config"]
            self._check_same(saved["config"])
            check_spec(self.workdir, saved["spec"], self.parts.spec, self.config.data.source)
            state = reader.state(step, self.shapes, self.parts.shardings, contents)
            return state, contents["data"]

        def asked(contents: checkpoint.Contents) -> bool:
            if back and contents["data"]["asked"]:
                self._asked.append(contents["config"]["step"])
                return True
            return False

        step, (state, position) = checkpoint.restore_latest(self.workdir, load, asked)
        self.batches.seek(position["batches"])
        self.window.seek(step, position["window"])
        return step, state

    def _given(self, state: TrainState) -> TrainState:
        """A fresh state with what the config takes from other runs: parameters, a first stage."""
        params, c = state.params, self.config
        if c.data.first_stage:
            params = load_first_stage(
                c.data.first_stage, self.parts.objective, params, self.dataset
            )
        if c.train.init_from:
            params = warm_start(c.train.init_from, params, c.raw["model"])
        if params is state.params:
            return state
        params = jax.device_put(params, self.parts.shardings.params)
        moving = {player: params[player] for player in state.opt_state}
        return state.replace(
            params=params,
            ema=copy_buffers(moving) if state.ema else {},
            power_ema={width: copy_buffers(moving) for width in state.power_ema},
        )

    def _train(self, start: int, state: TrainState, name: str, progress: bool) -> TrainState:
        c = self.config
        judge = Evaluator(self.parts, self.dataset, lambda: self.monitor.tick("evaluation"))
        beside = self.parts, self.workdir, judge, self.records
        bar = (
            metric_log.progress_bar(c.train.steps, start, name) if progress and self.main else None
        )
        try:
            state = fit(
                self.parts.step,
                self.parts.step.put_state(state),
                self.batches,
                start=start,
                end=c.train.steps,
                hooks=hooks(*beside, self._storage, self.monitor.tick),
                flush_at=lambda step: step % c.train.log_every == 0,
                write=self._write,
                window=self.window,
                care=RunCallbacks(
                    every=c.checkpoint.every,
                    save=self._save,
                    finish=self._finish,
                    recover=self._recover,
                    tick=self.monitor.tick,
                    stop=self.stop,
                ),
                progress=bar,
            )
            self._finish(max(start, c.train.steps))
            return state
        finally:
            if bar is not None:
                bar.close()
            self.writer.close()
            self.records.close()

    def _write(self, record: dict[str, Any]) -> None:
        fired = self.alarms.check(record)
        for alarm in fired:
            log_main(f"warning: {alarm.message}")
        if fired:
            record["alarm"] = ", ".join(alarm.metric for alarm in fired)
        with self._storage():
            self.records.write_train(record)

    def _save(self, step: int, state: TrainState, asked: bool) -> None:
        self.monitor.tick(f"the checkpoint of step {step}")
        position = {"batches": self.batches.position(), "window": self.window.position()}
        contents = {"config": self.config.raw, "spec": self.parts.spec.to_json()}
        if self.lock:
            self.lock.check()
        with self._storage(retry=True):
            self.writer.wait()  # for the save before, whose failure is no reason not to try again
        with self._storage(retry=True):
            self.records.flush()  # no checkpoint runs ahead of metrics.jsonl
            self.writer.save(step, state, {**position, "asked": asked}, contents)

    def _wait(self) -> None:
        """Returns when all that was saved and recorded is on the disk."""
        with self._storage():
            self.records.flush()
        with self._storage(retry=True):
            self.writer.wait()

    def _finish(self, step: int) -> None:
        """The same; StorageError if that step is not, whatever checkpoint.on_error says."""
        self._wait()
        if step and step not in checkpoint_steps(self.workdir):
            raise StorageError(
                f"step {step} of {self.workdir} could not be saved: free some space, then give the"
                " same command again"
            )

    @contextlib.contextmanager
    def _storage(self, retry: bool = False) -> Iterator[None]:
        """What to do when the workdir cannot be written: end, or go on as the config says.

        Args:
          retry: make the writer of checkpoints ready for another try.
        """
        try:
            with storage_errors(self.workdir):
                yield
        except StorageError as e:
            # Processes that cannot know of each other's full disks cannot go on together.
            if self.config.checkpoint.on_error == "stop" or jax.process_count() > 1:
                raise
            log_main(f"warning: {e}; training goes on, as checkpoint.on_error=continue says")
            if retry:
                self.writer.recover()

    def _recover(
        self, trouble: TrainingAnomaly, since: int, state: TrainState
    ) -> tuple[int, TrainState]:
        """Goes back to the newest checkpoint and on with the data after the trouble, or gives up.

        Args:
          trouble: what went wrong, and when.
          since: steps that were taken after it.
          state: where the run stands.

        Returns:
          The step and the state to go on from.

        Raises:
          NotFinite: if the config allows no (further) going back.
        """
        self.batches.skip_to(self.batches.taken - since)
        rollbacks = self.window.guard.rollbacks
        if rollbacks >= self.config.guard.max_rollbacks:
            report_and_raise(self.parts, self.batches, trouble, self.workdir,
                    self.parts.step.get_state(state))  # fmt: skip
        self._wait()
        after = self.batches.taken
        self._asked: list[int] = []
        step, state = self._newest_or_fresh(back=True)
        self.batches.skip_to(after)
        self.window.guard.rollbacks = rollbacks + 1
        log_main(f"{trouble}: going back to step {step} and on with other data")
        with storage_errors(self.workdir):
            self.records.rewind(step)
            self.alarms.replay(self.records.kept)
            if self.main:
                posthoc_ema.remove_snapshots(self.workdir, step)
        self.writer.close()
        keep = self.config.checkpoint.keep
        self.writer = checkpoint.CheckpointWriter(self.workdir, keep, step, self._asked)
        return step, self.parts.step.put_state(state)
