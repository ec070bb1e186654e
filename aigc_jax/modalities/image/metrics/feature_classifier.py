"""A small classifier of one data set: features for images that no published network knows.

It is trained on the training images with a fixed seed, by the same train step as all else; where
they have no labels, it learns groups that k-means finds. Its numbers compare within one data set.
Shapes: N images, F features.
"""

from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tqdm import tqdm

from aigc_jax.core.config import Optim
from aigc_jax.core.errors import UserError
from aigc_jax.data.loader import DataLoader
from aigc_jax.distributed.mesh import local_mesh
from aigc_jax.modalities.image.metrics.classifier_network import Classifier
from aigc_jax.modalities.image.metrics.classifier_objective import Classification
from aigc_jax.modalities.image.metrics.feature_networks import (
    CLASSIFIER,
    NATIVE,
    batched,
    digest_of,
)
from aigc_jax.ops.image import to_signed
from aigc_jax.training.compile import compile_step
from aigc_jax.training.init import init_state
from aigc_jax.training.loop import fit
from aigc_jax.training.optimizers import make_optimizer
from aigc_jax.training.step import make_step

STEPS, BATCH = 600, 128
FEATURE_BATCH = 500  # images whose features are computed at once
CLUSTERS = 10


class LearnedClassifier:
    """A `features.Network`: the classifier with its parameters.

    Args:
      arrays: its parameters, by their paths; they may come from a file.
      shape: (H, W, C) of the images.

    Raises:
      UserError: if they are not those of a classifier of such images.
    """

    name, resize, max_images, default_samples = CLASSIFIER, NATIVE, 10_000, 0

    def __init__(self, arrays: dict[str, np.ndarray], shape: tuple[int, ...]):
        model = Classifier(arrays["logits/bias"].size if "logits/bias" in arrays else 1)
        made = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, *shape), np.float32))
        expected = {k: x.shape for k, x in flatten_dict(nn.unbox(made["params"]), sep="/").items()}
        if {k: x.shape for k, x in arrays.items()} != expected:
            raise UserError("the reference file holds no classifier of such images: write another")
        self.arrays, self.digest = arrays, digest_of(arrays)
        variables = {"params": unflatten_dict(arrays, sep="/")}
        self._outputs = jax.jit(lambda x: model.apply(variables, to_signed(x)))

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        return batched(self._outputs, images_NHWC, FEATURE_BATCH)[0]

    def predict(self, images_NHWC: np.ndarray) -> np.ndarray:
        """The class (N,) of each image."""
        return batched(self._outputs, images_NHWC, FEATURE_BATCH)[1].argmax(-1)


def train_classifier(images: np.ndarray, labels: np.ndarray) -> LearnedClassifier:
    """A classifier of uint8 images (N, H, W, C) with labels (N,)."""
    objective = Classification(Classifier(int(labels.max()) + 1))
    optimizer, _ = make_optimizer(Optim(lr=2e-3, weight_decay=1e-3), STEPS)
    step = compile_step(make_step(objective, {"model": optimizer}), local_mesh())
    example = {"image": images[:1], "label": labels[:1], "weight": np.ones(1, np.float32)}
    state = init_state(objective, {"model": optimizer}, example, jax.numpy.int32(0), ema=False)
    batches = DataLoader(_Labelled(images, labels), BATCH, seed=0, threads=1, shard=(0, 1))
    with tqdm(total=STEPS, desc="feature classifier", unit="step", leave=False, delay=2) as bar:
        state = fit(step, step.put_state(state), batches, start=0, end=STEPS, progress=bar)
    params = jax.device_get(state.params["model"])
    arrays = {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
    return LearnedClassifier(arrays, images.shape[1:])


class _Labelled:
    """Arrays as a source of training examples."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = np.int32(self.labels[i])
        return {"image": self.images[i], "label": label, "weight": np.float32(1)}


def cluster(train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of images without labels: k-means on the pixels."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(min(CLUSTERS, len(train)), random_state=0, n_init=3)
    flat = train.reshape(len(train), -1).astype(np.float32)
    return means.fit_predict(flat), means.predict(
        held_out.reshape(len(held_out), -1).astype(np.float32)
    )
