"""`aigc doctor`: checks of this machine (versions, devices, speed) and of a workdir."""

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
SIZE = 1024  # of the timed matrix product


def check_machine() -> int:
    """Prints versions, devices and speed; returns 1 if JAX does not use an attached accelerator."""
    import jax

    from aigc_jax.tools.bench.hardware import matmul_times

    print(f"python {platform.python_version()} on {platform.platform()}")
    print("   ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    try:
        devices = jax.devices()
    except Exception as e:  # of drivers, or an invalid JAX_PLATFORMS
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
    """Prints records, checkpoints and problem reports of a run; returns 1 if something is wrong.

    Reads every checkpoint and verifies its checksums.

    Raises:
      UserError: if the folder does not exist or has no run.
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
        raise UserError(f"the folder {workdir} does not exist: give the --workdir of a run")
    if not (os.path.lexists(os.path.join(workdir, CONFIG)) or has_run(workdir)):
        raise UserError(f"{workdir} has no run: give the --workdir of a run")
    wrong = 0
    try:
        config = read_config(workdir)
        asked = config["train"]["steps"]
        print(f"{workdir}: {config['objective']['name']}, {asked} steps planned")
    except (UserError, KeyError, TypeError) as e:
        wrong += 1
        print(f"{workdir}: its config.json is invalid ({e})")
    holder = read_lock_holder(workdir)
    if holder and may_be_running(holder):
        print(f"in use by process {holder['pid']} on {holder['host']}")
    elif holder:
        print(f"the last run (process {holder['pid']} on {holder['host']}) was killed: {LOCK} is"
              " stale and does not block another run")  # fmt: skip
    records = metric_log.read_metrics(workdir)
    if records:
        last = records[-1]
        losses = {k: v for k, v in last.items() if k.split("/")[-1] == "loss"}
        print(f"{len(records)} records, the last ({last['kind']}) at step {last['step']}: {losses}")
    wrong += _checkpoints(workdir, checkpoint_steps(workdir))
    lost = last_saved_step(workdir)
    if lost > max(checkpoint_steps(workdir), default=0):
        print(f"checkpoint {lost} was saved, but is missing")
        wrong += 1
    aside = os.path.join(workdir, DAMAGED)
    if os.path.isdir(aside):
        print(f"moved aside as unreadable: {', '.join(sorted(os.listdir(aside)))}"
              f" in {aside}")  # fmt: skip
    for place, report in diagnose.reports(workdir):
        wrong += 1
        print("\n".join([f"{place}:", *diagnose.explain(report)]))
    return 1 if wrong else 0


def _checkpoints(workdir: str, steps: list[int]) -> int:
    """Prints the state of each checkpoint; returns the number of damaged ones."""
    from aigc_jax.core.workdir import checkpoint_steps
    from aigc_jax.experiment.restore import load_checkpoint
    from aigc_jax.training.checkpoint import CheckpointReader, CorruptCheckpoint

    if not steps:
        print("no checkpoint")
        return 0
    reader, damaged = CheckpointReader(workdir), 0
    for step in steps:
        try:
            load_checkpoint(reader, step, reader.contents(step))
            print(f"checkpoint {step}: intact")
        except (CorruptCheckpoint, UserError) as e:
            if max(checkpoint_steps(workdir), default=0) > steps[0]:
                print(f"checkpoint {step}: deleted by the running training while it was read")
                continue
            damaged += 1
            print(f"checkpoint {step}: damaged ({e})")
    reader.close()
    return damaged


def unused_accelerator(backend: str) -> str:
    """Advice on an attached accelerator that JAX does not use; empty if there is none."""
    if backend != "cpu":
        return ""
    if glob.glob("/dev/nvidia[0-9]*") or shutil.which("nvidia-smi"):
        return "an NVIDIA GPU is attached, but JAX uses the CPU: pip install 'aigc-jax[cuda]'"
    if glob.glob("/dev/accel*") or os.environ.get("TPU_WORKER_ID"):
        return "a TPU is attached, but JAX uses the CPU: pip install 'aigc-jax[tpu]'"
    return ""
