"""Shapes and dtypes of every model, jitted and not."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from helpers import tiny

from aigc_jax.core.conditions import Condition
from aigc_jax.core.errors import UserError
from aigc_jax.families.diffusion.dit import DiT, DiTConfig
from aigc_jax.families.diffusion.unet import UNet, UNetConfig
from aigc_jax.families.gan.dcgan import Critic, DCGANConfig, Generator
from aigc_jax.families.lm.transformer import Transformer, TransformerConfig
from aigc_jax.families.vae import hierarchical_vae, kl_autoencoder
from aigc_jax.families.vae.conv_autoencoder import ConvConfig, ConvDecoder, ConvEncoder
from aigc_jax.families.vae.hierarchical_vae import HierarchicalVAEConfig
from aigc_jax.families.vae.kl_autoencoder import KLConfig
from aigc_jax.families.vae.mlp_autoencoder import MLPConfig, MLPDecoder, MLPEncoder
from aigc_jax.modalities.image.metrics.classifier_network import Classifier
from aigc_jax.nn.layers import Dropout
from aigc_jax.nn.padding import crop, fill, filled_size

KEY = jax.random.key(0)
LABEL = jnp.array([1, 3])
CLASSES = {"label": Condition.of(LABEL)}
SHAPES = [(8, 8, 1), (28, 28, 1), (16, 32, 3)]


def check(model, shape, *args, compute=True):
    """In float32 and bfloat16, parameters and outputs are float32 of the right shape and finite."""
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = model.clone(dtype=dtype) if hasattr(model, "dtype") else model
        variables = jax.eval_shape(cast.init, KEY, *args)
        chex.assert_type(jax.tree.leaves(variables), jnp.float32)
        out = jax.eval_shape(cast.apply, variables, *args)
        chex.assert_shape(jax.tree.leaves(out)[0], shape)
        chex.assert_type(jax.tree.leaves(out)[0], jnp.float32)
        if compute:
            out = jax.jit(cast.apply)(tiny.random_like(nn.unbox(variables)), *args)
            chex.assert_tree_all_finite(out)


def random_params(model, *args):
    """Parameters that matter everywhere, without compiling `model.init`."""
    return tiny.random_like(nn.unbox(jax.eval_shape(model.init, KEY, *args)))


def small(shape):
    """Values are computed for the smallest images only; the others are traced."""
    return shape == SHAPES[0]


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformer(positions, tied):
    config = TransformerConfig(2, 16, 2, positions=positions, tie_embeddings=tied)
    check(Transformer(config, 11, 8), (2, 6, 11), jnp.zeros((2, 6), int))


def test_transformer_is_causal():
    model = Transformer(TransformerConfig(2, 16, 2), 11, 8)
    tokens = jnp.array([[1, 2, 3, 4, 5, 6]])
    params, apply = random_params(model, tokens), jax.jit(model.apply)
    a, _ = apply(params, tokens)
    b, _ = apply(params, tokens.at[0, 4].set(9))
    chex.assert_trees_all_equal(a[:, :4], b[:, :4])
    assert not jnp.allclose(a[:, 4:], b[:, 4:])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [0, 10])
def test_dcgan(shape, classes):
    config = DCGANConfig(latent=5, generator_channels=(8, 4, 4), critic_channels=(4, 4, 8))
    check(
        Generator(config, shape, classes),
        (2, *shape),
        jnp.ones((2, 5)),
        CLASSES,
        compute=small(shape),
    )
    check(Critic(config, classes), (2,), jnp.ones((2, *shape)), CLASSES, compute=small(shape))


@pytest.mark.parametrize("shape", [*SHAPES, (17, 23, 3)])
@pytest.mark.parametrize("networks", [
    (MLPEncoder, MLPDecoder, MLPConfig(3, (16, 8))),
    (ConvEncoder, ConvDecoder, ConvConfig(3, (4, 8), 16)),
])  # fmt: skip
def test_autoencoder(shape, networks):
    encoder, decoder, config = networks
    compute = small(shape)
    check(encoder(config, 10), (2, 3), jnp.ones((2, *shape)), CLASSES, compute=compute)
    check(decoder(config, shape, 10), (2, *shape), jnp.ones((2, 3)), CLASSES, compute=compute)


@pytest.mark.parametrize("shape", [*SHAPES, (17, 23, 3)])
@pytest.mark.parametrize("classes", [0, 10])
def test_unet(shape, classes):
    config = UNetConfig((4, 8), 1, (1,), heads=2, embedding=8)
    x, time = jnp.ones((2, *shape)), jnp.ones(2)
    check(UNet(config, classes), (2, *shape), x, time, tiny.given(LABEL), compute=False)


@pytest.mark.parametrize("shape", [*SHAPES, (7, 5, 3), (64, 64, 3)])
def test_classifier(shape):
    check(Classifier(4), (2, 64), jnp.ones((2, *shape)), compute=small(shape))


ODD = [(17, 23, 3), pytest.param((13, 13, 1), marks=pytest.mark.slow)]
DENOISERS = {
    "unet": UNet(UNetConfig((4, 8), 1, (1,), heads=2, embedding=8), 3),
    "unet of patches": UNet(
        UNetConfig((4, 8), 1, (), patch_size=3, embedding=8, resample="conv"), 3
    ),
    "dit": DiT(DiTConfig(3, 16, 1, 2, frequencies=8), 3),
    "dit, rotary": DiT(DiTConfig(4, 16, 1, 2, frequencies=8, positions="rotary"), 3),
}
AUTOENCODERS = {
    "flat": (ConvEncoder, ConvDecoder, ConvConfig(3, (4, 8, 8), 16), (2, 3)),
    "spatial": (ConvEncoder, ConvDecoder, ConvConfig(3, (4, 8, 8), 16, spatial=True), None),
    "kl": (kl_autoencoder.Encoder, kl_autoencoder.Decoder, KLConfig((4, 4, 4), latent=3), None),
}


def slow_if(names, *slow):
    marks = dict.fromkeys(slow, pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def sees_all(forward, params, shape):
    """The output has that shape, is finite, and depends on every parameter."""

    def total(params):
        out = forward(params)
        weight = jax.random.normal(KEY, out.shape)
        return (weight * out).sum(), out

    slopes, out = jax.jit(jax.grad(total, has_aux=True))(params)
    chex.assert_shape(out, shape)
    chex.assert_tree_all_finite((out, slopes))
    assert all(jnp.any(slope) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("name", slow_if(DENOISERS, "unet", "unet of patches"))
def test_denoisers_of_odd_sizes(name, shape):
    model, args = DENOISERS[name], (jax.random.normal(KEY, (2, *shape)), jnp.array([3.0, 700.0]))
    params = random_params(model, *args, tiny.given(LABEL))
    conditions = tiny.given(LABEL % 3)
    sees_all(lambda params: model.apply(params, *args, conditions), params, (2, *shape))


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("name", slow_if(AUTOENCODERS, "flat", "kl"))
def test_autoencoders_of_odd_sizes(name, shape):
    """Latents of images that are filled up, and images of the size that was given."""
    make, make_decoder, config, latent = AUTOENCODERS[name]
    encoder, decoder = make(config, 0), make_decoder(config, shape, 0)
    latent = latent or (2, -(-shape[0] // 4), -(-shape[1] // 4), 3)
    x = jax.random.uniform(KEY, (2, *shape))
    params = random_params(encoder, x), random_params(decoder, jnp.ones(latent))
    assert jax.eval_shape(encoder.apply, params[0], x)[0].shape == latent

    def forward(params):
        mean, log_var = encoder.apply(params[0], x)
        return decoder.apply(params[1], mean + log_var)

    sees_all(forward, params, (2, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("shape", ODD)
def test_a_hierarchical_vae_of_odd_sizes(shape):
    config = HierarchicalVAEConfig((4, 4, 4), (1, 0, 1), latent=2, blocks=0)
    up, down = hierarchical_vae.BottomUp(config, 0), hierarchical_vae.TopDown(config, shape, 0)
    h, w = -(-shape[0] // 4), -(-shape[1] // 4)
    assert down.latent_shapes() == [(h, w, 2), (4 * h, 4 * w, 2)]
    x = jax.random.uniform(KEY, (2, *shape))
    noise = [jax.random.normal(KEY, (2, *size)) for size in down.latent_shapes()]
    read = jax.eval_shape(up.init_with_output, KEY, x)[0]
    params = random_params(up, x), random_params(down, noise, None, read)
    forward = lambda p: down.apply(p[1], noise, None, up.apply(p[0], x))[0]  # noqa: E731
    sees_all(forward, params, (2, *shape))


@pytest.mark.parametrize("size, wanted", [
    ((16, 32), (16, 32)), ((17, 23), (20, 24)), ((4, 5), (4, 8)), ((13, 21), (16, 24)),
])  # fmt: skip
def test_sizes_are_filled_up_only_if_they_must_be(size, wanted):
    assert filled_size(size, 2, "model.channels") == wanted
    assert filled_size(size, 1, "model.channels", patch=2) == wanted
    assert DiTConfig(patch_size=4).filled(size) == wanted
    x = jax.random.normal(KEY, (1, *size, 1))
    chex.assert_trees_all_equal(crop(fill(x, wanted), size), x)


@pytest.mark.parametrize("config, words", [
    (UNetConfig((4, 4, 4)), "3×9 cannot be halved 2 times: give model.channels .*attention_levels"),
    (UNetConfig((4, 4), patch_size=2), "halved 1 times after .*patches of side 2"),
    (UNetConfig((4, 4), patch_size=4), "smaller than model.patch_size=4"),
    (DiTConfig(4), "smaller than model.patch_size=4"),
    (ConvConfig(channels=(4, 4, 4)), "3×9 cannot be halved 2 times: give model.channels"),
    (KLConfig((4, 4, 4)), "3×9 cannot be halved 2 times: give model.channels"),
    (HierarchicalVAEConfig((4, 4, 4), (1, 1, 1)), "give model.channels and model.groups fewer"),
])  # fmt: skip
def test_images_that_are_too_small_are_named(config, words):
    with pytest.raises(UserError, match=words):
        config.filled((3, 9))


def test_dropout_belongs_to_the_example():
    """An example's mask does not depend on its neighbours, and rates are as asked."""
    layer, x = Dropout(0.25), jnp.ones((4, 4000))
    keys = jax.random.split(KEY, 4)
    whole = layer.apply({}, x, keys)
    chex.assert_trees_all_equal(whole[2:], layer.apply({}, x[2:], keys[2:]))
    assert abs(float((whole == 0).mean()) - 0.25) < 0.02  # 16,000 draws: 6 standard deviations
    assert abs(float(whole.mean()) - 1) < 0.03
    chex.assert_trees_all_equal(layer.apply({}, x, None), x)


@pytest.mark.parametrize("family", ["lm", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_remat_keeps_less_for_the_backward_pass_and_gives_the_same_gradients(family):
    """What is kept is counted before XLA, whose CPU compiler undoes rematerialisation."""
    size = dict(lm=dict(layers=3), diffusion=dict(blocks=2))[family]
    batch, key = tiny.batch(family), jax.random.split(jax.random.key(0), 8)
    found = []
    for remat in ("none", "full"):
        run = tiny.make(family, model=dict(remat=remat, **size))
        params = tiny.params(run, family)

        def loss(p, run=run):
            return run.objective.loss("model", p, {}, batch, key, jnp.int32(0))[0].total

        kept = jax.tree.leaves(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params))
        found.append((jax.jit(jax.grad(loss))(params), sum(x.size for x in kept)))
    (grads, plain), (again, less) = found
    # Computed twice, but maybe fused differently.
    chex.assert_trees_all_close(grads, again, rtol=1e-4, atol=1e-5)
    assert less < 0.7 * plain
