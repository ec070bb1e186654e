"""The fully connected VAE of the textbooks (64-400-20), on binarised digits (8×8, scikit-learn).

    aigc train --config=vae/mlp --workdir=runs/vae_mlp
    aigc eval --workdir=runs/vae_mlp

Bernoulli likelihood with dynamic binarisation, so that ELBO and IWAE bound a likelihood of bits.
"""

import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=128),
        model=dict(name="mlp", latent=20, hidden=(400,)),
        objective=dict(name="vae", likelihood="bernoulli", binarize="dynamic"),
        optim=dict(name="adam", lr=1e-3, schedule="constant"),
        train=dict(steps=1500, log_every=50),
        eval=dict(every=500),
        checkpoint=dict(every=500),
        sample=dict(num=100),
    )
