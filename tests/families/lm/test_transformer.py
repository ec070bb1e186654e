"""Every choice of the transformer against a plain one, packed rows, and what may see what."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import plain_transformer, tiny
from helpers.hostile import refusal

from aigc_jax.families.lm import presets
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.interop.transformers.read_folder import transformer_shapes
from aigc_jax.modalities.text.spec import TextSpec
from aigc_jax.modalities.text.tokenizers import ByteTokenizer
from aigc_jax.nn.layers import Norm
from aigc_jax.nn.transformer_blocks import linear

V, T = 11, 8
SIZE = dict(layers=2, width=8, heads=2, scan_unroll=1)
MODELS = {
    "plain": dict(scan_unroll=2),
    "gpt2": dict(
        positions="learned", norm="layernorm", qkv_bias=True, out_bias=True, mlp_bias=True,
        tie_embeddings=False, head_bias=True, init_std=0.5, zero_init=False),
    "nanogpt": dict(
        positions="learned", norm="layernorm", norm_bias=False, activation="gelu_exact",
        embedding_norm=True, norm_eps=0.1),
    "llama": dict(
        heads=4, kv_heads=2, head_dim=6, gated=True, activation="silu", mlp_width=5,
        rope_theta=50.0, rope_scaling="llama3", rope_factor=4.0, rope_original_context=20,
        rope_low_freq_factor=0.5, rope_high_freq_factor=3.0),
    "gemma": dict(
        gated=True, norm_position="both", norm_offset=True, embedding_scale=3.0, head_dim=6,
        attention_softcap=0.7, logit_softcap=2.0, attention_scale=0.9, sliding_window=3,
        full_attention_every=2, qk_norm=True),
    "windowed": dict(
        activation="relu2", sliding_window=3, residual_scale=0.4, rope_scaling="linear",
        rope_factor=3.0),
    "bert": dict(
        causal=False, positions="learned", norm="layernorm", norm_position="post",
        embedding_norm=True, token_types=2, activation="gelu_exact", head_transform=True,
        head_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True),
    "yarn": dict(
        causal=False, sliding_window=2, activation="relu", head_dim=12, rope_scaling="yarn",
        rope_factor=4.0, rope_original_context=40, rope_theta=100.0, rope_beta_fast=4.0,
        rope_beta_slow=0.5),
    "convolutions": dict(
        positions="none", conv_width=3, remat="dots", norm_scale=False, qk_norm=True,
        logit_scale=0.3, tie_embeddings=False, head_bias=True, logit_softcap=9.0),
}  # fmt: skip
# One document; two packed with padding behind them; each of these alone.
TOKENS = np.array([[1, 2, 3, 4, 5, 6, 7, 8], [3, 9, 10, 1, 1, 2, 4, 0],
                   [3, 9, 10, 0, 0, 0, 0, 0], [1, 1, 2, 4, 0, 0, 0, 0]])  # fmt: skip
SEGMENTS = np.array([[1] * 8, [1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0],
                     [1, 1, 1, 1, 0, 0, 0, 0]])  # fmt: skip


def config_of(name, **changes):
    return TransformerConfig(**SIZE | MODELS[name] | changes, vocab_size=V, context=T)


@functools.cache
def model(name):
    """The config, parameters of about the size of trained ones, and logits, compiled once."""
    config, rng = config_of(name), np.random.default_rng(1)
    leaves = {
        path: rng.normal(0, 0.6, shape).astype(np.float32) + (path.endswith("/scale"))
        for path, shape in transformer_shapes(config).items()
    }
    network = Transformer(config, V, T)

    @jax.jit
    def apply(params, tokens, segments):
        return network.apply({"params": params}, tokens, segments_BT=segments)[0]

    params = unflatten_dict(leaves, sep="/")
    return config, params, functools.partial(apply, params)


@pytest.mark.parametrize("name", MODELS)
def test_each_document_gets_the_plain_model_s_logits(name):
    """Alone, packed beside another, and with padding behind it."""
    config, params, apply = model(name)
    logits = np.asarray(apply(TOKENS, SEGMENTS))
    assert logits.shape == (4, T, V) and np.isfinite(logits).all()
    for row, segment in ((0, 1), (1, 1), (1, 2), (2, 1), (3, 1)):
        own = SEGMENTS[row] == segment
        expected = plain_transformer.logits(config, params, TOKENS[row][own])
        np.testing.assert_allclose(logits[row][own], expected, rtol=2e-4, atol=2e-4)
    # The plain model in other words: packing and padding do not matter.
    chex.assert_trees_all_close(logits[1, :3], logits[2, :3], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(logits[1, 3:7], logits[3, :4], rtol=1e-4, atol=1e-5)
    if name == "gemma":
        assert 1.5 < abs(logits).max() <= config.logit_softcap


def moved(name, row, at):
    """Which positions' logits change, bit for bit, with the token at one."""
    _, _, apply = model(name)
    changed = TOKENS.copy()
    changed[row, at] = (changed[row, at] + 3) % V
    before, after = apply(TOKENS, SEGMENTS), apply(changed, SEGMENTS)
    rest = np.delete(np.arange(4), row)
    chex.assert_trees_all_equal(before[rest], after[rest])
    return np.asarray((before[row] != after[row]).any(-1)).astype(int).tolist()


