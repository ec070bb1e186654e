"""Plans: what compiled programs are read to cost, topologies, and what fits."""

import dataclasses
import importlib.util
import json
import os
from types import SimpleNamespace

import jax
import jax.experimental.topologies
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.paths import CONFIGS
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.modalities.synthetic_spec import synthetic_spec
from aigc_jax.tools.bench import flops
from aigc_jax.tools.chips import DataSheet, data_sheet
from aigc_jax.tools.plan import command, plan, search, topology
from aigc_jax.tools.plan.costs import Collective, costs
from aigc_jax.tools.plan.hlo import parse_hlo
from aigc_jax.tools.plan.interconnect import Interconnect, closed_sides
from aigc_jax.tools.plan.oom_messages import parse_oom_message
from aigc_jax.tools.plan.replica_groups import replica_groups, varying_axes
from aigc_jax.tools.plan.table import ranking, table, verdict

SHEET = DataSheet(flops=1e12, bandwidth=1e11, memory=float(1 << 30), link_bandwidth=1e9)

# Two turns of a loop as TPU compilers write them: a gather, a fused reduce-scatter and a product
# over arrays in fast memory (S(1)), whose number of turns stands only in the condition.
LOOP = """\
HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[64,32]) -> bf16[16,32] {
  %input = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.6 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=5,\
 replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %dynamic-slice = bf16[16,32]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.6, %zero, %zero),\
 dynamic_slice_sizes={16,32}
}

%body (state: (s32[], bf16[16,32], bf16[8,64])) -> (s32[], bf16[16,32], bf16[8,64]) {
  %state = (s32[]{:T(128)}, bf16[16,32]{1,0}, bf16[8,64]{1,0:T(8,128)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %w = bf16[16,32]{1,0} get-tuple-element(%state), index=1
  %x = bf16[8,64]{1,0:T(8,128)S(1)} get-tuple-element(%state), index=2
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %all-gather.1 = bf16[64,32]{1,0:T(8,128)S(1)} all-gather(%w), channel_id=1,\
 replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}
  %noted = bf16[8,64]{1,0:T(8,128)S(1)} copy(%x), backend_config={"debug":"
Strategy{
}
"}
  %product = bf16[8,32]{1,0} convolution(%x, %all-gather.1), dim_labels=bf_io->bf
  %fusion = bf16[16,32]{1,0} fusion(%all-gather.1), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %tuple = (s32[]{:T(128)}, bf16[16,32]{1,0}, bf16[8,64]{1,0:T(8,128)S(1)}) tuple(%next,\
 %fusion, %x)
}

%condition (state.1: (s32[], bf16[16,32], bf16[8,64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %state.1 = (s32[]{:T(128)}, bf16[16,32]{1,0}, bf16[8,64]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (w.1: bf16[16,32], x.1: bf16[8,64]) -> bf16[16,32] {
  %w.1 = bf16[16,32]{1,0} parameter(0)
  %x.1 = bf16[8,64]{1,0:T(8,128)S(1)} parameter(1)
  %start = s32[]{:T(128)} constant(5)
  %copy = s32[]{:T(128)} copy(%start)
  %tuple.1 = (s32[]{:T(128)}, bf16[16,32]{1,0}, bf16[8,64]{1,0:T(8,128)S(1)}) tuple(%copy, %w.1,\
 %x.1)
  %while = (s32[]{:T(128)}, bf16[16,32]{1,0}, bf16[8,64]{1,0:T(8,128)S(1)}) while(%tuple.1),\
 condition=%condition, body=%body
  ROOT %out = bf16[16,32]{1,0} get-tuple-element(%while), index=1
}
"""


def test_a_loop_of_a_tpu_program_counts_by_its_trip_count():
    found = costs(parse_hlo(LOOP), {"data": 2, "fsdp": 4})
    assert found.flops == 2 * (2 * 8 * 32 * 64)  # two turns, from 5 to 7
    assert {(c.kind, c.axes, c.bytes, c.count) for c in found.collectives} == {
        ("all-gather", ("fsdp",), 2 * 64 * 32 * 2, 2),
        ("reduce-scatter", ("fsdp",), 2 * 64 * 32 * 2, 2),
    }
    # Of the loop the product's result, the operands of the gather and the scatter's result lie in
    # the chip's main memory; the copied number does too.
    assert found.bytes == 2 * 2 * (8 * 32 + 16 * 32 + 16 * 32) + 2 * (4 + 4 + 4) + 2 * 4
    assert not found.unbounded_loops


