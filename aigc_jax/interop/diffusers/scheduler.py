"""scheduler_config.json of diffusers ↔ prediction and noise schedule of our diffusion."""

import os
from collections.abc import Mapping
from typing import Any

from aigc_jax.core.errors import shorten
from aigc_jax.interop.safetensors_folder import read_json

SCHEDULER = "scheduler_config.json"
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
FLOW = "FlowMatchEulerDiscreteScheduler"
DDPM = dict(prediction="epsilon", schedule="linear")  # of most models that have no file
# Keys at which the schedule is that of its betas.
EXPECTED: dict[str, Any] = dict(
    num_train_timesteps=1000, trained_betas=None, rescale_betas_zero_snr=False
)


def find_scheduler(folder: str) -> str:
    """Returns the path of scheduler_config.json in a model's folder or its pipeline's; or ""."""
    above = os.path.dirname(os.path.abspath(os.path.expanduser(folder)))
    for place in (folder, os.path.join(folder, "scheduler"), os.path.join(above, "scheduler")):
        path = os.path.join(os.path.expanduser(place), SCHEDULER)
        if os.path.isfile(path):
            return path
    return ""


def read_scheduler(folder: str) -> tuple[dict[str, Any], list[str]]:
    """Returns fields of `DiffusionConfig`, and notes on what is not supported.

    Raises:
      UserError: if there is a scheduler_config.json that cannot be read.
    """
    path = find_scheduler(folder)
    taken = "DDPM's noise is assumed, ε-prediction and linear β from 0.0001 to 0.02"
    if not path:
        return dict(DDPM), [f"{shorten(folder)} has no {SCHEDULER}: {taken}"]
    content = read_json(path)
    fields, unsupported = _parse(content)
    if unsupported:
        return dict(DDPM), [f"{shorten(path)} has {unsupported}, which is not supported: {taken}"]
    return fields, []


def _parse(content: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Returns the fields, or the key and value that are not supported."""
    if content.get("_class_name") == FLOW:
        plain: dict[str, Any] = dict(
            num_train_timesteps=1000, shift=1.0, use_dynamic_shifting=False
        )
        for key, expected in plain.items():
            if content.get(key, expected) != expected:
                return {}, f"{key}={shorten(content[key], 40)}"
        return dict(prediction="flow", schedule="flow"), ""
    for key, expected in EXPECTED.items():
        if content.get(key, expected) != expected:
            return {}, f"{key}={shorten(content[key], 40)}"
    found: dict[str, Any] = {}
    for key, name, known, default in (
        ("prediction_type", "prediction", PREDICTIONS, "epsilon"),
        ("beta_schedule", "schedule", SCHEDULES, "linear"),
    ):
        value = content.get(key, default)
        if not isinstance(value, str) or value not in known:
            return {}, f"{key}={shorten(value, 40)}"
        found[name] = known[value]
    if found["schedule"] != "cosine":
        for key, beta in (("beta_start", 1e-4), ("beta_end", 0.02)):
            value = content.get(key, beta)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < 1:
                return {}, f"{key}={shorten(value, 40)}"
            found[key] = float(value)
    return found, ""


def scheduler_config(objective: Any) -> dict[str, Any] | None:
    """Returns scheduler_config.json of a `DiffusionConfig`; None if diffusers has no equivalent."""
    prediction, schedule = objective.prediction, objective.schedule
    if schedule == "auto":
        schedule = {"flow": "flow", "edm": "edm"}.get(prediction, "cosine")
    if prediction == "flow" and schedule == "flow":
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 1.0}
    predictions = {aigc: hf for hf, aigc in PREDICTIONS.items()}
    betas = {aigc: hf for hf, aigc in SCHEDULES.items()}
    if prediction not in predictions or schedule not in betas:
        return None
    config = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": predictions[prediction],
        "beta_schedule": betas[schedule],
    }
    if schedule != "cosine":
        config |= dict(beta_start=objective.beta_start, beta_end=objective.beta_end)
    return config
