"""Counts the modes of a data set that generated images cover, if its modes can be counted.

Shapes: N images, H height, W width, C channels, K classes of one channel.
"""

import numpy as np

from aigc_jax.data.dataset import Dataset
from aigc_jax.data.source import SupportsRowStreams


def mode_coverage(dataset: Dataset, images: np.ndarray) -> dict[str, float]:
    """`modes` found in images (N, H, W, C), and how unevenly they are hit; {} if there are none.

    Only of data whose channels are images of their own (`Dataset.channel_images`): each is
    classified by a support vector machine that has learned the training images' channels, and a
    mode is a combination of classes, one of K^C. `modes_kl` is KL(share of each mode ‖ uniform) in
    nats. `…_real_data` are the values of as many real images, by their labels: they miss modes too
    if they are few, and have about (K^C − 1) / 2N nats.
    """
    if dataset.channel_images is None:
        return {}
    from sklearn.svm import SVC

    known, labels = dataset.channel_images
    total = (int(labels.max()) + 1) ** images.shape[-1]
    machine = SVC().fit(flat(known), labels)
    numbers = np.zeros(len(images), np.int64)
    for channel in range(images.shape[-1]):
        numbers = numbers * (int(labels.max()) + 1) + machine.predict(flat(images[..., channel]))
    train = dataset.train
    assert not isinstance(train, SupportsRowStreams)
    real = np.array([train[i]["label"] for i in range(min(len(images), len(train)))])
    found, real_data = count_modes(numbers, total), count_modes(real, total)
    return {
        "modes": found[0],
        "modes_kl": found[1],
        "modes_real_data": real_data[0],
        "modes_kl_real_data": real_data[1],
    }


def count_modes(numbers: np.ndarray, total: int) -> tuple[float, float]:
    """How many different numbers there are, and KL(their shares ‖ uniform over `total`) in nats."""
    _, counts = np.unique(numbers, return_counts=True)
    share = counts / counts.sum()
    return float(len(counts)), float((share * np.log(share * total)).sum())


def flat(images: np.ndarray) -> np.ndarray:
    """(N, H, W) uint8 → (N, H·W) in [0, 1]."""
    return images.reshape(len(images), -1) / 255.0
