"""How far two sets of feature vectors are apart: pure functions of arrays, in float64.

Shapes: N generated and M real feature vectors of F numbers each. All take chunks of rows, so that
no N × M matrix is ever held.
"""

import dataclasses

import numpy as np
from threadpoolctl import threadpool_limits

SUBSETS, SUBSET_SIZE, SUBSET_SEED = 100, 1000, 2020  # of the kernel distance: torch-fidelity's
PRECISION_K, DENSITY_K = 3, 5  # neighbours: Kynkäänniemi et al. 2019, Naeem et al. 2020
ROWS = 1024  # of a chunk
SMALL = 100_000_000  # multiplications of a matrix product
NORMAL = 1.959964  # deviations within which 95% of a normal distribution lie


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean (F,), covariance (F, F) with N − 1 degrees of freedom, and N."""

    mean: np.ndarray
    cov: np.ndarray
    count: int


def moments(feature_NF: np.ndarray) -> Moments:
    """Mean and covariance of two or more vectors."""
    x = np.asarray(feature_NF, np.float64)
    return Moments(x.mean(0), np.cov(x, rowvar=False).reshape(x.shape[1], x.shape[1]), len(x))


# Fréchet -------------------------------------------------------------------------------------


def frechet(a: Moments, b: Moments) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½): Gaussians' squared 2-Wasserstein distance.

    Dowson & Landau 1982; Heusel et al. 2017, eq. 6. tr (C_a C_b)^½ is the sum of the singular
    values of C_a^½ C_b^½, which are exact to rounding even where a covariance has no full rank, as
    when there are fewer vectors than features; the eigenvalues of C_a C_b are not.
    """
    cross = np.linalg.svd(_root(a.cov)[0] @ _root(b.cov)[0], compute_uv=False).sum()
    gap = ((a.mean - b.mean) ** 2).sum()
    return float(max(gap + np.trace(a.cov) + np.trace(b.cov) - 2 * cross, 0.0))


def frechet_error(x_NF: np.ndarray, y_MF: np.ndarray, a: Moments, b: Moments) -> float:
    """The standard error of `frechet(a, b)`, as it would vary with other vectors of both kinds.

    The limit law of Rippl, Munk & Sturm 2016 (theorem 2.3): to first order, a vector x moves the
    distance by 2 (μ_a − μ_b)ᵀ(x − μ_a) + (x − μ_a)ᵀ(I − T)(x − μ_a) with T the map that carries
    one Gaussian to the other, and the other way round; the error is the spread of these moves over
    √N and √M. It costs one singular value decomposition, where a bootstrap would cost hundreds.
    It does not hold the bias, by which a distance of few vectors is too large: compare with
    that of as many real vectors.

    Args:
      x_NF, y_MF: the vectors, or a part of them.
      a, b: the moments of all of them.
    """
    root_a, inverse_a = _root(a.cov)
    root_b, inverse_b = _root(b.cov)
    left, values, right = np.linalg.svd(root_a @ root_b)
    scale = np.sqrt(values)[:, None]
    gap = a.mean - b.mean
    sides = (
        (x_NF, a, gap, scale * left.T @ inverse_a),
        (y_MF, b, -gap, scale * right @ inverse_b),
    )
    variance = 0.0
    for vectors, m, shift, carry in sides:
        off = np.asarray(vectors, np.float64) - m.mean
        move = 2 * off @ shift + (off**2).sum(1) - ((off @ carry.T) ** 2).sum(1)
        variance += move.var() / m.count
    return float(np.sqrt(variance))


