"""Recipes from their files."""

import os
import runpy

import ml_collections

from aigc_jax.core.errors import UserError, one_line, shorten


def load_recipe(path: str) -> ml_collections.ConfigDict:
    """What `get_config()` of the file returns; of FILE:VARIANT, what `get_config(VARIANT)` returns.

    Raises:
      UserError: if there is no such file, or it does not return a config.
    """
    path, _, variant = path.partition(":")
    if not os.path.isfile(path):
        raise UserError(f"there is no config file {shorten(path)}")
    try:
        get_config = runpy.run_path(path).get("get_config")
        arguments = (variant,) if variant else ()
        recipe = get_config(*arguments) if get_config else None
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # whatever the person's file raises
        raise UserError(
            f"{shorten(path)} cannot be loaded ({type(e).__name__}: {one_line(e, 300)})"
        ) from e
    if get_config is None:
        raise UserError(f"{shorten(path)} is no recipe: it defines no get_config()")
    if not isinstance(recipe, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {shorten(path)} must return an ml_collections.ConfigDict")
    return recipe
