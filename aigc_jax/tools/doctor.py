"""What this machine has (versions, devices, the speed of a matrix product), and how a run is."""

import glob
import os
import platform
import shutil
from importlib import metadata

from aigc_jax.core.errors import UserError

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
SIZE = 1024  # of the product


def check_machine() -> int:
    """Prints the findings; 1 if an accelerator seems to be there but JAX does not see it."""
    import jax

    from aigc_jax.tools.bench.hardware import matmul_times

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
    seconds = matmul_times(SIZE).median
    print(
        f"matmul {SIZE}×{SIZE} float32, jitted: {seconds * 1e3:.2f} ms,"
        f" {2 * SIZE**3 / seconds / 1e9:.0f} GFLOP/s"
    )
    missing = unused_accelerator(jax.default_backend())
    if missing:
        print(f"aigc: warning: {missing}")
        return 1
    return 0


def check_workdir(workdir: str) -> int:
    """Prints how a run stands: its records, checkpoints and troubles; 1 if something is wrong.

    Every checkpoint is read and checked against its checksums.

    Raises:
      UserError: if there is no such folder, or no run in it.
    """
    from aigc_jax.core.workdir import (
        CONFIG,
        DAMAGED,
        LOCK,
        checkpoint_steps,
        has_run,
        last_saved_step,
        may_be_running,
        read_config,
        read_lock_holder,
    )
    from aigc_jax.runs import diagnose
    from aigc_jax.training import metric_log

    if not os.path.isdir(workdir):
        raise UserError(f"there is no folder {workdir}: give the --workdir of a run")
    if not (os.path.lexists(os.path.join(workdir, CONFIG)) or has_run(workdir)):
        raise UserError(f"{workdir} holds no run: give the --workdir of one")
    wrong = 0
    try:
        config = read_config(workdir)
        asked = config["train"]["steps"]
        print(f"{workdir}: {config['objective']['name']}, {asked} steps asked for")
    except (UserError, KeyError, TypeError) as e:
        wrong += 1
        print(f"{workdir}: its config.json is not that of a run ({e})")
    holder = read_lock_holder(workdir)
    if holder and may_be_running(holder):
        print(f"in use by process {holder['pid']} on {holder['host']}")
    elif holder:
        print(f"the last run (process {holder['pid']} on {holder['host']}) was killed: {LOCK} is"
              " stale and in nobody's way")  # fmt: skip
    records = metric_log.read_metrics(workdir)
    if records:
        last = records[-1]
        losses = {k: v for k, v in last.items() if k.split("/")[-1] == "loss"}
        print(f"{len(records)} records, the last ({last['kind']}) of step {last['step']}: {losses}")
    wrong += _checkpoints(workdir, checkpoint_steps(workdir))
    lost = last_saved_step(workdir)
    if lost > max(checkpoint_steps(workdir), default=0):
        print(f"checkpoint {lost} was saved, but is gone")
        wrong += 1
    aside = os.path.join(workdir, DAMAGED)
    if os.path.isdir(aside):
        print(f"put aside, because they could not be read: {', '.join(sorted(os.listdir(aside)))}"
              f" in {aside}")  # fmt: skip
    for place, report in diagnose.reports(workdir):
        wrong += 1
        print("\n".join([f"{place}:", *diagnose.explain(report)]))
    return 1 if wrong else 0


def _checkpoints(workdir: str, steps: list[int]) -> int:
    """Prints how each checkpoint is; returns how many are damaged."""
    from aigc_jax.core.workdir import checkpoint_steps
    from aigc_jax.experiment.restore import load
    from aigc_jax.training.checkpoint import CheckpointReader, CorruptCheckpoint

    if not steps:
        print("no checkpoint")
        return 0
    reader, damaged = CheckpointReader(workdir), 0
    for step in steps:
        try:
            load(reader, step, reader.contents(step))
            print(f"checkpoint {step}: whole")
        except (CorruptCheckpoint, UserError) as e:
            if max(checkpoint_steps(workdir), default=0) > steps[0]:
                print(f"checkpoint {step}: replaced by the run while it was read")
                continue
            damaged += 1
            print(f"checkpoint {step}: damaged ({e})")
    reader.close()
    return damaged


def unused_accelerator(backend: str) -> str:
    """What to do about an accelerator that JAX does not use; empty if there is none."""
    if backend != "cpu":
        return ""
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "an NVIDIA GPU seems to be here, but JAX uses the CPU: pip install 'aigc-jax[cuda]'"
    if glob.glob("/dev/accel*") or os.environ.get("TPU_WORKER_ID"):
        return "a TPU seems to be here, but JAX uses the CPU: pip install 'aigc-jax[tpu]'"
    return ""
