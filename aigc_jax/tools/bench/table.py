"""Formats a report of `measure` for a terminal."""

from collections.abc import Mapping
from typing import Any

from aigc_jax.runs.report.terminal import columns
from aigc_jax.training.oom import format_bytes


def table(report: Mapping[str, Any]) -> str:
    """Formats a report, one figure per line."""
    machine = report["machine"]
    devices = f"{machine['devices']} × " if machine["devices"] > 1 else ""
    rows = [
        (
            "machine",
            f"{devices}{machine['device']}, {machine['cores']} cores, JAX"
            f" {machine['versions']['jax']}, Python {machine['python']}",
        ),
        (
            "model",
            f"{report['objective']}: {report['model']}, {report['parameters']:,} parameters,"
            f" {report['dtype']}, batch {report['batch_size']}",
        ),
        *_speed(report),
        *_work(report["flops"]),
        ("peak memory", _memory(report["memory"])),
    ]
    rows += [_decoding(found) for found in report.get("decoding", ())]
    lines = columns(rows)
    if "profile" in report:
        lines += ["", *_profile(report["profile"])]
    return "\n".join(lines)


def _speed(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    step, rate, data = report["step"], report["rate"], report["data"]
    return [
        (
            "step",
            f"{seconds(step['median'])} ± {step['spread']:.0%} (median of {step['count']},"
            f" quartiles; fastest {seconds(step['fastest'])})",
        ),
        ("throughput", f"{rate['per_second']:,.0f} {rate['unit']}/s"),
        ("compiling", seconds(report["compile_seconds"])),
        *(
            (name, f"{' and '.join(names)} implementation")
            for name, names in report["implementations"].items()
        ),
        (
            "data stall",
            f"{data['wait']:.1%} of the time; the pipeline alone yields"
            f" {data['records_per_second']:,.0f} examples/s ({data['source']})",
        ),
    ]


def _work(work: Mapping[str, Any]) -> list[tuple[str, str]]:
    xla = f", XLA counts {si(work['xla'])}" if work["xla"] else ""
    loops = work["unbounded_loops"]
    some = f" ({loops} loops of unknown length count once)" if loops else ""
    rows = [
        (
            "FLOPs of a step",
            f"the model needs {si(work['model'])}, the step computes {si(work['computed'])}"
            f"{some}{xla}",
        ),
        (
            "MFU",
            f"{work['mfu']:.1%}: {si(work['per_second'])}FLOP/s of {si(work['ceiling'])}FLOP/s in a"
            " large matrix product here",
        ),
    ]
    if "data_sheet" in work:
        text = f"{work['mfu_data_sheet']:.1%} of the data sheet's {si(work['data_sheet'])}FLOP/s"
        rows.append(("", text))
    return rows


def _memory(memory: Mapping[str, int]) -> str:
    text = format_bytes(memory["peak"])
    if "temporary" in memory:
        text += f" (the step: arguments {format_bytes(memory['arguments'])}, temporary"
        text += f" {format_bytes(memory['temporary'])})"
    return text


def _decoding(found: Mapping[str, Any]) -> tuple[str, str]:
    text = f"{found['tokens_per_second']:,.0f} tokens/s ± {found['spread']:.0%}, reading"
    text += f" {si(found['bytes_per_second'])}B/s: {found['share']:.0%} of"
    text += f" {si(found['ceiling'])}B/s measured here"
    if "share_data_sheet" in found:
        text += f", {found['share_data_sheet']:.0%} of the data sheet's"
    return f"decoding, batch {found['batch']}", text


def _profile(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"{found['steps']} steps traced in {found['folder']}; a device is busy for"
        f" {found['device_share']:.0%} of a step; the most expensive operations:",
        f"{'share':>6} {'a step':>9} {'calls':>6}  operation",
    ]
    for o in found["operations"]:
        source = f"  {o['source'][-90:]}" if o["source"] else ""
        lines.append(
            f"{o['share']:>6.1%} {seconds(o['seconds'] / found['steps']):>9} {o['calls']:>6} "
            f" {o['name']}{source}"
        )
    return lines


def seconds(value: float) -> str:
    """Formats a time in s, ms, µs or ns with three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def si(value: float) -> str:
    """Formats a number with an SI prefix and three digits: "1.23 G"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "
