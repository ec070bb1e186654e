"""The bootstrap interval: does it hold the truth as often as it says?"""

import numpy as np
import pytest

from aigc_jax.core import bootstrap as interval
from aigc_jax.core.bootstrap import bootstrap
from aigc_jax.core.errors import UserError

TRUE = 1.7


def parts(n, seed):
    """Windows of different sizes whose nats per byte are TRUE on average, the longer ones surer."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(1, 20, n).astype(float)
    return weight * TRUE + np.sqrt(weight) * rng.gamma(2, 0.5, n) - np.sqrt(weight), weight


@pytest.mark.parametrize("level", [0.95, 0.5])
def test_interval_holds_the_true_ratio_as_often_as_its_level(level):
    """In 200 data sets, the share may be off by three standard errors."""
    held = 0
    for seed in range(200):
        low, high = bootstrap(*parts(150, seed), level=level, resamples=400)
        held += low <= TRUE <= high
    assert abs(held / 200 - level) < 3 * np.sqrt(level * (1 - level) / 200)


def test_width_is_that_of_the_normal_approximation():
    """For a ratio of sums, the standard error is that of the residuals t − r·w (delta method)."""
    total, weight = parts(4000, seed=0)
    ratio = total.sum() / weight.sum()
    error = np.sqrt(((total - ratio * weight) ** 2).sum()) / weight.sum()
    low, high = bootstrap(total, weight, resamples=4000)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert (high + low) / 2 == pytest.approx(ratio, abs=0.2 * error)


def test_interval_is_the_same_each_time_and_in_any_order():
    total, weight = parts(300, seed=1)
    shuffled = np.random.default_rng(5).permutation(300)
    first = bootstrap(total, weight, seed=3)
    assert bootstrap(total, weight, seed=3) == first
    assert bootstrap(total[shuffled], weight[shuffled], seed=3) == first
    assert bootstrap(total, weight, seed=4) != first
    assert bootstrap(total.tolist(), weight.tolist(), seed=3) == first
    assert type(first[0]) is float and first[0] < total.sum() / weight.sum() < first[1]


def test_a_higher_level_is_wider_and_more_parts_are_narrower():
    widths = [np.subtract(*bootstrap(*parts(300, 1), level=p)[::-1]) for p in (0.5, 0.9, 0.99)]
    assert widths == sorted(widths) and widths[0] > 0
    assert np.subtract(*bootstrap(*parts(3000, 1))[::-1]) < widths[1] / 2


def test_parts_drawn_in_pieces_are_all_drawn(monkeypatch):
    """Memory is bounded: the same interval, up to chance, if few are drawn at once."""
    total, weight = parts(500, seed=2)
    whole = bootstrap(total, weight, resamples=3000)
    monkeypatch.setattr(interval, "DRAWS", 64)
    pieces = bootstrap(total, weight, resamples=3000)
    assert pieces != whole
    assert pieces == pytest.approx(whole, abs=0.1 * (whole[1] - whole[0]))


def test_memory_does_not_grow_with_parts_times_resamples():
    """200 resamples of 300,000 parts are 480 MB of indices, if they are drawn at once."""
    import tracemalloc

    total, weight = parts(300_000, seed=3)
    tracemalloc.start()
    bootstrap(total, weight, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def test_parts_without_anything_do_not_count():
    """Padding; but what costs nats without being text, such as a separator, does."""
    total, weight = parts(40, seed=4)
    padded = np.pad(total, (0, 60)), np.pad(weight, (0, 60))
    assert bootstrap(*padded) == bootstrap(total, weight)
    assert bootstrap([*total, 5.0], [*weight, 0.0])[1] > bootstrap(total, weight)[1]


@pytest.mark.parametrize(
    "totals, weights, value",
    [
        ([3.0], [2.0], 1.5),
        ([3.0, 0.0], [2.0, 0.0], 1.5),
        ([], [], 0.0),
        ([0.0] * 3, [0.0] * 3, 0.0),
    ],
)
def test_fewer_than_two_parts_have_no_spread(totals, weights, value):
    assert bootstrap(totals, weights) == (value, value)


def test_equal_parts_have_no_spread_and_resamples_without_weight_are_left_out():
    assert bootstrap([3.0] * 9, [2.0] * 9) == (1.5, 1.5)
    # A quarter of the resamples has no weight; the others make 1 / 1, or 6 / 1.
    assert bootstrap([5.0, 1.0], [0.0, 1.0]) == (1, 6)
    for seed in range(20):
        low, high = bootstrap([5.0, 1.0], [0.0, 1.0], resamples=1, seed=seed)
        assert low == high and low in (1, 6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"totals_N": [1.0]}, "1 totals"),
        ({"weights_N": [1.0, -1.0]}, "negative"),
        ({"level": 95}, "between 0 and 1, not 95"),
        ({"level": 0.0}, "between 0 and 1"),
        ({"resamples": 0}, "resamples"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        bootstrap(**{"totals_N": [1.0, 2.0], "weights_N": [1.0, 1.0], **change})
