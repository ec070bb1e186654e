"""Compares generated images with real ones, in the features of a network.

The reference is the held-out images unless `eval.image.split` says otherwise. Beside each metric is
its value for as many real images of the other split (`…_real_data`): a perfect model's.
Shapes: N generated, M real and P training images, F features.
"""

import functools
import os
from typing import Any

import numpy as np

from aigc_jax.core.errors import StorageError, UserError, shorten
from aigc_jax.data.dataset import Dataset
from aigc_jax.modalities.image.eval_options import ImageEval
from aigc_jax.modalities.image.metrics import nearest_neighbours, reference_stats
from aigc_jax.modalities.image.metrics.compare_features import (
    MAX_PAIRWISE,
    RealFeatures,
    compare,
    metric_names,
)
from aigc_jax.modalities.image.metrics.distances import frechet, moments
from aigc_jax.modalities.image.metrics.feature_classifier import (
    LearnedClassifier,
    cluster,
    train_classifier,
)
from aigc_jax.modalities.image.metrics.feature_networks import (
    CLASSIFIER,
    Network,
    check_features,
    open_network,
)
from aigc_jax.modalities.image.metrics.nearest_neighbours import Space
from aigc_jax.modalities.image.metrics.real_images import RealImages, check_enough, gaussian_samples
from aigc_jax.modalities.image.metrics.reference_stats import Provenance, Reference

Images = np.ndarray
Metrics = dict[str, Any]


