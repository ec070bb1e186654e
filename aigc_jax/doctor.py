"""What this machine has: versions, devices, the speed of a small matrix product."""

import glob
import os
import platform
import shutil
import time
from importlib import metadata

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
)
SIZE, REPEATS = 1024, 10


def examine() -> int:
    """Prints the findings; 1 if an accelerator seems to be there but JAX does not see it."""
    import jax

    print(f"python {platform.python_version()} on {platform.platform()}")
    print("   ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    try:
        devices = jax.devices()
    except Exception as e:  # whatever a driver or JAX_PLATFORMS brings up
        print(f"aigc: warning: JAX finds no device: {' '.join(str(e).split())[:300]}")
        return 1
    for device in devices:
        print(f"device {device.id}: {device.platform} {device.device_kind}")
    print(f"{os.cpu_count()} CPU cores; {jax.process_count()} process(es)")
    seconds = matmul_seconds()
    print(
        f"matmul {SIZE}×{SIZE} float32, jitted: {seconds * 1e3:.2f} ms,"
        f" {2 * SIZE**3 / seconds / 1e9:.0f} GFLOP/s"
    )
    missing = unseen_accelerator(jax.default_backend())
    if missing:
        print(f"aigc: warning: {missing}")
        return 1
    return 0


def matmul_seconds() -> float:
    """The median time of one product of two square matrices on the default device."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(lambda a: a @ a)
    a = jnp.ones((SIZE, SIZE)) / SIZE
    product(a).block_until_ready()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - began)
    return sorted(times)[REPEATS // 2]


def unseen_accelerator(backend: str) -> str:
    """What to do about an accelerator that JAX does not use; empty if there is none."""
    if backend != "cpu":
        return ""
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "an NVIDIA GPU seems to be here, but JAX uses the CPU: pip install 'aigc-jax[cuda]'"
    if glob.glob("/dev/accel*") or os.environ.get("TPU_WORKER_ID"):
        return "a TPU seems to be here, but JAX uses the CPU: pip install 'aigc-jax[tpu]'"
    return ""
