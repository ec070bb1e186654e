"""Losses against finite differences, closed forms and known identities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from aigc_jax.core.metrics import to_floats
from aigc_jax.families.gan.gan import GANConfig
from aigc_jax.families.gan.losses import GAN_LOSSES
from aigc_jax.families.gan.penalties import gradient_penalties
from aigc_jax.families.vae.latent_groups import SingleLatent
from aigc_jax.families.vae.vae import VAE, VAEConfig
from aigc_jax.ops.image import to_bytes, to_signed
from aigc_jax.ops.per_example import sum_per_example
from aigc_jax.ops.random import numbered_keys

KEY_B = jax.random.split(jax.random.key(3), 8)
STEP = jnp.int32(0)


CASES = [
    ("lm", dict(objective=dict(z_loss=0.1))),
    ("lm", dict(model=dict(positions="learned", dropout=0.2))),
    ("gan", dict(objective=dict(loss="relativistic", r1=0.0, r2=0.0))),
    ("gan", dict(objective=dict(loss="wasserstein", gradient_penalty=10.0))),
    ("vae", dict(objective=dict(free_bits=0.3, beta=2.0, kl_warmup_steps=5))),
    ("vae", dict(objective=dict(likelihood="bernoulli", binarize="dynamic"))),
    ("vae", dict(model=dict(name="mlp", conditional=True, channels=None, hidden=(16,)))),
    *[("diffusion", dict(objective=dict(prediction=p))) for p in ("edm", "flow")],
    ("diffusion", dict(objective=dict(prediction="v", weighting="min_snr", augment=0.9))),
]


@pytest.mark.parametrize("family,changes", CASES, ids=str)
def test_gradient_against_finite_differences(family, changes, monkeypatch):
    """Along a random direction of every player's parameters."""
    # The slope of a leaky ReLU jumps, and differences cannot follow: a smooth one stands in.
    monkeypatch.setattr(jax.nn, "leaky_relu", lambda x, slope: jnp.tanh(x) + slope * x)
    run = tiny.make(family, **changes)
    params, batch = tiny.params(run, family), tiny.batch(family)
    mutables = tiny.mutables(run, family)
    for player in params:
        direction = tiny.perturbed(jax.tree.map(jnp.zeros_like, params[player]), seed=5)

        def along(t, player=player, direction=direction):
            own = jax.tree.map(lambda p, d: p + t * d, params[player], direction)
            everyone = {**params, player: own}
            loss, _ = run.objective.loss(player, everyone, mutables, batch, KEY_B, STEP)
            return loss.total

        check_slope(along)


def check_slope(function, h=1e-3):
    """A fourth-order central difference; float32 leaves it about 1e-3 of the loss uncertain."""
    both = jax.jit(jax.value_and_grad(function))

    def along(t):
        return both(t)[0]

    numeric = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    scale = 2e-2 * abs(numeric) + 1e-3 * abs(along(0.0))
    assert abs(float(both(0.0)[1]) - float(numeric)) < float(scale)


def test_lm_loss_is_cross_entropy_over_the_mask():
    run = tiny.make("lm")
    params, batch = tiny.params(run, "lm"), tiny.batch("lm")
    loss_fn = jax.jit(run.objective.loss, static_argnums=0)
    loss, _ = loss_fn("model", params, {}, batch, KEY_B, STEP)
    apply = jax.jit(run.objective.network.apply)
    logits, _ = apply({"params": params["model"]}, batch["tokens"][:, :-1])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    total = 0.0
    for b in range(8):
        for t in range(tiny.SEQ_LEN):
            total -= batch["weight"][b, t] * log_p[b, t, batch["tokens"][b, t + 1]]
    np.testing.assert_allclose(loss.total, total, rtol=1e-5)
    np.testing.assert_allclose(loss.weight, batch["weight"].sum(), rtol=1e-6)
    # Bits per byte: separators cost bits but are no bytes.
    metrics = jax.jit(run.objective.evaluate)(params, {}, batch, KEY_B)
    count = (batch["weight"] * (batch["tokens"][:, 1:] != 256)).sum()
    found = to_floats(metrics)["bits_per_byte"]
    np.testing.assert_allclose(found, total / np.log(2) / count, rtol=1e-5)


