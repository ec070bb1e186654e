"""Shapes and dtypes of every model, jitted and not."""

import chex
import jax
import jax.numpy as jnp
import pytest
import tiny

from aigc_jax.errors import UserError
from aigc_jax.models.autoencoder import ConvConfig, Decoder, Encoder, MLPConfig
from aigc_jax.models.classifier import Classifier
from aigc_jax.models.dcgan import Critic, DCGANConfig, Generator
from aigc_jax.models.layers import Dropout
from aigc_jax.models.transformer import Transformer, TransformerConfig
from aigc_jax.models.unet import UNet, UNetConfig

KEY = jax.random.key(0)
LABEL = jnp.array([1, 3])
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
            out = jax.jit(lambda *a, m=cast: m.apply(m.init(KEY, *a), *a))(*args)
            chex.assert_tree_all_finite(out)


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
    params, apply = tiny.perturbed(jax.jit(model.init)(KEY, tokens)), jax.jit(model.apply)
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
        LABEL,
        compute=small(shape),
    )
    check(Critic(config, classes), (2,), jnp.ones((2, *shape)), LABEL, compute=small(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", [MLPConfig(3, (16, 8)), ConvConfig(3, (4, 8), 16)])
def test_autoencoder(shape, config):
    check(Encoder(config, 10), (2, 3), jnp.ones((2, *shape)), LABEL, compute=small(shape))
    check(
        Decoder(config, shape, 2, 10), (2, *shape, 2), jnp.ones((2, 3)), LABEL, compute=small(shape)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [0, 10])
def test_unet(shape, classes):
    config = UNetConfig((4, 8), 1, (1,), heads=2, embedding=8)
    x, time = jnp.ones((2, *shape)), jnp.ones(2)
    check(UNet(config, classes), (2, *shape), x, time, LABEL, compute=False)


@pytest.mark.parametrize("shape", [*SHAPES, (7, 5, 3), (64, 64, 3)])
def test_classifier(shape):
    check(Classifier(4), (2, 64), jnp.ones((2, *shape)), compute=small(shape))


def test_a_size_that_cannot_be_halved_is_named():
    with pytest.raises(UserError, match="30×30"):
        model = UNet(UNetConfig((4, 4, 4)), 0)
        jax.eval_shape(model.init, KEY, jnp.ones((1, 30, 30, 1)), jnp.ones(1))


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
