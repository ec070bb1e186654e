"""Checkpoints: state, data position and config together, written by Orbax in the background.

This is the only file that imports orbax. A checkpoint is a folder `checkpoints/<step>` that Orbax
renames into place once it is complete. It also has checksums of the arrays and a digest of
everything else, so that damage is detected on restore.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar, cast

import jax
import orbax.checkpoint as ocp

from aigc_jax.core.errors import StorageError, UserError, one_line
from aigc_jax.core.state import TrainState
from aigc_jax.core.workdir import (
    DAMAGED,
    SAVED,
    checkpoint_dir,
    checkpoint_steps,
    last_saved_step,
    storage_errors,
    write_text_atomically,
)
from aigc_jax.distributed.main_process import is_main_process, log_main
from aigc_jax.distributed.processes import all_agree
from aigc_jax.distributed.sharding import with_shardings
from aigc_jax.training.checksum import checksums

TEMPORARY = ".orbax-checkpoint-tmp"
Contents = dict[str, Any]  # items of a checkpoint other than the state, as plain JSON values


T = TypeVar("T")


class CorruptCheckpoint(Exception):
    """A checkpoint that is missing, incomplete, or changed since it was saved."""


class CheckpointReader:
    """Reads the checkpoints of a workdir, each process independently; writes nothing."""

    def __init__(self, workdir: str):
        self._folder = checkpoint_dir(workdir)
        options = ocp.CheckpointManagerOptions(
            read_only=True,
            create=False,
            save_interval_steps=0,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}
            ),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def contents(self, step: int) -> Contents:
        """Returns the items other than the state. All processes call it together.

        Raises:
          CorruptCheckpoint: if they are missing or have changed, in any process.
        """
        return _together(lambda: self._contents(step))

    def _contents(self, step: int) -> Contents:
        items = ocp.args.Composite(data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
        saved = self._restore(step, items)
        contents = {"data": saved["data"], "config": saved["config"]}
        try:
            digest = contents["config"].pop("digest")
        except (AttributeError, KeyError, TypeError):
            raise CorruptCheckpoint("it has no digest") from None
        if digest != _digest(contents):
            raise CorruptCheckpoint("its config or data position has changed since it was saved")
        if contents["config"].get("step") != step:
            raise CorruptCheckpoint(f"it belongs to step {contents['config'].get('step')}")
        return contents

    def state(
        self,
        step: int,
        shapes: TrainState,
        sharding: Any,
        contents: Contents,
        optimizer: bool = True,
    ) -> TrainState:
        """Restores the arrays of a step onto this run's devices and verifies their checksums.

        All processes call it together.

        Args:
          step: step of the checkpoint.
          shapes: the state's shapes, as returned by `jax.eval_shape`.
          sharding: sharding of all arrays, or a prefix pytree of shardings.
          contents: contents of the same step.
          optimizer: whether to read the optimizers' state; False leaves `opt_state` empty, for
            inference: the state of adaptive optimizers is twice the size of the parameters.

        Raises:
          CorruptCheckpoint: if the checkpoint has no such state, in any process's shards.
        """
        abstract = with_shardings(shapes, sharding)
        if optimizer:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = _together(lambda: self._restore(step, items)["state"])
        else:
            fields = _nonempty_fields(abstract.replace(opt_state={}))
            arguments = ocp.checkpoint_utils.construct_restore_args(fields)
            part = ocp.args.PyTreeRestore(fields, restore_args=arguments, partial_restore=True)
            items = ocp.args.Composite(state=part)
            found = _together(lambda: self._restore(step, items)["state"])
            state = TrainState(**{f.name: {} for f in dataclasses.fields(TrainState)} | found)
        saved = contents["config"]["checksums"]
        if any(saved.get(name) != sums for name, sums in field_checksums(state).items()):
            raise CorruptCheckpoint("its arrays have changed since they were saved")
        return state

    def _restore(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except Exception as e:  # damaged files raise many types in Orbax and TensorStore
            raise CorruptCheckpoint(one_line(e)) from e

    def close(self) -> None:
        self._manager.close()


class CheckpointWriter:
    """Writes checkpoints of a run in the background.

    Args:
      workdir: the run's folder.
      keep: number of newest checkpoints to keep.
      trusted: the step that the run starts from; newer checkpoints, which it could not read, are
        moved to `damaged/`. 0 for a new run.
      discard: steps of intact checkpoints to be removed.
    """

    def __init__(self, workdir: str, keep: int, trusted: int = 0, discard: Collection[int] = ()):
        self._workdir, self._folder = workdir, checkpoint_dir(workdir)
        self._keep, self._pending = keep, trusted
        if is_main_process():
            with storage_errors(workdir):
                self._clear_away()
                self._put_aside(trusted, discard)
        all_agree(True)  # barrier: no process opens the folder before it is cleaned up
        self._open()

    def _open(self) -> None:
        policy = ocp.checkpoint_managers.preservation_policy.LatestN(self._keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=True, enable_async_checkpointing=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except OSError as e:
            raise StorageError(f"{self._folder} cannot be written: {e.strerror or e}") from e

    def _put_aside(self, trusted: int, discard: Collection[int]) -> None:
        """Moves checkpoints that cannot be read to `damaged/`."""
        for step in checkpoint_steps(self._workdir):
            if step <= trusted:
                continue
            place = os.path.join(self._folder, str(step))
            if step in discard:
                shutil.rmtree(place)
                continue
            aside = os.path.join(os.path.dirname(self._folder), DAMAGED)
            os.makedirs(aside, exist_ok=True)
            target, n = os.path.join(aside, str(step)), 1
            while os.path.lexists(target):
                target, n = os.path.join(aside, f"{step}.{n}"), n + 1
            os.rename(place, target)
        if 0 < trusted < last_saved_step(self._workdir):
            self._write_note(trusted)  # later checkpoints are not missed on restart

    def save(self, step: int, state: Any, data: Contents, config: Contents) -> None:
        """Starts saving; returns once the arrays have been copied and training may continue.

        Args:
          step: steps taken.
          state: the train state.
          data: position of the feed, as plain JSON values.
          config: the run's config and the spec of its data, as plain JSON values.

        Raises:
          StorageError: if this checkpoint or the previous one could not be written.
        """
        config = {**config, "step": step, "checksums": field_checksums(state)}
        digest = _digest({"data": data, "config": config})
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave({**config, "digest": digest}),
        )
        with self._failures():
            self._manager.wait_until_finished()
            self._note()
            self._manager.save(step, args=items, force=True)
            self._pending = step

    def wait(self) -> None:
        """Waits until the last save is complete.

        Raises:
          StorageError: if it could not be written.
        """
        with self._failures():
            self._manager.wait_until_finished()
            self._note()

    def _note(self) -> None:
        """Records outside the folder that there are checkpoints, in case the folder is lost."""
        if is_main_process() and self._pending > last_saved_step(self._workdir):
            self._write_note(self._pending)

    def _write_note(self, step: int) -> None:
        path = os.path.join(os.path.dirname(self._folder), SAVED)
        write_text_atomically(path, json.dumps({"step": step}))

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # OSError, and TensorStore's ValueErrors
            good = max((s for s in checkpoint_steps(self._workdir)), default=0)
            kept = f"that of step {good} is complete" if good else "there is none yet"
            why = "no space left" if "No space left" in str(e) else one_line(e)
            raise StorageError(
                f"a checkpoint cannot be written to {self._folder} ({why}); {kept}: free some"
                " space or repair the folder, then run the same command again"
            ) from e

    def recover(self) -> None:
        """Removes a failed save, so that the next one can be tried."""
        self._pending = 0
        with contextlib.suppress(Exception):
            self._manager.close()
        self._clear_away()
        self._open()

    def _clear_away(self) -> None:
        """Removes temporary folders of interrupted saves."""
        for name in os.listdir(self._folder) if os.path.isdir(self._folder) else []:
            if TEMPORARY in name:
                shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)

    def close(self) -> None:
        """Waits for pending writes; ignores failures, which `wait` has reported."""
        with contextlib.suppress(Exception):
            self._manager.close()


def _together(read: Callable[[], T]) -> T:
    """Returns `read()`; raises CorruptCheckpoint if any process does."""
    found, error = None, None
    try:
        found = read()
    except CorruptCheckpoint as e:
        error = e
    if not all_agree(error is None):
        raise error or CorruptCheckpoint("another process cannot read its share")
    return cast(T, found)


def _nonempty_fields(state: TrainState) -> dict[str, Any]:
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return {name: tree for name, tree in fields.items() if jax.tree.leaves(tree)}


def field_checksums(state: TrainState) -> dict[str, list[int]]:
    """Returns the checksums of the arrays in each non-empty field of a state."""
    fields = _nonempty_fields(state)
    sums = iter(checksums(fields))
    return {name: [next(sums) for _ in jax.tree.leaves(fields[name])] for name in sorted(fields)}


def _digest(contents: Contents) -> str:
    text = json.dumps(contents, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def restore_latest(
    workdir: str,
    load: Callable[["CheckpointReader", int, Contents], T],
    last: Callable[[Contents], bool] = lambda contents: False,
) -> tuple[int, T]:
    """Loads the newest intact checkpoint; returns its step and the result of `load`.

    All processes call it together. A damaged checkpoint is logged, and the previous one is tried.

    Args:
      workdir: the run's folder.
      load: called with reader, step and contents; it may raise `CorruptCheckpoint`.
      last: returns True for checkpoints to try only if there is no other.

    Raises:
      UserError: if there is no checkpoint, or no intact one.
    """
    steps, lost, reasons = checkpoint_steps(workdir), last_saved_step(workdir), []
    if not steps and lost:
        raise UserError(
            f"{workdir} had checkpoints up to step {lost}, but they are gone: restore them, or"
            " train in another --workdir"
        )
    if not steps:
        raise UserError(f"{workdir} holds no checkpoint: train there first")
    if lost > steps[0]:
        log_main(f"checkpoint {lost} of {workdir} is missing: trying {steps[0]}")
    reader = CheckpointReader(workdir)
    try:
        queue, put_off = list(steps), set()
        for step in queue:
            try:
                contents = reader.contents(step)
                if step in put_off or not last(contents):
                    return step, load(reader, step, contents)
                put_off.add(step)
                queue.append(step)
            except CorruptCheckpoint as e:
                if jax.process_count() == 1 and checkpoint_steps(workdir)[:1] > steps[:1]:
                    return restore_latest(workdir, load, last)  # replaced by a running training
                reasons.append(f"{step}: {e}")
                log_main(f"checkpoint {step} of {workdir} is damaged ({e}): trying an older one")
    finally:
        reader.close()
    raise UserError(
        f"{workdir} holds no intact checkpoint ({'; '.join(reasons)[:300]}): restore a copy,"
        " or train in another --workdir"
    )
