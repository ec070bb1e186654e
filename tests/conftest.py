"""Settings that must hold before JAX starts."""

import atexit
import os
import shutil
import signal
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The workers share the cores: threads of linear algebra would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Compiling takes most of the time, and many tests compile the same tiny programs: the workers and
# the processes that tests start share one cache for as long as the tests run.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="aigc_tests_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the programs
# that they start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest
from absl import flags

# Grain reads absl flags, which nobody parses under pytest.
flags.FLAGS.mark_as_parsed()
# Several devices in one process, for data parallelism; a run uses one unless its mesh says more.
jax.config.update("jax_num_cpu_devices", 8)
# The arrays are tiny: compiling takes the time, not computing.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Turns XLA's optimisations on for tests with the marker `xla_optimizations`, off for others.

    Compiled programs are forgotten at each change: JAX would use them again.
    """
    off = item.get_closest_marker("xla_optimizations") is None
    if jax.config.read("jax_disable_most_optimizations") != off:
        jax.config.update("jax_disable_most_optimizations", off)
        jax.clear_caches()
