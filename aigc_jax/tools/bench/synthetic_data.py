"""Random data of a given shape, to time a config whose data are not here."""

import numpy as np

from aigc_jax.core.config import Config
from aigc_jax.core.errors import UserError
from aigc_jax.data.dataset import Dataset
from aigc_jax.modalities.image.image_dataset import InMemoryImages
from aigc_jax.modalities.spec import TASKS, TextSpec
from aigc_jax.modalities.synthetic_spec import spec_of
from aigc_jax.modalities.text.token_windows import TokenWindows

BATCHES = 4  # that differ
TOKENS = 1 << 20


def synthetic(shape: str, config: Config) -> Dataset:
    """A data set of random examples, read through the same pipeline as a real one.

    Args:
      shape: as `data.shapes.spec_of` takes it.
      config: what is timed.

    Raises:
      UserError: if it is none of these.
    """
    rng, spec = np.random.default_rng(0), spec_of(shape, config)
    if isinstance(spec, TextSpec):
        if spec.format in TASKS:
            raise UserError(f"--synthetic={shape}: there is no random text of labels or tags")
        entries = getattr(config.model, "vocab_size", 0) or spec.tokenizer.size
        stream = rng.integers(0, entries, max(TOKENS, 2 * spec.seq_len)).astype(np.int32)
        windows = TokenWindows(stream, spec.seq_len)
        return Dataset(TextSpec(spec.tokenizer, spec.seq_len), windows, windows)
    count = BATCHES * config.data.batch_size
    whole = {"image": rng.integers(0, 256, (count, *spec.shape), np.uint8)}
    if spec.continuous:
        whole["image"] = rng.standard_normal((count, *spec.shape), np.float32)
    if spec.num_classes:
        whole["label"] = rng.integers(0, spec.num_classes, count)
    images = InMemoryImages(whole, np.arange(count))
    return Dataset(spec, images, images)
