"""Orders, splits and mixtures that are computed: right everywhere, and of constant size."""

import tracemalloc

import numpy as np
import pytest

from aigc_jax.data import split as split_lib
from aigc_jax.data.mixture import MixtureSchedule
from aigc_jax.data.shuffle import EpochShuffle, IndexShuffle, WindowShuffle
from aigc_jax.data.split import random_split

BILLION = 10**9


@pytest.mark.parametrize("count", [1, 2, 10, 257])
def test_a_computed_order_has_every_number_once(count):
    orders = [[IndexShuffle(count, [3, epoch])[i] for i in range(count)] for epoch in range(2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 10 or orders[0] != orders[1]


def test_a_part_of_a_computed_order_is_that_part():
    whole = list(IndexShuffle(100, 0))
    assert list(IndexShuffle(100, 0)[20:50:3]) == whole[20:50:3]
    assert IndexShuffle(100, 0)[np.array([7, 3])].tolist() == [whole[7], whole[3]]


ENDS = np.array([4, 4, 9, 10, 30, 37, 40])  # one file is empty


@pytest.mark.parametrize("window", [1, 7, 12, 39])
def test_an_order_in_windows_has_every_example_once_and_goes_file_by_file(window):
    order = EpochShuffle(40, 5, ENDS, window)
    for epoch in range(3):
        got = order(epoch * 40 + np.arange(40))
        assert sorted(got.tolist()) == list(range(40))
        files = np.searchsorted(ENDS, got, "right")
        # Whatever was read of a file is read within a window and the rest of its last file.
        for file in set(files.tolist()):
            (places,) = np.nonzero(files == file)
            assert places[-1] - places[0] < window + 20
    assert (order(np.arange(40)) != order(40 + np.arange(40))).any()
    assert order(np.array([45, 3])).tolist() == [order(np.array([p]))[0] for p in (45, 3)]


def test_an_order_that_fits_into_a_window_does_not_look_at_files():
    assert (
        EpochShuffle(40, 5, ENDS, 40)(np.arange(80)) == EpochShuffle(40, 5)(np.arange(80))
    ).all()


def test_an_order_in_windows_shuffles_files_and_examples():
    got = WindowShuffle(np.arange(100, 1001, 100), [0], 300)[np.arange(1000)]
    firsts = [int(got[i : i + 300].min()) // 100 for i in range(0, 900, 300)]
    assert firsts != sorted(firsts) or firsts != [0, 3, 6]
    inside = got[:300]
    assert (np.diff(inside) < 0).sum() > 100  # in no order
    assert len({int(x) // 100 for x in inside[:20]}) > 1  # of several files at once


@pytest.mark.parametrize("fraction", [0.2, 0.013])
@pytest.mark.parametrize("held", [10, 10**6])
def test_a_split_holds_out_its_share_and_loses_nothing(fraction, held, monkeypatch):
    """Whether the order is held or computed."""
    monkeypatch.setattr(split_lib, "MAX_IN_MEMORY", held)
    monkeypatch.setattr(split_lib, "SMALL", 500)
    train, held_out = random_split(2_003, fraction, seed=1)
    numbers = [int(i) for part in (train, held_out) for i in part]
    assert sorted(numbers) == list(range(2_003))
    assert abs(len(held_out) - fraction * 2_003) <= 1 + (held == 10) * 1000 * fraction
    other = random_split(2_003, fraction, seed=2)[1]
    assert [int(i) for i in other] != [int(i) for i in held_out]


def test_a_computed_split_stays_near_and_knows_where_files_end(monkeypatch):
    monkeypatch.setattr(split_lib, "MAX_IN_MEMORY", 10)
    monkeypatch.setattr(split_lib, "SMALL", 50)
    train, _ = random_split(300, 0.2, seed=1)
    numbers = np.array(list(train))
    assert (np.abs(numbers - np.arange(len(train)) / 0.8) <= 50).all()
    ends = np.array([100, 170, 300])
    below = [(numbers < end).sum() for end in ends]
    assert np.abs(train.count_below(ends) - below).max() <= 50 and train.count_below(ends)[
        -1
    ] == len(train)
    assert list(train[10:14]) == numbers[10:14].tolist()


@pytest.mark.parametrize("weights", [(7, 3), (1, 1, 1), (1, 999), (2, 5, 4, 1)])
def test_every_part_of_a_mixture_has_its_share_at_every_place(weights):
    batch_size, total = 8, sum(weights)
    mixture, seen = MixtureSchedule(weights, batch_size, seed=0), [[] for _ in weights]
    for number in range(200):
        for part, place in zip(*mixture.batch(number, np.arange(batch_size)), strict=True):
            seen[part].append(int(place))
        count = (number + 1) * batch_size
        assert [len(places) for places in seen] == mixture.taken(number + 1)
        for places, weight in zip(seen, weights, strict=True):
            assert abs(len(places) - count * weight / total) < 2
    assert all(sorted(places) == list(range(len(places))) for places in seen)


def test_no_row_belongs_to_one_part_for_ever():
    """Although the weights repeat with every batch."""
    mixture = MixtureSchedule((3, 1), 4, seed=0)
    parts = np.stack([mixture.batch(number, np.arange(4))[0] for number in range(64)])
    assert (parts.sum(1) == 1).all() and (parts.sum(0) > 4).all()


def test_rows_of_a_mixture_do_not_depend_on_who_asks():
    mixture, other = MixtureSchedule((7, 3), 8, seed=1), MixtureSchedule((7, 3), 8, seed=1)
    for number in (5, 0, 77):
        whole = mixture.batch(number, np.arange(8))
        halves = [other.batch(number, rows) for rows in (np.arange(4), np.arange(4, 8))]
        for all_of_it, parts in zip(whole, zip(*halves, strict=True), strict=True):
            assert all_of_it.tolist() == np.concatenate(parts).tolist()


def test_far_places_of_a_mixture_do_not_overflow():
    weights = (10**9 - 1, 1)
    parts, places = MixtureSchedule(weights, 1 << 10, 0).batch(2**43 - 1, np.arange(1 << 10))
    assert parts.max() <= 1 and places.min() >= 0
    assert places[parts == 0].max() < 2**53


def index_of(count):
    """Everything that says which example stands where, for `count` of them."""
    train, held_out = random_split(count, 0.1, seed=0)
    order = EpochShuffle(len(train), seed=0)
    mixture = MixtureSchedule((7, 3), 256, seed=0)
    for number in (0, 1, 10**6):
        _, places = mixture.batch(number, np.arange(256))
        chosen = [train[i] for i in order(places).tolist()]
    return train, held_out, order, mixture, chosen


def test_the_index_of_a_billion_examples_is_no_larger_than_that_of_a_million():
    sizes = {}
    for count in (2 * 10**6, BILLION):
        tracemalloc.start()
        kept = index_of(count)
        sizes[count], peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 18 and max(kept[-1]) < count
    assert abs(sizes[BILLION] - sizes[2 * 10**6]) < 1 << 14
