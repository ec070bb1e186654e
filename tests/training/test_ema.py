"""Power-function averages and averages made after training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

import aigc_jax
from aigc_jax.core.config import Ema
from aigc_jax.core.errors import UserError
from aigc_jax.training import ema, posthoc_ema


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_profile_has_the_width_that_it_is_called_by(width):
    tau = (np.arange(100_000) + 0.5) / 100_000
    density = tau ** ema.power_exponent(width)
    density /= density.sum()
    mean = (density * tau).sum()
    assert np.sqrt((density * (tau - mean) ** 2).sum()) == pytest.approx(width, rel=1e-4)


def walk(steps=400, seed=0):
    """Parameters after each step, slowly changing."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((steps, 3)), 0).astype(np.float32) / 10


def averaged(history, config, every=0):
    """The last averages, and those after every so many steps."""
    power_ema = {ema.sigma_rel_key(w): jnp.zeros(3) for w in config.sigma_rels}
    kept = {}
    move = jax.jit(lambda old, x, t: ema.update_averages(config, {}, old, x, t, 1)[1])
    for t, x in enumerate(history):
        power_ema = move(power_ema, jnp.asarray(x), jnp.int32(t))
        if every and (t + 1) % every == 0:
            kept[t + 1] = {k: np.asarray(v) for k, v in power_ema.items()}
    return {k: np.asarray(v) for k, v in power_ema.items()}, kept


def test_the_running_average_is_the_mean_under_its_profile():
    """By hand: each parameter's weight is its share times what later steps leave of it."""
    history = walk(50)
    power = ema.power_exponent(0.1) + 1
    t = np.arange(1, 51)
    keep = (1 - 1 / t) ** power
    left = np.array([np.prod(keep[i + 1 :]) for i in range(50)])
    expected = ((1 - keep) * left) @ history
    found, _ = averaged(history, Ema(sigma_rels=(0.1,)))
    np.testing.assert_allclose(found["0.1"], expected, rtol=2e-5, atol=1e-5)


def test_a_long_run_weighs_its_newest_parameters_exactly():
    """Synthesis after training takes the profile to be exact."""
    for step in (1, 1000, 2_000_000):
        share = ema.power_ema_weight(0.05, jnp.int32(step))
        last = np.log1p(-1 / step) if step > 1 else -np.inf
        expected = -np.expm1((ema.power_exponent(0.05) + 1) * last)
        np.testing.assert_allclose(share, expected, rtol=1e-5)


def test_snapshots_of_two_widths_give_a_third():
    history, widths = walk(), (0.05, 0.1)
    _, kept = averaged(history, Ema(sigma_rels=widths), every=25)
    truth, _ = averaged(history, Ema(sigma_rels=(0.075,)))
    pairs = [(t, w) for t in kept for w in widths]
    weights_S = posthoc_ema.solve_weights([t for t, _ in pairs], [w for _, w in pairs], 400, 0.075)
    made = sum(
        s * kept[t][ema.sigma_rel_key(w)] for s, (t, w) in zip(weights_S, pairs, strict=True)
    )
    nearest = min(np.abs(kept[400][ema.sigma_rel_key(w)] - truth["0.075"]).max() for w in widths)
    error = np.abs(made - truth["0.075"]).max()
    assert error < nearest / 20  # nearer by far than what was kept


def test_a_width_that_was_kept_is_given_back():
    weights_S = posthoc_ema.solve_weights([10, 10, 20, 20], [0.05, 0.1, 0.05, 0.1], 20, 0.1)
    np.testing.assert_allclose(weights_S, [0, 0, 0, 1], atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = str(tmp_path_factory.mktemp("ema") / "w")
    config = tiny.recipe("vae", ema=dict(halflife=0.0, sigma_rels=(0.05, 0.1), snapshot_every=2))
    aigc_jax.train(config, workdir, progress=False)
    return workdir, config


def test_a_run_keeps_snapshots_and_makes_averages_of_them(trained, tmp_path):
    workdir, _ = trained
    assert posthoc_ema.snapshot_steps(workdir) == [2, 4, 6]
    _, state, _ = aigc_jax.restore(workdir)
    assert list(state.power_ema) == ["0.05", "0.1"] and not state.ema
    leaf = lambda tree: np.asarray(jax.tree.leaves(tree)[0])  # noqa: E731
    assert (leaf(state.sampling_params) == leaf(state.power_ema["0.05"])).all()
    same = posthoc_ema.reconstruct_ema(workdir, state, 0.1)
    np.testing.assert_allclose(leaf(same.ema), leaf(state.power_ema["0.1"]), rtol=1e-5, atol=1e-6)
    between = leaf(posthoc_ema.reconstruct_ema(workdir, state, 0.07).ema)
    assert (between != leaf(state.power_ema["0.05"])).any()
    images = aigc_jax.sample(workdir, num=2, sigma_rel=0.07)
    assert images.shape == (2, 8, 8, 1)


def test_unsupported_optimizers_are_rejected(trained, tmp_path):
    workdir, _ = trained
    _, state, _ = aigc_jax.restore(workdir)
    with pytest.raises(UserError, match="sigma_rel"):
        posthoc_ema.reconstruct_ema(workdir, state, 0.5)
    with pytest.raises(UserError, match="sigma_rel"):
        posthoc_ema.reconstruct_ema(workdir, state.replace(power_ema={}), 0.1)
    bad = tmp_path / "ema"
    bad.mkdir()
    (bad / "step_00000002.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        posthoc_ema.reconstruct_ema(str(tmp_path), state, 0.1)
    posthoc_ema.remove_snapshots(str(tmp_path), 1)
    assert not posthoc_ema.snapshot_steps(str(tmp_path))
