"""The diffusion transformer: shapes, what a fresh one does, sizes of the published ones."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.dit import DiT, DiTConfig
from aigc_jax.families.diffusion.patch_positions import sincos_positions, split_evenly
from aigc_jax.families.lm import presets
from aigc_jax.nn.conditioner import PictureEmbedder
from aigc_jax.ops import dispatch
from aigc_jax.ops.convolution import depth_to_space

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 8, 4, 3))
TIME, LABEL = jnp.array([3.0, 700.0]), jnp.array([1, 2])
GIVEN = tiny.given(LABEL)
MORE = tiny.given(LABEL, delta_t=TIME, augmentation=jnp.ones((2, 5)))


def small(**changes):
    return DiTConfig(**dict(patch_size=2, width=16, depth=2, heads=2, frequencies=8) | changes)


SMALL = small()


@functools.cache
def made(config=SMALL, classes=3, more=False):
    """A network as a jitted function of parameters and inputs, and parameters without zeros."""
    model = DiT(config, classes)
    args = (X, TIME, MORE if more else GIVEN)
    init = jax.jit(lambda: nn.unbox(model.init(KEY, *args))["params"])
    return jax.jit(lambda params, *args: model.apply({"params": params}, *args)), init()


def random(config=SMALL, classes=3, more=False):
    apply, params = made(config, classes, more)
    return apply, tiny.perturbed(params)


def count(config, shape, classes):
    model, x = DiT(config, classes), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params = jax.eval_shape(model.init, KEY, x, jnp.ones(1), tiny.given(jnp.ones(1, int)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("changes", [
    {}, dict(positions="rotary", qk_norm=True), dict(embedders="per_block", learned_sigma=True),
    dict(patch_size=4, depth=1, mlp_ratio=0.5),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_types(changes, dtype):
    model = DiT(small(**changes), 3, dtype)
    args = (X, TIME, MORE, jax.random.split(KEY, 2))
    variables = jax.eval_shape(model.init, KEY, *args)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    out = jax.eval_shape(model.apply, variables, *args)
    assert (out.shape, out.dtype) == (X.shape, jnp.float32)


def test_a_fresh_block_does_nothing_and_a_fresh_network_gives_zeros():
    apply, params = made()
    assert not apply(params, X, TIME, GIVEN).any()
    # With an end that is not zero, what comes out is what the patches were: no block acts.
    open_end = params | {"final": jax.tree.map(jnp.ones_like, params["final"])}
    whole = apply(open_end, X, TIME, GIVEN)
    assert whole.any()
    attention = jax.tree.map(lambda leaf: 7 * leaf + 1, params["layers"]["attention"])
    scrambled = open_end | {"layers": params["layers"] | {"attention": attention}}
    chex.assert_trees_all_equal(whole, apply(scrambled, X, TIME, GIVEN))


def test_an_image_of_patches_is_put_together_as_it_was_cut():
    """The convolution's patches, in the order (row, column, colour), are what the end undoes."""
    model = DiT(small(depth=1, width=12, heads=1), 0)
    kernel = np.eye(12, dtype=np.float32).reshape(2, 2, 3, 12)

    def patches():
        params = nn.unbox(model.init(KEY, X, TIME))["params"]
        params |= {"patch": {"kernel": kernel, "bias": jnp.zeros(12)}}
        _, kept = model.apply(
            {"params": params}, X, TIME,
            capture_intermediates=lambda module, _: module.name == "patch",
        )  # fmt: skip
        return depth_to_space(kept["intermediates"]["patch"]["__call__"][0], 2)

    chex.assert_trees_all_equal(jax.jit(patches)(), X)


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_patches_have_positions(positions):
    apply, params = random(small(positions=positions))
    moved = jnp.roll(X, 2, 1)  # by a patch, after which only positions differ
    out, other = apply(params, X, TIME, GIVEN), apply(params, moved, TIME, GIVEN)
    assert np.abs(np.roll(out, 2, 1) - other).max() > 1e-3