def _root(cov_FF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square root and its pseudo-inverse; what is below rounding counts as zero."""
    values, vectors = np.linalg.eigh(cov_FF)
    real = values > values[-1] * len(values) * np.finfo(np.float64).eps
    root = np.sqrt(np.where(real, values, 0))
    inverse = np.where(real, 1 / np.where(real, root, 1), 0)
    return vectors * root @ vectors.T, vectors * inverse @ vectors.T


# Kernel --------------------------------------------------------------------------------------


def kernel(x_NF: np.ndarray, y_MF: np.ndarray) -> np.ndarray:
    """(xᵀy / F + 1)³, the kernel of Bińkowski et al. 2018."""
    k_NM = x_NF @ (y_MF.T / x_NF.shape[1])
    k_NM += 1
    return k_NM * k_NM * k_NM  # a power takes ten times as long


def squared_mmd(x_NF: np.ndarray, y_MF: np.ndarray) -> float:
    """The unbiased estimate of MMD² (Gretton et al. 2012, eq. 3): it can be below zero."""
    k_NN, k_MM = kernel(x_NF, x_NF), kernel(y_MF, y_MF)
    n, m = len(x_NF), len(y_MF)
    own = (k_NN.sum() - np.trace(k_NN)) / (n * (n - 1))
    other = (k_MM.sum() - np.trace(k_MM)) / (m * (m - 1))
    return float(own + other - 2 * kernel(x_NF, y_MF).mean())


def kernel_distance(
    x_NF: np.ndarray, y_MF: np.ndarray, subsets: int = SUBSETS, size: int = SUBSET_SIZE
) -> tuple[float, float]:
    """The kernel distance: mean and standard deviation of MMD² over random subsets.

    The subsets are those of torch-fidelity, so that on the same features the numbers are the same;
    where there are fewer vectors than a subset has, subsets are as large as the smaller set.

    Args:
      x_NF, y_MF: the vectors, two or more.
      subsets: how many; each costs 3 · size² · F multiplications.
      size: vectors drawn for a subset, without replacement.
    """
    x, y = np.asarray(x_NF, np.float64), np.asarray(y_MF, np.float64)
    rng, size = np.random.RandomState(SUBSET_SEED), min(size, len(x), len(y))
    found = []
    # Products so small are not worth a second thread, which waits on a busy machine.
    with threadpool_limits(1 if size**2 * x.shape[1] < SMALL else None, "blas"):
        for _ in range(subsets):
            first = x[rng.choice(len(x), size, replace=False)]
            found.append(squared_mmd(first, y[rng.choice(len(y), size, replace=False)]))
    return float(np.mean(found)), float(np.std(found))


def kernel_error(x_NF: np.ndarray, y_MF: np.ndarray) -> float:
    """The standard error of MMD², as it would vary with other vectors of both kinds.

    The first term of a U-statistic's variance (Bińkowski et al. 2018, appendix C): each vector's
    mean kernel with its own kind less that with the other.
    """
    x, y = np.asarray(x_NF, np.float64), np.asarray(y_MF, np.float64)
    own_N, cross_N, own_M, cross_M = (
        _mean_kernel(*pair) for pair in ((x, x), (x, y), (y, y), (y, x))
    )
    return float(2 * np.sqrt((own_N - cross_N).var() / len(x) + (own_M - cross_M).var() / len(y)))


def _mean_kernel(x_NF: np.ndarray, y_MF: np.ndarray) -> np.ndarray:
    parts = [kernel(x_NF[i : i + ROWS], y_MF).mean(1) for i in range(0, len(x_NF), ROWS)]
    return np.concatenate(parts)


# Neighbours ----------------------------------------------------------------------------------


def squared_distances(x_NF: np.ndarray, y_MF: np.ndarray) -> np.ndarray:
    """‖x − y‖² (N, M); what is below rounding is 0, so that a copy is at no distance."""
    xx, yy = (x_NF**2).sum(1)[:, None], (y_MF**2).sum(1)
    square = xx + yy - 2 * x_NF @ y_MF.T
    noise = 16 * np.finfo(square.dtype).eps * (xx + yy)
    return np.where(square > noise, square, 0)


def squared_radii(y_MF: np.ndarray, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """`{k: the squared distance (M,) of each vector's k-th nearest other one}`."""
    y = np.asarray(y_MF, np.float64)
    parts: dict[int, list[np.ndarray]] = {k: [] for k in ks}
    for i in range(0, len(y), ROWS):
        square = squared_distances(y[i : i + ROWS], y)
        square[np.arange(len(square)), np.arange(i, i + len(square))] = -1  # itself, before others
        # Sorting all of a row would cost ten times as much.
        ordered = np.partition(square, ks, axis=1)
        for k in ks:
            parts[k].append(ordered[:, k])
    return {k: np.concatenate(found) for k, found in parts.items()}


@dataclasses.dataclass(frozen=True)
class PRDC:
    """How two sets of vectors lie in one another, per vector: the means are the metrics.

    Attributes:
      precision_N: whether a generated vector lies in a ball around a real one that reaches to the
        3rd nearest other real one (Kynkäänniemi et al. 2019, eq. 2 and 3).
      recall_M: whether a real vector lies in such a ball around a generated one.
      density_N: in how many real vectors' balls, reaching to the 5th, a generated one lies, over 5
        (Naeem et al. 2020, eq. 3).
      coverage_M: whether a generated vector lies in a real one's ball (eq. 4).
    """

    precision_N: np.ndarray
    recall_M: np.ndarray
    density_N: np.ndarray
    coverage_M: np.ndarray


def prdc(x_NF: np.ndarray, y_MF: np.ndarray, real: dict[int, np.ndarray] | None = None) -> PRDC:
    """Precision and recall, density and coverage of generated x beside real y.

    Args:
      x_NF, y_MF: the vectors, more than 5 real and more than 3 generated ones.
      real: `squared_radii(y_MF, (3, 5))`, if it is known.
    """
    x, y = np.asarray(x_NF, np.float64), np.asarray(y_MF, np.float64)
    real = real or squared_radii(y, (PRECISION_K, DENSITY_K))
    own_N = squared_radii(x, (PRECISION_K,))[PRECISION_K]
    precise, dense = [], []
    recall_M, coverage_M = np.zeros(len(y), bool), np.zeros(len(y), bool)
    for i in range(0, len(x), ROWS):
        square = squared_distances(x[i : i + ROWS], y)
        precise.append((square <= real[PRECISION_K]).any(1))
        inside = square <= real[DENSITY_K]
        dense.append(inside.sum(1) / DENSITY_K)
        coverage_M |= inside.any(0)
        recall_M |= (square <= own_N[i : i + ROWS, None]).any(0)
    return PRDC(np.concatenate(precise), recall_M, np.concatenate(dense), coverage_M)


def nearest(x_NF: np.ndarray, y_MF: np.ndarray, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest y of each x: their numbers (N, k) and distances (N, k), nearest first."""
    order, distances = [], []
    for i in range(0, len(x_NF), ROWS):
        square = squared_distances(x_NF[i : i + ROWS], y_MF)
        few = np.argpartition(square, min(k, len(y_MF)) - 1, axis=1)[:, :k]
        by_size = np.take_along_axis(
            few, np.argsort(np.take_along_axis(square, few, 1), 1, kind="stable"), 1
        )
        order.append(by_size)
        distances.append(np.sqrt(np.take_along_axis(square, by_size, 1)))
    return np.concatenate(order), np.concatenate(distances)