class Fidelity:
    """Compares generated images with those of one data set.

    Args:
      images: its images.
      source: its name.
      options: the section `eval.image`.
      num_samples: images to generate; 0: the network's own number, or as many as were trained on.
      network: that of `options.features`; None: a classifier, which is trained.
      cache: a reference file that is used if it fits, and written again if not; "": none.

    Attributes:
      num: number of images to generate.
      provenance: what the numbers are measured with.

    Raises:
      UserError: if there are too few images, or the reference file does not fit.
    """

    def __init__(
        self,
        images: RealImages,
        source: str,
        options: ImageEval,
        num_samples: int,
        network: Network | None,
        cache: str = "",
    ):
        self.images, self._options, self._source = images, options, source
        self._limit = LearnedClassifier.max_images if network is None else network.max_images
        default = 0 if network is None else network.default_samples
        self.num = num_samples or default or min(len(images.train), self._limit)
        check_enough(len(images.train), len(images.held_out), self.num)
        path = options.reference or cache
        self._network, self._reference = self._stored(path, network) or self._measure(network)
        self.provenance = self._reference.provenance
        self._names = metric_names(self._network.name)
        if path and not os.path.exists(os.path.expanduser(path)):
            reference_stats.save(self._reference, path)

    # References ------------------------------------------------------------------------------

    def _stored(self, path: str, network: Network | None) -> tuple[Network, Reference] | None:
        """The network and the reference of a file; None if there is none that fits."""
        if not path or not os.path.exists(os.path.expanduser(path)):
            return None
        try:
            return self._load(path, network)
        except UserError:
            if self._options.reference:
                raise
            os.remove(os.path.expanduser(path))
            return None

    def _load(self, path: str, network: Network | None) -> tuple[Network, Reference]:
        found = reference_stats.load(path)
        if network is None and found.provenance.features == CLASSIFIER:
            network = LearnedClassifier(found.network, self.images.train.shape[1:])
        ours = (network.name, network.digest, network.resize) if network else (CLASSIFIER, "", "")
        reference_stats.check_same(path, found.provenance, self._provenance(*ours))
        assert network is not None  # another network than the classifier's differs already
        width = network(self.images.train[:1]).shape[1]
        if found.train_PF.shape[1] != width or len(found.train_PF) > len(self.images.train):
            raise UserError(f"{shorten(path)} is damaged: write another file")
        return network, found

    def _provenance(self, network: str, weights: str, rule: str) -> Provenance:
        return Provenance(
            dataset=self._source,
            fingerprint=self.images.fingerprint,
            split=self._options.split,
            shape=tuple(self.images.train.shape[1:]),
            count=len(self._sides()[0]),
            samples=self.num,
            features=network,
            weights=weights,
            resize=rule,
        )

    def _sides(self) -> tuple[Images, Images]:
        """The reference's images, and those of the other split."""
        train, held_out = self.images.train[: self._limit], self.images.held_out
        return (train, held_out) if self._options.split == "train" else (held_out, train)

    def _measure(self, network: Network | None) -> tuple[Network, Reference]:
        """The network, trained if it is the classifier, and the reference in its features."""
        train, labels = self.images.train, self.images.train_labels
        held_out_labels, learned = self.images.held_out_labels, None
        if network is None:
            # One class teaches a classifier nothing.
            if labels is None or labels.max() == 0:
                labels, held_out_labels = cluster(train, self.images.held_out)
            learned = train_classifier(train[: self._limit], labels[: self._limit])
        network = network or learned
        assert network is not None
        reference_images, others = self._sides()
        real = RealFeatures.of(network(reference_images))
        train_PF = network(train if learned else train[:MAX_PAIRWISE])
        others = others[: self.num]
        known = train_PF[: len(others)] if self._options.split != "train" else train_PF[:0]
        other_NF = known if len(known) == len(others) else network(others)
        estimates, _ = compare(other_NF, real)
        scores = {name: estimate.value for name, estimate in estimates.items()}
        scores["samples"] = len(others)
        if learned is not None:
            assert labels is not None
            drawn = gaussian_samples(train[: self._limit], labels[: self._limit])[: self.num]
            scores["gaussian"] = frechet(moments(network(drawn)), real.moments)
            right = learned.predict(self.images.held_out) == held_out_labels
            scores["accuracy"] = float(right.mean())
        provenance = self._provenance(network.name, network.digest, network.resize)
        arrays = {} if learned is None else learned.arrays
        return network, Reference(provenance, real, train_PF, scores, arrays)

    # Reports ---------------------------------------------------------------------------------

    def report(self, images: Images, out: str = "") -> Metrics:
        """The metrics of generated images, each with its interval and that of real data.

        Args:
          images: uint8 (N, H, W, C).
          out: file for a picture of the nearest training images; "": none.

        Raises:
          StorageError: if the picture cannot be written.
        """
        feature_NF = self._network(images)
        scores = self._reference.real_data
        found = self._estimates(feature_NF, self._reference.real)
        for name, called in self._names.items():
            found[f"{called}_real_data"] = scores[name]
        if "gaussian" in scores:
            found[f"{self._names['frechet_distance']}_gaussian"] = scores["gaussian"]
            found["classifier_accuracy"] = scores["accuracy"]
        spaces = self._spaces
        vectors = {self._network.name: feature_NF, "pixels": nearest_neighbours.pixels(images)}
        nearest = {name: spaces[name].nearest(vectors[name]) for name in spaces}
        found |= nearest_neighbours.metrics(nearest, spaces)
        if out:
            picture = nearest_neighbours.picture(images, self.images.train, nearest)
            try:
                nearest_neighbours.save(picture, out)
            except OSError as e:
                raise StorageError(f"{out} cannot be written: {e.strerror or e}") from e
        p = self.provenance
        return found | {
            "num_samples": len(images),
            "real_data_samples": int(scores["samples"]),
            "reference_samples": p.count,
            "reference_split": p.split,
            "features": p.features,
            "features_weights": p.weights[:16],
            "resize": p.resize,
            "dataset_fingerprint": p.fingerprint[:16],
        }

    def report_reconstructions(self, images: Images) -> Metrics:
        """The metrics of reconstructions of `self.images.held_out` beside those images."""
        found = self._estimates(self._network(images), self._held_out)
        return {f"reconstruction_{name}": value for name, value in found.items()}

    def _estimates(self, feature_NF: np.ndarray, real: RealFeatures) -> Metrics:
        estimates, spread = compare(feature_NF, real)
        found: Metrics = {}
        for name, called in self._names.items():
            found[called], found[f"{called}_low"], found[f"{called}_high"] = estimates[name]
        return found | {f"{self._names[name]}_std": value for name, value in spread.items()}

    @functools.cached_property
    def _held_out(self) -> RealFeatures:
        if self._options.split != "train":
            return self._reference.real
        return RealFeatures.of(self._network(self.images.held_out))

    @functools.cached_property
    def _spaces(self) -> dict[str, Space]:
        near = self.images.held_out[: nearest_neighbours.MAX_NEIGHBOURS]
        train = self.images.train
        return {
            self._network.name: Space.of(self._reference.train_PF, self._network(near)),
            "pixels": Space.of(nearest_neighbours.pixels(train), nearest_neighbours.pixels(near)),
        }


_cache: dict[tuple[str, ImageEval, int, str], Fidelity] = {}  # of this process, two data sets


def fidelity_of(
    dataset: Dataset, source: str, options: ImageEval, num_samples: int = 0, folder: str = ""
) -> Fidelity:
    """The comparison with a data set's images; made only once in a process.

    Args:
      dataset: the images.
      source: its name.
      options: the section `eval.image`.
      num_samples: images to generate; 0: see `Fidelity`.
      folder: where a published network's reference may be kept; "": nowhere.

    Raises:
      UserError: as `Fidelity`, or if there is no such network.
    """
    check_features(options.features)
    trained = options.features == CLASSIFIER
    network = None if trained else open_network(options.features, options.resize)
    limit = LearnedClassifier.max_images if network is None else network.max_images
    images = RealImages.of(dataset, limit)
    key = (images.fingerprint, options, num_samples, "" if network is None else network.digest)
    if key not in _cache:
        path = ""
        if folder and network is not None and not options.reference:
            # A published network takes minutes for thousands of images.
            path = os.path.join(folder, f"reference_{network.name}.npz")
        while len(_cache) > 1:
            del _cache[next(iter(_cache))]
        _cache[key] = Fidelity(images, source, options, num_samples, network, path)
    return _cache[key]