def test_positions_differ_from_patch_to_patch():
    table = sincos_positions((3, 5), 16)
    assert table.shape == (15, 16)
    distance = np.abs(table[:, None] - table[None]).max(-1)
    assert distance[~np.eye(15, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("size", [(6,), (5, 4, 3)])
def test_any_number_of_spatial_axes(size, positions):
    """Sizes that must be filled up, and a picture beside the example."""
    x = jax.random.normal(KEY, (2, *size, 2))
    model = DiT(small(width=24, positions=positions), 3, embedders={"sketch": PictureEmbedder()})
    conditions = tiny.given(LABEL, sketch=jnp.ones((2, *size, 1)))
    variables = jax.eval_shape(model.init, KEY, x, TIME, conditions)
    assert jax.eval_shape(model.apply, variables, x, TIME, conditions).shape == x.shape
    patch = nn.unbox(variables)["params"]["patch"]["kernel"]
    assert patch.shape == (*(2,) * len(size), 3, 24)


def test_positions_of_other_numbers_of_axes():
    assert [split_evenly(16, n) for n in (1, 2, 3)] == [[16], [8, 8], [6, 6, 4]]
    table = sincos_positions((2, 3, 4), 17)
    assert table.shape == (24, 17) and not table[:, 16].any()
    distance = np.abs(table[:, None] - table[None]).max(-1)
    assert distance[~np.eye(24, dtype=bool)].min() > 1e-3
    with pytest.raises(UserError, match=r"3 spatial axes.*model\.heads"):
        split_evenly(4, 3)


@pytest.mark.parametrize("changes", [dict(remat="full"), dict(scan_unroll=1)])
def test_remat_and_the_form_of_the_loop_change_nothing(changes):
    apply, params = random()
    other, _ = made(small(**changes))
    wanted, out = apply(params, X, TIME, GIVEN), other(params, X, TIME, GIVEN)
    chex.assert_trees_all_close(out, wanted, atol=1e-5)


@pytest.mark.parametrize("embedders", ["shared", pytest.param("per_block", marks=pytest.mark.slow)])
def test_conditions_have_parameters_only_if_they_are_given(embedders):
    config = small(embedders=embedders)
    plain = made(config)[1]
    apply, params = random(config, more=True)
    assert set(params) - set(plain) == {"delta_t", "augment"}
    kept = {name: params[name] for name in plain}
    without = apply(kept, X, TIME, GIVEN)
    chex.assert_trees_all_equal(without, apply(params, X, TIME, GIVEN))
    nothing = apply(params, X, TIME, tiny.given(LABEL, augmentation=jnp.zeros((2, 5))))
    chex.assert_trees_all_close(without, nothing, atol=1e-5)
    for name in ("delta_t", "augmentation"):
        more = GIVEN | {name: MORE[name]}
        assert np.abs(apply(params, X, TIME, more) - without).max() > 1e-3


def test_tangents_pass_through():
    """As MeanFlow needs them, agreeing with a difference quotient."""
    apply, params = random(small(remat="full", qk_norm=True), more=True)

    def along(h):
        return apply(params, X, TIME + h, tiny.given(LABEL, delta_t=TIME / 2 + h))

    with dispatch.override(attention="reference"):
        out, slope = jax.jit(lambda: jax.jvp(along, (0.0,), (1.0,)))()
    quotient = (along(0.05) - along(-0.05)) / 0.1
    assert out.shape == X.shape
    chex.assert_trees_all_close(slope, quotient, atol=2e-2 * float(np.abs(slope).max()))


@pytest.mark.parametrize("section, millions", [
    (presets.DIT_S | dict(patch_size=2), 33), (presets.DIT_B_4, 130), (presets.DIT_XL_2, 675),
])  # fmt: skip
def test_published_sizes(section, millions):
    """Peebles & Xie 2023, table 1."""
    config = DiTConfig(**{k: v for k, v in section.items() if k != "name"})
    assert count(config, (32, 32, 4), 1000) / 1e6 == pytest.approx(millions, rel=0.01)


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(UserError, match=r"9×1 .*model\.patch_size=2"):
        jax.eval_shape(DiT(SMALL, 0).init, KEY, jnp.ones((1, 9, 1, 1)), jnp.ones(1))
    with pytest.raises(UserError, match=r"model\.heads"):
        small(width=18)
