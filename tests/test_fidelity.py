"""The Fréchet classifier distance and its references."""

import numpy as np

from aigc_jax.config import Data
from aigc_jax.data import sources
from aigc_jax.evaluate import fidelity


def test_gaussian_samples_have_each_class_moments():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 3000)
    mixing = rng.normal(size=(4, 4)) * 8
    flat = rng.normal(size=(6000, 4)) @ mixing + np.where(labels, 100, 150)[:, None]
    images = np.clip(flat, 0, 255).round().astype(np.uint8).reshape(6000, 2, 2, 1)
    drawn = fidelity.gaussian_samples(images, labels)
    for label in (0, 1):
        x, y = (v[labels == label].reshape(-1, 4).astype(float) for v in (images, drawn))
        np.testing.assert_allclose(x.mean(0), y.mean(0), atol=2.0)
        np.testing.assert_allclose(np.cov(x.T), np.cov(y.T), atol=0.12 * np.cov(x.T).max())
    assert (images != drawn).mean() > 0.9  # new images, not old ones


def test_the_judge_ranks_real_noisy_and_random_images(monkeypatch):
    monkeypatch.setattr(fidelity, "STEPS", 80)
    dataset = sources.load(Data(source="digits", limit=600))
    judge = fidelity.Fidelity(dataset)
    real, _ = fidelity.gather(dataset.train, judge.num)
    assert judge.num == 600 and judge.accuracy > 0.8
    rng = np.random.default_rng(0)
    noisy = np.clip(real + rng.normal(0, 60, real.shape), 0, 255).astype(np.uint8)
    random = rng.integers(0, 256, real.shape).astype(np.uint8)
    distances = [judge.distance(x) for x in (real, noisy, random)]
    assert judge.floor == distances[0] < distances[1] < distances[2]
    assert judge.floor < judge.baseline
    # One image again and again is far away, however good it looks.
    assert judge.distance(real[:1].repeat(600, 0)) > 3 * judge.baseline


def test_images_without_labels_are_grouped(monkeypatch):
    monkeypatch.setattr(fidelity, "STEPS", 5)
    dataset = sources.load(Data(source="digits", limit=200))
    for part in (dataset.train, dataset.validation):
        get = part._get
        part._get = lambda i, get=get: (get(i)[0], None)
    judge = fidelity.Fidelity(dataset)
    assert judge.label_N is None and np.isfinite(
        judge.report(fidelity.gather(dataset.train, 50)[0])["frechet_classifier"]
    )
