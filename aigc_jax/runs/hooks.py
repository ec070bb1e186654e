"""What is done beside training: evaluations, samples, snapshots of averages."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from aigc_jax.core.state import TrainState
from aigc_jax.distributed import kv_store
from aigc_jax.distributed.gather import for_sampling, on_host
from aigc_jax.distributed.processes import from_first
from aigc_jax.evaluation.evaluator import Evaluator
from aigc_jax.experiment.build import Run
from aigc_jax.runs.report.samples import save_samples
from aigc_jax.training import metric_log, posthoc_ema
from aigc_jax.training.loop import Periodic


def hooks(
    run: Run,
    workdir: str,
    judge: Evaluator,
    records: metric_log.MetricLogger | metric_log.NullLogger,
    storage: Callable[[], AbstractContextManager[None]],
    tick: Callable[[str], None],
) -> tuple[Periodic, ...]:
    """Each with when the recipe wants it, and whether it was done before an interruption.

    Args:
      run: the parts of the run.
      workdir: its folder.
      judge: evaluates states.
      records: takes the evaluations.
      storage: what to do when the folder cannot be written.
      tick: told where the run is.
    """
    c, main = run.config, kv_store.joined()[0] == 0

    def path(step: int) -> str:
        suffix = ".png" if run.spec.modality == "image" else ".txt"
        return os.path.join(workdir, "samples", f"step_{step:07d}{suffix}")

    def evaluate(step: int, state: TrainState) -> None:
        tick(f"the evaluation after step {step}")
        record = {"step": step, "kind": "eval", **judge(state)}
        with storage():
            records.write(record)

    def sample(step: int, state: TrainState) -> None:
        tick(f"sampling after step {step}")
        state = for_sampling(state)
        if main:
            with storage():
                save_samples(run, state, path(step))

    def snapshot(step: int, state: TrainState) -> None:
        power_ema = on_host(state.power_ema)
        if main:
            with storage():
                posthoc_ema.save_snapshot(workdir, step, power_ema)

    def kept(step: int) -> bool:
        return bool(from_first(os.path.exists(posthoc_ema.snapshot_path(workdir, step))))

    def evaluated(step: int) -> bool:
        return bool(from_first(records.has(step, "eval")))

    def sampled(step: int) -> bool:
        return bool(from_first(os.path.exists(path(step))))

    return (
        Periodic(c.ema.snapshot_every if c.ema.power else 0, snapshot, done=kept),
        Periodic(c.eval.every, evaluate, c.eval.every > 0, evaluated),
        Periodic(c.sample.every, sample, c.sample.every > 0, sampled),
    )
