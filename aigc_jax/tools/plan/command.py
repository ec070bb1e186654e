"""`aigc plan`: prints a plan, a ranking of meshes, or the changes that make a config fit."""

import json
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from aigc_jax.core.errors import UserError
from aigc_jax.core.workdir import write_text_atomically
from aigc_jax.experiment import build
from aigc_jax.tools.plan.plan import make_plan, resolve_inputs
from aigc_jax.tools.plan.search import as_flags, fit, sweep
from aigc_jax.tools.plan.table import ranking, table, verdict
from aigc_jax.tools.plan.target import Target

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
    """Prints a plan; returns 1 if nothing fits, else 0.

    Args:
      recipe: the config.
      topology: as `topology.topology_devices` takes it.
      how: "": the config itself; "sweep": other meshes; "fit": changes until it fits.
      shape: of the data, if the config does not determine it.
      slices: number of slices of this topology.
      tokens: tokens or images of the whole training; 0: those of the config.
      tries: number of meshes to compile in a sweep.
      json_file: where to write all figures.

    Raises:
      UserError: for an invalid config, topology or shape, and if no change makes it fit.
    """
    if slices < 1 or tries < 1 or tokens < 0:
        raise UserError("--slices and --tries must be 1 or more, and --tokens not negative")
    target = Target.of(topology, slices)
    config, spec = resolve_inputs(build.parse_config(recipe), shape)
    found: dict[str, Any]
    if how == "sweep":
        found = sweep(config, spec, target, tokens, tries, log_progress)
        print(ranking(found))
        best = found["plans"][0]
        if best["memory"]["fits"]:
            print(f"\n{table(best)}")
    else:
        found = best = (
            fit(config, spec, target, tokens, log_progress)
            if how == "fit"
            else make_plan(config, spec, target, tokens)
        )
        print(table(found))
        if found.get("changes"):
            print(f"\nchanges that make it fit: {as_flags(found['changes'])}")
    if json_file:
        write_text_atomically(json_file, json.dumps(found, indent=1) + "\n")
        print(f"saved: {json_file}")
    if not best["memory"]["fits"]:
        print(f"aigc: it {verdict(best)}", file=sys.stderr)
        return DOES_NOT_FIT
    return 0


def log_progress(text: str) -> None:
    """Writes a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)
