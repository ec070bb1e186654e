"""How sure a held-out figure is."""

import numpy as np

from aigc_jax.core.errors import UserError

DRAWS = 1 << 20  # drawn at once: 24 MB of indices and sums, whatever the number of parts


def bootstrap(
    totals_N: np.ndarray,
    weights_N: np.ndarray,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of Σ totals / Σ weights (Efron 1979).

    The parts are drawn again with replacement, N of N, `resamples` times; the interval leaves out
    an equal share of the ratios at either end. It says how the figure would vary with other parts
    of the same kind, taking them to be independent: parts that are alike, as neighbouring windows
    of one document are, make it too narrow. The order of the parts does not change it.

    Args:
      totals_N, weights_N: of each part, such as a window's nats and its bytes; weights are not
        negative. Parts with neither, such as padding, do not count.
      level: the share of such intervals that hold the true ratio.
      resamples: how many times to draw; N · resamples numbers are drawn in all.
      seed: of the draws.

    Returns:
      The lower and the upper end. Both are the ratio itself if there are fewer than two parts, and
      0 if nothing has weight.

    Raises:
      UserError: if the arguments make no sense.
    """
    totals, weights = (np.asarray(x, np.float64).ravel() for x in (totals_N, weights_N))
    _check(totals, weights, level, resamples)
    counted = (totals != 0) | (weights != 0)
    totals, weights = totals[counted], weights[counted]
    order = np.lexsort((weights, totals))  # equal parts may change places
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
    """The sums (R,) of totals and of weights, over N parts drawn with replacement R times."""
    n = len(totals_N)
    # As one complex number, a part's two are fetched and added together: half the time.
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
        raise UserError(f"there are {len(totals)} totals for {len(weights)} weights: give as many")
    if (weights < 0).any():
        raise UserError("a weight is negative: an interval needs weights of 0 or more")
    if not 0 < level < 1:
        raise UserError(f"an interval's level is between 0 and 1, not {level}")
    if resamples < 1:
        raise UserError(f"an interval needs 1 resample or more, not {resamples}")
