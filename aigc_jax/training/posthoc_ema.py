"""Post-hoc EMA: reconstructs averages of any width after training from snapshots of two widths.

A snapshot is a weighted mean of the parameters over time with a known profile. The target profile
is fitted by a linear combination of the snapshots' profiles in the least-squares sense, and the
same combination of their parameters is the average (Karras et al. 2024, EDM2, section 3.2).

Shapes: S snapshots.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from aigc_jax.core.errors import UserError, one_line
from aigc_jax.core.files import atomic_path
from aigc_jax.core.objective import Params
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.distributed.gather import gather_to_host
from aigc_jax.training.ema import power_exponent

FOLDER = "ema"
_NAME = re.compile(r"step_(\d+)\.safetensors")


def snapshot_path(workdir: str, step: int) -> str:
    """Returns the path of the snapshots after a step."""
    return os.path.join(workdir, FOLDER, f"step_{step:08d}.safetensors")


def save_snapshot(workdir: str, step: int, power_ema: dict[str, Params]) -> None:
    """Writes the power-function averages of a state, host arrays, atomically."""
    path = snapshot_path(workdir, step)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    arrays = {key: np.array(x, order="C") for key, x in named_leaves(power_ema)}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary)


def remove_snapshots(workdir: str, after: int) -> None:
    """Removes snapshots of steps later than `after`, which a rollback has undone."""
    for step in snapshot_steps(workdir):
        if step > after:
            os.remove(snapshot_path(workdir, step))


def snapshot_steps(workdir: str) -> list[int]:
    """Returns the steps of the snapshots in ascending order."""
    folder = os.path.join(workdir, FOLDER)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted(int(m.group(1)) for m in map(_NAME.fullmatch, names) if m)


def profile_dot(
    step_a: np.ndarray,
    exponent_a: np.ndarray,
    step_b: np.ndarray | np.floating,
    exponent_b: np.ndarray | np.floating,
) -> np.ndarray:
    """Returns ∫ p_a p_b dτ of the profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t].

    Computed in logarithms, since t^γ overflows.
    """
    first = np.minimum(step_a, step_b)
    a, b = exponent_a + 1, exponent_b + 1
    log = a * np.log(first / step_a) + b * np.log(first / step_b) - np.log(first)
    return a * b / (a + b - 1) * np.exp(log)


def solve_weights(
    steps_S: Sequence[int], sigma_rels_S: Sequence[float], step: int, sigma_rel: float
) -> np.ndarray:
    """Returns the weights (S,) of the snapshots for the least-squares fit of a target profile.

    Args:
      steps_S: the step of each snapshot.
      sigma_rels_S: the relative width of each snapshot.
      step: the step at which the target average ends.
      sigma_rel: the relative width of the target.
    """
    t = np.asarray(steps_S, np.float64)
    gamma = np.array([power_exponent(w) for w in sigma_rels_S])
    each = profile_dot(t[:, None], gamma[:, None], t[None], gamma[None])
    target = profile_dot(t, gamma, np.float64(step), np.float64(power_exponent(sigma_rel)))
    weights_S, *_ = np.linalg.lstsq(each, target, rcond=1e-12)
    return weights_S / weights_S.sum()  # a mean of parameters


def reconstruct_ema(workdir: str, state: TrainState, sigma_rel: float) -> TrainState:
    """Returns the state with the average of a given relative width as its only one.

    Args:
      workdir: the run's folder with the snapshots.
      state: the newest state, used as a snapshot itself.
      sigma_rel: standard deviation of the profile in time, relative to the length of training.

    Raises:
      UserError: if the run has kept no snapshots, or they cannot be read.
    """
    if not state.power_ema or not 0 < sigma_rel < 0.28:
        wrong = (
            "the run keeps no power-function averages: set ema.sigma_rels"
            if not state.power_ema
            else "it must be between 0 and 0.28"
        )
        raise UserError(f"no average for sigma_rel={sigma_rel:g}: {wrong}")
    now = int(state.step)
    steps = [s for s in snapshot_steps(workdir) if s < now]
    names = list(state.power_ema)
    pairs = [(s, n) for s in (*steps, now) for n in names]
    weights_S = solve_weights([s for s, _ in pairs], [float(n) for _, n in pairs], now, sigma_rel)
    shares = dict(zip(pairs, weights_S, strict=True))
    power_ema = gather_to_host(state.power_ema)
    total = {
        n: jax.tree.map(lambda x, n=n: shares[now, n] * np.asarray(x, np.float64), power_ema[n])
        for n in names
    }
    for step in steps:
        arrays = _read(snapshot_path(workdir, step))
        for n in names:
            total[n] = jax.tree_util.tree_map_with_path(
                lambda path, x, n=n, a=arrays, s=step: (
                    x + shares[s, n] * _array(a, n, path, x.shape)
                ),
                total[n],
            )
    mean = jax.tree.map(lambda *xs: sum(xs), *total.values())
    ema = jax.tree.map(
        lambda x, like: x.astype(like.dtype), mean, next(iter(state.power_ema.values()))
    )
    return state.replace(ema=ema, power_ema={})


def _read(path: str) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, "np") as f:
            return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({one_line(e)}): remove it") from e


def _array(arrays: dict[str, np.ndarray], name: str, path: Any, shape: Any) -> np.ndarray:
    key = f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
    if key not in arrays or arrays[key].shape != shape:
        raise UserError(f"a snapshot in {FOLDER}/ has no {key} of this model: remove the folder")
    return arrays[key].astype(np.float64)
