"""Builds the Optax chain and learning-rate schedule of each player from the config."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from aigc_jax.core.config import OPTIMIZERS, SCHEDULES, Optim
from aigc_jax.ops.schedules import cosine_schedule

Optimizers = Mapping[str, optax.GradientTransformation]


def make_schedule(config: Optim, steps: int) -> optax.Schedule:
    """Returns the learning rate by training step: linear warm-up, then the named shape."""
    warmup = min(config.warmup_steps, steps)
    rest = max((config.decay_steps or steps) - warmup, 1)
    after = SCHEDULES[config.schedule](config, rest)
    if not warmup:
        return after
    # The first step already has 1 / warmup_steps of the learning rate, not 0.
    ramp = optax.linear_schedule(config.lr / warmup, config.lr, warmup - 1 or 1)
    return optax.join_schedules([ramp, after], [warmup])


@SCHEDULES.decorator("constant")
def constant_rate(config: Optim, steps: int) -> optax.Schedule:
    """Constant learning rate."""
    return optax.constant_schedule(config.lr)


@SCHEDULES.decorator("cosine")
def cosine_decay(config: Optim, steps: int) -> optax.Schedule:
    """Half a cosine to the final learning rate over `steps`, constant afterwards."""
    return optax.cosine_decay_schedule(config.lr, steps, alpha=config.final_lr_fraction)


@SCHEDULES.decorator("linear")
def linear_decay(config: Optim, steps: int) -> optax.Schedule:
    """Linear decay to the final learning rate over `steps`, constant afterwards."""
    return optax.linear_schedule(config.lr, config.lr * config.final_lr_fraction, steps)


@SCHEDULES.decorator("wsd")
def warmup_stable_decay(config: Optim, steps: int) -> optax.Schedule:
    """Constant until the last `decay_fraction`, then linear (MiniCPM, Hu et al. 2024)."""
    decaying = max(int(steps * config.decay_fraction), 1)
    end = config.lr * config.final_lr_fraction
    return optax.linear_schedule(config.lr, end, decaying, transition_begin=steps - decaying)


def adam_with_b2_schedule(config: Optim, b2: optax.Schedule) -> optax.GradientTransformation:
    """Adam update with a scheduled β₂.

    As in PyTorch when `betas` change, the bias correction uses the current β₂. Only β₂ is injected
    as a hyperparameter: an array β₁ in the state would round 1 − β₁ differently from a constant.

    Args:
      config: the player's block, for β₁ and ε.
      b2: β₂ by update, counted from 0.
    """
    inject = optax.inject_hyperparams(
        optax.scale_by_adam, static_args=("b1", "eps", "eps_root", "mu_dtype", "nesterov")
    )
    return inject(b1=config.b1, b2=b2, eps=config.eps)


def decay_mask(params: Any, embeddings: bool = False) -> Any:
    """Mask of weight decay: True for matrices and kernels; False for biases, scales, embeddings.

    Args:
      params: a tree of arrays.
      embeddings: whether embeddings decay too.
    """

    def decays(path: tuple, leaf: Any) -> bool:
        table = embeddings and is_embedding(path)
        return leaf.ndim - stacked_axes(path) >= 2 and (is_matrix(path) or table)

    return jax.tree_util.tree_map_with_path(decays, params)


def is_embedding(path: tuple) -> bool:
    return "embedding" in jax.tree_util.keystr(path).lower()


def is_matrix(path: tuple) -> bool:
    """Returns whether a parameter is a matrix or kernel, not an embedding or depthwise taps."""
    return not is_embedding(path) and "taps" not in jax.tree_util.keystr(path)


def stacked_axes(path: tuple) -> int:
    """Returns the number of leading axes that stack layers: 1 under `layers`, else 0."""
    return int("layers" in jax.tree_util.keystr(path, simple=True, separator="/").split("/"))


def muon_dimensions(params: Any) -> Any:
    """Returns Muon's matrix axes for each kernel, (inputs, outputs) per layer; None for others.

    Embeddings, biases, scales and taps go to AdamW (Jordan 2024); a convolution kernel (h, w, in,
    out) counts as a matrix of h·w·in rows.
    """

    def dims(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        first, last = stacked_axes(path), leaf.ndim - 1
        if last - first < 1 or not is_matrix(path):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), (last,))

    return jax.tree_util.tree_map_with_path(dims, params)


@dataclasses.dataclass(frozen=True)
class OptimizerArgs:
    """Arguments of an optimizer's factory.

    Attributes:
      config: the player's block.
      learning_rate: schedule by update of the player.
      mask: maps params to a tree of bools, True where weight decay applies.
      steps: training steps of the run.
      per_move: converts a schedule by training step into one by update of the player.
    """

    config: Optim
    learning_rate: optax.Schedule
    mask: Callable[[Any], Any]
    steps: int
    per_move: Callable[[optax.Schedule], optax.Schedule]


def make_optimizer(
    config: Optim, steps: int, turns: int = 1
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns a player's Optax chain and its learning rate by training step.

    Args:
      config: the player's block.
      steps: training steps of the run.
      turns: turns of the player in one step; its schedule follows steps, not turns.
    """
    schedule = make_schedule(config, steps)

    def per_move(schedule: optax.Schedule) -> optax.Schedule:
        return lambda count: schedule(count // turns)

    mask = functools.partial(decay_mask, embeddings=config.decay_embeddings)
    args = OptimizerArgs(config, per_move(schedule), mask, steps, per_move)
    chain = OPTIMIZERS[config.name](args)
    if config.clip_norm > 0:
        chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), chain)
    return chain, schedule


