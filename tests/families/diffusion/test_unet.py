"""The convolutional networks by config: the U-Net and the KL autoencoder."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.core.conditions import null
from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.unet import UNet, UNetConfig
from aigc_jax.families.vae import kl_autoencoder
from aigc_jax.families.vae.kl_autoencoder import KLConfig
from aigc_jax.nn.conditioner import PictureEmbedder, SequenceEmbedder
from aigc_jax.nn.layers import time_embedding
from aigc_jax.ops.convolution import depth_to_space, space_to_depth

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 4, 4, 3))
TIME, LABEL = jnp.array([3.0, 700.0]), jnp.array([1, 3])
GIVEN = tiny.given(LABEL)
MORE = tiny.given(LABEL, delta_t=TIME, augmentation=jnp.ones((2, 5)))
SMALL = dict(channels=(6, 12), blocks=1, heads=2, embedding=8)
DDPM = SMALL | dict(
    head_size=3, middle_blocks=2, middle_attention="always", resample="conv", condition="shift",
    residual_scale=1.0, norm_groups=3, frequencies=6, null_class=False,
)  # fmt: skip
FORMS = {
    "plain": SMALL,
    "ddpm": DDPM,
    "blocks": DDPM | dict(resample="block", middle_groups=-1, condition="scale_shift"),
    "bare": SMALL | dict(attention_levels=(), middle_blocks=0, learned_sigma=True, sin_first=True,
        frequency_shift=1.0, center_input=True, frequencies=7),
    "patches": SMALL | dict(patch_size=2, attention_levels=()),
}  # fmt: skip


def shapes(config, *args):
    return nn.unbox(jax.eval_shape(UNet(UNetConfig(**config), 3).init, KEY, *args))["params"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shapes_and_types(form, dtype):
    model = UNet(UNetConfig(**FORMS[form]), 3, dtype)
    args = (X, TIME, MORE, jax.random.split(KEY, 2))
    variables = jax.eval_shape(model.init, KEY, *args)
    chex.assert_type(jax.tree.leaves(variables), jnp.float32)
    out = jax.eval_shape(model.apply, variables, *args)
    assert (out.shape, out.dtype) == (X.shape, jnp.float32)


def test_a_fresh_network_gives_zeros_and_what_it_is_told_matters():
    model = UNet(UNetConfig(**DDPM), 3)
    params = jax.jit(lambda: nn.unbox(model.init(KEY, X, TIME, MORE))["params"])()
    apply = jax.jit(lambda params, *args: model.apply({"params": params}, *args))
    base = tiny.given(LABEL, delta_t=TIME, augmentation=jnp.zeros((2, 5)))
    assert not apply(params, X, TIME, base).any()
    params = tiny.perturbed(params)
    plain = apply(params, X, TIME, base)
    assert np.abs(apply(params, X, TIME + 9, base) - plain).max() > 1e-3
    for changed in (
        tiny.given(LABEL - 1), tiny.given(delta_t=TIME + 9),
        tiny.given(augmentation=jnp.ones((2, 5))),
    ):  # fmt: skip
        assert np.abs(apply(params, X, TIME, base | changed) - plain).max() > 1e-3
    # Without a vector of its own, "no class" (here the second label) adds nothing.
    assert jnp.isfinite(plain).all()
    free = apply(params, X, TIME, {name: base[name] for name in ("delta_t", "augmentation")})
    chex.assert_trees_all_close(free[1], plain[1], atol=1e-5)
    absent = apply(params, X, TIME, base | null(tiny.given(LABEL)))
    chex.assert_trees_all_close(absent, free, atol=1e-5)


def test_conditions_have_parameters_only_if_they_are_given():
    plain, more = shapes(SMALL, X, TIME, GIVEN), shapes(SMALL, X, TIME, MORE)
    assert set(more) - set(plain) == {"delta_t_in", "delta_t_out", "augment"}
    assert set(more["augment"]) == {"kernel"}


@pytest.mark.parametrize("size", [(6,), (5, 6), (3, 4, 5)])
def test_any_number_of_spatial_axes(size):
    """Sizes that must be filled up, a picture beside the example, patches and convolutions."""
    x = jax.random.normal(KEY, (2, *size, 2))
    for config in (SMALL | dict(resample="conv"), DDPM | dict(patch_size=2, channels=(6,),
                   attention_levels=()), SMALL | dict(resample="block")):  # fmt: skip
        model = UNet(UNetConfig(**config), 3, embedders={"sketch": PictureEmbedder()})
        conditions = tiny.given(LABEL, sketch=jnp.ones((2, *size, 1)))
        variables = jax.eval_shape(model.init, KEY, x, TIME, conditions)
        out = jax.eval_shape(model.apply, variables, x, TIME, conditions)
        assert out.shape == x.shape
        conv_in = nn.unbox(variables)["params"]["conv_in"]["kernel"]
        patch = config.get("patch_size", 1) ** len(size)
        assert conv_in.shape == (*(3,) * len(size), 3 * patch, config["channels"][0])


def test_conditions_that_do_not_fit_are_named():
    model = UNet(UNetConfig(**SMALL), 0, embedders={"sketch": PictureEmbedder(),
                                                    "words": SequenceEmbedder(8)})  # fmt: skip
    for conditions, words in (
        (tiny.given(sketch=jnp.ones((2, 8, 8, 1))), "8×8 .*4×4"),
        (tiny.given(words=jnp.ones((2, 3, 5))), "cross-attention"),
    ):
        with pytest.raises(UserError, match=words):
            jax.eval_shape(model.init, KEY, X, TIME, conditions)


@pytest.mark.slow
def test_tangents_pass_through():
    """As MeanFlow needs them, agreeing with a difference quotient."""
    config = dict(channels=(4,), blocks=1, attention_levels=(0,), heads=1, embedding=4)
    model = UNet(UNetConfig(**config, remat="full"), 3)
    given = lambda delta_t: tiny.given(LABEL, delta_t=delta_t)  # noqa: E731
    params = jax.jit(lambda: nn.unbox(model.init(KEY, X, TIME, given(TIME)))["params"])()
    params = tiny.perturbed(params)

    @jax.jit
    def along(h):
        return model.apply({"params": params}, X, TIME + h, given(TIME / 2 + h))

    slope = jax.jit(lambda: jax.jvp(along, (0.0,), (1.0,))[1])()
    quotient = (along(0.05) - along(-0.05)) / 0.1
    chex.assert_trees_all_close(slope, quotient, atol=2e-2 * float(np.abs(slope).max()))


def test_the_published_size_of_ddpm():
    """Ho et al. 2020: 35.7 million parameters for CIFAR-10."""
    config = UNetConfig(
        channels=(128, 256, 256, 256), attention_levels=(1,), head_size=256, embedding=512,
        middle_blocks=2, middle_attention="always", resample="conv", condition="shift",
        residual_scale=1.0, norm_groups=32, frequencies=128,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(UNet(config, 0).init, KEY, x, jax.ShapeDtypeStruct((1,), jnp.float32))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(
        35.7, abs=0.05
    )


def test_time_embedding_by_its_formula():
    for size in (6, 7):
        for shift in (0.0, 1.0):
            angle = 5.0 * 10_000.0 ** (-np.arange(3) / (3 - shift))
            waves = [np.sin(angle), np.cos(angle)]
            for sin_first in (True, False):
                wanted = np.concatenate([*waves[:: 1 if sin_first else -1], np.zeros(size % 2)])
                made = time_embedding(jnp.array([5.0]), size, shift=shift, sin_first=sin_first)
                np.testing.assert_allclose(made[0], wanted, atol=1e-6)


@pytest.mark.parametrize("changes, words", [
    (dict(channels=(6, 10), norm_groups=3), r"channels\[1\]=10.*norm_groups"),
    (dict(head_size=5), r"channels\[1\]=12.*head_size"),
    (dict(attention_levels=(2,)), "attention_levels"),
    (dict(attention_levels=(), middle_attention="always", heads=5), "heads"),
])  # fmt: skip
def test_sizes_that_cannot_be_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        UNetConfig(**SMALL | changes)


def test_patches_are_places_of_the_finest_level():
    config = SMALL | dict(channels=(6,), attention_levels=(), middle_blocks=0, patch_size=2)
    model = UNet(UNetConfig(**config), 0)
    params = nn.unbox(jax.eval_shape(model.init, KEY, X, TIME))["params"]
    assert params["conv_in"]["kernel"].shape == (3, 3, 3 * 4, 6)
    assert params["conv_out"]["kernel"].shape == (3, 3, 6, 3 * 4)
    with pytest.raises(UserError, match="patch_size=5"):
        UNet(UNetConfig(**config | dict(patch_size=5)), 0).init(KEY, X, TIME)


def test_space_to_depth_is_undone_by_depth_to_space():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    deep = space_to_depth(x)
    chex.assert_shape(deep, (2, 2, 3, 12))
    np.testing.assert_array_equal(deep[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    chex.assert_trees_all_equal(depth_to_space(deep), x)


@pytest.mark.parametrize("changes", [
    {}, dict(norm_groups=3, middle_attention=False, quant_conv=False, post_quant_conv=False),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_kl_autoencoder(changes, dtype):
    config = KLConfig(**dict(channels=(6, 12, 12), latent=2) | changes)
    image = jnp.ones((2, 8, 12, 3))
    encoder = kl_autoencoder.Encoder(config, 0, dtype)
    mean, log_var = jax.eval_shape(lambda: encoder.init_with_output(KEY, image)[0])
    assert mean.shape == log_var.shape == (2, 2, 3, 2)
    decoder = kl_autoencoder.Decoder(config, (8, 12, 3), 0, dtype)
    out, variables = jax.eval_shape(lambda: decoder.init_with_output(KEY, jnp.ones(mean.shape)))
    assert out.shape == (2, 8, 12, 3)
    chex.assert_type([mean, log_var, out, *jax.tree.leaves(variables)], jnp.float32)


def test_kl_autoencoder_of_stable_diffusion_has_its_size():
    """Rombach et al. 2022: 83.7 million parameters."""
    config = KLConfig((128, 256, 512, 512), blocks=2, latent=4, norm_groups=32)
    encoder, shape = kl_autoencoder.Encoder(config, 0), (64, 64, 3)
    decoder = kl_autoencoder.Decoder(config, shape, 0)
    made = [
        jax.eval_shape(encoder.init, KEY, jax.ShapeDtypeStruct((1, *shape), jnp.float32)),
        jax.eval_shape(decoder.init, KEY, jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)),
    ]
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))
    assert size / 1e6 == pytest.approx(83.65, abs=0.01)