# A gather that runs in parts, beside a product, and a sum over two slices by way of the hosts.
PARTS = """\
%begin (w: bf16[16,32]) -> bf16[64,32] {
  %w = bf16[16,32]{1,0} parameter(0)
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%w), channel_id=2,\
 replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %begun = bf16[64,32]{1,0} custom-call(%all-gather.1),\
 custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.7 (w.1: bf16[16,32]) -> bf16[64,32] {
  %w.1 = bf16[16,32]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,32]{1,0} all-gather(%w.1), channel_id=2
}

%end (w.2: bf16[16,32], begun.1: bf16[64,32]) -> bf16[64,32] {
  %w.2 = bf16[16,32]{1,0} parameter(0)
  %begun.1 = bf16[64,32]{1,0} parameter(1)
  %all-gather.3 = bf16[64,32]{1,0} all-gather(%w.2), channel_id=2
  ROOT %done = bf16[64,32]{1,0} custom-call(%begun.1, %all-gather.3),\
 custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (w.3: bf16[16,32]) -> bf16[64,32] {
  %w.3 = bf16[16,32]{1,0} parameter(0)
  %first = bf16[64,32]{1,0} fusion(%w.3), kind=kCustom, calls=%begin
  %beside = bf16[64,32]{1,0} fusion(%w.3), kind=kOutput, calls=%async_collective_fusion.7
  %after = token[] after-all()
  %send.8 = (bf16[16,32]{1,0}, u32[], token[]) send(%w.3, %after), channel_id=1,\
 is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.99_0"}
  ROOT %last = bf16[64,32]{1,0} fusion(%w.3, %first), kind=kCustom, calls=%end
}
"""


def test_async_collectives_count_once_and_dcn_traffic_counts():
    found = costs(parse_hlo(PARTS), {"data": 2, "fsdp": 4}, [0] * 4 + [1] * 4)
    assert [(c.kind, c.axes, c.bytes, c.group) for c in found.collectives] == [
        ("all-gather", ("fsdp",), 64 * 32 * 2, (0, 1, 2, 3)),
        ("all-reduce", ("data",), 16 * 32 * 2, (0, 4)),
    ]


# A gather and a product that another core of the chip does beside the rest of the program.
BESIDE = """\
%called (w: bf16[16,32], token: token[]) -> bf16[64,32] {
  %w = bf16[16,32]{1,0} parameter(0)
  %token = token[] parameter(1)
  ROOT %all-gather.1 = bf16[64,32]{1,0} all-gather(%w), channel_id=2,\
 replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}, execution_thread="sparsecore"

%called.1 (x: bf16[8,64], y: bf16[64,32]) -> bf16[8,32] {
  %x = bf16[8,64]{1,0} parameter(0)
  %y = bf16[64,32]{1,0} parameter(1)
  ROOT %product = bf16[8,32]{1,0} convolution(%x, %y), dim_labels=bf_io->bf
}, execution_thread="sparsecore"

ENTRY %main (w.1: bf16[16,32], x.1: bf16[8,64]) -> bf16[8,32] {
  %w.1 = bf16[16,32]{1,0} parameter(0)
  %x.1 = bf16[8,64]{1,0} parameter(1)
  %token.1 = token[] after-all()
  %start = ((bf16[16,32]{1,0}, token[]), bf16[64,32]{1,0}) call-start(%w.1, %token.1),\
 async_execution_thread="sparsecore", to_apply=%called
  %done = bf16[64,32]{1,0} call-done(%start)
  %start.1 = ((bf16[8,64]{1,0}, bf16[64,32]{1,0}), bf16[8,32]{1,0}) call-start(%x.1, %done),\
 async_execution_thread="sparsecore", to_apply=%called.1
  ROOT %done.1 = bf16[8,32]{1,0} call-done(%start.1)
}
"""


def test_what_another_core_of_a_chip_does_beside_the_program_counts():
    found = costs(parse_hlo(BESIDE), {"data": 2, "fsdp": 4})
    (gather,) = found.collectives
    assert (gather.kind, gather.axes, gather.bytes) == ("all-gather", ("fsdp",), 64 * 32 * 2)
    assert found.flops == 2 * 8 * 64 * 32
    assert found.bytes == 2 * (16 * 32 + 64 * 32 + 8 * 64 + 64 * 32 + 8 * 32)


