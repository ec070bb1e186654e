"""The distances between sets of features, by hand and by the formulas of others."""

import numpy as np
import pytest
import scipy.linalg

from aigc_jax.modalities.image.metrics import distances
from aigc_jax.modalities.image.metrics.distances import Moments


def gaussian(n, f, seed, shift=0.0, stretch=1.0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).normal(size=(f, f)) / np.sqrt(f)
    return rng.normal(size=(n, f)) @ (np.eye(f) + mixing) * stretch + shift


def test_frechet_by_scipy():
    x, y = gaussian(300, 20, 1), gaussian(200, 20, 2, shift=0.2, stretch=1.3)
    a, b = distances.moments(x), distances.moments(y)
    np.testing.assert_allclose(a.cov, np.cov(x.T))
    root = scipy.linalg.sqrtm(a.cov @ b.cov).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov - 2 * root)
    np.testing.assert_allclose(distances.frechet(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(distances.frechet(b, a), expected, rtol=1e-9)
    assert distances.frechet(a, a) < 1e-9


def test_frechet_by_hand():
    # One dimension: (μ₁ − μ₂)² + (σ₁ − σ₂)².
    one, other = Moments(np.ones(1), np.eye(1) * 4, 9), Moments(np.ones(1) * 4, np.eye(1) * 25, 9)
    np.testing.assert_allclose(distances.frechet(one, other), 9 + 9)
    assert distances.moments(np.array([[1.0], [3.0]])).cov.shape == (1, 1)


def test_frechet_with_fewer_vectors_than_features():
    # In the space of the vectors themselves, which has a third of the dimensions, it is the same.
    small, smaller = gaussian(12, 11, 1), gaussian(9, 11, 2, shift=0.3)
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(40, 11)))[0].T
    wide = [distances.moments(x @ turn * 1e3) for x in (small, smaller)]
    narrow = [distances.moments(x * 1e3) for x in (small, smaller)]
    np.testing.assert_allclose(distances.frechet(*wide), distances.frechet(*narrow), rtol=1e-10)
    # The formula of torch-fidelity agrees but for the rounding of zeros' roots.
    a, b = wide
    values = np.linalg.eigvals(a.cov @ b.cov).astype(complex)
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.cov + b.cov)
    np.testing.assert_allclose(
        distances.frechet(a, b), expected - 2 * np.sqrt(values).real.sum(), rtol=1e-5
    )
    assert distances.frechet(a, a) < 1e-6 * np.trace(a.cov)


def test_the_error_of_frechet_is_its_spread():
    found = []
    for seed in range(150):
        x, y = gaussian(400, 3, [seed, 1]), gaussian(500, 3, [seed, 2], shift=0.5, stretch=1.4)
        a, b = distances.moments(x), distances.moments(y)
        found.append((distances.frechet(a, b), distances.frechet_error(x, y, a, b)))
    values, errors = np.array(found).T
    np.testing.assert_allclose(errors.mean(), values.std(), rtol=0.15)


def independent_mmd(x, y):
    """torch-fidelity's estimate, written from its definition: sums over pairs that differ."""
    k = lambda a, b: (1.0 + a @ b / len(a)) ** 3  # noqa: E731
    n, m = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    other = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return own + other - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_kernel_distance_by_its_definition():
    x, y = gaussian(14, 6, 1), gaussian(11, 6, 2, shift=0.2)
    expected = independent_mmd(x, y)
    np.testing.assert_allclose(distances.squared_mmd(x, y), expected, rtol=1e-10)
    # Subsets as large as the smaller set; here the only one there is, in any order.
    mean, deviation = distances.kernel_distance(y, y + 1, subsets=3, size=1000)
    np.testing.assert_allclose(mean, independent_mmd(y, y + 1), rtol=1e-10)
    assert deviation < 1e-10


def test_kernel_distance_is_unbiased_and_its_error_is_its_spread():
    same = [
        distances.squared_mmd(gaussian(40, 4, [s, 1]), gaussian(60, 4, [s, 2])) for s in range(300)
    ]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
    found = []
    for seed in range(150):
        x, y = gaussian(200, 4, [seed, 1]), gaussian(300, 4, [seed, 2], shift=0.4)
        found.append((distances.squared_mmd(x, y), distances.kernel_error(x, y)))
    values, errors = np.array(found).T
    np.testing.assert_allclose(errors.mean(), values.std(), rtol=0.15)


