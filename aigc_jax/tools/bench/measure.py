"""Measures a config on this machine: step time, FLOPs, memory, data pipeline, decoding."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.core import config as config_lib
from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.core.modality import MODALITIES
from aigc_jax.data.dataset import Dataset
from aigc_jax.data.loader import DataLoader
from aigc_jax.distributed.mesh import process_shard
from aigc_jax.distributed.sharding import per_device
from aigc_jax.experiment import build
from aigc_jax.experiment.first_stage import resolve_first_stage, without_first_stage
from aigc_jax.experiment.restore import tokenizer_of
from aigc_jax.modalities import sources
from aigc_jax.ops import dispatch
from aigc_jax.tools.bench import flops, hardware, trace
from aigc_jax.tools.bench.decoding import BATCHES, can_decode, decoding
from aigc_jax.tools.bench.synthetic_data import synthetic
from aigc_jax.tools.bench.timing import Times
from aigc_jax.tools.chips import data_sheet_per_device
from aigc_jax.training import oom
from aigc_jax.training.anomaly import AnomalyDetector
from aigc_jax.training.callbacks import Record, RunCallbacks
from aigc_jax.training.loop import fit
from aigc_jax.training.metric_window import MetricAccumulator

WARMUP_STEPS = 3  # untimed
MIN_STEPS, MAX_STEPS = 5, 2000  # timed


class Clock:
    """Records the time of each step, in place of the loop's progress bar."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def update(self, n: int = 1) -> None:
        self.ticks.append(time.perf_counter())

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        pass


class LastRecord(RunCallbacks):
    """Keeps the last metrics record; saves nothing."""

    last: Record

    def log(self, record: Record) -> None:
        self.last = record


class Steps:
    """Runs train steps of a config in the training loop.

    Args:
      config: of the run.
      dataset: its data.

    Attributes:
      run: parts of the run.
      compile_seconds: seconds of tracing and compiling the step.
      compiled: the compiled step.
      implementations: those chosen in the step, by primitive (`dispatch.trace_choices`).
      data_wait: data stall, the share of the time of the last steps spent waiting for a batch.
    """

    def __init__(self, config: Config, dataset: Dataset):
        self.config = config
        self.run = build.build(config, dataset.spec)
        step, size = self.run.step, config.data.batch_size
        self._shapes = (
            per_device(self.run.state_shapes(), self.run.shardings),
            dataset.spec.example_batch(size),
        )
        oom.check_fits(*self._shapes)
        part = process_shard(self.run.mesh)
        self._feed = DataLoader(dataset.train, size, config.seed, config.data.threads, part)
        # Random data may make the loss non-finite, which does not matter here.
        self._metrics = MetricAccumulator(
            0, size, AnomalyDetector(config_lib.AnomalyConfig(max_skipped=0))
        )
        self._taken, self.data_wait = 0, 0.0
        with oom.explain_oom(*self._shapes):
            self._state = step.put_state(self.run.fresh_state())
            batch = step.put_batch(self._feed.next(self._state))
            began = time.perf_counter()
            with dispatch.trace_choices() as self.implementations:
                lowered = step.lower(self._state, batch)
            self.compiled = lowered.compile()
            self.compile_seconds = time.perf_counter() - began
        self.flops = flops.count(step, self._state, batch)

    @property
    def state(self) -> Any:
        """The state as it is saved and sampled from."""
        return self.run.step.get_state(self._state)

    def take(self, number: int) -> Times:
        """Runs steps and returns the times of all but the first and the last.

        The loop reads the metrics of a step after it has started the next one: the time between two
        iterations is that of a step, except in the first, which waits for nothing, and in the last,
        which waits for two steps.

        Args:
          number: of steps.
        """
        clock, records = Clock(), LastRecord()
        self._metrics.seek(self._taken, self._metrics.position())
        with oom.explain_oom(*self._shapes):
            state = fit(
                self.run.step,
                self._state,
                self._feed,
                start=self._taken,
                end=self._taken + number,
                run=records,
                metrics=self._metrics,
                progress=clock,
            )
        self._taken += number
        self._state = self.run.step.put_state(state)
        self.data_wait = records.last["data_wait"]
        between = np.diff(clock.ticks)[:-1].tolist()
        return Times(tuple(between or [clock.ticks[-1] - clock.ticks[0]]))

    def take_for(self, seconds: float) -> Times:
        """Runs steps for about `seconds`, after a few that do not count; returns their times."""
        once = self.take(WARMUP_STEPS).median
        return self.take(int(min(max(seconds / max(once, 1e-6), MIN_STEPS), MAX_STEPS)) + 2)


def load_inputs(config: Config, shape: str = "") -> tuple[Config, Dataset]:
    """Loads the data of a config, and resolves its first stage.

    Args:
      config: of a run.
      shape: of random data that replace the config's (see `synthetic`). They are the direct input
        of the model, so the first stage is removed.
    """
    if shape:
        config = without_first_stage(config)
        return config, synthetic(shape, config)
    dataset = sources.load_source(config.data, tokenizer_of(config.data))
    return resolve_first_stage(config, dataset.spec), dataset


