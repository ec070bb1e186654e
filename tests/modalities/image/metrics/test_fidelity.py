"""How images are judged: metrics beside floors and intervals, measured on stated terms."""

import dataclasses
import os
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers import tiny
from PIL import Image

import aigc_jax
from aigc_jax.core.config import Data
from aigc_jax.core.errors import UserError
from aigc_jax.modalities import sources
from aigc_jax.modalities.image.eval_options import ImageEval
from aigc_jax.modalities.image.image_dataset import InMemoryImages
from aigc_jax.modalities.image.metrics import (
    compare_features,
    feature_classifier,
    fidelity,
    real_images,
    reconstruction,
    reference_stats,
)
from aigc_jax.modalities.image.metrics.classifier_network import Classifier

METRICS = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_classifier, "STEPS", 60)
        patch.setattr(fidelity, "_cache", {})
        patch.setattr(compare_features.distances, "SUBSETS", 10)
        yield patch


@pytest.fixture(scope="module")
def digits(patched):
    return sources.load_source(Data(source="digits", max_train_examples=500))


@pytest.fixture(scope="module")
def real(digits):
    return fidelity.fidelity_of(digits, "digits", ImageEval())


@pytest.fixture
def untrained(patched, monkeypatch):
    """A classifier as it was born: nothing to compile for its training."""

    def make(images, labels):
        assert len(images) == len(labels)
        model = Classifier(int(labels.max()) + 1)
        params = nn.unbox(model.init(jax.random.key(0), images[:1] / 255)["params"])
        arrays = {k: np.asarray(x) for k, x in flatten_dict(params, sep="/").items()}
        return feature_classifier.LearnedClassifier(arrays, images.shape[1:])

    monkeypatch.setattr(fidelity, "train_classifier", make)
    monkeypatch.setattr(fidelity, "_cache", {})


def noisy(images, size=60, seed=0):
    noise = np.random.default_rng(seed).normal(0, size, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_gaussian_samples_have_each_class_moments():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 3000)
    mixing = rng.normal(size=(4, 4)) * 8
    flat = rng.normal(size=(6000, 4)) @ mixing + np.where(labels, 100, 150)[:, None]
    images = np.clip(flat, 0, 255).round().astype(np.uint8).reshape(6000, 2, 2, 1)
    drawn = real_images.gaussian_samples(images, labels)
    for label in (0, 1):
        x, y = (v[labels == label].reshape(-1, 4).astype(float) for v in (images, drawn))
        np.testing.assert_allclose(x.mean(0), y.mean(0), atol=2.0)
        np.testing.assert_allclose(np.cov(x.T), np.cov(y.T), atol=0.12 * np.cov(x.T).max())
    assert (images != drawn).mean() > 0.9  # new images, not old ones


