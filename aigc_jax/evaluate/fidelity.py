"""How far generated images are from held-out ones: the Fréchet classifier distance.

The features are those of a small classifier trained on the same training images with a fixed seed,
by the same train step. This is not FID: there is no Inception network in it, and its numbers only
compare within one data set.
Shapes: N images, F features, D pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from aigc_jax.config import Optim
from aigc_jax.data.pipeline import TrainIterator
from aigc_jax.data.sources import Dataset, Source
from aigc_jax.errors import UserError
from aigc_jax.evaluate.distances import frechet, moments
from aigc_jax.models.classifier import Classifier
from aigc_jax.objectives.classifier import Classification
from aigc_jax.ops.image import to_signed
from aigc_jax.parallel.mesh import local_mesh
from aigc_jax.train.compile import compile_step
from aigc_jax.train.loop import fit
from aigc_jax.train.optim import make_optimizer
from aigc_jax.train.state import init_state
from aigc_jax.train.step import make_step

LIMIT = 10_000  # images on either side; of a larger training set, the classifier sees the first
STEPS, BATCH = 600, 128
CLUSTERS = 10

Images = np.ndarray


class Fidelity:
    """Judges generated images of one data set.

    Images without labels are first grouped by k-means, and the classifier learns the groups.

    Attributes:
      floor: the distance of training images from held-out ones: what a perfect model would get.
      baseline: the distance of samples of a Gaussian fitted to the pixels of each class.
      accuracy: of the classifier, on held-out images.
      num: how many images to generate.
      label_N: classes to generate, those of the training images.
    """

    def __init__(self, dataset: Dataset, samples: int = 0):
        train, train_labels = gather(dataset.train, LIMIT)
        held_out, labels = gather(dataset.validation, LIMIT)
        self.num = min(samples or len(train), len(train))
        self.label_N = None if train_labels is None else train_labels[: self.num]
        # One class teaches a classifier nothing.
        if train_labels is None or train_labels.max() == 0:
            train_labels, labels = cluster(train, held_out)
        if min(len(train), len(held_out)) < 2:
            raise UserError(
                f"{len(train)} training and {len(held_out)} held-out images are too few for a"
                " Fréchet distance: add images or set eval.fidelity=False"
            )
        self._features, predict = train_classifier(train, train_labels)
        self._held_out = moments(self._features(held_out))
        self.floor = self.distance(train[: self.num])
        self.baseline = self.distance(gaussian_samples(train, train_labels)[: self.num])
        self.accuracy = float((predict(held_out) == labels).mean())

    def distance(self, images: Images) -> float:
        """Fréchet distance of images (N, H, W, C) uint8 from the held-out ones."""
        return frechet(moments(self._features(images)), self._held_out)

    def report(self, images: Images) -> dict[str, float]:
        """The distance beside its references."""
        return {
            "frechet_classifier": self.distance(images),
            "frechet_classifier_floor": self.floor,
            "frechet_classifier_gaussian": self.baseline,
            "classifier_accuracy": self.accuracy,
        }


def gather(source: Source, limit: int) -> tuple[Images, np.ndarray | None]:
    """The first images of a source, with their labels if it has any."""
    examples = [source[i] for i in range(min(len(source), limit))]
    labels = [e["label"] for e in examples if "label" in e]
    return np.stack([e["image"] for e in examples]), np.array(labels) if labels else None


def cluster(train: Images, held_out: Images) -> tuple[np.ndarray, np.ndarray]:
    """Groups of images without labels: k-means on the pixels."""
    from sklearn.cluster import MiniBatchKMeans

    means = MiniBatchKMeans(min(CLUSTERS, len(train)), random_state=0, n_init=3)
    flat = train.reshape(len(train), -1).astype(np.float32)
    return means.fit_predict(flat), means.predict(
        held_out.reshape(len(held_out), -1).astype(np.float32)
    )


class Labelled:
    """Arrays as a source of training examples."""

    def __init__(self, images: Images, labels: np.ndarray):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        label = np.int32(self.labels[i])
        return {"image": self.images[i], "label": label, "weight": np.float32(1)}


def train_classifier(
    images: Images, labels: np.ndarray
) -> tuple[Callable[[Images], np.ndarray], Callable[[Images], np.ndarray]]:
    """Functions to features (N, F) and to predicted labels (N,), trained with a fixed seed."""
    model = Classifier(int(labels.max()) + 1)
    objective = Classification(model)
    optimizer, _ = make_optimizer(Optim(lr=2e-3, weight_decay=1e-3), STEPS)
    step = compile_step(make_step(objective, {"model": optimizer}), local_mesh())
    source = Labelled(images, labels)
    example = {"image": images[:1], "label": labels[:1], "weight": np.ones(1, np.float32)}
    state = init_state(objective, {"model": optimizer}, example, jax.numpy.int32(0), ema=False)
    batches = TrainIterator(source, BATCH, seed=0, threads=1, alone=True)
    with tqdm(total=STEPS, desc="judge", unit="step", leave=False, delay=2) as bar:
        state = fit(step, step.put_state(state), batches, start=0, end=STEPS, progress=bar)
    params = jax.device_get(state.params["model"])
    outputs = jax.jit(lambda x: model.apply({"params": params}, to_signed(x)))

    def batched(images: Images, which: int) -> np.ndarray:
        parts = []
        for i in range(0, len(images), 500):
            part = images[i : i + 500]
            full = np.concatenate([part, np.zeros((500 - len(part), *part.shape[1:]), np.uint8)])
            parts.append(np.asarray(outputs(full)[which])[: len(part)])
        return np.concatenate(parts)

    return lambda x: batched(x, 0).astype(np.float64), lambda x: batched(x, 1).argmax(-1)


def gaussian_samples(images: Images, labels: np.ndarray) -> Images:
    """As many images again, drawn from a Gaussian with each class's pixel mean and covariance.

    A random combination of the centred images has just their covariance; no D × D matrix is needed.
    """
    rng = np.random.default_rng(0)
    out = np.empty_like(images)
    for label in np.unique(labels):
        (rows,) = np.nonzero(labels == label)
        flat = images[rows].reshape(len(rows), -1).astype(np.float64)
        mean = flat.mean(0)
        weights = rng.standard_normal((len(rows), len(rows))) / np.sqrt(max(len(rows) - 1, 1))
        drawn = mean + weights @ (flat - mean)
        out[rows] = np.clip(np.round(drawn), 0, 255).astype(np.uint8).reshape(images[rows].shape)
    return out
