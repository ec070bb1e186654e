"""Where the time of a step goes: JAX's profiler, and what its trace says of operations."""

import contextlib
import dataclasses
import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

import jax
from jax.profiler import ProfileData

# An instruction of compiled HLO and the line of JAX that it comes from.
INSTRUCTION = re.compile(r'%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"')
WRAPPERS = ("", "while", "body", "closed_call", "checkpoint", "rematted_computation")
DEVICE = "/device:"  # how the planes of accelerators begin; a CPU's operations stand in its threads


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a compiled program, over a whole trace.

    Attributes:
      name: in the compiled program.
      source: where it comes from in the model, if the program says.
      calls: how often it ran.
      seconds: what it took, without the operations inside it.
    """

    name: str
    source: str
    calls: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Trace:
    """What a trace says.

    Attributes:
      operations: the dearest first.
      busy: seconds in which a device did something, on average over the devices.
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
    """Writes a trace of what happens inside into a folder, without Python's own calls."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        yield


def read(folder: str, hlo: str = "") -> Trace:
    """The newest trace in a folder.

    Args:
      folder: which `tracing` was given.
      hlo: the compiled program's text, which says where operations come from.

    Raises:
      FileNotFoundError: if there is none.
    """
    paths = glob.glob(os.path.join(folder, "plugins", "profile", "*", "*.xplane.pb"))
    if not paths:
        raise FileNotFoundError(f"no trace in {folder}")
    planes = lines_of(ProfileData.from_file(max(paths, key=os.path.getmtime)))
    return summed(planes, dict(INSTRUCTION.findall(hlo)))


def lines_of(data: ProfileData) -> list[list[list[Event]]]:
    """The operations of each device, in each of its lines (streams or threads)."""
    planes = [p for p in data.planes if p.name.startswith(DEVICE)]
    planes = planes or [p for p in data.planes if p.name == "/host:CPU"]
    found = []
    for plane in planes:
        lines = [_operations(line, plane.name.startswith("/device:TPU")) for line in plane.lines]
        if any(lines):
            found.append([line for line in lines if line])
    return found


def _operations(line: object, whole: bool) -> list[Event]:
    """A line's events that are operations of compiled programs.

    Args:
      line: of a plane.
      whole: whether all events of its line "XLA Ops" are such, and no others.
    """
    events = []
    if whole and line.name != "XLA Ops":
        return events
    for event in line.events:
        stats = {} if whole else {key: value for key, value in event.stats if key == "hlo_op"}
        if whole or stats:
            name = str(stats.get("hlo_op", event.name)).lstrip("%").split(" = ")[0]
            events.append(Event(name, event.start_ns, event.start_ns + event.duration_ns))
    return events


def summed(planes: list[list[list[Event]]], sources: dict[str, str]) -> Trace:
    """The operations of all lines together, the dearest first.

    Args:
      planes: of each device, lines of events.
      sources: where an operation comes from.
    """
    seconds: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for lines in planes:
        for line in lines:
            for name, own in own_times(line):
                seconds[name] += own * 1e-9
                calls[name] += 1
    operations = [Operation(n, shorter(sources.get(n, "")), calls[n], seconds[n]) for n in seconds]
    operations.sort(key=lambda o: -o.seconds)
    busy = [covered(event for line in lines for event in line) for lines in planes]
    return Trace(operations, sum(busy) * 1e-9 / max(len(busy), 1))


def own_times(line: Iterable[Event]) -> Iterator[tuple[str, float]]:
    """Each event's time without that of the events within it, as of a loop without its body."""
    open_events: list[list] = []  # [event, time of those within]
    for event in sorted(line, key=lambda e: (e.start, -e.end)):
        while open_events and open_events[-1][0].end <= event.start:
            done, within = open_events.pop()
            yield done.name, done.end - done.start - within
        if open_events:
            open_events[-1][1] += event.end - event.start
        open_events.append([event, 0.0])
    for done, within in open_events:
        yield done.name, done.end - done.start - within


def covered(events: Iterable[Event]) -> float:
    """How long at least one of the events was going on."""
    total, until = 0.0, float("-inf")
    for event in sorted(events, key=lambda e: e.start):
        total += max(event.end - max(event.start, until), 0)
        until = max(until, event.end)
    return total


def shorter(source: str) -> str:
    """An operation's path in the model, without what loops and differentiation put around it."""
    source = re.sub(r"^jit\([^)]*\)/", "", source)
    while (bare := re.sub(r"\b(?:jvp|transpose|vmap)\(([^()]*)\)", r"\1", source)) != source:
        source = bare
    return "/".join(part for part in source.split("/") if part not in WRAPPERS)