def test_gan_losses_by_hand():
    real, fake = jnp.array([0.5, -2.0]), jnp.array([-1.0, 3.0])
    sigmoid = jax.nn.sigmoid
    expected = {
        "minimax": (
            -jnp.log(sigmoid(real)) - jnp.log(1 - sigmoid(fake)),
            jnp.log(1 - sigmoid(fake)),
        ),
        "non_saturating": (
            -jnp.log(sigmoid(real)) - jnp.log(1 - sigmoid(fake)),
            -jnp.log(sigmoid(fake)),
        ),
        "hinge": (jnp.array([0.5, 3.0]) + jnp.array([0.0, 4.0]), -fake),
        "least_squares": (((real - 1) ** 2 + fake**2) / 2, (fake - 1) ** 2 / 2),
        "wasserstein": (fake - real, -fake),
        "relativistic": (-jnp.log(sigmoid(real - fake)), -jnp.log(sigmoid(fake - real))),
    }
    assert expected.keys() == GAN_LOSSES.keys()
    for name, (critic, generator) in GAN_LOSSES.items():
        np.testing.assert_allclose(critic(real, fake), expected[name][0], rtol=1e-5)
        np.testing.assert_allclose(generator(real, fake), expected[name][1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 64, 1), (2, 8, 8, 1), (2, 4, 4, 2, 2)])
