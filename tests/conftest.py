"""Settings that must hold before JAX starts."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from absl import flags

# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()
# Several devices in one process, for data parallelism; a run uses one unless its mesh says more.
jax.config.update("jax_num_cpu_devices", 4)
# The arrays are tiny: compiling takes the time, not computing.
jax.config.update("jax_disable_most_optimizations", True)
