"""`aigc plan`: prints a plan, a ranking of meshes, or what makes a config fit."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from aigc_jax.core.errors import UserError
from aigc_jax.core.workdir import write_text_atomically
from aigc_jax.experiment import build
from aigc_jax.tools.plan.plan import Target, make_plan, planned
from aigc_jax.tools.plan.search import fit, flags, sweep
from aigc_jax.tools.plan.table import ranking, table, verdict

DOES_NOT_FIT = 1  # the exit code


def run_plan(
    recipe: Mapping[str, Any] | ml_collections.ConfigDict,
    topology: str,
    *,
    how: str = "",
    shape: str = "",
    slices: int = 1,
    tokens: float = 0.0,
    tries: int = 6,
    json_file: str | None = None,
) -> int:
    """Prints what it finds; 1 if nothing fits.

    Args:
      recipe: the config.
      topology: as `topology.devices_of` takes it.
      how: "": the config as it is; "sweep": other meshes; "fit": changes until it fits.
      shape: of the data, if the config does not tell.
      slices: how many of the topology.
      tokens: or images, of the whole training; 0: what the config trains on.
      tries: meshes of a sweep to compile.
      json_file: where to write all figures.

    Raises:
      UserError: for a wrong config, topology or shape, and if nothing can make it fit.
    """
    if slices < 1 or tries < 1 or tokens < 0:
        raise UserError("--slices and --tries must be 1 or more, and --tokens not negative")
    target = Target.of(topology, slices)
    config, spec = planned(build.parse_config(recipe), shape)
    found: dict[str, Any]
    if how == "sweep":
        found = sweep(config, spec, target, tokens, tries, say)
        print(ranking(found))
        best = found["plans"][0]
        if best["memory"]["fits"]:
            print(f"\n{table(best)}")
    else:
        found = best = (
            fit(config, spec, target, tokens, say)
            if how == "fit"
            else make_plan(config, spec, target, tokens)
        )
        print(table(found))
        if found.get("changes"):
            print(f"\nwhat makes it fit: {flags(found['changes'])}")
    if json_file:
        write_text_atomically(json_file, json.dumps(found, indent=1) + "\n")
        print(f"saved: {json_file}")
    if not best["memory"]["fits"]:
        print(f"aigc: it {verdict(best)}", file=sys.stderr)
        return DOES_NOT_FIT
    return 0


def say(text: str) -> None:
    """A line about what goes on, beside the figures."""
    print(text, file=sys.stderr, flush=True)
