"""Optax chains from config: one per player."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from aigc_jax.core.config import Optim
from aigc_jax.ops.schedules import cosine_schedule

Optimizers = Mapping[str, optax.GradientTransformation]


def make_schedule(config: Optim, steps: int) -> optax.Schedule:
    """The learning rate at a training step: linear warm-up, then the named shape.

    With `decay_steps` cosine and linear are at their end after so many steps, and stay there.
    `wsd` is warm-up, stable, decay: constant until the last `decay_fraction` of the steps, then
    linear (Hu et al. 2024, MiniCPM).
    """
    warmup = min(config.warmup_steps, steps)
    rest = max((config.decay_steps or steps) - warmup, 1)
    end = config.lr * config.final_lr_fraction
    if config.schedule == "constant":
        after = optax.constant_schedule(config.lr)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(config.lr, rest, alpha=config.final_lr_fraction)
    elif config.schedule == "linear":
        after = optax.linear_schedule(config.lr, end, rest)
    else:
        decaying = max(int(rest * config.decay_fraction), 1)
        after = optax.linear_schedule(config.lr, end, decaying, transition_begin=rest - decaying)
    if not warmup:
        return after
    # The first step already moves: it has 1/warmup of the rate, not nothing.
    ramp = optax.linear_schedule(config.lr / warmup, config.lr, warmup - 1 or 1)
    return optax.join_schedules([ramp, after], [warmup])


def adam_with_b2(config: Optim, b2_at: optax.Schedule) -> optax.GradientTransformation:
    """Adam's direction under a β₂ that changes with the moves.

    As in PyTorch, where a change of `betas` acts at once: the moments are corrected for their start
    with the β₂ of now.
    """

    def at(count: jax.Array) -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=config.b1, b2=b2_at(count), eps=config.eps)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return at(state.count).update(grads, state, params)

    return optax.GradientTransformation(at(jnp.int32(0)).init, update)


def decay_mask(params: Any, embeddings: bool = False) -> Any:
    """True for matrices and kernels; False for biases, norms' scales, taps and embeddings.

    Args:
      params: a tree of arrays.
      embeddings: True for these too.
    """

    def decays(path: tuple, leaf: Any) -> bool:
        table = embeddings and is_embedding(path)
        return leaf.ndim - stacked_axes(path) >= 2 and (is_matrix(path) or table)

    return jax.tree_util.tree_map_with_path(decays, params)


def is_embedding(path: tuple) -> bool:
    return "embedding" in jax.tree_util.keystr(path).lower()


def is_matrix(path: tuple) -> bool:
    """Whether an array maps vectors to vectors: not a table of them, nor one of channels' taps."""
    return not is_embedding(path) and "taps" not in jax.tree_util.keystr(path)


def stacked_axes(path: tuple) -> int:
    """Axes before an array's own: arrays under `layers` hold those of all layers."""
    return int("layers" in jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def muon_dimensions(params: Any) -> Any:
    """What Muon orthogonalises: kernels as (inputs, outputs) matrices, each layer's by itself.

    Embeddings, biases, scales and taps go to AdamW (Jordan 2024); a convolution kernel (h, w, in,
    out) counts as a matrix of h·w·in rows.
    """

    def dims(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        first, last = stacked_axes(path), leaf.ndim - 1
        if last - first < 1 or not is_matrix(path):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), (last,))

    return jax.tree_util.tree_map_with_path(dims, params)


def make_optimizer(
    config: Optim, steps: int, turns: int = 1
) -> tuple[optax.GradientTransformation, Callable[[jax.Array], jax.Array]]:
    """The player's chain and its learning rate as a function of the training step.

    Args:
      config: the player's block.
      steps: training steps of the run.
      turns: how often the player moves in one step; its schedule follows steps, not moves.
    """
    schedule = make_schedule(config, steps)

    def per_move(schedule: optax.Schedule) -> optax.Schedule:
        return lambda count: schedule(count // turns)

    mask = functools.partial(decay_mask, embeddings=config.decay_embeddings)
    lr, decay = per_move(schedule), dict(weight_decay=config.weight_decay, mask=mask)
    adam = dict(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.b2_start and config.name in ("adam", "adamw"):
        b2_at = per_move(cosine_schedule(config.b2_start, config.b2, config.b2_steps or steps))
        weights = optax.add_decayed_weights(config.weight_decay, mask)
        direction = adam_with_b2(config, b2_at)
        first, second = (weights, direction) if config.name == "adam" else (direction, weights)
        chain = optax.chain(first, second, optax.scale_by_learning_rate(lr))
    elif config.name == "adamw":
        chain = optax.adamw(lr, **adam, **decay)
    elif config.name == "adam":
        # Decay as an L2 term of the gradient, which is what tells Adam from AdamW.
        chain = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask), optax.adam(lr, **adam)
        )
    elif config.name == "sgd":
        chain = optax.chain(
            optax.add_decayed_weights(config.weight_decay, mask),
            optax.sgd(lr, momentum=config.b1, nesterov=True),
        )
    elif config.name == "none":
        chain = optax.set_to_zero()
    elif config.name == "lion":
        chain = optax.lion(lr, b1=config.b1, b2=config.b2, **decay)
    else:
        ratio = config.adam_lr / config.lr if config.adam_lr and config.lr else 1.0
        chain = optax.contrib.muon(
            lr,
            beta=config.b1,
            eps=config.eps,
            weight_decay=config.weight_decay,
            weight_decay_mask=mask,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=per_move(lambda count: schedule(count) * ratio),
            muon_weight_dimension_numbers=muon_dimensions,
        )
    if config.clip_norm > 0:
        chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), chain)
    return chain, schedule
