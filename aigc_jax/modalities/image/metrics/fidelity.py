"""How far generated images are from real ones, in the features of a network.

The reference is the held-out images unless `eval.split` says otherwise; beside each metric stands
its floor, that of as many real images of the other split: what a perfect model would get.
Shapes: N generated, M real and P training images, F features.
"""

import dataclasses
import functools
import os
from typing import Any

import numpy as np

from aigc_jax.core.config import Eval
from aigc_jax.core.errors import StorageError, UserError, shorten
from aigc_jax.data.dataset import Dataset, draw_examples
from aigc_jax.data.source import Source
from aigc_jax.modalities.image.metrics import nearest_neighbours, reference_stats
from aigc_jax.modalities.image.metrics.compare_features import (
    FEWEST,
    NEAR,
    Real,
    compare,
    metric_names,
)
from aigc_jax.modalities.image.metrics.distances import frechet, moments
from aigc_jax.modalities.image.metrics.feature_classifier import Learned, cluster, train_classifier
from aigc_jax.modalities.image.metrics.feature_networks import (
    CLASSIFIER,
    Network,
    check_features,
    open_network,
)
from aigc_jax.modalities.image.metrics.nearest_neighbours import Space
from aigc_jax.modalities.image.metrics.reference_stats import Provenance, Reference

POOL, POOL_VALUES = 100_000, 1 << 27  # training images, and their pixels, to find neighbours among

