"""A model of another library in the form of a run that has not been trained here."""

import dataclasses
import json
import os
from typing import Any

from aigc_jax.core.files import open_file
from aigc_jax.core.modality import Spec
from aigc_jax.core.workdir import write_text_atomically

ORIGIN = "origin.json"  # in the workdir: what the model's own library says of it beside its weights


@dataclasses.dataclass(frozen=True)
class ConvertedRun:
    """A model of another library as a run of 0 steps.

    Attributes:
      recipe: its config.
      spec: of the data that it models.
      params: `{player: parameters}`.
      origin: what its library says of it beside its weights, in JSON's types.
      notes: one sentence each, for the person who converts it.
    """

    recipe: dict[str, Any]
    spec: Spec
    params: dict[str, Any]
    origin: dict[str, Any]
    notes: tuple[str, ...]


def write_origin(workdir: str, origin: dict[str, Any]) -> None:
    write_text_atomically(os.path.join(workdir, ORIGIN), json.dumps(origin, indent=2))


def read_origin(workdir: str) -> dict[str, Any]:
    """Returns the origin of a converted model; {} for other workdirs."""
    path = os.path.join(workdir, ORIGIN)
    if not os.path.exists(path):
        return {}
    with open_file(path) as f:
        return json.loads(f.read())


def untrained_recipe(**sections: dict[str, Any]) -> dict[str, Any]:
    """Returns a config that trains for 0 steps; a person who fine-tunes the model has an own one.

    Args:
      sections: `data`, `model`, `objective`, `sample` of the config.
    """
    return dict(
        mesh="data=1",  # batches of one do not divide by several devices
        optim=dict(name="none"),
        train=dict(steps=0),
        eval=dict(batch_size=4),
        **sections,
    )
