import aigc_jax


def get_config():
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="unet"),
        objective=dict(name="diffusion", parameterisation="edm"),
        optim=dict(name="adamw", lr=2e-3, warmup_steps=100),
        train=dict(steps=1000, log_every=50),
        ema=dict(halflife=10_000.0),
        sample=dict(num=100),
    )
