"""Held-out likelihood, and how good samples are.

`aigc_jax.evaluate(workdir)` is `aigc_jax.run.evaluate`.
"""

from aigc_jax.callable_package import make_callable

make_callable(__name__, "evaluate")
