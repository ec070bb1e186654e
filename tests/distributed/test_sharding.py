"""Where arrays lie: rules, golden specs, meshes of several slices, and what cannot be split."""

import os
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import sharded, tiny
from jax.sharding import PartitionSpec as P

from aigc_jax.core.errors import UserError
from aigc_jax.core.state import named_leaves
from aigc_jax.distributed import mesh as mesh_lib
from aigc_jax.distributed.logical_axes import (
    logical_to_mesh,
    unsharded,
    with_logical_constraint,
    with_mesh,
)
from aigc_jax.distributed.mesh import arrange_devices, check_batch, make_mesh, parse_mesh, put_batch
from aigc_jax.distributed.sharding import param_specs, per_device, with_shardings
from aigc_jax.experiment import build
from aigc_jax.training.compile import compile_step

GOLDEN = os.path.join(os.path.dirname(__file__), "sharding_specs.txt")
STRATEGIES = {
    "data": dict(data=8),
    "fsdp": dict(fsdp=8),
    "tensor": dict(tensor=4),
    "sequence": dict(sequence=4),
    "product": dict(data=2, fsdp=2, tensor=2),
}


def specs_text(model):
    """The specs of a model's parameters, one a line: name, shape, fsdp, tensor, product."""
    run = sharded.make(model, "data=1")
    boxed, _ = jax.eval_shape(run.objective.init, jax.random.key(0), run.spec.example_batch(2))
    shapes = run.state_shapes().params
    specs = {s: param_specs(boxed, sizes) for s, sizes in STRATEGIES.items()}
    lines = [f"[{model}]"]
    for name, leaf in named_leaves(shapes):
        # What is not in the table of a strategy is whole on every device.
        assert specs["data"][name] == specs["sequence"][name] == P()
        columns = ["×".join(map(str, leaf.shape)) or "scalar"]
        for strategy in ("fsdp", "tensor", "product"):
            spec = ",".join("+".join([a] if isinstance(a, str) else a or "-")
                            for a in specs[strategy][name])  # fmt: skip
            columns.append(spec or "whole")
        lines.append(f"{name:<48} {columns[0]:<12} {' | '.join(columns[1:])}")
    return "\n".join(lines)


@pytest.mark.parametrize("model", sharded.MODELS)
def test_golden_specs(model):
    """Run this file as a script to write the golden file again."""
    with open(GOLDEN, encoding="utf-8") as f:
        golden = dict(part.split("]", 1) for part in f.read().strip().split("[")[1:])
    assert specs_text(model).split("]", 1)[1].strip() == golden[model].strip()


def test_an_axis_of_the_mesh_splits_one_axis_of_an_array():
    mesh = dict(fsdp=2, tensor=2)
    assert logical_to_mesh(("embed", "embed"), (4, 4), mesh, "w") == P("fsdp")
    assert logical_to_mesh(("inputs", "stem"), (3, 4), mesh, "w") == P(None, ("fsdp", "tensor"))


@pytest.mark.parametrize(
    "mesh, changes, parts",
    [
        ("tensor=2", {}, ("model/token_embedding/embedding", "257×16", "model.vocab_size=258")),
        ("fsdp=8", dict(model=dict(width=12)), ("key/kernel", "'embed' of 12", "model.width")),
        (
            "tensor=8",
            dict(model=dict(vocab_size=264, width=12)),
            ("key/kernel of 2×12×12", "model.kv_heads"),
        ),
        ("fsdp=2", dict(train=dict(parallel_mode="pmap")), ("train.parallel_mode=pmap", "data=…")),
        ("sequence=2", dict(model=dict(name="lstm", heads=None)), ("sequence=2", "'lstm'")),
        ("sequence=3", {}, ("sequence=3", "data.seq_len")),
        ("fsdp=4,data=-1,tensor=-1", {}, ("only one axis",)),
        ("fsdp=4,fsdp=2", {}, ("twice",)),
        ("data=4,fsdp=4", {}, ("16", "8")),
        ("fsdp=3", {}, ("data.batch_size=8", "divisible by 3")),
    ],
)
def test_indivisible_axes_are_rejected_before_compiling(mesh, changes, parts):
    with pytest.raises(UserError) as e:
        tiny.make("lm", mesh=mesh, **changes)
    assert all(part in str(e.value) for part in parts), e.value


