"""Environment set before JAX starts: XLA flags, the compilation cache, the memory allocator.

Variables that the user has set are left unchanged. Nothing here imports JAX.
"""

import contextlib
import ctypes
import hashlib
import importlib.metadata
import os
import platform
import re
import sys

# XLA's CPU compiler offloads convolutions to a separate library by default, which makes a U-Net's
# train step take more than twice as long as with XLA's own convolutions.
CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
# jaxlib versions for which that holds; XLA aborts the process on an unknown flag.
MEASURED = (0, 10, 2), (0, 13)

# M_MMAP_MAX: arrays are not allocated by mmap; M_TRIM_THRESHOLD: free bytes kept by the process.
MALLOC = (-4, 0), (-1, (1 << 31) - 1)

CACHE = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 << 30),  # bytes; the least recently used are evicted
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def configure() -> None:
    """Sets what the user has not set; call it before JAX starts (afterwards it has no effect)."""
    set_xla_flags()
    set_compilation_cache()
    set_allocator()


def set_xla_flags() -> None:
    """Chooses XLA's faster CPU convolutions, for versions known to have the flag."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and "cpu" not in platforms:
        return
    name, value = CONVOLUTIONS
    given = os.environ.get("XLA_FLAGS", "")
    low, high = MEASURED
    if name not in given and low <= jaxlib_version() < high:
        os.environ["XLA_FLAGS"] = f"{given} {name}={value}".strip()


def jaxlib_version() -> tuple[int, ...]:
    """Returns the installed version of jaxlib; () if it is not installed."""
    try:
        version = importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def set_allocator() -> None:
    """Makes glibc keep freed memory for the next step; does nothing with other C libraries.

    By default glibc returns large arrays to the system, and the next step pays a page fault for
    each of their pages: up to a third of a small model's step. Does nothing if a variable
    MALLOC_… is set.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in MALLOC:
            mallopt(parameter, value)


def set_compilation_cache() -> None:
    """Enables the persistent compilation cache, in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR chooses another folder; if it is empty, or
    JAX_ENABLE_COMPILATION_CACHE is false, there is no cache. Several processes may share it.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = compilation_cache_dir()
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:  # no home, or a full or read-only disk: continue without a cache
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
    """Returns the cache folder of this kind of CPU: compiled code uses its instruction set."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    kind = platform.machine() + platform.processor()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as f:
        kind += next((line for line in f if line.startswith(("flags", "Features"))), "")
    digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
    return os.path.join(base, "aigc_jax", "programs", digest)