def test_what_a_token_changes():
    assert moved("plain", 0, 5) == [0, 0, 0, 0, 0, 1, 1, 1]
    assert moved("bert", 0, 5) == [1] * 8
    assert moved("gemma", 0, 0) == [1] * 8  # its second layer sees all
    # Two layers of three positions reach four back; two positions on either side reach two.
    assert moved("windowed", 0, 2) == [0, 0, 1, 1, 1, 1, 1, 0]
    assert moved("yarn", 0, 4) == [0, 0, 1, 1, 1, 1, 1, 0]
    # Another document, and padding, change nothing.
    for name in ("plain", "bert", "convolutions"):
        assert moved(name, 1, 0)[3:7] == [0] * 4
        assert moved(name, 1, 7)[:7] == [0] * 7
    assert moved("bert", 1, 6)[:3] == [0] * 3


def test_the_windows_of_the_layers():
    windows = TransformerConfig(layers=6, sliding_window=4, full_attention_every=3).windows()
    assert windows == [4, 4, 0, 4, 4, 0]
    assert TransformerConfig(layers=2, sliding_window=4).windows() == [4, 4]
    assert TransformerConfig(layers=2, full_attention_every=1).windows() == [0, 0]


def test_dropout_belongs_to_the_example():
    """And to training: without keys there is none."""
    _, params, apply = model("bert")
    network = Transformer(config_of("bert", dropout=0.3), V, T)
    rows, keys = [0, 0, 1], jax.random.split(jax.random.key(0), 3)

    @jax.jit
    def dropped(tokens, segments, keys):
        return network.apply({"params": params}, tokens, segments_BT=segments, key_B=keys)[0]

    first = np.asarray(dropped(TOKENS[rows], SEGMENTS[rows], keys))
    again = dropped(TOKENS[rows[::-1]], SEGMENTS[rows[::-1]], keys[::-1])
    np.testing.assert_array_equal(first[::-1], again)
    assert np.isfinite(first).all() and not np.allclose(first[0], first[1], atol=0.1)
    assert not np.allclose(first[0], apply(TOKENS, SEGMENTS)[0], atol=0.1)


# Parameters ----------------------------------------------------------------------------------

ATTENTION, MLP = "layers/attention", "layers/mlp"
ADDED = [
    (dict(qkv_bias=True), {f"{ATTENTION}/{n}/bias": (2, 8) for n in ("query", "key", "value")}),
    (dict(out_bias=True), {f"{ATTENTION}/out/bias": (2, 8)}),
    (dict(mlp_bias=True), {f"{MLP}/in/bias": (2, 32), f"{MLP}/out/bias": (2, 8)}),
    (dict(gated=True), {f"{MLP}/gate/kernel": (2, 8, 32)}),
    (dict(qk_norm=True), {f"{ATTENTION}/{n}_norm/scale": (2, 4) for n in ("query", "key")}),
    (dict(norm_position="both"), {
        f"layers/{n}_out_norm/scale": (2, 8) for n in ("attention", "mlp")}),
    (dict(norm="layernorm"), {"final_norm/bias": (8,), **{
        f"layers/{n}_norm/bias": (2, 8) for n in ("attention", "mlp")}}),
    (dict(norm="layernorm", norm_bias=False), {}),
    (dict(embedding_norm=True), {"embedding_norm/scale": (8,)}),
    (dict(positions="learned"), {"position_embedding/embedding": (T, 8)}),
    (dict(token_types=2), {"type_embedding/embedding": (2, 8)}),
    (dict(tie_embeddings=False), {"head_embedding/kernel": (8, V)}),
    (dict(head_bias=True), {"head_bias/bias": (V,)}),
    (dict(head_transform=True), {
        "head_transform/kernel": (8, 8), "head_transform/bias": (8,), "head_norm/scale": (8,)}),
    (dict(conv_width=3), {f"layers/{n}_conv/taps": (2, 3, 8) for n in ("attention", "mlp")}),
]  # fmt: skip


def test_the_parameters_of_each_choice():
    plain = transformer_shapes(config_of("plain"))
    assert plain == {
        "token_embedding/embedding": (V, 8),
        **{f"layers/{n}_norm/scale": (2, 8) for n in ("attention", "mlp")},
        **{f"{ATTENTION}/{n}/kernel": (2, 8, 8) for n in ("query", "key", "value", "out")},
        f"{MLP}/in/kernel": (2, 8, 32),
        f"{MLP}/out/kernel": (2, 32, 8),
        "final_norm/scale": (8,),
    }
    for choice, added in ADDED:
        assert transformer_shapes(config_of("plain", **choice)) == plain | added, choice
    bare = transformer_shapes(config_of("plain", norm_scale=False, qk_norm=True))
    assert bare == {k: v for k, v in plain.items() if "norm" not in k}
    post = transformer_shapes(config_of("plain", norm_position="post"))
    assert plain.items() - post.items() == {("final_norm/scale", (8,))}
    sizes = dict(heads=4, kv_heads=2, head_dim=6, mlp_width=5)
    found = transformer_shapes(config_of("plain", **sizes))
    assert found[f"{ATTENTION}/query/kernel"] == (2, 8, 24)
    assert found[f"{ATTENTION}/value/kernel"] == (2, 8, 12)
    assert found[f"{ATTENTION}/out/kernel"] == (2, 24, 8)
    assert found[f"{MLP}/in/kernel"] == (2, 8, 5)


