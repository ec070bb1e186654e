"""The shared train-step library: state, step, loop, optimizers, EMA, metrics, checkpoints.

`aigc_jax.train(config, workdir)` is `aigc_jax.run.train`.
"""

from aigc_jax.callable_package import make_callable

make_callable(__name__, "train")
