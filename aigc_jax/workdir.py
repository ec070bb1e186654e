"""A run's folder: whose it is, and its config.json."""

import json
import os
from typing import Any

from aigc_jax.config import differences
from aigc_jax.errors import UserError

CONFIG = "config.json"


def check_workdir(workdir: str, raw: dict[str, Any]) -> None:
    """Raises UserError if the workdir belongs to another config."""
    if os.path.exists(os.path.join(workdir, CONFIG)):
        check_same(workdir, read_config(workdir), raw)


def check_same(workdir: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError, naming the fields, if two configs are not of the same run."""
    phrases = differences(old, new)
    if phrases:
        more = f" and {len(phrases) - 4} more" if len(phrases) > 4 else ""
        raise UserError(
            f"{workdir} holds a run of another config ({'; '.join(phrases[:4])}{more}): choose"
            " another --workdir, or the config of that run"
        )


def read_config(workdir: str) -> dict[str, Any]:
    path = os.path.join(workdir, CONFIG)
    try:
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        if not isinstance(config, dict):
            raise ValueError("not a config")
        return config
    except (OSError, ValueError) as e:
        raise UserError(f"{path} cannot be read ({e}): mend or remove it") from e


def open_workdir(workdir: str) -> None:
    """Makes the folder; UserError if it cannot be written."""
    try:
        os.makedirs(os.path.join(workdir, "samples"), exist_ok=True)
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be written: {e.strerror}") from e


def write_config(workdir: str, raw: dict[str, Any]) -> None:
    """Writes config.json, whole or not at all; UserError if it cannot be written."""
    temporary = os.path.join(workdir, CONFIG + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as f:
            json.dump(raw, f, indent=2)
        os.replace(temporary, os.path.join(workdir, CONFIG))
    except OSError as e:
        raise UserError(f"--workdir={workdir} cannot be written: {e.strerror}") from e
