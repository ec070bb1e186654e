"""The reports of `aigc bench --json` as one table: `python benchmarks/gpu_table.py *.json`."""

import json
import os
import sys
from typing import Any

from aigc_jax.runs.report.terminal import columns
from aigc_jax.tools.bench.table import seconds, si

COLUMNS = (
    "model", "parameters", "batch", "step", "throughput", "MFU", "of data sheet", "busy", "waits",
    "memory", "compiling", "attention",
)  # fmt: skip


def training_row(name: str, report: dict[str, Any]) -> tuple[str, ...]:
    work, rate = report["flops"], report["rate"]
    share = work.get("mfu_data_sheet")
    return (
        name,
        si(report["parameters"]),
        str(report["batch_size"]),
        f"{seconds(report['step']['median'])} ± {report['step']['spread']:.0%}",
        f"{rate['per_second']:,.0f} {rate['unit']}/s",
        f"{work['mfu']:.1%}",
        "–" if share is None else f"{share:.1%}",
        f"{report['profile']['device_share']:.0%}",
        f"{report['data']['wait']:.1%}",
        f"{report['memory']['peak'] / 2**30:.1f} GiB",
        seconds(report["compile_seconds"]),
        " and ".join(report["implementations"].get("attention", ["–"])),
    )


def decoding_line(name: str, found: dict[str, Any]) -> str:
    share = found.get("share_data_sheet")
    sheet = "" if share is None else f", {share:.0%} of the data sheet's"
    return (
        f"{name}, decoding, batch {found['batch']}: {found['tokens_per_second']:,.0f} tokens/s,"
        f" {si(found['bytes_per_second'])}B/s, {found['share']:.0%} of the bandwidth measured here"
        f"{sheet}"
    )


def main(paths: list[str]) -> int:
    reports, failed = {}, []
    for path in paths:
        name = os.path.basename(path).removesuffix(".json")
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                reports[name] = json.load(f)
        else:
            failed.append(name)
    if not reports:
        print("nothing was measured", file=sys.stderr)
        return 1
    machine = next(iter(reports.values()))["machine"]
    print(f"{machine['device']}, {machine['cores']} cores, JAX {machine['versions']['jax']},"
          f" Python {machine['python']}; random data")  # fmt: skip
    rows = [COLUMNS, *(training_row(name, report) for name, report in reports.items())]
    print("\n".join(columns(rows)))
    if failed:
        print(f"not measured: {', '.join(failed)}")
    for name, report in reports.items():
        for found in report.get("decoding", ()):
            print(decoding_line(name, found))
    print(
        "MFU: of a large matrix product's speed here, causal attention counted once, without"
        " what remat repeats; busy: the share of a step in which the device computes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
