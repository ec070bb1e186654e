"""Two ways to compile the one step, with the same numbers: `jit` over a mesh, and `pmap`."""

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
    """A step with its placement of state and batches."""

    _compiled: Any

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    @property
    def compiles(self) -> int:
        """How many programs the step has become; more than one in a run is a mistake."""
        return self._compiled._cache_size()

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """One step; gives `state` away (its buffers are donated)."""
        return self._compiled(state, batch)

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lowers the step for XLA, for a state and a batch as they are put, or their shapes."""
        return self._compiled.lower(state, batch)

    def put_state(self, state: Any) -> Any:
        """Places a state on the devices, in the form that the step takes."""
        raise NotImplementedError

    def get_state(self, state: Any) -> Any:
        """Returns the state in the form that is saved, evaluated and sampled from."""
        raise NotImplementedError

    def put_batch(self, batch: Any) -> Any:
        """Places this process's rows of a batch on the devices."""
        raise NotImplementedError


class JitStep(CompiledStep):
    """`jit` with `NamedSharding`: the batch is split over data and fsdp, the state as it is told.

    Args:
      step: the pure step.
      mesh: the devices; they need not be there if the step is only lowered.
      shardings: of the state, or a tree whose leaves hold for all below; whole on every device if
        left out.
    """

    def __init__(self, step: Step, mesh: Mesh, shardings: Any = None):
        super().__init__(mesh)
        whole = replicated(mesh)
        self.shardings = whole if shardings is None else shardings
        self._compiled = jax.jit(
            with_mesh(mesh, step), donate_argnums=0, out_shardings=(self.shardings, whole)
        )

    def lower(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """The step for this mesh, to be compiled without being run; nothing is allocated.

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
        """The state in the form that is saved, evaluated and sampled from."""
        return state

    def put_batch(self, batch: Any) -> Any:
        return put_batch(self.mesh, batch)


class PmapStep(CompiledStep):
    """`pmap`: state and batch have a leading axis of devices. For code that still thinks in it."""

    def __init__(self, step: Step, mesh: Mesh):
        super().__init__(mesh)
        self.devices = list(mesh.devices.flat)
        if jax.process_count() > 1:
            raise UserError(
                "train.parallel_mode=pmap runs in one process only: use train.parallel_mode=jit"
            )
        if axis_size(mesh, "data") != mesh.size:
            raise UserError(
                "train.parallel_mode=pmap splits nothing but the batch: use"
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
        # Placed as the step will return it, or the second step would compile again.
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
    """`step` compiled for `mesh`: `how` is "jit" or "pmap"; `shardings` are those of `JitStep`."""
    return PmapStep(step, mesh) if how == "pmap" else JitStep(step, mesh, shardings)
