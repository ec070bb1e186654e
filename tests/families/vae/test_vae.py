"""VAEs and discrete autoencoders: bounds, hierarchies, codes, a critic, and their metrics."""

import glob
import os
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.paths import CONFIGS

from aigc_jax.core.errors import UserError
from aigc_jax.data.fixed_batches import eval_batches
from aigc_jax.distributed.mesh import make_mesh
from aigc_jax.evaluation.heldout import HeldOut
from aigc_jax.experiment import build
from aigc_jax.experiment.recipes import load_recipe
from aigc_jax.families.gan.losses import GAN_LOSSES, GANLoss
from aigc_jax.families.vae import kl_autoencoder
from aigc_jax.families.vae.bounds import kl_per_latent
from aigc_jax.families.vae.conv_autoencoder import ConvConfig, ConvDecoder, ConvEncoder
from aigc_jax.families.vae.hierarchical_vae import BottomUp, HierarchicalVAEConfig, TopDown
from aigc_jax.families.vae.kl_autoencoder import KLConfig
from aigc_jax.families.vae.kl_first_stage import KLAutoencoder
from aigc_jax.families.vae.latent_groups import HierarchicalLatents, SingleLatent
from aigc_jax.families.vae.vae import VAE, VAEConfig
from aigc_jax.families.vq.adversary import Adversary
from aigc_jax.families.vq.config import RECONSTRUCTION_ERRORS, VQConfig
from aigc_jax.families.vq.quantizers import FSQ, QUANTIZERS
from aigc_jax.families.vq.vq_autoencoder import VQAutoencoder
from aigc_jax.modalities.image.spec import ImageSpec
from aigc_jax.ops.image import psnr
from aigc_jax.ops.per_example import expand_like, mean_per_example
from aigc_jax.ops.random import content_keys, normal
from aigc_jax.training.compile import compile_step
from aigc_jax.training.init import init_state
from aigc_jax.training.step import make_step

FOLDER = CONFIGS / "vae"
KEY_B = jax.random.split(jax.random.key(3), 8)
BATCH = tiny.batch("vae")
HIERARCHY = dict(
    name="hierarchical_vae",
    channels=(4, 8),
    groups=(1, 2),
    latent=2,
    blocks=1,
    hidden=None,
    conditional=True,
)


def hierarchical(**changes):
    return tiny.make("vae", model=HIERARCHY, **changes)


def discrete(model=None, **objective):
    """A tokenised autoencoder with 4 × 4 codes of 18."""
    own = dict(name="vq", importance_samples=None, levels=(3, 3, 2), num_codes=18, code_dim=3)
    return tiny.make("vae", objective={**own, **objective}, model=model or dict(spatial=True))


def values(metrics):
    return {k: float(m.value()) for k, m in metrics.items()}


# Bounds --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hierarchy_has_groups_of_several_sizes_and_bounds_in_order():
    run = hierarchical(objective=dict(importance_samples=8))
    objective = run.objective
    assert objective.latents.shapes() == [(4, 4, 2), (4, 4, 2), (8, 8, 2)]
    params = tiny.params(run, "vae", scale=0.2)
    found = values(jax.jit(objective.evaluate)(params, {}, BATCH, KEY_B))
    assert found["elbo"] < found["iwae"]
    parts = [found[f"kl_{i}"] for i in range(3)]
    assert sum(parts) == pytest.approx(found["kl"], rel=1e-5) and min(map(abs, parts)) > 1e-3
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"], rel=1e-4)
    assert not hasattr(objective, "latent_shape")  # several groups are no first stage
    fresh = jax.jit(run.objective.init)(jax.random.key(0), BATCH)[0]
    loss = jax.jit(objective.loss, static_argnums=0)
    assert float(loss("model", fresh, {}, BATCH, KEY_B, 0)[1][0]["kl"].value()) == 0