@pytest.mark.parametrize("model", ["dcgan", "hierarchical_vae"])
def test_a_product_under_which_a_gradient_is_wrong_is_refused(model):
    with pytest.raises(UserError, match=r"mesh=fsdp=4,tensor=2"):
        sharded.make(model, "data=2,fsdp=2,tensor=2")
    sharded.make(model, "fsdp=4,tensor=2")


class Own(nn.Module):
    """A user's own network of Flax's own layers, with or without logical axes."""

    axes: tuple = ()

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        if self.axes:
            init = nn.with_logical_partitioning(init, self.axes)
        x = nn.LayerNorm()(x)
        return nn.Dense(8, kernel_init=init, name="new")(x)


def own(axes=()):
    made = jax.eval_shape(Own(axes).init, jax.random.key(0), jnp.ones((1, 4)))
    return {"model": made["params"]}


def test_a_network_of_ones_own_is_sharded_by_the_axes_that_it_names():
    """Vectors need none; a kernel without is refused, but where only the batch is split."""
    specs = param_specs(own(("embed", "mlp")), dict(fsdp=2, tensor=2))
    assert specs.pop("model/new/kernel") == P("fsdp", "tensor")
    assert len(specs) == 3 and set(specs.values()) == {P()}
    with pytest.raises(UserError, match=r"model/new/kernel of 4×8.*with_logical_partitioning"):
        param_specs(own(), dict(fsdp=2))
    with pytest.raises(UserError, match=r"model/new/kernel.*'embd'.*mean 'embed'"):
        param_specs(own(("embd", None)), dict(fsdp=2))
    with pytest.raises(UserError, match=r"model/new/kernel.*1 logical axes"):
        param_specs(own(("embed",)), dict(fsdp=2))
    assert set(param_specs(unsharded(nn.unbox(own())), dict(fsdp=2)).values()) == {P()}


def test_axes_come_in_one_order():
    assert list(parse_mesh("tensor=2,data=-1,fsdp=2", 8).items()) == [
        ("data", 2), ("fsdp", 2), ("tensor", 2),
    ]  # fmt: skip
    assert parse_mesh("fsdp=-1", 8) == {"fsdp": 8}


def device(number, slice_index, process):
    """One that is not there."""
    kind = dict(platform="gpu", device_kind="none", id=number)
    return types.SimpleNamespace(**kind, slice_index=slice_index, process_index=process)


def test_slices_lie_along_data():
    """Only data goes over the slow network; devices of a slice are mixed in the list."""
    devices = [device(i, i % 2, i % 4) for i in range(8)]
    placed = arrange_devices(dict(data=2, fsdp=2, tensor=2), devices)
    slices = np.vectorize(lambda d: d.slice_index)(placed)
    assert (slices == np.array([0, 1])[:, None, None]).all()
    placed = arrange_devices(dict(data=4, tensor=2), devices)
    assert np.vectorize(lambda d: d.slice_index)(placed).tolist() == [[0] * 2] * 2 + [[1] * 2] * 2
    with pytest.raises(UserError, match=r"2 slices.*data"):
        arrange_devices(dict(fsdp=4, tensor=2), devices)
    assert arrange_devices(dict(fsdp=4), [d for d in devices if d.slice_index]).shape == (4,)


def test_batches_lie_on_data_and_fsdp():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    x = put_batch(mesh, {"x": np.arange(8.0)})["x"]
    assert x.sharding.spec == P(("data", "fsdp")) and x.sharding.shard_shape((8,)) == (2,)
    np.testing.assert_array_equal(x, np.arange(8.0))
    assert put_batch(make_mesh("tensor=4"), np.ones(3)).sharding.is_fully_replicated
    check_batch(8, mesh, 2, "b")
    with pytest.raises(UserError, match=r"b=12.*8"):
        check_batch(12, mesh, 2, "b")


