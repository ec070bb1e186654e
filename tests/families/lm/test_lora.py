"""Low-rank adapters: nothing at first, one model when merged, and all that training moves."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny
from helpers.hostile import refusal

from aigc_jax.core.config import Ema
from aigc_jax.families.lm import lora
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer
from aigc_jax.nn.layers import Linear, Lora
from aigc_jax.nn.transformer_config import PROJECTIONS
from aigc_jax.training.init import init_state
from aigc_jax.training.optimizers import decay_mask
from aigc_jax.training.step import make_step

V, T, RANK, ALPHA = 11, 6, 2, 6.0
SIZE = dict(layers=2, width=8, heads=2, kv_heads=1, mlp_width=12, gated=True, qkv_bias=True)
TUNED = dict(lora_rank=RANK, lora_alpha=ALPHA, lora_targets=PROJECTIONS)
TOKENS = jnp.arange(2 * T).reshape(2, T) % V
PLACES = {
    **{name: f"attention/{name}" for name in ("query", "key", "value", "out")},
    **{"gate": "mlp/gate", "in": "mlp/in", "down": "mlp/out"},
}


def network(**changes):
    return Transformer(TransformerConfig(**SIZE | changes), V, T)


@functools.cache
def logits_of(tuned):
    """Compiled once with and once without adapters."""
    model = network(**TUNED if tuned else {})
    return jax.jit(lambda variables: model.apply(variables, TOKENS)[0])


def shapes(**changes):
    return nn.unbox(jax.eval_shape(network(**changes).init, jax.random.key(0), TOKENS))


@functools.cache
def variables():
    """Random ones of a model with every adapter."""
    return tiny.perturbed(
        jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes(**TUNED)), scale=0.5
    )


# The model -----------------------------------------------------------------------------------


def test_zero_adapters_change_no_bit():
    fresh = variables() | {"lora": jax.tree.map(np.array, variables()["lora"])}
    for path, leaf in flatten_dict(fresh["lora"], sep="/").items():
        leaf *= not path.endswith("lora_b")
    plain = logits_of(False)({"params": fresh["params"]})
    chex.assert_trees_all_equal(logits_of(True)(fresh), plain)
    assert not np.allclose(logits_of(True)(variables()), plain, atol=0.1)


def test_adapters_start_at_zero_and_differ_per_layer():
    model = network(**TUNED, remat="full")
    key = jax.random.key(0, impl="rbg")  # which compiles in less time
    made = flatten_dict(nn.unbox(jax.jit(model.init)(key, TOKENS)["lora"]), sep="/")
    for path, leaf in made.items():
        assert path.endswith("lora_a") == bool(leaf.any())
        assert path.endswith("lora_b") or (leaf[0] != leaf[1]).all()
    made = nn.unbox(Linear(5, lora=Lora(RANK, ALPHA)).init(key, jnp.ones((1, 400))))["lora"]
    # Uniform within ±1/√inputs: a deviation of that over √3; 800 draws.
    np.testing.assert_allclose(made["lora_a"].std(), 400**-0.5 / 3**0.5, rtol=0.1)


def test_merged_adapters_are_the_same_model():
    players = lora.split_variables(variables())
    plain = lora.merge_adapters(players, ALPHA / RANK)
    assert set(plain) == {"model"}
    applied, merged = logits_of(True)(variables()), logits_of(False)({"params": plain["model"]})
    chex.assert_trees_all_close(applied, merged, rtol=1e-5, atol=1e-5)
    untouched = {"model": {"a": np.ones(2)}}
    assert lora.merge_adapters(untouched, 3.0) is untouched


@pytest.mark.parametrize("targets", [("query", "value"), ("down",), PROJECTIONS], ids=str)
def test_only_the_kernels_that_are_named_get_adapters(targets):
    found = shapes(**TUNED | dict(lora_targets=targets))
    kernels = flatten_dict(found["params"], sep="/")
    expected = {}
    for target in targets:
        layers, inputs, outputs = kernels[f"layers/{PLACES[target]}/kernel"].shape
        expected[f"layers/{PLACES[target]}/lora_a"] = (layers, inputs, RANK)
        expected[f"layers/{PLACES[target]}/lora_b"] = (layers, RANK, outputs)
    assert {k: v.shape for k, v in flatten_dict(found["lora"], sep="/").items()} == expected
    # The model's own parameters are those without adapters.
    assert {k: v.shape for k, v in kernels.items()} == {
        k: v.shape for k, v in flatten_dict(shapes()["params"], sep="/").items()
    }


def test_a_linear_layer_with_an_adapter_by_hand():
    layer, rng = Linear(3, lora=Lora(RANK, ALPHA, dropout=0.5)), np.random.default_rng(0)
    x, kernel, a, b = (
        rng.normal(size=s).astype(np.float32) for s in ((2, 50, 4), (4, 3), (4, 2), (2, 3))
    )
    own = {"params": {"kernel": kernel}, "lora": {"lora_a": a, "lora_b": b}}
    expected = x @ kernel + x @ a @ b * (ALPHA / RANK)
    np.testing.assert_allclose(layer.apply(own, x), expected, rtol=1e-4, atol=1e-5)
    # Dropout is of what the adapter reads only, and belongs to the example.
    keys = jax.random.split(jax.random.key(0), 2)
    dropped = layer.apply(own, x, keys)
    change, whole = np.asarray(dropped) - x @ kernel, x @ a @ b * (ALPHA / RANK)
    assert not np.allclose(change[0], whole[0], atol=0.1)
    assert not np.allclose(change[0] / whole[0], change[1] / whole[1], atol=0.1)
    np.testing.assert_array_equal(layer.apply(own, x[::-1], keys[::-1]), dropped[::-1])
    own["lora"]["lora_b"] = 0 * b
    np.testing.assert_array_equal(layer.apply(own, x, keys), layer.apply(own, x))


def test_split_and_join_are_inverses():
    head = variables() | {"params": variables()["params"] | {"task_head": {"bias": np.ones(2)}}}
    players = lora.split_variables(head)
    assert set(players) == {"model", "base"}
    assert set(players["model"]) == {"lora", "task_head"} and "task_head" not in players["base"]
    chex.assert_trees_all_equal(lora.join_variables(players), head)
    plain = {"params": head["params"]}
    assert lora.split_variables(plain) == {"model": head["params"]}
    assert lora.join_variables({"model": head["params"]}) == plain


def test_a_model_without_adapters_is_refused_them():
    message = refusal(tiny.recipe, "lm", model=dict(name="lstm", heads=None, lora_rank=2))
    assert "model.lora_rank" in message


# Training ------------------------------------------------------------------------------------

SPEC = TextSpec(ByteTokenizer(), T, "labels", ("no", "yes"))


def run_of():
    recipe = tiny.recipe(
        "lm",
        data=dict(source="jsonl:d.jsonl", format="labels", seq_len=T),
        model=dict(layers=1, width=8, lora_rank=RANK),
        objective=dict(name="classification", lm_weight=0.5),
        sample=dict(max_new_tokens=None),
    )
    return tiny.build.build(tiny.build.parse_config(recipe), SPEC)


def test_training_moves_the_adapters_and_the_new_head_only():
    run, rng = run_of(), np.random.default_rng(0)
    shapes = run.state_shapes()
    params = tiny.perturbed(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes.params))
    assert set(params) == {"model", "base"} and set(params["model"]) == {"lora", "task_head"}
    # Of the recipe's optimizer there is a state for what moves only, and so of its average.
    assert set(shapes.opt_state) == set(shapes.ema) == {"model"}
    sizes = {x.shape for x in jax.tree.leaves(shapes.opt_state) if x.ndim}
    assert sizes == {x.shape for x in jax.tree.leaves(params["model"])}

    run.objective.init = lambda *_: (params, {})
    sgd, batch = {"model": optax.sgd(1.0)}, SPEC.example_batch(4)
    batch["tokens"] = rng.integers(0, 256, batch["tokens"].shape).astype(np.int32)
    before = init_state(run.objective, sgd, batch, jnp.int32(0), ema=True)
    step = jax.jit(make_step(run.objective, sgd, Ema(halflife=8.0, rampup=0.0)))
    after, metrics = jax.device_get(step(before, batch))
    assert int(after.skipped) == 0 and float(metrics["grad_norm"].value()) > 0
    chex.assert_trees_all_equal(after.params["base"], params["base"])
    old = flatten_dict(params["model"], sep="/")
    for path, leaf in flatten_dict(after.params["model"], sep="/").items():
        assert (leaf != old[path]).any(), path
    assert set(after.ema) == {"model"}
    share = 0.5**0.5  # a batch is half a half-life
    averages = jax.tree.map(
        lambda a, b: share * a + (1 - share) * b, params["model"], after.params["model"]
    )
    chex.assert_trees_all_close(after.ema["model"], averages, rtol=1e-4, atol=1e-6)
    # What is evaluated are the averages beside the frozen model.
    assert after.sampling_params["model"] is after.ema["model"]
    assert after.sampling_params["base"] is after.params["base"]


def test_the_new_head_and_the_factors_of_adapters_decay():
    shapes = run_of().state_shapes().params["model"]
    decays = flatten_dict(decay_mask(shapes), sep="/")
    factors = [f"lora/layers/{PLACES[t]}/lora_{x}" for t in ("query", "value") for x in "ab"]
    assert decays == dict.fromkeys([*factors, "task_head/kernel"], True) | {"task_head/bias": False}
