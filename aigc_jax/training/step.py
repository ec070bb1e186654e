"""The train step, shared by all families.

Shapes: B examples of a batch, M microbatches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core.config import Ema
from aigc_jax.core.metrics import Mean, Metrics, merge
from aigc_jax.core.objective import Batch, Mutables, Objective, Params
from aigc_jax.core.state import TrainState
from aigc_jax.ops.random import numbered_keys
from aigc_jax.training import ema as ema_lib
from aigc_jax.training.optimizers import Optimizers

Step = Callable[..., tuple[TrainState, Metrics]]
PREPARE = 0x50524550  # folded into the step's key for `Objective.prepare`; turns have small numbers


def make_step(
    objective: Objective, optimizers: Optimizers, ema: Ema | None = None, accumulate: int = 1
) -> Step:
    """Returns a pure function `step(state, batch, axis=None) -> (state, metrics)`.

    `objective.prepare` is called once, before the turns and outside every gradient. Each turn
    differentiates its player's loss by that player's parameters and updates them; the next turn
    uses the updated parameters. If a loss, gradient or update of any turn is not finite, no player
    is updated and the step counts as skipped.

    Every turn of a step uses the same batch. Keys are folded with the player's own turn count, so
    the first turn of each player shares its keys: the generator can reproduce the latents that the
    critic saw.

    `axis` names the mapped axis under `pmap`, where `batch` is this device's shard.

    Args:
      objective: the game.
      optimizers: one Optax transformation per player.
      ema: the averages to keep, if any.
      accumulate: number of microbatches, which must divide B.
    """
    players = tuple(dict.fromkeys(objective.turns))
    ema = ema or Ema()

    def step(state: TrainState, batch: Batch, axis: str | None = None):
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        params, opt_state, mutables = dict(state.params), dict(state.opt_state), state.mutables
        batch = prepare_batch(objective, params, mutables, batch, key, state.step, accumulate, axis)
        metrics: dict[str, Mean] = {}
        finite = jnp.bool_(True)
        for turn, player in enumerate(objective.turns):
            key_B = example_keys(turn_key(key, objective.turns, turn), len(batch["weight"]), axis)
            loss, grads, aux, mutables = gradients(
                objective, player, params, mutables, batch, key_B, state.step, accumulate, axis
            )
            norm = optax.global_norm(grads)
            updates, opt_state[player] = optimizers[player].update(
                grads, opt_state[player], params[player]
            )
            # An optimizer can turn finite gradients into NaN, such as 0 / 0 with eps = 0.
            for size in (loss.total, norm, optax.global_norm(updates)):
                finite &= jnp.isfinite(size)
            params[player] = optax.apply_updates(params[player], updates)
            aux = {"loss": loss, "grad_norm": Mean.of(norm), **aux}
            prefix = f"{player}/" if len(players) > 1 else ""
            metrics = merge(metrics, {prefix + name: mean for name, mean in aux.items()})
        own = {player: params[player] for player in players}
        size = batch["weight"].shape[0] * (jax.lax.axis_size(axis) if axis else 1)
        averages, power_ema = ema_lib.update_averages(
            ema, state.ema, state.power_ema, own, state.step, size
        )
        before = {player: state.params[player] for player in players}
        moved = (own, opt_state, averages, power_ema, mutables)
        stayed = (before, state.opt_state, state.ema, state.power_ema, state.mutables)
        own, opt_state, averages, power_ema, mutables = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), moved, stayed
        )
        params |= own
        # A skipped step contributes nothing to the means of a record but its own count.
        metrics = jax.tree.map(lambda m: jnp.where(finite, m, 0), metrics)
        metrics["skipped"] = Mean.of(~finite)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=averages,
            power_ema=power_ema,
            mutables=mutables,
            skipped=skipped,
        )
        return state, metrics

    return step


def turn_key(key: jax.Array, turns: tuple[str, ...], turn: int) -> jax.Array:
    """Returns the step's key folded with the number of earlier turns of the same player."""
    return jax.random.fold_in(key, turns[:turn].count(turns[turn]))


def example_keys(key: jax.Array, size: int, axis: str | None) -> jax.Array:
    """Returns one key per example, numbered over the global batch, also for a shard of it."""
    first = jax.lax.axis_index(axis) * size if axis else 0
    return numbered_keys(key, first + jnp.arange(size))


def prepare_batch(
    objective: Objective,
    params: Params,
    mutables: Mutables,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    accumulate: int = 1,
    axis: str | None = None,
) -> Batch:
    """Calls `objective.prepare`, by microbatches to bound its memory; returns the batch.

    Args:
      objective: the game.
      params: parameters of all players, before the step.
      mutables: mutables of all players, before the step.
      batch: batch from the feed; under `pmap` this device's shard.
      key: key of the step.
      step: int32 scalar.
      accumulate: number of microbatches.
      axis: the mapped axis under `pmap`.
    """
    key_B = example_keys(jax.random.fold_in(key, PREPARE), len(batch["weight"]), axis)

    def part(microbatch: tuple[Batch, jax.Array]) -> Batch:
        return objective.prepare(params, mutables, *microbatch, step)

    if accumulate == 1:
        return part((batch, key_B))
    batch_M = jax.lax.map(part, to_microbatches((batch, key_B), accumulate))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), batch_M)


def to_microbatches(tree: Any, number: int) -> Any:
    """Reshapes arrays (B, …) to (M, B/M, …).

    Microbatch m has the examples m, m + M, …, so that each microbatch spans all devices.
    """
    return jax.tree.map(lambda x: x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1), tree)


def gradients(
    objective: Objective,
    player: str,
    params: dict[str, Any],
    mutables: dict[str, Any],
    batch: Batch,
    key_B: jax.Array,
    step: jax.Array,
    accumulate: int,
    axis: str | None,
) -> tuple[Mean, Any, Metrics, dict[str, Any]]:
    """Returns loss, gradient, metrics and mutables of one turn over the global batch.

    The totals of the microbatches and devices are summed and divided once, by the total weight:
    the gradient is that of one big batch.
    """

    def total(own, mutables, batch, key_B):
        loss, (metrics, mutables) = objective.loss(
            player, {**params, player: own}, mutables, batch, key_B, step
        )
        return loss.total, (loss, metrics, mutables)

    def part(mutables, batch, key_B):
        grads, aux = jax.grad(total, has_aux=True)(params[player], mutables, batch, key_B)
        return grads, *aux

    if accumulate == 1:
        grads, loss, metrics, mutables = part(mutables, batch, key_B)
    else:
        batch_M, key_M = to_microbatches((batch, key_B), accumulate)

        def body(carry, microbatch):
            mutables, sums = carry
            *new, mutables = part(mutables, *microbatch)
            return (mutables, jax.tree.map(jnp.add, sums, tuple(new))), None

        first = jax.tree.map(lambda x: x[0], (batch_M, key_M))
        shapes = jax.eval_shape(part, mutables, *first)[:-1]
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tuple(shapes))
        (mutables, (grads, loss, metrics)), _ = jax.lax.scan(
            body, (mutables, zeros), (batch_M, key_M)
        )
    if axis:
        grads, loss, metrics = jax.lax.psum((grads, loss, metrics), axis)
        mutables = jax.tree.map(
            lambda m: jax.lax.pmean(m, axis) if jnp.issubdtype(m.dtype, jnp.floating) else m,
            mutables,
        )
    weight = jnp.where(loss.weight > 0, loss.weight, 1)
    return loss, jax.tree.map(lambda g: g / weight, grads), metrics, mutables
