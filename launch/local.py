"""Runs one training as several processes on this machine, as if each were a host of its own.

    python launch/local.py -n 2 -- aigc train --config=configs/lm/quickstart.py --workdir=runs/lm

Each line of output begins with the number of its process. If one process fails, the others find out
and end (or are killed after a while); the exit status is that of the first one that failed. SIGTERM
and SIGINT go to all.
"""

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE = 90  # seconds in which the others must end when one has failed


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(command: list[str], number: int, **options) -> list[subprocess.Popen]:
    """Starts the processes of a run, each told which one it is.

    Args:
      command: what each runs; it must know the flags `--coordinator`, … of `aigc train`.
      number: how many.
      **options: for `subprocess.Popen`.
    """
    address = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            [
                *command,
                f"--coordinator={address}",
                f"--num_processes={number}",
                f"--process_id={i}",
            ],
            **options,
        )
        for i in range(number)
    ]


def echo(i: int, stream) -> None:
    """Passes on a process's output, line by line."""
    for line in stream:
        with contextlib.suppress(OSError):  # read on, or the process would wait
            print(f"[{i}] {line}", end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-n", type=int, default=2, help="how many processes")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- aigc train …")
    arguments = parser.parse_args()
    command = [word for word in arguments.command if word != "--"]
    if arguments.n < 1 or not command:
        parser.error("write: launch/local.py -n 2 -- aigc train --config=… --workdir=…")
    processes = start(
        command,
        arguments.n,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a terminal's Ctrl-C comes here, and is passed on once
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda s, _: [p.send_signal(s) for p in processes])
    readers = [threading.Thread(target=echo, args=(i, p.stdout)) for i, p in enumerate(processes)]
    for reader in readers:
        reader.start()
    code = wait(processes)
    for reader in readers:
        reader.join()
    return code


def wait(processes: list[subprocess.Popen]) -> int:
    """Returns when all have ended: 0, or the exit status of the first one that failed."""
    failed, since = 0, time.monotonic()
    while any(p.poll() is None for p in processes):
        codes = [p.poll() for p in processes if p.poll()]
        if not failed:
            failed, since = codes[0] if codes else 0, time.monotonic()
        elif time.monotonic() > since + GRACE:
            for p in processes:
                p.kill()
        time.sleep(0.1)
    failed = failed or next((p.returncode for p in processes if p.returncode), 0)
    return failed if failed >= 0 else 128 - failed


if __name__ == "__main__":
    sys.exit(main())
