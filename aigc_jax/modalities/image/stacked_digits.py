"""Stacked digits: three digits in the colour channels of an image, with 1,000 countable modes.

After the stacked MNIST of Metz et al. (2017) and Lin et al. (2018), with scikit-learn's digits.
"""

import numpy as np

from aigc_jax.core.config import Data
from aigc_jax.data.raw_dataset import Example, LazyExamples, RawDataset
from aigc_jax.data.split import hold_out

COUNTS = {"train": 50_000, "validation": 5_000}


def stack_digits(digits: RawDataset, config: Data) -> RawDataset:
    """Stacks three random digits a, b, c per image; its class is 100 a + 10 b + c.

    The digits of image i depend on the split and on i only. Held-out digits are not in training
    images.

    Args:
      digits: grey digits in a split "train".
      config: the section `data`, which determines the held-out digits.
    """
    examples = [example() for example in digits.splits["train"]]
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples])
    names = digits.class_names

    def maker(split: int, indices: np.ndarray) -> LazyExamples:
        def make(i: int) -> Example:
            rng = np.random.default_rng((split, int(i)))
            chosen = indices[rng.integers(0, len(indices), 3)]
            a, b, c = (int(label) for label in labels[chosen])
            image = np.concatenate(list(images[chosen]), -1)
            return {"image": image, "label": (a * len(names) + b) * len(names) + c}

        return LazyExamples(make, list(COUNTS.values())[split])

    own = [np.asarray(part) for part in hold_out(len(examples), config, "digits")]
    splits = {name: maker(k, own[k]) for k, name in enumerate(COUNTS)}
    height, width, _ = images.shape[1:]
    return RawDataset(
        splits,
        (height, width, 3),
        tuple(a + b + c for a in names for b in names for c in names),
        levels=digits.levels,
        channel_images=(images[own[0], ..., 0], labels[own[0]]),
    )
