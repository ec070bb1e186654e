"""Runs one training as several processes on this machine, each like a host of its own.

    python launch/local.py -n 4 -- aigc train --config=lm/quickstart --workdir=runs/lm
    python launch/local.py -n 2 -- aigc doctor --distributed

Each line of output begins with the number of its process. If one process fails, the others have 20
seconds to detect it, name it and exit, then they are killed; the exit status is that of the first
one that failed. SIGTERM, SIGINT and SIGHUP are forwarded to all.

GPUs are shared out evenly. On a CPU, JAX_NUM_CPU_DEVICES=4 gives each process four devices.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 20  # seconds that the others have to exit when one has failed
SAVING = 90  # … when one has stopped on request, and the others may still be saving
STOPPED = 75  # exit code of a process that was asked to stop: see aigc_jax/core/errors.py


def free_port() -> int:
    """A port that is not in use."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(command: list[str], number: int, **options) -> list[subprocess.Popen]:
    """Starts the processes of a run, each with its number.

    Args:
      command: of each; it must take the flags `--coordinator`, … of `aigc train`.
      number: of processes.
      **options: for `subprocess.Popen`.

    Raises:
      OSError: if there is no such command.
    """
    address = f"localhost:{free_port()}"
    environment = options.pop("env", os.environ)
    started: list[subprocess.Popen] = []
    try:
        for i in range(number):
            flags = [
                f"--coordinator={address}",
                f"--num_processes={number}",
                f"--process_id={i}",
            ]
            # Tell it which of the machine's GPUs are its own: see aigc_jax/distributed/cluster.py.
            variables = {"AIGC_LOCAL_PROCESS": str(i), "AIGC_LOCAL_PROCESSES": str(number)}
            own = {**environment, **variables}
            started.append(subprocess.Popen([*command, *flags], env=own, **options))
    except OSError:
        for process in started:
            process.kill()
        raise
    return started


def echo(i: int, stream) -> None:
    """Prints a process's output, line by line."""
    for line in stream:
        with contextlib.suppress(OSError):  # keep reading, or the process would block
            print(f"[{i}] {line}", end="" if line.endswith("\n") else "\n", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=2, help="number of processes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- aigc train …")
    arguments = parser.parse_args(argv)
    command = arguments.command[arguments.command[:1] == ["--"] :]
    if arguments.n < 1 or not command:
        parser.error("write: launch/local.py -n 2 -- aigc train --config=… --workdir=…")
    try:
        processes = start(
            command,
            arguments.n,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C arrives here, and is forwarded once
        )
    except OSError as e:
        parser.error(f"{command[0]} cannot be started: {e.strerror}")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda s, _: [p.send_signal(s) for p in processes])
    readers = [
        threading.Thread(target=echo, args=(i, p.stdout), daemon=True)
        for i, p in enumerate(processes)
    ]
    for reader in readers:
        reader.start()
    code = wait(processes)
    for reader in readers:
        reader.join(GRACE)  # a grandchild may hold the pipe open
    return code


def wait(processes: list[subprocess.Popen]) -> int:
    """Returns when all have ended: 0, or the exit status of the first one that failed."""
    first, since = 0, time.monotonic()
    while any(p.poll() is None for p in processes):
        if not first:
            first, since = failure(processes), time.monotonic()
        elif time.monotonic() > since + (SAVING if first == STOPPED else GRACE):
            for p in processes:
                p.kill()
        time.sleep(0.1)
    first = first or failure(processes)
    return first if first >= 0 else 128 - first


def failure(processes: list[subprocess.Popen]) -> int:
    """The exit status of a process that failed, which is reported; 0 if none has."""
    for i, p in enumerate(processes):
        if p.poll():
            if p.returncode != STOPPED:
                how = f"exit {p.returncode}" if p.returncode > 0 else f"signal {-p.returncode}"
                print(f"local.py: process {i} has failed ({how})", file=sys.stderr, flush=True)
            return p.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
