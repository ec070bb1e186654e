"""Random data of a given shape, for configs whose data are not available."""

import numpy as np

from aigc_jax.core.config import Config
from aigc_jax.core.modality import MODALITIES
from aigc_jax.data.dataset import Dataset
from aigc_jax.modalities.synthetic_spec import synthetic_spec


def synthetic(shape: str, config: Config) -> Dataset:
    """Returns a data set of random examples that is read through the usual pipeline.

    Args:
      shape: as `synthetic_spec` takes it.
      config: the config to be timed.

    Raises:
      UserError: if `shape` is invalid, or the modality has no random data.
    """
    spec = synthetic_spec(shape, config)
    spec, examples = MODALITIES[spec.modality].synthetic_data(
        spec, config, np.random.default_rng(0)
    )
    return Dataset(spec, examples, examples)
