"""What the device can do at most: measured, and by its data sheet."""

import dataclasses
import functools
import os
import platform
import resource
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp

from aigc_jax.bench.timing import Times, repeated

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class DataSheet:
    """What a maker says of one device.

    Attributes:
      flops: FLOP/s of dense bfloat16 matrix products.
      bandwidth: bytes/s of its memory.
    """

    flops: float
    bandwidth: float


# By the beginning of JAX's `device_kind`; the first that fits counts.
DATA_SHEETS = {
    "NVIDIA B200": DataSheet(2250e12, 8.0e12),
    "NVIDIA GH200": DataSheet(989e12, 4.0e12),
    "NVIDIA H200": DataSheet(989e12, 4.8e12),
    "NVIDIA H100 PCIe": DataSheet(756e12, 2.0e12),
    "NVIDIA H100 NVL": DataSheet(835e12, 3.9e12),
    "NVIDIA H100": DataSheet(989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": DataSheet(312e12, 2.039e12),
    "NVIDIA A100 80GB": DataSheet(312e12, 1.935e12),
    "NVIDIA A100": DataSheet(312e12, 1.555e12),
    "NVIDIA L40S": DataSheet(362e12, 0.864e12),
    "NVIDIA L4": DataSheet(121e12, 0.3e12),
    "TPU v4": DataSheet(275e12, 1.228e12),
    "TPU v5 lite": DataSheet(197e12, 0.819e12),
    "TPU v5e": DataSheet(197e12, 0.819e12),
    "TPU v5": DataSheet(459e12, 2.765e12),
    "TPU v6": DataSheet(918e12, 1.64e12),
    "TPU7x": DataSheet(2307e12, 7.38e12),
}


def data_sheet(kind: str) -> DataSheet | None:
    """Of a `device_kind`; none if it is not in the table."""
    return next((sheet for name, sheet in DATA_SHEETS.items() if kind.startswith(name)), None)


@functools.partial(jax.jit, static_argnames="chain")
def _product(a: jax.Array, b: jax.Array, chain: int) -> jax.Array:
    return jax.lax.fori_loop(0, chain, lambda _, x: x @ b, a) if chain > 1 else a @ b


def matmul_times(size: int, dtype: Any = jnp.float32, *, chain: int = 1, times: int = 10) -> Times:
    """Times of `chain` products of two square matrices, one after the other, on one device.

    Args:
      size: of a side.
      dtype: of both; products are summed as JAX does by default.
      chain: products in one program, so that starting it does not count on a fast device.
      times: how often.
    """
    a = jnp.full((size, size), 1 / size, dtype)
    return repeated(functools.partial(_product, chain=chain), a, a, times=times)


def matmul_ceiling(dtype: Any) -> float:
    """The most FLOP/s that a large matrix product reaches on one device: its best time."""
    size, chain = (2048, 1) if jax.default_backend() == "cpu" else (8192, 8)
    return 2 * size**3 * chain / min(matmul_times(size, dtype, chain=chain).seconds)


def bandwidth_ceiling() -> float:
    """The most bytes/s that reading a large array, and writing another, reaches on one device."""
    cpu = jax.default_backend() == "cpu"
    x = jnp.ones((1 << 26) if cpu else (1 << 29), jnp.float32)  # far more than any cache holds
    best = min(repeated(jax.jit(lambda x: x + 1), x, times=10).seconds)
    return 2 * x.nbytes / best


def peak_memory() -> int:
    """The most bytes in use so far: of this process on a CPU, of the fullest device otherwise."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_device = max(int(s.get("peak_bytes_in_use", 0)) for s in stats)
    if jax.default_backend() != "cpu" and on_device:
        return on_device
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """What was measured on, for a report."""
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
    """As the operating system calls it."""
    try:
        with open("/proc/cpuinfo") as f:
            names = [line.partition(":")[2] for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()
