"""What is done beside training: evaluations, samples, snapshots of averages."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager

from aigc_jax.build import Run
from aigc_jax.evaluate.judge import Judge
from aigc_jax.parallel import coordination
from aigc_jax.parallel.gather import for_sampling, on_host
from aigc_jax.parallel.processes import from_first
from aigc_jax.report.samples import save_samples
from aigc_jax.train import log, posthoc
from aigc_jax.train.loop import Every
from aigc_jax.train.state import TrainState


def hooks(
    run: Run,
    workdir: str,
    judge: Judge,
    records: log.Records | log.NoRecords,
    storage: Callable[[], AbstractContextManager[None]],
    tick: Callable[[str], None],
) -> tuple[Every, ...]:
    """Each with when the recipe wants it, and whether it was done before an interruption.

    Args:
      run: the parts of the run.
      workdir: its folder.
      judge: evaluates states.
      records: takes the evaluations.
      storage: what to do when the folder cannot be written.
      tick: told where the run is.
    """
    c, main = run.config, coordination.joined()[0] == 0

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
        profiles = on_host(state.profiles)
        if main:
            with storage():
                posthoc.save(workdir, step, profiles)

    def kept(step: int) -> bool:
        return bool(from_first(os.path.exists(posthoc.path_of(workdir, step))))

    def evaluated(step: int) -> bool:
        return bool(from_first(records.has(step, "eval")))

    def sampled(step: int) -> bool:
        return bool(from_first(os.path.exists(path(step))))

    return (
        Every(c.ema.snapshot_every if c.ema.power else 0, snapshot, done=kept),
        Every(c.eval.every, evaluate, c.eval.every > 0, evaluated),
        Every(c.sample.every, sample, c.sample.every > 0, sampled),
    )
