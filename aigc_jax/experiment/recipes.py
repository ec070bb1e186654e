"""Recipes: config files, found by name."""

import os
import runpy

import ml_collections

from aigc_jax.core.errors import UserError, did_you_mean, one_line, shorten

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# configs/ is next to the package in a checkout, and inside it when installed.
RECIPE_FOLDERS = (
    os.path.join(os.path.dirname(_PACKAGE), "configs"),
    os.path.join(_PACKAGE, "configs"),
)


def recipe_folder() -> str:
    """Folder of the library's own recipes."""
    found = (f for f in RECIPE_FOLDERS if os.path.isfile(os.path.join(f, "lm", "quickstart.py")))
    return next(found, RECIPE_FOLDERS[-1])


def recipe_names() -> list[str]:
    """Returns names of the built-in recipes, such as "lm/quickstart"."""
    folder, names = recipe_folder(), []
    for path, _, files in os.walk(folder):
        part = os.path.relpath(path, folder)
        names += [f"{part}/{f.removesuffix('.py')}" for f in files if f.endswith(".py")]
    return sorted(name for name in names if not name.endswith("__init__"))


def find_recipe(name: str) -> str:
    """Returns the path of a recipe's file, with the `:VARIANT` of the name.

    Args:
      name: a file, or the name of one of the library's own recipes, with or without the prefix
        `configs/` and the suffix `.py`: "lm/quickstart".

    Raises:
      UserError: if neither exists.
    """
    path, colon, variant = name.partition(":")
    own = os.path.join(recipe_folder(), path.removeprefix("configs/"))
    for candidate in (path, f"{path}.py", own, f"{own}.py"):
        if path and os.path.isfile(candidate):
            return f"{candidate}{colon}{variant}"
    word = path.removeprefix("configs/").removesuffix(".py")
    raise UserError(
        f"there is no config file or recipe {shorten(path)}: {did_you_mean(word, recipe_names())}"
    )


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Returns `get_config()` of a recipe's file, or `get_config(VARIANT)` for `NAME:VARIANT`.

    Args:
      name: as for `find_recipe`.

    Raises:
      UserError: if the file does not exist, or does not return a config.
    """
    path, _, variant = find_recipe(name).partition(":")
    try:
        get_config = runpy.run_path(path).get("get_config")
        arguments = (variant,) if variant else ()
        recipe = get_config(*arguments) if get_config else None
    except UserError:
        raise
    except (Exception, SystemExit) as e:  # of the code in the file
        raise UserError(
            f"{shorten(path)} cannot be loaded ({type(e).__name__}: {one_line(e, 300)})"
        ) from e
    if get_config is None:
        raise UserError(f"{shorten(path)} is not a recipe: it must define get_config()")
    if not isinstance(recipe, ml_collections.ConfigDict):
        raise UserError(f"get_config() of {shorten(path)} must return an ml_collections.ConfigDict")
    return recipe