# Weights of 7 layers, of which a fusion takes one in a fusion of its own; results and sums that are
# written in places; a slice that is fetched beforehand; and a place that is written, then summed.
STACKED = """\
%take (w: bf16[7,32,64], i: s32[]) -> bf16[32,64] {
  %w = bf16[7,32,64]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,32,64]{2,1,0} dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,32,64}
  ROOT %one = bf16[32,64]{1,0} bitcast(%slice)
}

%layer (x: bf16[8,32], w.1: bf16[7,32,64], i.1: s32[]) -> bf16[8,64] {
  %x = bf16[8,32]{1,0:S(1)} parameter(0)
  %w.1 = bf16[7,32,64]{2,1,0} parameter(1)
  %i.1 = s32[]{:S(6)} parameter(2)
  %taken = bf16[32,64]{1,0} fusion(%w.1, %i.1), kind=kLoop, calls=%take
  ROOT %product = bf16[8,64]{1,0:S(1)} convolution(%x, %taken), dim_labels=bf_io->bf
}

%put (into: f32[7,8,64], x.1: f32[8,64], i.2: s32[]) -> f32[7,8,64] {
  %into = f32[7,8,64]{2,1,0} parameter(0)
  %x.1 = f32[8,64]{1,0:S(1)} parameter(1)
  %i.2 = s32[]{:S(6)} parameter(2)
  %zero.1 = s32[] constant(0)
  %was = f32[1,8,64]{2,1,0} dynamic-slice(%into, %i.2, %zero.1, %zero.1)
  %wide = f32[1,8,64]{2,1,0} bitcast(%x.1)
  %sum = f32[1,8,64]{2,1,0} add(%was, %wide)
  ROOT %update = f32[7,8,64]{2,1,0} dynamic-update-slice(%into, %sum, %i.2, %zero.1, %zero.1)
}

%whole (into.1: f32[7,8,64], x.2: f32[1,8,64], i.3: s32[]) -> f32[7,8,64] {
  %into.1 = f32[7,8,64]{2,1,0} parameter(0)
  %x.2 = f32[1,8,64]{2,1,0:S(1)} parameter(1)
  %i.3 = s32[]{:S(6)} parameter(2)
  %zero.2 = s32[] constant(0)
  %update.1 = f32[7,8,64]{2,1,0} dynamic-update-slice(%into.1, %x.2, %i.3, %zero.2, %zero.2)
  ROOT %twice = f32[7,8,64]{2,1,0} add(%update.1, %update.1)
}

ENTRY %main (w.9: bf16[7,32,64], o.9: f32[7,8,64]) -> f32[7,8,64] {
  %w.9 = bf16[7,32,64]{2,1,0} parameter(0)
  %o.9 = f32[7,8,64]{2,1,0} parameter(1)
  %i.9 = s32[]{:S(6)} parameter(2)
  %x.9 = bf16[8,32]{1,0:S(1)} parameter(3)
  %y.9 = f32[8,64]{1,0:S(1)} parameter(4)
  %z.9 = f32[1,8,64]{2,1,0:S(1)} parameter(5)
LINE
}
"""
ONE = 8 * 64 * 4  # bytes of a place of the results


@pytest.mark.parametrize(
    "line, expected",
    [
        ("bf16[8,64]{1,0:S(1)} fusion(%x.9, %w.9, %i.9), kind=kOutput, calls=%layer", 32 * 64 * 2),
        ("f32[7,8,64]{2,1,0} fusion(%o.9, %y.9, %i.9), kind=kLoop, calls=%put", 2 * ONE),
        ("f32[7,8,64]{2,1,0} fusion(%o.9, %z.9, %i.9), kind=kLoop, calls=%whole", 2 * 7 * ONE),
        ("f32[7,8,64]{2,1,0} dynamic-update-slice(%o.9, %z.9, %i.9, %i.9, %i.9)", ONE),
        ("f32[1,8,64]{2,1,0} dynamic-slice(%o.9, %i.9, %i.9, %i.9)", 2 * ONE),
        ("f32[1,8,64]{2,1,0:S(1)} dynamic-slice(%o.9, %i.9, %i.9, %i.9)", ONE),
        ("(f32[7,8,64]{2,1,0}, f32[1,8,64]{2,1,0:S(1)}, s32[]{:S(2)}) slice-start(%o.9)", ONE),
        ("(f32[7,8,64]{2,1,0:S(1)}, f32[7,8,64]{2,1,0}, u32[]{:S(2)}) copy-start(%o.9)", 7 * ONE),
    ],
)
def test_of_stacked_arrays_only_the_places_that_are_needed_are_moved(line, expected):
    found = costs(parse_hlo(STACKED.replace("LINE", f"  ROOT %it = {line}")), {"data": 1})
    assert found.bytes == expected


