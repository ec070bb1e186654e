"""Trainer: runs a config in a workdir, resuming after interruptions."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from aigc_jax.core.capabilities import UsesFirstStage
from aigc_jax.core.config import Config
from aigc_jax.core.feed import Feed
from aigc_jax.core.state import TrainState, copy_buffers
from aigc_jax.core.workdir import (
    WorkdirLock,
    create_workdir,
    has_config,
    read_config,
    write_config,
)
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.loader import DataLoader
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.main_process import is_main_process, log_main
from aigc_jax.distributed.mesh import process_shard
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.distributed.processes import all_agree
from aigc_jax.distributed.sharding import per_device
from aigc_jax.distributed.watchdog import Watchdog
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.experiment import build
from aigc_jax.experiment.dataset import load_dataset
from aigc_jax.experiment.first_stage import load_first_stage, resolve_first_stage
from aigc_jax.experiment.generate import check_sampling
from aigc_jax.experiment.python_parts import PythonParts
from aigc_jax.experiment.warm_start import warm_start
from aigc_jax.runs.hooks import recipe_callbacks
from aigc_jax.runs.session import Session, check_config
from aigc_jax.training import metric_log, oom
from aigc_jax.training.callbacks import Callback
from aigc_jax.training.loop import fit

MakeFeed = Callable[[build.Run, Dataset], Feed]
MakeRun = Callable[..., build.Run]


def make_loader(run: build.Run, dataset: Dataset) -> DataLoader:
    """Returns the default feed: this process's shuffled batches of the training examples."""
    data, seed = run.config.data, run.config.seed
    return DataLoader(dataset.train, data.batch_size, seed, data.threads, process_shard(run.mesh))


class Trainer:
    """One run of a config in a workdir.

    Args:
      config: config of the run.
      workdir: the folder for everything that the run writes.
      preemption: handler of requests to stop.
      callbacks: observers, called after the recipe's.
      data: examples passed from Python, which replace `data.source`.
      parts: a network and optimizers passed from Python.
      make_feed: returns the feed for a run and its data set.
      make_run: returns the parts, called as `build.build` is: (config, spec, parts=…). Another one
        may return a `Run` whose step is compiled already.
    """

    def __init__(
        self,
        config: Config,
        workdir: str,
        preemption: PreemptionHandler | None = None,
        *,
        callbacks: Sequence[Callback] = (),
        data: Any = None,
        parts: PythonParts | None = None,
        make_feed: MakeFeed = make_loader,
        make_run: MakeRun = build.build,
    ):
        self.config, self.preemption = config, preemption or PreemptionHandler()
        self.callbacks, self.make_feed, self.make_run = tuple(callbacks), make_feed, make_run
        self.data, self.python_parts = data, parts or PythonParts()
        self.workdir = os.path.abspath(os.path.expanduser(workdir))
        kv_store.attach()
        self.watchdog = Watchdog(config.watchdog)  # before JAX initialises its backends
        self.lock: WorkdirLock | None = None

    def run(self, name: str = "train", progress: bool = True) -> dict[str, float]:
        """Trains to the end; returns the last record.

        Args:
          name: label of the progress bar.
          progress: whether to show a progress bar.

        Raises:
          UserError: if the run cannot start or continue.
        """
        try:
            with self.preemption.interruptible(lambda: None):
                self._prepare()
            with oom.explain_oom(per_device(self.shapes, self.parts.shardings), self.example):
                with self.preemption.interruptible(lambda: None):
                    start, state = self._begin()
                state = self._train(start, state, name, progress)
            all_agree(True)  # barrier: a finished process must not look dead to the others
        except Exception as e:
            self.watchdog.failed(e)
            raise
        finally:
            self.watchdog.close()
            if self.lock:
                self.lock.release()
        if start >= self.config.train.steps:
            log_main(f"{self.workdir} already has all {self.config.train.steps} steps")
        skipped = int(jax.device_get(state.skipped))
        if skipped:
            log_main(f"{skipped} steps were skipped because they were not finite")
        return self.session.records.last

    def _prepare(self) -> None:
        """Validates config, data and options before anything is written."""
        saved = read_config(self.workdir) if has_config(self.workdir) else None
        if saved is not None:
            self.config = resolve_first_stage(self.config, saved=saved)
            check_config(self.workdir, saved, self.config)
        self.dataset = load_dataset(self.config.data, self.data)
        c = self.config = resolve_first_stage(self.config, self.dataset.spec)
        self.parts = self.make_run(c, self.dataset.spec, parts=self.python_parts)
        self.evaluator = Evaluator(
            self.parts, self.dataset, lambda: self.session.heartbeat("evaluation")
        )
        if c.eval.every:
            self.evaluator.check()
        self.shapes = shapes = self.parts.state_shapes()
        self.example = self.dataset.spec.example_batch(c.data.batch_size)
        oom.check_fits(per_device(shapes, self.parts.shardings), self.example)
        check_sampling(self.parts.objective, shapes.sampling_params, shapes.mutables, c.sample)
        if is_main_process():
            create_workdir(self.workdir)

    def _begin(self) -> tuple[int, TrainState]:
        """Locks the workdir; returns steps taken and the state to continue from."""
        if is_main_process():
            self.lock = WorkdirLock(self.workdir)
        self.session = Session(
            self.parts,
            self.dataset,
            self.workdir,
            self.make_feed(self.parts, self.dataset),
            self._fresh_state,
            lock=self.lock,
            heartbeat=self.watchdog.heartbeat,
            preemption=self.preemption,
            callbacks=self.callbacks,
        )
        start, state = self.session.begin(writes=is_main_process())
        if is_main_process():
            write_config(self.workdir, self.config.raw)
        return start, state

    def _fresh_state(self) -> TrainState:
        """Returns an initial state, with warm-start parameters and first stage if configured."""
        state, c = self.parts.fresh_state(), self.config
        params = state.params
        if c.first_stage.workdir and isinstance(self.parts.objective, UsesFirstStage):
            params = load_first_stage(
                c.first_stage.workdir, self.parts.objective, params, self.dataset.train
            )
        if c.train.init_from:
            params = warm_start(c.train.init_from, params, c)
        if params is state.params:
            return state
        params = jax.device_put(params, self.parts.shardings.params)
        trained = {player: params[player] for player in state.opt_state}
        return state.replace(
            params=params,
            ema=copy_buffers(trained) if state.ema else {},
            power_ema={width: copy_buffers(trained) for width in state.power_ema},
        )

    def _train(self, start: int, state: TrainState, name: str, progress: bool) -> TrainState:
        session, steps = self.session, self.config.train.steps
        bar = (
            metric_log.progress_bar(steps, start, name) if progress and is_main_process() else None
        )
        try:
            state = fit(
                self.parts.step,
                self.parts.step.put_state(state),
                session.feed,
                start=start,
                end=steps,
                run=session,
                callbacks=(*recipe_callbacks(session, self.evaluator), *self.callbacks),
                metrics=session.metrics,
                progress=bar,
            )
            session.flush(max(start, steps))
            return state
        finally:
            if bar is not None:
                bar.close()
            session.close()