def test_a_hierarchy_draws_from_its_prior():
    """Without temperature there is one image per class; with it each sample has its own."""
    run = hierarchical()
    params = tiny.params(run, "vae", scale=0.3)
    keys, label = jax.random.split(jax.random.key(0), 4), jnp.array([1, 1, 2, 2])

    def images(temperature):
        options = type(run.config.sample)(temperature=temperature)
        return np.asarray(run.objective.sample(params, {}, keys, tiny.request(options, 4, label)))

    cold, warm = images(0.0), images(1.0)
    assert warm.shape == (4, 8, 8, 1) and warm.dtype == np.uint8
    chex.assert_trees_all_equal(cold[0], cold[1])
    assert (cold[0] != cold[2]).any() and (warm[0] != warm[1]).any()


def test_bounds_of_a_hierarchy_are_exact_for_a_linear_gaussian():
    """z₁ ~ N(0, 1), z₂ ~ N(a z₁, b²), x ~ N(z₂, s²): with the true posterior of each group given
    those above, in units of its prior, both bounds are log N(x; 0, a² + b² + s²)."""
    a, b, s = 0.8, 0.5, 0.3

    class Chain:
        def shapes(self):
            return [(1,), (1,)]

        def encode(self, params, x, conditions):
            return x.reshape(-1, 1)

        def reparameterize(self, params, x, noise, conditions):
            v1 = 1 / (1 + a**2 / (b**2 + s**2))
            m1 = v1 * a / (b**2 + s**2) * x
            z1 = m1 + jnp.sqrt(v1) * noise[0]
            # z₂ = a z₁ + b u₂, and u₂ | x, z₁ is that of x − a z₁ = b u₂ + s n.
            v2 = 1 / (1 + b**2 / s**2)
            m2 = v2 * b / s**2 * (x - a * z1)
            z2 = a * z1 + b * (m2 + jnp.sqrt(v2) * noise[1])
            groups = [(m, jnp.full_like(x, jnp.log(v))) for m, v in ((m1, v1), (m2, v2))]
            return z2.reshape(-1, 1, 1, 1), groups

    vae = VAE(VAEConfig(importance_samples=5), Chain(), levels=2)
    x = jnp.array([0.3, -1.6]).reshape(2, 1, 1, 1)
    vae._data = lambda batch, key_B: x
    vae._log_likelihood = lambda params, x, out: (
        -((x - out)[:, 0, 0, 0] ** 2) / (2 * s**2) - jnp.log(2 * jnp.pi * s**2) / 2
    )
    batch = {"image": x, "weight": jnp.ones(2)}
    found = vae.evaluate({"model": {}}, {}, batch, KEY_B[:2])
    variance = a**2 + b**2 + s**2
    exact = (-(x**2) / (2 * variance) - jnp.log(2 * jnp.pi * variance) / 2).mean()
    for name in ("elbo", "iwae"):
        np.testing.assert_allclose(found[name].value(), exact, rtol=1e-4)


def test_no_bound_is_above_the_likelihood():
    """One latent number: the likelihood itself by adding up over a fine grid."""
    bernoulli = dict(likelihood="bernoulli", binarize="threshold", importance_samples=200)
    mlp = dict(name="mlp", latent=1, hidden=(8,), channels=None)
    run = tiny.make("vae", objective=bernoulli, model=mlp)
    params, objective = tiny.params(run, "vae", scale=0.3), run.objective
    found = values(jax.jit(objective.evaluate)(params, {}, BATCH, KEY_B))
    x = objective._data(BATCH, KEY_B)
    grid = jnp.linspace(-8, 8, 2001)
    out = objective.latents.generate(params["model"], [grid[:, None]], {})
    log_p = jax.vmap(lambda row: objective._log_likelihood({}, row[None], out))(x)
    log_p += -(grid**2) / 2 - jnp.log(2 * jnp.pi) / 2 + jnp.log(grid[1] - grid[0])
    exact_B = jax.scipy.special.logsumexp(log_p, axis=1)
    exact = float((exact_B * BATCH["weight"]).sum() / BATCH["weight"].sum())
    assert found["elbo"] < found["iwae"] < exact + 0.05
    assert found["iwae"] > exact - 1.0


