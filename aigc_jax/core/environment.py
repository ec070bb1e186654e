"""What must be set before JAX starts: flags of its compiler, a cache of programs, its memory.

Whatever the user has set himself stays as it is. Nothing here imports JAX.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import re
import sys

# XLA's CPU compiler hands each convolution to a library of its own, and a U-Net's train step takes
# more than twice as long as with its older convolutions.
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
# The versions of jaxlib for which that holds; one that does not know a flag ends the process.
MEASURED = (0, 10, 2), (0, 13)

# M_MMAP_MAX: no array has pages of its own; M_TRIM_THRESHOLD: what may be kept, in bytes.
MALLOC = (-4, 0), (-1, (1 << 31) - 1)

CACHE = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 << 30),  # bytes; the least recently used leave
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def configure() -> None:
    """Sets what has not been set; must come before JAX starts, and is harmless after it."""
    set_xla_flags()
    set_compilation_cache()
    set_allocator()


def set_xla_flags() -> None:
    """Chooses XLA's faster convolutions on a CPU, for versions that are known to have both."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        return
    name, value = CONVOLUTIONS
    given = os.environ.get("XLA_FLAGS", "")
    low, high = MEASURED
    if name not in given and low <= jaxlib_version() < high:
        os.environ["XLA_FLAGS"] = f"{given} {name}={value}".strip()


def jaxlib_version() -> tuple[int, ...]:
    """() if there is none."""
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def set_allocator() -> None:
    """Has the C library keep freed memory for the next step, where it is of GNU.

    It would give large arrays back to the system, which hands out each page anew at the next step:
    up to a third of a small model's step. MALLOC_… in the environment leaves all as it is.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC:
            mallopt(parameter, value)


def set_compilation_cache() -> None:
    """Keeps compiled programs from run to run, in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR names another folder, or none: an empty one turns this off, as does
    JAX_ENABLE_COMPILATION_CACHE=false. Several processes may share it.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = compilation_cache_dir()
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:  # no home, or a full or read-only disk: programs are compiled each time
        return
    if not os.access(folder, os.W_OK):
        return
    chosen = {"JAX_COMPILATION_CACHE_DIR": folder, **CACHE}
    chosen = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(chosen)
    if "jax" in sys.modules:  # it has read the environment already
        config = sys.modules["jax"].config
        if config.jax_compilation_cache_dir is None:
            for name, value in chosen.items():
                kind = type(getattr(config, name.lower()) or "")
                config.update(name.lower(), kind(value))


def compilation_cache_dir() -> str:
    """One for each kind of processor: programs for a CPU are of its instructions."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    kind = platform.machine() + platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        kind += next((line for line in f if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
    return os.path.join(base, "aigc_jax", "programs", digest)
