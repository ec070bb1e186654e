"""Diagnoses non-finite steps: dumps a report, the state and the batch."""

import json
import os
import time
from typing import Any, NoReturn

import jax
import numpy as np
import optax

from aigc_jax.core.errors import NotFinite
from aigc_jax.core.feed import Feed
from aigc_jax.core.state import TrainState, named_leaves
from aigc_jax.core.workdir import storage_errors, write_text_atomically
from aigc_jax.distributed.gather import gather_to_host
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.experiment.build import Run
from aigc_jax.nn.activation_stats import is_finite, nonfinite_modules
from aigc_jax.training.anomaly import TrainingAnomaly
from aigc_jax.training.step import example_keys, gradients, prepare_batch, turn_key

FOLDER, REPORT = "nonfinite", "report.json"
SHOWN = 3  # items of a list in a message
Report = dict[str, Any]


def report_and_raise(
    run: Run, feed: Feed, anomaly: TrainingAnomaly, workdir: str, state: TrainState
) -> NoReturn:
    """Dumps a diagnosis of a non-finite step and ends the run.

    Args:
      run: the run.
      feed: positioned after the batch of that step.
      anomaly: the step and the reason.
      workdir: folder for the dump.
      state: state before the step, in the form of `CompiledStep`.

    Raises:
      NotFinite: with the step, the examples and the first non-finite values.
    """
    number = feed.taken - 1
    feed.skip_to(number)
    batch = feed.next(state)
    state = gather_to_host(run.step.get_state(state).replace(step=np.int32(anomaly.step - 1)))
    report = {
        "step": anomaly.step,
        "reason": anomaly.reason,
        "time": time.time(),
        "examples": feed.example_ids(number),
        **diagnose(run, state, batch),
    }
    place = os.path.join(workdir, FOLDER, f"step_{anomaly.step:07d}")
    if is_main_process():
        with storage_errors(workdir):
            dump(place, report, state, batch)
    raise NotFinite(
        f"{anomaly}; {summary(report)}; its examples are {shorten_list(report['examples'])};"
        f" the state and the batch are in {place}: aigc doctor --workdir={workdir} explains them"
    )


def diagnose(run: Run, state: TrainState, batch: dict[str, np.ndarray]) -> Report:
    """Lists what is not finite in a step, per player, in the order of computation.

    Args:
      run: the run.
      state: state before the step, on the host.
      batch: this process's rows of the batch.
    """
    arrays = {name: [k for k, x in named_leaves(getattr(state, name)) if not is_finite(x)]
              for name in ("params", "opt_state", "ema", "power_ema", "mutables")}  # fmt: skip
    data = {k: range_of(x) for k, x in batch.items()}
    key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    prepared = jax.jit(lambda *args: prepare_batch(run.objective, *args))(
        state.params, state.mutables, batch, key, state.step
    )
    players = {}
    for turn, player in enumerate(run.objective.turns):
        key_B = example_keys(turn_key(key, run.objective.turns, turn), len(batch["weight"]), None)
        arguments = (player, state.params, state.mutables, prepared, key_B, state.step)

        def loss(arguments: tuple[Any, ...] = arguments) -> Any:
            return run.objective.loss(*arguments)

        activations = nonfinite_modules(loss)
        mean, grads, _, _ = jax.jit(
            lambda params, mutables, batch, key_B, step, player=player: gradients(
                run.objective, player, params, mutables, batch, key_B, step, 1, None
            )
        )(*arguments[1:])
        updates, _ = run.optimizers[player].update(
            grads, state.opt_state[player], state.params[player]
        )
        players[f"{turn + 1}. {player}"] = {
            "loss": repr(float(mean.value())),
            "activations": activations,
            "gradients": [k for k, x in named_leaves(grads) if not is_finite(x)],
            "updates": [k for k, x in named_leaves(updates) if not is_finite(x)],
            "norms": {
                "gradient": repr(float(optax.global_norm(grads))),
                "update": repr(float(optax.global_norm(updates))),
            },
            "largest_parameter": largest(state.params[player]),
            "largest_update": largest(updates),
            "lr": float(run.schedules[player](state.step)) if player in run.schedules else None,
        }
    return {"arrays": arrays, "batch": data, "turns": players}


def largest(tree: Any) -> list[Any]:
    """Returns name and magnitude of the largest element in a tree."""
    sizes = [(float(np.max(np.abs(np.asarray(x, np.float32)))), k) for k, x in named_leaves(tree)]
    size, name = max(sizes, key=lambda pair: (not np.isfinite(pair[0]), pair[0]))
    return [name, repr(size)]