def test_static_bits_belong_to_the_image():
    """The same whenever the image comes, whatever the batch; other images have others."""
    vae = tiny.make("vae", objective=dict(likelihood="bernoulli", binarize="static")).objective
    first, again = (vae._data(BATCH, jax.random.split(jax.random.key(i), 8)) for i in (0, 1))
    chex.assert_trees_all_equal(first, again)
    part = {**BATCH, "image": BATCH["image"][::-2]}
    chex.assert_trees_all_equal(vae._data(part, KEY_B[:4]), first[::-2])
    grey = {**BATCH, "image": np.full((8, 8, 8, 1), 128, np.uint8)}
    grey["image"][:, 0, 0, 0] = np.arange(8)  # almost alike
    bits = np.asarray(vae._data(grey, KEY_B))[:, 1:]
    assert set(np.unique(bits)) == {0.0, 1.0} and abs(bits.mean() - 0.5) < 0.1
    assert all((bits[0] != row).mean() > 0.2 for row in bits[1:])
    dynamic = tiny.make("vae", objective=dict(likelihood="bernoulli", binarize="dynamic")).objective
    assert (dynamic._data(grey, KEY_B) != dynamic._data(grey, KEY_B[::-1])).any()


def test_keys_of_content():
    keys = content_keys(jnp.asarray([[0, 1], [1, 0], [0, 1]], jnp.uint8))
    draws = np.asarray(normal(keys, (3,)))
    chex.assert_trees_all_equal(draws[0], draws[2])
    assert (draws[0] != draws[1]).all()


def test_kl_by_hand():
    mean, var = np.array([[0.5, -1.0]]), np.array([[2.0, 0.3]])
    by_hand = 0.5 * (var + mean**2 - 1 - np.log(var))
    np.testing.assert_allclose(kl_per_latent(jnp.asarray(mean), jnp.log(var)), by_hand, rtol=1e-5)


# What is measured ------------------------------------------------------------------------------


def test_psnr_by_hand():
    x = jnp.zeros((3, 2, 2, 1))
    y = x.at[0].set(0.1).at[1, 0, 0, 0].set(1.0)
    np.testing.assert_allclose(psnr(x, y), [20.0, 10 * np.log10(4), 100.0], rtol=1e-5)


def test_psnr_is_that_of_the_reconstruction():
    run = tiny.make("vae")
    params = tiny.params(run, "vae")
    found = values(jax.jit(run.objective.evaluate)(params, {}, BATCH, KEY_B))
    shown = np.asarray(run.objective.reconstruct(params, {}, BATCH, KEY_B))
    assert shown.dtype == np.uint8 and shown.shape == BATCH["image"].shape
    error_B = (((shown.astype(float) - BATCH["image"]) / 255) ** 2).mean((1, 2, 3))
    by_hand = np.average(-10 * np.log10(error_B), weights=BATCH["weight"])
    assert found["psnr"] == pytest.approx(by_hand, rel=1e-3)  # but for rounding to bytes


