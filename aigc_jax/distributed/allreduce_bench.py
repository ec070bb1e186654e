"""Benchmarks all-reduces of several sizes over the devices of a run.

With S bytes per device, n devices and t seconds, the algorithm bandwidth is S / t: the rate at
which a gradient of that size is summed. The bus bandwidth is S / t · 2(n − 1) / n: the data that
each device sends and receives in an optimal all-reduce, comparable with the speed of a link for any
n (as in NVIDIA's nccl-tests, PERFORMANCE.md).
"""

import os
import socket
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.config import WatchdogConfig
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.main_process import is_main_process
from aigc_jax.distributed.watchdog import Watchdog

SIZES = tuple(1024 * 4**k for k in range(9))  # bytes per device: 1 KiB … 64 MiB
REPEATS = 11
AXIS = "device"


def bench_allreduce(sizes: tuple[int, ...] = SIZES) -> int:
    """Prints the processes and the bandwidth of each size; returns 1 if a sum was wrong, else 0.

    All processes call it together; the first one prints. If a process dies, the others report it.

    Args:
      sizes: bytes per device.
    """
    kv_store.attach()
    watchdog = Watchdog(WatchdogConfig())
    first, n = is_main_process(), jax.device_count()
    for line in describe_processes():
        if first:
            print(line, flush=True)
    if first:
        kind = jax.devices()[0].device_kind
        print(f"all-reduce of float32 over {n} devices ({kind}), median of {REPEATS}:")
        print(f"{'per device':>11} {'time':>12} {'S/t':>13} {'S/t·2(n−1)/n':>15}", flush=True)
    wrong = 0
    for size, seconds, right in time_allreduces(sizes):
        watchdog.heartbeat(f"the all-reduce of {format_size(size)}")
        wrong += not right
        if first:
            each = size / seconds
            verdict = "" if right else "   WRONG SUM"
            print(f"{format_size(size):>11} {seconds * 1e3:9.3f} ms {format_rate(each):>13}"
                  f" {format_rate(each * 2 * (n - 1) / n):>15}{verdict}", flush=True)  # fmt: skip
    watchdog.close()
    if first and n == 1:
        print("aigc: warning: there is only one device, so no network was measured")
    return 1 if wrong else 0


def describe_processes() -> list[str]:
    """Returns a line for each process: host, pid and devices."""
    me, count = kv_store.process_index(), kv_store.process_count()
    devices = jax.local_devices()
    mine = f"process {me}: pid {os.getpid()} on {socket.gethostname()}, {len(devices)} device(s)"
    mine += f" {devices[0].platform} {devices[0].device_kind}"
    if count == 1:
        return [mine]
    kv_store.put(f"doctor/{me}", mine)
    kv_store.barrier("doctor", WatchdogConfig().peer_timeout)
    return [kv_store.get(f"doctor/{p}") or f"process {p}: silent" for p in range(count)]


def time_allreduces(sizes: tuple[int, ...]) -> Iterator[tuple[int, float, bool]]:
    """Yields (bytes per device, seconds of one sum, whether it was correct) for each size."""
    n = jax.device_count()
    mesh = jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P(AXIS))
    total = jax.jit(
        jax.shard_map(lambda x: jax.lax.psum(x, AXIS), mesh=mesh, in_specs=P(AXIS), out_specs=P())
    )
    for size in sizes:
        # Device i has i + 1, so that a missing device or one counted twice is detected.
        values = jax.jit(
            lambda k=size // 4: jnp.repeat(jnp.arange(1.0, n + 1), k), out_shardings=split
        )()
        found = total(values)
        right = bool(np.all(np.asarray(found.addressable_data(0)) == n * (n + 1) / 2))
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            jax.block_until_ready(total(values))
            times.append(time.perf_counter() - began)
        yield size, sorted(times)[REPEATS // 2], right


def format_size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def format_rate(bytes_per_second: float) -> str:
    big = bytes_per_second >= 1e9
    return f"{bytes_per_second / (1e9 if big else 1e6):.2f} {'GB/s' if big else 'MB/s'}"