@OPTIMIZERS.decorator("adamw")
def adamw(args: OptimizerArgs) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    c = args.config
    if c.b2_start:
        weights = optax.add_decayed_weights(c.weight_decay, args.mask)
        return _chain(args, _adam_with_ramp(args), weights)
    decay = dict(weight_decay=c.weight_decay, mask=args.mask)
    return optax.adamw(args.learning_rate, b1=c.b1, b2=c.b2, eps=c.eps, **decay)


@OPTIMIZERS.decorator("adam")
def adam(args: OptimizerArgs) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015) with weight decay as an L2 term of the gradient."""
    c, weights = args.config, optax.add_decayed_weights(args.config.weight_decay, args.mask)
    if c.b2_start:
        return _chain(args, weights, _adam_with_ramp(args))
    return optax.chain(weights, optax.adam(args.learning_rate, b1=c.b1, b2=c.b2, eps=c.eps))


def _adam_with_ramp(args: OptimizerArgs) -> optax.GradientTransformation:
    c = args.config
    ramp = cosine_schedule(c.b2_start, c.b2, c.b2_steps or args.steps)
    return adam_with_b2_schedule(c, args.per_move(ramp))


def _chain(
    args: OptimizerArgs, *parts: optax.GradientTransformation
) -> optax.GradientTransformation:
    return optax.chain(*parts, optax.scale_by_learning_rate(args.learning_rate))


@OPTIMIZERS.decorator("sgd")
def sgd(args: OptimizerArgs) -> optax.GradientTransformation:
    """Gradient descent with Nesterov momentum."""
    return optax.chain(
        optax.add_decayed_weights(args.config.weight_decay, args.mask),
        optax.sgd(args.learning_rate, momentum=args.config.b1, nesterov=True),
    )


@OPTIMIZERS.decorator("lion")
def lion(args: OptimizerArgs) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    c = args.config
    decay = dict(weight_decay=c.weight_decay, mask=args.mask)
    return optax.lion(args.learning_rate, b1=c.b1, b2=c.b2, **decay)


@OPTIMIZERS.decorator("none")
def none(args: OptimizerArgs) -> optax.GradientTransformation:
    """No updates: frozen parameters."""
    return optax.set_to_zero()


@OPTIMIZERS.decorator("muon")
def muon(args: OptimizerArgs) -> optax.GradientTransformation:
    """Muon for matrices (Jordan 2024), AdamW for the rest."""
    c = args.config
    ratio = c.adam_lr / c.lr if c.adam_lr and c.lr else 1.0
    return optax.contrib.muon(
        args.learning_rate,
        beta=c.b1,
        eps=c.eps,
        weight_decay=c.weight_decay,
        weight_decay_mask=args.mask,
        adam_b1=c.b1,
        adam_b2=c.b2,
        adam_learning_rate=lambda count: args.learning_rate(count) * ratio,
        muon_weight_dimension_numbers=muon_dimensions,
    )