def test_images_are_gathered_from_all_classes():
    class Sorted:
        def __len__(self):
            return 90

        def __getitem__(self, i):
            return {"image": np.full((2, 2, 1), i, np.uint8), "label": np.int32(i // 30)}

    images, labels = real_images.gather(Sorted(), 12)
    assert len(images) == 12 and set(labels.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] // 30)


def test_the_judge_ranks_real_noisy_and_random_images(real):
    train = real.images.train
    assert real.num == 500 and real.provenance.count == 359
    rng = np.random.default_rng(0)
    random = rng.integers(0, 256, train.shape).astype(np.uint8)
    one = train[:1].repeat(500, 0)
    found = [real.report(x) for x in (train, noisy(train), random, one)]
    copies, blurred, other, single = found
    assert copies["classifier_accuracy"] > 0.8
    for name in ("frechet_distance", "kernel_distance"):
        values = [f[f"{name}_classifier"] for f in found]
        assert values[0] < values[1] < values[2]
        assert copies[f"{name}_classifier_real_data"] == values[0]
    # One image again and again is far away, however good it looks.
    assert (
        single["frechet_distance_classifier"] > 3 * copies["frechet_distance_classifier_gaussian"]
    )
    assert single["precision_classifier"] in (0, 1) and single["recall_classifier"] < 0.1
    assert copies["precision_classifier"] > blurred["precision_classifier"]
    assert other["coverage_classifier"] < 0.5 < copies["coverage_classifier"]
    # The training images themselves are copies; noise is not.
    assert copies["copying_pixels"] == copies["copying_classifier"] == 1
    assert blurred["copying_pixels"] < 0.5


def test_each_metric_has_an_interval_and_that_of_real_data(real):
    found = real.report(noisy(real.images.train[:300], 30))
    for name in METRICS:
        value, low, high, real_data = (
            found[f"{name}_classifier{end}"] for end in ("", "_low", "_high", "_real_data")
        )
        assert low <= value <= high and low < high and np.isfinite(real_data), name
        assert all(type(x) is float for x in (value, low, high, real_data))
    assert found["kernel_distance_classifier_std"] > 0
    expected = dict(num_samples=300, real_data_samples=500, reference_samples=359,
                    features="classifier", reference_split="held-out", resize="native")  # fmt: skip
    assert {k: found[k] for k in expected} == expected
    assert len(found["dataset_fingerprint"]) == len(found["features_weights"]) == 16


def test_only_inceptions_metrics_are_fid_and_kid():
    names = compare_features.metric_names("inception")
    assert names["frechet_distance"] == "fid" and names["kernel_distance"] == "kid"
    assert names["recall"] == "recall_inception"
    for other in ("classifier", "efficientnet_lite0"):
        assert (
            compare_features.metric_names(other)["frechet_distance"] == f"frechet_distance_{other}"
        )


def test_intervals_hold_what_other_samples_give(real):
    train = real.images.train
    held = compare_features.RealFeatures.of(real._network(real.images.held_out))
    x = real._network(noisy(train, 40))
    estimates, _ = compare_features.compare(x[:250], held)
    others, _ = compare_features.compare(x[250:], held)
    for name in METRICS:
        width = estimates[name].high - estimates[name].low
        assert abs(estimates[name].value - others[name].value) < 1.5 * width, name


def test_the_reference_may_be_the_training_images(digits, untrained):
    judged = fidelity.fidelity_of(digits, "digits", ImageEval(split="train"), 100)
    assert judged.provenance.count == 500 and judged.num == 100
    found = judged.report(judged.images.held_out[:100])
    assert found["frechet_distance_classifier"] == found["frechet_distance_classifier_real_data"]
    assert found["reference_split"] == "train" and found["real_data_samples"] == 100
    back = judged.report_reconstructions(judged.images.held_out)
    assert back["reconstruction_frechet_distance_classifier"] < 1e-6


def test_images_without_labels_are_grouped(untrained):
    dataset = sources.load_source(Data(source="digits", max_train_examples=200))
    for part in (dataset.train, dataset.validation):
        get = part._get
        part._get = lambda i, get=get: (get(i)[0], None)
    judged = fidelity.fidelity_of(dataset, "x", ImageEval(), 50)
    assert judged.images.train_labels is None
    assert np.isfinite(judged.report(judged.images.train[:50])["frechet_distance_classifier"])


def test_few_images_are_refused(digits):
    few = dataclasses.replace(digits, validation=fidelity_source(digits.validation, 4))
    with pytest.raises(UserError, match="4 held-out images"):
        fidelity.fidelity_of(few, "digits", ImageEval())
    with pytest.raises(UserError, match="3 samples are too few"):
        fidelity.fidelity_of(digits, "digits", ImageEval(), 3)


def test_a_run_that_could_not_be_judged_does_not_begin(tmp_path):
    data = dict(source="digits", batch_size=4, max_train_examples=4)
    recipe = tiny.recipe("gan", data=data, eval=dict(every=3, image=dict(fidelity=True)))
    with pytest.raises(UserError, match="too few to compare"):
        aigc_jax.train(recipe, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def fidelity_source(source, count):
    return InMemoryImages({"image": source._image, "label": source._label}, source._indices[:count])


# References ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(digits, tmp_path_factory):
    path = str(tmp_path_factory.mktemp("refs") / "new" / "digits.npz")
    judged = fidelity.fidelity_of(digits, "digits", ImageEval(reference=path), 200)
    return path, judged


@pytest.fixture
def saved(written, tmp_path):
    """A copy of a reference file, the terms that name it, and the judge that wrote it."""
    path, judged = written
    copy = shutil.copy(path, tmp_path / "digits.npz")
    fidelity._cache.clear()
    return str(copy), ImageEval(reference=str(copy)), judged


def test_a_reference_file_measures_as_its_writer_did(digits, saved, monkeypatch):
    path, terms, writer = saved
    images = noisy(writer.images.train[:200])
    expected = writer.report(images)

    def never(*_):
        raise AssertionError("a classifier was trained")

    monkeypatch.setattr(fidelity, "train_classifier", never)
    before = os.stat(path).st_mtime_ns
    reader = fidelity.fidelity_of(digits, "the same digits", terms, 200)
    assert reader.report(images) == expected and os.stat(path).st_mtime_ns == before
    header = reference_stats.load(path).provenance
    assert header.dataset == "digits" and header.library == aigc_jax.__version__
    assert header.shape == (8, 8, 1) and header.samples == 200


@pytest.mark.parametrize(
    "field, other, said",
    [
        ("fingerprint", "0" * 64, r"the data set is digits \(.*\) there and digits \(00000000\)"),
        ("split", "train", "the split is held-out there and train here"),
        ("shape", (8, 8, 3), "the image shape is"),
        ("resize", "torch-fidelity", "the resize rule is native there and torch-fidelity here"),
        ("samples", 50, "the number of samples is 200 there and 50 here"),
        ("count", 10, "the number of reference images is 359 there and 10 here"),
        ("features", "inception", "the feature network is classifier there and inception here"),
        ("weights", "f" * 64, "the network's weights is .* there and ffffffff here"),
    ],
)
def test_a_reference_of_other_terms_is_refused(saved, field, other, said):
    path, _, writer = saved
    theirs = reference_stats.load(path).provenance
    reference_stats.check_same(path, theirs, writer.provenance)
    ours = dataclasses.replace(writer.provenance, **{field: other})
    with pytest.raises(UserError, match=said) as caught:
        reference_stats.check_same(path, theirs, ours)
    assert "\n" not in str(caught.value)
    for free in (dict(dataset="elsewhere"), dict(library="9.9")):
        reference_stats.check_same(path, theirs, dataclasses.replace(writer.provenance, **free))


def test_a_reference_of_other_data_or_samples_is_refused_by_the_judge(digits, saved):
    path, terms, _ = saved
    other = dataclasses.replace(digits, train=fidelity_source(digits.train, 400))
    with pytest.raises(UserError, match="the data set is digits"):
        fidelity.fidelity_of(other, "digits", terms, 200)
    with pytest.raises(UserError, match=r"samples.*200.*300"):
        fidelity.fidelity_of(digits, "digits", terms, 300)
    with pytest.raises(UserError, match=r"split.*held-out"):
        fidelity.fidelity_of(digits, "digits", dataclasses.replace(terms, split="train"), 200)
    assert os.path.exists(path)


def changed(path, **arrays):
    with np.load(path) as f:
        content = {**f, **arrays}
    np.savez(path, **{k: v for k, v in content.items() if v is not None})


@pytest.mark.parametrize(
    "change",
    [
        dict(header=None),
        dict(header=np.array("{")),
        dict(header=np.array("[]")),
        dict(header=np.array("[" * 100_000)),
        dict(features=np.zeros((3, 2), np.float32)),
        dict(features=np.zeros(3)),
        dict(features=np.full((300, 64), np.nan, np.float32)),
        dict(mean=np.zeros(3)),
        dict(covariance=np.full((64, 64), np.inf)),
        dict(training_features=np.zeros((500, 3), np.float32)),
        dict(training_features=np.zeros((501, 64), np.float32)),
        {"network/logits/bias": None},
        {"network/logits/bias": np.zeros((2, 5), np.float32)},
        {"network/conv_0/kernel": np.zeros((3, 3, 1, 31), np.float32)},
        {"network/more": np.zeros(3, np.float32)},
        dict(features=np.array([{}], object)),
    ],
    ids=lambda change: next(iter(change)),
)
def test_damaged_reference_files_are_refused(digits, saved, change):
    path, terms, _ = saved
    changed(path, **change)
    with pytest.raises(UserError) as caught:
        fidelity.fidelity_of(digits, "digits", terms, 200)
    assert "\n" not in str(caught.value)


# Images of others ----------------------------------------------------------------------------


def test_images_of_other_libraries_are_judged_by_the_same_code(untrained, tmp_path):
    train = sources.load_source(Data(source="digits")).train
    images = noisy(np.stack([train[i]["image"] for i in range(40)]))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    np.savez(tmp_path / "x.npz", images=images)
    out = str(tmp_path / "near.png")
    found = aigc_jax.evaluate_images(images, "digits", out=out)
    assert os.path.exists(out) and found["num_samples"] == found["real_data_samples"] == 40
    for path in (str(folder), f"folder:{folder}", str(tmp_path / "x.npz")):
        assert aigc_jax.evaluate_images(path, "digits") == found
    for wrong, said in (
        (dict(images=images[:, :4]), r"uint8 \(40, 4, 8, 1\)"),
        (dict(images=images / 255), "float64"),
        (dict(images=str(tmp_path / "none")), "neither a folder"),
        (dict(images=images, source=""), "--source or --workdir"),
        (dict(images=images, source="python_docs"), "no images to compare"),
    ):
        with pytest.raises(UserError, match=said):
            aigc_jax.evaluate_images(**{"source": "digits", **wrong})


@pytest.mark.parametrize("shape", [(5, 9, 3), (13, 7, 1)])
def test_odd_sizes_and_colours(untrained, tmp_path, shape):
    rng = np.random.default_rng(0)
    path = str(tmp_path / "x.npz")
    np.savez(path, images=rng.integers(0, 256, (60, *shape)).astype(np.uint8))
    new = rng.integers(0, 256, (30, *shape)).astype(np.uint8)
    found = aigc_jax.evaluate_images(new, f"npz:{path}", out=str(tmp_path / "n.png"))
    assert np.isfinite(found["frechet_distance_classifier"]) and found["copying_pixels_high"] > 0.2


# Reconstructions -----------------------------------------------------------------------------


class Dimming:
    """An autoencoder: half of what it is shown, and its label in the corner."""

    def reconstruct(self, params, mutables, batch, key_B):
        assert batch["weight"].shape == batch["label"].shape == key_B.shape
        return (batch["image"] // 2).at[:, 0, 0, 0].set(batch["label"].astype("uint8"))


def test_reconstructions_are_of_the_held_out_images(real):
    images, labels = real.images.held_out[:50], real.images.held_out_labels[:50]
    made = reconstruction.reconstruct(Dimming(), {}, {}, images, labels, size=32)
    expected = images // 2
    expected[:, 0, 0, 0] = labels
    np.testing.assert_array_equal(made, expected)
    good = real.report_reconstructions(real.images.held_out)
    bad = real.report_reconstructions(real.images.held_out // 2)
    names = {f"reconstruction_{m}_classifier{e}" for m in METRICS for e in ("", "_low", "_high")}
    assert good.keys() == names | {"reconstruction_kernel_distance_classifier_std"}
    key = "reconstruction_frechet_distance_classifier"
    assert good[key] < 1e-6 < bad[key]
