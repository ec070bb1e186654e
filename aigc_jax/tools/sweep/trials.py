"""The trials of a search: asked of Optuna, run as processes, watched and told."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from aigc_jax.core.config import differences
from aigc_jax.core.errors import NotFinite, OutOfMemory, Stopped, UserError
from aigc_jax.core.workdir import WorkdirLock
from aigc_jax.distributed.preemption import PreemptionHandler
from aigc_jax.tools.sweep.search_space import Search
from aigc_jax.training.metric_log import read_metrics

COMMAND = [sys.executable, "-m", "aigc_jax.main"]
POLL = 0.5  # seconds between two looks at a trial
STUDY, FOLDER, SEARCH = "study.journal", "folder", "search"
# A run that cannot be trained says something about its hyperparameters: it counts as pruned.
HOPELESS = {NotFinite.code: "not finite", OutOfMemory.code: "out of memory"}


class Worker:
    """What one machine does for a search.

    Args:
      search: what to try.
      workdir: the folder of the search.
      storage: a URL of a database; "": a file in the workdir.
      prune: whether to end hopeless trials early.
      seed: of the draws.

    Raises:
      UserError: if Optuna is missing, or the workdir holds another search.
    """

    def __init__(self, search: Search, workdir: str, storage: str, prune: bool, seed: int | None):
        self._optuna = optuna = import_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._search, self._workdir, self._seed = search, workdir, seed
        if storage:
            kept: Any = storage
        else:
            backend = optuna.storages.journal.JournalFileBackend(os.path.join(workdir, STUDY))
            kept = optuna.storages.JournalStorage(backend)
        try:
            self.study = optuna.create_study(
                storage=kept,
                study_name=os.path.basename(workdir),
                sampler=self._sampler(0),
                pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
                direction="maximize" if search.maximize else "minimize",
                load_if_exists=True,
            )
        except Exception as e:  # whatever a database brings up
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
        """Each trial draws with a number of its own, so that machines do not draw the same."""
        seed = None if self._seed is None else self._seed + number
        return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def taken(self) -> int:
        """How many trials are done or being run, by all machines."""
        state = self._optuna.trial.TrialState
        states = (state.COMPLETE, state.PRUNED, state.RUNNING)
        return len(self.study.get_trials(deepcopy=False, states=states))

    def folder(self, trial: Any) -> str:
        """Where a trial is run: a new one under its number, one that goes on where it was."""
        name = trial.user_attrs.get(FOLDER, str(trial.number))
        return os.path.join(self._workdir, "trials", name)

    def take_up_lost(self) -> None:
        """Queues the trials again whose machine died while it ran them."""
        running = self._optuna.trial.TrialState.RUNNING
        for trial in self.study.get_trials(states=(running,)):
            with contextlib.suppress(UserError), self._holding(trial):
                now = self.study.get_trials(deepcopy=False)[trial.number]
                if now.state == running:
                    self._queue_again(trial)

    @contextlib.contextmanager
    def _holding(self, trial: Any) -> Any:
        """Holds a trial, as long as this process lives; UserError if another one does."""
        folder = os.path.join(self.folder(trial), "worker")
        os.makedirs(folder, exist_ok=True)
        lock = WorkdirLock(folder)
        try:
            yield
        finally:
            lock.release()

    def _queue_again(self, trial: Any) -> None:
        """To go on where it is, by whoever takes it."""
        self.study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        name = os.path.basename(self.folder(trial))
        if trial.params:  # otherwise it had not begun
            self.study.enqueue_trial(trial.params, user_attrs={FOLDER: name})

    def run_one(self, base: Sequence[str], stop: PreemptionHandler) -> None:
        """Runs the next trial to its end, whatever that is.

        Args:
          base: the flags of the run that the search does not change.
          stop: requests to stop.

        Raises:
          Stopped: if it was asked to; the trial is queued again.
          UserError: if the run failed for a reason that is none of its hyperparameters.
        """
        state = self._optuna.trial.TrialState
        trial = self.study.ask()
        with self._holding(trial):
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
                self._queue_again(trial)
                raise Stopped("stopped; the search goes on with the same command")
            if code and not pruned and code not in HOPELESS:
                self._queue_again(trial)
                raise UserError(
                    f"trial {trial.number} has failed with exit {code}: see"
                    f" {os.path.join(folder, 'log.txt')}"
                )
            if code or pruned:
                self.study.tell(trial, state=state.PRUNED)
                print(f"trial {trial.number}: {HOPELESS.get(code, 'pruned')}", flush=True)
                return
            value = self._search.value(self._evaluations(folder)[-1])
            self.study.tell(trial, value)
            print(f"trial {trial.number}: {self._search.metric}={value:.5g}", flush=True)

    def _watch(
        self, trial: Any, command: Sequence[str], folder: str, stop: PreemptionHandler
    ) -> tuple[bool, int]:
        """Whether the trial was pruned, and its exit status."""
        pruned, seen = False, set()
        with (
            open(os.path.join(folder, "log.txt"), "ab") as log,
            # In a session of its own, so that a terminal's Ctrl-C reaches it once, through here.
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
    """Optuna; UserError if it is not installed."""
    try:
        import optuna
    except ImportError as e:
        raise UserError("'aigc sweep' needs Optuna: pip install 'aigc-jax[sweep]'") from e
    return optuna
