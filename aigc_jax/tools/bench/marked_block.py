"""Tables in pages that people write: replaced between two marks, with how they came about."""

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

import jax

from aigc_jax.core.workdir import write_text_atomically
from aigc_jax.tools.bench.hardware import cpu_name


def replace_between(path: str, begin: str, end: str, text: str) -> None:
    """Puts text between the first mark `begin` of a file and the `end` after it.

    A file without these marks gets them at its end; one that is not there begins with them.
    """
    page = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            page = f.read()
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    write_text_atomically(path, f"{before}{begin}\n{text}\n{end}{after or chr(10)}")


def provenance(packages: Sequence[str] = (), command: str = "") -> str:
    """The command, the day, the machine and the versions, as one line that ends with a colon.

    Args:
      packages: to be named beside Python and JAX.
      command: that was given; "": python and this process's arguments.
    """
    command = command or f"python {' '.join(sys.argv)}"
    versions = [f"Python {platform.python_version()}", f"JAX {jax.__version__}"]
    versions += [f"{name} {metadata.version(name)}" for name in packages]
    return f"`{command}`, {datetime.date.today()}, {machine()}, {', '.join(versions)}:"


def machine() -> str:
    """What computes here, in words."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{os.cpu_count()} CPU cores ({cpu_name()})"