def test_active_units_by_hand():
    """Variances of 0.02, 0.009 and 0; an image that only fills up says nothing."""
    run = tiny.make("vae", model=dict(latent=3))
    half = np.array([[1, 1, 0], [-1, -1, 0]]) * np.sqrt([0.02, 0.009, 0])
    mean_NL = np.concatenate([half, half, np.full((1, 3), np.nan)])
    assert run.objective.summarize({"mean_0": mean_NL}) == {"active_units": 1.0}
    groups = {"mean_0": np.tile([[1.0], [-1.0]], 32), "mean_1": np.zeros((2, 32))}
    groups["mean_2"] = np.tile([[1.0], [0.0]], 128)
    found = hierarchical().objective.summarize(groups)
    assert found["active_units"] == 32 + 128 == found["active_units_0"] + found["active_units_2"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat", "fsq"])
def test_set_statistics_do_not_depend_on_batches(kind):
    """Every real image once, none that fills up; codes by counting them here."""
    run = tiny.make("vae") if kind == "flat" else discrete()
    params, objective = tiny.params(run, "vae", scale=0.5), run.objective
    _, mutables = objective.init(jax.random.key(0), BATCH)
    rows = [{k: v[i] for k, v in BATCH.items()} for i in range(1, 8)]
    found = []
    for size in (3, 4):
        held_out = HeldOut(objective, make_mesh("data=1"))
        found.append(held_out(params, mutables, eval_batches(rows, size)))
    names = ("codes_used", "code_perplexity") if kind == "fsq" else ("active_units",)
    for name in (*names, "psnr"):
        assert found[0][0][name] == pytest.approx(found[1][0][name], rel=1e-5)
    if kind == "fsq":
        codes = np.asarray(objective.encode(params, mutables, BATCH, None))[1:]
        share = np.bincount(codes.ravel(), minlength=18) / codes.size
        assert found[0][0]["codes_used"] == pytest.approx((share > 0).mean())
        assert (share > 0).sum() > 1
        entropy = -sum(p * np.log(p) for p in share if p)
        assert found[0][0]["code_perplexity"] == pytest.approx(np.exp(entropy), rel=1e-4)


# First stages ----------------------------------------------------------------------------------

STAGES = {
    "flat": (lambda: tiny.make("vae"), (1, 1, 3), 0),
    "spatial": (lambda: tiny.make("vae", model=dict(spatial=True, blocks=1)), (4, 4, 3), 0),
    "fsq": (lambda: discrete(), (4, 4, 1), 18),
    "vq": (lambda: discrete(quantizer="vq"), (4, 4, 1), 18),
    "codes of a flat latent": (
        lambda: discrete(dict(name="mlp", hidden=(8,), channels=None), codes_per_position=5),
        (1, 1, 5),
        18,
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_first_stage_encodes_and_decodes(name):
    make, shape, codes = STAGES[name]
    run = make()
    objective, params = run.objective, tiny.params(run, "vae", scale=0.5)
    _, mutables = objective.init(jax.random.key(0), BATCH)
    assert (objective.latent_shape, objective.num_codes) == (shape, codes)
    latent = objective.encode(params, mutables, BATCH, KEY_B)
    chex.assert_shape(latent, (8, *shape))
    chex.assert_type(latent, jnp.int32 if codes else jnp.float32)
    images = objective.decode(params, mutables, latent)
    chex.assert_shape(images, (8, 8, 8, 1))
    chex.assert_type(images, jnp.uint8)
    if codes and name != "vq":  # whose codebook has not started
        chex.assert_trees_all_equal(images, objective.reconstruct(params, mutables, BATCH, KEY_B))
        assert int(latent.max()) < codes and len(np.unique(latent)) > 1


def test_latents_are_shifted_and_scaled_as_the_network_says(monkeypatch):
    run = tiny.make("vae", model=dict(spatial=True))
    params, objective = tiny.params(run, "vae", scale=0.5), run.objective
    plain = objective.encode(params, {}, BATCH, KEY_B)
    images = objective.decode(params, {}, plain)
    monkeypatch.setattr(type(run.config.model), "shift_factor", 0.5, raising=False)
    monkeypatch.setattr(type(run.config.model), "scaling_factor", 2.0, raising=False)
    scaled = objective.encode(params, {}, BATCH, KEY_B)
    np.testing.assert_allclose(scaled, (plain - 0.5) * 2, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(objective.decode(params, {}, scaled), images)


def test_samples_of_codes_follow_their_frequencies():
    run = discrete()
    params, state = tiny.params(run, "vae", scale=0.5), run.objective.init(KEY_B[0], BATCH)[1]
    state["model"]["uses"] = jnp.zeros(18).at[7].set(2.0)
    request = tiny.request(run.config.sample, 3)
    images = run.objective.sample(params, state, KEY_B[:3], request)
    code = jnp.full((3, 4, 4, 1), 7)
    chex.assert_trees_all_equal(images, run.objective.decode(params, state, code))


# On the train step -----------------------------------------------------------------------------

VQGAN = dict(
    critic_weight=0.5, critic_channels=(4, 4), quantizer="vq", decay=0.5, dead_code_threshold=0.3
)


def play(run, how="jit", accumulate=1, batch=BATCH, steps=3):
    """The states and the metrics after each step of plain gradient descent."""
    players = dict.fromkeys(run.objective.turns)
    optimizers = {p: optax.sgd(0.05) for p in players}
    step = make_step(run.objective, optimizers, accumulate=accumulate)
    compiled = compile_step(step, make_mesh("data=2" if how == "pmap" else "data=1"), how)
    state = jax.jit(lambda: init_state(run.objective, optimizers, batch, 0, ema=False))()
    state = compiled.put_state(state.replace(params=tiny.params(run, "vae", scale=0.3)))
    found = []
    for _ in range(steps):
        state, metrics = compiled(state, compiled.put_batch(batch))
        found.append(jax.device_get((compiled.get_state(state), values(metrics))))
    return found


@pytest.mark.parametrize("kind", ["fsq", pytest.param("vqgan", marks=pytest.mark.slow)])
def test_codes_are_the_same_however_the_batch_is_cut(kind):
    """Three steps: k-means, a codebook that moves, dead codes; microbatches, devices, nonsense in
    the image without weight."""
    run = discrete(**VQGAN) if kind == "vqgan" else discrete()
    other = {**BATCH, "image": BATCH["image"].copy()}
    other["image"][0] = 255 - other["image"][0]
    assert BATCH["weight"][0] == 0
    ways = [dict(), dict(accumulate=4), dict(batch=other)]
    ways += [dict(how="pmap")] if kind == "vqgan" else []
    first, *rest = (play(run, **way)[-1] for way in ways)
    assert int(first[0].skipped) == 0
    for state, metrics in rest:
        chex.assert_trees_all_close(state.params, first[0].params, rtol=2e-3, atol=2e-4)
        assert metrics == pytest.approx(first[1], rel=5e-3, abs=5e-4)
        if kind == "vqgan":
            codebooks = (s.mutables["model"]["codebook"] for s in (state, first[0]))
            chex.assert_trees_all_close(*codebooks, rtol=2e-3, atol=2e-4)
    name = "model/codes_used" if kind == "vqgan" else "codes_used"
    assert first[1][name] > 0


def test_the_critic_moves_by_its_own_gradient_and_waits_for_its_start():
    run = discrete(**VQGAN, critic_start=1)
    assert run.objective.turns == ("critic", "model")
    before = tiny.params(run, "vae", scale=0.3)
    (first, early), (second, later) = play(run, steps=2)
    chex.assert_trees_all_equal(first.params["critic"], before["critic"])
    assert early["critic/loss"] == 0 and early["critic/grad_norm"] == 0
    assert later["critic/grad_norm"] > 0 and later["critic/loss"] > 0
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), second.params, before)
    assert min(jax.tree.leaves(moved["critic"])) > 0
    assert int(second.mutables["model"]["started"]) == 1
    # The critic's turn counts no code.
    mutables = tiny.mutables(run, "vae")
    loss_fn = jax.jit(run.objective.loss, static_argnums=0)
    _, (_, after) = loss_fn("critic", before, mutables, BATCH, KEY_B, jnp.int32(0))
    chex.assert_trees_all_equal(after, mutables)
    count = first.mutables["model"]["new_counts"].sum()
    np.testing.assert_allclose(count, 16 * BATCH["weight"].sum(), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 16, 1), (2, 4, 4, 1), (2, 4, 2, 2, 1)])
