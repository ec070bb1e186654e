"""Config section `eval` with subsections for the metrics of each modality, such as `eval.image`."""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from aigc_jax.core.config import Eval
from aigc_jax.core.errors import UserError, did_you_mean
from aigc_jax.core.fields import parse_section
from aigc_jax.core.modality import MODALITIES


def eval_section(mentioned: Collection[str] = ()) -> type[Eval]:
    """Returns the dataclass of the section `eval`.

    Args:
      mentioned: keys of the section in a config. Modalities of other packages get a subsection
        only if it is mentioned, so that a saved config depends only on packages of its run.
    """
    options = {
        name: MODALITIES[name].eval_options
        for name in MODALITIES.names()
        if name in MODALITIES.folders() or name in mentioned
    }
    return _section(tuple((name, own) for name, own in options.items() if own is not None))


@functools.cache  # equal options are one class, so that equal sections are equal
def _section(options: tuple[tuple[str, type], ...]) -> type[Eval]:
    fields = [(name, own, dataclasses.field(default_factory=own)) for name, own in options]
    return dataclasses.make_dataclass("Eval", fields, bases=(Eval,), frozen=True)


def modality_options(section: Eval, modality: str) -> Any:
    """Returns the options of a modality's metrics; None if it has no options.

    Args:
      section: from `eval_section`.
      modality: a name in `MODALITIES`.
    """
    options = MODALITIES[modality].eval_options
    return getattr(section, modality, None if options is None else options())


def override_eval(section: Eval, modality: str, overrides: Mapping[str, Any]) -> Eval:
    """Returns the section `eval` with some fields replaced.

    Args:
      section: from `eval_section`.
      modality: modality of the data; fields of its subsection are named without a prefix.
      overrides: values by field: `{"num_samples": 500, "features": "efficientnet-lite0"}`.

    Raises:
      UserError: for an unknown field or an invalid value.
    """
    own = MODALITIES[modality].eval_options
    inner = {f.name for f in dataclasses.fields(own)} if own is not None else set()
    outer = {f.name for f in dataclasses.fields(section)}
    for name in overrides:
        if name not in inner | outer:
            raise UserError(
                f"evaluation of the modality '{modality}' has no option '{name}':"
                f" {did_you_mean(name, (*outer, *inner))}"
            )
    values = dataclasses.asdict(section)
    values |= {name: value for name, value in overrides.items() if name in outer}
    mine = {name: value for name, value in overrides.items() if name in inner - outer}
    if mine:
        values[modality] = {**values.get(modality, {}), **mine}
    return parse_section(eval_section(values), values, "eval")
