"""Each family learns one batch by heart, on the real train step."""

import jax
import numpy as np
import pytest
from helpers import tiny

# What each family must come down to on one batch of 8, and from where it starts.
GOALS = {
    "lm": ("loss", 0.2),  # nats per token, from ln 257 = 5.5
    "vae": ("reconstruction", -40.0),  # nats per image, from about 0
    "diffusion": ("loss", 0.5),  # in units where no learning is 1
}
CHANGES = {
    "lm": dict(model=dict(width=32)),
    "vae": dict(model=dict(hidden=64)),
    "diffusion": dict(model=dict(channels=(16,)), objective=dict(condition_dropout=0.0)),
}


def one_batch(family):
    """Eight examples of the same weight, images of eight classes."""
    batch = tiny.batch(family)
    labels = {} if family == "lm" else {"label": np.arange(8, dtype=np.int32)}
    return batch | {"weight": np.ones_like(batch["weight"])} | labels


def run_steps(family, steps, **changes):
    run = tiny.make(family, optim=dict(lr=5e-3, clip_norm=0.0), **changes)
    batch = one_batch(family)
    state = run.step.put_state(tiny.state(run))
    placed, values = run.step.put_batch(batch), []
    for _ in range(steps):
        state, metrics = run.step(state, placed)
        values.append(metrics)
    assert run.step.compiles == 1
    return [{k: float(m.value()) for k, m in jax.device_get(v).items()} for v in values], state, run


@pytest.mark.parametrize("family", ["lm", "vae", pytest.param("diffusion", marks=pytest.mark.slow)])
def test_one_batch_is_learned_by_heart(family):
    key, goal = GOALS[family]
    values, state, _ = run_steps(family, 400, **CHANGES[family])
    end = np.mean([v[key] for v in values[-50:]])
    assert end < goal < np.mean([v[key] for v in values[:5]]), (values[0][key], end)
    assert int(state.skipped) == 0


@pytest.mark.slow
def test_the_gan_makes_its_batch():
    """Generated pixels come near those of the batch; the critic cannot tell them apart for long."""
    changes = dict(model=dict(generator_channels=(32, 16), critic_channels=(16, 32)))
    values, state, run = run_steps("gan", 400, **changes)
    batch = one_batch("gan")
    keys = jax.random.split(jax.random.key(0), 8)
    fake = run.objective._fake(state.params, keys, batch["label"])
    real = batch["image"] / 127.5 - 1
    start = run.objective._fake(tiny.state(run).params, keys, batch["label"])
    # The same class has the same image: the generator must find it.
    error, before = (np.abs(np.asarray(x) - real).mean() for x in (fake, start))
    assert error < 0.6 * before, (before, error)
    assert 0.1 < values[-1]["critic/loss"] < 1.5
