"""Profiles of a step: writes traces with JAX's profiler and sums them by operation."""

import contextlib
import dataclasses
import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.profiler import ProfileData

# An instruction of compiled HLO and the line of JAX that it comes from.
INSTRUCTION = re.compile(r'%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')
WRAPPERS = ("", "while", "body", "closed_call", "checkpoint", "rematted_computation")
DEVICE = "/device:"  # prefix of accelerator planes; operations of a CPU are in its threads


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program, summed over a trace.

    Attributes:
      name: in the compiled program.
      source: its path in the model; "": not known.
      calls: number of runs.
      seconds: total time, without the operations inside it.
    """

    name: str
    source: str
    calls: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Trace:
    """Summary of a trace.

    Attributes:
      operations: the most expensive first.
      busy: seconds in which a device was busy, averaged over the devices.
    """

    operations: list[Operation]
    busy: float


@dataclasses.dataclass(frozen=True)
class Event:
    """One run of an operation, in nanoseconds."""

    name: str
    start: float
    end: float


@contextlib.contextmanager
def tracing(folder: str) -> Iterator[None]:
    """Writes a trace of the block into a folder, without Python calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def read_trace(folder: str, hlo: str = "") -> Trace:
    """Reads and summarises the newest trace in a folder.

    Args:
      folder: as passed to `tracing`.
      hlo: text of the compiled program, which has the sources of operations.

    Raises:
      FileNotFoundError: if the folder has no trace.
    """
    paths = glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.xplane.pb"))
    if not paths:
        raise FileNotFoundError(f"no trace in {folder}")
    planes = device_lines(ProfileData.from_file(max(paths, key=os.path.getmtime)))
    return summarize(planes, dict(INSTRUCTION.findall(hlo)))


def device_lines(data: ProfileData) -> list[list[list[Event]]]:
    """Operations of each device, in each of its lines (streams or threads)."""
    planes = [p for p in data.planes if p.name.startswith(DEVICE)]
    planes = planes or [p for p in data.planes if p.name == "/host:CPU"]
    found = []
    for plane in planes:
        lines = [_operations(line, plane.name.startswith("/device:TPU")) for line in plane.lines]
        if any(lines):
            found.append([line for line in lines if line])
    return found


def _operations(line: Any, whole: bool) -> list[Event]:
    """Events of a line that are operations of compiled programs.

    Args:
      line: `ProfileLine` of a plane, a type that JAX does not export.
      whole: whether the operations are exactly the events of the line "XLA Ops".
    """
    events: list[Event] = []
    if whole and line.name != "XLA Ops":
        return events
    for event in line.events:
        stats = {} if whole else {key: value for key, value in event.stats if key == "hlo_op"}
        if whole or stats:
            name = str(stats.get("hlo_op", event.name)).lstrip("%").split(" = ")[0]
            events.append(Event(name, event.start_ns, event.start_ns + event.duration_ns))
    return events


def summarize(planes: list[list[list[Event]]], sources: dict[str, str]) -> Trace:
    """Sums the operations of all lines.

    Args:
      planes: lines of events of each device.
      sources: paths in the model, by name of the operation.
    """
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for lines in planes:
        for line in lines:
            for name, own in own_times(line):
                seconds[name] += own * 1e-9
                calls[name] += 1
    operations = [
        Operation(n, shorten_path(sources.get(n, "")), calls[n], seconds[n]) for n in seconds
    ]
    operations.sort(key=lambda o: -o.seconds)
    busy = [busy_time(event for line in lines for event in line) for lines in planes]
    return Trace(operations, sum(busy) * 1e-9 / max(len(busy), 1))


def own_times(line: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """Yields the name of each event and its time without that of nested events."""
    open_events: list[tuple[Event, float]] = []  # (event, time of nested events)
    for event in sorted(line, key=lambda e: (e.start, -e.end)):
        while open_events and open_events[-1][0].end <= event.start:
            done, within = open_events.pop()
            yield done.name, done.end - done.start - within
        if open_events:
            outer, within = open_events[-1]
            open_events[-1] = outer, within + event.end - event.start
        open_events.append((event, 0.0))
    for done, within in open_events:
        yield done.name, done.end - done.start - within


def busy_time(events: Iterable[Event]) -> float:
    """Length of the union of the events, in nanoseconds."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.start):
        total += max(event.end - max(event.start, until), 0)
        until = max(until, event.end)
    return total


def shorten_path(source: str) -> str:
    """Removes the wrappers of loops and differentiation from an operation's path."""
    source = re.sub(r"^jit\([^)]*\)/", "", source)
    while (bare := re.sub(r"\b(?:jvp|transpose|vmap)\(([^()]*)\)", r"\1", source)) != source:
        source = bare
    return "/".join(part for part in source.split("/") if part not in WRAPPERS)
