"""Compiles the train step with `jit` over a mesh, or with `pmap`; the results are the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError
from aigc_jax.distributed.logical_axes import with_mesh
from aigc_jax.distributed.mesh import axis_size, batch_sharding, put_batch, replicated
from aigc_jax.distributed.sharding import with_shardings
from aigc_jax.training.step import Step

AXIS = "data"


class CompiledStep:
    """A compiled step and the placement of its state and batches on devices."""

    _compiled: Any

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    @property
    def compiles(self) -> int:
        """Returns the number of compiled programs; more than one in a run is an error."""
        return self._compiled._cache_size()

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Takes one step; donates the buffers of `state`."""
        return self._compiled(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers the step for a placed state and batch, or their shapes."""
        return self._compiled.lower(state, batch)

    def put_state(self, state: Any) -> Any:
        """Places a state on the devices in the form of the step's argument."""
        raise NotImplementedError

    def get_state(self, state: Any) -> Any:
        """Returns the state in the form for checkpoints, evaluation and sampling."""
        raise NotImplementedError

    def put_batch(self, batch: Any) -> Any:
        """Places this process's rows of a batch on the devices."""
        raise NotImplementedError


class JitStep(CompiledStep):
    """A step compiled by `jit`: the batch is sharded over data and fsdp, the state by `shardings`.

    Args:
      step: the pure step.
      mesh: the devices; they need not be attached if the step is only lowered.
      shardings: a prefix pytree of shardings for the state; replicated by default.
    """

    def __init__(self, step: Step, mesh: Mesh, shardings: Any = None):
        super().__init__(mesh)
        everywhere = replicated(mesh)
        self.shardings = everywhere if shardings is None else shardings
        self._compiled = jax.jit(
            with_mesh(mesh, step), donate_argnums=0, out_shardings=(self.shardings, everywhere)
        )

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers the step for this mesh, for ahead-of-time compilation; allocates no arrays.

        Args:
          state: the state's shapes.
          batch: shapes of a batch over all processes.
        """
        return self._compiled.lower(
            with_shardings(state, self.shardings), with_shardings(batch, batch_sharding(self.mesh))
        )

    def put_state(self, state: Any) -> Any:
        return jax.device_put(state, self.shardings)

    def get_state(self, state: Any) -> Any:
        return state

    def put_batch(self, batch: Any) -> Any:
        return put_batch(self.mesh, batch)


class PmapStep(CompiledStep):
    """A step compiled by `pmap`: state and batch have a leading axis of devices (legacy mode)."""

    def __init__(self, step: Step, mesh: Mesh):
        super().__init__(mesh)
        self.devices = list(mesh.devices.flat)
        if jax.process_count() > 1:
            raise UserError(
                "train.parallel_mode=pmap runs in one process only: use train.parallel_mode=jit"
            )
        if axis_size(mesh, "data") != mesh.size:
            raise UserError(
                "train.parallel_mode=pmap shards only the batch: use"
                " train.parallel_mode=jit, or a mesh of data=… alone"
            )
        self._traces = 0

        def traced(state: Any, batch: Any) -> tuple[Any, Any]:
            self._traces += 1
            return step(state, batch, AXIS)

        self._compiled = jax.pmap(
            traced,
            axis_name=AXIS,
            donate_argnums=0,
            devices=self.devices,
        )

    @property
    def compiles(self) -> int:
        return self._traces

    def put_state(self, state: Any) -> Any:
        n = len(self.devices)
        # In the sharding of the step's output; otherwise the second step would compile again.
        sharding = NamedSharding(Mesh(np.array(self.devices), (AXIS,)), P(AXIS))
        return jax.tree.map(
            lambda x: jax.device_put(jnp.broadcast_to(x, (n, *x.shape)), sharding), state
        )

    def get_state(self, state: Any) -> Any:
        return jax.tree.map(lambda x: x[0], state)

    def put_batch(self, batch: Any) -> Any:
        n = len(self.devices)
        return jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), batch)

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        state, metrics = self._compiled(state, batch)
        return state, jax.tree.map(lambda x: x[0], metrics)


def compile_step(
    step: Step, mesh: Mesh, how: str = "jit", shardings: Any = None
) -> JitStep | PmapStep:
    """Compiles `step` for `mesh` by `how`, "jit" or "pmap"; `shardings` as in `JitStep`."""
    return PmapStep(step, mesh) if how == "pmap" else JitStep(step, mesh, shardings)
