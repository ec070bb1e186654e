"""Checkpoints: state, data position and config together, written by Orbax in the background.

This is the only file that imports orbax.
"""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp

from aigc_jax.errors import UserError

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of a workdir.

    Args:
      workdir: the run's folder.
      keep: how many of the newest to keep.
      create: make the folder if it is missing; without it, only read.
    """

    def __init__(self, workdir: str, keep: int = 2, create: bool = False):
        self._folder = os.path.join(os.path.abspath(os.path.expanduser(workdir)), FOLDER)
        if os.path.exists(self._folder) and not os.path.isdir(self._folder):
            raise UserError(f"{self._folder} is in the way: it must be a folder")
        if not create and not os.path.isdir(self._folder):
            raise UserError(f"{workdir} holds no checkpoint: train there first with aigc train")
        policy = ocp.checkpoint_managers.preservation_policy.LatestN(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, create=create, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, data: dict[str, Any], config: dict[str, Any]) -> None:
        """Starts to save; returns once the arrays are copied and training may go on."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave(config),
        )
        self._manager.save(step, args=items, force=True)

    def config(self, step: int) -> dict[str, Any]:
        """What `save` was given as `config`."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._restore(step, items)["config"]

    def restore(self, step: int, shapes: Any, sharding: Any) -> tuple[Any, dict[str, Any]]:
        """State and data position of a step.

        Args:
          step: which checkpoint.
          shapes: the state's shapes, as `jax.eval_shape` gives them.
          sharding: where its arrays go, on this run's devices.

        Raises:
          UserError: if the checkpoint does not hold such a state.
        """
        abstract = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes
        )
        restored = self._restore(
            step,
            ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["data"]

    def _restore(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except (ValueError, KeyError, TypeError, OSError) as e:
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"checkpoint {step} in {self._folder} cannot be read ({reason})") from e

    def wait(self) -> None:
        """Returns when the last save is complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()