@pytest.mark.parametrize("adaptive", [True, False])
def test_what_a_critic_adds_by_hand(adaptive, shape):
    """A critic that is linear in an example's mean: its gradient is the same everywhere."""
    config = VQConfig(critic_weight=0.5, adaptive_critic_weight=adaptive, feature_weight=2.0)
    adversary = Adversary(config, jnp.float32)
    adversary.score = lambda params, x: (3 * mean_per_example(x)[:, None], [x])
    x = jnp.zeros(shape)
    decoded = x + expand_like(jnp.array([0.5, 0.1]), x)
    part_B, metrics = adversary.model_loss({}, x, decoded, jnp.ones(2))
    adversarial = -3 * np.array([0.5, 0.1])  # hinge
    # Gradients: of the squared error 2 · difference, of the critic 3, both per value.
    strength = 2 * np.array([0.5, 0.1]) / (3 + 1e-4) if adaptive else np.ones(2)
    by_hand = 0.5 * strength * adversarial + 2.0 * np.array([0.5, 0.1])
    np.testing.assert_allclose(part_B, by_hand, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic_strength"].value(), strength.mean(), rtol=1e-4)


# Any number of axes ------------------------------------------------------------------------------

SHAPES = {1: (16, 2), 3: (4, 8, 8, 1)}  # sound, video


def of_rank(rank):
    """A VAE over bytes of one or three spatial axes, and four examples that are constant."""
    shape, size = SHAPES[rank], 4
    config = ConvConfig(latent=4, channels=(8, 8), hidden=16, spatial=rank == 3)
    latents = SingleLatent(ConvEncoder(config, 0), ConvDecoder(config, shape, 0))
    value_B = np.array([0, 80, 160, 255], np.uint8)
    x = np.broadcast_to(value_B.reshape(size, *[1] * len(shape)), (size, *shape))
    batch = {"sound" if rank == 1 else "video": x, "weight": np.ones(size, np.float32)}
    field = next(iter(batch))
    constants = VAEConfig(scale=0.1, beta=0.1, importance_samples=2)
    return KLAutoencoder(constants, latents, field=field), batch, field


@pytest.mark.parametrize("rank", [1, 3])
def test_a_vae_of_any_number_of_axes_overfits(rank):
    vae, batch, field = of_rank(rank)
    optimizers = {"model": optax.adam(1e-2)}
    step = jax.jit(make_step(vae, optimizers))
    state = jax.jit(lambda: init_state(vae, optimizers, batch, 0, ema=False))()
    for _ in range(150):
        state, metrics = step(state, batch)
    keys = KEY_B[:4]
    shown = np.asarray(jax.jit(vae.reconstruct)(state.params, {}, batch, keys))
    assert shown.shape == batch[field].shape and shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - batch[field]).mean() < 12
    assert float(metrics["reconstruction"].value()) < 0  # a density above 1 per value
    latent = jax.jit(vae.encode)(state.params, {}, batch, keys)
    assert vae.latent_shape == ((1, 4) if rank == 1 else (2, 4, 4, 4))
    assert latent.shape == (4, *vae.latent_shape) and vae.covered == SHAPES[rank][:-1]
    decoded = np.asarray(jax.jit(vae.decode)(state.params, {}, latent))
    assert np.abs(decoded.astype(int) - batch[field]).mean() < 40


