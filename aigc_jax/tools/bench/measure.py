"""What a config costs on this machine: steps, FLOPs, memory, data and decoding."""

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
from aigc_jax.tools.chips import sheet_of_each
from aigc_jax.training import oom
from aigc_jax.training.anomaly import AnomalyDetector
from aigc_jax.training.callbacks import Record, RunCallbacks
from aigc_jax.training.loop import fit
from aigc_jax.training.metric_window import MetricAccumulator

WARM = 3  # steps before any is timed
LEAST, MOST = 5, 2000  # steps that are timed


class Clock:
    """Stands where the loop's progress bar does, and notes when each step comes by."""

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
    """The steps of a config, taken by the loop that trains, as many as asked for.

    Args:
      config: what to train.
      dataset: on what.

    Attributes:
      run: its parts.
      compile_seconds: how long tracing and compiling the step took.
      compiled: the step as XLA has compiled it.
      forms: which forms primitives have taken in it, of those that may refuse (`platform.took`).
      data_wait: of the steps taken last, the share of the time spent waiting for data.
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
        # Random data may well make the loss non-finite, which is no reason to stop here.
        self._metrics = MetricAccumulator(
            0, size, AnomalyDetector(config_lib.Anomaly(max_skipped=0))
        )
        self._taken, self.data_wait = 0, 0.0
        with oom.explain_oom(*self._shapes):
            self._state = step.put_state(self.run.fresh_state())
            batch = step.put_batch(self._feed.next(self._state))
            began = time.perf_counter()
            with dispatch.trace_choices() as self.forms:
                lowered = step.lower(self._state, batch)
            self.compiled = lowered.compile()
            self.compile_seconds = time.perf_counter() - began
        self.flops = flops.count(step, self._state, batch)

    @property
    def state(self) -> Any:
        """The state in the form that is saved and sampled from."""
        return self.run.step.get_state(self._state)

    def take(self, number: int) -> Times:
        """Takes so many steps; returns the times of all but the first and the last.

        The loop reads the metrics of a step after it has started the next one, so the time between
        two of its rounds is a step's, but for the first round (which waits for nothing) and the
        last (which waits for two steps).
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
        """Takes steps for about so long, after a few that are not counted."""
        once = self.take(WARM).median
        return self.take(int(min(max(seconds / max(once, 1e-6), LEAST), MOST)) + 2)


def load(config: Config, shape: str = "") -> tuple[Config, Dataset]:
    """The config with its first stage resolved, and its data.

    Args:
      config: of a run.
      shape: random data of this shape instead (see `synthetic`), which the model itself reads: then
        there is no first stage.
    """
    if shape:
        config = without_first_stage(config)
        return config, synthetic(shape, config)
    dataset = sources.load(config.data, tokenizer_of(config.data))
    return resolve_first_stage(config, dataset.spec), dataset


def measure(
    config: Config, *, seconds: float = 10.0, shape: str = "", folder: str = ""
) -> dict[str, Any]:
    """The report of a config, as plain values; times in seconds, sizes in bytes.

    Args:
      config: what to time.
      seconds: how long to take steps.
      shape: random data to use instead of the config's, as `synthetic` names them.
      folder: where to write a trace of some steps; "": none.

    Raises:
      UserError: if the config or its data cannot be used, or `seconds` is not positive.
    """
    if seconds <= 0:
        raise UserError(f"--seconds={seconds:g} leaves no time to take steps: give more than 0")
    config, dataset = load(config, shape)
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
        "forms": {name: sorted(forms) for name, forms in steps.forms.items()},
        "memory": memory_of(steps),
        "data": {
            "wait": steps.data_wait,
            "records_per_second": rate,
            "source": f"synthetic {shape}" if shape else config.data.source,
        },
        "flops": work(steps, dataset, times.median),
    }
    if can_decode(steps.run):
        ceiling = hardware.bandwidth_ceiling()
        report["decoding"] = [decode_report(steps, batch, ceiling) for batch in BATCHES]
    if folder:
        report["profile"] = profile(steps, folder, times.median)
    return report


def throughput(config: Config, dataset: Dataset, seconds: float) -> dict[str, Any]:
    """Tokens, images, … per second."""
    modality = MODALITIES[dataset.spec.modality]
    units = config.data.batch_size * modality.units_per_example(dataset.spec)
    return {"unit": modality.unit, "per_second": units / seconds}


def records_per_second(config: Config, dataset: Dataset, seconds: float = 1.0) -> float:
    """How many examples the pipeline makes if nothing is done with them."""
    size = config.data.batch_size
    feed = DataLoader(dataset.train, size, config.seed, config.data.threads)
    for _ in range(config.data.threads + 1):
        feed.next()
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds or not count:
        feed.next()
        count += 1
    return count * size / max(elapsed, time.perf_counter() - began)


def memory_of(steps: Steps) -> dict[str, int]:
    """The peak so far, and what the compiled step says that it needs."""
    found = {"peak": hardware.peak_memory()}
    stats = steps.compiled.memory_analysis()
    if stats is not None:
        found |= {
            "arguments": stats.argument_size_in_bytes,
            "temporary": stats.temp_size_in_bytes,
            "output": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        }
    return found


def work(steps: Steps, dataset: Dataset, seconds: float) -> dict[str, Any]:
    """FLOPs of a step, and how much of what the devices can do that is.

    `model` is what the model needs by definition, and what MFU counts; `computed` is what the step
    computes, `xla` what XLA says of it.
    """
    needed = flops.model_flops(steps.config, dataset.spec)
    costs = steps.compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    devices = steps.run.mesh.size
    sheet = sheet_of_each(jax.devices())
    dtype = jnp.dtype(steps.config.train.compute_dtype)
    ceiling = hardware.matmul_ceiling(dtype)
    found = {
        "model": needed,
        "computed": steps.flops.total,
        "endless_loops": steps.flops.endless,
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
    """Decoding of so many texts at once, beside the memory's bandwidth, in bytes/s."""
    found = decoding(steps.run, steps.state, batch)
    found |= {"ceiling": ceiling, "share": found["bytes_per_second"] / ceiling}
    sheet = sheet_of_each(jax.devices())
    if sheet is not None:
        found["share_data_sheet"] = found["bytes_per_second"] / sheet.bandwidth
    return found


def profile(steps: Steps, folder: str, seconds: float, number: int = 5) -> dict[str, Any]:
    """Traces some steps: how much of a step a device is busy, and the ten dearest operations.

    Args:
      steps: of a config.
      folder: where the trace goes.
      seconds: what a step takes when it is not traced.
      number: how many to trace.
    """
    with trace.tracing(folder):
        steps.take(number)
    found = trace.read(folder, steps.compiled.as_text())
    total = sum(o.seconds for o in found.operations) or 1.0
    return {
        "folder": folder,
        "steps": number,
        "device_share": min(found.busy / number / seconds, 1.0),
        "operations": [
            {**dataclasses.asdict(o), "share": o.seconds / total} for o in found.operations[:10]
        ],
    }
