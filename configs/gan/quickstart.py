import aigc_jax


def get_config():
    block = dict(name="adamw", lr=1e-3, b1=0.0, b2=0.99, schedule="constant")
    return aigc_jax.recipe(
        seed=0,
        data=dict(source="digits", batch_size=64),
        model=dict(name="dcgan"),
        objective=dict(name="gan", loss="relativistic", r1=1.0, r2=1.0),
        optim=dict(critic=block, generator=block),
        train=dict(steps=2000, log_every=50),
        ema=dict(halflife=10_000.0),
        sample=dict(num=100),
    )