@pytest.mark.parametrize("kind", ["hierarchical", "kl", "vq"])
@pytest.mark.parametrize("rank", [1, 3])
def test_autoencoders_of_any_number_of_axes(kind, rank):
    """Traced: latents, samples and a critic have the shapes of the data."""
    shape = SHAPES[rank]
    batch = {"x": jnp.zeros((2, *shape), jnp.uint8), "weight": jnp.ones(2)}
    if kind == "vq":
        config = ConvConfig(latent=4, channels=(4, 4), spatial=True)
        encoder, decoder = ConvEncoder(config, 0), ConvDecoder(config, shape, 0)
        constants = VQConfig(levels=(3, 3), critic_weight=1.0, critic_channels=(4,))
        model = VQAutoencoder(constants, encoder, decoder, field="x")
    else:
        config = KLConfig((4, 4), latent=3)
        decoder = kl_autoencoder.Decoder(config, shape, 0)
        latents = SingleLatent(
            kl_autoencoder.Encoder(config, 0), kl_autoencoder.Decoder(config, shape, 0)
        )
        if kind == "hierarchical":
            config = HierarchicalVAEConfig((4, 4), (1, 1), latent=2)
            latents = HierarchicalLatents(BottomUp(config, 0), TopDown(config, shape, 0))
        model = VAE(VAEConfig(importance_samples=2), latents, field="x")
    params, mutables = jax.eval_shape(model.init, KEY_B[0], batch)
    params = nn.unbox(params)
    for player in model.turns:
        loss, _ = jax.eval_shape(
            lambda p, m, player=player: model.loss(player, p, m, batch, KEY_B[:2], 0),
            params,
            mutables,
        )
        assert loss.total.shape == loss.weight.shape
    request = tiny.request(SimpleNamespace(temperature=1.0, pixel_noise=False), 2)
    drawn = jax.eval_shape(lambda p, m: model.sample(p, m, KEY_B[:2], request), params, mutables)
    assert drawn.shape == (2, *shape) and drawn.dtype == jnp.uint8


