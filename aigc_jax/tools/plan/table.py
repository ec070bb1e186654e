"""A plan as lines for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax.runs.report.terminal import columns
from aigc_jax.tools.bench.table import seconds, si
from aigc_jax.training.oom import format_bytes

BOUNDS = {"compute": "FLOPs", "memory": "the memory's bandwidth", "network": "the network"}


def table(plan: Mapping[str, Any]) -> str:
    """A plan, a figure a line."""
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
            f"at least {format_bytes(m['peak'])} of {format_bytes(m['has'])}; the state is"
            f" {format_bytes(plan['state'])}"
        )
        return [("memory a device", text), ("", verdict(plan))]
    parts = ", ".join(
        f"{name} {format_bytes(m[name])}" for name in ("arguments", "temporaries", "output", "code")
    )
    return [
        (
            "memory a device",
            f"{format_bytes(m['peak'])} of {format_bytes(m['has'])} ({m['peak'] / m['has']:.0%})",
        ),
        ("", f"{parts}; the state is {format_bytes(plan['state'])}"),
        ("", verdict(plan)),
    ]


def verdict(plan: Mapping[str, Any]) -> str:
    """Whether it fits, and if not what to try."""
    m = plan["memory"]
    if m["fits"]:
        return f"fits, with {format_bytes(m['has'] - m['peak'])} to spare"
    return f"does not fit, by {format_bytes(m['over'])}: {advice(plan)} (--fit tries them)"


def advice(plan: Mapping[str, Any]) -> str:
    """What makes a step smaller, the cheapest first."""
    c, m, mesh = plan["config"], plan["memory"], plan["topology"]["mesh"]
    found = []
    if plan["state"] > m["has"] / 2 and mesh.get("fsdp", 1) < plan["topology"]["devices"]:
        found.append("more fsdp in mesh, since the state is most of it")
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
    rows = [("FLOPs of a step", text)]
    if "device" in plan:
        d = plan["device"]
        text = f"{si(d['flops'])}, moving {si(d['bytes'])}B in its memory: {d['intensity']:.0f}"
        text += f" FLOPs a byte (its ridge is at {d['ridge']:.0f})"
        if d["endless_loops"]:
            text += f"; {d['endless_loops']} loops of unknown length count once"
        rows.append(("… of a device", text))
    return rows


def _collectives(found: Sequence[Mapping[str, Any]], most: int = 8) -> list[tuple[str, str]]:
    if not found:
        return [("network", "nothing goes over it")]
    rows = []
    for c in found[:most]:
        axes = "·".join(c["axes"]) or "all"
        time = seconds(c["seconds"]) if c["seconds"] else "time not known"
        text = f"{si(c['bytes'])}B over {axes} ({c['devices']} devices), {c['count']:,.0f}×: {time}"
        rows.append((c["kind"], text))
    rest = found[most:]
    if rest:
        rows.append(("… others", f"{si(sum(c['bytes'] for c in rest))}B"))
    return rows


def _roofline(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    r, rate, b = plan["roofline"], plan["rate"], plan["budget"]
    network = f"network {seconds(r['network'])}" if r["network"] else "network not known"
    return [
        (
            "a step takes at least",
            f"{seconds(r['step'])}: compute {seconds(r['compute'])}, memory"
            f" {seconds(r['memory'])}, {network}; bound by {BOUNDS[r['bound']]}"
            f" ({seconds(r['one_after_the_other'])} if nothing overlaps)",
        ),
        (
            "at most",
            f"{rate['per_second']:,.0f} {rate['unit']}/s, {rate['per_second_per_chip']:,.0f} a"
            f" chip; MFU {plan['mfu']:.1%}",
        ),
        (
            "the whole training",
            f"{b['total']:.3g} {b['unit']} are {b['steps']:,.0f} steps: at least {b['days']:,.1f}"
            f" days, {b['chip_hours']:,.0f} chip-hours",
        ),
    ]


def ranking(found: Mapping[str, Any]) -> str:
    """The meshes of a sweep, the fastest first."""
    lines = [f"{'mesh':<32} {'step':>9} {'bound':>8} {'MFU ≤':>7} {'memory':>11}  a device"]
    for plan in found["plans"]:
        mesh = ",".join(f"{k}={n}" for k, n in plan["topology"]["mesh"].items())
        m = plan["memory"]
        if m["fits"]:
            r = plan["roofline"]
            figures = f"{seconds(r['step']):>9} {r['bound']:>8} {plan['mfu']:>7.1%}"
            lines.append(f"{mesh:<32} {figures} {format_bytes(m['peak']):>11}")
        else:
            lines.append(f"{mesh:<32} does not fit, by {format_bytes(m['over'])}")
    if found["not_compiled"]:
        rest = found["not_compiled"]
        lines.append(f"{len(rest)} more were not compiled (--tries=…), first mesh={rest[0]}")
    if found["left_out"]:
        first = found["left_out"][0]
        lines.append(f"{len(found['left_out'])} cannot be, as mesh={first['mesh']}: {first['why']}")
    return "\n".join(lines)