def measure(
    config: Config, *, seconds: float = 10.0, shape: str = "", folder: str = ""
) -> dict[str, Any]:
    """Measures a config; returns plain values, times in seconds and sizes in bytes.

    Args:
      config: of the run.
      seconds: of timed train steps.
      shape: of random data to use instead of the config's, as `synthetic` takes it.
      folder: where to write a trace of some steps; "": no trace.

    Raises:
      UserError: if the config or its data cannot be used, or `seconds` is not positive.
    """
    if seconds <= 0:
        raise UserError(f"--seconds={seconds:g} must be more than 0")
    config, dataset = load_inputs(config, shape)
    rate = records_per_second(config, dataset)
    steps = Steps(config, dataset)
    times = steps.take_for(seconds)
    report: dict[str, Any] = {
        "objective": config.raw["objective"]["name"],
        "model": config.raw["model"]["name"],
        "machine": hardware.machine(),
        "dtype": config.train.compute_dtype,
        "batch_size": config.data.batch_size,
        "parameters": sum(x.size for x in jax.tree.leaves(steps.state.params)),
        "step": times.to_json(),
        "rate": throughput(config, dataset, times.median),
        "compile_seconds": steps.compile_seconds,
        "implementations": {k: sorted(names) for k, names in steps.implementations.items()},
        "memory": memory_report(steps),
        "data": {
            "wait": steps.data_wait,
            "records_per_second": rate,
            "source": f"synthetic {shape}" if shape else config.data.source,
        },
        "flops": flops_report(steps, dataset, times.median),
    }
    if can_decode(steps.run):
        ceiling = hardware.bandwidth_ceiling()
        report["decoding"] = [decode_report(steps, batch, ceiling) for batch in BATCHES]
    if folder:
        report["profile"] = profile(steps, folder, times.median)
    return report


def throughput(config: Config, dataset: Dataset, seconds: float) -> dict[str, Any]:
    """Throughput in the modality's unit per second."""
    modality = MODALITIES[dataset.spec.modality]
    units = config.data.batch_size * modality.units_per_example(dataset.spec)
    return {"unit": modality.unit, "per_second": units / seconds}


def records_per_second(config: Config, dataset: Dataset, seconds: float = 1.0) -> float:
    """Examples per second of the data pipeline alone."""
    size = config.data.batch_size
    feed = DataLoader(dataset.train, size, config.seed, config.data.threads)
    for _ in range(config.data.threads + 1):
        feed.next()
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        feed.next()
        count += 1
    return count * size / max(elapsed, time.perf_counter() - began)


def memory_report(steps: Steps) -> dict[str, int]:
    """Peak bytes so far, and the bytes of the compiled step by XLA's memory analysis."""
    found = {"peak": hardware.peak_memory()}
    stats = steps.compiled.memory_analysis()
    if stats is not None:
        found |= {
            "arguments": stats.argument_size_in_bytes,
            "temporary": stats.temp_size_in_bytes,
            "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        }
    return found


def flops_report(steps: Steps, dataset: Dataset, seconds: float) -> dict[str, Any]:
    """FLOPs of a step, and its model FLOPs utilisation (MFU).

    `model` are the FLOPs of the model's definition, which MFU counts; `computed` those of the
    traced step; `xla` those that XLA's cost analysis reports.

    Args:
      steps: of the config.
      dataset: its data.
      seconds: of a step.
    """
    needed = flops.model_flops(steps.config, dataset.spec)
    costs = steps.compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    devices = steps.run.mesh.size
    sheet = data_sheet_per_device(jax.devices())
    dtype = jnp.dtype(steps.config.train.compute_dtype)
    ceiling = hardware.matmul_ceiling(dtype)
    found = {
        "model": needed,
        "computed": steps.flops.total,
        "unbounded_loops": steps.flops.unbounded_loops,
        "xla": float(costs.get("flops", 0.0)),
        "per_second": needed / seconds,
        "ceiling": ceiling * devices,
        "mfu": needed / seconds / (ceiling * devices),
    }
    if sheet is not None and dtype == jnp.bfloat16:
        found |= {
            "data_sheet": sheet.flops * devices,
            "mfu_data_sheet": needed / seconds / (sheet.flops * devices),
        }
    return found


def decode_report(steps: Steps, batch: int, ceiling: float) -> dict[str, Any]:
    """Speed of decoding, as a share of the memory bandwidth.

    Args:
      steps: of the config.
      batch: texts that are written at once.
      ceiling: measured memory bandwidth in bytes/s.
    """
    found = decoding(steps.run, steps.state, batch)
    found |= {"ceiling": ceiling, "share": found["bytes_per_second"] / ceiling}
    sheet = data_sheet_per_device(jax.devices())
    if sheet is not None:
        found["share_data_sheet"] = found["bytes_per_second"] / sheet.bandwidth
    return found


def profile(steps: Steps, folder: str, seconds: float, number: int = 5) -> dict[str, Any]:
    """Traces steps; returns the share of a step that a device is busy and the top ten operations.

    Args:
      steps: of the config.
      folder: of the trace.
      seconds: of a step without tracing.
      number: of steps to trace.
    """
    with trace.tracing(folder):
        steps.take(number)
    found = trace.read_trace(folder, steps.compiled.as_text() or "")
    total = sum(o.seconds for o in found.operations) or 1.0
    return {
        "folder": folder,
        "steps": number,
        "device_share": min(found.busy / number / seconds, 1.0),
        "operations": [
            {**dataclasses.asdict(o), "share": o.seconds / total} for o in found.operations[:10]
        ],
    }