@pytest.mark.parametrize(
    "written, expected",
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
         [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)  # fmt: skip
def test_groups_are_read_however_they_are_written(written, expected):
    line = f"  %a = f32[8]{{0}} all-gather(%x), channel_id=1, {written}, dimensions={{0}}"
    program = parse_hlo(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}")
    (instruction,) = program.computations["main"].values()
    assert np.asarray(replica_groups(instruction, 8)).tolist() == expected


def test_a_group_lies_along_the_axes_in_which_it_differs():
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    assert varying_axes([0, 1], mesh) == ("tensor",)
    assert varying_axes([0, 2, 4, 6], mesh) == ("data", "fsdp")


@pytest.mark.parametrize("batched", [False, True])
def test_a_real_program_costs_what_its_jaxpr_says(batched):
    mesh = make_mesh("data=2,fsdp=4")
    layers, width, rows = 3, 16, 8

    def step(w, x):
        def layer(x, w):
            x = jax.lax.with_sharding_constraint(x @ w, P(("data", "fsdp")))
            if batched:
                x_BII = x.reshape(rows, 4, 4)
                x = (x_BII @ x_BII).reshape(rows, width)
            return x, None

        return jax.lax.scan(layer, x, w)[0].sum()

    def put(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    args = put((layers, width, width), None, "fsdp"), put((rows, width), ("data", "fsdp"))
    with jax.set_mesh(mesh):
        compiled = jax.jit(step).lower(*args).compile()
        counted = flops.count(step, *args).total
    found = costs(parse_hlo(compiled.as_text()), dict(mesh.shape))
    assert found.flops * mesh.size == pytest.approx(counted)
    gathered = [c for c in found.collectives if c.kind == "all-gather"]
    assert [(c.axes, c.bytes) for c in gathered] == [(("fsdp",), 4 * layers * width * width)]
    assert {c.axes for c in found.collectives if c.kind == "all-reduce"} == {("data", "fsdp")}


@pytest.mark.parametrize(
    "message, expected",
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
         " temporaries (42.34G) exceeds available HBM (15.75G).", (43.34, 15.75)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.12G of 15.75G hbm."
         " Exceeded hbm capacity by 9.36G.", (25.12, 15.75)),
        ("INTERNAL: something else", None),
    ],
)  # fmt: skip
def test_oom_messages_are_parsed(message, expected):
    found = parse_oom_message(message, float(1 << 30), 16.0 * (1 << 30))
    assert found == (expected and tuple(pytest.approx(n * (1 << 30)) for n in expected))


@pytest.mark.parametrize(
    "kind, number, sides",
    [("v5p", "512", "8x8x4"), ("v5p", "8", "2x2x1"), ("v5p", "1024", "8x8x8"),
     ("v4", "128", "4x4x4"), ("v5e", "256", "16x16"), ("v6e", "8", "2x4"), ("v5e", "128", "8x16")],
)  # fmt: skip
def test_numbers_of_pods_count_cores_or_chips(kind, number, sides):
    assert topology.slice_sides(kind, number) == sides


@pytest.mark.parametrize(
    "name",
    [
        "v5p-511",
        "v5e-512",
        "v5p",
        "v9:2x2",
        "v5e:0x",
        "cpu:x",
        "cpu:99",
        "v6e:4x4x4",
        "v5litepod:2x2x2",
        "v5e:32x8",
        "v4:16x16x20",
        "v5p:16x16x28",
        "tpu7x:24x24x20",
    ],
)
def test_invalid_topology_is_rejected(name):
    jax.devices()  # JAX has started with fewer CPUs
    with pytest.raises(UserError, match="topology"):
        topology.topology_devices(name)


