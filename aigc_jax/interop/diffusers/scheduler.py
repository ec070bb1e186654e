"""diffusers' scheduler_config.json ↔ what our diffusion predicts, and on which schedule."""

import os
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import shorten
from aigc_jax.interop.weights import read_json

CONFIG = "scheduler_config.json"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
FLOW = "FlowMatchEulerDiscreteScheduler"
DDPM = dict(prediction="epsilon", schedule="linear")  # what most models without a word are
# What must be so for a schedule to be that of its betas.
PLAIN = dict(num_train_timesteps=1000, trained_betas=None, rescale_betas_zero_snr=False)


def find_schedule(folder: str) -> str:
    """The scheduler_config.json of a model in `folder`: in it, or beside it in a pipeline."""
    above = os.path.dirname(os.path.abspath(os.path.expanduser(folder)))
    for place in (folder, os.path.join(folder, "scheduler"), os.path.join(above, "scheduler")):
        path = os.path.join(os.path.expanduser(place), CONFIG)
        if os.path.isfile(path):
            return path
    return ""


def read_schedule(folder: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of `DiffusionConfig`, and notes on what is not understood.

    Raises:
      UserError: if there is a scheduler_config.json that cannot be read.
    """
    path = find_schedule(folder)
    taken = "the noise of DDPM is taken, ε-prediction and linear β from 0.0001 to 0.02"
    if not path:
        return dict(DDPM), [f"{shorten(folder)} has no {CONFIG}: {taken}"]
    theirs = read_json(path)
    fields, strange = _understood(theirs)
    if strange:
        return dict(DDPM), [f"{shorten(path)} has {strange}, which is not supported: {taken}"]
    return fields, []


def _understood(theirs: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields, or what is strange, in words."""
    if theirs.get("_class_name") == FLOW:
        plain = dict(num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False)
        for key, value in plain.items():
            if theirs.get(key, value) != value:
                return {}, f"{key}={shorten(theirs[key], 40)}"
        return dict(prediction="flow", schedule="flow"), ""
    for key, value in PLAIN.items():
        if theirs.get(key, value) != value:
            return {}, f"{key}={shorten(theirs[key], 40)}"
    found: dict[str, Any] = {}
    for key, name, known, usual in (
        ("prediction_type", "prediction", PREDICTIONS, "epsilon"),
        ("beta_schedule", "schedule", SCHEDULES, "linear"),
    ):
        value = theirs.get(key, usual)
        if not isinstance(value, str) or value not in known:
            return {}, f"{key}={shorten(value, 40)}"
        found[name] = known[value]
    if found["schedule"] != "cosine":
        for key, usual in (("beta_start", 1e-4), ("beta_end", 0.02)):
            value = theirs.get(key, usual)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < 1:
                return {}, f"{key}={shorten(value, 40)}"
            found[key] = float(value)
    return found, ""


def write_schedule(objective: Any) -> dict[str, Any] | None:
    """scheduler_config.json of a `DiffusionConfig`; none if diffusers has no such process."""
    prediction, schedule = objective.prediction, objective.schedule
    if schedule == "auto":
        schedule = {"flow": "flow", "edm": "edm"}.get(prediction, "cosine")
    if prediction == "flow" and schedule == "flow":
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 1.0}
    theirs = {ours: key for key, ours in PREDICTIONS.items()}
    betas = {ours: key for key, ours in SCHEDULES.items()}
    if prediction not in theirs or schedule not in betas:
        return None
    config = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": theirs[prediction],
        "beta_schedule": betas[schedule],
    }
    if schedule != "cosine":
        config |= dict(beta_start=objective.beta_start, beta_end=objective.beta_end)
    return config