def test_gan_penalties_by_hand(shape):
    """For a critic that is linear in the example the gradient is the same everywhere."""
    weights = GANConfig(r1=2.0, r2=4.0, gradient_penalty=3.0)
    x = jnp.zeros(shape)
    score = lambda x: 0.25 * sum_per_example(x)  # noqa: E731 - squared norm 64/16 = 4
    penalty, metrics = gradient_penalties(
        weights, score, score, x, x + 1, jnp.array([0.2, 0.9]), jnp.ones(2)
    )
    np.testing.assert_allclose(penalty, 2 / 2 * 4 + 4 / 2 * 4 + 3 * (2 - 1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["r1"].value(), 4.0, rtol=1e-6)


def test_gan_critic_turns():
    assert tiny.make("gan", objective=dict(critic_turns=3)).objective.turns == (
        *("critic",) * 3,
        "generator",
    )


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_vae_elbo_is_below_iwae(likelihood):
    constants = dict(likelihood=likelihood, binarize="dynamic", importance_samples=20)
    run = tiny.make("vae", objective=constants)
    batch, params = tiny.batch("vae"), tiny.params(run, "vae")
    metrics = jax.jit(run.objective.evaluate)(params, {}, batch, KEY_B)
    values = {k: float(m.value()) for k, m in metrics.items()}
    assert values["elbo"] < values["iwae"] and values["loss"] == -values["elbo"]
    levels = np.log2(17) if likelihood == "gaussian" else 0.0
    bits = -values["iwae"] / np.log(2) / 64 + levels
    np.testing.assert_allclose(values["bits_per_dim"], bits, rtol=1e-5)


def test_vae_of_grey_bernoulli_pixels_claims_no_bound():
    run = tiny.make("vae", objective=dict(likelihood="bernoulli", binarize="none"))
    metrics = jax.eval_shape(
        run.objective.evaluate, tiny.params(run, "vae"), {}, tiny.batch("vae"), KEY_B
    )
    assert "loss" in metrics and not {"iwae", "bits_per_dim"} & set(metrics)


def test_vae_bounds_are_exact_for_a_linear_gaussian():
    """x = z + noise, z ~ N(0, 1): with the true posterior both bounds are log N(x; 0, 1 + s²)."""
    scale = 0.5
    posterior_var = 1 / (1 + 1 / scale**2)

    class Encoder:
        def apply(self, variables, x, conditions):
            x = x.reshape(len(x), 1)
            mean = jax.scipy.special.logit(x) * posterior_var / scale**2
            return mean, jnp.full_like(mean, jnp.log(posterior_var))

    class Decoder:
        def apply(self, variables, z, conditions):
            return z.reshape(-1, 1, 1, 1)

    latents = SingleLatent(Encoder(), Decoder())
    latents.shapes = lambda: [(1,)]
    vae = VAE(VAEConfig(scale=scale, learn_scale=False), latents, levels=2)
    x = jnp.array([0.3, 0.6]).reshape(2, 1, 1, 1)
    logit = jax.scipy.special.logit(x).reshape(-1)
    # The decoder's sigmoid is undone, so that the model is linear in the logit of a pixel.
    vae._data = lambda batch, key_B: x
    vae._log_likelihood = lambda params, x, out: (
        -((logit - out[:, 0, 0, 0]) ** 2) / (2 * scale**2)
        - jnp.log(scale)
        - jnp.log(2 * jnp.pi) / 2
    )
    batch = {"image": x, "weight": jnp.ones(2)}
    metrics = vae.evaluate({"model": {"encoder": {}, "decoder": {}}}, {}, batch, KEY_B[:2])
    exact = -(logit**2) / (2 * (1 + scale**2)) - jnp.log(2 * jnp.pi * (1 + scale**2)) / 2
    np.testing.assert_allclose(metrics["iwae"].value(), exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["elbo"].value(), exact.mean(), rtol=1e-5)


def test_vae_kl_against_sampling():
    """The closed-form KL of the loss is the mean of the sampled one of the evaluation."""
    run = tiny.make("vae", objective=dict(importance_samples=4000))
    batch = {k: v[:2] for k, v in tiny.batch("vae", seed=1).items()}
    params = tiny.params(run, "vae", scale=0.5)
    run.objective._data = lambda batch, key_B: batch["image"] / 255  # the same x for both
    loss_fn = jax.jit(run.objective.loss, static_argnums=0)
    _, (metrics, _) = loss_fn("model", params, {}, batch, KEY_B[:2], STEP)
    sampled = jax.jit(run.objective.evaluate)(params, {}, batch, KEY_B[:2])["kl"].value()
    np.testing.assert_allclose(metrics["kl"].value(), sampled, rtol=0.03)  # 4,000 draws


def test_vae_beta_warms_up():
    run = tiny.make("vae", objective=dict(beta=2.0, kl_warmup_steps=4))
    batch, params = tiny.batch("vae"), tiny.params(run, "vae")
    losses = []
    for step in (0, 3, 100):
        loss_fn = jax.jit(run.objective.loss, static_argnums=0)
        loss, (m, _) = loss_fn("model", params, {}, batch, KEY_B, jnp.int32(step))
        losses.append(float((loss.value() - m["reconstruction"].value()) / m["kl"].value()))
    np.testing.assert_allclose(losses, [0.5, 2.0, 2.0], rtol=1e-3)


def test_vae_samples_of_known_pixels():
    """Levels survive the way to [0, 1] and back."""
    run = tiny.make("vae")
    batch = tiny.batch("vae")
    x = run.objective._data(batch, KEY_B)
    assert float(x.min()) >= 0 and float(x.max()) < 1
    levels = np.round(batch["image"] * (16 / 255))
    np.testing.assert_array_equal(jnp.floor(x * 17), levels)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_samples_do_not_depend_on_how_many_are_drawn(family):
    run = tiny.make(family)
    params = tiny.params(run, family)
    draw = lambda n, **kw: tiny.draw(run.objective, params, {}, run.config.sample, n, **kw)  # noqa: E731
    many = draw(7, batch_size=3)
    assert many.shape[0] == 7 and many.dtype == (np.int32 if family == "lm" else np.uint8)
    np.testing.assert_array_equal(many[:3], draw(3, batch_size=3))
    assert (many != draw(7, batch_size=3, seed=1)).any()


def test_pixels_survive_the_round_trip():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_bytes(to_signed(pixels)), pixels)
    np.testing.assert_array_equal(to_bytes(jnp.array([-3.0, 3.0])), [0, 255])


def test_numbered_keys_belong_to_their_number():
    a, b = (numbered_keys(jax.random.key(0), np.array(n)) for n in ([0, 1, 2], [2, 5]))
    chex.assert_trees_all_equal(jax.random.key_data(a[2]), jax.random.key_data(b[0]))