def test_constraints_shard_computed_arrays():
    def f(x):
        return with_logical_constraint(x, "batch", "length", None) * 2

    x = jnp.ones((4, 4, 3))
    assert "sharding_constraint" not in str(jax.make_jaxpr(f)(x))
    mesh = make_mesh("data=2,sequence=2")
    here = with_mesh(mesh, f)
    y = jax.jit(here)(jax.device_put(x, mesh_lib.replicated(mesh)))
    assert y.sharding.shard_shape(x.shape) == (2, 2, 3)
    odd = jax.make_jaxpr(here)(jnp.ones((3, 3, 3)))
    assert "sharding_constraint" not in str(odd), "a few samples need not divide"
    devices = jax.devices()[:2]
    jax.pmap(f, axis_name="data", devices=devices)(jnp.ones((2, 4, 4, 3)))


def test_state_is_initialised_sharded():
    """Parameters, moments, both kinds of averages; only small arrays are whole on a device."""
    config = dict(ema=dict(halflife=20.0, sigma_rels=(0.1,)), optim=dict(name="adamw"))
    run = tiny.make("vae", mesh="fsdp=4,tensor=2", **sharded.MODELS["conv"][1], **config)
    shapes = run.state_shapes()
    expected = with_shardings(shapes, run.shardings)
    name = "model/decoder/spread/kernel"
    params = dict(named_leaves(expected.params))
    assert params[name].sharding.spec == P("fsdp", "tensor")
    for tree in (expected.opt_state, expected.ema, expected.power_ema):
        like = [x for k, x in named_leaves(tree) if k.endswith(name.removeprefix("model/"))]
        assert like and all(x.sharding.spec == P("fsdp", "tensor") for x in like)
    large = [
        (n, x) for n, x in named_leaves(per_device(shapes, run.shardings)) if x.size > 8 * 16 * 9
    ]
    assert not large, large
    state = run.fresh_state()
    for (key, x), (_, s) in zip(named_leaves(state), named_leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(s.sharding, x.ndim), key
    alone = sharded.make("conv", "data=1").fresh_state()
    # Random numbers do not depend on the mesh.
    chex.assert_trees_all_close(
        jax.device_get(state.params), jax.device_get(alone.params), rtol=1e-6
    )


@pytest.mark.parametrize("stage, model", [("kl", "dit"), ("vqgan", "transformer")])
def test_a_frozen_first_stage_is_split_too(stage, model):
    """Its parameters as those of any model; its codebook is whole, and so is its normalisation."""
    family, changes = sharded.MODELS[stage]
    first_stage = dict(config=build.parse_config(tiny.recipe(family, **changes)).raw)
    family, changes = sharded.MODELS[model]
    changes = {**changes, "data": dict(source="digits", seq_len=None), "first_stage": first_stage}
    if stage == "vqgan":
        changes["model"] = dict(vocab_size=528, heads=4)  # codes, classes, …
    config = build.parse_config(tiny.recipe(family, mesh="fsdp=2,tensor=2", **changes))
    run = build.build(config, tiny.IMAGES)
    specs = {
        k: x.sharding.spec
        for k, x in named_leaves(with_shardings(run.state_shapes(), run.shardings).params)
    }
    kernels = {k: s for k, s in specs.items() if k.startswith("first_stage/") and "kernel" in k}
    assert sum(s != P() for s in kernels.values()) > len(kernels) / 2
    rest = {s for k, s in specs.items() if k.startswith("first_stage/") and "/params/" not in k}
    assert rest == {P()}
    assert specs["model/layers/attention/out/kernel"] == P(None, "tensor", "fsdp")


def test_the_step_is_lowered_without_a_state():
    run = sharded.make("conv", "data=2,fsdp=2,tensor=2")
    before = sum(x.nbytes for x in jax.live_arrays())
    batch = jax.eval_shape(lambda: tiny.batch("vae"))
    lowered = run.step.lower(run.state_shapes(), batch)
    assert sum(x.nbytes for x in jax.live_arrays()) <= before
    assert "8" in lowered.as_text() and "sharding" in lowered.as_text()


def test_pmap_is_for_data_alone():
    with pytest.raises(UserError, match="parallel_mode=pmap shards only"):
        compile_step(lambda *a: a, make_mesh("data=2,tensor=2"), "pmap")


def test_a_run_needs_devices_of_every_process(monkeypatch):
    monkeypatch.setattr(mesh_lib.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="leaves processes without"):
        make_mesh("data=1")


if __name__ == "__main__":
    with open(GOLDEN, "w", encoding="utf-8") as f:
        f.write("\n\n".join(map(specs_text, sharded.MODELS)) + "\n")