@pytest.mark.parametrize(
    "name, told",
    [
        ("v5p:2x2x4", dict(topology_name="v5p:2x2x4", wrap=(False,) * 3)),
        ("v5p-128", dict(topology_name="v5p:4x4x4", wrap=(True,) * 3)),
        ("v5litepod:8x16", dict(topology_name="v5e:8x16", wrap=(False, True, False))),
        ("v6e-1", dict(wrap=(False,) * 3, chips_per_host_bounds=(1, 1, 1))),
    ],
)
def test_topology_passes_wrap_and_host_bounds_to_the_compiler(name, told, monkeypatch):
    asked = {}

    def described(**options):
        asked.update(options)
        return SimpleNamespace(devices=[])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topology, "LIBTPU_ENVIRONMENT", {})
    monkeypatch.setattr(jax.experimental.topologies, "get_topology_desc", described)
    topology.topology_devices(name)
    assert told.items() <= asked.items()
    assert ("chips_per_host_bounds" in asked) == (name == "v6e-1")


def test_a_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"aigc-jax\[plan\]"):
        topology.topology_devices("v5e:4x4")


def test_the_links_of_a_torus_are_shared_by_what_runs_over_them():
    sheet = data_sheet("TPU v5 lite")
    places = np.array([(x, y, 0) for x in range(16) for y in range(16)])
    network = Interconnect(sheet, places, np.zeros(256, int))
    side, whole, part = range(16), range(256), range(4)
    assert network.bandwidth(side) == 2 * sheet.link_bandwidth  # a closed ring
    assert network.bandwidth(whole) == 4 * sheet.link_bandwidth
    assert network.bandwidth(part) == sheet.link_bandwidth  # open
    gather = Collective("all-gather", ("fsdp",), tuple(side), bytes=1.6e9, count=1)
    assert network.seconds(gather) == pytest.approx(1.5e9 / 90e9)
    reduce = dataclasses.replace(gather, kind="all-reduce")
    assert network.seconds(reduce) == pytest.approx(2 * 1.5e9 / 90e9)
    apart = Interconnect(sheet, places, np.arange(256) // 128)
    assert apart.bandwidth(whole) == sheet.dcn_bandwidth


@pytest.mark.parametrize(
    "kind, sides, expected",
    [
        ("TPU v5", (2, 2, 4), (False, False, False)),
        ("TPU v5", (4, 4, 8), (True, True, True)),
        ("TPU v4", (4, 4), (False, False)),
        ("TPU7x", (4, 4, 4), (True, True, True)),
        ("TPU v6 lite", (8, 16), (False, True)),
    ],
)
def test_cubes_of_chips_are_closed_whole_and_sides_of_a_pod_each_by_itself(kind, sides, expected):
    sheet = data_sheet(kind)
    assert closed_sides(sheet, sides) == expected
    places = np.stack(np.unravel_index(np.arange(np.prod(sides)), sides), 1)
    last = range(sides[-1])  # along the last side
    links = (
        Interconnect(sheet, places, np.zeros(len(places), int)).bandwidth(last)
        / sheet.link_bandwidth
    )
    assert links == (2 if expected[-1] else 1)


@pytest.fixture(scope="module")
def target():
    return plan.Target("cpu:8", jax.devices()[:8], SHEET, "made up", 8)


def config_of(**changes):
    model = dict(vocab_size=264, heads=4, layers=2, scan_unroll=1, remat="none")
    raw = tiny.recipe("lm", model=model, mesh="data=2,fsdp=4", eval=dict(batch_size=16))
    config = plan.with_changes(build.parse_config(raw), {"data.batch_size": 16, **changes})
    return plan.resolve_inputs(config)


def test_a_plan_says_what_a_run_takes(target):
    config, spec = config_of()
    found = plan.make_plan(config, spec, target, budget=1e6)
    state, memory, r = found["state"], found["memory"], found["roofline"]
    whole = sum(x.size for x in jax.tree.leaves(jax.eval_shape(build.build(config, spec).init, 0)
                                                .params))  # fmt: skip
    assert found["parameters"] == whole
    assert whole * 12 / 4 < state < whole * 12 / 2  # parameters and two moments, in four parts
    assert state < memory["arguments"] <= memory["peak"] and memory["fits"]
    assert found["flops"]["model"] <= found["flops"]["computed"] <= 8 * found["device"]["flops"]
    assert r["step"] == max(r["compute"], r["memory"], r["network"]) == r[r["bound"]]
    assert {c["kind"] for c in found["collectives"]} >= {"all-gather", "all-reduce"}
    assert all(set(c["axes"]) <= {"data", "fsdp"} for c in found["collectives"])
    tokens = 16 * config.data.seq_len
    assert found["rate"]["per_second"] == pytest.approx(tokens / r["step"])
    assert found["mfu"] == pytest.approx(found["flops"]["model"] / r["step"] / 8e12)
    steps = 1e6 / tokens
    assert found["budget"]["chip_hours"] == pytest.approx(steps * r["step"] / 3600 * 8)
    json.dumps(found)
    assert "fits, with" in table(found) and "tokens/s" in table(found)


class Lowered:
    """A step that needs so much memory, instead of compiling one."""

    def __init__(self, peak):
        self.peak = peak

    def compile(self):
        if self.peak > 100:
            raise RuntimeError(f"RESOURCE_EXHAUSTED: Used {self.peak}.0K of 0.1K hbm.")
        return self

    def memory_analysis(self):
        return SimpleNamespace(
            argument_size_in_bytes=self.peak,
            temp_size_in_bytes=0,
            output_size_in_bytes=5,
            alias_size_in_bytes=5,
            generated_code_size_in_bytes=0,
        )


@pytest.mark.parametrize("peak, over", [(10, 0), (60, 10), (200, 199.9 * 1024)])
def test_a_step_fits_if_the_compiler_and_its_size_say_so(peak, over):
    compiled, memory = plan.compile_step(Lowered(peak), 50.0, 10.0)
    assert memory["excess"] == pytest.approx(over)
    assert memory["fits"] == (over == 0) == (compiled is not None)


def in_need(monkeypatch, need):
    """Plans of a step that needs `need(config)` of 100 bytes beside its state."""

    def made(config, spec, target, budget=0.0):
        peak = need(config)
        return {
            "config": plan.describe_config(config, spec),
            "topology": {"mesh": dict(make_mesh(config.mesh).shape), "devices": 8},
            "state": 10,
            "memory": {
                "peak": peak,
                "capacity": 100,
                "fits": peak <= 100,
                "excess": max(peak - 100, 0),
            },
            "roofline": {"step": float(peak), "bound": "memory"},
            "mfu": 0.5,
        }

    monkeypatch.setattr(search, "make_plan", made)


def test_plan_reports_missing_memory_and_levers(target, monkeypatch):
    config, spec = config_of()
    in_need(
        monkeypatch, lambda c: 400 // c.train.accumulate // (2 if c.model.remat == "full" else 1)
    )
    said = verdict(search.make_plan(config, spec, target))
    assert "does not fit, by 0.0 MiB" in said
    assert "model.remat=full" in said and "train.accumulate=2" in said
    found = search.fit(config, spec, target, log=lambda _: None)
    assert found["changes"] == {"model.remat": "full", "train.accumulate": 2}
    assert [t["excess"] for t in found["tried"]] == [300, 300, 100, 0]
    in_need(monkeypatch, lambda c: 400)
    with pytest.raises(UserError, match=r"cpu:8.*GiB"):
        search.fit(config, spec, target, log=lambda _: None)


def test_plan_shards_more_state_as_last_resort(target, monkeypatch):
    config, spec = config_of(**{"mesh": "data=-1", "model.remat": "full"})
    in_need(monkeypatch, lambda c: 400 // dict(make_mesh(c.mesh).shape).get("fsdp", 1))
    found = search.fit(config, spec, target, log=lambda _: None)
    assert [t["changes"] for t in found["tried"]] == [
        {},
        {"train.accumulate": 2},
        {"train.accumulate": 2, "mesh": "data=4,fsdp=2"},
        {"train.accumulate": 2, "mesh": "data=2,fsdp=4"},
    ]
    in_need(monkeypatch, lambda c: 1000)
    with pytest.raises(UserError) as caught:
        search.fit(config, spec, target, log=lambda _: None)
    assert "accumulate=2; mesh=data=4,fsdp=2 or data=2,fsdp=4 or fsdp=8: " in str(caught.value)
    assert "remat" not in str(caught.value)


def test_a_state_that_is_too_large_is_shared_out_first(target):
    config, spec = config_of(mesh="data=8")
    state = search.state_bytes(config, spec, target)
    small = dataclasses.replace(target, sheet=dataclasses.replace(SHEET, memory=state / 2))
    first = next(search.memory_levers(config, spec, small))
    assert search.state_bytes(plan.with_changes(config, first), spec, small) <= 0.9 * state / 2
    none = dataclasses.replace(target, sheet=dataclasses.replace(SHEET, memory=state / 100))
    with pytest.raises(UserError, match="more devices"):
        next(search.memory_levers(config, spec, none))


def test_a_sweep_ranks_the_meshes_that_can_be(target, monkeypatch):
    config, spec = config_of(**{"data.batch_size": 4})
    in_need(monkeypatch, lambda c: 95 - 30 * c.mesh.count("data") - len(c.mesh))
    found = search.sweep(config, spec, target, tries=3, log=lambda _: None)
    steps = [p["roofline"]["step"] for p in found["plans"]]
    assert len(steps) == 3 and steps == sorted(steps)
    assert len({str(p["topology"]["mesh"]) for p in found["plans"]}) == 3
    lines = ranking(found)
    assert found["not_compiled"] and "more were not compiled" in lines
    assert {m["mesh"]: m["why"] for m in found["left_out"]}["fsdp=8"].count("data.batch_size=4")


def test_meshes_are_all_products_of_the_axes():
    assert set(search.candidate_meshes(2)) == {"data=2", "fsdp=2", "tensor=2", "sequence=2"}
    assert next(iter(search.candidate_meshes(256))) == "fsdp=256"


@pytest.mark.parametrize(
    "shape, family, expected",
    [
        ("latents:32x32x4:1000", "diffusion", ((32, 32, 4), 1000, True)),
        ("28x28x1", "vae", ((28, 28, 1), 0, False)),
    ],
)
def test_images_that_are_not_here_are_described(shape, family, expected):
    spec = synthetic_spec(shape, build.parse_config(tiny.recipe(family)))
    assert (spec.shape, spec.num_classes, spec.continuous) == expected


def test_text_is_planned_from_the_config_alone():
    config = build.parse_config(load_recipe(os.path.join(CONFIGS, "lm", "llama_8b.py")))
    config, spec = plan.resolve_inputs(config)
    assert spec.seq_len == 8192 and config.model.vocab_size == 128_256
    unknown = plan.with_changes(config, {"model.vocab_size": 0})
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        plan.resolve_inputs(unknown)


def test_missing_data_asks_for_its_shape():
    recipe = load_recipe(os.path.join(CONFIGS, "diffusion", "dit_xl2.py"))
    with pytest.raises(UserError, match="--synthetic"):
        plan.resolve_inputs(build.parse_config(recipe))


def test_aigc_plan_prints_and_saves(target, tmp_path, capsys, monkeypatch):
    config, _ = config_of()
    monkeypatch.setattr(command.Target, "of", lambda name, slices: target)
    monkeypatch.setattr(command, "table", str)
    in_need(monkeypatch, lambda c: 90)
    path = tmp_path / "plan.json"
    assert command.run_plan(config.raw, "cpu:8", how="sweep", tries=1, json_file=str(path)) == 0
    assert json.loads(path.read_text())["plans"][0]["memory"]["fits"]
    assert "mesh" in capsys.readouterr().out
    in_need(monkeypatch, lambda c: 190)
    assert command.run_plan(config.raw, "cpu:8", how="sweep", tries=1) == command.DOES_NOT_FIT
    assert "does not fit, by" in capsys.readouterr().err
    for wrong in (dict(slices=0), dict(tries=0), dict(tokens=-1.0)):
        with pytest.raises(UserError, match="--slices"):
            command.run_plan(config.raw, "cpu:8", **wrong)


@pytest.mark.slow
def test_the_step_of_a_recipe_compiles_for_256_chips(tmp_path):
    """In a process of its own: JAX here has devices of another kind."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the compiler for TPUs is not installed: pip install 'aigc-jax[plan]'")
    import subprocess
    import sys

    path = tmp_path / "plan.json"
    argv = [sys.executable, "-m", "aigc_jax.main", "plan", "--topology=v5e-256",
               f"--config={CONFIGS}/lm/llama_1b.py", "--config.mesh=fsdp=256",
               "--config.model.vocab_size=128256", "--config.eval.batch_size=256",
               "--config.train.accumulate=2", f"--json={path}"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert found["topology"]["chips"] == 256 and found["parameters"] == 1_235_814_400
    assert found["memory"]["peak"] < 16 << 30
    # Each microbatch gathers the parameters in bfloat16 twice, and the vocabulary for each piece.
    moved = {c["kind"]: c["bytes"] for c in found["collectives"]}
    assert 8 * found["parameters"] < moved["all-gather"] < 30 * found["parameters"]
    assert 0.05 < found["mfu"] < 1
