"""Runs the trials of a search as processes, and reports their values to Optuna."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from aigc_jax.core.config import differences
from aigc_jax.core.errors import NotFinite, OutOfMemory, Stopped, UserError
from aigc_jax.core.workdir import WorkdirLock
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.tools.sweep.search_space import Search
from aigc_jax.training.metric_log import read_metrics

COMMAND = [sys.executable, "-m", "aigc_jax.main"]
POLL = 0.5  # seconds between two checks of a trial
STUDY, FOLDER, SEARCH = "study.journal", "folder", "search"
# Exit codes of failures that are due to the hyperparameters: such trials count as pruned.
PRUNED_EXITS = {NotFinite.code: "not finite", OutOfMemory.code: "out of memory"}


class Worker:
    """Runs trials of a search on one machine.

    Args:
      search: its definition.
      workdir: folder of the search.
      storage: URL of a database; "": a file in the workdir.
      prune: whether to end trials early that are worse than the median.
      seed: of the sampler; None: random.

    Raises:
      UserError: if Optuna is missing, or the workdir holds another search.
    """

    def __init__(self, search: Search, workdir: str, storage: str, prune: bool, seed: int | None):
        self._optuna = optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search, self._workdir, self._seed = search, workdir, seed
        if storage:
            store: Any = storage
        else:
            backend = optuna.storages.journal.JournalFileBackend(os.path.join(workdir, STUDY))
            store = optuna.storages.JournalStorage(backend)
        try:
            self.study = optuna.create_study(
                storage=store,
                study_name=os.path.basename(workdir),
                sampler=self._sampler(0),
                pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
                direction="maximize" if search.maximize else "minimize",
                load_if_exists=True,
            )
        except Exception as e:  # of the database driver
            raise UserError(f"--storage={storage or workdir} cannot be opened ({e})") from e
        before, now = self.study.user_attrs.get(SEARCH), search.describe()
        if before is None:
            self.study.set_user_attr(SEARCH, now)
        elif phrases := differences(before, now):
            raise UserError(
                f"{workdir} holds another search ({'; '.join(phrases[:3])}): choose another"
                " --workdir, or the command of that search"
            )

    def _sampler(self, number: int) -> Any:
        """Sampler of a trial, seeded with its number: machines draw different values."""
        seed = None if self._seed is None else self._seed + number
        return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def num_started(self) -> int:
        """Number of finished and running trials of all machines."""
        state = self._optuna.trial.TrialState
        states = (state.COMPLETE, state.PRUNED, state.RUNNING)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def folder(self, trial: Any) -> str:
        """Workdir of a trial; a requeued trial keeps the workdir of its first run."""
        name = trial.user_attrs.get(FOLDER, str(trial.number))
        return os.path.join(self._workdir, "trials", name)

    def requeue_abandoned(self) -> None:
        """Queues running trials whose machine died."""
        running = self._optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(states=(running,)):
            with contextlib.suppress(UserError), self._locked(trial):
                now = self.study.get_trials(deepcopy=False)[trial.number]
                if now.state == running:
                    self._requeue(trial)

    @contextlib.contextmanager
    def _locked(self, trial: Any) -> Iterator[None]:
        """Locks a trial for this process; UserError if another process holds the lock."""
        folder = os.path.join(self.folder(trial), "worker")
        os.makedirs(folder, exist_ok=True)
        lock = WorkdirLock(folder)
        try:
            yield
        finally:
            lock.release()

    def _requeue(self, trial: Any) -> None:
        """Queues a trial that continues in the workdir of this one."""
        self.study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        name = os.path.basename(self.folder(trial))
        if trial.params:  # empty if it had not started
            self.study.enqueue_trial(trial.params, user_attrs={FOLDER: name})

    def run_next(self, base: Sequence[str], stop: PreemptionHandler) -> None:
        """Runs the next trial and reports its result.

        Args:
          base: flags of the run that are common to all trials.
          stop: requests to stop.

        Raises:
          Stopped: on a request to stop; the trial is queued again.
          UserError: if the run failed for another reason than its hyperparameters.
        """
        state = self._optuna.trial.TrialState
        trial = self.study.ask()
        with self._locked(trial):
            self.study.sampler = self._sampler(trial.number)
            values = {r.key: r.suggest(trial) for r in self._search.ranges}
            words = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                              for k, v in values.items())  # fmt: skip
            print(f"trial {trial.number}: {words}", flush=True)
            folder = self.folder(trial)
            os.makedirs(folder, exist_ok=True)
            fields = [f"--config.{key}={value}" for key, value in values.items()]
            command = [*COMMAND, "train", "--coordinator=none", *base, *fields]
            command += [f"--workdir={folder}"]
            pruned, code = self._watch(trial, command, folder, stop)
            if stop.requested or (code == Stopped.code and not pruned):
                self._requeue(trial)
                raise Stopped("stopped; the same command continues the search")
            if code and not pruned and code not in PRUNED_EXITS:
                self._requeue(trial)
                raise UserError(
                    f"trial {trial.number} failed with exit code {code}: see"
                    f" {os.path.join(folder, 'log.txt')}"
                )
            if code or pruned:
                self.study.tell(trial, state=state.PRUNED)
                print(f"trial {trial.number}: {PRUNED_EXITS.get(code, 'pruned')}", flush=True)
                return
            value = self._search.value(self._evaluations(folder)[-1])
            self.study.tell(trial, value)
            print(f"trial {trial.number}: {self._search.metric}={value:.5g}", flush=True)

    def _watch(
        self, trial: Any, command: Sequence[str], folder: str, stop: PreemptionHandler
    ) -> tuple[bool, int]:
        """Waits for a trial, reporting its evaluations; returns (was it pruned, exit code)."""
        pruned, seen = False, set[int]()
        with (
            open(os.path.join(folder, "log.txt"), "ab") as log,
            # In its own session, so that Ctrl-C reaches it only through this process.
            subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process,
        ):
            asked = False
            try:
                while True:
                    code = process.poll()
                    for record in self._evaluations(folder):
                        if record["step"] not in seen:
                            seen.add(record["step"])
                            trial.report(self._search.value(record), record["step"])
                            pruned = pruned or (code is None and trial.should_prune())
                    if code is not None:
                        return pruned, code
                    if (pruned or stop.requested) and not asked:
                        asked = True
                        process.terminate()
                    time.sleep(POLL)
            except BaseException:
                process.terminate()
                raise

    def _evaluations(self, folder: str) -> list[dict[str, Any]]:
        return [r for r in read_metrics(folder) if r["kind"] == "eval"]


def import_optuna() -> Any:
    """Imports Optuna; UserError if it is not installed."""
    try:
        import optuna
    except ImportError as e:
        raise UserError("'aigc sweep' needs Optuna: pip install 'aigc-jax[sweep]'") from e
    return optuna