def range_of(x: np.ndarray) -> dict[str, Any]:
    """Returns the range of an array's values, as JSON."""
    return {"shape": list(x.shape), "min": repr(x.min()), "max": repr(x.max()),
            "finite": is_finite(x)}  # fmt: skip


def dump(place: str, report: Report, state: TrainState, batch: dict[str, np.ndarray]) -> None:
    """Writes the report as JSON, and the arrays as npz files without pickles."""
    os.makedirs(place, exist_ok=True)
    arrays: dict[str, Any] = {k: plain(x) for k, x in named_leaves(state)}
    np.savez(os.path.join(place, "state.npz"), **arrays)
    rows: dict[str, Any] = dict(batch)
    np.savez(os.path.join(place, "batch.npz"), **rows)
    write_text_atomically(os.path.join(place, REPORT), json.dumps(report, indent=2))


def plain(x: Any) -> np.ndarray:
    """Converts dtypes that npz does not support, such as bfloat16, to float32."""
    x = np.asarray(x)
    return x.astype(np.float32) if x.dtype.kind == "V" else x


def summary(report: Report) -> str:
    """Describes the first non-finite value, as a clause."""
    for name, bad in report["arrays"].items():
        if bad:
            return f"the state itself is not finite: {name} {shorten_list(bad)}"
    for name, data in report["batch"].items():
        if not data["finite"]:
            return f"the data are not finite: {name}"
    for turn, found in report["turns"].items():
        for what in ("activations", "gradients", "updates"):
            if found[what]:
                return f"the first in turn {turn} are the {what} {shorten_list(found[what])}"
        if found["loss"] in ("nan", "inf", "-inf"):
            return f"the loss of turn {turn} is {found['loss']}, with finite activations"
        for what, norm in found["norms"].items():
            if norm in ("nan", "inf"):
                name, size = found["largest_update"]
                return (f"the norm of the {what} of turn {turn} overflows; the"
                        f" largest update is of {name} ({float(size):.3g})")  # fmt: skip
    several = len(report["turns"]) > 1 and "finite" in report["reason"]
    return "everything in it is finite" + (" until an earlier turn's update" if several else "")


def shorten_list(items: list[Any]) -> str:
    """Formats the first items of a list and the number of the others."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def reports(workdir: str) -> list[tuple[str, Report]]:
    """Returns folder and report of each dump in a workdir, oldest first."""
    folder, found = os.path.join(workdir, FOLDER), []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        try:
            with open(os.path.join(folder, name, REPORT), encoding="utf-8") as f:
                found.append((os.path.join(folder, name), json.load(f)))
        except (OSError, ValueError, RecursionError) as e:
            found.append((os.path.join(folder, name), {"unreadable": str(e)}))
    return found


def explain(report: Report) -> list[str]:
    """Formats a report as lines of text, with remedies."""
    try:
        return _explain(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return [f"{REPORT} is damaged"]


def _explain(report: Report) -> list[str]:
    lines = [f"step {report['step']}: {report['reason']}; {summary(report)}"]
    lines.append(f"  examples of the batch: {', '.join(map(str, report['examples'][:16]))}"
                 + (" …" if len(report["examples"]) > 16 else ""))  # fmt: skip
    for turn, found in report["turns"].items():
        name, size = found["largest_parameter"]
        rate = "" if found["lr"] is None else f" lr {found['lr']:.3g},"
        lines.append(f"  turn {turn}: loss {found['loss']},{rate} largest parameter {name}"
                     f" ({float(size):.3g})")  # fmt: skip
        for what in ("activations", "gradients", "updates"):
            if found[what]:
                lines.append(f"    {what} not finite: {shorten_list(found[what])}")
    lines.append("  to try: " + "; ".join(remedies(report)))
    return lines


def remedies(report: Report) -> list[str]:
    """Returns remedies to try."""
    if any(not data["finite"] for data in report["batch"].values()):
        return ["check these examples: their values are not finite before the model reads them"]
    if any(report["arrays"].values()):
        return ["resume from an older checkpoint, or start again in another --workdir"]
    return [
        "let the run roll back and skip these data with anomaly.max_rollbacks=3",
        "a lower optim.lr, more optim.warmup_steps or optim.clip_norm=1 in a new --workdir",
        "train.compute_dtype=float32, if it is bfloat16",
    ]