def test_fresh_weights_are_of_the_size_that_is_asked_for():
    def deviation(target, **changes):
        made = linear(TransformerConfig(**SIZE | changes), jnp.float32, target, 64, False)
        return float(np.std(made.kernel_init(jax.random.key(0), (64, 64))))

    near = functools.partial(pytest.approx, rel=0.1)  # 4,096 draws: eight standard errors
    assert deviation("query") == near(1 / 8)
    assert deviation("in", init_std=0.5) == near(0.5)
    for target in ("out", "down"):
        assert deviation(target) == deviation(target, init_std=0.5) == 0
        # GPT-2's rule for what is added to the residual path: less by √(2 · layers).
        assert deviation(target, zero_init=False) == near(1 / 8 / 2)
        assert deviation(target, zero_init=False, init_std=0.5) == near(0.5 / 2)
    # An output of its own weights begins by finding all tokens alike likely.
    assert deviation("vocabulary") == 0 and deviation("vocabulary", zero_init=False) == near(1 / 8)
    for offset in (False, True):
        variables = nn.unbox(Norm(offset=offset).init(jax.random.key(0), jnp.ones(8)))
        assert (variables["params"]["scale"] == 1 - offset).all()
    for changes, std in (
        ({}, 0.02),
        (dict(init_std=0.5), 0.5),
        (dict(init_std=0.5, embedding_std=0.1), 0.1),
    ):
        module = Transformer(TransformerConfig(**SIZE | changes), V, T).bind({})
        table = nn.unbox(module.token_embedding.embedding_init(jax.random.key(0), (64, 64)))
        assert float(np.std(table)) == near(std)


def test_zero_initialised_blocks_keep_the_tied_embedding():
    _, params, apply = model("plain")
    leaves = flatten_dict(params, sep="/")
    leaves |= {k: 0 * v for k, v in leaves.items() if k.endswith("out/kernel")}
    table = leaves["token_embedding/embedding"]
    x = table[TOKENS[0]]
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * leaves["final_norm/scale"]
    logits = apply.func(unflatten_dict(leaves, sep="/"), TOKENS, SEGMENTS)
    np.testing.assert_allclose(logits[0], x @ table.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "section, changes, count",
    [
        (presets.GPT2_124M, dict(vocab_size=50_257), 124_439_808),
        (presets.LLAMA_1B, dict(vocab_size=128_256, context=1), 1_235_814_400),
        (presets.SMOLLM2_135M, {}, 134_515_008),
    ],
    ids=("gpt2", "llama", "smollm2"),
)
def test_published_models_have_as_many_parameters_as_published(section, changes, count):
    fields = {k: v for k, v in (section | changes).items() if k != "name"}
    shapes = transformer_shapes(TransformerConfig(**fields))
    assert sum(math.prod(shape) for shape in shapes.values()) == count


# Gradients and refusals ----------------------------------------------------------------------


def test_gradients_do_not_depend_on_what_is_kept_or_unrolled():
    """`full` is compared in `test_models`."""
    _, params, _ = model("plain")

    def loss(params, **changes):
        network = Transformer(config_of("plain", **changes), V, T)
        return jnp.square(network.apply({"params": params}, TOKENS[:2])[0]).sum()

    first, other = (
        jax.jit(jax.grad(functools.partial(loss, **changes)))(params)
        for changes in (dict(scan_unroll=1), dict(remat="dots", scan_unroll=2))
    )
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(first))
    # Computed twice, but maybe fused differently.
    chex.assert_trees_all_close(first, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(width=9), "model.width=9"),
        (dict(width=6), "head size"),
        (dict(kv_heads=3, heads=4), "model.kv_heads=3"),
        (dict(rope_scaling="yarn"), "model.rope_original_context"),
        (dict(lora_targets=("query", "head")), "'head'"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, named):
    assert named in refusal(TransformerConfig, **SIZE | changes)


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(context=4), "data.seq_len=8 is longer than model.context=4"),
        (dict(vocab_size=100), "model.vocab_size=100 is less than the 257 tokens"),
        (dict(causal=False), "model.causal=True"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused(changes, named):
    spec = TextSpec(ByteTokenizer(), 8)
    made = tiny.build.parse_config(tiny.recipe("lm", model=changes))
    assert named in refusal(tiny.build.build, made, spec)


def test_a_larger_vocabulary_or_context_than_the_data_need_is_kept():
    network = tiny.make("lm", model=dict(vocab_size=300, context=20)).objective.network
    assert (network.vocab_size, network.context) == (300, 20)
    network = tiny.make("lm").objective.network
    assert (network.vocab_size, network.context) == (257, 8)