def test_torch_fidelity_says_the_same():
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    torch = pytest.importorskip("torch")
    x, y = gaussian(300, 24, 1), gaussian(250, 24, 2, shift=0.1, stretch=1.1)
    both = torch.from_numpy(x), torch.from_numpy(y)
    kid = metric_kid.kid_features_to_metric(*both, kid_subset_size=100, kid_subsets=20, verbose=0)
    mean, deviation = distances.kernel_distance(x, y, subsets=20, size=100)
    np.testing.assert_allclose(mean, kid[metric_kid.KEY_METRIC_KID_MEAN], rtol=1e-6)
    np.testing.assert_allclose(deviation, kid[metric_kid.KEY_METRIC_KID_STD], rtol=1e-6)
    statistics = [metric_fid.fid_features_to_statistics(v) for v in both]
    fid = metric_fid.fid_statistics_to_metric(*statistics, False)[metric_fid.KEY_METRIC_FID]
    np.testing.assert_allclose(
        distances.frechet(distances.moments(x), distances.moments(y)), fid, rtol=1e-6
    )
    prc = metric_prc.prc_features_to_metric(*both, verbose=False)
    found = distances.prdc(x, y)
    np.testing.assert_allclose(found.precision_N.mean(), prc["precision"], rtol=1e-6)
    np.testing.assert_allclose(found.recall_M.mean(), prc["recall"], rtol=1e-6)


def test_coverings_by_hand():
    real = np.array([0.0, 1.0, 2.0, 3.0, 10.0, 20.0])[:, None]
    # The 3rd and 5th nearest others: 3 2 2 3 9 18 and 20 19 18 17 10 20.
    radii = distances.squared_radii(real, (3, 5))
    np.testing.assert_allclose(np.sqrt(radii[3]), [3, 2, 2, 3, 9, 18])
    np.testing.assert_allclose(np.sqrt(radii[5]), [20, 19, 18, 17, 10, 20])
    generated = np.array([-3.5, 2.5, 2.6, 2.7, 50.0])[:, None]
    found = distances.prdc(generated, real)
    # −3.5 is 3.5 from 0; the others but 50 lie in several balls.
    np.testing.assert_array_equal(found.precision_N, [0, 1, 1, 1, 0])
    # Balls of the generated, to the 3rd nearest other: 6.2, 6.0, 6.1, 6.2, 47.4.
    np.testing.assert_array_equal(found.recall_M, [1, 1, 1, 1, 1, 1])
    # −3.5 lies within 20 of 0, 19 of 1, 18 of 2 and 17 of 3.
    np.testing.assert_allclose(found.density_N, [4 / 5, 6 / 5, 6 / 5, 6 / 5, 0])
    np.testing.assert_array_equal(found.coverage_M, [1, 1, 1, 1, 1, 1])
    far = distances.prdc(generated + 1000, real)
    assert not far.precision_N.any() and not far.coverage_M.any() and not far.density_N.any()
    few = np.array([0.1, 0.2, 0.3, 0.4])[:, None]
    np.testing.assert_array_equal(distances.prdc(few, real).recall_M, [1, 0, 0, 0, 0, 0])


def test_copies_are_within_the_smallest_radius():
    rng = np.random.default_rng(0)
    real = np.repeat(rng.normal(size=(5, 30)) * 100, 6, 0)  # each six times: all radii are 0
    found = distances.prdc(real, real)
    assert found.precision_N.all() and found.recall_M.all() and found.coverage_M.all()
    np.testing.assert_allclose(found.density_N, 6 / 5)


def test_chunks_change_nothing(monkeypatch):
    x, y = gaussian(30, 5, 1), gaussian(25, 5, 2, shift=0.3)
    whole = distances.prdc(x, y), distances.nearest(x, y, 3), distances.kernel_error(x, y)
    monkeypatch.setattr(distances, "ROWS", 7)
    cut = distances.prdc(x, y), distances.nearest(x, y, 3), distances.kernel_error(x, y)
    for name in ("precision_N", "recall_M", "density_N", "coverage_M"):
        np.testing.assert_array_equal(getattr(whole[0], name), getattr(cut[0], name))
    np.testing.assert_array_equal(whole[1][0], cut[1][0])
    np.testing.assert_allclose(whole[1][1], cut[1][1])
    np.testing.assert_allclose(whole[2], cut[2])


def test_nearest_by_hand():
    order, away = distances.nearest(np.array([[0.0], [9.0]]), np.array([[1.0], [-2.0], [9.0]]), 2)
    np.testing.assert_array_equal(order, [[0, 1], [2, 0]])
    np.testing.assert_allclose(away, [[1, 2], [0, 8]])
