"""Generated tables in hand-written pages: replaced between two marks, with their provenance."""

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
    """Replaces the text between the first mark `begin` of a file and the next `end`.

    Marks that the file lacks are appended; a missing file is created.
    """
    page = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            page = f.read()
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    write_text_atomically(path, f"{before}{begin}\n{text}\n{end}{after or chr(10)}")


def provenance(packages: Sequence[str] = (), command: str = "") -> str:
    """Command, date, machine and versions, as one line that ends with a colon.

    Args:
      packages: whose versions to name beside those of Python and JAX.
      command: command that was run; "": python and this process's arguments.
    """
    command = command or f"python {' '.join(sys.argv)}"
    versions = [f"Python {platform.python_version()}", f"JAX {jax.__version__}"]
    versions += [f"{name} {metadata.version(name)}" for name in packages]
    return f"`{command}`, {datetime.date.today()}, {machine()}, {', '.join(versions)}:"


def machine() -> str:
    """Name of the device, or number of cores and name of the processor."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    return f"{os.cpu_count()} CPU cores ({cpu_name()})"