def test_own_losses_and_quantizers_are_named_in_a_config(monkeypatch):
    """What a package registers, or an import path, is a choice like the library's own."""
    for registry in (QUANTIZERS, RECONSTRUCTION_ERRORS, GAN_LOSSES):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    QUANTIZERS.register("coarse", lambda config: FSQ((2, 2), config.decay))
    RECONSTRUCTION_ERRORS.register("fourth", lambda x, y: (x - y) ** 4)
    GAN_LOSSES.register("tanh", GANLoss(lambda r, f: jnp.tanh(f - r), lambda r, f: -jnp.tanh(f)))
    run = discrete(
        quantizer="coarse",
        reconstruction_error="fourth",
        critic_weight=1.0,
        critic_loss="tanh",
        critic_channels=(4,),
    )
    assert run.objective.num_codes == 4
    params, mutables = tiny.params(run, "vae", scale=0.3), tiny.mutables(run, "vae")
    loss = run.objective.loss
    _, (metrics, _) = jax.jit(loss, static_argnums=0)("model", params, mutables, BATCH, KEY_B, 0)
    found = jax.jit(run.objective.evaluate)(params, mutables, BATCH, KEY_B)
    decoded = run.objective._autoencode(params["model"], mutables["model"], BATCH)[0]
    error_B = ((decoded - (BATCH["image"] / 127.5 - 1)) ** 4).mean((1, 2, 3))
    by_hand = np.average(error_B, weights=BATCH["weight"])
    np.testing.assert_allclose(found["reconstruction"].value(), by_hand, rtol=1e-4)
    assert -1 < float(metrics["adversarial"].value()) < 1
    with pytest.raises(UserError, match=r"objective\.quantizer"):
        discrete(quantizer="nothing")


# Recipes ---------------------------------------------------------------------------------------

# Parameters of the model, and of the critic.
SIZES = {
    "fashion.py": (654_802, 0),
    "fashion.py:gpu": (35_070_146, 0),
    "fsq.py": (366_389, 0),
    "kl.py": (317_657, 0),
    "hierarchical_vae.py": (711_025, 0),
    "hierarchical_vae.py:static": (711_025, 0),
    "mlp_mnist.py": (652_824, 0),
    "mlp_mnist.py:static": (652_824, 0),
    "vq.py": (366_649, 0),
    "vqgan.py": (366_389, 99_809),
    "vqgan.py:vq": (366_649, 99_809),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_recipe_for_28_by_28_images_has_the_size_that_it_says(name):
    recipe = load_recipe(str(FOLDER / name))
    recipe.mesh = "data=1"
    config = build.parse_config(recipe)
    run = build.build(config, ImageSpec((28, 28, 1), tuple("0123456789")))
    shapes = run.state_shapes()
    found = {p: sum(x.size for x in jax.tree.leaves(t)) for p, t in shapes.params.items()}
    assert (found["model"], found.get("critic", 0)) == SIZES[name]
    if name.endswith(":static"):
        assert config.objective.binarize == "static"
    stages = {"fsq.py": (7, 7, 1), "vq.py": (7, 7, 1), "vqgan.py": (7, 7, 1), "kl.py": (7, 7, 4)}
    if name in stages:
        assert run.objective.latent_shape == stages[name]


def test_every_recipe_of_autoencoders_is_looked_at():
    files = {os.path.basename(f) for f in glob.glob(os.path.join(FOLDER, "*.py"))}
    small = {"mlp.py", "quickstart.py"}  # of digits
    assert files - {name.partition(":")[0] for name in SIZES} == small


def test_one_group_reads_shapes_without_computing():
    run = tiny.make("vae", model=dict(spatial=True))
    assert isinstance(run.objective.latents, SingleLatent)
    assert run.objective.latents.shapes() == [(4, 4, 3)]
