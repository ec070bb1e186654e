import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="conv", latent=16),
        objective=dict(name="vae", likelihood="gaussian"),
        optim=dict(name="adamw", lr=2e-3, warmup_steps=100),
        train=dict(steps=3000, log_every=50),
        ema=dict(halflife=5_000.0),
        sample=dict(num=100),
    )
