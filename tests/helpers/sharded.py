"""Tiny models of every kind whose sizes divide by any mesh of up to eight devices."""

import numpy as np

from helpers import tiny

NO_CHANNELS = dict(generator_channels=None, critic_channels=None)
NO_UNET = dict(channels=None, blocks=None, attention_levels=None, embedding=None)
WORDS = 264  # the byte tokenizer's 257, made to divide

# name: the family of `tiny`, and what is changed.
MODELS = {
    "transformer": ("lm", dict(model=dict(vocab_size=WORDS, heads=4))),
    "gpt2": (
        "lm",
        dict(
            model=dict(
                vocab_size=WORDS,
                heads=4,
                positions="learned",
                tie_embeddings=False,
                norm="layernorm",
                qkv_bias=True,
                mlp_bias=True,
                out_bias=True,
                qk_norm=True,
                conv_width=2,
            )
        ),
    ),
    "lora": ("lm", dict(model=dict(vocab_size=WORDS, heads=4, lora_rank=2))),
    "lstm": ("lm", dict(model=dict(name="lstm", heads=None, vocab_size=WORDS))),
    "dcgan": (
        "gan",
        dict(
            model=dict(generator_channels=(16, 8), critic_channels=(8, 16)),
            objective=dict(spectral_norm=True),
        ),
    ),
    "mlp_gan": ("gan", dict(model=dict(name="mlp", hidden=(16, 8), **NO_CHANNELS))),
    "r3gan": (
        "gan",
        dict(model=dict(name="r3gan", channels=(16, 8), group_width=4, blocks=1, **NO_CHANNELS)),
    ),
    "conv": ("vae", dict(model=dict(channels=(8, 16)))),
    "mlp": ("vae", dict(model=dict(name="mlp", channels=None, hidden=(16,)))),
    "kl": ("vae", dict(model=dict(name="kl", channels=(8,), blocks=1, hidden=None))),
    "hierarchical_vae": (
        "vae",
        dict(
            model=dict(
                name="hierarchical_vae", latent=4, channels=(8, 16), groups=(0, 1), hidden=None
            )
        ),
    ),
    "vqgan": (
        "vae",
        dict(
            model=dict(channels=(8, 16), spatial=True, hidden=None),
            objective=dict(
                name="vq",
                quantizer="vq",
                num_codes=16,  # fewer than vectors: codes that are equal take turns by rounding
                importance_samples=None,
                critic_weight=0.1,
                critic_channels=(8, 8),
            ),
        ),
    ),
    "unet": ("diffusion", dict(model=dict(channels=(8,), attention_levels=(0,)))),
    "dit": (
        "diffusion",
        dict(model=dict(name="dit", width=16, depth=2, heads=4, patch_size=2, **NO_UNET)),
    ),
}
STEPS = 20
# Adam divides by a gradient's size: with an eps near 0 a weight whose gradient is rounding alone
# moves as far as any other, and a game makes much of it (dcgan: 1e-2 after 20 steps, not 4e-7).
OPTIM = dict(eps=1e-2)


def make(model, mesh, **more):
    family, changes = MODELS[model]
    return tiny.make(family, mesh=mesh, optim=OPTIM, **changes, **more)


def losses(model, mesh, steps=STEPS, how="jit"):
    """Every loss of a run's steps on a mesh, (steps, losses)."""
    family = MODELS[model][0]
    run = make(model, mesh, train=dict(parallel_mode=how))
    state, found = run.step.put_state(run.fresh_state()), []
    for k in range(steps):
        batch = run.step.put_batch(tiny.batch(family, seed=k))
        state, metrics = run.step(state, batch)
        found.append([float(m.value()) for n, m in metrics.items() if n.endswith("loss")])
    assert run.step.compiles == 1
    return np.array(found)


def small_run(mesh, steps=4):
    """A recipe that keeps both kinds of averages, evaluates and samples."""
    family, changes = MODELS["conv"]
    return tiny.recipe(
        family,
        mesh=mesh,
        **{**changes, "train": dict(steps=steps, log_every=1)},
        ema=dict(halflife=20.0, sigma_rels=(0.1, 0.2), snapshot_every=2),
        sample=dict(every=4),
        eval=dict(every=4, image=dict(fidelity=False)),
    )
