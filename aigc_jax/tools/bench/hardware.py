"""Measured limits of this machine: FLOP/s, memory bandwidth, memory in use."""

import functools
import os
import platform
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.core.files import most_memory
from aigc_jax.tools.bench.timing import Times, repeated

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy")


@functools.partial(jax.jit, static_argnames="chain")
def _product(a: jax.Array, b: jax.Array, chain: int) -> jax.Array:
    return jax.lax.fori_loop(0, chain, lambda _, x: x @ b, a) if chain > 1 else a @ b


@functools.lru_cache(maxsize=1)  # the same matrix is timed before and after each turn
def _matrix(size: int, dtype: Any) -> jax.Array:
    """Random square matrix: with constant values a GPU needs less power and runs faster."""
    return jax.random.normal(jax.random.key(0), (size, size), dtype) / size**0.5


def matmul_times(size: int, dtype: Any = jnp.float32, *, chain: int = 1, times: int = 10) -> Times:
    """Times `chain` consecutive products of two square matrices on one device.

    Args:
      size: rows and columns of each matrix.
      dtype: of both matrices; accumulation is JAX's default.
      chain: products in one program; several hide the launch time of a fast device.
      times: repetitions.
    """
    a = _matrix(size, dtype)
    return repeated(functools.partial(_product, chain=chain), a, a, times=times)


def matmul_ceiling(dtype: Any) -> float:
    """FLOP/s of a large matrix product on one device, by its best time."""
    size, chain = (2048, 1) if jax.default_backend() == "cpu" else (8192, 8)
    return 2 * size**3 * chain / min(matmul_times(size, dtype, chain=chain).seconds)


def bandwidth_ceiling() -> float:
    """Bytes/s of reading and writing a large array on one device, by its best time."""
    cpu = jax.default_backend() == "cpu"
    size = (1 << 26) if cpu else (1 << 29)  # larger than any cache
    x = jax.random.normal(jax.random.key(0), (size,))
    best = min(repeated(jax.jit(lambda x: x + 1), x, times=10).seconds)
    return 2 * x.nbytes / best


def peak_memory() -> int:
    """Peak bytes in use so far: of this process on a CPU, else of the fullest device."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max(int(s.get("peak_bytes_in_use", 0)) for s in stats)
    if jax.default_backend() != "cpu" and on_device:
        return on_device
    return most_memory()


def machine() -> dict[str, Any]:
    """Describes the devices, cores and versions of this machine for a report."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": cpu_name() if device.platform == "cpu" else device.device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def cpu_name() -> str:
    """Name of the processor from the operating system."""
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.partition(":")[2] for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()
