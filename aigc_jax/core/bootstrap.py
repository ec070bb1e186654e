"""Bootstrap confidence intervals of held-out metrics."""

import numpy as np

from aigc_jax.core.errors import UserError

DRAWS = 1 << 20  # indices drawn at once; bounds memory to 24 MB


def bootstrap(
    totals_N: np.ndarray,
    weights_N: np.ndarray,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of Σ totals / Σ weights (Efron 1979).

    N parts are resampled with replacement `resamples` times; the interval cuts the same fraction
    of the ratios off at either end. The parts are assumed to be independent: correlated parts,
    such as neighbouring windows of one document, make the interval too narrow. Their order does
    not matter.

    Args:
      totals_N, weights_N: total and weight of each part, such as a window's nats and its bytes;
        weights are not negative. Parts where both are 0, such as padding, are ignored.
      level: confidence level, such as 0.95.
      resamples: number of bootstrap samples; N · resamples indices are drawn in all.
      seed: random seed of the resampling.

    Returns:
      The lower and the upper end. Both are the ratio itself if there are fewer than two parts, and
      0 if nothing has weight.

    Raises:
      UserError: if lengths differ, a weight is negative, or `level` or `resamples` is out of range.
    """
    totals, weights = (np.asarray(x, np.float64).ravel() for x in (totals_N, weights_N))
    _check(totals, weights, level, resamples)
    counted = (totals != 0) | (weights != 0)
    totals, weights = totals[counted], weights[counted]
    order = np.lexsort((weights, totals))  # makes the result independent of the order
    totals, weights = totals[order], weights[order]
    if weights.sum() == 0:
        return 0.0, 0.0
    total_R, weight_R = _resampled(totals, weights, resamples, np.random.default_rng(seed))
    ratios = (total_R / np.where(weight_R > 0, weight_R, 1))[weight_R > 0]
    if not len(ratios):  # very few resamples of parts that mostly have no weight
        ratios = totals.sum(keepdims=True) / weights.sum()
    tail = (1 - level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _resampled(
    totals_N: np.ndarray, weights_N: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sums (R,) of totals and of weights of R bootstrap samples."""
    n = len(totals_N)
    # Total and weight as one complex number are gathered and summed together: half the time.
    part_N = totals_N + 1j * weights_N
    sum_R = np.zeros(resamples, np.complex128)
    rows = max(DRAWS // n, 1)
    for r in range(0, resamples, rows):
        height = min(rows, resamples - r)
        for start in range(0, n, DRAWS):
            drawn = rng.integers(n, size=(height, min(DRAWS, n - start)))
            sum_R[r : r + height] += part_N.take(drawn).sum(1)
    return sum_R.real, sum_R.imag


def _check(totals: np.ndarray, weights: np.ndarray, level: float, resamples: int) -> None:
    if len(totals) != len(weights):
        raise UserError(f"{len(totals)} totals but {len(weights)} weights: pass equally many")
    if (weights < 0).any():
        raise UserError("a weight is negative: weights must be 0 or more")
    if not 0 < level < 1:
        raise UserError(f"level must be between 0 and 1, not {level}")
    if resamples < 1:
        raise UserError(f"resamples must be at least 1, not {resamples}")
