"""Batches of one size: every number once, and padding that leaves no trace."""

import numpy as np
import pytest

from aigc_jax.data.fixed_batches import eval_batches, map_batches, num_batches, padded_indices


@pytest.mark.parametrize("count, size", [(7, 3), (6, 3), (2, 5), (1, 1)])
def test_padded_indices_have_one_size_and_every_number_once(count, size):
    batches = list(padded_indices(count, size))
    assert {index_B.shape for index_B, _ in batches} == {(size,)}
    assert max(index_B.max() for index_B, _ in batches) == count - 1
    real = np.concatenate([index_B[real_B] for index_B, real_B in batches])
    assert real.tolist() == list(range(count))


def test_map_batches_concatenates_trees_without_padding():
    sizes = []

    def function(index_B, real_B):
        sizes.append((len(index_B), int(real_B.sum())))
        return {"double": 2 * index_B, "pair": np.stack([index_B, -index_B], 1)}

    found = map_batches(function, 7, 3)
    assert sizes == [(3, 3), (3, 3), (3, 1)]
    assert found["double"].tolist() == list(range(0, 14, 2))
    assert found["pair"].shape == (7, 2) and found["pair"][6].tolist() == [6, -6]


class Source:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return {"x": np.int32(index), "weight": np.array([1, index], np.float32)}


@pytest.mark.parametrize("limit, batches", [(0, 3), (2, 2), (9, 3)])
def test_evaluation_batches_weigh_padding_zero(limit, batches):
    found = list(eval_batches(Source(), 2, limit))
    assert len(found) == num_batches(Source(), 2, limit) == batches
    if not limit:
        assert found[2]["x"].tolist() == [4, 4]
        assert found[2]["weight"].tolist() == [[1, 4], [0, 0]]


def test_processes_evaluate_the_rows_of_one():
    alone = list(eval_batches(Source(), 4))
    parts = [list(eval_batches(Source(), 4, shard=(p, 2))) for p in range(2)]
    for k, batch in enumerate(alone):
        for key in batch:
            together = np.concatenate([part[k][key] for part in parts])
            np.testing.assert_array_equal(together, batch[key])