Images = np.ndarray
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RealImages:
    """A data set's images as the judge sees them: in an order of its own, so that any first few of
    them are of all classes.

    Attributes:
      train, held_out: uint8 (P, H, W, C) and (M, H, W, C).
      train_labels, held_out_labels: their classes, if they have any.
    """

    train: Images
    train_labels: np.ndarray | None
    held_out: Images
    held_out_labels: np.ndarray | None

    @classmethod
    def of(cls, dataset: Dataset, few: int) -> "RealImages":
        """At most `few` held-out images, and as many training images as neighbours need."""
        values = int(np.prod(dataset.spec.shape))
        pool = max(few, min(POOL, POOL_VALUES // values))
        return cls(*gather(dataset.train, pool), *gather(dataset.validation, few))

    @functools.cached_property
    def fingerprint(self) -> str:
        return reference_stats.fingerprint(self.train, self.held_out)


def gather(source: Source, limit: int) -> tuple[Images, np.ndarray | None]:
    """Images of a source in random order, with their labels if it has any."""
    examples = draw_examples(source, limit)
    labels = [e["label"] for e in examples if "label" in e]
    return np.stack([e["image"] for e in examples]), np.array(labels) if labels else None


def check_enough(train: int, held_out: int, samples: int) -> None:
    """Raises UserError if so many images and samples cannot be compared."""
    if min(train, held_out, samples) < FEWEST:
        raise UserError(
            f"{train} training and {held_out} held-out images and {samples} samples are too few to"
            " compare: add some, or set eval.fidelity=False when training"
        )


class Fidelity:
    """Judges generated images of one data set.

    Args:
      images: its images.
      source: what it is called.
      terms: the section `eval`; what it says of images.
      network: that of `terms.features`; none: a classifier, to be trained.
      cache: a reference file that may be there, and is written anew if it does not fit; "": none.

    Attributes:
      num: how many images to generate.
      label_N: classes to generate, those of the training images.
      provenance: what the numbers are measured with.

    Raises:
      UserError: if there are too few images, or the reference file does not fit.
    """

    def __init__(
        self, images: RealImages, source: str, terms: Eval, network: Network | None, cache: str = ""
    ):
        self.images, self._terms = images, terms
        self._few = Learned.few if network is None else network.few
        usual = 0 if network is None else network.samples
        self.num = terms.samples or usual or min(len(images.train), self._few)
        labels = images.train_labels
        self.label_N = None if labels is None else np.resize(labels, self.num)
        check_enough(len(images.train), len(images.held_out), self.num)
        self._network, self._source = network, source
        self._ours = self._stored(cache) or self._measured()
        self.provenance = self._ours.provenance
        self._names = metric_names(self._network.name)
        path = terms.reference or cache
        if path and not os.path.exists(os.path.expanduser(path)):
            reference_stats.save(self._ours, path)

    # References ------------------------------------------------------------------------------

    def _stored(self, cache: str) -> Reference | None:
        """What the reference file holds, if there is one that fits."""
        path = self._terms.reference or cache
        if not path or not os.path.exists(os.path.expanduser(path)):
            return None
        try:
            found = reference_stats.load(path)
            network, shape = self._network, self.images.train.shape[1:]
            if network is None and found.provenance.features == CLASSIFIER:
                network = Learned(found.network, shape)
            ours = (
                (network.name, network.digest, network.resize) if network else (CLASSIFIER, "", "")
            )
            reference_stats.check_same(path, found.provenance, self._provenance(*ours))
            width = network(self.images.train[:1]).shape[1]
            if found.train_PF.shape[1] != width or len(found.train_PF) > len(self.images.train):
                raise UserError(f"{shorten(path)} is damaged: write another file")
        except UserError:
            if self._terms.reference:
                raise
            os.remove(os.path.expanduser(path))
            return None
        self._network = network
        return found

    def _provenance(self, network: str, weights: str, rule: str) -> Provenance:
        return Provenance(
            dataset=self._source,
            fingerprint=self.images.fingerprint,
            split=self._terms.split,
            shape=tuple(self.images.train.shape[1:]),
            count=len(self._sides()[0]),
            samples=self.num,
            features=network,
            weights=weights,
            resize=rule,
        )

    def _sides(self) -> tuple[Images, Images]:
        """The reference's images, and those of the other split."""
        train, held_out = self.images.train[: self._few], self.images.held_out
        return (train, held_out) if self._terms.split == "train" else (held_out, train)

    def _measured(self) -> Reference:
        train, labels = self.images.train, self.images.train_labels
        trained = self._network is None
        if trained:
            held_out_labels = self.images.held_out_labels
            # One class teaches a classifier nothing.
            if labels is None or labels.max() == 0:
                labels, held_out_labels = cluster(train, self.images.held_out)
            self._network = train_classifier(train[: self._few], labels[: self._few])
        network = self._network
        real_images, others = self._sides()
        real = Real.of(network(real_images))
        train_PF = network(train if trained else train[:NEAR])
        others = others[: self.num]
        known = train_PF[: len(others)] if self._terms.split != "train" else ()
        other_NF = known if len(known) == len(others) else network(others)
        figures, _ = compare(other_NF, real)
        floor = {name: figure.value for name, figure in figures.items()}
        floor["samples"] = len(others)
        if trained:
            drawn = gaussian_samples(train[: self._few], labels[: self._few])[: self.num]
            floor["gaussian"] = frechet(moments(network(drawn)), real.moments)
            right = network.predict(self.images.held_out) == held_out_labels
            floor["accuracy"] = float(right.mean())
        arrays = network.arrays if trained else {}
        provenance = self._provenance(network.name, network.digest, network.resize)
        return Reference(provenance, real, train_PF, floor, arrays)

    # Reports ---------------------------------------------------------------------------------

    def report(self, images: Images, out: str = "") -> Found:
        """The metrics of generated images, each with its interval and its floor.

        Args:
          images: uint8 (N, H, W, C).
          out: where to write the picture of nearest training images; "": nowhere.
        """
        feature_NF = self._network(images)
        floor = self._ours.floor
        found = self._figures(feature_NF, self._ours.real)
        for name, called in self._names.items():
            found[f"{called}_floor"] = floor[name]
        if "gaussian" in floor:
            found[f"{self._names['frechet']}_gaussian"] = floor["gaussian"]
            found["classifier_accuracy"] = floor["accuracy"]
        spaces = self._spaces
        vectors = {self._network.name: feature_NF, "pixels": nearest_neighbours.pixels(images)}
        nearest = {name: spaces[name].nearest(vectors[name]) for name in spaces}
        found |= nearest_neighbours.metrics(nearest, spaces)
        if out:
            try:
                nearest_neighbours.save(
                    nearest_neighbours.picture(images, self.images.train, nearest), out
                )
            except OSError as e:
                raise StorageError(f"{out} cannot be written: {e.strerror or e}") from e
        p = self.provenance
        return found | {
            "samples": len(images),
            "floor_samples": int(floor["samples"]),
            "reference_samples": p.count,
            "reference_split": p.split,
            "features": p.features,
            "features_weights": p.weights[:16],
            "resize": p.resize,
            "dataset_fingerprint": p.fingerprint[:16],
        }

    def report_reconstructions(self, images: Images) -> Found:
        """The metrics of reconstructions of `self.images.held_out` beside those images."""
        found = self._figures(self._network(images), self._held_out)
        return {f"reconstruction_{name}": value for name, value in found.items()}

    def _figures(self, feature_NF: np.ndarray, real: Real) -> Found:
        figures, spread = compare(feature_NF, real)
        found = {}
        for name, called in self._names.items():
            found[called], found[f"{called}_low"], found[f"{called}_high"] = figures[name]
        return found | {f"{self._names[name]}_std": value for name, value in spread.items()}

    @functools.cached_property
    def _held_out(self) -> Real:
        if self._terms.split != "train":
            return self._ours.real
        return Real.of(self._network(self.images.held_out))

    @functools.cached_property
    def _spaces(self) -> dict[str, Space]:
        near, train = self.images.held_out[: nearest_neighbours.LOOKED_AT], self.images.train
        return {
            self._network.name: Space.of(self._ours.train_PF, self._network(near)),
            "pixels": Space.of(nearest_neighbours.pixels(train), nearest_neighbours.pixels(near)),
        }


_judges: dict[tuple[str, Eval, str], Fidelity] = {}


def fidelity_of(dataset: Dataset, source: str, terms: Eval, cache: str = "") -> Fidelity:
    """The judge of a data set's images; one that this process has made before is not made again.

    Args:
      dataset: the images.
      source: what it is called.
      terms: the section `eval`.
      cache: a folder in which a published network's reference may be kept; "": nowhere.

    Raises:
      UserError: as `Fidelity`, or if there is no such network.
    """
    check_features(terms.features)
    asked = ("features", "resize", "split", "samples", "reference")
    terms = Eval(**{name: getattr(terms, name) for name in asked})
    trained = terms.features == CLASSIFIER
    network = None if trained else open_network(terms.features, terms.resize)
    images = RealImages.of(dataset, Learned.few if network is None else network.few)
    key = (images.fingerprint, terms, "" if network is None else network.digest)
    if key not in _judges:
        # Looking at thousands of images takes a published network minutes.
        keep = cache and network and not terms.reference
        path = os.path.join(cache, f"reference_{network.name}.npz") if keep else ""
        while len(_judges) > 1:
            del _judges[next(iter(_judges))]
        _judges[key] = Fidelity(images, source, terms, network, path)
    return _judges[key]


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
