"""Formats plans for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.runs.report.terminal import columns
from aigc_jax.tools.bench.table import seconds, si
from aigc_jax.training.oom import format_bytes

BOUNDS = {"compute": "FLOPs", "memory": "memory bandwidth", "network": "the network"}


def table(plan: Mapping[str, Any]) -> str:
    """Formats a plan, one figure per line."""
    rows = [*_head(plan), *_memory(plan), *_flops(plan)]
    if "roofline" in plan:
        rows += [*_collectives(plan["collectives"]), *_roofline(plan)]
    return "\n".join(columns(rows))


def _head(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    c, t = plan["config"], plan["topology"]
    shape = f"{c['seq_len']} tokens a row" if "seq_len" in c else "×".join(map(str, c["shape"]))
    mesh = ", ".join(f"{k}={n}" for k, n in t["mesh"].items())
    remat = f", remat {c['remat']}" if c["remat"] else ""
    more = f", {c['accumulate']} microbatches" if c["accumulate"] > 1 else ""
    chips = f"{t['chips']} chips" if t["chips"] > 1 else "one chip"
    slices = f" in {t['slices']} slices" if t["slices"] > 1 else ""
    rows = [
        (
            "model",
            f"{c['objective']}: {c['model']}, {plan['parameters']:,} parameters, {c['dtype']},"
            f" {'+'.join(dict.fromkeys(c['optimizer'].values()))}",
        ),
        ("step", f"{c['batch_size']} rows of {shape}{more}{remat}"),
        (
            "topology",
            f"{t['name']}: {t['devices']} × {t['device']} ({chips}{slices}), mesh {mesh}; each"
            f" {si(t['peak_flops'])}FLOP/s, {si(t['bandwidth'])}B/s, {format_bytes(t['memory'])}"
            f" ({t['figures']})",
        ),
    ]
    if plan.get("changes"):
        rows.append(("changed", ", ".join(f"{k}={v}" for k, v in plan["changes"].items())))
    return rows


def _memory(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    m = plan["memory"]
    if not m["fits"] and "arguments" not in m:
        text = (
            f"at least {format_bytes(m['peak'])} of {format_bytes(m['capacity'])}; the state is"
            f" {format_bytes(plan['state'])}"
        )
        return [("memory per device", text), ("", verdict(plan))]
    parts = ", ".join(
        f"{name} {format_bytes(m[name])}" for name in ("arguments", "temporaries", "output", "code")
    )
    return [
        (
            "memory per device",
            f"{format_bytes(m['peak'])} of {format_bytes(m['capacity'])}"
            f" ({m['peak'] / m['capacity']:.0%})",
        ),
        ("", f"{parts}; the state is {format_bytes(plan['state'])}"),
        ("", verdict(plan)),
    ]


def verdict(plan: Mapping[str, Any]) -> str:
    """Verdict on the memory of a plan: it fits, or by how much not and what to change."""
    m = plan["memory"]
    if m["fits"]:
        return f"fits, with {format_bytes(m['capacity'] - m['peak'])} to spare"
    return f"does not fit, by {format_bytes(m['excess'])}: {advice(plan)} (--fit tries them)"


def advice(plan: Mapping[str, Any]) -> str:
    """Changes that reduce the memory of a step, the cheapest first."""
    c, m, mesh = plan["config"], plan["memory"], plan["topology"]["mesh"]
    found = []
    if plan["state"] > m["capacity"] / 2 and mesh.get("fsdp", 1) < plan["topology"]["devices"]:
        found.append("more fsdp in mesh, since the state takes most of the memory")
    if c["remat"] in ("none", "dots"):
        found.append("model.remat=full")
    rows = c["batch_size"] // (mesh.get("data", 1) * mesh.get("fsdp", 1) * c["accumulate"])
    if rows > 1:
        found.append(f"train.accumulate={2 * c['accumulate']}")
    else:
        shared = "fsdp=…, " if mesh.get("data", 1) > 1 else ""
        found.append(f"{shared}sequence=… or tensor=… in mesh")
    return ", ".join(found)


def _flops(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    f = plan["flops"]
    text = f"the model needs {si(f['model'])}, the step computes {si(f['computed'])}"
    rows = [("FLOPs per step", text)]
    if "device" in plan:
        d = plan["device"]
        text = f"{si(d['flops'])}, HBM traffic {si(d['bytes'])}B: {d['intensity']:.0f}"
        text += f" FLOPs per byte (ridge point {d['ridge']:.0f})"
        if d["unbounded_loops"]:
            text += f"; {d['unbounded_loops']} loops of unknown length count once"
        rows.append(("FLOPs per device", text))
    return rows


def _collectives(found: Sequence[Mapping[str, Any]], most: int = 8) -> list[tuple[str, str]]:
    if not found:
        return [("network", "no collectives")]
    rows = []
    for c in found[:most]:
        axes = "·".join(c["axes"]) or "all"
        time = seconds(c["seconds"]) if c["seconds"] else "time unknown"
        text = f"{si(c['bytes'])}B over {axes} ({c['devices']} devices), {c['count']:,.0f}×: {time}"
        rows.append((c["kind"], text))
    rest = found[most:]
    if rest:
        rows.append(("… others", f"{si(sum(c['bytes'] for c in rest))}B"))
    return rows


def _roofline(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    r, rate, b = plan["roofline"], plan["rate"], plan["budget"]
    network = f"network {seconds(r['network'])}" if r["network"] else "network unknown"
    return [
        (
            "step time, lower bound",
            f"{seconds(r['step'])}: compute {seconds(r['compute'])}, memory"
            f" {seconds(r['memory'])}, {network}; bound by {BOUNDS[r['bound']]}"
            f" ({seconds(r['serial'])} without overlap)",
        ),
        (
            "throughput, upper bound",
            f"{rate['per_second']:,.0f} {rate['unit']}/s, {rate['per_second_per_chip']:,.0f} a"
            f" chip; MFU {plan['mfu']:.1%}",
        ),
        (
            "whole training",
            f"{b['total']:.3g} {b['unit']} are {b['steps']:,.0f} steps: at least {b['days']:,.1f}"
            f" days, {b['chip_hours']:,.0f} chip-hours",
        ),
    ]


def ranking(found: Mapping[str, Any]) -> str:
    """Formats the meshes of a sweep, the fastest first."""
    lines = [f"{'mesh':<32} {'step':>9} {'bound':>8} {'MFU ≤':>7} {'memory':>11}  a device"]
    for plan in found["plans"]:
        mesh = ",".join(f"{k}={n}" for k, n in plan["topology"]["mesh"].items())
        m = plan["memory"]
        if m["fits"]:
            r = plan["roofline"]
            figures = f"{seconds(r['step']):>9} {r['bound']:>8} {plan['mfu']:>7.1%}"
            lines.append(f"{mesh:<32} {figures} {format_bytes(m['peak']):>11}")
        else:
            lines.append(f"{mesh:<32} does not fit, by {format_bytes(m['excess'])}")
    if found["not_compiled"]:
        rest = found["not_compiled"]
        lines.append(f"{len(rest)} more were not compiled (--tries=…), the first is mesh={rest[0]}")
    if found["left_out"]:
        first = found["left_out"][0]
        lines.append(
            f"{len(found['left_out'])} are invalid, such as mesh={first['mesh']}: {first['why']}"
        )
    return "\n".join(lines)
